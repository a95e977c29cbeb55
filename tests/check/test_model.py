"""`check_model` finds the wrong rule and the line that calls it, at any depth."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from funcnet import RULES, check_model, layers, ops, rule
from funcnet.check.tracing import sites


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape), jnp.float32)


@jax.custom_vjp
def dense(x, w, b):
    return x @ w + b


dense.defvjp(
    lambda x, w, b: (x @ w + b, (x, w)),
    lambda saved, dy: (dy @ saved[1].T, saved[0].T @ dy, dy.sum(0)),
)


@jax.custom_vjp
def scaled_tanh(x, scale):
    """This rule is wrong: the cotangent of x is too large by a thousandth."""
    return scale * jnp.tanh(x)


scaled_tanh.defvjp(
    lambda x, scale: (scale * jnp.tanh(x), (x, scale)),
    lambda saved, dy: (
        1.001 * dy * saved[1] * (1 - jnp.tanh(saved[0]) ** 2),
        jnp.sum(dy * jnp.tanh(saved[0])),
    ),
)

WEIGHTS = {"w": 0.4 * normal(10, 6, 6), "b": jnp.zeros((10, 6), jnp.float32)}
X = normal(4, 6)


def ten_layers(weights, x):
    def layer(h, weight):
        h = dense(h, weight["w"], weight["b"])
        h = h + scaled_tanh(h, jnp.float32(1.5))  # the line
        return ops.softmax(h) + ops.tanh(h), None

    return jax.lax.scan(layer, x, weights)[0].sum()


def line_of(function, comment="# the line"):
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, text in enumerate(lines) if comment in text)


def only_culprit(report, rule, argument, function):
    assert not report.ok
    (culprit,) = report.culprits
    assert (culprit.rule, culprit.argument) == (rule, argument)
    assert culprit.where.endswith(f"test_model.py:{line_of(function)}")
    assert culprit.error > 1e-4
    assert str(culprit.where) in str(report)


@pytest.mark.slow
def test_one_wrong_rule_in_a_scan_of_ten_layers():
    report = check_model(ten_layers, WEIGHTS, X)
    only_culprit(report, "scaled_tanh", "x", ten_layers)
    assert {f.argument for f in report.findings} == {"weights['b']", "weights['w']", "x"}


@pytest.mark.slow
def test_one_of_ten_calls():
    """The same right rule is called before and after the wrong one."""

    def model(weights, x):
        for i in range(10):
            x = dense(x, weights["w"][i], weights["b"][i])
            if i == 7:
                x = scaled_tanh(x, jnp.float32(1.5))  # the line
        return x

    only_culprit(check_model(model, WEIGHTS, X), "scaled_tanh", "x", model)


def in_jit(f):
    return jax.jit(lambda x: jax.jit(f)(x))


def in_cond(f):
    return lambda x: jax.lax.cond(x.sum() > -1e9, f, lambda x: x, x)


def in_while(f):
    return lambda x: jax.lax.fori_loop(0, 2, lambda _, x: f(x), x)


def in_shard_map(f):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
    return jax.shard_map(f, mesh=mesh, in_specs=P("d"), out_specs=P("d"), check_vma=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap", [in_jit, in_cond, in_while, jax.checkpoint, jax.vmap, in_shard_map]
)
def test_at_any_depth(wrap):
    def inner(x):
        return scaled_tanh(x, 1.0) + ops.sigmoid(x)  # the line

    report = check_model(lambda x: ops.relu(wrap(inner)(ops.tanh(x))), X)
    only_culprit(report, "scaled_tanh", "x", inner)


@pytest.mark.slow
def test_inside_the_plain_forward_of_another_rule():
    """The inner rule does not affect the gradient; the outer rule does."""

    @jax.custom_vjp
    def outer(x):
        return scaled_tanh(x, 1.0)

    outer.defvjp(lambda x: (jnp.tanh(x), x), lambda x, dy: (dy * (1 - jnp.tanh(x) ** 2),))
    assert check_model(lambda x: outer(x).sum(), X).ok


@rule
def halved(x, *, axis=-1):
    """This rule is wrong only in calls where axis is 0."""
    return x / 2 + 0 * axis


halved.defvjp(
    lambda x, *, axis: (x / 2, None),
    lambda _, dy, *, axis: (dy * (0.5 if axis else 0.6),),
)
del RULES["halved"]


@pytest.mark.slow
def test_calls_of_the_same_types_have_their_own_lines():
    """A rule is traced once for all calls of the same types."""

    def inner(x):
        return halved(x)

    def model(x):
        x = halved(halved(inner(x)))
        x = halved(x, axis=0)  # the line
        x = halved(inner(x), axis=-1)
        return ops.sigmoid(ops.sigmoid(x)) + ops.sigmoid(x)

    for f in (model, jax.jit(model), lambda x: inner(jax.vmap(model)(x))):
        only_culprit(check_model(f, X), "halved", "x", model)
    where = [site.where.rpartition(":")[2] for site in sites(model, X)]
    first = line_of(model) - 1
    lines = [line_of(inner, "return"), first, first, first + 1, line_of(inner, "return")]
    assert where == [str(n) for n in (*lines, *[first + 2] + [first + 3] * 3)]


@pytest.mark.slow
def test_two_wrong_rules_worst_first():
    @jax.custom_vjp
    def twice(x):
        return 2 * x

    twice.defvjp(lambda x: (2 * x, None), lambda _, dy: (3 * dy,))
    report = check_model(lambda x: twice(scaled_tanh(x, 1.0)), X)
    assert [c.rule for c in report.culprits] == ["twice", "scaled_tanh"]


def test_every_wrong_cotangent_of_a_rule_is_listed():
    wrong = jax.custom_vjp(lambda x, w, b: x @ w + b)
    save = lambda x, w, b: (x @ w + b, (x, w))
    wrong.defvjp(save, lambda s, dy: (dy @ s[1].T, 1.5 * s[0].T @ dy, 3 * dy.sum(0)))
    weights = {"w": WEIGHTS["w"][0], "b": jnp.ones(6, jnp.float32)}
    report = check_model(lambda p, x: ops.tanh(wrong(x, p["w"], p["b"])), weights, X)
    assert {c.argument for c in report.culprits} == {"w", "b"}
    assert [c.error for c in report.culprits] == sorted(c.error for c in report.culprits)[::-1]


def test_a_wrong_value_has_its_culprit():
    @jax.custom_vjp
    def shifted(x):
        return x

    shifted.defvjp(lambda x: (x + 1e-3, None), lambda _, dy: (dy,))
    report = check_model(lambda x: ops.tanh(shifted(x)), X)
    assert [(c.rule, c.argument) for c in report.culprits] == [("shifted", "out")]
    assert any(f.kind == "value" for f in report.findings)


@pytest.mark.slow
def test_many_calls_are_narrowed_down_by_rule():
    def model(x):
        for _ in range(3):
            x = ops.tanh(x)
            x = ops.sigmoid(x)
            x = ops.relu(x)
            x = ops.softmax(x)
            x = ops.log_softmax(x)
            x = ops.identity(x)
        return scaled_tanh(x, 1.0)  # the line

    lines = "\n".join(f"    x = ops.tanh(x)  # {i}" for i in range(20))
    scope = {"ops": ops}
    exec(compile(f"def twenty(x):\n{lines}\n    return x", "twenty.py", "exec"), scope)
    report = check_model(lambda x: model(scope["twenty"](x)), X)
    only_culprit(report, "scaled_tanh", "x", model)


@pytest.mark.slow
def test_a_right_model_is_proved():
    model = layers.mlp(8, 8, 3, batch_norm=True)
    params, state = model.init(jax.random.key(0), X)
    labels = jnp.array([0, 1, 2, 0])

    def loss(params, x, labels):
        logits, _ = model.apply(params, state, x, train=True)
        return ops.softmax_cross_entropy(logits, labels).mean()

    report = check_model(loss, params, X, labels)
    assert report.ok, report
    assert not report.culprits


def test_a_rule_that_raises_has_its_culprit():
    @jax.custom_vjp
    def broken(x):
        return x

    broken.defvjp(lambda x: (x, None), lambda _, dy: (dy[0],))
    report = check_model(lambda x: ops.tanh(broken(x)), X)
    assert not report.ok
    assert [f.kind for f in report.findings] == ["shape"]


def test_without_rules():
    with pytest.raises(ValueError, match=r"check_model: .* calls no function with a rule"):
        check_model(lambda x: jnp.sin(x), X)
