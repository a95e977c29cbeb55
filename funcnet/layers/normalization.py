"""Normalization layers; `BatchNorm` keeps running statistics."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet import ops
from funcnet._arguments import check_bool, check_int, check_number, check_real, check_tree
from funcnet._arrays import wide_dtype
from funcnet.layers._params import check_params, last_axis
from funcnet.layers.base import Layer, Params, check_none, stateless
from funcnet.ops._masks import keep, mask_of


def BatchNorm(
    *, momentum: float = 0.9, eps: float = 1e-5, scale: bool = True, bias: bool = True
) -> Layer:
    """Batch Normalization over all axes but the last.

    In training, `funcnet.ops.batch_norm` normalises by the mean μ and variance σ² of the batch, and
    the state is updated:

        μ_running  ← α μ_running  + (1 − α) μ
        σ²_running ← α σ²_running + (1 − α) σ²          with the biased variance, as in the source

    The state of a feature of which the batch has no element stays. At inference,
    `funcnet.ops.batch_norm_inference` normalises by the running statistics.

    `apply` also takes a mask `where`, as `funcnet.ops.batch_norm` does. At inference the mask only
    makes the output 0 where it is false.

    Params: {"scale": (c,) of ones, "bias": (c,) of zeros}, in float32 or wider; without those that
    are False below.
    State: {"mean": (c,) of zeros, "var": (c,) of ones}, in float32 or wider.

    Args:
      momentum: α in [0, 1], the weight of the old value. (Others call 1 − α the momentum.)
      eps: ε ≥ 0, added to the variance.
      scale: Whether the layer has a scale.
      bias: Whether the layer has a bias.

    Raises:
      ValueError: If momentum or eps is out of range; in `apply`, if params or state do not have the
        shapes above.
      TypeError: If scale or bias is not a boolean; in `init`, if x does not have a floating dtype.

    Reference: Source A 4.2.1.
    """
    check_number("BatchNorm", "momentum", momentum, at_least=0, at_most=1)
    check_number("BatchNorm", "eps", eps, at_least=0)
    name, vectors, read = _vectors("BatchNorm", scale, bias)

    def init(key, x):
        del key
        params, (shape, dtype) = vectors(x), _vector(name, x)
        return params, {"mean": jnp.zeros(shape, dtype), "var": jnp.ones(shape, dtype)}

    def apply(params, state, x, *, key=None, train=False, where=None):
        del key
        scale, bias = read(params, x)
        running = np.zeros(x.shape[-1:])
        check_tree(name, "state", state, "init", {"mean": running, "var": running})
        for part in ("mean", "var"):
            check_real(name, f"state[{part!r}]", state[part])
        if not train:
            mask = mask_of(name, where, x)
            mean, var = state["mean"], state["var"]
            y = ops.batch_norm_inference(keep(mask, x), scale, bias, mean, var, eps=eps)
            return keep(mask, y), state
        y, mean, var = ops.batch_norm(x, scale, bias, where, eps=eps)
        if 0 in x.shape[:-1]:
            return y, state
        follow = lambda running, batch: momentum * running + (1 - momentum) * batch
        new = {"mean": follow(state["mean"], mean), "var": follow(state["var"], var)}
        if where is not None:
            some = jnp.broadcast_to(where, x.shape).any(range(x.ndim - 1))
            new = jax.tree.map(lambda new, old: jnp.where(some, new, old), new, state)
        return y, new

    return Layer(init, apply, name)


def LayerNorm(*, eps: float = 1e-5, scale: bool = True, bias: bool = True) -> Layer:
    """Layer Normalization over the last axis: `funcnet.ops.layer_norm` with its parameters.

    `apply` also takes a mask `where`, as the op does.

    Params: {"scale": (c,) of ones, "bias": (c,) of zeros}, in float32 or wider; without those that
    are False below. State: none.

    Args:
      eps: ε ≥ 0, added to the variance.
      scale: Whether the layer has a scale.
      bias: Whether the layer has a bias.

    Raises:
      ValueError: If eps is negative; in `apply`, if params do not have the shapes above.
      TypeError: If scale or bias is not a boolean; in `init`, if x does not have a floating dtype.

    Reference: Ba, Kiros & Hinton, 2016, arXiv:1607.06450.

    >>> LayerNorm(bias=False)
    LayerNorm(bias=False)
    """
    f = lambda x, scale, bias, where: ops.layer_norm(x, scale, bias, where, eps=eps)
    return _per_example("LayerNorm", eps, f, scale, bias)


def GroupNorm(groups: int, *, eps: float = 1e-5, scale: bool = True, bias: bool = True) -> Layer:
    """Group Normalization of channels: `funcnet.ops.group_norm` with its parameters.

    x has shape (n, ..., c). With c groups this is Instance Normalization. `apply` also takes a mask
    `where`, as the op does.

    Params: {"scale": (c,) of ones, "bias": (c,) of zeros}, in float32 or wider; without those that
    are False below. State: none.

    Args:
      groups: The number of groups; it must divide c.
      eps: ε ≥ 0, added to the variance.
      scale: Whether the layer has a scale.
      bias: Whether the layer has a bias.

    Raises:
      ValueError: If eps is negative; in `init`, if groups does not divide c.
      TypeError: If groups is not an integer, or scale or bias is not a boolean; in `init`, if x
        does not have a floating dtype.

    Reference: Wu & He, 2018, arXiv:1803.08494.
    """
    groups = check_int("GroupNorm", "groups", groups, at_least=1)

    def f(x, scale, bias, where):
        return ops.group_norm(x, scale, bias, where, groups=groups, eps=eps)

    return _per_example("GroupNorm", eps, f, scale, bias, groups)


def RMSNorm(*, eps: float = 1e-6, scale: bool = True) -> Layer:
    """RMS Normalization over the last axis: `funcnet.ops.rms_norm` with its parameters.

    `apply` also takes a mask `where`, as the op does.

    Params: {"scale": (c,) of ones}, in float32 or wider; none if scale is False. State: none.

    Args:
      eps: ε ≥ 0, added to the mean square.
      scale: Whether the layer has a scale.

    Raises:
      ValueError: If eps is negative; in `apply`, if params do not have the shapes above.
      TypeError: If scale is not a boolean; in `init`, if x does not have a floating dtype.

    Reference: Zhang & Sennrich, 2019, arXiv:1910.07467.
    """
    f = lambda x, scale, _, where: ops.rms_norm(x, scale, where, eps=eps)
    return _per_example("RMSNorm", eps, f, scale, None)


def _vector(name: str, x: Any) -> tuple[tuple[int], Any]:
    """Returns the shape and dtype of a parameter with one number per feature of x."""
    shape = (last_axis(name, x),)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name}: x must be of a floating dtype, got {x.dtype}")
    return shape, wide_dtype(x.dtype)


def _vectors(
    kind: str, scale: bool, bias: bool | None, *options: int
) -> tuple[str, Callable[[Any], Params], Callable[..., tuple[Any, Any]]]:
    """The name of a layer, and functions that make its params from x and read scale and bias.

    A layer never has a bias if `bias` is None.
    """
    flags = {"scale": scale} | ({} if bias is None else {"bias": bias})
    for option, value in flags.items():
        check_bool(kind, option, value)
    off = [f"{option}=False" for option, value in flags.items() if not value]
    name = f"{kind}({', '.join([*map(str, options), *off])})"
    first = {option: value for option, value in (("scale", 1), ("bias", 0)) if flags.get(option)}

    def make(x: Any) -> Params:
        shape, dtype = _vector(name, x)
        return {option: jnp.full(shape, value, dtype) for option, value in first.items()} or ()

    def read(params: Params, x: jax.Array) -> tuple[Any, Any]:
        shapes = dict.fromkeys(first, (last_axis(name, x),))
        if not shapes:
            check_none(name, "params", params)
            return None, None
        check_params(name, params, shapes, x)
        return params.get("scale"), params.get("bias")

    return name, make, read


def _per_example(
    kind: str,
    eps: float,
    f: Callable[..., jax.Array],
    scale: bool,
    bias: bool | None,
    *groups: int,
) -> Layer:
    """Makes a normalization layer without running statistics from f(x, scale, bias, where)."""
    check_number(kind, "eps", eps, at_least=0)
    name, vectors, read = _vectors(kind, scale, bias, *groups)

    def init(key, x):
        del key
        params = vectors(x)
        if groups and x.shape[-1] % groups[0]:
            raise ValueError(
                f"{name}: groups must divide the channels of x, {x.shape[-1]}, got {groups[0]}"
            )
        return params

    def apply(params, x, *, where=None):
        return f(x, *read(params, x), where)

    return stateless(apply, init, name)
