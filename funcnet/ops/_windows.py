"""Sliding windows over the spatial axes of (b, *spatial, c): their positions and their contents.

On each axis, tap t of window o ∈ out reads position p = o·stride + t·dilation − low of x.
"""

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from funcnet._arguments import as_int, describe
from funcnet._arrays import explicit_sharding
from funcnet.ops._types import AnyArray

Ints = int | Sequence[int]
Padding = str | Sequence[tuple[int, int]]

MOST_TERMS = 64  # of a sum that the program writes out term by term


class Windows(NamedTuple):
    """The geometry of the windows; each field has one entry per spatial axis."""

    sizes: tuple[int, ...]  # of x
    window: tuple[int, ...]  # number of taps
    strides: tuple[int, ...]
    dilation: tuple[int, ...]  # distance between neighbouring taps
    padding: tuple[tuple[int, int], ...]  # (low, high)

    @property
    def extent(self) -> tuple[int, ...]:
        """The length of a window from its first to its last tap, both included."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.window, self.dilation, strict=True))

    @property
    def out(self) -> tuple[int, ...]:
        """The number of windows on each axis."""
        of_axis = lambda size, low_high, e, s: (size + sum(low_high) - e) // s + 1
        return tuple(map(of_axis, self.sizes, self.padding, self.extent, self.strides))

    @property
    def span(self) -> tuple[int, ...]:
        """The length from the first to the last position that one tap reads, both included."""
        return tuple((o - 1) * s + 1 for o, s in zip(self.out, self.strides, strict=True))


def per_axis(f: str, name: str, value: Ints, axes: int) -> tuple[int, ...]:
    """One integer ≥ 1 per spatial axis; a single integer applies to all axes."""
    values = _integers(value, axes)
    if values is None or len(values) != axes or min(values) < 1:
        raise (TypeError if values is None else ValueError)(
            f"{f}: {name} must be an int of at least 1, or {axes} of them, got {describe(value)}"
        )
    return values


def window_sizes(f: str, name: str, value: Ints) -> tuple[int, ...]:
    """The size of a window on each of 1 to 3 spatial axes; an int k means (k, k)."""
    values = _integers(value, 2)
    if values is None or len(values) not in (1, 2, 3) or min(values) < 1:
        raise (TypeError if values is None else ValueError)(
            f"{f}: {name} must be 1 to 3 ints of at least 1, or one int for two axes, "
            f"got {describe(value)}"
        )
    return values


def _integers(value: Any, axes: int) -> tuple[int, ...] | None:
    """Repeats an int for each axis, or converts a sequence of ints; None for anything else."""
    number = as_int(value)
    if number is not None:
        return (number,) * axes
    several = [as_int(v) for v in value] if isinstance(value, Sequence) else [None]
    return None if None in several else tuple(n for n in several if n is not None)


def paddings(
    f: str, padding: Padding, axes: int, *, ceil: bool = False
) -> tuple[tuple[int, int], ...] | None:
    """One pair (low, high) per spatial axis; None for 'SAME', 'VALID' and, with `ceil`, 'CEIL'."""
    names = ("SAME", "VALID", "CEIL") if ceil else ("SAME", "VALID")
    if isinstance(padding, str) and padding in names:
        return None
    several = isinstance(padding, Sequence)
    found = [_integers(pair, 1) for pair in padding] if several else []
    pairs = [(pair[0], pair[1]) for pair in found if pair and len(pair) == 2 and min(pair) >= 0]
    if not len(pairs) == len(found) == axes:
        raise (ValueError if several else TypeError)(
            f"{f}: padding must be {', '.join(map(repr, names))} or {axes} pair(s) (low, high) of "
            f"ints of at least 0, got {describe(padding)}"
        )
    return tuple(pairs)


def slide(
    f: str,
    x: jax.Array,
    window: Sequence[int],
    *,
    strides: Ints,
    padding: Padding,
    dilation: Ints = 1,
    ceil: bool = False,
) -> Windows:
    """The windows over x, shape (..., *spatial, c); raises a ValueError if they do not fit.

    With `ceil`, the padding may be "CEIL": a last window that reaches beyond the end of x.
    """
    axes = len(window)
    strides = per_axis(f, "strides", strides, axes)
    dilation = per_axis(f, "dilation", dilation, axes)
    pairs, sizes = paddings(f, padding, axes, ceil=ceil), x.shape[-1 - axes : -1]
    none = ((0, 0),) * axes
    w = Windows(sizes, tuple(window), strides, dilation, pairs or none)
    if padding == "SAME":
        missing = [
            max((math.ceil(size / s) - 1) * s + e - size, 0)
            for size, s, e in zip(sizes, strides, w.extent, strict=True)
        ]
        w = w._replace(padding=tuple((m // 2, m - m // 2) for m in missing))
    elif padding == "CEIL":
        w = w._replace(padding=tuple(map(_beyond, sizes, strides, w.extent)))
    least = tuple(max(e - sum(p), 1) for e, p in zip(w.extent, w.padding, strict=True))
    if any(size < n for size, n in zip(sizes, least, strict=True)):
        raise ValueError(
            f"{f}: x must have spatial axes of at least {least} for a window of {w.extent} and "
            f"padding {padding!r}, got {x.shape}"
        )
    return w


def _beyond(size: int, stride: int, extent: int) -> tuple[int, int]:
    """The padding for windows that cover an axis, all of which start inside it."""
    last = max(math.ceil((size - extent) / stride), 0)
    last = min(last, math.ceil(size / stride) - 1)
    return 0, max(last * stride + extent - size, 0)


def fold(x: jax.Array, axes: int) -> jax.Array:
    """Merges the leading axes of x, shape (..., *spatial, c), into one batch axis."""
    lead = x.ndim - axes - 1
    if lead < 2:
        return x if lead == 1 else x[None]
    return _reshape(x, (-1, *x.shape[lead:]), lambda *s: (s[0], *s[lead:]))


def unfold(y: jax.Array, like: jax.Array) -> jax.Array:
    """Splits the batch axis of y, shape (b, *spatial, c), into the leading axes of `like`."""
    lead = like.ndim - y.ndim + 1
    if lead < 2:
        return y if lead == 1 else y[0]
    shape = (*like.shape[:lead], *y.shape[1:])
    return _reshape(y, shape, lambda b, *s: (b, *(None,) * (lead - 1), *s))


def _reshape(
    x: jax.Array, shape: tuple[int, ...], spec: Callable[..., tuple[Any, ...]]
) -> jax.Array:
    """x.reshape(shape) that keeps the explicit sharding of axes; `spec` maps old axes to new."""
    sharding = explicit_sharding(x)
    if sharding is None or not any(sharding.spec):
        return x.reshape(shape)
    out = NamedSharding(sharding.mesh, PartitionSpec(*spec(*sharding.spec)))
    return jnp.reshape(x, shape, out_sharding=out)


def split_axis(x: jax.Array, axis: int, size: int) -> jax.Array:
    """Splits one axis of x into two; the second has the given size."""
    shape = (*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])
    return _reshape(x, shape, lambda *s: (*s[: axis + 1], None, *s[axis + 1 :]))


def lowest_of(f: str, x: AnyArray) -> np.ndarray:
    """The lowest number of the dtype of x, which is used as padding."""
    if jnp.iscomplexobj(x):
        raise TypeError(f"{f}: x must be real, got {x.dtype}")
    if x.dtype == jnp.bool_:
        return np.array(False)
    integer = jnp.issubdtype(x.dtype, jnp.integer)
    return np.array(jnp.iinfo(x.dtype).min if integer else -np.inf, x.dtype)


def taps(x: jax.Array, w: Windows, fill: Any = 0.0) -> Iterator[jax.Array]:
    """Yields the elements of x that each tap reads, shape (b, *out, c), in row-major order."""
    x = surround(x, w, fill)
    for t in itertools.product(*map(range, w.window)):
        start = tuple(map(operator.mul, t, w.dilation))
        stop = (x.shape[0], *map(operator.add, start, w.span), x.shape[-1])
        yield jax.lax.slice(x, (0, *start, 0), stop, (1, *w.strides, 1))


def surround(x: jax.Array, w: Windows, fill: Any = 0.0) -> jax.Array:
    """Pads x with `fill`."""
    pads = [(0, 0, 0), *((low, high, 0) for low, high in w.padding), (0, 0, 0)]
    return jax.lax.pad(x, jnp.asarray(fill, x.dtype), pads)


def tap(x: jax.Array, w: Windows, t: jax.Array) -> jax.Array:
    """The elements of the padded x that tap t reads, shape (b, *out, c); t may be traced."""
    zero, sizes = np.int32(0), (x.shape[0], *w.span, x.shape[-1])
    part = jax.lax.dynamic_slice(x, (zero, *(t * np.array(w.dilation, t.dtype)), zero), sizes)
    return jax.lax.slice(part, (0,) * x.ndim, sizes, (1, *w.strides, 1))


def stages(w: Windows) -> list[Windows]:
    """Splits w into windows along single axes, last axis first; applied in turn they equal w."""
    one, none = (1,) * len(w.sizes), ((0, 0),) * len(w.sizes)
    only = lambda i, rest, own: (*rest[:i], own[i], *rest[i + 1 :])
    return [
        Windows(
            (*w.sizes[: i + 1], *w.out[i + 1 :]),
            only(i, one, w.window),
            only(i, one, w.strides),
            only(i, one, w.dilation),
            only(i, none, w.padding),
        )
        for i in reversed(range(len(w.sizes)))
    ]


class Reach(NamedTuple):
    """Which taps read a position p of x; it is in block i at offset r: p + low = i·stride + r.

    Window o = i − q reads p with the tap t for which t·dilation = q·stride + r, if there is one.
    """

    shifts: tuple[tuple[int, ...], ...]  # all q that have a tap
    tap: np.ndarray  # row-major index of t, by q₁, r₁, q₂, r₂, …; −1 if there is no tap


def reach(w: Windows) -> Reach:
    """Computes which taps read each position of x."""
    counts = [(e - 1) // s + 1 for e, s in zip(w.extent, w.strides, strict=True)]
    number = np.full([q * s for q, s in zip(counts, w.strides, strict=True)], -1)
    at = tuple(slice(0, e, d) for e, d in zip(w.extent, w.dilation, strict=True))
    number[at] = np.arange(math.prod(w.window)).reshape(w.window)
    pairs = itertools.chain(*zip(counts, w.strides, strict=True))
    tap = number.reshape(*pairs)
    shifts = itertools.product(*map(range, counts))
    return Reach(tuple(q for q in shifts if (_of(tap, q) >= 0).any()), tap)


def _of(tap: np.ndarray, q: tuple[int, ...]) -> np.ndarray:
    return tap[tuple(itertools.chain(*((i, slice(None)) for i in q)))]


def spread(
    term: Callable[..., jax.Array], arrays: tuple[jax.Array, ...], w: Windows, r: Reach
) -> jax.Array:
    """Sums, at each position of x, over the windows that cover it: a transpose of `taps`.

    The sum has one term per shift q, so a single term if windows do not overlap. Each term is an
    array of the size of x; nothing is scattered.

    Args:
      term: (tap, *shifted) -> the contribution of the windows at one shift to each position. `tap`
        is the index of the tap, shape (1, 1, s₁, 1, s₂, …, 1), −1 if there is no tap; `shifted` are
        the arrays at these windows, shape (b, i₁, 1, i₂, 1, …, c); the result has shape
        (b, i₁, s₁, i₂, s₂, …, c).
      arrays: Arrays of shape (b, *out, c). `term` must return 0 where they are all 0.
      w: The windows.
      r: `reach(w)`.

    Returns:
      Shape (b, *sizes, c).
    """
    axes, last = len(w.sizes), [q - 1 for q in r.tap.shape[::2]]
    lows = [low for low, _ in w.padding]
    blocks = [-(-(low + size) // s) for low, size, s in zip(lows, w.sizes, w.strides, strict=True)]
    pads = [(q, i - o, 0) for q, i, o in zip(last, blocks, w.out, strict=True)]
    pads = [(0, 0, 0), *pads, (0, 0, 0)]
    padded = [jax.lax.pad(a, jnp.zeros((), a.dtype), pads) for a in arrays]
    starts, zero = [np.array(last, np.int32) - np.array(q, np.int32) for q in r.shifts], np.int32(0)
    numbers = [np.expand_dims(_of(r.tap, q), (0, *range(1, 2 * axes + 2, 2))) for q in r.shifts]

    def part(start, number):
        whole = lambda a: (a.shape[0], *blocks, a.shape[-1])
        shifted = (jax.lax.dynamic_slice(a, (zero, *start, zero), whole(a)) for a in padded)
        apart = tuple(range(2, 2 * axes + 1, 2))
        return term(number, *(jax.lax.expand_dims(a, apart) for a in shifted))

    total = part(starts[0], numbers[0])
    if len(starts) <= MOST_TERMS:
        for start, number in zip(starts[1:], numbers[1:], strict=True):
            total = total + part(start, number)
    else:
        rest = np.stack(starts[1:]), np.stack(numbers[1:])
        total, _ = jax.lax.scan(lambda sum_, at: (sum_ + part(*at), None), total, rest)
    whole = (i * s for i, s in zip(blocks, w.strides, strict=True))
    total = _reshape(
        total, (total.shape[0], *whole, total.shape[-1]), lambda b, *n: (b, *n[:-1:2], n[-1])
    )
    stop = (low + size for low, size in zip(lows, w.sizes, strict=True))
    return jax.lax.slice(total, (0, *lows, 0), (total.shape[0], *stop, total.shape[-1]))
