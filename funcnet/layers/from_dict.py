"""Side inputs that come from the data."""

from collections.abc import Mapping

from funcnet._arguments import describe, kind
from funcnet.layers.base import Layer


def from_dict(layer: Layer) -> Layer:
    """Makes a layer whose input is a dict of x and the side inputs of another layer.

    So the side inputs of a network can come from the data: `make_step`, `make_epoch` and `evaluate`
    of `funcnet.training` take dicts of arrays as inputs.

    Args:
      layer: The other layer. The new one has its params and state, and takes {"x": x, name: array,
        ...}, where the names are side inputs.

    Raises:
      TypeError: If it is not a layer; in `init` and `apply`, if x is not a dict with an entry "x",
        or has an entry that is no side input.

    >>> import jax.numpy as jnp
    >>> from funcnet.layers import stateless
    >>> add = stateless(lambda p, x, *, y=0: x + y, lambda *_: (), "add")
    >>> from_dict(add).apply((), (), {"x": jnp.ones(2), "y": jnp.ones(2)})[0].tolist()
    [2.0, 2.0]
    """
    if not isinstance(layer, Layer):
        raise TypeError(f"from_dict: layer must be a layer, got {describe(layer)}")

    def split(x):
        if not (isinstance(x, Mapping) and "x" in x):
            raise TypeError(f'from_dict: x must be a dict with an entry "x", got {kind(x)}')
        return x["x"], {name: value for name, value in x.items() if name != "x"}

    def init(key, x):
        return layer.init(key, split(x)[0])

    def apply(params, state, x, *, key=None, train=False, **inputs):
        x, of_data = split(x)
        return layer.apply(params, state, x, key=key, train=train, **inputs, **of_data)

    return Layer(init, apply, f"from_dict({layer.name})", inputs=layer.inputs)
