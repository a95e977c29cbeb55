"""Perturbed-rounding (stochastic) arithmetic: how far can rounding alone move a result?

If two programs for the same gradient are both right, they differ only by rounding. How much they
may differ depends on their cancellations: the derivative of a sigmoid as y (1 − y) has no correct
digit where y = 1 − ε, while e/(1 + e)² has all digits. So every program is run again in several
perturbed arithmetics, in which each operation that rounds is followed by

    ρ(v) = v (1 ± u),

where u is a few units in the last place of the dtype of v (see `unit`). The sign is a hash of v and
of the number of the arithmetic. Equal values therefore stay equal: ties stay ties, and a recomputed
value equals the saved one. Exact operations (a selection, a maximum, a transpose) stay exact. The
noise of the program is the largest change among these arithmetics, element by element.

Reference: Parker, Monte Carlo arithmetic: exploiting randomness in floating-point arithmetic, 1997;
Vignes, A stochastic arithmetic for reliable scientific computation, 1993 (CESTAC). In these
papers the sign is random in each operation.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.check import tracing

ARITHMETICS = 12

# Operations whose result is exact or is one of their inputs. All other operations round.
EXACT = frozenset([
    "abs", "and", "argmax", "argmin", "barrier", "bitcast_convert_type", "broadcast",
    "broadcast_in_dim", "ceil", "clamp", "concatenate", "conj", "copy", "copy_p", "cummax",
    "cummin", "device_put",
    "dynamic_slice", "dynamic_update_slice", "eq", "expand_dims", "floor", "gather", "ge", "gt",
    "imag", "iota", "is_finite", "le", "lt", "max", "min", "ne", "neg", "nextafter", "not",
    "optimization_barrier", "or", "pad", "pcast", "pvary", "real", "reduce_and", "reduce_max",
    "reduce_min", "reduce_or", "reduce_window_max", "reduce_window_min", "reshape", "rev",
    "round", "scatter", "select_and_gather_add", "select_n", "sharding_constraint",
    "shift_left", "sign", "slice", "sort", "split", "squeeze", "stop_gradient", "top_k",
    "transpose", "unstack", "xor",
])  # fmt: skip
# Sums: the compiler chooses the order of the additions, so each term is perturbed too.
SUMS = frozenset([
    "conv_general_dilated", "cumlogsumexp", "cumprod", "cumsum", "dot_general", "psum",
    "psum_invariant", "ragged_dot", "reduce_prod", "reduce_sum", "reduce_window_sum",
    "scatter-add", "scatter_add", "select_and_scatter_add",
])  # fmt: skip
KERNEL_UNITS = 16  # perturbation of a kernel in ε of its coarsest dtype, of its largest output
MULTIPLIERS = np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D], np.uint32)


def unit(dtype: Any) -> float:
    """The perturbation u: 64 ulps in float64, in which formulas are compared, else 2 ulps."""
    info = jnp.finfo(dtype)
    return float(info.eps) * (64 if info.bits == 64 else 2)


def rounded(x: Any, number: Any) -> Any:
    """ρ(x) in the arithmetic with this number."""
    dtype = jnp.result_type(x)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return jax.lax.complex(rounded(jnp.real(x), number), rounded(jnp.imag(x), number))
    if not jnp.issubdtype(dtype, jnp.floating):
        return x
    u = jnp.asarray(unit(dtype), dtype)
    return x * jnp.where(_is_up(jnp.asarray(x), number), 1 + u, 1 - u)


def _shaken(x: jax.Array, number: Any, u: float) -> jax.Array:
    """Perturbs a kernel's output to x ± u max |x|, because its operations are not visible."""
    size = jnp.asarray(u, x.dtype) * jnp.abs(x).max(initial=0)
    return x + jnp.where(_is_up(x, number), size, -size)


def _eps_inside(jaxpr: Any) -> float:
    """ε of the coarsest dtype that a kernel computes in."""
    dtypes = [v.aval.dtype for eqn in jaxpr.eqns for v in eqn.outvars if hasattr(v.aval, "dtype")]
    own = [float(jnp.finfo(d).eps) for d in dtypes if jnp.issubdtype(d, jnp.floating)]
    inner = [tracing.opened(j) for eqn in jaxpr.eqns for j in tracing.inner_jaxprs(eqn)]
    return max([*own, *map(_eps_inside, inner)], default=0.0)


def _is_up(x: jax.Array, number: Any) -> jax.Array:
    """One bit of a multiplicative hash of the value of x and the number of the arithmetic."""
    bits = jnp.finfo(x.dtype).bits
    word = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{bits}"))
    word = (word ^ (word >> 32) if bits == 64 else word).astype(jnp.uint32)
    a, b, c = MULTIPLIERS
    h = (word ^ (jnp.asarray(number, jnp.uint32) * a)) * b
    return (h ^ (h >> 15)) * c >> 31 == 1


