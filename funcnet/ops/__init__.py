"""Pure functions of arrays, each with a hand-written backward rule."""

from funcnet.ops.activations import identity as identity
from funcnet.ops.activations import relu as relu
from funcnet.ops.activations import sigmoid as sigmoid
from funcnet.ops.activations import step as step
from funcnet.ops.activations import tanh as tanh
from funcnet.ops.attention import dot_product_attention as dot_product_attention
from funcnet.ops.binary_cross_entropy import (
    sigmoid_binary_cross_entropy as sigmoid_binary_cross_entropy,
)
from funcnet.ops.convolution import conv as conv
from funcnet.ops.convolution import conv_transpose as conv_transpose
from funcnet.ops.depthwise import depthwise_conv as depthwise_conv
from funcnet.ops.dropout import dropout as dropout
from funcnet.ops.elu import elu as elu
from funcnet.ops.elu import selu as selu
from funcnet.ops.embedding import embedding as embedding
from funcnet.ops.gates import geglu as geglu
from funcnet.ops.gates import swiglu as swiglu
from funcnet.ops.gru import gru as gru
from funcnet.ops.layer_norm import group_norm as group_norm
from funcnet.ops.layer_norm import layer_norm as layer_norm
from funcnet.ops.layer_norm import rms_norm as rms_norm
from funcnet.ops.linear import affine as affine
from funcnet.ops.linear_cross_entropy import linear_cross_entropy as linear_cross_entropy
from funcnet.ops.linear_recurrence import linear_recurrence as linear_recurrence
from funcnet.ops.logsumexp import logsumexp as logsumexp
from funcnet.ops.losses import cross_entropy as cross_entropy
from funcnet.ops.losses import huber as huber
from funcnet.ops.losses import kl_divergence as kl_divergence
from funcnet.ops.losses import mean_squared_error as mean_squared_error
from funcnet.ops.losses import sum_squared_error as sum_squared_error
from funcnet.ops.lstm import lstm as lstm
from funcnet.ops.normalization import batch_norm as batch_norm
from funcnet.ops.normalization import batch_norm_inference as batch_norm_inference
from funcnet.ops.penalties import elastic_net_penalty as elastic_net_penalty
from funcnet.ops.penalties import l1_penalty as l1_penalty
from funcnet.ops.penalties import l2_penalty as l2_penalty
from funcnet.ops.piecewise import hard_sigmoid as hard_sigmoid
from funcnet.ops.piecewise import hard_silu as hard_silu
from funcnet.ops.piecewise import hard_tanh as hard_tanh
from funcnet.ops.piecewise import leaky_relu as leaky_relu
from funcnet.ops.piecewise import relu6 as relu6
from funcnet.ops.pooling import avg_pool as avg_pool
from funcnet.ops.pooling import global_avg_pool as global_avg_pool
from funcnet.ops.pooling import global_max_pool as global_max_pool
from funcnet.ops.pooling import max_pool as max_pool
from funcnet.ops.rnn import rnn as rnn
from funcnet.ops.rope import rope as rope
from funcnet.ops.smooth import gelu as gelu
from funcnet.ops.smooth import log_sigmoid as log_sigmoid
from funcnet.ops.smooth import mish as mish
from funcnet.ops.smooth import silu as silu
from funcnet.ops.smooth import softplus as softplus
from funcnet.ops.softmax import log_softmax as log_softmax
from funcnet.ops.softmax import softmax as softmax
from funcnet.ops.softmax_cross_entropy import softmax_cross_entropy as softmax_cross_entropy
