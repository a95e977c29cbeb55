"""Worked examples of the sources, shown by the experiments: perceptrons and backpropagation."""
