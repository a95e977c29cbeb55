"""A network as a table: what each layer gives, holds, computes and keeps for its backward pass."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcnet.layers import Layer
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


class Summary(NamedTuple):
    """The result of `summary`; it prints as a table."""

    rows: tuple[Row, ...]
    total: Row

    def __str__(self) -> str:
        header = ("layer", "output", "params", "bytes", "FLOPs", "kept by hand", "by autodiff")
        cells = lambda row: (row.layer, row.output, *(f"{n:,}" for n in row[2:]))
        lines = [header, *map(cells, self.rows), cells(self.total)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
        sides = ["<", "<", *">" * (len(header) - 2)]
        show = lambda line: "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)
        ).rstrip()
        rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
        return "\n".join([show(lines[0]), rule, *map(show, lines[1:-1]), rule, show(lines[-1])])

    __repr__ = __str__


def summary(layer: Layer, x: Any, *, train: bool = True) -> Summary:
    """What a network is made of, without computing anything.

    A layer that runs others in a row (`chain`, `residual`) has a row for each, indented. FLOPs are
    those of the forward pass: two for each product of a matrix product or convolution, one for each
    other operation and element; a loop counts all its passes. Bytes kept are those of all arrays
    that `jax.vjp` of the layer saves, but for its params: its input counts, if it is kept. In a
    network a layer's input may be what the one before keeps as well; so the sum over the layers is
    an upper bound, and the total is measured of the whole network.

    Args:
      layer: The network.
      x: Its input: an array, or a `jax.ShapeDtypeStruct`.
      train: Whether in training, as `Layer.apply`.

    >>> from funcnet import layers, ops
    >>> net = layers.chain(layers.Dense(50), ops.relu, layers.Dense(10))
    >>> table = summary(net, jax.ShapeDtypeStruct((100, 784), "float32"))
    >>> [(row.layer, row.output, row.parameters) for row in table.rows][0]
    ('Dense(50)', 'float32[100,50]', 39250)
    >>> table.total.residual_bytes, table.total.autodiff_bytes
    (338600, 358600)
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, state = jax.eval_shape(layer.init, key, x)
    rows = tuple(_rows(layer, params, state, key, x, train, indent=0))
    return Summary(rows, _row("total", layer, params, state, key, x, train))


def _rows(
    layer: Layer, params: Any, state: Any, key: Any, x: Any, train: bool, *, indent: int
) -> Iterator[Row]:
    if not layer.parts:
        yield _row("  " * indent + layer.name, layer, params, state, key, x, train)
        return
    for part, p, s in zip(layer.parts, params, state, strict=True):
        yield _row("  " * indent + part.name, part, p, s, key, x, train)
        if part.parts:
            yield from _rows(part, p, s, key, x, train, indent=indent + 1)
        x = jax.eval_shape(_applied(part, train), p, s, key, x)


def _row(name: str, layer: Layer, params: Any, state: Any, key: Any, x: Any, train: bool) -> Row:
    f = _applied(layer, train)
    y = jax.eval_shape(f, params, state, key, x)
    leaves = jax.tree.leaves(params)
    return Row(
        name,
        f"{y.dtype}[{','.join(map(str, y.shape))}]",
        sum(math.prod(p.shape) for p in leaves),
        sum(map(_bytes, leaves)),
        _flops(jax.make_jaxpr(f)(params, state, key, x).jaxpr),
        _kept(f, params, state, key, x),
        _kept(autodiff(f), params, state, key, x),
    )


def _applied(layer: Layer, train: bool) -> Callable[..., Any]:
    return lambda params, state, key, x: layer.apply(params, state, x, key=key, train=train)[0]


def _bytes(t: Any) -> int:
    is_key = jnp.issubdtype(t.dtype, jax.dtypes.prng_key)
    return math.prod(t.shape) * (8 if is_key else t.dtype.itemsize)


def _kept(f: Callable[..., Any], params: Any, state: Any, key: Any, x: Any) -> int:
    """Bytes of what `jax.vjp` saves, once for each array, without params."""
    differentiable = jnp.issubdtype(x.dtype, jnp.inexact)

    def saved(params: Any, state: Any, key: Any, x: Any) -> Any:
        if differentiable:
            back = jax.vjp(lambda params, x: f(params, state, key, x), params, x)[1]
        else:
            back = jax.vjp(lambda params: f(params, state, key, x), params)[1]
        return jax.tree.leaves(back)

    jaxpr = jax.make_jaxpr(saved)(params, state, key, x).jaxpr
    own = jaxpr.invars[: len(jax.tree.leaves(params))]
    kept = dict.fromkeys(v for v in jaxpr.outvars if not hasattr(v, "val") and v not in own)
    return sum(_bytes(v.aval) for v in kept)


# Operations that count once for each element.
ARITHMETIC = frozenset(
    {"add", "add_any", "sub", "mul", "div", "neg", "max", "min", "abs", "sign", "square", "sqrt"}
    | {"rsqrt", "exp", "exp2", "expm1", "log", "log1p", "pow", "integer_pow", "sin", "cos", "tanh"}
    | {"logistic", "erf", "erfc", "reduce_sum", "reduce_max", "reduce_min", "cumsum", "cumprod"}
)


def _flops(jaxpr: Any) -> int:
    """Of all operations on floating numbers, through loops and calls."""
    total = 0
    for e in jaxpr.eqns:
        if not e.outvars:
            continue
        name, out = e.primitive.name, e.outvars[0].aval
        if name == "dot_general":
            ((contracted, _), _) = e.params["dimension_numbers"]
            left = e.invars[0].aval.shape
            total += 2 * math.prod(out.shape) * math.prod(left[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel = e.invars[1].aval.shape
            outputs = kernel[e.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(out.shape) * (math.prod(kernel) // outputs)
        elif name in ARITHMETIC and jnp.issubdtype(out.dtype, jnp.inexact):
            total += max(math.prod(v.aval.shape) for v in (*e.invars, *e.outvars))
        elif name == "cond":
            total += max(_flops(branch.jaxpr) for branch in e.params["branches"])
        else:
            inner = [p for v in e.params.values() if (p := _jaxpr_of(v)) is not None]
            total += sum(map(_flops, inner)) * (e.params["length"] if name == "scan" else 1)
    return total


def _jaxpr_of(value: Any) -> Any:
    inner = getattr(value, "jaxpr", value)
    return inner if hasattr(inner, "eqns") else None
