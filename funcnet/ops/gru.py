"""The gated recurrent unit (GRU)."""

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


def _gates(x, h, w_x, w_h, b, b_h):
    """One step: (z, n) and the pre-activations, those of r and z concatenated."""
    p, q = plus(x @ w_x, b), plus(h @ w_h, b_h)
    side = 2 * h.shape[-1]
    a_rz, q_n = p[..., :side] + q[..., :side], q[..., side:]
    r, z = jnp.split(lax.logistic(a_rz), 2, -1)
    a_n = p[..., side:] + r * q_n
    return (z, jnp.tanh(a_n)), (a_rz, a_n, q_n)


def _run(args, lengths, *, reverse, save):
    """Returns the outputs, the full-precision states, and save(pre-activations) over time."""
    x, h0, w_x, w_h, b, b_h = args
    check_sequence("gru", x, h0, lengths)
    check_weights("gru", 3, x, h0, w_x, w_h, b=b, b_h=b_h)
    dtype, (x, h0, w_x, w_h, b, b_h) = widen_alike(*args)
    valid, weights = valid_steps(x, lengths), (w_x, w_h, as_row(b, h0), as_row(b_h, h0))
    h0 = batch_like(h0, x)

    def step(h, x_t):
        (z, n), pre_activations = _gates(x_t, h, *weights)
        h = n + z * (h - n)
        return h, (h, save(pre_activations))

    h, (hs, saved) = scan_time(step, h0, time_first(x, valid), valid, reverse=reverse)
    hs = time_last(hs)
    return (hs.astype(dtype), h.astype(dtype)), hs, saved


@rule
def gru(
    x: Real[AnyArray, "*batch T I"],
    h0: Real[AnyArray, "*batch H"],
    w_x: Real[AnyArray, "I 3*H"],
    w_h: Real[AnyArray, "H 3*H"],
    b: Real[AnyArray, "3*H"] | None = None,
    b_h: Real[AnyArray, "3*H"] | None = None,
    lengths: Integer[ArrayLike, "*batch"] | None = None,
    *,
    reverse: bool = False,
    recompute: bool = False,
) -> tuple[Float[Array, "*batch T H"], Float[Array, "*batch H"]]:
    """Gated recurrent unit (GRU), run over a sequence.

        (p_r p_z p_n) = x_t W_x + b,   (q_r q_z q_n) = h_{t−1} W_h + b_h,   t = 1 … T
        r = s(p_r + q_r),   z = s(p_z + q_z),   n = tanh(p_n + r ⊙ q_n)
        h_t = n + z ⊙ (h_{t−1} − n),   s the logistic sigmoid

    The reset gate r is applied after the recurrent product, as in cuDNN and PyTorch, so that one
    product with W_h suffices. In the paper it comes before, n = tanh(p_n + (r ⊙ h_{t−1}) W_hn).

    Past its length L, the state of a sequence is frozen and its outputs are 0, whatever x contains
    there, so h_T is the state after step L. In reverse, t runs from L down to 1, with t + 1 in
    place of t − 1. The state and all computations have at least float32 precision.

    Args:
      x: x_1 … x_T, shape (..., T, I); all leading axes are batch axes.
      h0: h_0, shape (..., H).
      w_x: W_x, shape (I, 3H): the columns of r, z and n, concatenated.
      w_h: W_h, shape (H, 3H).
      b: b, shape (3H,); None for no bias.
      b_h: b_h, shape (3H,): the bias inside the recurrent product; None for no such bias.
      lengths: L, integers from 0 to T, shape (...); None if all sequences have T steps. Values
        below 0 count as 0, and values above T as T.
      reverse: Whether to run from the last step to the first. Static.
      recompute: Whether to save only h, and recompute the gates in the backward pass. This takes
        less memory between the passes and a third more matrix products. Static.

    Returns:
      h_1 … h_T, shape (..., T, H), and h_T, shape (..., H) (h_1 in reverse), of the dtype that the
      arguments promote to.

    Raises:
      ValueError: If the shapes do not fit, or lengths are not integers.
      TypeError: If an argument is complex.

    Reference: Cho et al., 2014, arXiv:1406.1078, equations 5 to 8; the variant of Appleyard et al.,
    2016, arXiv:1604.01946, and `torch.nn.GRU`, with b = b_ih and b_h = b_hh.

    >>> zero, w = jnp.zeros(3), jnp.zeros((1, 3))
    >>> hs, h = gru(jnp.ones((2, 1)), jnp.full(1, 8.0), w, w, zero, zero)
    >>> hs[:, 0].tolist(), h.tolist()
    ([4.0, 2.0], [2.0])
    """
    args = (x, h0, w_x, w_h, b, b_h)
    return _run(args, lengths, reverse=reverse, save=lambda _: ())[0]


