"""The multilayer perceptron."""

from collections.abc import Callable

import jax

from funcnet import initializers, ops
from funcnet._arguments import check_bool, check_int, check_number
from funcnet.layers._params import check_functions
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

    A hidden layer is Dense, BatchNorm (if wanted), activation, Dropout (if wanted), in that order.

    Args:
      *units: The number of neurons of each layer: any number of hidden ones, then the output.
      activation: What follows each hidden layer.
      batch_norm: Whether to normalise before the activation.
      dropout: The probability of dropping after the activation, in [0, 1).
      w_init: Initial weights of all layers. By default those that fit what follows the layer: `he`
        before `funcnet.ops.relu`, `lecun_normal` before any other activation and at the output.

    Raises:
      ValueError: If there are no units, or one of the numbers is out of range.
      TypeError: If an argument is of another type.

    Reference: Source A 2.2, with the layers of A 4.2 and the initial weights of C 6.2.

    >>> mlp(100, 10, batch_norm=True, dropout=0.2)
    chain(Dense(100), BatchNorm(), relu, Dropout(0.2), Dense(10))
    """
    if not units:
        raise ValueError("mlp: units must name the output layer at least, got none")
    units = tuple(check_int("mlp", f"units[{i}]", n, at_least=1) for i, n in enumerate(units))
    check_functions("mlp", activation=activation)
    check_bool("mlp", "batch_norm", batch_norm)
    check_number("mlp", "dropout", dropout, at_least=0, below=1)
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
