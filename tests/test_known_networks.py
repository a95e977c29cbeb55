"""Networks of the literature, made of layers alone: their sizes, names and values.

Each has as many parameters as was published. GPT-2 with its public names of parameters computes
what its definition in NumPy computes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from funcnet import autodiff, generate, ops, optim, weights
from funcnet.layers import (
    BatchNorm,
    Conv,
    Dense,
    Embedding,
    GlobalAvgPool,
    Layer,
    LayerNorm,
    MaxPool,
    Positions,
    RMSNorm,
    TransformerBlock,
    chain,
    mlp,
    repeat,
    residual,
    stateless,
)
from funcnet.training import TrainState, make_step

KEY = jax.random.key(0)
exact_gelu = functools.partial(ops.gelu, approximate=False)


def gpt2(vocabulary=50257, width=768, depth=12, heads=12, positions=1024, cache=None):
    """GPT-2 small; its output layer is its embedding."""
    block = TransformerBlock(
        heads,
        mlp=mlp(4 * width, width, activation=ops.gelu),
        norm=LayerNorm,
        bias=True,
        causal=True,
        rope_base=None,
        cache=cache,
    )
    body = chain(
        wte=Embedding(vocabulary, width),
        wpe=Positions(positions, cache=cache is not None),
        h=repeat(block, depth),
        ln_f=LayerNorm(),
    )

    def apply(params, state, ids, **more):
        h, state = body.apply(params, state, ids, **more)
        return ops.affine(h, params["wte"]["w"].T), state

    return Layer(body.init, apply, "GPT-2", inputs=body.inputs)


def resnet18(classes=1000):
    around = lambda n: [(n, n)] * 2
    unit = lambda c, strides=1: [
        Conv(c, 3, strides=strides, padding=around(1), bias=False),
        BatchNorm(),
    ]

    def block(c, strides=1):
        shortcut = chain(Conv(c, 1, strides=strides, bias=False), BatchNorm())
        return chain(
            residual(
                *unit(c, strides), ops.relu, *unit(c), shortcut=shortcut if strides > 1 else None
            ),
            ops.relu,
        )

    stem = [Conv(64, 7, strides=2, padding=around(3), bias=False), BatchNorm(), ops.relu]
    stages = [block(64), block(64)]
    for c in (128, 256, 512):
        stages += [block(c, strides=2), block(c)]
    return chain(
        *stem, MaxPool(3, strides=2, padding=around(1)), *stages, GlobalAvgPool(), Dense(classes)
    )


def vit(width=768, depth=12, heads=12, patch=16, patches=14 * 14, classes=1000):
    """ViT-B/16."""
    norm = functools.partial(LayerNorm, eps=1e-6)
    feed = mlp(4 * width, width, activation=exact_gelu)
    block = TransformerBlock(heads, mlp=feed, norm=norm, bias=True, rope_base=None)
    first = lambda p, x: jnp.concatenate([jnp.tile(p, (len(x), 1, 1)), x], 1)
    return chain(
        patches=Conv(width, patch, strides=patch, padding="VALID"),
        rows=lambda x: x.reshape(len(x), -1, width),
        token=stateless(first, lambda key, x: jnp.zeros(width, x.dtype), "token"),
        positions=Positions(patches + 1),
        blocks=repeat(block, depth),
        norm=norm(),
        at_token=lambda x: x[:, 0],
        head=Dense(classes),
    )


def bert(vocabulary=30522, width=768, depth=12, heads=12, positions=512):
    """BERT-base with side inputs: the segment of each token, and the lengths of the texts."""
    norm = functools.partial(LayerNorm, eps=1e-12)
    feed = mlp(4 * width, width, activation=exact_gelu)
    block = TransformerBlock(heads, mlp=feed, norm=norm, bias=True, rope_base=None, post_norm=True)

    def segment(p, x, *, segments=None):
        return x if segments is None else x + ops.embedding(segments, p["w"])

    return chain(
        tokens=Embedding(vocabulary, width),
        segments=stateless(segment, lambda key, x: {"w": jnp.zeros((2, width))}, "segments"),
        positions=Positions(positions),
        norm=norm(),
        blocks=repeat(block, depth),
        at_first=lambda x: x[:, 0],
        pooler=Dense(width),
        act=ops.tanh,
    )


IDS, IMAGES = (
    jax.ShapeDtypeStruct((2, 8), "int32"),
    jax.ShapeDtypeStruct((2, 224, 224, 3), "float32"),
)
SIZES = {
    "GPT-2": (gpt2(), IDS, 124_439_808, (2, 8, 50257)),
    "ResNet-18": (resnet18(), IMAGES, 11_689_512, (2, 1000)),
    "ViT-B/16": (vit(), IMAGES, 86_567_656, (2, 1000)),
    "BERT": (bert(), IDS, 109_482_240, (2, 768)),
}


@pytest.mark.parametrize(("net", "x", "size", "shape"), SIZES.values(), ids=SIZES)
def test_it_has_as_many_parameters_as_was_published(net, x, size, shape):
    params, state = jax.eval_shape(net.init, KEY, x)
    assert sum(p.size for p in jax.tree.leaves(params)) == size
    assert jax.eval_shape(net.apply, params, state, x)[0].shape == shape


# GPT-2 by its public names --------------------------------------------------------------------

# Our name of a parameter: the public one; of parameters of a block, without "h.0.", "h.1.", ….
NAMES = {
    "wte/w": "wte.weight",
    "wpe/w": "wpe.weight",
    "h/0/0/scale": "ln_1.weight",
    "h/0/0/bias": "ln_1.bias",
    "h/0/1/out/w": "attn.c_proj.weight",
    "h/0/1/out/b": "attn.c_proj.bias",
    "h/1/0/scale": "ln_2.weight",
    "h/1/0/bias": "ln_2.bias",
    "h/1/1/0/w": "mlp.c_fc.weight",
    "h/1/1/0/b": "mlp.c_fc.bias",
    "h/1/1/2/w": "mlp.c_proj.weight",
    "h/1/1/2/b": "mlp.c_proj.bias",
    "ln_f/scale": "ln_f.weight",
    "ln_f/bias": "ln_f.bias",
}


def from_public(theirs, like, depth):
    """The params of `gpt2` from arrays by public name."""
    stack = lambda name: np.stack([theirs[f"h.{i}.{name}"] for i in range(depth)])
    arrays = {o: stack(t) if o.startswith("h/") else theirs[t] for o, t in NAMES.items()}
    for our, their in (("w", "attn.c_attn.weight"), ("b", "attn.c_attn.bias")):
        for part, array in zip("qkv", np.split(stack(their), 3, -1), strict=True):
            arrays[f"h/0/1/{part}/{our}"] = array
    return weights.unflatten(arrays, like)


def public(vocabulary, width, depth, positions):
    """Random arrays by public name."""
    shapes = {"wte": (vocabulary, width), "wpe": (positions, width)}
    layers = {"ln_f": (width,)}
    for i in range(depth):
        layers |= {f"h.{i}.ln_1": (width,), f"h.{i}.ln_2": (width,)}
        layers |= {
            f"h.{i}.attn.c_attn": (width, 3 * width),
            f"h.{i}.attn.c_proj": (width, width),
            f"h.{i}.mlp.c_fc": (width, 4 * width),
            f"h.{i}.mlp.c_proj": (4 * width, width),
        }
    shapes = {f"{name}.weight": shape for name, shape in (shapes | layers).items()}
    shapes |= {f"{name}.bias": shape[-1:] for name, shape in layers.items()}
    random = np.random.default_rng(0)
    return {name: random.normal(0, 0.5, s).astype("float32") for name, s in shapes.items()}


def by_definition(p, ids, depth, heads):
    """GPT-2 in NumPy, in float64; Radford et al., 2019, section 2.3."""
    p = {name: array.astype(float) for name, array in p.items()}
    linear = lambda x, name: x @ p[f"{name}.weight"] + p[f"{name}.bias"]

    def norm(x, name):
        z = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return z * p[f"{name}.weight"] + p[f"{name}.bias"]

    n = ids.shape[-1]
    x = p["wte.weight"][ids] + p["wpe.weight"][:n]
    for h in (f"h.{i}" for i in range(depth)):
        split = lambda a: a.reshape(*a.shape[:-1], heads, -1).swapaxes(-3, -2)
        q, k, v = map(split, np.split(linear(norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn"), 3, -1))
        s = np.where(np.tri(n), q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]), -np.inf)
        e = np.exp(s - s.max(-1, keepdims=True))
        y = (e / e.sum(-1, keepdims=True) @ v).swapaxes(-3, -2).reshape(x.shape)
        x = x + linear(y, f"{h}.attn.c_proj")
        u = linear(norm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc")
        u = 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
        x = x + linear(u, f"{h}.mlp.c_proj")
    return norm(x, "ln_f") @ p["wte.weight"].T


def test_gpt2_with_its_public_names():
    sizes = {"vocabulary": 19, "width": 8, "depth": 3, "positions": 12}
    theirs, ids = public(**sizes), np.random.default_rng(1).integers(0, 19, (2, 7))
    net, cached = gpt2(heads=2, **sizes), gpt2(heads=2, cache=12, **sizes)
    like, nothing = jax.eval_shape(net.init, KEY, ids)
    params = from_public(theirs, like, 3)
    assert sum(a.size for a in theirs.values()) == sum(p.size for p in jax.tree.leaves(params))
    logits = jax.jit(lambda: net.apply(params, nothing, jnp.asarray(ids))[0])()
    expected = by_definition(theirs, ids, 3, 2)
    np.testing.assert_allclose(logits, expected, 1e-4, 1e-4)
    state = jax.jit(lambda: cached.init(KEY, ids)[1])()
    found, _ = generate(cached, params, state, ids, 5, key=KEY, temperature=0.0)
    for _ in range(5):
        following = by_definition(theirs, ids, 3, 2)[:, -1:].argmax(-1)
        ids = np.concatenate([ids, following], -1)
    np.testing.assert_array_equal(found, ids[:, 7:])


@pytest.mark.slow
def test_a_tied_embedding_gets_both_gradients():
    sizes = {"vocabulary": 19, "width": 8, "depth": 1, "heads": 2, "positions": 12}
    net, ids = gpt2(**sizes), jnp.array([[1, 2, 3]])

    @jax.jit
    def gradient():
        params, state = net.init(KEY, ids)
        loss = lambda p: ops.softmax_cross_entropy(net.apply(p, state, ids)[0], ids + 1).mean()
        return jax.grad(loss)(params)

    rows = gradient()["wte"]["w"]
    assert (abs(rows).max(-1) > 0).all()  # also of ids that are not in the text
    assert abs(rows[jnp.array([1, 2, 3])]).min() > 0


# A sequence to a sequence ---------------------------------------------------------------------


def translator(vocabulary, width, heads=2):
    """A transformer from {"source", "lengths", "target"} to the logits of the next ids."""
    make = lambda **more: repeat(TransformerBlock(heads, hidden=2 * width, **more), 2)
    words = Embedding(vocabulary, width)
    decoder = make(causal=True, context_width=width)
    nets = {
        "encoder": chain(words, make(), RMSNorm()),
        "decoder": chain(words, decoder, RMSNorm(), Dense(vocabulary)),
    }
    of = {"encoder": "source", "decoder": "target"}

    def init(key, x):
        keys = dict(zip(nets, jax.random.split(key), strict=True))
        made = {name: net.init(keys[name], x[of[name]]) for name, net in nets.items()}
        return tuple({name: m[i] for name, m in made.items()} for i in range(2))

    def apply(params, state, x, *, key=None, train=False):
        run = lambda name, **more: nets[name].apply(
            params[name], state[name], x[of[name]], key=key, train=train, **more
        )
        context, encoder = run("encoder", lengths=x["lengths"])
        y, decoder = run("decoder", context=context, context_lengths=x["lengths"])
        return y, {"encoder": encoder, "decoder": decoder}

    return Layer(init, apply, "translator")


def pairs(n, length=6, vocabulary=12):
    """Sources of several lengths, and the same backwards; ids 0 and 1 are padding and start."""
    random = np.random.default_rng(0)
    source = random.integers(2, vocabulary, (n, length))
    lengths = random.integers(2, length + 1, n)
    order = np.arange(length)
    within = order < lengths[:, None]
    backwards = np.take_along_axis(source, np.where(within, lengths[:, None] - 1 - order, 0), 1)
    backwards = np.where(within, backwards, 0)
    target = np.concatenate([np.ones((n, 1), int), backwards[:, :-1]], 1)
    x = {"source": np.where(within, source, 0), "lengths": lengths, "target": target}
    return jax.tree.map(jnp.asarray, (x, backwards))


@pytest.mark.slow
def test_a_translator_ignores_padding():
    (x, _), net = pairs(4), translator(12, 8)
    params, state = jax.jit(net.init)(KEY, x)
    apply = jax.jit(lambda x: net.apply(params, state, x)[0])
    other = x | {"source": jnp.where(x["source"] == 0, 7, x["source"])}
    np.testing.assert_array_equal(apply(x), apply(other))
    assert (apply(x) != apply(x | {"lengths": x["lengths"] - 1})).any()


@pytest.mark.slow
def test_a_translator_learns():
    """Without its context, it could not know which id follows."""
    net, optimizer = translator(12, 32), optim.adam(optax.cosine_decay_schedule(3e-3, 400))
    x, labels = pairs(256)
    loss = functools.partial(ops.softmax_cross_entropy, ignore=0)
    state = TrainState.create(net, optimizer, KEY, x)
    step = jax.jit(make_step(net, loss, optimizer))
    with jax.numpy_dtype_promotion("standard"):  # Optax's schedules mix dtypes
        for _ in range(400):
            state, record = step(state, x, labels)
    assert record["loss"] < 0.1


# Networks with other losses ------------------------------------------------------------------


def vae(width, latent, pixels):
    """A variational auto-encoder (arXiv:1312.6114) from x to logits of x, mean and log variance."""
    encoder, decoder = mlp(width, 2 * latent), mlp(width, pixels)

    def init(key, x):
        z = jax.ShapeDtypeStruct((*x.shape[:-1], latent), x.dtype)
        of_encoder, of_decoder = jax.random.split(key)
        return {
            "encoder": encoder.init(of_encoder, x)[0],
            "decoder": decoder.init(of_decoder, z)[0],
        }

    def apply(params, state, x, *, key=None, train=False):
        stats, _ = encoder.apply(params["encoder"], ((),) * len(params["encoder"]), x)
        mean, log_var = jnp.split(stats, 2, -1)
        noise = jax.random.normal(key, mean.shape, mean.dtype) if train else 0.0
        z = mean + noise * jnp.exp(log_var / 2)
        logits, _ = decoder.apply(params["decoder"], ((),) * len(params["decoder"]), z)
        return (logits, mean, log_var), state

    return Layer(lambda key, x: (init(key, x), ()), apply, "vae")


def evidence(y, x):
    """The negative evidence lower bound of each example, equation 10 of the paper."""
    logits, mean, log_var = y
    divergence = 0.5 * (jnp.exp(log_var) + mean**2 - 1 - log_var).sum(-1)
    return ops.sigmoid_binary_cross_entropy(logits, x).sum(-1) + divergence


@pytest.mark.slow
def test_a_vae_learns():
    """Four prototypes with 5 % of their pixels flipped: fewer bits than independent pixels need."""
    random = np.random.default_rng(0)
    prototypes, kinds = random.random((4, 64)) < 0.5, random.integers(0, 4, 512)
    x = jnp.asarray(prototypes[kinds] ^ (random.random((512, 64)) < 0.05), float)
    net, optimizer = vae(64, 2, 64), optim.adam(3e-3)
    state = TrainState.create(net, optimizer, KEY, x)
    step = jax.jit(make_step(net, evidence, optimizer))
    for _ in range(500):
        state, record = step(state, x, x)
    rate = np.asarray(x.mean(0), float)
    independent = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)).sum()
    best = 64 * -(0.05 * np.log(0.05) + 0.95 * np.log(0.95)) + np.log(4)
    assert best < record["loss"] < (best + independent) / 2


def meta_loss(net, params, tasks, rate=0.05):
    """MAML (arXiv:1703.03400): the loss on new points after a step on the given ones, for tasks."""
    loss = lambda params, x, y: ops.mean_squared_error(net.apply(params, STATE, x)[0], y).mean()

    def of_task(given, new):
        gradient = jax.grad(loss)(params, *given)
        return loss(jax.tree.map(lambda p, g: p - rate * g, params, gradient), *new)

    return jax.vmap(of_task)(*tasks).mean()


STATE = ((),) * 5  # of a chain of five layers without state


def waves(key, tasks, points=10):
    """Points of sine waves of random amplitude and phase, (given, new), each of x and y."""
    of_wave, *of_points = jax.random.split(key, 3)
    amplitude, phase = jax.random.uniform(of_wave, (2, tasks, 1, 1), minval=0.5, maxval=3.0)
    for k in of_points:
        x = jax.random.uniform(k, (tasks, points, 1), minval=-5.0, maxval=5.0)
        yield x, amplitude * jnp.sin(x - phase)


@pytest.mark.slow
def test_maml_learns_to_learn():
    """A step on ten points of a wave helps on others; second derivatives are those of autodiff."""
    net = chain(Dense(20), ops.tanh, Dense(20), ops.tanh, Dense(1))
    params, _ = net.init(KEY, jnp.ones((1, 1)))
    tasks, optimizer = tuple(waves(KEY, 4)), optim.adam(3e-3)
    loss = functools.partial(meta_loss, net)
    hand, auto = jax.grad(loss)(params, tasks), jax.grad(autodiff(loss))(params, tasks)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), hand, auto)

    def step(carry, key):
        params, state = carry
        gradient = jax.grad(loss)(params, tuple(waves(key, 10)))
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(KEY, 500)
    (after, _), _ = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), keys))(params)
    new = tuple(waves(jax.random.key(1), 200))
    adapted, unadapted = loss(after, new), meta_loss(net, after, new, rate=0.0)
    assert adapted < 0.7 * unadapted
