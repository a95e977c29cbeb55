"""Prove or refute hand-written rules: of one function, of a whole model; and measure them."""

from funcnet.check.model import check_model
from funcnet.check.profile import Cost, Profile, assert_residuals, profile_rule
from funcnet.check.prove import check_rule
from funcnet.check.report import KINDS, CheckFailed, Culprit, Finding, Report

__all__ = [
    "KINDS",
    "CheckFailed",
    "Cost",
    "Culprit",
    "Finding",
    "Profile",
    "Report",
    "assert_residuals",
    "check_model",
    "check_rule",
    "profile_rule",
]
