"""Optimizers with a learning rate per element: AdaGrad and RMSProp."""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from funcnet._arguments import check_bool, check_number
from funcnet.optim.base import divide_by_root, leafwise
from funcnet.optim.checks import check_choice, check_learning_rate


class AdaGradState(NamedTuple):
    """State of `adagrad`."""

    count: Any  # t, shape (), int32
    h: optax.Updates  # shapes of params, float32 or wider


class RMSPropState(NamedTuple):
    """State of `rmsprop`."""

    count: Any  # t, shape (), int32
    G: optax.Updates  # shapes of params, float32 or wider


class CenteredRMSPropState(NamedTuple):
    """State of `rmsprop` with centered=True."""

    count: Any  # t, shape (), int32
    G: optax.Updates  # shapes of params, float32 or wider
    M: optax.Updates  # shapes of params, float32 or wider


def adagrad(
    learning_rate: ArrayLike | optax.Schedule,
    *,
    initial_accumulator_value: ArrayLike = 0.0,
    eps: ArrayLike = 1e-7,
    eps_placement: Literal["outside", "inside"] = "outside",
) -> optax.GradientTransformation:
    """AdaGrad: divides the step by the root of the sum of all squared gradients.

        h ← h + g ⊙ g
        P ← P − η g/(√h + ε)

    The defaults are the book's. Optax's are `initial_accumulator_value=0.1,
    eps_placement="inside"`. Where both h and ε are 0, the step is 0.

    Args:
      learning_rate: η ≥ 0, a number (it may be traced), or a schedule: step count -> η.
      initial_accumulator_value: h before the first step, at least 0.
      eps: ε ≥ 0.
      eps_placement: "outside" for √h + ε (source C, PyTorch) or "inside" for √(h + ε) (Optax).

    Returns:
      An optimizer in Optax's protocol. Its state is an `AdaGradState`.

    Raises:
      TypeError: If an argument that must be a number is not one.
      ValueError: If a number is negative or not finite, or eps_placement is unknown.

    Reference: Source C 6.1. (Its slide prints the initialisation of h inside the loop, but h must
    accumulate.) Duchi, Hazan & Singer, Adaptive subgradient methods, 2011.

    >>> optimizer = adagrad(0.5)
    >>> updates, state = optimizer.update(2.0, optimizer.init(1.0))
    >>> print(f"{updates:.2f}")
    -0.50
    """
    check_learning_rate("adagrad", learning_rate)
    initial = initial_accumulator_value
    check_number("adagrad", "initial_accumulator_value", initial, at_least=0)
    check_number("adagrad", "eps", eps, at_least=0)
    check_choice("adagrad", "eps_placement", eps_placement, ("outside", "inside"))

    def step(g, h, *, eta, eps):
        h = h + jnp.real(g * jnp.conj(g))
        return -eta * divide_by_root(g, h, eps, eps_placement), h

    real, scalars = ("h",), {"eta": learning_rate, "eps": eps}
    return leafwise("adagrad", AdaGradState, step, initial=initial, real=real, **scalars)


def rmsprop(
    learning_rate: ArrayLike | optax.Schedule,
    *,
    decay: ArrayLike = 0.99,
    eps: ArrayLike = 1e-7,
    eps_placement: Literal["outside", "inside"] = "outside",
    centered: bool = False,
) -> optax.GradientTransformation:
    """RMSProp: AdaGrad with a moving average of g ⊙ g instead of the sum.

        G ← β G + (1 − β) g ⊙ g
        P ← P − η g/(√G + ε)

    With ε = 0 this is the source's formula; where G is also 0, the step is 0. The defaults are
    those of the book's code. Optax's are `decay=0.9, eps=1e-8, eps_placement="inside"`; PyTorch's
    default is `eps=1e-8`. If centered, the step is divided by the standard deviation of g:

        M ← β M + (1 − β) g
        P ← P − η g/(√(G − M ⊙ M) + ε)

    Args:
      learning_rate: η ≥ 0, a number (it may be traced), or a schedule: step count -> η.
      decay: β in [0, 1).
      eps: ε ≥ 0.
      eps_placement: "outside" for √G + ε (the book's code, PyTorch, Optax's `eps_in_sqrt=False`)
        or "inside" for √(G + ε) (Optax's default).
      centered: Whether to subtract M ⊙ M; see above.

    Returns:
      An optimizer in Optax's protocol. Its state is an `RMSPropState`, or a `CenteredRMSPropState`.

    Raises:
      TypeError: If an argument that must be a number is not one, or centered is not a boolean.
      ValueError: If a number is not finite or out of range, or eps_placement is unknown.

    Reference: Source A 4.1.2. RMSprop in the code of Deep Learning from Scratch,
    common/optimizer.py. If centered, Graves, 2013, section 3, arXiv:1308.0850.

    >>> optimizer = rmsprop(0.5)
    >>> updates, state = optimizer.update(2.0, optimizer.init(1.0))
    >>> print(f"{updates:.2f}")
    -5.00
    """
    check_learning_rate("rmsprop", learning_rate)
    check_number("rmsprop", "decay", decay, at_least=0, below=1)
    check_number("rmsprop", "eps", eps, at_least=0)
    check_choice("rmsprop", "eps_placement", eps_placement, ("outside", "inside"))

    check_bool("rmsprop", "centered", centered)

    def step(g, G, *M, eta, beta, eps):
        G = beta * G + jnp.real((1 - beta) * g * jnp.conj(g))
        M = [beta * m + (1 - beta) * g for m in M]
        V = jnp.maximum(G - jnp.real(M[0] * jnp.conj(M[0])), 0) if M else G  # 0 if it rounds below
        return -eta * divide_by_root(g, V, eps, eps_placement), G, *M

    State = CenteredRMSPropState if centered else RMSPropState
    return leafwise("rmsprop", State, step, real=("G",), eta=learning_rate, beta=decay, eps=eps)
