"""Tests of layers for sequences and images, of combinators, of models, and of summaries."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow

from funcnet import autodiff, models, ops, sharding, weights
from funcnet.layers import (
    GRU,
    LSTM,
    RNN,
    AdaptiveAvgPool,
    AvgPool,
    BatchNorm,
    Conv,
    ConvTranspose,
    Dense,
    DepthwiseConv,
    Dropout,
    Embedding,
    Flatten,
    GatedMLP,
    GlobalAvgPool,
    GlobalMaxPool,
    GroupNorm,
    Layer,
    LayerNorm,
    MaxPool,
    MultiHeadAttention,
    Positions,
    RMSNorm,
    TransformerBlock,
    chain,
    mlp,
    parallel,
    repeat,
    residual,
)
from funcnet.profile.summary import summary

KEY, X = jax.random.key(0), jax.ShapeDtypeStruct((3, 4), jnp.float32)
IMAGE, SEQUENCE, ROWS = (2, 6, 6, 4), (2, 5, 4), (3, 4)


def normal(*shape, dtype=jnp.float64, seed=1):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


NETS = {  # networks with the shape of x
    "Conv": (Conv(3, (3, 3), strides=2), IMAGE),
    "Conv groups": (Conv(4, (3,), groups=2, bias=False), SEQUENCE),
    "ConvTranspose": (ConvTranspose(3, (3, 3), strides=2), IMAGE),
    "ConvTranspose groups": (ConvTranspose(4, (3,), strides=2, groups=2), SEQUENCE),
    "DepthwiseConv": (DepthwiseConv((3, 3)), IMAGE),
    "Conv of an int": (Conv(3, 2, strides=[1, 2]), IMAGE),
    "MaxPool": (MaxPool(2), IMAGE),
    "AvgPool": (AvgPool((2, 2)), IMAGE),
    "AdaptiveAvgPool": (AdaptiveAvgPool((4, 3)), IMAGE),
    "GlobalMaxPool": (GlobalMaxPool(), IMAGE),
    "GlobalAvgPool": (GlobalAvgPool(), IMAGE),
    "LayerNorm": (LayerNorm(), ROWS),
    "RMSNorm": (RMSNorm(), ROWS),
    "norm alone": (LayerNorm(scale=False, bias=False), ROWS),
    "GroupNorm": (GroupNorm(2), IMAGE),
    "GatedMLP": (GatedMLP(3), ROWS),
    "no bias": (Dense(3, bias=False), ROWS),
    "RNN": (RNN(3), SEQUENCE),
    "LSTM": (LSTM(3, reverse=True), SEQUENCE),
    "GRU last": (GRU(3, last=True), SEQUENCE),
    "attention": (MultiHeadAttention(4, kv_heads=2, rope_base=100.0, bias=True), (2, 5, 8)),
    "attention cache": (MultiHeadAttention(2, causal=True, rope_base=9.0, cache=3), (2, 5, 8)),
    "block": (TransformerBlock(2, hidden=6, causal=True, dropout=0.5), SEQUENCE),
    "GPT-2 block": (
        TransformerBlock(
            2,
            mlp=mlp(6, 4, activation=ops.gelu),
            norm=LayerNorm,
            bias=True,
            causal=True,
            rope_base=None,
        ),
        SEQUENCE,
    ),
    "Positions": (chain(Positions(7), RMSNorm()), SEQUENCE),
    "residual": (residual(Dense(4), ops.tanh), ROWS),
    "parallel": (parallel(Dense(2), ops.tanh), ROWS),
    "repeat": (repeat(chain(Dense(4), Dropout(0.5)), 2, checkpoint=True), ROWS),
}
nets = pytest.mark.parametrize(("net", "shape"), NETS.values(), ids=NETS)


def trained(net, x):
    params, state = net.init(KEY, x)
    return params, lambda params, x: net.apply(params, state, x, key=KEY, train=True)


def close(a, b, rtol=1e-11):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, rtol), a, b)


@pytest.mark.slow
@nets
def test_init_needs_shape_and_dtype_alone(net, shape):
    x = normal(*shape)
    close(net.init(KEY, jax.ShapeDtypeStruct(x.shape, x.dtype)), net.init(KEY, x), 0)


@nets
def test_output_has_the_dtype_of_x(net, shape):
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    params, state = jax.eval_shape(net.init, KEY, x)
    y, new = jax.eval_shape(
        lambda p, s, x: net.apply(p, s, x, key=KEY, train=True), params, state, x
    )
    assert y.dtype == jnp.bfloat16
    assert new == state


@pytest.mark.slow
@nets
def test_rules_and_autodiff_agree(net, shape):
    x = normal(*shape)
    params, train = trained(net, x)
    weights = normal(*jax.eval_shape(train, params, x)[0].shape, seed=2)
    loss = lambda params, x: (weights * train(params, x)[0]).sum()
    hand = jax.jit(jax.value_and_grad(loss, (0, 1)))
    close(hand(params, x), autodiff(hand)(params, x))


@pytest.mark.third
@nets
def test_layers_compute_by_rules(net, shape):
    """A custom_vjp refuses forward mode, so a layer that allows it would bypass the rules."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    params, state = jax.eval_shape(net.init, KEY, x)

    def forward(params, state, x):
        f = lambda x: net.apply(params, state, x, key=KEY, train=True)[0]
        return jax.jvp(f, (x,), (x,))

    jax.jit(autodiff(forward)).lower(params, state, x)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jit(forward).lower(params, state, x)


