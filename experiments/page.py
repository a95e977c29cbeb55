"""The HTML page with all experiments: a single file, readable on phones and on large screens."""

import base64
import html
import re
from collections.abc import Iterable
from typing import NamedTuple

from experiments.claim import Claim


class Entry(NamedTuple):
    """The results of one experiment."""

    name: str
    docstring: str
    png: bytes
    claims: list[Claim]
    notes: list[str]
    config: dict[str, object]
    seconds: float


STYLE = """
:root { color-scheme: light; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 0 auto; padding: 0 1rem 4rem; color: #222; background: #fff; }
h1 { line-height: 1.2; } h2 { margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1.5rem; }
img { max-width: 100%; height: auto; }
nav ol { columns: 18rem; column-gap: 2.5rem; padding-left: 1.5rem; }
nav li { break-inside: avoid; }
ul.claims { list-style: none; padding: 0; }
ul.claims li { padding: .3rem 0 .3rem 1.8rem; text-indent: -1.8rem; }
.true::before { content: "✓"; color: #006d4c; font-weight: bold; padding-right: .8rem; }
.false::before { content: "✗"; color: #b03a00; font-weight: bold; padding-right: .8rem; }
.numbers { color: #555; font-size: .85rem; display: block; text-indent: 0; }
b { color: #0b4f7d; } table { border-collapse: collapse; font-size: .85rem; }
td { border-top: 1px solid #ddd; padding: .15rem .8rem .15rem 0; overflow-wrap: anywhere; }
summary { cursor: pointer; } .quiet { color: #555; font-size: .9rem; }
"""


def page(entries: Iterable[Entry], machine: str) -> str:
    """The page as HTML; it needs no other file and no network.

    Args:
      entries: The results of the experiments.
      machine: A description of the machine that they ran on.
    """
    entries = list(entries)
    total = sum(entry.seconds for entry in entries)
    claims = [claim for entry in entries for claim in entry.claims]
    held = sum(claim.holds for claim in claims)
    links = "".join(
        f'<li><a href="#{entry.name}">{_text(title(entry.docstring))}</a></li>' for entry in entries
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>funcnet: experiments</title><style>{STYLE}</style></head><body>"
        "<h1>The experiments of <i>Deep Learning from Scratch</i>, with hand-written rules</h1>"
        f'<p class="quiet">{held} of {len(claims)} claims hold. {total:.0f} s on {_text(machine)}. '
        "Each experiment is one file: <code>python -m experiments NAME</code>.</p>"
        f"<nav><ol>{links}</ol></nav>{''.join(map(_section, entries))}</body></html>"
    )


def _section(entry: Entry) -> str:
    _, *paragraphs = entry.docstring.strip().split("\n\n")
    text = "".join(f"<p>{_paragraph(p)}</p>" for p in paragraphs)
    claims = "".join(
        f'<li class="{str(c.holds).lower()}">{_text(c.statement)}<span class="numbers">'
        f"{_text(', '.join(f'{name} {value:.4g}' for name, value in c.numbers.items()))}"
        "</span></li>"
        for c in entry.claims
    )
    notes = "".join(f"<li>{_text(note)}</li>" for note in entry.notes)
    rows = "".join(
        f"<tr><td><code>--{_text(name.replace('_', '-'))}</code></td><td>{_text(value)}</td></tr>"
        for name, value in entry.config.items()
    )
    image = base64.b64encode(entry.png).decode()
    question = _text(title(entry.docstring))
    return (
        f'<section id="{entry.name}"><h2>{question}</h2>{text}'
        f'<img alt="Figure: {question}" src="data:image/png;base64,{image}">'
        f'<ul class="claims">{claims}</ul>{f"<ul>{notes}</ul>" if notes else ""}'
        f'<p class="quiet"><code>python -m experiments {entry.name}</code>, '
        f"{entry.seconds:.1f} s on this machine.</p>"
        f"<details><summary>Options</summary><table>{rows}</table></details></section>"
    )


def title(docstring: str) -> str:
    """The question of an experiment: the first line of its docstring."""
    return docstring.strip().partition("\n")[0]


def _paragraph(text: str) -> str:
    """A docstring paragraph as HTML: its leading word (`Question.`, ...) bold, code marked up."""
    text = re.sub(r"^(Question|Method|Expect|Source|Run time)\.", r"<b>\1.</b>", _text(text))
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text)


def _text(value: object) -> str:
    return html.escape(str(value))
