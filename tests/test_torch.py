"""Values and gradients against PyTorch in float64, if it is installed (an optional extra)."""

import jax
import numpy as np
import pytest

from funcnet import ops

torch = pytest.importorskip("torch", reason="PyTorch is an optional development dependency")

RANDOM = np.random.default_rng(5)
X, W, B = (RANDOM.standard_normal(s) for s in ((7, 3, 4), (4, 6), (6,)))
SCALE, BIAS = RANDOM.standard_normal(4), RANDOM.standard_normal(4)
P = np.exp(X) / np.exp(X).sum(-1, keepdims=True)
T = np.roll(P, 1, axis=0)
INDEX = RANDOM.integers(0, 4, (7, 3))
F = torch.nn.functional if hasattr(torch, "nn") else None


def columns(f):
    """PyTorch has the channels on axis 1."""
    return lambda x, *a: f(x.reshape(-1, x.shape[-1]), *a).reshape(x.shape)


def channels_first(f):
    """PyTorch's images have shape (n, c, ...)."""
    last = lambda x: x.movedim(1, -1)
    return lambda x, *a: last(f(x.movedim(-1, 1), *a))


def kernel(f):
    """PyTorch's kernels have shape (outputs, inputs, ...)."""
    return channels_first(lambda x, w, *a: f(x, w.movedim((-1, -2), (0, 1)), *a))


def transposed(f):
    """PyTorch's transposed convolution is a gradient of a convolution, so the kernel is flipped."""
    flip = lambda w: w.flip(tuple(range(w.ndim - 2))).movedim((-2, -1), (0, 1))
    return channels_first(lambda x, w, *a: f(x, flip(w), *a))


def heads(f):
    """In PyTorch, the axis of heads comes before the axis of positions."""
    swap = lambda x: x.transpose(-2, -3)
    return lambda q, k, v: swap(f(swap(q), swap(k), swap(v)))


def recurrent(kind, reverse=False):
    """PyTorch's cells have the same gates, weights of shape (gates · H, inputs) and two biases."""
    gates = {"RNN": 1, "LSTM": 4, "GRU": 3}[kind]

    def run(x, *states_and_weights):
        count = 2 if kind == "LSTM" else 1
        states, (w_x, w_h, b, *b_h) = states_and_weights[:count], states_and_weights[count:]
        hidden = w_h.shape[0]
        assert w_h.shape[1] == gates * hidden
        module = getattr(torch.nn, kind)(x.shape[-1], hidden, batch_first=True, dtype=x.dtype)
        first = [h[None] for h in states]
        values = {
            "weight_ih_l0": w_x.mT,
            "weight_hh_l0": w_h.mT,
            "bias_ih_l0": b,
            "bias_hh_l0": b_h[0] if b_h else torch.zeros_like(b),
        }
        x = x.flip(1) if reverse else x
        given = (x, tuple(first) if kind == "LSTM" else first[0])
        y = torch.func.functional_call(module, values, given)[0]
        return y.flip(1) if reverse else y

    return run


IMAGE, SEQUENCE = RANDOM.standard_normal((2, 7, 6, 4)), RANDOM.standard_normal((2, 9, 4))
KERNEL, DEEP = RANDOM.standard_normal((3, 2, 4, 6)), RANDOM.standard_normal((5, 2, 6))
Q, K, V = (RANDOM.standard_normal((2, 5, 4, 3)) for _ in range(3))
H0, C0 = RANDOM.standard_normal((2, 3)), RANDOM.standard_normal((2, 3))
IDS = RANDOM.integers(0, 6, (3, 5))


def gated(gates):
    return tuple(RANDOM.standard_normal(s) for s in ((4, 3 * gates), (3, 3 * gates), (3 * gates,)))


def smooth(name, theirs, **options):
    return {name: (lambda x: getattr(ops, name)(x, **options), theirs, (3 * X,))}


