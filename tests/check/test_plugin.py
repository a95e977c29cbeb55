"""The plugin `pytest --check-rules`, in a suite that does not know of it."""

import sys
import tomllib
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet import check_rule, profile_rule
from funcnet.command.recording import Recorder
from funcnet.command.verdicts import arguments_of, verdicts

pytest_plugins = ["pytester"]

RULES = """
import functools, jax, jax.numpy as jnp

@jax.custom_vjp
def square(x):
    return x * x

square.defvjp(lambda x: (x * x, x), lambda x, dy: (2 * x * dy,))

@jax.custom_vjp
def cube(x):
    return x**3

cube.defvjp(lambda x: (x**3, x), lambda x, dy: (3 * x * dy,))
"""


@pytest.fixture
def suite(pytester):
    """Runs pytest with the plugin on a test; returns the result and its section as one line."""
    pytester.makepyfile(rules=RULES)
    pytester.syspathinsert()

    def run(test, *options, subprocess=False):
        pytester.makepyfile(test_suite="import jax, jax.numpy as jnp, rules\n" + dedent(test))
        start = pytester.runpytest_subprocess if subprocess else pytester.runpytest_inprocess
        result = start("-p", "pytest_funcnet", "-p", "no:cacheprovider", *options)
        sys.modules.pop("rules", None)
        _, _, section = result.stdout.str().partition("= rules =")
        return result, " ".join(section.split())

    return run


CALLS = "def test_calls():\n    "


def test_the_wrong_rule_is_refuted_and_the_right_one_proved(suite, pytester):
    test = """
    def test_eager():
        rules.square(jnp.float32(3))

    def test_jit_of_grad():
        jax.jit(jax.grad(lambda x: rules.cube(x).sum()))(jnp.ones(2, "float32"))
    """
    result, section = suite(test, "--check-rules", "--junitxml=junit.xml")
    assert result.ret == 1
    result.assert_outcomes(passed=3, failed=1)
    assert (
        "refuted cube at rules.py:9 (float32[2]) at random numbers in "
        "test_suite.py::test_jit_of_grad: gradient of x"
    ) in section
    assert "proved square at rules.py:3 (float32[])" in section
    assert "1 refuted, 0 undecided, 0 not checked, 1 proved" in section
    assert "cube: refuted" in result.stdout.str()
    result.stdout.fnmatch_lines(["FAILED rules.py::cube*"])

    cases = ElementTree.parse(pytester.path / "junit.xml").getroot().findall(".//testcase")
    found = {case.get("name"): case for case in cases}
    assert "gradient: x" in found["cube[float32[2]]"].find("failure").text
    assert found["square[float32[]]"].find("failure") is None
    assert len(cases) == 4


def test_nothing_without_the_flag(suite):
    test = """
    import sys

    def test_it():
        rules.cube(jnp.float32(3))
        assert "funcnet" not in sys.modules
    """
    result, section = suite(test, subprocess=True)
    assert result.ret == 0
    assert not section


def test_the_plugin_imports_no_jax(pytester):
    pytester.makepyfile("def test_it():\n    import sys\n    assert 'jax' not in sys.modules")
    options = ["-p", "pytest_funcnet", "-p", "no:cacheprovider", "-p", "no:jaxtyping"]
    assert pytester.runpytest_subprocess(*options).ret == 0


def test_the_entry_point_is_the_plugin():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (module,) = project["entry-points"]["pytest11"].values()
    assert hasattr(import_module(module), "pytest_addoption")


def test_out_of_time(suite):
    test = CALLS + "rules.cube(jnp.ones(2)); rules.square(1.0)"
    result, section = suite(test, "--check-rules", "--check-rules-seconds=0")
    assert result.ret == 0
    assert "0 refuted, 0 undecided, 2 not checked, 0 proved" in section
    reason = "in test_suite.py::test_calls: out of time"
    assert f"not checked cube at rules.py:9 (float64[2]) {reason}" in section
    result.assert_outcomes(passed=1, skipped=2)


def test_a_check_is_stopped_at_the_end_of_the_time(monkeypatch):
    def endless(*_):
        while True:
            try:
                while True:
                    pass
            except BaseException:  # code may swallow what stops it
                return check_rule(square, 2.0, under_transformations=False)

    square = jax.custom_vjp(lambda x: x * x)
    square.defvjp(lambda x: (x * x, x), lambda x, dy: (2 * x * dy,))
    monkeypatch.setattr("funcnet.command.verdicts.check_rule", endless)
    with Recorder() as recorder:
        square(2.0)
    (outcome,) = verdicts(recorder, 0.2)
    assert (outcome.verdict, outcome.reason) == ("not checked", "out of time")


def test_a_rule_can_be_excepted(suite):
    result, section = suite(CALLS + "rules.cube(2.0)", "--check-rules", "--check-rules-except=cube")
    assert result.ret == 0
    assert "not checked cube at rules.py:9 (float) in test_suite.py::test_calls: exc" in section


