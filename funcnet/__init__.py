"""Neural networks in functional JAX, every backward pass derived by hand and proved."""

from funcnet import check as check
from funcnet import datasets as datasets
from funcnet import initializers as initializers
from funcnet import layers as layers
from funcnet import models as models
from funcnet import numerical as numerical
from funcnet import ops as ops
from funcnet import optim as optim
from funcnet import training as training
from funcnet.check import assert_residuals as assert_residuals
from funcnet.check import check_model as check_model
from funcnet.check import check_rule as check_rule
from funcnet.check import profile_rule as profile_rule
from funcnet.overview import summary as summary
from funcnet.rule import RULES as RULES
from funcnet.rule import Rule as Rule
from funcnet.rule import autodiff as autodiff
from funcnet.rule import rule as rule
