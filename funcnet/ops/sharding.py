"""Shardings where they are part of types: meshes with explicit axes."""

import jax
from jax.sharding import NamedSharding


def explicit_sharding(x: jax.Array) -> NamedSharding | None:
    """The sharding of x on a mesh with explicit axes, which operations must be told; else None."""
    sharding = jax.typeof(x).sharding
    return sharding if sharding.mesh.explicit_axes else None
