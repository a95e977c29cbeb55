"""Threshold neurons, the logic gates that one neuron computes, and XOR, which needs two layers."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from funcnet._arguments import check_array, describe
from funcnet.ops import step


def neuron(x: jax.Array, w: jax.Array, b: ArrayLike) -> jax.Array:
    """A threshold neuron: z = 1 if the weighted sum of the inputs reaches −b, else z = 0.

        z = f_step(Σᵢ wᵢ xᵢ + b)

    Args:
      x: Inputs, shape (..., n).
      w: Weights, shape (n,) for one neuron, (n, m) for a layer of m neurons.
      b: Bias, a scalar or shape (m,).

    Returns:
      z, 0 or 1 in the dtype of x, of shape (...) for one neuron, (..., m) for a layer.

    Raises:
      ValueError: If the shapes do not match.
      TypeError: If an argument is not an array.

    Reference: Source A 2.1.

    >>> neuron(jnp.array([1.0, 1.0]), jnp.array([1.0, 1.0]), -1.5).item()
    1.0
    """
    for name, value in (("x", x), ("w", w), ("b", b)):
        check_array("neuron", name, value)
    if jnp.ndim(w) not in (1, 2) or jnp.shape(w)[:1] != jnp.shape(x)[-1:]:
        raise ValueError(
            "neuron: w must have shape (n,) or (n, m) for x (..., n), "
            f"got w {jnp.shape(w)} and x {jnp.shape(x)}"
        )
    if jnp.shape(b) not in ((), jnp.shape(w)[1:]):
        raise ValueError(
            f"neuron: b must be a scalar or have shape {jnp.shape(w)[1:]} for w {jnp.shape(w)}, "
            f"got {jnp.shape(b)}"
        )
    u = jnp.matmul(x, w)
    return step(u + (jnp.expand_dims(b, tuple(range(u.ndim - 1))) if jnp.ndim(b) else b))


def and_gate(x: ArrayLike) -> jax.Array:
    """The AND gate, z = x₁ AND x₂: the neuron f_step(x₁ + x₂ − 1.5).

    Any b in [−2, −1) works.

    Args:
      x: Two inputs on the last axis, shape (..., 2), each 0 or 1, of any dtype. Other numbers are
        allowed; they show the line that separates the classes.

    Returns:
      0 or 1, floating, of shape (...).

    Raises:
      ValueError: If the last axis of x is not of length 2.

    Reference: Source A 2.1.

    >>> and_gate([[0, 0], [0, 1], [1, 0], [1, 1]]).tolist()
    [0.0, 0.0, 0.0, 1.0]
    """
    x = _pair("and_gate", x)
    return neuron(x, jnp.array([1, 1], x.dtype), -1.5)


def or_gate(x: ArrayLike) -> jax.Array:
    """The OR gate, z = x₁ OR x₂: the neuron f_step(x₁ + x₂ − 0.5).

    The source gives the weights only in a figure, not in its text. With w = (1, 1) any b in [−1, 0)
    works; with −0.5 both classes are equally far from the line.

    Args:
      x: Two inputs on the last axis, shape (..., 2), as for `and_gate`.

    Returns:
      0 or 1, floating, of shape (...).

    Raises:
      ValueError: If the last axis of x is not of length 2.

    Reference: Source A 2.1.

    >>> or_gate([[0, 0], [0, 1], [1, 0], [1, 1]]).tolist()
    [0.0, 1.0, 1.0, 1.0]
    """
    x = _pair("or_gate", x)
    return neuron(x, jnp.array([1, 1], x.dtype), -0.5)


def not_gate(x: ArrayLike) -> jax.Array:
    """The NOT gate, z = NOT x: the neuron f_step(−x + 0.5).

    The source prints w = −1 and b = −0.5, which is a sign error: f_step(−0.5) = f_step(−1.5) = 0,
    so that neuron would never fire. Any b in [0, 1) works.

    Args:
      x: One input, any shape, each element 0 or 1, of any dtype.

    Returns:
      0 or 1, floating, of the shape of x.

    Reference: Source A 2.1.

    >>> not_gate([0, 1]).tolist()
    [1.0, 0.0]
    """
    x = _floating("not_gate", x)[..., None]
    return neuron(x, jnp.array([-1], x.dtype), 0.5)


def xor_gate(x: ArrayLike) -> jax.Array:
    """The XOR gate, z = (x₁ OR x₂) AND NOT (x₁ AND x₂): a network of two layers.

    No single neuron can compute it, because that would need weights with

        (0, 0) ↦ 0:             b < 0           (1)
        (1, 0) ↦ 1:        w₁ + b ≥ 0           (2)
        (0, 1) ↦ 1:        w₂ + b ≥ 0           (3)
        (1, 1) ↦ 0:   w₁ + w₂ + b < 0           (4)

    but (1) + (4) says w₁ + w₂ + 2b < 0, and (2) + (3) says w₁ + w₂ + 2b ≥ 0.

    The hidden layer computes h₁ = x₁ OR x₂ and h₂ = x₁ AND x₂. NOT h₂ is 1 − h₂, so h₁ AND NOT h₂
    is one neuron: f_step(h₁ + (1 − h₂) − 1.5) = f_step(h₁ − h₂ − 0.5).

    Args:
      x: Two inputs on the last axis, shape (..., 2), as for `and_gate`.

    Returns:
      0 or 1, floating, of shape (...).

    Raises:
      ValueError: If the last axis of x is not of length 2.

    Reference: Source A 2.2.

    >>> xor_gate([[0, 0], [0, 1], [1, 0], [1, 1]]).tolist()
    [0.0, 1.0, 1.0, 0.0]
    """
    x = _pair("xor_gate", x)
    h = neuron(x, jnp.array([[1, 1], [1, 1]], x.dtype), jnp.array([-0.5, -1.5], x.dtype))
    return neuron(h, jnp.array([1, -1], x.dtype), -0.5)


def _pair(name: str, x: ArrayLike) -> jax.Array:
    x = _floating(name, x)
    if x.shape[-1:] != (2,):
        raise ValueError(f"{name}: x must have shape (..., 2), got {x.shape}")
    return x


def _floating(name: str, x: ArrayLike) -> jax.Array:
    try:
        x = jnp.asarray(x)
    except (TypeError, ValueError, SyntaxError):  # asarray takes a string for a dtype
        raise TypeError(f"{name}: x must be an array of numbers, got {describe(x)}") from None
    if jnp.iscomplexobj(x):
        raise TypeError(f"{name}: x must be real, got {x.dtype}")
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)
