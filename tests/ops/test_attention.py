"""Tests particular to attention: tiles, queries without keys, memory, and JAX's kernels."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.attention import ORACLES
from criterion import equal
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from marks import slow

from funcnet import autodiff, ops
from funcnet.ops import _attention_tiles

RANDOM = np.random.default_rng(0)


def normal(*shape, dtype=jnp.float64):
    return jnp.asarray(RANDOM.standard_normal(shape), dtype)


def qkv(*batch, t=5, u=5, heads=4, of_keys=2, d=3):
    return normal(*batch, t, heads, d), normal(*batch, u, of_keys, d), normal(*batch, u, of_keys, d)


def pulled(f, *args):
    """The value of f, and the cotangents of its arguments for a cotangent of the value."""

    @jax.jit
    def run(*args):
        y, pull = jax.vjp(f, *args)
        return y, pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    return run(*args)


@pytest.fixture
def small_tiles(monkeypatch):
    """Sets tiles of 2 by 3, which do not divide the shapes."""
    plan = _attention_tiles.Plan(2, 3, narrow=False)
    monkeypatch.setattr(_attention_tiles, "ON_CPU", plan)


@pytest.mark.slow
@pytest.mark.parametrize(("t", "u"), [(7, 7), *slow((4, 9), (9, 4))])
@pytest.mark.parametrize("restricted", [*slow(False), True])
@pytest.mark.usefixtures("small_tiles")
def test_any_tiles_give_what_one_gives(t, u, restricted):
    """Value and gradient match the oracle and autodiff, wherever the tiles end."""
    args = qkv(2, t=t, u=u)
    mask = jnp.asarray(RANDOM.random((2, 1, t, u)) < 0.7) if restricted else None
    lengths = jnp.array([u // 2, u]) if restricted else None
    f = lambda *a: ops.dot_product_attention(*a, mask, lengths, causal=restricted)
    y, hand = pulled(f, *args)
    plain = (x if x is None else np.asarray(x) for x in (*args, mask, lengths))
    expected = ORACLES["dot_product_attention"](*plain, causal=restricted)
    equal(y, jnp.asarray(expected))
    by_tiles, auto = pulled(autodiff(f), *args)
    equal(by_tiles, y, ulps=0)
    equal(hand, auto)


@pytest.mark.slow
@pytest.mark.parametrize(("t", "u"), [(7, 7), *slow((4, 9), (9, 4))])
@pytest.mark.parametrize("causal", [*slow(False), True])
@pytest.mark.parametrize("rate", [0.0, *slow(0.4)])
@pytest.mark.usefixtures("small_tiles")
def test_all_options_by_tiles(t, u, causal, rate):
    """Value, log-sum-exp and gradients match autodiff, and the oracle if nothing is dropped."""
    args = (*qkv(2, t=t, u=u), normal(4, 1, u))
    options = {"causal": causal, "window": (3, 2), "softcap": 0.7, "return_lse": True}
    key = jax.random.key(0)

    def f(q, k, v, bias):
        return ops.dot_product_attention(
            q, k, v, None, jnp.array([u - 1, u]), bias, key, **options, dropout_rate=rate
        )

    found, auto = both_ways(f, *args)
    equal(found, auto, ulps=64)
    if not rate:
        plain = (*map(np.asarray, args[:3]), None, np.array([u - 1, u]), np.asarray(args[3]))
        expected = ORACLES["dot_product_attention"](*plain, **options)
        equal(found[0], jax.tree.map(jnp.asarray, expected))


def both_ways(f, *args):
    """Value and cotangents of f's finite outputs, by hand and by autodiff."""

    def run(f):
        value, pull = jax.vjp(f, *args)
        dout = jax.tree.map(lambda y: jnp.where(jnp.isfinite(y), jnp.cos(y), 0), value)
        return value, pull(dout)

    return jax.jit(lambda: (run(f), run(autodiff(f))))()


@pytest.mark.usefixtures("small_tiles")
def test_a_large_bias_of_keys_and_padded_queries():
    """A bias with one row for all queries also reaches the queries that fill the last tile."""
    found, auto = both_ways(ops.dot_product_attention, *qkv(t=3, u=4), None, None, 800 + normal(4))
    equal(found, auto, ulps=64)


