"""How many floating-point operations a function takes, counted in its program."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr


class Flops(NamedTuple):
    """A number of floating-point operations.

    exact: Whether all loops are of known length: a `while` loop counts with one pass.
    """

    total: int
    exact: bool = True


def flops(f: Callable[..., Any], *args: Any) -> Flops:
    """Of all operations of `f(*args)` that its result depends on, through loops and calls.

    Two for each product of a matrix product or convolution, one for each other operation and
    element. A loop counts all its passes, a condition its larger branch, a `shard_map` all devices.
    """
    jaxpr = jax.make_jaxpr(f)(*args).jaxpr
    return _flops(dce_jaxpr(jaxpr, True)[0])


# Operations that count once for each element.
ARITHMETIC = frozenset(
    {"add", "add_any", "sub", "mul", "div", "rem", "neg", "max", "min", "clamp", "abs", "sign"}
    | {"square", "sqrt", "rsqrt", "cbrt", "exp", "exp2", "expm1", "log", "log1p", "pow"}
    | {"integer_pow", "sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "tanh"}
    | {"asinh", "acosh", "atanh", "logistic", "erf", "erfc", "erf_inv", "lgamma", "digamma"}
    | {"reduce_sum", "reduce_prod", "reduce_max", "reduce_min", "cumsum", "cumprod", "cummax"}
)


def _flops(jaxpr: Any) -> Flops:
    counted = [_of_equation(e) for e in jaxpr.eqns if e.outvars]
    return Flops(sum(c.total for c in counted), all(c.exact for c in counted))


def _of_equation(e: Any) -> Flops:
    name, out = e.primitive.name, e.outvars[0].aval
    if name == "dot_general":
        ((contracted, _), _) = e.params["dimension_numbers"]
        left = e.invars[0].aval.shape
        return Flops(2 * math.prod(out.shape) * math.prod(left[i] for i in contracted))
    if name == "conv_general_dilated":
        kernel = e.invars[1].aval.shape
        outputs = kernel[e.params["dimension_numbers"].rhs_spec[0]]
        return Flops(2 * math.prod(out.shape) * (math.prod(kernel) // outputs))
    if name == "cond":
        branches = [_flops(branch.jaxpr) for branch in e.params["branches"]]
        return Flops(max(b.total for b in branches), all(b.exact for b in branches))
    floating = hasattr(out, "dtype") and jnp.issubdtype(out.dtype, jnp.inexact)
    if name in ARITHMETIC:
        sizes = [math.prod(v.aval.shape) for v in (*e.invars, *e.outvars)]
        return Flops(max(sizes) if floating else 0)
    if name == "scatter-add":
        return Flops(math.prod(e.invars[2].aval.shape) if floating else 0)
    if name.startswith("reduce_window_"):
        window = math.prod(e.params["window_dimensions"])
        return Flops(math.prod(out.shape) * window if floating else 0)
    inner = _flops_of_bodies(e)
    if name == "while":
        return Flops(inner.total, exact=inner.total == 0)
    return Flops(inner.total * _passes(e), inner.exact)


def _flops_of_bodies(e: Any) -> Flops:
    """Of the programs that an operation runs: of a call, a loop, a rule."""
    bodies = [getattr(v, "jaxpr", v) for v in e.params.values()]
    counted = [_flops(body) for body in bodies if hasattr(body, "eqns")]
    return Flops(sum(c.total for c in counted), all(c.exact for c in counted))


def _passes(e: Any) -> int:
    """How often an operation runs its body."""
    if e.primitive.name == "scan":
        return e.params["length"]
    if e.primitive.name == "shard_map":
        mesh = e.params["mesh"]
        return math.prod(mesh.shape[axis] for axis in e.params["newly_manual_axes"])
    return 1
