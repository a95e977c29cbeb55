"""Tests particular to smooth rectifiers: tails against 50 digits, infinities, third derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mp, mpf

from funcnet import autodiff, ops

EXACT_GELU = functools.partial(ops.gelu, approximate=False)

TRUTH = {  # rule, exact function, and the range where all results are normal float32 numbers
    "silu": (ops.silu, lambda x: x / (1 + mp.exp(-x)), (-91, 91)),
    "gelu": (
        ops.gelu,
        lambda x: x / (1 + mp.exp(-2 * mp.sqrt(2 / mp.pi) * (x + mpf("0.044715") * x**3))),
        (-10.05, 10.05),
    ),
    "gelu, exact": (EXACT_GELU, lambda x: x * mp.erfc(-x / mp.sqrt(2)) / 2, (-12.5, 12.5)),
    "mish": (ops.mish, lambda x: x * mp.tanh(mp.log1p(mp.exp(x))), (-91, 45)),
    "softplus": (ops.softplus, lambda x: mp.log1p(mp.exp(x)), (-87, 87)),
    "log_sigmoid": (ops.log_sigmoid, lambda x: -mp.log1p(mp.exp(-x)), (-87, 87)),
}


@pytest.mark.few
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [*TRUTH, "swiglu", "geglu"])
def test_value_and_derivatives_over_the_range(name, dtype):
    """The error of each element is at most 6 ε, plus 3 ε in the argument of the exponential.

    This holds for value, derivative, and second derivative in forward and in reverse mode.
    """
    mp.dps = 50
    f, truth, (low, high) = TRUTH[{"swiglu": "silu", "geglu": "gelu"}.get(name, name)]
    if name in ("swiglu", "geglu"):
        f = lambda x: getattr(ops, name)(x, jnp.ones_like(x))
    x = np.concatenate([np.linspace(low, high, 61), [-1e-6, 1e-30, -9.75, 1.75]]).astype(dtype)
    ones = jnp.ones_like(x)
    slope = lambda x: jax.vjp(f, x)[1](ones)[0]
    forward = lambda x: jax.jvp(slope, (x,), (ones,))[1]
    reverse = lambda x: jax.vjp(slope, x)[1](ones)[0]
    computed = jax.jit(lambda x: [g(x) for g in (f, slope, forward, reverse)])(x)
    for i, at in enumerate(map(mpf, map(float, x))):
        t, d, half, sixth = mp.taylor(truth, at, 3, chop=False)
        expected = [(t, d), (d, 2 * half), (2 * half, 6 * sixth), (2 * half, 6 * sixth)]
        for order, (actual, (value, rise)) in enumerate(zip(computed, expected, strict=True)):
            allowed = np.finfo(dtype).eps * (6 * abs(value) + 3 * abs(at * rise))
            assert abs(mpf(float(actual[i])) - value) <= allowed, (order, at)


@pytest.mark.few
@pytest.mark.parametrize("name", TRUTH)
def test_autodiff_over_the_range(name):
    """Autodiff of the forward does not overflow either, although it squares a denominator."""
    f, x = TRUTH[name][0], jnp.linspace(-120, 120, 961, dtype=jnp.float32)
    hand, auto = (jax.vjp(g, x)[1](jnp.ones_like(x))[0] for g in (f, autodiff(f)))
    np.testing.assert_allclose(auto, hand, atol=2e-5)


@pytest.mark.few
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("f", [ops.silu, ops.gelu, EXACT_GELU, ops.mish, ops.softplus])
def test_limits(f, dtype):
    """Value and slope at ±∞ and at the largest numbers, where x³ overflows."""
    largest = float(jnp.finfo(dtype).max)
    x = jnp.asarray([-np.inf, -largest, largest, np.inf, np.nan], dtype)
    y, back = jax.vjp(f, x)
    assert y[:4].tolist() == [0, 0, largest, np.inf]
    assert back(jnp.ones_like(y))[0][:4].tolist() == [0, 0, 1, 1]
    assert jnp.isnan(y[4])


def test_limits_of_log_sigmoid():
    y, back = jax.vjp(ops.log_sigmoid, jnp.asarray([-np.inf, np.inf]))
    assert y.tolist() == [-np.inf, 0]
    assert back(jnp.ones_like(y))[0].tolist() == [1, 0]


@pytest.mark.few
@pytest.mark.parametrize(
    ("f", "peer"),
    [
        (ops.silu, jax.nn.silu),
        (ops.gelu, jax.nn.gelu),
        (EXACT_GELU, functools.partial(jax.nn.gelu, approximate=False)),
        (ops.mish, jax.nn.mish),
        (ops.softplus, jax.nn.softplus),
    ],
)
def test_higher_derivatives_at_zero(f, peer):
    """The two sides of 0 have separate formulas; both must give correct derivatives at 0."""
    second = lambda g: jax.grad(jax.grad(g))
    both = jax.jit(lambda x: [(second(g)(x), jax.grad(second(g))(x)) for g in (f, peer)])
    actual, expected = both(0.0)
    np.testing.assert_allclose(actual, expected, atol=1e-14)


@pytest.mark.parametrize(("f", "peer"), [(ops.gelu, jax.nn.gelu), (ops.mish, jax.nn.mish)])
def test_narrow_values_are_rounded_once(f, peer):
    x = jnp.linspace(-8, 8, 101).astype(jnp.bfloat16)
    expected = peer(x.astype(jnp.float32))
    at_most = np.abs(expected) * 2.0**-8 + 1e-6
    assert (np.abs(f(x).astype(jnp.float32) - expected) <= at_most).all()
    assert (np.abs(peer(x).astype(jnp.float32) - expected) > at_most).any()
