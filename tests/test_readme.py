"""Every Python block of README.md runs, by itself and as a user would run it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"
RUN = """
import re, sys, warnings
warnings.simplefilter("error")
for block in re.findall(r"```python\\n(.*?)```", open(sys.argv[1], encoding="utf-8").read(), re.S):
    exec(compile(block, block, "exec"), {"__name__": "readme"})
    print("this block ran")
"""


@pytest.mark.slow
def test_python_blocks():
    text = README.read_text(encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(README)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("this block ran") == text.count("```python") >= 5


def test_quick_start_is_two_commands_of_one_line():
    text = README.read_text(encoding="utf-8")
    section = text.split("## Quick start")[1].split("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)\n```", section, re.DOTALL)
    assert len(blocks) == 2
    assert all("\n" not in block for block in blocks)
    assert "scripts/train_mnist.py" in blocks[0]
    assert "pytest" in blocks[1]
