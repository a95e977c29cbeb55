"""Tests the properties of all rules on the cases of `cases`."""

import functools
from typing import Any, NamedTuple

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, ORACLES, RESIDUAL_BYTES
from criterion import cast, cotangents, equal, error_ratio, pull, split
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from funcnet import RULES, autodiff, ops, optim  # noqa: F401  (the registry fills on import)
from funcnet.check import criterion as gate

# The default run tests the first case of a rule and the transformations that find most errors; the
# slow run tests all. The tests of a rule run in one process and share its compiled functions.
SLOW = pytest.mark.slow


def param(name, *values, id, slow=False):
    marks = [pytest.mark.xdist_group(name), *([SLOW] if slow else [])]
    return pytest.param(name, *values, id=id, marks=marks)


ALL = [
    param(name, i, id=f"{name}-{c.id}", slow=i > 0)
    for name, cases in CASES.items()
    for i, c in enumerate(cases)
]
FIRST = [param(name, cases[0], id=name) for name, cases in CASES.items()]
NARROW = [  # float32 for five cases, the other dtypes for the first
    param(
        name, i, dtype, id=f"{name}-{c.id}-{dtype.dtype.name}", slow=i > 0 or dtype != jnp.float32
    )
    for name, cases in CASES.items()
    for i, c in enumerate(cases)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16)
    if i == 0 or (dtype == jnp.float32 and i < 5)
]


def ruled(name):
    return getattr(ops, name)


class Setup(NamedTuple):
    """A case: the rule g, its autodiff version, the floating-point arguments, and cotangents.

    `by_hand` and `by_autodiff` are the compiled pullbacks; all tests of the case share them.
    """

    g: Any
    plain: Any
    values: Any
    dout: Any
    by_hand: Any
    by_autodiff: Any


@functools.cache
def functions(name, id):
    case = next(c for c in CASES[name] if c.id == id)
    g, values = split(ruled(name), case.args, case.static)
    return g, autodiff(g), values, pull(g), pull(autodiff(g))


def setup(name, case, dtype=jnp.float64):
    g, plain, values, by_hand, by_autodiff = functions(name, case.id)
    values = cast(values, dtype)
    return Setup(g, plain, values, cotangents(g, values), by_hand, by_autodiff)


@pytest.mark.parametrize("table", ["CASES", "ORACLES", "RESIDUAL_BYTES"])
def test_every_rule_has_cases_and_oracle(table):
    ours = {n for n, r in RULES.items() if r.primal.__module__.startswith("funcnet.")}
    given = set(getattr(cases, table))
    assert not ours - given, f"tests/cases/<family>.py: {table} must have {sorted(ours - given)}"
    assert not given - ours, f"tests/cases: {table} has {sorted(given - ours)}, which is no rule"


class Measured(NamedTuple):
    """Results of one compiled program for a case in float64; `hand` and `auto` are gradients."""

    value: Any
    value_of_fwd: Any
    value_of_autodiff: Any
    hand: Any
    auto: Any


@functools.cache
def measure(name, index):
    g, plain, values, dout, *_ = setup(name, CASES[name][index])

    @jax.jit
    def run(values, dout):
        of_fwd, hand = jax.vjp(g, *values)
        of_autodiff, auto = jax.vjp(plain, *values)
        return Measured(g(*values), of_fwd, of_autodiff, hand(dout), auto(dout))

    return run(values, dout)


@pytest.mark.parametrize(("name", "index"), ALL)
def test_value(name, index):
    """The values of the call, of fwd and of the autodiff version agree, and equal the oracle's."""
    case, m = CASES[name][index], measure(name, index)
    equal(m.value_of_fwd, m.value, ulps=0)
    equal(m.value_of_autodiff, m.value, ulps=0)
    with np.errstate(all="ignore"):
        expected = ORACLES[name](*case.args, **case.static)
    equal(m.value, jax.tree.map(lambda v, e: jnp.asarray(e, v.dtype), m.value, expected))


@pytest.mark.parametrize(("name", "index"), ALL)
def test_gradient_in_float64(name, index):
    """Tests the algebra: for random cotangents, the rule equals autodiff of the plain forward."""
    m = measure(name, index)
    equal(m.hand, m.auto)


