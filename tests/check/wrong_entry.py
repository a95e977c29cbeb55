"""What a wrong rule of the catalogue is, and short ways to write one."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Wrong(NamedTuple):
    """A wrong `jax.custom_vjp` function, and the finding that must be made at these arguments."""

    id: str
    f: Callable
    args: tuple
    kwargs: Mapping
    kind: str | frozenset[str]  # one of these
    argument: str  # or the output, or "" where the finding concerns none


def vjp(f, bwd, fwd=None, nondiff=()):
    """f with a rule: bwd(*static arguments, *residuals, dy); the residuals are the arguments."""
    g = jax.custom_vjp(f, nondiff_argnums=nondiff)

    def save(*args):
        return f(*args), tuple(a for i, a in enumerate(args) if i not in nondiff)

    g.defvjp(fwd or save, lambda *a: bwd(*a[:-2], *a[-2], a[-1]))
    return g


def wrong(id, kind, argument, f, args, bwd, fwd=None, nondiff=(), **kwargs):
    """An entry; `kind` has alternatives after bars, kwargs are those of the call."""
    kinds = kind.split("|")
    f = vjp(f, bwd, fwd, nondiff)
    return Wrong(id, f, args, kwargs, kinds[0] if len(kinds) == 1 else frozenset(kinds), argument)


def pull(f, *args_and_dy):
    """The cotangents by autodiff, for the arguments whose part in the rule is right."""
    *args, dy = args_and_dy
    return jax.vjp(f, *args)[1](dy)


def array(values, dtype=jnp.float32):
    return jax.device_put(np.asarray(values).astype(dtype))  # nothing to compile


def normal(*shape, seed=0, dtype=jnp.float32):
    return array(np.random.default_rng([seed, *shape]).standard_normal(shape), dtype)


def positive(*shape, seed=0, dtype=jnp.float32):
    return array(np.random.default_rng([seed, *shape]).uniform(0.2, 2.0, shape), dtype)


def integers(high, *shape, seed=0):
    return array(np.random.default_rng([seed, *shape]).integers(0, high, shape), jnp.int32)


def one_hot(labels, like):
    return jax.nn.one_hot(labels, like.shape[-1], dtype=like.dtype)


def where(condition, x):
    """x where the condition holds, else 0."""
    return jnp.where(condition, x, jnp.zeros_like(x))
