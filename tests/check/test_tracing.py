"""Rules that cannot be traced, collectives, and what is no fault of a rule; names of trees."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from funcnet import check_model, check_rule, ops

QUICK: Any = {"under_transformations": False}
X = jnp.asarray([0.5, 1.0, 2.0], jnp.float32)


def ruled(f, bwd):
    """f with the rule bwd(args, dy)."""
    g = jax.custom_vjp(f)
    g.defvjp(lambda *args: (f(*args), args), bwd)
    return g


square = ruled(lambda x: x * x, lambda s, dy: (2 * s[0] * dy,))
mean = ruled(lambda x: lax.pmean(x, "i"), lambda s, dy: (lax.pmean(dy, "i"),))


def in_numpy(x):
    return jnp.asarray(np.sin(np.asarray(x)))


def in_float32(x):
    return jnp.asarray(np.sin(np.asarray(x, np.float32)))


def only_bwd(factor):
    f = jax.custom_vjp(lambda x: 2 * x)
    f.defvjp(lambda x: (2 * x, None), lambda _, dy: (jnp.asarray(factor * np.asarray(dy)),))
    return f


@pytest.mark.parametrize(
    ("f", "kinds"),
    [
        (ruled(in_numpy, lambda s, dy: (jnp.cos(s[0]) * dy,)), ["jit"]),
        (ruled(in_numpy, lambda s, dy: (jnp.sin(s[0]) * dy,)), ["jit", "gradient"]),
        (lambda x: ruled(in_numpy, lambda s, dy: (jnp.sin(s[0]) * dy,))(x), ["jit", "gradient"]),
        (ruled(in_float32, lambda s, dy: (jnp.cos(s[0]) * dy,)), ["jit"]),
        (ruled(in_float32, lambda s, dy: (jnp.sin(s[0]) * dy,)), ["jit", "gradient"]),
        (only_bwd(2), ["jit"]),
        (only_bwd(2.5), ["jit", "gradient"]),
    ],
)
def test_a_rule_that_runs_only_eagerly_is_compared_eagerly(f, kinds):
    report = check_rule(f, X, **QUICK)
    assert [found.kind for found in report.findings] == kinds, report
    assert "needs the value of a traced array" in report.findings[0].message
    assert "  jit: under jax.jit: " in str(report)  # an empty argument is not printed
    assert report.rows[0].finite < 1e-3 or "gradient" in kinds


def test_a_function_that_cannot_be_traced_is_one_line():
    with pytest.raises(ValueError, match=r"^check_rule: <lambda> cannot be traced: Tracer.*\]$"):
        check_rule(lambda x: square(x) if x[0] > 0 else x, X)


def test_with_jit_disabled():
    with jax.disable_jit():
        assert check_rule(square, X, **QUICK).verdict == "proved"
        assert check_model(lambda x: square(x).sum(), X).verdict == "proved"


def test_an_axis_that_jax_does_not_bind_in_bwd():
    report = check_rule(jax.vmap(mean, axis_name="i"), X)
    assert report.verdict == "undecided", report
    assert "the axis 'i', which JAX does not bind" in report.undecided[0]


def test_an_axis_of_shard_map():
    mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))
    mapped = lambda check: jax.shard_map(
        mean, mesh=mesh, in_specs=P("i"), out_specs=P("i"), check_vma=check
    )
    assert check_rule(mapped(False), X, **QUICK).verdict == "proved"
    assert [f.kind for f in check_rule(mapped(True), X, **QUICK).findings] == ["sharding"]


def test_an_unknown_option_is_one_line():
    with pytest.raises(TypeError, match=r"^check_rule: .*: got an unexpected keyword .*'rounds'$"):
        check_rule(square, X, rounds=0)


@pytest.mark.slow
def test_a_broadcast_argument_has_a_note_of_one_line():
    f = ruled(lambda x, b: x + b, lambda s, dy: (dy, dy.sum(0)))
    report = check_rule(f, jnp.ones((8, 3), jnp.float32), X)
    assert report.verdict == "proved", report
    assert sum("check_vma" in line for line in str(report).split("\n")) == 1
    assert len(report.warnings) == 1
    assert len(report.warnings[0]) < 93


class Line:
    """A pytree whose class is registered without the names of its children."""

    def __init__(self, slope, start):
        self.slope, self.start = slope, start


jax.tree_util.register_pytree_node(
    Line, lambda line: ((line.slope, line.start), None), lambda _, children: Line(*children)
)


def test_trees_are_named_as_users_write_them():
    f = ruled(
        lambda p, x: p["a"][0].slope * x + p["a"][0].start,
        lambda s, dy: ({"a": [Line(s[1] * dy, 2 * dy)]}, s[0]["a"][0].slope * dy),
    )
    report = check_rule(f, {"a": [Line(X, X)]}, X, **QUICK)  # one array with two names
    assert [row.argument for row in report.rows] == ["p['a'][0].slope", "p['a'][0].start", "x"]
    assert [found.argument for found in report.findings] == ["p['a'][0].start"]


def test_checked_lists_what_was_tried():
    report = check_rule(ops.tanh, X, **QUICK)
    for what in ("form", "value", "cotangents", "linearity", "finite differences"):
        assert what in ", ".join(report.checked)
    assert "vmap" not in ", ".join(report.checked)
