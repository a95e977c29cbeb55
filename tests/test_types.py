"""Tests of the types in signatures: shapes and dtypes of ops, and what a type checker reports.

jaxtyping checks the first two when an op is called. The last two functions are never called:
basedpyright must accept the first, and report each line of the second, or `.ci/run` fails.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true

import functools
import inspect
import subprocess
import sys
import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype import beartype
from cases import CASES
from jaxtyping import AbstractArray, TypeCheckError, jaxtyped

from funcnet import RULES, layers, ops


def params(slow):
    """Each case of each rule; those that `slow` selects by their index are slow."""
    return [
        pytest.param(
            name, case, id=f"{name}-{case.id}", marks=[pytest.mark.slow] if slow(i) else []
        )
        for name, cases in CASES.items()
        for i, case in enumerate(cases)
    ]


@functools.cache
def checked(name, f):
    """The function f, with arguments and result checked against the signature of a rule.

    The signature is evaluated here, because jaxtyping ignores annotations that it cannot evaluate.
    """
    primal = RULES[name].primal
    hints, signature = typing.get_type_hints(primal), inspect.signature(primal)
    parameters = [p.replace(annotation=hints[p.name]) for p in signature.parameters.values()]

    def call(*args, **static):
        return f(*args, **static)

    call.__dict__["__signature__"] = inspect.Signature(
        parameters, return_annotation=hints["return"]
    )
    return jaxtyped(call, typechecker=beartype)


def shapes(f, case, args=None):
    """The shapes and dtypes of the result for arguments that are not traced."""
    return jax.eval_shape(lambda: f(*(case.args if args is None else args), **case.static))


@pytest.mark.parametrize(("name", "case"), params(slow=lambda i: False))
def test_the_signature_holds(name, case):
    """It holds for NumPy arrays and numbers, and where the arguments are traced."""
    f = checked(name, getattr(ops, name))
    shapes(f, case)
    jax.eval_shape(lambda *args: f(*args, **case.static), *case.args)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"logsumexp"}))  # its result has any shape
def test_a_result_of_another_shape_is_refused(name):
    another = lambda y: jnp.zeros((*y.shape, 7), y.dtype)
    wrong = lambda *args, **static: jax.tree.map(another, getattr(ops, name)(*args, **static))
    with pytest.raises(TypeCheckError, match="return value"):
        shapes(checked(name, wrong), CASES[name][0])


@pytest.mark.parametrize(
    ("name", "index", "argument"),
    [
        ("affine", 1, np.ones((3, 5))),
        ("affine", 2, np.ones(5)),
        ("swiglu", 1, np.ones((3, 4))),
        ("conv", 1, np.ones((2, 2, 5, 3))),
        ("layer_norm", 1, np.ones(4)),
        ("dropout", 1, np.zeros((3, 2), np.uint32)),
        ("embedding", 1, np.ones(5)),
        ("softmax_cross_entropy", 1, np.zeros(3, int)),
        ("dot_product_attention", 2, np.ones((4, 6, 2, 2))),
        ("dot_product_attention", 4, np.ones((4, 1), int)),
        ("lstm", 3, np.ones((2, 6))),
        ("rope", 1, np.arange(2)),
        ("l1_penalty", 1, np.ones(1)),
    ],
)
def test_an_argument_of_another_shape_is_refused(name, index, argument):
    case = CASES[name][0]
    args = list(case.args) + [None] * (index + 1 - len(case.args))
    args[index] = argument
    with pytest.raises(TypeCheckError, match="parameters"):
        shapes(checked(name, lambda *_, **__: None), case, args)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda x: ops.relu(x), "relu: x"),
        (lambda x: ops.affine(np.ones(1), np.ones((1, 1)), x), "affine: b"),
        (lambda x: ops.softmax_cross_entropy(np.ones(1), x), "softmax_cross_entropy: labels"),
        (lambda x: ops.dropout(np.ones(1), x, rate=0.5), "dropout: key"),
        (lambda x: ops.l1_penalty({}, x), "l1_penalty: rate"),
    ],
)
def test_an_argument_with_a_shape_is_a_single_array(call, argument):
    with pytest.raises(TypeError) as error:
        call([np.ones(1)])
    assert str(error.value) == f"{argument} must be an array, got list"


def admits(name, case, args):
    """Whether the signature admits the arguments; the result of a function without one is not."""
    with pytest.raises(TypeCheckError) as error:
        shapes(checked(name, nothing), case, args)
    return "whilst checking the return value" in str(error.value)


def nothing(*args, **static):
    pass


def accepts(name, case, args):
    """Whether the rule accepts the arguments; if it does, its result must fit the signature."""
    try:
        shapes(getattr(ops, name), case, args)
    except (TypeError, ValueError) as error:
        message = str(error)
        assert message.startswith(f"{name}: ")
        return False
    shapes(checked(name, getattr(ops, name)), case, args)
    return True


@pytest.mark.third
@pytest.mark.parametrize(("name", "case"), params(slow=lambda i: i > 0))
def test_the_signature_tells_which_dtypes_the_rule_accepts(name, case):
    """Each argument in turn, and then all floating-point ones, get another dtype."""
    hints = [*typing.get_type_hints(RULES[name].primal).values()]
    arrays = [i for i, a in enumerate(case.args) if a is not None and hints[i] is not typing.Any]
    floating = [i for i in arrays if jnp.issubdtype(jax.typeof(case.args[i]).dtype, jnp.floating)]
    with jax.numpy_dtype_promotion("standard"):
        for dtype in (np.int32, np.bool_, np.complex64):
            for chosen in [*([i] for i in arrays), floating]:
                args = [
                    np.zeros(np.shape(a), dtype) if i in chosen else a
                    for i, a in enumerate(case.args)
                ]
                assert admits(name, case, args) == accepts(name, case, args), (dtype, chosen)


@pytest.mark.slow
def test_the_rules_pass_their_tests_under_the_import_hook():
    hook = "--jaxtyping-packages=funcnet.ops,beartype.beartype"
    tests = ["tests/test_rules.py", "-k", "test_value or test_gradient_in"]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", hook]
    root = Path(__file__).parent.parent
    done = subprocess.run([*command, *tests], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_array_has_a_shape(name):
    """Only trees of arrays, which have no shape, are `Any`."""
    primal = RULES[name].primal
    hints = typing.get_type_hints(primal)
    parameters = inspect.signature(primal).parameters.values()
    arrays = [hints[p.name] for p in parameters if p.kind != p.KEYWORD_ONLY]
    for hint in (*arrays, hints["return"]):
        of_jaxtyping = [
            h for h in flat(hint) if isinstance(h, type) and issubclass(h, AbstractArray)
        ]
        assert of_jaxtyping or (hint is typing.Any and "penalty" in name)


def flat(hint):
    """The members of a union or tuple, or the hint itself."""
    members = typing.get_args(hint)
    return [h for member in members for h in flat(member)] if members else [hint]


def test_the_signature_is_readable():
    assert str(inspect.signature(ops.affine)) == (
        """(x: "Num[AnyArray, '*batch n']", w: "Num[AnyArray, 'n m']", """
        """b: "Num[AnyArray, 'm'] | None" = None) -> "Num[Array, '*batch m']\""""
    )


