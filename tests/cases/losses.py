"""Cases of the losses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cases.case import Case, ints, normal, one_hot, probabilities
from cases.measured import Measured, Target, integers, logits_and_probabilities, matrices

TARGETS = [
    Case("rank2", (normal(4, 5), normal(4, 5, seed=1)), shard=(True, True)),
    Case("ints", (normal(2, 3), np.array([[0, 1, 5], [2, -3, 0]], np.int32))),
    Case("rank1", (normal(3), normal(3, seed=1))),
    Case("rank4", (normal(2, 1, 3, 4), normal(2, 1, 3, 4, seed=1))),
    Case("one output", (normal(4, 1), normal(4, 1, seed=1))),
    Case("exact", (np.ones((2, 3)), np.ones((2, 3)))),
    Case("empty", (np.zeros((0, 3)), np.zeros((0, 3)))),
]

LOG_P = np.log(probabilities(4, 5))

SOME = np.random.default_rng(0).random((4, 5)) < 0.6  # classes that count; of the second example,
SOME[1] = False  # none does
SOME[3] = [True, False, True, True, False]
MOST = np.array([True, False, True, True])  # examples that count
WEIGHTS = np.array([0.5, 2.0, 0.0, 1.5, 3.0])


def hidden(x, where, value=np.nan):
    """x with another value where nothing counts."""
    return np.where(where if where.ndim == x.ndim else where[:, None], x, value)


def masked(x, t, index):
    """Cases of where, class weights and ignore: x of shape (4, 5), t probabilities, and indices."""
    ignored, one_out = ints(0, -9, 2, -9), ints(0, 9, 3, 4)
    return [
        Case("ignore", (hidden(x, ignored >= 0, np.inf), ignored), {"ignore": -9}),
        Case("examples", (hidden(x, MOST), one_out, MOST)),
        Case("examples, ignore", (x, index, MOST), {"ignore": int(index[0])}),
        Case("examples of probabilities", (hidden(x, MOST), hidden(t, MOST), MOST[:, None])),
        Case("classes", (hidden(x, SOME), ints(0, 9, 0, 2), SOME)),
        Case("classes for all", (x, index, np.array([[True, False, True, True, True]]))),
        Case("classes of probabilities", (hidden(x, SOME), hidden(t, SOME), SOME)),
        Case("weights", (x, index, None, WEIGHTS)),
        Case("weights, ignore", (x, index, SOME, WEIGHTS), {"ignore": int(index[2])}),
        Case("weights of probabilities", (x, t, None, WEIGHTS)),
        Case("weights of classes", (hidden(x, SOME), hidden(t, SOME), SOME, WEIGHTS)),
    ]


def smoothed(case):
    return case._replace(id=f"smooth {case.id}", static={**case.static, "label_smoothing": 0.25})


CASES = {
    "mean_squared_error": TARGETS,
    "sum_squared_error": TARGETS,
    "mean_absolute_error": TARGETS,
    "cross_entropy": [
        Case("rank2", (probabilities(4, 5), probabilities(4, 5, seed=1)), shard=(True, True)),
        Case("index", (probabilities(4, 5), ints(0, 4, 2, 4))),
        Case("rank1", (probabilities(5), one_hot(3, 5))),
        Case("index rank1", (probabilities(5), np.array(2, np.uint8))),
        Case("rank4", (probabilities(2, 1, 3, 4), probabilities(2, 1, 3, 4, seed=1))),
        Case("one-hot", (probabilities(3, 4), one_hot([0, 2, 2], 4))),
        Case("one-hot ints", (probabilities(3, 4), one_hot([0, 2, 2], 4).astype(np.int32))),
        Case("not normalised", (np.exp(normal(3, 4)), np.exp(normal(3, 4, seed=1)))),
        *masked(probabilities(4, 5), probabilities(4, 5, seed=1), ints(1, 4, 2, 4)),
    ],
    "softmax_cross_entropy": [
        Case("rank2", (normal(4, 5), probabilities(4, 5, seed=1)), shard=(True, True)),
        Case("index", (normal(4, 5), ints(0, 4, 2, 4))),
        Case("index out of range", (normal(4, 5), ints(5, -1, 2, -100))),
        Case("rank1", (normal(5), one_hot(3, 5))),
        Case("index rank1", (normal(5), np.array(2, np.uint8))),
        Case("rank4", (normal(2, 1, 3, 4), probabilities(2, 1, 3, 4, seed=1))),
        Case("index rank3", (normal(2, 3, 4), np.array([[0, 1, 2], [3, 3, 0]], np.int64))),
        Case("one-hot", (normal(3, 4), one_hot([0, 2, 2], 4))),
        Case("one-hot ints", (normal(3, 4), one_hot([0, 2, 2], 4).astype(np.int32))),
        Case("not normalised", (normal(3, 4), 3 * probabilities(3, 4, seed=1))),
        Case("half", (normal(2, 3), np.array([[0.5, 0.5, 0.0], [0.4, 0.35, 0.25]]))),
        Case("uniform", (np.zeros((3, 5)), ints(0, 4, 2))),
        Case("ties", (np.array([[3.0, 3.0, 1.0], [3.0, 3.0, 1.0]]), one_hot([0, 2], 3))),
        Case("ties index", (np.array([[3.0, 3.0, 1.0], [3.0, 3.0, 1.0]]), ints(0, 2))),
        Case("one class", (normal(3, 1), ints(0, 0, 0))),
        Case("offset", (normal(3, 5, mean=1000.0), ints(0, 4, 2))),
        Case("offset probabilities", (normal(3, 5, mean=1000.0), probabilities(3, 5, seed=1))),
        Case("confident", (normal(3, 5, scale=20.0), one_hot([0, 4, 2], 5))),
        Case("confident index", (normal(3, 5, scale=20.0), ints(0, 4, 2))),
        Case("masked", (np.array([[0.0, 1.0, -np.inf]]), ints(0))),
        Case("masked one-hot", (np.array([[0.0, 1.0, -np.inf]]), ints([1, 0, 0]))),
        Case("empty", (np.zeros((0, 3)), np.zeros((0,), np.int32))),
        Case("smooth", (normal(4, 5), probabilities(4, 5, seed=1)), {"label_smoothing": 0.25}),
        Case("smooth index", (normal(4, 5), ints(0, 4, 2, -1)), {"label_smoothing": 0.1}),
        Case("smooth rank1", (normal(5), one_hot(3, 5)), {"label_smoothing": 0.9}),
        Case("smooth offset", (normal(3, 5, mean=1e3), ints(0, 4, 2)), {"label_smoothing": 0.1}),
        *masked(normal(4, 5), probabilities(4, 5, seed=1), ints(1, 4, 2, 4)),
        *map(smoothed, masked(normal(4, 5), probabilities(4, 5, seed=1), ints(1, 4, 2, 4))),
    ],
    "huber": [
        Case("rank2", (normal(4, 5), 2 * normal(4, 5, seed=1)), shard=(True, True)),
        Case("rank1", (normal(3), normal(3, seed=1)), {"delta": 0.5}),
        Case("rank4", (normal(2, 1, 3, 4), normal(2, 1, 3, 4, seed=1)), {"delta": 2.0}),
        Case("ints", (3 * normal(2, 3), np.array([[0, 1, 5], [2, -3, 0]], np.int32))),
        Case("exact, ties", (np.array([[1.0, 1.0, 1.0], [2.0, 0.5, 3.5]]), np.ones((2, 3)))),
        Case("far", (np.array([[1e30, -1e30, 1e-30]]), np.zeros((1, 3)))),
        Case("one output", (normal(4, 1), normal(4, 1, seed=1))),
        Case("empty", (np.zeros((0, 3)), np.zeros((0, 3)))),
    ],
    "kl_divergence": [
        Case("rank2", (LOG_P, probabilities(4, 5, seed=1)), shard=(True, True)),
        Case("rank1", (LOG_P[0], probabilities(5, seed=1))),
        Case("rank4", (normal(2, 1, 3, 4), probabilities(2, 1, 3, 4, seed=1))),
        Case("one-hot", (LOG_P, one_hot([0, 2, 4, 4], 5))),
        Case("one-hot bools", (LOG_P, one_hot([0, 2, 4, 4], 5).astype(bool))),
        Case("equal", (np.log(np.full((2, 4), 0.25)), np.full((2, 4), 0.25))),
        Case("excluded", (np.array([[0.0, -np.inf]]), np.array([[1.0, 0.0]]))),
        Case("impossible", (np.array([[0.0, -np.inf]]), np.array([[0.5, 0.5]]))),
        Case("tiny", (np.array([[-1e-30, -200.0]]), np.array([[1.0, 1e-30]]))),
        Case("empty", (np.zeros((0, 3)), np.zeros((0, 3)))),
        Case("classes", (hidden(LOG_P, SOME), hidden(probabilities(4, 5, seed=1), SOME), SOME)),
        Case("examples", (hidden(LOG_P, MOST), hidden(probabilities(4, 5, seed=1), MOST), MOST)),
    ],
}


def by_example(oracle):
    """The oracle with where, class weights and ignore, from the classes that count alone."""

    def losses(x, t, where=None, class_weights=None, *, ignore=None, label_smoothing=0.0):
        options = {"label_smoothing": label_smoothing} if label_smoothing else {}
        if where is None and class_weights is None and ignore is None:
            return oracle(x, t, **options)
        where = np.ones(x.shape[:1], bool) if where is None else where
        where = np.broadcast_to(where if where.ndim == x.ndim else where[:, None], x.shape).copy()
        if t.ndim < x.ndim:
            where[t == ignore] = False
            t = np.where(
                (t < 0) | (t >= x.shape[1]), np.nan, one_hot(t % x.shape[1], x.shape[1]).T
            ).T
        weights = np.ones(x.shape[1]) if class_weights is None else class_weights
        found = np.zeros(len(x))
        for i, counts in enumerate(where):
            if counts.any():
                target = (1 - label_smoothing) * t[i, counts] + label_smoothing / counts.sum()
                found[i] = oracle(x[i, counts], weights[counts] * target)
        return found

    return losses


def _cross_entropy(y, t):
    dense = np.eye(y.shape[-1])[t] if np.shape(t) != np.shape(y) else t
    return -(dense * np.log(y)).sum(-1)


def _softmax_cross_entropy(x, t, label_smoothing=0.0):
    if label_smoothing:
        dense = np.asarray(t)
        if dense.shape != np.shape(x):
            dense = dense[..., None] == np.arange(np.shape(x)[-1])
        t = np.array(optax.losses.smooth_labels(jnp.asarray(dense, float), label_smoothing))
        t[~dense.any(-1)] = np.nan
    if np.shape(t) != np.shape(x):
        loss = optax.losses.softmax_cross_entropy_with_integer_labels(
            jnp.asarray(x), jnp.asarray(t, jnp.int32)
        )
        return jnp.where((t >= 0) & (t < np.shape(x)[-1]), loss, jnp.nan)
    log_p = jax.nn.log_softmax(jnp.asarray(x))
    return -jnp.where(t == 0, 0.0, np.asarray(t, float) * log_p).sum(
        -1
    )  # Optax gives nan for 0 · log 0


ORACLES = {
    "mean_squared_error": lambda y, t: np.square(y - t).mean(-1),
    "sum_squared_error": lambda y, t: np.square(y - t).sum(-1) / 2,
    "mean_absolute_error": lambda y, t: np.abs(y - t).mean(-1),
    "cross_entropy": by_example(_cross_entropy),
    "softmax_cross_entropy": by_example(_softmax_cross_entropy),
    "huber": lambda y, t, delta=1.0: optax.losses.huber_loss(
        jnp.asarray(y), jnp.asarray(t, jnp.float64), delta=delta
    ).mean(-1),
    "kl_divergence": by_example(
        lambda log_p, t: (
            jax.scipy.special.xlogy(np.asarray(t, float), t * 1.0).sum(-1)
            - np.where(t == 0, 0.0, t * log_p).sum(-1)
        )
    ),
}

RESIDUAL_BYTES = {
    "mean_squared_error": 0,
    "sum_squared_error": 0,
    "mean_absolute_error": 0,
    "cross_entropy": 0,
    "softmax_cross_entropy": 4 * 20 + 3 * 4 * 4,  # e; top, rest and m of 4 rows
    "huber": 0,
    "kl_divergence": 0,
}


def _smoothed(logits, labels):
    one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(one_hot, 0.1))


def _with_indices(n, c):
    return normal(n, c), integers(c, n)


MEASURED = {
    "mean_squared_error": Measured(
        lambda y, t: ((y - t) ** 2).mean(-1), "jnp", matrices, argnums=0
    ),
    "sum_squared_error": Measured(
        lambda y, t: ((y - t) ** 2).sum(-1) / 2, "jnp", matrices, argnums=0
    ),
    "mean_absolute_error": Measured(
        lambda y, t: jnp.abs(y - t).mean(-1), "jnp", matrices, argnums=0
    ),
    "huber": Measured(lambda y, t: optax.huber_loss(y, t).mean(-1), "optax", matrices, argnums=0),
    "cross_entropy": Measured(
        lambda y, t: -(t * jnp.log(y)).sum(-1),
        "jnp",
        lambda n, c: (probabilities(n, c), probabilities(n, c, seed=1)),
        argnums=0,
    ),
    "kl_divergence": Measured(
        optax.kl_divergence,
        "optax",
        lambda n, c: (np.log(probabilities(n, c)), probabilities(n, c, seed=1)),
        argnums=0,
    ),
    "softmax_cross_entropy, indices": Measured(
        optax.softmax_cross_entropy_with_integer_labels,
        "optax",
        _with_indices,
        {"n": 512, "c": 8192},
        {"n": 8192, "c": 32000},
        growth={"n": (128, 512, 2048), "c": (512, 2048, 8192, 32768)},
        target=Target(1.0),
    ),
    "softmax_cross_entropy, probabilities": Measured(
        optax.softmax_cross_entropy,
        "optax",
        logits_and_probabilities,
        argnums=0,
        gpu=Target(1.41),  # the sum of the labels is a pass
    ),
    "softmax_cross_entropy, smoothed": Measured(
        _smoothed,
        "optax",
        _with_indices,
        static={"label_smoothing": 0.1},
        gpu=Target(1.35),
    ),
}
