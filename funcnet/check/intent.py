"""What a rule is declared to compute: the gradient of a truth, or an intent.

A truth is a function whose autodiff is right. An intent gives the cotangents themselves, for rules
that no function has, because they are not linear in the output's cotangent (a clipped gradient).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.check.evidence import INTENT, TRUTH, Reference
from funcnet.check.failures import line
from funcnet.check.reference import Outputs, cotangents, pullback
from funcnet.check.subject import Subject, check_function, is_floating
from funcnet.check.tangents import plain_of


def declared(s: Subject, truth: Any, intent: Any) -> Reference | None:
    """The reference that the caller of `check_rule` declares, if any.

    Raises:
      ValueError: If the truth has other outputs than the function, if the intent has other
        cotangents than its arguments, or if either raises.
    """
    if truth is not None:
        return Reference(_in_the_types_of(s, _checked_truth(s, truth).outputs), TRUTH)
    if intent is None:
        return None
    outputs = _intended(s, plain_of(s), intent)
    try:
        dout = cotangents(s.outputs, s.floats, s.others, 0)
        jax.eval_shape(pullback(outputs), s.floats, s.others, dout)
    except _Misfit:
        raise
    except Exception as e:
        must = "intent must take these arguments and the cotangent of the output"
        raise ValueError(f"check_rule: {must}, it raises {line(e)}") from e
    return Reference(outputs, INTENT)


def check_options(truth: Any, intent: Any) -> None:
    """Raises unless each is a function or None, and one of them is None."""
    for name, f in (("truth", truth), ("intent", intent)):
        if f is not None:
            check_function("check_rule", name, f)
    if truth is not None and intent is not None:
        raise ValueError("check_rule: truth and intent exclude each other, got both")


def _checked_truth(s: Subject, truth: Any) -> Subject:
    """The subject of the truth, which must have the outputs of the function."""
    found = s._replace(function=truth)
    types = lambda s: [y.shape for y in jax.eval_shape(s.outputs, s.floats, s.others)]
    try:
        got = types(found)
    except Exception as e:
        raise ValueError(f"check_rule: truth must take these arguments, it raises {line(e)}") from e
    if got != types(s):
        raise ValueError(
            f"check_rule: truth must return the shapes {types(s)} as {s.name}, got {got}"
        )
    return found


def _in_the_types_of(s: Subject, truth: Outputs) -> Outputs:
    """The truth with the dtypes of the function's outputs, which may not be those of arguments."""

    def outputs(floats: Any, others: Any) -> tuple[Any, ...]:
        types = jax.eval_shape(s.outputs, floats, others)
        return tuple(
            jnp.asarray(y, t.dtype) for y, t in zip(truth(floats, others), types, strict=True)
        )

    return outputs


class _Misfit(ValueError):
    """The cotangents of an intent do not fit the arguments."""


def _intended(s: Subject, plain: Outputs, intent: Callable[..., Any]) -> Outputs:
    """The outputs of the plain forward with the cotangents that `intent` gives."""

    def bwd(saved: Any, dout: Any) -> Any:
        floats, others = saved
        args, kwargs = s.rebuilt(floats, others)
        tree = jax.eval_shape(s.call, floats, others)
        dargs = intent(*args, _in_structure(dout, tree), **kwargs)
        return _of_floats(s, dargs, floats), None

    outputs = jax.custom_vjp(lambda floats, others: plain(floats, others))
    outputs.defvjp(lambda floats, others: (plain(floats, others), (floats, others)), bwd)
    return outputs


def _in_structure(dout: Any, out: Any) -> Any:
    """The cotangents of the floating leaves in the structure of the output; float0 elsewhere."""
    floats = iter(dout)
    zero = lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0)
    return jax.tree.map(lambda y: next(floats) if is_floating(y) else zero(y), out)


class _Place:
    """Marks the place of a floating leaf among the arguments."""

    def __init__(self, number: int):
        self.number = number


def _of_floats(s: Subject, dargs: Any, floats: Any) -> tuple[Any, ...]:
    """The cotangents that an intent returns, one for each floating leaf; None is zero."""
    args, kwargs = s.rebuilt(tuple(map(_Place, range(len(floats)))), s.others)
    args = [*args, *(kwargs[name] for name in s.parameters[len(args) :])]
    is_none = lambda d: d is None
    places = [jax.tree.leaves(arg, is_leaf=is_none) for arg in args]
    have = [i for i, leaves in enumerate(places) if any(isinstance(p, _Place) for p in leaves)]
    if not isinstance(dargs, tuple | list) or len(dargs) != len(args):
        if len(have) > 1:
            must = f"a tuple of {len(args)} cotangents, one for each argument"
            raise _Misfit(f"check_rule: intent must return {must}, got {type(dargs).__name__}")
        dargs = [dargs if i in have else None for i in range(len(args))]
    found = [jnp.zeros_like(leaf) for leaf in floats]
    for i in have:
        try:
            spread = jax.tree.broadcast(dargs[i], args[i], is_leaf=is_none)
        except ValueError:
            raise _Misfit(
                f"check_rule: intent must return the structure of {s.parameters[i]} for it"
            ) from None
        for place, d in zip(places[i], jax.tree.leaves(spread, is_leaf=is_none), strict=True):
            if isinstance(place, _Place) and d is not None:
                leaf, name = floats[place.number], s.names[place.number]
                if jnp.shape(d) != leaf.shape:
                    must = f"the shape {list(leaf.shape)} for {name}, got {list(jnp.shape(d))}"
                    raise _Misfit(f"check_rule: intent must return {must}")
                found[place.number] = jnp.asarray(d, leaf.dtype)
    return tuple(found)
