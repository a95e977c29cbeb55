"""Rules that reject float64 are checked in their own dtype, in a process without 64 bits."""

import subprocess
import sys

import pytest

SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from funcnet import check_rule

def rule(factor):
    @jax.custom_vjp
    def f(x, i):
        # The dtypes are fixed, so float64 is rejected.
        return jax.lax.mul(jax.lax.sin(x), jnp.full(x.shape, 2, np.float32))

    def bwd(saved, dy):
        x, i = saved
        return factor * dy * 2 * jnp.cos(x), None

    f.defvjp(lambda x, i: (f(x, i), (x, i)), bwd)
    return f

x, i = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3), jnp.arange(4)
from funcnet import check_model
culprits = check_model(lambda x, i: rule(1.001)(x, i).sum(), x, i).culprits
assert [c.argument for c in culprits] == ["x"], culprits
right, wrong = check_rule(rule(1.0), x, i), check_rule(rule(1.001), x, i)
assert right.ok, right
assert "compared in float32 only" in right.warnings[0], right
assert [(f.kind, f.argument) for f in wrong.findings] == [("gradient", "x")], wrong
assert not jax.config.read("jax_enable_x64")
"""


@pytest.mark.slow
def test_float32_only():
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)
