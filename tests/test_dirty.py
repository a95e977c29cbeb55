"""Every rule with unusual data and under the JAX options that users debug with.

The cases are those of `cases`, modified here in the same way for every rule.
"""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES
from criterion import cast, cotangents, equal, split
from marks import slow

from funcnet import RULES, autodiff, ops


def params(keep=lambda case: True):
    """Each case of each rule; all but the first are slow. A rule's tests run in one process."""
    return [
        pytest.param(
            name,
            case,
            id=f"{name}-{case.id}",
            marks=[pytest.mark.xdist_group(name), *([pytest.mark.slow] if i else [])],
        )
        for name, cases in CASES.items()
        for i, case in enumerate(filter(keep, cases))
    ]


EVERY = params()
WITH_A_BATCH = params(lambda case: any(case.shard))


def call_of(name, case):
    return split(getattr(ops, name), case.args, case.static)


def pulled(g):
    """The function (values, dout) -> (outputs, cotangents of values)."""

    def run(values, dout):
        out, back = jax.vjp(g, *values)
        return out, back(dout)

    return run


@pytest.mark.third
@pytest.mark.parametrize(("name", "case"), EVERY)
def test_nan_in_gives_nan_out(name, case):
    g, values = call_of(name, case)
    for i, v in enumerate(values):
        at = lambda v, i=i: jax.tree.leaves(jax.jit(g)(*values[:i], v, *values[i + 1 :]))
        if any(np.any(a != b) for a, b in zip(at(v), at(-1 - v), strict=True)):  # it matters
            assert any(np.isnan(y).any() for y in at(jnp.full_like(v, jnp.nan))), f"argument {i}"


@pytest.mark.third
@pytest.mark.parametrize(("name", "case"), EVERY)
def test_no_implicit_rank_promotion(name, case):
    g, values = call_of(name, case)
    with jax.numpy_rank_promotion("raise"):
        jax.make_jaxpr(pulled(g))(values, cotangents(g, values))


@pytest.mark.third
@pytest.mark.by_family
@pytest.mark.parametrize(("name", "case"), EVERY)
def test_nothing_to_debug_in_a_finite_case(name, case):
    """A user looking for a nan calls the rule uncompiled with `debug_nans` and `debug_infs` on."""
    g, values = call_of(name, case)
    dout = cotangents(g, values)
    with np.errstate(all="ignore"):
        result = jax.jit(pulled(autodiff(g)))(values, dout)
    if all(np.isfinite(x).all() for x in jax.tree.leaves((values, result))):
        with jax.debug_nans(True), jax.debug_infs(True):
            pulled(g)(values, dout)
            for i in range(len(values)):  # cotangents that are not requested must not raise either
                alone = lambda v, i=i: g(*values[:i], v, *values[i + 1 :])
                jax.vjp(alone, values[i])[1](dout)


@pytest.mark.third
@pytest.mark.parametrize(("name", "case"), EVERY)
def test_without_64_bits(name, case):
    """Without x64, as most users run, there is no warning and no dtype wider than float32."""
    with jax.enable_x64(False):
        g, values = call_of(name, case)
        out, dargs = jax.eval_shape(pulled(g), values, cotangents(g, values))
    for x in jax.tree.leaves((out, dargs)):
        assert x.dtype == jnp.float32 or not jnp.issubdtype(x.dtype, jnp.inexact)


def accepted(name, g, variants):
    """The variants of values that g accepts; each other one must raise a one-line message."""
    found = []
    for values in variants:
        try:
            jax.eval_shape(pulled(g), *differentiable(g, values))
            found.append(values)
        except (TypeError, ValueError) as error:
            message = str(error)
            assert message.startswith(f"{name}: "), message
            assert "\n" not in message
    return found


def differentiable(g, values):
    """(values, dout) for `pulled`; values may be integers and outputs may be complex."""
    random = np.random.default_rng(0)

    def draw(t):
        dout = random.standard_normal(t.shape)
        if jnp.issubdtype(t.dtype, jnp.complexfloating):
            dout = dout + 1j * random.standard_normal(t.shape)
        is_float = jnp.issubdtype(t.dtype, jnp.inexact)
        return np.asarray(dout, t.dtype) if is_float else np.zeros(t.shape, jax.dtypes.float0)

    return values, jax.tree.map(draw, jax.eval_shape(g, *values))


SMALL = lambda v: np.round(2 * np.clip(np.nan_to_num(v), -50, 50))
KINDS = {
    "int32": lambda v: SMALL(v).astype(np.int32),
    "uint8": lambda v: np.abs(SMALL(v)).astype(np.uint8),
    "bool": lambda v: np.asarray(v) > 0,
}


def arrays(name, case):
    """Indices of the floating-point leaves that are array arguments, not leaves of parameters."""
    hints = list(typing.get_type_hints(RULES[name].primal).values())
    leaves = jax.tree.leaves_with_path(case.args)
    floats = [path for path, x in leaves if jnp.issubdtype(jax.typeof(x).dtype, jnp.inexact)]
    return [i for i, (argument, *_) in enumerate(floats) if hints[argument.idx] is not typing.Any]