def test_a_wrong_option_is_one_line(suite):
    result, _ = suite(CALLS + "pass", "--check-rules", "--check-rules-seconds=-1")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert str(result.stderr) == "ERROR: --check-rules-seconds must be at least 0, got -1\n"


def test_each_rule_and_signature_once(suite):
    test = """
    import functools

    def scaled(factor):
        @jax.custom_vjp
        def scale(x):
            return factor * x

        scale.defvjp(lambda x: (factor * x, None), lambda _, dy: (factor * dy,))
        return scale

    @functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
    def power(x, n):
        return x**n

    power.defvjp(lambda x, n: (x**n, x), lambda n, x, dy: (n * x ** (n - 1) * dy,))

    def test_it():
        x = jnp.ones(2, "float32")
        for factor in (2.0, 2.0, 3.0):  # 2 signatures
            scaled(factor)(x)
        jax.vmap(scaled(2.0))(jnp.ones((3, 2), "float32"))
        jax.lax.scan(lambda c, x: (c, scaled(2.0)(x)), 0, jnp.ones((3, 2), "float32"))
        for n in (2, 3):  # 2 signatures
            power(x, n)
            jax.grad(lambda x: power(x, n=n).sum())(x)
        rules.square(x)  # 2 signatures
        rules.square(x=x)
        rules.square(x[:1])
    """
    _, section = suite(test, "--check-rules", "--check-rules-seconds=0")
    assert "6 not checked" in section
    assert "scale at test_suite.py:6 (float32[2]) and 1 more" in section
    assert "power at test_suite.py:13 (float32[2], n=2) and 1 more" in section
    assert "random" not in section  # an eager call knows the values


def recorded(program, *args):
    """The one call of a rule in a program."""
    with Recorder() as recorder:
        program(*args)
    (call,) = recorder.calls.values()
    return call


@jax.custom_vjp
def double(x):
    return 2 * x


double.defvjp(lambda x: (2 * x, None), lambda _, dy: (2 * dy,))


@pytest.mark.parametrize("program", [double, jax.grad(double)])
def test_values_are_kept(program):
    x = np.full((), 3.0)
    call = recorded(program, x)
    x += 1  # the test may reuse its memory
    assert call.unknown == 0
    assert call.arguments(None) == [3.0]


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, lambda f: jax.jit(jax.grad(f))])
def test_of_traced_values_shape_and_dtype_are_kept(transform):
    program = lambda x: transform(lambda x: double(x).sum())(x)
    call = recorded(program, jnp.ones((1, 3), "bfloat16"))
    (spec,) = call.leaves
    assert spec.shape in [(1, 3), (3,)]
    assert spec.dtype == "bfloat16"
    assert call.unknown == 1


def test_a_later_call_may_know_the_values():
    both = lambda x: (jax.jit(double)(x), double(x), jax.jit(lambda x: double(x))(x))
    assert recorded(both, np.ones(3)).unknown == 0


def by_default(factor):
    f = jax.custom_vjp(lambda x: 2 * x)
    f.defvjp(lambda x: (2 * x, None), lambda _, dy, factor=factor: (factor * dy,))
    return f


def by_keyword(factor):
    def bwd(_, dy, *, factor=factor):
        return (factor * dy,)

    f = jax.custom_vjp(lambda x: 2 * x)
    f.defvjp(lambda x: (2 * x, None), bwd)
    return f


def in_a_file(factor):
    source = """
f = jax.custom_vjp(lambda x: 2 * x)
f.defvjp(lambda x: (2 * x, None), lambda _, dy: (FACTOR * dy,))
"""
    names = {"jax": jax, "FACTOR": factor}
    exec(compile(source, f"by_{factor}.py", "exec"), names)
    return names["f"]


@pytest.mark.parametrize("made", [by_default, by_keyword, in_a_file])
def test_rules_that_differ_in_a_default_or_in_their_file_are_two(made):
    with Recorder() as recorder:
        for factor in (2, 3, 2):
            made(factor)(1.0)
    assert len(recorder.calls) == 2


@pytest.mark.parametrize("size", [1_000_000, 1_000_001])
def test_large_arrays_are_not_kept(size):
    assert recorded(double, jnp.ones(size, "bfloat16")).unknown == (size > 1_000_000)


def test_a_rule_of_funcnet_with_its_options(suite):
    test = """
    from funcnet import rule

    @rule
    def swish(x, *, beta=1.0):
        return x * jax.nn.sigmoid(beta * x)

    def swish_fwd(x, *, beta):
        return swish.__wrapped__(x, beta=beta), x

    def swish_bwd(x, dy, *, beta):
        s = jax.nn.sigmoid(beta * x)
        return (dy * (s + x * s * (1 - s)),)  # the factor beta is missing

    swish.defvjp(swish_fwd, swish_bwd)

    def test_it():
        for beta in (1.0, 2.0):
            jax.grad(swish)(0.5, beta=beta)
    """
    _, section = suite(test, "--check-rules")
    assert "refuted swish at test_suite.py:5 (float64[], beta=2.0)" in section
    assert "proved swish at test_suite.py:5 (float64[], beta=1.0)" in section


