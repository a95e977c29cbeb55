"""Tests particular to the linear cross entropy: memory, cotangents, ignored examples."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from funcnet import autodiff, ops, sharding

RANDOM = np.random.default_rng(0)
H, W = RANDOM.standard_normal((6, 4)), RANDOM.standard_normal((4, 7))
T = np.array([0, 3, 6, 2, 2, 5], np.int32)


def gradients(loss, h=H, w=W):
    return jax.jit(jax.grad(loss, (0, 1)))(jnp.asarray(h), jnp.asarray(w))


@pytest.mark.few
@pytest.mark.parametrize("at_once", [1, 15, 21, 1000])
def test_the_chunks_do_not_matter(at_once):
    """Chunks of one row, and of numbers of rows that do or do not divide the batch."""
    agrees_with_the_two_ops(W, at_once=at_once)


@pytest.mark.few
@pytest.mark.parametrize("classes", [1024, 2048, 2051])
def test_the_blocks_of_columns_do_not_matter(classes):
    """One block, two blocks, or two and a remainder."""
    agrees_with_the_two_ops(RANDOM.standard_normal((4, classes)))


def agrees_with_the_two_ops(w, **options):
    weigh = np.cos(np.arange(6))
    mine = gradients(lambda h, w: ops.linear_cross_entropy(h, w, T, **options) @ weigh, w=w)
    both = gradients(lambda h, w: ops.softmax_cross_entropy(h @ w, T) @ weigh, w=w)
    for a, b in zip(mine, both, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-15)


@pytest.mark.parametrize("ignore", [None, 2])
def test_no_array_of_all_logits(ignore):
    n, classes = 512, 256
    h, w = jnp.ones((n, 4), jnp.float32), jnp.ones((4, classes), jnp.float32)
    loss = lambda h, w: ops.linear_cross_entropy(
        h, w, jnp.zeros(n, jnp.int32), ignore=ignore, at_once=8 * classes
    ).mean()
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(h, w).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < n * classes * 4 / 4


def test_a_mean_needs_three_products():
    """One in the forward, two in the gradient: XLA sees that a mean's cotangents are equal."""

    def products(weigh):
        loss = lambda h, w, *c: weigh(ops.linear_cross_entropy(h, w, T), *c)
        args = (jnp.asarray(H), jnp.asarray(W), jnp.arange(6.0))
        return jax.jit(jax.grad(loss, (0, 1))).lower(*args).compile().as_text().count(" dot(")

    assert products(lambda loss, _: loss.mean()) == 3
    assert products(lambda loss, c: (c * loss).sum()) > 3


@pytest.mark.slow
def test_equal_cotangents_are_a_factor_of_what_was_saved():
    """Equality is bit by bit; recomputing dw from cotangents of 3 would round differently."""
    loss = lambda h, w: ops.linear_cross_entropy(h, w, T)
    _, pull = jax.vjp(loss, jnp.asarray(H), jnp.asarray(W))
    np.testing.assert_array_equal(pull(jnp.full(6, 3.0))[1], 3 * pull(jnp.ones(6))[1])


def test_cotangents_that_are_alike_or_not():
    """Cotangents are given at run time, so that the program contains both branches."""

    def pull(loss):
        return jax.jit(lambda d: jax.vjp(loss, jnp.asarray(H), jnp.asarray(W))[1](d))

    mine = pull(lambda h, w: ops.linear_cross_entropy(h, w, T))
    both = pull(lambda h, w: ops.softmax_cross_entropy(h @ w, T))
    one_differs = np.array([1.0, 1, 0, 1, 1, 1])
    for weigh in (np.ones(6), np.zeros(6), np.full(6, -2.0), np.arange(6.0), one_differs):
        for a, b in zip(mine(weigh), both(weigh), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-14)


def test_the_examples_that_count_decide_whether_cotangents_are_alike():
    weigh = np.array([1.0, 1.0, 1.0, 7.0, -7.0, 1.0])  # 7 and −7 at label 2
    loss = lambda h, w: ops.linear_cross_entropy(h, w, T, ignore=2) @ weigh
    ones = lambda h, w: ops.linear_cross_entropy(h, w, T, ignore=2).sum()
    for a, b in zip(gradients(loss), gradients(ones), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-15)


