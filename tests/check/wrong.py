"""All wrong rules of the catalogue."""

from check.wrong_contracts import CONTRACTS
from check.wrong_linear import LINEAR
from check.wrong_losses import LOSSES
from check.wrong_normalization import NORMALIZATION
from check.wrong_pointwise import POINTWISE
from check.wrong_structures import STRUCTURES
from check.wrong_transformations import TRANSFORMATIONS

WRONG = [
    *LINEAR,
    *POINTWISE,
    *LOSSES,
    *NORMALIZATION,
    *STRUCTURES,
    *CONTRACTS,
    *TRANSFORMATIONS,
]
