"""Normalization layers; `BatchNorm` keeps running statistics."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from funcnet import ops
from funcnet._arguments import check_int, check_number, check_real, check_tree
from funcnet._arrays import wide_dtype
from funcnet.layers._params import check_params, last_axis
from funcnet.layers.base import Layer, Params, stateless


def BatchNorm(*, momentum: float = 0.9, eps: float = 1e-5) -> Layer:
    """Batch Normalization over all axes but the last.

    In training, `funcnet.ops.batch_norm` normalises by the mean μ and variance σ² of the batch, and
    the state is updated (except by an empty batch):

        μ_running  ← α μ_running  + (1 − α) μ
        σ²_running ← α σ²_running + (1 − α) σ²          with the biased variance, as in the source

    At inference, `funcnet.ops.batch_norm_inference` normalises by the running statistics.

    Params: {"scale": (c,) of ones, "bias": (c,) of zeros}, in float32 or wider.
    State: {"mean": (c,) of zeros, "var": (c,) of ones}, in float32 or wider.

    Args:
      momentum: α in [0, 1], the weight of the old value. (Others call 1 − α the momentum.)
      eps: ε ≥ 0, added to the variance.

    Raises:
      ValueError: If momentum or eps is out of range; in `apply`, if params or state do not have the
        shapes above.
      TypeError: In `init`, if x does not have a floating dtype.

    Reference: Source A 4.2.1.
    """
    check_number("BatchNorm", "momentum", momentum, at_least=0, at_most=1)
    check_number("BatchNorm", "eps", eps, at_least=0)

    def init(key, x):
        del key
        shape, dtype = _vector("BatchNorm()", x)
        params = {"scale": jnp.ones(shape, dtype), "bias": jnp.zeros(shape, dtype)}
        return params, {"mean": jnp.zeros(shape, dtype), "var": jnp.ones(shape, dtype)}

    def apply(params, state, x, *, key=None, train=False):
        del key
        c = (last_axis("BatchNorm()", x),)
        check_params("BatchNorm()", params, {"scale": c, "bias": c}, x)
        scale, bias = params["scale"], params["bias"]
        check_tree("BatchNorm()", "state", state, "init", {"mean": scale, "var": scale})
        for running in ("mean", "var"):
            check_real("BatchNorm()", f"state[{running!r}]", state[running])
        if not train:
            y = ops.batch_norm_inference(x, scale, bias, state["mean"], state["var"], eps=eps)
            return y, state
        y, mean, var = ops.batch_norm(x, scale, bias, eps=eps)
        if 0 in x.shape[:-1]:
            return y, state
        follow = lambda running, batch: momentum * running + (1 - momentum) * batch
        return y, {"mean": follow(state["mean"], mean), "var": follow(state["var"], var)}

    return Layer(init, apply, "BatchNorm()")


def LayerNorm(*, eps: float = 1e-5) -> Layer:
    """Layer Normalization over the last axis: `funcnet.ops.layer_norm` with its parameters.

    Params: {"scale": (c,) of ones, "bias": (c,) of zeros}, in float32 or wider. State: none.

    Args:
      eps: ε ≥ 0, added to the variance.

    Raises:
      ValueError: If eps is negative; in `apply`, if params do not have the shapes above.
      TypeError: In `init`, if x does not have a floating dtype.

    Reference: Ba, Kiros & Hinton, 2016, arXiv:1607.06450.
    """
    return _per_example(
        "LayerNorm", eps, lambda p, x: ops.layer_norm(x, p["scale"], p["bias"], eps=eps)
    )


def GroupNorm(groups: int, *, eps: float = 1e-5) -> Layer:
    """Group Normalization of channels: `funcnet.ops.group_norm` with its parameters.

    x has shape (n, ..., c). With c groups this is Instance Normalization.

    Params: {"scale": (c,) of ones, "bias": (c,) of zeros}, in float32 or wider. State: none.

    Args:
      groups: The number of groups; it must divide c.
      eps: ε ≥ 0, added to the variance.

    Raises:
      ValueError: If eps is negative; in `init`, if groups does not divide c.
      TypeError: If groups is not an integer; in `init`, if x does not have a floating dtype.

    Reference: Wu & He, 2018, arXiv:1803.08494.
    """
    groups = check_int("GroupNorm", "groups", groups, at_least=1)
    return _per_example(
        f"GroupNorm({groups})",
        eps,
        lambda p, x: ops.group_norm(x, p["scale"], p["bias"], groups=groups, eps=eps),
        groups=groups,
    )


def RMSNorm(*, eps: float = 1e-6) -> Layer:
    """RMS Normalization over the last axis: `funcnet.ops.rms_norm` with its parameters.

    Params: {"scale": (c,) of ones}, in float32 or wider. State: none.

    Args:
      eps: ε ≥ 0, added to the mean square.

    Raises:
      ValueError: If eps is negative; in `apply`, if params do not have the shapes above.
      TypeError: In `init`, if x does not have a floating dtype.

    Reference: Zhang & Sennrich, 2019, arXiv:1910.07467.
    """
    f = lambda p, x: ops.rms_norm(x, p["scale"], eps=eps)
    return _per_example("RMSNorm", eps, f, bias=False)


def _vector(name: str, x: Any) -> tuple[tuple[int], Any]:
    """Returns the shape and dtype of a parameter with one number per feature of x."""
    shape = (last_axis(name, x),)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name}: x must be of a floating dtype, got {x.dtype}")
    return shape, wide_dtype(x.dtype)


def _per_example(
    name: str,
    eps: float,
    f: Callable[[Params, jax.Array], jax.Array],
    *,
    bias: bool = True,
    groups: int = 1,
) -> Layer:
    """Makes a normalization layer without running statistics from f(params, x)."""
    check_number(name.partition("(")[0], "eps", eps, at_least=0)
    name = name if name.endswith(")") else f"{name}()"

    def init(key, x):
        del key
        shape, dtype = _vector(name, x)
        if shape[0] % groups:
            raise ValueError(
                f"{name}: groups must divide the channels of x, {shape[0]}, got {groups}"
            )
        params = {"scale": jnp.ones(shape, dtype)}
        return params | ({"bias": jnp.zeros(shape, dtype)} if bias else {})

    def apply(params, x):
        c = (last_axis(name, x),)
        check_params(name, params, {"scale": c} | ({"bias": c} if bias else {}), x)
        return f(params, x)

    return stateless(apply, init, name)