def test_a_bias_of_minus_infinity_is_a_mask():
    q, k, v = qkv(2)
    mask = jnp.asarray(np.random.default_rng(3).random((2, 1, 5, 5)) < 0.6).at[0, 0, 2].set(False)
    f = lambda q, k, v: ops.dot_product_attention(q, k, v, mask)
    g = lambda q, k, v: ops.dot_product_attention(
        q, k, v, None, None, jnp.where(mask, 0.0, -jnp.inf)
    )
    equal(pulled(f, q, k, v), pulled(g, q, k, v))


def test_parts_of_a_softmax_are_merged_by_their_log_sum_exp():
    q, k, v = qkv(2, t=3, u=7)

    def merged(q, k, v):
        parts = [
            ops.dot_product_attention(q, k[:, at], v[:, at], return_lse=True)
            for at in (slice(0, 3), slice(3, 7))
        ]
        weights = jax.nn.softmax(jnp.stack([lse for _, lse in parts]), 0)
        return sum(w[..., None] * y for w, (y, _) in zip(weights, parts, strict=True))

    equal(pulled(merged, q, k, v), pulled(ops.dot_product_attention, q, k, v), ulps=64)


def test_dropout_drops_weights_at_its_rate():
    """All weights are equal, so that y tells the fraction that is kept, divided by 1 − p."""
    q, k, v = jnp.zeros((64, 2, 4)), jnp.zeros((600, 1, 4)), jnp.ones((600, 1, 1))

    @jax.jit
    def f(key, rate=0.3):
        return ops.dot_product_attention(q, k, v, dropout_key=key, dropout_rate=rate)

    y = f(jax.random.key(0))
    np.testing.assert_allclose(y.mean(), 1, atol=4 * (0.3 / 0.7 / y.size / 600) ** 0.5)
    np.testing.assert_allclose(y.std(), (0.3 / 0.7 / 600) ** 0.5, rtol=0.3)
    assert (y == f(jax.random.key(0))).all()
    assert (y[:, 0] != y[:, 1]).any()
    assert (y != f(jax.random.key(1))).any()
    rates = jnp.array([0.0, 0.3])
    swept = jax.vmap(f, (None, 0))(jax.random.key(0), rates)
    np.testing.assert_allclose(swept[0], 1, rtol=1e-6)
    np.testing.assert_allclose(swept[1], y, rtol=1e-6)


@pytest.mark.parametrize(("t", "u"), [(2048, 2048), (1000, 2048), (2048, 1000)])
@pytest.mark.parametrize("span", [(None, None), (None, 0), (256, 0), (257, 0), (0, 256), (0, 257)])
def test_tiles_that_are_hidden_are_skipped(t, u, span):
    tiles = _attention_tiles.tiles(t, u, span, _attention_tiles.ON_CPU)
    (bt, bu), (before, after) = tiles.block, (2048 if n is None else n for n in span)
    ahead = np.arange(tiles.padded[1]) - (np.arange(t)[:, None] + u - t)
    seen = (-before <= ahead) & (ahead <= after)
    needed = [
        (i, j)
        for i in range(tiles.counts[0])
        for j in range(tiles.counts[1])
        if seen[i * bt : (i + 1) * bt, j * bu : (j + 1) * bu].any()
    ]
    assert tiles.visible.tolist() == [list(pair) for pair in needed]


def test_one_tile_needs_no_loop():
    f = lambda *args: pulled(lambda *a: ops.dot_product_attention(*a, causal=True), *args)
    assert "scan" not in str(jax.make_jaxpr(f)(*qkv(t=256, u=256)))
    assert "scan" in str(jax.make_jaxpr(f)(*qkv(t=257, u=257)))


@pytest.mark.slow
def test_a_query_that_sees_no_key_gives_zero_and_takes_no_part():
    q, k, v = qkv(2, t=3, u=4)
    mask = jnp.ones((3, 4), bool).at[1].set(False)
    f = lambda *a: ops.dot_product_attention(*a, mask, jnp.array([4, 0]))
    y, (dq, dk, dv) = pulled(f, q, k, v)
    for x in (y, dq):
        assert (x[0, 1] == 0).all()
        assert (x[1] == 0).all()
        assert (x[0, 0] != 0).all()
    assert (dk[1] == 0).all()
    assert (dv[1] == 0).all()
    without = lambda q, k, v: f(q.at[0, 1].add(10.0), k, v)
    equal(pulled(without, q, k, v)[1], (dq, dk, dv), ulps=0)


