"""The multi-head attention layer."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.core import Tracer

from funcnet import initializers, ops
from funcnet._arguments import check_bool, check_function, check_int, check_number, check_tree
from funcnet.layers._cache import append, empty
from funcnet.layers._params import check_initializers, check_params, last_axis
from funcnet.layers.base import Layer, check_none, inputs_of, shapes_only
from funcnet.layers.dense import Dense


def MultiHeadAttention(
    heads: int,
    *,
    kv_heads: int | None = None,
    causal: bool = False,
    rope_base: float | None = None,
    bias: bool = False,
    context_width: int | None = None,
    cache: int | None = None,
    window: int | tuple[int, int] | None = None,
    softcap: float | None = None,
    dropout: float | jax.Array = 0.0,
    w_init: initializers.Initializer = initializers.lecun_normal,
    attend: Callable[..., jax.Array] = ops.dot_product_attention,
) -> Layer:
    """Multi-head attention over the positions of a sequence, or from them to another sequence.

    Linear maps turn x (..., T, c) into queries, keys and values with c/heads features per head.
    `funcnet.ops.dot_product_attention` computes a weighted mean of the values for each query, and
    an output projection mixes the heads.

    Side inputs: `mask`, booleans that broadcast to (..., heads, T, T), true where a position
    attends to another; `lengths`, integers (...), the number of positions of each example that are
    attended to; and `scores_bias`, numbers that broadcast like the mask and are added to the
    scores, such as a bias of relative positions, with a gradient.

    With `context_width` = e, keys and values are those of another sequence (cross-attention), the
    side input `context` (..., U, e), which `apply` needs. The other side inputs are then called
    `context_mask`, which broadcasts to (..., heads, T, U), and `context_lengths`, so that a network
    may have both kinds of attention.

    With `cache` = n, the state holds the keys and values of earlier calls. The positions of x
    follow those of the calls before, and each attends to itself and to at most n − 1 positions
    before it. So a sequence of up to n positions may be given in one call or in several, and the
    outputs are those of the layer without a cache; of a longer sequence, the oldest positions are
    forgotten. A call with one position takes time proportional to n. There are no side inputs.

    Params: {"q", "k", "v", "out"}, each {"w"} or {"w", "b"}: (c, c) for "q" and "out", and
    (c, kv_heads · c/heads) for "k" and "v", or (e, kv_heads · c/heads) with a context. They are the
    same with and without a cache.
    State: none; with a cache {"k", "v": (..., n, kv_heads, c/heads), "length": ()}, in the dtype of
    x and for its batch, where length is the number of positions so far, int32.

    Args:
      heads: The number of heads; it must divide c.
      kv_heads: The number of heads of keys and values; it must divide heads, and is heads by
        default. If it is smaller, each such head is shared by a group of query heads.
      causal: Whether each position attends only to itself and to earlier positions.
      rope_base: If given, queries and keys get rotary position embeddings with this base, usually
        10000; see `funcnet.ops.rope`.
      bias: Whether the linear maps have a bias.
      context_width: e, if keys and values are those of a context.
      cache: n, the number of positions that the state holds, if it holds any; needs causal.
      window: As for `funcnet.ops.dot_product_attention`. With a cache, n − 1 is the window.
      softcap: As for `funcnet.ops.dot_product_attention`.
      dropout: The probability of dropping a weight in training, in [0, 1). It may be traced.
      w_init: Initial weights of the linear maps. The default keeps the variance of x, even if
        kv_heads is smaller than heads.
      attend: `(q, k, v, *, causal) -> y`, the implementation of attention. Where it is needed, it
        also gets `mask`, `lengths`, `bias`, `window`, `softcap`, `dropout_rate` and `dropout_key`,
        as `funcnet.ops.dot_product_attention` does.

    Raises:
      TypeError: If an option has the wrong type.
      ValueError: If kv_heads does not divide heads, or options exclude each other; in `init`, if
        heads does not divide c, if rope_base is given and c/heads is odd, or if x has no time axis;
        in `apply`, if a context is needed and not given, the state is that of another batch, or
        there is dropout and no key.

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
    name = f"{f}({heads}{', causal=True' if causal else ''}"
    if context_width is not None:
        context_width = check_int(f, "context_width", context_width, at_least=1)
        name += f", context_width={context_width}"
        if causal or cache is not None or rope_base is not None:
            raise ValueError(f"{f}: a context excludes causal, cache and rope_base")
    if cache is not None:
        cache = check_int(f, "cache", cache, at_least=1)
        name += f", cache={cache}"
        if not causal:
            raise ValueError(f"{f}: cache needs causal=True")
        if window is not None:
            raise ValueError(
                f"{f}: a cache of n positions is a window of n − 1 and excludes window"
            )
    name += ")"
    check_number(f, "dropout", dropout, at_least=0, below=1)
    options = {"window": window, "softcap": softcap}
    options = {what: value for what, value in options.items() if value is not None}
    if options:
        check_function(f, "attend", attend, 3, causal=causal, **options)

    def shapes(c: int) -> dict[str, tuple[int, int]]:
        kv = (context_width or c, c // heads * groups)
        return {"q": (c, c), "k": kv, "v": kv, "out": (c, c)}

    def init(key, x):
        c = last_axis(name, x)
        if len(x.shape) < 2:
            raise ValueError(f"{name}: x must have shape (..., T, c), got {x.shape}")
        if c % heads:
            raise ValueError(f"{name}: heads must divide the last axis of x, got x {x.shape}")
        if rope_base is not None and c // heads % 2:
            raise ValueError(f"{name}: rope_base needs heads of even width, got {c // heads}")
        params = {}
        for i, (part, (wide, width)) in enumerate(shapes(c).items()):
            of = jax.ShapeDtypeStruct((*x.shape[:-1], wide), x.dtype)
            dense = Dense(width, bias=bias, w_init=w_init)
            params[part], _ = dense.init(jax.random.fold_in(key, i), of)
        return params

    def linear(params, part, x):
        return ops.affine(x, params[part]["w"], params[part].get("b"))

    def by_head(params, x, source, start=None):
        """Queries of x, and keys and values of source; the positions of x begin at start."""
        c = last_axis(name, x)
        expected = {
            part: {"w": shape} | ({"b": shape[1:]} if bias else {})
            for part, shape in shapes(c).items()
        }
        check_params(name, params, expected, x)
        split = lambda part, x, n: linear(params, part, x).reshape(*x.shape[:-1], n, c // heads)
        q, k, v = split("q", x, heads), split("k", source, groups), split("v", source, groups)
        if rope_base is not None:
            places = jnp.arange(x.shape[-2])
            places = places if start is None else start + places.astype(start.dtype)
            q, k = (ops.rope(y, places, base=rope_base) for y in (q, k))
        return q, k, v

    def mixed(params, x, q, k, v, causal=causal, **seen):
        """The output; `seen` are arguments of attend, such as a mask, or None for each."""
        seen = options | {what: array for what, array in seen.items() if array is not None}
        if seen:
            check_function(name, "attend", attend, 3, causal=causal, **seen)
        return linear(params, "out", attend(q, k, v, causal=causal, **seen).reshape(x.shape))

    def dropping(key, train):
        """The arguments of attend for dropout."""
        if not train or not (isinstance(dropout, Tracer) or dropout):
            return {}
        if key is None:
            raise ValueError(f"{name}: apply needs a key when train=True")
        return {"dropout_rate": dropout, "dropout_key": key}

    def of_itself(params, x, drop, *, mask=None, lengths=None, scores_bias=None):
        seen = {"mask": mask, "lengths": lengths, "bias": scores_bias} | drop
        return mixed(params, x, *by_head(params, x, x), **seen)

    def of_context(params, x, drop, *, context=None, context_mask=None, context_lengths=None):
        if context is None and shapes_only.value:
            return x
        if context is None or last_axis(name, context) != context_width:
            got = None if context is None else context.shape
            raise ValueError(
                f"{name}: apply needs the side input context (..., U, {context_width}), got {got}"
            )
        qkv = by_head(params, x, context)
        return mixed(params, x, *qkv, mask=context_mask, lengths=context_lengths, **drop)

    def nothing_of(x, n):
        return empty(x.shape[:-2], n, groups, last_axis(name, x) // heads, x.dtype)

    def of_past(params, state, x, *, key=None, train=False):
        check_tree(name, "state", state, "init", jax.eval_shape(lambda: nothing_of(x, cache)))
        q, k, v = by_head(params, x, x, start=state["length"])
        state, k, v, seen = append(state, k, v)
        return mixed(params, x, q, k, v, causal=False, **seen, **dropping(key, train)), state

    if cache is not None:
        return Layer(lambda key, x: (init(key, x), nothing_of(x, cache)), of_past, name)
    function = of_itself if context_width is None else of_context

    def apply(params, state, x, *, key=None, train=False, **inputs):
        check_none(name, "state", state)
        return function(params, x, dropping(key, train), **inputs), state

    return Layer(lambda key, x: (init(key, x), ()), apply, name, inputs=inputs_of(function))