@pytest.mark.third
@pytest.mark.parametrize(("name", "index"), ALL)
def test_a_rule_wrong_by_a_thousandth_is_refuted(name, index):
    """Tests the test above: it must fail if any cotangent is multiplied by 1.001."""
    m = measure(name, index)
    for i, d in enumerate(m.auto):
        if not np.any(np.nan_to_num(np.asarray(d))):
            continue  # a zero gradient does not change
        wrong = tuple(1.001 * h if i == j else h for j, h in enumerate(m.hand))
        with pytest.raises(AssertionError):
            equal(wrong, m.auto)


@pytest.mark.third
@pytest.mark.by_family
@pytest.mark.parametrize(("name", "index", "dtype"), NARROW)
def test_gradient_in_narrow_dtypes(name, index, dtype):
    """Tests the accuracy: the error is that of rounding, or at most that of autodiff."""
    g, _, values, dout, by_hand, by_autodiff = setup(name, CASES[name][index], dtype)
    hand = by_hand(values, dout)
    assert [h.dtype for h in hand] == [v.dtype for v in values]
    ratio = error_ratio(g, values, dout, dtype, hand)
    assert ratio <= 1 or ratio <= error_ratio(g, values, dout, dtype, by_autodiff(values, dout))


@pytest.mark.third
@pytest.mark.by_family
@pytest.mark.parametrize(("name", "case"), FIRST)
def test_not_less_accurate_than_autodiff(name, case):
    """Over 8 seeds in float32: RMS error within 5 %, maximum within a factor of 2, ± one ulp."""
    g, _, values, _, by_hand, by_autodiff = setup(name, case, jnp.float32)
    wide = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float64), tree)
    flat = lambda leaves: np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in leaves])
    truth, hand, auto = [], [], []
    for seed in range(8):
        dout = cotangents(g, values, seed)
        truth.append(flat(by_hand(wide(values), wide(dout))))
        hand.append(flat(by_hand(values, dout)))
        auto.append(flat(by_autodiff(values, dout)))
    errors = [gate.errors(np.stack(d), np.stack(truth), jnp.float32) for d in (hand, auto)]
    assert gate.not_inferior(*errors, strict=True)


@pytest.mark.third
@pytest.mark.parametrize(("name", "case"), FIRST)
def test_linear_in_the_cotangent(name, case):
    _, _, values, dout, by_hand, _ = setup(name, case)
    for scale in (0.0, 1e-4, -1e3):
        scaled = by_hand(values, jax.tree.map(lambda d, s=scale: s * d, dout))
        equal(scaled, tuple(scale * d for d in by_hand(values, dout)))


@SLOW
@pytest.mark.parametrize(("name", "case"), FIRST)
def test_second_derivative(name, case):
    """Forward-over-reverse (as in `jax.hessian`) and reverse-over-reverse match autodiff."""
    g, plain, values, dout, *_ = setup(name, case)
    direction = tuple(jnp.cos(jnp.arange(v.size, dtype=v.dtype)).reshape(v.shape) for v in values)

    def products(g):
        def objective(values):  # quadratic in the outputs, so that dy depends on x
            square = lambda y, d: (d * y * y).sum()
            return sum(jax.tree.leaves(jax.tree.map(square, g(*values), dout)))

        gradient = jax.grad(objective)
        along = lambda values: sum(
            (a * b).sum() for a, b in zip(gradient(values), direction, strict=True)
        )
        return jax.jvp(gradient, (values,), (direction,))[1], jax.grad(along)(values)

    equal(jax.jit(lambda: products(g))(), jax.jit(lambda: products(plain))(), ulps=512)


def in_jit(pullback):
    return lambda values, dout: jax.jit(lambda v, d: jax.jit(pullback)(v, d))(values, dout)


def in_scan(pullback):
    def run(values, dout):
        _, stacked = jax.lax.scan(lambda c, _: (c, pullback(values, dout)), 0, length=2)
        return jax.tree.map(lambda s: s[1], stacked)

    return run


def in_cond(pullback):
    return lambda values, dout: jax.lax.cond(
        True, pullback, lambda v, d: jax.tree.map(jnp.zeros_like, v), values, dout
    )


def in_vmap(pullback):
    def run(values, dout):
        batch = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), (values, dout))
        return jax.tree.map(lambda s: s[0], jax.vmap(pullback)(*batch))

    return run


@pytest.mark.third
@pytest.mark.by_family
@pytest.mark.parametrize(("name", "case"), FIRST)
def test_gradient_inside_a_transformation(name, case):
    """Pullbacks inside jit, scan, cond and vmap; one program, so that it compiles once."""
    g, _, values, dout, _, by_autodiff = setup(name, case)
    pullback = lambda values, dout: jax.vjp(g, *values)[1](dout)
    transforms = (in_jit, in_scan, in_cond, in_vmap)
    inside = jax.jit(lambda *at: [transform(pullback)(*at) for transform in transforms])
    expected = by_autodiff(values, dout)
    for actual in inside(values, dout):
        equal(actual, expected)