@pytest.mark.parametrize("sizes", [(3, 2), (4, 5), (1, 7), (6, 3)])
def test_adaptive_windows(sizes):
    """The definition in a loop; with (6, 3), each window divides its axis."""
    x = np.asarray(normal(2, 6, 6, 3))
    y, _ = AdaptiveAvgPool(sizes).apply((), (), x)
    at = lambda i, m: slice(math.floor(i * 6 / m), math.ceil((i + 1) * 6 / m))
    expected = [
        [x[:, at(i, sizes[0]), at(j, sizes[1])].mean((1, 2)) for j in range(sizes[1])]
        for i in range(sizes[0])
    ]
    np.testing.assert_allclose(y, np.moveaxis(expected, 2, 0), rtol=1e-13)


def test_the_padding_of_an_embedding():
    """Its vector is 0 at first, and has no gradient."""
    plain, layer, ids = Embedding(5, 3), Embedding(5, 3, padding=-1), jnp.array([4, 1])
    (params, state), (whole, _) = layer.init(KEY, ids), plain.init(KEY, ids)
    close(params, {"w": whole["w"].at[4].set(0)}, 0)
    gradient = jax.grad(lambda p: layer.apply(p, state, ids)[0].sum())(params)
    assert gradient["w"].sum(1).tolist() == [0, 3, 0, 0, 0]


# Combinators ----------------------------------------------------------------------------------


def test_residual_adds_x():
    net, x = residual(Dense(4), ops.tanh), normal(*ROWS)
    params, state = net.init(KEY, x)
    assert net.name == "residual(Dense(4), tanh)"
    inner = chain(Dense(4), ops.tanh)
    close(net.apply(params, state, x)[0], x + inner.apply(params, state, x)[0], 0)


def test_residual_with_a_shortcut():
    x, s = normal(*ROWS), chain(Dense(5, bias=False), BatchNorm())
    net = residual(Dropout(0.5), Dense(5), shortcut=s)
    params, state = net.init(KEY, x)
    assert net.name == f"residual(Dropout(0.5), Dense(5), shortcut={s.name})"
    assert jax.tree.map(jnp.shape, params) == {
        "branch": ((), {"w": (4, 5), "b": (5,)}),
        "shortcut": ({"w": (4, 5)}, {"scale": (5,), "bias": (5,)}),
    }
    y, new = net.apply(params, state, x, key=KEY, train=True)
    keys = [jax.random.fold_in(KEY, i) for i in range(2)]
    f, _ = chain(Dropout(0.5), Dense(5)).apply(
        params["branch"], state["branch"], x, key=keys[0], train=True
    )
    sx, after = s.apply(params["shortcut"], state["shortcut"], x, key=keys[1], train=True)
    close(y, sx + f, 0)
    close(new, {"branch": ((), ()), "shortcut": after}, 0)
    plain = residual(ops.tanh, shortcut=lambda x: 2 * x)
    close(plain.apply(*plain.init(KEY, x), x)[0], 2 * x + np.tanh(x))


