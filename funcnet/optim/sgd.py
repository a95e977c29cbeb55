"""Stochastic gradient descent, with and without momentum."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.typing import ArrayLike

from funcnet._arguments import check_number
from funcnet.optim.base import leafwise
from funcnet.optim.checks import check_learning_rate, check_state_dtype


class SGDState(NamedTuple):
    """State of `sgd`."""

    count: Any  # t, shape (), int32


class MomentumState(NamedTuple):
    """State of `momentum` and `nesterov`."""

    count: Any  # t, shape (), int32
    v: optax.Updates  # shapes of params, float32 or wider


def sgd(learning_rate: ArrayLike | optax.Schedule) -> optax.GradientTransformation:
    """Stochastic gradient descent.

        P ← P − η g

    Args:
      learning_rate: η ≥ 0, a number (it may be traced), or a schedule: step count -> η.

    Returns:
      An optimizer in Optax's protocol. Its state is an `SGDState`.

    Raises:
      TypeError: If learning_rate is not a number.
      ValueError: If it is negative or not finite.

    Reference: Source A 3.2; source C 6.1.

    >>> optimizer = sgd(0.5)
    >>> updates, state = optimizer.update(2.0, optimizer.init(1.0))
    >>> float(updates)
    -1.0
    """
    check_learning_rate("sgd", learning_rate)

    def step(g, *, eta):
        return (-eta * g,)

    return leafwise("sgd", SGDState, step, eta=learning_rate)


def momentum(
    learning_rate: ArrayLike | optax.Schedule,
    *,
    momentum: ArrayLike = 0.9,
    dampening: ArrayLike = 0.0,
    accumulator_dtype: Any = None,
) -> optax.GradientTransformation:
    """Gradient descent with momentum: the step is a velocity with friction.

        v ← α v − η g
        P ← P + v

    `optax.sgd(η, momentum=α)` accumulates m ← g + α m and steps by −η m. For a constant η this is
    the same, since v = −η m. If η follows a schedule, η multiplies each gradient here when it is
    added to v, whereas in Optax it multiplies all of m. For Optax's behaviour, use
    `optax.chain(momentum(1.0, momentum=α), optax.scale_by_schedule(schedule))`.

    With dampening τ, all gradients but the first count less, as in PyTorch:

        v ← α v − (1 − τ) η g,   if v is not from the first step

    Args:
      learning_rate: η ≥ 0, a number (it may be traced), or a schedule: step count -> η.
      momentum: α in [0, 1), the fraction of v that friction leaves. The default is the book's.
      dampening: τ in [0, 1].
      accumulator_dtype: The dtype of v, such as jnp.bfloat16; None for that of the parameters,
        float32 at least. The v of a complex parameter has the dtype of None.

    Returns:
      An optimizer in Optax's protocol. Its state is a `MomentumState`.

    Raises:
      TypeError: If an argument that must be a number is not one, or accumulator_dtype is no real
        floating dtype.
      ValueError: If a number is not finite or out of range.

    Reference: Source A 4.1.1, where v is M; source C 6.1. `torch.optim.SGD` for the dampening.

    >>> optimizer = momentum(0.5)
    >>> updates, state = optimizer.update(2.0, optimizer.init(1.0))
    >>> updates, state = optimizer.update(2.0, state)
    >>> print(f"{updates:.2f}")
    -1.90
    """
    check_learning_rate("momentum", learning_rate)
    check_number("momentum", "momentum", momentum, at_least=0, below=1)
    check_number("momentum", "dampening", dampening, at_least=0, at_most=1)
    dtypes = {"v": check_state_dtype("momentum", "accumulator_dtype", accumulator_dtype)}
    scalars: dict[str, Any] = {"eta": learning_rate, "alpha": momentum}

    def step(g, v, *, eta, alpha):
        v = alpha * v - eta * g
        return v, v

    def damped(g, v, *, eta, alpha, tau, t):
        return step(g, v, eta=jnp.where(t == 0, eta, (1 - tau) * eta), alpha=alpha)

    if not isinstance(dampening, Tracer) and dampening == 0:
        return leafwise("momentum", MomentumState, step, dtypes=dtypes, **scalars)
    scalars |= {"tau": dampening, "t": lambda count: count}
    return leafwise("momentum", MomentumState, damped, dtypes=dtypes, **scalars)


def nesterov(
    learning_rate: ArrayLike | optax.Schedule,
    *,
    momentum: ArrayLike = 0.9,
    accumulator_dtype: Any = None,
) -> optax.GradientTransformation:
    """Nesterov's accelerated gradient: momentum that looks one step ahead.

    The gradient is taken at the point to which the velocity is about to carry the parameters W:

        v ← α v − η ∂L/∂W (W + α v)
        W ← W + v.

    Here P is that point, P = W + α v, so that g is the gradient at P, as for every optimizer:

        v ← α v − η g
        P ← P + α v − η g

    because P_new − P = (W + v_new + α v_new) − (W + α v) = α v_new + (v_new − α v). In terms of v
    before the step, the second line is P ← P + α² v − (1 + α) η g, as in the book's code.

    `optax.sgd(η, momentum=α, nesterov=True)` accumulates m ← g + α m and steps by −η (g + α m). For
    a constant η this is the same, since v = −η m. If η follows a schedule, the two differ as for
    `momentum`. For Optax's behaviour, use
    `optax.chain(nesterov(1.0, momentum=α), optax.scale_by_schedule(schedule))`.

    Args:
      learning_rate: η ≥ 0, a number (it may be traced), or a schedule: step count -> η.
      momentum: α in [0, 1). The default is the book's.
      accumulator_dtype: The dtype of v, as for `momentum`.

    Returns:
      An optimizer in Optax's protocol. Its state is a `MomentumState`.

    Raises:
      TypeError: If an argument that must be a number is not one, or accumulator_dtype is no real
        floating dtype.
      ValueError: If a number is not finite or out of range.

    Reference: Sutskever, Martens, Dahl & Hinton, On the importance of initialization and momentum
    in deep learning, 2013, eqs. 3 and 4 (W). Bengio, Boulanger-Lewandowski & Pascanu, Advances in
    optimizing recurrent networks, 2013, section 3.5, arXiv:1212.0901 (P). Nesterov in the code of
    Deep Learning from Scratch, common/optimizer.py.

    >>> optimizer = nesterov(0.5)
    >>> updates, state = optimizer.update(2.0, optimizer.init(1.0))
    >>> print(f"{updates:.2f}")
    -1.90
    """
    check_learning_rate("nesterov", learning_rate)
    check_number("nesterov", "momentum", momentum, at_least=0, below=1)
    dtypes = {"v": check_state_dtype("nesterov", "accumulator_dtype", accumulator_dtype)}

    def step(g, v, *, eta, alpha):
        v = alpha * v - eta * g
        return alpha * v - eta * g, v

    return leafwise(
        "nesterov", MomentumState, step, dtypes=dtypes, eta=learning_rate, alpha=momentum
    )
