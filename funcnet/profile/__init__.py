"""What a function keeps, costs and waits for; and what a network is made of."""

from funcnet.profile.profile_rule import Cost, Profile, assert_residuals, profile_rule
from funcnet.profile.summary import Row, Summary, summary

__all__ = [
    "Cost",
    "Profile",
    "Row",
    "Summary",
    "assert_residuals",
    "profile_rule",
    "summary",
]
