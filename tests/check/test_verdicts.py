"""Verdicts where autodiff of the plain forward is no reference, or where nothing is compared."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas

from funcnet import check_model, check_rule, ops
from funcnet.command.check import main

QUICK = {"under_transformations": False}


def ruled(f, bwd, saves=lambda *args: args):
    """f with the rule bwd(saved, dy)."""
    g = jax.custom_vjp(f)
    g.defvjp(lambda *args: (f(*args), saves(*args)), bwd)
    return g


def f32(*values):
    return jnp.asarray(values, jnp.float32)


def power_of_two(x):
    n = jnp.floor(x)
    start = jnp.zeros_like(x), jnp.exp2(x - n)
    return lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, 2 * c[1]), start)[1]


def bisected(a):
    """The root of y³ + y = a, whose autodiff is 0."""

    def halve(ends, _):
        low, high = ends
        middle = (low + high) / 2
        above = middle**3 + middle > a
        return (jnp.where(above, low, middle), jnp.where(above, middle, high)), None

    return lax.scan(halve, (jnp.zeros_like(a), jnp.full_like(a, 4)), length=60)[0][0]


def fixed_point(a):
    """y = a cos y, by a loop that stops at 1e-6."""
    start = jnp.full_like(a, 0.7), jnp.zeros_like(a)
    go_on = lambda c: jnp.abs(c[0] - c[1]).max() > 1e-6
    return lax.while_loop(go_on, lambda c: (a * jnp.cos(c[0]), c[0]), start)[0]


def from_a_start(start, a):
    """y = a cos y, by two steps of Newton's method; y does not depend on the start."""
    once = lambda c: (c[0] + 1, newton(a, c[1]))
    return lax.while_loop(lambda c: c[0] < 2, once, (jnp.int32(0), start))[1]


def newton(a, y):
    return y - (y - a * jnp.cos(y)) / (1 + a * jnp.sin(y))


def of_fixed_point(a, y, dy):
    return dy * jnp.cos(y) / (1 + a * jnp.sin(y))


def sine_in_a_loop(x):
    once = lambda c: (c[0] + 1, jnp.sin(c[1]))
    return lax.while_loop(lambda c: c[0] < 1, once, (jnp.int32(0), x))[1]


def sinc(x):
    return jnp.where(x == 0, 1, jnp.sin(x) / x)


def sinc_slope(x, at_zero):
    safe = jnp.where(x == 0, 1, x)
    return jnp.where(x == 0, at_zero, (jnp.cos(safe) - jnp.sin(safe) / safe) / safe)


def norm(x):
    return jnp.sqrt((x * x).sum())


def soft_loss(logits, t):
    return -(t * jax.nn.log_softmax(logits)).sum(-1)


def of_simplex(saved, dy):
    """Uses Σ t = 1, which holds up to the rounding of t."""
    logits, t = saved
    dy = dy[:, None]
    return dy * (jax.nn.softmax(logits) - t), -dy * jax.nn.log_softmax(logits)


def root_slope(factor):
    return lambda saved, dy: (dy / (factor * bisected(*saved) ** 2 + 1),)


TAIL = jnp.where(jnp.arange(4096) < 4000, 1, 1.5)
X = f32(0.5, 1.0, 2.0)
SOFT = jnp.log(f32([1, 2, 3], [4, 1, 1])), f32([0.2, 0.3, 0.5], [0.1, 0.6, 0.3])
LONG = jnp.linspace(-1, 1, 4096, dtype=jnp.float32)
complex_square = ruled(
    lambda z: jax.pure_callback(
        lambda z: z * z, jax.ShapeDtypeStruct(z.shape, z.dtype), z, vmap_method="expand_dims"
    ),
    lambda saved, dy: (2 * saved[0] * dy,),
)

