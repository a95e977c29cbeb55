"""Tests of recurrent layers: state kept between calls, lengths, both directions, biases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.case import ints, normal
from criterion import equal
from marks import slow

from funcnet.layers import GRU, LSTM, RNN, chain, parallel

KEY = jax.random.key(0)
X = jnp.asarray(normal(2, 5, 3))  # two sequences of five steps
every_kind = pytest.mark.parametrize("kind", [LSTM, *slow(GRU, RNN)])


@every_kind
@pytest.mark.parametrize("reverse", [False, True])
def test_a_sequence_in_two_pieces(kind, reverse):
    """Outputs, final state and gradient are those of one call, if the gradient goes through."""
    layer = kind(4, stateful=True, reverse=reverse)
    params, state = layer.init(KEY, X)
    first, second = (X[:, 2:], X[:, :2]) if reverse else (X[:, :2], X[:, 2:])

    def pieces(params, state):
        one, state = layer.apply(params, state, first)
        two, state = layer.apply(params, state, second)
        return jnp.concatenate([two, one] if reverse else [one, two], 1), state

    def pulled(f):
        out, back = jax.vjp(f, params, jax.tree.map(lambda s: s + 0.5, state))
        return out, back(jax.tree.map(jnp.cos, out))

    whole = lambda params, state: layer.apply(params, state, X)
    equal(jax.jit(lambda: pulled(pieces))(), jax.jit(lambda: pulled(whole))(), ulps=256)


@every_kind
def test_a_state_of_zeros_changes_nothing(kind):
    """The option changes neither params nor the first output."""
    plain, stateful = kind(4), kind(4, stateful=True)
    params, state = stateful.init(KEY, X)
    equal(plain.init(KEY, X), (params, ()), ulps=0)
    equal(stateful.apply(params, state, X)[0], plain.apply(params, (), X)[0], ulps=0)


@every_kind
def test_step_by_step_in_a_narrow_dtype(kind):
    """The state keeps its dtype, so that a `lax.scan` carries it, and its buffers are donated."""
    layer, x = kind(4, stateful=True, last=True), X.astype(jnp.bfloat16)
    params, state = layer.init(KEY, x)
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)

    @jax.numpy_dtype_promotion("standard")
    @functools.partial(jax.jit, donate_argnums=0)
    def run(state):
        step = lambda state, x_t: layer.apply(params, state, x_t[:, None])[::-1]
        return jax.lax.scan(step, state, x.swapaxes(0, 1))

    state, hs = run(state)
    assert {s.dtype for s in jax.tree.leaves(state)} == {x.dtype}
    whole, _ = kind(4, last=True).apply(params, (), x.astype(jnp.float32))
    np.testing.assert_allclose(hs[-1], whole, rtol=0.02, atol=0.02)  # h is rounded at each step


@every_kind
def test_the_final_state_of_one_starts_another(kind):
    """An encoder's final state is a decoder's initial state, and carries its gradient back."""
    encoder, decoder = kind(4, stateful=True), kind(4, stateful=True)
    params, state = encoder.init(KEY, X)

    def translated(of_encoder, of_decoder):
        _, summary = encoder.apply(of_encoder, state, X)
        return decoder.apply(of_decoder, summary, X[:, :2])[0]

    def joined(params):
        both = jnp.concatenate([X, X[:, :2]], 1)
        return kind(4).apply(params, (), both)[0][:, 5:]

    y, back = jax.vjp(translated, params, params)
    expected, back_of_joined = jax.vjp(joined, params)
    equal(y, expected)
    shared = jax.tree.map(jnp.add, *back(jnp.cos(y)))
    equal(shared, back_of_joined(jnp.cos(y))[0], ulps=256)


@pytest.mark.slow
@every_kind
def test_lengths_reach_each_layer(kind):
    """In both directions and two layers, a padded batch gives what each sequence gives alone."""
    both = lambda **options: parallel(kind(4, **options), kind(4, reverse=True, **options))
    net, lengths = chain(both(), both(last=True)), ints(2, 5)
    params, state = net.init(KEY, X)
    padded = X.at[0, 2:].set(jnp.nan)
    gradient = jax.grad(lambda p, x, n: jnp.sin(net.apply(p, state, x, lengths=n)[0]).sum())
    summed = jax.tree.map(jnp.add, gradient(params, X[:1, :2], None), gradient(params, X[1:], None))
    equal(gradient(params, padded, lengths), summed, ulps=256)
    y, _ = net.apply(params, state, padded, lengths=lengths)
    for n, length in enumerate(lengths):
        equal(y[n], net.apply(params, state, X[n, :length])[0])


@every_kind
def test_lengths_and_a_state(kind):
    """The state after a padded piece is that after the last valid step."""
    layer = kind(4, stateful=True)
    params, state = layer.init(KEY, X)
    state = jax.tree.map(lambda s: s - 0.5, state)
    _, after = layer.apply(params, state, X, lengths=ints(3, 0))
    _, expected = layer.apply(params, state, X[:, :3])
    equal(after, jax.tree.map(lambda e, s: e.at[1].set(s[1]), expected, state))


@every_kind
def test_without_biases(kind):
    """There are no biases in params, and the output is that of biases 0."""
    plain, layer = kind(4), kind(4, bias=False)
    zero, _ = plain.init(KEY, X)
    params, _ = layer.init(KEY, X)
    assert params.keys() == {"w_x", "w_h"}
    assert layer.name == f"{kind.__name__}(4, bias=False)"
    equal(params, {k: zero[k] for k in params}, ulps=0)
    equal(layer.apply(params, (), X)[0], plain.apply(zero, (), X)[0])


def test_the_bias_of_the_forget_gate():
    params, _ = LSTM(2, forget_bias=1.5).init(KEY, X)
    assert params["b"].tolist() == [0, 0, 1.5, 1.5, 0, 0, 0, 0]
    weights, _ = LSTM(2).init(KEY, X)
    equal(params | {"b": weights["b"]}, weights, ulps=0)
    with pytest.raises(ValueError) as e:
        LSTM(2, forget_bias=1.0, bias=False)
    assert str(e.value) == "LSTM: forget_bias must be 0 without a bias, got 1.0"
    LSTM(2, forget_bias=0.0, bias=False)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ((), "state must have the structure of init; state['h'] is missing"),
        ({"h": X[:, 0, :1]}, "state['h'] must have the shape (2, 4) of init['h'], got (2, 1)"),
    ],
)
def test_a_state_that_does_not_fit(state, message):
    layer = GRU(4, stateful=True)
    params, _ = layer.init(KEY, X)
    with pytest.raises(ValueError) as e:
        layer.apply(params, state, X)
    assert str(e.value) == f"GRU(4, stateful=True): {message}"
    with pytest.raises(
        ValueError, match=r"^GRU\(4\): state must be \(\), as it has none, got dict$"
    ):
        GRU(4).apply(params, {"h": X[:, 0]}, X)
