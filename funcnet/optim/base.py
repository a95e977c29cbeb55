"""What the optimizers share: Optax's protocol around equations that are written for one leaf."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from funcnet.optim.checks import check_gradient, check_params, check_scalar


def leafwise(
    function: str,
    State: type[Any],
    step: Callable[..., tuple[jax.Array, ...]],
    *,
    initial: ArrayLike = 0.0,
    reads: Callable[[optax.Params], optax.Params] | None = None,
    **scalars: ArrayLike | optax.Schedule,
) -> optax.GradientTransformation:
    """An optimizer from its equations for one leaf; `map_leaves` says in which dtype they are.

    Args:
      function: The optimizer's name, for error messages.
      State: A NamedTuple of the step count and any number of trees like params.
      step: `(g, *leaves of the state, **scalars) -> (update, *new leaves of the state)`.
      initial: The initial value of the trees of the state.
      reads: params -> a tree like params, whose leaf `step` gets after those of the state. Without
        it `update` needs no params.
      **scalars: The hyperparameters; a callable is a schedule and is called with the step count.

    Returns:
      The pair (init, update) of Optax.
    """

    def init(params: optax.Params) -> Any:
        trees = (_accumulators(params, initial) for _ in State._fields[1:])
        return State(jnp.zeros((), jnp.int32), *trees)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        count, *trees = state
        others = () if reads is None else (reads(check_params(function, params)),)
        now = {name: _at(function, value, count) for name, value in scalars.items()}
        updates, *trees = map_leaves(function, step, updates, trees, others, now)
        return updates, State(optax.safe_increment(count), *trees)

    return optax.GradientTransformation(init, update)


def map_leaves(
    function: str,
    step: Callable[..., tuple[jax.Array, ...]],
    grads: optax.Updates,
    state: Any,
    others: Any,
    scalars: dict[str, ArrayLike],
) -> tuple[Any, ...]:
    """The trees of `step(g, *leaves of state, *leaves of others, **scalars)`.

    Everything is handed to `step` in one dtype, the widest among float32 and those of the leaves.
    Its first result, the update, is cast to the dtype of the gradient; the others to that of the
    state, which thus never changes. Where a gradient is None so is the update, and the state stays.
    """
    is_none = lambda g: g is None

    def leaf(path: Any, g: Any, *rest: Any) -> tuple[Any, ...]:
        old = rest[: len(state)]
        if g is None:
            return None, *old
        g, rest = jnp.asarray(g), tuple(map(jnp.asarray, rest))
        check_gradient(function, path, g, *rest)
        dtype = _widest(g, *rest)
        cast = lambda x: jnp.asarray(x, dtype)
        update, *new = step(cast(g), *map(cast, rest), **jax.tree.map(cast, scalars))
        return update.astype(g.dtype), *(n.astype(o.dtype) for n, o in zip(new, old, strict=True))

    rows = jax.tree.map_with_path(leaf, grads, *state, *others, is_leaf=is_none)
    column = lambda i: jax.tree.map(lambda _, row: row[i], grads, rows, is_leaf=is_none)
    return tuple(map(column, range(1 + len(state))))


def divide_by_root(m: jax.Array, h: jax.Array, eps: jax.Array, eps_placement: str) -> jax.Array:
    """m/(√h + ε) if ε is "outside", m/√(h + ε) if "inside"; 0 where the divisor is 0.

    A divisor of 0 means that ε is 0 and so was every gradient, of which the formula makes 0/0.
    """
    root = jnp.sqrt(h + eps) if eps_placement == "inside" else jnp.sqrt(h) + eps
    return jnp.where(root == 0, 0, m / jnp.where(root == 0, 1, root))


def _at(function: str, value: ArrayLike | optax.Schedule, count: jax.Array) -> ArrayLike:
    """`value`, or what it is at this step if it is a schedule."""
    if callable(value):
        value = value(count)
        check_scalar(function, "what the schedule returns", value)
    return value


def _accumulators(params: optax.Params, value: ArrayLike) -> optax.Params:
    """A tree like params, in float32 at least: in bfloat16, of 8 bits, 1 + 2⁻⁹ is 1."""
    return jax.tree.map(lambda p: jnp.full_like(p, value, dtype=_widest(jnp.asarray(p))), params)


def _widest(*arrays: jax.Array) -> Any:
    """The widest floating dtype among float32 and those of `arrays`."""
    dtypes = [x.dtype for x in arrays if jnp.issubdtype(x.dtype, jnp.floating)]
    return max([jnp.dtype("float32"), *dtypes], key=lambda dtype: jnp.finfo(dtype).bits)
