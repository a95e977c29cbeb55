"""Backpropagation with δ, the worked example of source B: a regression network of three layers.

    layer     index   neurons   activation
    input     i       l
    hidden    j       m         sigmoid
    output    k       n         identity

This module uses neither JAX's autodiff nor any rule of `funcnet.ops`: each line is one equation of
the source, in the source's order and symbols. δ denotes ∂E/∂u, and ∂a, `da` in the code, denotes
∂E/∂a. To train a network, use `funcnet.ops` and `jax.grad`, which do the same for any network.
"""

import jax
import jax.numpy as jnp

from funcnet._arguments import check_array, describe

Params = dict[str, jax.Array]  # w_ij (l, m), b_j (m,), w_jk (m, n), b_k (n,)


def forward(params: Params, y_i: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes the outputs of the hidden layer and of the output layer.

        u_j = Σ_p y_p w_pj + b_j        y_j = 1 / (1 + exp(−u_j))
        u_k = Σ_q y_q w_qk + b_k        y_k = u_k

    Args:
      params: w_ij of shape (l, m), b_j (m,), w_jk (m, n) and b_k (n,).
      y_i: The input, shape (..., l): the output of the input layer.

    Returns:
      y_j of shape (..., m) and y_k of shape (..., n).

    Raises:
      TypeError: If params is not a dict with these four keys, or y_i is not an array.
      ValueError: If the shapes do not match.

    Reference: Source B 5.5.3, 5.5.5 and 5.5.7.
    """
    _check("forward", params, y_i)
    if y_i.ndim > 1:
        return jax.vmap(forward, (None, 0))(params, y_i)
    u_j = y_i @ params["w_ij"] + params["b_j"]
    y_j = 1 / (1 + jnp.exp(-u_j))
    u_k = y_j @ params["w_jk"] + params["b_k"]
    y_k = u_k
    return y_j, y_k


def error(params: Params, y_i: jax.Array, t_k: jax.Array) -> jax.Array:
    """The sum of squared errors, E = ½ Σ_k (y_k − t_k)², also summed over all examples.

    Args:
      params: As in `forward`.
      y_i: The input, shape (..., l).
      t_k: The target, shape (..., n).

    Returns:
      E, a scalar.

    Raises:
      TypeError: As for `forward`.
      ValueError: As for `forward`; if t_k is not of shape (..., n) with the leading axes of y_i.

    Reference: Source B 5.5.7.
    """
    _check("error", params, y_i, t_k)
    _, y_k = forward(params, y_i)
    return 0.5 * jnp.sum((y_k - t_k) ** 2)


def gradients(params: Params, y_i: jax.Array, t_k: jax.Array) -> tuple[Params, jax.Array]:
    """Computes the gradients of `error`, from the output layer back to the input.

    Output layer. By the chain rule ∂E/∂w_jk = ∂E/∂u_k · ∂u_k/∂w_jk = δ_k y_j, and the same with
    ∂u_k/∂b_k = 1. Here ∂E/∂y_k = y_k − t_k and, for the identity, ∂y_k/∂u_k = 1:

        δ_k   = ∂E/∂y_k · ∂y_k/∂u_k = y_k − t_k                                 (5-15), (5-24)
        ∂w_jk = y_j δ_k                                                         (5-16)
        ∂b_k  = δ_k                                                             (5-17)
        ∂y_j  = Σ_r δ_r w_jr            y_j enters every u_r                    (5-18)

    Hidden layer. ∂y_j takes the place of ∂E/∂y_k, and for the sigmoid ∂y_j/∂u_j = (1 − y_j) y_j:

        δ_j   = ∂y_j · ∂y_j/∂u_j = ∂y_j (1 − y_j) y_j                           (5-19), (5-26)
        ∂w_ij = y_i δ_j                                                         (5-20)
        ∂b_j  = δ_j                                                             (5-21)
        ∂y_i  = Σ_q δ_q w_iq            for another layer before                (5-22)

    The error of a batch is the sum of the errors of its examples, so its gradient is the sum of
    their gradients. ∂y_i is separate for each example and is not summed.

    Args:
      params: As in `forward`.
      y_i: The input, shape (..., l).
      t_k: The target, shape (..., n).

    Returns:
      ∂w_ij, ∂b_j, ∂w_jk and ∂b_k, a dict like params; and ∂y_i of the shape of y_i.

    Raises:
      TypeError: As for `forward`.
      ValueError: As for `error`.

    Reference: Source B 5.5.3 to 5.5.7, equations (5-15) to (5-24).
    """
    _check("gradients", params, y_i, t_k)
    if y_i.ndim > 1:
        of_each, dy_i = jax.vmap(gradients, (None, 0, 0))(params, y_i, t_k)
        return jax.tree.map(lambda d: d.sum(0), of_each), dy_i

    w_ij, w_jk = params["w_ij"], params["w_jk"]
    y_j, y_k = forward(params, y_i)

    delta_k = y_k - t_k  # (5-15), (5-24)
    dw_jk = jnp.outer(y_j, delta_k)  # (5-16)
    db_k = delta_k  # (5-17)
    dy_j = w_jk @ delta_k  # (5-18)

    delta_j = dy_j * (1 - y_j) * y_j  # (5-19), (5-26)
    dw_ij = jnp.outer(y_i, delta_j)  # (5-20)
    db_j = delta_j  # (5-21)
    dy_i = w_ij @ delta_j  # (5-22)

    return {"w_ij": dw_ij, "b_j": db_j, "w_jk": dw_jk, "b_k": db_k}, dy_i


def _check(f: str, params: Params, y_i: jax.Array, t_k: jax.Array | None = None) -> None:
    names = ("w_ij", "b_j", "w_jk", "b_k")
    if not isinstance(params, dict) or set(params) != set(names):
        got = ", ".join(params) if isinstance(params, dict) and params else describe(params)
        raise TypeError(f"{f}: params must be a dict of w_ij, b_j, w_jk and b_k, got {got}")
    arrays = {"y_i": y_i, **params} | ({} if t_k is None else {"t_k": t_k})
    for name, array in arrays.items():
        check_array(f, name, array)
    shape = {name: jnp.shape(array) for name, array in arrays.items()}
    m, n = (jnp.size(params[b]) for b in ("b_j", "b_k"))
    fits = {"w_ij": (*shape["y_i"][-1:], m), "b_j": (m,), "w_jk": (m, n), "b_k": (n,)}
    for name, expected in (fits | {"t_k": (*shape["y_i"][:-1], n)}).items():
        if shape.get(name, expected) != expected:
            raise ValueError(
                f"{f}: {name} must have shape {expected}, got {shape[name]} with y_i of shape "
                f"{shape['y_i']}, b_j {shape['b_j']} and b_k {shape['b_k']}"
            )
