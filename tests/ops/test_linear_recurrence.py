"""Tests particular to the linear recurrence: all lengths, zeros, depth, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.case import normal
from criterion import equal

from funcnet import autodiff, ops

recurrence = jax.jit(ops.linear_recurrence, static_argnames="reverse")


def loop(a, b, h0, *, reverse):
    def step(h, ab):
        h = ab[0] * h + ab[1]
        return h, h

    return jax.lax.scan(step, h0, (a, b), reverse=reverse)[1]


@pytest.mark.few
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_every_number_of_steps(reverse):
    """The lengths cover even and odd sizes at several levels of the algorithm."""

    def gradient(f, a, b, h0):
        h, back = jax.vjp(lambda *args: f(*args, reverse=reverse), a, b, h0)
        return h, back(jnp.cos(b))

    cases = [(0.8 * normal(n, 2), normal(n, 2, seed=1), normal(2)) for n in (0, 1, 2, 3, 5, 6, 11)]
    both = jax.jit(lambda cases: [[gradient(f, *c) for c in cases] for f in (recurrence, loop)])
    equal(*both(cases))


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_reverse_is_the_flipped_sequence(reverse):
    a, b, h0 = normal(2, 6, 3), normal(2, 6, 3, seed=1), normal(2, 3)
    flipped = recurrence(a[:, ::-1], b[:, ::-1], h0, reverse=not reverse)[:, ::-1]
    equal(recurrence(a, b, h0, reverse=reverse), flipped)


def test_a_factor_of_zero_is_exact():
    """a = 0 forgets: h equals b to the last bit, and no gradient passes; a has a gradient."""
    random = np.random.default_rng(0)
    a, b = (random.standard_normal((9, 2)).astype(np.float32) for _ in range(2))
    a[4] = 0
    before = lambda b: recurrence(a, b)[4:].sum()
    h, db = recurrence(a, b), jax.grad(before)(jnp.asarray(b))
    np.testing.assert_array_equal(h[4], b[4])
    np.testing.assert_array_equal(db[:4], np.zeros((4, 2)))
    da = jax.grad(lambda a: recurrence(a, b)[4].sum())(jnp.asarray(a))
    np.testing.assert_array_equal(da[4], h[3])


def test_all_factors_are_zero():
    """The cotangent of a is dh ⊙ the previous h; an algorithm that divides by a would fail."""
    b, dh = normal(5, 2), jnp.asarray(normal(5, 2, seed=1))
    h, back = jax.vjp(lambda a: recurrence(a, b), jnp.zeros((5, 2)))
    (da,) = back(dh)
    np.testing.assert_array_equal(h, b)
    np.testing.assert_allclose(da[1:], dh[1:] * b[:-1], rtol=1e-15)
    assert not np.any(da[0])


def test_factors_of_one_are_a_cumulative_sum():
    b = normal(100, 1)
    h = recurrence(jnp.ones_like(b), b)
    np.testing.assert_allclose(h, np.cumsum(b, 0), rtol=0, atol=1e-13)


def test_a_narrow_sequence_is_computed_wide():
    """Steps of 2⁻⁸ would be lost if 1 + 2⁻⁸ were rounded to bfloat16 at each step."""
    a, b = jnp.ones((256, 1), jnp.bfloat16), jnp.full((256, 1), 2.0**-8, jnp.bfloat16)
    h = recurrence(a, b, jnp.ones(1, jnp.bfloat16))
    assert h.dtype == jnp.bfloat16
    assert float(h[-1, 0]) == 2.0


@pytest.mark.slow
def test_saves_less_than_autodiff():
    args = tuple(jnp.ones((2, 16, 3)) for _ in range(2))
    size = lambda f: sum(x.size for x in jax.tree.leaves(jax.vjp(f, *args)[1]))
    assert size(ops.linear_recurrence) <= 2 * args[0].size  # a and h
    assert size(autodiff(ops.linear_recurrence)) > 2 * args[0].size


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((3,), (3,)), "b must have shape (..., T, C), got (3,)"),
        (((4, 1), (4, 2)), "a must have the shape (4, 2) of b, got (4, 1)"),
        (((2, 4, 2), (4, 2)), "a must have the shape (4, 2) of b, got (2, 4, 2)"),
        (((3, 4, 2),) * 2 + ((2,),), "h0 must have shape (3, 2) for b (3, 4, 2), got (2,)"),
    ],
)
def test_shapes_that_do_not_fit(shapes, message):
    with pytest.raises(ValueError) as e:
        ops.linear_recurrence(*map(jnp.ones, shapes))
    assert str(e.value) == f"linear_recurrence: {message}"