def test_parts_with_names():
    """Names change the structure of params and state, and nothing else."""
    parts = {"first": Dense(4), "norm": BatchNorm(), "act": ops.tanh, "drop": Dropout(0.5)}
    x, named, plain = normal(*ROWS), chain(**parts), chain(*parts.values())
    assert named.name == "chain(first=Dense(4), norm=BatchNorm(), act=tanh, drop=Dropout(0.5))"
    params, state = named.init(KEY, x)
    close([params[n] for n in parts], [*plain.init(KEY, x)[0]], 0)
    assert sorted(weights.flatten(params)) == ["first/b", "first/w", "norm/bias", "norm/scale"]
    run = lambda net, *tree: net.apply(*tree, x, key=KEY, train=True)
    y, new = jax.jit(lambda *tree: run(named, *tree))(params, state)
    other, states = run(plain, *([tree[n] for n in parts] for tree in (params, state)))
    close(y, other)
    close([new[n] for n in parts], [*states])
    net = repeat(residual(named), 2)
    params, state = net.init(KEY, x)
    assert params[0]["first"]["w"].shape == (2, 4, 4)
    new = run(net, params, state)[1]
    assert jax.tree.structure(new) == jax.tree.structure(state)


def test_a_plan_goes_by_the_names_of_parts():
    plan = sharding.tensor_parallel(jax.make_mesh((2,), ("model",)))
    mlp = chain(up=Dense(8), act=ops.gelu, down=Dense(4))
    params, _ = jax.eval_shape(mlp.init, KEY, X)
    found = plan.shardings(params)
    assert found["up"]["w"].spec == jax.P(None, "model")
    assert found["down"]["w"].spec == jax.P("model", None)


def test_parallel_merges():
    x = normal(*ROWS)
    a, b = Dense(4), BatchNorm()
    net = parallel(a, b, merge=lambda ys: ys[0] - ys[1])
    params, state = net.init(KEY, x)
    y, new = net.apply(params, state, x, train=True)
    ya, yb = (
        layer.apply(p, s, x, train=True) for layer, p, s in zip((a, b), params, state, strict=True)
    )
    close(y, ya[0] - yb[0], 0)
    close(new, (ya[1], yb[1]), 0)
    named = parallel(a=a, b=b, merge=lambda ys: ys[0] - ys[1])
    assert named.name == "parallel(a=Dense(4), b=BatchNorm())"
    entries = (dict(zip("ab", tree, strict=True)) for tree in (params, state))
    close(named.apply(*entries, x, train=True), (y, {"a": new[0], "b": new[1]}), 0)


def test_repeat_is_a_loop():
    """Each repeated layer has its own params, state and key."""
    one, x = chain(Dense(4), BatchNorm(), Dropout(0.5)), normal(*ROWS)
    net = repeat(one, 3)
    params, state = net.init(KEY, x)
    y, new = net.apply(params, state, x, key=KEY, train=True)
    expected, states = x, []
    for i in range(3):
        p, s = jax.tree.map(lambda a, i=i: a[i], (params, state))
        close(one.init(jax.random.fold_in(KEY, i), x), (p, s))
        expected, s = one.apply(p, s, expected, key=jax.random.fold_in(KEY, i), train=True)
        states.append(s)
    close(y, expected)
    close(new, jax.tree.map(lambda *a: jnp.stack(a), *states))


def test_repeat_compiles_one_layer():
    x = jax.ShapeDtypeStruct(ROWS, jnp.float32)
    count = lambda times: len(
        str(jax.make_jaxpr(lambda: repeat(Dense(4), times).init(KEY, x))()).splitlines()
    )
    assert count(2) == count(20)


def test_flatten():
    y, _ = Flatten().apply((), (), normal(*IMAGE))
    assert y.shape == (2, 144)
    assert Flatten().apply((), (), jnp.zeros((0, 3, 2)))[0].shape == (0, 6)


