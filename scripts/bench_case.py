"""A case of `bench.py`, and random arguments for it, all in float32."""

from collections.abc import Callable, Mapping
from importlib import import_module as load
from typing import Any, NamedTuple
from unittest import mock

import bench_forwards as usual
import jax
import jax.numpy as jnp
import numpy as np

Sizes = Mapping[str, int]
Growth = Mapping[str, tuple[int, ...]]  # sizes to try, one at a time
MATRIX: Sizes = {"n": 2048, "c": 1024}
ROWS: Growth = {"n": (128, 512, 2048, 8192)}


class Target(NamedTuple):
    """Upper bounds of two ratios, by hand to autodiff; None: any will do."""

    time: float | None
    temporary: float | None = None


EVERY = Target(1.02, 1.0)  # of a case that has no target of its own


class Peer(NamedTuple):
    """What to compare with, if `module` is installed: `make(module)` of `adapt(module, *args)`."""

    module: str
    make: Callable[[Any], Callable[..., Any]]
    adapt: Callable[..., tuple[Any, ...]] = lambda _, *args: args
    name: str = ""  # by default that of the library


class Case(NamedTuple):
    """A rule at certain arguments."""

    rule: str
    hand: Callable[..., Any]
    usual: Callable[..., Any]  # the forward that autodiff differentiates
    source: str  # what that is
    make: Callable[..., tuple[Any, ...]]  # the arguments, from the sizes
    sizes: Sizes = MATRIX
    growth: Growth = ROWS
    wrt: tuple[int, ...] | None = None  # the arguments to differentiate; None: all floating ones
    peers: tuple[Peer, ...] = ()
    backward_only: bool = False
    target: Target | None = None


def present(peers: tuple[Peer, ...]) -> dict[str, tuple[Peer, Any]]:
    """Those whose library is installed, by name, with the module."""
    found = {}
    for peer in peers:
        try:
            module = import_tokamax() if peer.module == "tokamax" else load(peer.module)
        except ImportError:
            continue
        found[peer.name or peer.module.partition(".")[0]] = peer, module
    return found


def import_tokamax() -> Any:
    """Tokamax without its type checks, and without its command line.

    Version 0.0.12 can be imported with typeguard 2 only, but tyro needs typeguard 4 (so it must be
    installed by `pip install --no-deps`); and it parses the options of any program that calls it.
    """
    with mock.patch("typeguard.typechecked", lambda f: f):
        module = load("tokamax")
    load("absl.flags").FLAGS.mark_as_parsed()
    return module


def draw(seed: int, *shape: int) -> jax.Array:
    """Normally distributed numbers."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def weights(seed: int, *shape: int) -> jax.Array:
    """A matrix or kernel that keeps the scale of what it is applied to."""
    inputs = 1
    for n in shape[:-1]:
        inputs *= n
    return draw(seed, *shape) * inputs**-0.5


def integers(seed: int, below: int, *shape: int) -> jax.Array:
    """Uniform integers."""
    return jnp.asarray(np.random.default_rng(seed).integers(below, size=shape, dtype=np.int32))


def probabilities(seed: int, *shape: int) -> jax.Array:
    """Rows that sum to 1."""
    return jax.nn.softmax(draw(seed, *shape))


def matrix(n: int, c: int) -> tuple[jax.Array]:
    """One argument."""
    return (draw(0, n, c),)


def matrices(n: int, c: int) -> tuple[jax.Array, jax.Array]:
    """Two of one shape."""
    return draw(0, n, c), draw(1, n, c)


def columns(n: int, c: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What is normalised, scale and bias."""
    return draw(0, n, c), draw(1, c), draw(2, c)


def and_indices(n: int, c: int) -> tuple[jax.Array, jax.Array]:
    """Logits and class indices."""
    return draw(0, n, c), integers(1, c, n)


def and_probabilities(n: int, c: int) -> tuple[jax.Array, jax.Array]:
    """Logits and labels that sum to 1."""
    return draw(0, n, c), probabilities(1, n, c)


def images(c: int, *kernel: int) -> Callable[..., tuple[jax.Array, ...]]:
    """Images: n of s × s with c channels; and a kernel and a bias, if its shape is given."""
    more = lambda: (weights(1, *kernel), draw(2, kernel[-1])) if kernel else ()
    return lambda n, s: (draw(0, n, s, s, c), *more())


def sequences(gates: int, states: int, biases: int) -> Callable[..., tuple[jax.Array, ...]]:
    """For a recurrent network: x (n, t, h), the first states, w_x, w_h and biases."""

    def make(t: int, n: int, h: int) -> tuple[jax.Array, ...]:
        start = [draw(1 + i, n, h) for i in range(states)]
        w = [weights(4 + i, h, gates * h) for i in range(2)]
        return draw(0, n, t, h), *start, *w, *(draw(6 + i, gates * h) for i in range(biases))

    return make


def heads(t: int) -> tuple[jax.Array, ...]:
    """Queries, keys and values of one example, 4 heads of 64."""
    return tuple(draw(i, 1, t, 4, 64) for i in range(3))


def flax(make: Callable[[Any], Any], *names: str) -> Peer:
    """A Flax module of x; the other arguments are its parameters of these names."""

    def apply(module: Any) -> Callable[..., Any]:
        def f(x: jax.Array, *params: jax.Array) -> Any:
            return make(module).apply({"params": dict(zip(names, params, strict=True))}, x)

        return f

    return Peer("flax.linen", apply)


def flax_batch_norm(module: Any) -> Callable[..., Any]:
    """Flax's BatchNorm in training."""
    norm = module.BatchNorm(use_running_average=False, epsilon=usual.EPS)

    def f(x: jax.Array, scale: jax.Array, bias: jax.Array) -> Any:
        running = {"mean": jnp.zeros_like(scale), "var": jnp.ones_like(scale)}
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": running}
        return norm.apply(variables, x, mutable=["batch_stats"])

    return f


def flax_recurrent(cell: str) -> Peer:
    """Flax's cell in its RNN: x (n, t, h), a first state of 0, weights of its own."""
    network = lambda module, x: module.RNN(getattr(module, cell)(x.shape[-1]))
    return Peer(
        "flax.linen",
        lambda module: lambda x, params: network(module, x).apply(params, x),
        lambda module, x, *_: (x, network(module, x).init(jax.random.key(7), x)),
    )


def tokamax(f: Callable[..., Any]) -> Peer:
    """f(tokamax, *args)."""
    return Peer("tokamax", lambda module: lambda *args: f(module, *args))
