"""JAX's own tests of its functions, applied to our functions of the same name.

Inputs, regimes and tolerances are those of `tests/nn_test.py`, `lax_autodiff_test.py` and
`lax_scipy_test.py` of JAX. Some cases are left out: our functions have no `where`, no `bias` or
window of attention and no `b` in logsumexp, and at a corner they have the derivative to its right.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jax.test_util import check_grads

from funcnet import ops

pytestmark = pytest.mark.slow

NARROW = ["float16", "bfloat16", "float32"]
RANDOM = np.random.default_rng(0)
SCORES = np.array([5.5, 1.3, -4.2, 0.9])


@pytest.mark.parametrize(
    ("f", "x", "order"),
    [
        (ops.softplus, 1e-8, 4), (ops.softplus, 0.0, 1),
        (ops.mish, 1e-8, 4), (ops.mish, 0.0, 1),
        (ops.relu, 1.0, 3), (ops.relu, -1.0, 3), (ops.relu6, 1.0, 3), (ops.relu6, -1.0, 3),
        (ops.softmax, SCORES, 2), (ops.log_softmax, SCORES, 2),
    ],
)  # fmt: skip
def test_gradients_of_many_orders(f, x, order):
    check_grads(f, (x,), order, modes=["rev"], atol=5e-3 if order == 2 else None)


def test_elu_far_out():
    check_grads(ops.elu, (1e4,), 4, modes=["rev"], eps=1.0)
    assert ops.elu(1e4) == 1e4


@pytest.mark.parametrize("f", [ops.softplus, ops.mish])
def test_gradients_at_infinity_and_nan(f):
    gradient = jax.grad(f)
    assert gradient(jnp.inf) == 1
    assert gradient(-jnp.inf) == 0
    assert jnp.isnan(gradient(jnp.nan))


@pytest.mark.parametrize("dtype", [*NARROW, "float64"])
def test_values_at_zero(dtype):
    zero = jnp.zeros((), dtype)
    assert ops.softplus(zero) == jnp.log(zero + 2)
    assert ops.mish(zero) == 0


def test_values_far_out():
    assert ops.softplus(89.0) == 89
    np.testing.assert_allclose(ops.mish(1e3), 1e3, atol=1e-3)


@pytest.mark.parametrize("approximate", [False, True])
def test_gelu(approximate):
    x = np.linspace(-12, 5, 10_000, dtype=np.float32)
    y, wide = ops.gelu(x, approximate=approximate), x.astype(float)
    expected = wide * scipy.stats.norm.cdf(wide)
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=1e-3 if approximate else 0)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(
    "f",
    [
        lambda x: ops.gelu(x, approximate=False),
        ops.gelu, ops.relu, ops.identity, ops.softplus, ops.sigmoid, ops.mish,
    ],
)  # fmt: skip
def test_the_dtype_of_the_input(f, dtype):
    assert f(jnp.zeros((), dtype)).dtype == dtype


@pytest.mark.parametrize("f", [ops.elu, ops.hard_tanh])
def test_tracing_makes_no_array(f):
    """An input of 10¹² elements can be traced, as in JAX pull request 1640."""
    jax.make_jaxpr(lambda: f(jnp.ones(10**12)))()


@pytest.mark.parametrize("f", [ops.softmax, ops.log_softmax])
def test_softmax_of_an_empty_array(f):
    assert f(jnp.zeros(0)).shape == (0,)


def test_softmax_saves_one_array():
    residuals = jax.tree.leaves(jax.vjp(ops.softmax, jnp.asarray(SCORES))[1])
    assert [r.shape for r in residuals] == [(4,)]


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("shape", [(4,), (3, 4), (3, 1, 4), (2, 3, 4)])
def test_logsumexp(shape, keepdims):
    x = 10 * RANDOM.standard_normal(shape)
    for axis in range(-len(shape), len(shape)):
        y = ops.logsumexp(x, axis=axis, keepdims=keepdims)
        expected = scipy.special.logsumexp(x, axis, keepdims=keepdims)
        np.testing.assert_allclose(y, expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([-np.inf, -np.inf], -np.inf), ([np.inf, -np.inf], np.inf), ([np.inf, 0.0], np.inf),
        ([-np.inf, 2.0], 2.0), ([np.nan, -np.inf], np.nan), ([0.0, 0.0], np.log(2)),
    ],
)  # fmt: skip
def test_logsumexp_of_infinities(x, y):
    np.testing.assert_allclose(ops.logsumexp(jnp.array(x), axis=-1), y, rtol=1e-15)


def value_and_gradient(f, dy, *args):
    y, pull = jax.vjp(f, *args)
    return y, *pull(dy)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("vmap", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_attention(groups, vmap, dtype):
    b, t, s, n, h = 2, 128, 128, 4, 32
    shapes = [(b, t, n, h), (b, s, n // groups, h), (b, s, n // groups, h), (b, t, n, h)]
    q, k, v, dy = (jnp.asarray(RANDOM.standard_normal(shape), dtype) for shape in shapes)
    f = jax.vmap(ops.dot_product_attention) if vmap else ops.dot_product_attention
    mine = value_and_gradient(f, dy, q, k, v)
    with jax.numpy_dtype_promotion("standard"):
        theirs = value_and_gradient(jax.nn.dot_product_attention, dy, q, k, v)
    for a, expected in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(*map(np.float64, (a, expected)), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("custom", [False, True])
def test_attention_with_masks(causal, padding, custom):
    b, t, n, h = 2, 128, 4, 32
    q, k, v, dy = (jnp.asarray(RANDOM.standard_normal((b, t, n, h)), "bfloat16") for _ in range(4))
    lengths = jnp.array([t // 4, t // 2], jnp.int32) if padding else None
    mask = jnp.tril(jnp.ones((t, t), bool))[None, None] if custom else None
    f = lambda *qkv: ops.dot_product_attention(*qkv, mask, lengths, causal=causal)
    mine = value_and_gradient(f, dy, q, k, v)
    with jax.numpy_dtype_promotion("standard"):
        g = lambda *qkv: jax.nn.dot_product_attention(
            *qkv, mask=mask, key_value_seq_lengths=lengths, is_causal=causal
        )
        theirs = value_and_gradient(g, dy, q, k, v)
    for a, expected in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(*map(np.float64, (a, expected)), rtol=0.02, atol=0.02)


POOLS = [
    *itertools.product([(4, 6, 1)], [(2, 1), (1, 2)], [(1, 1), (2, 1), (1, 2)]),
    *itertools.product([(3, 2, 4, 6)], [(1, 1, 2), (2, 1, 2)], [(1, 2, 2), (1, 1, 1)]),
]


@pytest.mark.parametrize(("shape", "window", "strides"), POOLS)
@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_pooling(shape, window, strides, padding):
    """For distinct integers, the result equals that of `reduce_window` to the last bit."""
    x = jnp.asarray(RANDOM.permutation(np.prod(shape)).reshape(shape), float)
    options = {"window": window, "strides": strides, "padding": padding}
    whole = ((*window, 1), (*strides, 1), padding)
    largest = lambda x: jax.lax.reduce_window(x, -np.inf, jax.lax.max, *whole)
    total = lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, *whole)
    for f, g in (
        (lambda x: ops.max_pool(x, **options), largest),
        (lambda x: float(np.prod(window)) * ops.avg_pool(x, **options), total),
    ):
        dy = RANDOM.integers(-9, 9, jax.eval_shape(g, x).shape).astype(float)
        for a, b in zip(value_and_gradient(f, dy, x), value_and_gradient(g, dy, x), strict=True):
            np.testing.assert_array_equal(a, b)
