"""Prove or refute hand-written rules: of one function, of a whole model; and measure them."""

from funcnet.check.model import check_model as check_model
from funcnet.check.profile import Cost as Cost
from funcnet.check.profile import Profile as Profile
from funcnet.check.profile import assert_residuals as assert_residuals
from funcnet.check.profile import profile_rule as profile_rule
from funcnet.check.prove import check_rule as check_rule
from funcnet.check.report import KINDS as KINDS
from funcnet.check.report import CheckFailed as CheckFailed
from funcnet.check.report import Culprit as Culprit
from funcnet.check.report import Finding as Finding
from funcnet.check.report import Report as Report
