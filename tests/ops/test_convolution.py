"""Tests particular to convolutions: the conventions of JAX, and options that do not fit."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from funcnet import autodiff, ops

RANDOM = np.random.default_rng(0)
X, W = RANDOM.standard_normal((2, 7, 6, 4)), RANDOM.standard_normal((3, 2, 4, 6))
NHWC = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 2), (0, 3))])
@pytest.mark.parametrize("strides", [(1, 1), (2, 3), (3, 5)])
def test_conv_is_that_of_lax(padding, strides):
    expected = jax.lax.conv_general_dilated(X, W, strides, padding, dimension_numbers=NHWC)
    np.testing.assert_array_equal(
        ops.conv(X, W, strides=strides, padding=padding), expected, strict=True
    )


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 2), (0, 3)), ((0, 0), (0, 0))])
@pytest.mark.parametrize("strides", [(1, 1), (2, 3), (3, 5)])
def test_conv_transpose_is_that_of_lax(padding, strides):
    expected = jax.lax.conv_transpose(X, W, strides, padding, dimension_numbers=NHWC)
    np.testing.assert_array_equal(
        ops.conv_transpose(X, W, strides=strides, padding=padding), expected, strict=True
    )


def test_conv_transpose_with_the_flipped_kernel_transposes_conv():
    """⟨conv(x), y⟩ = ⟨x, convᵀ(y)⟩ with the paddings given in the docstring."""
    x, v = X[:, :6], RANDOM.standard_normal((3, 3, 4, 5))
    y = RANDOM.standard_normal((2, 3, 3, 5))
    _, back = jax.vjp(lambda x: ops.conv(x, v, strides=2, padding=((1, 0), (1, 0))), x)
    flipped = jnp.flip(v, (0, 1)).swapaxes(2, 3)
    actual = ops.conv_transpose(y, flipped, strides=2, padding=((1, 2), (1, 2)))
    np.testing.assert_allclose(actual, back(jnp.asarray(y))[0], atol=1e-13)


def test_leading_axes_are_batch_axes():
    x = RANDOM.standard_normal((2, 3, 1, 5, 5, 4))
    folded = ops.conv(x.reshape(6, 5, 5, 4), W)
    np.testing.assert_allclose(ops.conv(x, W), folded.reshape(2, 3, 1, 5, 5, 6), atol=1e-13)
    np.testing.assert_allclose(ops.conv(x[0, 1, 0], W), folded[1], atol=1e-13)


def test_the_gradient_of_no_bias_has_no_bias():
    _, back = jax.vjp(ops.conv, X, W, None)
    assert back(ops.conv(X, W))[2] is None


def test_on_a_cpu_convolutions_have_one_order_of_axes():
    """In a loop body, XLA:CPU has a fast kernel only for this order of axes."""

    def convolutions(f):
        grad = lambda x, w, dy: jax.vjp(lambda x, w: f(x, w, strides=2), x, w)[1](dy)
        x, w = X, RANDOM.standard_normal((3, 2, 4, 6))
        text = jax.jit(grad).lower(x, w, jnp.zeros((2, 4, 3, 6))).as_text()
        return re.findall(r"stablehlo.convolution.*dim_numbers = (\S.*?), window", text)

    order = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"
    assert convolutions(ops.conv) == [order, order]  # dx and dw
    assert set(convolutions(autodiff(ops.conv))) != {order}


@pytest.mark.few
@pytest.mark.parametrize("f", [ops.conv, ops.conv_transpose])
def test_weights_that_are_not_on_the_mesh_of_the_images(f):
    """The gradient of unplaced weights, for which autodiff requires a sharding, is replicated."""
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Explicit,))
    w = jnp.asarray(W)
    gradient = jax.grad(lambda x, w: jnp.sin(f(x, w, strides=2)).sum(), (0, 1))
    expected = gradient(jnp.asarray(X), w)
    with jax.set_mesh(mesh):
        actual = gradient(jax.device_put(X, NamedSharding(mesh, PartitionSpec("d"))), w)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-12)


def test_a_real_argument_beside_a_complex_one():
    """The cotangent of a real argument is the real part, without a warning about the imaginary."""
    x, w, b = X, W + 1j * RANDOM.standard_normal(W.shape), RANDOM.standard_normal(6)
    with jax.numpy_dtype_promotion("standard"), warnings.catch_warnings():
        warnings.simplefilter("error")
        y, back = jax.vjp(ops.conv, x, w, b)
        dy = jnp.asarray(RANDOM.standard_normal(y.shape) * (1 + 2j))
        expected = jax.vjp(autodiff(ops.conv), x, w, b)[1](dy)
        for actual, e in zip(back(dy), expected, strict=True):
            np.testing.assert_allclose(actual, e, atol=1e-12, strict=True)


CONV = {"x": (5, 2), "w": (3, 2, 4)}
INTS = "must be an int of at least 1, or 1 of them, got"
PAIRS = "padding must be 'SAME', 'VALID' or 1 pair(s) (low, high) of ints of at least 0, got"


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (
            {"w": (2, 3)},
            {},
            "w must have shape (*kernel, c_in, c_out) with 1 to 3 kernel axes, none empty, "
            "got (2, 3)",
        ),
        (
            {"w": (0, 2, 4)},
            {},
            "w must have shape (*kernel, c_in, c_out) with 1 to 3 kernel axes, none empty, "
            "got (0, 2, 4)",
        ),
        (
            {"x": (4, 5, 3)},
            {},
            "x must have shape (..., n, 2) for w (3, 2, 4) and groups=1, got (4, 5, 3)",
        ),
        ({"x": (2,)}, {}, "x must have shape (..., n, 2) for w (3, 2, 4) and groups=1, got (2,)"),
        ({"b": (3,)}, {}, "b must have shape (4,) for w (3, 2, 4), got (3,)"),
        ({}, {"groups": 3}, "groups must be a divisor of the 4 output channels, got 3"),
        ({}, {"groups": 0}, "groups must be a divisor of the 4 output channels, got 0"),
        ({}, {"strides": 0}, f"strides {INTS} 0"),
        ({}, {"strides": True}, f"strides {INTS} True"),
        ({}, {"strides": "2"}, f"strides {INTS} '2'"),
        ({}, {"strides": (1, 1)}, f"strides {INTS} (1, 1)"),
        ({}, {"dilation": 1.5}, f"dilation {INTS} 1.5"),
        ({}, {"padding": "same"}, f"{PAIRS} 'same'"),
        ({}, {"padding": 1}, f"{PAIRS} 1"),
        ({}, {"padding": ((-1, 0),)}, f"{PAIRS} ((-1, 0),)"),
        (
            {"x": (4, 2)},
            {"padding": "VALID", "dilation": 2},
            "x must have spatial axes of at least (5,) for a window of (5,) and padding 'VALID', "
            "got (4, 2)",
        ),
    ],
)
def test_arguments_of_conv_that_do_not_fit(shapes, options, message):
    with pytest.raises((TypeError, ValueError)) as e:
        ops.conv(**{name: jnp.ones(shape) for name, shape in (CONV | shapes).items()}, **options)
    assert str(e.value) == f"conv: {message}"


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (
            {"w": (3, 3, 4)},
            {},
            "x must have shape (..., n, 3) for w (3, 3, 4) and groups=1, got (5, 2)",
        ),
        ({"b": ()}, {}, "b must have shape (4,) for w (3, 2, 4), got ()"),
        ({}, {"strides": (1, 1)}, f"strides {INTS} (1, 1)"),
        ({}, {"padding": "valid"}, f"{PAIRS} 'valid'"),
        (
            {"x": (1, 2)},
            {"padding": ((0, 0),)},
            "x must have spatial axes long enough for a window of (3,) and padding ((0, 0),), "
            "got (1, 2)",
        ),
    ],
)
def test_arguments_of_conv_transpose_that_do_not_fit(shapes, options, message):
    arrays = {name: jnp.ones(shape) for name, shape in (CONV | shapes).items()}
    with pytest.raises(ValueError) as e:
        ops.conv_transpose(**arrays, **options)
    assert str(e.value) == f"conv_transpose: {message}"
