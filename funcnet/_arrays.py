"""Precision and sharding of arrays: ops compute in at least float32, on any kind of mesh."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec


def wide_dtype(dtype: Any) -> Any:
    """float32 for a narrower floating dtype (bfloat16, float16), else the dtype itself."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def widen(x: jax.Array) -> jax.Array:
    """Casts `x` to float32 if its dtype is narrower, else returns it unchanged.

    Sums and exponentials of narrow floats lose most of their digits; XLA fuses the casts to and
    from float32 into the loop that computes, so they cost no memory.
    """
    return jnp.asarray(x, wide_dtype(x.dtype))


def cast_cotangent(d: jax.Array, like: jax.Array) -> jax.Array:
    """Casts `d` to the dtype of `like`; takes the real part of a complex d if `like` is real."""
    return (d if jnp.iscomplexobj(like) else jnp.real(d)).astype(like.dtype)


def cast_each(ds: tuple[jax.Array, ...], like: tuple[jax.Array | None, ...]) -> tuple[Any, ...]:
    """Casts each cotangent to the dtype of its argument; None for an argument that is None."""
    pairs = zip(ds, like, strict=True)
    return tuple(None if a is None else d.astype(a.dtype) for d, a in pairs)


def sum_products(a: jax.Array, b: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Σ a b over the given axes of two arrays of the same shape.

    XLA:CPU takes up to 60 times longer for (a * b).sum(axes) if another axis has one element, like
    the batch axis of a single example.
    """
    rest = tuple(i for i in range(a.ndim) if i not in axes)
    dims, highest = ((axes, axes), (rest, rest)), jax.lax.Precision.HIGHEST
    return jax.lax.dot_general(a, b, dims, precision=highest)


def sum_to(d: jax.Array, like: jax.Array) -> jax.Array:
    """The sum of d over the axes along which `like` was broadcast to the shape of d."""
    lead = d.ndim - like.ndim
    d = d.sum(tuple(range(lead)))
    sizes = zip(d.shape, like.shape, strict=True)
    return d.sum(tuple(i for i, (n, m) in enumerate(sizes) if m != n), keepdims=True)


def explicit_sharding(x: jax.Array, *others: jax.Array) -> NamedSharding | None:
    """The sharding of x on a mesh with explicit axes, which operations must be given; else None.

    If x is on no such mesh but one of the others is, x counts as replicated on that mesh.
    """
    sharding = jax.typeof(x).sharding
    if sharding.mesh.explicit_axes:
        return sharding
    mesh = next(filter(None, map(explicit_sharding, others)), None)
    return mesh and mesh.update(spec=PartitionSpec(*(None,) * jax.typeof(x).ndim))


def placed_like(x: jax.Array, like: jax.Array) -> jax.Array:
    """Reshards x like `like`, which has the same shape, on a mesh with explicit axes."""
    sharding = explicit_sharding(like)
    return x if sharding in (None, explicit_sharding(x)) else jax.sharding.reshard(x, sharding)


def batch_like(h: jax.Array, x: jax.Array) -> jax.Array:
    """Shards the batch axes of a state h (..., H) like those of x (..., T, I), on explicit axes."""
    if (like := explicit_sharding(x)) is None or not any(like.spec[:-2]):
        return h
    own = (explicit_sharding(h, x) or like).spec[-1]
    return jax.sharding.reshard(h, like.update(spec=PartitionSpec(*like.spec[:-2], own)))


def batches_alike(xs: tuple[jax.Array, ...], own: int) -> tuple[jax.Array, ...]:
    """Shards the batch axes (all but the last `own`) of all arrays alike on an explicit mesh."""
    if not (shardings := [s for x in xs if (s := explicit_sharding(x, *xs))]):
        return xs
    of_axes = zip(*(s.spec[:-own] for s in shardings), strict=True)
    batch = [next(filter(None, axis), None) for axis in of_axes]
    return tuple(
        jax.sharding.reshard(x, s.update(spec=PartitionSpec(*batch, *s.spec[-own:])))
        for x, s in zip(xs, shardings, strict=True)
    )
