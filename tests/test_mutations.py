"""The tests of the tests: every small change of an op's source must make some property fail.

Each module of `funcnet.ops` is parsed, one node is changed (a sign, a factor of 1.001, a dropped
term, an axis, `>` for `>=`, ...), the ops are built again from the changed source, and the
properties of `test_rules.py` and the rows of the table of accuracy run until one fails.
"""

import ast
import contextlib
import copy
import graphlib
import importlib
import inspect
import re
import runpy
import sys
import types
from pathlib import Path

import accuracy_table
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, ORACLES
from criterion import cast, cotangents, equal, error_ratio, pull, split

from funcnet import RULES, autodiff, ops

OPS = Path(ops.__file__).parent


def imported(path):
    return set(re.findall(r"^from funcnet\.ops\.(\w+) import", path.read_text("utf-8"), re.M))


IMPORTS = {path.stem: imported(path) for path in OPS.glob("[!_]*.py")}
ORDER = list(graphlib.TopologicalSorter(IMPORTS).static_order())  # imported before importing

# Changes that leave the function as it is, or change no more than its rounding.
EQUIVALENT = {
    "precision": {  # there is no dtype of 32 bits but float32, and none of 33
        "jnp.finfo(dtype).bits < 32  ->  jnp.finfo(dtype).bits <= 32",
        "32  ->  33",
    },
    "activations": {"widen(x)  ->  -widen(x)"},  # the derivatives of sigmoid and tanh are even
    "normalization": {"mean + delta  ->  mean"},  # as an output; δ is of the size of its rounding
    "elu": {"x > 0  ->  x >= 0"},  # what exp is given at 0 is 0
    "smooth": {
        "1000.0  ->  1001.0",  # is far as well
        "0  ->  1",  # which of two equal fractions is taken
    },
    "embedding": {
        "jnp.dtype(ids.dtype).itemsize < 4  ->  jnp.dtype(ids.dtype).itemsize <= 4",
        "4  ->  5",  # ids of 64 bits, cut to 32, are the same
        "1  ->  2",  # for explicit meshes, which other tests try
        "widen(w)  ->  widen(w) * 1.001",  # zeros like it
        "widen(w)  ->  -widen(w)",
    },
}

# Shared by shapes, meshes and declarations; and files whose changes have not been tried yet.
ELSEWHERE = {"sharding", "elementwise"}
LATER = {
    "attention", "attention_tiles", "binary_cross_entropy", "convolution", "depthwise", "gru",
    "linear_cross_entropy", "linear_recurrence", "logsumexp", "lstm", "pooling", "rnn", "rope",
    "time_loop", "windows",
}  # fmt: skip

SWAPS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Eq: ast.NotEq,
}  # fmt: skip


def changes(node):
    """Functions that change a copy of this node in place, or return its replacement."""
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
        yield lambda n: ast.BinOp(n.left, SWAPS[type(n.op)](), n.right)
        if isinstance(node.op, ast.Add | ast.Sub):
            yield lambda n: n.left
            yield lambda n: n.right
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield lambda n: n.operand
    elif isinstance(node, ast.Compare) and [type(o) in SWAPS for o in node.ops] == [True]:
        yield lambda n: ast.Compare(n.left, [SWAPS[type(n.ops[0])]()], n.comparators)
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield lambda n: ast.Constant(n.value + 1)
    elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "widen":
        yield lambda n: ast.BinOp(n, ast.Mult(), ast.Constant(1.001))
        yield lambda n: ast.UnaryOp(ast.USub(), n)


def is_skipped(node):
    """Checks of arguments are tested elsewhere, and defaults by the cases that set them."""
    return (
        isinstance(node, ast.arguments | ast.AnnAssign | ast.Import | ast.ImportFrom)
        or (isinstance(node, ast.If) and isinstance(node.body[0], ast.Raise))
        or (isinstance(node, ast.FunctionDef) and node.name.startswith(("_check", "is_index")))
    )


def walk(tree, path=()):
    """(path, node) of every expression that can be changed."""
    for name, value in ast.iter_fields(tree):
        children = enumerate(value) if isinstance(value, list) else [(None, value)]
        for i, child in children:
            if not isinstance(child, ast.AST) or is_skipped(child):
                continue
            here = (*path, (name, i))
            yield here, child
            yield from walk(child, here)


def mutants(module):
    """(changed line, changed tree) of each change of a module."""
    tree = ast.parse(inspect.getsource(importlib.import_module(f"funcnet.ops.{module}")))
    for path, node in walk(tree):
        for change in changes(node):
            mutant = copy.deepcopy(tree)
            parent = mutant
            for name, i in path[:-1]:
                parent = getattr(parent, name) if i is None else getattr(parent, name)[i]
            name, i = path[-1]
            old = getattr(parent, name) if i is None else getattr(parent, name)[i]
            new = ast.copy_location(change(old), old)
            if i is None:
                setattr(parent, name, new)
            else:
                getattr(parent, name)[i] = new
            ast.fix_missing_locations(mutant)
            yield f"{node.lineno}: {ast.unparse(node)}  ->  {ast.unparse(new)}", mutant


