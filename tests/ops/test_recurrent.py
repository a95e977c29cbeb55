"""Tests particular to recurrent networks: time, lengths, gradients of weights, errors."""

import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from cases.case import ints, normal
from cases.recurrent import _args as arguments
from criterion import cotangents, equal
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from marks import slow

from funcnet import autodiff, layers, ops

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
VARIANTS = [
    ("rnn", {}),
    ("gru", {}),
    ("gru", {"recompute": True}),
    ("lstm", {}),
    ("lstm", {"recompute": True}),
]
SLOW = pytest.mark.slow
every_variant = pytest.mark.parametrize(("name", "static"), VARIANTS)
most_variants = pytest.mark.parametrize(
    ("name", "static"),
    [pytest.param(n, s, marks=[SLOW] if n == "gru" or s else []) for n, s in VARIANTS],
)
every_network = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[SLOW] if n != "lstm" else []) for n in GATES]
)


def network(name, lengths=None, **static):
    """The rule as a function of its floating-point arguments."""
    return lambda *args: getattr(ops, name)(*args, lengths, **static)


def floats(name, *batch, **sizes):
    return arguments(*batch, gates=GATES[name], **sizes)[:-1]


def value_and_cotangents(f, args, seed=0):
    def run(args, dout):
        out, back = jax.vjp(f, *args)
        return out, back(dout)

    args = tuple(map(jnp.asarray, args))
    return jax.jit(run)(args, cotangents(f, args, seed))


@pytest.mark.few
@most_variants
def test_the_loop_is_the_unrolled_network(name, static):
    """The reference unrolls the steps in Python and uses autodiff of one-step networks."""
    f, one = network(name, **static), autodiff(network(name))
    count = 2 if name == "lstm" else 1  # states

    def unrolled(x, *args):
        states, weights, hs = args[:count], args[count:], []
        for t in range(x.shape[-2]):
            _, *states = one(x[..., t : t + 1, :], *states, *weights)
            hs.append(states[0])
        return jnp.stack(hs, -2), *states

    args = floats(name, 3, steps=4)
    equal(value_and_cotangents(f, args), value_and_cotangents(unrolled, args), ulps=256)


@pytest.mark.slow
@every_variant
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_a_length_cuts_the_sequence(name, static, reverse):
    """Value and gradient are those of the valid timesteps; the others may hold anything."""
    length, steps = 3, 5
    args = [jnp.asarray(a) for a in floats(name, 2, steps=steps)]
    dout = cotangents(network(name), args)

    @jax.jit
    def run(x, dout, lengths):
        f = network(name, lengths, reverse=reverse, **static)
        out, back = jax.vjp(f, x, *args[1:])
        return out, back(dout)

    at = lambda y: y[:, :length]
    garbage = args[0].at[:, length:].set(jnp.nan)
    (hs, *states), (dx, *rest) = run(garbage, dout, ints(length, length))
    short = run(at(args[0]), (at(dout[0]), *dout[1:]), None)
    equal(((at(hs), *states), (at(dx), *rest)), short, ulps=256)
    assert not np.any(hs[:, length:])
    assert not np.any(dx[:, length:])


@every_network
def test_lengths_of_another_kind(name):
    """Lengths of 0, below 0 and above T, with narrow and unsigned dtypes."""
    args = floats(name, 2, steps=3)
    f = lambda lengths: getattr(ops, name)(*args, lengths)
    for lengths in (np.array([0, 3], np.uint8), np.array([-2, 200], np.int16)):
        equal(f(lengths), f(ints(0, 3)), ulps=0)
    hs, h = f(ints(0, 3))[:2]
    np.testing.assert_array_equal(hs[0], np.zeros((3, 2)))
    np.testing.assert_array_equal(h[0], args[1][0])


@pytest.mark.few
@most_variants
def test_reverse_is_the_flipped_sequence(name, static):
    args = floats(name, 2, steps=4)

    def flipped(x, *rest):
        hs, *states = network(name, **static)(x[:, ::-1], *rest)
        return hs[:, ::-1], *states

    reverse = network(name, reverse=True, **static)
    equal(value_and_cotangents(reverse, args), value_and_cotangents(flipped, args), ulps=256)


