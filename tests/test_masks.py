"""Values and gradients do not depend on masked numbers, even if these are nan or infinite.

The cases are those of `cases` with an argument `where` or the option `ignore`.
"""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES
from criterion import cotangents, split
from marks import slow

from funcnet import RULES, ops

DIRT = [np.nan, np.inf, -np.inf, 1e30]


def names_of(name):
    return [*inspect.signature(RULES[name].primal).parameters]


def argument(name, case, which) -> Any:
    place = names_of(name).index(which) if which in names_of(name) else len(case.args)
    return case.args[place] if place < len(case.args) else None


def hidden(name, case) -> Any:
    """Where the first argument does not count; None if all of it does."""
    where, x = argument(name, case, "where"), case.args[0]
    labels = argument(name, case, "labels" if "labels" in names_of(name) else "t")
    ignore = case.static.get("ignore")
    if where is None and ignore is None:
        return None
    counts = np.ones(np.shape(x), bool)
    if where is not None:
        is_of_examples = labels is not None and np.ndim(where) < np.ndim(x)
        counts = counts & (where[..., None] if is_of_examples else where)
    if ignore is not None:
        of_labels = labels != ignore
        counts = counts & (of_labels if np.shape(labels) == np.shape(x) else of_labels[..., None])
    return ~counts


MASKED = [
    pytest.param(name, case, id=f"{name}-{case.id}", marks=[pytest.mark.xdist_group(name), *marks])
    for name, cases in CASES.items()
    for found in [[case for case in cases if hidden(name, case) is not None]]
    for i, case in enumerate(found)
    for marks in [[pytest.mark.slow] if i % 4 else []]
]


def test_every_rule_with_a_mask_has_a_case():
    with_mask = {n for n in CASES if {"where", "ignore"} & set(names_of(n))}
    assert with_mask == {param.values[0] for param in MASKED}


@pytest.mark.parametrize("dirt", [DIRT[0], *slow(*DIRT[1:])])
@pytest.mark.parametrize(("name", "case"), MASKED)
def test_what_is_hidden_has_no_influence(name, case, dirt):
    """Value and gradient have the same bits whatever the hidden numbers and cotangents are."""
    g, values = split(getattr(ops, name), case.args, case.static)
    hides = hidden(name, case)

    @jax.jit
    def run(values, dout):
        y, back = jax.vjp(g, *values)
        return y, back(dout)

    def put(number, tree):
        """The tree with a number at each hidden place of its arrays, and of examples all hidden."""
        of = {hides.shape: hides, hides.shape[:-1]: hides.all(-1)}
        ignores = lambda x: np.any(x == case.static.get("ignore"))  # labels that hide themselves
        fill = lambda x: x if x.shape not in of or ignores(x) else jnp.where(of[x.shape], number, x)
        return jax.tree.map(fill, tree)

    dout = cotangents(g, values)
    expected = run(put(0.0, values), put(0.0, dout))
    actual = run(put(dirt, values), put(dirt, dout))
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, e)
    dx = np.asarray(actual[1][0])
    assert not dx[hides].any()
