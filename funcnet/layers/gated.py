"""The gated feed-forward layer of transformers."""

from collections.abc import Callable

import jax

from funcnet import initializers, ops
from funcnet.layers.base import Layer
from funcnet.layers.dense import Dense


def GatedMLP(
    hidden: int,
    *,
    gate: Callable[[jax.Array, jax.Array], jax.Array] = ops.swiglu,
    w_init: initializers.Initializer = initializers.xavier,
) -> Layer:
    """Two linear maps of which one gates the other, and a third one back: x ↦ g(x U, x V) W.

    Params: {"gate": {"w": U, (c, hidden)}, "up": {"w": V, (c, hidden)}, "down": {"w": W,
    (hidden, c)}}, where c is the last axis of x.
    State: none.

    Args:
      hidden: The width between, at least 1.
      gate: g: `funcnet.ops.swiglu` or `funcnet.ops.geglu`.
      w_init: Initial weights.

    Raises:
      ValueError: If hidden is less than 1.

    Reference: Shazeer, GLU variants improve transformer, 2020, equation 6, arXiv:2002.05202.
    """
    inner = Dense(hidden, bias=False, w_init=w_init)

    def init(key, x):
        keys = dict(zip(("gate", "up", "down"), jax.random.split(key, 3), strict=True))
        params = {name: inner.init(keys[name], x)[0] for name in ("gate", "up")}
        wide = jax.ShapeDtypeStruct((*x.shape[:-1], hidden), x.dtype)
        down = Dense(x.shape[-1], bias=False, w_init=w_init).init(keys["down"], wide)[0]
        return params | {"down": down}, ()

    def apply(params, state, x, *, key=None, train=False):
        del key, train
        linear = lambda name, x: ops.affine(x, params[name]["w"])
        return linear("down", gate(linear("gate", x), linear("up", x))), state

    return Layer(init, apply, f"GatedMLP({hidden})")
