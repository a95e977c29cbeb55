"""A network as a table: what each layer gives, holds, computes and keeps for its backward pass."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcnet._arguments import describe
from funcnet.layers import Layer
from funcnet.layers.base import entries_of, inputs_for
from funcnet.profile._flops import flops
from funcnet.profile.residuals import residuals, size_of
from funcnet.rule import autodiff


class Row(NamedTuple):
    """A layer; or all of them, in which numbers of layers add up."""

    layer: str
    output: str  # shape and dtype
    parameters: int
    parameter_bytes: int
    flops: int  # of the forward pass
    residual_bytes: int  # kept for the backward pass by the rules
    autodiff_bytes: int  # kept by autodiff of the same layer
    flops_exact: bool = True  # if not, a `while` loop of unknown length is counted once


class Summary(NamedTuple):
    """The result of `summary`; it prints as a table."""

    rows: tuple[Row, ...]
    total: Row

    def __str__(self) -> str:
        header = ("layer", "output", "params", "bytes", "FLOPs", "kept by hand", "by autodiff")
        lines = [header, *(_cells(row) for row in (*self.rows, self.total))]
        for i, (row, below) in enumerate(itertools.pairwise((*self.rows, self.total)), 1):
            if _indent(below.layer) > _indent(row.layer):  # the rows below say what is inside
                lines[i] = row.layer.partition("(")[0], *lines[i][1:]
        widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
        widths[0] = max(12, min(widths[0], WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1)))
        lines = [(_shorten(line[0], widths[0]), *line[1:]) for line in lines]
        sides = ["<", "<", *">" * (len(header) - 2)]
        show = lambda line: "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)
        ).rstrip()
        rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
        return "\n".join([show(lines[0]), rule, *map(show, lines[1:-1]), rule, show(lines[-1])])

    __repr__ = __str__


WIDTH = 100  # of the table, in characters


def _cells(row: Row) -> tuple[str, ...]:
    parameters, size, flops, *kept = map(_number, row[2:7])
    return row.layer, row.output, parameters, size, "~" * (not row.flops_exact) + flops, *kept


def _number(n: int) -> str:
    """All digits of a number below a million, else four of them: "12.35M"."""
    if n < 10**6:
        return f"{n:,}"
    power = min((len(str(n)) - 1) // 3, 5)
    return f"{n / 10 ** (3 * power):.4g}{'kMGTP'[power - 1]}"


def _indent(text: str) -> int:
    return len(text) - len(text.lstrip())


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def summary(layer: Layer, x: Any, *, train: bool = True, **inputs: Any) -> Summary:
    """What a network is made of, without computing anything.

    A layer that runs others in a row (`chain`, `residual`) has a row for each, indented. FLOPs are
    those of the forward pass: two for each product of a matrix product or convolution, one for each
    other operation and element; a loop counts all its passes, but a `while` loop of unknown length
    one, and the table marks the number with ~. Bytes kept are those of all arrays that `jax.vjp` of
    the layer saves, but for its params: its input counts, if it is kept. In a network a layer's
    input may be what the one before keeps as well; so the sum over the layers is an upper bound,
    and the total is measured of the whole network.

    Args:
      layer: The network.
      x: Its input: an array, or a `jax.ShapeDtypeStruct`.
      train: Whether in training, as `Layer.apply`.
      **inputs: Side inputs of the network, such as a mask: arrays, or `jax.ShapeDtypeStruct`s.

    >>> from funcnet import layers, ops
    >>> net = layers.chain(layers.Dense(50), ops.relu, layers.Dense(10))
    >>> table = summary(net, jax.ShapeDtypeStruct((100, 784), "float32"))
    >>> [(row.layer, row.output, row.parameters) for row in table.rows][0]
    ('Dense(50)', 'float32[100,50]', 39250)
    >>> table.total.residual_bytes, table.total.autodiff_bytes
    (338600, 358600)
    """
    if not isinstance(layer, Layer):
        raise TypeError(f"summary: layer must be a layer, got {describe(layer)}")
    if not (hasattr(x, "shape") and hasattr(x, "dtype")):
        raise TypeError(f"summary: x must be an array or its shape and dtype, got {describe(x)}")
    if unknown := set(inputs) - layer.inputs:
        raise TypeError(f"summary: layer takes no side input {min(unknown)!r}")
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, state = jax.eval_shape(layer.init, key, x)
    rows = tuple(_rows(layer, params, state, (key, inputs), x, train, indent=0))
    return Summary(rows, _row("total", layer, params, state, (key, inputs), x, train))


def _rows(
    layer: Layer, params: Any, state: Any, more: Any, x: Any, train: bool, *, indent: int
) -> Iterator[Row]:
    if not layer.parts:
        yield _row("  " * indent + layer.name, layer, params, state, more, x, train)
        return
    titles = [f"{name}: " for name in layer.names] or [""] * len(layer.parts)
    entries = (entries_of(layer.names, tree) for tree in (params, state))
    for title, part, p, s in zip(titles, layer.parts, *entries, strict=True):
        yield _row("  " * indent + title + part.name, part, p, s, more, x, train)
        if part.parts:
            yield from _rows(part, p, s, more, x, train, indent=indent + 1)
        x = jax.eval_shape(_applied(part, train), p, s, more, x)


def _row(name: str, layer: Layer, params: Any, state: Any, more: Any, x: Any, train: bool) -> Row:
    f = _applied(layer, train)
    y = jax.eval_shape(f, params, state, more, x)
    count, exact = flops(f, params, state, more, x)
    leaves = jax.tree.leaves(params)
    return Row(
        name,
        f"{y.dtype}[{','.join(map(str, y.shape))}]",
        sum(math.prod(p.shape) for p in leaves),
        sum(map(size_of, leaves)),
        count,
        _kept(f, params, state, more, x),
        _kept(autodiff(f), params, state, more, x),
        exact,
    )


def _applied(layer: Layer, train: bool) -> Callable[..., Any]:
    """`layer.apply` of params, state, more and x, where more are the key and all side inputs."""

    def f(params, state, more, x):
        key, inputs = more
        return layer.apply(params, state, x, key=key, train=train, **inputs_for(layer, inputs))[0]

    return f


def _kept(f: Callable[..., Any], params: Any, state: Any, more: Any, x: Any) -> int:
    """Bytes of what `jax.vjp` saves, without params."""
    if jnp.issubdtype(x.dtype, jnp.inexact):
        of = lambda floats, others: f(floats[0], others[0], others[1], floats[1])
        found = residuals(of, (params, x), (state, more))
    else:
        found = residuals(lambda params, others: f(params, *others), params, (state, more, x))
    own = len(jax.tree.leaves(params))
    return sum(r.nbytes for r in found if r.argument is None or r.argument >= own)
