"""Attention by the libraries that JAX calls: cuDNN, and XLA without tiles."""

import math

import jax
import jax.numpy as jnp

from funcnet._arrays import explicit_sharding

LIBRARIES = ("cudnn", "xla")


def is_for_cudnn(q, k, v, mask, lengths, causal, scale, implementation):
    """Whether cuDNN is installed, and computes what the tiles would."""
    is_half, is_plain = q.dtype.itemsize == 2, mask is None and lengths is None
    fits = q.shape[-1] == v.shape[-1] and (not causal or q.shape[-3] == k.shape[-3])
    if implementation or not (is_half and is_plain and fits) or explicit_sharding(q, k, v):
        return False
    try:  # JAX knows what cuDNN takes
        jax.eval_shape(lambda *x: by_library(x, None, None, causal, scale, "cudnn"), q, k, v)
    except (RuntimeError, ValueError, NotImplementedError):
        return False
    return True


def by_library(qkv, mask, lengths, causal, scale, implementation):
    """Calls `jax.nn.dot_product_attention` with the leading axes merged into one batch axis."""
    q, k, v = qkv
    t, u = q.shape[-3], k.shape[-3]
    if v.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"dot_product_attention: v must have the shape of k for {implementation}, "
            f"got k {k.shape}, v {v.shape}"
        )
    if causal and t != u:
        raise ValueError(
            "dot_product_attention: causal must have as many keys as queries for "
            f"{implementation}, got {u} and {t}"
        )
    batch = math.prod(q.shape[:-3])
    if mask is not None:
        heads = mask.shape[-3] if mask.ndim > 2 else 1
        mask = jnp.broadcast_to(mask, (*q.shape[:-3], heads, t, u)).reshape(batch, heads, t, u)
    with jax.numpy_dtype_promotion("standard"):  # JAX's code needs it
        y = jax.nn.dot_product_attention(
            *(x.reshape(batch, *x.shape[-3:]) for x in qkv),
            mask=mask,
            key_value_seq_lengths=None
            if lengths is None
            else lengths.reshape(batch).astype("int32"),
            is_causal=causal,
            scale=scale,
            implementation=implementation,
        )
    return y.reshape(q.shape)
