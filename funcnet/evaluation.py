"""Evaluation: means of metrics over all examples."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from funcnet._arguments import (
    check_array,
    check_arrays,
    check_function,
    check_int,
    describe,
    is_array,
    kind,
)
from funcnet._arrays import wide_dtype
from funcnet.layers.base import Layer
from funcnet.sharding import Plan, activated

__all__ = ["accuracy", "evaluate"]

# (y (n, ...), labels (n, ...)) -> values (n, ...) for n examples, or a scalar, their mean.
PerExample = Callable[[jax.Array, jax.Array], jax.Array]


def accuracy(y: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether the label of each example has the largest of the C outputs.

    Args:
      y: Outputs, shape (..., C), of a real floating dtype.
      labels: Class indices, integers of shape (...); or one-hot labels of the shape of y, which
        must not be integers if the shape is (C,), the shape of C indices.

    Returns:
      0 or 1, shape (...), float32; nan where an output is nan, the index is not in [0, C), or a
      one-hot label has no positive element.

    Raises:
      TypeError: If y or labels is not an array, or y does not hold real floats.
      ValueError: If the shapes do not match.

    >>> accuracy(jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([1, 1])).tolist()
    [1.0, 0.0]
    """
    check_array("accuracy", "y", y)
    check_array("accuracy", "labels", labels)
    y, labels = jnp.asarray(y), jnp.asarray(labels)
    if not jnp.issubdtype(y.dtype, jnp.floating):
        raise TypeError(f"accuracy: y must be of a real floating dtype, got {describe(y)}")
    one_hot = labels.shape == y.shape
    if y.ndim == 1 and one_hot and jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"accuracy: y must have shape (n, C) for n labels, got {y.shape} and {labels.shape}"
        )
    integer = jnp.issubdtype(labels.dtype, jnp.integer)
    if not y.shape or y.shape[-1] < 2:
        raise ValueError(f"accuracy: y must have shape (..., C) with C > 1, got {y.shape}")
    if not (one_hot or (labels.shape == y.shape[:-1] and integer)):
        raise ValueError(
            f"accuracy: labels must have shape {y.shape}, or {y.shape[:-1]} and an integer dtype, "
            f"got {labels.shape} and {labels.dtype}"
        )
    index = (labels.argmax(-1) if one_hot else labels).astype(jnp.int32)
    known = ~jnp.isnan(y.max(-1)) & (index >= 0) & (index < y.shape[-1])
    if one_hot:
        known &= labels.max(-1) > 0
    right = y.argmax(-1).astype(jnp.int32) == index
    return jnp.where(known, right.astype(jnp.float32), jnp.nan)


def evaluate(
    model: Layer,
    metrics: Mapping[str, PerExample],
    params: Any,
    state: Any,
    x: Any,
    labels: Any,
    *,
    batch_size: int = 1000,
    sharding: Plan | None = None,
) -> dict[str, jax.Array]:
    """Computes the means of metrics over all examples, with the model in inference mode.

    Args:
      model: The network.
      metrics: Functions `(y, labels) -> values` by name. For n examples they return an array of
        shape (n, ...), whose mean over all elements is taken (say, over the words of a text), or a
        scalar, the mean of the batch, which is weighted by the size of the batch.
      params: The params of the model.
      state: The state of the model.
      x: Inputs; the first axis runs over the examples, of which there is at least 1.
      labels: The labels of the examples.
      batch_size: The number of examples per batch. The last batch may be smaller and is weighted by
        its size. batch_size limits the memory and does not change the result.
      sharding: As in `funcnet.training.make_step`. Its devices must divide batch_size.

    Returns:
      The mean of each metric, shape (), in float32 or wider.

    Raises:
      TypeError: If an argument has the wrong type, or a metric does not return an array.
      ValueError: If there are no examples, x and labels have different numbers of examples, or a
        metric returns an array of another shape.
    """
    check_model("evaluate", model)
    metrics = check_metrics("evaluate", metrics)
    batch_size = check_int("evaluate", "batch_size", batch_size, at_least=1)
    check_arrays("evaluate", "params", params)
    check_arrays("evaluate", "state", state)
    n = examples_of("evaluate", x, labels)
    if n == 0:
        raise ValueError("evaluate: x must hold at least one example, got none")
    batch_size, items = min(batch_size, n), tuple(metrics.items())
    with activated("evaluate", sharding):
        return _evaluate(model, items, params, state, x, labels, batch_size=batch_size)


