"""Masks: results do not depend on the elements that `where` excludes, even if these are nan."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from funcnet._arguments import check_broadcasts, type_name


def check_mask(f: str, where: jax.Array) -> None:
    """Raises a TypeError unless `where` is boolean."""
    if where.dtype != jnp.bool_:
        raise TypeError(f"{f}: where must be boolean, got {type_name(where)}")


def mask_of(f: str, where: Any, x: jax.Array) -> jax.Array | None:
    """The mask `where` of x with as many axes as x; None if everything counts.

    Raises:
      TypeError: If where is not boolean.
      ValueError: If it does not broadcast to the shape of x.
    """
    if where is None:
        return None
    check_mask(f, where)
    check_broadcasts(f, "where", where, "x", x)
    return jnp.expand_dims(where, range(x.ndim - where.ndim))


def keep(mask: jax.Array | None, x: jax.Array, other: Any = 0) -> jax.Array:
    """Replaces what does not count in x by `other`."""
    return x if mask is None else jnp.where(mask, x, jnp.asarray(other, x.dtype))


def without(mask: jax.Array | None, x: jax.Array, axis: Any = -1) -> jax.Array:
    """Replaces what does not count by −∞, and a slice along `axis` of which nothing counts by 0.

    So exp(x − max x) is 0 at what does not count, and finite if nothing counts.
    """
    if mask is None:
        return x
    some = mask.any(axis, keepdims=True)
    return jnp.where(mask, x, jnp.where(some, -jnp.inf, jnp.zeros((), x.dtype)))


Mean = Callable[[jax.Array], jax.Array]


def _part(mask: jax.Array, x: jax.Array, mean: Mean) -> jax.Array:
    return mean(jnp.broadcast_to(mask, x.shape).astype(x.dtype))


def share(mask: jax.Array | None, x: jax.Array, mean: Mean) -> Any:
    """The part of each slice of x that counts, or 1 where it is 0, so that it can be a divisor."""
    return 1 if mask is None else or_one(mask, x, mean, _part(mask, x, mean))


def or_one(mask: jax.Array | None, x: jax.Array, mean: Mean, number: jax.Array) -> jax.Array:
    """The number of each slice of x, or 1 where nothing counts in the slice."""
    return number if mask is None else jnp.where(_part(mask, x, mean) == 0, 1, number)


def mean_of(mask: jax.Array | None, x: jax.Array, mean: Mean) -> Mean:
    """The mean of what counts in each slice of an array like x; 0 if nothing does."""
    if mask is None:
        return mean
    part = share(mask, x, mean)
    return lambda a: mean(keep(mask, a)) / part
