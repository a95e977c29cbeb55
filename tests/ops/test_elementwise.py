"""What all rules that are declared element by element share."""

import jax
import jax.numpy as jnp
import pytest

from funcnet import RULES, ops

DECLARED = [r for r in RULES.values() if r.fwd.__qualname__.startswith("elementwise.")]


@pytest.mark.parametrize("rule", DECLARED, ids=lambda rule: rule.name)
def test_numbers_of_python(rule):
    """They reach the rule as they are, and a bool of Python is no mask: ~True is -2."""
    f = getattr(ops, rule.name)
    for x in (-7.0, -0.5, 0.0, 0.5, 7.0):
        assert f(x) == f(jnp.asarray(x))
        assert jax.grad(f)(x) == jax.grad(f)(jnp.asarray(x))
