"""Layers: parameters and state around the ops, and their composition."""

from funcnet.layers.attention import MultiHeadAttention
from funcnet.layers.base import Layer, stateless
from funcnet.layers.combinators import chain, parallel, repeat, residual
from funcnet.layers.convolution import Conv, ConvTranspose, DepthwiseConv
from funcnet.layers.dense import Dense
from funcnet.layers.dropout import Dropout
from funcnet.layers.embedding import Embedding
from funcnet.layers.flatten import Flatten
from funcnet.layers.from_dict import from_dict
from funcnet.layers.gated import GatedMLP
from funcnet.layers.mlp import mlp
from funcnet.layers.normalization import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from funcnet.layers.pooling import AdaptiveAvgPool, AvgPool, GlobalAvgPool, GlobalMaxPool, MaxPool
from funcnet.layers.positions import Positions
from funcnet.layers.recurrent import GRU, LSTM, RNN
from funcnet.layers.transformer import TransformerBlock

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "AdaptiveAvgPool",
    "AvgPool",
    "BatchNorm",
    "Conv",
    "ConvTranspose",
    "Dense",
    "DepthwiseConv",
    "Dropout",
    "Embedding",
    "Flatten",
    "GatedMLP",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "GroupNorm",
    "Layer",
    "LayerNorm",
    "MaxPool",
    "MultiHeadAttention",
    "Positions",
    "RMSNorm",
    "TransformerBlock",
    "chain",
    "from_dict",
    "mlp",
    "parallel",
    "repeat",
    "residual",
    "stateless",
]
