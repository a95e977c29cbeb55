"""Tests particular to the depthwise convolution: its relation to `conv`, and bad arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet import autodiff, ops
from funcnet.ops import depthwise

RANDOM = np.random.default_rng(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strides": 2, "padding": "VALID"},
        {"strides": (3, 2), "dilation": (2, 3), "padding": ((4, 1), (0, 6))},
    ],
)
def test_it_is_conv_with_a_group_for_each_channel(options):
    x, w = RANDOM.standard_normal((2, 9, 8, 3)), RANDOM.standard_normal((3, 2, 3))
    dense = lambda x, w: ops.conv(x, w[..., None, :], groups=3, **options)
    y, back = jax.vjp(lambda x, w: ops.depthwise_conv(x, w, **options), x, w)
    expected, expected_back = jax.vjp(autodiff(dense), x, w)
    np.testing.assert_allclose(y, expected, atol=1e-13, strict=True)
    dy = jnp.asarray(RANDOM.standard_normal(y.shape))
    for actual, d in zip(back(dy), expected_back(dy), strict=True):
        np.testing.assert_allclose(actual, d, atol=1e-13, strict=True)


def test_no_convolution_up_to_64_taps():
    """XLA's grouped convolution is many times slower on a CPU."""

    def text(kernel):
        x, w = jnp.ones((1, *kernel, 2)), jnp.ones((*kernel, 2))
        loss = lambda x, w: ops.depthwise_conv(x, w).sum()
        return jax.jit(jax.grad(loss, (0, 1))).lower(x, w).as_text()

    assert "stablehlo.convolution" not in text((8, 8))
    assert "stablehlo.convolution" in text((13, 5))
    assert depthwise.MOST_TAPS == 64


def test_places_that_no_window_sees():
    """The gradient of inputs outside all windows is 0, even for infinite cotangents."""
    x, w = jnp.ones((7, 1)), jnp.ones((2, 1))
    f = lambda x: ops.depthwise_conv(x, w, strides=3, padding="VALID")
    (dx,) = jax.vjp(f, x)[1](jnp.full((2, 1), jnp.inf))
    assert dx.ravel().tolist() == [np.inf, np.inf, 0, np.inf, np.inf, 0, 0]


def test_narrow_sums_are_float32():
    x = jnp.ones((1000, 1), jnp.bfloat16)
    w, dy = jnp.ones((1, 1), jnp.bfloat16), jnp.ones((1000, 1), jnp.bfloat16)
    _, dw, db = jax.vjp(ops.depthwise_conv, x, w, jnp.zeros(1, jnp.bfloat16))[1](dy)
    assert (float(dw[0, 0]), float(db[0])) == (1000, 1000)  # a bfloat16 sum stops at 256


@pytest.mark.parametrize(
    ("x", "w", "b", "options", "message"),
    [
        (
            (5, 2),
            (2,),
            None,
            {},
            "w must have shape (*kernel, c) with 1 to 3 kernel axes, none empty, got (2,)",
        ),
        (
            (5, 0),
            (3, 0),
            None,
            {},
            "w must have shape (*kernel, c) with 1 to 3 kernel axes, none empty, got (3, 0)",
        ),
        ((5, 2), (3, 3), None, {}, "x must have shape (..., n, 3) for w (3, 3), got (5, 2)"),
        ((2,), (3, 2), None, {}, "x must have shape (..., n, 2) for w (3, 2), got (2,)"),
        ((5, 2), (3, 2), (3,), {}, "b must have shape (2,) for w (3, 2), got (3,)"),
        (
            (5, 5, 2),
            (3, 3, 2),
            None,
            {"strides": (1, 0)},
            "strides must be an int of at least 1, or 2 of them, got (1, 0)",
        ),
        (
            (2, 2),
            (3, 2),
            None,
            {"padding": "VALID"},
            "x must have spatial axes of at least (3,) for a window of (3,) and padding 'VALID', "
            "got (2, 2)",
        ),
    ],
)
def test_arguments_that_do_not_fit(x, w, b, options, message):
    with pytest.raises(ValueError) as e:
        ops.depthwise_conv(jnp.ones(x), jnp.ones(w), b and jnp.ones(b), **options)
    assert str(e.value) == f"depthwise_conv: {message}"
