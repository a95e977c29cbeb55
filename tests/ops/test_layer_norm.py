"""Tests particular to Layer Normalization and its relatives: large means, dtypes and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet import ops

RANDOM = np.random.default_rng(0)


def layer(x):
    c = x.shape[-1]
    return ops.layer_norm(x, jnp.ones(c, x.dtype), jnp.zeros(c, x.dtype))


def group(x):
    c = x.shape[-1]
    return ops.group_norm(x, jnp.ones(c, x.dtype), jnp.zeros(c, x.dtype), groups=2)


@pytest.mark.few
@pytest.mark.parametrize(("f", "axes"), [(layer, (-1,)), (group, (1, 3))])
def test_a_large_mean_in_float32(f, axes):
    """Value and gradient have float32 precision where a one-pass variance has no correct digit."""
    x = (RANDOM.standard_normal((5, 7, 32)) + 1e4).astype(np.float32)
    dy = RANDOM.standard_normal(x.shape).astype(np.float32)
    shape = x.shape if f is layer else (5, 7, 2, 16)
    wide, g = x.astype(np.float64).reshape(shape), dy.astype(np.float64).reshape(shape)
    mean = lambda a: a.mean(axes, keepdims=True)
    u = wide - mean(wide)
    r = 1 / np.sqrt(mean(u**2) + 1e-5)
    z = u * r
    dx = r * (g - mean(g) - z * mean(g * z))
    y, back = jax.vjp(f, jnp.asarray(x))
    np.testing.assert_allclose(y, z.reshape(x.shape), atol=2e-6)
    np.testing.assert_allclose(back(jnp.asarray(dy))[0], dx.reshape(x.shape), atol=2e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_statistics_are_not_narrow(dtype):
    """Squares exceed 65504, the largest float16, and sums have more digits than bfloat16."""
    x = jnp.asarray(RANDOM.standard_normal((3, 512)) * 1000 + 2000, dtype)
    exact = np.asarray(x, np.float64)
    u = exact - exact.mean(-1, keepdims=True)
    expected = u / np.sqrt((u**2).mean(-1, keepdims=True))
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(layer(x), np.float64), expected, rtol=eps, atol=eps / 100)
    y = ops.rms_norm(x, jnp.ones(512, dtype))
    expected = exact / np.sqrt((exact**2).mean(-1, keepdims=True))
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=eps)


@pytest.mark.slow
def test_group_norm_is_layer_norm_of_one_group():
    x = jnp.asarray(RANDOM.standard_normal((4, 6)))
    scale, bias = jnp.arange(1.0, 7.0), jnp.arange(6.0)
    grad = lambda f: jax.grad(lambda *a: jnp.sin(f(*a)).sum(), (0, 1, 2))(x, scale, bias)
    of_layer = grad(ops.layer_norm)
    of_group = grad(lambda *a: ops.group_norm(*a, groups=1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), of_layer, of_group)


@pytest.mark.few
@pytest.mark.parametrize(("f", "groups"), [(layer, 1), (group, 2)])
def test_the_gradient_is_orthogonal_to_shift_and_scale(f, groups):
    """y does not change if a constant is added to x or, except for ε, if x is scaled."""
    x = jnp.asarray(RANDOM.standard_normal((3, 8)) * 100)
    dx = jax.vjp(f, x)[1](jnp.asarray(RANDOM.standard_normal((3, 8))))[0]
    x, dx = x.reshape(3, groups, -1), dx.reshape(3, groups, -1)
    scale = jnp.abs(dx).max()
    np.testing.assert_allclose(dx.sum(-1) / scale, 0, atol=1e-14)
    np.testing.assert_allclose((dx * x).sum(-1) / (scale * 100), 0, atol=1e-7)


@pytest.mark.parametrize(
    ("f", "change", "message"),
    [
        ("layer_norm", {"x": ()}, "x must have shape (..., c) with c of at least 1, got ()"),
        ("layer_norm", {"scale": (2,)}, "scale must have shape (4,) for x (8, 4), got (2,)"),
        ("layer_norm", {"bias": (8, 4)}, "bias must have shape (4,) for x (8, 4), got (8, 4)"),
        ("layer_norm", {"eps": -1.0}, "eps must be a finite number of at least 0, got -1.0"),
        (
            "layer_norm",
            {"x": (4, 0), "scale": (0,), "bias": (0,)},
            "x must have shape (..., c) with c of at least 1, got (4, 0)",
        ),
        ("layer_norm", {"eps": np.nan}, "eps must be a finite number of at least 0, got nan"),
        ("rms_norm", {"x": ()}, "x must have shape (..., c) with c of at least 1, got ()"),
        ("rms_norm", {"scale": (1,)}, "scale must have shape (4,) for x (8, 4), got (1,)"),
        ("rms_norm", {"eps": -1.0}, "eps must be a finite number of at least 0, got -1.0"),
        (
            "group_norm",
            {"x": (4,)},
            "x must have shape (n, ..., c) with no empty axis but n, got (4,)",
        ),
        (
            "group_norm",
            {"x": (2, 0, 4)},
            "x must have shape (n, ..., c) with no empty axis but n, got (2, 0, 4)",
        ),
        ("group_norm", {"bias": ()}, "bias must have shape (4,) for x (8, 4), got ()"),
        ("group_norm", {"groups": 3}, "groups must divide 4 channels, got 3"),
        ("group_norm", {"groups": 0}, "groups must divide 4 channels, got 0"),
        ("group_norm", {"eps": -1.0}, "eps must be a finite number of at least 0, got -1.0"),
    ],
)
def test_arguments_that_do_not_fit(f, change, message):
    static = {"groups": 2} if f == "group_norm" else {}
    static |= {k: v for k, v in change.items() if k in ("eps", "groups")}
    shapes = {"x": (8, 4), "scale": (4,)} | ({} if f == "rms_norm" else {"bias": (4,)})
    shapes |= {k: v for k, v in change.items() if k in shapes}
    with pytest.raises(ValueError) as e:
        getattr(ops, f)(**{name: jnp.ones(shape) for name, shape in shapes.items()}, **static)
    assert str(e.value) == f"{f}: {message}"
