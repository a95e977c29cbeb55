"""The flattening layer."""

import math

from funcnet._arguments import check_array
from funcnet.layers.base import Layer, parameterless


def Flatten() -> Layer:
    """Merges all axes but the first into one: (n, ...) becomes (n, features).

    The layer has no params and no state.

    Raises:
      ValueError: In `init` and `apply`, if x is a scalar.
    """

    def flat(x):
        check_array("Flatten()", "x", x)
        if not x.shape:
            raise ValueError("Flatten(): x must have shape (n, ...), got ()")
        return x.reshape(x.shape[0], math.prod(x.shape[1:]))

    return parameterless(flat, "Flatten()")