def test_keys_reach_every_layer():
    x = normal(*ROWS)
    net = parallel(residual(Dropout(0.5)), Dropout(0.5))
    y, _ = net.apply(*net.init(KEY, x), x, key=KEY, train=True)
    assert not np.array_equal(np.asarray(y[:, :4] - x == 0), np.asarray(y[:, 4:] == 0))
    with pytest.raises(ValueError, match="needs a key"):
        net.apply(*net.init(KEY, x), x, train=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda x: residual(Dense(3)).init(KEY, x),
            "residual(Dense(3)): its layers must keep shape and dtype of x, (3, 4) float64, "
            "got (3, 3) float64",
        ),
        (
            lambda x: residual(Dense(3)).apply(*chain(Dense(3)).init(KEY, x), x),
            "residual(Dense(3)): its layers must keep shape and dtype of x, (3, 4) float64, "
            "got (3, 3) float64",
        ),
        (
            lambda x: repeat(Dense(3), 2).init(KEY, x),
            "repeat(Dense(3), 2): its layers must keep shape and dtype of x, (3, 4) float64, "
            "got (3, 3) float64",
        ),
        (lambda x: repeat(Dense(3), 0), "repeat: times must be an integer of at least 1, got 0"),
        (
            lambda x: repeat(Dense(4), 2.5),
            "repeat: times must be an integer of at least 1, got 2.5",
        ),
        (
            lambda x: repeat(Dense(4), 2, checkpoint="yes"),
            "repeat: checkpoint must be True or False, got 'yes'",
        ),
        (
            lambda x: repeat(Dense(4), 3).apply(*repeat(Dense(4), 2).init(KEY, x), x),
            "repeat: params['b'] must have shape (3, ...), one entry for each layer, got (2, 4)",
        ),
        (
            lambda x: repeat(BatchNorm(), 2).apply(
                repeat(BatchNorm(), 2).init(KEY, x)[0], BatchNorm().init(KEY, x)[1], x
            ),
            "repeat: state['mean'] must have shape (2, ...), one entry for each layer, got (4,)",
        ),
        (lambda x: residual(), "residual: layers must be at least one, got none"),
        (
            lambda x: residual(Dense(4)).apply((), (), x),
            "residual: params must have 1 entries, one for each layer, got 0",
        ),
        (
            lambda x: chain(Dense(4), out=Dense(4), act=ops.tanh),
            "chain: layers must all have a name or none, got 1 without and out, act",
        ),
        (
            lambda x: chain(a=Dense(4), b=ops.tanh).apply({"a": {}}, {"a": (), "b": ()}, x),
            "chain: params must have the entries a, b, got a",
        ),
        (
            lambda x: chain(a=Dense(4)).apply({"a": {}}, {}, x),
            "chain: state must have the entries a, got none",
        ),
        (
            lambda x: chain(a=Dense(4)).apply(({},), ((),), x),
            "chain: params must have the entries a, got tuple",
        ),
        (
            lambda x: Layer(None, None, "two", (Dense(4), Dense(4)), names=("one",)),
            "Layer: names must be one for each part, got ('one',)",
        ),
        (
            lambda x: residual(Dense(3), shortcut=Dense(2)).init(KEY, x),
            "residual(Dense(3), shortcut=Dense(2)): its layers must keep shape and dtype of its "
            "shortcut, (3, 2) float64, got (3, 3) float64",
        ),
        (
            lambda x: residual(Dense(3), shortcut=3),
            "residual: layers must be layers or functions of one array, got 3",
        ),
        (
            lambda x: parallel(Dense(3), b=Dense(2)),
            "parallel: layers must all have a name or none, got 1 without and b",
        ),
        (lambda x: parallel(), "parallel: layers must be at least one, got none"),
        (
            lambda x: parallel(Dense(4), merge="sum"),
            "parallel: merge must be a function, got 'sum'",
        ),
        (
            lambda x: parallel(Dense(4)).apply((), ((),), x),
            "parallel: params must have 1 entries, one for each layer, got 0",
        ),
        (
            lambda x: parallel(ops.tanh, ops.global_avg_pool).apply(((), ()), ((), ()), x[None]),
            "parallel: outputs may differ in the last axis alone, got (1, 3, 4) and (4,)",
        ),
        (lambda x: parallel(3), "parallel: layers must be layers or functions of one array, got 3"),
        (lambda x: Conv(0, (3,)), "Conv: channels must be an integer of at least 1, got 0"),
        (
            lambda x: Conv(1, ()),
            "Conv: kernel must be 1 to 3 ints of at least 1, or one int for two axes, got ()",
        ),
        (lambda x: Conv(4, 3, groups=3), "Conv: groups must divide the 4 channels, got 3"),
        (
            lambda x: Conv(2, (3, 3)).init(KEY, x),
            "Conv(2, (3, 3)): x must have 2 spatial axes and one of channels, got (3, 4)",
        ),
        (
            lambda x: Conv(3, (1,), groups=3).init(KEY, x),
            "Conv(3, (1,)): groups must divide the channels of x, 4, got 3",
        ),
        (
            lambda x: Embedding(0, 3),
            "Embedding: vocabulary must be an integer of at least 1, got 0",
        ),
        (
            lambda x: Embedding(3, 3).init(KEY, x),
            "Embedding(3, 3): x must be of an integer dtype, got float64",
        ),
        (lambda x: GRU(0), "GRU: units must be an integer of at least 1, got 0"),
        (lambda x: LSTM(2).init(KEY, x[0]), "LSTM(2): x must have shape (..., T, c), got (4,)"),
        (
            lambda x: RMSNorm(eps=-1.0),
            "RMSNorm: eps must be a finite number of at least 0, got -1.0",
        ),
        (
            lambda x: GroupNorm(2, eps=-1.0),
            "GroupNorm: eps must be a finite number of at least 0, got -1.0",
        ),
        (
            lambda x: MultiHeadAttention(4, kv_heads=3),
            "MultiHeadAttention: kv_heads must divide heads, got 3 and 4",
        ),
        (
            lambda x: MultiHeadAttention(3).init(KEY, x),
            "MultiHeadAttention(3): heads must divide the last axis of x, got x (3, 4)",
        ),
        (
            lambda x: MultiHeadAttention(4, rope_base=100.0).init(KEY, x),
            "MultiHeadAttention(4): rope_base needs heads of even width, got 1",
        ),
        (
            lambda x: MultiHeadAttention(0),
            "MultiHeadAttention: heads must be an integer of at least 1, got 0",
        ),
        (
            lambda x: MultiHeadAttention(2, causal="no"),
            "MultiHeadAttention: causal must be True or False, got 'no'",
        ),
        (
            lambda x: MultiHeadAttention(2, rope_base=float("nan")),
            "MultiHeadAttention: rope_base must be a finite number above 0, got nan",
        ),
        (
            lambda x: MultiHeadAttention(2, attend="flash"),
            "MultiHeadAttention: attend must be a function, got 'flash'",
        ),
        (
            lambda x: MultiHeadAttention(2, cache=3),
            "MultiHeadAttention: cache needs causal=True",
        ),
        (
            lambda x: MultiHeadAttention(2, causal=True, cache=0),
            "MultiHeadAttention: cache must be an integer of at least 1, got 0",
        ),
        (
            lambda x: MultiHeadAttention(2, context_width=3, rope_base=9.0),
            "MultiHeadAttention: a context excludes causal, cache and rope_base",
        ),
        (
            lambda x: MultiHeadAttention(2, context_width="3"),
            "MultiHeadAttention: context_width must be an integer of at least 1, got '3'",
        ),
        (lambda x: Flatten().apply((), (), (x, x)), "Flatten(): x must be an array, got tuple"),
        (lambda x: Positions(0), "Positions: length must be an integer of at least 1, got 0"),
        (
            lambda x: Positions(2).init(KEY, x),
            "Positions(2): x must have shape (..., T, c) with T of at most 2, got (3, 4)",
        ),
        (
            lambda x: Positions(3).init(KEY, x[0]),
            "Positions(3): x must have shape (..., T, c) with T of at most 3, got (4,)",
        ),
        (
            lambda x: Positions(3).init(KEY, x.astype(int)),
            "Positions(3): x must be of a floating dtype, got int64",
        ),
        (
            lambda x: Positions(3, cache=True).apply({"w": x}, (), x),
            "Positions(3, cache=True): state must have the structure of init; state['length'] is "
            "missing",
        ),
        (
            lambda x: TransformerBlock(2),
            "TransformerBlock: hidden or mlp must be given, and not both, got None and None",
        ),
        (
            lambda x: TransformerBlock(2, hidden=3, mlp=ops.relu),
            "TransformerBlock: hidden or mlp must be given, and not both, got 3 and function relu",
        ),
        (
            lambda x: TransformerBlock(2, hidden=3, norm=RMSNorm()),
            "TransformerBlock: norm must be a function, got RMSNorm()",
        ),
        (
            lambda x: TransformerBlock(2, hidden=3, post_norm=1),
            "TransformerBlock: post_norm must be True or False, got 1",
        ),
        (
            lambda x: TransformerBlock(2, hidden="10"),
            "TransformerBlock: hidden must be an integer of at least 1, got '10'",
        ),
        (
            lambda x: TransformerBlock(2, hidden=3, dropout=1.5),
            "TransformerBlock: dropout must be a number in [0, 1), got 1.5",
        ),
        (lambda x: GatedMLP(0), "GatedMLP: hidden must be an integer of at least 1, got 0"),
        (lambda x: models.cnn(classes=3), "cnn: channels must name one stage at least, got none"),
        (
            lambda x: models.cnn(3, classes=3, convolutions=0),
            "cnn: convolutions must be at least 1 for each of 1 stages, got 0",
        ),
        (
            lambda x: models.cnn(3, 4, classes=3, convolutions="22"),
            "cnn: convolutions must be at least 1 for each of 2 stages, got '22'",
        ),
        (
            lambda x: models.cnn("10", classes=3),
            "cnn: channels must be an integer of at least 1, got '10'",
        ),
        (
            lambda x: models.cnn(3, classes=3, dropout=None),
            "cnn: dropout must be a number, got None",
        ),
        (
            lambda x: models.transformer(9, width=8, depth=1, heads=3),
            "transformer: heads must divide width into even numbers, got 3 and 8",
        ),
        (
            lambda x: models.transformer(9, width=8, depth=0, heads=2),
            "transformer: depth must be an integer of at least 1, got 0",
        ),
        (
            lambda x: models.transformer(9, width=8, depth=1, heads=2, hidden=0),
            "TransformerBlock: hidden must be an integer of at least 1, got 0",
        ),
        (
            lambda x: models.transformer(9, width=8, depth=1, heads=2, head="no"),
            "transformer: head must be True or False, got 'no'",
        ),
    ],
)
def test_what_cannot_be(make, message):
    x = normal(*ROWS)
    with pytest.raises((ValueError, TypeError)) as e:
        make(x)
    assert str(e.value) == message


