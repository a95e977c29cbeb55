"""Initial weights: pure functions `(key, shape, dtype) -> array`.

    variance   Gaussian         uniform           preserves the variance       the book's name
    1/n        lecun_normal     lecun_uniform     forward                      xavier
    2/(n + m)  glorot_normal    glorot_uniform    between forward and backward
    2/n        he_normal        he_uniform        forward, through ReLU        he

n (fan-in) is the number of inputs of a neuron, the product of all axes of `shape` but the last.
m (fan-out) is the number of neurons that an input reaches, the last axis times the size of a
kernel. For a kernel of shape (*kernel, c_in, c_out), n = Πkernel · c_in and m = Πkernel · c_out, as
in `jax.nn.initializers`.

A uniform distribution of variance v is that on [−√(3v), √(3v)]. The Gaussians are not truncated, as
in the papers and PyTorch; JAX and Keras truncate theirs at two standard deviations, and widen them
to the same variance.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from funcnet._arguments import check_dtype, check_int, check_key, check_number, describe

__all__ = [
    "Initializer",
    "constant",
    "glorot_normal",
    "glorot_uniform",
    "he",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lecun_uniform",
    "normal",
    "xavier",
    "zeros",
]

Initializer = Callable[..., jax.Array]  # (key, shape, dtype=jnp.float32)


def zeros(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Zeros, right for biases; zero weights would never break the symmetry (see `constant`).

    Reference: Source C 6.2.

    >>> zeros(None, (2,)).tolist()
    [0.0, 0.0]
    """
    return constant(0.0)(key, shape, dtype)


