"""The multi-head attention layer."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from funcnet import initializers, ops
from funcnet._arguments import check_bool, check_function, check_int, check_number
from funcnet.layers._params import check_initializers, check_params, last_axis
from funcnet.layers.base import Layer, stateless
from funcnet.layers.dense import Dense


def MultiHeadAttention(
    heads: int,
    *,
    kv_heads: int | None = None,
    causal: bool = False,
    rope_base: float | None = None,
    bias: bool = False,
    w_init: initializers.Initializer = initializers.lecun_normal,
    attend: Callable[..., jax.Array] = ops.dot_product_attention,
) -> Layer:
    """Multi-head self-attention over the positions of a sequence.

    Linear maps turn x (..., T, c) into queries, keys and values with c/heads features per head.
    `funcnet.ops.dot_product_attention` computes a weighted mean of the values for each query, and
    an output projection mixes the heads.

    Params: {"q", "k", "v", "out"}, each {"w"} or {"w", "b"}: (c, c) for "q" and "out", and
    (c, kv_heads · c/heads) for "k" and "v".
    State: none.

    Args:
      heads: The number of heads; it must divide c.
      kv_heads: The number of heads of keys and values; it must divide heads, and is heads by
        default. If it is smaller, each such head is shared by a group of query heads.
      causal: Whether each position attends only to itself and to earlier positions.
      rope_base: If given, queries and keys get rotary position embeddings with this base, usually
        10000; see `funcnet.ops.rope`.
      bias: Whether the linear maps have a bias.
      w_init: Initial weights of the linear maps. The default keeps the variance of x, even if
        kv_heads is smaller than heads.
      attend: `(q, k, v, *, causal) -> y`, the implementation of attention.

    Raises:
      TypeError: If an option has the wrong type.
      ValueError: If kv_heads does not divide heads; in `init`, if heads does not divide c, if
        rope_base is given and c/heads is odd, or if x has no time axis.

    Reference: Vaswani et al., 2017, section 3.2.2, arXiv:1706.03762; grouped heads: Ainslie et al.,
    2023, arXiv:2305.13245.

    >>> MultiHeadAttention(4, causal=True)
    MultiHeadAttention(4, causal=True)
    """
    f = "MultiHeadAttention"
    heads = check_int(f, "heads", heads, at_least=1)
    groups = heads if kv_heads is None else check_int(f, "kv_heads", kv_heads, at_least=1)
    if heads % groups:
        raise ValueError(f"{f}: kv_heads must divide heads, got {groups} and {heads}")
    check_bool(f, "causal", causal)
    check_bool(f, "bias", bias)
    if rope_base is not None:
        check_number(f, "rope_base", rope_base, above=0)
    check_initializers(f, w_init=w_init)
    check_function(f, "attend", attend, 3, causal=causal)
    name = f"MultiHeadAttention({heads}{', causal=True' if causal else ''})"

    def widths(c: int) -> dict[str, int]:
        return {"q": c, "k": c // heads * groups, "v": c // heads * groups, "out": c}

    def init(key, x):
        c = last_axis(name, x)
        if len(x.shape) < 2:
            raise ValueError(f"{name}: x must have shape (..., T, c), got {x.shape}")
        if c % heads:
            raise ValueError(f"{name}: heads must divide the last axis of x, got x {x.shape}")
        if rope_base is not None and c // heads % 2:
            raise ValueError(f"{name}: rope_base needs heads of even width, got {c // heads}")
        return {
            part: Dense(width, bias=bias, w_init=w_init).init(jax.random.fold_in(key, i), x)[0]
            for i, (part, width) in enumerate(widths(c).items())
        }

    def of_params(params, x):
        c = last_axis(name, x)
        shapes = {
            part: {"w": (c, width)} | ({"b": (width,)} if bias else {})
            for part, width in widths(c).items()
        }
        check_params(name, params, shapes, x)
        linear = lambda part, x: ops.affine(x, params[part]["w"], params[part].get("b"))
        by_head = lambda part, n: linear(part, x).reshape(*x.shape[:-1], n, c // heads)
        q, k, v = by_head("q", heads), by_head("k", groups), by_head("v", groups)
        if rope_base is not None:
            places = jnp.arange(x.shape[-2])
            q, k = (ops.rope(y, places, base=rope_base) for y in (q, k))
        y = attend(q, k, v, causal=causal)
        return linear("out", y.reshape(x.shape))

    return stateless(of_params, init, name)
