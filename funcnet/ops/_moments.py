"""Mean and variance, and the checks, which the normalizing ops share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from funcnet._arguments import check_number


def moments(
    x: jax.Array, mean: Callable[[jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """μ₀, δ and σ² of x: the mean is μ₀ + δ, and σ² is the biased variance.

    The mean is subtracted in two parts. μ₀ is rounded to the precision of a number of its size,
    which may be far above σ; δ is the mean of what it leaves.

    Args:
      x: The data, in float32 at least.
      mean: The mean of an array like x, over some of its axes; broadcasts against x.

    Returns:
      μ₀, δ and σ², of the shape that `mean` returns.
    """
    center = mean(x)
    u = x - center
    delta = mean(u)
    var = mean(u**2) - delta**2  # δ is a rounding error: nothing cancels
    return center, delta, var


def check_norm(f: str, x: jax.Array, eps: float, **vectors: jax.Array) -> None:
    """The vectors must have one number for each feature, the last axis of x."""
    for name, vector in vectors.items():
        if vector.shape != x.shape[-1:]:
            raise ValueError(
                f"{f}: {name} must have shape {x.shape[-1:]} for x {x.shape}, got {vector.shape}"
            )
    check_number(f, "eps", eps, at_least=0)


def row(vector: jax.Array, ndim: int) -> jax.Array:
    """A vector along the last of several axes."""
    return jnp.expand_dims(vector, range(ndim - 1))