CASES = {
    **smooth("silu", lambda x: F.silu(x)),
    **smooth("softplus", lambda x: F.softplus(x)),
    **smooth("log_sigmoid", lambda x: F.logsigmoid(x)),
    **smooth("elu", lambda x: F.elu(x, 0.7), alpha=0.7),
    **smooth("selu", lambda x: F.selu(x)),
    **smooth("leaky_relu", lambda x: F.leaky_relu(x, 0.1), negative_slope=0.1),
    **smooth("mish", lambda x: F.mish(x)),
    **smooth("relu6", lambda x: F.relu6(x)),
    **smooth("hard_sigmoid", lambda x: F.hardsigmoid(x)),
    **smooth("hard_tanh", lambda x: F.hardtanh(x)),
    **smooth("hard_silu", lambda x: F.hardswish(x)),
    **smooth("gelu", lambda x: F.gelu(x, approximate="tanh")),
    "gelu, exact": (lambda x: ops.gelu(x, approximate=False), lambda x: F.gelu(x), (3 * X,)),
    "swiglu": (ops.swiglu, lambda a, b: F.silu(a) * b, (X, T)),
    "layer_norm": (
        ops.layer_norm,
        lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b),
        (X, SCALE, BIAS),
    ),
    "rms_norm": (
        lambda x, w: ops.rms_norm(x, w, eps=0.1),
        lambda x, w: F.rms_norm(x, x.shape[-1:], w, eps=0.1),
        (X, SCALE),
    ),
    "group_norm": (
        lambda *a: ops.group_norm(*a, groups=2),
        channels_first(lambda x, w, b: F.group_norm(x, 2, w, b)),
        (IMAGE, SCALE, BIAS),
    ),
    "logsumexp": (
        lambda x: ops.logsumexp(x, axis=1),
        lambda x: torch.logsumexp(x, 1),
        (X,),
    ),
    "sigmoid_binary_cross_entropy": (
        ops.sigmoid_binary_cross_entropy,
        lambda x, t: F.binary_cross_entropy_with_logits(x, t, reduction="none"),
        (3 * X, P),
    ),
    "huber": (
        lambda y, t: ops.huber(y, t, delta=0.7),
        lambda y, t: F.huber_loss(y, t, reduction="none", delta=0.7).mean(-1),
        (X, 2 * T),
    ),
    "kl_divergence": (
        ops.kl_divergence,
        lambda log_p, t: F.kl_div(log_p, t, reduction="none").sum(-1),
        (np.log(P), T),
    ),
    "label smoothing": (
        lambda x: ops.softmax_cross_entropy(x, INDEX, label_smoothing=0.1),
        lambda x: F.cross_entropy(x.mT, torch.tensor(INDEX), reduction="none", label_smoothing=0.1),
        (X,),
    ),
    "class weights, ignore": (
        lambda x, w: ops.softmax_cross_entropy(
            x, INDEX, class_weights=w, label_smoothing=0.1, ignore=2
        ),
        lambda x, w: F.cross_entropy(
            x.mT, torch.tensor(INDEX), w, reduction="none", label_smoothing=0.1, ignore_index=2
        ),
        (X,),
        (SCALE**2,),
    ),
    "class weights of probabilities": (
        lambda x, t, w: ops.softmax_cross_entropy(x, t, class_weights=w, label_smoothing=0.1),
        lambda x, t, w: F.cross_entropy(x.mT, t.mT, w, reduction="none", label_smoothing=0.1),
        (X, T),
        (SCALE**2,),
    ),
    "class weights of the log": (
        lambda y, w: ops.cross_entropy(y, INDEX, class_weights=w, ignore=1),
        lambda y, w: F.nll_loss(
            torch.log(y).mT, torch.tensor(INDEX), w, reduction="none", ignore_index=1
        ),
        (P,),
        (SCALE**2,),
    ),
    "pos_weight": (
        lambda x, t, w: ops.sigmoid_binary_cross_entropy(x, t, pos_weight=w),
        lambda x, t, w: F.binary_cross_entropy_with_logits(x, t, None, None, None, "none", w),
        (3 * X, P),
        (SCALE**2,),
    ),
    "mean_absolute_error": (
        ops.mean_absolute_error,
        lambda y, t: F.l1_loss(y, t, reduction="none").mean(-1),
        (np.where(INDEX[..., None] == 0, T, X), T),
    ),
    "linear_cross_entropy, class weights": (
        lambda x, w, c: ops.linear_cross_entropy(x, w, INDEX, class_weights=c, ignore=2),
        lambda x, w, c: F.cross_entropy(
            (x @ w).mT, torch.tensor(INDEX), c, reduction="none", ignore_index=2
        ),
        (X, W),
        (B**2,),
    ),
    "linear_cross_entropy": (
        lambda x, w: ops.linear_cross_entropy(x, w, INDEX, ignore=2),
        lambda x, w: F.cross_entropy(
            (x @ w).mT, torch.tensor(INDEX), reduction="none", ignore_index=2
        ),
        (X, W),
    ),
    "conv": (
        lambda *a: ops.conv(*a, strides=(2, 1), padding=((1, 1), (2, 2)), dilation=(1, 2)),
        kernel(lambda *a: F.conv2d(*a, stride=(2, 1), padding=(1, 2), dilation=(1, 2))),
        (IMAGE, KERNEL, B),
    ),
    "conv, SAME": (
        lambda *a: ops.conv(*a, padding="SAME"),
        kernel(lambda *a: F.conv2d(*a, padding="same")),
        (IMAGE, KERNEL[:, :1], B),
    ),
    "conv, 1-D, groups": (
        lambda *a: ops.conv(*a, padding="VALID", groups=2),
        kernel(lambda *a: F.conv1d(*a, groups=2)),
        (SEQUENCE, DEEP, B),
    ),
    "conv_transpose": (
        lambda *a: ops.conv_transpose(*a, strides=2, padding="VALID"),
        transposed(lambda *a: F.conv_transpose2d(*a, stride=2)),
        (IMAGE, KERNEL, B),
    ),
    "depthwise_conv": (
        lambda *a: ops.depthwise_conv(*a, strides=2, padding="VALID"),
        channels_first(
            lambda x, w, b: F.conv2d(x, w.movedim(-1, 0)[:, None], b, stride=2, groups=4)
        ),
        (IMAGE, KERNEL[..., 0], SCALE),
    ),
    "max_pool": (
        lambda x: ops.max_pool(x, window=(3, 2), strides=(2, 1)),
        channels_first(lambda x: F.max_pool2d(x, (3, 2), (2, 1))),
        (IMAGE,),
    ),
    "avg_pool": (
        lambda x: ops.avg_pool(x, window=(3, 3), strides=2, padding=((1, 1), (1, 1))),
        channels_first(lambda x: F.avg_pool2d(x, 3, 2, 1)),
        (IMAGE,),
    ),
    "avg_pool, pad not counted": (
        lambda x: ops.avg_pool(
            x, window=(3, 3), strides=2, padding=((1, 1), (1, 1)), count_include_pad=False
        ),
        channels_first(lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)),
        (IMAGE,),
    ),
    "embedding": (
        lambda w: ops.embedding(IDS, w),
        lambda w: F.embedding(torch.tensor(IDS), w),
        (W.T,),
    ),
    "attention": (
        lambda *a: ops.dot_product_attention(*a, causal=True),
        heads(lambda *a: F.scaled_dot_product_attention(*a, is_causal=True)),
        (Q, K, V),
    ),
    "attention, grouped": (
        lambda *a: ops.dot_product_attention(*a, scale=0.3),
        heads(lambda *a: F.scaled_dot_product_attention(*a, scale=0.3, enable_gqa=True)),
        (Q, K[:, :, :2], V[:, :, :2]),
    ),
    "rnn": (lambda *a: ops.rnn(*a)[0], recurrent("RNN"), (SEQUENCE, H0, *gated(1))),
    "lstm": (lambda *a: ops.lstm(*a)[0], recurrent("LSTM"), (SEQUENCE, H0, C0, *gated(4))),
    "lstm, reverse": (
        lambda *a: ops.lstm(*a, reverse=True)[0],
        recurrent("LSTM", reverse=True),
        (SEQUENCE, H0, C0, *gated(4)),
    ),
    "gru": (
        lambda *a: ops.gru(*a)[0],
        recurrent("GRU"),
        (SEQUENCE, H0, *gated(3), RANDOM.standard_normal(9)),
    ),
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
        (X, T),
    ),
    "softmax_cross_entropy": (
        lambda x: ops.softmax_cross_entropy(x, INDEX),
        lambda x: F.cross_entropy(x.mT, torch.tensor(INDEX), reduction="none"),
        (X,),
    ),
    "softmax_cross_entropy of probabilities": (
        ops.softmax_cross_entropy,
        lambda x, t: F.cross_entropy(x.mT, t.mT, reduction="none"),
        (X, T),
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
