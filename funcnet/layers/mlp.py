"""The multilayer perceptron."""

from collections.abc import Callable

import jax

from funcnet import initializers, ops
from funcnet._arguments import check_bool, check_function, check_int, check_number
from funcnet.layers._params import check_initializers
from funcnet.layers.base import Layer
from funcnet.layers.combinators import chain
from funcnet.layers.dense import Dense
from funcnet.layers.dropout import Dropout
from funcnet.layers.normalization import BatchNorm


def mlp(
    *units: int,
    activation: Callable[[jax.Array], jax.Array] = ops.relu,
    batch_norm: bool = False,
    dropout: float = 0.0,
    w_init: initializers.Initializer | None = None,
) -> Layer:
    """A multilayer perceptron: hidden layers, then an output layer without activation.

    A hidden layer consists of Dense, BatchNorm (optional), the activation and Dropout (optional),
    in this order.

    Args:
      *units: The number of neurons of each hidden layer, if any, and then of the output layer.
      activation: The activation of the hidden layers.
      batch_norm: Whether to normalise before the activation.
      dropout: The dropout probability after the activation, in [0, 1).
      w_init: Initial weights of all layers. By default, layers followed by `funcnet.ops.relu` use
        `he`; layers followed by another activation and the output layer use `lecun_normal`.

    Raises:
      ValueError: If there are no units, or a number is out of range.
      TypeError: If an argument has the wrong type.

    Reference: Source A 2.2, with the layers of A 4.2 and the initial weights of C 6.2.

    >>> mlp(100, 10, batch_norm=True, dropout=0.2)
    chain(Dense(100), BatchNorm(), relu, Dropout(0.2), Dense(10))
    """
    if not units:
        raise ValueError("mlp: units must name the output layer at least, got none")
    units = tuple(check_int("mlp", f"units[{i}]", n, at_least=1) for i, n in enumerate(units))
    check_function("mlp", "activation", activation, 1)
    check_bool("mlp", "batch_norm", batch_norm)
    check_number("mlp", "dropout", dropout, at_least=0, below=1)
    if w_init is not None:
        check_initializers("mlp", w_init=w_init)
    hidden_init = initializers.he if activation is ops.relu else initializers.lecun_normal
    parts: list[Layer | Callable[[jax.Array], jax.Array]] = []
    for width in units[:-1]:
        parts.append(Dense(width, w_init=w_init or hidden_init))
        if batch_norm:
            parts.append(BatchNorm())
        parts.append(activation)
        if dropout:
            parts.append(Dropout(dropout))
    return chain(*parts, Dense(units[-1], w_init=w_init or initializers.lecun_normal))