def affected(module):
    """The module and all that import it, directly or not, in the order in which they are built."""
    found = {module}
    for m in ORDER:
        if IMPORTS[m] & found:
            found.add(m)
    return [m for m in ORDER if m in found]


@contextlib.contextmanager
def built(module, tree):
    """The ops as built from sources of which one is `tree`."""
    names = {m: f"funcnet.ops.{m}" for m in affected(module)}
    rules = dict(RULES)
    saved = {name: sys.modules[name] for name in names.values()}
    ops_saved = dict(vars(ops))
    try:
        for m, name in names.items():
            source = tree if m == module else ast.parse(inspect.getsource(saved[name]))
            fresh = types.ModuleType(name)
            fresh.__file__ = saved[name].__file__
            sys.modules[name] = fresh
            exec(compile(source, saved[name].__file__, "exec"), vars(fresh))
            for public in ops_saved.keys() & vars(fresh).keys() & RULES.keys():
                setattr(ops, public, vars(fresh)[public])
        yield
    finally:
        sys.modules.update(saved)
        RULES.clear()
        RULES.update(rules)
        vars(ops).update(ops_saved)


def check_case(name, case):
    """What `test_rules.py` checks of value and gradient, on one case."""
    g, values = split(getattr(ops, name), case.args, case.static)
    values = cast(values, jnp.float64)
    plain, dout = autodiff(g), cotangents(g, values)

    @jax.jit
    def run(values, dout):
        of_fwd, hand = jax.vjp(g, *values)
        auto = jax.vjp(plain, *values)[1]
        return g(*values), of_fwd, hand(dout), auto(dout)

    value, of_fwd, hand, auto = run(values, dout)
    with np.errstate(all="ignore"):
        expected = ORACLES[name](*case.args, **case.static)
    equal(value, jax.tree.map(lambda v, e: jnp.asarray(e, v.dtype), value, expected))
    equal(of_fwd, value, ulps=0)
    equal(hand, auto)


def check_narrow(name, case):
    g, values = split(getattr(ops, name), case.args, case.static)
    for dtype in (jnp.float32, jnp.bfloat16):
        narrow = cast(values, dtype)
        dout = cotangents(g, narrow)
        hand = pull(g)(narrow, dout)
        assert [h.dtype for h in hand] == [v.dtype for v in narrow]
        auto = pull(autodiff(g))(narrow, dout)
        ratio = error_ratio(g, narrow, dout, dtype, hand)
        assert ratio <= 1 or ratio <= error_ratio(g, narrow, dout, dtype, auto)


def survives(module, names):
    """Whether no property fails. Any exception is a failure, as it is in the other tests."""
    own = Path(__file__).parent / "ops" / f"test_{module}.py"
    try:
        for name in names:
            for case in CASES[name]:
                check_case(name, case)
        for name in names:
            check_narrow(name, CASES[name][0])
        for row in accuracy_table.rows():
            if row.rule in names:
                assert accuracy_table.measure(row).hand <= 4 * 2.0**-23
        for name, test in runpy.run_path(str(own)).items() if own.exists() else ():
            if name.startswith("test_") and not inspect.signature(test).parameters:
                test()
    except Exception:
        return False
    return True


def names_of(module):
    """The rules of a module; of a shared one those of the modules that import it."""
    inside = lambda m: [n for n, r in RULES.items() if r.primal.__module__ == f"funcnet.ops.{m}"]
    return inside(module) or [n for m in ORDER if module in IMPORTS[m] for n in inside(m)[:2]]


@pytest.mark.slow
def test_unchanged_ops_survive():
    with built("activations", ast.parse(inspect.getsource(sys.modules["funcnet.ops.activations"]))):
        assert survives("activations", names_of("activations"))
    assert ops.sigmoid.__wrapped__ is RULES["sigmoid"].primal


def some(changed, count):
    """At most `count` of them, evenly spread, and of twice as many; all of them if it is 0."""
    changed = list(changed)
    return changed[:: 2 * -(-len(changed) // (2 * count))] if count else changed


@pytest.mark.slow
@pytest.mark.parametrize("module", [m for m in ORDER if m not in ELSEWHERE | LATER])
def test_every_change_is_noticed(module, request):
    survivors, total = [], 0
    for line, tree in some(mutants(module), request.config.getoption("mutants")):
        total += 1
        with built(module, tree):
            if survives(module, names_of(module)):
                survivors.append(line)
    print(f"\n{module}: {total} changes, {len(survivors)} unnoticed")
    explained = EQUIVALENT.get(module, set())
    unexplained = [s for s in survivors if re.sub(r"^\d+: ", "", s) not in explained]
    assert not unexplained, "\n".join(unexplained)
    assert total > 0
