"""Tests of the side inputs of attention layers, of cross-attention and of the cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow

from funcnet import autodiff, ops, summary
from funcnet.layers import Dense, LayerNorm, MultiHeadAttention, chain, repeat, residual

KEY = jax.random.key(0)


def normal(*shape, seed=1, dtype=jnp.float64):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def close(a, b, rtol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, rtol), a, b)


def reference(params, heads, x, source, sees):
    """Attention in NumPy, head by head; `sees` broadcasts to (..., heads, T, U)."""
    q, k, v = (
        np.asarray(a @ params[p]["w"] + params[p].get("b", 0.0))
        for p, a in (("q", x), ("k", source), ("v", source))
    )
    d = q.shape[-1] // heads
    groups = k.shape[-1] // d
    sees = np.broadcast_to(sees, (*x.shape[:-2], heads, x.shape[-2], source.shape[-2]))
    found = []
    for h in range(heads):
        g = h // (heads // groups)
        part = lambda a, i: a[..., i * d : (i + 1) * d]
        scores = part(q, h) @ np.swapaxes(part(k, g), -1, -2) / np.sqrt(d)
        e = np.exp(scores - scores.max(-1, keepdims=True)) * sees[..., h, :, :]
        found.append(e / np.maximum(e.sum(-1, keepdims=True), 1e-300) @ part(v, g))
    return np.concatenate(found, -1) @ np.asarray(params["out"]["w"]) + params["out"].get("b", 0.0)


# Side inputs ----------------------------------------------------------------------------------


def test_options_are_those_of_the_op():
    """Window, soft cap, bias and dropout reach the op; dropout in training only."""
    options = {"window": (2, 1), "softcap": 0.5}
    plain, x = MultiHeadAttention(2), normal(2, 5, 4)
    net = MultiHeadAttention(2, **options, dropout=0.4)
    params, state = net.init(KEY, x)
    bias = normal(2, 5, 5, seed=3)

    def by_op(**more):
        attend = lambda *qkv, causal, bias=None: ops.dot_product_attention(
            *qkv, None, None, bias, *more.values(), **options, dropout_rate=0.4 if more else 0.0
        )
        net = MultiHeadAttention(2, attend=attend)
        return net.apply(params, state, x, scores_bias=bias)[0]

    close(net.apply(params, state, x, scores_bias=bias)[0], by_op())
    close(net.apply(params, state, x, scores_bias=bias, key=KEY, train=True)[0], by_op(key=KEY))
    assert not np.allclose(by_op(), plain.apply(params, state, x)[0])
    with pytest.raises(ValueError, match="apply needs a key when train=True"):
        net.apply(params, state, x, train=True)
    with pytest.raises(ValueError, match="a cache of n positions is a window of n − 1"):
        MultiHeadAttention(2, causal=True, cache=3, window=1)
    with pytest.raises(ValueError, match="dropout must be a number in"):
        MultiHeadAttention(2, dropout=1.0)


def test_a_cache_is_a_window():
    x = normal(1, 7, 4)
    net = MultiHeadAttention(2, causal=True, window=2, softcap=0.3)
    cached = MultiHeadAttention(2, causal=True, cache=3, softcap=0.3)
    params, state = cached.init(KEY, x)
    close(cached.apply(params, state, x)[0], net.apply(params, (), x)[0])


@pytest.mark.parametrize("causal", [False, *slow(True)])
def test_mask_and_lengths(causal):
    net, x = MultiHeadAttention(4, kv_heads=2, causal=causal, bias=True), normal(2, 5, 8)
    params, state = net.init(KEY, x)
    assert net.inputs == {"mask", "lengths", "scores_bias"}
    mask, lengths = np.arange(5 * 5).reshape(5, 5) % 3 > 0, jnp.array([3, 5])
    apply = jax.jit(lambda **seen: net.apply(params, state, x, **seen)[0])
    after = np.tri(5, dtype=bool) if causal else True
    within = (np.arange(5) < np.asarray(lengths)[:, None])[:, None, None]
    expected = functools.partial(reference, params, 4, x, x)
    close(apply(), expected(after))
    close(apply(mask=mask), expected(mask & after))
    close(apply(lengths=lengths), expected(within & after))
    close(apply(mask=mask, lengths=lengths), expected(mask & within & after))
    whole = np.broadcast_to(mask, (2, 4, 5, 5)) ^ (np.arange(8).reshape(2, 4, 1, 1) % 2 > 0)
    close(apply(mask=whole), expected(whole & after))


def test_lengths_reach_every_block():
    """What is behind the length of an example changes nothing before it."""
    block = residual(LayerNorm(), MultiHeadAttention(2, rope_base=10.0))
    net, x = chain(Dense(4), repeat(block, 2), Dense(3)), normal(2, 5, 4)
    params, state = jax.jit(net.init)(KEY, x)
    apply = jax.jit(lambda x, **n: net.apply(params, state, x, **n)[0])
    y = apply(x, lengths=jnp.array([3, 5]))
    close(y[:1, :3], apply(x[:1, :3]))
    close(y[1], apply(x)[1])


def test_an_implementation_without_masks():
    plain = lambda q, k, v, *, causal: ops.dot_product_attention(q, k, v, causal=causal)
    net, x = MultiHeadAttention(2, attend=plain), normal(3, 4)
    params, state = net.init(KEY, x)
    close(net.apply(params, state, x)[0], MultiHeadAttention(2).apply(params, state, x)[0])
    with pytest.raises(TypeError, match=r"^MultiHeadAttention\(2\): attend must take 3 arg.*mask'"):
        net.apply(params, state, x, mask=jnp.ones((3, 3), bool))


# Cross-attention ------------------------------------------------------------------------------


def test_cross_attention():
    net = MultiHeadAttention(4, kv_heads=2, context_width=6, bias=True)
    x, context = normal(2, 3, 8), normal(2, 5, 6, seed=2)
    params, state = net.init(KEY, x)
    assert jax.tree.map(jnp.shape, params)["k"] == {"w": (6, 4), "b": (4,)}
    assert net.inputs == {"context", "context_mask", "context_lengths"}
    mask, lengths = np.arange(3 * 5).reshape(3, 5) % 4 > 0, jnp.array([4, 0])
    within = (np.arange(5) < np.asarray(lengths)[:, None])[:, None, None]
    apply = jax.jit(lambda x, c, **seen: net.apply(params, state, x, context=c, **seen)[0])
    expected = functools.partial(reference, params, 4, x, context)
    close(apply(x, context), expected(True))
    close(apply(x, context, context_mask=mask), expected(mask))
    close(apply(x, context, context_lengths=lengths), expected(within))


@pytest.mark.slow
def test_both_kinds_of_attention_in_one_network():
    """`init` needs no context; the gradient with respect to it is autodiff's."""
    cross = residual(MultiHeadAttention(2, context_width=6))
    net = chain(Dense(4), repeat(chain(residual(MultiHeadAttention(2)), cross), 2), Dense(3))
    x, context = normal(2, 3, 4), normal(2, 5, 6, seed=2)
    params, state = net.init(KEY, jax.ShapeDtypeStruct(x.shape, x.dtype))
    sees = {"lengths": jnp.array([2, 3]), "context_lengths": jnp.array([5, 4])}

    def loss(params, context):
        return jnp.sin(net.apply(params, state, x, context=context, **sees)[0]).sum()

    hand = jax.jit(jax.grad(loss, (0, 1)))
    close(hand(params, context), autodiff(hand)(params, context), 1e-10)
    assert (hand(params, context)[1][1, 4] == 0).all()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [({}, "None"), ({"context": normal(2, 5, 4)}, r"\(2, 5, 4\)")],
)
def test_a_context_is_needed(inputs, message):
    net, x = chain(MultiHeadAttention(2, context_width=6)), normal(2, 3, 4)
    params, state = net.init(KEY, x)
    with pytest.raises(
        ValueError, match=rf"needs the side input .* \(\.\.\., U, 6\), got {message}$"
    ):
        net.apply(params, state, x, **inputs)


