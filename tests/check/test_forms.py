"""Rules in other forms: for tangents, of solvers, of other libraries, and of Pallas kernels."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import pallas

from funcnet import check_rule

QUICK = {"under_transformations": False}
X = jnp.asarray([0.3, -1.2, 2.6, 0.7], jnp.float32)
MATRIX = jnp.asarray([[3, 1, 0, 0], [0, 4, 1, 0], [0, 0, 5, 1], [1, 0, 0, 6]], jnp.float32)


def pushed(tangent):
    """x³ with a rule for tangents."""
    f = jax.custom_jvp(lambda x: x**3)
    f.defjvp(lambda x, t: (x[0] ** 3, tangent(x[0], t[0])))
    return f


def slope(x, t):
    return 3 * x * x * t


def test_a_right_rule_for_tangents():
    report = check_rule(pushed(slope), X)
    assert report.verdict == "proved", report
    assert "tangents" in report.checked
    assert check_rule(lambda x: jnp.sin(pushed(slope)(x)), X, **QUICK).ok


@pytest.mark.parametrize(
    ("tangent", "kind"),
    [
        (lambda x, t: x * x * t, "gradient"),
        (lambda x, t: slope(x, t) * jnp.abs(t), "linearity"),
        (lambda x, t: slope(x, t) + 1, "linearity"),
        (lambda x, t: 3 * lax.stop_gradient(x * x) * t, "second derivative"),
    ],
)
def test_a_wrong_rule_for_tangents(tangent, kind):
    report = check_rule(pushed(tangent), X)
    assert kind in {found.kind for found in report.findings}, report


def test_wrong_tangents_are_explained_like_cotangents():
    kink = check_rule(jax.nn.relu, jnp.asarray([0.5, 0, -1], jnp.float32), **QUICK)
    assert [(found.kind, found.argument) for found in kink.findings] == [("kink", "x")], kink
    rounded = jax.custom_jvp(lambda x: jnp.round(x))
    rounded.defjvp(lambda x, t: (rounded(x[0]), t[0]))
    report = check_rule(rounded, X, **QUICK)
    assert "check_rule(f, x, truth=lambda x: x)" in str(report), report
    assert check_rule(rounded, X, truth=lambda x: x, **QUICK).ok


def test_a_rule_for_tangents_that_float64_does_not_suit():
    def narrow(x):
        assert x.dtype == jnp.float32, "must be float32"
        return x**3

    f = jax.custom_jvp(narrow)
    f.defjvp(lambda x, t: (narrow(x[0]), 3 * x[0] ** 2 * t[0]))
    assert check_rule(f, X, **QUICK).ok
    f.defjvp(lambda x, t: (narrow(x[0]), 2 * x[0] ** 2 * t[0]))
    report = check_rule(f, X, **QUICK)
    assert [(found.kind, found.argument) for found in report.findings] == [("gradient", "x")]


def test_differences_decide_a_second_derivative():
    """At 0, autodiff of `where(x == 0, 1, sin(πx)/πx)` has the second derivative 0 for −π²/3."""
    report = check_rule(jnp.sinc, jnp.float32(0))
    assert report.ok, report
    assert any("second derivative" in note for note in report.warnings), report

    cut = jax.custom_jvp(lambda x: jnp.sinc(x))
    cut.defjvp(lambda x, t: (cut(x[0]), lax.stop_gradient(jax.grad(jnp.sinc)(x[0])) * t[0]))
    report = check_rule(cut, jnp.float32(0))
    assert [found.kind for found in report.findings] == ["second derivative"], report


def test_a_rule_for_tangents_with_a_static_argument():
    f = jax.custom_jvp(lambda n, x: x**n, nondiff_argnums=(0,))
    f.defjvp(lambda n, x, t: (x[0] ** n, n * x[0] ** (n - 1) * t[0]))
    assert check_rule(f, 3, X, **QUICK).ok


def rooted(factor):
    """The root of y³ + y = a by Newton's method."""

    def solve(g, y):
        return lax.fori_loop(
            0, 30, lambda _, y: y - g(y) / jax.vmap(jax.grad(lambda y: y**3 + y))(y), y
        )

    tangent = lambda g, b: b / (factor * g(jnp.ones_like(b)))
    return lambda a: lax.custom_root(lambda y: y**3 + y - a, jnp.ones_like(a), solve, tangent)


@pytest.mark.parametrize("factor", [1, 2])
def test_tangents_of_a_rule_that_refuses_float64(factor):
    f = jax.custom_jvp(lambda x: lax.mul(x, X))  # lax.mul does not promote
    f.defjvps(lambda dx, out, x: factor * lax.mul(dx, X))
    report = check_rule(f, X, **QUICK)
    assert report.verdict == ("proved" if factor == 1 else "refuted"), report
    assert [found.kind for found in report.findings] == ["gradient"] * (factor - 1)


@pytest.mark.few
@pytest.mark.parametrize("factor", [1, 2])
def test_custom_root(factor):
    report = check_rule(rooted(factor), jnp.abs(X), **QUICK)
    assert report.verdict == ("proved" if factor == 1 else "refuted"), report


@pytest.mark.few
@pytest.mark.parametrize("transposed", [True, False])
def test_custom_linear_solve(transposed):
    def f(a, b):
        solve = lambda _, b: jnp.linalg.solve(a, b)
        back = lambda _, b: jnp.linalg.solve(a.T if transposed else a, b)
        return lax.custom_linear_solve(lambda v: a @ v, b, solve, back)

    report = check_rule(f, MATRIX, X, **QUICK)
    assert report.verdict == ("proved" if transposed else "refuted"), report


