"""The arguments and options of attention, and what they must be."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.core import Tracer

from funcnet._arguments import as_int, check_key, check_number, describe
from funcnet.ops._types import Number

LIBRARIES = ("cudnn", "xla")


class Options(NamedTuple):
    """The options of `dot_product_attention` that say how scores and weights are computed."""

    causal: bool
    scale: float | None
    window: int | tuple[int, int] | None
    softcap: float | None
    dropout_rate: Number

    @property
    def span(self) -> tuple[int | None, int | None]:
        """The numbers of earlier and later keys that a query sees; None if there is no limit."""
        w = self.window
        pair = w if isinstance(w, tuple) else (w, w)
        before, after = (None if n is None else int(n) for n in pair)  # not NumPy's
        return before, 0 if self.causal else after

    @property
    def drops(self) -> bool:
        """Whether there is dropout; if its rate is traced, there may be."""
        return isinstance(self.dropout_rate, Tracer) or bool(self.dropout_rate)


class Arrays(NamedTuple):
    """The arguments of `dot_product_attention`."""

    q: Any
    k: Any
    v: Any
    mask: Any
    lengths: Any
    bias: Any
    dropout_key: Any


def check(arrays: Arrays, options: Options, implementation: str | None, return_lse: bool) -> None:
    """Raises an error, in one line, unless everything fits."""
    q, k, v, mask, lengths, bias, dropout_key = arrays
    f, shapes = "dot_product_attention", f"q {q.shape}, k {k.shape}, v {v.shape}"
    fits = q.ndim >= 3 and q.shape[:-3] == k.shape[:-3] == v.shape[:-3] and k.ndim == v.ndim
    if not (fits and k.shape[-3:-1] == v.shape[-3:-1] and 0 < q.shape[-1] == k.shape[-1]):
        raise ValueError(
            f"{f}: q, k and v must have shapes (..., T, H, d), (..., U, K, d) and (..., U, K, e), "
            f"got {shapes}"
        )
    if k.shape[-2] == 0 or q.shape[-2] % k.shape[-2]:
        raise ValueError(
            f"{f}: q must have a multiple of {k.shape[-2]} heads, those of k, got {shapes}"
        )
    if not (jnp.issubdtype(q.dtype, jnp.floating) and q.dtype == k.dtype == v.dtype):
        raise ValueError(
            f"{f}: q, k and v must have one floating dtype, got {q.dtype}, {k.dtype}, {v.dtype}"
        )
    batch, whole = q.shape[:-3], (*q.shape[:-3], q.shape[-2], q.shape[-3], k.shape[-3])
    for name, x, what, dtype in (
        ("mask", mask, "boolean", jnp.bool_),
        ("bias", bias, "floating", jnp.floating),
    ):
        if x is not None and not (jnp.issubdtype(x.dtype, dtype) and _broadcasts(x.shape, whole)):
            raise ValueError(
                f"{f}: {name} must be {what} and broadcast to {whole}, got {x.dtype} {x.shape}"
            )
    if lengths is not None and not (
        jnp.issubdtype(lengths.dtype, jnp.integer) and lengths.shape == batch
    ):
        raise ValueError(
            f"{f}: lengths must be integers of shape {batch}, got {lengths.dtype} {lengths.shape}"
        )
    if options.scale is not None:
        check_number(f, "scale", options.scale)
    if options.softcap is not None:
        check_number(f, "softcap", options.softcap, above=0)
    check_number(f, "dropout_rate", options.dropout_rate, at_least=0, below=1)
    if options.drops:
        check_key(f, dropout_key, "dropout_key")
    w = options.window
    pair = [as_int(n) for n in (w if isinstance(w, tuple) else (w, w))]
    if w is not None and not (len(pair) == 2 and all(n is not None and n >= 0 for n in pair)):
        raise ValueError(
            f"{f}: window must be an integer or a pair of integers, at least 0, got {describe(w)}"
        )
    if implementation not in (None, "tiles", *LIBRARIES):
        raise ValueError(
            f"{f}: implementation must be None, 'tiles', 'cudnn' or 'xla', got {implementation!r}"
        )
    for name, is_used in (
        ("softcap", options.softcap is not None),
        ("dropout_rate", options.drops),
        ("return_lse", return_lse),
    ):
        if is_used and implementation in LIBRARIES:
            raise ValueError(f"{f}: {name} cannot be used with implementation {implementation!r}")


def _broadcasts(shape: tuple[Any, ...], whole: tuple[Any, ...]) -> bool:
    last = whole[len(whole) - len(shape) :]
    return len(shape) <= len(whole) and all(a in (1, b) for a, b in zip(shape, last, strict=True))
