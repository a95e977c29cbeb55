"""Mutation tests: every small change of an op's source must make some property fail.

Each module of `funcnet.ops`, and `funcnet._arrays`, is parsed and one node is changed (a sign, a
factor of 1.001, a dropped term, an axis, `>` for `>=`, ...). Then the ops are rebuilt from the
changed source, and the properties of `test_rules.py` and the rows of the accuracy table are checked
until one fails.
"""

import ast
import contextlib
import copy
import functools
import graphlib
import importlib
import inspect
import itertools
import re
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
from platforms import DEPENDENT, PLATFORMS, as_on

from funcnet import RULES, autodiff, ops

OPS = Path(ops.__file__).parent
TESTS = Path(__file__).parent / "ops"
TESTED_BY = {  # files of tests/ops for modules without a test file of the same name
    "binary_cross_entropy": ["binary_cross_entropy", "loss_tails"],
    "cross_entropy": ["losses", "loss_tails"],
    "gru": ["recurrent"],
    "losses": ["losses", "loss_tails"],
    "lstm": ["recurrent"],
    "rnn": ["recurrent"],
    "softmax_cross_entropy": ["losses", "loss_tails"],
    "_attention_tiles": ["attention"],
    "_labels": ["losses", "loss_tails"],
    "_time_loop": ["recurrent"],
    "_windows": ["pooling", "convolution", "depthwise"],
}


FILES = {
    path.stem: path
    for path in [OPS.parent / "_arrays.py", *OPS.glob("[!_]*.py"), *OPS.glob("_[!_]*.py")]
}


def imported(path):
    found = re.findall(r"^from funcnet\.(?:ops\.)?(\w+) import", path.read_text("utf-8"), re.M)
    return FILES.keys() & found


def full(module):
    return f"funcnet.{module}" if module == "_arrays" else f"funcnet.ops.{module}"


IMPORTS = {module: imported(path) for module, path in FILES.items()}
ORDER = list(graphlib.TopologicalSorter(IMPORTS).static_order())  # imported modules come first

