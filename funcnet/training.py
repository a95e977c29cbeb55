"""Training: a step, and an epoch as one compiled scan.

They are pure functions of plain pytrees. The optimizer is any `optax.GradientTransformation`.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from funcnet._arguments import (
    check_count,
    check_function,
    check_int,
    check_key,
    check_tree,
    describe,
    is_array,
    kind,
)
from funcnet.evaluation import (
    PerExample,
    accuracy,
    check_metrics,
    check_model,
    dtype_of_mean,
    evaluate,
    examples_of,
    values_of,
)
from funcnet.layers.base import Layer
from funcnet.sharding import Plan, activated

__all__ = ["TrainState", "accuracy", "evaluate", "make_epoch", "make_step"]


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
        check_model("TrainState.create", model)
        _check_optimizer("TrainState.create", optimizer)
        check_key("TrainState.create", key)
        init_key, key = jax.random.split(key)
        params, state = model.init(init_key, x)
        step = jnp.zeros((), jnp.int32)
        return _distinct(cls(params, state, optimizer.init(params), key, step))


def make_step(
    model: Layer,
    loss: PerExample,
    optimizer: optax.GradientTransformation,
    *,
    metrics: Mapping[str, PerExample] | None = None,
    penalty: Callable[[Any], jax.Array] | None = None,
    parts: int = 1,
    sharding: Plan | None = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Builds one step of gradient descent on a minibatch.

        L = ⟨loss(y, labels)⟩ + penalty(params),   y = model(params, x)

    Args:
      model: The network.
      loss: `(y, labels) -> (n,)`, one loss per example, such as
        `funcnet.ops.softmax_cross_entropy`. It may also return values of shape (n, ...), or a
        scalar that is already the mean.
      optimizer: Any `optax.GradientTransformation`. It is also given L as `value`, the gradient as
        `grad`, and L as a function of params as `value_fn`, if its `update` takes them.
      metrics: More functions like loss, by name, whose mean is reported for each batch. "loss" is
        not allowed as a name.
      penalty: `params -> scalar`, a term of the loss that depends only on the parameters.
      parts: The number of equal parts into which a minibatch is divided; gradients are accumulated
        over them in a scan, which takes the memory of one part. The result is that of the whole
        minibatch to rounding, except that Batch Normalization sees one part at a time, and dropout
        draws for each part. A loss or metric that is a scalar must be a mean over the examples.
      sharding: How arrays are divided over devices, such as `funcnet.sharding.fsdp(mesh)`.

    Returns:
      `step(train_state, x, labels) -> (train_state, {"loss": L, name: mean of that metric, ...})`,
      a pure function; jit it, or pass it to `make_epoch`. The means are in float32 or wider.

    Raises:
      TypeError: If an argument has the wrong type; in the step, if an input or the result of one of
        these functions is not an array.
      ValueError: If a metric is called "loss" or parts is less than 1; in the step, if there are no
        examples, x and labels have different numbers of them, which parts must divide, a function
        returns a wrong shape, or the state of the optimizer belongs to another optimizer or other
        params.
    """
    check_model("make_step", model)
    check_function("make_step", "loss", loss, 2)
    _check_optimizer("make_step", optimizer)
    metrics = check_metrics("make_step", {} if metrics is None else metrics)
    if "loss" in metrics:
        raise ValueError('make_step: metrics must not be called "loss", as the loss is reported so')
    if penalty is not None:
        check_function("make_step", "penalty", penalty, 1)
    activated("make_step", sharding)
    accepted = _accepted_by(optimizer.update)
    parts = check_int("make_step", "parts", parts, at_least=1)

    def step(train_state: TrainState, x: Any, labels: Any):
        _check_train_state("step", train_state)
        params, state, opt_state, key, i = train_state
        like = jax.eval_shape(optimizer.init, params)
        check_tree("step", "opt_state", opt_state, "optimizer.init(params)", like)
        n = examples_of("step", x, labels)
        if n == 0:
            raise ValueError("step: x must hold at least one example, got none")
        if n % parts:
            raise ValueError(f"step: parts must divide the {n} examples of x, got {parts}")

        def objective(params, state, key, x, labels):
            y, new_state = model.apply(params, state, x, key=key, train=True)
            values = values_of("step", "loss", loss(y, labels), n // parts)
            if not jnp.issubdtype(values.dtype, jnp.floating):
                raise TypeError(f"step: loss must return floating numbers, got {describe(values)}")
            value = values.mean(dtype=dtype_of_mean(values))
            if penalty is not None:
                term = penalty(params)
                if not is_array(term) or jnp.shape(term) or jnp.iscomplexobj(term):
                    raise ValueError(
                        f"step: penalty must return a real scalar, got {describe(term)}"
                    )
                value = value + jnp.asarray(term, value.dtype)
            measured = {"loss": value}
            for name, metric in metrics.items():
                values = values_of("step", f"metrics['{name}']", metric(y, labels), n // parts)
                measured[name] = values.mean(dtype=dtype_of_mean(values))
            return value, (new_state, measured)

        def whole(f, params):
            f = functools.partial(f, params)
            return _over_parts(f, state, _step_key(key, i), (x, labels), parts)

        with activated("make_step", sharding):
            grads, (new_state, measured) = whole(jax.grad(objective, has_aux=True), params)
            value_fn = lambda params: whole(objective, params)[0]
            more = accepted(value=measured["loss"], grad=grads, value_fn=value_fn)
            updates, opt_state = optimizer.update(grads, opt_state, params, **more)
        params = optax.apply_updates(params, updates)
        done = TrainState(params, new_state, opt_state, key, i + 1)
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
        n = examples_of("epoch", x, labels)
        if batch_size > n:
            raise ValueError(f"epoch: batch_size must be at most {n} examples, got {batch_size}")
        steps = n // batch_size
        order = _shuffle(_shuffle_key(train_state.key, train_state.step), n)
        batches = order[: steps * batch_size].reshape(steps, batch_size)
        take = lambda i: jax.tree.map(lambda a: a[i], (x, labels))
        return jax.lax.scan(lambda ts, i: step(ts, *take(i)), train_state, batches)

    return epoch


def _over_parts(f: Callable[..., Any], state: Any, key: Any, data: Any, parts: int) -> Any:
    """Calls f(state, key, *data) -> (out, (state, measured)) for one part after another.

    Returns:
      (mean of out, (last state, mean of measured)). The sums are in float32 or wider.
    """
    if parts == 1:
        return f(state, key, *data)
    # Each part is every parts-th example, so that it is shared by all devices as the minibatch is.
    split = jax.tree.map(lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1), data)
    results = lambda out: (out[0], out[1][1])
    like = results(jax.eval_shape(f, state, key, *jax.tree.map(lambda a: a[0], split)))

    def add(carry, part):
        state, total = carry
        i, data = part
        out = f(state, jax.random.fold_in(key, i), *data)
        total = jax.tree.map(lambda t, a: t + a.astype(t.dtype), total, results(out))
        return (out[1][0], total), None

    total = jax.tree.map(lambda a: jnp.zeros(a.shape, dtype_of_mean(a) or a.dtype), like)
    (state, total), _ = jax.lax.scan(add, (state, total), (jnp.arange(parts), split))
    out, measured = jax.tree.map(lambda t, a: (t / parts).astype(a.dtype), total, like)
    return out, (state, measured)


def _distinct(tree: Any) -> Any:
    """Copies leaves that occur more than once, as a buffer can be donated only once."""
    seen = set()

    def once(leaf):
        if id(leaf) in seen:
            return jnp.copy(leaf)
        seen.add(id(leaf))
        return leaf

    return jax.tree.map(once, tree)


def _accepted_by(f: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """Returns a function that drops the keyword arguments that f does not take."""
    parameters = inspect.signature(f).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return lambda **given: {k: v for k, v in given.items() if takes_all or k in parameters}


def _check_optimizer(f: str, optimizer: Any) -> None:
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"{f}: optimizer must be an optax.GradientTransformation, got {describe(optimizer)}"
        )


def _check_train_state(f: str, train_state: Any) -> None:
    if not isinstance(train_state, TrainState):
        raise TypeError(f"{f}: train_state must be a TrainState, got {kind(train_state)}")
    check_key(f, train_state.key, "train_state.key")
    check_count(f, "train_state.step", train_state.step)


def _shuffle(key: Any, n: int) -> jax.Array:
    """A random permutation of 0 to n − 1, by sorting random 32-bit words (ties are rare).

    `jax.random.permutation` sorts twice, to be exact even with many ties; on a CPU one sort of
    60,000 words takes as long as several steps.
    """
    return jnp.argsort(jax.random.bits(key, (n,), jnp.uint32))


def _step_key(key: Any, step: jax.Array) -> jax.Array:
    return jax.random.fold_in(key, 2 * step)


def _shuffle_key(key: Any, step: jax.Array) -> jax.Array:
    return jax.random.fold_in(key, 2 * step + 1)  # odd, so it is not the key of a step
