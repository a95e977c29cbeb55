"""What `bench.py` measures: every rule at certain sizes, and the forward that people write."""

import bench_forwards as usual
import jax
import jax.numpy as jnp
import optax
from bench_case import (
    Case,
    Peer,
    Target,
    and_indices,
    and_probabilities,
    columns,
    draw,
    flax,
    flax_batch_norm,
    flax_recurrent,
    heads,
    images,
    integers,
    matrices,
    matrix,
    probabilities,
    sequences,
    tokamax,
    weights,
)

from funcnet import ops

IMAGES = {"n": 16, "s": 32}
MORE_IMAGES = {"n": (1, 4, 16, 64)}

MATRICES = {
    "gelu, exact": Case(
        "gelu",
        lambda x: ops.gelu(x, approximate=False),
        lambda x: jax.nn.gelu(x, approximate=False),
        "jax.nn",
        matrix,
    ),
    "swiglu": Case("swiglu", ops.swiglu, lambda a, b: jax.nn.silu(a) * b, "jax.nn", matrices),
    "geglu": Case("geglu", ops.geglu, lambda a, b: jax.nn.gelu(a) * b, "jax.nn", matrices),
    "logsumexp": Case(
        "logsumexp",
        lambda x: ops.logsumexp(x, axis=-1),
        lambda x: jax.nn.logsumexp(x, -1),
        "jax.nn",
        matrix,
    ),
    "dropout": Case(
        "dropout",
        lambda x, key: ops.dropout(x, key, rate=0.2),
        usual.bernoulli_dropout,
        "bernoulli",
        lambda n, c: (draw(0, n, c), jax.random.key(1)),
    ),
    "affine": Case(
        "affine",
        ops.affine,
        lambda x, w, b: x @ w + b,
        "jnp",
        lambda n, c: (draw(0, n, c), weights(1, c, c), draw(2, c)),
    ),
    "batch_norm": Case(
        "batch_norm",
        ops.batch_norm,
        usual.batch_norm,
        "two-pass",
        columns,
        {"n": 512, "c": 1024},
        peers=(Peer("flax.linen", flax_batch_norm),),
        target=Target(0.55, 0.55),
    ),
    "batch_norm_inference": Case(
        "batch_norm_inference",
        ops.batch_norm_inference,
        usual.batch_norm_inference,
        "jnp",
        lambda n, c: (*columns(n, c), draw(3, c), draw(4, c) ** 2 + 0.1),
    ),
    "layer_norm": Case(
        "layer_norm",
        ops.layer_norm,
        usual.layer_norm,
        "two-pass",
        columns,
        peers=(
            flax(lambda nn: nn.LayerNorm(epsilon=usual.EPS), "scale", "bias"),
            tokamax(lambda t, *args: t.layer_norm(*args, implementation="xla")),
        ),
        target=Target(0.75, 0.5),
    ),
    "rms_norm": Case(
        "rms_norm",
        ops.rms_norm,
        usual.rms_norm,
        "jnp",
        lambda n, c: columns(n, c)[:2],
        peers=(flax(lambda nn: nn.RMSNorm(epsilon=usual.EPS), "scale"),),
    ),
    "mean_squared_error": Case(
        "mean_squared_error",
        ops.mean_squared_error,
        lambda y, t: ((y - t) ** 2).mean(-1),
        "jnp",
        matrices,
        wrt=(0,),
    ),
    "sum_squared_error": Case(
        "sum_squared_error",
        ops.sum_squared_error,
        lambda y, t: ((y - t) ** 2).sum(-1) / 2,
        "jnp",
        matrices,
        wrt=(0,),
    ),
    "huber": Case(
        "huber",
        ops.huber,
        lambda y, t: optax.huber_loss(y, t).mean(-1),
        "optax",
        matrices,
        wrt=(0,),
    ),
    "cross_entropy": Case(
        "cross_entropy",
        ops.cross_entropy,
        lambda y, t: -(t * jnp.log(y)).sum(-1),
        "jnp",
        lambda n, c: (probabilities(0, n, c), probabilities(1, n, c)),
        wrt=(0,),
    ),
    "kl_divergence": Case(
        "kl_divergence",
        ops.kl_divergence,
        optax.kl_divergence,
        "optax",
        lambda n, c: (jax.nn.log_softmax(draw(0, n, c)), probabilities(1, n, c)),
        wrt=(0,),
    ),
    "sigmoid_binary_cross_entropy": Case(
        "sigmoid_binary_cross_entropy",
        ops.sigmoid_binary_cross_entropy,
        optax.sigmoid_binary_cross_entropy,
        "optax",
        lambda n, c: (draw(0, n, c), (draw(1, n, c) > 0).astype(jnp.float32)),
        wrt=(0,),
    ),
    "softmax_cross_entropy, indices": Case(
        "softmax_cross_entropy",
        ops.softmax_cross_entropy,
        optax.softmax_cross_entropy_with_integer_labels,
        "optax",
        and_indices,
        {"n": 512, "c": 8192},
        {"n": (128, 512, 2048), "c": (512, 2048, 8192, 32768)},
        target=Target(1.0),
    ),
    "softmax_cross_entropy, probabilities": Case(
        "softmax_cross_entropy",
        ops.softmax_cross_entropy,
        optax.softmax_cross_entropy,
        "optax",
        and_probabilities,
        wrt=(0,),
    ),
    "softmax_cross_entropy, smoothed": Case(
        "softmax_cross_entropy",
        lambda x, t: ops.softmax_cross_entropy(x, t, label_smoothing=0.1),
        usual.smoothed,
        "optax",
        and_indices,
    ),
    "linear_cross_entropy": Case(
        "linear_cross_entropy",
        lambda *args: ops.linear_cross_entropy(*args).mean(),  # in a mean dw is computed once
        lambda *args: usual.linear_cross_entropy(*args).mean(),
        "optax",
        lambda n, d, v: (draw(0, n, d), weights(1, d, v), integers(2, v, n)),
        {"n": 2048, "d": 256, "v": 32768},
        {"n": (256, 512, 1024, 2048), "v": (2048, 4096, 8192, 16384, 32768)},
        peers=(
            Peer("jax", lambda _: lambda h, w, _: h @ w, name="its products"),
            tokamax(
                lambda t, h, w, labels: t.linear_softmax_cross_entropy_loss(
                    h, labels, w, implementation="xla"
                )
            ),
        ),
        target=Target(0.65, 0.10),
    ),
    "l1_penalty": Case(
        "l1_penalty",
        ops.l1_penalty,
        lambda p, rate: rate * jnp.abs(p).sum(),
        "jnp",
        lambda n, c: (draw(0, n, c), draw(1)),
    ),
    "l2_penalty": Case(
        "l2_penalty",
        ops.l2_penalty,
        lambda p, rate: rate / 2 * (p**2).sum(),
        "jnp",
        lambda n, c: (draw(0, n, c), draw(1)),
    ),
    "elastic_net_penalty": Case(
        "elastic_net_penalty",
        ops.elastic_net_penalty,
        lambda p, l1, l2: l1 * jnp.abs(p).sum() + l2 / 2 * (p**2).sum(),
        "jnp",
        lambda n, c: (draw(0, n, c), draw(1), draw(2)),
    ),
    "embedding": Case(
        "embedding",
        ops.embedding,
        lambda ids, w: w[ids],
        "jnp",
        lambda n, v: (integers(0, v, n), draw(1, v, 64)),
        {"n": 4096, "v": 1000},
        {"n": (1024, 4096, 16384), "v": (1000, 10_000, 100_000)},
    ),
}

