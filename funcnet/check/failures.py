"""Turn an exception that a rule raised into a finding."""

import re
import textwrap
from collections.abc import Sequence

import jax

from funcnet.check.report import Finding

TRACED = (
    jax.errors.UnexpectedTracerError,
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
)


def line(error: BaseException) -> str:
    """The type of an exception and the first sentence of its message, in one line.

    For an exception in a callback, whose message is a traceback, that is the last one in it.
    """
    text = str(error)
    if "Traceback (most recent call last)" in text:
        raised = re.findall(r"^(?:\w+\.)*(\w+: .*)", text, re.MULTILINE)
        text = raised[-1] if raised else text
    else:
        text = f"{type(error).__name__}: {text}"
    end = r"(?<=[^.])(?<!i\.e)(?<!e\.g)\. |; see | See https| -----| The error occurred while"
    text = re.split(end, " ".join(text.split()))[0]
    return textwrap.shorten(text, 300, placeholder=" …").rstrip(": ")


def classify(error: BaseException, kind: str, names: Sequence[str], label: str = "") -> Finding:
    """The exception as a finding of this kind, or of a more specific kind if the message tells."""
    text = str(error)
    if isinstance(error, jax.errors.UnexpectedTracerError) or "closed-over value" in text:
        what = (
            "the rule uses a traced value that is neither an argument nor a residual: pass it as "
            "one of these"
        )
        return Finding(
            "tracer",
            _argument(text, names),
            f"{what} ({label or 'raised'}: {line(error)})",
            float("nan"),
        )
    if kind == "error":
        if re.search(r"structure|pytree|tuple of length|cotangents, one for each", text):
            kind = "structure"
        elif re.search(r"cotangent of the type of|bwd rule produced an output of", text):
            shapes = re.findall(r"type \w+\[([\d,]*)\]", text)
            kind = "dtype" if len(set(shapes)) == 1 and shapes else "shape"
            kind = "sharding" if "manual axis types" in text else kind
        elif "fwd must return the output of the primal" in text:
            kind = "value"
    start = f"{label}: the rule raises " if label else "the rule raises "
    if isinstance(error, TRACED):
        start += "because it needs the value of a traced array: "
    return Finding(kind, _argument(text, names), start + line(error), float("nan"))


def _argument(text: str, names: Sequence[str]) -> str:
    """The name in `names` that a message mentions, or an empty string."""
    found = re.search(r"cotangent of (?:the type of )?(\S+?)[, ]", text)
    if found and found[1] in names:
        return found[1]
    found = re.search(r"at output\[(\d+)\]((?:\[[^\]]*\])*)", text)
    if found and int(found[1]) < len(names):
        roots = list(dict.fromkeys(re.split(r"[\[.]", n)[0] for n in names))
        if int(found[1]) < len(roots) and roots[int(found[1])] + found[2] in names:
            return roots[int(found[1])] + found[2]
    return ""
