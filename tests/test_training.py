"""Tests of training: a step against NumPy, an epoch against its steps, evaluation, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from marks import slow

from funcnet import autodiff, ops, optim, training
from funcnet.layers import Dense, Dropout, Layer, chain, mlp
from funcnet.training import TrainState, accuracy, evaluate, make_epoch, make_step

N, CLASSES, BATCH = 24, 3, 6
NET = mlp(8, CLASSES, batch_norm=True, dropout=0.25)
LOSS = ops.softmax_cross_entropy
ADAM, MOMENTUM = optim.adam(0.01), optim.momentum(0.05)
STEP = make_step(NET, LOSS, ADAM, metrics={"accuracy": accuracy})
EPOCH = make_epoch(STEP, batch_size=BATCH)
RTOL = 1e-12  # float64 rounding (2e-16 each) over a few steps


@functools.cache
def examples(n=N, seed=0):
    """Learnable examples: the class is the index of the largest of the first 3 numbers."""
    x = jax.random.normal(jax.random.key(seed), (n, 5), jnp.float64)
    return x, x[:, :CLASSES].argmax(-1)


def create(net=NET, optimizer=ADAM, seed=0):
    return TrainState.create(net, optimizer, jax.random.key(seed), examples()[0])


def close(a, b, rtol=RTOL):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(numbers(p), numbers(q), rtol, rtol)


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(numbers(p), numbers(q))


def normal(*shape, seed=1):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float64)


def numbers(x):
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)


def ids_of(train_state, x, ids):
    """A step that trains nothing and reports the examples it was given."""
    return train_state._replace(step=train_state.step + 1), {"x": x, "ids": ids}


# A step ---------------------------------------------------------------------------------------


def test_a_step_of_gradient_descent_in_numpy():
    """W ← W − η Xᵀ(Y − T)/B, b ← b − η Σ(Y − T)/B, with Y = softmax(XW + b): source A 3.3.8."""
    x, labels = examples()
    net, optimizer = chain(Dense(CLASSES)), optim.sgd(0.5)
    before = create(net, optimizer)
    after, measured = jax.jit(make_step(net, LOSS, optimizer))(before, x, labels)

    (p,), x = before.params, np.asarray(x)
    e = np.exp(x @ p["w"] + p["b"])
    y, t = e / e.sum(1, keepdims=True), np.eye(CLASSES)[labels]
    w = p["w"] - 0.5 * x.T @ (y - t) / N
    b = p["b"] - 0.5 * (y - t).mean(0)
    close(after.params, ({"w": w, "b": b},))
    close(measured, {"loss": -np.log((y * t).sum(1)).mean()})
    assert int(after.step) == 1
    equal(after.key, before.key)


def test_a_step_updates_all_of_the_state():
    """The running mean of BatchNorm is updated to 0.9·0 + 0.1·mean."""
    x, labels = examples()
    before = create()
    after, _ = jax.jit(STEP)(before, x, labels)
    h = np.asarray(x) @ before.params[0]["w"] + before.params[0]["b"]
    close(after.state[1]["mean"], 0.1 * h.mean(0))
    assert int(after.opt_state.count) == 1


def test_metrics_are_means_over_the_batch():
    x, labels = examples()
    net = chain(ops.identity)  # returns x
    two = lambda y, labels: jnp.full(labels.shape, 2.0)
    metrics = {"accuracy": accuracy, "two": two}
    step = make_step(net, lambda y, t: LOSS(y[:, :CLASSES], t), optim.sgd(0.1), metrics=metrics)
    _, measured = step(create(net, optim.sgd(0.1)), x, labels)
    np.testing.assert_allclose(measured["accuracy"], np.mean(x.argmax(1) == labels), 1e-7)
    assert float(measured["two"]) == 2
    assert set(measured) == {"loss", "accuracy", "two"}


def test_accuracy_of_indices_is_that_of_one_hot():
    y = jnp.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    labels = jnp.array([1, 1, 1, 0])
    assert accuracy(y, labels).tolist() == [1, 0, 1, 1]
    assert accuracy(y, jax.nn.one_hot(labels, 2)).tolist() == [1, 0, 1, 1]


@pytest.mark.few
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16])
def test_accuracy_does_not_hide_nan(dtype):
    """argmax returns the position of a nan, which would count as correct for that label."""
    y = jnp.array([[jnp.nan, 0.1], [0.8, jnp.nan], [0.3, 0.7], [jnp.inf, -jnp.inf]], dtype)
    np.testing.assert_array_equal(accuracy(y, jnp.array([0, 1, 1, 0])), [np.nan, np.nan, 1, 1])
    np.testing.assert_array_equal(accuracy(y, jnp.eye(2)[:, [0, 0, 1, 1]].T), [np.nan] * 2 + [1, 0])


def test_accuracy_of_labels_without_a_class():
    """Labels of nan and of zeros, as in padding, name no class."""
    labels = jnp.array([[jnp.nan, 0, 0], [0, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(accuracy(jnp.eye(3), labels), [np.nan, np.nan, 1])


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.int64])
def test_accuracy_of_many_classes(dtype):
    """uint8 labels cannot hold the number of classes; labels out of range give nan."""
    y = jnp.zeros((3, 300)).at[jnp.arange(3), jnp.array([44, 299, 7])].set(1.0)
    assert accuracy(y, jnp.array([44, 43, 7], dtype)).tolist() == [1, 0, 1]
    signed = jnp.array([-1, 300, -100], jnp.int32)
    assert np.isnan(accuracy(y, signed)).all()


def test_accuracy_under_the_debugging_switches():
    y, labels = jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([1, 1])
    with jax.debug_nans(True), jax.debug_infs(True), jax.numpy_rank_promotion("raise"):
        assert accuracy(y, labels).tolist() == [1, 0]


@pytest.mark.few
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_record_is_in_float32(dtype):
    """Loss and metrics are float32; parameters stay in their dtype.

    The mean of 1 and 1 + 2⁻⁷ is not a bfloat16 number, and the sum of 300 losses of 300 overflows
    in float16.
    """
    net, sgd = chain(Dense(1, bias=False)), optim.sgd(0.25)
    loss = lambda y, t: (y * t)[:, 0]
    penalty = lambda params: (params[0]["w"] ** 2).sum()
    step = make_step(net, loss, sgd, metrics={"t": lambda y, t: t[:, 0]}, penalty=penalty)
    x, t = jnp.ones((2, 1), dtype), jnp.array([[1], [1 + 2**-7]], dtype)
    train_state = create(net, sgd)._replace(params=({"w": jnp.ones((1, 1), dtype)},))
    train_state, measured = step(train_state, x, t)
    assert measured["t"] == 1 + 2**-8
    assert measured["loss"] == 2 + 2**-8
    assert measured["loss"].dtype == jnp.float32
    assert train_state.params[0]["w"].dtype == dtype
    x, t = jnp.full((300, 1), 300, dtype), jnp.ones((300, 1), dtype)
    _, measured = step(train_state._replace(params=({"w": jnp.ones((1, 1), dtype)},)), x, t)
    assert measured["loss"] == np.float32(dtype(300)) + 1


@pytest.mark.slow
def test_a_penalty_is_a_term_of_the_loss():
    """With SGD, adding λ/2 Σp² to the loss is the same as adding λp to the gradient."""
    x, labels = examples()
    rate = 0.1
    penalty = lambda params: optim.l2_penalty(params, rate)
    net, sgd = mlp(8, CLASSES), optim.sgd(0.5)
    decayed = optax.chain(optim.l2(rate), sgd)
    before = create(net, sgd)
    in_loss, measured = jax.jit(make_step(net, LOSS, sgd, penalty=penalty))(before, x, labels)
    in_gradient, plain = jax.jit(make_step(net, LOSS, decayed))(
        before._replace(opt_state=decayed.init(before.params)), x, labels
    )
    close(in_loss.params, in_gradient.params)
    term = rate / 2 * sum((numbers(p) ** 2).sum() for p in jax.tree.leaves(before.params))
    np.testing.assert_allclose(measured["loss"] - plain["loss"], term, RTOL)


def test_steps_draw_anew_and_reproducibly():
    """The key of a step depends only on the key of the run and the number of the step."""
    see = Layer(  # stores the key that it was given as state
        lambda key, x: ((), jax.random.key_data(key)),
        lambda p, s, x, *, key=None, train=False: (x, jax.random.key_data(key) if train else s),
        "see",
    )
    net = chain(Dense(CLASSES), see)
    x, labels = examples()
    step = jax.jit(make_step(net, LOSS, optim.sgd(0.1)))
    train_state = create(net, optim.sgd(0.1))
    keys = [tuple(train_state.state[1].tolist())]
    for _ in range(50):
        train_state, _ = step(train_state, x, labels)
        keys.append(tuple(train_state.state[1].tolist()))
    assert len(set(keys)) == 51
    other, _ = step(create(net, optim.sgd(0.1))._replace(step=jnp.int32(7)), x, labels)
    assert tuple(other.state[1].tolist()) == keys[8]
    other, _ = step(create(net, optim.sgd(0.1), seed=1), x, labels)
    assert tuple(other.state[1].tolist()) not in keys


def scaled_twice(updates, state, params, *, value, grad, value_fn, **_):
    return jax.tree.map(lambda g: -0.1 * value * value_fn(params) * g, grad), state


@pytest.mark.parametrize("parts", [3, *slow(2, N)])
def test_accumulated_gradients_are_those_of_the_minibatch(parts):
    x, labels = examples()
    net = chain(Dense(8), ops.gelu, Dense(CLASSES))
    optimizer = optax.GradientTransformationExtraArgs(lambda _: (), scaled_twice)
    options = {"metrics": {"accuracy": accuracy}, "penalty": lambda p: optim.l2_penalty(p, 0.1)}
    before = create(net, optimizer)
    expected = jax.jit(make_step(net, LOSS, optimizer, **options))(before, x, labels)
    step = jax.jit(make_step(net, LOSS, optimizer, parts=parts, **options))
    close(step(before, x, labels), expected)


def test_parts_follow_one_another():
    """Part i takes every third example and key i, and starts from the state after part i − 1."""
    x, labels = examples()
    before, params = create(optimizer=optim.sgd(0.1)), create().params
    state, step_key = before.state, training._step_key(before.key, before.step)
    for i in range(3):
        key = jax.random.fold_in(step_key, i)
        _, state = NET.apply(params, state, x[i::3], key=key, train=True)
    step = jax.jit(make_step(NET, LOSS, optim.sgd(0.1), parts=3))
    close(step(before, x, labels)[0].state, state)


def test_gradients_are_accumulated_in_float32():
    """In bfloat16, a sum of ones ends at 256."""
    net = Layer(
        lambda key, x: (jnp.zeros((), jnp.bfloat16), ()), lambda p, s, x, **_: (p * x, s), "scale"
    )
    step = jax.jit(make_step(net, lambda y, _: y, optim.sgd(1.0), parts=512))
    x = jnp.ones(512, jnp.bfloat16)
    before = TrainState.create(net, optim.sgd(1.0), jax.random.key(0), x)
    assert step(before, x, x)[0].params == -1


@pytest.mark.slow
def test_parts_take_the_memory_of_one():
    net = chain(Dense(512), ops.gelu, Dense(512), ops.gelu, Dense(CLASSES))
    x, labels = normal(8192, 5), jnp.zeros(8192, int)
    before = TrainState.create(net, ADAM, jax.random.key(0), x)

    def temporary(parts):
        step = jax.jit(make_step(net, LOSS, ADAM, parts=parts))
        return step.lower(before, x, labels).compile().memory_analysis().temp_size_in_bytes

    assert temporary(8) < temporary(1) / 4


OPTIMIZERS = {
    "optim.nesterov": optim.nesterov(0.03),
    "optim.adamw": optim.adamw(0.03),
    "optax.sgd": optax.sgd(0.3),
    "optax.adamw": optax.adamw(0.03),
    "optax.chain": optax.chain(
        optax.clip_by_global_norm(1.0), optim.adam(optax.constant_schedule(0.03))
    ),
}


@pytest.mark.few
@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(o, id=n, marks=[] if "adamw" in n else [pytest.mark.slow])
        for n, o in OPTIMIZERS.items()
    ],
)
def test_any_optimizer_learns(optimizer):
    """60 steps of any optimizer reduce the loss of a small network to less than a third."""
    x, labels = examples()
    net = mlp(8, CLASSES)
    epoch = make_epoch(make_step(net, LOSS, optimizer), batch_size=N)
    with jax.numpy_dtype_promotion("standard"):  # for Optax's Adam
        train_state, losses = create(net, optimizer), []
        for _ in range(60):
            train_state, measured = epoch(train_state, x, labels)
            losses.append(float(measured["loss"][0]))
    assert losses[-1] < losses[0] / 3


OF_OPTAX = {
    "keeps params": optax.contrib.dowg(),
    "keeps params twice": optax.contrib.cocob(),
    "takes value": optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()),
    "takes value, grad and value_fn": optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5)
    ),
    "takes them": optax.GradientTransformationExtraArgs(lambda _: (), scaled_twice),
    "averaged": optim.averaged(optim.adam(0.01)),
    "takes no more": optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.01)),
}
BY_DEFAULT = ("keeps params", "takes them")


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(o, id=n, marks=[] if n in BY_DEFAULT else pytest.mark.slow)
        for n, o in OF_OPTAX.items()
    ],
)
@pytest.mark.parametrize("jit", [lambda f: f, *slow(jax.jit)], ids=["eager", "jit"])
def test_an_optimizer_is_given_what_it_takes_and_its_buffers_are_donated(optimizer, jit):
    """Three steps of an epoch, against a loop as in Optax's documentation."""
    x, labels = examples()
    net = mlp(8, CLASSES)
    step = make_step(net, LOSS, optimizer)
    epoch = make_epoch(lambda train_state, *_: step(train_state, x, labels), batch_size=N // 3)

    def value_fn(params):
        return LOSS(net.apply(params, train_state.state, x)[0], labels).mean()

    @jax.jit
    def expected(params, opt_state):
        value, grad = jax.value_and_grad(value_fn)(params)
        more = {"value": value, "grad": grad, "value_fn": value_fn}
        if optimizer is OF_OPTAX["takes no more"]:
            more = {}
        update = optax.with_extra_args_support(optimizer).update
        updates, opt_state = update(grad, opt_state, params, **more)
        return optax.apply_updates(params, updates), opt_state

    with jax.numpy_dtype_promotion("standard"):
        train_state = jit(lambda: create(net, optimizer))()
        params = jax.tree.map(jnp.copy, train_state.params)
        opt_state = optimizer.init(params)
        for _ in range(3):
            params, opt_state = expected(params, opt_state)
        close(epoch(train_state, x, labels)[0].params, params)


@pytest.mark.slow
def test_hand_rules_and_autodiff_train_alike():
    """Both agree over 10 epochs in float64 with momentum.

    The gradient of a bias before BatchNorm is exactly 0; Adam would amplify its rounding errors to
    steps of full size.
    """
    x, labels = examples()
    epoch = make_epoch(make_step(NET, LOSS, MOMENTUM), batch_size=BATCH)
    hand, auto = create(optimizer=MOMENTUM), create(optimizer=MOMENTUM)
    for _ in range(10):
        hand, measured = epoch(hand, x, labels)
        auto, expected = autodiff(epoch)(auto, x, labels)
        close(measured, expected, 1e-10)
    close(hand, auto, 1e-10)


@pytest.mark.slow
def test_data_parallel_step_is_the_same():
    """With examples sharded over four devices, statistics are still those of the whole batch."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x, labels = examples()
    step = jax.jit(make_step(NET, LOSS, MOMENTUM, metrics={"accuracy": accuracy}))
    alone = step(create(optimizer=MOMENTUM), x, labels)
    split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    train_state = jax.device_put(create(optimizer=MOMENTUM), whole)
    together = step(train_state, *jax.device_put((x, labels), split))
    close(together, alone)
    assert len(together[0].params[0]["w"].sharding.device_set) == 4


# An epoch -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [5, *slow(1, 6, 24)])
def test_an_epoch_visits_each_example_at_most_once_and_leaves_out_a_remainder(batch_size):
    x, _ = examples()
    epoch = make_epoch(ids_of, batch_size=batch_size)
    train_state, seen = epoch(create(), x, jnp.arange(N))
    steps = N // batch_size
    assert seen["ids"].shape == (steps, batch_size)
    assert len(set(seen["ids"].ravel().tolist())) == steps * batch_size
    assert int(train_state.step) == steps
    equal(seen["x"], x[seen["ids"]])  # inputs and labels stay together


def test_every_order_is_as_likely():
    """The position of each example is uniform: mean (n − 1)/2, within 5 standard errors.

    The variance of a uniform position is (n² − 1)/12.
    """
    n, epochs = 5, 2000
    ids = jnp.arange(n)
    epoch = make_epoch(ids_of, batch_size=n)
    train_state, orders = create(), []
    for _ in range(epochs):
        train_state, seen = epoch(train_state, ids, ids)
        orders.append(seen["ids"][0])
    orders = np.array(orders)
    places = np.argsort(orders, 1)
    standard_error = np.sqrt((n**2 - 1) / 12 / epochs)
    assert (abs(places.mean(0) - (n - 1) / 2) < 5 * standard_error).all()
    assert len(np.unique(orders, axis=0)) == 120  # all n!; one is missed with odds e⁻¹²


def test_the_key_decides_the_order():
    epoch = make_epoch(ids_of, batch_size=N)
    order = lambda seed: epoch(create(seed=seed), jnp.arange(N), jnp.arange(N))[1]["ids"]
    equal(order(1), order(1))
    assert (order(1) != order(2)).any()


def test_initial_weights_have_a_key_of_their_own():
    see = Layer(lambda key, x: ((), jax.random.key_data(key)), lambda p, s, x, **_: (x, s), "see")
    train_state = create(see)
    assert (train_state.state != jax.random.key_data(train_state.key)).any()


def test_no_step_shares_its_key_with_a_shuffle():
    """Otherwise Dropout would be correlated with the order of the examples."""
    keys = lambda f: jax.vmap(lambda i: jax.random.key_data(f(jax.random.key(0), i)))(
        jnp.arange(99)
    )
    both = np.concatenate([keys(training._step_key), keys(training._shuffle_key)])
    assert len(np.unique(both, axis=0)) == 2 * 99


def test_an_epoch_is_a_loop_of_steps():
    """This also holds for examples that are pytrees, here with an id for each example."""
    x, labels = examples()

    def numbered(train_state, x, labels):
        train_state, measured = STEP(train_state, x["x"], labels)
        return train_state, {**measured, "id": x["id"]}

    epoch = make_epoch(numbered, batch_size=5)
    after, measured = epoch(create(), {"x": x, "id": jnp.arange(N)}, labels)
    train_state, single = create(), jax.jit(STEP)
    for i, batch in enumerate(measured.pop("id")):
        train_state, m = single(train_state, x[batch], labels[batch])
        close(m, jax.tree.map(lambda a, i=i: a[i], measured))
    close(train_state, after)


def run(seed, epochs=2):
    x, labels = examples()
    train_state = create(seed=seed)
    for _ in range(epochs):
        train_state, _ = EPOCH(train_state, x, labels)
    return train_state


def test_a_seed_decides_everything():
    one, again, other = run(1), run(1), run(2)
    equal(one, again)
    differ = jax.tree.map(lambda a, b: (a != b).any(), one.params, other.params)
    assert all(jax.tree.leaves(differ))


@pytest.mark.slow
def test_an_epoch_compiles_once_and_takes_over_the_buffers():
    traces = []

    def step(train_state, x, labels):
        traces.append(1)
        return STEP(train_state, x, labels)

    x, labels = examples()
    epoch = make_epoch(step, batch_size=BATCH)
    start = create()
    train_state, _ = epoch(start, x, labels)
    assert all(a.is_deleted() for a in jax.tree.leaves((start.params, start.opt_state)))
    traces.clear()
    for _ in range(3):
        train_state, _ = epoch(train_state, x, labels)
    assert not traces
    assert not x.is_deleted()


def equations(jaxpr):
    """Yields all equations at any depth."""
    for e in jaxpr.eqns:
        yield e
        for value in jax.tree.leaves(list(e.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def test_an_epoch_is_one_scan_without_the_host():
    x, labels = examples()
    found = list(equations(jax.make_jaxpr(EPOCH)(create(), x, labels).jaxpr))
    lengths = [e.params["length"] for e in found if e.primitive.name == "scan"]
    assert lengths.count(N // BATCH) == 1
    assert not [e for e in found if "callback" in e.primitive.name or "outfeed" in e.primitive.name]
    train_state, _ = EPOCH(create(), x, labels)
    with jax.transfer_guard("disallow"):
        EPOCH(train_state, x, labels)


# Evaluation -----------------------------------------------------------------------------------


@functools.cache
def trained():
    """A trained network with different behaviour in inference and in training."""
    train_state = run(0, epochs=3)
    return train_state.params, train_state.state


@pytest.mark.slow
@pytest.mark.parametrize(("n", "batch_size"), [(7, 1), *slow((1, 10), (7, 7), (24, 6), (24, 10))])
def test_evaluation_is_the_mean_over_all_examples(n, batch_size):
    x, labels = examples(n, seed=3)
    params, state = trained()
    means = evaluate(
        NET, {"loss": LOSS, "accuracy": accuracy}, params, state, x, labels, batch_size=batch_size
    )
    y, _ = NET.apply(params, state, x)
    close(means["loss"], LOSS(y, labels).mean())
    np.testing.assert_allclose(means["accuracy"], np.mean(y.argmax(1) == labels), 1e-7)
    assert means["loss"].shape == ()


def test_evaluation_needs_no_key_and_drops_nothing():
    x, labels = examples()
    net = chain(Dropout(0.5))
    means = evaluate(net, {"x": lambda y, _: y[:, 0]}, ((),), ((),), x, labels, batch_size=5)
    np.testing.assert_allclose(means["x"], np.mean(x[:, 0]), RTOL)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [5, *slow(1, 7, 100)])
def test_evaluation_of_places_and_of_means(batch_size):
    """A metric has one value per example, one per position, or one per batch (a mean)."""
    y, labels = normal(7, 4, CLASSES), jnp.asarray(np.arange(28).reshape(7, 4) % CLASSES)
    metrics = {
        "places": accuracy,
        "mean": lambda y, labels: accuracy(y, labels).mean(),
        "one": lambda y, labels: jnp.ones((), jnp.bfloat16),
        "entropy": LOSS,
        "number": lambda y, labels: 3.0,
    }
    net = chain(ops.identity)
    means = evaluate(net, metrics, ((),), ((),), y, labels, batch_size=batch_size)
    expected = np.mean(y.argmax(-1) == labels)
    np.testing.assert_allclose(means["places"], expected, 1e-6)
    np.testing.assert_allclose(means["mean"], expected, 1e-6)
    np.testing.assert_allclose(means["entropy"], LOSS(y, labels).mean(), RTOL)
    assert (float(means["one"]), float(means["number"])) == (1, 3)
    step = make_step(net, LOSS, optim.sgd(0.1), metrics=metrics)
    train_state = TrainState.create(net, optim.sgd(0.1), jax.random.key(0), y)
    _, measured = step(train_state, y, labels)  # a step accepts the same metrics
    for name, value in means.items():
        np.testing.assert_allclose(measured[name], value, 1e-6)


@pytest.mark.slow
def test_evaluation_in_bfloat16_is_that_of_its_outputs():
    x, labels = examples(300, seed=3)
    net = mlp(8, CLASSES, batch_norm=True)
    params, state = net.init(jax.random.key(0), x.astype(jnp.bfloat16))
    x = x.astype(jnp.bfloat16)
    means = evaluate(net, {"loss": LOSS}, params, state, x, labels, batch_size=7)
    losses = LOSS(net.apply(params, state, x)[0], labels)
    np.testing.assert_allclose(means["loss"], np.mean(np.float32(losses)), 2**-9)
    assert means["loss"].dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.bool_, jnp.int32])
def test_evaluation_adds_up_in_float32_at_least(dtype):
    """The sum of 4097 ones is exact; bfloat16 cannot count beyond 256, float16 beyond 2048."""
    n = 4097
    one = lambda y, labels: jnp.ones(labels.shape, dtype)
    net = chain(ops.identity)
    means = evaluate(net, {"one": one}, ((),), ((),), jnp.ones((n, 1)), jnp.zeros(n, jnp.int32))
    assert float(means["one"]) == 1
    assert jnp.finfo(means["one"].dtype).bits >= 32


# Errors ---------------------------------------------------------------------------------------


def epoch_of(n, labels, batch_size):
    return make_epoch(STEP, batch_size=batch_size)(create(), examples()[0][:n], labels)


def evaluation(n, labels, batch_size=10):
    params, state = NET.init(jax.random.key(0), examples()[0])
    x = examples()[0][:n]
    return evaluate(NET, {"loss": LOSS}, params, state, x, labels, batch_size=batch_size)


LABELS = np.zeros(N, int)
KEY = jax.random.key(0)
PLAIN = mlp(8, CLASSES)


def one_step(*args, net=PLAIN, loss=LOSS, optimizer=MOMENTUM, train_state=None, **options):
    """Does a step on the examples, or on `args` instead."""
    step = make_step(net, loss, optimizer, **options)
    x, labels = examples()
    train_state = create(PLAIN, optimizer) if train_state is None else train_state
    return jax.jit(step)(train_state, *(args or (x, labels)))


def measure(metric, name="m", **options):
    params, state = PLAIN.init(KEY, examples()[0])
    return evaluate(PLAIN, {name: metric}, params, state, *examples(), **options)


ERRORS = [
    (lambda: make_epoch(ids_of, batch_size=0), "make_epoch: batch_size must .* 1, got 0"),
    (lambda: make_epoch(ids_of, batch_size=2.0), "make_epoch: batch_size must .*, got 2.0"),
    (lambda: make_epoch(ids_of, batch_size=True), "make_epoch: batch_size must .*, got True"),
    (lambda: make_epoch(PLAIN, batch_size=2), r"make_epoch: step must be a function, got chain\("),
    (
        lambda: make_epoch(ops.mean_squared_error, batch_size=2),
        "make_epoch: step must take 3 arguments: too many positional arguments",
    ),
    (
        lambda: make_epoch(ids_of, batch_size=2)({"w": 1.0}, *examples()),
        "epoch: train_state.key must be one key of jax.random.key, got None",
    ),
    (lambda: epoch_of(N, LABELS.tolist(), 2), "epoch: labels must be an array, got list"),
    (lambda: epoch_of(N, np.int32(3), 2), "epoch: labels must have an axis of examples, got a sc"),
    (lambda: epoch_of(5, LABELS[:5], 6), "epoch: batch_size must be at most 5 examples, got 6"),
    (lambda: epoch_of(N, LABELS[:5], 2), r"epoch: x and labels .* got \[5, 24\]"),
    (lambda: evaluation(N, LABELS, 0), "evaluate: batch_size must be .* at least 1, got 0"),
    (lambda: evaluation(N, LABELS, 2.5), "evaluate: batch_size must be .* at least 1, got 2.5"),
    (lambda: evaluation(N, [0] * N), "evaluate: labels must be an array, got list"),
    (lambda: evaluate(Dense, {}, (), (), *examples()), "evaluate: model must be a layer, got func"),
    (
        lambda: evaluate(PLAIN, accuracy, (), (), *examples()),
        "evaluate: metrics must be a dict of functions, got function accuracy",
    ),
    (lambda: measure(3), r"evaluate: metrics\['m'\] must be a function, got 3"),
    (lambda: measure(ops.relu), r"evaluate: metrics\['m'\] must take 2 arguments: too many pos"),
    (
        lambda: measure(lambda y, t: (y, t)),
        r"evaluate: metrics\['m'\] must return an .*, got tuple",
    ),
    (
        lambda: measure(lambda y, t: y[:2]),
        r"metrics\['m'\] must return an array of shape \(24, ...\) .* got .*float64\[2,3\]",
    ),
    (
        lambda: measure(lambda y, t: accuracy(y, t[:, None])),
        r"accuracy: labels must have shape \(24, 3\), or \(24,\) .* got \(24, 1\) and int64",
    ),
    (
        lambda: accuracy(LABELS, normal(N, 3)),
        r"accuracy: y must be of a real floating dtype, got int64\[24\]",
    ),
    (  # the predicted classes instead of the outputs
        lambda: accuracy(normal(N, 3).argmax(-1), LABELS),
        r"accuracy: y must be of a real floating dtype, got int64\[24\]",
    ),
    (
        lambda: accuracy(normal(N), LABELS),
        r"accuracy: y must have shape \(n, C\) for n labels, got \(24,\) and \(24,\)",
    ),
    (lambda: accuracy(normal(N, 3), LABELS[:1]), r"accuracy: labels must .*, got \(1,\) and int64"),
    (lambda: accuracy(normal(N, 3), np.ones(N)), r"accuracy: labels must .* and float64"),
    (
        lambda: accuracy(normal(N, 1), normal(N, 1)),
        r"accuracy: y must have shape \(..., C\) with C",
    ),
    (lambda: accuracy([[1.0, 2.0]], LABELS[:1]), "accuracy: y must be an array, got list"),
    (
        lambda: accuracy(normal(2, 3).astype(complex), LABELS[:2]),
        "accuracy: y must be of a real floating dtype, got complex128",
    ),
    (
        lambda: make_step(PLAIN, LOSS, ADAM, metrics={"loss": accuracy}),
        'make_step: metrics must not be called "loss", as the loss is reported so',
    ),
    (
        lambda: make_step(PLAIN, LOSS, ADAM, metrics=[accuracy]),
        "make_step: metrics must be a dict of functions, got list",
    ),
    (
        lambda: make_step(ops.relu, LOSS, ADAM),
        "make_step: model must be a layer, got function relu",
    ),
    (
        lambda: make_step(PLAIN, LOSS, optim.adam),
        "make_step: optimizer must be an optax.GradientTransformation, got function adam",
    ),
    (
        lambda: make_step(PLAIN, ADAM, LOSS),
        "make_step: loss must be a function, got GradientTransformation",
    ),
    (
        lambda: make_step(PLAIN, LOSS, ADAM, metrics={1: accuracy}),
        "make_step: metrics must have strings as names, got 1",
    ),
    (lambda: make_step(PLAIN, "mse", ADAM), "make_step: loss must be a function, got 'mse'"),
    (
        lambda: make_step(PLAIN, ops.relu, ADAM),
        "make_step: loss must take 2 arguments: too many positional arguments",
    ),
    (
        lambda: make_step(PLAIN, LOSS, ADAM, penalty=0.1),
        "make_step: penalty must be a func.*, got 0",
    ),
    (
        lambda: one_step(penalty=lambda p: p[0]["b"]),
        r"step: penalty must return a real scalar, got .*\[8\]",
    ),
    (
        lambda: one_step(penalty=lambda p: 1j),
        "step: penalty must return a real scalar, got 1j",
    ),
    (
        lambda: one_step(loss=lambda y, t: y[:, :0]),
        r"step: loss must return an array of shape \(24, ...\) .* got .*float64\[24,0\]",
    ),
    (
        lambda: one_step(examples()[0][:0], LABELS[:0]),
        "step: x must hold at least one example, got none",
    ),
    (lambda: one_step(parts=0), "make_step: parts must be an integer of at least 1, got 0"),
    (lambda: one_step(parts=7), "step: parts must divide the 24 examples of x, got 7"),
    (
        lambda: one_step(train_state=create(PLAIN, MOMENTUM)._replace(step=0.0)),
        r"step: train_state.step must be an integer of shape \(\), got a traced float64\[\]",
    ),
    (
        lambda: evaluate(PLAIN, {"m": accuracy}, ADAM, (), *examples()),
        "evaluate: params.init must be an array, got function init",
    ),
    (lambda: one_step(loss=lambda y, t: {}), "step: loss must return an array, got dict"),
    (
        lambda: one_step(loss=lambda y, t: t),
        r"step: loss must return floating numbers, got .*int64",
    ),
    (
        lambda: one_step(loss=lambda y, t: LOSS(y, t)[1:]),
        r"step: loss must return an array of shape \(24, ...\) for 24 ex.*, got .*float64\[23\]",
    ),
    (lambda: one_step(examples()[0], LABELS[:5]), r"step: x and labels .* got \[5, 24\]"),
    (lambda: one_step(examples()[0].tolist(), LABELS), "step: x must be an array, got list"),
    (lambda: one_step(train_state=(1, 2)), "step: train_state must be a TrainState, got tuple"),
    (
        lambda: one_step(train_state=create(PLAIN, ADAM)),
        r"step: opt_state must have the structure of optimizer.init\(params\)",
    ),
    (
        lambda: one_step(
            train_state=create(PLAIN, MOMENTUM)._replace(opt_state=create(mlp(9, 3), MOMENTUM)[2])
        ),
        r"step: opt_state.*\['b'\] must have the shape \(8,\) of optimizer.init.*, got \(9,\)",
    ),
    (
        lambda: one_step(train_state=create(PLAIN, MOMENTUM)._replace(key=None)),
        "step: train_state.key must be one key of jax.random.key, got None",
    ),
    (
        lambda: TrainState.create(PLAIN, ADAM, 42, examples()[0]),
        "TrainState.create: key must be one key of jax.random.key, got 42",
    ),
    (
        lambda: TrainState.create(PLAIN, optim.sgd, KEY, examples()[0]),
        "TrainState.create: optimizer must be an optax.Grad.*, got function sgd",
    ),
    (
        lambda: TrainState.create(Dense, ADAM, KEY, examples()[0]),
        "TrainState.create: model must be a layer, got function Dense",
    ),
    (lambda: TrainState.create(PLAIN, ADAM, KEY, [1.0]), "x must be an array, got"),
    (lambda: evaluation(N, LABELS[:5]), r"evaluate: x and labels .* got \[5, 24\]"),
    (lambda: evaluation(0, LABELS[:0]), "evaluate: x must hold at least one example, got none"),
]


@pytest.mark.parametrize(("f", "message"), ERRORS, ids=[e[1] for e in ERRORS])
def test_errors_are_one_line(f, message):
    with pytest.raises((TypeError, ValueError), match=message) as raised:
        f()
    assert "\n" not in str(raised.value)
