"""The precision in which ops compute: never below float32."""

import jax
import jax.numpy as jnp


def widen(x: jax.Array) -> jax.Array:
    """`x` in float32 if its dtype is narrower (bfloat16, float16), else as it is.

    Sums and exponentials of narrow floats lose most of their digits; XLA fuses the two conversions
    into the loop that computes, so they cost no memory.
    """
    return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))
