"""What a gradient keeps between its two passes, before XLA removes what it can."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcnet._arguments import check_number
from funcnet.check.report import CheckFailed
from funcnet.check.subject import subject, type_name


class Residual(NamedTuple):
    """An array that `jax.vjp` keeps."""

    type: Any  # its shape and dtype
    argument: int | None  # the number of the leaf of the arguments that it is, if it is one

    @property
    def nbytes(self) -> int:
        """Its size; of a PRNG key, that of two 32-bit words."""
        return size_of(self.type)


def size_of(type_: Any) -> int:
    """Bytes of an array of this shape and dtype."""
    is_key = jnp.issubdtype(type_.dtype, jax.dtypes.prng_key)
    return math.prod(type_.shape) * (8 if is_key else type_.dtype.itemsize)


def residuals(f: Callable[..., Any], floats: Any, others: Any) -> list[Residual]:
    """The leaves of the function that `jax.vjp` returns for f(floats, others), each once.

    Args:
      f: A function of two pytrees, of which the first is differentiated.
      floats: Floating arrays, or their `jax.ShapeDtypeStruct`s.
      others: Any arrays.
    """
    saved = lambda floats, others: jax.tree.leaves(jax.vjp(lambda v: f(v, others), floats)[1])
    jaxpr = jax.make_jaxpr(saved)(floats, others).jaxpr
    number = {v: i for i, v in enumerate(jaxpr.invars)}
    kept = dict.fromkeys(v for v in jaxpr.outvars if not hasattr(v, "val"))  # no constants
    return [Residual(v.aval, number.get(v)) for v in kept]


def assert_residuals(f: Callable[..., Any], *args: Any, at_most: int, **static: Any) -> None:
    """Fails if the gradient of f keeps more than `at_most` bytes between its two passes.

    It counts the leaves of the function that `jax.vjp(f, *args)` returns: everything that is kept,
    arguments too, before XLA removes what it can. f need not call any rule.

    Args:
      f: A function.
      *args: Its arguments, as in `check_rule`: arrays, or `jax.ShapeDtypeStruct`s.
      at_most: The budget in bytes.
      **static: Its keyword arguments.

    Raises:
      CheckFailed: If more is kept; the message lists the largest residuals.

    >>> import jax.numpy as jnp
    >>> assert_residuals(jnp.sin, jnp.ones(10, jnp.float32), at_most=40)
    """
    check_number("assert_residuals", "at_most", at_most, at_least=0)
    s = subject(f, args, static)
    found = residuals(s.outputs, s.floats, s.others)
    total = sum(r.nbytes for r in found)
    if total > at_most:
        largest = sorted(found, key=lambda r: r.nbytes, reverse=True)
        kept = ", ".join(f"{type_name(r.type)} ({r.nbytes:,})" for r in largest[:8])
        more = f", and {len(largest) - 8} more" if len(largest) > 8 else ""
        raise CheckFailed(
            f"{s.name} keeps {total:,} bytes for its gradient, more than {at_most:,}: {kept}{more}"
        )
