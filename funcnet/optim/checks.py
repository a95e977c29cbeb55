"""Checks of the arguments of optimizers; each error message is one line."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from funcnet._arguments import (
    check_arrays,
    check_count,
    check_dtype,
    check_function,
    check_number,
    check_tree,
    describe,
    kind,
)


def check_learning_rate(function: str, learning_rate: ArrayLike | optax.Schedule) -> None:
    """Raises an error unless `learning_rate` is a schedule or a number of at least 0."""
    if callable(learning_rate):
        check_function(function, "learning_rate", learning_rate, 1)
    else:
        check_number(function, "learning_rate", learning_rate, at_least=0)


def check_scheduled(function: str, value: Any) -> None:
    """Raises an error unless a schedule returned a number; never waits for a JAX array's value."""
    is_scalar = isinstance(value, jax.Array) and value.shape == ()
    if not (is_scalar and (is_floating(value) or jnp.issubdtype(value.dtype, jnp.integer))):
        check_number(function, "what the schedule returns", value, at_least=0)


def check_choice(function: str, argument: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises a ValueError unless `value` is one of `choices`."""
    if not (isinstance(value, str) and value in choices):
        raise ValueError(f"{function}: {argument} must be one of {choices}, got {describe(value)}")


def check_params(function: str, params: Any) -> Any:
    """Returns `params`; raises a ValueError if they were not given to `update`."""
    if params is None:
        raise ValueError(f"{function}: update needs params: call update(grads, state, params)")
    return params


def check_state(function: str, state: Any, State: type[Any]) -> None:
    """Raises a TypeError unless `state` has the type that `init` of this optimizer returns."""
    if not isinstance(state, State):
        raise TypeError(
            f"{function}: state must be that of {function}, {State.__name__}, got {kind(state)}"
        )
    if "count" in state._fields:
        check_count(function, "state.count", state.count)


def check_grads(function: str, grads: Any, **others: Any) -> None:
    """Raises an error unless `grads` has the structure and the shapes of each tree in `others`.

    (JAX would broadcast a gradient of another shape.) A None in grads matches any subtree.
    """
    check_arrays(function, "grads", grads)
    for name, like in others.items():
        if name == "params" and like is None:
            continue
        check_arrays(function, name, like)
        if grads is None and jax.tree.leaves(like):
            raise TypeError(f"{function}: grads must be a tree like {name}, got None")
        if not _alike(grads, like):
            check_tree(function, "grads", grads, name, _without(grads, like))


def _without(grads: Any, like: Any) -> Any:
    """Returns `like` without the subtrees where grads is None, even if the structures differ."""
    is_none = lambda g: g is None
    try:
        return jax.tree.map(lambda g, x: g if g is None else x, grads, like, is_leaf=is_none)
    except ValueError:
        leaves = jax.tree.leaves_with_path(grads, is_leaf=is_none)
        cut = [path for path, g in leaves if g is None]
        below = lambda path: any(path[: len(c)] == c for c in cut)
        return jax.tree.map_with_path(lambda path, x: None if below(path) else x, like)


def check_gradient(
    function: str, path: Any, g: jax.Array, p: jax.Array, *, may_be_complex: bool
) -> None:
    """Raises a TypeError unless g and p are floats: an integer would truncate the step."""
    for name, x in (("grads", g), ("params", p)):
        if not (is_floating(x) or (may_be_complex and jnp.iscomplexobj(x))):
            name += jax.tree_util.keystr(path)
            floating = "floating" if may_be_complex else "real floating"
            raise TypeError(f"{function}: {name} must be of a {floating} dtype, got {x.dtype}")


def check_kept(function: str, path: Any, g: jax.Array, result: jax.Array, dtype: Any) -> None:
    """Raises a TypeError if the cast of a step or a state to `dtype` would drop imaginary parts."""
    if jnp.iscomplexobj(result) and not jnp.issubdtype(dtype, jnp.complexfloating):
        name = f"grads{jax.tree_util.keystr(path)}"
        raise TypeError(f"{function}: {name} must be real, as params and state are, got {g.dtype}")


def check_state_dtype(function: str, argument: str, dtype: Any) -> Any:
    """Returns a real floating dtype as such, or None; raises a TypeError for anything else."""
    if dtype is None:
        return None
    found = check_dtype(function, argument, dtype)
    if not jnp.issubdtype(found, jnp.floating):
        raise TypeError(f"{function}: {argument} must be a real floating dtype, got {found}")
    return found


def is_floating(x: jax.Array) -> bool:
    """Whether x has a real floating dtype."""
    return jnp.issubdtype(x.dtype, jnp.floating)


def _alike(a: Any, b: Any) -> bool:
    """Whether two trees have the same structure and the same shapes."""
    (a_leaves, a_tree), (b_leaves, b_tree) = jax.tree.flatten(a), jax.tree.flatten(b)
    shapes = zip(map(np.shape, a_leaves), map(np.shape, b_leaves), strict=False)
    return a_tree == b_tree and all(x == y for x, y in shapes)
