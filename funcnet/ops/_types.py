"""The types in the signatures of ops: those of jaxtyping, but `Real` and `Num` include booleans."""

from typing import TYPE_CHECKING

import jax
import jaxtyping
import numpy as np

AnyArray = jax.Array | np.ndarray
"""An array. Where a number is accepted too, as in `sigmoid(0.0)`, the type is `ArrayLike`."""

Number = float | jaxtyping.Real[jax.Array, ""]
"""An option that may be traced, without a derivative."""

if TYPE_CHECKING:  # type checkers see no shapes and dtypes, as for jaxtyping's own types
    from typing import Annotated as Num
    from typing import Annotated as Real
else:

    class Real(jaxtyping.AbstractDtype):
        """Real numbers. Booleans count as 0 and 1, as in `jnp.exp`."""

        dtypes = (*jaxtyping.Bool.dtypes, *jaxtyping.Real.dtypes)

    class Num(jaxtyping.AbstractDtype):
        """Real and complex numbers."""

        dtypes = (*jaxtyping.Bool.dtypes, *jaxtyping.Num.dtypes)
