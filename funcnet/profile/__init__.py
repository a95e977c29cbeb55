"""What a function keeps, costs and waits for; and what a network is made of."""

from funcnet.profile.estimate import Estimate
from funcnet.profile.profile_rule import Cost, Profile, profile_rule
from funcnet.profile.residuals import Residual, assert_residuals, residuals
from funcnet.profile.summary import Row, Summary, summary
from funcnet.profile.timing import in_turns, loop_of, quartiles

__all__ = [
    "Cost",
    "Estimate",
    "Profile",
    "Residual",
    "Row",
    "Summary",
    "assert_residuals",
    "in_turns",
    "loop_of",
    "profile_rule",
    "quartiles",
    "residuals",
    "summary",
]
