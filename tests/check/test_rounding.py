"""Perturbed-rounding arithmetics find cancellation and leave exact operations exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.check.rounding import in_arithmetic, noise, rounded, unit

X = jnp.asarray(np.random.default_rng(0).standard_normal((5, 7)))


def relative(f, *args):
    y = f(*args)
    return jax.tree.map(
        lambda n, y: float(jnp.max(n / jnp.abs(y))), jax.jit(lambda *a: noise(f, *a))(*args), y
    )


def test_one_operation():
    assert relative(jnp.exp, X) == pytest.approx(unit(jnp.float64), rel=0.01)
    assert relative(lambda x: jnp.exp(x.astype(jnp.float32)), X) > unit(jnp.float32) / 2


def test_cancellation_shows():
    y = jnp.array(1 - 2.0**-50)
    assert relative(lambda y: (y * 1.5 / 1.5) * (1 - y * 1.5 / 1.5), y) > 1
    assert relative(lambda y: y * 3.0, y) < 2e-14


def test_exact_operations_stay_exact():
    def f(x):
        top = jnp.max(x, -1, keepdims=True)
        return jnp.where(x == top, jnp.flip(x, 0).T.T, -x), top, jnp.sort(x)[:, ::2], jax.nn.relu(x)

    assert not any(n.any() for n in noise(f, X))


def test_a_recomputed_value_is_the_saved_one():
    """Otherwise `x == max(x)` would fail where a rule recomputes x."""
    f = lambda x: (jnp.exp(x) == jnp.max(jnp.exp(x))).astype(x.dtype)
    assert float(in_arithmetic(f)(jnp.uint32(3), X).sum()) == 1


def test_ties_stay_ties():
    x = jnp.array([2.0, 1.0, 2.0])
    y = in_arithmetic(lambda x: jnp.exp(x / 3))(jnp.uint32(1), x)
    assert y[0] == y[2]


def test_inside_control_flow_and_rules():
    @jax.custom_vjp
    def f(x):
        return jnp.exp(x)

    f.defvjp(lambda x: (jnp.exp(x), x), lambda x, dy: (dy,))
    scanned = lambda x: jax.lax.scan(lambda c, _: (jnp.tanh(c) * 1.1, None), x, length=3)[0]
    branched = lambda x: jax.lax.cond(x.sum() > 1e9, jnp.sin, jnp.exp, x)
    looped = lambda x: jax.lax.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.exp(c[1])), (0, x * 0)
    )[1]
    for g in (f, scanned, branched, looped, jax.jit(jnp.exp), jax.checkpoint(jnp.exp)):
        assert relative(g, X) > 0


def test_signs_are_balanced():
    x = jnp.asarray(np.random.default_rng(1).standard_normal(10_000))
    for number in range(1, 4):
        up = rounded(x, jnp.uint32(number)) > x
        assert abs(float(jnp.mean(up == (x > 0))) - 0.5) < 0.05


def test_sums_depend_on_their_terms():
    """1e8 − 1e8 + 1: the sum has the noise of its largest term."""
    x = jnp.array([1e8, -1e8, 1.0])
    assert float(noise(jnp.sum, x)) > 1e-6


def test_complex():
    z = jax.lax.complex(X, X[::-1])
    assert 0 < relative(lambda z: z * z, z) < 1e-12
