"""What `scripts/bench.py` measures for a rule: large arguments and other forwards to compare.

Each family has a dict `MEASURED` from "rule" or "rule, variant" to a `Measured`.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from cases.case import normal, probabilities

Sizes = Mapping[str, int]
EPS = 1e-5
SMALL: Sizes = {"n": 6, "c": 8, "s": 4, "t": 5, "h": 4, "d": 6, "v": 8}  # for a check


def matrix(n, c):
    return (normal(n, c),)


def matrices(n, c):
    return normal(n, c), normal(n, c, seed=1)


def columns(n, c):
    """Data, scale and bias of a normalization rule."""
    return normal(n, c), normal(c, seed=1), normal(c, seed=2)


def logits_and_probabilities(n, c):
    return normal(n, c), probabilities(n, c, seed=1)


def integers(below, *shape, seed=0):
    return np.random.default_rng(seed).integers(below, size=shape, dtype=np.int32)


def weights(*shape, seed=1):
    """A matrix or kernel that preserves the scale of its input."""
    return normal(*shape, seed=seed) * np.prod(shape[:-1]) ** -0.5


class Target(NamedTuple):
    """Upper bounds of time and temporary bytes of the hand-written rule, relative to autodiff."""

    time: float | None
    temporary: float | None = None


class Measured(NamedTuple):
    """A rule with large arguments, and other forwards of the same arguments."""

    usual: Callable[..., Any]  # the forward that people usually write
    source: str  # its origin: "jax.nn", "optax" or "jnp"
    make: Callable[..., tuple[Any, ...]] = matrix  # makes the arguments from the sizes
    sizes: Sizes = MappingProxyType({"n": 2048, "c": 1024})
    large: Sizes = MappingProxyType({"n": 8192, "c": 4096})  # on an accelerator
    static: Mapping[str, Any] = MappingProxyType({})
    hand: Callable[..., Any] | None = None  # a function of the rule; by default the rule itself
    argnums: int | tuple[int, ...] | None = None  # by default all floating arguments
    growth: Mapping[str, tuple[int, ...]] = MappingProxyType({})  # sizes to vary one by one
    peers: Mapping[str, Callable[[], Callable[..., Any]]] = MappingProxyType({})  # may fail
    target: Target | None = None
    tpu: Target = Target(1.02)  # estimated cycles and temporary bytes on a v5e, in bfloat16
    gpu: Target = Target(1.02)  # moved bytes on an H100, in bfloat16


def flax(make, *names):
    """A Flax module applied to x; the other arguments are its parameters, named `names`."""

    def load():
        module = make(import_module("flax.linen"))

        def f(x, *params):
            return module.apply({"params": dict(zip(names, params, strict=True))}, x)

        return f

    return load


def tokamax(call):
    """`call(tokamax, *args)`.

    Version 0.0.12 can be imported only with typeguard 2, but tyro needs typeguard 4 (so it must be
    installed by `pip install --no-deps`). It also parses the options of the calling program.
    """

    def load():
        with mock.patch("typeguard.typechecked", lambda f: f):
            module = import_module("tokamax")
        import_module("absl.flags").FLAGS.mark_as_parsed()
        return lambda *args: call(module, *args)

    return load
