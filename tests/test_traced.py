"""Options that may be traced: `jax.vmap` over a number is a loop over Python numbers.

The rules are those with an option annotated as `Number`; the cases are those of `cases`.
"""

import functools
import inspect
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES
from criterion import cast, cotangents, equal, split
from jax.flatten_util import ravel_pytree

from funcnet import RULES, autodiff, check_model, layers, ops, rule
from funcnet._options import may_be_traced

SWEEPS = {
    "eps": [1e-3, 0.25, 2.0],
    "rate": [0.0, 0.25, 0.9],
    "dropout_rate": [0.0, 0.25, 0.9],
    "delta": [0.25, 1.0, 2.5],
    "label_smoothing": [0.0, 0.1, 0.75],
}
TRACED = [
    (name, p.name)
    for name in CASES
    for hints in [typing.get_type_hints(RULES[name].primal)]
    for p in inspect.signature(RULES[name].primal).parameters.values()
    if p.kind == p.KEYWORD_ONLY and may_be_traced(hints[p.name])
]


def cases_of(name, option):
    """The cases of a rule; dropout of attention needs those with a key."""
    return [case for case in CASES[name] if option != "dropout_rate" or option in case.static]


PARAMS = [
    pytest.param(
        name, option, case, id=f"{name}-{case.id}", marks=[pytest.mark.slow] if i > 0 else []
    )
    for name, option in TRACED
    for i, case in enumerate(cases_of(name, option))
]


def test_these_rules_take_traced_numbers():
    assert {option for _, option in TRACED} == set(SWEEPS)
    norms = {"layer_norm", "rms_norm", "group_norm", "batch_norm", "batch_norm_inference"}
    assert {name for name, _ in TRACED} == norms | {
        "dot_product_attention",
        "dropout",
        "huber",
        "softmax_cross_entropy",
    }


def pulled(name, option, case, dtype):
    """A function of the option that returns value and gradient, and its arguments."""

    def run(number, values, dout):
        f = functools.partial(getattr(ops, name), **{option: number})
        static = {k: v for k, v in case.static.items() if k != option}
        y, back = jax.vjp(split(f, case.args, static)[0], *values)
        return y, back(dout)

    g, values = split(getattr(ops, name), case.args, case.static)
    values = cast(values, dtype)
    return run, values, cotangents(g, values)


@pytest.mark.third
@pytest.mark.parametrize("dtype", [jnp.float64, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "option", "case"), PARAMS)
def test_vmap_over_a_number_is_a_loop(name, option, case, dtype):
    run, values, dout = pulled(name, option, case, dtype)
    each = [jax.jit(functools.partial(run, n))(values, dout) for n in SWEEPS[option]]
    over = jax.jit(jax.vmap(run, (0, None, None)))(jnp.array(SWEEPS[option]), values, dout)
    # A gradient that is 0 but for rounding is compared on the scale of the others.
    flat = lambda tree: ravel_pytree(tree)[0] if dtype == jnp.float64 else tree
    equal(flat(over), flat(jax.tree.map(lambda *ys: jnp.stack(ys), *each)))


@pytest.mark.third
@pytest.mark.parametrize(("name", "option"), TRACED)
def test_a_traced_number(name, option):
    """Its derivative is an error by the rule, and that of JAX without."""
    case, number = cases_of(name, option)[0], SWEEPS[option][1]
    run, values, dout = pulled(name, option, case, jnp.float64)
    total = lambda n: sum(
        jnp.vdot(y, d)
        for y, d in zip(*map(jax.tree.leaves, (run(n, values, dout)[0], dout)), strict=True)
    )
    with pytest.raises(TypeError) as e:
        jax.jit(jax.grad(total))(number)
    assert str(e.value) == (
        f"{name}: {option} has no derivative by a hand-written rule; "
        f"funcnet.autodiff(f) has one, for a function f that calls {name}"
    )
    h = 1e-5
    slope = jax.grad(autodiff(total))(number)
    if option not in ("rate", "dropout_rate"):  # the mask is not differentiable
        difference = (total(number + h) - total(number - h)) / (2 * h)
        np.testing.assert_allclose(slope, difference, rtol=1e-5, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "option"), TRACED)