def hiding(t, u):
    """A mask per head, lengths, and the scores that both and causal leave: (2, 4, T, U).

    Some queries attend to no key, some keys are hidden, and one example has no key at all.
    """
    mask = np.random.default_rng(1).random((2, 4, t, u)) < 0.7
    mask[:, :, 2], mask[:, :2, :, 1] = False, False
    lengths = np.array([u - 1, 0])
    seen = mask & (np.arange(u) < lengths[:, None, None, None])
    return mask, lengths, seen & (np.arange(u) <= np.arange(t)[:, None] + u - t)


def unseen(seen):
    """True for queries (2, T, H) without keys, and for hidden keys (2, U, K) with K = 2."""
    by_group = seen.reshape(2, 2, 2, *seen.shape[-2:])
    return ~seen.any(-1).swapaxes(1, 2), ~by_group.any((2, 3)).swapaxes(1, 2)


def spoil(x, where, bad):
    return jnp.where(where[..., None], bad, x)


@pytest.mark.slow
@pytest.mark.parametrize("bad", [np.nan, *slow(np.inf, -np.inf, 1.7e308)])
@pytest.mark.parametrize("scale", [None, *slow(8.0)])
@pytest.mark.usefixtures("small_tiles")
def test_what_is_hidden_has_no_influence(bad, scale):
    """Hidden keys and values, queries without keys, and their part of dy have no influence."""
    mask, lengths, seen = hiding(5, 7)
    q, k, v = qkv(2, t=5, u=7)
    blind, hidden = unseen(seen)

    def f(*a):
        return ops.dot_product_attention(*a, mask, lengths, causal=True, scale=scale)

    @jax.jit
    def run(q, k, v, dy):
        y, pull = jax.vjp(f, q, k, v)
        _, pull_auto = jax.vjp(autodiff(f), q, k, v)
        finite_dy = jnp.nan_to_num(dy, posinf=1, neginf=-1)
        return (y, *pull(dy)), pull_auto(finite_dy)

    dy = normal(*q.shape)
    clean, auto = run(q, k, v, dy)
    dirty = spoil(q, blind, bad), spoil(k, hidden, bad), spoil(v, hidden, bad)
    found, found_auto = run(*dirty, spoil(dy, blind, bad))
    equal(found, clean, ulps=0)
    equal(found_auto, auto)
    _, dq, dk, dv = found
    assert not np.any(dq[blind])
    assert not np.any(dk[hidden])
    assert not np.any(dv[hidden])


@pytest.mark.few
@pytest.mark.parametrize("which", [0, 1, *slow(2)])
@pytest.mark.usefixtures("small_tiles")
def test_nan_that_is_seen_reaches_those_who_see_it(which):
    """A nan in a query, key or value makes exactly the queries that attend to it nan."""
    mask, lengths, seen = hiding(5, 7)
    args, at = (
        list(qkv(2, t=5, u=7)),
        (0, 3, 1) if which == 0 else (0, 2, 1),
    )  # example, position, head
    args[which] = args[which].at[(*at, 0)].set(jnp.nan)
    f = lambda *a: ops.dot_product_attention(*a, mask, lengths, causal=True)
    y, (dq, dk, dv) = pulled(f, *args)
    hit = np.zeros((2, 5, 4), bool)  # queries that attend to the nan
    if which == 0:
        hit[at] = True
    else:
        hit[0, :, 2:] = seen[0, 2:, :, at[1]].T
    touched = np.einsum("nhtu,nth->nuh", seen, hit)  # keys that these attend to
    assert 0 < hit.sum() < hit.size
    for x in (y, dq):
        np.testing.assert_array_equal(np.isnan(x), np.broadcast_to(hit[..., None], x.shape))
    for x in (dk, dv):
        np.testing.assert_array_equal(np.isnan(x).any(-1), touched[..., ::2] | touched[..., 1::2])


