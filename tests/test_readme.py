"""Tests of the README files: Python blocks run, links are valid, tables are complete."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import readme

from funcnet import RULES, ops

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [
    README,
    *sorted(
        p
        for part in ("funcnet", "scripts", "experiments")
        for p in (ROOT / part).rglob("README.md")
    ),
]
RUN = """
import pathlib, re, sys, warnings
warnings.simplefilter("error")
page = pathlib.Path(sys.argv[1]).read_text("utf-8")
for block in re.findall(r"```python\\n(.*?)```", page, re.S):
    exec(compile(block, block, "exec"), {"__name__": "readme"})
    print("this block ran")
"""


def text_of(page):
    return page.read_text(encoding="utf-8")


def name_of(page):
    return page.relative_to(ROOT).as_posix()


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if "```python" in text_of(p)], ids=name_of)
def test_python_blocks(page):
    """Each block runs by itself, as a user would run it."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(page)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("this block ran") == text_of(page).count("```python")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if link.startswith("https:"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if re.fullmatch(r"L\d+", anchor):
            assert int(anchor[1:]) <= len(text_of(target).splitlines()), link
        elif anchor:
            titles = re.findall(r"^#+ (.*)$", text_of(target), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}


@pytest.mark.parametrize("page", readme.PAGES, ids=name_of)
def test_links_to_rules_lead_to_their_lines(page):
    assert text_of(page) == readme.linked(page), "run `python scripts/readme.py`"


@pytest.mark.parametrize("name", sorted(RULES))
def test_the_catalogue_leads_to_every_rule(name):
    catalogue = text_of(ROOT / "funcnet" / "ops" / "README.md")
    file = Path(inspect.getsourcefile(RULES[name].primal)).name
    assert f"[`{name}`]({file}#L" in catalogue, (
        f"funcnet/ops/README.md: a row of the first table must have [`{name}`]({file})"
    )


def test_the_readme_is_short():
    assert len(text_of(README).splitlines()) <= 200


def test_the_rule_in_the_readme_is_that_of_the_library():
    (block,) = re.findall(r"```text\n(def layer_norm_bwd.*?)```", text_of(README), re.S)
    assert block == inspect.getsource(RULES["layer_norm"].bwd)


@pytest.mark.parametrize("part", ["rules", "compared"])
def test_a_table_has_every_rule_and_no_other(part):
    (table,) = re.findall(
        f"<!-- {part}: begin -->(.*?)<!-- {part}: end -->", "".join(map(text_of, PAGES)), re.S
    )
    assert set(re.findall(r"^\| `(\w+)`", table, re.M)) == set(ops.__all__)


@pytest.mark.parametrize("page", sorted((ROOT / "funcnet").rglob("*.py")), ids=name_of)
def test_sources_are_named(page):
    """The letter of each "Source A 3.3.4" is in the table of sources."""
    known = re.findall(r"^\| ([A-Z]) \|", text_of(ROOT / "funcnet" / "ops" / "README.md"), re.M)
    assert set(re.findall(r"[Ss]ource ([A-Z])\b", text_of(page))) <= set(known)


def test_quick_start_is_two_commands_of_one_line():
    section = text_of(README).split("## Quick start")[1].split("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)\n```", section, re.DOTALL)
    assert len(blocks) == 2
    assert all("\n" not in block for block in blocks)
    assert "scripts/train_mnist.py" in blocks[0]
    assert "pytest" in blocks[1]
