"""Tests of `generate`: what it samples, that the cache changes nothing, and what an id costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet import generate, models, sharding
from funcnet.layers import (
    Dense,
    Embedding,
    LayerNorm,
    Positions,
    TransformerBlock,
    chain,
    repeat,
    stateless,
)
from funcnet.profile._flops import flops

KEY, V = jax.random.key(0), 11


def rotary(cache=None, **more):
    return models.transformer(V, width=8, depth=2, heads=2, kv_heads=1, cache=cache, **more)


def learned(cache=None):
    """With positions that are learned, as in GPT-2."""
    block = TransformerBlock(
        2, mlp=Dense(8), norm=LayerNorm, causal=True, rope_base=None, bias=True, cache=cache
    )
    positions = Positions(20, cache=cache is not None)
    return chain(Embedding(V, 8, dtype=float), positions, repeat(block, 2), Dense(V))


def ids(*shape):
    return jnp.asarray(np.random.default_rng(0).integers(0, V, shape), jnp.int32)


def started(make, x, n):
    """The network with a cache of n positions, its params and state."""
    net = make(cache=n)
    return net, *jax.jit(net.init)(KEY, x)


def without(make, x):
    """The logits of the network without a cache."""
    return jax.jit(lambda: make().apply(*make().init(KEY, x), x)[0])()


@pytest.mark.few
@pytest.mark.parametrize("pieces", [(4, 1), (5,), (1,) * 5, (2, 1, 2)], ids=str)
@pytest.mark.parametrize("make", [rotary, learned])
def test_logits_with_a_cache_are_those_without(make, pieces):
    x = ids(2, 5)
    expected = without(make, x)
    net, params, state = started(make, x, 7)
    found, start = [], 0
    apply = jax.jit(net.apply)
    for n in pieces:
        logits, state = apply(params, state, x[:, start : start + n])
        found.append(logits)
        start += n
    rtol = 1e-12 if expected.dtype == float else 1e-5
    np.testing.assert_allclose(jnp.concatenate(found, 1), expected, rtol, rtol)


@pytest.mark.slow
@pytest.mark.few
@pytest.mark.parametrize("make", [learned, rotary])
def test_it_goes_on_with_the_likeliest_id(make):
    """At temperature 0: as if all that is there were given to the network again for each id."""
    prompt = ids(3, 4)
    net, params, state = started(make, prompt, 12)
    apply = jax.jit(lambda x: make().apply(*make().init(KEY, x), x)[0])
    seen = jnp.zeros((3, 12), prompt.dtype).at[:, :4].set(prompt)
    for n in range(4, 11):  # a causal network ignores what is behind n
        seen = seen.at[:, n].set(apply(seen)[:, n - 1].argmax(-1).astype(seen.dtype))
    write = lambda state, x, n: generate(net, params, state, x, n, key=KEY, temperature=0.0)
    found, state = write(state, prompt, 5)
    assert found.dtype == prompt.dtype
    np.testing.assert_array_equal(found, seen[:, 4:9])
    more, _ = write(state, found[:, -1:], 2)
    np.testing.assert_array_equal(more, seen[:, 9:11])


def test_it_samples_from_the_softmax():
    """A network that always gives the same logits; each id is a sample by its own key."""
    logits = jnp.array([0.0, 1.0, -1.0, 0.5])
    count = stateless(lambda p, x: jnp.broadcast_to(logits, (*x.shape, 4)), lambda *_: (), "same")
    net = count._replace(apply=lambda p, s, x, **_: (count.apply((), (), x)[0], s + 1))
    prompt, steps = jnp.zeros((50, 2), jnp.int32), 200
    for temperature in (1.0, 0.5):
        found, calls = jax.jit(
            lambda t: generate(net, (), jnp.array(0), prompt, steps, key=KEY, temperature=t)
        )(temperature)
        assert calls == 1 + steps  # the prompt but its last id, and each id but the last
        share = np.bincount(np.asarray(found).ravel(), minlength=4) / found.size
        p = np.asarray(jax.nn.softmax(logits / temperature))
        assert (abs(share - p) < 4 * np.sqrt(p * (1 - p) / found.size)).all()
        assert len({tuple(row) for row in found.tolist()}) == len(found)


@pytest.mark.slow
def test_an_ensemble_of_temperatures():
    prompt, net = ids(4), rotary(cache=10)
    params, state = net.init(KEY, prompt)
    write = lambda t: generate(net, params, state, prompt, 5, key=KEY, temperature=t)[0]
    each = jax.vmap(write)(jnp.array([0.0, 1.0]))
    np.testing.assert_array_equal(each, [write(0.0), write(1.0)])


@pytest.mark.slow
def test_it_is_exported_and_divided_over_devices():
    prompt = ids(8, 3)
    net, params, state = started(rotary, prompt, 12)
    write = lambda params, state, x: generate(net, params, state, x, 5, key=KEY)[0]
    expected = jax.jit(write)(params, state, prompt)
    made = jax.export.export(jax.jit(write), platforms=["cpu", "cuda", "tpu"])
    again = jax.export.deserialize(made(params, state, prompt).serialize())
    np.testing.assert_array_equal(again.call(params, state, prompt), expected)
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    plan = sharding.fsdp(mesh, tensor="model")
    with plan.active():
        found = jax.jit(write)(plan.place(params), state, plan.examples(prompt))
    np.testing.assert_array_equal(found, expected)
    assert found.sharding.spec[0] == "data"


@pytest.mark.slow
def test_behind_the_last_learned_position_the_id_is_none():
    prompt = ids(2, 15)
    net, params, state = started(learned, prompt, 30)
    found, _ = generate(net, params, state, prompt, 10, key=KEY)
    assert (found[:, :6] < V).all()
    assert (found[:, 6:] == V).all()


def test_an_id_takes_operations_proportional_to_the_cache():
    """However long the sequence has become; by the operations of the program."""
    prompt = ids(1, 4)

    def per_id(n):
        net = rotary(cache=n)
        params, state = jax.eval_shape(net.init, KEY, prompt)
        run = lambda steps: lambda p, s: generate(net, p, s, prompt, steps, key=KEY)[0]
        few, many = (flops(run(steps), params, state) for steps in (4, 8))
        assert few[1]
        assert many[1]
        each, rest = divmod(many[0] - few[0], 4)
        assert rest == 0
        return each

    a, b, c = (per_id(n) for n in (64, 128, 256))
    assert c - b == 2 * (b - a) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net": generate}, "net must be a layer, got function generate"),
        ({"prompt": ids(1, 0)}, "prompt must be integers of shape .* got int32"),
        ({"prompt": jnp.ones((1, 2))}, "prompt must be integers of shape .* got float64"),
        ({"prompt": [1]}, "prompt must be an array, got list"),
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be a finite number of at least 0, got -1.0"),
        ({"key": 3}, "key must be one key of jax.random.key, got 3"),
        ({"net": rotary(), "state": ()}, "net must keep what it has seen in its state"),
    ],
)
def test_what_is_refused(change, message):
    net, prompt = rotary(cache=4), ids(1, 2)
    shapes = jax.eval_shape(net.init, KEY, prompt)
    params, state = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    given = {"net": net, "params": params, "state": state, "prompt": prompt, "steps": 2}
    with pytest.raises((TypeError, ValueError), match=f"^generate: {message}") as e:
        generate(**given | {"key": KEY} | change)
    assert "\n" not in str(e.value)