@pytest.mark.slow
def test_second_derivative_where_all_cotangents_are_alike():
    """It is not that of the branch: two equal examples have equal losses but different tangents."""
    h, t = np.stack([H[0], H[0]]), np.array([1, 1], np.int32)
    v = RANDOM.standard_normal(W.shape)

    def along(f):
        square = lambda h, w: (f(h, w) ** 2).sum()
        return jax.grad(lambda h, w: (jax.grad(square, 1)(h, w) * v).sum(), (0, 1))(h, W)

    f = lambda h, w: ops.linear_cross_entropy(h, w, t)
    for a, b in zip(along(f), along(autodiff(f)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "f", [ops.linear_cross_entropy, autodiff(ops.linear_cross_entropy)], ids=["rule", "autodiff"]
)
def test_an_ignored_example_leaves_no_trace(f, bad):
    h = H.copy()
    h[3:5] = bad  # the label is 2
    loss = lambda h, w: f(h, w, T, ignore=2, at_once=14)
    kept = np.array([0, 1, 2, 5])
    few = lambda h, w: f(h, w, T[kept])
    np.testing.assert_allclose(loss(h, W)[kept], few(H[kept], W), atol=1e-15)
    assert loss(h, W)[3:5].tolist() == [0, 0]
    dh, dw = gradients(lambda h, w: loss(h, w).sum(), h)
    dh_few, dw_few = gradients(lambda h, w: few(h, w).sum(), H[kept])
    np.testing.assert_allclose(dw, dw_few, atol=1e-15)
    np.testing.assert_allclose(dh[kept], dh_few, atol=1e-15)
    assert not dh[3:5].any()


@pytest.mark.few
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("ignored", [[3, 4], [0, 1, 2, 3, 4, 5]], ids=["some", "all"])
def test_the_cotangent_of_an_ignored_example_leaves_no_trace(bad, ignored):
    h, labels, dloss = H.copy(), T.copy(), np.ones(6)
    h[ignored], labels[ignored], dloss[ignored] = bad, -100, bad
    _, back = jax.vjp(lambda h, w: ops.linear_cross_entropy(h, w, labels, ignore=-100), h, W)
    dh, dw = back(jnp.asarray(dloss))
    expected = back(jnp.ones(6))
    np.testing.assert_array_equal(dh, expected[0])
    np.testing.assert_array_equal(dw, expected[1])
    assert jnp.isfinite(dh).all()
    assert jnp.isfinite(dw).all()
    assert not dh[np.array(ignored)].any()


@pytest.mark.few
@pytest.mark.parametrize("n", [0, 6])
def test_no_example_counts(n):
    """An empty batch or only ignored examples give zeros, without infinite intermediates."""
    loss = lambda h, w: ops.linear_cross_entropy(h, w, np.full(n, 3), ignore=3)
    with jax.debug_nans(True), jax.debug_infs(True):
        out, back = jax.vjp(loss, jnp.asarray(H[:n]), jnp.asarray(W))
        dh, dw = back(jnp.ones(n))
    for x, shape in ((out, (n,)), (dh, (n, 4)), (dw, (4, 7))):
        np.testing.assert_array_equal(x, np.zeros(shape))


def test_a_label_to_ignore_that_no_label_can_be():
    """−100, common in other libraries, is outside unsigned dtypes, so nothing is ignored."""
    for dtype, ignore in ((np.uint8, -100), (np.uint32, -100), (np.int8, 356)):
        labels = T.astype(dtype)
        labels[0] = ignore % 2 ** (8 * labels.itemsize)  # the label to which `ignore` would wrap
        loss = ops.linear_cross_entropy(H, W, labels, ignore=ignore)
        np.testing.assert_array_equal(loss, ops.linear_cross_entropy(H, W, labels))


@pytest.mark.parametrize("label", [7, 1000, -1, -8, -100])
def test_a_label_out_of_range_gives_nan(label):
    loss = ops.linear_cross_entropy(H, W, np.array([0, 1, label, 3, 4, 5]), ignore=4, at_once=14)
    assert np.isnan(loss).tolist() == [False, False, True, False, False, False]


@pytest.mark.few
@pytest.mark.parametrize("offset", [1000.0, -1000.0])
def test_a_common_offset_of_all_logits(offset):
    """It changes neither loss nor gradient; all products are exact, so there is no other error."""
    h, w = (jnp.asarray(np.round(8 * a) / 8, jnp.float32) for a in (H, W))
    ones = jnp.ones((6, 1), jnp.float32)
    far = jnp.concatenate([h, ones], 1), jnp.concatenate([w, jnp.full((1, 7), offset, "f4")])
    mean = lambda h, w: ops.linear_cross_entropy(h, w, T).mean()
    np.testing.assert_allclose(mean(*far), mean(h, w), rtol=1e-6)
    (dh, dw), (dh_far, dw_far) = gradients(mean, h, w), gradients(mean, *far)
    np.testing.assert_allclose(dw_far[:4], dw, atol=1e-7)
    np.testing.assert_allclose(dh_far[:, :4], dh, atol=1e-7)


@pytest.mark.slow
def test_a_confident_answer_has_a_gradient():
    """As in `softmax_cross_entropy`; computed naively, 1 − p = e⁻⁴⁰ and −log p round to 0."""
    h, w = jnp.ones((1, 1), jnp.float32), jnp.array([[1040.0, 1000.0]], jnp.float32)
    t = jnp.zeros(1, jnp.int32)
    loss, back = jax.vjp(lambda w: ops.linear_cross_entropy(h, w, t), w)
    np.testing.assert_allclose(loss, np.exp(-40.0), rtol=1e-6)
    np.testing.assert_allclose(
        back(loss / loss)[0][0], np.exp(-40.0) * np.array([-1, 1]), rtol=1e-6
    )
    plain = optax.softmax_cross_entropy_with_integer_labels(h @ w, t)
    assert plain == 0


@pytest.mark.slow
def test_narrow_inputs_have_wide_logits():
    """In bfloat16, 8-bit logits would be off by 0.4 % of 100, and the loss by far more."""
    h, w = (jnp.asarray(a, jnp.bfloat16) for a in (30 * H, W))
    loss, back = jax.vjp(lambda h, w: ops.linear_cross_entropy(h, w, T), h, w)
    wide = lambda h, w: ops.softmax_cross_entropy(h.astype("f8") @ w.astype("f8"), T)
    expected, back_wide = jax.vjp(wide, h, w)
    assert loss.dtype == jnp.bfloat16
    np.testing.assert_allclose(loss.astype("f8"), expected, rtol=2.0**-8)
    ones = jnp.ones(6)
    for a, b in zip(back(ones.astype("bfloat16")), back_wide(ones), strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            a.astype("f8"), b.astype("f8"), atol=2.0**-6 * np.abs(b.astype("f8")).max()
        )


@pytest.mark.parametrize(
    ("h", "w", "labels", "static", "message"),
    [
        ((6, 4), (4,), T, {}, "w must have shape (d, V) with V > 0, got (4,)"),
        ((6, 4), (4, 0), T, {}, "w must have shape (d, V) with V > 0, got (4, 0)"),
        ((6, 3), (4, 7), T, {}, "h must have shape (..., 4) for w (4, 7), got (6, 3)"),
        ((), (4, 7), T, {}, "h must have shape (..., 4) for w (4, 7), got ()"),
        ((6, 4), (4, 7), T[:5], {},
         "labels must have shape (6,) and an integer dtype, got (5,) and int32"),
        ((6, 4), (4, 7), np.zeros(6), {},
         "labels must have shape (6,) and an integer dtype, got (6,) and float64"),
        ((6, 4), (4, 7), T, {"at_once": 0}, "at_once must be an integer of at least 1, got 0"),
    ],
)  # fmt: skip
def test_wrong_arguments(h, w, labels, static, message):
    with pytest.raises(ValueError) as e:
        ops.linear_cross_entropy(jnp.ones(h), jnp.ones(w), labels, **static)
    assert str(e.value) == f"linear_cross_entropy: {message}"


# Two devices with labels sharded like h; in `test_rules.py` the labels are not sharded.
H4, T4, DOUT = H[:4], T[:4], np.array([1.0, -2.0, 0.5, 1.0])


def pulled(f, h=H4, w=W, t=T4, dout=DOUT):
    return jax.jit(lambda h, w, t, dout: jax.vjp(lambda h, w: f(h, w, t), h, w)[1](dout))(
        h, w, t, dout
    )


def close(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("check", [True, False], ids=["vma", "no-vma"])
def test_shard_map(check):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
    f = functools.partial(ops.linear_cross_entropy, at_once=7, ignore=6)
    specs = (P("d"), P(), P("d"))
    mapped = jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=P("d"), check_vma=check)
    close(pulled(mapped), pulled(autodiff(f)))
    if check:
        inside = jax.shard_map(
            lambda h, w, t: jax.grad(lambda w: f(h, w, t).sum())(w),
            mesh=mesh, in_specs=specs, out_specs=P(),
        )  # fmt: skip
        ones = pulled(autodiff(f), dout=np.ones(4))
        np.testing.assert_allclose(inside(H4, W, T4), ones[1], atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("w_spec", [None, P(), P("d")], ids=["not placed", "whole", "sharded"])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_jit(kind, w_spec):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(kind,))
    f = functools.partial(ops.linear_cross_entropy, at_once=7, ignore=6)
    with jax.set_mesh(mesh):
        put = lambda v, spec: jax.device_put(v, NamedSharding(mesh, spec))
        args = put(H4, P("d")), W if w_spec is None else put(W, w_spec), put(T4, P("d"))
        actual = pulled(f, *args, put(DOUT, P("d")))
        if kind == AxisType.Explicit:
            assert jax.typeof(actual[0]).sharding.spec == P("d", None)
        close(actual, pulled(autodiff(f)))


@pytest.mark.slow
def test_export_of_any_batch():
    """The number of examples, and so of chunks, is symbolic."""
    gradient = jax.jit(
        lambda h, w, t: jax.grad(
            lambda h, w: (ops.linear_cross_entropy(h, w, t, at_once=14) ** 2).sum(), (0, 1)
        )(h, w)
    )
    (n,) = jax.export.symbolic_shape("n")
    struct = jax.ShapeDtypeStruct
    exported = jax.export.export(gradient)(
        struct((n, 4), "f8"), struct((4, 7), "f8"), struct((n,), "i4")
    )
    for count in (1, 2, 5, 6):
        args = H[:count], W, T[:count]
        close(exported.call(*args), gradient(*args))


@pytest.mark.few
@pytest.mark.parametrize("n", [256, 96, 1000])
def test_devices_share_the_batch(n):
    """Under data parallelism each device computes its share, and sends little but its sum of dw."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = (NamedSharding(mesh, P(*spec)) for spec in (("data",), ()))
    h, w, t = jnp.ones((n, 32)), jnp.ones((32, 64)), jnp.zeros(n, jnp.int32)
    loss = lambda h, w, t: ops.linear_cross_entropy(h, w, t, at_once=40 * 64).mean()
    f = jax.grad(loss, (0, 1))
    alone = jax.jit(f).lower(h, w, t).compile()
    shared = jax.jit(f, in_shardings=(rows, whole, rows)).lower(h, w, t).compile()
    flops = lambda compiled: compiled.cost_analysis()["flops"]
    assert flops(shared) < 0.3 * flops(alone)
    moved = re.findall(
        r"= f64\[([\d,]*)\]\S* (?:all-reduce|all-gather|all-to-all)\(", shared.as_text()
    )
    sizes = [math.prod(int(k) for k in shape.split(",") if k) for shape in moved]
    assert sum(sizes) <= 2 * w.size + 4 * n


@pytest.mark.few
@pytest.mark.parametrize("scale", [1.0, np.arange(1.0, 9.0)], ids=["equal dL", "several dL"])
@pytest.mark.parametrize("features", [8, 3])
def test_the_devices_of_a_plan_do_not_matter(features, scale):
    """The rows of dw are divided over the devices too, if there are enough."""
    plan = sharding.data_parallel(jax.make_mesh((4,), ("data",), devices=jax.devices()[:4]))
    h = RANDOM.standard_normal((8, features))
    w = RANDOM.standard_normal((features, 48))
    labels = RANDOM.integers(0, 48, 8)
    loss = lambda h, w: ops.linear_cross_entropy(h, w, labels, at_once=48)

    def run(h, w):
        value, vjp = jax.vjp(loss, h, w)
        return value, vjp(scale * jnp.ones_like(value))

    with plan.active():
        found = jax.jit(lambda h, w: run(h, w))(h, w)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-12), found, jax.jit(run)(h, w))
