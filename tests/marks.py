"""Marks for parameters of tests that run only with the slow tests."""

import pytest


def slow(*values):
    """Each value, or each tuple of values, as a parameter set marked slow."""
    each = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*value, marks=pytest.mark.slow) for value in each]
