"""The precision in which ops compute: never below float32."""

from typing import Any

import jax
import jax.numpy as jnp


def wide_dtype(dtype: Any) -> Any:
    """float32 for a narrower floating dtype (bfloat16, float16), else the dtype itself."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def widen(x: jax.Array) -> jax.Array:
    """`x` in float32 if its dtype is narrower, else as it is.

    Sums and exponentials of narrow floats lose most of their digits; XLA fuses the two conversions
    into the loop that computes, so they cost no memory.
    """
    return jnp.asarray(x, wide_dtype(x.dtype))


def cast_cotangent(d: jax.Array, like: jax.Array) -> jax.Array:
    """`d` in the dtype of `like`; of a complex d the real part, if `like` is real."""
    return (d if jnp.iscomplexobj(like) else jnp.real(d)).astype(like.dtype)


def sum_products(a: jax.Array, b: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Σ a b over some axes of two arrays of one shape, without these axes.

    As (a * b).sum(axes) it takes XLA:CPU up to 60 times longer where another axis has one element,
    as the batch of a single example has.
    """
    rest = tuple(i for i in range(a.ndim) if i not in axes)
    dims, highest = ((axes, axes), (rest, rest)), jax.lax.Precision.HIGHEST
    return jax.lax.dot_general(a, b, dims, precision=highest)