@pytest.mark.slow
@pytest.mark.usefixtures("small_tiles")
def test_what_is_hidden_has_no_second_derivative():
    mask, lengths, seen = hiding(3, 4)
    args = qkv(2, t=3, u=4)
    blind, hidden = unseen(seen)
    dirty = tuple(spoil(x, w, jnp.nan) for x, w in zip(args, (blind, hidden, hidden), strict=True))
    direction = tuple(jnp.cos(x) for x in args)

    def products(args, f):
        loss = lambda q, k, v: (f(q, k, v, mask, lengths, causal=True) ** 2).sum()
        gradient = lambda args: jax.grad(loss, (0, 1, 2))(*args)
        along = lambda args: sum(map(jnp.vdot, gradient(args), direction))
        return jax.jvp(gradient, (args,), (direction,))[1], jax.grad(along)(args)

    f = ops.dot_product_attention
    equal(jax.jit(lambda: products(dirty, f))(), jax.jit(lambda: products(args, f))(), ulps=512)
    equal(
        jax.jit(lambda: products(dirty, f))(),
        jax.jit(lambda: products(dirty, autodiff(f)))(),
        ulps=512,
    )


def test_nothing_is_paid_where_nothing_is_hidden():
    """A single query attends to all keys, so causal must not change the program."""
    q, k, v = qkv(t=1, u=600)
    programs = (
        jax.make_jaxpr(lambda *a, c=c: ops.dot_product_attention.__wrapped__(*a, causal=c))(q, k, v)
        for c in (False, True)
    )
    plain, causal = map(str, programs)
    assert plain == causal
    assert "is_finite" not in plain


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32, jnp.uint32, jnp.int64])
def test_lengths_of_any_integer_dtype(dtype):
    q, k, v = qkv(2, t=1, u=300)
    y = ops.dot_product_attention(q, k, v, None, jnp.array([200, 3], dtype))
    expected = ops.dot_product_attention(q[1], k[1, :3], v[1, :3])
    equal(y[1], expected)
    equal(y[0], ops.dot_product_attention(q[0], k[0, :200], v[0, :200]))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.usefixtures("small_tiles")
def test_a_common_offset_of_the_scores_costs_no_digits(sign):
    """All scores have an offset of ± 4096, at which float32 has 11 bits less for each score."""
    q, k, v = (x.astype(jnp.float32) for x in qkv(t=6, u=6, heads=1, of_keys=1, d=4))
    q, k = jnp.round(q * 8) / 8, jnp.round(k * 8) / 8  # products of few bits, so that S is exact
    q, k = q.at[..., 3].set(64.0), k.at[..., 3].set(0.0)
    f = lambda q, k, v: ops.dot_product_attention(q, k, v, scale=1.0)
    y, (dq, _, dv) = pulled(f, q, k, v)
    high, (dq_high, _, dv_high) = pulled(f, q, k.at[..., 3].set(sign * 64.0), v)
    equal(high, y, ulps=4)
    equal(dv_high, dv, ulps=4)
    equal(dq_high[..., :3], dq[..., :3], ulps=16)


def test_memory_grows_linearly():
    """The temporary bytes of value and gradient grow like those of dy and two arrays like q."""

    def temporary(t):
        f = lambda *a: pulled(lambda *b: ops.dot_product_attention(*b, causal=True), *a)
        x = jax.ShapeDtypeStruct((t, 4, 64), jnp.float32)
        return jax.jit(f).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    short, long = temporary(4096), temporary(8192)
    q = 4096 * 4 * 64 * 4  # bytes; the scores would take 128 times as much per head
    assert long - short <= 3.1 * q
    assert long <= 8 * q


OPTIONS = [  # the default run has all three at once
    pytest.param(*each, marks=[] if all(each) else pytest.mark.slow)
    for each in itertools.product([False, True], repeat=3)
]


