"""Cases of the rotary position embedding."""

import jax.numpy as jnp
import numpy as np

from cases.case import Case, ints, normal
from cases.measured import Measured

CASES = {
    "rope": [
        Case("halves", (normal(4, 3, 2, 6), ints(0, 1, 5)), shard=(True, False)),
        Case("interleaved", (normal(2, 3, 2, 6), ints(2, -1, 7)), {"interleaved": True}),
        Case("each its own", (normal(2, 3, 1, 4), ints(0, 1, 2, 9, 8, 7).reshape(2, 3))),
        Case("base", (normal(2, 1, 4), ints(3, 300)), {"base": 500.0}),
        Case("quarter turns", (normal(4, 1, 2), ints(11, 22, 33, 355))),
        Case("two batch axes", (normal(2, 1, 2, 3, 2), ints(-1, -2))),
        Case("empty", (np.zeros((0, 2, 1, 4)), ints(0, 1))),
    ],
}


def _rope(x, positions, *, base=10000.0, interleaved=False):
    """RoPE as multiplication of complex numbers by exp(iφ)."""
    half = x.shape[-1] // 2
    angle = positions[..., None, None] * float(base) ** (-np.arange(half) / half)
    a, b = (x[..., ::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    z = (a + 1j * b) * np.exp(1j * angle)
    y = np.stack([z.real, z.imag], -1 if interleaved else -2)
    return y.reshape(x.shape)


ORACLES = {
    "rope": _rope,
}

RESIDUAL_BYTES = {
    "rope": 0,
}


def _usual(x, positions):
    half = x.shape[-1] // 2
    frequencies = 10_000.0 ** (-jnp.arange(half, dtype=x.dtype) / half)
    angles = positions.astype(x.dtype)[:, None, None] * frequencies
    cos, sin, left, right = jnp.cos(angles), jnp.sin(angles), x[..., :half], x[..., half:]
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], -1)


MEASURED = {
    "rope": Measured(
        _usual,
        "jnp",
        lambda t, h=8, d=64: (normal(4, t, h, d), np.arange(t, dtype=np.int32)),
        {"t": 1024},
        {"t": 4096, "h": 16, "d": 128},
        growth={"t": (64, 256, 1024)},
    )
}
