"""The compact form of a rule for a function that is applied element by element."""

from collections.abc import Callable
from typing import Any

import jax

from funcnet.rule import Ruled, rule


def elementwise(
    *, saves: Callable[[jax.Array], Any], dx: Callable[[Any, jax.Array], jax.Array]
) -> Callable[[Callable[[jax.Array], jax.Array]], Ruled[[jax.Array], jax.Array]]:
    """Declares y = f(x), y_i = f(x_i), by what is saved of x and by dx from that and dy.

    Because ∂y_i/∂x_j = f′(x_i) if i = j and else 0, the chain rule leaves one term,

        dx_i = Σ_j dy_j ∂y_j/∂x_i = dy_i f′(x_i).

    Args:
      saves: x ↦ residuals, whatever f′(x) is computed from.
      dx: (residuals, dy) ↦ dx = dy ⊙ f′(x), with the shape and dtype of x.

    Returns:
      A decorator of the plain forward. The rule's halves are named `<f>_fwd` and `<f>_bwd`.
    """

    def decorate(f: Callable[[jax.Array], jax.Array]) -> Ruled[[jax.Array], jax.Array]:
        def fwd(x: jax.Array) -> tuple[jax.Array, Any]:
            return f(x), saves(x)

        def bwd(residuals: Any, dy: jax.Array) -> tuple[jax.Array]:
            return (dx(residuals, dy),)

        fwd.__name__, bwd.__name__ = f"{f.__name__}_fwd", f"{f.__name__}_bwd"
        ruled = rule(f)
        ruled.defvjp(fwd, bwd)
        return ruled

    return decorate
