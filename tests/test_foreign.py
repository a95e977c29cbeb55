"""scripts/check_foreign.py: rows of a table whose verdicts are as expected, or not."""

import json
import re

import check_foreign
import jax
import jax.numpy as jnp
import pytest
import readme
from differences import off_by
from foreign_rules import rule, rules

SINC = ("jax", "jax.numpy:sinc", jnp.float32(0.5))


def halved(f):
    return lambda x: f(x) / 2


@pytest.mark.third
@pytest.mark.parametrize(
    ("entry", "verdict", "status"),
    [
        (rule(*SINC), "proved", 0),
        (rule(*SINC, truth=halved(jnp.sinc), wrong="gradient of x"), "refuted", 0),
        (rule(*SINC, wrong="gradient of x"), r"\*\*proved\*\*, unexpected", 1),
        (rule(*SINC, truth=halved(jnp.sinc)), r"\*\*refuted\*\*, unexpected", 1),
        (rule(*SINC, truth=halved(jnp.sinc), wrong="kink of x"), r"\*\*refuted\*\*, unex", 1),
        (
            rule(*SINC, truth=5),
            r"\*\*error\*\*, unexpected \| TypeError: check_rule: truth must",
            1,
        ),
        (rule(*SINC[:2], jnp.float32("nan"), is_undecided=True), "undecided", 0),
        (rule(*SINC[:2], jnp.float32("nan")), r"\*\*undecided\*\*, unexpected", 1),
        (rule(*SINC, is_undecided=True), r"\*\*proved\*\*, unexpected", 1),
        (rule("no-such-package", "no:f", why="x"), "not installed", 0),
    ],
)
def test_the_exit_status_tells_what_is_unexpected(entry, verdict, status, monkeypatch, capsys):
    monkeypatch.setattr(check_foreign, "rules", lambda: [entry])
    assert check_foreign.main([]) == status
    row = capsys.readouterr().out.splitlines()[2]
    assert re.search(rf"\| {verdict}", row)
    assert row.count("|") == 8


@jax.custom_vjp
def product(x, w, labels):
    return x @ w, labels


product.defvjp(
    lambda x, w, labels: (product(x, w, labels), (x, w)),
    lambda saved, dy: (dy[0] @ saved[1].T, 1.1 * saved[0].T @ dy[0], None),
)


def stopped(x):
    return jax.lax.stop_gradient(jnp.sin(x))


class Broken(jax.custom_vjp):
    """A function whose gradient is an error of JAX."""


broken = Broken(jnp.sin)
broken.defvjp(lambda x: (jnp.sin(x), ()), lambda _, dy: (dy[None],))
X, W = jnp.ones((2, 3)), jnp.asarray([[1.0, 2], [3, 4], [5, 6]])


@pytest.mark.parametrize(
    ("f", "args", "meant", "error"),
    [
        (product, (X, W, jnp.arange(3)), {}, 0.1),
        (lambda x, w, labels: product(x, w, labels)[0], (X, jnp.eye(3), 2.0), {}, 0.1),
        (jnp.sin, (jnp.float32(0.5),), {}, 0),
        (jnp.sin, (jnp.float32(0.5),), {"truth": lambda x: 2 * jnp.sin(x)}, 0.5),
        (stopped, (jnp.float32(0.5),), {}, 1),
        (jnp.sum, (X,), {"axis": 1}, 0),
        (jnp.sum, (X, 0), {"intent": lambda x, _, dy: (0 * x + 2 * dy, None)}, 0.5),
        (jnp.sum, (X,), {"intent": lambda x, dy: 0 * x + dy}, 0),
        (jnp.sin, (jnp.bfloat16(0.5),), {}, 0),
        (broken, (jnp.float32(0.5),), {}, None),
    ],
)
def test_how_far_a_gradient_is_from_differences(f, args, meant, error):
    found = off_by(f, args, **meant)
    assert found is None if error is None else abs(found - error) < 1e-3


def test_the_table_and_the_record(monkeypatch, tmp_path, capsys):
    page, record = tmp_path / "README.md", tmp_path / "found.json"
    page.write_text("a\n<!-- foreign: begin -->\nold\n<!-- foreign: end -->\nb\n")
    monkeypatch.setattr(readme, "PAGES", [page])
    monkeypatch.setattr(check_foreign, "rules", lambda: [rule(*SINC, case="at ½", why="exact")])
    assert check_foreign.main(["--write", "--json", str(record)]) == 0
    shown = capsys.readouterr().out
    lines = page.read_text().splitlines()
    assert lines[:2] + lines[-2:] == ["a", "<!-- foreign: begin -->", "<!-- foreign: end -->", "b"]
    assert re.match(r"On .+ cores\), cpu, jax .+, Python .+\. 1 proved\.$", lines[2])
    assert re.match(
        r"\| jax \S+ \| `jax.numpy.sinc`, at ½ \| autodiff \| proved \| exact \| ", lines[-3]
    )
    assert lines[-3] in shown
    row = json.loads(record.read_text())["rows"][0]
    assert row["verdict"] == "proved"
    assert row["off_by"] < 1e-3


def test_a_part_of_the_table_is_not_written(capsys):
    assert check_foreign.main(["--write", "--only", "jax"]) == 2
    assert "--write needs all rows" in capsys.readouterr().err


def test_every_row_has_a_name_of_its_own_and_a_reason_if_it_is_not_proved():
    found = rules()
    assert len({entry.name for entry in found}) == len(found)
    assert all(entry.why for entry in found if entry.expected_verdict != "proved")
