"""The transformer block."""

from collections.abc import Callable

import jax

from funcnet import ops
from funcnet._arguments import check_bool, check_function, check_int, check_number, describe
from funcnet.layers.attention import MultiHeadAttention
from funcnet.layers.base import Layer
from funcnet.layers.combinators import chain, residual
from funcnet.layers.dropout import Dropout
from funcnet.layers.gated import GatedMLP
from funcnet.layers.normalization import RMSNorm


def TransformerBlock(
    heads: int,
    *,
    hidden: int | None = None,
    kv_heads: int | None = None,
    causal: bool = False,
    rope_base: float | None = 10_000.0,
    dropout: float = 0.0,
    attend: Callable[..., jax.Array] = ops.dot_product_attention,
    norm: Callable[[], Layer] = RMSNorm,
    mlp: Layer | Callable[[jax.Array], jax.Array] | None = None,
    bias: bool = False,
    post_norm: bool = False,
    context_width: int | None = None,
    cache: int | None = None,
) -> Layer:
    """A transformer block: attention and a feed-forward layer, each with a residual connection.

        x ← x + MultiHeadAttention(norm(x)),   x ← x + mlp(norm(x))

    With `post_norm`, as in BERT, each line is x ← norm(x + …(x)). With `context_width`, a line for
    cross-attention is between the two, as in a decoder. The defaults are those of Llama; a block of
    GPT-2 or ViT has `norm=LayerNorm, mlp=layers.mlp(4 * c, c, activation=ops.gelu), bias=True,
    rope_base=None`.

    Side inputs: those of its `MultiHeadAttention`.

    Args:
      heads: The number of attention heads; it must divide the last axis of x.
      hidden: The hidden width of the feed-forward layer, `GatedMLP(hidden)`.
      kv_heads: As for `MultiHeadAttention`.
      causal: As for `MultiHeadAttention`.
      rope_base: As for `MultiHeadAttention`; None for no position embeddings.
      dropout: The dropout probability on each of the terms that are added, in [0, 1).
      attend: As for `MultiHeadAttention`.
      norm: A function without arguments that makes a normalization layer.
      mlp: The feed-forward layer, in place of `hidden`; it must keep the shape of x.
      bias: Whether the linear maps of attention have a bias.
      post_norm: Whether the sums are normalised, and not what is added to them.
      context_width: The width of the side input `context`, for cross-attention.
      cache: As for `MultiHeadAttention`; for the attention of x to itself.

    Raises:
      TypeError: If an option has the wrong type.
      ValueError: If a number is out of range, or not one of hidden and mlp is given.

    Reference: Xiong et al., 2020, figure 1, arXiv:2002.04745, for the order; Touvron et al.,
    LLaMA, 2023, section 2.2, arXiv:2302.13971, for the default parts.
    """
    f = "TransformerBlock"
    if (hidden is None) == (mlp is None):
        raise ValueError(
            f"{f}: hidden or mlp must be given, and not both, got {hidden} and {describe(mlp)}"
        )
    forward = GatedMLP(check_int(f, "hidden", hidden, at_least=1)) if mlp is None else mlp
    check_number(f, "dropout", dropout, at_least=0, below=1)
    check_function(f, "norm", norm, 0)
    check_bool(f, "post_norm", post_norm)
    attention = MultiHeadAttention(
        heads,
        kv_heads=kv_heads,
        causal=causal,
        rope_base=rope_base,
        bias=bias,
        cache=cache,
        attend=attend,
    )
    terms = [attention, forward]
    if context_width is not None:
        cross = MultiHeadAttention(
            heads, kv_heads=kv_heads, bias=bias, context_width=context_width, attend=attend
        )
        terms.insert(1, cross)
    drop = [Dropout(dropout)] if dropout else []
    if post_norm:
        block = chain(*(part for term in terms for part in (residual(term, *drop), norm())))
    else:
        block = chain(*(residual(norm(), term, *drop) for term in terms))
    inner = f"hidden={hidden}" if mlp is None else f"mlp={describe(mlp)}"
    name = f"{f}({heads}, {inner})"
    return Layer(block.init, block.apply, name, block.parts, block.inputs)