def gru_fwd(x, h0, w_x, w_h, b, b_h, lengths, *, reverse, recompute):
    """Saves the outputs h, and a_r, a_z, a_n and q_n: 5 numbers per element of h.

    With `recompute`, saves only h. In float32, h is the output itself, not a copy.
    """
    args = (x, h0, w_x, w_h, b, b_h)
    save = (lambda _: ()) if recompute else lambda pre_activations: pre_activations
    out, hs, saved = _run(args, lengths, reverse=reverse, save=save)
    return out, (args, lengths, hs, saved)


def gru_bwd(residuals, douts, *, reverse, recompute):
    """The cotangents of all arguments, by backpropagation through time.

    Let a_r = p_r + q_r, a_z = p_z + q_z and a_n = p_n + r ⊙ q_n. h_t influences the output, with
    cotangent dy_t, h_{t+1} directly, and q_{t+1}. From the last step to the first, with the
    cotangent of h_T added at the last step,

        dh_t = dy_t + dh_{t+1} ⊙ z_{t+1} + dq_{t+1} W_hᵀ,                                     (1)
        da_n = dh_t ⊙ (1 − z) tanh′(a_n),   da_z = dh_t ⊙ (h_{t−1} − n) s′(a_z),              (2)
        da_r = da_n ⊙ q_n s′(a_r),
        dp = (da_r da_z da_n),   dq = (da_r da_z da_n ⊙ r),                                   (3)

    with 1 − z = s(−a_z), and dh_0 is (1) at t = 0 without dy. As in an affine layer, over all steps
    and examples at once,

        dx_t = dp_t W_xᵀ,                                                                     (4)
        dW_x = Σ_t x_tᵀ dp_t,   dW_h = Σ_t h_{t−1}ᵀ dq_t,   db = Σ_t dp_t,   db_h = Σ_t dq_t. (5)

    Autodiff accumulates these sums inside the loop, with a weight-shaped addition at each step. A
    masked step has dp_t = dq_t = 0 and passes dh on. Holding both dp and dq takes a few percent
    more memory than autodiff. s′ and tanh′ are computed from the pre-activations, so they are
    accurate in both tails, where y(1 − y) rounds to 0.

    Reference: Appleyard et al., 2016, arXiv:1604.01946, for the products after the loop.
    """
    args, lengths, hs, saved = residuals
    _, (x, h0, w_x, w_h, b, b_h) = widen_alike(*args)
    dhs, dh = (d.astype(hs.dtype) for d in douts)
    valid, w_hT = valid_steps(x, lengths), w_h.T
    xs = time_first(x, valid)
    before = states_before(hs, h0, valid, reverse=reverse)
    b, b_h = as_row(b, h0), as_row(b_h, h0)

    def step(dh, inputs):
        dy, h, rest = inputs
        if recompute:
            _, rest = _gates(rest, h, w_x, w_h, b, b_h)
        a_rz, a_n, q_n = rest
        a_r, a_z = jnp.split(a_rz, 2, -1)
        (r, s_r), (z, s_z) = sigmoid_and_slope(a_r), sigmoid_and_slope(a_z)
        n, s_n = tanh_and_slope(a_n)
        dh = dh + dy  # (1)
        da_n = dh * lax.logistic(-a_z) * s_n  # (2)
        da_z = dh * (h - n) * s_z
        da_r = da_n * q_n * s_r
        dq = jnp.concatenate([da_r, da_z, da_n * r], -1)  # (3)
        return dh * z + dq @ w_hT, (dq, da_n)  # (1)

    inputs = (time_first(dhs), before, xs if recompute else saved)
    dh0, (dqs, das_n) = scan_time(step, dh, inputs, valid, reverse=not reverse)
    dps = jnp.concatenate([dqs[..., : 2 * h0.shape[-1]], das_n], -1)  # (3)
    dx = time_last(dps @ w_x.T)  # (4)
    dw_x = sum_of_products(xs, dps, w_x)  # (5)
    dw_h = sum_of_products(before, dqs, w_h)
    cotangents = (dx, dh0, dw_x, dw_h, sum_of_steps(dps), sum_of_steps(dqs))
    return *cast_each(cotangents, args), None


gru.defvjp(gru_fwd, gru_bwd)
