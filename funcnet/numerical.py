"""Numerical differentiation: the gradient of f from function values only.

It is slow and never exact, but f needs no rule and no autodiff, and may even be opaque to JAX. That
makes it the independent check of every other gradient.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from funcnet._arguments import check_array, check_int, check_number, describe

__all__ = ["STENCILS", "Stencil", "gradient"]

T = TypeVar("T")


class Stencil(NamedTuple):
    """Finite-difference formula f′(x) ≈ Σ w (f(x + ah) − f(x + bh)) / (dh).

    By Taylor's theorem its error is C hᵖ f⁽ᵖ⁺¹⁾ + …: the weights make all lower powers vanish.
    """

    terms: tuple[tuple[int, int, int], ...]  # (w, a, b)
    divisor: int  # d
    order: int  # p
    constant: float  # C


STENCILS = {
    "forward": Stencil(((1, 1, 0),), 1, 1, 1 / 2),
    "backward": Stencil(((1, 0, -1),), 1, 1, -1 / 2),
    "central": Stencil(((1, 1, -1),), 2, 2, 1 / 6),
    "five_point": Stencil(((8, 1, -1), (-1, 2, -2)), 12, 4, -1 / 30),
    "seven_point": Stencil(((45, 1, -1), (-9, 2, -2), (1, 3, -3)), 60, 6, 1 / 140),
}

ELEMENTS_AT_ONCE = 2**20  # in all perturbed copies of x of a batch: a few megabytes


def gradient(
    f: Callable[[T], Any],
    x: T,
    *,
    method: str = "central",
    step: float | jax.Array | None = None,
    batch_size: int | None = None,
) -> T:
    """Computes the gradient of f at x by finite differences, element by element.

        method       ∂f/∂xᵢ, with fₐ = f(x + a h eᵢ)                    error, leading term
        forward      (f₁ − f₀) / h                                        h/2 · f″
        backward     (f₀ − f₋₁) / h                                      −h/2 · f″
        central      (f₁ − f₋₁) / 2h                                     h²/6 · f‴
        five_point   (8(f₁ − f₋₁) − (f₂ − f₋₂)) / 12h                  −h⁴/30 · f⁽⁵⁾
        seven_point  (45(f₁ − f₋₁) − 9(f₂ − f₋₂) + (f₃ − f₋₃)) / 60h    h⁶/140 · f⁽⁷⁾

    Optimal step: in addition to the error C hᵖ f⁽ᵖ⁺¹⁾ of the formula, each value of f has a
    rounding error of about ε|f|, which the division by h magnifies:

        E(h) = |C| hᵖ |f⁽ᵖ⁺¹⁾| + A ε|f|/h,   A = Σ 2|w| / d.
        E′(h) = 0   ⟺   hᵖ⁺¹ = A ε|f| / (p |C f⁽ᵖ⁺¹⁾|)   ⟹   h ∝ ε^(1/(p+1)),   E(h) ∝ ε^(p/(p+1)).

    The remaining factor is 1.4 to 2 times a length over which f changes. Values at one point do not
    determine that length; the default is max(1, |xᵢ|):

        h = ε^(1/(p+1)) · max(1, |xᵢ|).

    ε is the machine epsilon of the coarser dtype of the element and f(x). In float64 the error is
    then about 1e-8 for forward, 4e-11 for central, 3e-13 for five_point and 4e-14 for seven_point,
    relative to the size of f; in float32 it is 3e-4, 2e-5, 3e-6 and 1e-6.

    x + h is rounded too, so h is replaced by the step actually taken, (|xᵢ| + h) − |xᵢ|, unless
    that is 0 because h is too small relative to xᵢ.

    The call is compiled, as by `jax.jit`, once per function object f and type of x. So f must be
    pure: any other values that it reads are read at the first call only. The derivative along a
    direction v is `gradient(lambda s: f(x + s * v), 0.0)`.

    Args:
      f: A function of x that returns one real floating number. JAX need not be able to
        differentiate it: it may be a `jax.pure_callback`.
      x: A pytree of real floating arrays of any shape. A Python float counts as an array of the
        default dtype.
      method: A key of `STENCILS`. Forward and backward evaluate f once per element of x, plus once
        at x; the others evaluate f 2, 4 and 6 times per element.
      step: h > 0, a number or a scalar array, which may be traced (use `jax.vmap` for a sweep). By
        default it is the h above, chosen per element.
      batch_size: Number of evaluations of f in one `jax.vmap`. 1 evaluates f sequentially without
        vmap, for an f that does not support vmap or needs much memory. By default the perturbed
        copies of x in a batch have up to `ELEMENTS_AT_ONCE` elements.

    Returns:
      A pytree like x, with its shapes and dtypes.

    Raises:
      ValueError: If the method is unknown, step or batch_size is not positive, or step is not
        finite or rounds to 0 in the dtype of x.
      TypeError: If f is not a function, a leaf of x is not real floating, f(x) is not one real
        floating number, or step is not a number.

    Reference: Source A 3.3.1. Fornberg, Generation of finite difference formulas on arbitrarily
    spaced grids, 1988, table 1.

    >>> round(float(gradient(lambda x: x**2, 3.0, method="five_point")), 4)
    6.0
    """
    if not callable(f):
        raise TypeError(f"gradient: f must be a function, got {describe(f)}")
    if not (isinstance(method, str) and method in STENCILS):
        raise ValueError(f"gradient: method must be one of {', '.join(STENCILS)}, got {method!r}")
    if batch_size is not None:
        batch_size = check_int("gradient", "batch_size", batch_size, at_least=1)
    if step is not None:
        check_number("gradient", "step", step, above=0)
    for path, leaf in jax.tree.leaves_with_path(x):
        _check_leaf(f"x{jax.tree_util.keystr(path)}", leaf, step)
    # Removes the weak type of a Python float: f must see one type at x and at perturbed points.
    x = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), x)
    try:
        hash(f)
    except TypeError:
        f = functools.partial(f)  # hashed by identity: works, but is compiled again at each call
    return _gradient(f, x, step, method=method, batch_size=batch_size)


@functools.partial(jax.jit, static_argnames=("f", "method", "batch_size"))
def _gradient(
    f: Callable[[Any], Any], x: Any, step: Any, *, method: str, batch_size: int | None
) -> Any:
    terms, d, p, _ = STENCILS[method]
    out = _scalar_dtype(f, x)
    h = jax.tree.map(lambda leaf: _step(leaf, step, p, out), x)

    leaves, tree = jax.tree.flatten(x)
    ends = list(itertools.accumulate(leaf.size for leaf in leaves))
    n = ends[-1] if ends else 0
    if n == 0:
        return x
    numbers = [
        jnp.arange(e - a.size, e).reshape(a.shape) for a, e in zip(leaves, ends, strict=True)
    ]
    number = jax.tree.unflatten(tree, numbers)  # index of each element over all leaves

    moves = sorted({a for _, *ab in terms for a in ab} - {0})

    def f_moved(k: jax.Array) -> jax.Array:
        """Evaluates f(x + a h eᵢ), where k is the index of the pair (a, i)."""
        a, i = jnp.array(moves)[k // n], k % n
        move = lambda x, h, j: jnp.where(j == i, x + a.astype(x.dtype) * h, x)
        return jnp.asarray(f(jax.tree.map(move, x, h, number)), out)

    batch_size = batch_size or max(1, ELEMENTS_AT_ONCE // n)
    k = jnp.arange(len(moves) * n)
    values = jax.lax.map(f_moved, k, batch_size=batch_size if batch_size > 1 else None)
    f_at = dict(zip(moves, values.reshape(len(moves), n), strict=True))
    f_at[0] = jnp.asarray(f(x), out)
    differences = sum((w * (f_at[a] - f_at[b]) for w, a, b in terms), jnp.zeros(n, out))

    def quotient(x: jax.Array, h: jax.Array, j: jax.Array) -> jax.Array:
        wide = max(x.dtype, out, key=lambda dtype: jnp.finfo(dtype).bits)
        return (differences[j].astype(wide) / (d * h.astype(wide))).astype(x.dtype)

    return jax.tree.map(quotient, x, h, number)


def _check_leaf(name: str, leaf: Any, step: Any) -> None:
    """Checks that a leaf of x is real floating, with a dtype in which the step is not 0."""
    check_array("gradient", name, leaf)
    dtype = jnp.result_type(leaf)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"gradient: {name} must be real floating, got {dtype}{list(jnp.shape(leaf))}"
        )
    if step is not None and not isinstance(step, Tracer) and np.asarray(step, dtype) == 0:
        raise ValueError(
            f"gradient: step must not round to 0 in {dtype}, that of {name}, got {step}"
        )


def _step(x: jax.Array, step: Any, p: int, out: Any) -> jax.Array:
    """The step h of each element of x, such that its dtype represents |x| + h exactly."""
    size = jnp.abs(x)
    if step is None:
        eps = max(float(jnp.finfo(dtype).eps) for dtype in (x.dtype, out))
        h = eps ** (1 / (p + 1)) * jnp.maximum(size, 1)
    else:
        h = jnp.broadcast_to(jnp.asarray(step, x.dtype), x.shape)
    taken = jax.lax.optimization_barrier(size + h) - size  # without it XLA may cancel size
    return jnp.where(taken == 0, h, taken)


def _scalar_dtype(f: Callable[[Any], Any], x: Any) -> Any:
    """The dtype of f(x), which must be one real floating number."""
    out = jax.eval_shape(f, x)
    is_scalar = isinstance(out, jax.ShapeDtypeStruct) and out.shape == ()
    if not is_scalar or not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(f"gradient: f(x) must be one real floating number, got {out}")
    return out.dtype
