"""Where the hand rules are more accurate than autodiff, and by how much.

    python scripts/accuracy_table.py            prints the table
    python scripts/accuracy_table.py --write    and puts it into README.md

Each row is one regime in which the usual formula of a gradient loses its digits. An error is the
largest error of the gradient in float32 over its largest element, against 50 digits (mpmath):

- by the hand rule,
- by autodiff of the same forward (`funcnet.autodiff`),
- by autodiff of the forward that textbooks and peers use (named in the row).
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import readme
from command_line import check_writable, command, parse
from mpmath import mp, mpf

from funcnet import autodiff, ops


@dataclasses.dataclass(frozen=True)
class Config:
    """Where the hand rules are more accurate than autodiff, and by how much."""

    write: bool = False
    """Whether to put the table into README.md."""


class Row(NamedTuple):
    """One regime of one gradient, all in float32."""

    rule: str
    regime: str
    f: Callable[..., Any]  # of x alone, by the hand rule
    textbook: str  # the name of the usual forward ...
    usual: Callable[..., Any]  # ... and the forward
    x: np.ndarray
    dy: Any
    truth: Callable[[np.ndarray, Any], np.ndarray]
    at: Any = ...  # which elements of the gradient count
    gain: float = 1.0  # the least factor by which the hand rule beats the textbook's autodiff


class Errors(NamedTuple):
    """Of one row."""

    hand: float
    autodiff: float
    textbook: float


def exact(x: Any) -> Any:
    """An array of numbers of 50 digits."""
    mp.dps = 50
    return np.vectorize(lambda v: mpf(float(v)), otypes=[object])(np.asarray(x))


def exponential(x: Any) -> Any:
    """The exponential of each number."""
    return np.vectorize(mp.exp, otypes=[object])(x)


def sigmoid_truth(x: Any, dy: Any) -> Any:
    """Returns dy e⁻ˣ / (1 + e⁻ˣ)²."""
    e = exponential(-exact(x))
    return exact(dy) * e / (1 + e) ** 2


def tanh_truth(x: Any, dy: Any) -> Any:
    """Returns dy / cosh² x."""
    return 4 * sigmoid_truth(2 * np.asarray(x, np.float64), dy)


def softmax_truth(x: Any, dy: Any) -> Any:
    """Returns y ⊙ (dy − ⟨dy, y⟩)."""
    e = exponential(exact(x))
    y = e / e.sum(-1, keepdims=True)
    return y * (exact(dy) - (exact(dy) * y).sum(-1, keepdims=True))


def cross_entropy_truth(x: Any, dy: Any) -> Any:
    """Returns p − t, for the label 0."""
    e = exponential(exact(x))
    p = e / e.sum(-1, keepdims=True)
    p[..., 0] = -e[..., 1:].sum(-1) / e.sum(-1)
    return p * exact(dy)[..., None]


def batch_norm_truth(x: Any, dy: Any) -> Any:
    """The source's last equation, with γ = 1."""
    x, g = exact(x), exact(dy)
    n = len(x)
    u = x - x.sum(0) / n
    r = np.vectorize(lambda v: 1 / mp.sqrt(v), otypes=[object])(
        (u * u).sum(0) / n + mpf(float(np.float32(1e-5)))
    )
    z = u * r
    return r * (g - (z * (g * z).sum(0) + g.sum(0)) / n)


def two_pass(x: jax.Array) -> jax.Array:
    """Batch Normalization as it is usually written."""
    mean = x.mean(0)
    return (x - mean) / jnp.sqrt(((x - mean) ** 2).mean(0) + 1e-5)