# Layers are the ops ---------------------------------------------------------------------------


def test_attention_is_made_of_heads():
    """The reference computes each head in NumPy."""
    x, net = normal(5, 8), MultiHeadAttention(2, causal=True)
    params, state = net.init(KEY, x)
    q, k, v = (np.asarray(x @ params[p]["w"]).reshape(5, 2, 4) for p in "qkv")
    heads = []
    for h in range(2):
        scores = q[:, h] @ k[:, h].T / 2 + np.where(np.tri(5), 0, -np.inf)
        e = np.exp(scores - scores.max(1, keepdims=True))
        heads.append(e / e.sum(1, keepdims=True) @ v[:, h])
    expected = np.concatenate(heads, 1) @ np.asarray(params["out"]["w"])
    close(net.apply(params, state, x)[0], expected)


@pytest.mark.parametrize(("layer", "gates"), [(LSTM, 4), *slow((RNN, 1), (GRU, 3))])
def test_recurrent_layers_start_from_zero(layer, gates):
    x = normal(*SEQUENCE)
    params, state = layer(3).init(KEY, x)
    assert params["w_x"].shape == (4, 3 * gates)
    whole, _ = layer(3).apply(params, state, x)
    final, _ = layer(3, last=True).apply(params, state, x)
    assert whole.shape == (2, 5, 3)
    close(final, whole[:, -1])
    first, _ = layer(3, last=True, reverse=True).apply(params, state, x[:, ::-1])
    close(first, final)


