"""An average of the parameters over the steps, for evaluation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from funcnet._arguments import check_number, describe
from funcnet.optim.base import as_complex_as, widest
from funcnet.optim.checks import check_params, check_state


class AveragedState(NamedTuple):
    """State of `averaged`."""

    state: Any  # that of the optimizer
    average: optax.Params  # θ̄, shapes of params, float32 or wider


def averaged(
    optimizer: optax.GradientTransformation, *, decay: ArrayLike = 0.999
) -> optax.GradientTransformationExtraArgs:
    """Makes an optimizer also keep an exponential moving average of the parameters, for evaluation.

        θ̄ ← α θ̄ + (1 − α) θ,

    where θ is what the step arrives at; θ̄ begins as the initial parameters. The steps are those of
    the optimizer. This must be the outermost transformation, as it takes the updates for the steps.

    Args:
      optimizer: Any `optax.GradientTransformation`.
      decay: α in [0, 1), a number (it may be traced).

    Returns:
      An optimizer in Optax's protocol, whose `update` needs params. Its state is an
      `AveragedState`; evaluate with `state.average`, cast to the dtypes of the parameters if those
      are narrower than float32. Integer parameters are not averaged.

    Raises:
      TypeError: If optimizer is no `optax.GradientTransformation`, or decay is not a number.
      ValueError: If decay is not in [0, 1); in `update`, if params are missing.

    Reference: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992;
    `optax.incremental_update`.

    >>> optimizer = averaged(optax.sgd(1.0), decay=0.75)
    >>> updates, state = optimizer.update(jnp.array(2.0), optimizer.init(5.0), jnp.array(5.0))
    >>> float(updates), float(state.average)
    (-2.0, 4.5)
    """
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"averaged: optimizer must be an optax.GradientTransformation, "
            f"got {describe(optimizer)}"
        )
    check_number("averaged", "decay", decay, at_least=0, below=1)
    inner = optax.with_extra_args_support(optimizer)

    def init(params):
        return AveragedState(inner.init(params), jax.tree.map(widened, params))

    def update(updates, state, params=None, **extra):
        check_state("averaged", state, AveragedState)
        params = check_params("averaged", params)
        updates, inner_state = inner.update(updates, state.state, params, **extra)
        average = jax.tree.map(mean, optax.apply_updates(params, updates), state.average)
        return updates, AveragedState(inner_state, average)

    def widened(param):
        param = jnp.array(param)  # a copy, so that both buffers may be donated
        is_averaged = jnp.issubdtype(param.dtype, jnp.inexact)
        return param.astype(as_complex_as(param, widest(param))) if is_averaged else param

    def mean(param, average):
        if not jnp.issubdtype(average.dtype, jnp.inexact):
            return param
        step = 1 - jnp.asarray(decay, average.dtype)
        return optax.incremental_update(jnp.asarray(param, average.dtype), average, step)

    return optax.GradientTransformationExtraArgs(init, update)