def rows() -> list[Row]:
    """The table."""
    random = np.random.default_rng(0)
    f32 = lambda values: np.asarray(values, np.float32)
    label = jnp.zeros(1, jnp.int32)
    by_index = lambda x: ops.softmax_cross_entropy(x, label)
    by_one_hot = lambda x: ops.softmax_cross_entropy(x, jnp.asarray(f32([[1, 0, 0]])))
    peer = lambda x: optax.losses.softmax_cross_entropy_with_integer_labels(x, label)
    columns = f32(random.standard_normal((64, 3)))
    ones, zeros = jnp.ones(3, jnp.float32), jnp.zeros(3, jnp.float32)
    batch_norm = lambda x: ops.batch_norm(x, ones, zeros)[0]
    logits = f32(random.standard_normal(8))

    def activation(f, x, truth, gain):
        return Row(f.__name__, f"x = {x:g}", f, f"jax.nn.{f.__name__}", getattr(jax.nn, f.__name__),
                   f32([x]), f32([1]), truth, gain=gain)  # fmt: skip

    def loss(f, what, margin, offset, gain):
        x = f32([[margin, 0, 0]]) + f32(offset)
        regime = f"{what}, right by {margin}" + (f", all logits + {offset}" if offset else "")
        return Row("softmax_cross_entropy", regime, f, "optax", peer, x, f32([1]),
                   cross_entropy_truth, at=(0, 0), gain=gain)  # fmt: skip

    return [
        activation(ops.sigmoid, 10.0, sigmoid_truth, 1e2),
        activation(ops.sigmoid, 20.0, sigmoid_truth, 1e6),
        activation(ops.tanh, 4.8, tanh_truth, 1e2),
        activation(ops.tanh, 20.0, tanh_truth, 1e6),
        loss(by_index, "class index", 20, 0, 1e4),
        loss(by_index, "class index", 40, 0, 1e6),
        loss(by_index, "class index", 20, 1000, 1e4),
        loss(by_one_hot, "one-hot", 20, 0, 1e4),
        Row("softmax", "cotangent with mean 1000", ops.softmax, "jax.nn.softmax", jax.nn.softmax,
            logits, f32(random.standard_normal(8) + 1000), softmax_truth, gain=50),
        Row("softmax", "one class ahead by 20", ops.softmax, "jax.nn.softmax", jax.nn.softmax,
            f32([20, 0, 1]), f32([1, -1, 2]), softmax_truth, gain=1e2),
        Row("batch_norm", "data with mean 100", batch_norm, "two-pass", two_pass,
            columns + f32(100), f32(random.standard_normal((64, 3))), batch_norm_truth, gain=2),
        Row("batch_norm", "data with mean 10⁴", batch_norm, "two-pass", two_pass,
            columns + f32(1e4), f32(random.standard_normal((64, 3))), batch_norm_truth, gain=1e2),
        Row("batch_norm", "data with mean 10⁶", batch_norm, "two-pass", two_pass,
            columns + f32(1e6), f32(random.standard_normal((64, 3))), batch_norm_truth, gain=1e4),
    ]  # fmt: skip


def measure(row: Row) -> Errors:
    """The three errors of a row."""
    truth = row.truth(row.x, row.dy)
    scale = np.max(np.abs(truth[row.at]))

    def error(f: Callable[..., Any]) -> float:
        dx = jax.jit(lambda x, dy: jax.vjp(f, x)[1](dy)[0])(jnp.asarray(row.x), jnp.asarray(row.dy))
        return float(np.max(np.abs(exact(dx)[row.at] - truth[row.at])) / scale)

    return Errors(error(row.f), error(autodiff(row.f)), error(row.usual))


def table() -> str:
    """The table in Markdown."""
    lines = [
        "| rule | regime | hand rule | autodiff of the same forward | autodiff of the usual one |",
        "|---|---|---|---|---|",
    ]
    for row in rows():
        e = measure(row)
        cells = (
            row.rule,
            row.regime,
            *(f"{v:.0e}" for v in e[:2]),
            f"{e.textbook:.0e} ({row.textbook})",
        )
        lines.append(
            "| " + " | ".join(f"`{c}`" if i == 0 else c for i, c in enumerate(cells)) + " |"
        )
    return "\n".join(lines)


@command("accuracy_table")
def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table, and writes it into README.md if asked to; returns the exit status."""
    config = parse(Config, argv)
    if config.write:
        check_writable("--write", readme.page("accuracy"))
    text = table()
    if config.write:
        readme.write("accuracy", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