@pytest.mark.parametrize(("name", "case"), EVERY)
def test_keys_hold_no_numbers(name, case):
    """A PRNG key in place of an array raises a one-line error, even if its shape fits."""
    g, values = call_of(name, case)
    key = jax.random.key(0).dtype
    for i in arrays(name, case):
        variant = list(values)
        variant[i] = jax.ShapeDtypeStruct(values[i].shape, key)
        with pytest.raises((TypeError, ValueError)) as raised:
            jax.eval_shape(g, *variant)
        message = str(raised.value)
        assert message.startswith(f"{name}: ")
        assert "key[" in message
        assert "\n" not in message


@pytest.mark.third
@pytest.mark.by_family
@pytest.mark.parametrize("kind", ["uint8", *slow("int32", "bool")])
@pytest.mark.parametrize(("name", "case"), EVERY)
def test_integers(name, case, kind):
    """An integer argument gives the value of the equal floats, or a one-line error.

    The other arguments have the same gradients as with these floats.
    """
    g, values = call_of(name, case)
    put = lambda i, v: (*values[:i], v, *values[i + 1 :])
    variants = [put(i, KINDS[kind](values[i])) for i in arrays(name, case)]
    with jax.numpy_dtype_promotion("standard"):
        taken = accepted(name, g, variants)
        pairs = [differentiable(g, v) for v in taken]
        actual = jax.jit(lambda pairs: [without_integers(g, *pair) for pair in pairs])(pairs)
    same = [tuple(jnp.asarray(v, jnp.float64) for v in values) for values in taken]
    pairs = [differentiable(g, v) for v in same]
    expected = jax.jit(lambda pairs: [pulled(g)(*pair) for pair in pairs])(pairs)
    for values, (out, dargs), (same_out, same_dargs) in zip(taken, actual, expected, strict=True):
        integer = [jnp.issubdtype(v.dtype, jnp.integer) or v.dtype == bool for v in values]
        wide = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float64), tree)
        equal(wide(out), same_out)
        if all(jnp.issubdtype(y.dtype, jnp.inexact) for y in jax.tree.leaves(out)):
            equal(dargs, tuple(d for d, i in zip(same_dargs, integer, strict=True) if not i))


def without_integers(g, values, dout):
    """The outputs and the cotangents of the floating-point values."""
    floats = [i for i, v in enumerate(values) if jnp.issubdtype(v.dtype, jnp.inexact)]

    def of_floats(*some):
        merged = dict(enumerate(values)) | dict(zip(floats, some, strict=True))
        return g(*merged.values())

    return pulled(of_floats)(tuple(values[i] for i in floats), dout)


@pytest.mark.third
@pytest.mark.by_family
@pytest.mark.parametrize(("name", "case"), EVERY)
def test_complex_numbers(name, case):
    """With one or all arguments complex, the rule gives autodiff's gradient or a one-line error."""
    g, values = call_of(name, case)
    dirty = [np.asarray(v) + 1j * np.cos(np.arange(v.size)).reshape(v.shape) for v in values]
    put = lambda which: tuple(
        d if i in which else v for i, (d, v) in enumerate(zip(dirty, values, strict=True))
    )
    chosen = [*({i} for i in range(len(values))), set(range(len(values)))]
    with jax.numpy_dtype_promotion("standard"):
        taken = accepted(name, g, map(put, chosen))
        pairs = [differentiable(g, v) for v in taken]
        hand, auto = jax.jit(
            lambda pairs: [[pulled(f)(*pair) for pair in pairs] for f in (g, autodiff(g))]
        )(pairs)
    for part in (jnp.real, jnp.imag):
        equal(jax.tree.map(part, hand), jax.tree.map(part, auto))


@pytest.mark.third
@pytest.mark.by_family
@pytest.mark.parametrize(("name", "case"), WITH_A_BATCH)
def test_an_empty_batch(name, case):
    """With an empty batch, the gradients of shared arguments are zeros."""
    sharded = [np.asarray(a)[:0] if s else a for a, s in zip(case.args, case.shard, strict=True)]
    g, values = split(getattr(ops, name), tuple(sharded), case.static)
    dout = cotangents(g, values)
    _, hand = jax.jit(pulled(g))(values, dout)
    _, auto = jax.jit(pulled(autodiff(g)))(values, dout)
    for h, a in zip(hand, auto, strict=True):
        assert (h.shape, h.dtype) == (a.shape, a.dtype)
        assert not np.any(h)


@pytest.mark.third
@pytest.mark.by_family
@pytest.mark.parametrize("dtype", ["float16", *slow("float32", "bfloat16")])
@pytest.mark.parametrize(("name", "case"), [p for p in EVERY if not p.marks[1:]])
def test_finite_in_narrow_dtypes(name, case, dtype):
    """No intermediate overflows where value and gradient are finite and fit the dtype."""
    g, values = call_of(name, case)
    values = cast(values, dtype)
    out, dargs = jax.jit(pulled(g))(values, cotangents(g, values))
    wide = cast(values, jnp.float64)
    exact = jax.jit(pulled(g))(wide, cast_tree(cotangents(g, values)))
    largest = float(jnp.finfo(dtype).max)
    for x, e in zip(jax.tree.leaves((out, dargs)), jax.tree.leaves(exact), strict=True):
        fits = np.isfinite(e) & (np.abs(e) <= largest)
        assert np.isfinite(np.asarray(x, np.float64))[fits].all()


def cast_tree(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float64), tree)