def test_summary_with_a_context():
    net = chain(residual(MultiHeadAttention(2, context_width=6, bias=True)), Dense(3))
    shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
    inputs = {"context": shape(2, 5, 6), "context_lengths": jax.ShapeDtypeStruct((2,), jnp.int32)}
    table = summary(net, shape(2, 3, 4), **inputs)
    assert [row.output for row in table.rows] == ["float32[2,3,4]"] * 2 + ["float32[2,3,3]"]
    assert table.total.parameters == 2 * (4 * 4 + 4) + 2 * (6 * 4 + 4) + 4 * 3 + 3
    with pytest.raises(ValueError, match="needs the side input context"):
        summary(net, shape(2, 3, 4))
    with pytest.raises(TypeError, match=r"^summary: layer takes no side input 'mask'$"):
        summary(net, shape(2, 3, 4), mask=shape(3, 3))


# The cache ------------------------------------------------------------------------------------

OPTIONS = {"kv_heads": 2, "causal": True, "bias": True}
PIECES = [(3, 1, 1, 2), (7,), (1,) * 7, (1, 5, 1), (2, 2, 3)]


def in_pieces(net, params, state, x, pieces):
    """The outputs of several calls, given the number of positions of each, and the last state."""
    apply, ys, start = jax.jit(net.apply), [], 0
    for n in pieces:
        y, state = apply(params, state, x[..., start : start + n, :])
        ys.append(y)
        start += n
    assert start == x.shape[-2]
    return jnp.concatenate(ys, -2), state


