"""Tests of the notebook `experiments/tour.ipynb`: it runs, and its stored outputs are complete."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parent.parent / "experiments" / "tour.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]

# Runs the code cells and prints what a notebook shows: the value of the last expression of a cell.
RUN = """
import ast, json, sys, warnings

warnings.simplefilter("error")
names = {"__name__": "__main__"}
for cell in json.load(sys.stdin):
    tree = ast.parse("".join(cell["source"]))
    last = tree.body.pop().value if isinstance(tree.body[-1], ast.Expr) else ast.Constant(None)
    exec(compile(tree, cell["id"], "exec"), names)
    print(eval(compile(ast.Expression(last), cell["id"], "eval"), names))
    print("this cell ran")
"""

# A path from the root of the file system of some machine, or the address of an object.
MACHINE = re.compile(r"(?<![\w<./:])/\w[\w.-]*/\w|\b[A-Z]:\\|\bat 0x[0-9a-f]+")


def texts(output):
    """The texts of an output, without pictures."""
    data = {"stream": output.get("text", ""), **output.get("data", {})}
    return ["".join(text) for kind, text in data.items() if not kind.startswith("image/")]


@pytest.mark.slow
def test_it_runs_and_finds_what_it_says():
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps(CODE), capture_output=True, text=True, timeout=600,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "MPLBACKEND": "agg"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("this cell ran") == len(CODE)
    for text in (
        "layer_norm: proved",
        "normalize: refuted",
        "a mean or sum over that axis is missing",
        "loss_of: proved",
    ):
        assert text in done.stdout
    (accuracy,) = re.findall(r"'accuracy': Array\((\S+),", done.stdout)
    assert float(accuracy) > 0.95


def test_it_was_run_from_top_to_bottom():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert all(cell["outputs"] for cell in CODE)


def test_the_stored_outputs_are_results():
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {
        "stream", "execute_result", "display_data",
    }  # fmt: skip
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}  # no warnings
    shown = [kind for output in outputs for kind in output.get("data", {})]
    assert shown.count("text/html") == 4  # the reports and the profile
    assert shown.count("image/png") == 1  # the curve


@pytest.mark.parametrize("text", ["/home/me/x.py", "at /usr/lib.d/x", r"C:\x", "<f at 0x7f01>"])
def test_paths_are_recognised(text):
    assert MACHINE.search(text)


def test_the_stored_outputs_name_no_machine():
    for cell in CODE:
        for output in cell["outputs"]:
            for text in texts(output):
                assert not MACHINE.search(text), cell["id"]


def test_it_is_small():
    assert NOTEBOOK.stat().st_size < 300_000
    assert 10 <= len(CELLS) <= 18
