"""`scripts/bench.py`: it compares equals, and says what it found. No test asserts a time."""

import json
import re

import accuracy_table
import bench
import bench_report
import bench_step
import check_foreign
import compare_rules
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import readme
from bench_case import Case, Target
from bench_cases import CASES

from funcnet import RULES

TINY = {
    "batch_norm": {"sizes": {"n": 16, "c": 8}, "growth": {"n": (4,)}},
    "depthwise_conv, backward": {"sizes": {"n": 2, "s": 4}, "growth": {}},
    "softmax_cross_entropy, indices": {"sizes": {"n": 4, "c": 8}, "growth": {}},
}


@pytest.fixture(autouse=True)
def as_users_run_it():
    """The forwards that people write mix dtypes."""
    with jax.numpy_dtype_promotion("standard"), jax.enable_x64(False):
        yield


@pytest.fixture
def tiny(monkeypatch):
    cases = {name: CASES[name]._replace(**changed) for name, changed in TINY.items()}
    monkeypatch.setattr(bench, "CASES", cases)
    monkeypatch.setattr(bench, "CHAIN", {"n": 64, "c": 4})


def run(out, *argv):
    return bench.main(["--out", str(out), "--rounds", "1", *argv])


def test_every_rule_has_a_case():
    ours = {name for name, r in RULES.items() if r.primal.__module__.startswith("funcnet.")}
    assert {case.rule for case in CASES.values()} == ours
    assert set(compare_rules.calls(8, 6)) == ours


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_well_formed(name):
    case = CASES[name]
    assert re.fullmatch(rf"{case.rule}(, \w+)?", name)
    args = jax.eval_shape(lambda: case.make(**case.sizes))
    leaves = [leaf for leaf in jax.tree.leaves(args) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    assert set(case.growth) <= set(case.sizes)


@pytest.mark.slow
def test_what_is_saved_and_printed(tiny, tmp_path, capsys, monkeypatch):
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- rules: begin -->\nold\n<!-- rules: end -->\nb\n", encoding="utf-8")
    monkeypatch.setattr(readme, "PAGES", [page])
    assert run(tmp_path / "new", "--growth", "--write") == 0
    out = capsys.readouterr().out
    assert "\nbatch_norm: time / autodiff " in out
    assert len(re.findall(r"(reached|missed) ≤ ", out)) == len(TINY)
    files = {"bench.json", "tables.md", "ratios.png", "growth-batch_norm-n.png"}
    assert {path.name for path in (tmp_path / "new").iterdir()} == files
    for path in (tmp_path / "new").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")

    record = json.loads((tmp_path / "new" / "bench.json").read_text(encoding="utf-8"))
    assert record["machine"]["jax"] == jax.__version__
    assert [row["case"] for row in record["cases"]] == list(TINY)
    for row in record["cases"]:
        assert row["sizes"] == TINY[row["case"]]["sizes"]
        assert list(row["candidates"])[:3] == ["hand", "autodiff", "checkpoint"]
        for name, column in row["candidates"].items():
            assert column["compile_seconds"] > 0
            assert column["kept_bytes"] >= 0
            assert column["temporary_bytes"] >= 0
            for key in ("µs", "hand / this"):
                low, median, high = column[key]
                assert 0 < low <= median <= high
            if name == "hand":
                assert column["hand / this"] == [1, 1, 1]
    batch_norm, conv, _ = record["cases"]
    assert batch_norm["candidates"]["hand"]["chain_bytes"] > 0
    assert conv["candidates"]["hand"]["chain_bytes"] is None
    assert (batch_norm["of"], conv["of"]) == ("value and gradient", "backward pass")
    (study,) = record["growth"]
    assert (study["case"], study["size"], study["values"]) == ("batch_norm", "n", [4])
    assert len(study["candidates"]["hand"]["µs"]) == 1

    tables = (tmp_path / "new" / "tables.md").read_text(encoding="utf-8")
    assert tables.count("| two-pass |") == 1
    widths = {line.count("|") for line in tables.splitlines() if line.startswith("|")}
    assert len(widths) == 2  # one for each of the two tables

    text = page.read_text(encoding="utf-8")
    assert "old" not in text
    assert "| `softmax_cross_entropy`, indices | n 4, c 8 | optax |" in text
    assert text.startswith("a\n<!-- rules: begin -->\nIn float32 on ")
    assert text.endswith("|\n<!-- rules: end -->\nb\n")


def test_patterns_targets_and_scale(tiny, tmp_path, capsys):
    assert run(tmp_path, "--cases", "*_cross_entropy*", "--targets", "--scale", "0.5") == 0
    (row,) = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))["cases"]
    assert row["sizes"] == {"n": 4, "c": 4}  # never less than 4
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
        "--write --targets": "--write must have all cases",
        "--write --cases lstm": "--write must have all cases",
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
        (compare_rules, "--rows 0", "--rows must be an even number of at least 2, got 0"),
        (compare_rules, "--rows 3", "--rows must be an even number of at least 2, got 3"),
        (compare_rules, "--columns 2", "--columns must be an even number of at least 4, got 2"),
        (compare_rules, "--rounds 0", "--rounds must be a number of at least 1, got 0"),
        (accuracy_table, "--wirte", "Unrecognized options: --wirte"),
        (accuracy_table, "--write", "no README.md has a part <!-- accuracy: begin -->"),
        (compare_rules, "--write", "no README.md has a part <!-- compared: begin -->"),
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