def in_arithmetic(f: Callable[..., Any]) -> Callable[..., Any]:
    """(number, *args) -> f(*args), computed in the arithmetic with this number."""

    def g(number: Any, *args: Any) -> Any:
        jaxpr, tree = tracing.trace(f, *args)

        def rewrite(eqn: Any, path: Any, inputs: list[Any]) -> list[Any] | None:
            plain = tracing.plain_forward(eqn)
            if plain is not None:  # a rule is called, not differentiated: bwd is not used
                return tracing.evaluate(plain, rewrite, inputs, path, _all)
            name = eqn.primitive.name
            if name == "while":
                return _same_passes(eqn, path, inputs, rewrite)
            if tracing.inner_jaxprs(eqn):
                return None
            if name in EXACT:
                return None
            if name == "convert_element_type" and not _narrows(eqn):
                return None
            known = [_constant(v, x, number) for v, x in zip(eqn.invars, inputs, strict=True)]
            if name in SUMS:
                known = [rounded(x, number) if _is_number(x) else x for x in known]
            outs = tracing.bind(eqn, known)
            if name == "pallas_call":
                u = KERNEL_UNITS * _eps_inside(eqn.params["jaxpr"])
                return [_shaken(y, number, u) if _is_number(y) else y for y in outs]
            return [rounded(y, number) if _is_number(y) else y for y in outs]

        leaves = tracing.evaluate(jaxpr, rewrite, jax.tree.leaves(args), (), _all)
        return jax.tree.unflatten(tree, leaves)

    return g


def _same_passes(eqn: Any, path: Any, inputs: list[Any], rewrite: Any) -> list[Any]:
    """A `while` loop with perturbed passes, as many as the exact loop makes.

    Rounding must not decide when the loop ends: it might never converge, or a float that counts the
    passes might stop it too late.
    """
    a, b = eqn.params["cond_nconsts"], eqn.params["cond_nconsts"] + eqn.params["body_nconsts"]
    cond, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
    exact = lambda closed, *xs: tracing.evaluate(closed, lambda *_: None, xs, (), _all)
    passes, _ = jax.lax.while_loop(
        lambda carry: exact(cond, *inputs[:a], *carry[1])[0],
        lambda carry: (carry[0] + 1, exact(body, *inputs[a:b], *carry[1])),
        (jnp.uint32(0), inputs[b:]),
    )
    perturbed = lambda _, carry: tracing.evaluate(
        body, rewrite, (*inputs[a:b], *carry), (*path, 1), _all
    )
    return jax.lax.fori_loop(jnp.uint32(0), passes, perturbed, inputs[b:])


def _all(_: Any) -> bool:
    return True


def _is_number(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def _narrows(eqn: Any) -> bool:
    """Whether a conversion loses digits."""
    old, new = eqn.invars[0].aval.dtype, eqn.params["new_dtype"]
    floating = jnp.issubdtype(old, jnp.floating) and jnp.issubdtype(new, jnp.floating)
    return bool(floating and jnp.finfo(new).eps > jnp.finfo(old).eps)


def _constant(variable: Any, value: Any, number: Any) -> Any:
    """Perturbs a literal narrower than float64, which was rounded unless it has few digits."""
    dtype = jnp.result_type(value)
    if not tracing.is_literal(variable) or not jnp.issubdtype(dtype, jnp.floating):
        return value
    with np.errstate(over="ignore"):  # the lowest float32 is −∞ in bfloat16
        short = np.asarray(value).astype(jnp.bfloat16).astype(np.float64)
    short = short == np.asarray(value, np.float64)
    return value if jnp.finfo(dtype).bits == 64 or short.all() else rounded(value, number)


def noise(f: Callable[..., Any], *args: Any) -> Any:
    """The largest change of each element of f(*args) over `ARITHMETICS` perturbed arithmetics.

    It is infinite where a change is nan. The arithmetics run one after another, so that only one
    copy of f is in memory.
    """
    other, base = in_arithmetic(f), f(*args)
    size = lambda y: jnp.zeros(jnp.shape(y), _real(jnp.result_type(y)))

    def larger(largest: Any, number: Any) -> tuple[Any, None]:
        def change(m: jax.Array, y: jax.Array, b: jax.Array) -> jax.Array:
            d = jnp.where(y == b, 0, jnp.abs(y - b)).astype(m.dtype)  # inf and inf are equal
            return jnp.maximum(m, jnp.where(jnp.isnan(d), jnp.inf, d))

        return jax.tree.map(change, largest, other(number, *args), base), None

    numbers = jnp.arange(1, ARITHMETICS + 1, dtype=jnp.uint32)
    return jax.lax.scan(larger, jax.tree.map(size, base), numbers)[0]


def _real(dtype: Any) -> Any:
    return jnp.finfo(dtype).dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.float32
