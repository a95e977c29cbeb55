"""Cases of the exponential linear units."""

import jax
import numpy as np

from cases.activations import ELEMENTWISE
from cases.case import Case, normal
from cases.measured import Measured

CASES = {
    "elu": [*ELEMENTWISE[:4], Case("option", (normal(3, 4),), {"alpha": 0.3}), *ELEMENTWISE[4:]],
    "selu": ELEMENTWISE,
    "celu": [*ELEMENTWISE[:4], Case("option", (normal(3, 4),), {"alpha": 0.3}), *ELEMENTWISE[4:]],
}


def _elu(x, *, alpha=1.0):
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _celu(x, *, alpha=1.0):
    return np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(np.minimum(x, 0) / alpha))


# Both constants from their definition: mean 0 and variance 1 are a fixed point (equation 14).
ALPHA, SCALE = 1.6732632423543772848, 1.0507009873554804934

ORACLES = {"elu": _elu, "selu": lambda x: SCALE * _elu(x, alpha=ALPHA), "celu": _celu}

RESIDUAL_BYTES = {"elu": 0, "selu": 0, "celu": 0}

MEASURED = {name: Measured(getattr(jax.nn, name), "jax.nn") for name in CASES}