PROVED = {
    "a loop that autodiff cannot enter": (
        ruled(power_of_two, lambda s, dy: (math.log(2) * power_of_two(*s) * dy,)),
        jnp.float32(2.5),
    ),
    "bisection": (ruled(bisected, root_slope(3)), f32(1, 2, 5)),
    "a solver that stops early": (
        ruled(
            fixed_point,
            lambda s, dy: (of_fixed_point(*s, fixed_point(*s), dy),),
        ),
        f32(0.3, 0.5, 0.8),
    ),
    "the start of a solver": (
        ruled(
            from_a_start,
            lambda s, dy: (0 * s[0], of_fixed_point(s[1], from_a_start(*s), dy)),
        ),
        f32(0.3, 0.5),
        f32(0.3, 0.5),
    ),
    "sinc at 0": (ruled(sinc, lambda s, dy: (sinc_slope(*s, 0) * dy,)), f32(0, 1, 2)),
    "a slope at a corner": (
        ruled(norm, lambda s, dy: (dy * s[0] / jnp.maximum(norm(*s), 1e-30),)),
        jnp.zeros(3),
    ),
    "4,096 elements": (ruled(sine_in_a_loop, lambda s, dy: (jnp.cos(s[0]) * dy,)), LONG),
    "labels on a simplex": (ruled(soft_loss, of_simplex), *SOFT),
    "a permutation": (
        ruled(lambda x, p: x[p], lambda s, dy: (dy[jnp.argsort(s[1])], None)),
        jnp.arange(6.0, dtype=jnp.float32).reshape(3, 2),
        jnp.array([2, 0, 1]),
    ),
    "ties that only more examples have": (
        ruled(lambda x: x.max(), lambda s, dy: (jnp.zeros_like(s[0]).at[s[0].argmax()].set(dy),)),
        f32(3, 1, 2),
    ),
    "a complex callback": (complex_square, jnp.array([1 + 2j, 3 - 1j], jnp.complex64)),
}

REFUTED = {
    "zero in a loop": (ruled(power_of_two, lambda s, dy: (0 * dy,)), jnp.float32(2.5)),
    "bisection": (ruled(bisected, root_slope(2)), f32(1, 2, 5)),
    "sinc at 0": (ruled(sinc, lambda s, dy: (sinc_slope(*s, 5) * dy,)), f32(0, 1, 2)),
    "nan at 0": (
        ruled(sinc, lambda s, dy: (dy * (jnp.cos(s[0]) - jnp.sin(s[0]) / s[0]) / s[0],)),
        f32(0, 1, 2),
    ),
    "a slope beyond a corner": (
        ruled(norm, lambda s, dy: (dy * jnp.where(norm(*s) == 0, 7, s[0]),)),
        jnp.zeros(3),
    ),
    "the tail of 4,096 elements": (
        ruled(sine_in_a_loop, lambda s, dy: (TAIL.astype(dy.dtype) * jnp.cos(s[0]) * dy,)),
        LONG,
    ),
    "wrong in bfloat16 alone": (
        ruled(lambda x: x * x, lambda s, dy: ((2 + (dy.dtype == jnp.bfloat16)) * s[0] * dy,)),
        X,
    ),
    "float0 of another shape": (
        ruled(
            lambda x, i: x[i],
            lambda s, dy: (
                jnp.zeros_like(s[0]).at[s[1]].add(dy),
                np.zeros(7, jax.dtypes.float0),
            ),
        ),
        X,
        jnp.array([1, 2]),
    ),
    "NumPy in the forward": (
        ruled(lambda x: jnp.asarray(np.sin(np.asarray(x))), lambda s, dy: (jnp.cos(s[0]) * dy,)),
        X,
    ),
}


def toeplitz(a):
    i = jnp.arange(len(a)).astype(a.dtype)
    return jnp.exp(-((i[:, None] - i) ** 2) / 8) + jnp.diag(a)


