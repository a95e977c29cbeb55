"""`check_rule`: accepted arguments, names in the report, and messages."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet import RULES, check_model, check_rule, ops, rule
from funcnet.check import CheckFailed


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape), jnp.float32)


def ruled(f, bwd, nondiff=()):
    """f with a rule whose backward pass is bwd(*static, args, dy)."""
    g = jax.custom_vjp(f, nondiff_argnums=nondiff)
    g.defvjp(lambda *a: (f(*a), tuple(x for i, x in enumerate(a) if i not in nondiff)), bwd)
    return g


dense = ruled(
    lambda x, w, b: x @ w + b,
    lambda saved, dy: (dy @ saved[1].T, saved[0].T @ dy, dy.sum(0)),
)
wrong_dense = ruled(
    lambda x, w, b: x @ w + b,
    lambda saved, dy: (dy @ saved[1].T, saved[0].T @ dy, dy.mean(0)),
)
QUICK = {"under_transformations": False}
DENSE = normal(8, 5), normal(5, 3), normal(3)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(RULES))
def test_funcnets_own_rules(name):
    from cases import CASES

    case = CASES[name][0]
    is_float = lambda x: jnp.issubdtype(jax.typeof(x).dtype, jnp.floating)
    narrow = lambda x: jnp.asarray(x, jnp.float32) if is_float(x) else x
    args = jax.tree.map(narrow, case.args)
    report = check_rule(getattr(ops, name), *args, **case.static)
    assert report.ok, report


@pytest.mark.slow
def test_a_mean_for_a_sum_is_explained():
    report = check_rule(wrong_dense, *DENSE)
    (finding,) = report.findings
    assert (finding.kind, finding.argument) == ("gradient", "b")
    assert "1/8, and 8 is the size of axis 0 of x: a mean where a sum belongs" in finding.message
    assert "Finite differences agree with autodiff" in finding.message
    assert finding.measured > 1e5
    assert finding.allowed == 1
    assert [row.verdict for row in report.rows] == ["ok", "ok", "gradient"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: -d, "negative"),
        (lambda d: 0 * d, "is zero"),
        (lambda d: d.T, "transpose"),
        (lambda d: d[::-1], "reversed along axis 0"),
        (lambda d: 1.001 * d, "1.001 times"),
        (lambda d: d.at[2, 1].multiply(1.01), "only this element"),
        (lambda d: d.at[2].multiply(1.01), "index 2 of axis 0"),
        (lambda d: d + jnp.arange(4).astype(d.dtype)[:, None], "constant along axis 1"),
        (lambda d: d.at[0, 0].set(jnp.nan), "division by zero"),
    ],
)
def test_patterns_are_named(change, words):
    f = ruled(lambda x: jnp.sin(x), lambda saved, dy: (change(dy * jnp.cos(saved[0])),))
    (finding,) = check_rule(f, normal(4, 4)).findings[-1:]
    assert words.lower() in finding.message.lower(), finding


def test_one_branch_is_named():
    f = ruled(
        lambda x: jnp.where(x > 0, x, 0.1 * x),
        lambda saved, dy: (jnp.where(saved[0] > 0, dy, 0.2 * dy),),
    )
    (finding,) = check_rule(f, normal(4, 4)).findings
    assert "where the argument is negative are wrong" in finding.message


class Params(NamedTuple):
    w: jax.Array
    b: jax.Array


def test_names_of_leaves():
    f = ruled(
        lambda p, x: x @ p["layer"].w + p["layer"].b,
        lambda saved, dy: (
            {"layer": Params(saved[1].T @ dy, 2 * dy.sum(0))},
            dy @ saved[0]["layer"].w.T,
        ),
    )
    report = check_rule(f, {"layer": Params(DENSE[1], DENSE[2])}, DENSE[0])
    assert [f.argument for f in report.findings] == ["p['layer'].b"]


@pytest.mark.slow
def test_static_integer_key_and_keyword_arguments():
    def f(x, labels, key, axis, mode="sum"):
        mask = jax.random.bernoulli(key, 0.5, x.shape)
        return jnp.sum(jnp.where(mask, x, 0) * labels[:, None].astype(x.dtype), axis)

    def bwd(axis, mode, saved, dy):
        x, labels, key = saved
        mask = jax.random.bernoulli(key, 0.5, x.shape)
        dx = jnp.expand_dims(dy, axis) * labels[:, None].astype(x.dtype)
        return jnp.where(mask, dx, 0), None, None

    g = ruled(f, bwd, (3, 4))
    labels = jnp.arange(8, dtype=jnp.int32)
    assert check_rule(g, DENSE[0], labels, jax.random.key(0), 1, "sum").ok
    assert check_rule(g, DENSE[0], labels, key=jax.random.PRNGKey(0), axis=0, mode="x", **QUICK).ok


def test_keyword_arrays_are_arguments():
    report = check_rule(wrong_dense, DENSE[0], w=DENSE[1], b=DENSE[2])
    assert [f.argument for f in report.findings] == ["b"]


def test_shapes_stand_for_random_numbers():
    specs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in DENSE]
    assert check_rule(dense, *specs, **QUICK).ok
    assert not check_rule(wrong_dense, *specs).ok


def test_truth_of_a_straight_through_estimator():
    f = ruled(lambda x: jnp.round(x), lambda saved, dy: (dy,))
    x = 3 * normal(5)
    assert [g.kind for g in check_rule(f, x).findings] == ["gradient"]
    assert check_rule(f, x, truth=lambda x: x, **QUICK).ok
    assert not check_rule(f, x, truth=lambda x: 2 * x).ok


@pytest.mark.slow
def test_stable_rules_are_not_blamed_for_autodiff_without_digits():
    """In float64, autodiff of the naive forward is 0 beyond 37, but the rule is right."""
    f = ruled(
        lambda x: 1 / (1 + jnp.exp(-x)),
        lambda saved, dy: (dy * jax.nn.sigmoid(saved[0]) * jax.nn.sigmoid(-saved[0]),),
    )
    for x in (jnp.array([0.5, 17.0, 40.0, 80.0]), jnp.float32(40.0)):
        report = check_rule(f, x, **QUICK)
        assert report.ok, report


@pytest.mark.slow
def test_a_forward_that_jax_cannot_differentiate():
    def forward(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda x: np.sin(x).astype(x.dtype), shape, x)

    right = ruled(forward, lambda saved, dy: (dy * jnp.cos(saved[0]),))
    wrong = ruled(forward, lambda saved, dy: (1.001 * dy * jnp.cos(saved[0]),))
    report = check_rule(right, normal(4, 3))
    assert report.ok, report
    assert "compared with finite differences" in report.warnings[0]
    (finding,) = check_rule(wrong, normal(4, 3)).findings
    assert (finding.kind, finding.argument) == ("gradient", "x")


@pytest.mark.slow
def test_tolerance_and_dtypes():
    f = ruled(lambda x: jnp.sin(x), lambda saved, dy: (1.0001 * dy * jnp.cos(saved[0]),))
    assert not check_rule(f, normal(5)).ok
    assert check_rule(f, normal(5), tolerance=1e-3, **QUICK).ok

    def bwd(saved, dy):  # right in float32 and float64
        narrow = jnp.float16 if dy.dtype == jnp.bfloat16 else dy.dtype
        return (dy * jnp.exp(saved[0].astype(narrow)).astype(dy.dtype),)

    g = ruled(lambda x: jnp.exp(x), bwd)
    x = jnp.array([0.5, 12.0], jnp.float32)
    assert check_rule(g, x, **QUICK).ok
    report = check_rule(g, x, dtypes=["bfloat16"], **QUICK)
    assert [(f.kind, f.argument) for f in report.findings] == [("nonfinite", "x")]
    assert "bfloat16" in report.findings[0].message


@pytest.mark.slow
def test_strict_makes_notes_findings():
    f = ruled(  # raises in shard_map with check_vma=True, as most rules do
        lambda x, w: x @ w, lambda saved, dy: (dy @ saved[1].T, saved[0].T @ dy)
    )
    args = normal(4, 3), normal(3, 2)
    report = check_rule(f, *args)
    assert report.ok
    assert report.warnings
    assert [g.kind for g in check_rule(f, *args, strict=True).findings] == ["note"]


@pytest.mark.slow
def test_raise_if_failed_shows_the_table():
    check_rule(dense, *DENSE, under_transformations=False).raise_if_failed()
    with pytest.raises(CheckFailed, match=r"(?s)refuted.*float32\[3\].*gradient: b: "):
        check_rule(wrong_dense, *DENSE).raise_if_failed()


@pytest.mark.slow
def test_a_function_that_has_no_vmap():
    """A rule is not blamed for a transformation that autodiff of the forward fails too."""

    def forward(x):
        shape = jax.ShapeDtypeStruct(x.shape, np.bool_)
        mask = jax.pure_callback(lambda x: np.asarray(x) > 0, shape, jax.lax.stop_gradient(x))
        return jnp.where(mask, x, 2 * x)

    f = ruled(forward, lambda saved, dy: (jnp.where(saved[0] > 0, dy, 2 * dy),))
    report = check_rule(f, normal(4, 3))
    assert report.ok, report


def test_a_rule_of_funcnet_that_breaks_its_contract():
    @rule
    def double(x, *, times=2):
        return times * x

    double.defvjp(lambda x, *, times: (times * x, None), lambda _, dy, *, times: (dy[0],))
    report = check_rule(double, normal(4, 3), times=2)
    assert [(f.kind, f.argument) for f in report.findings] == [("shape", "x")]


@pytest.mark.slow
def test_a_function_of_rules_is_checked_as_one():
    report = check_rule(lambda x: ops.tanh(wrong_dense(x, DENSE[1], DENSE[2])), DENSE[0], **QUICK)
    assert report.ok
    report = check_rule(jax.jit(lambda b: ops.tanh(wrong_dense(*DENSE[:2], b))), DENSE[2])
    assert [f.argument for f in report.findings] == ["b"]


def forward_mode(x):
    return ops.tanh(jax.jvp(ops.sigmoid, (x,), (x,))[1])


def relu(**options):
    return check_rule(ops.relu, normal(3), **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_rule(jnp.sin, normal(3)), "check_rule: sin calls no function with a rule"),
        (lambda: check_rule(ops.step, jnp.arange(3)), "step has no floating argument"),
        (lambda: check_rule(ops.relu, normal(3), normal(3)), "relu: too many positional arguments"),
        (lambda: check_rule(ops.relu), "relu: missing a required argument: 'x'"),
        (lambda: check_rule("relu", normal(3)), "check_rule: f must be a function, got 'relu'"),
        (lambda: check_rule(normal(3)), r"check_rule: f must be a function, got float32\[3\]"),
        (lambda: check_model(None), "check_model: f must be a function, got None"),
        (lambda: check_rule(forward_mode, normal(3)), "a hand-written rule has no forward mode"),
        (lambda: check_model(forward_mode, normal(3)), "a hand-written rule has no forward mode"),
        (lambda: relu(tolerance=-1), "tolerance must be a finite number of at least 0, got -1"),
        (lambda: relu(tolerance=np.nan), "tolerance must be a finite number .* got nan"),
        (lambda: relu(tolerance="1"), "tolerance must be a number, got '1'"),
        (lambda: relu(strict="no"), "strict must be True or False, got 'no'"),
        (lambda: relu(under_transformations=0), "under_transformations must be True or False"),
        (lambda: relu(truth=3), "truth must be a function, got 3"),
        (lambda: relu(dtypes="bfloat16"), r"dtypes must be a list of .* \['bfloat16'\], got 'bf"),
        (lambda: relu(dtypes=jnp.bfloat16), "dtypes must be a list of floating dtypes"),
        (lambda: relu(dtypes=None), "dtypes must be a list of floating dtypes .*, got None"),
        (lambda: relu(dtypes=["int8"]), "dtypes must be a list of floating .* got 'int8' in it"),
        (lambda: relu(dtypes=["f9"]), "dtypes must be a list of floating .* got 'f9' in it"),
        (lambda: relu(dtypes=[None]), "dtypes must be a list of floating .* got None in it"),
    ],
)
def test_bad_calls_are_one_line(call, message):
    with pytest.raises((TypeError, ValueError), match=message) as e:
        call()
    assert "\n" not in str(e.value)
