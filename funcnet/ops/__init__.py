"""Pure functions of arrays, each with a hand-written backward rule."""

from funcnet.ops.activations import identity, relu, sigmoid, softsign, step, tanh
from funcnet.ops.activations_elu import celu, elu, selu
from funcnet.ops.activations_gated import geglu, glu, swiglu
from funcnet.ops.activations_piecewise import (
    hard_sigmoid,
    hard_silu,
    hard_tanh,
    leaky_relu,
    prelu,
    relu6,
)
from funcnet.ops.activations_smooth import gelu, log_sigmoid, mish, silu, softplus
from funcnet.ops.affine import affine
from funcnet.ops.attention import dot_product_attention
from funcnet.ops.batch_norm import batch_norm, batch_norm_inference
from funcnet.ops.binary_cross_entropy import sigmoid_binary_cross_entropy
from funcnet.ops.convolution import conv, conv_transpose
from funcnet.ops.cross_entropy import cross_entropy, kl_divergence
from funcnet.ops.depthwise import depthwise_conv
from funcnet.ops.dropout import dropout
from funcnet.ops.embedding import embedding
from funcnet.ops.gru import gru
from funcnet.ops.layer_norm import group_norm, layer_norm, rms_norm
from funcnet.ops.linear_cross_entropy import linear_cross_entropy
from funcnet.ops.linear_recurrence import linear_recurrence
from funcnet.ops.losses import (
    huber,
    mean_absolute_error,
    mean_squared_error,
    sum_squared_error,
)
from funcnet.ops.lstm import lstm
from funcnet.ops.penalties import elastic_net_penalty, l1_penalty, l2_penalty
from funcnet.ops.pooling import avg_pool, max_pool
from funcnet.ops.pooling_global import global_avg_pool, global_max_pool
from funcnet.ops.rnn import rnn
from funcnet.ops.rope import rope
from funcnet.ops.softmax import log_softmax, logsumexp, softmax
from funcnet.ops.softmax_cross_entropy import softmax_cross_entropy

__all__ = [
    "affine",
    "avg_pool",
    "batch_norm",
    "batch_norm_inference",
    "celu",
    "conv",
    "conv_transpose",
    "cross_entropy",
    "depthwise_conv",
    "dot_product_attention",
    "dropout",
    "elastic_net_penalty",
    "elu",
    "embedding",
    "geglu",
    "gelu",
    "global_avg_pool",
    "global_max_pool",
    "glu",
    "group_norm",
    "gru",
    "hard_sigmoid",
    "hard_silu",
    "hard_tanh",
    "huber",
    "identity",
    "kl_divergence",
    "l1_penalty",
    "l2_penalty",
    "layer_norm",
    "leaky_relu",
    "linear_cross_entropy",
    "linear_recurrence",
    "log_sigmoid",
    "log_softmax",
    "logsumexp",
    "lstm",
    "max_pool",
    "mean_absolute_error",
    "mean_squared_error",
    "mish",
    "prelu",
    "relu",
    "relu6",
    "rms_norm",
    "rnn",
    "rope",
    "selu",
    "sigmoid",
    "sigmoid_binary_cross_entropy",
    "silu",
    "softmax",
    "softmax_cross_entropy",
    "softplus",
    "softsign",
    "step",
    "sum_squared_error",
    "swiglu",
    "tanh",
]
