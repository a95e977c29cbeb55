"""Values and gradients do not depend on masked numbers, even if these are nan or infinite.

The cases are those of `cases` with an argument `where` or the option `ignore`.
"""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES
from criterion import cotangents, equal, pull, split
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from marks import slow

from funcnet import RULES, check_rule, ops

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


@pytest.mark.third
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


WITH_WHERE = sorted(n for n in CASES if "where" in names_of(n))
LABELLED = {n for n in WITH_WHERE if {"labels", "t"} & set(names_of(n))}


@pytest.mark.parametrize("name", sorted({*WITH_WHERE} - LABELLED))
def test_a_mask_that_does_not_fit(name):
    case = CASES[name][0]
    f = functools.partial(getattr(ops, name), *case.args, **case.static)
    shape = np.shape(case.args[0])
    for where, error, message in (
        (np.ones(shape, np.int32), TypeError, f"be boolean, got int32{list(shape)}"),
        (
            np.ones((2, *shape), bool),
            ValueError,
            f"broadcast to the shape of x, {shape}, got {(2, *shape)}",
        ),
        (
            np.ones((*shape[:-1], 2), bool),
            ValueError,
            f"broadcast to the shape of x, {shape}, got {(*shape[:-1], 2)}",
        ),
    ):
        with pytest.raises(error) as e:
            f(where=where)
        assert str(e.value).replace(", ", ",") == f"{name}: where must {message}".replace(", ", ",")


@pytest.mark.third
@pytest.mark.parametrize("name", WITH_WHERE)
def test_a_mask_that_hides_nothing(name):
    """It changes nothing but rounding."""
    case = CASES[name][0]
    whole = np.ones(np.shape(case.args[0])[:-1], bool)
    whole = whole if name in LABELLED else whole[..., None]
    f = functools.partial(getattr(ops, name), where=whole)
    g, values = split(f, case.args, case.static)
    plain, _ = split(getattr(ops, name), case.args, case.static)
    dout = cotangents(g, values)
    equal(pull(g)(values, dout), pull(plain)(values, dout))
    equal(jax.jit(g)(*values), jax.jit(plain)(*values))


@pytest.mark.slow
@pytest.mark.parametrize("is_placed", [True, False])
@pytest.mark.parametrize("name", WITH_WHERE)
def test_a_mask_on_an_explicit_mesh(name, is_placed):
    """A mask may be sharded like x, or be on no mesh."""
    case = CASES[name][0]
    shape = np.shape(case.args[0])[:-1] if name in LABELLED else np.shape(case.args[0])
    where = np.arange(np.prod(shape)).reshape(shape) % 3 > 0
    rows = (
        case.shard
        if any(case.shard)
        else [np.ndim(a) < 3 and i != 1 for i, a in enumerate(case.args)]
    )

    def gradient(args, where):
        f = lambda *args: getattr(ops, name)(*args, where=where, **case.static)
        loss = lambda args: sum((jnp.sin(y)).sum() for y in jax.tree.leaves(f(*args)))
        return jax.jit(jax.grad(loss, allow_int=True))(args)

    expected = gradient(case.args, where)
    mesh = jax.make_mesh((2,), ("d",))
    with jax.set_mesh(mesh):
        put = lambda a, s: jax.device_put(a, NamedSharding(mesh, P("d") if s else P()))
        args = tuple(put(a, s) for a, s in zip(case.args, rows, strict=True))
        actual = gradient(args, put(where, True) if is_placed else where)
        actual = jax.tree.map(np.asarray, actual)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        if e.dtype != jax.dtypes.float0:
            equal(a, e)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({param.values[0] for param in MASKED}))
def test_the_checker_proves_what_counts(name):
    """`check_rule` proves all cases with a mask whose arguments are finite and value is not nan.

    If no case has finite arguments, what is hidden is replaced by a number, which it may be.
    """
    op, float32 = getattr(ops, name), lambda x: np.float32(x) if is_float(x) else x
    is_float = lambda x: x is not None and jnp.issubdtype(jnp.result_type(x), jnp.floating)
    cases = [param.values[1] for param in MASKED if param.values[0] == name]
    finite = [c for c in cases if all(np.isfinite(x).all() for x in c.args if is_float(x))]
    clean = lambda x: np.where(np.isfinite(x), x, 0.5) if is_float(x) else x
    decided = 0
    for case in finite or [c._replace(args=tuple(map(clean, c.args))) for c in cases]:
        args = tuple(map(float32, case.args))
        if not any(np.isnan(y).any() for y in jax.tree.leaves(op(*args, **case.static))):
            report = check_rule(op, *args, **case.static)
            assert report.ok, report
            decided += 1
    assert decided
