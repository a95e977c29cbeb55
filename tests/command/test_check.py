"""The command `funcnet`, called as a user calls it."""

import json
import subprocess
import sys

import pytest

from funcnet import RULES
from funcnet.command import check as command
from funcnet.command.check import main
from funcnet.command.specs import parse_argument, parse_option

MODULE = """
import jax, jax.numpy as jnp

@jax.custom_vjp
def scaled(x, labels, factor=2.0):
    return factor * x

scaled.defvjp(lambda x, labels, factor: (factor * x, factor),
              lambda factor, dy: (dy * {wrong}, None, None))

@jax.custom_vjp
def clipped(x):
    return x

clipped.defvjp(lambda x: (x, None), lambda _, dy: (jnp.clip(dy, -1, 1),))

def clip(x, dy): return jnp.clip(dy, -1, 1)

def triple(x, labels, factor=2.0): return 3 * x

NUMBER = 3

def divides(x): 1 / 0

def leaves(x): raise SystemExit(0)

def waits(x): raise KeyboardInterrupt
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, wrong in (("right_rule", "factor"), ("wrong_rule", "3.0")):
        (tmp_path / f"{name}.py").write_text(MODULE.format(wrong=wrong))
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    (tmp_path / "wrong_syntax.py").write_text("def f(:")
    (tmp_path / "ends.py").write_text("raise SystemExit(0)")
    (tmp_path / "json.py").write_text(MODULE.format(wrong="factor"))
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


def test_a_truth_and_an_intent(folder, capsys):
    truth = ["--truth", "right_rule:triple"]
    assert main(["check", "wrong_rule:scaled", "f32[3]", "i32[3]", *truth]) == 0
    assert main(["check", "right_rule:scaled", "f32[3]", "i32[3]", *truth]) == 1
    assert main(["check", "right_rule:clipped", "f32[3]", "--intent", "right_rule:clip"]) == 0
    assert "against the intent" in capsys.readouterr().out


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
        (
            ["check", "broken.py:f", "f32[3]"],
            "No module named 'nothing_of_this_name' (broken.py:1)",
        ),
        (["check", "wrong_syntax.py:f", "f32[3]"], "SyntaxError: invalid syntax (wrong_syntax.py"),
        (["check", "ends.py:f", "f32[3]"], "cannot be imported: SystemExit: 0 (ends.py:1)"),
        (["check", "nowhere.py:f", "f32[3]"], "No such file or directory: "),
        (
            ["check", "right_rule.py:divides", "f32[3]"],
            "divides raises ZeroDivisionError: division by zero (right_rule.py:23)",
        ),
        (
            ["check", "right_rule:divides", "f32[3]", "--model"],
            "divides raises ZeroDivisionError: ",
        ),
        (
            ["check", "right_rule:leaves", "f32[3]"],
            "leaves raises SystemExit: 0 (right_rule.py:25)",
        ),
        (
            ["check", "json.py:divides", "f32[3]"],
            "ZeroDivisionError: division by zero (json.py:23)",
        ),
        (["check", "right_rule:nothing"], "module right_rule has no function nothing"),
        (["check", "right_rule:NUMBER"], "is not a function"),
        (["check", "right_rule"], "must be package.module:function"),
        (["check", "jax.numpy:sin", "f32[3]"], "sin calls no function with a rule"),
        (["check", "right_rule:scaled", "f31[3]"], "dtype must be one of f16, bf16"),
        (["check", "right_rule:scaled", "f32(3)"], "must be dtype[shape] such as f32[8,16]"),
        (["check", "right_rule:scaled", "f32[3,]"], "'f32[3,]' must be dtype[shape] such as"),
        (["check", "right_rule:scaled", "f32[3 3]"], "'f32[3 3]' must be dtype[shape] such as"),
        (["check", "right_rule:scaled", "x=f32[3"], "'f32[3' must be dtype[shape] such as"),
        (["check", "right_rule:scaled", "i8[3]<129"], "int8 cannot hold 128"),
        (["check", "right_rule:scaled", "u8[3]=-1"], "uint8 cannot hold -1"),
        (["check", "right_rule:scaled", "i32[3]=0.5"], "int32 cannot hold 0.5"),
        (["check", "right_rule:scaled", "bool[3]=2"], "bool cannot hold 2"),
        (["check", "right_rule:scaled", "f16[3]=1e9"], "float16 cannot hold 1e9"),
        (["check", "right_rule:scaled", "f32[3]=x"], "'x' is not a number"),
        (["check", "right_rule:scaled", "f32[9999999999999]"], "Unable to allocate"),
        (["check", "right_rule:scaled", "f32[3]<4"], "a range is for integers"),
        (["check", "right_rule:scaled", "i32[3]<0"], "the upper limit must be at least 1"),
        (["check", "right_rule:scaled", "f32[3]"], "missing a required argument: 'labels'"),
        (["check", "right_rule:scaled", "f32[3]", "i32[3]", "--jsn"], "unknown option --jsn"),
        (["check", "right_rule:scaled", "f32[3]", "i32[3]", "--dtypes", "f9"], "got 'f9' in it"),
        (["check", "right_rule:scaled", "f32[3]", "i32[3]", "--dtypes", "i8"], "got 'int8' in it"),
        (["check", "right_rule:scaled", "f32[3]", "--seed", "x"], "invalid int value: 'x'"),
        (["check", "right_rule:scaled", "f32[3]", "--seed", "-1"], "--seed must be at least 0"),
        (
            ["check", "right_rule:scaled", "f32[3]", "--model", "--strict"],
            "--model does not take --strict",
        ),
        (
            ["check", "right_rule:scaled", "f32[3]", "--model", "--truth", "right_rule:triple"],
            "--model does not take --truth",
        ),
        (["check", "right_rule:scaled", "f32[3]", "--truth", "triple"], "--truth must be package"),
        (
            ["check", "right_rule:clipped", "f32[3]", "--intent", "right_rule:clipped"],
            "intent must take these arguments",
        ),
        (["check", "right_rule:scaled", "f32[3]", "intent=1"], "this is the option --intent"),
        (["check", "right_rule:scaled", "f32[3]", "factor=2", "factor=3"], "was given before"),
        (["check", "right_rule:scaled", "f32[3]", "strict=1"], "this is the option --strict"),
        (["check", "right_rule:scaled", "f32[3]", "tolerance=-1"], "tolerance must be a finite"),
        (["check", "right_rule:scaled", "f32[3]", "i32[3]", "speed=3"], "argument 'speed'"),
        (
            ["check", "right_rule:scaled", "f32[3]", "i32[3]", "--json", "no/x"],
            "--json must be a file that can be written, got no/x: No such file",
        ),
        (["check", "right_rule:scaled", "f32[3]", "i32[3]", "--json", "."], "Is a directory"),
        (["check", "right_rule:scaled", "f32[3]", "i32[3]", "--json="], "Is a directory"),
        (["rules", "all"], "unknown argument all"),
        (["nothing"], "invalid choice: 'nothing'"),
        ([], "required: command"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(folder, capsys, words, message):
    try:
        status = main(words)
    except SystemExit as e:  # argparse exits this way
        status = e.code
    assert status == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_interrupted(folder, capsys):
    assert main(["check", "right_rule:waits", "f32[3]"]) == 130
    assert capsys.readouterr().err == "funcnet: interrupted\n"


def test_what_is_wrong_is_said_before_anything_is_run(folder, capsys, monkeypatch):
    """A rejected call leaves no empty file and does not change an existing one."""
    monkeypatch.setattr(command, "check_rule", None)
    (folder / "kept.json").write_text("kept")
    for words in (["--json", "no/x"], ["--json", "new.json", "--seed", "-1"]):
        assert main(["check", "right_rule:scaled", "f32[3]", *words]) == 2
    assert main(["check", "right_rule:scaled", "f32(3)", "--json", "new.json"]) == 2
    assert main(["check", "right_rule:scaled", "f32(3)", "--json", "kept.json"]) == 2
    assert not (folder / "new.json").exists()
    assert (folder / "kept.json").read_text() == "kept"


def test_rules_are_listed(capsys):
    assert main(["rules"]) == 0
    out = capsys.readouterr().out
    for name in RULES:
        assert f"\n{name} " in f"\n{out}", name
    assert "Residuals not documented" not in out


@pytest.mark.slow
def test_the_installed_command():
    run = subprocess.run(
        [sys.executable, "-m", "funcnet", "rules"], capture_output=True, text=True, check=True
    )
    assert "softmax" in run.stdout


def test_nobody_reads():
    """The output pipe is closed early, as in `funcnet rules | head -1`."""
    shell = f"{sys.executable} -m funcnet rules | (exec <&-); exit ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (141, "")


@pytest.mark.parametrize("words", [["--help"], ["check", "--help"]])
def test_help(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    assert "prove" in out.lower()


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
