"""Shared code of the optimizers: wraps equations for one leaf in Optax's protocol."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from funcnet._arguments import check_arrays
from funcnet.optim.checks import (
    check_gradient,
    check_grads,
    check_kept,
    check_params,
    check_scheduled,
    check_state,
)


def leafwise(
    function: str,
    State: type[Any],
    step: Callable[..., tuple[jax.Array, ...]],
    *,
    initial: ArrayLike = 0.0,
    real: tuple[str, ...] = (),
    dtypes: Mapping[str, Any] = MappingProxyType({}),
    reads: Callable[[optax.Params], optax.Params] | None = None,
    **scalars: ArrayLike | optax.Schedule,
) -> optax.GradientTransformation:
    """Makes an optimizer from its equations for one leaf; `map_leaves` describes the dtypes.

    Args:
      function: The optimizer's name, for error messages.
      State: A NamedTuple class with the step count and then any number of trees like params.
      step: `(g, *leaves of the state, **scalars) -> (update, *new leaves of the state)`.
      initial: The initial value of the trees of the state.
      real: The names of the trees that are real even for complex parameters.
      dtypes: The dtypes of trees by their names, for real parameters; None for that of `widest`.
      reads: A function params -> tree like params; `step` gets its leaves after those of the state.
        If it is None, `update` needs no params.
      **scalars: The hyperparameters; a callable is a schedule and is called with the step count.

    Returns:
      An `optax.GradientTransformation`, the pair (init, update).
    """

    def init(params: optax.Params) -> Any:
        check_arrays(function, "params", params)
        tree = lambda name: _accumulators(params, initial, name in real, dtypes.get(name))
        return State(jnp.zeros((), jnp.int32), *map(tree, State._fields[1:]))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        check_state(function, state, State)
        count, *trees = state
        names = (f"state.{name}" for name in State._fields[1:])
        check_grads(function, updates, params=params, **dict(zip(names, trees, strict=True)))
        others = () if reads is None else (reads(check_params(function, params)),)
        now = {name: _at(function, value, count) for name, value in scalars.items()}
        updates, *trees = map_leaves(function, step, updates, params, trees, others, now)
        return updates, State(optax.safe_increment(count), *trees)

    return transformation(function, init, update)


def transformation(
    function: str, init: Callable[..., Any], update: Callable[..., Any]
) -> optax.GradientTransformation:
    """Makes the pair (init, update), named so that Python's messages name the optimizer."""
    init.__qualname__, update.__qualname__ = f"{function}.init", f"{function}.update"
    return optax.GradientTransformation(init, update)


