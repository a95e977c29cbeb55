"""Tests of sharding: a step on 8 devices equals the step on one, and each device does its share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from funcnet import models, ops, optim, sharding
from funcnet.layers import Dense, Embedding, chain, repeat, residual
from funcnet.training import TrainState, accuracy, evaluate, make_epoch, make_step

WIDTH, IDS = 16, 40


def mesh(*sizes, kind=AxisType.Auto):
    names = ("data", "model")[: len(sizes)]
    return jax.make_mesh(sizes, names, axis_types=(kind,) * len(sizes))


PLANS = {
    "data": lambda **kind: sharding.data_parallel(mesh(8, **kind)),
    "fsdp": lambda **kind: sharding.fsdp(mesh(8, **kind)),
    "tensor": lambda **kind: sharding.tensor_parallel(mesh(4, 2, **kind)),
    "fsdp and tensor": lambda **kind: sharding.fsdp(mesh(4, 2, **kind), tensor="model"),
}


def in_float64(layer):
    wide = lambda tree: jax.tree.map(lambda a: a.astype(float), tree)
    return layer._replace(init=lambda key, x: wide(layer.init(key, x)))


def transformer(**options):
    net = models.transformer(IDS, width=WIDTH, depth=3, heads=4, hidden=24, **options)
    return in_float64(net), ops.softmax_cross_entropy


def cnn():
    return in_float64(models.cnn(8, 16, classes=8, convolutions=1)), ops.softmax_cross_entropy


def words(n=16, length=6):
    pieces = np.random.default_rng(0).integers(0, IDS, (n, length + 1))
    return pieces[:, :-1], pieces[:, 1:]


def images(n=16):
    random = np.random.default_rng(0)
    return random.standard_normal((n, 8, 8, 3)), random.integers(0, 8, n)


def run(network, data, plan=None, steps=3):
    """Trains for a few steps; returns the state and the losses."""
    (model, loss), optimizer = network, optim.adamw(1e-3)
    create = lambda: TrainState.create(model, optimizer, jax.random.key(0), data[0])
    step = jax.jit(make_step(model, loss, optimizer, sharding=plan), donate_argnums=0)
    train_state = jax.jit(create)() if plan is None else plan.create(create)
    data = data if plan is None else plan.examples(data)
    losses = []
    for _ in range(steps):
        train_state, metrics = step(train_state, *data)
        losses.append(metrics["loss"])
    return train_state._replace(key=jax.random.key_data(train_state.key)), jnp.stack(losses)


@pytest.mark.few
@pytest.mark.parametrize(
    ("network", "data"), [(transformer, words), (cnn, images)], ids=["transformer", "cnn"]
)
@pytest.mark.parametrize("name", ["fsdp and tensor", "fsdp", "tensor", "data"])
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
def test_a_sharded_step_equals_the_unsharded_one(kind, name, network, data):
    """This includes the statistics of BatchNorm, which are those of the whole batch."""
    plan = PLANS[name](kind=kind)
    expected, found = run(network(), data()), run(network(), data(), plan)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-11, 1e-12), expected, found)
    is_placed = lambda a, s: s.is_equivalent_to(a.sharding, a.ndim)
    assert jax.tree.all(jax.tree.map(is_placed, found[0], plan.shardings(found[0])))


@pytest.mark.slow
def test_an_epoch_and_an_evaluation():
    plan, (model, loss) = PLANS["fsdp"](), transformer()
    optimizer, data = optim.adamw(1e-3), words(32)
    create = lambda: TrainState.create(model, optimizer, jax.random.key(0), data[0])
    found = []
    for sharding_ in (None, plan):
        epoch = make_epoch(make_step(model, loss, optimizer, sharding=sharding_), batch_size=8)
        own = data if sharding_ is None else plan.examples(data)
        train_state, metrics = epoch(create() if sharding_ is None else plan.create(create), *own)
        params, state = train_state.params, train_state.state
        means = evaluate(
            model, {"accuracy": accuracy}, params, state, *own, batch_size=16, sharding=sharding_
        )
        found.append((metrics, means))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-11), *found)


def test_shardings_of_parameters_and_of_the_optimizer():
    """Heads and hidden units over "model"; of the rest, the largest axis over "data"."""
    plan = PLANS["fsdp and tensor"]()
    (model, _), x = transformer(), words()[0]
    make = lambda: TrainState.create(model, optim.adamw(1e-3), jax.random.key(0), x)
    found = plan.shardings(jax.eval_shape(make))
    attention, mlp = (found.params[1][i][1] for i in (0, 1))
    spec = lambda tree: tree["w"].spec
    assert spec(attention["q"]) == PartitionSpec(None, ("data",), "model")
    assert spec(attention["out"]) == PartitionSpec(None, "model", ("data",))
    assert spec(mlp["down"]) == PartitionSpec(None, "model", ("data",))
    assert spec(found.params[0]) == PartitionSpec(("data",), None)  # 40 ids, width 16
    assert found.step.spec == PartitionSpec()
    for moment in found.opt_state[1:]:
        assert jax.tree.leaves(moment) == jax.tree.leaves(found.params)


def test_what_does_not_divide_is_not_divided():
    plan = sharding.fsdp(mesh(4, 2), tensor="model")
    leaf = lambda *shape: jax.ShapeDtypeStruct(shape, "float32")
    found = plan.shardings({"q": {"w": leaf(7, 3), "b": leaf(4)}, "w": leaf(12, 8), "n": leaf()})
    assert found["q"]["w"].spec == PartitionSpec(None, None)
    assert found["q"]["b"].spec == PartitionSpec("model")
    assert found["w"].spec == PartitionSpec(("data",), None)
    assert found["n"].spec == PartitionSpec()


def test_parameters_are_never_whole_on_a_device():
    plan = PLANS["fsdp"]()
    init = lambda: Embedding(IDS, WIDTH).init(jax.random.key(0), words()[0])[0]
    made = plan.create(init)
    jax.tree.map(np.testing.assert_array_equal, made, jax.jit(init)())
    jax.tree.map(np.testing.assert_array_equal, made, plan.place(jax.jit(init)()))
    assert {shard.data.shape for shard in made["w"].addressable_shards} == {(IDS // 8, WIDTH)}


def linear_cross_entropy(plan, classes=64, rows=4):
    """A compiled gradient, with chunks of `rows` rows on each device."""
    dtype = lambda *shape: jax.ShapeDtypeStruct(shape, "float32")
    ids = jax.ShapeDtypeStruct((16, 12), "int32")

    def gradient(h, w, labels, dl):
        with plan.active():
            f = lambda h, w: ops.linear_cross_entropy(h, w, labels, at_once=classes * rows)
            return jax.vjp(f, h, w)[1](dl)

    over = jax.sharding.NamedSharding(plan.mesh, PartitionSpec(plan.batch))
    put = lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding)
    h, labels, dl = (put(s, over) for s in (dtype(16, 12, 8), ids, dtype(16, 12)))
    w = put(dtype(8, classes), plan.shardings(dtype(8, classes)))
    return jax.jit(gradient).lower(h, w, labels, dl).compile().as_text()


def test_linear_cross_entropy_sums_over_devices_once():
    """Not after each chunk: no loop over chunks, which contains products, sums over devices."""
    text = linear_cross_entropy(PLANS["data"]())
    bodies = [part for part in text.split("\n\n") if " dot(" in part]
    loops = [part for part in bodies if not part.lstrip().startswith("ENTRY")]
    assert loops
    assert not any("all-reduce(" in part or "reduce-scatter(" in part for part in loops)
    assert "all-reduce(" in text or "reduce-scatter(" in text


@pytest.mark.parametrize("net", [chain(Dense(4)), residual(Dense(4)), repeat(Dense(4), 2)], ids=str)
def test_layers_divide_examples_only_with_a_plan(net):
    x = jnp.ones((8, 4))
    params, state = net.init(jax.random.key(0), x)
    traced = lambda x: str(jax.make_jaxpr(net.apply)(params, state, x))
    assert "sharding_constraint" not in traced(x)
    assert sharding.pin(x) is x
    with PLANS["data"]().active():
        assert "sharding_constraint" in traced(x)
        assert "sharding_constraint" not in traced(x[:7])  # 8 devices do not divide 7 examples


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sharding.fsdp(8), "data_parallel: mesh must be a jax.sharding.Mesh, got 8"),
        (
            lambda: sharding.tensor_parallel(mesh(8)),
            "tensor_parallel: axis must be one of ('data',), got 'model'",
        ),
        (
            lambda: PLANS["data"]().examples({"x": np.ones((9, 2))}),
            "examples: tree['x'] must have a multiple of 8 examples, one part for each device, got",
        ),
        (
            lambda: make_step(
                transformer()[0], ops.softmax_cross_entropy, optim.adamw(1e-3), sharding=mesh(8)
            ),
            "make_step: sharding must be a funcnet.sharding.Plan, got",
        ),
    ],
    ids=["mesh", "axis", "examples", "plan"],
)
def test_wrong_arguments(call, words):
    with pytest.raises((TypeError, ValueError)) as e:
        call()
    assert str(e.value).startswith(words)
    assert "\n" not in str(e.value)
