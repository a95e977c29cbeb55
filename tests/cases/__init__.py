"""What every rule is tested on: data only, one file for each family of ops.

A file has, by the name of the rule, `CASES` (its arguments; floating ones are written in float64
and cast by the tests; all values are reproducible), `ORACLES` (its value by other means, in
float64: NumPy, SciPy's formulas, jax.nn, Optax) and `RESIDUAL_BYTES` (what it keeps besides its
arguments, in float32, for its first case). The properties are in `test_rules.py`.
"""

import importlib
import pkgutil
from typing import Any

from cases.case import Case

CASES: dict[str, list[Case]] = {}
ORACLES: dict[str, Any] = {}
RESIDUAL_BYTES: dict[str, int] = {}

for module in pkgutil.iter_modules(__path__, "cases."):
    family = importlib.import_module(module.name)
    for name in getattr(family, "CASES", ()):
        assert name not in CASES, f"two files of cases have {name}"
        CASES[name] = family.CASES[name]
        ORACLES[name] = family.ORACLES[name]
        RESIDUAL_BYTES[name] = family.RESIDUAL_BYTES[name]
