"""Programs evaluated in NumPy give what they give when XLA compiles them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, FIRST_OF_FAMILY
from criterion import cotangents, split

from funcnet import ops
from funcnet.check import interpreter
from funcnet.check.interpreter import cost, evaluate
from funcnet.check.programs import QUICK, quick, run_all

ODD = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5, -2.5, 1e-300, 0.5, -0.5])
UNIT = np.array([-1.0, -0.5, 0.0, 0.25, 1.0, np.nan])
INTEGERS = np.array([-7, -2, -1, 0, 1, 2, 7, 2**31 - 1, -(2**31)], np.int32)
WORDS = np.array([0, 1, 2**31, 2**32 - 1], np.uint32)
MATRIX = np.random.default_rng(0).standard_normal((2, 3, 4))
ELEMENTWISE = [
    "abs", "acosh", "asinh", "atan", "cbrt", "ceil", "cos", "cosh", "digamma", "erf", "erfc", "exp",
    "exp2", "expm1", "floor", "is_finite", "lgamma", "log", "log1p", "logistic", "neg", "rsqrt",
    "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh",
]  # fmt: skip
lax = jax.lax
SCALE = 16.0  # of the terms in the sums of the cases


def function(name):
    return getattr(lax, name)


PROGRAMS = {
    **{name: (function(name), (ODD,)) for name in ELEMENTWISE},
    **{name: (function(name), (UNIT,)) for name in ("acos", "asin", "atanh", "erf_inv")},
    **{
        f"{name} of two": (function(name), tuple(np.meshgrid(ODD, ODD)))
        for name in ("atan2", "max", "min", "pow", "rem")
    },
    "comparisons": (lambda x, y: (x == y, x != y, x < y, x <= y, x > y, x >= y), (ODD, ODD[::-1])),
    "arithmetic": (lambda x, y: (x + y, x - y, x * y, x / y), (ODD[:, None], ODD)),
    "integers": (lambda x, y: (x + y, x * y, lax.sign(x), abs(x)), (INTEGERS[:, None], INTEGERS)),
    "division": (
        lambda x: [f(x, jnp.full_like(x, -3)) for f in (lax.div, lax.rem)],
        (INTEGERS,),
    ),
    "division by 0": (lambda x: lax.div(x, x), (INTEGERS,)),
    "floor division": (lambda x: (x // 3, x % 3, x // -2), (INTEGERS,)),
    "words": (lambda x: (x >> 3, x << 5, ~x, x ^ 7, x & 9, x >> 40), (WORDS,)),
    "signed shifts": (
        lambda x: (x >> 3, lax.shift_right_logical(x, jnp.full_like(x, 3))),
        (INTEGERS,),
    ),
    "bits": (lambda x: lax.bitcast_convert_type(x, jnp.uint64), (ODD,)),
    "halves of bits": (lambda x: lax.bitcast_convert_type(x, jnp.uint32), (ODD,)),
    "to integers": (lambda x: x.astype(jnp.int32), (ODD,)),
    "to booleans": (lambda x: x.astype(bool), (ODD,)),
    "to narrow": (lambda x: (x.astype(jnp.bfloat16), x.astype(jnp.float16)), (ODD,)),
    "clamp": (lambda x: lax.clamp(-1.0, x, 1.0), (ODD,)),
    "powers": (lambda x: (x**2, x**-1, x**3, INTEGERS**2), (ODD,)),
    "rounding": (
        lambda x: (jnp.round(x), lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO)),
        (ODD,),
    ),
    "bfloat16": (
        lambda x: (jnp.exp(x), x * x, x.sum(), lax.cumsum(x), jnp.dot(x, x), x.max()),
        (np.asarray(UNIT[:-1], jnp.bfloat16),),
    ),
    "reductions": (
        lambda x: (x.sum((0, 2)), x.prod(1), x.max(-1), x.min(0), (x > 0).all(), (x > 1).any(0)),
        (MATRIX,),
    ),
    "reductions of nothing": (lambda x: (x.sum(0), x.max(0, initial=-jnp.inf)), (MATRIX[:0],)),
    "positions": (lambda x: (x.argmax(1), x.argmin(-1), ODD.argmax()), (MATRIX,)),
    "position of nan": (lambda x: (jnp.argmax(x), jnp.argmin(x)), (ODD,)),
    "cumulative": (
        lambda x: (
            *(f(x, axis=1) for f in (lax.cumsum, lax.cumprod, lax.cummax, lax.cummin)),
            lax.cumsum(x, axis=2, reverse=True),
        ),
        (MATRIX,),
    ),
    "products": (
        lambda x: (
            jnp.einsum("abc,abd->acd", x, x), jnp.einsum("abc,dbc->ad", x, x), jnp.dot(x, x[0, 0]),
            jnp.einsum("a,b->ab", x[0, 0], x[1, 1]),
        ),
        (MATRIX,),
    ),
    "products in bfloat16": (
        lambda x: (x @ x.T, jnp.dot(x, x.T, preferred_element_type=jnp.float32)),
        (np.asarray(MATRIX[0], jnp.bfloat16),),
    ),
    "product of nothing": (lambda x: x[:, :0] @ x[:0], (MATRIX[0],)),
    "shapes": (
        lambda x: (
            x[:, ::2, 1:3], x[::-1], x.transpose(2, 0, 1), x.reshape(6, 4), jnp.stack([x, x], 1),
            jnp.concatenate([x, 2 * x], 1), jnp.squeeze(x[:1], 0), x[:, None], jnp.split(x, [1], 1),
            jnp.unstack(x, axis=1),
            jnp.broadcast_to(x[:, :1], x.shape), jnp.arange(3.0), lax.iota(int, 4),
        ),
        (MATRIX,),
    ),
    "padding": (
        lambda x: (
            jnp.pad(x, ((1, 2), (0, 1), (3, 0)), constant_values=7.0),
            lax.pad(x, 0.0, ((-1, 2, 0), (0, 0, 1), (0, 0, 0))),
        ),
        (MATRIX,),
    ),
    "slices outside": (
        lambda x, i: (
            lax.dynamic_slice(x, (i, -i, i), (1, 2, 3)),
            lax.dynamic_update_slice(x, x[:1, :2], (i, -i, i)),
        ),
        (MATRIX, np.int32(9)),
    ),
    "gather and scatter": (
        lambda x, i: (x[0, i], x.at[:, i].add(1.0), jnp.sort(x), lax.top_k(x, 2)[0]),
        (MATRIX, np.array([2, 0], np.int32)),
    ),
    "selection": (
        lambda x: (jnp.where(x > 0, x, -1.0), lax.select_n(jnp.full(x.shape, 2), x, 2 * x, 3 * x)),
        (MATRIX,),
    ),
    "branches": (lambda x, i: lax.switch(i, [jnp.sin, jnp.cos, jnp.exp], x), (ODD, np.int32(9))),
    "branches under vmap": (
        lambda x, i: jax.vmap(lambda x, i: lax.switch(i, [jnp.sin, jnp.cos], x))(x, i),
        (ODD[:3], np.array([0, 1, 1], np.int32)),
    ),
    "loops": (
        lambda x: (
            lax.scan(lambda c, x: (c + x, c * x), x[0], x),
            lax.scan(lambda c, x: (c * x, None), x[0], x, reverse=True),
            lax.while_loop(lambda c: c.sum() < 9, lambda c: 2 * c + 1, x[0]),
            lax.fori_loop(0, 4, lambda i, c: c + i, x),
        ),
        (MATRIX,),
    ),
    "loop under vmap": (
        jax.vmap(
            lambda x: lax.while_loop(lambda c: c[0] < 9, lambda c: (2 * c[0], c[1] + x), (x, x))
        ),
        (np.array([1.0, 2.0, 5.0]),),
    ),
    "a scan over nothing": (
        lambda x: lax.scan(lambda c, x: (c + x, x), x[0, 0], x[:0, 0]),
        (MATRIX,),
    ),
    "random numbers": (
        lambda k: (jax.random.normal(k, (3,)), jax.random.bernoulli(jax.random.split(k)[1], 0.5)),
        (jax.random.key(0),),
    ),
    "complex": (
        lambda z: (jnp.exp(z), abs(z), jnp.angle(z), z**2, z / (1 + z), z.real),
        (MATRIX + 1j,),
    ),
    "platforms": (lambda x: lax.platform_dependent(x, tpu=jnp.sin, default=jnp.cos), (MATRIX,)),
}  # fmt: skip


def alike(actual, expected, scale=0.0, ulps=32):
    """Asserts equal shapes, dtypes, integers, nan and infinities, and nearly equal numbers.

    They may differ by a few ulps, of the number or of `scale`.
    """
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(e.dtype, jnp.inexact):
            allowed = ulps * float(jnp.finfo(e.dtype).eps)
            wide = np.complex128 if jnp.iscomplexobj(e) else np.float64
            a, e = np.asarray(a, wide), np.asarray(e, wide)
            np.testing.assert_allclose(a, e, rtol=allowed, atol=allowed * scale)
        else:
            np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("name", PROGRAMS)
def test_operations(name):
    f, args = PROGRAMS[name]
    with jax.enable_x64(True), np.errstate(all="ignore"):
        traced = jax.jit(f).trace(*args)
        got = evaluate(traced.jaxpr, jax.tree.leaves(args)) if "nothing" not in name else None
        got = quick(f)(*args) if got is None else jax.tree.unflatten(traced.out_tree, got)
        # XLA's cube root is exp(log(x) / 3); |log(x)| / 3 is up to 230 here.
        alike(got, jax.jit(f)(*args), ulps=256 if name == "cbrt" else 32)


@pytest.mark.third
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in FIRST_OF_FAMILY)) for n in CASES]
)
def test_rules(name):
    """The value and the gradient of a rule, with and without vmap, and the second derivative."""
    case = CASES[name][0]
    with jax.enable_x64(True), np.errstate(all="ignore"):
        f, values = split(getattr(ops, name), case.args, case.static)
        dout = cotangents(f, values)
        pull = lambda values, dout: jax.vjp(f, *values)[1](dout)
        along = lambda values, dout: jax.tree.reduce(
            jnp.add, jax.tree.map(jnp.sum, pull(values, dout))
        )
        two = jax.tree.map(lambda x: np.stack([x, 2 * x]), (values, dout))
        programs = [
            (pull, (values, dout)),
            (jax.grad(along), (values, dout)),
            (jax.vmap(pull), two),
        ]
        for program, args in programs:
            traced = jax.jit(program).trace(*args)
            if cost(traced.jaxpr) < np.inf:
                got = evaluate(traced.jaxpr, jax.tree.leaves(args))
                alike(got, jax.tree.leaves(jax.jit(program)(*args)), scale=SCALE)


def test_large_programs_are_compiled():
    x = np.ones((60, 60), np.float32)
    many = lambda x: lax.fori_loop(0, 10_000, lambda _, x: jnp.sin(x @ x), x)
    assert cost(jax.jit(many).trace(x).jaxpr) > interpreter.COST
    assert isinstance(run_all([(many, (x,))], QUICK)[0], jax.Array)
    assert isinstance(run_all([(jnp.sin, (x,))], QUICK)[0], np.ndarray)
    assert isinstance(run_all([(jnp.sin, (x,))])[0], jax.Array)


def test_long_loops_are_compiled():
    f = lambda x: lax.while_loop(lambda c: c < 1e4, lambda c: c + 1, x)
    with pytest.raises(interpreter.Unsupported, match="many passes"):
        evaluate(jax.make_jaxpr(f)(0.0), [np.float32(0)])
    assert run_all([(f, (0.0,))], QUICK) == [1e4]


def test_exceptions_are_those_of_jax():
    (found,) = run_all([(lambda x: x.nothing, (1.0,))], QUICK)
    assert isinstance(found, AttributeError)
