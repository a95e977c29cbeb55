"""What each rule costs beside autodiff, and autodiff with `jax.checkpoint`, of the usual forward.

    python scripts/bench_rules.py [--rounds 100] [--rows 2048] [--columns 1024] [--write]

Each candidate computes the value and the cotangents of all floating arguments in one compiled
program. They take turns in one run; a ratio is the median, with quartiles, of the hand rule's time
divided by the other's of the same round. "Temporary" is what the compiled program allocates besides
arguments and results (`memory_analysis`); XLA also puts scratch into results that are not written
yet, which no figure shows. `--write` puts the table into README.md.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import readme
import tyro
from bench_step import compare, machine

from funcnet import ops


@dataclasses.dataclass(frozen=True)
class Config:
    """Times every rule beside autodiff of the usual forward."""

    rounds: int = 100
    """How often each candidate gets its turn."""
    rows: int = 2048
    """Examples."""
    columns: int = 1024
    """Features or classes of an example."""
    write: bool = False
    """Whether to put the table into README.md."""


class Pair(NamedTuple):
    """A rule and the forward that people write instead."""

    rule: Callable[..., Any]
    usual: Callable[..., Any]
    args: tuple[jax.Array, ...]


def two_pass(x: jax.Array, scale: jax.Array, bias: jax.Array) -> Any:
    """Batch Normalization as it is usually written."""
    mean = x.mean(0)
    var = ((x - mean) ** 2).mean(0)
    return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias, mean, var


def bernoulli_dropout(x: jax.Array, key: jax.Array) -> jax.Array:
    """Dropout as it is usually written."""
    return jnp.where(jax.random.bernoulli(key, 0.8, x.shape), x / 0.8, 0.0)


def pairs(n: int, c: int) -> dict[str, Pair]:
    """What is compared, on n rows and c columns."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, t = jax.random.normal(keys[0], (n, c)), jax.nn.softmax(jax.random.normal(keys[1], (n, c)))
    w, column = jax.random.normal(keys[2], (c, c)) / c**0.5, jnp.ones(c)
    index = jnp.arange(n, dtype=jnp.int32) % c
    p = jax.nn.softmax(x)
    key = keys[2]
    optax_losses = optax.losses
    return {
        "sigmoid": Pair(ops.sigmoid, jax.nn.sigmoid, (x,)),
        "tanh": Pair(ops.tanh, jnp.tanh, (x,)),
        "relu": Pair(ops.relu, lambda x: jnp.where(x >= 0, x, 0.0), (x,)),
        "softmax": Pair(ops.softmax, jax.nn.softmax, (x,)),
        "log_softmax": Pair(ops.log_softmax, jax.nn.log_softmax, (x,)),
        "affine": Pair(ops.affine, lambda x, w, b: x @ w + b, (x, w, column)),
        "batch_norm": Pair(ops.batch_norm, two_pass, (x, column, column)),
        "dropout": Pair(
            lambda x: ops.dropout(x, key, rate=0.2), lambda x: bernoulli_dropout(x, key), (x,)
        ),
        "mean_squared_error": Pair(
            ops.mean_squared_error, lambda y, t: ((y - t) ** 2).mean(-1), (x, t)
        ),
        "cross_entropy": Pair(ops.cross_entropy, lambda y, t: -(t * jnp.log(y)).sum(-1), (p, t)),
        "softmax_cross_entropy, indices": Pair(
            lambda x: ops.softmax_cross_entropy(x, index),
            lambda x: optax_losses.softmax_cross_entropy_with_integer_labels(x, index),
            (x,),
        ),
        "softmax_cross_entropy, probabilities": Pair(
            lambda x: ops.softmax_cross_entropy(x, t),
            lambda x: optax_losses.softmax_cross_entropy(x, t),
            (x,),
        ),
    }


def measure(pair: Pair, rounds: int) -> dict[str, Any]:
    """Ratios of time and temporary bytes of the three ways to differentiate."""
    ways = {
        "hand": pair.rule,
        "autodiff": pair.usual,
        "checkpoint": jax.checkpoint(pair.usual),
    }
    ones = jax.tree.map(
        lambda y: jnp.ones(y.shape, y.dtype), jax.eval_shape(pair.usual, *pair.args)
    )
    loops, temporary = {}, {}
    for name, f in ways.items():

        def both(args: Any, dout: Any, f: Callable[..., Any] = f) -> Any:
            value, back = jax.vjp(f, *args)
            return value, back(dout)

        run = jax.jit(both).lower(pair.args, ones).compile()
        if (memory := run.memory_analysis()) is not None:
            temporary[name] = memory.temp_size_in_bytes

        def loop(steps: int, run: Callable[..., Any] = run) -> None:
            for _ in range(steps):
                jax.block_until_ready(run(pair.args, ones))

        loops[name] = loop
    # The ratio of compare is to its baseline; the reader wants hand / other.
    ratio = lambda other: compare(
        {n: loops[n] for n in ("hand", other)}, 1, rounds, baseline=other
    )["hand"]["ratio"]
    return {
        "ratio": {other: ratio(other) for other in ("autodiff", "checkpoint")},
        "temporary": temporary,
    }


def main() -> None:
    """Prints the table, and writes it into README.md if asked to."""
    config = tyro.cli(Config)
    versions = machine()
    where = f"{versions['CPU']}, {versions['device']}, jax {versions['jax']}"
    lines = [
        f"{config.rows} × {config.columns} in float32 on {where}.",
        "",
        "| rule | time / autodiff | time / checkpoint | MB by hand | autodiff | checkpoint |",
        "|---|---|---|---|---|---|",
    ]
    for name, pair in pairs(config.rows, config.columns).items():
        m = measure(pair, config.rounds)
        show = lambda q: f"{q[1]:.2f} ({q[0]:.2f}, {q[2]:.2f})"
        cells = [f"`{name}`"]
        cells += [show(m["ratio"][other]) for other in ("autodiff", "checkpoint")]
        cells += [
            f"{m['temporary'].get(way, math.nan) / 1e6:.1f}"
            for way in ("hand", "autodiff", "checkpoint")
        ]
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    text = "\n".join(lines)
    if config.write:
        readme.write("rules", text)


if __name__ == "__main__":
    main()