@pytest.mark.slow
@pytest.mark.parametrize(("causal", "masked", "cut"), OPTIONS)
def test_jax_nn_computes_the_same(causal, masked, cut):
    """Grouped heads, with and without `implementation`; softmax of jax.nn is always in float32."""
    args = qkv(2)
    mask = jnp.asarray(RANDOM.random((2, 1, 5, 5)) < 0.7).at[..., 0].set(True) if masked else None
    lengths = jnp.array([5, 2], jnp.int32) if cut else None
    with jax.numpy_dtype_promotion("standard"):
        expected = pulled(
            lambda *a: jax.nn.dot_product_attention(
                *a, mask=mask, is_causal=causal, key_value_seq_lengths=lengths
            ),
            *args,
        )
    for option in (None, "xla"):
        f = lambda *a, o=option: ops.dot_product_attention(
            *a, mask, lengths, causal=causal, implementation=o
        )
        jax.tree.map(close, pulled(f, *args), expected)


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, *slow(1, np.int64(1), ((2, 0),), ((0, 3),))])
@pytest.mark.parametrize("shape", [[5], *slow([1, 1, 5, 1], [2, 4, 5, 5])])
def test_jax_nn_computes_the_same_with_bias_and_window(window, shape):
    args, bias = qkv(2), normal(*shape)
    four = lambda b: b.reshape((1,) * (4 - b.ndim) + b.shape)
    with jax.numpy_dtype_promotion("standard"):
        expected = pulled(
            lambda q, k, v, b: jax.nn.dot_product_attention(
                q,
                k,
                v,
                four(b),
                local_window_size=window if isinstance(window, tuple | None) else int(window),
            ),
            *args,
            bias,
        )
    for option in (None, "xla"):
        f = lambda q, k, v, b, o=option: ops.dot_product_attention(
            q, k, v, None, None, b, window=window, implementation=o
        )
        jax.tree.map(close, pulled(f, *args, bias), expected)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.few
@pytest.mark.parametrize(
    "mask",
    [
        np.ones((3, 1, 1, 5), bool),
        np.tri(5, dtype=bool),
        np.stack([np.tri(5, k=i) > 0 for i in range(4)]),
    ],
)
def test_implementation_with_any_batch_axes(mask):
    args = (*qkv(2, 3), jnp.asarray(mask), jnp.full((2, 3), 4))
    f = lambda o: pulled(
        lambda *a: ops.dot_product_attention(*a, *args[3:], scale=0.3, implementation=o), *args[:3]
    )
    jax.tree.map(close, f("xla"), f(None))


def test_padding_by_a_batched_mask_of_fewer_axes():
    q, k, v = qkv(2)
    seen = jnp.array([True, True, False, True, False])
    equal(
        ops.dot_product_attention(q, k, v, seen),
        ops.dot_product_attention(q, k[:, seen], v[:, seen]),
    )


Z = jnp.zeros
ERRORS = [
    (
        (Z((2, 3)), Z((2, 3)), Z((2, 3))),
        {},
        "q, k and v must have shapes (..., T, H, d), (..., U, K, d) and (..., U, K, e), "
        "got q (2, 3), k (2, 3), v (2, 3)",
    ),
    (
        (Z((2, 1, 3)), Z((2, 1, 4)), Z((2, 1, 3))),
        {},
        "q, k and v must have shapes (..., T, H, d), (..., U, K, d) and (..., U, K, e), "
        "got q (2, 1, 3), k (2, 1, 4), v (2, 1, 3)",
    ),
    (
        (Z((2, 3, 4)), Z((2, 2, 4)), Z((2, 2, 4))),
        {},
        "q must have a multiple of 2 heads, those of k, got q (2, 3, 4), k (2, 2, 4), v (2, 2, 4)",
    ),
    (
        (Z((2, 1, 4)), Z((2, 1, 4)), Z((2, 1, 4), jnp.float32)),
        {},
        "q, k and v must have one floating dtype, got float64, float64, float32",
    ),
    (
        (Z((2, 1, 4)), Z((3, 1, 4)), Z((3, 1, 4)), Z((3, 2), bool)),
        {},
        "mask must be boolean and broadcast to (1, 2, 3), got bool (3, 2)",
    ),
    (
        (Z((2, 1, 4)), Z((3, 1, 4)), Z((3, 1, 4)), Z((2, 3))),
        {},
        "mask must be boolean and broadcast to (1, 2, 3), got float64 (2, 3)",
    ),
    (
        (Z((5, 2, 1, 4)), Z((5, 3, 1, 4)), Z((5, 3, 1, 4)), None, Z(3, int)),
        {},
        "lengths must be integers of shape (5,), got int64 (3,)",
    ),
    (
        (Z((2, 1, 4)), Z((2, 1, 4)), Z((2, 1, 5))),
        {"implementation": "cudnn"},
        "v must have the shape of k for cudnn, got k (2, 1, 4), v (2, 1, 5)",
    ),
    (
        (Z((2, 1, 4)), Z((3, 1, 4)), Z((3, 1, 4))),
        {"implementation": "xla", "causal": True},
        "causal must have as many keys as queries for xla, got 3 and 2",
    ),
    (
        (Z((2, 1, 4)), Z((3, 1, 4)), Z((3, 1, 4))),
        {"implementation": "xla", "window": 2},
        "window must have as many keys as queries for xla, got 3 and 2",
    ),
    *(
        (
            (Z((2, 1, 4)), Z((2, 1, 4)), Z((2, 1, 4)), None, None, None, jax.random.key(0)),
            {"implementation": "xla", name: value},
            f"{name} cannot be used with implementation 'xla'",
        )
        for name, value in (("softcap", 2.0), ("dropout_rate", 0.5), ("return_lse", True))
    ),
    (
        (Z((2, 1, 4)), Z((3, 1, 4)), Z((3, 1, 4)), None, None, Z((3, 2))),
        {},
        "bias must be floating and broadcast to (1, 2, 3), got float64 (3, 2)",
    ),
]


