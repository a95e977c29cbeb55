"""Functions whose hand-written gradients are right: the checker must accept every one.

Each is written as a user of JAX would write it, on `jax.custom_vjp` alone. Data only.
"""

from check.right_activations import ACTIVATIONS
from check.right_entry import Right, arrays
from check.right_forms import FORMS
from check.right_indexing import INDEXING
from check.right_linear import LINEAR
from check.right_losses import LOSSES, bce_with_logits
from check.right_norms import NORMS
from check.right_numbers import NUMBERS

__all__ = ["CORNERS", "RIGHT", "Right"]

RIGHT = [*ACTIVATIONS, *LOSSES, *NORMS, *LINEAR, *INDEXING, *FORMS, *NUMBERS]

# The one-sided slopes of jnp.abs and jnp.maximum at 0 make autodiff wrong there for a smooth
# function, and the rule right: a checker may call this a kink, and nothing worse.
CORNERS = [Right("binary cross entropy at logits of 0", bce_with_logits, arrays(2, regimes="ties"))]
