"""The type of a case, and functions that make its arguments."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """One call of a rule: `rule(*args, **static)`."""

    id: str
    args: tuple[Any, ...]
    static: Mapping[str, Any] = MappingProxyType({})
    shard: tuple[bool, ...] = ()  # arguments with a leading batch axis that can be sharded


def normal(*shape, seed=0, scale=1.0, mean=0.0):
    return mean + scale * np.random.default_rng([seed, *shape]).standard_normal(shape)


def probabilities(*shape, seed=0):
    e = np.exp(normal(*shape, seed=seed))
    return e / e.sum(-1, keepdims=True)


def one_hot(index, classes):
    return np.eye(classes)[np.asarray(index)]


def ints(*values):
    return np.array(values, np.int32)
