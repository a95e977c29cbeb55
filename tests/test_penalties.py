"""Tests of both forms of the penalties, in addition to the properties in `test_rules.py`."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from funcnet import autodiff, ops, optim

# Both sides do the same few float64 operations on sums of some 20 numbers of order 1.
EXACT = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)

rng = np.random.default_rng(0)
PARAMS = {
    "conv": (rng.normal(size=(2, 3)), np.array(-0.4)),
    "dense": {"w": rng.normal(size=(3, 2)), "b": np.array([0.0, -0.0, 2.0])},
}
RATES = {"l1": (0.3,), "l2": (0.7,), "elastic_net": (0.3, 0.7)}
PENALTY = {name: getattr(optim, f"{name}_penalty") for name in RATES}
CHANGE = {name: getattr(optim, name) for name in RATES}

# The formulas of the sources, for one array.
VALUE = {
    "l1": lambda p, a: a * np.abs(p).sum(),
    "l2": lambda p, b: b / 2 * (p**2).sum(),
    "elastic_net": lambda p, a, b: a * np.abs(p).sum() + b / 2 * (p**2).sum(),
}
GRADIENT = {
    "l1": lambda p, a: a * np.sign(p),
    "l2": lambda p, b: b * p,
    "elastic_net": lambda p, a, b: a * np.sign(p) + b * p,
}
SECOND = {"l1": 0.0, "l2": 0.7, "elastic_net": 0.7}
each = pytest.mark.parametrize("name", RATES)


def tree_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(EXACT, a, b)


@each
def test_value_and_gradients_are_those_of_the_sources(name):
    rates = RATES[name]
    f = jax.jit(lambda params, *rates: 3 * PENALTY[name](params, *rates))
    leaves = jax.tree.leaves(PARAMS)
    EXACT(f(PARAMS, *rates), 3 * sum(VALUE[name](p, *rates) for p in leaves))
    dparams, *drates = jax.jit(jax.grad(f, range(1 + len(rates))))(PARAMS, *rates)
    tree_equal(dparams, jax.tree.map(lambda p: 3 * GRADIENT[name](p, *rates), PARAMS))
    for i, drate in enumerate(drates):
        unit = [float(i == j) for j in range(len(rates))]
        EXACT(drate, 3 * sum(VALUE[name](p, *unit) for p in leaves))


@each
def test_the_gradient_at_zero_is_zero_by_the_rule_and_by_autodiff(name):
    zeros = jnp.array([0.0, -0.0])
    for f in (PENALTY[name], autodiff(PENALTY[name])):
        np.testing.assert_array_equal(jax.grad(f)(zeros, *RATES[name]), np.zeros(2))


@pytest.mark.few
@each
def test_hessian_in_all_arguments_is_that_of_autodiff(name):
    flat, unravel = jax.flatten_util.ravel_pytree((PARAMS, *RATES[name]))
    f = lambda flat: PENALTY[name](*unravel(flat))
    hessian = jax.jit(jax.hessian(f))(flat)
    EXACT(hessian, jax.jit(jax.hessian(autodiff(f)))(flat))
    n = flat.size - len(RATES[name])
    EXACT(hessian[:n, :n], SECOND[name] * np.eye(n))


@each
def test_leaves_that_are_no_floats_do_not_count(name):
    params = {"w": np.array([3.0, -1.0]), "n": np.arange(4), "key": jax.random.key(0)}
    f = jax.jit(jax.value_and_grad(lambda w: PENALTY[name]({**params, "w": w}, *RATES[name])))
    value, dw = f(params["w"])
    EXACT(value, VALUE[name](params["w"], *RATES[name]))
    EXACT(dw, GRADIENT[name](params["w"], *RATES[name]))
    del params["key"]  # jax.grad refuses keys
    dparams = jax.grad(PENALTY[name], allow_int=True)(params, *RATES[name])
    assert dparams["n"].dtype == jax.dtypes.float0
    EXACT(dparams["w"], dw)


@pytest.mark.few
@each
def test_mixed_dtypes_are_computed_in_the_widest(name):
    dtypes = ["bfloat16", "float16", "float32", "float64"]
    rates = list(map(jnp.asarray, RATES[name], ["float64", "bfloat16"]))
    for count, expected in ((1, "float32"), (2, "float32"), (3, "float32"), (4, "float64")):
        params = {dtype: jnp.asarray([300.0, -300.0], dtype) for dtype in dtypes[:count]}
        y, (dparams, *drates) = jax.value_and_grad(PENALTY[name], range(1 + len(rates)))(
            params, *rates
        )
        assert y.dtype == expected
        assert {k: str(d.dtype) for k, d in dparams.items()} == {k: k for k in params}
        assert [d.dtype for d in drates] == [r.dtype for r in rates]
        exact = [float(jnp.asarray(r, expected)) for r in rates]
        value = sum(VALUE[name](np.array([300.0, -300.0]), *exact) for _ in params)
        np.testing.assert_allclose(
            y, value, rtol=4 * np.finfo(expected).eps
        )  # 300² > 65504, float16


def test_narrow_leaves_are_summed_in_float32():
    ones = jnp.ones(1000, jnp.bfloat16)  # a bfloat16 sum would stall at 256
    assert float(jax.jit(ops.l1_penalty)(ones, 1.0)) == 1000.0
    assert float(jax.jit(ops.l2_penalty)(ones, 1.0)) == 500.0


@each
def test_python_numbers_empty_trees_and_integer_rates(name):
    integers = [2] * len(RATES[name])
    for f in (PENALTY[name], autodiff(PENALTY[name])):
        EXACT(f(-3.0, *RATES[name]), VALUE[name](np.array(-3.0), *RATES[name]))
        EXACT(f([], *RATES[name]), 0.0)
        EXACT(jax.grad(f)(-3.0, *integers), GRADIENT[name](np.array(-3.0), *integers))
    _, *drates = jax.grad(PENALTY[name], range(1 + len(integers)), allow_int=True)(-3.0, *integers)
    assert {d.dtype for d in drates} == {jax.dtypes.float0}


@each
def test_vmap_over_rates_and_scan(name):
    rates = [np.linspace(0.1, 1.0, 3) * (i + 1) for i in range(len(RATES[name]))]
    grad = jax.grad(PENALTY[name])
    mapped = jax.jit(jax.vmap(partial(grad, PARAMS)))(*rates)
    scanned = jax.jit(lambda: jax.lax.scan(lambda _, r: (None, grad(PARAMS, *r)), None, rates)[1])()
    for i, values in enumerate(zip(*rates, strict=True)):
        expected = jax.tree.map(lambda p, values=values: GRADIENT[name](p, *values), PARAMS)
        tree_equal(jax.tree.map(lambda x, i=i: x[i], mapped), expected)
        tree_equal(jax.tree.map(lambda x, i=i: x[i], scanned), expected)


# The form that adds to the gradient.


@each
def test_the_change_adds_the_gradient_of_the_sources(name):
    grads = jax.tree.map(lambda p: p**2 + 1, PARAMS)
    change = CHANGE[name](*RATES[name])
    updates, state = jax.jit(change.update)(grads, change.init(PARAMS), PARAMS)
    assert state == optax.EmptyState()
    tree_equal(
        updates, jax.tree.map(lambda g, p: g + GRADIENT[name](p, *RATES[name]), grads, PARAMS)
    )


@pytest.mark.few
@each
def test_both_forms_train_alike(name):
    """Adding the penalty to the loss, or its gradient to the gradient, trains the same network."""
    loss = lambda params: sum((p**3 + p).sum() for p in jax.tree.leaves(params))
    penalised = lambda params: loss(params) + PENALTY[name](params, *RATES[name])
    change = CHANGE[name](*RATES[name])

    def train(loss, optimizer):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        start = (jax.tree.map(jnp.asarray, PARAMS), optimizer.init(PARAMS))
        return jax.jit(lambda: jax.lax.scan(step, start, length=20)[0][0])()

    for optimizer in (optim.sgd(0.01), optim.adam(0.01)):
        expected = train(penalised, optimizer)
        tree_equal(train(loss, optax.chain(change, optimizer)), expected)


def test_l2_is_what_optax_calls_add_decayed_weights():
    params, grads = PARAMS, jax.tree.map(np.cos, PARAMS)
    ours, theirs = optim.l2(0.3), optax.add_decayed_weights(0.3)
    expected, _ = theirs.update(grads, theirs.init(params), params)
    tree_equal(ours.update(grads, ours.init(params), params)[0], expected)


@each
def test_the_change_keeps_the_dtype_of_the_gradient(name):
    change = CHANGE[name](*map(np.float64, RATES[name]))
    p, g = jnp.asarray([1.5, -2.0, 0.0], jnp.bfloat16), jnp.asarray([0.1, 0.2, 0.3], jnp.bfloat16)
    update, _ = change.update(g, optax.EmptyState(), p)
    rates = map(np.float32, RATES[name])
    exact = g.astype(jnp.float32) + GRADIENT[name](np.asarray(p, np.float32), *rates)
    assert update.dtype == jnp.bfloat16
    np.testing.assert_array_equal(update, exact.astype(jnp.bfloat16))


@each
def test_the_change_can_be_masked(name):
    change = optax.masked(CHANGE[name](*RATES[name]), {"conv": False, "dense": True})
    zeros = jax.tree.map(np.zeros_like, PARAMS)
    updates, _ = change.update(zeros, change.init(PARAMS), PARAMS)
    tree_equal(updates["conv"], zeros["conv"])
    expected = jax.tree.map(lambda p: GRADIENT[name](p, *RATES[name]), PARAMS["dense"])
    tree_equal(updates["dense"], expected)


# Errors. `test_optim.py` tests those of the gradient form.

ERRORS = {
    "l1_penalty: rate must be a scalar, got shape (2,)": lambda: ops.l1_penalty(PARAMS, np.ones(2)),
    "l2_penalty: rate must be a scalar, got shape (1,)": lambda: ops.l2_penalty(PARAMS, np.ones(1)),
    "elastic_net_penalty: l2_rate must be a scalar, got shape (3,)": (
        lambda: ops.elastic_net_penalty(PARAMS, 0.1, np.ones(3))
    ),
    "l2_penalty: rate must be real, got complex128[]": lambda: ops.l2_penalty(PARAMS, 1j),
    "l2_penalty: rate must be an array, got None": lambda: ops.l2_penalty(PARAMS, None),
    "l2_penalty: rate must be an array, got dict": lambda: ops.l2_penalty(0.1, PARAMS),
    "l1_penalty: params must be a tree of arrays, got None": lambda: ops.l1_penalty(None, 0.1),
    "l1_penalty: params['w'] must be real, got complex128[2]": (
        lambda: ops.l1_penalty.__wrapped__({"w": np.ones(2, complex)}, 0.1)
    ),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_are_one_line(message):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}"):
        ERRORS[message]()