@pytest.mark.parametrize(
    ("time", "temporary", "reached"),
    [
        (0.5, 100_000, True),
        (0.51, 100_000, False),
        (0.5, 104_097, False),
        (0.5, 104_096, True),  # a page is no difference
    ],
)
def test_a_target_is_reached_by_medians(time, temporary, reached):
    case = CASES["batch_norm"]._replace(target=Target(0.5, 0.1))
    columns = {
        "hand": {"temporary_bytes": temporary},
        "autodiff": {"temporary_bytes": 1_000_000, "hand / this": [0.1, time, 0.9]},
    }
    assert bench.judged(case, columns)["reached"] is reached


def test_powers():
    assert bench.power([1, 10, 20], [5, 7, 28]) == pytest.approx(2)
    assert bench.power([10, 20], [0, 28]) is None
    assert bench.power([10], [28]) is None


def of_matrix(f, source="jnp"):
    return Case("f", f, f, source, lambda n, c: (bench.draw(0, n, c),), {"n": 64, "c": 8})


def test_bytes_that_are_kept():
    """What `jax.vjp` keeps, by hand: x² and 3 of cube is an argument times a number."""
    kept = lambda f: bench.kept(bench.candidate(f, (jnp.ones((4, 8), jnp.float32),), None))
    assert kept(lambda x: x + x) == 0
    assert kept(lambda x: x * x) == 0  # x is an argument
    assert kept(jnp.sin) == 4 * 8 * 4  # its cosine
    assert kept(jax.checkpoint(jnp.sin)) == 0


def test_the_chain():
    """Each layer keeps the input of its product, 4 bytes, and what f keeps; a sum is no layer."""
    config = bench.Config()
    slope = lambda f: bench.chain(of_matrix(f), bench.candidate(f, (jnp.ones(()),), None), config)
    assert slope(lambda x: x) == pytest.approx(4, rel=0.02)
    assert slope(jnp.sin) > 7
    assert slope(lambda x: x.sum(-1)) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name != "dropout"])
def test_equals_are_compared(name):
    """The rule and the usual forward have the same values and cotangents, up to float32."""
    case = CASES[name]
    args = case.make(**{k: max(4, n // 64) for k, n in case.sizes.items()})
    results = []
    for f in (case.hand, case.usual):
        run, at, _ = bench.compiled(bench.candidate(f, args, case.wrt), False)
        results.append(jax.tree.leaves(run(*at)))
    hand, usual = results
    assert len(hand) == len(usual)
    for a, b in zip(hand, usual, strict=True):
        if a.dtype == jax.dtypes.float0:
            continue
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max()))


def test_numbers_read_well():
    shown = [bench_report.megabytes(n) for n in (0, 12, 4096, 65_536, 16_777_216)]
    assert shown == ["0.0", "1e-05", "4e-03", "0.1", "16.8"]
