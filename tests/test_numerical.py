"""Tests that the difference formulas are exact, or have the errors, that theory predicts."""

import math
from fractions import Fraction
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow

from funcnet import ops
from funcnet.numerical import STENCILS, gradient

METHODS = list(STENCILS)
EPS = {dtype: float(np.finfo(dtype).eps) for dtype in (np.float32, np.float64)}


def default_step(x, order, eps):
    return eps ** (1 / (order + 1)) * np.maximum(1, np.abs(x))


# The formulas


def test_methods():
    assert METHODS == ["forward", "backward", "central", "five_point", "seven_point"]
    assert [s.order for s in STENCILS.values()] == [1, 1, 2, 4, 6]


@pytest.mark.parametrize("method", METHODS)
def test_weights_solve_the_taylor_conditions(method):
    """Exactly, Σ w (aᵏ − bᵏ) / d = [k = 1] for k ≤ p, and = C (p+1)! for k = p + 1."""
    terms, d, p, constant = STENCILS[method]
    moments = [sum(Fraction(w * (a**k - b**k), d) for w, a, b in terms) for k in range(p + 2)]
    assert moments[: p + 1] == [int(k == 1) for k in range(p + 1)]
    assert float(moments[p + 1] / math.factorial(p + 1)) == constant


@pytest.mark.parametrize("method", METHODS)
def test_polynomials_up_to_the_order_are_exact(method):
    """All numbers are short binary fractions, so that there are no rounding errors.

    At degree p + 1 the error is C hᵖ f⁽ᵖ⁺¹⁾, which determines the constant and its sign.
    """
    p, constant = STENCILS[method].order, STENCILS[method].constant
    x, h, k = np.array([-1.5, 0.0, 0.25, 2.0]), 0.25, np.arange(p + 2)
    powers = np.eye(p + 2)[:, ::-1]  # row k: coefficients of xᵏ, highest first
    f = lambda c: lambda x: jnp.sum(jnp.polyval(c, x))
    found = jax.jit(jax.vmap(lambda c: gradient(f(c), x, method=method, step=h)))(powers)
    error = round(constant * math.factorial(p + 1)) * h**p
    expected = k * x[:, None] ** np.maximum(k - 1, 0) + np.where(k == p + 1, error, 0)
    np.testing.assert_array_equal(found, expected.T)


@pytest.mark.parametrize("method", METHODS)
def test_error_falls_with_the_order(method):
    """error = C hᵖ f⁽ᵖ⁺¹⁾(1 + O(h)), or O(h²) for symmetric methods: below 1 % for these steps.

    f is exp, so all its derivatives are exp.
    """
    p, constant = STENCILS[method].order, STENCILS[method].constant
    steps = jnp.geomspace(0.001, 0.01, 5) if p == 1 else jnp.geomspace(0.05, 0.2, 5)
    error = jax.vmap(lambda h: gradient(jnp.exp, 0.5, method=method, step=h))(steps) - jnp.exp(0.5)
    np.testing.assert_allclose(error, constant * steps**p * jnp.exp(0.5), rtol=0.01)
    slope = np.polyfit(np.log(steps), np.log(np.abs(error)), 1)[0]
    np.testing.assert_allclose(slope, p, atol=0.01)


# The step


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", METHODS)
def test_default_step(method, dtype):
    """At x₀ the formula gives C (p+1)! hᵖ for f = (x − x₀)ᵖ⁺¹, which determines its h.

    x₀ + h is rounded by half an ulp of x₀: relative to h, half of ε/ε^(1/(p+1)) ≤ √ε.
    """
    _, _, p, constant = STENCILS[method]
    x0 = jnp.array([0.0, 0.3, -0.9, 1.5, -90.0, 1000.0], dtype)
    found = gradient(lambda x: jnp.sum((x - x0) ** (p + 1)), x0, method=method)
    h = (np.asarray(found, np.float64) / (constant * math.factorial(p + 1))) ** (1 / p)
    np.testing.assert_allclose(h, default_step(x0, p, EPS[dtype]), rtol=2 * EPS[dtype] ** 0.5)


