"""Tests of `scripts/bench.py`: it compares equal computations and reports them; no times."""

import functools
import json
import re

import accuracy_table
import bench
import bench_step
import check_foreign
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import readme
from cases import MEASURED
from cases.case import normal
from cases.measured import Target

from funcnet import RULES, ops, profile_rule

TINY = {
    "batch_norm": {"sizes": {"n": 16, "c": 8}, "growth": {"n": (6,)}},
    "depthwise_conv": {"sizes": {"n": 2, "s": 4, "c": 3}, "growth": {}},
    "softmax_cross_entropy, indices": {"sizes": {"n": 4, "c": 8}, "growth": {}},
}


@pytest.fixture(autouse=True)
def as_users_run_it():
    """The usual forwards mix dtypes, so dtype promotion is standard here."""
    with jax.numpy_dtype_promotion("standard"), jax.enable_x64(False):
        yield


@pytest.fixture
def tiny(monkeypatch):
    cases = {name: MEASURED[name]._replace(**changed) for name, changed in TINY.items()}
    monkeypatch.setattr(bench, "MEASURED", cases)


def run(out, *argv):
    return bench.main(["--out", str(out), "--rounds", "1", *argv])


def ours():
    return {name for name, r in RULES.items() if r.primal.__module__.startswith("funcnet.")}


def test_every_rule_is_measured():
    missing = ours() - {name.partition(",")[0] for name in MEASURED}
    assert not missing, f"tests/cases: give MEASURED an entry for {missing}"
    assert {name.partition(",")[0] for name in MEASURED} == ours()


@pytest.mark.parametrize("name", MEASURED)
def test_a_case_is_well_formed(name):
    case = MEASURED[name]
    assert re.fullmatch(r"\w+(, \w+)?", name)
    leaves = jax.tree.leaves(jax.eval_shape(lambda: bench.arguments(case, case.sizes)))
    floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype("float32")}
    assert set(case.growth) <= set(case.sizes)


@pytest.mark.slow
def test_what_is_saved_and_printed(tiny, tmp_path, capsys, monkeypatch):
    page = tmp_path / "README.md"
    part = lambda name: f"a\n<!-- {name}: begin -->\nold\n<!-- {name}: end -->\nb\n"
    page.write_text(part("rules") + part("compared"), encoding="utf-8")
    monkeypatch.setattr(readme, "PAGES", [page])
    assert run(tmp_path / "new", "--growth", "--write") == 0
    out = capsys.readouterr().out
    assert "\nbatch_norm: time / autodiff " in out
    assert len(re.findall(r"(reached|missed) ≤ ", out)) == len(TINY)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"bench.json", "tables.md"}

    record = json.loads((tmp_path / "new" / "bench.json").read_text(encoding="utf-8"))
    assert record["machine"]["jax"] == jax.__version__
    assert [row["case"] for row in record["cases"]] == list(TINY)
    for row in record["cases"]:
        assert row["sizes"] == TINY[row["case"]]["sizes"]
        assert list(row["against"])[:2] == ["usual", "usual + checkpoint"]
        for cost in (row["hand"], row["autodiff"], *row["against"].values()):
            assert cost["compile_seconds"] > 0
            assert cost["temporary_bytes"] >= 0
            low, median, high = cost["hand_ratio"]
            assert 0 < low <= median <= high
        assert row["hand"]["hand_ratio"] == [1, 1, 1]
    batch_norm, conv, _ = record["cases"]
    assert batch_norm["hand"]["growth_bytes"] > 0
    assert conv["hand"]["growth_bytes"] is not None
    (study,) = batch_norm["growth"]
    assert study["sizes"] == {"n": 6, "c": 8}
    assert study["µs"].keys() >= {"hand", "autodiff", "usual"}

    tables = (tmp_path / "new" / "tables.md").read_text(encoding="utf-8")
    assert tables.count("| two-pass |") == 1
    widths = {line.count("|") for line in tables.splitlines() if line.startswith("|")}
    assert len(widths) == 2  # one per table

    text = page.read_text(encoding="utf-8")
    assert "old" not in text
    assert "| `softmax_cross_entropy`, indices | n 4, c 8 | optax |" in text
    assert "| `softmax_cross_entropy` | proved |" in text
    assert text.startswith("a\n<!-- rules: begin -->\nIn float32 on ")
    assert text.endswith("|\n<!-- compared: end -->\nb\n")


@pytest.mark.slow
def test_some_rows_are_written_into_a_table():
    top = "In float32 on a machine.\n\n| rule | x |\n|---|---|"
    old = f"{top}\n| `relu` | 1 |\n| `lstm` | 2 |\n| `lstm`, wide | 3 |\n| `gone` | 4 |"
    new = f"{top}\n| `lstm` | 5 |\n| `tanh` | 6 |"
    rows = "| `tanh` | 6 |\n| `relu` | 1 |\n| `lstm` | 5 |\n| `lstm`, wide | 3 |"
    assert bench.merged(old, new) == f"{top}\n{rows}"


