"""Adam and AdamW."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from funcnet._arguments import check_bool, check_function, check_number, describe
from funcnet.optim.base import divide_by_root, leafwise
from funcnet.optim.checks import check_choice, check_learning_rate, check_state_dtype

EpsPlacement = Literal["outside", "inside", "eps_hat"]


class AdamState(NamedTuple):
    """State of `adam` and `adamw`."""

    count: Any  # t, shape (), int32
    M: optax.Updates  # shapes of params, float32 or wider
    G: optax.Updates  # shapes of params, float32 or wider


class AMSGradState(NamedTuple):
    """State of `adam` and `adamw` with amsgrad=True."""

    count: Any  # t, shape (), int32
    M: optax.Updates  # shapes of params, float32 or wider
    G: optax.Updates  # shapes of params, float32 or wider
    G_max: optax.Updates  # Ĝ_max, shapes of params, float32 or wider


def adam(
    learning_rate: ArrayLike | optax.Schedule,
    *,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_placement: EpsPlacement = "outside",
    bias_correction: bool = True,
    amsgrad: bool = False,
    mu_dtype: Any = None,
) -> optax.GradientTransformation:
    """Adam: momentum divided by the square root of RMSProp's average.

        M ← β₁ M + (1 − β₁) g
        G ← β₂ G + (1 − β₂) g ⊙ g
        M̂ = M/(1 − β₁ᵗ⁺¹),   Ĝ = G/(1 − β₂ᵗ⁺¹)
        P ← P − η M̂/(√Ĝ + ε)
        t ← t + 1

    where t starts at 0. With ε = 0 this is the source's formula; where Ĝ is also 0, the step is 0.
    Implementations add ε at different places:

        "outside"   M̂/(√Ĝ + ε)                     Kingma & Ba, algorithm 1; PyTorch; Optax's eps
        "inside"    M̂/√(Ĝ + ε)                     Optax's eps_root
        "eps_hat"   (√(1−β₂ᵗ⁺¹)/(1−β₁ᵗ⁺¹)) M/(√G + ε)   Kingma & Ba, end of section 2; TensorFlow
                                                   and Keras; the book's code, with ε = 1e-7

    "eps_hat" equals "outside" with ε replaced by ε/√(1 − β₂ᵗ⁺¹), which is 32 ε at the first step.

    AMSGrad never divides by less than before: Ĝ_max ← max(Ĝ_max, Ĝ) takes the place of Ĝ, as in
    Optax. (The paper has no bias correction, and PyTorch takes the maximum of G.)

    Args:
      learning_rate: η ≥ 0, a number (it may be traced), or a schedule: step count -> η.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0. The defaults are those of Kingma & Ba, PyTorch and Optax.
      eps_placement: "outside", "inside" or "eps_hat"; see above.
      bias_correction: If False, M̂ = M and Ĝ = G, as in source D.
      amsgrad: Whether to divide by Ĝ_max; see above.
      mu_dtype: The dtype of M, such as jnp.bfloat16; None for that of the parameters, float32 at
        least. The M of a complex parameter has the dtype of None.

    Returns:
      An optimizer in Optax's protocol. Its state is an `AdamState`, or an `AMSGradState`.

    Raises:
      TypeError: If an argument that must be a number is not one, a flag is not a boolean, or
        mu_dtype is no real floating dtype.
      ValueError: If a number is not finite or out of range, or eps_placement is unknown.

    Reference: Source A 4.1.3; without bias correction source D 4.1.3. Kingma & Ba, Adam, 2015,
    arXiv:1412.6980. Adam in the code of Deep Learning from Scratch, common/optimizer.py. Reddi,
    Kale & Kumar, On the convergence of Adam and beyond, 2018, algorithm 2, arXiv:1904.09237.

    >>> optimizer = adam(0.5)
    >>> updates, state = optimizer.update(2.0, optimizer.init(1.0))
    >>> print(f"{updates:.2f}")
    -0.50
    """
    _check("adam", learning_rate, b1, b2, eps, eps_placement, bias_correction, amsgrad)

    def step(g, *state, eta, t, b1, b2, eps):
        ratio, state = _moments(g, state, t, b1, b2, eps, eps_placement, bias_correction)
        return -eta * ratio, *state

    return leafwise(
        "adam",
        AMSGradState if amsgrad else AdamState,
        step,
        real=("G", "G_max"),
        dtypes={"M": check_state_dtype("adam", "mu_dtype", mu_dtype)},
        eta=learning_rate,
        t=lambda count: count,
        b1=b1,
        b2=b2,
        eps=eps,
    )


def adamw(
    learning_rate: ArrayLike | optax.Schedule,
    *,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_placement: EpsPlacement = "outside",
    bias_correction: bool = True,
    amsgrad: bool = False,
    mu_dtype: Any = None,
    weight_decay: ArrayLike = 1e-4,
    mask: Any | Callable[[optax.Params], Any] | None = None,
) -> optax.GradientTransformation:
    """AdamW: Adam with weight decay that is decoupled from the gradient.

        M, G, M̂, Ĝ, t as in `adam`
        P ← P − η M̂/(√Ĝ + ε) − η λ P

    AdamW is not Adam with an L2 penalty. The penalty (λ/2)‖P‖² adds λP to g, so λP is normalised
    by M̂/√Ĝ like the rest of g: elements with large gradients decay less, and where g is λP alone,
    the step of Adam is η sign(P), whatever λ is. In AdamW every element decays by the factor
    1 − ηλ. For `sgd` the two methods are the same. λ is multiplied by η, as in the source, PyTorch
    and Optax; in the paper it is multiplied only by the schedule's multiplier.

    Args:
      learning_rate: η ≥ 0, a number (it may be traced), or a schedule: step count -> η.
      b1: β₁ in [0, 1).
      b2: β₂ in [0, 1).
      eps: ε ≥ 0.
      eps_placement: "outside", "inside" or "eps_hat"; see `adam`.
      bias_correction: If False, M̂ = M and Ĝ = G.
      amsgrad: As for `adam`.
      mu_dtype: As for `adam`.
      weight_decay: λ ≥ 0. The default is Optax's.
      mask: Selects the leaves that decay: a tree of booleans with the structure of params or a
        prefix of it, or a function params -> such a tree. With None all leaves decay. The other
        leaves follow plain Adam.

    Returns:
      An optimizer in Optax's protocol; `update` needs params. Its state is that of `adam`.

    Raises:
      TypeError: As for `adam`; in `update`, if a leaf of mask is not boolean.
      ValueError: If a number is not finite or out of range, or eps_placement is unknown; in
        `update`, if params are missing or mask does not match their structure.

    Reference: Source A 4.1.4, 4.3.4. Loshchilov & Hutter, Decoupled weight decay regularization,
    2019, algorithm 2, arXiv:1711.05101.

    >>> optimizer = adamw(0.5, weight_decay=0.1)
    >>> updates, state = optimizer.update(0.0, optimizer.init(2.0), 2.0)
    >>> print(f"{updates:.2f}")
    -0.10
    """
    _check("adamw", learning_rate, b1, b2, eps, eps_placement, bias_correction, amsgrad)
    check_number("adamw", "weight_decay", weight_decay, at_least=0)

    def step(g, *leaves, eta, t, b1, b2, eps, weight_decay):
        *state, P = leaves
        ratio, state = _moments(g, state, t, b1, b2, eps, eps_placement, bias_correction)
        return -eta * ratio - eta * weight_decay * P, *state

    return leafwise(
        "adamw",
        AMSGradState if amsgrad else AdamState,
        step,
        real=("G", "G_max"),
        dtypes={"M": check_state_dtype("adamw", "mu_dtype", mu_dtype)},
        reads=lambda params: _decaying(mask, params),
        eta=learning_rate,
        t=lambda count: count,
        b1=b1,
        b2=b2,
        eps=eps,
        weight_decay=weight_decay,
    )


def _moments(g, state, t, b1, b2, eps, eps_placement, bias_correction):
    """Returns M̂/√Ĝ of one leaf, with ε placed by `eps_placement`, and the new state."""
    M, G, *G_max = state
    M = b1 * M + (1 - b1) * g
    G = b2 * G + jnp.real((1 - b2) * g * jnp.conj(g))
    c1 = _one_minus_power(b1, t + 1) if bias_correction else 1.0
    c2 = _one_minus_power(b2, t + 1) if bias_correction else 1.0
    G_max = [jnp.maximum(largest, G / c2) for largest in G_max]
    state = M, G, *G_max
    if eps_placement == "eps_hat":
        G = c2 * G_max[0] if G_max else G
        return jnp.sqrt(c2) / c1 * divide_by_root(M, G, eps, "outside"), state
    M_hat = M / c1
    G_hat = G_max[0] if G_max else G / c2
    return divide_by_root(M_hat, G_hat, eps, eps_placement), state


@functools.partial(jax.jit, inline=True)
def _one_minus_power(b, n):
    """1 − bⁿ without cancellation: in float32, 1 − 0.999 itself has a relative error of 1e-5.

    At b = 0 the logarithm has no derivative. There bⁿ is replaced by b, b² or b³, whose first two
    derivatives are the same.
    """
    log = jnp.log(jnp.where(b == 0, 1, b))
    power = jnp.where(n == 1, b, jnp.where(n == 2, b * b, b * b * b))
    return jnp.where(b == 0, 1 - power, -jnp.expm1(n * log))


def _decaying(mask: Any, params: optax.Params) -> optax.Params:
    """Returns `params` where `mask` is true, and zeros elsewhere."""
    if mask is None:
        return params
    is_function = callable(mask) and jax.tree_util.all_leaves([mask])  # some trees are callable
    if is_function:
        check_function("adamw", "mask", mask, 1)
    tree = mask(params) if is_function else mask
    try:
        tree = jax.tree.broadcast(tree, params)
    except ValueError:
        whole, got = jax.tree.structure(params), jax.tree.structure(tree)
        raise ValueError(
            f"adamw: mask must have the structure of params or a prefix of it, {whole}, got {got}"
        ) from None
    for path, leaf in jax.tree.leaves_with_path(tree):
        is_array = getattr(leaf, "dtype", None) == jnp.bool_ and leaf.shape == ()
        if not (isinstance(leaf, bool) or is_array):
            name = f"mask{jax.tree_util.keystr(path)}"
            raise TypeError(f"adamw: {name} must be boolean, got {describe(leaf)}")
    return jax.tree.map(lambda decays, p: jnp.where(decays, p, jnp.zeros_like(p)), tree, params)


def _check(function, learning_rate, b1, b2, eps, eps_placement, bias_correction, amsgrad):
    check_learning_rate(function, learning_rate)
    check_number(function, "b1", b1, at_least=0, below=1)
    check_number(function, "b2", b2, at_least=0, below=1)
    check_number(function, "eps", eps, at_least=0)
    check_choice(function, "eps_placement", eps_placement, ("outside", "inside", "eps_hat"))
    check_bool(function, "bias_correction", bias_correction)
    check_bool(function, "amsgrad", amsgrad)
