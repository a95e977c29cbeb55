"""Layers: parameters and state around the ops, and their composition."""

from funcnet.layers.base import Layer as Layer
from funcnet.layers.base import chain as chain
from funcnet.layers.base import stateless as stateless
from funcnet.layers.dense import Dense as Dense
from funcnet.layers.dropout import Dropout as Dropout
from funcnet.layers.mlp import mlp as mlp
from funcnet.layers.normalization import BatchNorm as BatchNorm
