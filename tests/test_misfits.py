"""Parameters, inputs and constructor options that do not fit a layer raise a one-line error."""

import jax
import jax.numpy as jnp
import pytest

from funcnet import ops
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
    Embedding,
    GatedMLP,
    GlobalAvgPool,
    GroupNorm,
    Layer,
    LayerNorm,
    MaxPool,
    MultiHeadAttention,
    RMSNorm,
    chain,
    mlp,
    parallel,
    residual,
    stateless,
)

KEY = jax.random.key(0)
X, SEQUENCE, IDS = jnp.ones((2, 8)), jnp.ones((2, 3, 8)), jnp.zeros(2, int)
LAYERS = [  # layers with an input
    (Dense(3), X),
    (Dense(3, bias=False), X),
    (GatedMLP(3), X),
    (RNN(3), SEQUENCE),
    (LSTM(3, last=True), SEQUENCE),
    (GRU(3, reverse=True), SEQUENCE),
    (Conv(3, (3,)), SEQUENCE),
    (Conv(4, (3,), groups=2, bias=False), SEQUENCE),
    (ConvTranspose(3, (3,)), SEQUENCE),
    (ConvTranspose(4, (3,), groups=2), SEQUENCE),
    (DepthwiseConv((3,)), SEQUENCE),
    (BatchNorm(), X),
    (LayerNorm(), X),
    (RMSNorm(), X),
    (GroupNorm(2), X),
    (GroupNorm(2, bias=False), X),
    (MultiHeadAttention(4, kv_heads=2, bias=True), SEQUENCE),
]


def refused(f, error=(TypeError, ValueError)):
    with pytest.raises(error) as e:
        f()
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.third
@pytest.mark.parametrize(("layer", "x"), LAYERS, ids=[layer.name for layer, _ in LAYERS])
def test_parameters_that_do_not_fit(layer, x):
    """Parameters with a wrong width, a missing, an extra or no entry, or of a wrong type."""
    params, state = layer.init(KEY, x)
    leaves, tree = jax.tree.flatten(params)
    longer = [jnp.concatenate([p, p[..., :1]], -1) for p in leaves]
    other = lambda i: jax.tree.unflatten(tree, [*leaves[:i], longer[i], *leaves[i + 1 :]])
    wrong = [
        *map(other, range(len(leaves))),
        *({k: v for k, v in params.items() if k != missing} for missing in params),
        params | {"more": jnp.ones(3)},
        *((), None, [leaves], x),
    ]
    for other in wrong:
        for f in (layer.apply, jax.jit(layer.apply)):
            message = refused(lambda f=f, p=other: f(p, state, x))
            assert message.startswith(f"{layer}: params must have ")
    assert refused(lambda: layer.apply(params, state, x.tolist())).endswith(
        "x must be an array, got list"
    )
    layer.apply(params, state, x)


