"""Tests particular to losses: the source's scaling, all forms of labels, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from funcnet import ops

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((6, 4))
INDEX = np.array([0, 3, 1, 2, 2, 0], np.int32)
T = np.eye(4)[INDEX]


def test_the_scaled_form_of_the_source():
    """Source A 3.3.7 and 3.3.8 scale the loss by 1/C, so dx = −t/(C x) and dX = (Y − T)/C."""
    y = np.asarray(ops.softmax(X))
    scaled = lambda loss: jax.grad(lambda x: (loss(x, T) / 4).sum())
    np.testing.assert_allclose(scaled(ops.cross_entropy)(jnp.asarray(y)), -T / (4 * y), atol=1e-15)
    np.testing.assert_allclose(
        scaled(ops.softmax_cross_entropy)(jnp.asarray(X)), (y - T) / 4, atol=1e-15
    )


@pytest.mark.slow
def test_the_combination_is_the_composition():
    both = lambda x: ops.cross_entropy(ops.softmax(x), T).sum()
    one = lambda x: ops.softmax_cross_entropy(x, T).sum()
    np.testing.assert_allclose(one(X), both(X), rtol=1e-14)
    np.testing.assert_allclose(jax.grad(one)(X), jax.grad(both)(X), atol=1e-15)


def test_sum_of_squares_of_the_source():
    """Source B (5-24): ∂E/∂y_k = y_k − t_k."""
    dy = jax.grad(lambda y: ops.sum_squared_error(y, T).sum())(X)
    np.testing.assert_allclose(dy, X - T, atol=1e-16)


@pytest.mark.few
@pytest.mark.parametrize("f", [ops.cross_entropy, ops.softmax_cross_entropy])
@pytest.mark.parametrize(
    "labels", [T, T.astype(np.float32), T.astype(np.int32), T.astype(bool), INDEX,
               INDEX.astype(np.uint8), INDEX.astype(np.int64)],
)  # fmt: skip
def test_every_form_of_labels_is_the_same(f, labels):
    y = np.asarray(ops.softmax(X))
    value, back = jax.vjp(lambda y: f(y, labels), y)
    expected, expected_back = jax.vjp(lambda y: f(y, T), y)
    np.testing.assert_allclose(value, expected, rtol=1e-14)
    np.testing.assert_allclose(back(value)[0], expected_back(value)[0], atol=1e-14)


@pytest.mark.few
@pytest.mark.parametrize("f", [ops.cross_entropy, ops.softmax_cross_entropy])
def test_more_classes_than_the_label_dtype_counts(f):
    y = np.full((2, 300), 1 / 300)
    value, back = jax.vjp(lambda y: f(y, np.array([7, 255], np.uint8)), y)
    assert jnp.isfinite(value).all()
    assert np.asarray(back(value)[0]).argmin(-1).tolist() == [7, 255]


@pytest.mark.parametrize("f", [ops.cross_entropy, ops.softmax_cross_entropy])
@pytest.mark.parametrize("label", [4, 1000, -1, -5, -100])
def test_an_index_out_of_range_gives_nan(f, label):
    y = np.asarray(ops.softmax(X))[:2]
    value = f(y, np.array([0, label]))
    assert jnp.isfinite(value[0])
    assert jnp.isnan(value[1])


@pytest.mark.parametrize("f", [ops.cross_entropy, ops.softmax_cross_entropy])
@pytest.mark.parametrize(
    "labels",
    [np.zeros(6), np.zeros((6, 3)), np.zeros((6, 1), np.int32), np.zeros(5, np.int32), np.int32(0)],
    ids=["floats without classes", "classes", "extra axis", "count", "scalar"],
)
def test_labels_of_another_shape(f, labels):
    with pytest.raises(ValueError) as e:
        f(X, labels)
    assert str(e.value) == (
        f"{f.__name__}: labels must have shape (6, 4), or (6,) and an integer dtype, "
        f"got {np.shape(labels)} and {np.asarray(labels).dtype}"
    )


@pytest.mark.parametrize("f", [ops.mean_squared_error, ops.sum_squared_error, ops.huber])
@pytest.mark.parametrize(
    ("y", "t"), [((6, 4), (6,)), ((6, 1), (6,)), ((6, 4), (1, 4)), ((6, 4), ())], ids=str
)
def test_targets_of_another_shape(f, y, t):
    """This includes (n, 1) with (n,), which would broadcast to (n, n)."""
    with pytest.raises(ValueError) as e:
        f(jnp.ones(y), jnp.ones(t))
    assert str(e.value) == f"{f.__name__}: t must have the shape of y, {y}, got {t}"


def test_targets_of_another_shape_for_the_divergence():
    with pytest.raises(ValueError) as e:
        ops.kl_divergence(X, T[0])
    assert str(e.value) == ("kl_divergence: t must have the shape of log_p, (6, 4), got (4,)")


def test_zero_times_log_zero():
    """A class with t = 0 and probability 0 adds 0 to the loss and has gradient 0."""
    y, t = jnp.array([0.0, 1.0]), jnp.array([0.0, 1.0])
    loss, back = jax.vjp(ops.cross_entropy, y, t)
    assert loss == 0
    assert back(jnp.ones(()))[0].tolist() == [0.0, -1.0]
    x = jnp.array([-jnp.inf, 2.0])
    loss, back = jax.vjp(lambda x: ops.softmax_cross_entropy(x, t), x)
    assert loss == 0
    assert back(jnp.ones(()))[0].tolist() == [0.0, 0.0]


def test_what_is_nearly_impossible():
    """A class is left out of the loss only where t = 0, not where t is tiny."""
    tiny = np.finfo("f8").tiny
    y, t = jnp.array([0.0, 0.0, tiny, 0.5, 0.5]), jnp.array([1.0, tiny, tiny, 0.0, -0.5])
    assert jax.grad(ops.cross_entropy)(y, t).tolist() == [-np.inf, -np.inf, -1.0, 0.0, 1.0]


def test_second_derivatives_of_zero_times_log_zero():
    """∂²L/∂y² = t/y² and ∂²L/∂y∂t = −1/y; the former is 0 where t = 0, even if y = 0."""
    y, t = jnp.array([0.0, 0.5, 0.25]), jnp.array([0.0, 0.0, 1.0])
    by_y, by_t = (jnp.diag(h) for h in jax.hessian(ops.cross_entropy, (0, 1))(y, t)[0])
    assert by_y.tolist() == [0.0, 0.0, 16.0]
    assert by_t[1:].tolist() == [-2.0, -4.0]


def test_an_impossible_label():
    assert ops.cross_entropy(jnp.array([0.0, 1.0]), jnp.array(0)) == jnp.inf
    assert ops.softmax_cross_entropy(jnp.array([-jnp.inf, 1.0]), jnp.array(0)) == jnp.inf


@pytest.mark.few
@pytest.mark.parametrize("label_smoothing", [0.1, 0.9])
def test_smoothing_of_every_form_of_labels(label_smoothing):
    """A class index, a one-hot label and the smoothed target give the same loss."""
    smooth = (1 - label_smoothing) * T + label_smoothing / 4
    expected, back = jax.vjp(lambda x: ops.softmax_cross_entropy(x, smooth), X)
    for labels in (INDEX, T, T.astype(np.int32)):
        f = lambda x, t=labels: ops.softmax_cross_entropy(x, t, label_smoothing=label_smoothing)
        loss, back_f = jax.vjp(f, X)
        np.testing.assert_allclose(loss, expected, rtol=1e-14)
        np.testing.assert_allclose(back_f(loss)[0], back(loss)[0], atol=1e-15)


def test_no_smoothing_is_no_other_program():
    text = lambda **k: str(
        jax.make_jaxpr(
            lambda x: jax.vjp(lambda x: ops.softmax_cross_entropy(x, T, **k), x)[1](x[:, 0])
        )(X)
    )
    assert text(label_smoothing=0.0) == text() != text(label_smoothing=0.1)


def test_smoothing_of_an_index_builds_no_targets():
    """In addition to the gradient, at most one array of the size of the logits exists."""
    x = jnp.ones((64, 512), jnp.float32)
    loss = lambda x: ops.softmax_cross_entropy(x, jnp.zeros(64, "i4"), label_smoothing=0.1).sum()
    compiled = jax.jit(jax.value_and_grad(loss)).lower(x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1.1 * x.nbytes


def test_class_indices_of_any_batch_on_any_platform():
    """Class indices are handled differently on a CPU, so the export covers all platforms."""
    gradient = jax.jit(jax.grad(lambda x, t: (ops.softmax_cross_entropy(x, t) ** 2).sum()))
    (n,) = jax.export.symbolic_shape("n")
    symbolic = jax.ShapeDtypeStruct((n, 4), "f8"), jax.ShapeDtypeStruct((n,), "i4")
    exported = jax.export.export(gradient, platforms=("cpu", "cuda", "tpu"))(*symbolic)
    dense = jax.grad(lambda x: (ops.softmax_cross_entropy(x, T) ** 2).sum())(X)
    np.testing.assert_allclose(exported.call(X, INDEX), dense, atol=1e-15)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_class_indices_over_two_devices(kind):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(kind,))
    gradient = jax.grad(lambda x, t: (ops.softmax_cross_entropy(x, t) ** 2).sum())
    with jax.set_mesh(mesh):
        x, t = (jax.device_put(v, NamedSharding(mesh, P("d"))) for v in (X, INDEX))
        actual = jax.jit(gradient)(x, t)
    np.testing.assert_allclose(actual, gradient(X, INDEX), atol=1e-15)


LOSSES = {
    "mean_squared_error": "y", "sum_squared_error": "y", "huber": "y", "kl_divergence": "log_p",
    "cross_entropy": "y", "softmax_cross_entropy": "logits",
}  # fmt: skip


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_no_classes(name, shape):
    with pytest.raises(ValueError) as e:
        getattr(ops, name)(jnp.ones(shape), jnp.ones(shape))
    assert (
        str(e.value) == f"{name}: {LOSSES[name]} must have shape (..., C) with C > 0, got {shape}"
    )


@pytest.mark.parametrize("name", LOSSES)
def test_numbers_that_are_not_real(name):
    for args, argument in (
        ((1j * X, T), LOSSES[name]),
        ((X, 1j * T), "labels" if name.endswith("entropy") else "t"),
    ):
        with pytest.raises(TypeError) as e:
            getattr(ops, name)(*args)
        assert str(e.value) == f"{name}: {argument} must be real, got complex128[6,4]"


@pytest.mark.parametrize("label_smoothing", [-0.1, 1.0, float("nan")])
def test_smoothing_out_of_range(label_smoothing):
    with pytest.raises(ValueError) as e:
        ops.softmax_cross_entropy(X, T, label_smoothing=label_smoothing)
    assert str(e.value) == (
        f"softmax_cross_entropy: label_smoothing must be a number in [0, 1), got {label_smoothing}"
    )


@pytest.mark.parametrize("delta", [0.0, -1.0, float("nan"), float("inf")])
def test_delta_of_the_huber_loss(delta):
    with pytest.raises(ValueError) as e:
        ops.huber(X, T, delta=delta)
    assert str(e.value) == f"huber: delta must be a finite number above 0, got {delta}"


def test_the_huber_loss_is_smooth_where_its_parts_meet():
    y = jnp.array([1.0, -1.0, 1.0 + 1e-9, -1.0 - 1e-9, 3.0, 0.5])
    dy = jax.grad(lambda y: 6 * ops.huber(y, jnp.zeros(6)))(y)
    np.testing.assert_allclose(dy, [1, -1, 1, -1, 1, 0.5], atol=1e-15)
    np.testing.assert_allclose(ops.huber(y[:4], jnp.zeros(4)), 0.5, rtol=1e-8)


def test_a_class_without_probability_in_the_divergence():
    """A class with t = 0 adds 0 and has gradient 0, even if its log-probability is −∞."""
    log_p, t = jnp.array([[-jnp.inf, 0.0], [-1.0, -0.5]]), jnp.array([[0.0, 1.0], [0.0, 1.0]])
    loss, back = jax.vjp(ops.kl_divergence, log_p, t)
    assert loss.tolist() == [0.0, 0.5]
    dlog_p, dt = back(jnp.ones(2))
    assert dlog_p.tolist() == [[0.0, -1.0], [0.0, -1.0]]
    assert dt.tolist() == [[0.0, 1.0], [0.0, 1.5]]
    assert ops.kl_divergence(jnp.array([-jnp.inf, 0.0]), jnp.array([0.5, 0.5])) == jnp.inf


def test_the_divergence_is_cross_entropy_less_entropy():
    p, t = np.asarray(ops.softmax(X)), np.asarray(ops.softmax(2 * X + 1))
    entropy = -(t * np.log(t)).sum(-1)
    expected = np.asarray(ops.cross_entropy(p, t)) - entropy
    np.testing.assert_allclose(ops.kl_divergence(np.log(p), t), expected, rtol=1e-13)


@pytest.mark.parametrize("labels", [np.int32(1), np.array([0.0, 1.0])], ids=["index", "one-hot"])
def test_a_loss_is_never_negative(labels):
    for scale in (0.0, 1e-8, 1e-3, 1.0, 30.0, 1e4):
        x = jnp.array([-scale, scale], jnp.float32)
        assert ops.softmax_cross_entropy(x, labels) >= 0


def test_a_network_of_the_book_in_numpy():
    """Affine, ReLU, affine and softmax-with-loss, forward and backward as in the book."""
    w1, b1 = RANDOM.standard_normal((4, 5)), RANDOM.standard_normal(5)
    w2, b2 = RANDOM.standard_normal((5, 4)), RANDOM.standard_normal(4)
    u = X @ w1 + b1
    h = np.where(u >= 0, u, 0)
    a = h @ w2 + b2
    e = np.exp(a - a.max(-1, keepdims=True))
    y = e / e.sum(-1, keepdims=True)
    da = (y - T) / len(X)
    du = (da @ w2.T) * (u >= 0)
    expected = (X.T @ du, du.sum(0), h.T @ da, da.sum(0))

    def loss(w1, b1, w2, b2):
        h = ops.relu(ops.affine(X, w1, b1))
        return ops.softmax_cross_entropy(ops.affine(h, w2, b2), INDEX).mean()

    for d, e in zip(jax.grad(loss, (0, 1, 2, 3))(w1, b1, w2, b2), expected, strict=True):
        np.testing.assert_allclose(d, e, atol=1e-14)


ELEMENTS = {"sigmoid_binary_cross_entropy"}
MASKED = ["cross_entropy", "softmax_cross_entropy", "kl_divergence", *ELEMENTS]


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("shape", [(4,), (5,), (6, 3), (1, 6, 4), ()], ids=str)
def test_a_mask_of_another_shape(name, shape):
    """As in Optax, the number of axes decides whether a mask is of examples or of classes."""
    with pytest.raises(ValueError) as e:
        getattr(ops, name)(X, T, where=np.ones(shape, bool))
    assert str(e.value) == (
        f"{name}: where must have shape (6,) or (6, 4), or 1 in place of a size, got {shape}"
    )


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_is_boolean(name):
    with pytest.raises(TypeError) as e:
        getattr(ops, name)(X, T, where=np.ones(6, np.int32))
    assert str(e.value) == f"{name}: where must be boolean, got int32[6]"


@pytest.mark.parametrize("f", [ops.cross_entropy, ops.softmax_cross_entropy])
def test_options_that_do_not_fit(f):
    for options, message in (
        ({"class_weights": np.ones(3)}, "class_weights must have shape (4,), got (3,)"),
        ({"ignore": 0}, "ignore is for class indices, got labels of shape (6, 4)"),
    ):
        with pytest.raises(ValueError) as e:
            f(X, T, **options)
        assert str(e.value) == f"{f.__name__}: {message}"


def test_a_weight_of_another_shape():
    with pytest.raises(ValueError) as e:
        ops.sigmoid_binary_cross_entropy(X, T, pos_weight=np.ones(6))
    assert str(e.value) == (
        "sigmoid_binary_cross_entropy: pos_weight must broadcast to the shape of logits, (6, 4), "
        "got (6,)"
    )


@pytest.mark.few
@pytest.mark.parametrize("name", [n for n in MASKED if n not in ELEMENTS])
def test_a_mask_of_examples_is_that_of_optax(name):
    """The mean over the examples that count is that of these examples alone."""
    f, where = getattr(ops, name), np.array([True, False, True, True, False, True])
    y = np.log(ops.softmax(X)) if name == "kl_divergence" else np.asarray(ops.softmax(X))
    mean = lambda y: f(y, T, where=where).mean(where=where)
    few = lambda y: f(y, T[where]).mean()
    np.testing.assert_allclose(mean(y), few(y[where]), rtol=1e-15)
    np.testing.assert_allclose(jax.grad(mean)(y)[where], jax.grad(few)(y[where]), atol=1e-15)
    if name == "softmax_cross_entropy":
        np.testing.assert_allclose(f(y, T, where=where), getattr(optax, name)(y, T, where=where))


@pytest.mark.parametrize("f", [ops.cross_entropy, ops.softmax_cross_entropy])
def test_a_class_that_does_not_count_is_no_label(f):
    """All forms of labels agree: a class index that `where` excludes stands for no class."""
    where = np.array([True, True, False, True])[None]
    y = np.asarray(ops.softmax(X))
    value, back = jax.vjp(lambda y: f(y, INDEX, where=where), y)
    expected, expected_back = jax.vjp(lambda y: f(y, T, where=where), y)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(back(value)[0], expected_back(value)[0])
    assert value[3:5].tolist() == [0, 0]
    assert not np.asarray(back(value)[0])[3:5].any()


@pytest.mark.few
@pytest.mark.parametrize("f", [ops.cross_entropy, ops.softmax_cross_entropy])
def test_an_index_out_of_range_gives_nan_with_every_option(f):
    y, index = np.asarray(ops.softmax(X)), np.array([0, 4, -1, 2, 9, 9])
    for options in (
        {"ignore": 9}, {"class_weights": np.ones(4), "ignore": 9},
        {"where": np.arange(6)[:, None] < np.array([6, 6, 6, 4])},
    ):  # fmt: skip
        value, back = jax.vjp(lambda y, o=options: f(y, index, **o), y)
        nan = [False, True, True, False, "ignore" not in options, "ignore" not in options]
        assert np.isnan(value).tolist() == nan
        assert np.isnan(back(jnp.ones(6))[0]).any(-1).tolist() == nan


def test_class_weights_of_torch():
    """A weighted loss is the weight of the label times the loss; PyTorch's mean divides by both."""
    weights = np.array([1.0, 0.5, 2.0, 3.0])
    loss = ops.softmax_cross_entropy(X, INDEX, class_weights=weights)
    np.testing.assert_allclose(loss, weights[INDEX] * ops.softmax_cross_entropy(X, INDEX))
    by_weight = ops.linear_cross_entropy(X, np.eye(4), INDEX, class_weights=weights)
    np.testing.assert_allclose(by_weight, loss, rtol=1e-14)


def test_unused_options_are_no_other_program():
    """None for where, class weights, pos_weight or ignore leaves nothing in the program."""
    for name, options in (
        ("cross_entropy", {"where": None, "class_weights": None, "ignore": None}),
        ("softmax_cross_entropy", {"where": None, "class_weights": None, "ignore": None}),
        ("kl_divergence", {"where": None}),
        ("sigmoid_binary_cross_entropy", {"where": None, "pos_weight": None, "ignore": None}),
    ):
        f = getattr(ops, name)
        count = lambda options, f=f: len(
            jax.make_jaxpr(lambda x: jax.vjp(lambda x: f(x, T, **options), x)[1](f(x, T)))(X).eqns
        )
        assert count({}) == count(options) < count({"where": np.ones(6, bool)})
