"""Initial weights: pure functions `(key, shape, dtype) -> array`.

n is the number of inputs of a neuron, the product of all axes of `shape` but the last.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

Initializer = Callable[..., jax.Array]  # (key, shape, dtype=jnp.float32)


def zeros(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """All zero: right for biases. As weights it never breaks the symmetry (see `constant`).

    Reference: Source C 6.2.

    >>> zeros(None, (2,)).tolist()
    [0.0, 0.0]
    """
    return constant(0.0)(key, shape, dtype)


def constant(value: float) -> Initializer:
    """Every weight has one value.

    All neurons of a layer then compute the same, get the same gradient, and stay equal for ever:
    the layer is worth one neuron. Random weights break that symmetry.

    Args:
      value: The value of each element.

    Reference: Source C 6.2.

    >>> constant(0.5)(None, (2,)).tolist()
    [0.5, 0.5]
    """

    def init(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        del key
        return jnp.full(shape, value, dtype)

    return init


def normal(std: float | jax.Array = 0.01) -> Initializer:
    """Gaussian weights of a given standard deviation, w ~ N(0, std²).

    The source tries std = 1, where sigmoid neurons saturate, and 0.01, where they all do the same.

    Args:
      std: The standard deviation, at least 0. It may be traced: a sweep is a `jax.vmap`.

    Raises:
      ValueError: If std is negative.

    Reference: Source C 6.2.
    """
    if not isinstance(std, Tracer) and std < 0:
        raise ValueError(f"normal: std must be at least 0, got {std}")

    def init(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jnp.asarray(std, dtype) * jax.random.normal(key, shape, dtype)

    return init


def xavier(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Gaussian weights with std √(1/n): keep the variance of what passes a linear layer.

    For sigmoid, tanh and identity, which are linear near 0.

    Reference: Source C 6.2; Glorot & Bengio, 2010.

    >>> xavier(jax.random.key(0), (400, 300)).shape
    (400, 300)
    """
    return normal(math.sqrt(1 / _inputs(shape)))(key, shape, dtype)


def he(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Gaussian weights with std √(2/n): twice the variance, because ReLU sets half of it to 0.

    Reference: Source C 6.2; He, Zhang, Ren & Sun, 2015, equation 10, arXiv:1502.01852.

    >>> he(jax.random.key(0), (400, 300)).shape
    (400, 300)
    """
    return normal(math.sqrt(2 / _inputs(shape)))(key, shape, dtype)


def _inputs(shape: tuple[int, ...]) -> int:
    return max(1, math.prod(shape[:-1]))