@pytest.mark.few
@pytest.mark.parametrize("factor", [2, 3])
def test_a_pallas_kernel(factor):
    def kernel(x, y):
        y[...] = x[...] * x[...]

    def square(x):
        out = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return pallas.pallas_call(kernel, out, interpret=True)(x)

    f = jax.custom_vjp(square)
    f.defvjp(lambda x: (square(x), x), lambda x, dy: (factor * x * dy,))
    report = check_rule(f, X, **QUICK)
    assert report.verdict == ("proved" if factor == 2 else "refuted"), report


@pytest.mark.parametrize("factor", [2, 3])
def test_equinox(factor):
    equinox = pytest.importorskip("equinox")

    @equinox.filter_custom_vjp
    def f(x):
        return x * x

    f.def_fwd(lambda perturbed, x: (x * x, None))
    f.def_bwd(lambda residuals, dy, perturbed, x: factor * x * dy)
    report = check_rule(f, X, **QUICK)
    assert report.verdict == ("proved" if factor == 2 else "refuted"), report


@pytest.mark.parametrize("factor", [2, 3])
def test_flax(factor):
    linen = pytest.importorskip("flax.linen")

    class Square(linen.Module):
        @linen.compact
        def __call__(self, x):
            forward = lambda module, x: x * x
            fwd = lambda module, x: (x * x, x)
            bwd = lambda x, dy: ({}, factor * x * dy)
            return linen.custom_vjp(forward, forward_fn=fwd, backward_fn=bwd)(self, x)

    report = check_rule(lambda x: Square().apply({}, x), X, **QUICK)
    assert report.verdict == ("proved" if factor == 2 else "refuted"), report


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("with_updates", [True, False])
def test_flax_nnx(factor, with_updates):
    nnx = pytest.importorskip("flax.nnx")

    class Scale(nnx.Module):
        def __init__(self, by):
            self.by = nnx.Param(by)

    def bwd(saved, g):
        m, x = saved
        (dm, _), dy = g if with_updates else ((m, None), g)
        dm = nnx.clone(dm)
        (dm["by"] if with_updates else dm.by)[...] = x * x * dy
        return dm, factor * m.by[...] * x * dy

    call = lambda m, x: m.by[...] * x * x
    f = nnx.custom_vjp(call, graph_updates=with_updates)
    f.defvjp(lambda m, x: (call(m, x), (m, x)), bwd)
    report = check_rule(f, Scale(X[:2] + 1), X[:2], **QUICK)
    assert report.verdict == ("proved" if factor == 2 else "refuted"), report
    assert {found.argument for found in report.findings} <= {"x"}


def test_flax_nnx_of_arrays():
    nnx = pytest.importorskip("flax.nnx")

    def bwd(_, g):
        _, dy = g  # without Flax in between, these would be the two elements of dy
        return (2 * dy,)

    f = nnx.custom_vjp(lambda x: 2 * x)
    f.defvjp(lambda x: (2 * x, None), bwd)
    assert check_rule(f, X[:2], **QUICK).verdict == "proved"


@pytest.mark.parametrize("factor", [3, 2])
def test_a_function_that_raises_in_perturbed_arithmetic(factor):
    """Like a solver that raises unless it has reached the end exactly."""

    def exact(one):
        if not (one == 1).all():
            raise RuntimeError("not at the end")
        return one

    def cube(x):
        one = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return x**3 * jax.pure_callback(exact, one, x / x, vmap_method="expand_dims")

    f = jax.custom_vjp(cube)
    f.defvjp(lambda x: (cube(x), x), lambda x, dy: (factor * x * x * dy,))
    report = check_rule(f, X, **QUICK)
    assert report.verdict == ("proved" if factor == 3 else "refuted"), report
    assert any("perturbed arithmetic RuntimeError: not at the end" in w for w in report.warnings)


def rooted_by(step):
    """x^1.5 with a bwd that calls a rule, which solves y² = x to 1e-5 by steps."""

    def root(a):
        more = lambda y: (jnp.abs(y * y - a) > 1e-5 * a).any()
        return lax.while_loop(more, lambda y: step(y, a), jnp.ones_like(a))

    ruled_root = jax.custom_vjp(root)
    ruled_root.defvjp(lambda a: (root(a),) * 2, lambda y, dy: (dy / (2 * y),))
    f = jax.custom_vjp(lambda x: x**1.5)
    f.defvjp(lambda x: (x**1.5, x), lambda x, dy: (1.5 * ruled_root(x) * dy,))
    return f


def test_a_loop_in_a_rule_that_bwd_calls():
    """A solver that stops early is imprecise, not wrong, even if the solver has its own rule."""
    report = check_rule(rooted_by(lambda y, a: y + (a - y * y) / 4), jnp.abs(X), **QUICK)
    assert [found.kind for found in report.findings] == ["accuracy"], report
    assert "solver" in report.findings[0].message


def test_a_loop_that_never_ends_in_bfloat16():
    report = check_rule(rooted_by(lambda y, a: (y + a / y) / 2), jnp.abs(X), **QUICK)
    assert report.ok, report
    assert any("might never end" in note for note in report.warnings), report