# Mutants that are equivalent to the original, except for rounding.
EQUIVALENT = {
    "_arrays": {  # float32 is the only dtype of 32 bits, and no dtype has 33
        "jnp.finfo(dtype).bits < 32  ->  jnp.finfo(dtype).bits <= 32",
        "jnp.finfo(dtype).bits < 32  ->  jnp.finfo(dtype).bits < 33",
    },
    "losses": {  # float32 is the only dtype of 4 bytes
        "x.dtype.itemsize < 4  ->  x.dtype.itemsize <= 4",
        "x.dtype.itemsize < 4  ->  x.dtype.itemsize < 5",
    },
    "_labels": {  # casting does not change an index of 32 bits
        "jnp.iinfo(index.dtype).bits >= 32  ->  jnp.iinfo(index.dtype).bits > 32",
        "jnp.iinfo(index.dtype).bits >= 32  ->  jnp.iinfo(index.dtype).bits >= 33",
    },
    "activations": {
        "widen(x)  ->  -widen(x)",  # the derivatives of sigmoid and tanh are even
        "x.real < 0  ->  x.real <= 0",
        "x.real < 0  ->  x.real < 1",
    },
    "batch_norm": {"mean + delta  ->  mean"},  # as an output; δ is as small as its rounding
    "pooling": {
        "math.prod(at.window) <= 4  ->  math.prod(at.window) < 4",  # one search or two
        "math.prod(at.window) <= 4  ->  math.prod(at.window) <= 5",
        "taps(place, stage, 0)  ->  taps(place, stage, 1)",  # padding in both cases
        ":0  ->  :1",  # the saved bytes, which another test counts
    },
    "activations_smooth": {
        "FAR = 1000.0  ->  FAR = 1001.0",  # also far in the tail
        "v < 0  ->  v < 1",  # which of two equal fractions is used
    },
    "embedding": {
        "jnp.dtype(ids.dtype).itemsize < 4  ->  jnp.dtype(ids.dtype).itemsize <= 4",
        "jnp.dtype(ids.dtype).itemsize < 4  ->  jnp.dtype(ids.dtype).itemsize < 5",
        # ids of 64 bits do not change when cast to 32
        "of_w.spec[1]  ->  of_w.spec[2]",  # for explicit meshes, which other tests cover
        "widen(w)  ->  widen(w) * 1.001",  # only the shape and dtype of w are used
        "widen(w)  ->  -widen(w)",
    },
    "binary_cross_entropy": {
        "z >= 0  ->  z > 0",
        "z >= 0  ->  z >= 1",
    },  # both are right
    "rope": {
        "p < 0  ->  p <= 0",  # the sine of 0 is 0
        "p < 0  ->  p < 1",
        "prec=50  ->  prec=51",
    },
    "depthwise": {
        "LONGEST_RUN = 32  ->  LONGEST_RUN = 33",  # number of partial sums,
        "-(-places // LONGEST_RUN)  ->  -places // LONGEST_RUN",
        "-places  ->  places",
        "runs > 1  ->  runs >= 1",
        "runs > 1  ->  runs > 2",
        "arrays[0].ndim - 2  ->  arrays[0].ndim - 3",  # the order of the axes,
        "tap >= 0  ->  tap > 0",  # and whether to look for taps outside the input
        "tap >= 0  ->  tap >= 1",
    },
    "_windows": {
        "MOST_TERMS = 64  ->  MOST_TERMS = 65",
        "(None,) * (lead - 1)  ->  (None,) / (lead - 1)",  # for explicit meshes
        "e - 1  ->  e + 1",  # shifts without a tap are skipped
    },
    "linear_cross_entropy": {
        # chunks of other sizes
        "PARTS = 16  ->  PARTS = 17",  # in how many parts a sum over devices is made
        "_Chunk(3 * 2 ** 22, 1, 1024)  ->  _Chunk(3 * 2 ** 22, 2, 1024)",
        "_Chunk(3 * 2 ** 22, 1, 1024)  ->  _Chunk(3 * 2 ** 22, 1, 1025)",
        "_Chunk(2 ** 26, 2048, None)  ->  _Chunk(2 ** 26, 2049, None)",
        "3 * 2 ** 22  ->  3 / 2 ** 22",
        "EVENLY = 256  ->  EVENLY = 257",
        "-1  ->  1",  # sharded axes of h; in the tests, h has one
        "classes - rest  ->  classes",  # dynamic_slice clamps the start
    },
    "_attention_tiles": {
        "size - x.shape[axis]  ->  size",  # more zeros than are used
        "u > 1  ->  u > 2",  # two keys fit in one block
    },
    "attention": {
        # replacements of m = −∞ and of s = 0 where nothing is summed
        "jnp.where(m == -jnp.inf, 0, m)  ->  jnp.where(m == -jnp.inf, 1, m)",
        "jnp.where(s == 0, 1, s)  ->  jnp.where(s == 0, 2, s)",
        "zeros(a.q, 1)  ->  zeros(a.q, 2)",  # only the first is used
        "(..., 0)  ->  (..., 1)",
    },
}

# Declarations and meshes: other tests cover them.
ELSEWHERE = {"_elementwise", "_types"}
OF_MESHES = ("explicit_sharding", "placed_like", "batch_like", "batches_alike")

SWAPS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Eq: ast.NotEq,
}  # fmt: skip


def changes(node):
    """Functions that map a copy of this node to its replacement."""
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


NOT_CHANGED = ("_check", "check_", "is_index", *OF_MESHES)


def is_skipped(node):
    """Skips argument checks, which other tests cover, and defaults, which the cases set."""
    return (
        isinstance(node, ast.arguments | ast.AnnAssign | ast.Import | ast.ImportFrom)
        or (isinstance(node, ast.If) and isinstance(node.body[0], ast.Raise))
        or (isinstance(node, ast.FunctionDef) and node.name.startswith(NOT_CHANGED))
    )


def walk(tree, path=()):
    """Yields (path, node) for every node that can be changed."""
    for name, value in ast.iter_fields(tree):
        children = enumerate(value) if isinstance(value, list) else [(None, value)]
        for i, child in children:
            if not isinstance(child, ast.AST) or is_skipped(child):
                continue
            here = (*path, (name, i))
            yield here, child
            yield from walk(child, here)


def mutants(module):
    """Yields (description, tree) of each mutant of a module; for a number, with its context."""
    tree = ast.parse(inspect.getsource(importlib.import_module(full(module))))
    follow = lambda node, at: getattr(node, at[0]) if at[1] is None else getattr(node, at[0])[at[1]]
    for path, node in walk(tree):
        shown = path[:-1] if isinstance(node, ast.Constant) else path
        for change in changes(node):
            mutant = copy.deepcopy(tree)
            name, i = path[-1]
            parent = functools.reduce(follow, path[:-1], mutant)
            old = follow(parent, path[-1])
            new = ast.copy_location(change(old), old)
            if i is None:
                setattr(parent, name, new)
            else:
                getattr(parent, name)[i] = new
            ast.fix_missing_locations(mutant)
            texts = [ast.unparse(functools.reduce(follow, shown, t)) for t in (tree, mutant)]
            yield f"{node.lineno}: {'  ->  '.join(texts)}", mutant


