"""The dropout layer."""

from jax import Array
from jax.core import Tracer

from funcnet import ops
from funcnet._arguments import check_number
from funcnet.layers.base import Layer, check_none


def Dropout(rate: float | Array) -> Layer:
    """Drops each element with probability `rate` in training; is the identity at inference.

    The layer has no params and no state. In training, `apply` needs a key, for
    `funcnet.ops.dropout`.

    Args:
      rate: p in [0, 1). If it is 0, the layer is the identity and needs no key. It may be traced,
        for a sweep by `jax.vmap`; then it is not checked, and the layer needs a key.

    Raises:
      TypeError: If rate is not a number.
      ValueError: If rate is out of range; in `apply` during training, if no key is given.

    Reference: Source A 4.2.2.
    """
    check_number("Dropout", "rate", rate, at_least=0, below=1)
    is_traced = isinstance(rate, Tracer)
    p = rate if is_traced else float(rate)
    name = "Dropout(traced)" if is_traced else f"Dropout({p})"

    def apply(params, state, x, *, key=None, train=False):
        check_none(name, "params", params)
        check_none(name, "state", state)
        if not train or (not is_traced and p == 0):
            return x, state
        if key is None:
            raise ValueError(f"{name}: apply needs a key when train=True")
        return ops.dropout(x, key, rate=p), state

    return Layer(lambda *_: ((), ()), apply, name)
