"""Pure functions of arrays, each with a hand-written backward rule."""

from funcnet.ops.activations import identity as identity
from funcnet.ops.activations import relu as relu
from funcnet.ops.activations import sigmoid as sigmoid
from funcnet.ops.activations import step as step
from funcnet.ops.activations import tanh as tanh
from funcnet.ops.dropout import dropout as dropout
from funcnet.ops.linear import affine as affine
from funcnet.ops.losses import cross_entropy as cross_entropy
from funcnet.ops.losses import mean_squared_error as mean_squared_error
from funcnet.ops.losses import sum_squared_error as sum_squared_error
from funcnet.ops.normalization import batch_norm as batch_norm
from funcnet.ops.normalization import batch_norm_inference as batch_norm_inference
from funcnet.ops.penalties import elastic_net_penalty as elastic_net_penalty
from funcnet.ops.penalties import l1_penalty as l1_penalty
from funcnet.ops.penalties import l2_penalty as l2_penalty
from funcnet.ops.softmax import log_softmax as log_softmax
from funcnet.ops.softmax import softmax as softmax
from funcnet.ops.softmax_cross_entropy import softmax_cross_entropy as softmax_cross_entropy