def test_what_cannot_be_checked_has_a_reason(suite):
    test = """
    @jax.custom_vjp
    def raises(x):
        if test_is_over:
            raise OSError("no file")
        return x

    raises.defvjp(lambda x: (x, None), lambda _, dy: (dy,))
    test_is_over = False

    def closing(c):
        f = jax.custom_vjp(lambda x: c * x)
        f.defvjp(lambda x: (c * x, None), lambda _, dy: (c * dy,))
        return f(1.0)

    def test_it():
        global test_is_over
        raises(1.0)
        test_is_over = True
        jax.jit(closing)(2.0)
    """
    result, section = suite(test, "--check-rules")
    assert result.ret == 0
    assert (
        "raises at test_suite.py:3 (float) in test_suite.py::test_it: OSError: no file" in section
    )
    assert "<lambda> at test_suite.py:13: it closes over a traced value" in section
    assert "0 refuted, 2 undecided" in section


def test_rules_for_tangents(suite):
    test = """
    def power(n, slope):
        f = jax.custom_jvp(lambda x, y: x**n + y)
        f.defjvps(lambda dx, out, x, y: slope * x * dx, lambda dy, out, x, y: dy)
        return f

    @jax.custom_jvp
    def refuses(x):
        return x

    @refuses.defjvp
    def _(x, dx):
        raise RuntimeError("no derivative")

    def test_it():
        power(2, slope=2)(3.0, y=1.0)
        jax.grad(jax.jit(power(2, slope=3)))(3.0, 1.0)
        refuses(3.0)
        jax.nn.relu(3.0)  # JAX's own custom_jvp
    """
    result, section = suite(test, "--check-rules")
    assert result.ret == 1
    where = "<lambda> at test_suite.py:4"
    assert f"refuted {where} (float64[], float64[]) at random" in section
    assert "gradient of x" in section
    assert "1.5 times the right cotangent" in " ".join(result.stdout.str().split())
    assert f"proved {where} (float, float)" in section
    assert "undecided refuses at test_suite.py:8" in section
    assert "1 refuted, 1 undecided, 0 not checked, 1 proved" in section


def test_calls_of_the_checker_are_not_recorded():
    tangents = jax.custom_jvp(lambda x: x)
    tangents.defjvps(lambda dx, out, x: dx)
    with Recorder() as recorder:
        check_rule(double, 2.0, under_transformations=False)
        check_rule(tangents, 2.0, under_transformations=False)
        tangents(2)  # there is nothing to differentiate
        tangents(jnp.arange(3))
        profile_rule(double, 2.0)
    assert not recorder.calls


def test_no_rules(suite):
    _, section = suite(CALLS + "pass", "--check-rules")
    assert "the tests called no jax.custom_vjp" in section


def test_numbers_are_normal():
    f = jax.custom_vjp(lambda x, n: x * n.astype(x.dtype))
    f.defvjp(lambda x, n: (f(x, n), n.astype(x.dtype)), lambda n, dy: (n * dy, None))
    x, n = arguments_of(recorded(jax.jit(f), jnp.ones(100), jnp.ones(100, int)))
    assert x.min() < -1
    assert x.max() > 1
    assert set(map(int, n)) == {0, 1}


def test_numbers_are_uniform_where_the_function_is_not_finite_at_normal_ones():
    f = jax.custom_vjp(lambda x, n: jnp.log(x) / n.astype(x.dtype))
    f.defvjp(lambda x, n: (f(x, n), (x, n)), lambda saved, dy: (dy / saved[0] / saved[1], None))
    x, n = arguments_of(recorded(jax.jit(f), jnp.ones(100), jnp.ones(100, int)))
    assert x.min() > 0
    assert x.max() < 1
    assert set(map(int, n)) == {1}


def test_stopped_tests(suite):
    before = jax.custom_vjp.__call__, jax.custom_jvp.__call__
    result, section = suite(CALLS + "rules.cube(1.0); assert False", "--check-rules", "-x")
    assert result.ret == 1
    assert "not checked, because the tests were stopped" in section
    assert (jax.custom_vjp.__call__, jax.custom_jvp.__call__) == before


@pytest.mark.slow
def test_workers_check_and_the_controller_reports(suite, pytester):
    test = """
    import pytest

    @pytest.mark.parametrize("n", range(2))
    def test_it(n):
        rules.cube(jnp.ones(2, "float32") + 1)
    """
    options = ["--check-rules", "-n2", "--junitxml=junit.xml"]
    result, section = suite(test, *options, subprocess=True)
    assert result.ret == 1
    assert "refuted cube at rules.py:9 (float32[2]) in test_suite.py::test_it[" in section
    assert "1 refuted, 0 undecided, 0 not checked, 0 proved" in section
    names = [c.get("name") for c in ElementTree.parse(pytester.path / "junit.xml").iter("testcase")]
    assert names.count("cube[float32[2]]") == 1
