"""Prove or refute the hand-written rules of one function or of a whole model."""

from funcnet.check.model import check_model
from funcnet.check.prove import check_rule
from funcnet.check.report import KINDS, CheckFailed, Culprit, Finding, Report

__all__ = [
    "KINDS",
    "CheckFailed",
    "Culprit",
    "Finding",
    "Report",
    "check_model",
    "check_rule",
]