def test_a_table_that_does_not_fit():
    layer = Embedding(5, 3)
    for params in ({"w": jnp.ones((5, 4))}, {"w": jnp.ones((1, 3))}, {}, (), None):
        assert refused(lambda p=params: layer.apply(p, (), IDS)).startswith(f"{layer}: params")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Dense(3).apply(Dense(4).init(KEY, X)[0], (), X),
            "Dense(3): params must have w (8, 3) and b (3,), got w (8, 4) and b (4,) with x (2, 8)",
        ),
        (
            lambda: LSTM(2).apply(RNN(2).init(KEY, SEQUENCE)[0], (), SEQUENCE),
            "LSTM(2): params must have w_x (8, 8), w_h (2, 8) and b (8,), "
            "got w_x (8, 2), w_h (2, 2) and b (2,) with x (2, 3, 8)",
        ),
        (
            lambda: GatedMLP(1).apply({}, (), X),
            "GatedMLP(1): params must have gate.w (8, 1), up.w (8, 1) and down.w (1, 8), "
            "got {} with x (2, 8)",
        ),
        (
            lambda: Embedding(5, 3).apply({"w": jnp.ones((5, 4))}, (), IDS),
            "Embedding(5, 3): params must have w (5, 3), got w (5, 4)",
        ),
        (lambda: Dense(2.5), "Dense: units must be an integer of at least 1, got 2.5"),
        (lambda: Dense("10"), "Dense: units must be an integer of at least 1, got '10'"),
        (lambda: Dense(-1), "Dense: units must be an integer of at least 1, got -1"),
        (lambda: Dense(3, bias="no"), "Dense: bias must be True or False, got 'no'"),
        (lambda: Dense(3, w_init="he"), "Dense: w_init must be a function, got 'he'"),
        (lambda: Dense(3).init(42, X), "Dense(3): key must be one key of jax.random.key, got 42"),
        (lambda: Dense(3).init(KEY, (2, 8)), "Dense(3): x must be an array, got tuple"),
        (lambda: RNN(2.5), "RNN: units must be an integer of at least 1, got 2.5"),
        (lambda: GRU(3, reverse="no"), "GRU: reverse must be True or False, got 'no'"),
        (lambda: LSTM(3, recompute=1), "LSTM: recompute must be True or False, got 1"),
        (lambda: LSTM(3, last="yes"), "LSTM: last must be True or False, got 'yes'"),
        (
            lambda: RNN(3).init(KEY, SEQUENCE.astype(int)),
            "RNN(3): x must be of a real floating dtype, got int64",
        ),
        (lambda: Conv(2.5, 3), "Conv: channels must be an integer of at least 1, got 2.5"),
        (lambda: Conv("8", 3), "Conv: channels must be an integer of at least 1, got '8'"),
        (
            lambda: Conv(8, 2.5),
            "Conv: kernel must be 1 to 3 ints of at least 1, or one int for two axes, got 2.5",
        ),
        (
            lambda: Conv(8, 3, strides=(1, 2, 3)),
            "Conv: strides must be an int of at least 1, or 2 of them, got (1, 2, 3)",
        ),
        (
            lambda: DepthwiseConv(3, padding="same"),
            "DepthwiseConv: padding must be 'SAME', 'VALID' or 2 pair(s) (low, high) of ints of "
            "at least 0, got 'same'",
        ),
        (lambda: Conv(8, 3, bias="no"), "Conv: bias must be True or False, got 'no'"),
        (lambda: Conv(8, 3, groups=2.0), "Conv: groups must be an integer of at least 1, got 2.0"),
        (
            lambda: ConvTranspose(8, 3, groups=3),
            "ConvTranspose: groups must divide the 8 channels, got 3",
        ),
        (
            lambda: ConvTranspose(8, 3, w_init="he"),
            "ConvTranspose: w_init must be a function, got 'he'",
        ),
        (
            lambda: MaxPool(0),
            "MaxPool: window must be 1 to 3 ints of at least 1, or one int for two axes, got 0",
        ),
        (
            lambda: AdaptiveAvgPool((2, 0)),
            "AdaptiveAvgPool: sizes must be 1 to 3 ints of at least 1, or one int for two axes, "
            "got (2, 0)",
        ),
        (
            lambda: AdaptiveAvgPool(2).apply((), (), X),
            "AdaptiveAvgPool((2, 2)): x must have 2 spatial axes and one of channels, got (2, 8)",
        ),
        (
            lambda: AvgPool(2, count_include_pad="no"),
            "AvgPool: count_include_pad must be True or False, got 'no'",
        ),
        (
            lambda: GlobalAvgPool(spatial=0),
            "GlobalAvgPool: spatial must be an integer of at least 1, got 0",
        ),
        (
            lambda: BatchNorm(momentum=float("nan")),
            "BatchNorm: momentum must be a number in [0, 1], got nan",
        ),
        (lambda: LayerNorm(eps="1e-5"), "LayerNorm: eps must be a number, got '1e-5'"),
        (
            lambda: GroupNorm(3).init(KEY, X),
            "GroupNorm(3): groups must divide the channels of x, 8, got 3",
        ),
        (
            lambda: BatchNorm().init(KEY, IDS),
            "BatchNorm(): x must be of a floating dtype, got int64",
        ),
        (
            lambda: BatchNorm().apply(BatchNorm().init(KEY, X)[0], (), X),
            "BatchNorm(): state must have the structure of init; state['mean'] is missing",
        ),
        (
            lambda: BatchNorm().apply(
                BatchNorm().init(KEY, X)[0],
                {"mean": X[0], "var": X[0].astype(complex)},
                X,
                train=True,
            ),
            "BatchNorm(): state['var'] must be real, got complex128[8]",
        ),
        (lambda: mlp(5, 2.5), "mlp: units[1] must be an integer of at least 1, got 2.5"),
        (lambda: mlp([5, 3]), "mlp: units[0] must be an integer of at least 1, got [5, 3]"),
        (lambda: mlp(3, activation="relu"), "mlp: activation must be a function, got 'relu'"),
        (lambda: mlp(5, 3, batch_norm="no"), "mlp: batch_norm must be True or False, got 'no'"),
        (lambda: mlp(5, 3, dropout="a"), "mlp: dropout must be a number, got 'a'"),
        (lambda: GatedMLP(2.5), "GatedMLP: hidden must be an integer of at least 1, got 2.5"),
        (lambda: GatedMLP(3, gate="swiglu"), "GatedMLP: gate must be a function, got 'swiglu'"),
        (
            lambda: GatedMLP(3, gate=ops.relu),
            "GatedMLP: gate must take 2 arguments: too many positional arguments",
        ),
        (
            lambda: Dense(3, w_init=lambda: 1),
            "Dense: w_init must take 3 arguments: too many positional arguments",
        ),
        (
            lambda: Dense(3, b_init=lambda key, shape, dtype: jnp.ones(2)).init(KEY, X),
            "Dense(3): b_init must return an array of shape (3,), got float64[2]",
        ),
        (
            lambda: Conv(3, (3,), w_init=lambda key, shape, dtype: "he").init(KEY, SEQUENCE),
            "Conv(3, (3,)): what w_init returns must be an array, got str",
        ),
        (
            lambda: MultiHeadAttention(4, attend=lambda q, k, v: v),
            "MultiHeadAttention: attend must take 3 arguments and causal: "
            "got an unexpected keyword argument 'causal'",
        ),
        (
            lambda: parallel(Dense(3), merge=lambda: 1),
            "parallel: merge must take 1 argument: too many positional arguments",
        ),
        (lambda: mlp(3, w_init=0), "mlp: w_init must be a function, got 0"),
        (
            lambda: Conv(3, jnp.ones((2, 2))),
            "Conv: kernel must be 1 to 3 ints of at least 1, or one int for two axes, "
            "got float64[2,2]",
        ),
        (
            lambda: chain(int),
            "chain: layers must be layers or functions of one array, got class int",
        ),
        (lambda: LayerNorm().init(KEY, (X, X)), "LayerNorm(): x must be an array, got tuple"),
        (
            lambda: Dense(3).apply(),
            "Dense(3).apply() missing 3 required positional arguments: 'params', 'state', and 'x'",
        ),
        (lambda: Dense(3).init(KEY), "Dense(3).init() missing 1 required positional argument: 'x'"),
        (
            lambda: MaxPool(1).apply({"w": X}, (), X[None, None]),
            "MaxPool((1, 1)): params must be (), as it has none, got dict",
        ),
        (
            lambda: GatedMLP(3).apply(GatedMLP(3).init(KEY, X)[0], {"mean": X}, X),
            "GatedMLP(3): state must be (), as it has none, got dict",
        ),
        (
            lambda: residual(lambda x: (x, x)).init(KEY, X),
            "residual(<lambda>): its layers must return an array, got tuple",
        ),
        (
            lambda: Layer(lambda key, x: X, lambda params, state, x, **options: x, "mine").init(
                KEY, X
            ),
            "mine: init must return (params, state), got float64[2,8]",
        ),
        (
            lambda: Layer(lambda: (), lambda: (), "mine"),
            "Layer: init must take 2 arguments: too many positional arguments",
        ),
        (
            lambda: stateless(lambda params, x: x, None, "mine"),
            "stateless: init must be a function, got None",
        ),
        (
            lambda: Embedding(5, 3, padding=5),
            "Embedding: padding must be from -5 to 4, got 5",
        ),
        (lambda: Embedding(5, 3, padding="0"), "Embedding: padding must be an integer, got '0'"),
        (lambda: Embedding(5, 2.5), "Embedding: width must be an integer of at least 1, got 2.5"),
        (
            lambda: Embedding(5, 3, dtype=jnp.int32),
            "Embedding: dtype must be a floating dtype, got int32",
        ),
        (
            lambda: Embedding(5, 3, dtype="float33"),
            "Embedding: dtype must be a floating dtype, got 'float33'",
        ),
    ],
)
def test_what_it_says(make, message):
    assert refused(make) == message


@pytest.mark.third
@pytest.mark.parametrize(("layer", "x"), LAYERS, ids=[layer.name for layer, _ in LAYERS])
def test_an_empty_batch_fits(layer, x):
    params, state = layer.init(KEY, x[:0])
    assert layer.apply(params, state, x[:0])[0].shape == (
        0,
        *layer.apply(params, state, x)[0].shape[1:],
    )