def solved(a, b):
    """(K + diag a)⁻¹ b by conjugate gradients, which stop at 1e-5."""
    return jax.scipy.sparse.linalg.cg(lambda v: toeplitz(a) @ v, b, tol=1e-5)[0]


def of_solved(saved, dy):
    u = solved(saved[0], dy)
    return -u * solved(*saved), u


def conjugate_gradients(steps):
    """Solves SPREAD x = b in the given number of steps."""

    def solve(b):
        def step(state, _):
            x, r, p = state
            q = SPREAD.astype(b.dtype) @ p
            a = (r @ r) / (p @ q)
            new = r - a * q
            return (x + a * p, new, new + (new @ new) / (r @ r) * p), None

        return lax.scan(step, (jnp.zeros_like(b), b, b), length=steps)[0][0]

    return ruled(solve, lambda _, dy: (solve(dy),))


def narrow(a, b):
    return (a.astype(jnp.bfloat16) @ b.astype(jnp.bfloat16)).astype(a.dtype)


RANDOM = np.random.default_rng(0)
DRAWN = [jnp.asarray(RANDOM.standard_normal(s), jnp.float32) for s in ((5, 6), (6, 4), 20, 20)]
BASIS = np.linalg.qr(RANDOM.standard_normal((20, 20)))[0]
SPREAD = jnp.asarray(BASIS @ np.diag(np.linspace(1, 20, 20)) @ BASIS.T)
TREE = {"w": X, "x": X + 1, "bias": None}
times = lambda p: p["w"] * p["x"]

KINDS = {
    "an iterative solver": (
        "accuracy",
        "the error is",
        ruled(solved, of_solved),
        jnp.abs(DRAWN[2]) + 0.1,
        DRAWN[3],
    ),
    "a solver in a scan": (
        "accuracy",
        "a loop that stops early",
        conjugate_gradients(10),
        DRAWN[3],
    ),
    "a solver of 0 x = 0": (
        "nonfinite",
        "for a zero output cotangent",
        conjugate_gradients(20),
        DRAWN[3],
    ),
    "a wrong factor in a scan": (
        "gradient",
        "It is 1.0005 times",
        ruled(bisected, lambda s, dy: (1.0005 * dy / (1 + 3 * bisected(s[0]) ** 2),)),
        jnp.abs(DRAWN[2]) + 0.1,
    ),
    "products of bfloat16": (
        "accuracy",
        "computes in bfloat16",
        ruled(lambda x, w: x @ w, lambda s, dy: (narrow(dy, s[1].T), narrow(s[0].T, dy))),
        *DRAWN[:2],
    ),
    "a tuple in fwd": (
        "structure",
        "fwd returns (float32[3],), but the function returns [float32[3]]",
        (list_of := jax.custom_vjp(lambda x: [2 * x])),
        X,
    ),
    "None for a leaf beside a None": (
        "none",
        "is None, which JAX treats as zero",
        ruled(times, lambda s, dy: ({"w": dy * s[0]["x"], "x": None, "bias": None},)),
        TREE,
    ),
    "a shape beside a None": (
        "shape",
        "the cotangent has shape []",
        ruled(times, lambda s, dy: ({"w": dy * s[0]["x"], "x": dy.sum(), "bias": None},)),
        TREE,
    ),
}
list_of.defvjp(lambda x: ((2 * x,), None), lambda _, dy: (2 * dy[0],))

square = ruled(lambda x: x * x, lambda s, dy: (2 * s[0] * dy,))
kernel = ruled(  # for an accelerator
    lambda x: pallas.pallas_call(lambda x, y: y.__setitem__(..., x[...] ** 2), x)(x),
    lambda s, dy: (2 * s[0] * dy,),
)
UNDECIDED = {
    "the value of the function is not finite": (lambda x: square(x) * jnp.nan, X),
    "no argument has an element": (square, jnp.zeros((0, 3))),
    "no floating output depends on a rule": (lambda x: (square(x), jnp.sin(x))[1], X),
    "has no floating output": (lambda x: square(x) > 0, X),
    "the function itself raises ValueError: Only interpret mode": (kernel, X),
}


