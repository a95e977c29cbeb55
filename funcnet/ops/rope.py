"""Rotary position embedding."""

from __future__ import annotations

import decimal
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Integer

from funcnet._arguments import check_number
from funcnet._arrays import wide_dtype, widen
from funcnet.ops._types import AnyArray, Real
from funcnet.rule import rule

PI = "3.14159265358979323846264338327950288419716939937510582097494"


@rule(real=("x",))
def rope(
    x: Real[AnyArray, "*batch T H d"],
    positions: Integer[AnyArray, "T"] | Integer[AnyArray, "*batch T"],
    *,
    base: float = 10000.0,
    interleaved: bool = False,
) -> Float[Array, "*batch T H d"]:
    """Rotates pairs of features by angles proportional to the position.

        (y_a, y_b) = (x_a cos φ − x_b sin φ, x_b cos φ + x_a sin φ),   φ = p θ_i,   θ_i = b^(−2i/d)

    for each pair i < d/2, where (a, b) is (i, i + d/2), or (2i, 2i + 1) if interleaved. The product
    ⟨rope(q, p), rope(k, p′)⟩ then depends on the positions only through p − p′.

    φ modulo 2π is exact to |p| 2⁻⁶² at every position, and to the last digits in float32, because
    pθ/2π is computed as a product of 64-bit integers from which whole turns are dropped. (As a
    32-bit float, pθ would be wrong by up to 0.004 at p = 10⁵.)

    Args:
      x: Shape (..., T, H, d) with even d: the features of H heads at T positions.
      positions: p, integers of shape (T,) or (..., T), above −2³¹ and below 2³¹.
      base: b > 0. Static.
      interleaved: Whether the two features of a pair are adjacent, as in the paper, or d/2 apart,
        as in GPT-NeoX and Llama. Static.

    Returns:
      y with the shape and dtype of x; integers are converted to floats.

    Raises:
      ValueError: If the shapes or the dtype of positions do not fit, or base is not positive.
      TypeError: If x is complex.

    Reference: Su et al., RoFormer, 2021, equation 34, arXiv:2104.09864.

    >>> rope(jnp.ones((2, 1, 2)), jnp.array([0, 1])).astype(int).tolist()  # (cos 1 − sin 1, …)
    [[[1, 1]], [[0, 1]]]
    """
    return rope_fwd(x, positions, base=base, interleaved=interleaved)[0]


def rope_fwd(x, positions, *, base, interleaved):
    """Saves only positions, which is an argument."""
    _check(x, positions, base)
    return _rotate(x, *_cos_sin(x, positions, base), interleaved), positions


def rope_bwd(positions, dy, *, base, interleaved):
    """The cotangent of x; `positions` has none.

    A pair is multiplied by the matrix R(φ) = (cos φ, −sin φ; sin φ, cos φ), so its cotangent is
    multiplied by the transpose, which is the inverse rotation:

        dx = R(φ)ᵀ dy = R(−φ) dy.                                                             (1)
    """
    cos, sin = _cos_sin(dy, positions, base)
    return _rotate(dy, cos, -sin, interleaved), None  # (1)


rope.defvjp(rope_fwd, rope_bwd)


def _check(x: Array, positions: Array, base: float) -> None:
    if x.ndim < 3 or x.shape[-1] % 2:
        raise ValueError(f"rope: x must have shape (..., T, H, d) with even d, got {x.shape}")
    if positions.shape not in (x.shape[-3:-2], x.shape[:-2]):
        raise ValueError(
            f"rope: positions must have shape {x.shape[-3:-2]} or {x.shape[:-2]} for x {x.shape}, "
            f"got {positions.shape}"
        )
    if not jnp.issubdtype(positions.dtype, jnp.integer):
        raise ValueError(f"rope: positions must be integers, got {positions.dtype}")
    check_number("rope", "base", base, above=0)


def _rotate(x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
    """Rotates each pair of features in the last axis."""
    half = x.shape[-1] // 2
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    a, b = widen(a), widen(b)
    parts = [y.astype(x.dtype) for y in (a * cos - b * sin, b * cos + a * sin)]
    return jnp.stack(parts, -1).reshape(x.shape) if interleaved else jnp.concatenate(parts, -1)


def _cos_sin(x: Array, positions: AnyArray, base: float) -> tuple[Array, Array]:
    """The cosine and sine of φ, of shape (..., T, 1, d/2), both to full relative accuracy.

    φ/2π modulo 1 is the fraction (hi + lo/2³²)/2³², in 32-bit words whose products wrap around.
    Rounding it to its two leading bits gives the quadrant; the rest is an angle of at most π/4.
    """
    dtype = wide_dtype(x.dtype)
    high, low = (jnp.asarray(f) for f in _turns(x.shape[-1], float(base)))
    p = jnp.expand_dims(positions.astype(jnp.int32), (*range(x.ndim - 2 - positions.ndim), -2, -1))
    high, low = (jnp.expand_dims(word, tuple(range(x.ndim - 1))) for word in (high, low))
    n = jnp.abs(p).astype(jnp.uint32)
    hi, lo = n * high + _high_word(n, low), n * low
    quadrant = (hi + 2**29) >> 30
    rest = jax.lax.bitcast_convert_type(hi - (quadrant << 30), jnp.int32)
    angle = (rest.astype(dtype) + lo.astype(dtype) * 2.0**-32) * (2 * math.pi * 2.0**-32)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    odd = quadrant % 2 == 1
    cos, sin = jnp.where(odd, sin, cos), jnp.where(odd, cos, sin)
    cos = jnp.where((quadrant == 1) | (quadrant == 2), -cos, cos)
    return cos, jnp.where((quadrant >= 2) ^ (p < 0), -sin, sin)


def _high_word(a: Array, b: Array) -> Array:
    """The upper 32 bits of the product of two uint32."""
    a1, a0, b1, b0 = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
    cross, other = a1 * b0, a0 * b1
    middle = (a0 * b0 >> 16) + (cross & 0xFFFF) + (other & 0xFFFF)
    return a1 * b1 + (cross >> 16) + (other >> 16) + (middle >> 16)


@functools.cache
def _turns(d: int, base: float) -> tuple[np.ndarray, np.ndarray]:
    """θ_i/2π modulo 1, times 2⁶⁴, as the high and the low 32-bit words."""
    with decimal.localcontext(prec=50):
        log, turn = decimal.Decimal(base).ln(), 2 * decimal.Decimal(PI)
        thetas = [(log * (-2 * i) / d).exp() for i in range(d // 2)]
        words = [round(theta / turn * 2**64) % 2**64 for theta in thetas]
    high, low = [w >> 32 for w in words], [w % 2**32 for w in words]
    return np.array(high, np.uint32), np.array(low, np.uint32)