def test_default_step_follows_the_coarser_dtype():
    """The coarser dtype of x and f decides, when one is float32 and the other float64."""
    f = lambda x, dtype: jnp.sum((x - 2).astype(dtype) ** 3)  # central gives h² for f′(2)
    coarse = 2 * EPS[np.float32] ** (1 / 3)
    for x, out in [(np.float64, np.float32), (np.float32, np.float64)]:
        found = gradient(partial(f, dtype=out), jnp.array(2, x))
        assert found.dtype == x
        np.testing.assert_allclose(float(found) ** 0.5, coarse, rtol=EPS[np.float32] ** 0.5)


@pytest.mark.parametrize("dtype", [*slow(np.float32), np.float64])
@pytest.mark.parametrize("method", METHODS)
def test_default_step_is_near_the_best(method, dtype):
    """The RMS error over 50 points is at most ten times that of the best of 60 steps.

    The error model in the docstring gives a factor of 2 for exp, whose derivatives are all equal;
    the rest allows for random rounding errors. At lower orders, a wrong exponent costs more than
    a factor of ten.
    """
    x = jnp.linspace(-1, 1, 50, dtype=dtype)
    found = lambda h: jax.vmap(lambda x: gradient(jnp.exp, x, method=method, step=h))(x)
    error = lambda h: jnp.sqrt(jnp.mean((found(h) - jnp.exp(x)) ** 2))
    sweep = jax.jit(jax.vmap(error))(jnp.geomspace(EPS[dtype], 1, 60, dtype=dtype))
    default = float(jax.jit(lambda: error(None))())
    assert default < 10 * float(jnp.min(sweep))
    p = STENCILS[method].order
    assert default < 3 * EPS[dtype] ** (p / (p + 1)) * math.e  # as the docstring promises


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("step", [None, 1e-4])
def test_the_step_taken_is_the_step_divided_by(method, step):
    """f = x has the derivative 1, however coarsely x + h is rounded.

    In float32, 1e-4 is 13 ulps of these x, so dividing by 1e-4 would give errors of up to 4 %.
    """
    x = jnp.concatenate([jnp.linspace(70, 120, 51), jnp.linspace(-120, -70, 51)]).astype(np.float32)
    found = jax.vmap(lambda x: gradient(lambda x: x, x, method=method, step=step))(x)
    np.testing.assert_allclose(found, 1, rtol=4 * EPS[np.float32])


def test_a_step_lost_in_x_gives_zero():
    assert gradient(jnp.exp, 1.0, step=1e-30) == 0


# Trees, shapes, dtypes


class Params(NamedTuple):
    w: jax.Array
    b: jax.Array


def f_tree(x):
    wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), x)
    total = sum(jnp.sum(jnp.sin((i + 1) * a)) for i, a in enumerate(jax.tree.leaves(wide)))
    return total * jnp.cos(wide["scalar"])


@pytest.mark.few
@pytest.mark.parametrize("method", METHODS)
def test_trees(method):
    key = jax.random.key(0)
    x = {
        "net": [Params(jax.random.normal(key, (2, 1, 3)), jnp.zeros((0, 4))), None, ()],
        "scalar": jnp.array(0.3),
        "single": jax.random.normal(key, (3,), jnp.float32),
        "python": 0.7,
        "numpy": np.linspace(0, 1, 2),
    }
    found, expected = gradient(f_tree, x, method=method), jax.jit(jax.grad(f_tree))(x)
    assert jax.tree.structure(found) == jax.tree.structure(x)
    p = STENCILS[method].order
    for g, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (g.shape, g.dtype) == (e.shape, e.dtype)
        # The bound is E(h) of the docstring with |f| ≤ 10 and derivatives up to 5ᵖ⁺¹.
        eps = float(jnp.finfo(g.dtype).eps)
        np.testing.assert_allclose(g, e, atol=10 * 5 ** (p + 1) * eps ** (p / (p + 1)))


