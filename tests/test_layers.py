"""Tests of layers: parameters and state, values and gradients, error messages."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet import autodiff, initializers, ops
from funcnet.layers import BatchNorm, Dense, Dropout, Layer, chain, mlp, stateless

KEY = jax.random.key(0)
# A few float64 rounding errors (2e-16 each) in sums of at most a few hundred terms.
RTOL = 1e-13


def normal(*shape, seed=1, dtype=jnp.float64):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def equal(a, b):
    """Asserts that two trees are equal bit by bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b, rtol=RTOL):
    """Asserts that two trees are equal up to rounding."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, rtol), a, b)


# Every layer ----------------------------------------------------------------------------------

NETS = {
    "Dense": Dense(5),
    "BatchNorm": BatchNorm(),
    "Dropout": Dropout(0.25),
    "relu": chain(ops.relu),
    "mlp": mlp(5, 3, batch_norm=True, dropout=0.25),
}
nets = pytest.mark.parametrize("net", NETS.values(), ids=NETS)
mlp_first = pytest.mark.parametrize(  # the mlp has every kind of layer; the other nets are slow
    "net",
    [
        pytest.param(net, id=name, marks=[] if name == "mlp" else [pytest.mark.slow])
        for name, net in NETS.items()
    ],
)


def setup(net, x):
    params, state = net.init(KEY, x)
    train = lambda params, x: net.apply(params, state, x, key=KEY, train=True)
    return params, state, train


@nets
def test_init_needs_shape_and_dtype_alone(net):
    x = normal(7, 4)
    equal(net.init(KEY, x), net.init(KEY, jax.ShapeDtypeStruct(x.shape, x.dtype)))
    equal(net.init(KEY, x), net.init(KEY, 10 + x))


@nets
def test_params_and_output_have_the_dtype_of_x(net):
    x = normal(7, 4, dtype=jnp.float32)
    params, _, train = setup(net, x)
    assert {p.dtype for p in jax.tree.leaves(params)} <= {x.dtype}
    assert jax.eval_shape(train, params, x)[0].dtype == x.dtype


@nets
def test_state_keeps_its_structure_shapes_and_dtypes(net):
    x = normal(7, 4, dtype=jnp.bfloat16)
    params, state, train = setup(net, x)
    y, new = jax.eval_shape(train, params, x)
    assert y.dtype == jnp.bfloat16
    assert new == jax.eval_shape(lambda: state)


@mlp_first
def test_jit_changes_nothing(net):
    x = normal(7, 4)
    params, _, train = setup(net, x)
    close(jax.jit(train)(params, x), train(params, x))


@pytest.mark.few
@nets
def test_rules_and_autodiff_agree(net):
    x = normal(7, 4)
    params, _, train = setup(net, x)
    weights = normal(*jax.eval_shape(train, params, x)[0].shape, seed=2)
    loss = lambda params, x: (weights * train(params, x)[0]).sum()
    hand = jax.jit(jax.value_and_grad(loss, (0, 1)))
    close(hand(params, x), autodiff(hand)(params, x), rtol=1e-11)  # BatchNorm divides by σ


@nets
@pytest.mark.parametrize("train", [True, False])
def test_layers_compute_by_rules(net, train):
    """A custom_vjp refuses forward mode, so a layer that allows it would bypass the rules."""
    x = normal(7, 4)
    params, state = net.init(KEY, x)
    f = lambda x: net.apply(params, state, x, key=KEY, train=train)[0]
    forward = lambda f: jax.jit(lambda x: jax.jvp(f, (x,), (x,))).lower(x)
    forward(autodiff(f))
    if train or net is not NETS["Dropout"]:
        with pytest.raises(TypeError, match="custom_vjp"):
            forward(f)


@mlp_first
def test_vmap_over_keys_is_an_ensemble(net):
    x, keys = normal(7, 4), jax.random.split(KEY, 3)

    def run(key):
        params, state = net.init(key, x)
        return params, net.apply(params, state, x, key=key, train=True)

    members = [jax.jit(run)(key) for key in keys]
    close(jax.jit(jax.vmap(run))(keys), jax.tree.map(lambda *a: jnp.stack(a), *members))


@nets
def test_leading_axes_are_batch_axes(net):
    """This holds in inference; in training, statistics and mask depend on all examples."""
    x = normal(2, 3, 4)
    params, state = net.init(KEY, x)
    apply = jax.jit(lambda x: net.apply(params, state, x)[0])
    flat = apply(x.reshape(6, 4))
    close(apply(x).reshape(flat.shape), flat)


# Dense ----------------------------------------------------------------------------------------


def test_dense_is_affine():
    x = normal(7, 4)
    params, state = Dense(5, b_init=initializers.normal(1.0)).init(KEY, x)
    assert state == ()
    y, _ = Dense(5).apply(params, state, x)
    np.testing.assert_allclose(y, np.asarray(x) @ params["w"] + params["b"], RTOL)


def test_dense_gives_each_initializer_its_own_key_and_shape():
    seen = []

    def init(key, shape, dtype):
        seen.append((jax.random.key_data(key).tolist(), shape, dtype))
        return jnp.zeros(shape, dtype)

    Dense(5, w_init=init, b_init=init).init(KEY, normal(7, 4))
    (w_key, *w), (b_key, *b) = seen
    assert w == [(4, 5), jnp.float64]
    assert b == [(5,), jnp.float64]
    assert w_key != b_key


def test_dense_starts_with_xavier_weights_and_zero_biases():
    params, _ = Dense(300).init(KEY, jax.ShapeDtypeStruct((1, 400), jnp.float64))
    equal(params["b"], jnp.zeros(300))
    standard_error = 1 / np.sqrt(2 * 400 * 300)
    assert abs(params["w"].std() * np.sqrt(400) - 1) < 5 * standard_error


# Batch Normalization --------------------------------------------------------------------------


@pytest.mark.few
@pytest.mark.parametrize("shape", [(8, 3), (2, 3, 4, 3)])
@pytest.mark.parametrize("momentum", [0.9, 0.25, 0.0, 1.0])
def test_batch_norm_follows_the_statistics_of_the_batches(momentum, shape):
    """μ_running ← α μ_running + (1 − α) μ, and σ² alike, from 0 and 1: source A 4.2.1.1."""
    layer, axes = BatchNorm(momentum=momentum), tuple(range(len(shape) - 1))
    params, state = layer.init(KEY, jnp.zeros(shape))
    train = jax.jit(lambda params, state, x: layer.apply(params, state, x, train=True))
    mean, var = np.zeros(3), np.ones(3)
    for seed in range(4):
        x = 2 + 3 * normal(*shape, seed=seed)
        _, state = train(params, state, x)
        mean = momentum * mean + (1 - momentum) * np.mean(x, axes)
        var = momentum * var + (1 - momentum) * np.var(x, axes)  # biased variance: divided by B
        np.testing.assert_allclose(state["mean"], mean, RTOL)
        np.testing.assert_allclose(state["var"], var, RTOL)


def test_batch_norm_starts_as_standardisation():
    params, state = BatchNorm().init(KEY, jnp.zeros((8, 3)))
    equal(params, {"scale": jnp.ones(3), "bias": jnp.zeros(3)})
    equal(state, {"mean": jnp.zeros(3), "var": jnp.ones(3)})


def test_batch_norm_standardises_by_the_batch_in_training_and_by_the_state_at_inference():
    x, eps = normal(8, 3), 0.1
    layer = BatchNorm(eps=eps)
    params = {"scale": jnp.array([1.0, 2.0, -3.0]), "bias": jnp.array([0.5, 0.0, 1.0])}
    state = {"mean": jnp.array([1.0, -2.0, 3.0]), "var": jnp.array([0.5, 4.0, 1.0])}
    standardised = lambda mean, var: params["scale"] * (x - mean) / np.sqrt(var + eps)
    y, _ = layer.apply(params, state, x, train=True)
    close(y, standardised(np.mean(x, 0), np.var(x, 0)) + params["bias"])
    y, same = layer.apply(params, state, x)
    close(y, standardised(state["mean"], state["var"]) + params["bias"])
    equal(same, state)


def test_batch_norm_at_inference_treats_each_example_alone():
    x = normal(8, 3)
    params, state = BatchNorm().init(KEY, x)
    _, state = BatchNorm().apply(params, state, x, train=True)
    y, _ = BatchNorm().apply(params, state, x)
    close(y[2:3], BatchNorm().apply(params, state, x[2:3])[0])


def test_batch_norm_of_no_examples_leaves_the_state():
    params, state = BatchNorm().init(KEY, normal(8, 3))
    _, state = BatchNorm().apply(params, state, normal(8, 3), train=True)
    train = jax.jit(lambda x: BatchNorm().apply(params, state, x, train=True))
    for shape in ((0, 3), (2, 0, 3)):
        y, same = train(jnp.zeros(shape))
        assert y.shape == shape
        equal(same, state)


def test_batch_norm_in_bfloat16_keeps_its_numbers_in_float32():
    """In bfloat16, with its 8 bits, 0.9·μ + 0.1·μ would drift."""
    x = normal(8, 3, dtype=jnp.bfloat16)
    params, state = BatchNorm().init(KEY, x)
    assert {a.dtype for a in jax.tree.leaves((params, state))} == {jnp.dtype("float32")}


# Dropout --------------------------------------------------------------------------------------


def test_dropout_drops_a_share_and_keeps_the_mean():
    n, rate = 100_000, 0.3
    y = np.asarray(Dropout(rate).apply((), (), jnp.ones(n), key=KEY, train=True)[0])
    standard_error = np.sqrt(rate * (1 - rate) / n)
    assert abs((y == 0).mean() - rate) < 5 * standard_error
    assert abs(y.mean() - 1) < 5 * standard_error / (1 - rate)
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), RTOL)


def test_dropout_is_the_identity_at_inference_and_at_rate_zero():
    x = normal(7, 4)
    equal(Dropout(0.5).apply((), (), x), (x, ()))
    equal(Dropout(0.5).apply((), (), x, key=KEY), (x, ()))
    equal(Dropout(0.0).apply((), (), x, train=True), (x, ()))


def test_dropout_goes_by_its_key():
    drop = lambda seed: Dropout(0.5).apply(
        (), (), jnp.ones(100), key=jax.random.key(seed), train=True
    )
    equal(drop(1), drop(1))
    assert (drop(1)[0] != drop(2)[0]).any()


# chain ----------------------------------------------------------------------------------------


def test_chain_is_composition():
    x = normal(7, 4)
    first, second = Dense(5), Dense(3)
    net = chain(first, ops.tanh, second)
    params, state = net.init(KEY, x)
    assert state == ((), (), ())
    y, _ = net.apply(params, state, x)
    h, _ = first.apply(params[0], (), x)
    equal(y, second.apply(params[2], (), ops.tanh(h))[0])


def test_chain_finds_shapes():
    net = chain(Dense(6), lambda x: x.reshape(-1, 2, 3), Dense(4), lambda x: x.sum(1), Dense(2))
    params, _ = net.init(KEY, jax.ShapeDtypeStruct((7, 5), "float32"))
    shapes = [p["w"].shape for p in params if p]
    assert shapes == [(5, 6), (3, 4), (4, 2)]


def test_a_layer_at_the_end_changes_no_other():
    x = normal(7, 4)
    short = chain(Dense(5), Dropout(0.5), Dense(3))
    long = chain(Dense(5), Dropout(0.5), Dense(3), Dropout(0.5), Dense(2))
    (params, state), (more, _) = short.init(KEY, x), long.init(KEY, x)
    equal(more[:3], params)
    see = Layer(
        lambda *_: ((), ()), lambda p, s, x, **_: (x, x), "see"
    )  # stores its input as state
    _, (*_, seen, _) = chain(short, see, Dropout(0.5)).apply(
        (params, (), ()), (state, (), ()), x, key=KEY, train=True
    )
    equal(seen, chain(short).apply((params,), (state,), x, key=KEY, train=True)[0])


def test_each_layer_has_its_own_key():
    """Layer i uses fold_in(key, i) in init and in apply."""
    number = lambda key: jax.random.key_data(key).astype(jnp.float64).sum()
    draw = Layer(
        lambda key, x: (number(key), ()),
        lambda params, state, x, *, key=None, train=False: (
            (x + number(key), number(key)) if train else (x, state)
        ),
        "draw",
    )
    expected = tuple(number(jax.random.fold_in(KEY, i)) for i in range(3))
    assert len({float(e) for e in expected}) == 3
    net = chain(draw, draw, draw)
    params, _ = net.init(KEY, jnp.zeros(()))
    equal(params, expected)
    y, state = net.apply(params, (0.0, 0.0, 0.0), jnp.zeros(()), key=KEY, train=True)
    equal(state, expected)
    equal(y, sum(expected))


def test_chain_hands_on_train_and_state():
    x = normal(7, 4)
    net = chain(BatchNorm(), chain(Dense(3), BatchNorm()))
    params, state = net.init(KEY, x)
    _, after = net.apply(params, state, x, train=True)
    np.testing.assert_allclose(after[0]["mean"], 0.1 * np.mean(x, 0), RTOL)
    assert (after[1][1]["mean"] != state[1][1]["mean"]).all()
    equal(net.apply(params, after, x)[1], after)


def test_chain_of_nothing_is_the_identity():
    x = normal(7, 4)
    assert chain().init(KEY, x) == ((), ())
    equal(chain().apply((), (), x), (x, ()))


def test_stateless_lifts_a_function():
    scale = stateless(lambda p, x: p * x, lambda key, x: jnp.full(x.shape[-1:], 2.0), "scale")
    params, state = chain(scale, ops.identity).init(KEY, jnp.ones((2, 3)))
    equal(params, (jnp.full(3, 2.0), ()))
    equal(chain(scale, ops.identity).apply(params, state, jnp.ones((2, 3)))[0], jnp.full((2, 3), 2))


def test_a_layer_is_written_as_it_is_made():
    net = chain(Dense(50), BatchNorm(), ops.relu, jax.nn.gelu, Dropout(0.2), chain(Dense(10)))
    assert repr(net) == "chain(Dense(50), BatchNorm(), relu, gelu, Dropout(0.2), chain(Dense(10)))"


# mlp ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "same"),
    [
        (mlp(3), chain(Dense(3))),
        (
            mlp(5, 4, 3),
            chain(
                Dense(5, w_init=initializers.he),
                ops.relu,
                Dense(4, w_init=initializers.he),
                ops.relu,
                Dense(3),
            ),
        ),
        (mlp(5, 3, activation=ops.tanh), chain(Dense(5), ops.tanh, Dense(3))),
        (
            mlp(5, 3, activation=ops.sigmoid, batch_norm=True, dropout=0.5),
            chain(Dense(5), BatchNorm(), ops.sigmoid, Dropout(0.5), Dense(3)),
        ),
        (
            mlp(5, 3, w_init=initializers.constant(0.1)),
            chain(
                Dense(5, w_init=initializers.constant(0.1)),
                ops.relu,
                Dense(3, w_init=initializers.constant(0.1)),
            ),
        ),
    ],
    ids=lambda net: repr(net),
)
def test_mlp_is_this_chain(net, same):
    x = normal(7, 4)
    params, state = same.init(KEY, x)
    equal(net.init(KEY, x), (params, state))
    equal(
        net.apply(params, state, x, key=KEY, train=True),
        same.apply(params, state, x, key=KEY, train=True),
    )


# Errors ---------------------------------------------------------------------------------------

X = jnp.ones((2, 3))
ERRORS = [
    (lambda: Dense(0), ValueError, "Dense: units must be an integer of at least 1, got 0"),
    (lambda: Dense(5).init(KEY, jnp.ones((2, 3), jnp.uint8)), TypeError, r"Dense\(5\).*got uint8"),
    (lambda: Dense(5).init(KEY, jnp.ones(())), ValueError, r"Dense\(5\): x must have shape"),
    (lambda: BatchNorm(momentum=1.5), ValueError, r"BatchNorm: momentum .* \[0, 1\], got 1.5"),
    (lambda: BatchNorm(momentum=-0.1), ValueError, r"BatchNorm: momentum .* \[0, 1\], got -0.1"),
    (
        lambda: BatchNorm(eps=-1.0),
        ValueError,
        "BatchNorm: eps must be a finite number of at least 0, got -1.0",
    ),
    (lambda: Dropout(1.0), ValueError, r"Dropout: rate must be a number in \[0, 1\), got 1.0"),
    (lambda: Dropout(-0.1), ValueError, r"Dropout: rate must be a number in \[0, 1\), got -0.1"),
    (lambda: Dropout(float("nan")), ValueError, "Dropout: rate"),
    (
        lambda: chain(Dropout(0.5)).apply(((),), ((),), X, train=True),
        ValueError,
        r"Dropout\(0.5\): apply needs a key when train=True",
    ),
    (lambda: chain(Dense(2), 3), TypeError, "chain: layers must be .*, got 3"),
    (lambda: chain(Dense(2)).apply((), (), X), ValueError, "chain: params must have 1 .*, got 0"),
    (lambda: chain(ops.relu).apply(((),), (), X), ValueError, "chain: state must have 1 .*, got 0"),
    (lambda: mlp(), ValueError, "mlp: units"),
    (lambda: mlp(0, 10), ValueError, "mlp: units.0. must be an integer of at least 1, got 0"),
    (lambda: mlp(5, 10, dropout=1.5), ValueError, r"mlp: dropout must be .* \[0, 1\), got 1.5"),
    (lambda: Dropout("0.5"), TypeError, "^Dropout: rate must be a number, got '0.5'$"),
    (
        lambda: Dropout(0.5).apply((), (), X, key=jax.random.split(KEY), train=True),
        TypeError,
        r"^Dropout\(0.5\): key must be one key of jax.random.key, got key\[2\]$",
    ),
    (
        lambda: Dropout(0.5).apply((), {"w": X}, X),
        ValueError,
        r"\): state must be \(\)",
    ),
    (lambda: Dense(2).init(None, X), TypeError, r"^Dense\(2\): key must be one key .*, got None$"),
    (lambda: Dense(2).init(42, X), TypeError, r"^Dense\(2\): key must be one key .*, got 42$"),
    (lambda: chain(ops.relu).init(42, X), TypeError, r"^chain\(relu\): key must be one key .* 42$"),
    (lambda: Dense(2).init(KEY, (2, 3)), TypeError, r"^Dense\(2\): x must be an array, got tuple$"),
    (
        lambda: chain(ops.relu).apply(((),), ((),), X.tolist()),
        TypeError,
        r"^chain\(relu\): x must be an array, got list$",
    ),
    (
        lambda: BatchNorm().apply(*BatchNorm().init(KEY, X), X, train="yes"),
        TypeError,
        r"^BatchNorm\(\): train must be True or False, got 'yes'$",
    ),
    (
        lambda: jax.jit(chain(ops.relu).apply)(((),), ((),), X, train=True),
        TypeError,
        r"^chain\(relu\): train must be True or False, got a traced bool\[\]$",
    ),
    (
        lambda: Dense(2).apply(*[Dense(2).init(KEY, X)[0]] * 2, X),
        ValueError,
        r"^Dense\(2\): state must be \(\), as it has none, got dict$",
    ),
    (
        lambda: chain(ops.relu).apply((X,), ((),), X),
        ValueError,
        r"^relu: params must be \(\), as it has none, got float64\[2,3\]$",
    ),
    (
        lambda: chain(ops.relu).apply(None, (), X),
        TypeError,
        "chain: params must .* got None",
    ),
    (
        lambda: chain(Dense, ops.relu),
        TypeError,
        r"^chain: layers .* got function Dense, which makes a layer: Dense\(\.\.\.\)$",
    ),
    (
        lambda: chain(lambda x: Dense(2)).init(KEY, X),
        TypeError,
        r"^chain: layers .* got function <lambda>, which makes a layer",
    ),
    (
        lambda: chain(ops.affine),
        TypeError,
        "^chain: layers .* got function affine: missing a required argument: 'w'$",
    ),
    (
        lambda: chain(lambda x: None).init(KEY, X),
        TypeError,
        "^chain: <lambda> must return an array, got None$",
    ),
]


@pytest.mark.parametrize(("f", "error", "message"), ERRORS, ids=[e[2] for e in ERRORS])
def test_errors_are_one_line(f, error, message):
    with pytest.raises(error) as raised:
        f()
    assert re.search(message, str(raised.value))
    assert "\n" not in str(raised.value)
