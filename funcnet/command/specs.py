"""Arguments written on a command line: `f32[8,16]`, `i32[8]<16`, `key`, `0.5`, `eps=1e-5`."""

import ast
import re
from math import isfinite
from typing import Any

import jax
import jax.numpy as jnp

from funcnet.check.subject import drawn

DTYPES = {
    "f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64",
    "c64": "complex64", "c128": "complex128", "bool": "bool",
    "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64",
    "u8": "uint8", "u16": "uint16", "u32": "uint32", "u64": "uint64",
}  # fmt: skip
SPEC = re.compile(
    r"(?P<dtype>[a-z]+\d*)\[(?P<shape>\d+(?: *, *\d+)*|)\](?:<(?P<high>\d+)|=(?P<fill>\S+))?"
)
GRAMMAR = (
    "dtype[shape] such as f32[8,16] (normal), i32[8]<16 (integers from 0 to 15), f32[16]=1 (all "
    "1), bool[3]; key; or a Python number"
)


def parse_argument(text: str, seed: int, *, draw: bool = True) -> Any:
    """Parses one argument.

    Args:
      text: See `GRAMMAR`.
      seed: Seed of the random numbers.
      draw: Whether to draw random numbers, or to return their shape and dtype.

    Raises:
      ValueError: If the text does not match `GRAMMAR`; the message is one line.
    """
    if text == "key":
        return jax.random.key(seed)
    match = SPEC.fullmatch(text)
    if match is None:
        value = _literal(text)
        if isinstance(value, bool | int | float):
            return value
        raise ValueError(f"argument {text!r} must be {GRAMMAR}")
    name = match["dtype"]
    if name not in DTYPES and name not in DTYPES.values():
        raise ValueError(f"argument {text!r}: dtype must be one of {', '.join(DTYPES)}, got {name}")
    dtype = jnp.dtype(DTYPES.get(name, name))
    if (
        dtype.itemsize == (16 if dtype.kind == "c" else 8)
        and dtype.kind in "fiuc"
        and not jax.config.read("jax_enable_x64")
    ):
        raise ValueError(f"argument {text!r}: {dtype} needs JAX_ENABLE_X64=1")
    shape = tuple(int(n) for n in match["shape"].split(",") if n)
    if match["fill"] is not None:
        try:
            value = float(match["fill"])
        except ValueError:
            raise ValueError(f"argument {text!r}: {match['fill']!r} is not a number") from None
        low, high = _limits(dtype)
        if dtype.kind in "iub":
            fits = low <= value <= high and value.is_integer()
        else:
            fits = low <= value <= high or not isfinite(value)
        if not fits:
            raise ValueError(f"argument {text!r}: {dtype} cannot hold {match['fill']}")
        return jnp.full(shape, value, dtype)
    if match["high"] is not None and dtype.kind not in "iu":
        raise ValueError(f"argument {text!r}: a range is for integers, not for {dtype}")
    high = int(match["high"]) if match["high"] is not None else 2
    if high < 1:
        raise ValueError(f"argument {text!r}: the upper limit must be at least 1")
    if high - 1 > _limits(dtype)[1]:
        raise ValueError(f"argument {text!r}: {dtype} cannot hold {high - 1}")
    spec = jax.ShapeDtypeStruct(shape, dtype)
    return drawn(spec, high=high, seed=seed) if draw else spec


def _limits(dtype: Any) -> tuple[float, float]:
    """The smallest and the largest finite number of a dtype."""
    if dtype.kind == "b":
        return 0, 1
    info = jnp.iinfo(dtype) if dtype.kind in "iu" else jnp.finfo(dtype)
    return float(info.min), float(info.max)


def _literal(text: str) -> Any:
    """The value of a Python literal, or the text itself if it is not a literal."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def parse_option(text: str, seed: int) -> tuple[str, Any]:
    """Parses `name=value`, where the value is an array, a key, a Python literal, or a string.

    Raises:
      ValueError: If an array does not match `GRAMMAR`; the message is one line.
    """
    name, _, value = text.partition("=")
    is_array = re.match(r"[a-z]+\d*\[", value) is not None
    return name, parse_argument(value, seed) if value == "key" or is_array else _literal(value)


def is_option(text: str) -> bool:
    """Whether a text has the form `name=value`."""
    return re.match(r"[A-Za-z_]\w*=", text) is not None
