"""Tests particular to rotary embeddings: relative positions, conventions, large positions."""

import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from funcnet import ops

FAR = [0, 1, -1, 11, 22, 355, -355, 103_993, 10**6, 2**31 - 1, -(2**31) + 1]


@pytest.mark.parametrize(
    ("dtype", "absolute", "relative"), [(jnp.float32, 0, 2), (jnp.float64, 2**31 * 2**-62, 2)]
)
@pytest.mark.parametrize("base", [1e4, 1e-3])  # with 1e-3, some pairs turn more than once per step
def test_angles_at_any_position(dtype, absolute, relative, base):
    """Cosine and sine are correct to 2 ulps, plus |p| 2⁻⁶² in float64, against mpmath."""
    d, eps = 8, float(jnp.finfo(dtype).eps)
    x = jnp.zeros((len(FAR), 1, d), dtype).at[..., : d // 2].set(1)
    rotate = jax.jit(functools.partial(ops.rope, base=base))
    y = np.asarray(rotate(x, jnp.array(FAR)), np.float64)[:, 0]
    with mpmath.workdps(60):
        for p, row in zip(FAR, y, strict=True):
            for i in range(d // 2):
                angle = p * mpmath.mpf(base) ** (mpmath.mpf(-2 * i) / d)
                pairs = ((row[i], mpmath.cos(angle)), (row[i + d // 2], mpmath.sin(angle)))
                for actual, exact in pairs:
                    error = abs(mpmath.mpf(actual) - exact)
                    assert error <= relative * eps * abs(exact) + absolute * abs(p) / 2**31


def test_scores_depend_on_the_distance_alone():
    random = np.random.default_rng(0)
    q, k = jnp.asarray(random.standard_normal((2, 3, 1, 8)))
    at = lambda x, p: ops.rope(x, jnp.full(3, p))
    scores = lambda p: (at(q, p + 5) * at(k, p)).sum(-1)
    for p in (7, -3, 10**6):
        np.testing.assert_allclose(scores(p), scores(0), rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("interleaved", [False, True])
def test_norms_are_kept_and_the_gradient_rotates_back(interleaved):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 3, 6)))
    p = jnp.arange(5) * 1000
    y, pull = jax.vjp(lambda x: ops.rope(x, p, interleaved=interleaved), x)
    np.testing.assert_allclose((y**2).sum(-1), (x**2).sum(-1), rtol=1e-14)
    np.testing.assert_allclose(pull(y)[0], x, atol=1e-14)


def test_conventions_differ_by_a_permutation():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 2, 6)))
    p, to_halves = jnp.arange(4), np.array([0, 2, 4, 1, 3, 5])
    y = ops.rope(x, p, interleaved=True)
    assert (ops.rope(x[..., to_halves], p) == y[..., to_halves]).all()


Z = jnp.zeros


@pytest.mark.parametrize(
    ("x", "p", "options", "message"),
    [
        (Z((3, 4)), Z(3, int), {}, "x must have shape (..., T, H, d) with even d, got (3, 4)"),
        (
            Z((1, 1, 5)),
            Z(1, int),
            {},
            "x must have shape (..., T, H, d) with even d, got (1, 1, 5)",
        ),
        (
            Z((2, 3, 1, 4)),
            Z((1, 3), int),
            {},
            "positions must have shape (3,) or (2, 3) for x (2, 3, 1, 4), got (1, 3)",
        ),
        (Z((3, 1, 4)), Z(3), {}, "positions must be integers, got float64"),
        (
            Z((3, 1, 4)),
            Z(3, int),
            {"base": np.nan},
            "base must be a finite number above 0, got nan",
        ),
        (Z((3, 1, 4)), Z(3, int), {"base": 0.0}, "base must be a finite number above 0, got 0.0"),
    ],
)
def test_errors(x, p, options, message):
    with pytest.raises(ValueError) as e:
        ops.rope(x, p, **options)
    assert str(e.value) == f"rope: {message}"
