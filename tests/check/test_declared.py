"""Gradients that differ from the derivative on purpose: recognized, declared, and then proved."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from funcnet import check_rule

QUICK = {"under_transformations": False}
X = jnp.asarray([0.3, -1.2, 2.6, 0.7], jnp.float32)


def ruled(f, bwd):
    f = jax.custom_vjp(f)
    f.defvjp(lambda *args: (f(*args), args), bwd)
    return f


def by_norm(dy, most):
    return dy * jnp.minimum(1, most / jnp.linalg.norm(dy))


identity = lambda x: x
shifted = lambda x, w: x + 0 * w.sum()
rounded = ruled(lambda x: jnp.round(x), lambda _, dy: (dy,))

DELIBERATE = {
    "straight-through": (
        rounded,
        (X,),
        {"truth": lambda x: x},
        "check_rule(f, x, truth=lambda x: x)",
    ),
    "gradient reversal": (
        ruled(identity, lambda _, dy: (-0.5 * dy,)),
        (X,),
        {"truth": lambda x: -0.5 * x},
        "check_rule(f, x, truth=lambda x: -0.5 * x)",
    ),
    "dy clipped to [-0.1, 0.2]": (
        ruled(identity, lambda _, dy: (jnp.clip(dy, -0.1, 0.2),)),
        (X,),
        {"intent": lambda x, dy: jnp.clip(dy, -0.1, 0.2)},
        "check_rule(f, x, intent=lambda x, dy: jnp.clip(dy, -0.1, 0.2))",
    ),
    "dy with its norm clipped to 0.5": (
        ruled(identity, lambda _, dy: (by_norm(dy, 0.5),)),
        (X,),
        {"intent": lambda x, dy: (by_norm(dy, 0.5),)},
        "check_rule(f, x, intent=lambda x, dy: dy * jnp.minimum(1, 0.5 / jnp.linalg.norm(dy)))",
    ),
    "the sign of dy": (
        ruled(shifted, lambda _, dy: (jnp.sign(dy), None)),
        (X, X),
        {"intent": lambda x, w, dy: (jnp.sign(dy), None)},
        "check_rule(f, x, w, intent=lambda x, w, dy: (jnp.sign(dy), None))",
    ),
}


@pytest.mark.third
@pytest.mark.parametrize("words", DELIBERATE)
def test_a_deliberate_gradient_is_recognized_and_declared(words):
    f, args, declared, line = DELIBERATE[words]
    report = check_rule(f, *args, **QUICK)
    assert report.verdict == "refuted"
    (message,) = [found.message for found in report.findings if "deliberate" in found.message]
    assert words in message
    assert f"      {line}\n" in str(report)
    assert eval(line, {"check_rule": check_rule, "f": f, "x": X, "w": X, "jnp": jnp}), line
    report = check_rule(f, *args, **declared)
    assert report.verdict == "proved", report


def test_an_error_is_not_called_deliberate():
    report = check_rule(ruled(lambda x: x * x, lambda s, dy: (s[0] * dy,)), X, **QUICK)
    assert "deliberate" not in str(report)


def test_the_columns_describe_what_is_declared():
    report = check_rule(rounded, X, truth=lambda x: x, **QUICK)
    (row,) = report.rows
    assert row.finite < 1e-9  # of the truth; of the plain forward it would be 1
    assert row.ulp_auto == 0
    assert "ulp truth" in str(report)
    assert report.to_dict()["against"] == "the truth"
    report = check_rule(rounded, X, intent=lambda x, dy: dy, **QUICK)
    assert "ulp intent" in str(report)
    assert any("the intent (not linearity)" in step for step in report.checked)


clip = lambda dy: jnp.clip(dy, -1, 1)


def of_tree(saved, dy):
    p, i = saved
    return {"w": clip(dy[0]), "b": jnp.zeros_like(p["b"]).at[i].add(dy[1])}, None


tree = ruled(lambda p, i: (p["w"] * 1, p["b"][i], i), of_tree)
TREE = {"w": X, "b": X + 1}, jnp.array([2, 0])
WRONG = {
    "another bound": (lambda _, dy: (jnp.clip(dy, -2, 1),), "gradient"),
    "right for small dy alone": (lambda _, dy: (jnp.clip(dy, -9, 9),), "gradient"),
    "another dtype": (lambda _, dy: (clip(dy).astype(jnp.float16),), "dtype"),
    "sums over the batch": (lambda _, dy: (clip(over_batch(dy)),), "vmap"),
}


@jax.custom_batching.custom_vmap
def over_batch(dy):
    return dy


@over_batch.def_vmap
def _(_, batched, dy):
    return jnp.broadcast_to(dy.sum(0), dy.shape), batched[0]


def test_an_intent_of_trees():
    assert check_rule(tree, *TREE, intent=lambda p, i, dy: of_tree((p, i), dy), **QUICK).ok
    report = check_rule(tree, *TREE, intent=lambda p, i, dy: ({"w": clip(dy[0]), "b": None}, None))
    assert [(f.kind, f.argument) for f in report.findings] == [("gradient", "p['b']")]


@pytest.mark.parametrize("case", WRONG)
def test_a_rule_that_differs_from_its_intent(case):
    bwd, kind = WRONG[case]
    report = check_rule(ruled(identity, bwd), X, intent=lambda x, dy: clip(dy))
    assert report.findings[0].kind == kind, report


def test_the_value_is_compared_with_an_intent_too():
    f = jax.custom_vjp(identity)
    f.defvjp(lambda x: (2 * x, None), lambda _, dy: (clip(dy),))
    report = check_rule(f, X, intent=lambda x, dy: clip(dy), **QUICK)
    assert [found.kind for found in report.findings] == ["value"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"intent": 3}, "check_rule: intent must be a function, got 3"),
        ({"intent": clip, "truth": clip}, "truth and intent exclude each other, got both"),
        ({"intent": lambda x: x}, "intent must take these .* cotangent of the output, it raises"),
        ({"intent": lambda x, dy: dy.sum()}, r"must return the shape \[4\] for x, got \[\]"),
        ({"intent": lambda x, dy: {"x": dy}}, "must return the structure of x for it"),
    ],
)
def test_an_intent_of_another_kind(options, message):
    with pytest.raises((TypeError, ValueError), match=message) as e:
        check_rule(rounded, X, **options)
    assert "\n" not in str(e.value)


def test_an_intent_of_too_few_cotangents():
    f = ruled(lambda x, w: x * w, lambda s, dy: (dy, dy))
    with pytest.raises(ValueError, match="must return a tuple of 2 cotangents, one for each"):
        check_rule(f, X, X, intent=lambda x, w, dy: dy)


def test_a_loop_with_an_intent():
    f = ruled(
        lambda x: lax.while_loop(lambda y: y.max() > 1, lambda y: y / 2, x),
        lambda _, dy: (clip(dy),),
    )
    assert check_rule(f, X, intent=lambda x, dy: clip(dy), **QUICK).ok


def test_a_truth_is_called_like_the_function():
    """A Python float that the rule needs as a number is a static argument of the truth, too."""

    def scaled(x, s):
        return ruled(lambda x: x, lambda _, dy: (s * dy,))(x) if s else x

    report = check_rule(scaled, X, 0.5, truth=lambda x, s: s * x, **QUICK)
    assert report.ok, report


def test_a_surrogate_gradient_comes_with_its_declaration():
    smooth = lambda x: jax.nn.sigmoid(4 * x)
    f = ruled(lambda x: (x > 0).astype(x.dtype), lambda s, dy: jax.vjp(smooth, *s)[1](dy))
    report = check_rule(f, X, **QUICK)
    assert "check_rule(f, x, truth=smooth)" in report.findings[0].message
    assert check_rule(f, X, truth=smooth, **QUICK).ok


def test_a_truth_may_have_a_wider_output():
    """In float64 the truth returns float64, and a function that fixes its dtype does not."""
    f = ruled(
        lambda x: jnp.round(x).astype(jnp.float32), lambda saved, dy: (dy.astype(saved[0].dtype),)
    )
    report = check_rule(f, X, truth=lambda x: x, **QUICK)
    assert report.ok, report
    assert not report.warnings, report
