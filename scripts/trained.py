"""What the training programs report alike: colours, differences, versions."""

from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import optax

BLUE, ORANGE = "#0072B2", "#D55E00"  # Okabe and Ito's, for all kinds of colour vision
DASHES = {"hand": "-", "autodiff": ":"}


def largest_difference(a: Any, b: Any) -> float:
    """The largest |a − b| over all elements of two trees."""
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), a, b)))


def versions() -> dict[str, str]:
    """Returns the versions of the libraries that affect the results."""
    return {m.__name__: m.__version__ for m in (jax, jaxlib, np, optax)}
