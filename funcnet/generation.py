"""Generation of sequences by a network that keeps what it has seen in its state."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from funcnet._arguments import (
    check_array,
    check_arrays,
    check_int,
    check_key,
    check_number,
    describe,
)
from funcnet.layers.base import Layer

__all__ = ["generate"]


def generate(
    net: Layer,
    params: Any,
    state: Any,
    prompt: Any,
    steps: int,
    *,
    key: Any,
    temperature: Any = 1.0,
) -> tuple[jax.Array, Any]:
    """Samples continuations of sequences of ids.

    Each new id is a sample of softmax(logits/τ), where the logits are those of the last position.
    The network is given the prompt once, and then one id at a time: with a cache of n positions, an
    id takes time proportional to n, in one compiled `lax.scan`.

    Args:
      net: A network from ids (..., T) to logits (..., T, V) whose layers keep in the state what
        they have seen, such as `funcnet.models.transformer(…, causal=True, cache=n)`. Its params
        are those of the same network without a cache.
      params: The params of the network.
      state: Its state, of the batch of the prompt: that of `net.init(key, prompt)`, or of a call
        before, to go on.
      prompt: Integers, shape (..., T), with T of at least 1.
      steps: The number of ids to generate for each sequence.
      key: A PRNG key; it need not differ from one sequence to another.
      temperature: τ ≥ 0, which may be traced; the id of the largest logit is chosen if it is 0.

    Returns:
      The ids, shape (..., steps), in the dtype of prompt; they are V where a logit is nan. And the
      new state, which has seen all ids but the last.

    Raises:
      TypeError: If an argument has the wrong type.
      ValueError: If the prompt is empty, temperature is negative or the state holds no arrays, so
        that the network could not remember what it has seen.

    >>> from funcnet import models
    >>> net = models.transformer(9, width=8, depth=1, heads=2, cache=16)
    >>> prompt = jnp.array([[1, 2, 3]])
    >>> params, state = net.init(jax.random.key(0), prompt)
    >>> ids, state = generate(net, params, state, prompt, 5, key=jax.random.key(1))
    >>> ids.shape
    (1, 5)
    """
    if not isinstance(net, Layer):
        raise TypeError(f"generate: net must be a layer, got {describe(net)}")
    check_arrays("generate", "params", params)
    check_arrays("generate", "state", state)
    check_array("generate", "prompt", prompt)
    prompt = jnp.asarray(prompt)
    if not (prompt.shape and prompt.shape[-1] and jnp.issubdtype(prompt.dtype, jnp.integer)):
        raise ValueError(
            f"generate: prompt must be integers of shape (..., T) with T of at least 1, "
            f"got {describe(prompt)}"
        )
    steps = check_int("generate", "steps", steps, at_least=1)
    check_key("generate", key)
    check_number("generate", "temperature", temperature, at_least=0)
    if not jax.tree.leaves(state):
        raise ValueError(
            "generate: net must keep what it has seen in its state, as with the option cache; "
            "its state has no arrays"
        )
    return _generate(net, params, state, prompt, key, temperature, steps=steps)


@functools.partial(jax.jit, static_argnames=("net", "steps"))
def _generate(net, params, state, prompt, key, temperature, *, steps):
    if prompt.shape[-1] > 1:
        _, state = net.apply(params, state, prompt[..., :-1])

    def step(carry, key):
        ids, state = carry
        logits, state = net.apply(params, state, ids[..., None])
        ids = _sample(key, logits[..., -1, :], temperature).astype(prompt.dtype)
        return (ids, state), ids

    keys = jax.random.split(key, steps)
    (_, state), ids = jax.lax.scan(step, (prompt[..., -1], state), keys)
    return jnp.moveaxis(ids, 0, -1), state


def _sample(key, logits, temperature):
    """argmax(l + τ G), with G of the Gumbel distribution, is a sample of softmax(l/τ)."""
    noise = jax.random.gumbel(key, logits.shape, logits.dtype)
    ids = jnp.argmax(logits + jnp.asarray(temperature, logits.dtype) * noise, -1)
    return jnp.where(jnp.isnan(logits).any(-1), logits.shape[-1], ids)