@SLOW
@pytest.mark.parametrize(("name", "case"), FIRST)
def test_gradient_of_a_transformation(name, case):
    """Pullbacks through jit, remat, scan and vmap (each argument batched or shared).

    All are in one program, so that it compiles once.
    """
    g, _, values, dout, _, by_autodiff = setup(name, case)
    pulled = lambda f, values, dout: jax.vjp(f, *values)[1](dout)
    scanned = lambda *v: jax.lax.scan(lambda c, _: (c, g(*v)), 0, length=3)[1]
    two, three = (
        jax.tree.map(lambda d, s=scales: jnp.stack([k * d for k in s]), dout)
        for scales in ((1.0, 0.5), (1.0, 1.0, 0.0))
    )

    def mapped(batched):
        axes = [0 if i == batched else None for i in range(len(values))]
        stacked = [jnp.stack([v, v]) if i == batched else v for i, v in enumerate(values)]
        return pulled(jax.vmap(g, in_axes=axes), stacked, two)

    @jax.jit
    def through(values, dout):
        same = [pulled(f, values, dout) for f in (jax.jit(g), jax.checkpoint(g))]
        return same, pulled(scanned, values, three), [mapped(i) for i in range(len(values))]

    expected = by_autodiff(values, dout)
    same, twice, per_argument = through(values, dout)
    for actual in same:
        equal(actual, expected)
    equal(twice, tuple(2 * e for e in expected))
    for batched, actual in enumerate(per_argument):
        for i, (d, e) in enumerate(zip(actual, expected, strict=True)):
            equal(d, jnp.stack([e, 0.5 * e]) if i == batched else 1.5 * e)


@pytest.mark.parametrize(("name", "case"), FIRST)
def test_no_rule_inside_a_rule(name, case):
    """A nested custom_vjp would break `jax.hessian` and forward-over-reverse."""
    r = RULES[name]
    g, values = split(r.primal, case.args, case.static)
    static = inspect_defaults(r.primal) | dict(case.static)
    out, _ = jax.eval_shape(lambda: r.fwd(*case.args, **static))
    dout = jax.tree.map(lambda t: jnp.ones(t.shape, t.dtype), out)
    whole = lambda: r.bwd(r.fwd(*case.args, **static)[1], dout, **static)
    for f in (lambda: g(*values), whole):
        assert "custom_vjp" not in str(jax.make_jaxpr(f)())


def inspect_defaults(f):
    return dict(f.__kwdefaults__ or {})


@pytest.mark.parametrize(("name", "case"), FIRST)
def test_residual_bytes(name, case):
    """Bytes that fwd saves in addition to the arguments, as its docstring says."""
    r = RULES[name]
    static = inspect_defaults(r.primal) | dict(case.static)
    floats, tree = jax.tree.flatten(case.args)
    is_float = lambda x: jnp.issubdtype(jax.typeof(x).dtype, jnp.floating)
    floats = [jnp.asarray(x, jnp.float32) if is_float(x) else x for x in floats]
    jaxpr = jax.make_jaxpr(lambda *a: r.fwd(*jax.tree.unflatten(tree, a), **static)[1])(*floats)
    saved = [v for v in jaxpr.jaxpr.outvars if v not in jaxpr.jaxpr.invars]
    assert sum(v.aval.size * v.aval.dtype.itemsize for v in saved) == RESIDUAL_BYTES[name]


def sharding_of(case, axis="d"):
    """One PartitionSpec per floating-point leaf of the arguments, in order."""
    return tuple(
        P(axis) if sharded else P()
        for arg, sharded in zip(case.args, case.shard, strict=True)
        for leaf in jax.tree.leaves(arg)
        if jnp.issubdtype(jax.typeof(leaf).dtype, jnp.inexact)
    )


