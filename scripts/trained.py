"""Saving and loading of trained arrays, and the library versions that they depend on."""

from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import optax

BLUE, ORANGE = "#0072B2", "#D55E00"  # Okabe and Ito's, for all kinds of colour vision
DASHES = {"hand": "-", "autodiff": ":"}


def save(tree: Any, file: IO[bytes]) -> None:
    """Saves the arrays of a tree as an .npz file, each under its path in the tree.

    To load a trained network:

        model = make_model(Config())
        params, state = jax.eval_shape(model.init, jax.random.key(0), x)
        tree = load(path, {"params": params, "state": state})
        y, _ = model.apply(tree["params"], tree["state"], x)

    """
    arrays: dict[str, Any] = {_name(path): a for path, a in jax.tree.leaves_with_path(tree)}
    np.savez(file, **arrays)


def load(path: Path, like: Any) -> Any:
    """Loads a file written by `save` as a tree with the structure of `like`."""
    with np.load(path) as arrays:
        return jax.tree.map_with_path(lambda path, _: jnp.asarray(arrays[_name(path)]), like)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def largest_difference(a: Any, b: Any) -> float:
    """The largest |a − b| over all elements of two trees."""
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), a, b)))


def versions() -> dict[str, str]:
    """Returns the versions of the libraries that affect the results."""
    return {m.__name__: m.__version__ for m in (jax, jaxlib, np, optax)}
