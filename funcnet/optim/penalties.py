"""Penalties on the size of parameters, as transformations of the gradient."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.typing import ArrayLike

from funcnet._arguments import check_arrays, check_number
from funcnet.ops.penalties import elastic_net_gradient, l1_gradient, l2_gradient
from funcnet.optim.base import map_leaves, transformation
from funcnet.optim.checks import check_grads, check_params, check_state


def l1(rate: ArrayLike) -> optax.GradientTransformation:
    """Adds the gradient of `l1_penalty`.

        g ← g + λ sign(p),   sign(0) = 0

    Put it before the optimizer in an `optax.chain`: this has the same effect as adding the penalty
    to the loss. To penalise only some of the leaves, wrap it in `optax.masked`.

    Args:
      rate: λ ≥ 0, a scalar. It may be traced.

    Returns:
      A stateless transformation in Optax's protocol; `update` needs params.

    Raises:
      TypeError: If rate is not a number.
      ValueError: If it is negative or not finite; in `update`, if params are missing.

    Reference: Source A 4.3.1.

    >>> updates, _ = l1(0.5).update(1.0, optax.EmptyState(), -2.0)
    >>> float(updates)
    0.5
    """
    return _adds("l1", l1_gradient, rate=rate)


def l2(rate: ArrayLike) -> optax.GradientTransformation:
    """Adds the gradient of `l2_penalty`.

        g ← g + λ p

    Put it before the optimizer in an `optax.chain`: this has the same effect as adding the penalty
    to the loss. To penalise only some of the leaves, wrap it in `optax.masked`. Before `adam`
    it is scaled like the rest of the gradient; the weight decay of `adamw` is not scaled.
    `optax.add_decayed_weights` is the same transformation.

    Args:
      rate: λ ≥ 0, a scalar. It may be traced.

    Returns:
      A stateless transformation in Optax's protocol; `update` needs params.

    Raises:
      TypeError: If rate is not a number.
      ValueError: If it is negative or not finite; in `update`, if params are missing.

    Reference: Source A 4.3.2, 4.3.4.

    >>> updates, _ = l2(0.5).update(1.0, optax.EmptyState(), -2.0)
    >>> float(updates)
    0.0
    """
    return _adds("l2", l2_gradient, rate=rate)


def elastic_net(l1_rate: ArrayLike, l2_rate: ArrayLike) -> optax.GradientTransformation:
    """Adds the gradient of `elastic_net_penalty`.

        g ← g + λ₁ sign(p) + λ₂ p,   sign(0) = 0

    Put it before the optimizer in an `optax.chain`: this has the same effect as adding the penalty
    to the loss. To penalise only some of the leaves, wrap it in `optax.masked`.

    Args:
      l1_rate: λ₁ ≥ 0, a scalar. It may be traced.
      l2_rate: λ₂ ≥ 0, a scalar. It may be traced.

    Returns:
      A stateless transformation in Optax's protocol; `update` needs params.

    Raises:
      TypeError: If a rate is not a number.
      ValueError: If it is negative or not finite; in `update`, if params are missing.

    Reference: Source A 4.3.3.

    >>> updates, _ = elastic_net(0.5, 0.25).update(1.0, optax.EmptyState(), -2.0)
    >>> float(updates)
    0.0
    """
    return _adds("elastic_net", elastic_net_gradient, l1_rate=l1_rate, l2_rate=l2_rate)


def _adds(
    function: str, gradient: Callable[..., jax.Array], **rates: ArrayLike
) -> optax.GradientTransformation:
    for name, rate in rates.items():
        check_number(function, name, rate, at_least=0)

    def step(g, p, **rates):
        return (g + gradient(p, **rates),)

    def init(params: optax.Params) -> optax.EmptyState:
        check_arrays(function, "params", params)
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if jax.tree.leaves(state):
            check_state(function, state, optax.EmptyState)
        check_params(function, params)
        check_grads(function, updates, params=params)
        (updates,) = map_leaves(
            function, step, updates, params, (), (params,), rates, is_step=False
        )
        return updates, state

    return transformation(function, init, update)
