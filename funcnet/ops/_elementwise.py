"""The compact form of a rule for a function that is applied element by element."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp

from funcnet._arrays import widen
from funcnet.rule import Ruled, rule

P = ParamSpec("P")


def elementwise(
    *,
    saves: Callable[..., Any],
    dx: Callable[..., jax.Array],
    real: Sequence[str] = (),
    inexact: Sequence[str] = (),
) -> Callable[[Callable[P, jax.Array]], Ruled[P, jax.Array]]:
    """Declares y = f(x), y_i = f(x_i), by what is saved of x and by dx from that and dy.

    Because ∂y_i/∂x_j = f′(x_i) if i = j and else 0, the chain rule leaves one term,

        dx_i = Σ_j dy_j ∂y_j/∂x_i = dy_i f′(x_i).

    f may have keyword-only options, which are static; all of them are handed on to both functions.

    Args:
      saves: (x, **options) ↦ residuals, whatever f′(x) is computed from.
      dx: (residuals, dy, **options) ↦ dx = dy ⊙ f′(x), with the shape and dtype of x.
      real: As in `rule`.
      inexact: As in `rule`.

    Returns:
      A decorator of the plain forward. The rule's halves are named `<f>_fwd` and `<f>_bwd`.
    """

    def decorate(f: Callable[P, jax.Array]) -> Ruled[P, jax.Array]:
        plain: Callable[..., jax.Array] = f

        def fwd(x: jax.Array, **options: Any) -> tuple[jax.Array, Any]:
            x = jnp.asarray(x)  # of a bool of Python, ~ is an int
            return plain(x, **options), saves(x, **options)

        def bwd(residuals: Any, dy: jax.Array, **options: Any) -> tuple[jax.Array]:
            return (dx(residuals, dy, **options),)

        fwd.__name__, bwd.__name__ = f"{f.__name__}_fwd", f"{f.__name__}_bwd"
        ruled = rule(real=real, inexact=inexact)(f)
        ruled.defvjp(fwd, bwd)
        return ruled

    return decorate


def recomputed(
    slope: Callable[..., jax.Array],
) -> Callable[[Callable[P, jax.Array]], Ruled[P, jax.Array]]:
    """The form of `elementwise` that saves x alone, and computes f′(x) in the backward pass.

    Autodiff keeps parts of f, an array or more beside x. The price of not keeping them is, as with
    `jax.checkpoint`, to compute them twice, mostly one exponential.

    Args:
      slope: (x, **options) ↦ f′(x), for x in float32 at least.

    Returns:
      A decorator of the plain forward, whose x must be real; integers are converted.
    """

    def dx(x: jax.Array, dy: jax.Array, **options: Any) -> jax.Array:
        # Without a barrier XLA would find parts of f′ computed already in fwd, and keep them.
        x = jax.lax.optimization_barrier(x)
        return (widen(dy) * slope(widen(x), **options)).astype(dy.dtype)

    return elementwise(saves=lambda x, **_: x, dx=dx, real=("x",))


def has_derivative(
    derivative: Callable[..., jax.Array],
) -> Callable[[Callable[..., jax.Array]], Callable[..., jax.Array]]:
    """Declares the derivative of a slope f′, where that of autodiff cancels in a tail.

    A gradient costs the same with it and without it: it is met in second derivatives alone.

    Args:
      derivative: (x, **options) ↦ f″(x).

    Returns:
      A decorator of f′: (x, **options) ↦ f′(x).
    """

    def decorate(slope: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        @functools.wraps(slope)
        def declared(x: jax.Array, **options: Any) -> jax.Array:
            f = jax.custom_jvp(functools.partial(slope, **options))
            f.defjvps(lambda dx, _, x: dx * derivative(x, **options))
            return f(x)

        return declared

    return decorate


def ordered(f: str, x: Any) -> jax.Array:
    """`x` as an array of real numbers, of which integers stay integers.

    Raises:
      TypeError: If it is complex, or no number.
    """
    x = jnp.asarray(x)
    if not any(jnp.issubdtype(x.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise TypeError(f"{f}: x must be real, got {jax.typeof(x)}")
    return x