@SLOW
@pytest.mark.parametrize("check", [True, False], ids=["vma", "no-vma"])
@pytest.mark.parametrize(("name", "case"), FIRST)
def test_shard_map(name, case, check):
    """On two devices, gradients outside and inside `shard_map` match those of autodiff."""
    g, plain, values, *_ = setup(name, case)
    mesh, specs = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,)), sharding_of(case)

    def mapped(g):
        each = lambda *v: jax.tree.map(lambda y: y[None], g(*v))
        return jax.shard_map(each, mesh=mesh, in_specs=specs, out_specs=P("d"), check_vma=check)

    def inside(g):
        def local(*v):
            loss = lambda *v: sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(g(*v)))
            return tuple(d[None] for d in jax.grad(loss, tuple(range(len(v))))(*v))

        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P("d"), check_vma=check)

    dout = cotangents(mapped(g), values)
    equal(pull(mapped(g))(values, dout), pull(mapped(plain))(values, dout))
    if check and P() not in specs:  # a shared argument's gradient does not vary with the device
        equal(jax.jit(inside(g))(*values), jax.jit(inside(plain))(*values))


@SLOW
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize(("name", "case"), FIRST)
def test_sharded_jit(name, case, kind):
    """`jax.jit` of sharded arguments gives the same gradient as a single device."""
    g, _, values, dout, _, by_autodiff = setup(name, case)
    mesh = jax.make_mesh((2,), ("d",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        put = lambda v, spec: jax.device_put(v, NamedSharding(mesh, spec))
        sharded = tuple(put(v, s) for v, s in zip(values, sharding_of(case), strict=True))
        out = jax.jit(g)(*sharded)
        placed = jax.tree.map(lambda d, y: jax.device_put(d, y.sharding), dout, out)
        actual = jax.tree.map(np.asarray, pull(g)(sharded, placed))
    equal(actual, by_autodiff(values, dout))


PLACED = {"none": lambda i: False, "first": lambda i: i == 0, "others": lambda i: i > 0}


@SLOW
@pytest.mark.parametrize("placed", PLACED.values(), ids=PLACED)
@pytest.mark.parametrize(("name", "case"), FIRST)
def test_explicit_mesh_unplaced(name, case, placed):
    """With some arguments not on the mesh, the rule has a gradient wherever autodiff has one."""

    def gradient(f):
        wave = lambda y: jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        loss = lambda args: sum((wave(y) * y).sum() for y in jax.tree.leaves(f(*args)))
        return jax.grad(loss, allow_int=True)

    f = functools.partial(ruled(name), **case.static)
    mesh = jax.make_mesh((2,), ("d",))
    on_mesh = lambda a, s: jax.device_put(a, NamedSharding(mesh, P("d") if s else P()))
    with jax.set_mesh(mesh):
        args = tuple(
            jax.tree.map(lambda a, s=s: on_mesh(a, s), arg) if placed(i) else arg
            for i, (arg, s) in enumerate(zip(case.args, case.shard, strict=True))
        )
        try:
            jax.jit(gradient(autodiff(f))).trace(args)
        except Exception:
            return  # autodiff of the plain forward fails too
        jax.jit(gradient(f)).trace(args)
        actual = gradient(f)(args)  # uncompiled, so that the backward pass sees concrete arrays
    expected = jax.jit(gradient(f))(case.args)
    of_floats = lambda tree: [
        np.asarray(d) for d in jax.tree.leaves(tree) if d.dtype != jax.dtypes.float0
    ]
    equal(of_floats(actual), of_floats(expected))


BATCHED = [param for param in FIRST if any(param.values[1].shard)]


@SLOW
@pytest.mark.parametrize(("name", "case"), BATCHED)
def test_export_of_any_batch(name, case):
    """A gradient exported with a symbolic batch size runs for the batch size of the case."""
    g, _, values, *_ = setup(name, case)
    loss = lambda values: sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(g(*values)))
    (n,) = jax.export.symbolic_shape("n")
    symbolic = tuple(
        jax.ShapeDtypeStruct((n, *v.shape[1:]) if spec == P("d") else v.shape, v.dtype)
        for v, spec in zip(values, sharding_of(case), strict=True)
    )
    exported = jax.export.export(jax.jit(jax.grad(loss)))(symbolic)
    equal(tuple(exported.call(values)), jax.jit(jax.grad(loss))(values))


@SLOW
@pytest.mark.parametrize(("name", "case"), FIRST)
def test_export(name, case):
    """A gradient exported for CPU, CUDA and TPU runs after serialisation and deserialisation."""
    _, _, values, dout, by_hand, by_autodiff = setup(name, case)
    exported = jax.export.export(by_hand, platforms=("cpu", "cuda", "tpu"))(values, dout)
    again = jax.export.deserialize(exported.serialize())
    equal(tuple(again.call(values, dout)), by_autodiff(values, dout))
