"""Models: the multilayer perceptron, a convolutional network and the transformer."""

from collections.abc import Callable, Sequence

import jax

from funcnet import ops
from funcnet._arguments import as_int, check_bool, check_int, check_number, describe
from funcnet.layers import (
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Embedding,
    GlobalAvgPool,
    Layer,
    MaxPool,
    RMSNorm,
    TransformerBlock,
    chain,
    mlp,
    repeat,
)

__all__ = ["cnn", "mlp", "transformer"]


def cnn(
    *channels: int,
    classes: int,
    convolutions: int | Sequence[int] = 2,
    dropout: float = 0.0,
) -> Layer:
    """A convolutional network for images (n, height, width, c), in stages of halved image size.

    A stage repeats Conv 3×3, BatchNorm and relu; between stages there is max pooling over 2×2
    windows. Then follow global average pooling, Dropout (optional) and the output layer.

    Args:
      *channels: The number of channels of each stage, for at least one stage.
      classes: The number of outputs.
      convolutions: The number of convolutions per stage, at least 1; or one number for each stage.
      dropout: The dropout probability before the output layer, in [0, 1).

    Raises:
      TypeError: If an argument has the wrong type.
      ValueError: If there are no channels, or a number is out of range.

    Reference: Simonyan & Zisserman, 2015, section 2.1, arXiv:1409.1556, for the stages; Lin, Chen &
    Yan, 2014, section 3.2, arXiv:1312.4400, for global average pooling.

    >>> cnn(8, classes=10, convolutions=1)
    chain(Conv(8, (3, 3)), BatchNorm(), relu, GlobalAvgPool(), Dense(10))
    """
    if not channels:
        raise ValueError("cnn: channels must name one stage at least, got none")
    channels = tuple(check_int("cnn", "channels", c, at_least=1) for c in channels)
    each = [as_int(count) or 0 for count in jax.tree.leaves(convolutions)]
    if as_int(convolutions) is not None:
        each *= len(channels)
    if len(each) != len(channels) or min(each) < 1:
        raise ValueError(
            f"cnn: convolutions must be at least 1 for each of {len(channels)} stages, "
            f"got {describe(convolutions)}"
        )
    check_number("cnn", "dropout", dropout, at_least=0, below=1)
    parts: list[Layer | Callable[[jax.Array], jax.Array]] = []
    for i, (c, count) in enumerate(zip(channels, each, strict=True)):
        if i:
            parts.append(MaxPool((2, 2)))
        for _ in range(count):
            parts += [Conv(c, (3, 3), bias=False), BatchNorm(), ops.relu]  # BatchNorm has a bias
    parts.append(GlobalAvgPool())
    if dropout:
        parts.append(Dropout(dropout))
    return chain(*parts, Dense(classes))


def transformer(
    vocabulary: int,
    *,
    width: int,
    depth: int,
    heads: int,
    hidden: int | None = None,
    kv_heads: int | None = None,
    causal: bool = True,
    dropout: float = 0.0,
    checkpoint: bool = False,
    head: bool = True,
    cache: int | None = None,
) -> Layer:
    """A transformer for ids (..., T): embedding, repeated blocks, a final norm and the logits.

    The blocks are `funcnet.layers.TransformerBlock`s with rotary position embeddings, applied in
    one `lax.scan`. Side inputs are those of `funcnet.layers.MultiHeadAttention`.

    Args:
      vocabulary: V, the number of ids.
      width: The number of features per position between the blocks.
      depth: The number of blocks.
      heads: The number of attention heads; width must be a multiple of 2 heads.
      hidden: The hidden width of the feed-forward layers. The default, 8/3 width, gives them the
        parameter count of the usual two maps with hidden width 4 width.
      kv_heads: The number of heads of keys and values; by default heads.
      causal: Whether each position attends only to itself and to earlier positions, as a language
        model must.
      dropout: The dropout probability on the terms that a block adds, in [0, 1).
      checkpoint: Whether the backward pass recomputes each block from its input.
      head: Whether the last layer maps to the V logits. If False, the output is (..., T, width),
        for `funcnet.ops.linear_cross_entropy`, which never materialises all logits.
      cache: The number of positions that the state holds, if it holds any, for
        `funcnet.generate`: as for `funcnet.layers.MultiHeadAttention`. The params are the same
        without a cache.

    Raises:
      TypeError: If an argument has the wrong type.
      ValueError: If a number is out of range.

    Reference: Vaswani et al., 2017, arXiv:1706.03762; Touvron et al., LLaMA, 2023, section 2.2,
    arXiv:2302.13971.
    """
    numbers = {"vocabulary": vocabulary, "width": width, "depth": depth, "heads": heads}
    for name, number in numbers.items():
        check_int("transformer", name, number, at_least=1)
    if width % (2 * heads):
        raise ValueError(
            f"transformer: heads must divide width into even numbers, got {heads} and {width}"
        )
    check_bool("transformer", "head", head)
    block = TransformerBlock(
        heads,
        hidden=max(1, round(8 * width / 3)) if hidden is None else hidden,
        kv_heads=kv_heads,
        causal=causal,
        dropout=dropout,
        cache=cache,
    )
    parts = [Embedding(vocabulary, width), repeat(block, depth, checkpoint=checkpoint), RMSNorm()]
    return chain(*parts, *([Dense(vocabulary, bias=False)] if head else []))