@functools.partial(jax.jit, static_argnames=("model", "metrics", "batch_size"))
def _evaluate(model, metrics, params, state, x, labels, *, batch_size):
    def total(x, labels):
        y, _ = model.apply(params, state, x)
        size = examples_of("evaluate", x, labels)
        values = lambda name, f: values_of("evaluate", f"metrics['{name}']", f(y, labels), size)
        return {name: _total(values(name, f), size) for name, f in metrics}

    n = examples_of("evaluate", x, labels)
    full = n - n % batch_size
    data = (x, labels)
    batches = jax.tree.map(lambda a: a[:full].reshape(-1, batch_size, *a.shape[1:]), data)
    totals = jax.tree.map(lambda t: t.sum(0), jax.lax.map(lambda batch: total(*batch), batches))
    if full < n:
        rest = total(*jax.tree.map(lambda a: a[full:], data))
        totals = jax.tree.map(jnp.add, totals, rest)
    return jax.tree.map(lambda t: t / n, totals)


def check_model(f: str, model: Any) -> None:
    if not isinstance(model, Layer):
        raise TypeError(f"{f}: model must be a layer, got {describe(model)}")


def check_metrics(f: str, metrics: Any) -> dict[str, PerExample]:
    if not isinstance(metrics, Mapping):
        raise TypeError(f"{f}: metrics must be a dict of functions, got {describe(metrics)}")
    for name, metric in metrics.items():
        if not isinstance(name, str):
            raise TypeError(f"{f}: metrics must have strings as names, got {describe(name)}")
        check_function(f, f"metrics[{name!r}]", metric, 2)
    return dict(metrics)


def examples_of(f: str, x: Any, labels: Any) -> int:
    """Returns the number of examples; raises an error unless all leaves have the same number."""
    for name, data in (("x", x), ("labels", labels)):
        if isinstance(data, list):
            raise TypeError(f"{f}: {name} must be an array, got list")
        for path, leaf in jax.tree.leaves_with_path(data):
            leaf_name = name + jax.tree_util.keystr(path)
            check_array(f, leaf_name, leaf)
            if not getattr(leaf, "shape", ()):
                raise ValueError(f"{f}: {leaf_name} must have an axis of examples, got a scalar")
    sizes = {len(a) for a in jax.tree.leaves((x, labels))}
    if len(sizes) != 1:
        raise ValueError(
            f"{f}: x and labels must have the same number of examples, got {sorted(sizes)}"
        )
    return sizes.pop()


def values_of(f: str, name: str, values: Any, n: int) -> jax.Array:
    """Checks the result of a loss or a metric: an array of shape (n, ...), or a scalar."""
    if not is_array(values):
        raise TypeError(f"{f}: {name} must return an array, got {kind(values)}")
    values = jnp.asarray(values)
    if values.size == 0 or (values.shape and values.shape[0] != n):
        raise ValueError(
            f"{f}: {name} must return an array of shape ({n}, ...) for {n} examples, or a scalar, "
            f"got {describe(values)}"
        )
    return values


def _total(values: jax.Array, n: int) -> jax.Array:
    """Sums the means of n examples; a scalar counts once for each of them."""
    values = jnp.broadcast_to(values, (n, *values.shape[1:]))
    return values.sum(dtype=dtype_of_mean(values)) / (values.size // n)


def dtype_of_mean(values: jax.Array) -> Any:
    """The dtype of sums and means: float32 or wider, as a narrow dtype has too few digits."""
    return wide_dtype(values.dtype) if jnp.issubdtype(values.dtype, jnp.floating) else None
