"""Dropout as a layer."""

from funcnet import ops
from funcnet.layers.base import Layer


def Dropout(rate: float) -> Layer:
    """Drops each element with probability `rate` in training; the identity at inference.

    Params and state: none. In training `apply` needs a key: `funcnet.ops.dropout`.

    Args:
      rate: p in [0, 1). With 0 the layer is the identity, and needs no key.

    Raises:
      ValueError: If rate is out of range; from `apply` in training, if there is no key.

    Reference: Source A 4.2.2.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"Dropout: rate must be in [0, 1), got {rate}")

    def apply(params, state, x, *, key=None, train=False):
        del params
        if not train or rate == 0:
            return x, state
        if key is None:
            raise ValueError(f"Dropout({rate}): apply needs a key when train=True")
        return ops.dropout(x, key, rate=rate), state

    return Layer(lambda *_: ((), ()), apply, f"Dropout({rate})")