def map_leaves(
    function: str,
    step: Callable[..., tuple[jax.Array, ...]],
    grads: optax.Updates,
    params: Any,
    state: Any,
    others: Any,
    scalars: dict[str, ArrayLike],
    *,
    is_step: bool = True,
) -> tuple[Any, ...]:
    """Maps `step(g, *leaves of state, *leaves of others, **scalars)` over the leaves.

    All arguments of `step` are cast to one precision, the widest among float32 and the leaves.
    If `is_step`, the first result is a step, which is cast to the dtype of the parameter, because
    the dtype of the gradient may be too narrow for it. Otherwise it is a changed gradient, which
    keeps the dtype of the gradient if the parameter has the same, and else is cast to the widest
    among float32 and the two. Without params both kinds are cast to the dtype of the gradient. The
    other results are cast to the dtypes of the state, which therefore never change.

    If a gradient is None, the update is None and the state does not change. If a gradient has dtype
    float0, as for an integer parameter, the state does not change either; then a step is 0, and a
    changed gradient is float0.

    Returns:
      The tree of first results, and one tree for each tree of the state.
    """
    is_none = lambda g: g is None
    scalars_as = cache(lambda dtype: {k: jnp.asarray(x, dtype) for k, x in scalars.items()})

    def leaf(path: Any, g: Any, p: Any, *rest: Any) -> tuple[Any, ...]:
        old = rest[: len(state)]
        if g is None:
            return None, *old
        if getattr(g, "dtype", None) == jax.dtypes.float0:
            return g if params is None or not is_step else jnp.zeros_like(p), *old
        g, p, rest = jnp.asarray(g), jnp.asarray(p), tuple(map(jnp.asarray, rest))
        check_gradient(function, path, g, p, may_be_complex=is_step)
        dtype = widest(g, p, *rest)
        cast = lambda x: jnp.asarray(x, as_complex_as(x, dtype))
        with jax.numpy_dtype_promotion("standard"):  # real numbers times complex arrays
            results = step(cast(g), *map(cast, rest), **scalars_as(dtype))
        first = p.dtype if is_step or g.dtype == p.dtype else widest(g, p)
        dtypes = first, *(o.dtype for o in rest[: len(old)])
        for result, kept in zip(results, dtypes, strict=True):
            check_kept(function, path, g, result, kept)
        return tuple(result.astype(kept) for result, kept in zip(results, dtypes, strict=True))

    like = grads if params is None else params
    rows = jax.tree.map_with_path(leaf, grads, like, *state, *others, is_leaf=is_none)
    column = lambda i: jax.tree.map(lambda _, row: row[i], grads, rows, is_leaf=is_none)
    return tuple(map(column, range(1 + len(state))))


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _divide_by_root(m: jax.Array, h: jax.Array, eps: jax.Array, eps_placement: str) -> jax.Array:
    """m/(√h + ε) if ε is "outside", m/√(h + ε) if it is "inside"; 0 where the divisor is 0.

    If the divisor is 0, ε and all gradients so far are 0, and the formula would give 0/0.

    The derivative of √h is taken as 0 at h = 0, where it is infinite. This makes the derivative of
    the step u = m/(√h + ε) correct: h is 0 only if all gradients were 0, and as a function of one
    gradient, √h is proportional to |g|. Its term −m (√h)′/(√h + ε)² in ∂u/∂g vanishes with m as
    g → 0, and (∂m/∂g)/ε remains. Evaluated as written, the term is 0 · ∞.
    """
    root = jnp.sqrt(h + eps) if eps_placement == "inside" else jnp.sqrt(h) + eps
    return jnp.where(root == 0, 0, m / jnp.where(root == 0, 1, root))


@_divide_by_root.defjvp
def _(eps_placement, primals, tangents):
    """Differentiates the same formula, written so that each √ has a positive argument."""

    def divide(m, h, eps):
        h, eps = (h + eps, 0) if eps_placement == "inside" else (h, eps)
        root = jnp.where(h == 0, 0, jnp.sqrt(jnp.where(h == 0, 1, h))) + eps
        return jnp.where(root == 0, 0, m / jnp.where(root == 0, 1, root))

    return jax.jvp(divide, primals, tangents)


divide_by_root = jax.jit(_divide_by_root, static_argnums=3, inline=True)  # one program when eager


def _at(function: str, value: ArrayLike | optax.Schedule, count: jax.Array) -> ArrayLike:
    """Returns `value`, or its value at this step if it is a schedule."""
    if callable(value):
        value = value(count)
        if value is not count:
            check_scheduled(function, value)
    return value


def _accumulators(params: optax.Params, value: ArrayLike, real: bool, dtype: Any) -> optax.Params:
    """Makes a tree like params in float32 or wider: in bfloat16, with 8 bits, 1 + 2⁻⁹ is 1."""

    def leaf(p: Any) -> jax.Array:
        p = jnp.asarray(p)
        if dtype is not None and not jnp.iscomplexobj(p):
            return jnp.full_like(p, value, dtype=dtype)
        wide = widest(p)
        return jnp.full_like(p, value, dtype=wide if real else as_complex_as(p, wide))

    return jax.tree.map(leaf, params)


def widest(*arrays: jax.Array) -> Any:
    """The widest floating dtype among float32 and those of `arrays`, or of their parts."""
    dtypes = [jnp.finfo(x.dtype).dtype for x in arrays if jnp.issubdtype(x.dtype, jnp.inexact)]
    return max([jnp.dtype("float32"), *dtypes], key=lambda dtype: jnp.finfo(dtype).bits)


def as_complex_as(x: jax.Array, dtype: Any) -> Any:
    """The floating dtype, or the complex dtype with such parts if x is complex."""
    return np.result_type(dtype, np.complex64) if jnp.iscomplexobj(x) else dtype
