"""Tests of normalization layers: without scale or bias, and with a mask."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.case import normal
from criterion import equal

from funcnet import ops
from funcnet.layers import BatchNorm, Dense, GroupNorm, LayerNorm, RMSNorm, chain

KEY, X = jax.random.key(0), jnp.asarray(normal(6, 4))
LAYERS = {
    "LayerNorm": lambda **options: LayerNorm(**options),
    "GroupNorm": lambda **options: GroupNorm(2, **options),
    "BatchNorm": lambda **options: BatchNorm(**options),
    "RMSNorm": lambda **options: RMSNorm(**options),
}
OPTIONS = [{"scale": False}, {"bias": False}, {"scale": False, "bias": False}]
BOTH = [(k, o) for k in LAYERS for o in OPTIONS if not (k == "RMSNorm" and "bias" in o)]


@pytest.mark.parametrize(("kind", "options"), BOTH)
def test_without_scale_or_bias(kind, options):
    """The params are those that are left; the output is that of a scale of 1 and a bias of 0."""
    layer, whole = LAYERS[kind](**options), LAYERS[kind]()
    (params, state), (everything, _) = layer.init(KEY, X), whole.init(KEY, X)
    left = {k: v for k, v in everything.items() if options.get(k, True)}
    equal(params, left or (), ulps=0)
    groups = "2, " if kind == "GroupNorm" else ""
    assert layer.name == f"{kind}({groups}{', '.join(f'{k}=False' for k in options)})"
    for train in (False, True):
        actual, expected = (
            f.apply(p, state, X, train=train) for f, p in ((layer, params), (whole, everything))
        )
        equal(actual, expected, ulps=4)
    with pytest.raises(ValueError, match=f"^{re.escape(layer.name)}: params must "):
        layer.apply({**left, "more": X[0]}, state, X)


@pytest.mark.parametrize("option", ["scale", "bias"])
def test_an_option_that_is_not_a_boolean(option):
    with pytest.raises(TypeError) as e:
        LayerNorm(**{option: 0})
    assert str(e.value) == f"LayerNorm: {option} must be True or False, got 0"


@pytest.mark.parametrize(
    ("layer", "op"),
    [
        (LayerNorm(), ops.layer_norm),
        (GroupNorm(2), lambda *args: ops.group_norm(*args, groups=2)),
        (RMSNorm(), lambda x, scale, _, where: ops.rms_norm(x, scale, where)),
        (BatchNorm(), lambda *args: ops.batch_norm(*args)[0]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_mask_reaches_the_op(layer, op):
    where, net = X > -1, chain(Dense(4), layer)
    (dense, params), state = net.init(KEY, X)
    y, _ = net.apply((dense, params), state, X, where=where, train=True)
    hidden = ops.affine(X, dense["w"], dense["b"])
    equal(y, op(hidden, params["scale"], params.get("bias"), where), ulps=4)


def test_batch_norm_follows_what_counts():
    """The statistics of a feature of which nothing counts stay."""
    layer, where = BatchNorm(momentum=0.75), np.array(X > 0)
    where[:, 1] = False
    params, state = layer.init(KEY, X)
    _, new = layer.apply(params, state, jnp.where(where, X, jnp.nan), where=where, train=True)
    for j in (0, 2, 3):
        counted = np.asarray(X)[where[:, j], j]
        np.testing.assert_allclose(new["mean"][j], counted.mean() / 4, rtol=1e-13)
        np.testing.assert_allclose(new["var"][j], 0.75 + counted.var() / 4, rtol=1e-13)
    assert (new["mean"][1], new["var"][1]) == (0, 1)


def test_batch_norm_at_inference_hides_what_does_not_count():
    """Neither the output nor a gradient depends on it, even if it is nan."""
    layer, where = BatchNorm(), (X > 0).any(-1, keepdims=True) & (jnp.arange(6) < 4)[:, None]
    params, state = layer.init(KEY, X)
    hidden = jnp.where(where, X, jnp.nan)

    def loss(params, x, where):
        y = layer.apply(params, state, x, where=where)[0]
        return jnp.sin(y).sum(), y

    gradient = jax.grad(loss, (0, 1), has_aux=True)
    (dparams, dx), y = gradient(params, hidden, where)
    kept = where[:, 0]
    (expected, dkept), ykept = gradient(params, X[kept], None)
    equal((dparams, dx[kept], y[kept]), (expected, dkept, ykept))
    assert not np.any(y[~kept])
    assert not np.any(dx[~kept])