@pytest.mark.few
@pytest.mark.parametrize("rope_base", [100.0, None])
@pytest.mark.parametrize("n", [7, 9])
@pytest.mark.parametrize("pieces", PIECES, ids=str)
def test_pieces_give_what_the_whole_gives(pieces, n, rope_base):
    options = OPTIONS | {"rope_base": rope_base}
    x, net = normal(2, 7, 8), MultiHeadAttention(4, cache=n, **options)
    params, state = jax.jit(net.init)(KEY, x[:, :1])
    plain = MultiHeadAttention(4, **options)
    close(params, jax.jit(plain.init)(KEY, x)[0], 0)
    y, new = in_pieces(net, params, state, x, pieces)
    close(y, jax.jit(plain.apply)(params, (), x)[0])
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    assert new["length"] == 7


@pytest.mark.few
@pytest.mark.parametrize("n", [3, 1, 2, 4, 5, 6])
@pytest.mark.parametrize("pieces", PIECES, ids=str)
def test_a_full_cache_forgets_the_oldest(pieces, n):
    """Each position sees itself and the n − 1 before it, in however many calls."""
    options = OPTIONS | {"rope_base": 100.0}
    x, net = normal(2, 7, 8), MultiHeadAttention(4, cache=n, **options)
    params, state = jax.jit(net.init)(KEY, x)
    y, _ = in_pieces(net, params, state, x, pieces)
    i, j = np.arange(7)[:, None], np.arange(7)
    near = {"mask": (j <= i) & (j > i - n)}
    close(y, jax.jit(MultiHeadAttention(4, **options).apply)(params, (), x, **near)[0])


@pytest.mark.slow
def test_a_network_of_cached_layers():
    """chain, residual and repeat thread the caches; vmap and bfloat16 change nothing else."""
    make = lambda **how: residual(
        LayerNorm(), MultiHeadAttention(2, causal=True, rope_base=9, **how)
    )
    nets = [chain(Dense(4), repeat(make(**how), 3)) for how in ({"cache": 6}, {})]
    x = normal(2, 6, 4)
    params, state = nets[0].init(KEY, x)
    whole, _ = nets[1].apply(params, jax.tree.map(lambda _: (), nets[1].init(KEY, x)[1]), x)
    y, _ = in_pieces(nets[0], params, state, x, (2, 1, 3))
    close(y, whole)
    one = nets[0].init(KEY, x[0])[1]
    each = jax.vmap(lambda x: in_pieces(nets[0], params, one, x, (2, 1, 3))[0])(x)
    close(each, whole)
    narrow = lambda tree: jax.tree.map(
        lambda a: a.astype(jnp.bfloat16) if a.dtype == float else a, tree
    )
    y, new = in_pieces(nets[0], narrow(params), narrow(state), narrow(x), (2, 1, 3))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(float), whole, atol=0.05)
    assert jax.tree.map(jnp.result_type, new) == jax.tree.map(jnp.result_type, narrow(state))


def test_what_a_cache_has_not_seen_does_not_matter():
    x, net = normal(2, 3, 8), MultiHeadAttention(2, causal=True, cache=5)
    params, state = net.init(KEY, x)
    dirty = state | {name: state[name] + jnp.nan for name in "kv"}
    for pieces in ((2, 1), (1, 2)):
        a, b = (in_pieces(net, params, s, x, pieces)[0] for s in (state, dirty))
        close(a, b, 0)


def test_a_cache_of_another_batch():
    net, x = MultiHeadAttention(2, causal=True, cache=5), normal(2, 3, 4)
    params, state = net.init(KEY, x)
    message = (
        r"\): state\['k'\] must have the shape \(5, 2, 2\) of init\['k'\], got \(2, 5, 2, 2\)$"
    )
    with pytest.raises(ValueError, match=message):
        net.apply(params, state, x[0])
    with pytest.raises(ValueError, match=r"state\['k'\] is missing$"):
        net.apply(params, (), x)
    with pytest.raises(TypeError, match="no argument 'mask'; its side inputs are none"):
        net.apply(params, state, x, mask=jnp.ones((3, 3), bool))
