"""Options of a rule that may be traced: numbers without a derivative, for `jax.vmap` over them."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from funcnet._arrays import wide_dtype
from funcnet._door import is_array_type, members


def may_be_traced(hint: Any) -> bool:
    """Whether the annotation of an option is the union of float and an array type."""
    hints = members(hint)
    return float in hints and any(map(is_array_type, hints))


def widened(number: jax.Array, args: tuple[Any, ...]) -> jax.Array:
    """Casts a number to the dtype of the first argument, but real, and float32 at least."""
    dtypes = (jax.typeof(x).dtype for x in jax.tree.leaves(args))
    dtype = next(filter(lambda d: jnp.issubdtype(d, jnp.inexact), dtypes), jnp.dtype(float))
    return number.astype(wide_dtype(jnp.finfo(dtype).dtype))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def constant(name: str, option: str, number: jax.Array) -> jax.Array:
    """The number, as an option of the rule `name`; its derivative is an error, not 0."""
    del name, option
    return number


@constant.defjvp
def _(name, option, *_):
    raise TypeError(
        f"{name}: {option} has no derivative by a hand-written rule; "
        f"funcnet.autodiff(f) has one, for a function f that calls {name}"
    )


def as_bits(number: jax.Array) -> jax.Array:
    """The number as an integer of the same bits, which is an argument without a cotangent."""
    return jax.lax.bitcast_convert_type(number, f"uint{8 * number.dtype.itemsize}")


def _as_numbers(options: dict[str, jax.Array], args: tuple[Any, ...]) -> dict[str, jax.Array]:
    cast = jax.lax.bitcast_convert_type
    numbers = {k: cast(v, f"float{8 * v.dtype.itemsize}") for k, v in options.items()}
    return {k: widened(v, args) for k, v in numbers.items()}


def with_options(*functions: Callable[..., Any]) -> tuple[Callable[..., Any], ...]:
    """A rule's primal, fwd and bwd for one more first argument, a dict of options by `as_bits`."""
    primal, fwd, bwd = functions

    @functools.wraps(primal)
    def primal_with(options: Any, *args: Any, **static: Any) -> Any:
        return primal(*args, **static, **_as_numbers(options, args))

    @functools.wraps(fwd)
    def fwd_with(options: Any, *args: Any, **static: Any) -> Any:
        numbers = _as_numbers(options, args)
        pair = fwd(*args, **static, **numbers)
        is_pair = isinstance(pair, tuple) and len(pair) == 2
        return (pair[0], (pair[1], numbers)) if is_pair else pair

    @functools.wraps(bwd)
    def bwd_with(saved: Any, dout: Any, **static: Any) -> Any:
        residuals, numbers = saved
        dargs = bwd(residuals, dout, **static, **numbers)
        return (None, *dargs) if isinstance(dargs, tuple) else dargs

    signature = inspect.signature(primal)
    first = inspect.Parameter("options", inspect.Parameter.POSITIONAL_ONLY)
    parameters = [first, *signature.parameters.values()]
    primal_with.__dict__["__signature__"] = signature.replace(parameters=parameters)
    return primal_with, fwd_with, bwd_with
