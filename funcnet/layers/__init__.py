"""Layers: parameters and state around the ops, and their composition."""

from funcnet.layers.attention import MultiHeadAttention as MultiHeadAttention
from funcnet.layers.attention import TransformerBlock as TransformerBlock
from funcnet.layers.base import Layer as Layer
from funcnet.layers.base import chain as chain
from funcnet.layers.base import stateless as stateless
from funcnet.layers.combinators import Flatten as Flatten
from funcnet.layers.combinators import parallel as parallel
from funcnet.layers.combinators import repeat as repeat
from funcnet.layers.combinators import residual as residual
from funcnet.layers.convolution import Conv as Conv
from funcnet.layers.convolution import ConvTranspose as ConvTranspose
from funcnet.layers.convolution import DepthwiseConv as DepthwiseConv
from funcnet.layers.dense import Dense as Dense
from funcnet.layers.dropout import Dropout as Dropout
from funcnet.layers.embedding import Embedding as Embedding
from funcnet.layers.gated import GatedMLP as GatedMLP
from funcnet.layers.mlp import mlp as mlp
from funcnet.layers.normalization import BatchNorm as BatchNorm
from funcnet.layers.normalization import GroupNorm as GroupNorm
from funcnet.layers.normalization import LayerNorm as LayerNorm
from funcnet.layers.normalization import RMSNorm as RMSNorm
from funcnet.layers.pooling import AvgPool as AvgPool
from funcnet.layers.pooling import GlobalAvgPool as GlobalAvgPool
from funcnet.layers.pooling import GlobalMaxPool as GlobalMaxPool
from funcnet.layers.pooling import MaxPool as MaxPool
from funcnet.layers.recurrent import GRU as GRU
from funcnet.layers.recurrent import LSTM as LSTM
from funcnet.layers.recurrent import RNN as RNN

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
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
    "RMSNorm",
    "TransformerBlock",
    "chain",
    "mlp",
    "parallel",
    "repeat",
    "residual",
    "stateless",
]
