"""Evaluate small programs one operation at a time in NumPy: compiling them takes longer.

A check evaluates some thirty programs once each, at the few numbers of a test. XLA needs 0.05 to
0.5 s to compile one of them, NumPy a few milliseconds to evaluate it. `evaluate` is an independent
implementation of the operations in which formulas are usually written. It evaluates what it lacks
(convolutions, gathers, sorts, random numbers) by JAX, one operation at a time, and raises
`Unsupported` for a program that should be compiled instead.

The accuracy of a rule is always measured on programs that XLA compiled.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from funcnet.check import tracing

COST = 100_000  # of the largest program that is evaluated here, in calls of NumPy: some 0.2 s
ELEMENTS = 500  # NumPy takes about as long to compute them as for a call
PASSES = 20  # that a loop of unknown length is assumed to make


class Unsupported(Exception):
    """The program should be compiled."""


def cost(closed: Any) -> float:
    """The estimated cost to evaluate a jaxpr, in calls of NumPy; infinite if it is unsupported."""
    total = 0.0
    for eqn in tracing.opened(closed).eqns:
        name, inner = eqn.primitive.name, _inner(eqn)
        if name in UNSUPPORTED or (name == "shard_map" and eqn.params["mesh"].size > 1):
            return math.inf
        passes = {"scan": eqn.params.get("length"), "while": PASSES}.get(name, 1)
        total += passes * (sum(map(cost, inner)) if inner else 1 + _size(eqn) / ELEMENTS)
    return total


def _inner(eqn: Any) -> list[Any]:
    plain = tracing.plain_forward(eqn)
    return tracing.inner_jaxprs(eqn) if plain is None else [plain]


def _size(eqn: Any) -> float:
    """The number of elements that an operation reads, writes or multiplies."""
    size = max([math.prod(v.aval.shape) for v in (*eqn.invars, *eqn.outvars)], default=0)
    if eqn.primitive.name == "dot_general":
        (axes, _), _ = eqn.params["dimension_numbers"]
        size *= math.prod(eqn.invars[0].aval.shape[i] for i in axes) / 8
    return size


def evaluate(closed: Any, inputs: Sequence[Any]) -> list[Any]:
    """The outputs of a jaxpr: NumPy arrays, but for keys.

    Raises:
      Unsupported: If the program should be compiled. Any other exception is of an operation for
        which this module is no judge either.
    """
    return _function(closed)(*inputs)


def _function(closed: Any) -> Callable[..., list[Any]]:
    """A jaxpr as a function of arrays."""
    jaxpr, consts = tracing.opened(closed), getattr(closed, "consts", ())
    steps = [(_operation(eqn), eqn.invars, eqn.outvars) for eqn in jaxpr.eqns]
    literals = {
        id(v): np.asarray(v.val, getattr(v.aval, "dtype", None))
        for _, ins, _ in (*steps, (None, jaxpr.outvars, ()))
        for v in ins
        if isinstance(v, jex.Literal)
    }

    def call(*inputs: Any) -> list[Any]:
        values = dict(literals)
        for v, x in zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True):
            values[id(v)] = _array(x)
        for f, ins, outs in steps:
            for v, y in zip(outs, f(*(values[id(v)] for v in ins)), strict=True):
                values[id(v)] = y = _array(y)
                if y.shape != v.aval.shape or y.dtype != v.aval.dtype:
                    raise Unsupported(f"{y.dtype}{y.shape} instead of {v.aval}")
        return [values[id(v)] for v in jaxpr.outvars]

    return call


def _array(x: Any) -> Any:
    is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.extended)
    return x if is_key or isinstance(x, np.ndarray) else np.asarray(x)


def _operation(eqn: Any) -> Callable[..., Sequence[Any]]:
    """The function of arrays that an equation calls; it returns all outputs."""
    name, p, plain = eqn.primitive.name, eqn.params, tracing.plain_forward(eqn)
    by_jax = lambda *xs: tracing.bind(eqn, list(xs))
    if plain is not None:
        return _function(plain)
    if name in CALLS:
        return _function(tracing.inner_jaxprs(eqn)[0])
    if name in LOOPS:
        return LOOPS[name](eqn)
    if name in SAME:
        return lambda *xs: xs
    if name in ("empty", "empty2"):  # what stands there is never used
        return lambda *_: (np.zeros(eqn.outvars[0].aval.shape, eqn.outvars[0].aval.dtype),)
    types = {v.aval.dtype for v in eqn.invars}
    if name in OF_ELEMENTS and not any(jnp.issubdtype(t, jnp.complexfloating) for t in types):
        out = eqn.outvars[0].aval.dtype
        if name in ANY_DTYPE or jnp.issubdtype(out, jnp.floating):
            return _in_wide(OF_ELEMENTS[name], types, out)
    if name in OF_INTEGERS and types <= INTEGERS:
        return lambda x, y: (OF_INTEGERS[name](x, y),) if y.all() else by_jax(x, y)
    if name not in ON_ARRAYS:
        return by_jax

    def run(*xs: Any) -> Any:
        y = ON_ARRAYS[name](p, *xs)
        if y is None:
            return by_jax(*xs)
        return y if eqn.primitive.multiple_results else (y,)

    return run


def _in_wide(f: Callable[..., Any], types: set[Any], out: Any) -> Callable[..., Any]:
    """f, computed in float32 for a narrower dtype: the result is rounded once, as XLA does it."""
    is_narrow = lambda t: jnp.issubdtype(t, jnp.floating) and t.itemsize < 4
    if not any(map(is_narrow, types)):
        return lambda *xs: (f(*xs),)
    widen = lambda x: x.astype(np.float32) if is_narrow(x.dtype) else x
    return lambda *xs: (np.asarray(f(*map(widen, xs))).astype(out),)


# Operations that call one inner jaxpr with their inputs.
CALLS = frozenset([
    "checkpoint", "closed_call", "custom_jvp_call", "jit", "pjit", "remat2", "shard_map",
])  # fmt: skip
UNSUPPORTED = frozenset(["custom_linear_solve", "pallas_call"])
# Operations whose outputs are their inputs, those over the axes of a mesh of one device included.
SAME = frozenset([
    "barrier", "copy", "copy_p", "optimization_barrier", "pcast", "psum", "psum_invariant",
    "pvary", "reshard", "sharding_constraint", "stop_gradient",
])  # fmt: skip

# Operations on each element, by their names in `jax.lax`.
ANY_DTYPE = {
    "abs": np.abs, "add": np.add, "add_any": np.add, "and": np.bitwise_and, "eq": np.equal,
    "ge": np.greater_equal, "gt": np.greater, "is_finite": np.isfinite, "le": np.less_equal,
    "lt": np.less, "max": np.maximum, "min": np.minimum, "mul": np.multiply, "ne": np.not_equal,
    "neg": np.negative, "not": np.invert, "or": np.bitwise_or, "sub": np.subtract,
    "sign": np.sign, "square": np.square, "xor": np.bitwise_xor,
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
}  # fmt: skip
OF_ELEMENTS: dict[str, Callable[..., Any]] = ANY_DTYPE | {
    "acos": np.arccos, "acosh": np.arccosh, "asin": np.arcsin, "asinh": np.arcsinh,
    "atan": np.arctan, "atan2": np.arctan2, "atanh": np.arctanh, "cbrt": np.cbrt, "ceil": np.ceil,
    "cos": np.cos, "cosh": np.cosh, "div": np.true_divide,
    "erf": lambda x: np.vectorize(math.erf, [x.dtype.char])(x),
    "erfc": lambda x: np.vectorize(math.erfc, [x.dtype.char])(x), "exp": np.exp,
    "exp2": np.exp2, "expm1": np.expm1, "floor": np.floor, "log": np.log, "log1p": np.log1p,
    "logistic": lambda x: 1 / (1 + np.exp(-x)), "pow": np.power,
    "rem": np.fmod, "rsqrt": lambda x: 1 / np.sqrt(x), "sin": np.sin,
    "sinh": np.sinh, "sqrt": np.sqrt, "tan": np.tan, "tanh": np.tanh,
}  # fmt: skip
INTEGERS = {np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)}


def _truncated(x: Any, y: Any) -> Any:
    q = np.floor_divide(x, y)
    return q + ((q * y != x) & ((x < 0) != (y < 0))).astype(q.dtype)


# Operations on integers, the second of which are not 0.
OF_INTEGERS = {"div": _truncated, "rem": np.fmod}


def _broadcast(p: Any, x: Any) -> Any:
    shape = [1] * len(p["shape"])
    for n, axis in zip(x.shape, p["broadcast_dimensions"], strict=True):
        shape[axis] = n
    return np.broadcast_to(x.reshape(shape), p["shape"])


def _convert(p: Any, x: Any) -> Any:
    new = p["new_dtype"]
    if jnp.issubdtype(new, jnp.integer) and x.dtype.kind not in "iub":
        return None  # XLA saturates
    return x != 0 if jnp.issubdtype(new, jnp.bool_) else x.astype(new)


def _dot(p: Any, x: Any, y: Any) -> Any:
    (of_x, of_y), (batch_x, batch_y) = p["dimension_numbers"]
    out = p["preferred_element_type"] or jnp.result_type(x, y)
    wide = np.float32 if jnp.issubdtype(out, jnp.floating) and out.itemsize < 4 else out
    x, y = x.astype(wide), y.astype(wide)
    rest_x, rest_y = (
        [i for i in range(z.ndim) if i not in (*of, *batch)]
        for z, of, batch in ((x, of_x, batch_x), (y, of_y, batch_y))
    )
    sizes = lambda z, axes: tuple(z.shape[i] for i in axes)
    batch, m, k, n = sizes(x, batch_x), sizes(x, rest_x), sizes(x, of_x), sizes(y, rest_y)
    a = x.transpose(*batch_x, *rest_x, *of_x).reshape(*batch, math.prod(m), math.prod(k))
    b = y.transpose(*batch_y, *of_y, *rest_y).reshape(*batch, math.prod(k), math.prod(n))
    return np.matmul(a, b).astype(out).reshape((*batch, *m, *n))


def _pad(p: Any, x: Any, value: Any) -> Any:
    """Inner padding first; then a negative width cuts, and a positive one pads."""
    config = p["padding_config"]
    inner = [
        n + max(n - 1, 0) * between for n, (_, _, between) in zip(x.shape, config, strict=True)
    ]
    spread = np.full(inner, value, x.dtype)
    spread[tuple(slice(None, None, between + 1) for _, _, between in config)] = x
    kept = [slice(max(-a, 0), n - max(-b, 0)) for n, (a, b, _) in zip(inner, config, strict=True)]
    widths = [(max(a, 0), max(b, 0)) for a, b, _ in config]
    return np.pad(spread[tuple(kept)], widths, constant_values=value)


def _reduced(f: Callable[..., Any]) -> Callable[..., Any]:
    def reduce(p: Any, x: Any) -> Any:
        if x.size == 0:
            return None
        wide = x.astype(np.float32) if x.dtype.itemsize < 4 and x.dtype.kind in "fV" else x
        return np.asarray(f(wide, axis=tuple(p["axes"]))).astype(x.dtype)

    return reduce


def _along(f: Callable[..., Any]) -> Callable[..., Any]:
    """A cumulative operation along an axis."""

    def accumulate(p: Any, x: Any) -> Any:
        flip = (lambda z: np.flip(z, p["axis"])) if p["reverse"] else lambda z: z
        return flip(f(flip(x), axis=p["axis"])).astype(x.dtype)

    return accumulate


def _index(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda p, x: f(x, axis=p["axes"][0]).astype(p["index_dtype"])


def _iota(p: Any) -> Any:
    shape = [1] * len(p["shape"])
    shape[p["dimension"]] = -1
    numbers = np.arange(p["shape"][p["dimension"]]).astype(p["dtype"])
    return np.broadcast_to(numbers.reshape(shape), p["shape"])


def _shifted(f: Callable[..., Any]) -> Callable[..., Any]:
    """A shift of unsigned integers by fewer bits than they have."""
    return lambda _, x, by: (
        f(x, by) if x.dtype.kind == "u" and (by < 8 * x.itemsize).all() else None
    )


def _place(x: Any, sizes: Sequence[int], starts: Sequence[Any]) -> tuple[slice, ...]:
    """The slice of `sizes` of x at `starts`, moved to where it fits."""
    firsts = [min(max(int(i), 0), n - m) for i, n, m in zip(starts, x.shape, sizes, strict=True)]
    return tuple(slice(i, i + m) for i, m in zip(firsts, sizes, strict=True))


def _updated(x: Any, part: Any, *starts: Any) -> Any:
    x = x.copy()
    x[_place(x, part.shape, starts)] = part
    return x


def _selected(which: Any, no: Any, yes: Any, *more: Any) -> Any:
    return np.where(which, yes, no) if which.dtype == bool and not more else None


# Operations on whole arrays: (parameters, *inputs) -> output, or None to leave them to JAX.
ON_ARRAYS: dict[str, Callable[..., Any]] = {
    "argmax": _index(np.argmax),
    "argmin": _index(np.argmin),
    "bitcast_convert_type": lambda p, x: (
        x.view(p["new_dtype"]) if x.itemsize == np.dtype(p["new_dtype"]).itemsize else None
    ),
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda p, *xs: np.concatenate(xs, p["dimension"]),
    "convert_element_type": _convert,
    "cummax": _along(np.maximum.accumulate),
    "cummin": _along(np.minimum.accumulate),
    "cumprod": _along(np.cumprod),
    "cumsum": _along(np.cumsum),
    "dot_general": _dot,
    "dynamic_slice": lambda p, x, *starts: x[_place(x, p["slice_sizes"], starts)],
    "dynamic_update_slice": lambda _, x, part, *starts: _updated(x, part, *starts),
    "expand_dims": lambda p, x: np.expand_dims(x, p["dimensions"]),
    "integer_pow": lambda p, x: x ** p["y"] if x.dtype.kind == "f" else None,
    "iota": _iota,
    "pad": _pad,
    "platform_index": lambda _: np.int32(0),  # `_cond` chooses the branch
    "reduce_and": _reduced(np.all),
    "reduce_max": _reduced(np.max),
    "reduce_min": _reduced(np.min),
    "reduce_or": _reduced(np.any),
    "reduce_prod": _reduced(np.prod),
    "reduce_sum": _reduced(np.sum),
    "reshape": lambda p, x: x.transpose(p["dimensions"] or range(x.ndim)).reshape(p["new_sizes"]),
    "rev": lambda p, x: np.flip(x, p["dimensions"]),
    "round": lambda p, x: np.rint(x) if p["rounding_method"] == 1 else None,
    "select_n": lambda _, *xs: _selected(*xs),
    "shift_left": _shifted(np.left_shift),
    "shift_right_logical": _shifted(np.right_shift),
    "slice": lambda p, x: x[
        tuple(map(slice, p["start_indices"], p["limit_indices"], p["strides"] or [1] * x.ndim))
    ],
    "split": lambda p, x: np.split(x, np.cumsum(p["sizes"])[:-1], p["axis"]),
    "squeeze": lambda p, x: x.reshape(
        [n for i, n in enumerate(x.shape) if i not in p["dimensions"]]
    ),
    "stack": lambda p, *xs: np.stack(xs, p["axis"]),
    "unstack": lambda p, x: list(np.moveaxis(x, p["axis"], 0)),
    "transpose": lambda p, x: x.transpose(p["permutation"]),
}


def _cond(eqn: Any) -> Callable[..., list[Any]]:
    branches = [*map(_function, eqn.params["branches"])]
    if platforms := eqn.params.get("branches_platforms"):
        if jax.default_backend() != "cpu":  # a GPU has two names
            raise Unsupported("a form for each platform")
        own = [i for i, names in enumerate(platforms) if names is None or "cpu" in names]
        return lambda _, *xs: branches[own[0]](*xs)
    return lambda i, *xs: branches[min(max(int(i), 0), len(branches) - 1)](*xs)


def _while(eqn: Any) -> Callable[..., list[Any]]:
    p = eqn.params
    a, b = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    cond, body = _function(p["cond_jaxpr"]), _function(p["body_jaxpr"])

    def run(*xs: Any) -> list[Any]:
        carry = list(xs[b:])
        for _ in range(LONG):
            (goes_on,) = cond(*xs[:a], *carry)  # under vmap, one for each example
            if not goes_on.any():
                return carry
            new = body(*xs[a:b], *carry)
            if goes_on.ndim:
                new = [_where(goes_on, y, x) for x, y in zip(carry, new, strict=True)]
            carry = new
        raise Unsupported("a loop of many passes")

    return run


def _where(condition: Any, x: Any, y: Any) -> Any:
    """np.where for a condition on the leading axes of x and y."""
    return np.where(condition.reshape(condition.shape + (1,) * (x.ndim - condition.ndim)), x, y)


def _scan(eqn: Any) -> Callable[..., list[Any]]:
    p = eqn.params
    a, count = tracing.scan_counts(eqn)
    b = a + count
    body, passes = _function(p["jaxpr"]), range(p["length"])

    def run(*xs: Any) -> list[Any]:
        if not all(isinstance(x, np.ndarray) for x in xs[b:]):
            raise Unsupported("a scan over keys")
        carry, ys = list(xs[a:b]), []
        for i in reversed(passes) if p["reverse"] else passes:
            outs = body(*xs[:a], *carry, *(x[i] for x in xs[b:]))
            carry = outs[:count]
            ys.append(outs[count:])
        if not ys:
            raise Unsupported("a scan over nothing")
        ys = ys[::-1] if p["reverse"] else ys
        return [*carry, *(np.stack(column) for column in zip(*ys, strict=True))]

    return run


# Operations with inner jaxprs that are called often: equation -> function of arrays.
LOOPS = {"cond": _cond, "scan": _scan, "while": _while}
LONG = 300  # passes of a loop of unknown length
