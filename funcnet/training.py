"""Training: a step, an epoch as one compiled scan, and evaluation.

All are pure functions of plain pytrees. The optimizer is any `optax.GradientTransformation`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from funcnet.layers.base import Layer
from funcnet.ops.precision import wide_dtype

PerExample = Callable[[jax.Array, jax.Array], jax.Array]  # (y (n, ...), labels (n, ...)) -> (n,)


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
        """
        init_key, key = jax.random.split(key)
        params, state = model.init(init_key, x)
        return cls(params, state, optimizer.init(params), key, jnp.zeros((), jnp.int32))


def accuracy(y: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether the largest of the C outputs is at the label, for each example.

    Args:
      y: Outputs, shape (..., C).
      labels: Class indices, shape (...), or one-hot, the shape of y.

    Returns:
      0 or 1, shape (...), float32.

    >>> accuracy(jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([1, 1])).tolist()
    [1.0, 0.0]
    """
    index = labels.argmax(-1) if labels.ndim == y.ndim else labels
    return (y.argmax(-1) == index).astype(jnp.float32)


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
      optimizer: Any `optax.GradientTransformation`.
      metrics: More functions like loss, by name, to be reported for each batch.
      penalty: A term of the loss that depends on the parameters alone.

    Returns:
      `step(train_state, x, labels) -> (train_state, {"loss": L, name: mean of that metric, ...})`,
      a pure function; jit it, or hand it to `make_epoch`.
    """
    metrics = dict(metrics or {})

    def step(train_state: TrainState, x: Any, labels: Any):
        params, state, opt_state, key, i = train_state

        def objective(params):
            y, new_state = model.apply(params, state, x, key=_step_key(key, i), train=True)
            value = loss(y, labels).mean()
            if penalty is not None:
                value = value + penalty(params)
            measured = {name: f(y, labels).mean() for name, f in metrics.items()}
            return value, (new_state, {"loss": value, **measured})

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
      ValueError: If batch_size is out of range (from the epoch, if there are too few examples).
    """
    if batch_size < 1:
        raise ValueError(f"make_epoch: batch_size must be at least 1, got {batch_size}")

    @functools.partial(jax.jit, donate_argnums=0)
    def epoch(train_state: TrainState, x: Any, labels: Any):
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
      metrics: Functions `(y, labels) -> (n,)` by name.
      params: Of the model.
      state: Of the model.
      x: Inputs of any number of examples, at least 1, on the first axis.
      labels: Their labels.
      batch_size: How many examples at a time; the last batch may be smaller, and counts by its
        size. It limits the memory, and does not change the result.

    Returns:
      The mean of each metric, shape (), in float32 at least.

    Raises:
      ValueError: If there are no examples, or x and labels disagree on their number.
    """
    if batch_size < 1:
        raise ValueError(f"evaluate: batch_size must be at least 1, got {batch_size}")
    if _examples("evaluate", x, labels) == 0:
        raise ValueError("evaluate: x must hold at least one example, got none")
    items = tuple(metrics.items())
    return _evaluate(model, items, params, state, x, labels, batch_size=batch_size)


@functools.partial(jax.jit, static_argnames=("model", "metrics", "batch_size"))
def _evaluate(model, metrics, params, state, x, labels, *, batch_size):
    def total(x, labels):
        y, _ = model.apply(params, state, x)
        return {name: _sum(f(y, labels)) for name, f in metrics}

    n = _examples("evaluate", x, labels)
    full = n - n % batch_size
    data = (x, labels)
    batches = jax.tree.map(lambda a: a[:full].reshape(-1, batch_size, *a.shape[1:]), data)
    totals = jax.tree.map(lambda t: t.sum(0), jax.lax.map(lambda batch: total(*batch), batches))
    if full < n:
        rest = total(*jax.tree.map(lambda a: a[full:], data))
        totals = jax.tree.map(jnp.add, totals, rest)
    return jax.tree.map(lambda t: t / n, totals)


def _examples(f: str, x: Any, labels: Any) -> int:
    """The number of examples, which all leaves must share."""
    sizes = {a.shape[0] for a in jax.tree.leaves((x, labels))}
    if len(sizes) != 1:
        raise ValueError(f"{f}: x and labels must have as many examples, got {sorted(sizes)}")
    return sizes.pop()


def _shuffle(key: Any, n: int) -> jax.Array:
    """The numbers 0 to n − 1 in the order of n random words, of which hardly any are equal.

    `jax.random.permutation` sorts twice, to be exact also where many are; on a CPU a sort of 60,000
    takes as long as several steps.
    """
    return jnp.argsort(jax.random.bits(key, (n,), jnp.uint32))


def _sum(values: jax.Array) -> jax.Array:
    """The sum over all examples, which a narrow dtype could not hold; booleans are counted."""
    wide = wide_dtype(values.dtype) if jnp.issubdtype(values.dtype, jnp.floating) else None
    return values.sum(dtype=wide)


def _step_key(key: Any, step: jax.Array) -> jax.Array:
    return jax.random.fold_in(key, 2 * step)


def _shuffle_key(key: Any, step: jax.Array) -> jax.Array:
    return jax.random.fold_in(key, 2 * step + 1)  # odd: no step's key
