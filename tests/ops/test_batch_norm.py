"""Tests particular to Batch Normalization: the source's formulas, dtypes and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet import ops

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((8, 3))
GAMMA, BETA = RANDOM.standard_normal(3), RANDOM.standard_normal(3)


def test_the_formulas_of_the_source():
    """Source A 4.2.1.2, last equations, with ε = 0 and the standard deviation σ."""
    dy = RANDOM.standard_normal((8, 3))
    sigma = X.std(0)
    z = (X - X.mean(0)) / sigma
    y, back = jax.vjp(lambda *a: ops.batch_norm(*a, eps=0.0)[0], X, GAMMA, BETA)
    dx, dgamma, dbeta = back(jnp.asarray(dy))
    np.testing.assert_allclose(y, GAMMA * z + BETA, atol=1e-14)
    np.testing.assert_allclose(dgamma, (dy * z).sum(0), atol=1e-13)
    np.testing.assert_allclose(dbeta, dy.sum(0), atol=1e-14)
    expected = GAMMA / sigma * (dy - (z * dgamma + dbeta) / 8)
    np.testing.assert_allclose(dx, expected, atol=1e-14)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_statistics_are_not_narrow(dtype):
    y, mean, var = ops.batch_norm(X.astype(dtype), jnp.ones(3, dtype), jnp.zeros(3, dtype))
    assert (y.dtype, mean.dtype, var.dtype) == (dtype, jnp.float32, jnp.float32)


def test_what_a_layer_of_a_chain_takes():
    """Per layer, memory holds x, and y for the next product, but not x − μ (4 bytes more)."""
    x, w = jax.ShapeDtypeStruct((1024, 64), "f4"), jax.ShapeDtypeStruct((64, 64), "f4")
    vector = jax.ShapeDtypeStruct((64,), "f4")

    def loss(x, ws, scale, bias):
        for w in ws:
            x = ops.batch_norm(x @ w, scale, bias)[0]
        return x.sum()

    def temporary(layers):
        gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        compiled = gradient.lower(x, (w,) * layers, vector, vector).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert (temporary(8) - temporary(4)) / 4 / x.size < 9


def test_a_large_mean_in_float32():
    """The result has float32's precision where a one-pass variance would have no correct digit."""
    x = (RANDOM.standard_normal((5000, 3)) + 1e4).astype(np.float32)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5)
    y, mean, var = ops.batch_norm(x, jnp.ones(3, jnp.float32), jnp.zeros(3, jnp.float32))
    np.testing.assert_allclose(y, expected, atol=1e-6)
    np.testing.assert_allclose(var, wide.var(0), rtol=1e-6)
    np.testing.assert_allclose(mean, wide.mean(0), rtol=1e-7)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 4, 3)])
@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_no_examples(shape, eps):
    """An empty batch gives no nan: μ, σ² and the gradients of scale and bias are 0."""
    with jax.debug_nans(True):
        f = lambda *a: ops.batch_norm(*a, eps=eps)
        (y, mean, var), back = jax.vjp(f, jnp.zeros(shape), jnp.asarray(GAMMA), jnp.asarray(BETA))
        dx, dscale, dbias = back((y, jnp.ones(3), jnp.ones(3)))
    assert y.shape == dx.shape == shape
    for vector in (mean, var, dscale, dbias):
        np.testing.assert_array_equal(vector, np.zeros(3), strict=True)


def test_inference_is_training_with_the_same_statistics():
    y, mean, var = ops.batch_norm(X, GAMMA, BETA, eps=0.1)
    again = ops.batch_norm_inference(X, GAMMA, BETA, mean, var, eps=0.1)
    np.testing.assert_allclose(again, y, atol=1e-14)


@pytest.mark.parametrize(
    ("f", "change", "message"),
    [
        ("batch_norm", {"x": (3,)}, "x must have shape (..., c) with a batch axis, got (3,)"),
        ("batch_norm", {"scale": (2,)}, "scale must have shape (3,) for x (8, 3), got (2,)"),
        ("batch_norm", {"bias": ()}, "bias must have shape (3,) for x (8, 3), got ()"),
        ("batch_norm", {"eps": np.nan}, "eps must be a finite number of at least 0, got nan"),
        ("batch_norm", {"eps": -1.0}, "eps must be a finite number of at least 0, got -1.0"),
        (
            "batch_norm_inference",
            {"mean": (1,)},
            "mean must have shape (3,) for x (8, 3), got (1,)",
        ),
        ("batch_norm_inference", {"var": (8,)}, "var must have shape (3,) for x (8, 3), got (8,)"),
        (
            "batch_norm_inference",
            {"eps": -1.0},
            "eps must be a finite number of at least 0, got -1.0",
        ),
    ],
)
def test_arguments_that_do_not_fit(f, change, message):
    shapes = {"x": (8, 3), "scale": (3,), "bias": (3,)}
    if f == "batch_norm_inference":
        shapes |= {"mean": (3,), "var": (3,)}
    eps = change.pop("eps", 1e-5)
    args = {name: jnp.ones(shape) for name, shape in (shapes | change).items()}
    with pytest.raises(ValueError) as e:
        getattr(ops, f)(**args, eps=eps)
    assert str(e.value) == f"{f}: {message}"
