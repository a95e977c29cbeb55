"""The arguments on which every rule is tested. Data only: properties are in `test_rules.py`.

Floating arguments are written in float64, and cast by the tests. All values are reproducible.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np


class Case(NamedTuple):
    """One call of a rule: `rule(*args, **static)`."""

    id: str
    args: tuple[Any, ...]
    static: Mapping[str, Any] = MappingProxyType({})
    shard: tuple[bool, ...] = ()  # which arguments have a batch axis in front that can be sharded


def normal(*shape, seed=0, scale=1.0, mean=0.0):
    return mean + scale * np.random.default_rng([seed, *shape]).standard_normal(shape)


def probabilities(*shape, seed=0):
    e = np.exp(normal(*shape, seed=seed))
    return e / e.sum(-1, keepdims=True)


def one_hot(index, classes):
    return np.eye(classes)[np.asarray(index)]


def ints(*values):
    return np.array(values, np.int32)


ELEMENTWISE = [
    Case("rank1", (normal(8),), shard=(True,)),
    Case("rank0", (normal(),)),
    Case("rank4", (normal(2, 1, 3, 4),)),
    Case("zeros", (np.array([[0.0, -0.0, 1.0], [-1.0, 0.0, 0.0]]),)),
    Case("wide", (normal(5, 7, scale=10.0),)),
    Case("tails", (np.array([0.5, -700.0, -88.0, -40.0, -17.0, 17.0, 40.0, 88.0, 700.0]),)),
    Case("infinite", (np.array([-np.inf, 0.5, np.inf]),)),
    Case("empty", (np.zeros((0, 3)),)),
]
BY_SLICE = [
    Case("rank2", (normal(4, 5),), shard=(True,)),
    Case("rank1", (normal(6),)),
    Case("axis0", (normal(3, 4),), {"axis": 0}),
    Case("axis1of4", (normal(2, 3, 1, 4),), {"axis": 1}),
    Case("one class", (normal(3, 1),)),
    Case("ties", (np.array([[1.0, 1.0, 0.0], [2.0, 2.0, 2.0]]),)),
    Case("offset", (normal(3, 5, mean=1000.0),)),
    Case("scaled", (normal(3, 5, scale=30.0),)),
    Case("masked", (np.array([[0.0, 1.0, -np.inf], [-np.inf, 2.0, -np.inf]]),)),
    Case("empty", (np.zeros((0, 3)),)),
]
TARGETS = [
    Case("rank2", (normal(4, 5), normal(4, 5, seed=1)), shard=(True, True)),
    Case("rank1", (normal(3), normal(3, seed=1))),
    Case("rank4", (normal(2, 1, 3, 4), normal(2, 1, 3, 4, seed=1))),
    Case("one output", (normal(4, 1), normal(4, 1, seed=1))),
    Case("exact", (np.ones((2, 3)), np.ones((2, 3)))),
    Case("empty", (np.zeros((0, 3)), np.zeros((0, 3)))),
]
PARAMS = {"w": normal(4, 3), "b": (normal(2), np.array(0.5)), "zero": np.zeros(2)}
MIXED = {"w": normal(4, 3), "steps": ints(3, 1), "b": normal(2, seed=1)}

CASES: dict[str, list[Case]] = {
    "identity": ELEMENTWISE,
    "step": ELEMENTWISE,
    "sigmoid": ELEMENTWISE,
    "tanh": ELEMENTWISE,
    "relu": ELEMENTWISE,
    "softmax": BY_SLICE,
    "log_softmax": BY_SLICE,
    "affine": [
        Case("rank2", (normal(4, 5), normal(5, 3), normal(3)), shard=(True, False, False)),
        Case("rank1", (normal(5), normal(5, 3), normal(3))),
        Case("rank4", (normal(2, 1, 3, 4), normal(4, 2), normal(2))),
        Case("one input", (normal(3, 1), normal(1, 4), normal(4))),
        Case("a number", (normal(1), normal(1, 1), normal(1, seed=1))),
        Case("square", (normal(3, 3), normal(3, 3, seed=1), normal(3))),
        Case("empty", (np.zeros((0, 3)), normal(3, 2), normal(2))),
    ],
    "batch_norm": [
        Case("rank2", (normal(8, 3), normal(3, mean=1.0), normal(3)), shard=(True, False, False)),
        Case("rank4", (normal(2, 3, 4, 2), normal(2, mean=1.0), normal(2))),
        Case("eps", (normal(6, 3), normal(3), normal(3, seed=1)), {"eps": 0.5}),
        Case("no eps", (normal(6, 3), normal(3), normal(3, seed=1)), {"eps": 0.0}),
        Case("one column", (normal(5, 1), normal(1), normal(1, seed=1))),
        Case("one example", (normal(1, 3), normal(3), normal(3, seed=1))),
        Case("constant", (np.full((4, 2), 3.0), normal(2), normal(2, seed=1))),
        Case("zero scale", (normal(6, 2), np.array([0.0, 1.0]), normal(2))),
        Case("large mean", (normal(6, 3, mean=1e4), normal(3), normal(3, seed=1))),
    ],
    "batch_norm_inference": [
        Case(
            "rank2",
            (normal(4, 3), normal(3), normal(3, seed=1), normal(3, seed=2), probabilities(3)),
            shard=(True, False, False, False, False),
        ),
        Case(
            "rank4",
            (normal(2, 3, 1, 2), normal(2), normal(2, seed=1), normal(2, seed=2), np.ones(2)),
            {"eps": 0.1},
        ),
        Case(
            "no variance",
            (normal(4, 3), normal(3), normal(3, seed=1), normal(3, seed=2), np.zeros(3)),
        ),
    ],
    "dropout": [
        Case("rank2", (normal(4, 5), jax.random.key(0)), {"rate": 0.5}, shard=(True, False)),
        Case("rank0", (normal(), jax.random.key(1)), {"rate": 0.5}),
        Case("rank4", (normal(2, 1, 3, 4), jax.random.key(2)), {"rate": 0.2}),
        Case("old key", (normal(3, 7), jax.random.PRNGKey(3)), {"rate": 0.9}),
        Case("rate 0", (normal(3, 7), jax.random.key(4)), {"rate": 0.0}),
        Case("empty", (np.zeros((0, 3)), jax.random.key(5)), {"rate": 0.5}),
    ],
    "mean_squared_error": TARGETS,
    "sum_squared_error": TARGETS,
    "cross_entropy": [
        Case("rank2", (probabilities(4, 5), probabilities(4, 5, seed=1)), shard=(True, True)),
        Case("index", (probabilities(4, 5), ints(0, 4, 2, -1))),
        Case("rank1", (probabilities(5), one_hot(3, 5))),
        Case("index rank1", (probabilities(5), np.array(2, np.uint8))),
        Case("rank4", (probabilities(2, 1, 3, 4), probabilities(2, 1, 3, 4, seed=1))),
        Case("one-hot", (probabilities(3, 4), one_hot([0, 2, 2], 4))),
        Case("one-hot ints", (probabilities(3, 4), one_hot([0, 2, 2], 4).astype(np.int32))),
        Case("not normalised", (np.exp(normal(3, 4)), np.exp(normal(3, 4, seed=1)))),
    ],
    "softmax_cross_entropy": [
        Case("rank2", (normal(4, 5), probabilities(4, 5, seed=1)), shard=(True, True)),
        Case("index", (normal(4, 5), ints(0, 4, 2, -1))),
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
    ],
    "l1_penalty": [
        Case("tree", (PARAMS, np.array(0.3)), shard=(False, False)),
        Case(
            "array",
            (normal(3, 2), np.array(2.0)),
        ),
        Case("integer leaf", (MIXED, np.array(0.3))),
        Case("empty", ({"w": np.zeros((0, 3))}, np.array(0.3))),
    ],
    "l2_penalty": [
        Case("tree", (PARAMS, np.array(0.3)), shard=(False, False)),
        Case("array", (normal(3, 2), np.array(2.0))),
        Case("integer leaf", (MIXED, np.array(0.3))),
        Case("empty", ({"w": np.zeros((0, 3))}, np.array(0.3))),
    ],
    "elastic_net_penalty": [
        Case("tree", (PARAMS, np.array(0.3), np.array(0.7)), shard=(False, False, False)),
        Case("array", (normal(3, 2), np.array(2.0), np.array(-1.0))),
        Case("integer leaf", (MIXED, np.array(0.3), np.array(0.7))),
        Case("empty", ({"w": np.zeros((0, 3))}, np.array(0.3), np.array(0.7))),
    ],
}

# Bytes that a rule keeps besides its arguments, in float32, for its first case.
RESIDUAL_BYTES: dict[str, int] = {
    "identity": 0,
    "step": 0,
    "sigmoid": 0,
    "tanh": 0,
    "relu": 8,  # one byte for each of 8 elements
    "softmax": 4 * 20,  # y, which is also the output
    "log_softmax": 4 * 20 + 4 * 4,  # e, and s of 4 rows
    "affine": 0,
    "batch_norm": 3 * 4 * 3,  # μ₀, δ and r of 3 columns
    "batch_norm_inference": 0,
    "dropout": 20,  # one byte for each of 20 elements
    "mean_squared_error": 0,
    "sum_squared_error": 0,
    "cross_entropy": 0,
    "softmax_cross_entropy": 4 * 20 + 3 * 4 * 4,  # others; e_own, rest and m of 4 rows
    "l1_penalty": 4,  # Σ|p|
    "l2_penalty": 4,  # Σp²/2
    "elastic_net_penalty": 8,  # both
}