@pytest.mark.parametrize(
    ("jump", "x", "step"),
    [
        (np.float64(1e39), np.float32, 128.0),  # the difference overflows in float32
        (np.float32(1), np.float64, 1 + 2.0**-40),  # h is not representable in float32
    ],
)
def test_the_division_is_in_the_wider_dtype(jump, x, step):
    """Across a jump at 0, the central difference is exactly jump / 2h."""
    found = gradient(lambda x: jnp.where(x > 0, jump, 0), jnp.zeros((), x), step=step)
    assert found.dtype == x
    assert float(found) == x(np.float64(jump) / (2 * step))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision(dtype):
    """The gradient has the dtype of x and an error of the size ε^(p/(p+1)) of central."""
    x = jnp.array([0.25, 0.5, 1.0], dtype)
    found = gradient(lambda x: jnp.sum(jnp.sin(x)), x)
    assert found.dtype == dtype
    atol = 2 * float(jnp.finfo(dtype).eps) ** (2 / 3)
    np.testing.assert_allclose(np.float64(found), np.cos(np.float64(x)), atol=atol)


@pytest.mark.parametrize("x", [(), None, jnp.zeros((0,)), {"a": jnp.zeros((2, 0, 3), np.float32)}])
def test_nothing_to_differentiate(x):
    found = gradient(lambda x: 1.0, x)
    assert jax.tree.structure(found) == jax.tree.structure(x)
    assert [a.shape for a in jax.tree.leaves(found)] == [a.shape for a in jax.tree.leaves(x)]


# Other gradients


def test_agrees_with_autodiff_and_with_the_rules():
    """The gradient of a network's loss in three ways; the error of five_point is 1e-12 of |f|."""
    kx, kw, kb = jax.random.split(jax.random.key(1), 3)
    x, labels = jax.random.normal(kx, (4, 5)), jnp.array([0, 2, 1, 2])
    params = {"w": jax.random.normal(kw, (5, 3)), "b": jax.random.normal(kb, (3,))}

    def by_rules(p):
        logits = ops.affine(ops.sigmoid(x), p["w"], ops.tanh(p["b"]))
        return jnp.sum(ops.softmax_cross_entropy(logits, labels))

    def by_jnp(p):
        logp = jax.nn.log_softmax(jax.nn.sigmoid(x) @ p["w"] + jnp.tanh(p["b"]))
        return -jnp.sum(logp[jnp.arange(4), labels])

    for expected in (jax.jit(jax.grad(by_jnp))(params), jax.jit(jax.grad(by_rules))(params)):
        for f in (by_rules, by_jnp):
            found = gradient(f, params, method="five_point")
            jax.tree.map(partial(np.testing.assert_allclose, atol=1e-11), found, expected)


@pytest.mark.parametrize("vmap_method", ["sequential", "expand_dims", None])
def test_a_function_that_jax_cannot_differentiate(vmap_method):
    """f is a NumPy callback, with and without a vmap method."""

    def f(x):
        out = jax.ShapeDtypeStruct((), x.dtype)
        norm = lambda a: np.sum(np.asarray(a) ** 3, -1)
        return jax.pure_callback(norm, out, x, vmap_method=vmap_method)

    x = jnp.array([1.0, -2.0, 0.5])
    with pytest.raises(ValueError, match="callbacks do not support"):
        jax.grad(f)(x)
    found = gradient(f, x, batch_size=1 if vmap_method is None else None)
    np.testing.assert_allclose(found, 3 * x**2, rtol=1e-9)


# Transformations and cost


