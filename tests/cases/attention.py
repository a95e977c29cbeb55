"""Cases of attention."""

import jax
import numpy as np

from cases.case import Case, ints, normal
from cases.measured import Measured, Target, tokamax


def _qkv(batch, t, u, heads=1, groups=1, d=3, e=3, **options):
    """q, k and v with `heads` key heads and `groups` · `heads` query heads."""
    return (
        normal(*batch, t, heads * groups, d, **options),
        normal(*batch, u, heads, d, seed=1),
        normal(*batch, u, heads, e, seed=2),
    )


def _last(x, value):
    """x rounded to eighths, with `value` appended as last feature.

    So the scores are exact and have a common offset; softmax would amplify rounding errors.
    """
    return np.concatenate([np.round(8 * x) / 8, np.full_like(x[..., :1], value)], -1)


def _beyond(lengths, q, k, v):
    """Replaces keys beyond the lengths by nan, and values by ∞."""
    late = np.arange(k.shape[1])[:, None, None] >= lengths[:, None, None, None]
    return q, np.where(late, np.nan, k), np.where(late, np.inf, v)


SOME = np.random.default_rng(0).random((2, 4, 5, 6)) < 0.6
SOME[0, :, 2] = False  # this query attends to no key

CASES = {
    "dot_product_attention": [
        Case("grouped", _qkv((4,), 3, 5, 2, 2, e=2), {"causal": True}, shard=(True, True, True)),
        Case("causal without keys", _qkv((2,), 5, 3, 1, 2), {"causal": True, "scale": 0.7}),
        Case("mask, lengths", (*_qkv((2,), 5, 6, 2, 2), SOME, ints(6, 3)), {"causal": True}),
        Case(
            "near 1024", (_last(normal(3, 1, 3), 128), _last(normal(4, 1, 3), 16), normal(4, 1, 2))
        ),
        Case("loops", _qkv((2,), 513, 3, d=1, e=1), {"causal": True}),
        Case("tiles of keys", _qkv((), 1, 600, d=2)),
        Case(
            "nan beyond lengths",
            (*_beyond(ints(2, 0), *_qkv((2,), 3, 4, 2, 2)), None, ints(2, 0)),
            {"causal": True},
        ),
        Case("two batch axes", (*_qkv((2, 1), 2, 3, 2), None, ints(0, 3).reshape(2, 1))),
        Case("scaled", _qkv((), 4, 5, scale=3.0)),
        Case(
            "bias, soft cap",
            (*_qkv((2,), 3, 4, 2, 2), None, ints(4, 2), normal(4, 1, 4)),
            {"softcap": 0.5},
            shard=(True, True, True, False, True),
        ),
        Case(
            "window, bias per head",
            (*_qkv((2,), 5, 6, 1, 2), SOME[:, :2], None, normal(2, 2, 5, 6)),
            {"window": (2, 1), "causal": True},
        ),
        Case(
            "dropout, log-sum-exp",
            (*_qkv((2,), 3, 4, 2, 2), None, ints(4, 2), None, jax.random.key(0)),
            {"dropout_rate": 0.4, "return_lse": True},
        ),
        Case(
            "window, soft cap, bias by tiles",
            (*_qkv((), 259, 3, d=1, e=1), None, None, normal(1, 3)),
            {"window": 255, "softcap": 2.0},
        ),
        Case("empty", _qkv((0,), 2, 3)),
        Case("no keys", _qkv((2,), 2, 0)),
    ],
}


def _attention(
    q, k, v, mask=None, lengths=None, bias=None, dropout_key=None, *, causal=False, scale=None,
    window=None, softcap=None, dropout_rate=0.0, return_lse=False,
):  # fmt: skip
    """Attention in NumPy, with all scores at once."""
    (t, heads, d), (u, of_keys) = q.shape[-3:], k.shape[-3:-1]
    k, v = (np.repeat(x, heads // of_keys, -2) for x in (k, v))
    scores = np.einsum("...thd,...uhd->...htu", q, k) * (d**-0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    scores = scores if bias is None else scores + bias
    seen = np.ones(scores.shape, bool) if mask is None else np.broadcast_to(mask, scores.shape)
    if lengths is not None:
        seen = seen & (np.arange(u) < lengths[..., None, None, None])
    ahead = np.arange(u) - (np.arange(t)[:, None] + u - t)  # position of the key less the query's
    if causal:
        seen = seen & (ahead <= 0)
    if window is not None:
        before, after = (window, window) if isinstance(window, int) else window
        seen = seen & (-before <= ahead) & (ahead <= after)
    top = np.where(seen, scores, -np.inf).max(-1, keepdims=True, initial=-np.finfo(float).max)
    p = np.where(seen, np.exp(np.where(seen, scores - top, 0)), 0)
    total = p.sum(-1, keepdims=True)
    p = p / np.maximum(total, np.finfo(float).tiny)
    if dropout_rate:
        p = p * _kept(dropout_key, dropout_rate, p.shape, of_keys) / (1 - dropout_rate)
    v = np.where(seen.any((-3, -2))[..., None, None], v, 0)  # keys to which no query attends
    y = np.einsum("...htu,...uhe->...the", p, v)
    if not return_lse:
        return y
    lse = np.where(total > 0, top + np.log(np.maximum(total, np.finfo(float).tiny)), -np.inf)
    return y, np.swapaxes(lse[..., 0], -2, -1)


def _kept(key, rate, shape, of_keys):
    """The weights (..., H, T, U) that dropout keeps, all in one tile."""
    from funcnet.ops.dropout import draw

    *batch, heads, t, u = shape
    kept = draw(jax.random.fold_in(key, 0), rate, (*batch, of_keys, u, heads // of_keys, t))
    return np.moveaxis(np.asarray(kept), -3, -1).reshape(shape)  # from (..., K, u, g, t)


ORACLES = {
    "dot_product_attention": _attention,
}

RESIDUAL_BYTES = {
    "dot_product_attention": 4 * (4 * 3 * 4 * 2) + 8 * (4 * 3 * 4),  # y; m and s per query
}


def _heads(t, n=1, h=4, d=64):
    """Queries, keys and values of n examples with h heads of d features."""
    return tuple(normal(n, t, h, d, seed=i) for i in range(3))


def _tokamax(causal):
    options = {"is_causal": causal, "implementation": "xla_chunked"}
    return tokamax(lambda t, *qkv: t.dot_product_attention(*qkv, **options))


LARGE = {"t": 4096, "n": 4, "h": 16, "d": 128}

MEASURED = {
    "dot_product_attention, causal": Measured(
        lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True),
        "jax.nn",
        _heads,
        {"t": 4096},
        LARGE,
        {"causal": True},
        growth={"t": (64, 256, 512, 1024, 2048, 4096)},
        peers={"tokamax": _tokamax(True)},
        target=Target(0.15, 0.02),
    ),
    "dot_product_attention": Measured(
        jax.nn.dot_product_attention,
        "jax.nn",
        _heads,
        {"t": 1024},
        LARGE,
        growth={"t": (64, 256, 1024)},
        peers={"tokamax": _tokamax(False)},
    ),
}