DEPTHWISE_CONV = Case(
    "depthwise_conv",
    ops.depthwise_conv,
    usual.depthwise_conv,
    "lax",
    images(64, 3, 3, 64),
    {"n": 8, "s": 32},
    {"n": (1, 2, 4, 8)},
)

OF_IMAGES = {
    "group_norm": Case(
        "group_norm",
        lambda x, scale, bias: ops.group_norm(x, scale, bias, groups=8),
        lambda x, scale, bias: usual.group_norm(x, scale, bias, 8),
        "two-pass",
        lambda n, s: (*images(64)(n, s), draw(1, 64), draw(2, 64)),
        IMAGES,
        MORE_IMAGES,
        peers=(flax(lambda nn: nn.GroupNorm(8, epsilon=usual.EPS), "scale", "bias"),),
    ),
    "conv": Case(
        "conv", ops.conv, usual.conv, "lax", images(32, 3, 3, 32, 64), IMAGES, MORE_IMAGES
    ),
    "conv_transpose": Case(
        "conv_transpose",
        lambda x, w, b: ops.conv_transpose(x, w, b, strides=2),
        usual.conv_transpose,
        "lax",
        images(32, 3, 3, 32, 16),
        IMAGES,
        MORE_IMAGES,
    ),
    "depthwise_conv": DEPTHWISE_CONV,
    "depthwise_conv, backward": DEPTHWISE_CONV._replace(backward_only=True, target=Target(0.1)),
    "max_pool": Case(
        "max_pool",
        lambda x: ops.max_pool(x, window=(2, 2)),
        usual.max_pool,
        "reduce_window",
        images(32),
        {"n": 64, "s": 28},
        MORE_IMAGES,
        target=Target(0.06),
    ),
    "avg_pool": Case(
        "avg_pool",
        lambda x: ops.avg_pool(x, window=(2, 2)),
        usual.avg_pool,
        "reduce_window",
        images(32),
        {"n": 64, "s": 28},
        MORE_IMAGES,
    ),
    "global_avg_pool": Case(
        "global_avg_pool",
        ops.global_avg_pool,
        lambda x: x.mean((1, 2)),
        "jnp",
        images(64),
        IMAGES,
        MORE_IMAGES,
    ),
    "global_max_pool": Case(
        "global_max_pool",
        ops.global_max_pool,
        lambda x: x.max((1, 2)),
        "jnp",
        images(64),
        IMAGES,
        MORE_IMAGES,
    ),
}

