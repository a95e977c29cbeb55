"""Tests of the collectives of compiled programs: known ones, in loops and conditions."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from funcnet.profile.collectives import Collective, collectives

MESH = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
WHOLE, DIVIDED = PartitionSpec(), PartitionSpec("data")


def found(f, out=WHOLE):
    """The collectives of f of one float32 array (16, 4) that 8 devices share."""
    x = jax.ShapeDtypeStruct((16, 4), "float32", sharding=NamedSharding(MESH, DIVIDED))
    own = jax.shard_map(f, mesh=MESH, in_specs=DIVIDED, out_specs=out, check_vma=False)
    return collectives(jax.jit(own).lower(x).compile().as_text())


def total(x):
    return jax.lax.psum(x, "data")


def looped(x):
    return jax.lax.fori_loop(0, 5, lambda i, s: total(s) * (1.0 + i), x)


def nested(x):
    return jax.lax.fori_loop(0, 3, lambda i, s: looped(s) + i, x)


def unknown(x):
    return jax.lax.while_loop(lambda s: jnp.sum(s) < 100, total, x)


def either(x):
    gathered = lambda: jax.lax.all_gather(x, "data", tiled=True)[:2]
    return jax.lax.cond(total(x).sum() > 0, gathered, lambda: total(x))


REDUCED = Collective("all-reduce", 32, 1, True)  # 2 × 4 float32
CASES = {
    "none": (lambda x: 2 * x, DIVIDED, []),
    "sum": (total, WHOLE, [REDUCED]),
    "gather": (
        lambda x: jax.lax.all_gather(x, "data", tiled=True),
        WHOLE,
        [Collective("all-gather", 256, 1, True)],
    ),
    "scatter": (
        lambda x: jax.lax.psum_scatter(jnp.tile(x, (4, 1)), "data", tiled=True),
        DIVIDED,
        [Collective("reduce-scatter", 128, 1, True)],
    ),
    "ring": (
        lambda x: jax.lax.ppermute(x, "data", [(i, (i + 1) % 8) for i in range(8)]),
        DIVIDED,
        [Collective("collective-permute", 32, 1, True)],
    ),
    "loop": (looped, WHOLE, [REDUCED._replace(times=5)]),
    "nested loops": (nested, WHOLE, [REDUCED._replace(times=15)]),
    "a loop of unknown length": (unknown, WHOLE, [REDUCED._replace(exact=False)]),
    "a condition": (either, WHOLE, [Collective("all-gather", 256, 1, True), REDUCED]),
}


@pytest.mark.parametrize("name", CASES)
def test_collectives_of_known_programs(name):
    f, out, expected = CASES[name]
    assert sorted(found(f, out)) == sorted(expected)
