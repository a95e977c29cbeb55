"""Attention by the libraries that JAX calls: cuDNN, and XLA without tiles."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from funcnet._arrays import explicit_sharding
from funcnet.ops._attention_arguments import Arrays, Options


def is_for_cudnn(
    arrays: Arrays, options: Options, implementation: str | None, return_lse: bool
) -> bool:
    """Whether cuDNN is installed, and computes what the tiles would."""
    q, k, v, *others = arrays
    unused = (*others[:3], options.window, options.softcap)
    is_plain = all(x is None for x in unused) and not (options.drops or return_lse)
    fits = q.shape[-1] == v.shape[-1] and (not options.causal or q.shape[-3] == k.shape[-3])
    if implementation or not (q.dtype.itemsize == 2 and is_plain and fits):
        return False
    if explicit_sharding(q, k, v):
        return False
    try:  # JAX knows what cuDNN takes
        kernel = lambda q, k, v: by_library(arrays._replace(q=q, k=k, v=v), options, "cudnn")
        jax.eval_shape(kernel, q, k, v)
    except (RuntimeError, ValueError, NotImplementedError):
        return False
    return True


def by_library(arrays: Arrays, options: Options, implementation: Any) -> Array:
    """Calls `jax.nn.dot_product_attention` with the leading axes merged into one batch axis."""
    q, k, v, mask, lengths, bias, _ = arrays
    window: Any = None if options.window is None else options.span
    t, u = q.shape[-3], k.shape[-3]
    if v.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"dot_product_attention: v must have the shape of k for {implementation}, "
            f"got k {k.shape}, v {v.shape}"
        )
    name = "causal" if options.causal else "window"
    if t != u and (options.causal or options.window is not None):
        raise ValueError(
            f"dot_product_attention: {name} must have as many keys as queries for "
            f"{implementation}, got {u} and {t}"
        )
    batch = math.prod(q.shape[:-3])

    def merged(x: Array | None) -> Array | None:
        if x is None:
            return None
        heads = x.shape[-3] if x.ndim > 2 else 1
        return jnp.broadcast_to(x, (*q.shape[:-3], heads, t, u)).reshape(batch, heads, t, u)

    with jax.numpy_dtype_promotion("standard"):  # JAX's code needs it
        y = jax.nn.dot_product_attention(
            *(x.reshape(batch, *x.shape[-3:]) for x in (q, k, v)),
            bias=merged(bias),
            mask=merged(mask),
            key_value_seq_lengths=None
            if lengths is None
            else lengths.reshape(batch).astype("int32"),
            is_causal=options.causal,
            local_window_size=window,
            scale=options.scale,
            implementation=implementation,
        )
    return y.reshape(q.shape)
