"""Tests of the `rule` decorator: signature, autodiff switch, registry, one-line errors."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet import RULES, autodiff, ops
from funcnet.rule import Ruled, rule


@pytest.fixture
def scaled():
    """A rule for y = k (p["w"] x + p["n"]), where p has a float leaf and an integer leaf."""

    @rule
    def scaled(p, x, *, k=2.0):
        """Scales."""
        return k * (p["w"] * x + p["n"].astype(x.dtype))

    scaled.defvjp(scaled_fwd, scaled_bwd)
    return scaled


def scaled_fwd(p, x, *, k):
    return k * (p["w"] * x + p["n"].astype(x.dtype)), (p["w"], x)


def scaled_bwd(residuals, dy, *, k):
    w, x = residuals
    return {"w": k * x * dy, "n": None}, k * w * dy


P = {"w": np.float32(3.0), "n": np.int32(1)}
X = np.float32(5.0)


def one_line(excinfo, *parts):
    message = str(excinfo.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_mixed_tree_and_none_for_integer_leaves(scaled):
    dp, dx = jax.grad(scaled, (0, 1), allow_int=True)(P, X)
    assert (dp["w"], dx) == (10.0, 6.0)
    assert dp["n"].dtype == jax.dtypes.float0


def test_static_options_reach_all_three(scaled):
    assert scaled(P, X, k=4.0) == 64.0
    assert jax.grad(scaled, 1)(P, X, k=4.0) == 12.0


def test_arguments_by_name_and_defaults(scaled):
    assert scaled(x=X, p=P) == scaled(P, X) == 32.0


def test_looks_like_the_function_it_decorates(scaled):
    assert scaled.__name__ == "scaled"
    assert scaled.__doc__ == "Scales."
    assert str(inspect.signature(scaled)) == "(p, x, *, k=2.0)"
    assert inspect.isfunction(scaled)
    assert isinstance(scaled, Ruled)
    assert not isinstance(scaled.__wrapped__, Ruled)
    assert "custom_vjp" in str(jax.make_jaxpr(scaled)(P, X))
    assert "custom_vjp" not in str(jax.make_jaxpr(scaled.__wrapped__)(P, X))
    assert "fwd=scaled_fwd" in str(jax.make_jaxpr(scaled)(P, X))


def test_star_arguments():
    @rule
    def total(*xs):
        return sum(xs)

    total.defvjp(lambda *xs: (sum(xs), len(xs)), lambda n, dy: (dy,) * n)
    assert jax.grad(total, (0, 1, 2))(1.0, 2.0, 3.0) == (1.0, 1.0, 1.0)
    total.defvjp(lambda *xs: (sum(xs), len(xs)), lambda n, dy: (dy, None, dy))
    with pytest.raises(TypeError) as e:
        jax.grad(total)(1.0, 2.0, 3.0)
    one_line(e, "total: bwd", "xs[1]", "None")


def test_registry(scaled):
    assert RULES["scaled"] == ("scaled", scaled.__wrapped__, scaled_fwd, scaled_bwd)
    scaled.defvjp(scaled_fwd, scaled_bwd)  # redefined, as when a notebook cell runs twice


def test_a_name_belongs_to_one_module():
    @rule
    def relu(x):
        return x

    with pytest.raises(ValueError) as e:
        relu.defvjp(lambda x: (x, None), lambda _, dy: (dy,))
    one_line(e, "relu", "funcnet.ops.activations")
    assert RULES["relu"].primal is ops.relu.__wrapped__


def test_call_before_defvjp():
    @rule
    def unfinished(x):
        return x

    with pytest.raises(RuntimeError) as e:
        unfinished(1.0)
    one_line(e, "unfinished", "defvjp(fwd, bwd)")
    assert autodiff(unfinished)(1.0) == 1.0


@pytest.mark.parametrize("option", [lambda k: k, lambda k: (1, k)], ids=["array", "tuple"])
def test_traced_option(scaled, option):
    with pytest.raises(TypeError) as e:
        jax.jit(lambda k: scaled(P, X, k=option(k)))(2.0)
    one_line(e)
    assert str(e.value) == "scaled: keyword argument 'k' is static, so it cannot be traced"


def test_options_that_are_equal_but_of_other_types():
    @rule
    def kind(x, *, k):
        return x * (1.0 if isinstance(k, int) else 2.0)

    kind.defvjp(lambda x, *, k: (kind.__wrapped__(x, k=k), None), lambda _, dy, *, k: (dy * k,))
    assert [float(kind(1.0, k=k)) for k in (1, 1.0, [1])] == [1.0, 2.0, 2.0]


@pytest.mark.parametrize("kwargs", [{}, {"x": X, "y": 1}, {"x": X, "kk": 1.0}])
def test_arguments_that_do_not_fit(scaled, kwargs):
    with pytest.raises(TypeError) as e:
        scaled(P, **kwargs)
    one_line(e, "scaled: ")


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize(
    ("out", "parts"),
    [
        (lambda y: y[None], ("float32[]", "float32[1]")),
        (lambda y: y.astype(jnp.bfloat16), ("float32[]", "bfloat16[]")),
        (lambda y: (y, y), ("float32[]", "(float32[], float32[])")),
    ],
    ids=["shape", "dtype", "structure"],
)
def test_fwd_must_return_what_the_primal_does(scaled, out, parts, wrap):
    scaled.defvjp(lambda p, x, *, k: (out(scaled_fwd(p, x, k=k)[0]), (p["w"], x)), scaled_bwd)
    with pytest.raises(TypeError) as e:
        wrap(jax.grad(scaled, 1))(P, X)
    one_line(e, "scaled: fwd must return", *parts)


def test_fwd_must_return_a_pair(scaled):
    scaled.defvjp(lambda p, x, *, k: scaled_fwd(p, x, k=k)[0], scaled_bwd)
    with pytest.raises(TypeError) as e:
        jax.grad(scaled, 1)(P, X)
    one_line(e, "scaled: fwd must return (out, residuals)")


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize(
    ("bwd", "parts"),
    [
        (lambda dy: dy, ("tuple of 2 cotangents", "float32[]")),
        (lambda dy: (dy,), ("tuple of 2 cotangents",)),
        (lambda dy: [{"w": dy, "n": None}, dy], ("tuple of 2 cotangents",)),
        (lambda dy: (None, dy), ("p['w']", "float32[]", "None")),
        (lambda dy: ({"w": None, "n": None}, dy), ("p['w']", "None")),
        (lambda dy: ({"w": dy, "n": None}, None), ("x", "float32[]", "None")),
        (lambda dy: ({"w": dy}, dy), ("structure", "p", "{'w': float32[]}")),
        (lambda dy: ({"w": dy, "n": None}, (dy, dy)), ("structure", "x", "(float32[], float32[])")),
        (lambda dy: ({"w": dy[None], "n": None}, dy), ("p['w']", "float32[1]")),
        (lambda dy: ({"w": dy, "n": None}, dy.astype(jnp.bfloat16)), ("x", "bfloat16[]")),
    ],
)
def test_bwd_must_return_cotangents_of_the_arguments(scaled, bwd, parts, wrap):
    scaled.defvjp(scaled_fwd, lambda residuals, dy, *, k: bwd(dy))
    with pytest.raises(TypeError) as e:
        wrap(lambda p, x: jax.vjp(scaled, p, x)[1](np.float32(1))[1])(P, X)
    one_line(e, "scaled: bwd must return", *parts)


@pytest.mark.parametrize("of_n", [np.zeros((), jax.dtypes.float0), np.float32(1), np.int32(1)])
def test_what_stands_for_an_integer_is_dropped(scaled, of_n):
    """A cotangent that bwd returns for an integer is dropped, so bwd need not check dtypes."""
    scaled.defvjp(scaled_fwd, lambda r, dy, *, k: ({"w": dy, "n": of_n}, dy))
    assert jax.grad(scaled, 1)(P, X) == 1.0


def test_calls_of_the_same_types_are_traced_once():
    """This holds outside and inside of other functions, and for gradients."""
    traced = []

    @rule
    def counted(x, *, k=1):
        traced.append(k)
        return k * x

    counted.defvjp(lambda x, *, k: (k * x, None), lambda _, dy, *, k: (k * dy,))
    for _ in range(3):
        counted(X, k=2)
        jax.make_jaxpr(lambda x: counted(counted(x, k=2), k=2))(X)
    assert traced == [2]
    before = len(traced)
    for _ in range(3):
        jax.make_jaxpr(jax.grad(lambda x: counted(counted(x, k=2), k=2)))(X)
    assert len(traced) <= before + 1  # once more to compare fwd with it


@pytest.fixture
def door():
    @rule(real=("x",), inexact=("z",))
    def door(x: jax.Array, z: jax.Array | None = None, *, on: bool = True, n: int = 1):
        return x if z is None else x * z

    door.defvjp(
        lambda x, z, *, on, n: (door.__wrapped__(x, z), (x, z)),
        lambda r, dy, *, on, n: (
            dy if r[1] is None else dy * r[1],
            None if r[1] is None else dy * r[0],
        ),
    )
    return door


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f([1.0, 2.0]), "door: x must be an array, got list"),
        (lambda f: f(1.0, None, 2.0), "door: too many positional arguments"),
        (lambda f: f(None), "door: x must be an array, got None"),
        (lambda f: f("a"), "door: x must be an array, got str"),
        (lambda f: f(x="a"), "door: x must be an array, got str"),
        (lambda f: f(np.ones(2), {"a": np.ones(2)}), "door: z must be an array, got dict"),
        (lambda f: f(1j * np.ones(2)), "door: x must be real, got complex128[2]"),
        (lambda f: f(1.0, on="none"), "door: on must be True or False, got 'none'"),
        (lambda f: f(1.0, on=1), "door: on must be True or False, got 1"),
        (lambda f: f(1.0, n=2.5), "door: n must be an integer, got 2.5"),
        (lambda f: f(1.0, n=True), "door: n must be an integer, got True"),
        (lambda f: f(1.0, 1.0, 1.0), "door: too many positional arguments"),
        (lambda f: f(1.0, n={}), "door: n must be hashable, as a static option, got dict"),
        (lambda f: jax.jvp(f, (1.0,), (1.0,)), "door: a hand-written rule has no forward mode"),
    ],
)
def test_one_line_at_the_door(door, call, message):
    door(1.0, on=True, n=1)  # what is compiled here must not be reused for `on=1`
    with pytest.raises(TypeError) as e:
        call(door)
    one_line(e, message)


def test_integers_are_converted_where_the_rule_says_so(door):
    assert door(np.arange(3, dtype=np.uint8)).dtype == jnp.float64
    assert door(2.0, np.ones(2, bool)).tolist() == [2.0, 2.0]
    assert jax.grad(lambda x: door(x, np.uint8(3)))(2.0) == 3.0
    assert autodiff(door)(np.ones(2, np.int32)).dtype == jnp.float64
    assert door(2.0, np.complex64(1j)).dtype == jnp.complex64


def test_none_stands_for_a_subtree_without_float_leaves():
    @rule
    def pick(x, indices):
        return x[indices["a"]]

    pick.defvjp(
        lambda x, indices: (x[indices["a"]], (x, indices["a"])),
        lambda r, dy: (jnp.zeros_like(r[0]).at[r[1]].add(dy), None),
    )
    d = jax.grad(lambda x: pick(x, {"a": np.int32(1), "b": np.int32(0)}))(jnp.arange(3.0))
    assert d.tolist() == [0.0, 1.0, 0.0]


def count(f, *args):
    return str(jax.make_jaxpr(f)(*args)).count("custom_vjp_call")


def test_an_argument_that_is_none_has_the_cotangent_none():
    @rule
    def shifted(x, b=None):
        return x if b is None else x + b

    shifted.defvjp(lambda x, b: (shifted.__wrapped__(x, b), ()), lambda _, dy: (dy, None))
    assert jax.grad(shifted)(X) == 1.0


def test_autodiff_switches_off_rules_at_any_depth():
    def net(x):
        x = jax.lax.scan(lambda c, _: (ops.tanh(c), None), x, length=3)[0]
        x = jax.lax.cond(x.sum() > 0, ops.sigmoid, ops.relu, x)
        x = jax.vmap(jax.checkpoint(ops.softmax))(x)
        return jax.jit(ops.log_softmax)(x).sum()

    x = jnp.ones((2, 3))
    assert count(net, x) >= 5
    assert count(autodiff(net), x) == 0
    _, dy = jax.jvp(autodiff(net), (x,), (x,))  # forward mode, which a custom_vjp refuses
    np.testing.assert_allclose(dy, (jax.grad(net)(x) * x).sum(), atol=1e-14)
    with pytest.raises(TypeError):
        jax.jvp(net, (x,), (x,))


def test_autodiff_of_a_compiled_function_retraces_once_each():
    traces = []

    @jax.jit
    def f(x):
        traces.append(1)
        return ops.sigmoid(x)

    for _ in range(2):
        assert f(40.0) == autodiff(f)(40.0)
        hand, auto = jax.grad(f)(40.0), autodiff(jax.grad(f))(40.0)
        assert (hand > 0, auto) == (True, 0.0)
    assert len(traces) == 2  # one with and one without rules


def test_autodiff_keeps_name_and_arguments():
    f = autodiff(ops.softmax)
    assert f.__name__ == "softmax"
    assert f(jnp.zeros((2, 3)), axis=0)[0, 0] == 0.5


@pytest.mark.slow
def test_outputs_are_batched_together():
    """The mean of the batch does not depend on scale, so its cotangent must not count twice."""
    x, scale, bias = jnp.arange(6.0).reshape(3, 2), jnp.ones((5, 2)), jnp.zeros(2)
    f = jax.vmap(ops.batch_norm, in_axes=(None, 0, None))
    out, back = jax.vjp(f, x, scale, bias)
    expected = jax.vjp(autodiff(f), x, scale, bias)[1]
    dout = jax.tree.map(lambda y: jnp.cos(jnp.arange(y.size)).reshape(y.shape), out)
    for d, e in zip(back(dout), expected(dout), strict=True):
        np.testing.assert_allclose(d, e, atol=1e-13)


def test_shared_weights_need_no_vmap():
    """Ops take batches directly, so there is one weight gradient, not one per example."""
    x, w, b = jnp.ones((64, 32)), jnp.ones((32, 48)), jnp.zeros(48)
    grad = jax.jit(jax.grad(lambda w: ops.affine(x, w, b).sum()))
    text = grad.lower(w).as_text()
    assert "64x32x48" not in text


@pytest.mark.slow
def test_hessian_through_every_level():
    f = lambda x: ops.softmax_cross_entropy(ops.tanh(x), jnp.array(1))
    x = jnp.array([0.3, -0.2, 1.0])
    expected = jax.hessian(autodiff(f))(x)
    np.testing.assert_allclose(jax.hessian(f)(x), expected, atol=1e-14)
    np.testing.assert_allclose(jax.jacrev(jax.jacrev(f))(x), expected, atol=1e-14)


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: rule(3), "rule: primal must be a function, got 3"),
        (lambda: rule(real="x"), "rule: real must be a tuple of names, got 'x'"),
        (
            lambda: rule(inexact=("y",))(scaled_fwd),
            "rule: scaled_fwd must have an argument 'y', as it is cast",
        ),
        (lambda: autodiff(3), "autodiff: f must be a function, got 3"),
    ],
)
def test_one_line_at_a_declaration(declare, message):
    with pytest.raises((TypeError, ValueError)) as raised:
        declare()
    assert str(raised.value) == message


def test_a_key_holds_no_numbers():
    keys = jax.random.split(jax.random.key(0), 3)
    with pytest.raises(TypeError) as e:
        ops.affine(jnp.ones((2, 3)), jnp.ones((3, 3)), keys)
    assert str(e.value) == "affine: b must hold numbers, got key[3]"
