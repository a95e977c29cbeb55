"""The losses at tiny and infinite values: second derivatives, and 0 · ∞ in gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mp, mpf

from funcnet import autodiff, ops

mp.dps = 60
LOGITS = [  # integers, so that differences are exact
    [20, 0, 1],  # correct and confident
    [-30, 12, 7],  # wrong and confident
    [-60, -61, -85],
    [3, 3, -50],  # a tie
    [0, 1, 2],
]


def logits_loss(form, x, t, dtype):
    """The loss of one row of logits with label 0, in one of its forms."""
    index = jnp.zeros((), jnp.int32)
    if form == "index":
        return ops.softmax_cross_entropy(x, index)
    if form == "smooth index":
        return ops.softmax_cross_entropy(x, index, label_smoothing=0.25)
    if form == "probabilities":
        return ops.softmax_cross_entropy(x, t)
    return ops.linear_cross_entropy(x, jnp.eye(x.size, dtype=dtype), index)


def forward_over_reverse(f):
    return jax.jacfwd(jax.grad(f))


def reverse_over_reverse(f):
    return jax.jacrev(jax.grad(f))


both = pytest.mark.parametrize("hessian", [forward_over_reverse, reverse_over_reverse])
dtypes = pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])


def near(actual, expected, dtype, ulps=16):
    """Asserts that each element is correct to `ulps` ulps of itself."""
    eps, tiny = float(jnp.finfo(dtype).eps), float(jnp.finfo(dtype).tiny)
    for a, e in zip(np.ravel(actual).tolist(), np.ravel(expected).tolist(), strict=True):
        assert abs(a - e) <= ulps * eps * abs(e) + tiny, (a, float(e))


@pytest.mark.few
@both
@dtypes
@pytest.mark.parametrize("form", ["index", "smooth index", "probabilities", "linear"])
def test_second_derivatives_by_logits(form, dtype, hessian):
    """∂²L/∂x_j∂x_k = p_j (δ_jk − p_k), where 1 − p is computed as the sum of the other p."""
    t = jnp.array([1, 0, 0], dtype)
    compiled = jax.jit(hessian(lambda x: logits_loss(form, x, t, dtype)))
    for x in LOGITS:
        e = [mp.exp(mpf(v) - max(x)) for v in x]
        p = [v / sum(e) for v in e]
        expected = [[p[j] * ((j == k) - p[k]) for k in range(3)] for j in range(3)]
        near(compiled(jnp.array(x, dtype)), np.array(expected), dtype)


@pytest.mark.few
@both
@dtypes
def test_second_derivatives_by_logits_and_probabilities(dtype, hessian):
    """∂²L/∂x_j∂t_k = p_j − δ_jk."""
    f = lambda args: ops.softmax_cross_entropy(*args)
    compiled = jax.jit(hessian(f))
    for x in LOGITS:
        e = [mp.exp(mpf(v) - max(x)) for v in x]
        p = [v / sum(e) for v in e]
        others = [sum(e[:j] + e[j + 1 :]) / sum(e) for j in range(3)]
        expected = [[-others[j] if j == k else p[j] for k in range(3)] for j in range(3)]
        blocks = compiled((jnp.array(x, dtype), jnp.array([1, 0, 0], dtype)))
        near(blocks[0][1], np.array(expected), dtype)
        near(blocks[1][0], np.array(expected).T, dtype)


@both
@dtypes
@pytest.mark.parametrize("label", [0.0, 1.0, 0.25])
def test_second_derivatives_of_the_binary_cross_entropy(label, dtype, hessian):
    """∂²L/∂z² = s(z) s(−z)."""
    f = lambda z: ops.sigmoid_binary_cross_entropy(z, jnp.array(label, dtype))
    compiled = jax.jit(hessian(f))
    for z in (-80.0, -20.0, -1.0, 0.0, 3.0, 17.0, 80.0):
        near(compiled(jnp.array(z, dtype)), np.array(1 / (2 + mp.exp(z) + mp.exp(-z))), dtype)


@pytest.mark.few
@both
@dtypes
def test_second_derivatives_of_the_cross_entropy(dtype, hessian):
    """∂²L/∂y² = t/y² and ∂²L/∂y∂t = −1/y, although y⁻² alone would overflow."""
    y, t = (jnp.array(v, dtype) for v in ([1e-25, 1e-3, 0.9], [1e-25, 0.25, 0.75]))
    by_y, by_t = hessian(lambda args: ops.cross_entropy(*args))((y, t))[0]
    wide = [[mpf(float(v)) for v in a] for a in (y, t)]
    near(by_y, np.diag([q / p**2 for p, q in zip(*wide, strict=True)]), dtype)
    near(by_t, np.diag([-1 / p for p in wide[0]]), dtype)
    by_index = hessian(lambda y: 1e-25 * ops.cross_entropy(y, jnp.zeros((), jnp.int32)))(y)
    near(by_index[0, 0], np.array(mpf(1e-25) / wide[0][0] ** 2), dtype)


@pytest.mark.few
@both
@dtypes
def test_second_derivatives_of_the_divergence(dtype, hessian):
    """∂²L/∂t² = 1/t and ∂²L/∂t∂log p = −1."""
    log_p, t = jnp.array([-60.0, -1e-3, -0.5], dtype), jnp.array([1e-30, 1e-3, 0.9], dtype)
    by_log_p, by_t = hessian(lambda args: ops.kl_divergence(*args))((log_p, t))[1]
    near(by_log_p, -np.eye(3), dtype)
    near(by_t, np.diag([1 / mpf(float(v)) for v in t]), dtype)


# 0 · ∞: an infinite loss, or −log of a probability of 0, in an example with weight 0.

INF = np.inf
ZERO_TIMES_INFINITY = {
    "softmax_cross_entropy": ([0.0, 1.0, -INF], [1.0, 0.0, 0.0]),
    "softmax_cross_entropy of an impossible label": ([0.0, 1.0, -INF], [0.5, 0.0, 0.5]),
    "cross_entropy": ([0.75, 0.25, 0.0], [1.0, 0.0, 0.0]),
    "cross_entropy of an impossible label": ([0.75, 0.25, 0.0], [0.5, 0.0, 0.5]),
    "kl_divergence of an impossible label": ([-1.0, -0.5, -INF], [0.5, 0.0, 0.5]),
    "sigmoid_binary_cross_entropy": ([INF, 0.0, -INF], [0.0, 0.5, 1.0]),
}
each_of_them = pytest.mark.parametrize("name", ZERO_TIMES_INFINITY)


@pytest.mark.few
@each_of_them
def test_an_example_without_weight_has_no_gradient(name):
    y, t = map(jnp.asarray, ZERO_TIMES_INFINITY[name])
    f = getattr(ops, name.split()[0])
    loss, back = jax.vjp(f, y, t)
    for d in back(jnp.zeros_like(loss)):
        np.testing.assert_array_equal(d, 0)


@pytest.mark.few
@pytest.mark.parametrize("f", [ops.softmax_cross_entropy, ops.cross_entropy])
def test_what_an_impossible_class_costs(f):
    """With a nonzero weight, dt = −dL log p is infinite there, with the sign of dL."""
    y = jnp.array([0.0, -INF]) if f is ops.softmax_cross_entropy else jnp.array([1.0, 0.0])
    for weight in (2.0, -2.0):
        dt = jax.grad(lambda t, c=weight: c * f(y, t))(jnp.array([1.0, 0.0]))
        np.testing.assert_array_equal(dt, [0, weight * INF])


@each_of_them
def test_nothing_to_debug_in_the_gradient_by_logits(name):
    """`debug_nans` does not raise, although the unused cotangent of the labels may be infinite."""
    y, t = map(jnp.asarray, ZERO_TIMES_INFINITY[name])
    f = getattr(ops, name.split()[0])
    weighed = lambda y: jnp.where(jnp.array(False), f(y, t), 0.0).sum()
    with jax.debug_nans(True):
        jax.grad(weighed)(y)


@pytest.mark.slow
def test_the_second_derivative_at_the_optimum():
    """At L = 0, dL of L² is 0 but its derivative is not; a special case must not remove it."""
    y, t = jnp.array([0.0, -1.0, 0.5]), jnp.array([0.25, 0.5, 0.25])
    for f in (ops.softmax_cross_entropy, ops.kl_divergence, ops.cross_entropy):
        y_f = jax.nn.softmax(y) if f is ops.cross_entropy else y
        least = f(y_f, t)
        square = lambda args, f=f, least=least: (f(*args) - least) ** 2
        actual, expected = (jax.hessian(g)((y_f, t)) for g in (square, autodiff(square)))
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-13), actual, expected)


# Labels out of range.


@pytest.mark.few
@pytest.mark.parametrize("label", [4, -1, -100, 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_gradient_of_a_label_out_of_range(label, smoothing):
    """Loss and gradient are nan in all classes of this example and in no other example."""
    x, labels = jnp.ones((2, 4)), jnp.array([label, 1])
    f = functools.partial(ops.softmax_cross_entropy, label_smoothing=smoothing)
    for g in (f, ops.cross_entropy):
        loss, back = jax.vjp(lambda x, g=g: g(x, labels), x)
        np.testing.assert_array_equal(np.isnan(loss), [True, False])
        np.testing.assert_array_equal(np.isnan(back(jnp.ones(2))[0]), [[True] * 4, [False] * 4])


@pytest.mark.few
@pytest.mark.parametrize("f", [ops.softmax_cross_entropy, ops.cross_entropy])
def test_a_label_out_of_range_that_the_caller_hides(f):
    """`where(label < 0, 0, loss)` gives dL = 0, so the gradient must be 0 and not nan."""
    labels = jnp.array([-100, 1])
    hidden = lambda x: jnp.where(labels < 0, 0.0, f(x, labels)).sum()
    x = jnp.full((2, 4), 0.25)
    dx = jax.grad(hidden)(x)
    np.testing.assert_array_equal(dx[0], 0)
    np.testing.assert_array_equal(dx[1], jax.grad(lambda x: f(x, labels[1]))(x[1]))


@pytest.mark.parametrize("f", [ops.softmax_cross_entropy, ops.cross_entropy])
@pytest.mark.parametrize(
    "label", [np.int64(2**32), np.uint32(2**32 - 1), np.int8(-128), np.uint64(2**63)], ids=repr
)
def test_a_label_that_another_dtype_would_wrap(f, label):
    assert np.isnan(f(jnp.full(4, 0.25), label))


# Narrow dtypes, integers.


@pytest.mark.few
@pytest.mark.parametrize("f", [ops.mean_squared_error, ops.sum_squared_error, ops.huber])
def test_errors_whose_squares_float16_does_not_hold(f):
    y, t = jnp.array([300.0, 1.0, 0.0, 0.0], jnp.float16), jnp.zeros(4, jnp.float16)
    loss, back = jax.vjp(f, y, t)
    wide = lambda x: x.astype(jnp.float64)
    expected, back_wide = jax.vjp(f, wide(y), wide(t))
    assert loss.dtype == jnp.float16
    np.testing.assert_allclose(wide(loss), expected, rtol=2.0**-10)
    one = jnp.ones_like(loss)
    for d, e in zip(back(one), back_wide(wide(one)), strict=True):
        np.testing.assert_allclose(wide(d), e, rtol=2.0**-10)


@pytest.mark.few
@pytest.mark.parametrize("f", [ops.mean_squared_error, ops.sum_squared_error, ops.huber])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, bool])
def test_the_difference_of_two_integers(f, dtype):
    """For uint8 images, 3 − 5 must not be 254."""
    a, b = np.array([3, 1, 0]).astype(dtype), np.array([5, 0, 100]).astype(dtype)
    wide = lambda x: np.asarray(x, np.float64)
    np.testing.assert_array_equal(f(a, b), f(wide(a), wide(b)))
    y = wide(a).astype(np.float32)
    assert f(y, b).dtype == np.float32
    np.testing.assert_array_equal(f(y, b), f(y, wide(b).astype(np.float32)))


@pytest.mark.slow
def test_the_dtypes_of_a_squared_error():
    """The loss has the dtype of y − t, except that integers do not affect it."""
    with jax.numpy_dtype_promotion("standard"):
        for f in (ops.mean_squared_error, ops.sum_squared_error):
            for y, t, expected in (("f2", "f4", "f4"), ("f4", "f2", "f4"), ("f2", "i4", "f2")):
                loss, back = jax.vjp(f, jnp.ones(3, y), jnp.ones(3, t))
                assert loss.dtype == expected
                assert back(loss)[0].dtype == y
