"""Exhibits of the sources, which their experiments show: perceptrons, and backpropagation by δ."""
