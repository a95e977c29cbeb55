"""Tests particular to pooling: which element gets the gradient, residuals, bad arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet import RULES, ops
from funcnet.ops.pooling import place_dtype

RANDOM = np.random.default_rng(0)
INF = np.inf


def reduce_window(x, window, strides, padding):
    whole = lambda pair: (1, *pair, 1)
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, whole(window), whole(strides), ((0, 0), *padding, (0, 0))
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("window", "strides", "padding"),
    [
        ((2, 2), (2, 2), ((0, 0), (0, 0))),
        ((3, 2), (1, 1), ((2, 0), (1, 1))),
        ((2, 3), (3, 2), ((1, 1), (0, 2))),
        ((5, 1), (2, 1), ((4, 0), (0, 0))),
        ((1, 1), (1, 2), ((0, 0), (0, 0))),
    ],
)
@pytest.mark.parametrize("values", [(0.0, 1.0, 2.0), (-INF, 0.0), (-INF,), (0.0, INF, -INF)])
def test_ties_go_where_jax_has_them(window, strides, padding, values):
    x = jnp.asarray(RANDOM.choice(values, (2, 7, 8, 2)))
    f = lambda x: ops.max_pool(x, window=window, strides=strides, padding=padding)
    g = lambda x: reduce_window(x, window, strides, padding)
    y, back = jax.vjp(f, x)
    expected, expected_back = jax.vjp(g, x)
    np.testing.assert_array_equal(y, expected, strict=True)
    dy = jnp.asarray(RANDOM.standard_normal(y.shape))
    np.testing.assert_allclose(back(dy)[0], expected_back(dy)[0], atol=1e-14, strict=True)


def test_the_first_nan_has_the_gradient():
    x = jnp.array([1.0, jnp.nan, 5.0, jnp.nan, 2.0, 3.0])[:, None]
    for f in (lambda x: ops.max_pool(x, window=(6,)), lambda x: ops.global_max_pool(x, spatial=1)):
        y, back = jax.vjp(f, x)
        assert np.isnan(y).all()
        assert back(jnp.ones_like(y))[0].ravel().tolist() == [0, 1, 0, 0, 0, 0]


def test_the_first_of_equals_has_the_gradient_of_a_global_maximum():
    x = jnp.array([[2.0, 5.0], [5.0, 5.0]])[..., None]
    assert jax.grad(lambda x: ops.global_max_pool(x)[0])(x)[..., 0].tolist() == [[0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("window", "dtype"),
    [((16, 16), jnp.uint8), ((257,), jnp.uint16), ((16, 17), jnp.uint16), ((65537,), jnp.int32)],
)
def test_the_place_of_the_maximum_takes_as_few_bytes_as_it_can(window, dtype):
    fwd = lambda x: RULES["max_pool"].fwd(x, window=window, strides=None, padding="VALID")[1]
    assert place_dtype(int(np.prod(window))) == dtype
    if np.prod(window) < 1000:
        place, _ = jax.eval_shape(fwd, jnp.ones((*window, 1)))
        assert place.dtype == dtype


@pytest.mark.slow
def test_the_last_place_of_a_large_window():
    for window in ((16, 16), (16, 17)):
        x = jnp.zeros((*window, 1)).at[-1, -1].set(1.0)
        dx = jax.grad(lambda x, w=window: ops.max_pool(x, window=w).sum())(x)
        assert (dx == x).all()


def test_padding_that_does_not_count():
    """The mean of ones is 1 everywhere; if padding counts, it is smaller at the ends."""
    x = jnp.ones((5, 1))
    pool = lambda **o: ops.avg_pool(x, window=(3,), strides=1, padding="SAME", **o).ravel().tolist()
    assert pool(count_include_pad=False) == [1, 1, 1, 1, 1]
    assert pool() == [2 / 3, 1, 1, 1, 2 / 3]


def test_narrow_means_are_sums_in_float32():
    x = jnp.ones((1000, 1), jnp.bfloat16)
    assert ops.avg_pool(x, window=(1000,)).item() == 1  # a bfloat16 sum stops at 256
    assert ops.global_avg_pool(x, spatial=1).item() == 1


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "bool"])
def test_maxima_of_integers(dtype):
    """Padding is the smallest value of the dtype, and the dtype is preserved."""
    x = RANDOM.integers(-9, -1, (2, 5, 5, 3)).astype(dtype)
    least = np.iinfo(dtype).min if dtype != "bool" else False
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=least)
    seen = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    y = ops.max_pool(x, window=3, strides=1, padding="SAME")
    np.testing.assert_array_equal(y, seen.max((-1, -2)), strict=True)
    np.testing.assert_array_equal(ops.global_max_pool(x), x.max((1, 2)), strict=True)


def test_an_int_is_the_size_on_two_axes():
    x = jnp.asarray(RANDOM.standard_normal((2, 5, 6, 3)))
    for pool in (ops.max_pool, ops.avg_pool):
        expected = pool(x, window=(2, 2), strides=(1, 1))
        for window in (2, [2, 2], np.int64(2)):
            np.testing.assert_array_equal(pool(x, window=window, strides=1), expected)


WINDOW = "window must be 1 to 3 ints of at least 1, or one int for two axes, got"
SPATIAL = "x must have shape (..., *spatial, c) with"


@pytest.mark.parametrize("f", ["max_pool", "avg_pool"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 2}, f"{SPATIAL} 2 spatial axes, got (4, 1)"),
        ({"window": 0}, f"{WINDOW} 0"),
        ({"window": 2.5}, f"{WINDOW} 2.5"),
        ({"window": (True,)}, f"{WINDOW} (True,)"),
        ({"window": "2"}, f"{WINDOW} '2'"),
        ({"window": ()}, f"{WINDOW} ()"),
        ({"window": (0,)}, f"{WINDOW} (0,)"),
        ({"window": (2, 2)}, f"{SPATIAL} 2 spatial axes, got (4, 1)"),
        (
            {"window": (2,), "strides": (1, 2)},
            "strides must be an int of at least 1, or 1 of them, got (1, 2)",
        ),
        (
            {"window": (2,), "padding": "same"},
            "padding must be 'SAME', 'VALID', 'CEIL' or 1 pair(s) (low, high) of ints of at least "
            "0, got 'same'",
        ),
        (
            {"window": (2,), "padding": ((2, 0),)},
            "padding must be less than the window (2,), got ((2, 0),)",
        ),
        (
            {"window": (5,)},
            "x must have spatial axes of at least (5,) for a window of (5,) and padding 'VALID', "
            "got (4, 1)",
        ),
    ],
)
def test_windows_that_do_not_fit(f, options, message):
    with pytest.raises((TypeError, ValueError)) as e:
        getattr(ops, f)(jnp.ones((4, 1)), **options)
    assert str(e.value) == f"{f}: {message}"


@pytest.mark.parametrize("f", ["global_max_pool", "global_avg_pool"])
@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        ((4, 1), {}, f"{SPATIAL} 2 spatial axes, at least one, got (4, 1)"),
        ((4, 1), {"spatial": 0}, f"{SPATIAL} 0 spatial axes, at least one, got (4, 1)"),
        ((4, 0, 1), {}, "x must have spatial axes of at least 1, got (4, 0, 1)"),
    ],
)
def test_axes_that_do_not_fit(f, x, options, message):
    with pytest.raises(ValueError) as e:
        getattr(ops, f)(jnp.ones(x), **options)
    assert str(e.value) == f"{f}: {message}"