@pytest.mark.slow
def test_jit_vmap_and_derivatives():
    f = lambda x: jnp.sum(jnp.sin(x) * jnp.roll(x, 1))
    x = jax.random.normal(jax.random.key(2), (3, 4))
    g, h = jax.jit(jax.vmap(jax.grad(f)))(x), jax.jit(jax.vmap(jax.hessian(f)))(x)
    close = partial(
        np.testing.assert_allclose, rtol=1e-8, atol=1e-8
    )  # central's error is 4e-11 of |f|
    d = partial(gradient, f)
    close(jax.jit(jax.vmap(d))(x), g)
    close(jax.lax.map(d, x), g)
    close(jax.jit(jax.vmap(jax.jacfwd(d)))(x), h)
    close(jax.jit(jax.vmap(jax.jacrev(d)))(x), h)
    # In a difference of differences, the rounding error 4e-11 is divided by h = 7e-4 again.
    again = jax.jit(lambda x: gradient(lambda x: d(x)[0], x, method="five_point"))(x[0])
    np.testing.assert_allclose(again, h[0, 0], atol=1e-6)


def test_f_may_close_over_traced_values():
    def derivative(scale):
        return gradient(lambda x: scale * x**2, 3.0)

    found = jax.jit(jax.vmap(derivative))(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(found, [6.0, 12.0], rtol=1e-9)


@pytest.mark.parametrize("method", ["forward", "seven_point"])
@pytest.mark.parametrize("batch_size", [*slow(1, 2), 5, *slow(100)])
def test_batch_size_changes_only_the_cost(method, batch_size):
    f = lambda x: jnp.sum(x["a"] ** 3) * x["b"]
    x = {"a": jnp.arange(1.0, 6.0), "b": jnp.array(2.0)}
    found = gradient(f, x, method=method, batch_size=batch_size)
    # Sums may be rounded in another order, which gives errors of some ε|f|/h with |f| = 450.
    atol = 1e4 * EPS[np.float64] / default_step(1, STENCILS[method].order, EPS[np.float64])
    jax.tree.map(
        partial(np.testing.assert_allclose, atol=atol), found, gradient(f, x, method=method)
    )


def test_memory_is_bounded():
    """x has 10⁶ elements, so all shifted copies would have 10¹²; memory stays below 16 copies."""
    x = jax.ShapeDtypeStruct((1000, 1000), np.float32)
    compiled = jax.jit(partial(gradient, lambda x: jnp.sum(x**2))).lower(x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 16 * 4 * 10**6


@pytest.mark.few
@pytest.mark.parametrize(("method", "count"), list(zip(METHODS, [6, 6, 10, 20, 30], strict=True)))
def test_number_of_evaluations(method, count):
    calls = []

    def f(x):
        call = lambda a: calls.append(1) or np.sum(np.asarray(a))
        return jax.pure_callback(call, jax.ShapeDtypeStruct((), x.dtype), x)

    jax.block_until_ready(gradient(f, jnp.ones(5), method=method, batch_size=1))
    assert len(calls) == count


def test_compiles_once():
    traces = []

    def f(x):
        traces.append(1)
        return jnp.sum(x**2)

    gradient(f, jnp.ones(3), step=1e-3)
    first = len(traces)
    gradient(f, jnp.zeros(3), step=1e-4)
    assert len(traces) == first


def test_many_leaves_cost_no_more_traces():
    """Otherwise compile time would grow quadratically with the depth."""
    traces = []

    def f(x):
        traces.append(1)
        return sum(jnp.sum(a**2) for a in x)

    gradient(f, [jnp.ones(2)] * 8)
    assert len(traces) <= 4


class Unhashable:
    """A model whose `==` compares values, as a dataclass does."""

    __hash__ = None

    def __init__(self, scale):
        self.scale = scale

    def loss(self, x):
        return self.scale * jnp.sum(x**2)

    __call__ = loss


def test_f_need_not_be_hashable():
    """An unhashable f works and is not mistaken for another one."""
    for scale in (1.0, 3.0):
        for f in (Unhashable(scale), Unhashable(scale).loss):
            np.testing.assert_allclose(gradient(f, 2.0), 4 * scale, rtol=1e-9)


def test_a_python_float_is_of_the_default_dtype():
    """f sees the same strong type at x and at shifted points, so that promotion is the same."""
    seen = []
    found = gradient(lambda x: seen.append((x.dtype, x.weak_type)) or x**2, 0.5)
    assert {*seen, (found.dtype, found.weak_type)} == {(jnp.dtype("float64"), False)}
    np.testing.assert_allclose(found, 1.0, rtol=1e-9)


# Bad input


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (
            ValueError,
            "gradient: method must be one of forward, backward, central, five_point, seven_point, "
            "got 'centre'",
            lambda: gradient(jnp.sum, jnp.ones(2), method="centre"),
        ),
        (
            TypeError,
            "gradient: x must be real floating, got int64[2]",
            lambda: gradient(jnp.sum, jnp.array([1, 2])),
        ),
        (
            TypeError,
            "gradient: x['n'][0] must be real floating, got int64[]",
            lambda: gradient(lambda x: x["w"], {"w": 1.0, "n": [3]}),
        ),
        (
            TypeError,
            "gradient: x must be real floating, got complex128[1]",
            lambda: gradient(lambda x: jnp.sum(jnp.abs(x)), jnp.array([1j])),
        ),
        (
            TypeError,
            "gradient: f(x) must be one real floating number, got "
            "ShapeDtypeStruct(shape=(2,), dtype=float64)",
            lambda: gradient(jnp.sin, jnp.ones(2)),
        ),
        (
            TypeError,
            "gradient: f(x) must be one real floating number, got "
            "ShapeDtypeStruct(shape=(), dtype=int64)",
            lambda: gradient(jnp.argmax, jnp.ones(2)),
        ),
        (
            TypeError,
            "gradient: f(x) must be one real floating number, got "
            "(ShapeDtypeStruct(shape=(), dtype=float64), None)",
            lambda: gradient(lambda x: (jnp.sum(x), None), jnp.ones(2)),
        ),
        (
            ValueError,
            "gradient: step must be a finite number above 0, got -0.1",
            lambda: gradient(jnp.sum, jnp.ones(2), step=-0.1),
        ),
        (
            ValueError,
            "gradient: step must be a finite number above 0, got nan",
            lambda: gradient(jnp.sum, jnp.ones(2), step=math.nan),
        ),
        (
            TypeError,
            "gradient: step must be a number, got float64[2]",
            lambda: gradient(jnp.sum, jnp.ones(2), step=jnp.ones(2)),
        ),
        (
            ValueError,
            "gradient: batch_size must be an integer of at least 1, got 0",
            lambda: gradient(jnp.sum, jnp.ones(2), batch_size=0),
        ),
        (
            TypeError,
            "gradient: batch_size must be an integer of at least 1, got 2.5",
            lambda: gradient(jnp.sum, jnp.ones(2), batch_size=2.5),
        ),
        (
            ValueError,
            "gradient: step must be a finite number above 0, got 0",
            lambda: gradient(jnp.sum, jnp.ones(2), step=0),
        ),
        (
            TypeError,
            "gradient: step must be a number, got True",
            lambda: gradient(jnp.sum, jnp.ones(2), step=True),
        ),
        (
            ValueError,
            "gradient: step must not round to 0 in float16, that of x[1], got 1e-08",
            lambda: gradient(
                lambda x: x[0] + x[1].astype(x[0].dtype), [1.0, jnp.float16(1)], step=1e-8
            ),
        ),
        (
            ValueError,
            "gradient: method must be one of forward, backward, central, five_point, seven_point, "
            "got ['central']",
            lambda: gradient(jnp.sum, jnp.ones(2), method=["central"]),
        ),
        (
            TypeError,
            "gradient: f must be a function, got 3",
            lambda: gradient(3, jnp.ones(2)),
        ),
        (
            TypeError,
            "gradient: x['w'] must be an array, got str",
            lambda: gradient(jnp.sum, {"w": "1"}),
        ),
        (
            TypeError,
            "gradient: f(x) must be one real floating number, got None",
            lambda: gradient(lambda x: None, jnp.ones(2)),
        ),
    ],
)
def test_bad_input(error, message, call):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
