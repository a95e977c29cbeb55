"""Training: a step, an epoch as one compiled scan, and evaluation.

They are pure functions of plain pytrees. The optimizer is any `optax.GradientTransformation`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from funcnet._arguments import (
    check_array,
    check_arrays,
    check_count,
    check_function,
    check_int,
    check_key,
    check_tree,
    describe,
    is_array,
    kind,
)
from funcnet._arrays import wide_dtype
from funcnet.layers.base import Layer
from funcnet.sharding import Plan, activated

__all__ = ["TrainState", "accuracy", "evaluate", "make_epoch", "make_step"]

# (y (n, ...), labels (n, ...)) -> values (n, ...) for n examples, or a scalar, their mean.
PerExample = Callable[[jax.Array, jax.Array], jax.Array]


class TrainState(NamedTuple):
    """Everything that training changes, and the key that makes a run reproducible.

    params, state: The params and state of the model.
    opt_state: The state of the optimizer.
    key: The PRNG key of the run. It never changes: step i uses `fold_in(key, 2 i)`, and an epoch
      that begins at step i is shuffled with `fold_in(key, 2 i + 1)`.
    step: The number of steps done, int32 of shape ().
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
        """Creates the state before the first step.

        Args:
          model: The network.
          optimizer: Any `optax.GradientTransformation`.
          key: A PRNG key: it determines initial weights, order of the examples and dropout.
          x: One batch of inputs, or a `jax.ShapeDtypeStruct`; only shape and dtype are used.

        Raises:
          TypeError: If an argument has the wrong type.
        """
        _check_model("TrainState.create", model)
        _check_optimizer("TrainState.create", optimizer)
        check_key("TrainState.create", key)
        init_key, key = jax.random.split(key)
        params, state = model.init(init_key, x)
        return cls(params, state, optimizer.init(params), key, jnp.zeros((), jnp.int32))


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


