"""Training: a step, an epoch as one compiled scan, and evaluation.

All are pure functions of plain pytrees. The optimizer is any `optax.GradientTransformation`.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from funcnet._arguments import (
    check_array,
    check_int,
    check_key,
    check_tree,
    describe,
    is_array,
    kind,
)
from funcnet._arrays import wide_dtype
from funcnet.layers.base import Layer

__all__ = ["TrainState", "accuracy", "evaluate", "make_epoch", "make_step"]

# (y (n, ...), labels (n, ...)) -> values (n, ...) of the examples; or a scalar, their mean.
PerExample = Callable[[jax.Array, jax.Array], jax.Array]


class TrainState(NamedTuple):
    """All that training changes, and the key that makes it reproducible.

    params, state: Those of the model.
    opt_state: That of the optimizer.
    key: The PRNG key of the run. It never changes: step i draws from `fold_in(key, ...i...)`.
    step: How many steps have been done; int32, shape ().
    """

    params: Any
    state: Any
    opt_state: Any
    key: Any
    step: jax.Array

    @classmethod
    def create(
        cls, model: Layer, optimizer: optax.GradientTransformation, key: Any, x: Any
    ) -> "TrainState":
        """The state before the first step.

        Args:
          model: The network.
          optimizer: Any `optax.GradientTransformation`.
          key: A PRNG key: it decides initial weights, order of the examples and dropout.
          x: One batch of inputs, or a `jax.ShapeDtypeStruct`; only shape and dtype matter.

        Raises:
          TypeError: If an argument is not what it must be.
        """
        _check_model("TrainState.create", model)
        _check_optimizer("TrainState.create", optimizer)
        check_key("TrainState.create", key)
        init_key, key = jax.random.split(key)
        params, state = model.init(init_key, x)
        return cls(params, state, optimizer.init(params), key, jnp.zeros((), jnp.int32))


def accuracy(y: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether the largest of the C outputs is at the label, for each example.

    Args:
      y: Outputs, shape (..., C), real.
      labels: Class indices, shape (...), integers; or one-hot, the shape of y.

    Returns:
      0 or 1, shape (...), float32; nan where an output is nan or the index is not in [0, C).

    Raises:
      TypeError: If y or labels is no array, or y is complex.
      ValueError: If the shapes do not fit.

    >>> accuracy(jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([1, 1])).tolist()
    [1.0, 0.0]
    """
    check_array("accuracy", "y", y)
    check_array("accuracy", "labels", labels)
    y, labels = jnp.asarray(y), jnp.asarray(labels)
    if jnp.issubdtype(y.dtype, jnp.complexfloating):
        raise TypeError(f"accuracy: y must be real, got {describe(y)}")
    one_hot = labels.shape == y.shape
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
    right = y.argmax(-1).astype(jnp.int32) == index
    return jnp.where(known, right.astype(jnp.float32), jnp.nan)


