"""Neural networks in functional JAX; every backward pass is derived by hand and proved."""

from importlib.metadata import version

from funcnet import (
    check,
    checkpoints,
    datasets,
    generation,
    initializers,
    layers,
    models,
    numerical,
    ops,
    optim,
    profile,
    sharding,
    training,
    weights,
)
from funcnet.check import check_model, check_rule
from funcnet.generation import generate
from funcnet.profile import assert_residuals, profile_rule, summary
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
    "checkpoints",
    "datasets",
    "generate",
    "generation",
    "initializers",
    "layers",
    "models",
    "numerical",
    "ops",
    "optim",
    "profile",
    "profile_rule",
    "rule",
    "sharding",
    "summary",
    "training",
    "weights",
]
