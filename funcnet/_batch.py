"""The axes of a mesh that divide the examples, while a plan of `funcnet.sharding` is active."""

import math
from typing import NamedTuple

import jax
from jax.sharding import Mesh


class Batch(NamedTuple):
    """The automatic axes of a mesh that divide the examples, the first axis of most arrays."""

    mesh: Mesh
    axes: tuple[str, ...]

    def divides(self, n: int) -> bool:
        """Whether n examples, or n rows of a parameter, can be divided into equal parts."""
        return bool(self.axes) and n % math.prod(self.mesh.shape[a] for a in self.axes) == 0


batch = jax.make_user_context(default_value=None)
"""The `Batch` of the plan that is active (`funcnet.sharding`), or None; in the cache key of jit."""
