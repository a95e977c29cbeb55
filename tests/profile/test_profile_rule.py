"""Tests of `profile_rule` and `assert_residuals`: exact bytes, and existence of times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet import assert_residuals, ops, profile_rule
from funcnet.check import CheckFailed

X = jnp.asarray(np.random.default_rng(0).standard_normal((32, 64)), jnp.float32)


@jax.custom_vjp
def cube(x):
    return x**3


cube.defvjp(lambda x: (x**3, x), lambda x, dy: (3 * x**2 * dy,))


def test_columns():
    p = profile_rule(cube, X, rounds=3)
    assert p.hand.residual_bytes == X.nbytes
    assert p.hand.kept_bytes == 0
    assert p.autodiff.kept_bytes == X.nbytes  # autodiff keeps 3 x²
    assert p.checkpoint.kept_bytes == 0
    for cost in (p.hand, p.autodiff, p.checkpoint):
        assert cost.flops > X.size
        assert cost.accessed_bytes >= 3 * X.nbytes
        assert cost.temporary_bytes >= 0
        assert np.isfinite(cost.growth_bytes)
        assert 0 < cost.rms_ulp < 2
        low, median, high = cost.microseconds
        assert 0 < low <= median <= high
        assert cost.compile_seconds > 0
    assert p.autodiff.ratio == (1, 1, 1)
    assert p.to_dict()["hand"]["residual_bytes"] == X.nbytes


def test_growth_is_that_of_a_chain_of_layers():
    """Each layer x ← f(x W) keeps the input of its product and the residuals of f."""
    p = profile_rule(cube, X, against={"sum": jnp.sum}, rounds=1, accuracy=False)
    assert X.nbytes <= p.hand.growth_bytes <= 2.1 * X.nbytes
    assert np.isnan(p.against["sum"].growth_bytes)


def test_against():
    """Other implementations become columns of the table, with errors if output types agree."""
    others = {"jnp": lambda x: x**3, "sum": jnp.sum}
    p = profile_rule(cube, X, against=others, rounds=3)
    assert list(p.columns) == ["hand", "autodiff", "autodiff + checkpoint", "jnp", "sum"]
    assert p.against["jnp"].kept_bytes == X.nbytes
    assert 0 < p.against["jnp"].rms_ulp < 2
    assert np.isnan(p.against["sum"].rms_ulp)
    low, median, high = p.against["jnp"].hand_ratio
    assert 0 < low <= median <= high
    assert p.hand.hand_ratio == (1, 1, 1)
    assert p.to_dict()["against"]["jnp"]["kept_bytes"] == X.nbytes
    assert "jnp" in str(p).split("\n")[1]


def test_argnums_are_the_arguments_that_are_differentiated():
    """Without the cotangent of the labels, neither program keeps the predictions for it."""
    t = X[::-1]
    one, both = (
        profile_rule(ops.kl_divergence, X, t, argnums=n, rounds=1, accuracy=False)
        for n in (0, (0, 1))
    )
    assert one.arguments == both.arguments
    assert one.hand.flops < both.hand.flops
    assert one.autodiff.kept_bytes < both.autodiff.kept_bytes


@pytest.mark.slow
def test_no_chain_where_shapes_differ():
    p = profile_rule(ops.softmax_cross_entropy, X, jnp.arange(32), rounds=1)
    assert np.isnan(p.hand.growth_bytes)


@pytest.mark.slow
def test_flops_are_those_of_all_passes():
    """All passes of a loop count, whereas XLA counts only one."""

    def powers(times):
        return lambda x: jax.lax.scan(lambda x, _: (cube(0.9 * x), None), x, length=times)[0]

    once, often = (profile_rule(powers(times), X, rounds=1) for times in (2, 20))
    for column in ("hand", "autodiff", "checkpoint"):
        few, many = getattr(once, column), getattr(often, column)
        assert many.flops == 10 * few.flops
        assert many.flops_exact
    assert "~" not in str(often)


@pytest.mark.slow
def test_a_loop_of_unknown_length_is_marked():
    def repeated(x, n):
        return cube(jax.lax.stop_gradient(jax.lax.fori_loop(0, n, lambda i, x: 0.9 * x, x)) * x)

    p = profile_rule(repeated, X, jnp.int32(3), rounds=1)
    assert not p.hand.flops_exact
    line = next(line for line in str(p).split("\n") if "FLOPs" in line)
    assert line.count("~") == 3


def test_table_and_html():
    p = profile_rule(cube, X, rounds=1)
    lines = str(p).split("\n")
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("cube(x: float32[32,64]) on ")
    assert any(line.split()[:3] == ["residual", "bytes", "8,192"] for line in lines)
    assert "<table>" in p._repr_html_()


def test_residual_budget():
    assert_residuals(cube, X, at_most=X.nbytes)
    with pytest.raises(CheckFailed, match=r"cube keeps 8,192 bytes .* float32\[32,64\] \(8,192\)"):
        assert_residuals(cube, X, at_most=X.nbytes - 1)
    shape = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)
    assert_residuals(ops.relu, shape, at_most=1_000_000)  # one byte per element
    assert_residuals(lambda x, *, n: x * n, X, n=3, at_most=0)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda: profile_rule(cube, X, rounds=0), "profile_rule: rounds must .* at least 1, got 0"),
        (lambda: profile_rule(cube, X, rounds=2.5), "profile_rule: rounds must be .*, got 2.5"),
        (lambda: profile_rule(cube, X, seconds=0), "profile_rule: seconds must be .*, got 0"),
        (lambda: profile_rule(cube, X, argnums=1), "profile_rule: argnums must be .*, got 1"),
        (lambda: profile_rule(cube, X, against={"hand": cube}), "profile_rule: against must have"),
        (lambda: profile_rule(cube, X, against=[cube]), "profile_rule: against must be a dict .*"),
        (lambda: profile_rule(cube, X, against={"a": 3}), "profile_rule: against must .*'a': 3"),
        (lambda: assert_residuals(cube, X, at_most=float("nan")), "assert_residuals: at_most must"),
    ],
)
def test_options_are_refused_in_one_line(f, message):
    with pytest.raises((TypeError, ValueError), match=message) as e:
        f()
    assert "\n" not in str(e.value)


def test_without_rules():
    with pytest.raises(ValueError, match="profile_rule: sin calls no function with a rule"):
        profile_rule(jnp.sin, X)
