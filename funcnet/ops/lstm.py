"""The long short-term memory (LSTM)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float, Integer

from funcnet._arrays import batch_like, cast_each
from funcnet.ops._time_loop import (
    as_row,
    check_sequence,
    check_weights,
    plus,
    scan_time,
    sigmoid_and_slope,
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
    """Returns the outputs, the full-precision states, and save(c_{t−1}, z_t) over time."""
    x, h0, c0, w_x, w_h, b = args
    check_sequence("lstm", x, h0, lengths, c0=c0)
    check_weights("lstm", 4, x, h0, w_x, w_h, b=b)
    dtype, (x, h0, c0, w_x, w_h, b) = widen_alike(*args)
    valid, b = valid_steps(x, lengths), as_row(b, h0)
    h0, c0 = batch_like(h0, x), batch_like(c0, x)

    def step(state, x_t):
        h, c = state
        z = plus(x_t @ w_x + h @ w_h, b)
        z_i, z_f, z_g, z_o = jnp.split(z, 4, -1)
        saved = save(c, z)
        c = lax.logistic(z_f) * c + lax.logistic(z_i) * jnp.tanh(z_g)
        h = lax.logistic(z_o) * jnp.tanh(c)
        return (h, c), (h, saved)

    (h, c), (hs, saved) = scan_time(step, (h0, c0), time_first(x, valid), valid, reverse=reverse)
    hs = time_last(hs)
    return (hs.astype(dtype), h.astype(dtype), c.astype(dtype)), hs, saved


@rule
def lstm(
    x: Real[AnyArray, "*batch T I"],
    h0: Real[AnyArray, "*batch H"],
    c0: Real[AnyArray, "*batch H"],
    w_x: Real[AnyArray, "I 4*H"],
    w_h: Real[AnyArray, "H 4*H"],
    b: Real[AnyArray, "4*H"] | None = None,
    lengths: Integer[ArrayLike, "*batch"] | None = None,
    *,
    reverse: bool = False,
    recompute: bool = False,
) -> tuple[Float[Array, "*batch T H"], Float[Array, "*batch H"], Float[Array, "*batch H"]]:
    """Long short-term memory (LSTM), run over a sequence.

        (z_i z_f z_g z_o) = x_t W_x + h_{t−1} W_h + b,   t = 1 … T
        i = s(z_i),   f = s(z_f),   g = tanh z_g,   o = s(z_o),   s the logistic sigmoid
        c_t = f ⊙ c_{t−1} + i ⊙ g,   h_t = o ⊙ tanh c_t

    Past its length L, the state of a sequence is frozen and its outputs are 0, whatever x contains
    there, so h_T is the state after step L. In reverse, t runs from L down to 1, with t + 1 in
    place of t − 1. The state and all computations have at least float32 precision.

    Args:
      x: x_1 … x_T, shape (..., T, I); all leading axes are batch axes.
      h0: h_0, shape (..., H).
      c0: c_0, shape (..., H).
      w_x: W_x, shape (I, 4H): the columns of gates i, f, g and o, concatenated.
      w_h: W_h, shape (H, 4H).
      b: b, shape (4H,); None for no bias.
      lengths: L, integers from 0 to T, shape (...); None if all sequences have T steps. Values
        below 0 count as 0, and values above T as T.
      reverse: Whether to run from the last step to the first. Static.
      recompute: Whether to save only h and c, and recompute the gates in the backward pass. This
        takes less memory between the passes and a third more matrix products. Static.

    Returns:
      h_1 … h_T, shape (..., T, H), and h_T and c_T, shape (..., H) (h_1 and c_1 in reverse), of the
      dtype that the arguments promote to.

    Raises:
      ValueError: If the shapes do not fit, or lengths are not integers.
      TypeError: If an argument is complex.

    Reference: Hochreiter & Schmidhuber, 1997, with the forget gate of Gers et al., 2000; the order
    of the gates is that of `torch.nn.LSTM`, with b = b_ih + b_hh.

    >>> zero, w = jnp.zeros(1), jnp.zeros((1, 4))
    >>> hs, h, c = lstm(jnp.ones((2, 1)), zero, zero + 8, w, w, jnp.zeros(4))
    >>> hs.shape, float(c[0])
    ((2, 1), 2.0)
    """
    args = (x, h0, c0, w_x, w_h, b)
    return _run(args, lengths, reverse=reverse, save=lambda *_: ())[0]


def lstm_fwd(x, h0, c0, w_x, w_h, b, lengths, *, reverse, recompute):
    """Saves the outputs h, c_{t−1} and the pre-activations z: 6 numbers per element of h.

    With `recompute`, saves only h and c_{t−1}: 2 numbers. In float32, h is the output itself, not a
    copy.
    """
    args = (x, h0, c0, w_x, w_h, b)
    save = lambda c, z: (c, () if recompute else z)
    out, hs, saved = _run(args, lengths, reverse=reverse, save=save)
    return out, (args, lengths, hs, saved)


def lstm_bwd(residuals, douts, *, reverse, recompute):
    """The cotangents of all arguments, by backpropagation through time.

    h_t influences the output, with cotangent dy_t, and z_{t+1}; c_t influences h_t and c_{t+1}.
    From the last step to the first, with the cotangents of h_T and c_T added at the last step,

        dh_t = dy_t + dz_{t+1} W_hᵀ,                                                          (1)
        dc_t = dh_t ⊙ o tanh′(c_t) + dc_{t+1} ⊙ f_{t+1},                                      (2)
        dz_i = dc_t ⊙ g s′(z_i),   dz_f = dc_t ⊙ c_{t−1} s′(z_f),                             (3)
        dz_g = dc_t ⊙ i tanh′(z_g),   dz_o = dh_t ⊙ tanh(c_t) s′(z_o),

    and dh_0 = dz_1 W_hᵀ, dc_0 = dc_1 ⊙ f_1. As in an affine layer, over all steps and examples at
    once,

        dx_t = dz_t W_xᵀ,                                                                     (4)
        dW_x = Σ_t x_tᵀ dz_t,   dW_h = Σ_t h_{t−1}ᵀ dz_t,   db = Σ_t dz_t.                    (5)

    Autodiff accumulates these sums inside the loop, with a weight-shaped addition at each step. A
    masked step has dz_t = 0 and passes dh and dc on. s′ and tanh′ are computed from z and c, not
    from the gates, because y(1 − y) would round to 0 in the tails. That costs exponentials, but z
    is one array to save, and no slower than four gates.

    Reference: Appleyard et al., 2016, arXiv:1604.01946, for the products after the loop.
    """
    args, lengths, hs, (cs, zs) = residuals
    _, (x, h0, _, w_x, w_h, b) = widen_alike(*args)
    dhs, dh, dc = (d.astype(hs.dtype) for d in douts)
    valid, w_hT = valid_steps(x, lengths), w_h.T
    xs = time_first(x, valid)
    before, b = states_before(hs, h0, valid, reverse=reverse), as_row(b, h0)

    def step(cotangents, inputs):
        (dh, dc), (dy, c, z) = cotangents, inputs
        if recompute:
            x_t, h = z
            z = plus(x_t @ w_x + h @ w_h, b)
        z_i, z_f, z_g, z_o = jnp.split(z, 4, -1)
        (i, s_i), (f, s_f), (o, s_o) = (sigmoid_and_slope(z) for z in (z_i, z_f, z_o))
        g, s_g = tanh_and_slope(z_g)
        tanh_c, s_c = tanh_and_slope(f * c + i * g)
        dh = dh + dy  # (1)
        dc = dc + dh * o * s_c  # (2)
        dz = [dc * g * s_i, dc * c * s_f, dc * i * s_g, dh * tanh_c * s_o]  # (3)
        dz = jnp.concatenate(dz, -1)
        return (dz @ w_hT, dc * f), dz  # (1), (2)

    inputs = (time_first(dhs), cs, (xs, before) if recompute else zs)
    (dh0, dc0), dzs = scan_time(step, (dh, dc), inputs, valid, reverse=not reverse)
    dx = time_last(dzs @ w_x.T)  # (4)
    dw_x = sum_of_products(xs, dzs, w_x)  # (5)
    dw_h = sum_of_products(before, dzs, w_h)
    cotangents = (dx, dh0, dc0, dw_x, dw_h, sum_of_steps(dzs))
    return *cast_each(cotangents, args), None


lstm.defvjp(lstm_fwd, lstm_bwd)
