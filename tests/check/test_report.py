"""The report as text, HTML and JSON, and the progress line."""

import io
import json
import math
import sys

import jax
import pytest

from funcnet.check import Culprit, Finding, Report
from funcnet.check.failures import line
from funcnet.check.report import Progress, Row, number

REPORT = Report(
    "layer_norm",
    (
        Row("x", "float32[8,16]", 1e-3, 2e-12, 0.51, 0.62, "ok"),
        Row(
            "params['a very long name of a layer']['w']",
            "float32[16]",
            2e9,
            math.nan,
            3,
            1,
            "gradient",
        ),
    ),
    (
        Finding(
            "gradient", "params['w']", "at [3] it is 1, must be <2> & more. " + 9 * "word " * 9, 2e9
        ),
    ),
    ("a note",),
    ("eager", "algebra"),
    1.234,
    (Culprit("layer_norm", "model.py:12", "scale", 0.25),),
)


def test_text_fits_the_terminal():
    for color in (False, True):
        text = REPORT.render(color=color)
        plain = text.replace("\033[31m", "").replace("\033[32m", "").replace("\033[33m", "")
        lines = plain.replace("\033[0m", "").split("\n")
        assert max(map(len, lines)) <= 100
        assert ("\033[" in text) == color
        assert lines[0] == "layer_norm: refuted (1.2 s)"
        assert any("culprit: layer_norm at model.py:12: scale" in line for line in lines)
    assert str(REPORT) == repr(REPORT) == REPORT.render(color=False)


def test_columns_are_aligned():
    header, *rows = [line for line in str(REPORT).split("\n") if line.count("  ") > 3]
    end = header.index("error/rounding") + len("error/rounding")
    assert all(row[end - 1] != " " and row[end] == " " for row in rows)


def test_json_is_complete_and_valid():
    again = json.loads(REPORT.to_json())
    assert again == REPORT.to_dict()
    assert again["ok"] is False
    assert again["findings"][0]["argument"] == "params['w']"
    assert again["culprits"][0] == {
        "rule": "layer_norm", "where": "model.py:12", "argument": "scale", "error": 0.25,
    }  # fmt: skip
    assert again["rows"][1]["finite"] is None


def test_html_escapes():
    text = REPORT._repr_html_()
    assert "must be &lt;2&gt; &amp; more" in text
    assert text.count("<tr>") == 3


def test_truth_value_is_the_verdict():
    assert not REPORT
    assert REPORT._replace(findings=())


def test_numbers():
    shown = {0: "0", 1: "1", 0.5: "0.5", 123.4: "123", 1e-7: "1.0e-07", 5.6e7: "5.6e+07"}
    assert {x: number(x) for x in shown} == shown
    assert number(math.nan) == "–"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_after_two_seconds_on_a_terminal(monkeypatch):
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        progress = Progress("softmax")
        progress("form")
        assert stream.getvalue() == ""
        progress.start -= 2.5
        progress("vmap")
        assert ("softmax: vmap" in stream.getvalue()) == shown
        progress.end()
        assert stream.getvalue().endswith("\r\033[K") == shown


def test_a_finding_without_an_argument_prints_none():
    found = Finding("scan", "", "in jax.lax.scan: wrong", 2)
    assert str(found) == "scan: in jax.lax.scan: wrong"
    report = REPORT._replace(findings=(found,), culprits=())
    assert "\n  scan: in jax.lax.scan: wrong\n" in str(report)
    assert "<b>scan</b> in jax.lax.scan: wrong" in report._repr_html_()


def test_the_line_of_an_exception():
    def callback(_):
        raise RuntimeError("too many steps\nof the solver. And so on")

    f = jax.jit(lambda x: jax.pure_callback(callback, jax.ShapeDtypeStruct((), float), x))
    with pytest.raises(jax.errors.JaxRuntimeError) as raised:
        f(1.0).block_until_ready()
    assert line(raised.value) == "RuntimeError: too many steps"
    assert line(ValueError("word " * 100)).endswith("word …")
    assert line(ValueError()) == "ValueError"
