"""Values of a parametrized test that only the slow run tries."""

import pytest


def slow(*values):
    """Each value, or the values of each tuple, marked slow."""
    each = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*value, marks=pytest.mark.slow) for value in each]
