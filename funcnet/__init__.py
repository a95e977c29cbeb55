"""Neural networks in functional JAX, every backward pass derived by hand and proved."""

from importlib.metadata import version

from funcnet import (
    check,
    datasets,
    initializers,
    layers,
    models,
    numerical,
    ops,
    optim,
    training,
)
from funcnet.check import assert_residuals, check_model, check_rule, profile_rule
from funcnet.overview import summary
from funcnet.rule import RULES, Rule, autodiff, rule

__version__ = version("funcnet")
__all__ = [
    "RULES",
    "Rule",
    "assert_residuals",
    "autodiff",
    "check",
    "check_model",
    "check_rule",
    "datasets",
    "initializers",
    "layers",
    "models",
    "numerical",
    "ops",
    "optim",
    "profile_rule",
    "rule",
    "summary",
    "training",
]