def make_step(
    model: Layer,
    loss: PerExample,
    optimizer: optax.GradientTransformation,
    *,
    metrics: Mapping[str, PerExample] | None = None,
    penalty: Callable[[Any], jax.Array] | None = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Builds one step of gradient descent on a minibatch.

        L = ⟨loss(y, labels)⟩ + penalty(params),   y = model(params, x)

    Args:
      model: The network.
      loss: `(y, labels) -> (n,)`, a loss of each example (`funcnet.ops.softmax_cross_entropy`).
        Values of shape (n, ...) are fine too, and a scalar, which is a mean already.
      optimizer: Any `optax.GradientTransformation`.
      metrics: More functions like loss, by name, to be reported for each batch; not by "loss".
      penalty: `params -> scalar`, a term of the loss that depends on the parameters alone.

    Returns:
      `step(train_state, x, labels) -> (train_state, {"loss": L, name: mean of that metric, ...})`,
      a pure function; jit it, or hand it to `make_epoch`. The means are in float32 at least.

    Raises:
      TypeError: If an argument is not what it must be; from the step, if what it is given or what
        these functions return is no array.
      ValueError: If a metric is called "loss"; from the step, if x and labels disagree on the
        number of examples, a function returns another shape than it must, or the state of the
        optimizer is that of another optimizer or other params.
    """
    _check_model("make_step", model)
    _check_function("make_step", "loss", loss, 2)
    _check_optimizer("make_step", optimizer)
    metrics = _check_metrics("make_step", {} if metrics is None else metrics)
    if "loss" in metrics:
        raise ValueError('make_step: metrics must not be called "loss", as the loss is reported so')
    if penalty is not None:
        _check_function("make_step", "penalty", penalty, 1)

    def step(train_state: TrainState, x: Any, labels: Any):
        _check_train_state("step", train_state)
        params, state, opt_state, key, i = train_state
        like = jax.eval_shape(optimizer.init, params)
        check_tree("step", "opt_state", opt_state, "optimizer.init(params)", like)
        n = _examples("step", x, labels)

        def objective(params):
            y, new_state = model.apply(params, state, x, key=_step_key(key, i), train=True)
            values = _values("step", "loss", loss(y, labels), n)
            if not jnp.issubdtype(values.dtype, jnp.floating):
                raise TypeError(f"step: loss must return floating numbers, got {describe(values)}")
            value = values.mean(dtype=_dtype(values))
            if penalty is not None:
                term = penalty(params)
                if not is_array(term) or jnp.shape(term):
                    raise ValueError(f"step: penalty must return a scalar, got {describe(term)}")
                value = value + jnp.asarray(term, value.dtype)
            measured = {"loss": value}
            for name, metric in metrics.items():
                values = _values("step", f"metrics['{name}']", metric(y, labels), n)
                measured[name] = values.mean(dtype=_dtype(values))
            return value, (new_state, measured)

        grads, (state, measured) = jax.grad(objective, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return TrainState(params, state, opt_state, key, i + 1), measured

    return step


def make_epoch(
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]], *, batch_size: int
) -> jax.stages.Wrapped:
    """Builds an epoch: all examples in a random order, in minibatches, as one compiled scan.

    The examples stay on the device, and only their indices are shuffled. If batch_size does not
    divide their number, the remainder of each epoch's order is left out: other examples each time.

    Args:
      step: From `make_step`, or any function `(train_state, x, labels) -> (train_state, metrics)`.
      batch_size: Examples in a minibatch, from 1 to the number of examples.

    Returns:
      `epoch(train_state, x, labels) -> (train_state, metrics)`, a jitted function, with metrics of
      shape (steps,). It takes over the buffers of train_state, so use the returned one afterwards.

    Raises:
      TypeError: If step is no function or batch_size no integer; from the epoch, if x is no array.
      ValueError: If batch_size is out of range (from the epoch, if there are too few examples), or
        x and labels disagree on the number of examples.
    """
    _check_function("make_epoch", "step", step, 3)
    batch_size = check_int("make_epoch", "batch_size", batch_size, at_least=1)

    @functools.partial(jax.jit, donate_argnums=0)
    def epoch(train_state: TrainState, x: Any, labels: Any):
        check_key("epoch", getattr(train_state, "key", None), "train_state.key")
        n = _examples("epoch", x, labels)
        if batch_size > n:
            raise ValueError(f"epoch: batch_size must be at most {n} examples, got {batch_size}")
        steps = n // batch_size
        order = _shuffle(_shuffle_key(train_state.key, train_state.step), n)
        batches = order[: steps * batch_size].reshape(steps, batch_size)
        take = lambda i: jax.tree.map(lambda a: a[i], (x, labels))
        return jax.lax.scan(lambda ts, i: step(ts, *take(i)), train_state, batches)

    return epoch


def evaluate(
    model: Layer,
    metrics: Mapping[str, PerExample],
    params: Any,
    state: Any,
    x: Any,
    labels: Any,
    *,
    batch_size: int = 1000,
) -> dict[str, jax.Array]:
    """The means of metrics over all examples, with the model in inference mode.

    Args:
      model: The network.
      metrics: Functions `(y, labels) -> values` by name. They return an array of shape (n, ...)
        for n examples, of which the mean over all elements is taken (for each word of a text, say),
        or a scalar, the mean of its batch, which counts by the size of the batch.
      params: Of the model.
      state: Of the model.
      x: Inputs of any number of examples, at least 1, on the first axis.
      labels: Their labels.
      batch_size: How many examples at a time; the last batch may be smaller, and counts by its
        size. It limits the memory, and does not change the result.

    Returns:
      The mean of each metric, shape (), in float32 at least.

    Raises:
      TypeError: If an argument is not what it must be, or a metric returns no array.
      ValueError: If there are no examples, x and labels disagree on their number, or a metric
        returns an array of another shape.
    """
    _check_model("evaluate", model)
    metrics = _check_metrics("evaluate", metrics)
    batch_size = check_int("evaluate", "batch_size", batch_size, at_least=1)
    n = _examples("evaluate", x, labels)
    if n == 0:
        raise ValueError("evaluate: x must hold at least one example, got none")
    batch_size, items = min(batch_size, n), tuple(metrics.items())
    return _evaluate(model, items, params, state, x, labels, batch_size=batch_size)


@functools.partial(jax.jit, static_argnames=("model", "metrics", "batch_size"))
def _evaluate(model, metrics, params, state, x, labels, *, batch_size):
    def total(x, labels):
        y, _ = model.apply(params, state, x)
        size = _examples("evaluate", x, labels)
        values = lambda name, f: _values("evaluate", f"metrics['{name}']", f(y, labels), size)
        return {name: _total(values(name, f), size) for name, f in metrics}

    n = _examples("evaluate", x, labels)
    full = n - n % batch_size
    data = (x, labels)
    batches = jax.tree.map(lambda a: a[:full].reshape(-1, batch_size, *a.shape[1:]), data)
    totals = jax.tree.map(lambda t: t.sum(0), jax.lax.map(lambda batch: total(*batch), batches))
    if full < n:
        rest = total(*jax.tree.map(lambda a: a[full:], data))
        totals = jax.tree.map(jnp.add, totals, rest)
    return jax.tree.map(lambda t: t / n, totals)


def _check_model(f: str, model: Any) -> None:
    if not isinstance(model, Layer):
        raise TypeError(f"{f}: model must be a layer, got {describe(model)}")


def _check_optimizer(f: str, optimizer: Any) -> None:
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"{f}: optimizer must be an optax.GradientTransformation, got {describe(optimizer)}"
        )


def _check_function(f: str, name: str, function: Any, arguments: int) -> None:
    """Raises a TypeError unless `function` can be called with that number of arguments."""
    if not callable(function):
        raise TypeError(f"{f}: {name} must be a function, got {describe(function)}")
    try:
        inspect.signature(function).bind(*range(arguments))
    except TypeError as e:
        raise TypeError(f"{f}: {name} must take {arguments} arguments: {e}") from None
    except ValueError:  # a builtin function has no signature
        pass


def _check_metrics(f: str, metrics: Any) -> dict[str, PerExample]:
    if not isinstance(metrics, Mapping):
        raise TypeError(f"{f}: metrics must be a dict of functions, got {describe(metrics)}")
    for name, metric in metrics.items():
        if not isinstance(name, str):
            raise TypeError(f"{f}: metrics must have strings as names, got {describe(name)}")
        _check_function(f, f"metrics[{name!r}]", metric, 2)
    return dict(metrics)


def _check_train_state(f: str, train_state: Any) -> None:
    if not isinstance(train_state, TrainState):
        raise TypeError(f"{f}: train_state must be a TrainState, got {kind(train_state)}")
    check_key(f, train_state.key, "train_state.key")


def _examples(f: str, x: Any, labels: Any) -> int:
    """The number of examples, which all leaves must share."""
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
        raise ValueError(f"{f}: x and labels must have as many examples, got {sorted(sizes)}")
    return sizes.pop()


def _shuffle(key: Any, n: int) -> jax.Array:
    """The numbers 0 to n − 1 in the order of n random words, of which hardly any are equal.

    `jax.random.permutation` sorts twice, to be exact also where many are; on a CPU a sort of 60,000
    takes as long as several steps.
    """
    return jnp.argsort(jax.random.bits(key, (n,), jnp.uint32))


def _values(f: str, name: str, values: Any, n: int) -> jax.Array:
    """What a loss or a metric returned: an array of shape (n, ...), or a scalar."""
    if not is_array(values):
        raise TypeError(f"{f}: {name} must return an array, got {kind(values)}")
    values = jnp.asarray(values)
    if values.shape and values.shape[0] != n:
        raise ValueError(
            f"{f}: {name} must return an array of shape ({n}, ...) for {n} examples, or a scalar, "
            f"got {describe(values)}"
        )
    return values


def _total(values: jax.Array, n: int) -> jax.Array:
    """The sum of the means of n examples; a scalar counts for each of them."""
    values = jnp.broadcast_to(values, (n, *values.shape[1:]))
    return values.sum(dtype=_dtype(values)) / (values.size // n)


def _dtype(values: jax.Array) -> Any:
    """Of sums and means: float32 at least, as a narrow dtype has too few digits for them."""
    return wide_dtype(values.dtype) if jnp.issubdtype(values.dtype, jnp.floating) else None


def _step_key(key: Any, step: jax.Array) -> jax.Array:
    return jax.random.fold_in(key, 2 * step)


def _shuffle_key(key: Any, step: jax.Array) -> jax.Array:
    return jax.random.fold_in(key, 2 * step + 1)  # odd: no step's key