@pytest.mark.few
@most_variants
def test_a_sequence_in_two_halves(name, static):
    """The final states of the first half start the second and carry its gradient back."""
    f, args = network(name, **static), floats(name, 2, steps=4)
    count = 2 if name == "lstm" else 1

    def halves(x, *rest):
        states, weights = rest[:count], rest[count:]
        first, *states = f(x[:, :2], *states, *weights)
        second, *states = f(x[:, 2:], *states, *weights)
        return jnp.concatenate([first, second], 1), *states

    equal(value_and_cotangents(f, args), value_and_cotangents(halves, args), ulps=256)


@pytest.mark.few
@most_variants
def test_the_gradient_of_the_initial_state_alone(name, static):
    """The gradient of a loss of h_T by h0 is compared with central differences."""
    args = [jnp.asarray(a) for a in floats(name, steps=6)]
    loss = jax.jit(lambda h0: jnp.sum(jnp.sin(network(name, **static)(args[0], h0, *args[2:])[1])))
    step = 1e-6 * np.eye(2)
    expected = [(loss(args[1] + s) - loss(args[1] - s)) / 2e-6 for s in step]
    np.testing.assert_allclose(jax.grad(loss)(args[1]), expected, rtol=1e-6, atol=1e-9)


def carries(jaxpr):
    """The shapes of the carry of each loop of a jaxpr."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            body = eqn.params["jaxpr"].jaxpr
            n = eqn.params["num_consts"]
            found.append([v.aval.shape for v in body.invars[n : n + eqn.params["num_carry"]]])
        for inner in jaxprs_in_params(eqn.params):
            found += carries(inner)
    return found


@every_variant
def test_no_loop_carries_a_weight(name, static):
    """The gradients of weights are computed after the loop; autodiff accumulates them inside."""
    args = [jnp.asarray(a) for a in floats(name, 3, steps=7, inputs=4, states=5)]
    state = (3, 5)

    def loops(f):
        pull = lambda args, dout: jax.vjp(f, *args)[1](dout)
        return carries(jax.make_jaxpr(pull)(args, cotangents(f, args)).jaxpr)

    f = network(name, **static)
    assert len(loops(f)) == 2
    assert all(set(carry) == {state} for carry in loops(f))
    assert any((5, GATES[name] * 5) in carry for carry in loops(autodiff(f)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "z", [12.0, pytest.param(30.0, marks=SLOW), pytest.param(-30.0, marks=SLOW)]
)
def test_slopes_in_the_tails(z):
    """Gates and candidates far in their tails, in float32 against mpmath."""
    with mpmath.workdps(60):
        sigmoid = lambda x: 1 / (1 + mpmath.exp(-x))
        slope = lambda x: sigmoid(x) * sigmoid(-x)
        sech2 = lambda x: mpmath.sech(x) ** 2
        c = sigmoid(mpmath.mpf(z)) * mpmath.tanh(mpmath.mpf(z))  # f = 0.5, c₀ = 0
        h = sigmoid(z) * mpmath.tanh(c)
        di = sigmoid(z) * sech2(c) * mpmath.tanh(z) * slope(z)
        dg = sigmoid(z) * sech2(c) * sigmoid(z) * sech2(z)
        do = mpmath.tanh(c) * slope(z)
        expected = [float(v) for v in (di, dg, do)]
        rnn_slope, n_slope = float(sech2(z)), float(sech2(z) / 2)
    zero, one = jnp.zeros(1, jnp.float32), jnp.zeros((1, 1), jnp.float32)
    w = jnp.zeros((1, 4), jnp.float32)
    b = jnp.array([z, 0.0, z, z], jnp.float32)
    db = jax.grad(lambda b: ops.lstm(one, zero, zero, w, w, b)[1][0])(b)
    np.testing.assert_allclose(db[np.array([0, 2, 3])], expected, rtol=2e-5, atol=1e-37)
    np.testing.assert_allclose(ops.lstm(one, zero, zero, w, w, b)[1][0], float(h), rtol=1e-5)
    db = jax.grad(lambda b: ops.rnn(one, zero, one, one, b)[1][0])(jnp.array([z], jnp.float32))
    np.testing.assert_allclose(db[0], rnn_slope, rtol=2e-5)
    b = jnp.array([0.0, 0.0, z], jnp.float32)
    db = jax.grad(lambda b: ops.gru(one, zero, w[:, :3], w[:, :3], b, 0 * b)[1][0])(b)
    np.testing.assert_allclose(db[2], n_slope, rtol=2e-5)


@pytest.mark.slow
@every_network
def test_saturated_gates_are_finite(name):
    """Pre-activations of ±1000 and ±∞ give finite first and second derivatives."""
    args = [jnp.asarray(a, jnp.float32) for a in floats(name, 2)]
    loss = lambda *a: network(name)(*a)[0].sum()
    gradient = jax.jit(jax.grad(loss, tuple(range(len(args)))))
    b = 5 if name == "lstm" else 4
    for scale in (1e3, jnp.inf):
        biased = [*args[:b], jnp.where(args[b] > 0, scale, -scale), *args[b + 1 :]]
        assert all(bool(jnp.isfinite(d).all()) for d in gradient(*biased))
    large = [args[0] * 1e3, *args[1:]]
    curvature = jax.jit(jax.grad(lambda x: jnp.sum(jax.grad(loss)(x, *large[1:]) ** 2)))(large[0])
    assert bool(jnp.isfinite(curvature).all())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rnn", pytest.param("gru", marks=SLOW), "lstm"])
def test_lengths_under_vmap_and_on_a_mesh(name):
    """Lengths batched with the data: as an axis, by vmap, sharded, and in shard_map."""
    args, lengths = floats(name, 4, steps=3), ints(3, 1, 0, 2)
    count = 3 if name == "lstm" else 2  # arguments with a batch axis
    data, weights = (tuple(map(jnp.asarray, a)) for a in (args[:count], args[count:]))
    f = lambda data, lengths, weights: getattr(ops, name)(*data, *weights, lengths)

    def gradient(f):
        def run(data, lengths, weights):
            out, back = jax.vjp(lambda d, w: f(d, lengths, w), data, weights)
            return out, back(jax.tree.map(jnp.cos, out))

        return jax.jit(run)

    expected = gradient(f)(data, lengths, weights)
    mapped = jax.vmap(f, in_axes=(0, 0, None))
    equal(gradient(mapped)(data, lengths, weights), expected, ulps=256)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2,), ("d",), axis_types=(kind,))
        with jax.set_mesh(mesh):
            put = functools.partial(jax.device_put, device=NamedSharding(mesh, P("d")))
            both = functools.partial(jax.device_put, device=NamedSharding(mesh, P()))
            actual = gradient(f)(put(data), put(lengths), both(weights))
            equal(jax.tree.map(np.asarray, actual), expected, ulps=256)
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
    shared = jax.shard_map(f, mesh=mesh, in_specs=(P("d"), P("d"), P()), out_specs=P("d"))
    equal(gradient(shared)(data, lengths, weights), expected, ulps=256)


@pytest.mark.slow
@every_network
def test_narrow_sequences_keep_a_wide_state(name):
    """200 steps in bfloat16 give the float32 result, up to rounding of the result."""
    args = [jnp.asarray(a, jnp.bfloat16) for a in floats(name, 2, steps=200, states=3)]
    narrow = network(name)(*args)
    wide = network(name)(*(a.astype(jnp.float32) for a in args))
    assert {y.dtype for y in narrow} == {jnp.dtype(jnp.bfloat16)}
    equal(narrow, jax.tree.map(lambda y: y.astype(jnp.bfloat16), wide), ulps=1)


SHAPES = {
    "rnn": {"x": (2, 3, 4), "h0": (2, 5), "w_x": (4, 5), "w_h": (5, 5), "b": (5,)},
    "gru": {
        "x": (2, 3, 4), "h0": (2, 5), "w_x": (4, 15), "w_h": (5, 15), "b": (15,), "b_h": (15,)
    },
    "lstm": {
        "x": (2, 3, 4), "h0": (2, 5), "c0": (2, 5), "w_x": (4, 20), "w_h": (5, 20), "b": (20,)
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("rnn", {"x": (4,)}, "x must have shape (..., T, I), got (4,)"),
        (
            "gru",
            {"h0": (5,)},
            "h0 must have shape (..., H) with the batch axes (2,) of x (2, 3, 4), got (5,)",
        ),
        (
            "lstm",
            {"h0": (3, 5)},
            "h0 must have shape (..., H) with the batch axes (2,) of x (2, 3, 4), got (3, 5)",
        ),
        ("lstm", {"c0": (2, 1)}, "c0 must have the shape (2, 5) of h0, got (2, 1)"),
        (
            "lstm",
            {"w_x": (4, 15)},
            "w_x must have shape (4, 20) for x (2, 3, 4) and h0 (2, 5), got (4, 15)",
        ),
        (
            "gru",
            {"w_h": (15, 5)},
            "w_h must have shape (5, 15) for x (2, 3, 4) and h0 (2, 5), got (15, 5)",
        ),
        ("rnn", {"b": (1,)}, "b must have shape (5,) for x (2, 3, 4) and h0 (2, 5), got (1,)"),
        ("gru", {"b_h": ()}, "b_h must have shape (15,) for x (2, 3, 4) and h0 (2, 5), got ()"),
        ("lstm", {"lengths": (3,)}, "lengths must have shape (2,) for x (2, 3, 4), got (3,)"),
        ("rnn", {"lengths": (2, 3)}, "lengths must have shape (2,) for x (2, 3, 4), got (2, 3)"),
    ],
)
def test_shapes_that_do_not_fit(name, change, message):
    shapes = SHAPES[name] | change
    args = {k: jnp.ones(s, jnp.int32 if k == "lengths" else None) for k, s in shapes.items()}
    with pytest.raises(ValueError) as e:
        getattr(ops, name)(**args)
    assert str(e.value) == f"{name}: {message}"


def test_lengths_that_are_not_integers():
    args = {k: jnp.ones(s) for k, s in SHAPES["rnn"].items()}
    with pytest.raises(ValueError) as e:
        ops.rnn(**args, lengths=jnp.ones(2))
    assert str(e.value) == "rnn: lengths must be integers, got float64"


def test_an_lstm_of_one_number():
    """With zero weights and biases, each step halves the cell, and h is half of its tanh."""
    w = jnp.zeros((1, 4))
    hs, _, c = ops.lstm(normal(3, 1), jnp.zeros(1), jnp.full(1, 8.0), w, w, jnp.zeros(4))
    np.testing.assert_allclose(hs[:, 0], np.tanh([4.0, 2.0, 1.0]) / 2, rtol=1e-15)
    assert float(c[0]) == 1.0


@pytest.mark.parametrize("kind", [layers.LSTM, *slow(layers.RNN, layers.GRU)])
def test_a_layer_on_a_mesh_with_explicit_axes(kind):
    """The initial states are replicated, and the weights need not be placed on the mesh."""
    x, layer = normal(4, 2, 3), kind(3)
    params, _ = layer.init(jax.random.key(0), x)
    params = jax.tree.map(np.asarray, params)
    gradient = jax.jit(jax.grad(lambda p, x: jnp.sin(layer.apply(p, (), x)[0]).sum(), (0, 1)))
    expected = gradient(params, x)
    mesh = jax.make_mesh((2,), ("d",))
    with jax.set_mesh(mesh):
        actual = gradient(params, jax.device_put(x, NamedSharding(mesh, P("d"))))
    equal(jax.tree.map(np.asarray, actual), expected)
