"""Mean, variance and argument checks that the normalization ops share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from funcnet._arguments import check_number
from funcnet._arrays import wide_dtype, widen


def moments(
    x: jax.Array, mean: Callable[[jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes μ₀, δ and σ² of x: the mean is μ₀ + δ, and σ² is the biased variance.

    The mean is subtracted in two parts. The rounding error of μ₀ is relative to its size, which may
    be far above σ; δ is the mean of x − μ₀.

    Args:
      x: The data, in float32 at least.
      mean: Function that averages an array like x over some axes; its result broadcasts against x.

    Returns:
      μ₀, δ and σ², of the shape that `mean` returns.
    """
    center = mean(x)
    u = x - center
    delta = mean(u)
    var = mean(u**2) - delta**2  # δ is a rounding error: nothing cancels
    return center, delta, var


def check_norm(f: str, x: jax.Array, eps: float, **vectors: jax.Array | None) -> None:
    """Checks that each vector has one number per feature (the last axis of x), and that ε ≥ 0."""
    for name, vector in vectors.items():
        if vector is not None and vector.shape != x.shape[-1:]:
            raise ValueError(
                f"{f}: {name} must have shape {x.shape[-1:]} for x {x.shape}, got {vector.shape}"
            )
    check_number(f, "eps", eps, at_least=0)


def or_ones(scale: jax.Array | None, x: jax.Array) -> jax.Array:
    """The scale in float32 at least; if it is None, one 1 per feature of x."""
    return jnp.ones(x.shape[-1:], wide_dtype(x.dtype)) if scale is None else widen(scale)


def row(vector: jax.Array, ndim: int) -> jax.Array:
    """Reshapes a vector to `ndim` axes, along the last one."""
    return jnp.expand_dims(vector, range(ndim - 1))


def scaled(z: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    """γ ⊙ z + β, without the parts that are None."""
    y = z if scale is None else row(widen(scale), z.ndim) * z
    return y if bias is None else y + row(widen(bias), z.ndim)
