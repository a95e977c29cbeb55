"""The simple recurrent network."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Integer

from funcnet._arrays import batch_like, cast_each
from funcnet.ops._time_loop import (
    as_row,
    check_sequence,
    check_weights,
    plus,
    scan_time,
    states_before,
    sum_of_products,
    sum_of_steps,
    tanh_and_slope,
    time_first,
    time_last,
    valid_steps,
    widen_alike,
)
from funcnet.ops._types import AnyArray, Real
from funcnet.rule import rule


def _run(args, lengths, *, reverse, save):
    """Returns the outputs, the full-precision states, and save(a_t) over time."""
    x, h0, w_x, w_h, b = args
    check_sequence("rnn", x, h0, lengths)
    check_weights("rnn", 1, x, h0, w_x, w_h, b=b)
    dtype, (x, h0, w_x, w_h, b) = widen_alike(*args)
    valid, h0, b = valid_steps(x, lengths), batch_like(h0, x), as_row(b, h0)

    def step(h, x_t):
        a = plus(x_t @ w_x + h @ w_h, b)
        h = jnp.tanh(a)
        return h, (h, save(a))

    h, (hs, saved) = scan_time(step, h0, time_first(x, valid), valid, reverse=reverse)
    hs = time_last(hs)
    return (hs.astype(dtype), h.astype(dtype)), hs, saved


@rule
def rnn(
    x: Real[AnyArray, "*batch T I"],
    h0: Real[AnyArray, "*batch H"],
    w_x: Real[AnyArray, "I H"],
    w_h: Real[AnyArray, "H H"],
    b: Real[AnyArray, "H"] | None = None,
    lengths: Integer[ArrayLike, "*batch"] | None = None,
    *,
    reverse: bool = False,
) -> tuple[Float[Array, "*batch T H"], Float[Array, "*batch H"]]:
    """Simple (Elman) recurrent network with tanh, run over a sequence.

        h_t = tanh(x_t W_x + h_{t−1} W_h + b),   t = 1 … T

    Past its length L, the state of a sequence is frozen and its outputs are 0, whatever x contains
    there, so h_T is the state after step L. In reverse, t runs from L down to 1, with h_{t+1} in
    place of h_{t−1}. The state has at least float32 precision.

    Args:
      x: x_1 … x_T, shape (..., T, I); all leading axes are batch axes.
      h0: h_0, shape (..., H).
      w_x: W_x, shape (I, H).
      w_h: W_h, shape (H, H).
      b: b, shape (H,); None for no bias.
      lengths: L, integers from 0 to T, shape (...); None if all sequences have T steps. Values
        below 0 count as 0, and values above T as T.
      reverse: Whether to run from the last step to the first. Static.

    Returns:
      h_1 … h_T, shape (..., T, H), and h_T, shape (..., H) (h_1 in reverse), of the dtype that the
      arguments promote to.

    Raises:
      ValueError: If the shapes do not fit, or lengths are not integers.
      TypeError: If an argument is complex.

    Reference: Elman, 1990, Finding structure in time; `torch.nn.RNN` with b = b_ih + b_hh.

    >>> one = jnp.ones((1, 1))
    >>> hs, h = rnn(one, jnp.zeros(1), one, one, jnp.zeros(1))
    >>> print(f"{hs[0, 0]:.4f} {h[0]:.4f}")
    0.7616 0.7616
    """
    args = (x, h0, w_x, w_h, b)
    return _run(args, lengths, reverse=reverse, save=lambda _: ())[0]


def rnn_fwd(x, h0, w_x, w_h, b, lengths, *, reverse):
    """Saves the outputs h and the derivatives of tanh: 2 numbers per element of h.

    In float32, h is the output itself, not a copy.
    """
    args = (x, h0, w_x, w_h, b)
    slope = lambda a: tanh_and_slope(a)[1]
    out, hs, slopes = _run(args, lengths, reverse=reverse, save=slope)
    return out, (args, lengths, hs, slopes)


def rnn_bwd(residuals, douts, *, reverse):
    """The cotangents of all arguments, by backpropagation through time.

    Let a_t = x_t W_x + h_{t−1} W_h + b and h_t = tanh a_t. h_t influences the output, with
    cotangent dy_t, and a_{t+1}. From the last step to the first, with the cotangent of h_T added at
    the last step,

        dh_t = dy_t + da_{t+1} W_hᵀ,                                                          (1)
        da_t = dh_t ⊙ tanh′(a_t),                                                             (2)

    and dh_0 = da_1 W_hᵀ. As in an affine layer, over all steps and examples at once,

        dx_t = da_t W_xᵀ,                                                                     (3)
        dW_x = Σ_t x_tᵀ da_t,   dW_h = Σ_t h_{t−1}ᵀ da_t,   db = Σ_t da_t.                    (4)

    Autodiff accumulates these sums inside the loop, with a weight-shaped addition at each step. A
    masked step has da_t = 0 and passes dh on. tanh′ is computed from a, not from h, because 1 − h²
    loses its digits when h is near ±1.

    Reference: Appleyard et al., 2016, arXiv:1604.01946, for the products after the loop.
    """
    args, lengths, hs, slopes = residuals
    _, (x, h0, w_x, w_h, _) = widen_alike(*args)
    dhs, dh = (d.astype(hs.dtype) for d in douts)
    valid, w_hT = valid_steps(x, lengths), w_h.T

    def step(dh, inputs):
        dy, slope = inputs
        da = (dh + dy) * slope  # (1), (2)
        return da @ w_hT, da  # (1)

    dh0, das = scan_time(step, dh, (time_first(dhs), slopes), valid, reverse=not reverse)
    dx = time_last(das @ w_x.T)  # (3)
    dw_x = sum_of_products(time_first(x, valid), das, w_x)  # (4)
    before = states_before(hs, h0, valid, reverse=reverse)
    dw_h = sum_of_products(before, das, w_h)
    cotangents = (dx, dh0, dw_x, dw_h, sum_of_steps(das))
    return *cast_each(cotangents, args), None


rnn.defvjp(rnn_fwd, rnn_bwd)
