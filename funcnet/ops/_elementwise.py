"""The compact form of a rule for an element-wise function."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp

from funcnet._arrays import widen
from funcnet._barrier import barrier
from funcnet.rule import Ruled, rule

P = ParamSpec("P")


def elementwise(
    *,
    saves: Callable[..., Any],
    dx: Callable[..., jax.Array],
    real: Sequence[str] = (),
    inexact: Sequence[str] = (),
) -> Callable[[Callable[P, jax.Array]], Ruled[P, jax.Array]]:
    """Declares an element-wise rule y_i = f(x_i) by its residuals and its formula for dx.

    Because ∂y_i/∂x_j is f′(x_i) if i = j and 0 otherwise, the chain rule leaves one term:

        dx_i = Σ_j dy_j ∂y_j/∂x_i = dy_i f′(x_i).

    f may have keyword-only options, which are static; all of them are passed to `saves` and `dx`.

    Args:
      saves: (x, **options) ↦ residuals, from which `dx` computes f′(x).
      dx: (residuals, dy, **options) ↦ dx = dy ⊙ f′(x), with the shape and dtype of x.
      real: As in `rule`.
      inexact: As in `rule`.

    Returns:
      A decorator of the plain forward function. It names the halves of the rule `<f>_fwd` and
      `<f>_bwd`.
    """

    def decorate(f: Callable[P, jax.Array]) -> Ruled[P, jax.Array]:
        plain: Callable[..., jax.Array] = f

        def fwd(x: jax.Array, **options: Any) -> tuple[jax.Array, Any]:
            x = jnp.asarray(x)  # ~ of a Python bool would be an int
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
    """The form of `elementwise` that saves only x and computes f′(x) in the backward pass.

    Autodiff keeps intermediate results of f: one or more arrays in addition to x. Not keeping them
    means, as with `jax.checkpoint`, computing them twice; most often that is one exponential.

    Args:
      slope: (x, **options) ↦ f′(x), where x is in float32 or a wider dtype.

    Returns:
      A decorator of the plain forward function. Its x must be real; integers are converted to
      floats.
    """

    def dx(x: jax.Array, dy: jax.Array, **options: Any) -> jax.Array:
        # Without a barrier XLA would find parts of f′ that fwd has computed, and would keep them.
        x = barrier(x)
        return (widen(dy) * slope(widen(x), **options)).astype(dy.dtype)

    return elementwise(saves=lambda x, **_: x, dx=dx, real=("x",))


def has_derivative(
    derivative: Callable[..., jax.Array],
) -> Callable[[Callable[..., jax.Array]], Callable[..., jax.Array]]:
    """Declares the derivative of a slope f′ for which autodiff's formula cancels in a tail.

    Only second derivatives use it, so a gradient costs the same with it and without it.

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
    """Converts `x` to an array of real numbers; integers stay integers.

    Raises:
      TypeError: If x is complex or not numeric.
    """
    x = jnp.asarray(x)
    if not any(jnp.issubdtype(x.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise TypeError(f"{f}: x must be real, got {jax.typeof(x)}")
    return x
