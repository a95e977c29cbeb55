"""Batch Normalization as a layer, with its running statistics."""

import jax.numpy as jnp

from funcnet import ops
from funcnet.layers.base import Layer
from funcnet.ops.precision import wide_dtype


def BatchNorm(*, momentum: float = 0.9, eps: float = 1e-5) -> Layer:
    """Batch Normalization over all axes but the last.

    In training, `funcnet.ops.batch_norm` by the statistics μ, σ² of the batch, which the state
    follows:

        μ_running  ← α μ_running  + (1 − α) μ
        σ²_running ← α σ²_running + (1 − α) σ²          with the biased variance, as in the source

    At inference `funcnet.ops.batch_norm_inference` by the running statistics.

    Params: {"scale": (c,) of ones, "bias": (c,) of zeros}, in float32 at least.
    State: {"mean": (c,) of zeros, "var": (c,) of ones}, in float32 at least.

    Args:
      momentum: α in [0, 1], the weight of the past. (Others give this name to 1 − α.)
      eps: ε ≥ 0, added to the variance.

    Raises:
      ValueError: If momentum or eps is out of range.

    Reference: Source A 4.2.1.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"BatchNorm: momentum must be in [0, 1], got {momentum}")
    if eps < 0:
        raise ValueError(f"BatchNorm: eps must be at least 0, got {eps}")

    def init(key, x):
        del key
        shape, dtype = x.shape[-1:], wide_dtype(x.dtype)
        params = {"scale": jnp.ones(shape, dtype), "bias": jnp.zeros(shape, dtype)}
        return params, {"mean": jnp.zeros(shape, dtype), "var": jnp.ones(shape, dtype)}

    def apply(params, state, x, *, key=None, train=False):
        del key
        scale, bias = params["scale"], params["bias"]
        if not train:
            y = ops.batch_norm_inference(x, scale, bias, state["mean"], state["var"], eps=eps)
            return y, state
        y, mean, var = ops.batch_norm(x, scale, bias, eps=eps)
        follow = lambda running, batch: momentum * running + (1 - momentum) * batch
        return y, {"mean": follow(state["mean"], mean), "var": follow(state["var"], var)}

    return Layer(init, apply, "BatchNorm()")
