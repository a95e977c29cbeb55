"""The gated feed-forward layer of transformers."""

from collections.abc import Callable

import jax

from funcnet import initializers, ops
from funcnet._arguments import check_function, check_int, check_key
from funcnet.layers._params import check_initializers, check_params, last_axis
from funcnet.layers.base import Layer, stateless
from funcnet.layers.dense import Dense


def GatedMLP(
    hidden: int,
    *,
    gate: Callable[[jax.Array, jax.Array], jax.Array] = ops.swiglu,
    w_init: initializers.Initializer = initializers.lecun_normal,
) -> Layer:
    """A gated feed-forward layer, x ↦ g(x U, x V) W, where g is the gate.

    Params: {"gate": {"w": U, (c, hidden)}, "up": {"w": V, (c, hidden)}, "down": {"w": W,
    (hidden, c)}}, where c is the length of the last axis of x.
    State: none.

    Args:
      hidden: The hidden width, at least 1.
      gate: g, such as `funcnet.ops.swiglu` or `funcnet.ops.geglu`.
      w_init: Initial weights. The default keeps the variance of the input of each linear map.

    Raises:
      ValueError: If hidden is less than 1; in `apply`, if params do not have the shapes above.
      TypeError: If hidden is not an integer.

    Reference: Shazeer, GLU variants improve transformer, 2020, equation 6, arXiv:2002.05202.
    """
    hidden = check_int("GatedMLP", "hidden", hidden, at_least=1)
    check_function("GatedMLP", "gate", gate, 2)
    check_initializers("GatedMLP", w_init=w_init)
    name = f"GatedMLP({hidden})"
    inner = Dense(hidden, bias=False, w_init=w_init)

    def init(key, x):
        c = last_axis(name, x)
        check_key(name, key)
        keys = dict(zip(("gate", "up", "down"), jax.random.split(key, 3), strict=True))
        params = {part: inner.init(keys[part], x)[0] for part in ("gate", "up")}
        wide = jax.ShapeDtypeStruct((*x.shape[:-1], hidden), x.dtype)
        down = Dense(c, bias=False, w_init=w_init).init(keys["down"], wide)[0]
        return params | {"down": down}

    def f(params, x):
        c = last_axis(name, x)
        w, w_down = {"w": (c, hidden)}, {"w": (hidden, c)}
        check_params(name, params, {"gate": w, "up": w, "down": w_down}, x)
        linear = lambda part, x: ops.affine(x, params[part]["w"])
        return linear("down", gate(linear("gate", x), linear("up", x)))

    return stateless(f, init, name)
