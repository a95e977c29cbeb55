"""Tests of `funcnet.checkpoints`: what is restored, where to, and what is refused."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from funcnet import optim
from funcnet.checkpoints import Checkpoints
from funcnet.layers import mlp
from funcnet.ops import softmax_cross_entropy
from funcnet.training import TrainState, make_epoch, make_step

DTYPES = ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float16"]
DTYPES += ["int4", "uint8", "bool", "complex64"]
EXTRA = {"history": [0.1, float("inf")], "epoch": 3, "of": None}


def tree(impl="threefry2x32"):
    """A TrainState with leaves of many dtypes and empty parts."""
    params = {d: jnp.arange(4).reshape(2, 2).astype(d) for d in DTYPES}
    params |= {"none": None, "()": ()}
    optimizer = optax.adam(1e-3)
    state = [jnp.full((4, 6), jnp.pi), (jnp.zeros((), "int16"),)]
    opt_state = optimizer.init({"w": jnp.ones((4, 2))})
    key = jax.random.key(5, impl=impl)
    return TrainState(params, state, opt_state, key, jnp.array(7, jnp.int32))


def data_of(leaf):
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def assert_same(a, b):
    """The same structure, dtypes and bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert data_of(x).tobytes() == data_of(y).tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a checkpoint of `tree()`."""
    path = tmp_path_factory.mktemp("checkpoints")
    with Checkpoints(path) as checkpoints:
        checkpoints.save(7, tree(), extra=EXTRA)
    return path


@pytest.mark.parametrize("abstract", [False, True])
def test_all_is_restored(abstract, folder):
    like = jax.tree.map(lambda a: a + 1 if a.dtype == float else a, tree())
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps == [7]
        restored, extra = checkpoints.restore(jax.eval_shape(lambda: like) if abstract else like)
        assert checkpoints.extra() == extra
    assert_same(restored, tree())
    assert extra == EXTRA
    assert not any(leaf.committed for leaf in jax.tree.leaves(restored))


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_every_kind_of_key_is_restored(impl, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, tree(impl))
        assert_same(checkpoints.restore(tree(impl))[0], tree(impl))


def test_raw_keys_are_restored(tmp_path):
    state = tree()._replace(key=jax.random.PRNGKey(3))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state)
        assert_same(checkpoints.restore(state)[0], state)


def on(mesh, *spec):
    return jax.sharding.NamedSharding(mesh, jax.P(*spec))


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_it_is_restored_to_another_mesh(kind, tmp_path):
    """Saved on 4 devices; restored on 2 × 2, on 2 others, and on one."""
    types = lambda n: (getattr(jax.sharding.AxisType, kind),) * n
    line = jax.make_mesh((4,), ("a",), axis_types=types(1))
    square = jax.make_mesh((2, 2), ("a", "b"), axis_types=types(2))
    others = jax.make_mesh((2,), ("a",), axis_types=types(1), devices=jax.devices()[2:])
    place = lambda sharding, rest: lambda a: sharding if a.shape == (4, 6) else rest
    shardings = lambda *s: jax.tree.map(place(*s), tree())
    saved = jax.device_put(tree(), shardings(on(line, "a"), on(line)))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, saved)
        for first, rest in [
            (on(line, "a"), on(line)),
            (on(square, "b", "a"), on(square)),
            (on(others, None, "a"), on(others)),
            (jax.sharding.SingleDeviceSharding(jax.devices()[1]),) * 2,
        ]:
            like = jax.tree.map(
                lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
                tree(),
                shardings(first, rest),
            )
            restored, _ = checkpoints.restore(like)
            assert_same(restored, tree())
            assert jax.tree.map(lambda a: a.sharding, restored) == shardings(first, rest)
        assert_same(checkpoints.restore(tree())[0], tree())


def test_training_continues_bit_for_bit(tmp_path):
    """The buffers of the saved state are donated while the files are being written."""
    x = jax.random.normal(jax.random.key(0), (400, 30))
    labels, net, optimizer = jnp.arange(400) % 3, mlp(200, 3, dropout=0.2), optim.adam(1e-3)
    epoch = make_epoch(make_step(net, softmax_cross_entropy, optimizer), batch_size=20)
    create = lambda: TrainState.create(net, optimizer, jax.random.key(1), x)
    ends, state = [], create()
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        for _ in range(5):
            state, _ = epoch(state, x, labels)
            checkpoints.save(int(state.step), state)
        ends = checkpoints.steps
    assert ends == [20, 40, 60, 80, 100]
    for begin in ends:
        with Checkpoints(tmp_path, keep=9) as checkpoints:
            again, _ = checkpoints.restore(jax.eval_shape(create), step=begin)
        assert again.step == begin
        while again.step < 100:
            again, _ = epoch(again, x, labels)
        assert_same(again, state)


def test_the_last_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step in (1, 2, 5, 8, 9):
            checkpoints.save(step, {"a": jnp.full(2, step)})
    assert sorted(os.listdir(tmp_path)) == ["5", "8", "9"]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore({"a": jnp.zeros(2, int)}, step=8)[0]["a"].tolist() == [8, 8]


def test_extra_is_as_it_was_at_the_call(tmp_path):
    history = [1]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, {"a": jnp.ones(2)}, extra=history)
        history.append(2)
        assert checkpoints.restore({"a": jnp.ones(2)})[1] == [1]


def test_what_a_killed_process_left_is_no_checkpoint(folder, tmp_path):
    """Orbax's unfinished folders are removed when the next process opens the folder."""
    for step in (8, 9):
        (tmp_path / f"{step}.orbax-checkpoint-tmp" / "tree").mkdir(parents=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == []
        checkpoints.save(9, tree())
    assert os.listdir(tmp_path) == ["9"]


WRONG = {
    "shape": (
        lambda t: t._replace(state=[jnp.zeros((6, 4)), t.state[1]]),
        "'state/0' must be float64[6,4], got float64[4,6] in the checkpoint of step 7",
    ),
    "dtype": (
        lambda t: t._replace(step=jnp.zeros((), "int16")),
        "'step' must be int16[], got int32[] in the checkpoint of step 7",
    ),
    "missing": (
        lambda t: t._replace(params=t.params | {"w": jnp.zeros(3)}),
        "the checkpoint of step 7 must hold 'params/w', float64[3], as like does",
    ),
    "left over": (
        lambda t: t._replace(opt_state=()),
        "the checkpoint of step 7 must hold the names of like, which has no 'opt_state/0/count'",
    ),
    "kind of key": (
        lambda t: t._replace(key=jax.random.key(0, impl="rbg")),
        "'key' must be uint32[4], got uint32[2] in the checkpoint of step 7",
    ),
    "raw key": (
        lambda t: t._replace(key=jax.random.PRNGKey(0)),
        "'key' must be uint32[2], got key<fry>[] in the checkpoint of step 7",
    ),
    "not arrays": (lambda t: t._replace(step=7), "'step' of like must be an array, got int"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_a_mismatch_is_one_line_that_names_the_leaf(change, message, folder):
    error = TypeError if "array" in message else ValueError
    expected = pytest.raises(error, match="^" + re.escape(f"restore: {message}") + "$")
    with Checkpoints(folder) as checkpoints, expected:
        checkpoints.restore(change(tree()))


def test_keys_of_another_kind_with_as_many_words_are_refused(tmp_path):
    message = (
        r"^restore: 'key' must be key<urbg>\[\], got key<rbg>\[\] in the checkpoint of step 0$"
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, tree("rbg"))
        with pytest.raises(ValueError, match=message):
            checkpoints.restore(tree("unsafe_rbg"))


def test_wrong_calls(folder, tmp_path):
    a = {"a": jnp.ones(2)}
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ValueError, match=r"^restore: step must be saved first$"):
            checkpoints.restore(a)
        with pytest.raises(ValueError, match=r"^extra: step must be saved first$"):
            checkpoints.extra()
        checkpoints.save(3, a)
        with pytest.raises(ValueError, match=r"^restore: step must be one of \[3\], got 4$"):
            checkpoints.restore(a, step=4)
        for step in (3, 2):
            with pytest.raises(ValueError, match=rf"^save: step must .* than 3, got {step}$"):
                checkpoints.save(step, a)
        for wrong, error, message in [
            ({"a": [1.0]}, TypeError, "'a/0' must be an array, got float"),
            ({"a": [jnp.ones((0, 2))]}, ValueError, "'a/0' must have elements, got float64[0,2]"),
            ({}, ValueError, "tree must have leaves, got {}"),
        ]:
            with pytest.raises(error, match="^" + re.escape(f"save: {message}") + "$"):
                checkpoints.save(4, wrong)
        with pytest.raises(TypeError, match=r"^save: extra must be a JSON value: .*set"):
            checkpoints.save(4, a, extra={1})
        with pytest.raises(TypeError, match=r"^save: step must be an integer"):
            checkpoints.save(4.0, a)
        assert checkpoints.steps == [3]
    with pytest.raises(ValueError, match=r"^Checkpoints: keep must be"):
        Checkpoints(tmp_path, keep=0)
    with pytest.raises(OSError, match="Not a directory"):
        Checkpoints("/dev/null/checkpoints")


FULL = """
import resource, sys
import jax.numpy as jnp
from funcnet import optim
from funcnet.checkpoints import Checkpoints

small, large = ({"a": jnp.arange(n) * 1.1} for n in (10, 10**6))
with Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(1, small)
for limit in (2**16, 1):
    try:
        with Checkpoints(sys.argv[1]) as checkpoints:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            checkpoints.save(2, large)
    except OSError as e:
        print(e.errno, e)
with Checkpoints(sys.argv[1]) as checkpoints:
    print(checkpoints.steps, float(checkpoints.restore(small)[0]["a"][1]))
"""


def test_a_save_that_fails_loses_nothing(tmp_path):
    """A limit on the size of files stands for a full disk."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == [
        *[f"27 [Errno 27] File too large: '{tmp_path}'"] * 2,
        f"[1] {float(np.float32(1.1))}",
    ], done.stderr[-2000:]


def test_a_missing_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    message = r"^Checkpoints: orbax.checkpoint is missing; install funcnet\[checkpoint\]$"
    with pytest.raises(ModuleNotFoundError, match=message):
        Checkpoints(tmp_path)


def test_importing_funcnet_imports_neither_orbax_nor_safetensors():
    code = "import sys, funcnet; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert "funcnet.checkpoints" in loaded
    assert not [name for name in loaded if name.split(".")[0] in ("orbax", "safetensors")]