def test_embedding_takes_ids():
    net, ids = Embedding(7, 3), jnp.asarray([[0, 6], [2, 2]], jnp.int32)
    params, state = net.init(KEY, ids)
    close(net.apply(params, state, ids)[0], params["w"][ids], 0)


def test_positions():
    x, net = normal(*SEQUENCE), Positions(7)
    params, state = net.init(KEY, x)
    assert params["w"].shape == (7, 4)
    close(net.apply(params, state, x)[0], x + params["w"][:5], 0)
    net = Positions(7, cache=True)
    y, state = net.apply(*net.init(KEY, x), x[:, :3])
    close(y, x[:, :3] + params["w"][:3], 0)
    y, state = jax.jit(net.apply)(params, state, x[:, :3])
    close(y, x[:, :3] + params["w"][3:6], 0)
    y, state = net.apply(params, state, x[:, :3])
    close(y[:, 0], x[:, 0] + params["w"][6], 0)
    assert np.isnan(y[:, 1:]).all()  # there are no positions 7 and 8
    assert state["length"] == 9


def test_blocks_are_these_chains():
    x, context = normal(*SEQUENCE), normal(2, 3, 6, seed=2)
    attend, drop, feed = MultiHeadAttention(2, bias=True), Dropout(0.5), mlp(6, 4)
    cross = MultiHeadAttention(2, context_width=6, bias=True)
    norm = LayerNorm()
    options = {"mlp": feed, "norm": LayerNorm, "bias": True, "rope_base": None}
    for block, same in (
        (
            TransformerBlock(2, dropout=0.5, **options),
            chain(residual(norm, attend, drop), residual(norm, feed, drop)),
        ),
        (
            TransformerBlock(2, post_norm=True, **options),
            chain(residual(attend), norm, residual(feed), norm),
        ),
        (
            TransformerBlock(2, context_width=6, **options),
            chain(residual(norm, attend), residual(norm, cross), residual(norm, feed)),
        ),
        (
            TransformerBlock(2, hidden=3, causal=True, cache=9),
            chain(
                residual(RMSNorm(), MultiHeadAttention(2, causal=True, rope_base=1e4, cache=9)),
                residual(RMSNorm(), GatedMLP(3)),
            ),
        ),
    ):
        params, state = block.init(KEY, x)
        close(same.init(KEY, x), (params, state), 0)
        inputs = {"context": context} if "context" in same.inputs else {}
        assert block.inputs == same.inputs
        run = lambda net, *tree, **inputs: net.apply(*tree, x, key=KEY, train=True, **inputs)
        close(run(block, params, state, **inputs), run(same, params, state, **inputs), 0)


