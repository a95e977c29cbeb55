"""Checks of what users hand to optimizers; each failure is one line."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike


def check_scalar(function: str, argument: str, value: Any) -> None:
    """`value` must be a number or an array of shape (); it may be traced."""
    if not isinstance(value, (int, float, np.number, np.ndarray, jax.Array)):
        raise TypeError(f"{function}: {argument} must be a number, got {value!r}")
    if jnp.shape(value):
        raise ValueError(f"{function}: {argument} must be a scalar, got shape {jnp.shape(value)}")


def check_learning_rate(function: str, learning_rate: ArrayLike | optax.Schedule) -> None:
    """`learning_rate` must be a schedule or a scalar."""
    if not callable(learning_rate):
        check_scalar(function, "learning_rate", learning_rate)


def check_fraction(function: str, **values: ArrayLike) -> None:
    """Each value must be a scalar in [0, 1)."""
    _check_range(function, values, "in [0, 1)", 1)


def check_nonnegative(function: str, **values: ArrayLike) -> None:
    """Each value must be a scalar in [0, ∞)."""
    _check_range(function, values, "finite and not negative", np.inf)


def check_choice(function: str, argument: str, value: str, choices: tuple[str, ...]) -> None:
    """`value` must be one of `choices`."""
    if value not in choices:
        raise ValueError(f"{function}: {argument} must be one of {choices}, got {value!r}")


def check_params(function: str, params: Any) -> Any:
    """`params`, which must have been given to `update`."""
    if params is None:
        raise ValueError(f"{function}: update needs params: call update(grads, state, params)")
    return params


def check_gradient(function: str, path: Any, g: jax.Array, *others: jax.Array) -> None:
    """The gradient must be real, and of the shape of its parameter: JAX would broadcast it."""
    name = f"grads{jax.tree_util.keystr(path)}"
    if not jnp.issubdtype(g.dtype, jnp.floating):
        raise TypeError(f"{function}: {name} must be of a real floating dtype, got {g.dtype}")
    for x in others:
        if g.shape != x.shape:
            raise ValueError(
                f"{function}: {name} must have the shape of its parameter, {x.shape}, got {g.shape}"
            )


def _check_range(function: str, values: dict[str, Any], what: str, below: float) -> None:
    for argument, value in values.items():
        check_scalar(function, argument, value)
        if not isinstance(value, Tracer) and not 0 <= value < below:
            raise ValueError(f"{function}: {argument} must be {what}, got {value}")
