"""Tests of the optimizers against Optax and the formulas in NumPy, and with Optax's tools.

The distance between two float64 runs is max |a − b| / max(1, |b|) over steps, leaves and elements.
The runs differ in the order of a few operations. Each step adds an error of some 2⁻⁵³ ≈ 1.1e-16
times numbers of order 1, so that 1,000 steps stay below 1e-12.
"""

import inspect
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from marks import slow

from funcnet import optim

STEPS = 1000
ALLOWED = 1e-12
SCHEDULE = optax.exponential_decay(0.02, transition_steps=100, decay_rate=0.7)


def random_tree(seed, *leading):
    draw = lambda *shape: rng.normal(size=(*leading, *shape))
    rng = np.random.default_rng(seed)
    return {"conv": (draw(2, 3, 4), draw()), "dense": {"b": draw(3)}}


PARAMS = random_tree(0)
NOISE = random_tree(1, STEPS)


def gradient(params, noise):
    """Gradient of a quadratic with its minimum at 0.5, plus noise as from minibatches."""
    return jax.tree.map(lambda p, e: 0.3 * (p - 0.5) + e, params, noise)


def run(optimizer, params=PARAMS, noise=NOISE):
    """The updates and params of every step, stacked."""

    def step(carry, noise):
        params, state = carry
        updates, state = optimizer.update(gradient(params, noise), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (updates, params)

    return jax.lax.scan(step, (params, optimizer.init(params)), noise)[1]


def distance(a, b):
    leaf = lambda x, y: np.max(np.abs(x - y) / np.maximum(1, np.abs(y)), initial=0.0)
    return max(jax.tree.leaves(jax.tree.map(leaf, a, b)))


# The formulas in NumPy for one array. p and the state, which starts at 0, are updated in place.


def sgd(p, g, state, t, lr):
    p -= lr * g


def momentum(p, g, state, t, lr, momentum):
    state["v"] = momentum * state["v"] - lr * g
    p += state["v"]


def damped(p, g, state, t, lr, momentum, dampening):
    state["v"] = momentum * state["v"] - lr * (g if t == 0 else (1 - dampening) * g)
    p += state["v"]


def nesterov(p, g, state, t, lr, momentum):
    p += momentum**2 * state["v"] - (1 + momentum) * lr * g
    state["v"] = momentum * state["v"] - lr * g


def adagrad(p, g, state, t, lr, initial_accumulator_value, eps):
    state["h"] = state["h"] + g * g
    p -= lr * g / (np.sqrt(initial_accumulator_value + state["h"]) + eps)


def rmsprop(p, g, state, t, lr, decay, eps):
    state["h"] = decay * state["h"] + (1 - decay) * g * g
    p -= lr * g / (np.sqrt(state["h"]) + eps)


def centered(p, g, state, t, lr, decay, eps):
    m, v = averages(g, state, decay, decay)
    p -= lr * g / (np.sqrt(v - m * m) + eps)


def averages(g, state, b1, b2):
    state["m"] = b1 * state["m"] + (1 - b1) * g
    state["g"] = b2 * state["g"] + (1 - b2) * g * g
    return state["m"], state["g"]


def adam_of_source_a(p, g, state, t, lr, b1=0.9, b2=0.999, eps=0.5):
    m, v = averages(g, state, b1, b2)
    p -= lr / (np.sqrt(v / (1 - b2 ** (t + 1))) + eps) * (m / (1 - b1 ** (t + 1)))


def adam_of_source_d(p, g, state, t, lr, b1=0.9, b2=0.999, eps=0.5):
    m, v = averages(g, state, b1, b2)
    p -= lr / (np.sqrt(v) + eps) * m


def adam_of_the_book(p, g, state, t, lr, b1=0.9, b2=0.999, eps=0.5):
    m, v = averages(g, state, b1, b2)
    p -= lr * np.sqrt(1 - b2 ** (t + 1)) / (1 - b1 ** (t + 1)) * m / (np.sqrt(v) + eps)


def amsgrad(p, g, state, t, lr, b1=0.9, b2=0.999, eps=0.5, hat=False):
    m, v = averages(g, state, b1, b2)
    state["h"] = np.maximum(state["h"], v / (1 - b2 ** (t + 1)))
    eps = eps / np.sqrt(1 - b2 ** (t + 1)) if hat else eps
    p -= lr * m / (1 - b1 ** (t + 1)) / (np.sqrt(state["h"]) + eps)


def with_decay(adam):
    def adamw(p, g, state, t, lr, weight_decay, **options):
        decay = lr * weight_decay * p
        adam(p, g, state, t, lr, **options)
        p -= decay

    return adamw


# Our optimizer, Optax's (where it has the form), the formula, and the settings to compare.

mask_tree = {"conv": (True, False), "dense": False}
mask_function = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
scheduled_trace = lambda **options: optax.chain(
    optax.scale_by_learning_rate(SCHEDULE), optax.trace(0.9, **options)
)
clip = optax.clip_by_global_norm(2.0)

CASES = {
    "sgd": (optim.sgd, optax.sgd, sgd, [{}]),
    "momentum": (
        optim.momentum,
        optax.sgd,
        momentum,
        [{"momentum": 0.9}, {"momentum": 0.0}, {"momentum": 0.5}],
    ),
    "momentum, damped": (
        optim.momentum,
        None,
        damped,
        [{"momentum": 0.9, "dampening": 0.3}, {"momentum": 0.5, "dampening": 1.0}],
    ),
    "nesterov": (
        optim.nesterov,
        partial(optax.sgd, nesterov=True),
        nesterov,
        [{"momentum": 0.9}, {"momentum": 0.0}, {"momentum": 0.5}],
    ),
    "adagrad": (
        optim.adagrad,
        None,
        adagrad,
        [
            {"initial_accumulator_value": 0.0, "eps": 1e-7},
            {"initial_accumulator_value": 0.3, "eps": 0.5},
            {"initial_accumulator_value": 0.0, "eps": 0.0},
        ],
    ),
    "adagrad, inside": (
        partial(optim.adagrad, eps_placement="inside"),
        optax.adagrad,
        None,
        [
            {"initial_accumulator_value": 0.0, "eps": 1e-7},
            {"initial_accumulator_value": 0.1, "eps": 0.5},
        ],
    ),
    "rmsprop": (
        optim.rmsprop,
        partial(optax.rmsprop, eps_in_sqrt=False),
        rmsprop,
        [
            {"decay": 0.99, "eps": 1e-7},
            {"decay": 0.9, "eps": 0.5},
            {"decay": 0.0, "eps": 0.5},
            {"decay": 0.99, "eps": 0.0},
        ],
    ),
    "rmsprop, inside": (
        partial(optim.rmsprop, eps_placement="inside"),
        optax.rmsprop,
        None,
        [{"decay": 0.9, "eps": 1e-8}, {"decay": 0.99, "eps": 0.5}],
    ),
    "rmsprop, centered": (
        partial(optim.rmsprop, centered=True),
        partial(optax.rmsprop, eps_in_sqrt=False, centered=True),
        centered,
        [{"decay": 0.99, "eps": 1e-7}, {"decay": 0.9, "eps": 0.5}],
    ),
    "rmsprop, centered, inside": (
        partial(optim.rmsprop, eps_placement="inside", centered=True),
        partial(optax.rmsprop, centered=True),
        None,
        [{"decay": 0.9, "eps": 1e-8}],
    ),
    "adam": (
        optim.adam,
        optax.adam,
        adam_of_source_a,
        [
            {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
            {"b1": 0.9, "b2": 0.999, "eps": 0.0},
            {"b1": 0.0, "b2": 0.9, "eps": 1e-8},
            {"b1": 0.9, "b2": 0.0, "eps": 0.5},
        ],
    ),
    "adam, inside": (
        partial(optim.adam, eps_placement="inside"),
        lambda lr, eps, **o: optax.adam(lr, eps=0, eps_root=eps, **o),
        None,
        [{"b1": 0.9, "b2": 0.999, "eps": 1e-8}, {"b1": 0.8, "b2": 0.99, "eps": 0.5}],
    ),
    "adam, eps_hat": (
        partial(optim.adam, eps_placement="eps_hat"),
        None,
        adam_of_the_book,
        [{"b1": 0.9, "b2": 0.999, "eps": 1e-7}, {"b1": 0.8, "b2": 0.99, "eps": 0.5}],
    ),
    "adam, no bias correction": (
        partial(optim.adam, bias_correction=False),
        None,
        adam_of_source_d,
        [{"b1": 0.9, "b2": 0.999, "eps": 0.0}, {"b1": 0.8, "b2": 0.99, "eps": 0.5}],
    ),
    "adam, eps_hat, no bias correction": (
        partial(optim.adam, eps_placement="eps_hat", bias_correction=False),
        None,
        adam_of_source_d,
        [{"eps": 0.5}],
    ),
    "adam, amsgrad": (
        partial(optim.adam, amsgrad=True),
        optax.amsgrad,
        amsgrad,
        [{"b1": 0.9, "b2": 0.999, "eps": 1e-8}, {"b1": 0.8, "b2": 0.9, "eps": 0.5}],
    ),
    "adam, amsgrad, inside": (
        partial(optim.adam, eps_placement="inside", amsgrad=True),
        lambda lr, eps, **o: optax.amsgrad(lr, eps=0, eps_root=eps, **o),
        None,
        [{"b1": 0.8, "b2": 0.9, "eps": 0.5}],
    ),
    "adam, amsgrad, eps_hat": (
        partial(optim.adam, eps_placement="eps_hat", amsgrad=True),
        None,
        partial(amsgrad, hat=True),
        [{"b1": 0.8, "b2": 0.9, "eps": 0.5}],
    ),
    "adam, amsgrad, no bias correction": (
        partial(optim.adam, bias_correction=False, amsgrad=True),
        partial(optax.amsgrad, bias_correction_mu=False, bias_correction_nu=False),
        None,
        [{"b1": 0.8, "b2": 0.9, "eps": 0.5}],
    ),
    "adamw, amsgrad": (
        partial(optim.adamw, amsgrad=True),
        None,
        with_decay(amsgrad),
        [{"weight_decay": 0.3, "eps": 0.5, "b2": 0.9}],
    ),
    "adamw": (
        optim.adamw,
        optax.adamw,
        with_decay(adam_of_source_a),
        [
            {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 1e-4},
            {"b1": 0.8, "b2": 0.99, "eps": 0.5, "weight_decay": 0.3},
            {"b1": 0.9, "b2": 0.999, "eps": 0.0, "weight_decay": 0.3},
        ],
    ),
    "adamw, inside, mask": (
        partial(optim.adamw, eps_placement="inside", mask=mask_tree),
        lambda lr, eps, **o: optax.adamw(lr, eps=0, eps_root=eps, mask=mask_tree, **o),
        None,
        [{"weight_decay": 0.3, "eps": 0.5}],
    ),
    "adamw, mask function": (
        partial(optim.adamw, mask=mask_function),
        partial(optax.adamw, mask=mask_function),
        None,
        [{"weight_decay": 0.3}],
    ),
    "adamw, eps_hat": (
        partial(optim.adamw, eps_placement="eps_hat"),
        None,
        with_decay(adam_of_the_book),
        [{"weight_decay": 0.3, "eps": 0.5}],
    ),
    "adamw, no bias correction": (
        partial(optim.adamw, bias_correction=False),
        None,
        with_decay(adam_of_source_d),
        [{"weight_decay": 0.3, "eps": 0.5}],
    ),
    "schedule": (
        lambda lr: optim.adamw(SCHEDULE, weight_decay=0.3),
        lambda lr: optax.adamw(SCHEDULE, weight_decay=0.3),
        None,
        [{}],
    ),
    "schedule, momentum": (
        lambda lr: optim.momentum(SCHEDULE),
        lambda lr: scheduled_trace(),
        None,
        [{}],
    ),
    "schedule, nesterov": (
        lambda lr: optim.nesterov(SCHEDULE),
        lambda lr: scheduled_trace(nesterov=True),
        None,
        [{}],
    ),
    "schedule, momentum of Optax": (
        lambda lr: optax.chain(optim.momentum(1.0), optax.scale_by_schedule(SCHEDULE)),
        lambda lr: optax.sgd(SCHEDULE, 0.9),
        None,
        [{}],
    ),
    "schedule, nesterov of Optax": (
        lambda lr: optax.chain(optim.nesterov(1.0), optax.scale_by_schedule(SCHEDULE)),
        lambda lr: optax.sgd(SCHEDULE, 0.9, nesterov=True),
        None,
        [{}],
    ),
    "chain": (
        lambda lr: optax.chain(clip, optim.l2(0.1), optim.rmsprop(SCHEDULE, decay=0.9, eps=1e-8)),
        lambda lr: optax.chain(
            clip, optax.add_decayed_weights(0.1), optax.rmsprop(SCHEDULE, eps_in_sqrt=False)
        ),
        None,
        [{}],
    ),
    "masked": (
        lambda lr: optax.masked(optim.adam(lr), mask_tree),
        lambda lr: optax.masked(optax.adam(lr), mask_tree),
        None,
        [{}],
    ),
    "masked, all": (
        lambda lr: optax.masked(optim.adam(lr), False),
        lambda lr: optax.masked(optax.adam(lr), False),
        None,
        [{}],
    ),
}


def run_formula(formula, lr, **options):
    """The updates and params of every step, stacked."""
    params, treedef = jax.tree.flatten(jax.tree.map(np.array, PARAMS))
    noise = jax.tree.leaves(NOISE)
    states = [dict.fromkeys("vhmg", 0.0) for _ in params]
    history = [[p.copy()] for p in params]
    for t in range(STEPS):
        for p, e, state, past in zip(params, noise, states, history, strict=True):
            formula(p, 0.3 * (p - 0.5) + e[t], state, t, lr, **options)
            past.append(p.copy())
    stacked = [np.stack(past) for past in history]
    return treedef.unflatten(np.diff(x, axis=0) for x in stacked), treedef.unflatten(
        x[1:] for x in stacked
    )


@pytest.mark.few
@pytest.mark.parametrize(
    "name", [n if n in ("sgd", "adam", "adamw") else slow(n)[0] for n in CASES]
)
def test_equals_optax_and_the_formula_for_1000_steps(name):
    ours, theirs, formula, settings = CASES[name]
    run_ours = jax.jit(lambda options: run(ours(0.02, **options)))
    run_theirs = jax.jit(lambda options: run(theirs(0.02, **options)))
    for options in settings:
        results = run_ours(options)
        if theirs:
            with jax.numpy_dtype_promotion("standard"):  # for Optax's bias correction
                assert distance(results, run_theirs(options)) <= ALLOWED, options
        if formula:
            assert distance(results, run_formula(formula, 0.02, **options)) <= ALLOWED, options


def test_defaults():
    default = lambda f: {
        k: p.default for k, p in inspect.signature(f).parameters.items() if k != "learning_rate"
    }
    assert default(optim.nesterov) == {"momentum": 0.9, "accumulator_dtype": None}
    assert default(optim.momentum) == {**default(optim.nesterov), "dampening": 0.0}
    outside = {"eps": 1e-7, "eps_placement": "outside"}
    assert default(optim.adagrad) == {"initial_accumulator_value": 0.0, **outside}
    assert default(optim.rmsprop) == {"decay": 0.99, **outside, "centered": False}
    adam = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_placement": "outside"}
    options = {"bias_correction": True, "amsgrad": False, "mu_dtype": None}
    assert default(optim.adam) == {**adam, **options}
    assert default(optim.adamw) == {**default(optim.adam), "weight_decay": 1e-4, "mask": None}


def test_an_average_of_the_parameters():
    """θ̄ = αⁿ θ₀ + (1 − α) Σ αⁿ⁻ⁱ θᵢ, beside the steps of the optimizer."""
    decay, n = 0.9, 50
    optimizer = optim.averaged(optim.adam(0.02), decay=decay)
    noise = jax.tree.map(lambda a: a[:n], NOISE)
    params, state = PARAMS, optimizer.init(PARAMS)
    update = jax.jit(optimizer.update)
    for i in range(n):
        grads = gradient(params, jax.tree.map(lambda a, i=i: a[i], noise))
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    _, path = run(optim.adam(0.02), noise=noise)
    assert distance(params, jax.tree.map(lambda a: a[-1], path)) < ALLOWED
    weights = (1 - decay) * decay ** np.arange(n - 1, -1, -1)
    mean = lambda p, a: decay**n * p + np.tensordot(weights, np.asarray(a), 1)
    assert distance(state.average, jax.tree.map(mean, PARAMS, path)) < ALLOWED


# As OPTIMIZERS below, but with what Optax has of the same form.
COMPLEX = {
    "sgd": (optim.sgd(0.1), optax.sgd(0.1)),
    "momentum": (optim.momentum(0.1), optax.sgd(0.1, 0.9)),
    "nesterov": (optim.nesterov(0.1), optax.sgd(0.1, 0.9, nesterov=True)),
    "adagrad": (optim.adagrad(0.1, eps_placement="inside"), optax.adagrad(0.1, 0.0)),
    "rmsprop": (
        optim.rmsprop(0.1, decay=0.9, eps=1e-8, eps_placement="inside"),
        optax.rmsprop(0.1),
    ),
    "rmsprop, centered": (
        optim.rmsprop(0.1, decay=0.9, eps=0.01, centered=True),
        optax.rmsprop(0.1, eps=0.01, eps_in_sqrt=False, centered=True),
    ),
    "adam": (optim.adam(0.1), optax.adam(0.1)),
    "adam, amsgrad": (optim.adam(0.1, amsgrad=True), optax.amsgrad(0.1)),
    "adamw": (optim.adamw(0.1, weight_decay=0.1), optax.adamw(0.1, weight_decay=0.1)),
}


@pytest.mark.parametrize("name", [n if n == "adam" else slow(n)[0] for n in COMPLEX])
def test_complex_parameters_are_updated_as_by_optax(name):
    """Beside real ones, which stay real; squares and their sums are real."""
    ours, theirs = COMPLEX[name]
    turn = lambda tree: {**tree, "dense": jax.tree.map(lambda x: (1 + 0.5j) * x, tree["dense"])}
    params, noise = turn(PARAMS), turn(jax.tree.map(lambda e: e[:30] * (1 - 0.3j), NOISE))
    noise["conv"] = jax.tree.map(np.real, noise["conv"])
    found = jax.jit(lambda: run(ours, params, noise))()
    with jax.numpy_dtype_promotion("standard"):
        assert distance(found, jax.jit(lambda: run(theirs, params, noise))()) <= ALLOWED
    state = ours.init(jax.tree.map(lambda p: p.astype(p.dtype.name.replace("128", "64")), params))
    for tree, leaves in state._asdict().items():
        if tree != "count":
            real = "float32" if tree in ("G", "h", "G_max") else "complex64"
            assert leaves["dense"]["b"].dtype == real
            assert leaves["conv"][0].dtype == "float64"


def test_an_average_of_complex_parameters():
    optimizer = optim.averaged(optim.sgd(1.0), decay=0.75)
    params = jnp.array([1 + 2j], jnp.complex64)
    updates, state = optimizer.update(jnp.conj(params), optimizer.init(params), params)
    assert updates.tolist() == [-1 + 2j]
    assert state.average.tolist() == [0.75 + 2.5j]
    assert state.average.dtype == params.dtype


def kept_in_float32(name, formula):
    """The formula, with one array of the state rounded after it made the step."""

    def kept(p, g, state, t, lr):
        formula(p, g, state, t, lr)
        state[name] = np.float64(np.float32(state[name]))

    return kept


def nesterov_of_new_velocity(p, g, state, t, lr):
    state["v"] = 0.9 * state["v"] - lr * g
    p += 0.9 * state["v"] - lr * g


NARROWED = {  # an optimizer, the option, and the formula
    "adam": ("mu_dtype", "m", partial(adam_of_source_a, eps=1e-8)),
    "adamw": ("mu_dtype", "m", partial(with_decay(adam_of_source_a), eps=1e-8, weight_decay=1e-4)),
    "momentum": ("accumulator_dtype", "v", partial(momentum, momentum=0.9)),
    "nesterov": ("accumulator_dtype", "v", nesterov_of_new_velocity),
}


@pytest.mark.parametrize("name", NARROWED)
def test_a_state_of_another_dtype(name):
    """It is rounded after each step, but the step is not."""
    option, array, formula = NARROWED[name]
    make = getattr(optim, name)
    optimizer = make(0.02, **{option: jnp.float32})
    state = optimizer.init(PARAMS | {"complex": jnp.ones(2, jnp.complex64)})
    first, *rest = ({str(x.dtype) for x in jax.tree.leaves(tree)} for tree in state[1:])
    assert first == {"complex64", "float32"}
    assert all(dtypes == {"float64", "float32"} for dtypes in rest)
    results = jax.jit(lambda: run(optimizer))()
    assert distance(results, run_formula(kept_in_float32(array, formula), 0.02)) <= ALLOWED
    assert distance(results, jax.jit(lambda: run(make(0.02)))()) > 1e-9


def test_an_average_of_narrow_parameters_is_in_float32():
    """In bfloat16, 1 + 0.001 is 1, so that the average would stay."""
    params = {"w": jnp.ones(3, jnp.bfloat16), "n": jnp.arange(3)}
    optimizer = optim.averaged(optim.sgd(1.0))
    grads = {"w": jnp.full(3, -1.0, jnp.bfloat16), "n": np.zeros(3, jax.dtypes.float0)}
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    assert updates["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(state.average["w"], np.full(3, 1.001), 1e-6)
    assert state.average["w"].dtype == jnp.float32
    np.testing.assert_array_equal(state.average["n"], params["n"])


def test_an_averaged_optimizer_is_given_the_loss():
    optimizer = optim.averaged(optax.polyak_sgd())
    params = jnp.ones(3)
    updates, _ = optimizer.update(params, optimizer.init(params), params, value=1.5)
    np.testing.assert_allclose(updates, np.full(3, -0.5), 1e-6)


def test_nesterov_looks_ahead_by_its_velocity():
    eta, alpha, steps = 0.02, 0.8, 200
    curvature = np.array([1.0, 5.0, 20.0])
    w, v, ahead = np.ones(3), np.zeros(3), []
    for _ in range(steps):
        v = alpha * v - eta * curvature * (w + alpha * v)
        w = w + v
        ahead.append(w + alpha * v)
    optimizer = optim.nesterov(eta, momentum=alpha)
    params, state = np.ones(3), optimizer.init(np.ones(3))
    update = jax.jit(optimizer.update)
    for expected in ahead:
        updates, state = update(curvature * params, state)
        params = params + updates
        np.testing.assert_allclose(params, expected, rtol=0, atol=ALLOWED)


def test_learning_rate_weighs_each_gradient_when_it_enters_the_velocity():
    optimizer = optim.momentum(lambda count: jnp.where(count == 0, 1.0, 0.0), momentum=0.5)
    state = optimizer.init(0.0)
    updates = []
    for _ in range(3):
        update, state = optimizer.update(1.0, state)
        updates.append(float(update))
    assert updates == [-1.0, -0.5, -0.25]


def test_adam_in_float32_has_no_cancellation_in_its_bias_correction():
    # M̂ = g and Ĝ = g² for a constant g, so each step is η. Within 8 steps M and G are rounded at
    # most some 30 times; computing 1 − β₂ᵗ⁺¹ literally would add an error of 1e-5.
    optimizer = optim.adam(1.0, eps=0)
    state = optimizer.init(jnp.float32(0))
    update = jax.jit(optimizer.update)
    for _ in range(8):
        step, state = update(jnp.float32(0.3), state)
        assert abs(float(step) + 1) <= 16 * np.finfo(np.float32).eps


# AdamW is not Adam with L2.


def test_adamw_decays_by_a_factor_where_l2_in_adam_steps_by_the_sign():
    params, nothing = jnp.array([4.0, -0.01, 0.0]), jnp.zeros(3)
    for decay in (0.1, 0.5):
        decoupled = optim.adamw(0.2, weight_decay=decay)
        updates, _ = decoupled.update(nothing, decoupled.init(params), params)
        np.testing.assert_allclose(updates, -0.2 * decay * params, rtol=1e-14)
        coupled = optax.chain(optim.l2(decay), optim.adam(0.2, eps=0))
        updates, _ = coupled.update(nothing, coupled.init(params), params)
        np.testing.assert_allclose(updates, -0.2 * jnp.sign(params), rtol=1e-14)


@pytest.mark.slow
def test_adamw_differs_from_adam_with_l2_and_sgd_does_not():
    decoupled, _ = jax.jit(partial(run, optim.adamw(0.02, weight_decay=0.3)))(PARAMS)
    coupled = optax.chain(optim.l2(0.3), optim.adam(0.02))
    assert distance(jax.jit(partial(run, coupled))(PARAMS)[0], decoupled) > 1e-3
    decoupled = optax.chain(optax.add_decayed_weights(0.3), optax.scale_by_learning_rate(0.02))
    coupled = optax.chain(optim.l2(0.3), optim.sgd(0.02))
    expected = jax.jit(partial(run, decoupled))(PARAMS)
    assert distance(jax.jit(partial(run, coupled))(PARAMS), expected) <= ALLOWED


def test_masked_decay_leaves_infinite_parameters_alone():
    params = {"w": jnp.ones(2), "constant": jnp.array([-jnp.inf])}
    optimizer = optim.adamw(0.1, mask={"w": True, "constant": False})
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    assert float(updates["constant"][0]) == 0.0
    assert float(updates["w"][0]) < 0.0


# Transformations of JAX: a sweep compiles once, and a second call does not compile again.

SWEEPS = {
    "sgd": lambda h: optim.sgd(h),
    "momentum": lambda h: optim.momentum(h, momentum=0.5 + h),
    "nesterov": lambda h: optim.nesterov(h, momentum=0.5 + h),
    "adagrad": lambda h: optim.adagrad(h, initial_accumulator_value=h, eps=h),
    "rmsprop": lambda h: optim.rmsprop(h, decay=0.5 + h, eps=h, eps_placement="inside"),
    "adam": lambda h: optim.adam(h, b1=0.5 + h, b2=0.9 + h, eps=h, eps_placement="eps_hat"),
    "adamw": lambda h: optim.adamw(h, b1=0.5 + h, b2=0.9 + h, eps=h, weight_decay=h),
    "penalties": lambda h: optax.chain(
        optim.l1(h), optim.l2(h), optim.elastic_net(h, 2 * h), optim.sgd(0.1)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_sweep_compiles_once_and_equals_separate_runs(name):
    traced = []
    noise = jax.tree.map(lambda e: e[:50, ..., :1], NOISE["dense"])
    params = {"b": np.ones(1)}

    def train(h):
        traced.append(h)
        return run(SWEEPS[name](h), params, noise)

    sweep = jax.jit(jax.vmap(train))
    values = np.array([0.001, 0.01, 0.05])
    updates, after = sweep(values)
    sweep(2 * values)
    assert len(traced) == 1
    for i, h in enumerate(values):
        expected = jax.jit(lambda h=float(h): train(h))()
        assert distance(({"b": updates["b"][i]}, {"b": after["b"][i]}), expected) <= ALLOWED


OPTIMIZERS = {
    "sgd": optim.sgd(0.1),
    "momentum": optim.momentum(0.1),
    "nesterov": optim.nesterov(0.1),
    "adagrad": optim.adagrad(0.1),
    "rmsprop": optim.rmsprop(0.1),
    "adam": optim.adam(0.1),
    "adamw": optim.adamw(0.1, weight_decay=0.1),
    "adam, schedule": optim.adam(SCHEDULE),
    "adam, amsgrad": optim.adam(0.1, amsgrad=True),
    "rmsprop, centered": optim.rmsprop(0.1, centered=True),
    "momentum, damped": optim.momentum(0.1, dampening=0.5),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_second_step_does_not_recompile(name):
    traced = []

    @jax.jit
    def step(params, state):
        traced.append(params)
        updates, state = OPTIMIZERS[name].update(params, state, params)
        return optax.apply_updates(params, updates), state

    params = jnp.ones((), jnp.bfloat16)
    state = OPTIMIZERS[name].init(params)
    for _ in range(3):
        params, state = step(params, state)
    assert len(traced) == 1
    assert int(state.count) == 3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_dtypes_are_kept_and_the_state_is_at_least_float32(name):
    optimizer = OPTIMIZERS[name]
    dtypes = ["bfloat16", "float16", "float32", "float64"]
    params = {dtype: jnp.asarray([1.0, -2.0], dtype) for dtype in dtypes}
    state = optimizer.init(params)
    updates, new = jax.eval_shape(optimizer.update, params, state, params)
    assert {k: str(u.dtype) for k, u in updates.items()} == {k: k for k in dtypes}
    assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, state)
    assert (state.count.dtype, state.count.shape) == (jnp.int32, ())
    for tree in state[1:]:
        expected = {k: "float64" if k == "float64" else "float32" for k in dtypes}
        assert {k: str(x.dtype) for k, x in tree.items()} == expected


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw"])
def test_narrow_parameters_get_the_float32_update_rounded(name):
    optimizer = OPTIMIZERS[name]
    rng = np.random.default_rng(2)
    narrow = jnp.asarray(rng.normal(size=9), jnp.bfloat16)
    wide = narrow.astype(jnp.float32)
    states = optimizer.init(narrow), optimizer.init(wide)
    update = jax.jit(optimizer.update)
    for _ in range(5):
        g = jnp.asarray(rng.normal(size=9), jnp.bfloat16)
        rounded, *narrow_state = update(g, states[0], narrow)
        exact, *wide_state = update(g.astype(jnp.float32), states[1], wide)
        np.testing.assert_array_equal(rounded, exact.astype(jnp.bfloat16))
        jax.tree.map(np.testing.assert_array_equal, narrow_state, wide_state)
        states = *narrow_state, *wide_state


@pytest.mark.few
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_narrow_gradients_make_a_step_in_the_dtype_of_the_parameter(name):
    """A step of 1e-8, which is 0 in float16, survives in the dtype of the parameter."""
    optimizer = OPTIMIZERS[name]
    params = {"a": jnp.array([1.5, -2.0], jnp.float32), "b": jnp.array([[0.5]], jnp.float64)}
    grads = jax.tree.map(lambda p: jnp.asarray([1e-6, -2e-6][: p.size], jnp.float16), params)
    grads["b"] = grads["b"].reshape(1, 1)
    wide = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
    state = optimizer.init(params)
    found = optimizer.update(grads, state, params)
    expected = optimizer.update(wide, state, params)
    assert jax.tree.map(jax.typeof, found[0]) == jax.tree.map(jax.typeof, params)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert all(x.all() for x in jax.tree.leaves(found[0]))
    narrow, _ = OPTIMIZERS["sgd"].update(grads, OPTIMIZERS["sgd"].init(params))
    assert {x.dtype for x in jax.tree.leaves(narrow)} == {jnp.dtype("float16")}


def test_a_bfloat16_sum_of_squares_would_stall():
    optimizer = optim.adagrad(0.1)
    p = jnp.zeros((), jnp.bfloat16)
    step = lambda state, _: (optimizer.update(jnp.ones_like(p), state)[1], None)
    state, _ = jax.jit(lambda s: jax.lax.scan(step, s, length=1000))(optimizer.init(p))
    assert float(state.h) == 1000.0  # 256 + 1 is 256 in bfloat16


def test_hyperparameters_of_another_dtype_do_not_widen_the_state():
    params = jnp.ones(3, jnp.float32)
    wide = jnp.float64(0.1)
    optimizer = optim.adamw(wide, b1=wide, b2=wide, eps=wide, weight_decay=wide)
    updates, state = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    assert {str(x.dtype) for x in jax.tree.leaves((updates, state[1:]))} == {"float32"}


def test_works_under_shard_map():
    mesh = jax.make_mesh((2,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    params = {"split": np.arange(8.0).reshape(4, 2) - 3, "whole": np.ones(3)}
    noise = jax.tree.map(lambda p: np.zeros((20, *p.shape)), params)
    specs = {"split": PartitionSpec("i"), "whole": PartitionSpec()}
    stacked = {"split": PartitionSpec(None, "i"), "whole": PartitionSpec()}
    train = lambda params, noise: run(optim.adamw(0.1, weight_decay=0.1), params, noise)
    sharded = jax.shard_map(
        train, mesh=mesh, in_specs=(specs, stacked), out_specs=(stacked, stacked)
    )
    assert distance(jax.jit(sharded)(params, noise), jax.jit(train)(params, noise)) <= ALLOWED


# Gradients through optimizers.

WEIGHTS = jax.tree.map(lambda p: np.cos(np.arange(p.size)).reshape(p.shape), PARAMS)
FEW = jax.tree.map(lambda e: e[:3], NOISE)
HIDDEN = jax.tree.map(lambda p: (np.arange(p.size) > 0).astype(float).reshape(p.shape), PARAMS)


def loss_after_training(optimizer, params, noise):
    """Loss of the final parameters. The gradient of each leaf's first element is only `noise`."""

    def step(carry, e):
        params, state = carry
        grads = jax.tree.map(lambda p, e, m: 0.3 * (p - 0.5) * m + e, params, e, HIDDEN)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    params = jax.tree.map(jnp.asarray, params)
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), noise)
    losses = jax.tree.map(lambda p, w: jnp.sum(jnp.sin(p) * w), params, WEIGHTS)
    return sum(jax.tree.leaves(losses))


@pytest.mark.slow
@pytest.mark.few
@pytest.mark.parametrize("name", [n if n in ("adam", "rmsprop") else slow(n)[0] for n in CASES])
def test_gradients_through_an_optimizer_are_those_of_differences(name):
    """First and second derivatives match differences, also where gradients are 0.

    Some gradients are 0 always, others in the first step. Learning rate, options, parameters and
    gradients all move along a line with the parameter s. A gradient that is 0 moves only where ε is
    large enough for differences to resolve the slope 1/ε. The error of differences is about h where
    |g| has a kink, and 2⁻⁵²/h.
    """
    ours, _, _, settings = CASES[name]
    noise = jax.tree.map(lambda e, m: e * m, FEW, HIDDEN)
    noise["dense"]["b"][0] = 0
    h = 1e-6

    def loss(s, options, whole):
        moved = {k: x * (1 + s / 2) for k, x in options.items()}
        params = jax.tree.map(lambda p, w: p + s * w, PARAMS, WEIGHTS)
        e = jax.tree.map(
            lambda e, m: e + s * jnp.cos(7 * e + 1) * (m + whole * (1 - m)), noise, HIDDEN
        )
        return loss_after_training(ours(0.02 * (1 + s), **moved), params, e)

    slope = jax.grad(loss)
    all_three = lambda *x: (loss(*x), slope(*x), jax.grad(slope)(*x))
    run = jax.jit(jax.vmap(all_three, (0, None, None)))
    for options in settings:
        whole = float(options.get("eps", 0.0) >= 0.1)
        y, dy, ddy = run(jnp.array([-h, 0.0, h]), options, whole)
        np.testing.assert_allclose(dy[1], (y[2] - y[0]) / (2 * h), rtol=1e-4, atol=1e-6)
        assert np.isfinite(ddy).all()
        if not whole:  # |g| has no second derivative at 0
            np.testing.assert_allclose(ddy[1], (dy[2] - dy[0]) / (2 * h), rtol=1e-4, atol=1e-4)


SLOPES = {  # of the first step at a gradient of 0, with learning rate 1 and ε = 1e-8
    "sgd": (optim.sgd(1.0), -1.0),
    "momentum": (optim.momentum(1.0), -1.0),
    "nesterov": (optim.nesterov(1.0), -1.9),
    "adagrad": (optim.adagrad(1.0, eps=1e-8), -1e8),
    "adagrad, inside": (optim.adagrad(1.0, eps=1e-8, eps_placement="inside"), -1e4),
    "adagrad, started": (optim.adagrad(1.0, initial_accumulator_value=0.25, eps=0), -2.0),
    "rmsprop": (optim.rmsprop(1.0, eps=1e-8), -1e8),
    "rmsprop, inside": (optim.rmsprop(1.0, eps=1e-8, eps_placement="inside"), -1e4),
    "rmsprop, centered": (optim.rmsprop(1.0, eps=1e-8, centered=True), -1e8),
    "adam": (optim.adam(1.0), -1e8),
    "adam, amsgrad": (optim.adam(1.0, amsgrad=True), -1e8),
    "adam, inside": (optim.adam(1.0, eps_placement="inside"), -1e4),
    "adam, eps_hat": (optim.adam(1.0, eps_placement="eps_hat"), -1e8 * np.sqrt(0.001)),
    "adam, no bias correction": (optim.adam(1.0, bias_correction=False), -1e7),
    "adamw": (optim.adamw(1.0), -1e8),
    "adam, no eps": (optim.adam(1.0, eps=0), 0.0),
    "adam, no eps, inside": (optim.adam(1.0, eps=0, eps_placement="inside"), 0.0),
    "rmsprop, no eps, inside": (optim.rmsprop(1.0, eps=0, eps_placement="inside"), 0.0),
    "adagrad, no eps": (optim.adagrad(1.0, eps=0), 0.0),
}


@pytest.mark.few
@pytest.mark.parametrize("name", SLOPES)
def test_slope_of_the_first_step_at_a_gradient_of_zero(name):
    optimizer, slope = SLOPES[name]
    step = lambda g: optimizer.update(g, optimizer.init(0.0), 0.0)[0]
    found = jax.jit(jax.vmap(jax.grad(step)))(np.zeros(2))
    np.testing.assert_allclose(found, slope, rtol=1e-12)
    assert float(jax.jit(jax.grad(jax.grad(step)))(0.0)) == 0.0


@pytest.mark.few
@pytest.mark.parametrize("b", [0.0, 0.5])
def test_gradient_with_respect_to_the_decay_rates_of_adam(b):
    def final(optimizer, b):
        return loss_after_training(optimizer(0.02, b1=b, b2=b, eps=0.5), PARAMS, FEW)

    found = jax.jit(jax.grad(partial(final, optim.adam)))(b)
    with jax.numpy_dtype_promotion("standard"):
        expected = jax.jit(jax.grad(partial(final, optax.adam)))(b)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


# Optax's own tools.


def test_inject_hyperparams_makes_the_learning_rate_part_of_the_state():
    params = {"w": jnp.ones(3)}
    optimizer = optax.inject_hyperparams(optim.adamw)(
        learning_rate=SCHEDULE, eps_placement="inside"
    )
    reference = optim.adamw(SCHEDULE, eps_placement="inside")
    state, expected_state = optimizer.init(params), reference.init(params)
    for t in range(3):
        updates, state = jax.jit(optimizer.update)(params, state, params)
        expected, expected_state = jax.jit(reference.update)(params, expected_state, params)
        assert float(state.hyperparams["learning_rate"]) == pytest.approx(float(SCHEDULE(t)))
        np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-12)


def test_inject_hyperparams_gives_any_number_a_schedule():
    """As b1 and weight_decay do in some recipes; each step equals one with the plain numbers."""
    schedules = {"b1": optax.linear_schedule(0.5, 0.9, 3), "weight_decay": SCHEDULE}
    params = {"w": jnp.arange(1.0, 4.0)}
    optimizer = optax.inject_hyperparams(optim.adamw)(learning_rate=0.1, **schedules)
    state = optimizer.init(params)
    expected_state = optim.adamw(0.1).init(params)
    for t in range(3):
        updates, state = jax.jit(optimizer.update)(params, state, params)
        numbers = {k: float(v) for k, v in state.hyperparams.items()}
        assert all(numbers[k] == pytest.approx(float(s(t))) for k, s in schedules.items())
        plain = optim.adamw(**numbers)
        expected, expected_state = plain.update(params, expected_state, params)
        np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-12)


def test_partition_by_label_leaves_some_optimizers_without_parameters():
    parts = {"a": optim.adam(0.1), "b": optim.sgd(0.1), "none": optim.adamw(0.1)}
    optimizer = optax.partition(parts, {"conv": "a", "dense": "b"})
    updates, _ = jax.jit(optimizer.update)(PARAMS, optimizer.init(PARAMS), PARAMS)
    for label, key in (("a", "conv"), ("b", "dense")):
        expected, _ = parts[label].update(PARAMS[key], parts[label].init(PARAMS[key]))
        assert distance(updates[key], expected) <= ALLOWED


def test_map_params_finds_the_trees_of_the_state():
    optimizer = optim.adam(0.1)
    state = optax.tree.map_params(optimizer, lambda x: x + 1, optimizer.init(PARAMS))
    assert int(state.count) == 0
    assert all(bool((x == 1).all()) for x in jax.tree.leaves((state.M, state.G)))


def test_a_gradient_of_none_changes_nothing():
    params = {"w": jnp.ones(2), "n": jnp.arange(3)}
    optimizer = optax.chain(optim.l2(0.1), optim.adamw(0.1))
    state = optimizer.init(params)
    updates, new = jax.jit(optimizer.update)({"w": jnp.ones(2), "n": None}, state, params)
    assert updates["n"] is None
    assert jax.tree.structure(new) == jax.tree.structure(state)
    np.testing.assert_array_equal(new[1].M["n"], np.zeros(3))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_integer_parameters_stay(name):
    params = {"w": jnp.ones(2), "n": jnp.array([2**24 + 1, 3], jnp.int32)}
    loss = lambda params: jnp.sum(params["w"] ** 2)
    for optimizer in (OPTIMIZERS[name], optax.chain(optim.l2(0.1), OPTIMIZERS[name])):

        @jax.jit
        def step(params, state, optimizer=optimizer):
            grads = jax.grad(loss, allow_int=True)(params)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        new, _ = step(params, optimizer.init(params))
        np.testing.assert_array_equal(new["n"], params["n"])
        assert float(new["w"][0]) < 1.0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nan_in_a_gradient_stays_for_ever(name):
    optimizer = OPTIMIZERS[name]
    params = jnp.array([1.0, 2.0])
    updates, state = optimizer.update(jnp.array([jnp.nan, 0.5]), optimizer.init(params), params)
    assert np.isnan(updates).tolist() == [True, False]
    if len(state) > 1:
        updates, _ = optimizer.update(jnp.zeros(2), state, params)
        assert np.isnan(updates).tolist() == [True, False]


@pytest.mark.few
@pytest.mark.parametrize("switch", ["jax_debug_nans", "jax_debug_infs"])
def test_debugging_switches_find_nothing(switch):
    params, grads = jnp.ones(2), jnp.array([0.0, 0.5])
    optimizers = [
        *OPTIMIZERS.values(),
        optim.adam(0.1, b1=0, b2=0, eps=0),
        optim.adagrad(0.1, eps=0),
    ]
    jax.config.update(switch, True)
    try:
        with jax.numpy_rank_promotion("raise"):
            for optimizer in optimizers:
                chain = optax.chain(optim.elastic_net(0.1, 0.1), optimizer)
                step = lambda g, chain=chain: chain.update(g, chain.init(params), params)[0].sum()
                step(grads)
                jax.grad(step)(grads)
    finally:
        jax.config.update(switch, False)


@pytest.mark.parametrize(
    "optimizer",
    [
        optim.adagrad(0.1, eps=0),
        optim.adagrad(0.1, eps=0, eps_placement="inside"),
        optim.rmsprop(0.1, eps=0),
        optim.adam(0.1, eps=0),
        optim.adam(0.1, eps=0, eps_placement="inside"),
        optim.adam(0.1, eps=0, eps_placement="eps_hat"),
        optim.adamw(0.1, eps=0, weight_decay=0),
    ],
)
def test_without_eps_a_gradient_of_zero_makes_no_step(optimizer):
    params = jnp.array([1.0, 2.0])
    updates, _ = optimizer.update(jnp.array([0.0, 3.0]), optimizer.init(params), params)
    assert float(updates[0]) == 0.0
    assert float(updates[1]) < 0.0


# Errors.

update = lambda optimizer, grads, params=None: optimizer.update(
    grads, optimizer.init(PARAMS if params is None else params), params
)

ADAM = optim.adam(0.1)
ERRORS = {
    "averaged: decay must be a number in [0, 1), got 1": lambda: optim.averaged(ADAM, decay=1),
    "averaged: optimizer must be an optax.GradientTransformation, got function adam": (
        lambda: optim.averaged(optim.adam)
    ),
    "averaged: update needs params: call update(grads, state, params)": (
        lambda: optim.averaged(ADAM).update(PARAMS, optim.averaged(ADAM).init(PARAMS))
    ),
    "averaged: state must be that of averaged, AveragedState, got AdamState": (
        lambda: optim.averaged(ADAM).update(PARAMS, ADAM.init(PARAMS), PARAMS)
    ),
    "sgd: learning_rate must be a number, got None": lambda: optim.sgd(None),
    "adam: what the schedule returns must be a number, got float64[2]": lambda: update(
        optim.adam(lambda count: jnp.ones(2)), PARAMS
    ),
    "momentum: momentum must be a number in [0, 1), got 1": lambda: optim.momentum(0.1, momentum=1),
    "nesterov: momentum must be a number in [0, 1), got -0.1": lambda: optim.nesterov(
        0.1, momentum=-0.1
    ),
    "rmsprop: decay must be a number in [0, 1), got 1.5": lambda: optim.rmsprop(0.1, decay=1.5),
    "rmsprop: eps must be a finite number of at least 0, got -1": lambda: optim.rmsprop(
        0.1, eps=-1
    ),
    "rmsprop: eps_placement must be one of ('outside', 'inside'), got 'eps_hat'": (
        lambda: optim.rmsprop(0.1, eps_placement="eps_hat")
    ),
    "adagrad: eps must be a finite number of at least 0, got nan": lambda: optim.adagrad(
        0.1, eps=float("nan")
    ),
    "adagrad: initial_accumulator_value must be a finite number of at least 0, got -0.1": (
        lambda: optim.adagrad(0.1, initial_accumulator_value=-0.1)
    ),
    "adagrad: eps_placement must be one of ('outside', 'inside'), got 'in'": (
        lambda: optim.adagrad(0.1, eps_placement="in")
    ),
    "adam: b1 must be a number in [0, 1), got 1.0": lambda: optim.adam(0.1, b1=jnp.array(1.0)),
    "adam: b2 must be a number in [0, 1), got 2": lambda: optim.adam(0.1, b2=2),
    "adam: eps must be a finite number of at least 0, got -1e-08": lambda: optim.adam(
        0.1, eps=-1e-8
    ),
    "adam: eps_placement must be one of ('outside', 'inside', 'eps_hat'), got 'root'": (
        lambda: optim.adam(0.1, eps_placement="root")
    ),
    "adamw: b1 must be a number in [0, 1), got -1": lambda: optim.adamw(0.1, b1=-1),
    "adamw: b2 must be a number in [0, 1), got 1": lambda: optim.adamw(0.1, b2=1),
    "adamw: eps must be a finite number of at least 0, got -1": lambda: optim.adamw(0.1, eps=-1),
    "adamw: eps_placement must be one of ('outside', 'inside', 'eps_hat'), got ''": (
        lambda: optim.adamw(0.1, eps_placement="")
    ),
    "adamw: weight_decay must be a finite number of at least 0, got -0.1": lambda: optim.adamw(
        0.1, weight_decay=-0.1
    ),
    "adamw: update needs params: call update(grads, state, params)": lambda: update(
        optim.adamw(0.1), PARAMS
    ),
    "adamw: mask['w'] must be boolean, got 1.0": lambda: update(
        optim.adamw(0.1, mask={"w": 1.0}), {"w": np.ones(2)}, {"w": np.ones(2)}
    ),
    "adamw: mask must have the structure of params or a prefix of it, PyTreeDef({'w': *}), got "
    "PyTreeDef({'v': *})": lambda: update(
        optim.adamw(0.1, mask={"v": True}), {"w": np.ones(2)}, {"w": np.ones(2)}
    ),
    "adamw: mask['w'] must be boolean, got bool[2]": lambda: update(
        optim.adamw(0.1, mask=np.array([True, False])), {"w": np.ones(2)}, {"w": np.ones(2)}
    ),
    "l1: rate must be a finite number of at least 0, got -1": lambda: optim.l1(-1),
    "l2: rate must be a number, got '1'": lambda: optim.l2("1"),
    "l2: update needs params: call update(grads, state, params)": lambda: update(
        optim.l2(0.1), PARAMS
    ),
    "elastic_net: l2_rate must be a finite number of at least 0, got inf": lambda: (
        optim.elastic_net(0.1, float("inf"))
    ),
    "adam: grads['w'] must have the shape (1, 2) of params['w'], got (2,)": lambda: update(
        optim.adam(0.1), {"w": np.ones(2)}, {"w": np.ones((1, 2))}
    ),
    "l1: grads['w'] must have the shape (1, 2) of params['w'], got (2,)": lambda: update(
        optim.l1(0.1), {"w": np.ones(2)}, {"w": np.ones((1, 2))}
    ),
    "sgd: grads['w'] must have the shape (1, 2) of params['w'], got (2,)": lambda: update(
        optim.sgd(0.1), {"w": np.ones(2)}, {"w": np.ones((1, 2))}
    ),
    "sgd: grads must have the structure of params; grads['b'] is missing": lambda: update(
        optim.sgd(0.1), {"w": np.ones(2)}, {"w": np.ones(2), "b": np.ones(2)}
    ),
    "l2: grads must have the structure of params, which has no grads['b']": lambda: update(
        optim.l2(0.1), {"w": np.ones(2), "b": np.ones(2)}, {"w": np.ones(2)}
    ),
    "sgd: grads must have the structure of params, which has no grads['c']": lambda: update(
        optim.sgd(0.1), {"a": None, "b": 1.0, "c": 1.0}, {"a": {"w": 1.0}, "b": 1.0}
    ),
    "momentum: grads must have the structure of state.v; grads['b'] is missing": lambda: (
        optim.momentum(0.1).update({"w": 1.0}, optim.momentum(0.1).init({"w": 1.0, "b": 1.0}))
    ),
    "momentum: grads['w'] must have the shape () of state.v['w'], got (2,)": lambda: optim.momentum(
        0.1
    ).update({"w": np.ones(2)}, optim.momentum(0.1).init({"w": 1.0})),
    "adam: grads must be a tree like params, got None": lambda: update(
        optim.adam(0.1), None, PARAMS
    ),
    "l1: grads must be a tree like params, got None": lambda: update(optim.l1(0.1), None, PARAMS),
    "adam: grads must be a tree like state.M, got None": lambda: update(optim.adam(0.1), None),
    "sgd: grads['w'] must be an array, got str": lambda: update(optim.sgd(0.1), {"w": "1"}),
    "adam: params['w'] must be an array, got str": lambda: optim.adam(0.1).init({"w": "1"}),
    "rmsprop: state must be that of rmsprop, RMSPropState, got AdaGradState": lambda: optim.rmsprop(
        0.1
    ).update(PARAMS, optim.adagrad(0.1).init(PARAMS)),
    "adam: state must be that of adam, AdamState, got ScaleByAdamState": lambda: optim.adam(
        0.1
    ).update(PARAMS, optax.scale_by_adam().init(PARAMS)),
    "sgd: state must be that of sgd, SGDState, got None": lambda: optim.sgd(0.1).update(1.0, None),
    "sgd: params['w'] must be of a floating dtype, got int64": lambda: update(
        optim.sgd(0.1), {"w": np.ones(2)}, {"w": np.ones(2, np.int64)}
    ),
    "sgd: what the schedule returns must be a number, got None": lambda: update(
        optim.sgd(lambda count: None), 1.0, 1.0
    ),
    "sgd: what the schedule returns must be a finite number of at least 0, got -1.0": lambda: (
        update(optim.sgd(lambda count: -1.0), 1.0, 1.0)
    ),
    "sgd: learning_rate must take 1 argument: too many positional arguments": lambda: optim.sgd(
        lambda: 0.1
    ),
    "adamw: mask must take 1 argument: too many positional arguments": lambda: update(
        optim.adamw(0.1, mask=lambda: True), 1.0, 1.0
    ),
    "l2: state must be that of l2, EmptyState, got AdamState": lambda: optim.l2(0.1).update(
        1.0, optim.adam(0.1).init(1.0), 1.0
    ),
    "l1: params['w'] must be an array, got str": lambda: optim.l1(0.1).init({"w": "1"}),
    "adam: state.count must be an integer of shape (), got None": lambda: optim.adam(0.1).update(
        1.0, optim.adam(0.1).init(1.0)._replace(count=None)
    ),
    "sgd: state.count must be an integer of shape (), got int32[2]": lambda: optim.sgd(0.1).update(
        1.0, optim.SGDState(np.zeros(2, np.int32))
    ),
    "adam: grads must be an array, got ShapeDtypeStruct": lambda: update(
        optim.adam(0.1), jax.ShapeDtypeStruct((), "float32"), 1.0
    ),
    "sgd: params must be an array, got ShapeDtypeStruct": lambda: optim.sgd(0.1).update(
        1.0, optim.sgd(0.1).init(1.0), jax.ShapeDtypeStruct((), "float32")
    ),
    "adam.update() missing 1 required positional argument: 'state'": lambda: optim.adam(0.1).update(
        1.0
    ),
    "adam: bias_correction must be True or False, got 'no'": lambda: optim.adam(
        0.1, bias_correction="no"
    ),
    "adamw: mask['w'] must be boolean, got 'yes'": lambda: update(
        optim.adamw(0.1, mask={"w": "yes"}), {"w": np.ones(2)}, {"w": np.ones(2)}
    ),
    "sgd: grads[0] must be of a floating dtype, got int32": lambda: update(
        optim.sgd(0.1), [np.ones(2, np.int32)]
    ),
    "l2: grads[0] must be of a real floating dtype, got complex128": lambda: update(
        optim.l2(0.1), [np.ones(2, np.complex128)], [np.ones(2, np.complex128)]
    ),
    "sgd: grads[0] must be real, as params and state are, got complex128": lambda: update(
        optim.sgd(0.1), [np.ones(2, np.complex128)], [np.ones(2)]
    ),
    "momentum: grads must be real, as params and state are, got complex128": lambda: optim.momentum(
        0.1
    ).update(1j * np.ones(2), optim.momentum(0.1).init(np.ones(2))),
    "adam: amsgrad must be True or False, got 1": lambda: optim.adam(0.1, amsgrad=1),
    "rmsprop: centered must be True or False, got None": lambda: optim.rmsprop(0.1, centered=None),
    "adam: mu_dtype must be a floating dtype, got int32": lambda: optim.adam(0.1, mu_dtype="int32"),
    "nesterov: accumulator_dtype must be a real floating dtype, got complex64": lambda: (
        optim.nesterov(0.1, accumulator_dtype=jnp.complex64)
    ),
    "momentum: dampening must be a number in [0, 1], got 1.5": lambda: optim.momentum(
        0.1, dampening=1.5
    ),
    "rmsprop: state must be that of rmsprop, CenteredRMSPropState, got RMSPropState": lambda: (
        optim.rmsprop(0.1, centered=True).update(PARAMS, optim.rmsprop(0.1).init(PARAMS))
    ),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_are_one_line(message):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}$"):
        ERRORS[message]()


NUMBERS = {  # numeric arguments: how to pass them, and their ranges
    **{
        f"{name}: learning_rate": (getattr(optim, name), "a finite number of at least 0")
        for name in ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw")
    },
    "momentum: dampening": (lambda x: optim.momentum(0.1, dampening=x), "a number in [0, 1]"),
    "l1: rate": (optim.l1, "a finite number of at least 0"),
    "l2: rate": (optim.l2, "a finite number of at least 0"),
    "elastic_net: l1_rate": (lambda x: optim.elastic_net(x, 0.1), "a finite number of at least 0"),
    "elastic_net: l2_rate": (partial(optim.elastic_net, 0.1), "a finite number of at least 0"),
    **{
        f"{name}: {option}": (
            lambda x, name=name, option=option: getattr(optim, name)(0.1, **{option: x}),
            "a number in [0, 1)" if range_ else "a finite number of at least 0",
        )
        for name, option, range_ in [
            ("momentum", "momentum", True),
            ("nesterov", "momentum", True),
            ("adagrad", "initial_accumulator_value", False),
            ("adagrad", "eps", False),
            ("rmsprop", "decay", True),
            ("rmsprop", "eps", False),
            *[(n, b, True) for n in ("adam", "adamw") for b in ("b1", "b2")],
            ("adam", "eps", False),
            ("adamw", "eps", False),
            ("adamw", "weight_decay", False),
        ]
    },
}


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_is_checked_when_the_optimizer_is_built(name):
    make, range_ = NUMBERS[name]
    for value in (np.nan, np.inf, -0.1, np.float32(-0.5), jnp.array(-1)):
        with pytest.raises(ValueError, match=f"^{name} must be {re.escape(range_)}, got [-ni]"):
            make(value)
    for value, got in (
        ("0.1", "'0.1'"),
        (True, "True"),
        ([0.1], "[0.1]"),
        (np.ones(3), "float64[3]"),
    ):
        with pytest.raises(TypeError, match=f"^{name} must be a number, got {re.escape(got)}$"):
            make(value)
    for value in (0, 0.5, np.float32(0.5), jnp.array(0.5)):
        make(value)
    jax.eval_shape(lambda x: make(x) and x, -1.0)  # traced: the value is unknown
    with pytest.raises(TypeError, match=rf"^{name} must be a number, got a traced float64\[2\]"):
        jax.eval_shape(lambda x: make(x) and x, np.ones(2))
