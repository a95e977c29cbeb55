"""Tests of `scripts/train_cnn.py`; the tests of `train_mnist` cover what it shares with it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import train_cnn
from resumable import FILES
from test_train_mnist import LAST_LINE, data  # noqa: F401  (a fixture)

import funcnet
from funcnet import autodiff, ops

SMALL = ["--channels", "2", "3", "--convolutions", "1", "1", "--epochs", "1", "--batch-size", "50"]


@pytest.mark.slow
def test_both_train_the_same_network(tmp_path, capsys):
    """In float64, Adam amplifies rounding; a difference of 0 would mean the same computation."""
    assert train_cnn.main([*SMALL, "--rules", "both", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert re.fullmatch(LAST_LINE, out.splitlines()[-1])
    (difference,) = re.findall(r"epoch 1: largest difference of parameters (\S+)", out)
    assert 0 < float(difference) < 1e-8
    assert sorted(os.listdir(tmp_path)) == sorted(FILES)
    assert json.loads((tmp_path / "history.json").read_text())["config"]["channels"] == [2, 3]


@pytest.mark.slow
def test_all_rules_are_ours():
    """The traced network and loss contain exactly these rules; with autodiff, none."""
    model, x = train_cnn.make_model(train_cnn.Config()), jnp.zeros((2, 28, 28), jnp.uint8)
    params, state = jax.jit(model.init)(jax.random.key(0), x)

    def objective(params):
        logits, _ = model.apply(params, state, x, key=jax.random.key(1), train=True)
        return ops.softmax_cross_entropy(logits, jnp.zeros(2, jnp.int32)).mean()

    def rules(f):
        jaxpr = str(jax.make_jaxpr(f)(params))
        return set(re.findall(r"custom_vjp_call\[\s*name=(\w+)", jaxpr))

    layers = {"conv", "batch_norm", "relu", "max_pool", "global_avg_pool", "dropout", "affine"}
    assert rules(objective) == layers | {"softmax_cross_entropy"}
    assert rules(autodiff(objective)) == set()


@pytest.mark.parametrize(
    ("wrong", "message"),
    {
        "--channels 0": r"--channels must be numbers of at least 1, got \(0,\)",
        "--channels 4 8 --convolutions 1": "convolutions must be .* for each of 2 stages, got",
        "--convolutions 1 0 1": "convolutions must be at least 1 for each of 3 stages, got",
        "--epochs 0": "--epochs must be at least 1, got 0",
        "--shift -1": "--shift must be at least 0, and less than half an image, got -1",
    }.items(),
)
def test_wrong_options_end_in_one_line(wrong, message, tmp_path, capsys):
    assert train_cnn.main(["--out", str(tmp_path), *wrong.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("train_cnn: ")
    assert re.search(message, err)


@pytest.mark.slow
def test_an_epoch_of_mnist(tmp_path, monkeypatch):
    """Runs one epoch in float32, as users do. All take minutes; the README has their result."""
    monkeypatch.delenv("FUNCNET_DATA")
    done = subprocess.run(
        [sys.executable, train_cnn.__file__, "--epochs", "1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(funcnet.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout.split()[-1]) >= 0.975
