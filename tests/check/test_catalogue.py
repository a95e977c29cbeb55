"""The checker on rules with a known verdict: it refutes all wrong ones and no right one."""

from pathlib import Path

import jax
import numpy as np
import pytest
from check.right import RIGHT
from check.wrong import WRONG

import funcnet.check
from funcnet import check_rule
from funcnet.check import KINDS

# (seed, dtype) of each run of a right rule; the first run includes all transformations.
DRAWS = [(0, "float32"), (0, "bfloat16"), (0, "float16")]
RUNS = [
    pytest.param(entry, seed, dtype, id=f"{entry.id}-{dtype}-{seed}")
    for entry in RIGHT
    for seed, dtype in DRAWS
    if dtype in entry.dtypes
]
SOME_RIGHT = RIGHT[::80]


def kinds_of(wrong):
    return {wrong.kind} if isinstance(wrong.kind, str) else set(wrong.kind)


def some_of_each_kind():
    """Yields the first wrong rule of each kind; the default run takes every eighth of them."""
    count = dict.fromkeys(KINDS, 0)
    for wrong in WRONG:
        kinds = kinds_of(wrong)
        if not any(count[k] for k in kinds):
            yield wrong
            for k in kinds:
                count[k] += 1


SOME_WRONG = list(some_of_each_kind())[::8]


@pytest.fixture
def forget():
    """Clears compiled programs, which would fill the memory after hundreds of checks."""
    yield
    jax.clear_caches()


def test_counts():
    """The checker's README states the size of this catalogue."""
    readme = (Path(funcnet.check.__file__).parent / "README.md").read_text(encoding="utf-8")
    assert f"On {len(WRONG)} wrong rules" in readme
    assert f"{len(RUNS)} runs of {len(RIGHT)} right ones" in readme
    assert len(WRONG) >= 60
    assert len(RUNS) >= 200
    assert set().union(*map(kinds_of, WRONG)) == set(KINDS) - {"error", "note"}
    assert len({w.id for w in WRONG}) == len(WRONG)
    assert len({r.id for r in RIGHT}) == len(RIGHT)


def refuted(wrong):
    """The rule is refuted with the kind of its mistake, and only at its wrong argument, if any."""
    report = check_rule(wrong.f, *wrong.args, **wrong.kwargs)
    kinds = kinds_of(wrong)
    assert any(f.kind in kinds for f in report.findings), report
    if wrong.argument:
        found = [f for f in report.findings if f.argument == wrong.argument]
        assert any(f.kind in kinds for f in found), report
        assert {f.argument for f in report.findings} <= {wrong.argument, ""}, report


@pytest.mark.few
@pytest.mark.parametrize("wrong", SOME_WRONG, ids=lambda w: w.id)
def test_a_wrong_rule_is_refuted(wrong):
    refuted(wrong)


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong", [w for w in WRONG if w.id not in {s.id for s in SOME_WRONG}], ids=lambda w: w.id
)
def test_every_wrong_rule_is_refuted(wrong, forget):
    refuted(wrong)


@pytest.mark.few
@pytest.mark.parametrize("entry", SOME_RIGHT, ids=lambda r: r.id)
def test_a_right_rule_is_proved(entry):
    args, kwargs = entry.draw(np.random.default_rng(2), entry.dtypes[0])
    report = check_rule(entry.f, *args, under_transformations=False, **kwargs)
    report.raise_if_failed()


@pytest.mark.slow
@pytest.mark.parametrize(("entry", "seed", "dtype"), RUNS)
def test_a_right_rule_is_proved_in_all_regimes(entry, seed, dtype, forget):
    """The regimes are ties, zeros, extreme values, offsets and narrow dtypes."""
    args, kwargs = entry.draw(np.random.default_rng(seed), dtype)
    first = (seed, dtype) == DRAWS[0]
    report = check_rule(entry.f, *args, under_transformations=first, **kwargs)
    report.raise_if_failed()
