"""Byte-level language models: text, networks, loss and sampling."""

import functools
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import funcnet
from funcnet import initializers, ops
from funcnet.layers import LSTM, Dropout, Embedding, Layer, RMSNorm, chain, repeat

BYTES = 256

Features = Any  # h (n, T, d) and w (d, 256); the logits are h w


def read_text(path: Path | None) -> np.ndarray:
    """Returns the bytes of a file, uint8; if None, of Python's help on keywords and operators.

    Raises:
      ValueError: If the file cannot be read.
    """
    if path is None:
        text = "\n".join(topics[name] for name in sorted(topics)).encode()
    else:
        try:
            text = path.read_bytes()
        except OSError as e:
            raise ValueError(f"--text must be a file, got {path}: {e.strerror}") from None
    return np.frombuffer(text, np.uint8)


def cut(text: jax.Array, starts: jax.Array, context: int) -> tuple[jax.Array, jax.Array]:
    """Cuts the pieces of text that begin at `starts`; also returns the next byte of each byte.

    Args:
      text: Bytes, shape (N,).
      starts: Indices of shape (n,), less than N − context.
      context: The length of a piece.

    Returns:
      Two arrays of int32 and shape (n, context).
    """
    pieces = text[starts[:, None] + jnp.arange(context + 1)].astype(jnp.int32)
    return pieces[:, :-1], pieces[:, 1:]


def Output() -> Layer:
    """Returns its input h and the weights w of the output layer, whose logits are h w.

    `ops.linear_cross_entropy` takes the two separately, so it never materialises all logits.

    Params: {"w": (d, 256)} in the dtype of h. State: none.
    """

    def init(key, x):
        return {"w": initializers.normal(0.02)(key, (x.shape[-1], BYTES), x.dtype)}, ()

    def apply(params, state, x, *, key=None, train=False) -> Any:
        del key, train
        return (x, params["w"]), state

    return Layer(init, apply, "Output()")


def predictor(body: Layer) -> Layer:
    """Makes a network from bytes (n, T) to `Features` from one whose output is h (n, T, d).

    Its parameters are in float64 if JAX_ENABLE_X64 is set.
    """
    net = chain(body, Output())
    wide = lambda a: a.astype(float) if jnp.issubdtype(a.dtype, jnp.floating) else a
    return net._replace(init=lambda key, x: jax.tree.map(wide, net.init(key, x)))


def logits(y: Features) -> jax.Array:
    """The logits of each byte, for `funcnet.generate`: a layer after `predictor`."""
    h, w = y
    return h @ w


def lstm(*, width: int, depth: int, dropout: float = 0.0, checkpoint: bool = False) -> Layer:
    """Makes an embedding, stacked LSTMs and a norm, from bytes (n, T) to h (n, T, width).

    Args:
      width: The number of units of each LSTM and the width of the embedding.
      depth: The number of LSTMs.
      dropout: The dropout probability on the output of each LSTM, in [0, 1).
      checkpoint: Whether the backward pass recomputes each LSTM from its input.
    """
    layer = chain(LSTM(width), *([Dropout(dropout)] if dropout else []))
    return chain(Embedding(BYTES, width), repeat(layer, depth, checkpoint=checkpoint), RMSNorm())


def loss(y: Features, labels: jax.Array) -> jax.Array:
    """Cross entropy in nats per byte of each piece of text, shape (n,)."""
    h, w = y
    return ops.linear_cross_entropy(h, w, labels).mean(-1)


def generate(
    model: Layer, params: Any, prompt: jax.Array, key: Any, temperature: float, *, length: int
) -> jax.Array:
    """Samples continuations of a prompt, with a cache of what the model has seen.

    Args:
      model: A network made by `predictor` whose layers have a cache. It sees as many bytes.
      params: The params of the model.
      prompt: Bytes, int32 of shape (samples, p) with p ≥ 1.
      key: A PRNG key.
      temperature: Divides the logits.
      length: The number of bytes generated per sample.

    Returns:
      int32 of shape (samples, length).
    """
    net = chain(model, logits)
    state = jax.jit(lambda: net.init(key, prompt)[1])()
    given = {"key": key, "temperature": temperature}
    return funcnet.generate(net, (params, ()), state, prompt, length, **given)[0]


@functools.partial(jax.jit, static_argnames=("model", "context", "length"))
def generate_again(
    model: Layer,
    params: Any,
    state: Any,
    prompt: jax.Array,
    key: Any,
    temperature: float,
    *,
    context: int,
    length: int,
) -> jax.Array:
    """`generate` for a model without a cache, which gets the last `context` bytes for each byte."""
    prompt = prompt[:, -context:]
    samples, given = prompt.shape
    window = min(context, given + length)
    seen = jnp.zeros((samples, window), prompt.dtype).at[:, :given].set(prompt)

    def step(carry, key):
        seen, n = carry  # the first n of the window are valid; a causal model ignores the others
        (h, w), _ = model.apply(params, state, seen)
        byte = jax.random.categorical(key, h[:, n - 1] @ w / temperature).astype(seen.dtype)
        seen = jnp.where(n == window, jnp.roll(seen, -1, 1), seen)
        n = jnp.minimum(n + 1, window)
        return (seen.at[:, n - 1].set(byte), n), byte

    keys = jax.random.split(key, length)
    return jax.lax.scan(step, (seen, jnp.asarray(given)), keys)[1].T


def readable(text: Sequence[int]) -> str:
    """Decodes bytes as UTF-8; marks invalid bytes and characters that would control a terminal."""
    decoded = bytes(text).decode(errors="replace")
    shown = lambda c: c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}"
    return "".join(map(shown, decoded))
