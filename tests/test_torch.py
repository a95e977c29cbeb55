"""Values and gradients against PyTorch in float64, where it is installed (an optional extra)."""

import jax
import numpy as np
import pytest

from funcnet import ops

torch = pytest.importorskip("torch", reason="PyTorch is an optional development dependency")

RANDOM = np.random.default_rng(5)
X, W, B = (RANDOM.standard_normal(s) for s in ((7, 3, 4), (4, 6), (6,)))
SCALE, BIAS = RANDOM.standard_normal(4), RANDOM.standard_normal(4)
P = np.exp(X) / np.exp(X).sum(-1, keepdims=True)
Q = np.roll(P, 1, axis=0)
INDEX = RANDOM.integers(0, 4, (7, 3))
F = torch.nn.functional if hasattr(torch, "nn") else None


def columns(f):
    """PyTorch keeps the channels on axis 1."""
    return lambda x, *a: f(x.reshape(-1, x.shape[-1]), *a).reshape(x.shape)


CASES = {
    "sigmoid": (ops.sigmoid, torch.sigmoid, (X,)),
    "tanh": (ops.tanh, torch.tanh, (X,)),
    "relu": (ops.relu, torch.relu, (X,)),
    "softmax": (ops.softmax, lambda x: torch.softmax(x, -1), (X,)),
    "softmax, axis 1": (
        lambda x: ops.softmax(x, axis=1),
        lambda x: torch.softmax(x, 1),
        (X,),
    ),
    "log_softmax": (ops.log_softmax, lambda x: torch.log_softmax(x, -1), (X,)),
    "affine": (ops.affine, lambda x, w, b: x @ w + b, (X, W, B)),
    "batch_norm": (
        lambda *a: ops.batch_norm(*a)[0],
        columns(lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True)),
        (X, SCALE, BIAS),
    ),
    "batch_norm_inference": (
        ops.batch_norm_inference,
        columns(lambda x, w, b, mean, var: F.batch_norm(x, mean, var, w, b)),
        (X, SCALE, BIAS),
        (BIAS, SCALE**2),
    ),
    "mean_squared_error": (
        ops.mean_squared_error,
        lambda y, t: F.mse_loss(y, t, reduction="none").mean(-1),
        (X, Q),
    ),
    "softmax_cross_entropy": (
        lambda x: ops.softmax_cross_entropy(x, INDEX),
        lambda x: F.cross_entropy(x.mT, torch.tensor(INDEX), reduction="none"),
        (X,),
    ),
    "softmax_cross_entropy of probabilities": (
        ops.softmax_cross_entropy,
        lambda x, t: F.cross_entropy(x.mT, t.mT, reduction="none"),
        (X, Q),
    ),
    "cross_entropy": (
        lambda y: ops.cross_entropy(y, INDEX),
        lambda y: F.nll_loss(torch.log(y).mT, torch.tensor(INDEX), reduction="none"),
        (P,),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name):
    ours, theirs, args, *fixed = CASES[name]
    fixed = fixed[0] if fixed else ()
    value, back = jax.vjp(lambda *a: ours(*a, *fixed), *args)
    tensors = [torch.tensor(a, requires_grad=True) for a in args]
    expected = theirs(*tensors, *map(torch.tensor, fixed))
    np.testing.assert_allclose(value, expected.detach().numpy(), atol=1e-13)
    dout = RANDOM.standard_normal(value.shape)
    expected.backward(torch.tensor(dout))
    for d, tensor in zip(back(dout), tensors, strict=True):
        np.testing.assert_allclose(d, tensor.grad.numpy(), atol=1e-13)
