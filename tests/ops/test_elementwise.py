"""Tests of properties that all element-wise rules share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet import RULES, ops

DECLARED = [r for r in RULES.values() if r.fwd.__qualname__.startswith("elementwise.")]


@pytest.mark.third
@pytest.mark.parametrize("rule", DECLARED, ids=lambda rule: rule.name)
def test_numbers_of_python(rule):
    """Python scalars reach the rule unconverted; a Python bool is not a mask, since ~True is -2."""
    f = getattr(ops, rule.name)
    for x in (-7.0, -0.5, 0.0, 0.5, 7.0):
        assert f(x) == f(jnp.asarray(x))
        assert jax.grad(f)(x) == jax.grad(f)(jnp.asarray(x))


@pytest.mark.few
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("rule", DECLARED, ids=lambda rule: rule.name)
def test_nan_passes_and_infinity_makes_none(rule, dtype):
    f = getattr(ops, rule.name)
    x = jnp.asarray([np.nan, -np.nan, np.inf, -np.inf], dtype)
    y, back = jax.jit(lambda x: jax.vjp(f, x))(x)
    assert np.isnan(y).tolist() == [True, True, False, False]
    assert not np.isnan(back(jnp.ones_like(y))[0][2:]).any()


KEPT = {"identity", "step", "relu", "hard_tanh"}  # as in jax.nn


@pytest.mark.few
@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
@pytest.mark.parametrize("rule", DECLARED, ids=lambda rule: rule.name)
def test_dtype_of_integers(rule, dtype):
    x = jnp.asarray([0, 1, 1], dtype)
    y = getattr(ops, rule.name)(x)
    assert y.dtype == (x.dtype if rule.name in KEPT else jnp.float64)


def test_a_bound_below_zero_does_not_wrap():
    """-1 as uint8 would be 255, which is what `jax.nn.hard_tanh` gives for 0."""
    assert ops.hard_tanh(jnp.array([0, 1, 200], jnp.uint8)).tolist() == [0, 1, 1]
    assert ops.hard_tanh(jnp.array([-128, 0, 127], jnp.int8)).tolist() == [-1, 0, 1]


@pytest.mark.parametrize(("f", "option"), [(ops.leaky_relu, "negative_slope"), (ops.elu, "alpha")])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_options_must_be_finite(f, option, value):
    with pytest.raises(ValueError) as e:
        f(1.0, **{option: value})
    assert str(e.value) == f"{f.__name__}: {option} must be a finite number, got {value}"
