"""Precision and sharding of arrays: ops compute in float32 at least, on meshes of any kind."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec


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


def explicit_sharding(x: jax.Array, *others: jax.Array) -> NamedSharding | None:
    """The sharding of x on a mesh with explicit axes, which operations must be told; else None.

    An x that is on no such mesh, while one of the others is, is a copy on each device of that.
    """
    sharding = jax.typeof(x).sharding
    if sharding.mesh.explicit_axes:
        return sharding
    mesh = next(filter(None, map(explicit_sharding, others)), None)
    return mesh and mesh.update(spec=PartitionSpec(*(None,) * jax.typeof(x).ndim))


def placed_like(x: jax.Array, like: jax.Array) -> jax.Array:
    """The array x, sharded as `like` of its shape is, on a mesh with explicit axes."""
    sharding = explicit_sharding(like)
    return x if sharding in (None, explicit_sharding(x)) else jax.sharding.reshard(x, sharding)


def batch_like(h: jax.Array, x: jax.Array) -> jax.Array:
    """A state h (..., H), sharded over the batch axes as x (..., T, I) on an explicit mesh is."""
    if (like := explicit_sharding(x)) is None or not any(like.spec[:-2]):
        return h
    own = (explicit_sharding(h, x) or like).spec[-1]
    return jax.sharding.reshard(h, like.update(spec=PartitionSpec(*like.spec[:-2], own)))


def batches_alike(xs: tuple[jax.Array, ...], own: int) -> tuple[jax.Array, ...]:
    """The arrays (..., and `own` axes), on a mesh with explicit axes sharded alike over batches."""
    if not (shardings := [s for x in xs if (s := explicit_sharding(x, *xs))]):
        return xs
    of_axes = zip(*(s.spec[:-own] for s in shardings), strict=True)
    batch = [next(filter(None, axis), None) for axis in of_axes]
    return tuple(
        jax.sharding.reshard(x, s.update(spec=PartitionSpec(*batch, *s.spec[-own:])))
        for x, s in zip(xs, shardings, strict=True)
    )