@pytest.mark.few
@pytest.mark.parametrize("case", PROVED.values(), ids=PROVED)
def test_a_right_rule_is_proved(case):
    report = check_rule(*case)
    assert report.verdict == "proved", report


@pytest.mark.few
@pytest.mark.parametrize("case", REFUTED.values(), ids=REFUTED)
def test_a_wrong_rule_is_refuted(case):
    report = check_rule(*case, **QUICK)
    assert report.verdict == "refuted", report


@pytest.mark.third
@pytest.mark.parametrize("case", KINDS.values(), ids=KINDS)
def test_a_finding_is_of_the_right_kind(case):
    kind, words, *call = case
    report = check_rule(*call, **QUICK)
    assert {found.kind for found in report.findings} == {kind}, report
    assert words in report.findings[0].message


@pytest.mark.slow
def test_an_error_of_a_solver_may_be_allowed():
    _, _, *call = KINDS["an iterative solver"]
    assert check_rule(*call, tolerance=1e-3, **QUICK).ok


@pytest.mark.parametrize("reason", UNDECIDED)
def test_what_is_not_compared_is_not_proved(reason):
    report = check_rule(*UNDECIDED[reason], **QUICK)
    assert report.verdict == "undecided", report
    assert not report.ok
    assert not report
    assert reason in report.undecided[0]
    assert f"undecided: {report.undecided[0][:20]}" in str(report)
    assert json.loads(report.to_json())["verdict"] == "undecided"
    assert "undecided" in report._repr_html_()


def test_a_diverged_model_is_undecided():
    report = check_model(lambda x: ops.relu(x).sum() * jnp.inf, X)
    assert report.verdict == "undecided", report


def test_differences_decide_and_the_report_says_so():
    report = check_rule(*PROVED["bisection"], **QUICK)
    assert any("finite differences decide" in note for note in report.warnings)


def test_the_exit_status_of_undecided(capsys, tmp_path):
    path = tmp_path / "module_of_a_test.py"
    path.write_text("from funcnet import ops\ndef f(x): return ops.relu(x) > 0\n")
    assert main(["check", f"{path}:f", "f32[3]"]) == 2
    assert "undecided" in capsys.readouterr().out


def test_an_axis_that_is_not_bound():
    f = ruled(lambda x: lax.pmean(x, "i"), lambda s, dy: (lax.pmean(dy, "i"),))
    with pytest.raises(ValueError, match=r"^check_rule: <lambda> uses the axis 'i', which is not"):
        check_rule(f, X)


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (lambda x: 1 / 0, r"^check_rule: truth must take these arguments, it raises ZeroDiv"),
        (lambda x: x.sum(), r"^check_rule: truth must return the shapes \[\(3,\)\] as .*, got"),
    ],
)
def test_a_truth_of_another_kind(truth, message):
    with pytest.raises(ValueError, match=message):
        check_rule(square, X, truth=truth)


@pytest.mark.slow
def test_what_is_nothing_but_rounding_is_no_finding():
    """Where softmin has no rival, its derivative by the temperature is a sum that rounds to 0."""

    def softmin(x, gamma):
        return -gamma * jax.nn.logsumexp(-x / gamma, axis=-1)

    bwd = lambda s, dy: (dy[:, None] * jax.nn.softmax(-s[0] / s[1]), None)
    f = ruled(softmin, bwd)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((9, 3)), jnp.float32)
    report = check_rule(f, x, jnp.float32(1e-3))
    assert report.verdict == "proved", report
    assert any("bwd returns None, and the right" in note for note in report.warnings)
    report = check_rule(f, x, jnp.float32(0.5), **QUICK)
    assert [(found.kind, found.argument) for found in report.findings] == [("none", "gamma")]