def constant(value: float) -> Initializer:
    """Sets every weight to the same value.

    All neurons of a layer then compute the same output, get the same gradient, and stay equal for
    ever, so the layer is worth one neuron. Random weights break that symmetry.

    Args:
      value: The value of each element, a number. It may be traced.

    Raises:
      TypeError: If value is not a number.
      ValueError: If it is not finite.

    Reference: Source C 6.2.

    >>> constant(0.5)(None, (2,)).tolist()
    [0.5, 0.5]
    """
    check_number("constant", "value", value)

    def init(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        del key
        _check_shape("constant", shape)
        check_dtype("constant", "dtype", dtype)
        return jnp.full(shape, value, dtype)

    return init


def normal(std: float | jax.Array = 0.01) -> Initializer:
    """Gaussian weights with a given standard deviation, w ~ N(0, std²).

    The source tries std = 1, for which sigmoid neurons saturate, and 0.01, for which all neurons
    compute the same.

    Args:
      std: The standard deviation, at least 0. It may be traced, for a sweep by `jax.vmap`.

    Raises:
      TypeError: If std is not a number.
      ValueError: If it is negative or not finite.

    Reference: Source C 6.2.
    """
    check_number("normal", "std", std, at_least=0)

    def init(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        _check("normal", key, shape, dtype)
        return jnp.asarray(std, dtype) * jax.random.normal(key, shape, dtype)

    return init


def lecun_normal(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Gaussian weights of variance 1/n, which preserve the variance through a linear layer.

    They suit sigmoid, tanh and identity, which are linear near 0.

    Reference: LeCun, Bottou, Orr & Müller, Efficient BackProp, 1998, equation 16.

    >>> lecun_normal(jax.random.key(0), (400, 300)).shape
    (400, 300)
    """
    return _gaussian("lecun_normal", key, shape, dtype, 1, _inputs)


def lecun_uniform(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Uniform weights of variance 1/n, within ±√(3/n); see `lecun_normal`.

    Reference: LeCun, Bottou, Orr & Müller, Efficient BackProp, 1998, equation 16.
    """
    return _uniform("lecun_uniform", key, shape, dtype, 1, _inputs)


def glorot_normal(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Gaussian weights of variance 2/(n + m), which is between 1/n and 1/m.

    1/n preserves the variance of activations through a linear layer, and 1/m that of gradients in
    the backward pass. This is Xavier initialization in its paper, JAX and PyTorch
    (`xavier_normal_`).

    Reference: Glorot & Bengio, Understanding the difficulty of training deep feedforward neural
    networks, 2010, equation 12.

    >>> glorot_normal(jax.random.key(0), (3, 3, 16, 32)).shape
    (3, 3, 16, 32)
    """
    return _gaussian("glorot_normal", key, shape, dtype, 2, _inputs_and_outputs)


def glorot_uniform(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Uniform weights of variance 2/(n + m), within ±√(6/(n + m)); see `glorot_normal`.

    Reference: Glorot & Bengio, Understanding the difficulty of training deep feedforward neural
    networks, 2010, equation 16.
    """
    return _uniform("glorot_uniform", key, shape, dtype, 2, _inputs_and_outputs)


def he_normal(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Gaussian weights of variance 2/n, twice LeCun's, because ReLU sets half of its inputs to 0.

    Reference: Source C 6.2; He, Zhang, Ren & Sun, Delving deep into rectifiers, 2015, equation 10,
    arXiv:1502.01852.

    >>> he_normal(jax.random.key(0), (400, 300)).shape
    (400, 300)
    """
    return _gaussian("he_normal", key, shape, dtype, 2, _inputs)


def he_uniform(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Uniform weights of variance 2/n, within ±√(6/n); see `he_normal`.

    Reference: He, Zhang, Ren & Sun, Delving deep into rectifiers, 2015, equation 10,
    arXiv:1502.01852.
    """
    return _uniform("he_uniform", key, shape, dtype, 2, _inputs)


def xavier(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """The book's name for `lecun_normal`, std √(1/n); elsewhere Xavier means `glorot_normal`.

    For simplicity, the book leaves out the number of outputs m in std √(2/(n + m)).

    Reference: Source C 6.2.

    >>> xavier(jax.random.key(0), (400, 300)).shape
    (400, 300)
    """
    return _gaussian("xavier", key, shape, dtype, 1, _inputs)


def he(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """The book's name for `he_normal`, std √(2/n).

    Reference: Source C 6.2.

    >>> he(jax.random.key(0), (400, 300)).shape
    (400, 300)
    """
    return _gaussian("he", key, shape, dtype, 2, _inputs)


def _gaussian(
    name: str,
    key: Any,
    shape: tuple[int, ...],
    dtype: Any,
    scale: float,
    count: Callable[[tuple[int, ...]], int],
) -> jax.Array:
    """Gaussian weights of variance scale / count(shape)."""
    _check(name, key, shape, dtype)
    return normal(math.sqrt(scale / count(shape)))(key, shape, dtype)


def _uniform(
    name: str,
    key: Any,
    shape: tuple[int, ...],
    dtype: Any,
    scale: float,
    count: Callable[[tuple[int, ...]], int],
) -> jax.Array:
    """Uniform weights of variance scale / count(shape)."""
    _check(name, key, shape, dtype)
    bound = math.sqrt(3 * scale / count(shape))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def _inputs(shape: tuple[int, ...]) -> int:
    """The number n of inputs of a neuron."""
    return max(1, math.prod(shape[:-1]))


def _inputs_and_outputs(shape: tuple[int, ...]) -> int:
    """The sum n + m, where m is the number of neurons that an input reaches."""
    return _inputs(shape) + max(1, math.prod(shape[:-2]) * math.prod(shape[-1:]))


def _check(function: str, key: Any, shape: Any, dtype: Any) -> None:
    check_key(function, key)
    _check_shape(function, shape)
    check_dtype(function, "dtype", dtype)


def _check_shape(function: str, shape: Any) -> None:
    if not isinstance(shape, tuple | list):
        raise TypeError(f"{function}: shape must be a tuple of integers, got {describe(shape)}")
    for i, size in enumerate(shape):
        check_int(function, f"shape[{i}]", size, at_least=0)
