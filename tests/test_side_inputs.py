"""Tests of side inputs: `apply` of a network hands each to the layers that name it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from funcnet import ops
from funcnet.layers import (
    Dense,
    Dropout,
    Layer,
    chain,
    from_dict,
    parallel,
    repeat,
    residual,
    stateless,
)
from funcnet.training import TrainState, evaluate, make_epoch, make_step

KEY, X = jax.random.key(0), jnp.arange(6.0).reshape(2, 3)


def apply(params, state, x, *, key=None, train=False, shift=None):
    return (x if shift is None else x + shift), state


ADD = Layer(lambda *_: ((), ()), apply, "add")
SCALE = stateless(lambda p, x, *, factor=1.0: factor * p * x, lambda *_: jnp.array(2.0), "scale")
NETS = {  # network, and what it computes with shift s and factor f
    "layer": (ADD, lambda x, s, f: x + s),
    "chain": (chain(ADD, ops.identity, SCALE), lambda x, s, f: 2 * f * (x + s)),
    "residual": (residual(SCALE, ADD), lambda x, s, f: x + 2 * f * x + s),
    "parallel": (
        parallel(SCALE, ADD, merge=lambda ys: ys[0] * ys[1]),
        lambda x, s, f: 2 * f * x * (x + s),
    ),
    "repeat": (repeat(chain(ADD, SCALE), 2), lambda x, s, f: 2 * f * (2 * f * (x + s) + s)),
    "checkpoint": (repeat(chain(SCALE, ADD), 1, checkpoint=True), lambda x, s, f: 2 * f * x + s),
    "nested": (
        chain(Dropout(0.5), residual(repeat(residual(chain(ADD)), 2))),
        lambda x, s, f: x + 4 * x + 3 * s,
    ),
}
nets = pytest.mark.parametrize(("net", "formula"), NETS.values(), ids=NETS)


@nets
def test_an_input_reaches_the_layers_that_name_it(net, formula):
    """So do its gradients; and it may be left out."""
    params, state = net.init(KEY, X)
    given = {"shift": jnp.array([0.5, -1.0, 2.0]), "factor": jnp.array(3.0)}
    taken = {name: given[name] for name in net.inputs}
    weights = jnp.cos(X)

    def run(x, inputs):
        return (weights * net.apply(params, state, x, **inputs)[0]).sum()

    def expected(x, inputs):
        found = {"shift": jnp.zeros(3), "factor": jnp.array(1.0)} | inputs
        return (weights * formula(x, found["shift"], found["factor"])).sum()

    for inputs in (taken, {}):
        a, b = (jax.jit(jax.value_and_grad(f, (0, 1)))(X, inputs) for f in (run, expected))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-13), a, b)


def test_a_layer_knows_its_inputs():
    for name, (net, _) in NETS.items():
        assert net.inputs == {"shift"} | ({"factor"} if name not in ("layer", "nested") else set())
    assert chain(Dense(3), ops.relu, lambda x, *, mask=None: x).inputs == frozenset()
    whatever = Layer(lambda *_: ((), ()), lambda p, s, x, **given: (x + given["y"], s), "w")
    assert whatever.inputs == frozenset()
    named = Layer(whatever.init, lambda p, s, x, *, y=1, **rest: (x + y, s), "n", inputs=["y"])
    assert named.apply((), (), X, y=X)[0].tolist() == (2 * X).tolist()


def test_an_ensemble_shares_or_divides_an_input():
    net = chain(Dense(3), ADD)
    members = jax.vmap(lambda k: net.init(k, X))(jax.random.split(KEY, 4))
    shifts = jnp.arange(4.0)
    each = jax.vmap(lambda m, shift: net.apply(*m, X, shift=shift)[0])(members, shifts)
    plain = jax.vmap(lambda m: net.apply(*m, X)[0])(members)
    np.testing.assert_allclose(each, plain + shifts[:, None, None], 1e-13)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (
            lambda: chain(ADD, SCALE).apply(((), 2.0), ((), ()), X, mask=X),
            "chain(add, scale): apply takes no argument 'mask'; its side inputs are factor, shift",
        ),
        (
            lambda: Dense(3).apply((), (), X, trian=True),
            "Dense(3): apply takes no argument 'trian'; its side inputs are none",
        ),
        (
            lambda: Layer(lambda *_: ((), ()), lambda p, s, x, *, key, train, y: x, "mine"),
            "Layer: apply must take 3 arguments and key, train: missing a required argument: 'y'",
        ),
        (lambda: from_dict(ops.relu), "from_dict: layer must be a layer, got function relu"),
        (
            lambda: from_dict(ADD).init(KEY, X),
            'from_dict: x must be a dict with an entry "x", got ArrayImpl',
        ),
        (
            lambda: from_dict(ADD).apply((), (), {"shift": X}),
            'from_dict: x must be a dict with an entry "x", got dict',
        ),
        (
            lambda: from_dict(ADD).apply((), (), {"x": X, "mask": X}),
            "add: apply takes no argument 'mask'; its side inputs are shift",
        ),
    ],
)
def test_what_is_refused(f, message):
    with pytest.raises(TypeError) as e:
        f()
    assert str(e.value) == message


def test_side_inputs_come_from_the_data():
    """Training by dicts of arrays: each example has its own shift, also after shuffling."""
    net, labels = chain(ADD, Dense(4)), jnp.arange(20) % 4
    data = {"x": jax.random.normal(KEY, (20, 3)), "shift": jax.random.normal(KEY, (20, 3))}
    optimizer, loss = optax.sgd(0.1), ops.softmax_cross_entropy
    runs = []
    whole = data["x"] + data["shift"]
    for model, x in ((from_dict(net), data), (net, whole)):
        state = TrainState.create(model, optimizer, KEY, x)
        state, record = make_epoch(make_step(model, loss, optimizer), batch_size=5)(
            state, x, labels
        )
        means = evaluate(model, {"loss": loss}, state.params, state.state, x, labels, batch_size=8)
        runs.append((state.params, record, means))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-12), *runs)
