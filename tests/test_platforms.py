"""Tests the forms that rules have on GPU and TPU, by running them on the CPU."""

from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, ORACLES
from criterion import cast, cotangents, equal, error_ratio, pull, split
from platforms import DEPENDENT, PLATFORMS, as_on

from funcnet import autodiff, ops


def param(name, index, on, *values, slow=False):
    marks = [pytest.mark.xdist_group(name), *([pytest.mark.slow] if slow or index else [])]
    case_id = f"{name}-{CASES[name][index].id}-{on}"
    return pytest.param(name, index, on, *values, id=case_id, marks=marks)


ALL = [
    param(name, i, on) for name in DEPENDENT for i in range(len(CASES[name])) for on in PLATFORMS
]


@pytest.mark.third
@pytest.mark.parametrize("name", list(CASES))
def test_dependent_rules_are_tested(name):
    """A rule whose program asks for the platform is in the list above."""
    f, values = split(getattr(ops, name), CASES[name][0].args, CASES[name][0].static)
    found = False
    for dtype in (jnp.float32, jnp.bfloat16):
        narrow = cast(values, dtype)
        text = str(jax.make_jaxpr(lambda *v: jax.vjp(f, *v)[0])(*narrow))
        dout = cotangents(f, narrow)
        pulled = lambda *v, dout=dout: jax.vjp(f, *v)[1](dout)
        text += str(jax.make_jaxpr(pulled)(*narrow))
        found |= "platform_index" in text
    assert not found or name in DEPENDENT


@pytest.mark.third
@pytest.mark.parametrize(("name", "index", "on"), ALL)
def test_value_and_gradient(name, index, on):
    """The form on another platform has the oracle's value, and the gradient is autodiff's."""
    case = CASES[name][index]
    with as_on(on):
        g, values = split(getattr(ops, name), case.args, case.static)
        dout = cotangents(g, values)
        value, by_hand = jax.jit(g)(*values), pull(g)(values, dout)
        by_autodiff = pull(autodiff(g))(values, dout)
        with np.errstate(all="ignore"):
            expected = ORACLES[name](*case.args, **case.static)
    equal(by_hand, by_autodiff)
    equal(value, jax.tree.map(lambda v, e: jnp.asarray(e, v.dtype), value, expected))


@pytest.mark.third
@pytest.mark.parametrize(("name", "index", "on"), ALL)
def test_accuracy_in_bfloat16(name, index, on):
    """The error is that of rounding, or at most that of autodiff, or of 2 ulps of the largest.

    `funcnet.check.criterion` has the same bound, below which an error is only a warning.
    """
    case = CASES[name][index]
    with as_on(on):
        g, values = split(getattr(ops, name), case.args, case.static)
        narrow = cast(values, jnp.bfloat16)
        dout = cotangents(g, narrow)
        hand, auto = (pull(f)(narrow, dout) for f in (g, autodiff(g)))
        assert [h.dtype for h in hand] == [v.dtype for v in narrow]
        ratio = error_ratio(g, narrow, dout, jnp.bfloat16, hand)
        if ratio > 1:
            ratio = error_ratio(g, narrow, dout, jnp.bfloat16, hand, of_largest=2)
        assert ratio <= 1 or ratio <= error_ratio(g, narrow, dout, jnp.bfloat16, auto)


def test_a_wrong_branch_is_noticed(monkeypatch):
    """Tests the tests above: they run the branch of the platform that is asked for."""
    embedding = import_module("funcnet.ops.embedding")
    right = embedding._sums_of_sorted
    monkeypatch.setattr(embedding, "_sums_of_sorted", lambda *args: 2 * right(*args))
    with pytest.raises(AssertionError):
        test_accuracy_in_bfloat16("embedding", 0, "tpu")
