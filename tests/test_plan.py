"""Tests of scripts/plan.py: its options everywhere, its table where libtpu is installed."""

import importlib.util
import re

import plan
import pytest

SMALL = [
    "--width",
    "64",
    "--heads",
    "2",
    "--hidden",
    "128",
    "--depth",
    "2",
    "--context",
    "128",
    "--batch-size",
    "8",
    "--vocabulary",
    "512",
]
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["v5e:16x16"], "devices must be a device and a shape, such as tpu:v5e:4x4"),
        (["tpu:v9:2x2"], "plan: device must be one of tpu:v4, tpu:v5e"),
        *(
            pytest.param(options.split(), message, marks=needs_libtpu)
            for options, message in {
                "tpu:v5e:3x5": "tpu:v5e: topology must be one that XLA knows, got '3x5'",
                "tpu:v5e:2x2 --tensor 3": "--tensor must divide the 4 devices, got 3",
                "tpu:v5e:2x2 --batch-size 6": "--batch-size must be a multiple of the 4 devices",
                "tpu:v5e:2x2 --batch-size 0": "--batch-size must be at least 1, got 0",
            }.items()
        ),
    ],
)
def test_options_in_one_line(options, message, capsys):
    assert plan.main(options) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("tensor", ["1", "2"])
def test_the_table_of_a_small_network(tensor, capsys):
    assert plan.main(["tpu:v5e:2x2", "--tensor", tensor, *SMALL]) == 0
    table = capsys.readouterr().out
    assert "0.148 million parameters, 8 × 128 tokens, on tpu:v5e:2x2" in table
    for name in ("arguments", "temporaries", "all-gather", "compute", "communication"):
        numbers = re.search(rf"^\| {name}.*\|(.*)\|(.*)\|(.*)\|$", table, re.MULTILINE)
        assert numbers is not None, name