@pytest.mark.parametrize(("args", "options", "message"), ERRORS)
def test_errors(args, options, message):
    for f in (
        ops.dot_product_attention,
        lambda *a, **o: jax.vjp(lambda *x: ops.dot_product_attention(*x, *a[3:], **o), *a[:3]),
    ):
        with pytest.raises(ValueError) as e:
            f(*args, **options)
        assert str(e.value) == f"dot_product_attention: {message}"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"implementation": "flash"},
            "implementation must be None, 'tiles', 'cudnn' or 'xla', got 'flash'",
        ),
        ({"scale": np.nan}, "scale must be a finite number, got nan"),
        ({"scale": "big"}, "scale must be a number, got 'big'"),
        ({"softcap": 0.0}, "softcap must be a finite number above 0, got 0.0"),
        ({"dropout_rate": 1.0}, "dropout_rate must be a number in [0, 1), got 1.0"),
        ({"dropout_rate": 0.5}, "dropout_key must be one key of jax.random.key, got None"),
        (
            {"bias": np.ones((5, 5), int)},
            "bias must be floating and broadcast to (2, 4, 5, 5), got int64 (5, 5)",
        ),
        *(
            (
                {"window": window},
                f"window must be an integer or a pair of integers, at least 0, got {window!r}",
            )
            for window in (-1, (1, -2), (1, 2, 3), 2.5, (None, 2))
        ),
        ({"causal": "no"}, "causal must be True or False, got 'no'"),
        ({"lengths": [3, 4]}, "lengths must be an array, got list"),
        (
            {"lengths": np.ones(2)},
            "lengths must be integers of shape (2,), got float64 (2,)",
        ),
        ({"mask": "causal"}, "mask must be an array, got str"),
        (
            {"q": np.ones((2, 5, 4, 3), int)},
            "q, k and v must have one floating dtype, got int64, float64, float64",
        ),
    ],
)
def test_bad_options_and_arguments(changed, message):
    arguments = dict(zip("qkv", qkv(2), strict=True)) | changed
    with pytest.raises((TypeError, ValueError)) as e:
        ops.dot_product_attention(**arguments)
    assert str(e.value) == f"dot_product_attention: {message}"


@pytest.mark.slow
@pytest.mark.parametrize("placed", [0, *slow(1)])
@pytest.mark.usefixtures("small_tiles")
def test_explicit_meshes_with_some_arguments_on_them(placed):
    args, lengths = qkv(2), np.array([5, 3])
    loss = lambda *a: (ops.dot_product_attention(*a, None, lengths, causal=True) ** 2).sum()
    expected = jax.jit(jax.grad(loss, (0, 1, 2)))(*args)
    mesh = jax.make_mesh((2,), ("d",))
    with jax.set_mesh(mesh):
        mixed = [np.asarray(x) for x in args]
        mixed[placed] = jax.device_put(mixed[placed], NamedSharding(mesh, P("d")))
        found = jax.grad(loss, (0, 1, 2))(*mixed)
    for x, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, e, rtol=0, atol=1e-14)
