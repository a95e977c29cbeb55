"""Deliberate gradients: they are recognized, and declared by `truth=` or `intent=`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet import check_rule

QUICK = {"under_transformations": False}
X = jnp.asarray(2 * np.random.default_rng(0).standard_normal((3, 4)), jnp.float32)


def ruled(f, bwd):
    """f with the rule bwd(args, dy)."""
    g = jax.custom_vjp(f)
    g.defvjp(lambda *args: (f(*args), args), bwd)
    return g


same = lambda x: 1 * x


def norm_of(dy, largest):
    return dy * jnp.minimum(1, largest / jnp.linalg.norm(dy))


clipped = ruled(same, lambda s, dy: (jnp.clip(dy, -1, 1),))
clipped_to = ruled(lambda x, low, high: 1 * x, lambda s, dy: (jnp.clip(dy, *s[1:]), None, None))

PATTERNS = {
    "truth=lambda x: x": (lambda x: jnp.round(x), lambda s, dy: (dy,)),
    "truth=lambda x: jnp.clip(x, …)": (
        lambda x: jnp.sign(x),
        lambda s, dy: (jnp.where(jnp.abs(s[0]) < 1, dy, 0),),
    ),
    "truth=lambda x: -x": (same, lambda s, dy: (-dy,)),
    "truth=lambda x: -0.3 * x": (same, lambda s, dy: (-0.3 * dy,)),
    "truth=lambda x: 0.5 * x": (same, lambda s, dy: (0.5 * dy,)),
    "intent=lambda x, dy: jnp.clip(dy, -1, 1)": (same, lambda s, dy: (jnp.clip(dy, -1, 1),)),
    "intent=lambda x, dy: jnp.clip(dy, -50, 50)": (same, lambda s, dy: (jnp.clip(dy, -50, 50),)),
    "intent=lambda x, dy: jnp.sign(dy)": (same, lambda s, dy: (jnp.sign(dy),)),
    "intent=lambda x, dy: dy * jnp.minimum(1, 5 / jnp.linalg.norm(dy))": (
        same,
        lambda s, dy: (norm_of(dy, 5),),
    ),
}


@pytest.mark.few
@pytest.mark.parametrize("line", PATTERNS)
def test_the_report_shows_the_line_that_declares_it(line):
    f = ruled(*PATTERNS[line])
    report = check_rule(f, X, **QUICK)
    assert report.verdict == "refuted"
    shown = [text.strip() for text in str(report).split("\n") if "check_rule(" in text]
    assert shown == [f"check_rule(f, x, {line})"]
    if "…" not in line:
        scope = {"check_rule": check_rule, "f": f, "x": X, "jnp": jnp}
        declared = eval(shown[0], scope)
        assert declared.verdict == "proved", declared


def test_a_pattern_beside_other_arguments():
    lines = str(check_rule(clipped_to, X, -0.5, 0.5, **QUICK)).split("\n")
    line = "check_rule(f, x, low, high, intent=lambda x, low, high, dy: (jnp.clip(dy, -0.5, 0.5), "
    assert any(line + "None, None))" in text for text in lines), lines


@pytest.mark.parametrize(
    "wrong",
    [
        lambda s, dy: (2 * s[0] * dy + dy,),
        lambda s, dy: (-2 * s[0] * dy,),
        lambda s, dy: (dy,),
    ],
)
def test_a_mistake_is_no_pattern(wrong):
    report = check_rule(ruled(lambda x: x * x, wrong), X, **QUICK)
    assert report.verdict == "refuted"
    assert "declare" not in str(report)


def test_what_differs_from_the_intent_is_refuted():
    for intent in (
        lambda x, dy: jnp.clip(dy, -1, 2),  # the same for small cotangents
        lambda x, dy: jnp.where(dy == 0, 1, jnp.clip(dy, -1, 1)),
        lambda x, dy: (jnp.clip(dy, -2, 1),),
    ):
        report = check_rule(clipped, X, intent=intent, **QUICK)
        assert [(f.kind, f.argument) for f in report.findings] == [("gradient", "x")], report
        assert "the intent" in report.findings[0].message


@pytest.mark.slow
def test_the_intent_under_transformations():
    report = check_rule(clipped, X, intent=lambda x, dy: jnp.clip(dy, -1, 1))
    assert report.verdict == "proved", report
    intent = lambda x, low, high, dy: (jnp.clip(dy, low, high), None, None)
    report = check_rule(clipped_to, X, -0.5, 0.5, intent=intent)
    assert report.verdict == "proved", report
    folds = ruled(same, lambda s, dy: (jnp.clip(dy, -1, 1) * len(dy) / 3,))
    report = check_rule(folds, X, intent=lambda x, dy: jnp.clip(dy, -1, 1))
    assert [f.kind for f in report.findings] == ["batch size"], report


def test_columns_describe_what_is_declared():
    ste = ruled(lambda x: jnp.round(x), lambda s, dy: (dy,))
    report = check_rule(ste, X, truth=lambda x: x, **QUICK)
    assert report.rows[0].finite < 1e-9  # the differences of round(x) are 0
    assert report.rows[0].ulp_auto == 0
    assert "ulp truth" in str(report)
    report = check_rule(clipped, X, intent=lambda x, dy: jnp.clip(dy, -1, 1), **QUICK)
    assert np.isnan(report.rows[0].finite)
    assert "ulp intent" in str(report)
    assert "not linearity" in report.checked[2]
    assert report.to_dict()["reference"] == "intent"


def test_the_value_is_still_that_of_the_function():
    shifted = jax.custom_vjp(same)
    shifted.defvjp(lambda x: (x + 0.1, None), lambda _, dy: (jnp.sign(dy),))
    report = check_rule(shifted, X, intent=lambda x, dy: jnp.sign(dy), **QUICK)
    assert [f.kind for f in report.findings] == ["value"], report


def test_an_intent_for_trees_integers_and_options():
    def forward(p, i, scale):
        return scale * (p["w"] + p["b"])[i]

    def bwd(scale, saved, dy):
        p, i = saved
        return {"w": jnp.zeros_like(p["w"]).at[i].add(jnp.sign(dy)), "b": None}, None

    f = jax.custom_vjp(forward, nondiff_argnums=(2,))
    f.defvjp(lambda p, i, scale: (forward(p, i, scale), (p, i)), bwd)
    args = {"w": X[0], "b": X[1]}, jnp.array([2, 0]), 3

    def intent(p, i, scale, dy):
        return {"w": jnp.zeros_like(p["w"]).at[i].add(jnp.sign(dy)), "b": None}, None

    assert check_rule(f, *args, intent=intent, **QUICK).ok
    whole = lambda *args: (*intent(*args), None)  # one cotangent for the option, too
    assert check_rule(f, *args, intent=whole, **QUICK).ok


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"intent": 3}, "intent must be a function, got 3"),
        ({"intent": same, "truth": same}, "truth and intent exclude each other"),
        ({"intent": same}, "intent must take the arguments, then dy, it raises TypeError"),
        ({"intent": lambda x, dy: (dy, dy)}, "intent must return 1 cotangents, one for each"),
        ({"intent": lambda x, dy: dy.sum()}, r"a cotangent of shape \(3, 4\) for x, got \(\)"),
        ({"intent": lambda x, dy: {"x": dy}}, "intent must "),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises((TypeError, ValueError), match=f"^check_rule: .*{message}") as e:
        check_rule(clipped, X, **options)
    assert "\n" not in str(e.value)
