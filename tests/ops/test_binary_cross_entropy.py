"""Tests particular to the binary cross entropy: its tails, and comparison with usual forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mp, mpf

from funcnet import autodiff, ops

EPS = 2.0**-23
Z = np.array([-87, -40, -17.5, -3, -1e-3, -1e-30, 0, 1e-6, 0.7, 5, 16.7, 30, 80], np.float32)


@pytest.mark.parametrize("label", [0.0, 1.0, 0.25])
def test_tails(label):
    """Loss and gradient have small relative errors against 50 digits in every element."""
    mp.dps = 50
    y = jnp.full(Z.shape, label, jnp.float32)
    loss, back = jax.vjp(ops.sigmoid_binary_cross_entropy, jnp.asarray(Z), y)
    dz, dy = back(jnp.ones_like(loss))
    for z, l, d in zip(map(mpf, Z.tolist()), loss.tolist(), dz.tolist(), strict=True):
        t = mpf(label)
        expected = t * mp.log1p(mp.exp(-z)) + (1 - t) * mp.log1p(mp.exp(z))
        assert abs(l - expected) <= 4 * EPS * expected
        slope = ((1 - t) - t * mp.exp(-z)) / (1 + mp.exp(-z))
        terms = ((1 - t) + t * mp.exp(-z)) / (1 + mp.exp(-z))  # the terms cancel where s(z) = y
        assert abs(d - slope) <= 4 * EPS * (abs(slope) if label in {0, 1} else terms)
    np.testing.assert_array_equal(dy, -Z)


@pytest.mark.slow
@pytest.mark.parametrize("label", [0.0, 0.3, 1.0])
def test_the_gradient_at_zero_is_not_that_of_the_usual_form(label):
    """Autodiff of max(z, 0) − z y + log(1 + exp(−|z|)) has a kink at 0; the function has none."""
    for f in (ops.sigmoid_binary_cross_entropy, autodiff(ops.sigmoid_binary_cross_entropy)):
        z, y = jnp.zeros(()), jnp.array(label)
        np.testing.assert_allclose(jax.grad(f)(z, y), 0.5 - label, rtol=1e-15)
        second = jax.grad(jax.grad(f))(z, y)
        np.testing.assert_allclose(second, 0.25, rtol=1e-15)


def test_two_classes_by_softmax():
    """The binary cross entropy equals the softmax cross entropy of the logits 0 and z."""
    z, y = jnp.asarray(Z), jnp.asarray(Z > 0, jnp.int32)
    two = jnp.stack([jnp.zeros_like(z), z], -1)
    np.testing.assert_allclose(
        ops.sigmoid_binary_cross_entropy(z, y), ops.softmax_cross_entropy(two, y), rtol=4 * EPS
    )


def test_complex_arguments():
    z = np.ones(2)
    for args, name in (((1j * z, z), "logits"), ((z, 1j * z), "labels")):
        with pytest.raises(TypeError) as e:
            ops.sigmoid_binary_cross_entropy(*args)
        message = f"sigmoid_binary_cross_entropy: {name} must be real, got complex128[2]"
        assert str(e.value) == message


@pytest.mark.parametrize(("z", "y"), [((4, 1), (4,)), ((4,), ()), ((), (4,))], ids=str)
def test_labels_of_another_shape(z, y):
    with pytest.raises(ValueError) as e:
        ops.sigmoid_binary_cross_entropy(jnp.ones(z), jnp.ones(y))
    assert str(e.value) == (
        f"sigmoid_binary_cross_entropy: labels must have the shape of logits, {z}, got {y}"
    )
