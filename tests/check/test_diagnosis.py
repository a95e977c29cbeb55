"""The causes that a message names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet import check_rule
from funcnet.check.diagnosis import cause, of_nonlinearity

QUICK: dict = {"under_transformations": False}
RANDOM = np.random.default_rng(0)
T, X, Y = RANDOM.standard_normal((3, 6, 4))
SCALE = RANDOM.standard_normal(4)
Z, DZ = RANDOM.standard_normal((2, 5)) + 1j * RANDOM.standard_normal((2, 5))
VALUES = {
    "the argument x": X,
    "the argument scale": SCALE,
    "the argument tau": np.float64(0.3),
    "the output out": Y,
}
SIZES = {6: "size of axis 0 of x", 4: "size of axis 1 of x"}
TABLE = np.where(np.isin(np.arange(6), [1, 4])[:, None], T + X, T)

CAUSES = {
    "a factor √n": (np.sqrt(6) * T, T, "√6, and 6 is the size of axis 0 of x: a scale 1/√6"),
    "2 of √4": (2 * T, T, "4 is the size of axis 1 of x: a scale 1/√4 is wrong or missing, or the"),
    "a scalar": (0.3 * T, T, "the right cotangent, the argument tau: a superfluous factor"),
    "its inverse": (T / 0.3, T, "the right cotangent, 1 over the argument tau: a missing factor"),
    "a missing factor": (T / SCALE, T, "divided by the argument scale: a missing factor"),
    "a superfluous factor": (T * X, T, "times the argument x: a superfluous factor"),
    "a missing term of softmax": (
        T + Y * X.sum(1, keepdims=True),
        T,
        "along axis 1 the error is a multiple of the output out: a term with a sum over that axis",
    ),
    "a missing term of a normalization": (
        T + (X - X.mean(1, keepdims=True)) * Y.sum(1, keepdims=True),
        T,
        "along axis 1 the error is a multiple of the argument x minus its mean: a term with a sum",
    ),
    "a factor of each row": (
        T * X[:, :1],
        T,
        "along axis 1 it is a multiple of the right cotangent: a factor that does not vary",
    ),
    "exchanged": (X + Y, T, "it equals the cotangent of w: arguments or factors are exchanged"),
    "repeated indices": (TABLE, T, "indices that appear more than once in ids are wrong"),
    "the sign of one": (
        np.where(np.arange(24).reshape(6, 4) == 5, -T, T),
        T,
        f"only this element is wrong, where the argument is {X[1, 1]:.3g}; there it is the neg",
    ),
    "one branch": (
        np.where(X < 0, 3 * T, T),
        T,
        "where the argument is negative are wrong, no others: one branch; there it is 3 times",
    ),
    "a conjugate": (Z.conj() * DZ, Z * DZ, "the conjugate of the right derivative"),
    "a complex factor": (1j * Z, Z, "0+1j times"),
    "a large argument": (np.where(T > 1, np.nan, T), T, "a division by zero or an overflow"),
}  # fmt: skip


@pytest.mark.parametrize("name", CAUSES)
def test_a_cause_is_named(name):
    h, t, words = CAUSES[name]
    found = cause(
        h,
        t,
        ~np.isclose(h, t),
        X if np.isrealobj(h) else Z,
        cotangents={"the cotangent of w": X + Y},
        values=VALUES if np.isrealobj(h) else {"the cotangent of the output out": DZ},
        sizes=SIZES,
        integers={"ids": np.array([4, 1, 2, 1, 4])},
    )
    assert words in found


DY = np.stack([X, Y, X / 8192, 0 * X])
NONLINEAR = {
    "bwd ignores dy": T + 0 * DY,
    "something is added in bwd": T * DY + Y,
    "its sign or its direction": np.sign(DY),
    "dy is squared in bwd": T * DY**2,
    "usually dy is clipped": np.clip(DY, -0.1, 0.1),
}


@pytest.mark.parametrize("words", NONLINEAR)
def test_what_is_not_linear_is_described(words):
    assert words in of_nonlinearity(*NONLINEAR[words], 1 / 8192)


def test_the_order_of_arguments_is_named():
    f = jax.custom_vjp(lambda x, n: jnp.sin(n * x), nondiff_argnums=(1,))
    f.defvjp(lambda x, n: (jnp.sin(n * x), x), lambda x, dy, n: (n * jnp.cos(n * x) * dy,))
    found, *_ = check_rule(f, jnp.asarray(X[0], jnp.float32), 2, **QUICK).findings
    assert found.kind == "linearity"
    assert found.message.endswith("first: bwd(static, residuals, dy)")


def test_nothing_is_said_of_what_has_no_pattern():
    assert cause(X, T, ~np.isclose(X, T), Y) == ""


def moments(share):
    f = jax.custom_vjp(lambda x: (x.mean(-1), (x * x).mean(-1)))

    def bwd(x, dy):
        first, second = (d[:, None] / x.shape[1] for d in dy)
        return (first + share * 2 * x * second,)

    f.defvjp(lambda x: ((x.mean(-1), (x * x).mean(-1)), x), bwd)
    return f


@pytest.mark.parametrize(("share", "words"), [(0, "ignores"), (0.5, "takes 0.5 times")])
def test_the_output_is_named_whose_cotangent_has_a_wrong_share(share, words):
    report = check_rule(moments(share), jnp.asarray(X, jnp.float32), **QUICK)
    assert f"It {words} the cotangent of out[1]. " in report.findings[0].message


def test_what_all_cotangents_have_in_common():
    f = jax.custom_vjp(lambda x, w: jnp.tanh(x @ w))

    def bwd(saved, dy):
        x, w, y = saved
        dz = dy * (1 - y)
        return dz @ w.T, x.T @ dz

    f.defvjp(lambda x, w: (f(x, w), (x, w, f(x, w))), bwd)
    args = [jnp.asarray(a, jnp.float32) for a in (X, Y.T)]
    *_, last = check_rule(f, *args, **QUICK).findings
    assert "Every cotangent is wrong: look first at what they have in common" in last.message


def test_a_cotangent_that_overflows_comes_with_its_cause():
    f = jax.custom_vjp(lambda x: jnp.logaddexp(x, 0))
    f.defvjp(lambda x: (f(x), x), lambda x, dy: (dy * jnp.exp(x) / (1 + jnp.exp(x)),))
    (found,) = check_rule(f, jnp.asarray([-1, 2, 100], jnp.float32), **QUICK).findings
    assert "This happens where the argument is large" in found.message