def accepted_by_type_checkers():
    x, net = np.ones((2, 3)), layers.Dense(3)
    params, state = net.init(jax.random.key(0), jnp.ones((2, 3)))
    ops.relu(1.0)
    ops.relu(x)
    ops.relu(jnp.ones(3))
    ops.affine(x, jnp.ones((3, 2)))
    ops.softmax_cross_entropy(jnp.ones(3), 1)
    ops.l2_penalty(params, 0.5)
    net.apply(params, state, jnp.ones((2, 3)), key=jax.random.key(1), train=True)
    net.apply(params, state, jnp.ones((2, 3)), mask=x > 0, lengths=None)


def reported_by_type_checkers():
    x, net = jnp.ones((2, 3)), layers.Dense(3)
    params, state = net.init(jax.random.key(0), x)
    ops.relu("a")  # pyright: ignore[reportArgumentType]
    ops.relu([1.0])  # pyright: ignore[reportArgumentType]
    ops.affine(x)  # pyright: ignore[reportCallIssue]
    ops.affine(1.0, x)  # pyright: ignore[reportArgumentType]
    ops.gelu(x, aproximate=True)  # pyright: ignore[reportCallIssue]
    ops.l2_penalty(params, "a")  # pyright: ignore[reportArgumentType]
    net.init(x)  # pyright: ignore[reportCallIssue]
    net.apply(x)  # pyright: ignore[reportCallIssue]
    net.apply(params, state, x, trian=True)  # pyright: ignore[reportArgumentType]
    net.apply(params, state, x, train="yes")  # pyright: ignore[reportArgumentType]