def make_step(
    model: Layer,
    loss: PerExample,
    optimizer: optax.GradientTransformation,
    *,
    metrics: Mapping[str, PerExample] | None = None,
    penalty: Callable[[Any], jax.Array] | None = None,
    sharding: Plan | None = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Builds one step of gradient descent on a minibatch.

        L = ⟨loss(y, labels)⟩ + penalty(params),   y = model(params, x)

    Args:
      model: The network.
      loss: `(y, labels) -> (n,)`, one loss per example, such as
        `funcnet.ops.softmax_cross_entropy`. It may also return values of shape (n, ...), or a
        scalar that is already the mean.
      optimizer: Any `optax.GradientTransformation`.
      metrics: More functions like loss, by name, whose mean is reported for each batch. "loss" is
        not allowed as a name.
      penalty: `params -> scalar`, a term of the loss that depends only on the parameters.
      sharding: How arrays are divided over devices, such as `funcnet.sharding.fsdp(mesh)`.

    Returns:
      `step(train_state, x, labels) -> (train_state, {"loss": L, name: mean of that metric, ...})`,
      a pure function; jit it, or pass it to `make_epoch`. The means are in float32 or wider.

    Raises:
      TypeError: If an argument has the wrong type; in the step, if an input or the result of one of
        these functions is not an array.
      ValueError: If a metric is called "loss"; in the step, if there are no examples, x and labels
        have different numbers of examples, a function returns a wrong shape, or the state of the
        optimizer belongs to another optimizer or other params.
    """
    _check_model("make_step", model)
    check_function("make_step", "loss", loss, 2)
    _check_optimizer("make_step", optimizer)
    metrics = _check_metrics("make_step", {} if metrics is None else metrics)
    if "loss" in metrics:
        raise ValueError('make_step: metrics must not be called "loss", as the loss is reported so')
    if penalty is not None:
        check_function("make_step", "penalty", penalty, 1)
    activated("make_step", sharding)

    def step(train_state: TrainState, x: Any, labels: Any):
        _check_train_state("step", train_state)
        params, state, opt_state, key, i = train_state
        like = jax.eval_shape(optimizer.init, params)
        check_tree("step", "opt_state", opt_state, "optimizer.init(params)", like)
        n = _examples("step", x, labels)
        if n == 0:
            raise ValueError("step: x must hold at least one example, got none")

        def objective(params):
            y, new_state = model.apply(params, state, x, key=_step_key(key, i), train=True)
            values = _values("step", "loss", loss(y, labels), n)
            if not jnp.issubdtype(values.dtype, jnp.floating):
                raise TypeError(f"step: loss must return floating numbers, got {describe(values)}")
            value = values.mean(dtype=_dtype(values))
            if penalty is not None:
                term = penalty(params)
                if not is_array(term) or jnp.shape(term) or jnp.iscomplexobj(term):
                    raise ValueError(
                        f"step: penalty must return a real scalar, got {describe(term)}"
                    )
                value = value + jnp.asarray(term, value.dtype)
            measured = {"loss": value}
            for name, metric in metrics.items():
                values = _values("step", f"metrics['{name}']", metric(y, labels), n)
                measured[name] = values.mean(dtype=_dtype(values))
            return value, (new_state, measured)

        with activated("make_step", sharding):
            grads, (state, measured) = jax.grad(objective, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        done = TrainState(params, state, opt_state, key, i + 1)
        return done if sharding is None else sharding.keep(done), measured

    return step


def make_epoch(
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]], *, batch_size: int
) -> jax.stages.Wrapped:
    """Builds an epoch: one compiled scan over minibatches of all examples in a random order.

    The examples stay on the device, and only their indices are shuffled. If batch_size does not
    divide the number of examples, the last ones of the random order are left out of that epoch;
    they are different examples in every epoch.

    Args:
      step: From `make_step`, or any function `(train_state, x, labels) -> (train_state, metrics)`.
      batch_size: The size of a minibatch, from 1 to the number of examples.

    Returns:
      `epoch(train_state, x, labels) -> (train_state, metrics)`, a jitted function, with metrics of
      shape (steps,). It donates the buffers of train_state, so use the returned one afterwards.

    Raises:
      TypeError: If step is not a function or batch_size is not an integer; in the epoch, if x is
        not an array.
      ValueError: If batch_size is less than 1; in the epoch, if there are fewer than batch_size
        examples, or x and labels have different numbers of examples.
    """
    check_function("make_epoch", "step", step, 3)
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
      sharding: As in `make_step`. The number of devices must divide batch_size.

    Returns:
      The mean of each metric, shape (), in float32 or wider.

    Raises:
      TypeError: If an argument has the wrong type, or a metric does not return an array.
      ValueError: If there are no examples, x and labels have different numbers of examples, or a
        metric returns an array of another shape.
    """
    _check_model("evaluate", model)
    metrics = _check_metrics("evaluate", metrics)
    batch_size = check_int("evaluate", "batch_size", batch_size, at_least=1)
    check_arrays("evaluate", "params", params)
    check_arrays("evaluate", "state", state)
    n = _examples("evaluate", x, labels)
    if n == 0:
        raise ValueError("evaluate: x must hold at least one example, got none")
    batch_size, items = min(batch_size, n), tuple(metrics.items())
    with activated("evaluate", sharding):
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


def _check_metrics(f: str, metrics: Any) -> dict[str, PerExample]:
    if not isinstance(metrics, Mapping):
        raise TypeError(f"{f}: metrics must be a dict of functions, got {describe(metrics)}")
    for name, metric in metrics.items():
        if not isinstance(name, str):
            raise TypeError(f"{f}: metrics must have strings as names, got {describe(name)}")
        check_function(f, f"metrics[{name!r}]", metric, 2)
    return dict(metrics)


def _check_train_state(f: str, train_state: Any) -> None:
    if not isinstance(train_state, TrainState):
        raise TypeError(f"{f}: train_state must be a TrainState, got {kind(train_state)}")
    check_key(f, train_state.key, "train_state.key")
    check_count(f, "train_state.step", train_state.step)


def _examples(f: str, x: Any, labels: Any) -> int:
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


def _shuffle(key: Any, n: int) -> jax.Array:
    """A random permutation of 0 to n − 1, by sorting random 32-bit words (ties are rare).

    `jax.random.permutation` sorts twice, to be exact even with many ties; on a CPU one sort of
    60,000 words takes as long as several steps.
    """
    return jnp.argsort(jax.random.bits(key, (n,), jnp.uint32))


def _values(f: str, name: str, values: Any, n: int) -> jax.Array:
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
    return values.sum(dtype=_dtype(values)) / (values.size // n)


def _dtype(values: jax.Array) -> Any:
    """The dtype of sums and means: float32 or wider, as a narrow dtype has too few digits."""
    return wide_dtype(values.dtype) if jnp.issubdtype(values.dtype, jnp.floating) else None


def _step_key(key: Any, step: jax.Array) -> jax.Array:
    return jax.random.fold_in(key, 2 * step)


def _shuffle_key(key: Any, step: jax.Array) -> jax.Array:
    return jax.random.fold_in(key, 2 * step + 1)  # odd, so it is not the key of a step
