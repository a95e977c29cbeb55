"""The transformer block."""

from collections.abc import Callable

import jax

from funcnet import ops
from funcnet._arguments import check_int, check_number
from funcnet.layers.attention import MultiHeadAttention
from funcnet.layers.base import Layer
from funcnet.layers.combinators import chain, residual
from funcnet.layers.dropout import Dropout
from funcnet.layers.gated import GatedMLP
from funcnet.layers.normalization import RMSNorm


def TransformerBlock(
    heads: int,
    *,
    hidden: int,
    kv_heads: int | None = None,
    causal: bool = False,
    rope_base: float | None = 10_000.0,
    dropout: float = 0.0,
    attend: Callable[..., jax.Array] = ops.dot_product_attention,
) -> Layer:
    """A pre-norm transformer block: attention and a gated MLP, each with a residual connection.

        x ← x + MultiHeadAttention(RMSNorm(x)),   x ← x + GatedMLP(RMSNorm(x))

    Args:
      heads: The number of attention heads; it must divide the last axis of x.
      hidden: The hidden width of the feed-forward layer.
      kv_heads: As for `MultiHeadAttention`.
      causal: As for `MultiHeadAttention`.
      rope_base: As for `MultiHeadAttention`; None for no position embeddings.
      dropout: The dropout probability on each of the two terms that are added, in [0, 1).
      attend: As for `MultiHeadAttention`.

    Raises:
      TypeError: If an option has the wrong type.
      ValueError: If a number is out of range.

    Reference: Xiong et al., 2020, figure 1(b), arXiv:2002.04745, for the order; Touvron et al.,
    LLaMA, 2023, section 2.2, arXiv:2302.13971, for the parts.
    """
    hidden = check_int("TransformerBlock", "hidden", hidden, at_least=1)
    check_number("TransformerBlock", "dropout", dropout, at_least=0, below=1)
    attention = MultiHeadAttention(
        heads, kv_heads=kv_heads, causal=causal, rope_base=rope_base, attend=attend
    )
    drop = [Dropout(dropout)] if dropout else []
    block = chain(
        residual(RMSNorm(), attention, *drop), residual(RMSNorm(), GatedMLP(hidden), *drop)
    )
    name = f"TransformerBlock({heads}, hidden={hidden})"
    return Layer(block.init, block.apply, name, block.parts, block.inputs)