LSTM = Case(
    "lstm",
    ops.lstm,
    usual.lstm,
    "scan",
    sequences(4, 2, 1),
    {"t": 64, "n": 16, "h": 64},
    {"t": (16, 64, 256), "h": (16, 64, 256)},
    peers=(flax_recurrent("OptimizedLSTMCell"),),
    target=Target(0.75),
)

RECURRENCE = Case(
    "linear_recurrence",
    ops.linear_recurrence,
    usual.linear_recurrence,
    "associative_scan",
    lambda t: (jax.nn.sigmoid(draw(0, 8, t, 128)), draw(1, 8, t, 128), draw(2, 8, 128)),
    {"t": 1024},
    {"t": (64, 256, 1024)},
)

SEQUENCES = {
    "dot_product_attention, causal": Case(
        "dot_product_attention",
        lambda q, k, v: ops.dot_product_attention(q, k, v, causal=True),
        lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True),
        "jax.nn",
        heads,
        {"t": 4096},
        {"t": (256, 512, 1024, 2048, 4096)},
        peers=(
            tokamax(
                lambda t, *qkv: t.dot_product_attention(
                    *qkv, is_causal=True, implementation="xla_chunked"
                )
            ),
        ),
        target=Target(0.15, 0.02),
    ),
    "dot_product_attention": Case(
        "dot_product_attention",
        ops.dot_product_attention,
        jax.nn.dot_product_attention,
        "jax.nn",
        heads,
        {"t": 1024},
        {"t": (64, 256, 1024)},
        peers=(
            tokamax(lambda t, *qkv: t.dot_product_attention(*qkv, implementation="xla_chunked")),
        ),
    ),
    "rope": Case(
        "rope",
        ops.rope,
        usual.rope,
        "jnp",
        lambda t: (draw(0, 4, t, 8, 64), jnp.arange(t, dtype=jnp.int32)),
        {"t": 1024},
        {"t": (64, 256, 1024)},
    ),
    "rnn": Case(
        "rnn",
        ops.rnn,
        usual.rnn,
        "scan",
        sequences(1, 1, 1),
        {"t": 64, "n": 16, "h": 64},
        {"t": (16, 64, 256)},
        peers=(flax_recurrent("SimpleCell"),),
    ),
    "lstm": LSTM,
    "lstm, wide": LSTM._replace(
        sizes={"t": 128, "n": 32, "h": 256}, growth={}, target=Target(1.02)
    ),
    "gru": Case(
        "gru",
        ops.gru,
        usual.gru,
        "scan",
        sequences(3, 1, 2),
        {"t": 64, "n": 16, "h": 64},
        {"t": (16, 64, 256)},
        peers=(flax_recurrent("GRUCell"),),
    ),
    "linear_recurrence": RECURRENCE,
    "linear_recurrence, sequential": RECURRENCE._replace(
        usual=usual.sequential_recurrence, source="scan", growth={}
    ),
}

CASES: dict[str, Case] = (
    {
        name: Case(name, getattr(ops, name), f, source, matrix)
        for name, (f, source) in usual.OF_ONE_MATRIX.items()
    }
    | MATRICES
    | OF_IMAGES
    | SEQUENCES
)
