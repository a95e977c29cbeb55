"""Shardings where they are part of types: meshes with explicit axes."""

import jax
from jax.sharding import NamedSharding, PartitionSpec


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