# Models ---------------------------------------------------------------------------------------


def test_cnn():
    net, x = models.cnn(4, 6, classes=3, dropout=0.5), normal(*IMAGE)
    params, train = trained(net, x)
    assert jax.eval_shape(train, params, x)[0].shape == (2, 3)
    assert net.name.startswith("chain(Conv(4, (3, 3)), BatchNorm(), relu, Conv(4, (3, 3)),")


@pytest.mark.slow
def test_transformer_does_not_look_ahead():
    net = models.transformer(11, width=8, depth=2, heads=2, kv_heads=1)
    ids = jnp.asarray([[3, 1, 4, 1, 5]], jnp.int32)
    params, state = net.init(KEY, ids)
    apply = jax.jit(lambda ids: net.apply(params, state, ids)[0])
    y, changed = apply(ids), apply(ids.at[0, 3].set(9))
    assert y.shape == (1, 5, 11)
    close(changed[:, :3], y[:, :3], 1e-6)
    assert np.abs(changed[:, 3:] - y[:, 3:]).min() > 0


@pytest.mark.slow
def test_transformer_without_head():
    """Without head, the output is the input of the last layer; checkpoint changes no values."""
    ids = jnp.asarray([[3, 1, 4]], jnp.int32)
    make = lambda **options: models.transformer(11, width=8, depth=2, heads=2, **options)
    params, state = make().init(KEY, ids)
    logits, _ = make().apply(params, state, ids)
    h, _ = make(head=False, checkpoint=True).apply(params[:-1], state[:-1], ids)
    close(h @ params[-1]["w"], logits, 1e-5)


# Summary --------------------------------------------------------------------------------------


def test_summary_of_an_mlp():
    net = chain(Dense(5), ops.relu, residual(Dense(5, bias=False)))
    table = summary(net, jax.ShapeDtypeStruct((3, 4), jnp.float32))
    dense, relu, shortcut, inner = table.rows
    assert dense[:4] == ("Dense(5)", "float32[3,5]", 25, 100)
    assert dense.flops == 2 * 3 * 4 * 5 + 3 * 5
    assert (dense.residual_bytes, dense.autodiff_bytes) == (4 * 12, 4 * 12)  # x
    assert relu.residual_bytes == 15  # the mask
    assert shortcut.layer == "residual(Dense(5, bias=False))"
    assert inner[:3] == ("  Dense(5, bias=False)", "float32[3,5]", 25)
    assert table.total.parameters == 50
    assert table.total.flops == dense.flops + 2 * 3 * 5 * 5 + 3 * 5
    text = str(table).splitlines()
    assert text[0].split() == [
        *("layer", "output", "params", "bytes", "FLOPs", "kept", "by", "hand", "by", "autodiff")
    ]
    assert text[2].split() == ["Dense(5)", "float32[3,5]", "25", "100", "135", "48", "48"]
    assert text[-1].split()[0] == "total"


