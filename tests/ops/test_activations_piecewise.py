"""Tests particular to piecewise linear activations: kinks, nan, and infinite cotangents."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet import ops

LEAKY = functools.partial(ops.leaky_relu, negative_slope=0.25)

KINKS = [  # rule, jax.nn's function, kink, the slopes of both there
    (LEAKY, functools.partial(jax.nn.leaky_relu, negative_slope=0.25), 0, 1, 1),
    (ops.relu6, jax.nn.relu6, 0, 1, 0),
    (ops.relu6, jax.nn.relu6, 6, 0, 0),
    (ops.hard_tanh, jax.nn.hard_tanh, -1, 1, 1),
    (ops.hard_tanh, jax.nn.hard_tanh, 1, 0, 1),
    (ops.hard_sigmoid, jax.nn.hard_sigmoid, -3, 1 / 6, 0),
    (ops.hard_sigmoid, jax.nn.hard_sigmoid, 3, 0, 0),
    (ops.hard_silu, jax.nn.hard_silu, -3, -1 / 2, 0),
    (ops.hard_silu, jax.nn.hard_silu, 3, 1, 1),
]


def slope(f, x):
    x = jnp.asarray(x, jnp.float64)
    return jax.vjp(f, x)[1](jnp.ones_like(x))[0]


@pytest.mark.few
@pytest.mark.parametrize(("f", "peer", "kink", "own", "peers"), KINKS)
def test_slope_at_a_kink(f, peer, kink, own, peers):
    """The slope is that to the right of the kink. The docstrings give the slope of jax.nn."""
    at = [kink, np.nextafter(kink, np.inf)]
    np.testing.assert_allclose(slope(f, at), [own, own], atol=1e-14)
    np.testing.assert_allclose(slope(peer, kink), peers, atol=1e-14)


@pytest.mark.parametrize("f", [LEAKY, *dict.fromkeys(k[0] for k in KINKS[1:])])
def test_nan_passes(f):
    assert jnp.isnan(f(jnp.asarray(jnp.nan)))


@pytest.mark.parametrize("f", [ops.relu6, ops.hard_tanh, ops.hard_sigmoid])
def test_a_flat_piece_blocks_an_infinite_cotangent(f):
    x = jnp.array([-10.0, 0.5, 10.0])
    dx = jax.vjp(f, x)[1](jnp.full(3, jnp.inf))[0]
    assert dx.tolist() == [0, np.inf, 0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_limits_of_hard_silu(dtype):
    x = jnp.asarray([-np.inf, np.inf], dtype)
    y, back = jax.vjp(ops.hard_silu, x)
    assert y.tolist() == [0, np.inf]
    assert back(jnp.ones_like(y))[0].tolist() == [0, 1]


def test_the_slope_of_leaky_relu_is_not_rounded_to_bfloat16():
    """0.01 in bfloat16 is 0.010010, which times −1000 would round to −10.0625."""
    x = jnp.asarray([-1000.0], jnp.bfloat16)
    y, back = jax.vjp(lambda x: ops.leaky_relu(x, negative_slope=0.01), x)
    assert y.tolist() == [-10.0]
    assert back(-x)[0].tolist() == [10.0]