def test_second_derivatives(name, option):
    run, values, dout = pulled(name, option, cases_of(name, option)[0], jnp.float64)
    square = lambda values, n: sum((y**2).sum() for y in jax.tree.leaves(run(n, values, dout)[0]))
    number = SWEEPS[option][1]
    actual = jax.jit(jax.hessian(square))(values, number)
    equal(actual, jax.jit(jax.hessian(lambda values: square(values, number)))(values))


@pytest.mark.parametrize("number", [jnp.ones(2), jnp.array(True), jnp.array(1j)])
@pytest.mark.parametrize(("name", "option"), TRACED)
def test_what_is_no_number(name, option, number):
    case = cases_of(name, option)[0]
    f = lambda n: getattr(ops, name)(*case.args, **{**case.static, option: n})
    with pytest.raises(TypeError, match=rf"^{name}: {option} must be a number, got a traced "):
        jax.jit(f)(number)


def test_no_smoothing_where_a_logit_is_infinite():
    f = lambda a: ops.softmax_cross_entropy(jnp.array([1.0, -jnp.inf]), 0, label_smoothing=a)
    assert jax.jit(f)(0.0) == f(0.0) == 0


def test_a_rule_with_many_arguments_and_an_option():
    @rule
    def total(*xs, k: float | jax.Array = 2.0):
        return k * sum(xs)

    total.defvjp(lambda *xs, k: (k * sum(xs), xs), lambda xs, dy, *, k: (k * dy,) * len(xs))
    gradient = jax.grad(lambda x, k: total(x, x, k=k))
    assert jax.jit(gradient)(1.0, 3.0) == 6
    assert jax.vmap(gradient, (None, 0))(1.0, jnp.array([1.0, 2.0])).tolist() == [2.0, 4.0]
    assert gradient(1.0, 3.0) == jax.grad(lambda x: total(x, x, k=3.0))(1.0) == 6


def test_the_checker_takes_traced_numbers_as_given():
    @rule
    def doubled(x, *, k: float | jax.Array = 2.0):
        return k * x

    doubled.defvjp(lambda x, *, k: (k * x, ()), lambda _, dy, *, k: (1.01 * k * dy,))
    x = jnp.arange(3.0)
    report = check_model(lambda x: jax.jit(lambda k: ops.huber(x, 0 * x, delta=k))(0.5), x)
    assert report.ok
    report = check_model(lambda x: jax.jit(lambda k: doubled(x, k=k).sum())(0.5), x)
    assert [(c.rule, c.argument) for c in report.culprits] == [("doubled", "x")]


SWEPT_LAYERS = {
    "Dropout": (layers.Dropout, [0.0, 0.25]),
    "LayerNorm": (lambda n: layers.LayerNorm(eps=n), [1e-3, 1.0]),
    "RMSNorm": (lambda n: layers.RMSNorm(eps=n), [1e-3, 1.0]),
    "GroupNorm": (lambda n: layers.GroupNorm(2, eps=n), [1e-3, 1.0]),
    "BatchNorm": (lambda n: layers.BatchNorm(eps=n, momentum=n), [1e-3, 1.0]),
}


@pytest.mark.parametrize("name", SWEPT_LAYERS)
def test_a_sweep_of_a_layer(name):
    make, numbers = SWEPT_LAYERS[name]
    x, key = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4))), jax.random.key(0)
    params, state = make(0.5).init(key, x)
    run = lambda n: make(n).apply(params, state, x, key=key, train=True)
    equal(
        jax.jit(jax.vmap(run))(jnp.array(numbers)),
        jax.tree.map(lambda *ys: jnp.stack(ys), *map(run, numbers)),
    )