def test_some_rows_of_another_machine_are_refused(tmp_path, capsys, monkeypatch):
    page = tmp_path / "README.md"
    part = lambda name: f"<!-- {name}: begin -->\nIn float32 on a VAX.\n<!-- {name}: end -->\n"
    page.write_text(part("rules") + part("compared"), encoding="utf-8")
    monkeypatch.setattr(readme, "PAGES", [page])
    assert run(tmp_path, "--cases", "relu", "--write") == 2
    assert "--write must have all cases on another machine" in capsys.readouterr().err


def test_patterns_targets_and_scale(tiny, tmp_path, capsys):
    assert run(tmp_path, "--cases", "*_cross_entropy*", "--targets", "--scale", "0.5") == 0
    (row,) = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))["cases"]
    assert row["sizes"] == {"n": 4, "c": 8}  # not scaled below `SMALL`
    assert "batch_norm" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    {
        "--cases foo": "--cases must be of 'identity', .*, got 'foo'",
        "--cases": "--cases must leave a case",
        "--cases identity --targets": "--cases must leave a case, with --targets one that has",
        "--rounds 0": "--rounds must be a finite number above 0, got 0",
        "--seconds 0": "--seconds must be a finite number above 0, got 0",
        "--seconds inf": "--seconds must be a finite number above 0, got inf",
        "--scale nan": "--scale must be a finite number above 0, got nan",
        "--scale inf": "--scale must be a finite number above 0, got inf",
        "--write --targets": "--write must have cases at their sizes",
        "--write --scale 0.5": "--write must have cases at their sizes",
        "--wirte": "--wirte.*--write",
        "--out /dev/null/bench": "--out must be a folder to write in",
    }.items(),
)
def test_wrong_options_end_in_one_line(wrong, message, tmp_path, capsys):
    assert bench.main(["--out", str(tmp_path), *wrong.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert re.match(f"bench: .*{message}", err)


@pytest.mark.parametrize(
    ("program", "wrong", "message"),
    [
        (bench_step, "--rounds 0", "--rounds must be at least 1, got 0"),
        (bench_step, "--rounds x", "Error parsing --rounds: invalid literal .* 'x'"),
        (bench_step, "--json /nowhere/x", "--json must be a file .*/nowhere/x: No such file"),
        (bench_step, "--json /", "--json must be a file .* got /: Is a directory"),
        (accuracy_table, "--wirte", "Unrecognized options: --wirte"),
        (accuracy_table, "--write", "no README.md has a part <!-- accuracy: begin -->"),
        (bench, "--write", "no README.md has a part <!-- rules: begin -->"),
        (check_foreign, "--only nothing", "--only must be part of .* of a row, got 'nothing'"),
    ],
)  # fmt: skip
def test_nothing_is_measured_in_vain(program, wrong, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(readme, "PAGES", [])
    monkeypatch.chdir(tmp_path)
    assert program.main(wrong.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert re.search(f"^{program.__name__}: .*{message}", err)


@pytest.mark.few
@pytest.mark.parametrize(
    ("time", "temporary", "reached"),
    [
        (0.5, 100_000, True),
        (0.51, 100_000, False),
        (0.5, 104_097, False),
        (0.5, 104_096, True),  # a difference of one page does not count
    ],
)
def test_a_target_is_reached_by_medians(time, temporary, reached):
    case = MEASURED["batch_norm"]._replace(target=Target(0.5, 0.1))
    cost = profile_rule(ops.relu, jnp.ones(3), rounds=1, accuracy=False).hand
    usual = cost._replace(temporary_bytes=1_000_000, hand_ratio=(0.1, time, 0.9))
    assert bench.reached(case, cost._replace(temporary_bytes=temporary), usual) is reached


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MEASURED if name != "dropout"])
def test_equals_are_compared(name):
    """The rule and the other forwards have the same values and cotangents in float32."""
    case = MEASURED[name]
    args = bench.arguments(case, bench.scaled(case.sizes, 1 / 64))
    wrt = (case.argnums,) if isinstance(case.argnums, int) else case.argnums
    is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    wrt = wrt or tuple(i for i, x in enumerate(args) if is_float(x))

    def results(f):
        def at(*floats):
            given = dict(zip(wrt, floats, strict=True))
            return f(*(given.get(i, x) for i, x in enumerate(args)))

        y, back = jax.vjp(at, *(args[i] for i in wrt))
        leaves, tree = jax.tree.flatten(y)
        dy = [
            jnp.asarray(normal(*leaf.shape, seed=9 + i), leaf.dtype)
            for i, leaf in enumerate(leaves)
        ]
        return [*leaves, *jax.tree.leaves(back(tree.unflatten(dy)))]

    forwards = [case.usual]
    for library, load in case.peers.items():
        try:
            forwards += [load()] if library != "h w alone" else []
        except ImportError:
            continue
    hand = results(functools.partial(bench.rule_of(name, case), **case.static))
    for f in forwards:
        usual = results(f)
        assert len(hand) == len(usual)
        for a, b in zip(hand, usual, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max()))


def test_numbers_read_well():
    shown = [bench.megabytes(n) for n in (0, 12, 4096, 65_536, 16_777_216)]
    assert shown == ["0.0", "1e-05", "4e-03", "0.1", "16.8"]
