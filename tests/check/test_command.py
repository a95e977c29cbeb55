"""The command `funcnet`, as a user calls it."""

import json
import subprocess
import sys

import pytest

from funcnet import RULES
from funcnet.check.command import main
from funcnet.check.specs import parse_argument, parse_option

MODULE = """
import jax, jax.numpy as jnp

@jax.custom_vjp
def scaled(x, labels, factor=2.0):
    return factor * x

scaled.defvjp(lambda x, labels, factor: (factor * x, factor),
              lambda factor, dy: (dy * {wrong}, None, None))

NUMBER = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, wrong in (("right_rule", "factor"), ("wrong_rule", "3.0")):
        (tmp_path / f"{name}.py").write_text(MODULE.format(wrong=wrong))
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def test_exit_status_is_the_verdict(folder, capsys):
    assert main(["check", "right_rule:scaled", "f32[3]", "i32[3]<5"]) == 0
    assert "scaled: proved" in capsys.readouterr().out
    assert main(["check", "wrong_rule:scaled", "f32[3]", "i32[3]<5", "factor=2.0"]) == 1
    out = capsys.readouterr().out
    assert "scaled: refuted" in out
    assert "gradient: x: " in out


@pytest.mark.slow
def test_profile_and_json(folder, capsys):
    assert (
        main(
            ["check", "right_rule.py:scaled", "f32[4]", "--json", "out.json", "i32[4]", "--profile"]
        )
        == 0
    )
    found = json.loads((folder / "out.json").read_text())
    assert found["ok"] is True
    assert found["profile"]["hand"]["residual_bytes"] == 0
    assert "autodiff + checkpoint" in capsys.readouterr().out
    assert main(["check", "right_rule:scaled", "f32[4]", "i32[4]", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "scaled"


def test_model(folder, capsys):
    assert main(["check", "wrong_rule:scaled", "f32[3]", "i32[3]", "--model"]) == 1
    assert "culprit: scaled at" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "nowhere:f", "f32[3]"], "module nowhere cannot be imported"),
        (["check", "broken:f", "f32[3]"], "No module named 'nothing_of_this_name'"),
        (["check", "right_rule:nothing"], "module right_rule has no function nothing"),
        (["check", "right_rule:NUMBER"], "is not a function"),
        (["check", "right_rule"], "must be package.module:function"),
        (["check", "jax.numpy:sin", "f32[3]"], "sin calls no function with a rule"),
        (["check", "right_rule:scaled", "f31[3]"], "dtype must be one of f16, bf16"),
        (["check", "right_rule:scaled", "f32(3)"], "must be dtype[shape] such as f32[8,16]"),
        (["check", "right_rule:scaled", "f32[3]<4"], "a range is for integers"),
        (["check", "right_rule:scaled", "i32[3]<0"], "the range must hold a number"),
        (["check", "right_rule:scaled", "f32[3]"], "missing a required argument: 'labels'"),
        (["check", "right_rule:scaled", "f32[3]", "i32[3]", "--jsn"], "unknown option --jsn"),
        (["check", "right_rule:scaled", "f32[3]", "i32[3]", "--dtypes", "f9"], "f9"),
        (
            ["check", "right_rule:scaled", "f32[3]", "i32[3]", "--json", "no/x"],
            "--json no/x: No such",
        ),
        (["nothing"], "invalid choice: 'nothing'"),
        ([], "required: command"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(folder, capsys, words, message):
    try:
        status = main(words)
    except SystemExit as e:  # argparse leaves so
        status = e.code
    assert status == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_rules_are_listed(capsys):
    assert main(["rules"]) == 0
    out = capsys.readouterr().out
    for name in RULES:
        assert f"\n{name} " in f"\n{out}", name
    assert "Residuals not documented" not in out


def test_the_installed_command():
    run = subprocess.run(
        [sys.executable, "-m", "funcnet", "rules"], capture_output=True, text=True, check=True
    )
    assert "softmax" in run.stdout


def test_specs():
    x = parse_argument("bf16[2,3]", 0)
    assert (x.shape, x.dtype.name) == ((2, 3), "bfloat16")
    labels = parse_argument("i32[100]<4", 0)
    assert set(labels.tolist()) == {0, 1, 2, 3}
    assert parse_argument("f32[2]=1.5", 0).tolist() == [1.5, 1.5]
    assert parse_argument("f32[]", 0).shape == ()
    assert parse_argument("0.5", 0) == 0.5
    assert parse_argument("key", 0).shape == ()
    assert parse_option("eps=1e-5", 0) == ("eps", 1e-5)
    assert parse_option("mode=same", 0) == ("mode", "same")
    name, w = parse_option("w=f32[3]", 0)
    assert (name, w.shape) == ("w", (3,))
