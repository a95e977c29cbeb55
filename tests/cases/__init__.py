"""The test cases of every rule: only data, one file per family of ops.

Each file has dicts by the name of the rule. `CASES` has the arguments: floating-point ones are
written in float64 and cast by the tests, and all values are reproducible. `ORACLES` has an
independent float64 implementation (NumPy, SciPy's formulas, jax.nn, Optax). `RESIDUAL_BYTES` has
the bytes saved in addition to the arguments, in float32, for the first case. The properties are in
`test_rules.py`. `MEASURED` has what `scripts/bench.py` measures, by "rule" or "rule, variant".
"""

import importlib
import pkgutil
from typing import Any

from cases.case import Case
from cases.measured import Measured

CASES: dict[str, list[Case]] = {}
ORACLES: dict[str, Any] = {}
RESIDUAL_BYTES: dict[str, int] = {}
MEASURED: dict[str, Measured] = {}
FIRST_OF_FAMILY: set[str] = set()  # one rule of each file

for module in pkgutil.iter_modules(__path__, "cases."):
    family = importlib.import_module(module.name)
    for name in getattr(family, "CASES", ()):
        assert name not in CASES, f"two files of cases have {name}"
        CASES[name] = family.CASES[name]
        ORACLES[name] = family.ORACLES[name]
        RESIDUAL_BYTES[name] = family.RESIDUAL_BYTES[name]
    MEASURED.update(getattr(family, "MEASURED", {}))
    FIRST_OF_FAMILY.update([*getattr(family, "CASES", ())][:1])