def affected(module):
    """The module and all modules that import it, directly or not, in build order."""
    found = {module}
    for m in ORDER:
        if IMPORTS[m] & found:
            found.add(m)
    return [m for m in ORDER if m in found]


@contextlib.contextmanager
def built(module, tree):
    """Rebuilds the ops with `tree` in place of the source of `module`."""
    names = {m: full(m) for m in affected(module)}
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
            if getattr(ops, m, None) is saved[name]:  # and not a rule of the same name
                setattr(ops, m, fresh)
            for public in ops_saved.keys() & vars(fresh).keys() & RULES.keys():
                setattr(ops, public, vars(fresh)[public])
        yield
    finally:
        sys.modules.update(saved)
        RULES.clear()
        RULES.update(rules)
        vars(ops).update(ops_saved)


def check_case(name, case):
    """Checks the properties of value and gradient on one case, without rank promotion."""
    g, values = split(getattr(ops, name), case.args, case.static)
    values = cast(values, jnp.float64)
    plain, dout = autodiff(g), cotangents(g, values)

    @jax.jit
    def run(values, dout):
        of_fwd, hand = jax.vjp(g, *values)
        auto = jax.vjp(plain, *values)[1]
        return g(*values), of_fwd, hand(dout), auto(dout)

    with jax.numpy_rank_promotion("raise"):
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


def passes(module):
    """Returns whether the tests of the module's own test file pass."""
    files = [TESTS / f"test_{name}.py" for name in TESTED_BY.get(module, [module])]
    files = [str(f) for f in files if f.exists()]
    options = ["-qx", "-n0", "-m", "", "-p", "no:cacheprovider"]
    before = dict(sys.modules)
    for name in imported_from(files):  # they refer to the unchanged ops
        del sys.modules[name]
    try:
        return not files or pytest.main([*files, *options]) == pytest.ExitCode.OK
    finally:
        for name in imported_from(files):
            del sys.modules[name]
        sys.modules.update(before)


def imported_from(files):
    return [name for name, m in sys.modules.items() if getattr(m, "__file__", None) in files]


def survives(module, names):
    """Returns whether all properties hold. Any exception counts as a failure, as in other tests."""
    try:
        for name in names:
            for case in CASES[name]:
                check_case(name, case)
        for name in names:
            check_narrow(name, CASES[name][0])
        for name, on in itertools.product(set(names) & set(DEPENDENT), PLATFORMS):
            with as_on(on):
                for case in CASES[name]:
                    check_case(name, case)
                    check_narrow(name, case)
        for row in accuracy_table.rows():
            if row.rule in names:
                assert accuracy_table.measure(row).hand <= 4 * 2.0**-23
    except Exception:
        return False
    return True


def names_of(module):
    """The rules of a module; for a module without rules, those of the modules that import it."""
    inside = lambda m: [n for n, r in RULES.items() if r.primal.__module__ == full(m)]
    return inside(module) or [n for m in ORDER if module in IMPORTS[m] for n in inside(m)[:2]]


@pytest.fixture
def little_optimized():
    """Each mutant is compiled once and run once, so optimizing it does not pay."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def some(changed, count):
    """At most `count` mutants, evenly spread (every second of 2 `count`); all if `count` is 0."""
    changed = list(changed)
    return changed[:: 2 * -(-len(changed) // (2 * count))] if count else changed


@pytest.mark.slow
@pytest.mark.parametrize("module", [m for m in ORDER if m not in ELSEWHERE])
@pytest.mark.usefixtures("little_optimized")
def test_every_change_is_noticed(module, request):
    survivors, total, by_own_tests = [], 0, 0
    for line, tree in some(mutants(module), request.config.getoption("mutants")):
        total += 1
        with built(module, tree):
            if survives(module, names_of(module)):
                if passes(module):
                    survivors.append(line)
                else:
                    by_own_tests += 1
    assert not by_own_tests or passes(module), "the tests must pass where nothing is changed"
    print(f"\n{module}: {total} changes, {len(survivors)} unnoticed")
    explained = EQUIVALENT.get(module, set())
    unexplained = [s for s in survivors if re.sub(r"^\d+: ", "", s) not in explained]
    assert not unexplained, "\n".join(unexplained)
    assert total > 0
