"""Deliberate gradients: what a rule is meant to return instead of the derivative.

A straight-through estimator differentiates another function, its truth. A clipped gradient is not
linear in dy, so that it is the derivative of no function; its intent gives the cotangents.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcnet.check.failures import line
from funcnet.check.reference import Outputs, cotangents, gradients
from funcnet.check.subject import Subject, is_floating, subject
from funcnet.check.tracing import twin


class Declared(NamedTuple):
    """The function whose gradient a rule is meant to have."""

    outputs: Outputs
    name: str  # "truth" or "intent"

    @property
    def against(self) -> str:
        """The name in messages."""
        return f"the {self.name}"


def declared_truth(
    s: Subject, truth: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Declared:
    """The truth, which must have the outputs of the function."""
    found = subject(truth, args, kwargs)
    types = lambda s: [y.shape for y in jax.eval_shape(s.outputs, s.floats, s.others)]
    try:
        got = types(found)
    except Exception as e:
        raise ValueError(f"check_rule: truth must take these arguments, it raises {line(e)}") from e
    if got != types(s):
        raise ValueError(
            f"check_rule: truth must return the shapes {types(s)} as {s.name}, got {got}"
        )
    return Declared(found.outputs, "truth")


def declared_intent(s: Subject, intent: Callable[..., Any]) -> Declared:
    """The plain forward of the function, with the intended cotangents as its rule."""
    plain = twin(s.outputs)
    intended = jax.custom_vjp(plain)

    def bwd(saved: Any, dout: Any) -> Any:
        floats, others = saved
        # JAX copies the dtypes of the arguments, and a literal in intent may be wider.
        found = _called(s, intent, floats, others, dout)
        pairs = zip(found, floats, strict=True)
        return tuple(jnp.asarray(d, leaf.dtype) for d, leaf in pairs), None

    intended.defvjp(lambda floats, others: (plain(floats, others), (floats, others)), bwd)
    try:
        dout = cotangents(plain, s.floats, s.others, 0)
        jax.eval_shape(gradients(intended), s.floats, s.others, dout)
    except _Unfit as e:
        raise ValueError(str(e)) from None
    except Exception as e:
        raise ValueError(
            f"check_rule: intent must take the arguments, then dy, it raises {line(e)}"
        ) from e
    return Declared(intended, "intent")


class _Unfit(ValueError):
    """What intent returns does not fit the arguments."""


class _Place(NamedTuple):
    """Stands for an array in the arguments; `number` is that of the float, -1 for all others."""

    number: int


def _called(s: Subject, intent: Callable[..., Any], floats: Any, others: Any, dy: Any) -> list[Any]:
    """The intended cotangents, one for each of the floats."""
    args, kwargs = s.inputs(floats, others)
    found = intent(*args, _like_output(s, dy), **kwargs)
    places = [_Place(i) for i in range(len(floats))], [_Place(-1) for _ in others]
    args, kwargs = s.inputs(*places)
    leaves = lambda tree: jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, _Place))
    is_place = lambda leaf: isinstance(leaf, _Place)
    values = [*args, *kwargs.values()]
    arrays = [value for value in values if any(map(is_place, leaves(value)))]
    found = found if isinstance(found, tuple) else (found,)
    given = arrays if len(found) == len(arrays) else values
    if len(found) != len(given):
        raise _Unfit(
            f"check_rule: intent must return {len(arrays)} cotangents, one for each argument with "
            f"arrays, got {len(found)}"
        )
    dargs = [jnp.zeros_like(leaf) for leaf in floats]
    for value, d in zip(given, found, strict=True):
        for place, part in zip(leaves(value), _spread(d, value, is_place), strict=True):
            if not is_place(place) or place.number < 0 or part is None:
                continue
            if jnp.shape(part) != floats[place.number].shape:
                raise _Unfit(
                    "check_rule: intent must return a cotangent of shape "
                    f"{floats[place.number].shape} for {s.names[place.number]}, "
                    f"got {jnp.shape(part)}"
                )
            dargs[place.number] = part
    return dargs


def _spread(d: Any, value: Any, is_place: Callable[[Any], bool]) -> list[Any]:
    """The leaves of a cotangent, with None repeated for each leaf of the argument below it."""
    like = jax.tree.map(lambda _: 0, value, is_leaf=is_place)
    is_none = lambda leaf: leaf is None
    return jax.tree.leaves(jax.tree.broadcast(d, like, is_leaf=is_none), is_leaf=is_none)


def _like_output(s: Subject, dout: Any) -> Any:
    """The cotangents in the structure of the output; None for what has none."""
    out = jax.eval_shape(s.call, s.floats, s.others)
    leaves, tree = jax.tree.flatten(out)
    floats = iter(dout)
    return jax.tree.unflatten(tree, [next(floats) if is_floating(y) else None for y in leaves])
