"""Each kind of finding has an entry in the checker's README, whose example has it."""

import re
from pathlib import Path

import pytest

import funcnet
from funcnet.check import KINDS

PAGE = (Path(funcnet.__file__).parent / "check" / "README.md").read_text(encoding="utf-8")
SHARED, *EXAMPLES = re.findall(r"```py\n(.*?)```", PAGE.partition("## Kinds of findings")[2], re.S)
NAMES = re.findall(r"^### `(.*)`$", PAGE, re.M)


def test_each_kind_has_an_entry():
    assert list(KINDS) == NAMES
    assert len(EXAMPLES) == len(NAMES)


@pytest.mark.third
@pytest.mark.parametrize(("kind", "code"), [*zip(NAMES, EXAMPLES, strict=True)], ids=NAMES)
def test_the_example_has_this_kind(kind, code):
    scope = {}
    exec(SHARED + code, scope)
    assert kind in {found.kind for found in scope["report"].findings}, scope["report"]