def test_summary_counts_loops_and_convolutions():
    x = jax.ShapeDtypeStruct((2, 6, 6, 4), jnp.float32)
    (row,) = summary(Conv(3, (3, 3), bias=False), x).rows
    assert row.flops == 2 * (2 * 6 * 6 * 3) * (3 * 3 * 4)
    rows = jax.ShapeDtypeStruct((3, 4), jnp.float32)
    once, thrice = (summary(repeat(Dense(4, bias=False), n), rows).total.flops for n in (1, 3))
    assert thrice == 3 * once == 3 * 2 * 3 * 4 * 4


def test_summary_fits_a_page():
    """In the summary of a residual network, a layer with rows for its parts shows only its kind."""
    conv = lambda channels: chain(Conv(channels, (3, 3), bias=False), BatchNorm())
    block = lambda channels: residual(conv(channels), ops.relu, conv(channels))
    net = chain(
        *(conv(64), block(64), block(64), MaxPool((2, 2)), conv(128), ops.relu, block(128)),
        *(repeat(block(128), 3), parallel(conv(64), conv(64)), GlobalAvgPool(), Dense(1000)),
    )
    lines = str(summary(net, jax.ShapeDtypeStruct((32, 112, 112, 3), jnp.float32))).splitlines()
    assert max(map(len, lines)) <= 100
    names = [line.split("  float32")[0].rstrip() for line in lines[2:-2]]
    assert names[:5] == ["chain", "  Conv(64, (3, 3))", "  BatchNorm()", "residual", "  chain"]
    assert names[-4].startswith("repeat(residual(")
    assert names[-4].endswith("…")
    assert lines[3].split()[-6:-2] == ["float32[32,112,112,64]", "1,728", "6,912", "1.387G"]


def test_summary_marks_loops_of_unknown_length():
    halves = lambda x: jax.lax.while_loop(lambda x: x.max() > 1, lambda x: x / 2, x)
    table = summary(chain(Dense(4), lambda x: x + jax.lax.stop_gradient(halves(x))), X)
    assert [row.flops_exact for row in table.rows] == [True, False]
    assert not table.total.flops_exact
    assert [line.count("~") for line in str(table).splitlines()] == [0, 0, 0, 1, 0, 1]


def test_summary_of_parts_with_names():
    rows = summary(chain(body=chain(hidden=Dense(5), act=ops.relu), out=Dense(2)), X).rows
    assert [row.layer for row in rows] == [
        "body: chain(hidden=Dense(5), act=relu)",
        "  hidden: Dense(5)",
        "  act: relu",
        "out: Dense(2)",
    ]
    assert [row.parameters for row in rows] == [25, 25, 0, 12]


def test_summary_of_what_is_no_layer():
    with pytest.raises(TypeError, match=r"^summary: layer must be a layer, got function Dense$"):
        summary(Dense, X)
    with pytest.raises(TypeError, match=r"^summary: x must be an array or .*, got \(3, 4\)$"):
        summary(Dense(4), (3, 4))


def test_summary_of_a_transformer():
    """The input ids have no gradient, and attention saves no scores."""
    net = models.transformer(11, width=8, depth=3, heads=2, dropout=0.1)
    table = summary(net, jax.ShapeDtypeStruct((2, 64), jnp.int32))
    assert [row.layer.split("(")[0] for row in table.rows] == [
        "Embedding",
        "repeat",
        "RMSNorm",
        "Dense",
    ]
    params = jax.eval_shape(net.init, KEY, jax.ShapeDtypeStruct((2, 64), jnp.int32))[0]
    assert table.total.parameters == sum(p.size for p in jax.tree.leaves(params))
    assert table.total.residual_bytes < table.total.autodiff_bytes
