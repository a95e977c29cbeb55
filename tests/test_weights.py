"""Tests of `funcnet.weights`: safetensors files, and networks of PyTorch and Flax."""

import os
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet import ops, weights
from funcnet.layers import BatchNorm, Conv, Dense, GlobalAvgPool, chain

NET = chain(Conv(4, (3, 3)), BatchNorm(eps=1e-5), ops.relu, GlobalAvgPool(), Dense(3))
X = jax.random.normal(jax.random.key(0), (2, 6, 5, 2))
LIKE = jax.eval_shape(NET.init, jax.random.key(0), X)


def random_like(tree):
    """A tree with positive random leaves, as variances must be positive."""
    random = np.random.default_rng(1)
    return jax.tree.map(lambda a: jnp.asarray(random.uniform(0.5, 1.5, a.shape), a.dtype), tree)


def of(dtype, *shape):
    return jnp.arange(max(1, np.prod(shape, dtype=int))).reshape(shape).astype(dtype)


@pytest.mark.parametrize("dtype", weights.DTYPES.values())
def test_a_file_holds_every_dtype_exactly(dtype, tmp_path):
    tree = {"a": of(dtype, 2, 3), "b": (of(dtype), jnp.zeros((0, 3), dtype), [()]), "c": None}
    weights.save(tmp_path / "x.safetensors", tree)
    loaded = weights.load(tmp_path / "x.safetensors", jax.eval_shape(lambda: tree))
    assert jax.tree.structure(loaded) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(tree), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_a_transposed_numpy_array_is_saved_as_it_is(tmp_path):
    tree = {"w": np.arange(6.0).reshape(2, 3).T}
    weights.save(tmp_path / "x", tree)
    np.testing.assert_array_equal(weights.load(tmp_path / "x", tree)["w"], tree["w"])


def test_names_are_paths():
    assert list(weights.flatten(LIKE[0])) == ["0/b", "0/w", "1/bias", "1/scale", "4/b", "4/w"]


def test_unflatten_is_the_inverse_of_flatten():
    tree = random_like(LIKE)
    again = weights.unflatten(weights.flatten(tree), LIKE)
    jax.tree.map(np.testing.assert_array_equal, again, tree)


def test_the_result_is_sharded_as_like(tmp_path):
    mesh = jax.make_mesh((2, 2), ("a", "b"))
    sharding = jax.sharding.NamedSharding(mesh, jax.P("b", "a"))
    weights.save(tmp_path / "x", {"w": of("float32", 4, 2)})
    like = {"w": jax.ShapeDtypeStruct((4, 2), "float32", sharding=sharding)}
    loaded = weights.load(tmp_path / "x", like)["w"]
    assert loaded.sharding == sharding
    np.testing.assert_array_equal(loaded, of("float32", 4, 2))


F32 = lambda *shape: jax.ShapeDtypeStruct(shape, "float32")
WRONG = {
    "shape": ({"a": [F32(3, 2)]}, "'a/0' must be float32[3,2], got float32[2,3] in FILE"),
    "dtype": (
        {"a": [jax.ShapeDtypeStruct((2, 3), "bfloat16")]},
        "'a/0' must be bfloat16[2,3], got float32[2,3] in FILE",
    ),
    "missing": (
        {"a": [F32(2, 3)], "b": F32(4)},
        "FILE must hold 'b', float32[4], as like does",
    ),
    "left over": ({}, "FILE must hold the names of like, which has no 'a/0'"),
    "not arrays": ({"a": [1.0]}, "'a/0' must be an array, got float in like"),
}


@pytest.mark.parametrize(("like", "message"), WRONG.values(), ids=WRONG)
def test_a_mismatch_is_one_line_that_names_the_leaf(like, message, tmp_path):
    file = tmp_path / "x.safetensors"
    weights.save(file, {"a": [of("float32", 2, 3)]})
    error = TypeError if "an array" in message else ValueError
    with pytest.raises(error, match="^" + re.escape(f"load: {message}".replace("FILE", str(file)))):
        weights.load(file, like)


def test_what_cannot_be_saved():
    with pytest.raises(TypeError, match=r"^save: 'w' must be of a dtype of safetensors, got int4"):
        weights.save("/dev/null", {"w": jnp.zeros(2, "int4")})
    with pytest.raises(TypeError, match=r"^save: 'w' must be an array, got str$"):
        weights.save("/dev/null", {"w": "a"})
    with pytest.raises(TypeError, match=r"^save: 'w' must be of a dtype .* got key<fry>\[\]"):
        weights.save("/dev/null", {"w": jax.random.key(0)})
    with pytest.raises(ValueError, match=r"^flatten: names must differ, got two leaves 'a/b'$"):
        weights.flatten({"a": {"b": 1}, "a/b": 2})
    with pytest.raises(TypeError, match=r"^unflatten: 'w' must be an array, got list in arrays$"):
        weights.unflatten({"w": [1.0]}, {"w": F32(1)})


def test_what_cannot_be_loaded(tmp_path):
    (tmp_path / "x").write_bytes(b"no safetensors file")
    with pytest.raises(ValueError, match=r"^load: \S+ must be a safetensors file: [^\n]+$"):
        weights.load(tmp_path / "x", {})
    with pytest.raises(FileNotFoundError, match="nowhere"):
        weights.load(tmp_path / "nowhere", {})


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    import safetensors.numpy

    def full(arrays, path):
        path.write_bytes(b"half")
        raise safetensors.SafetensorError("I/O error: No space left on device")

    weights.save(tmp_path / "x", {"w": of("float32", 2)})
    before = (tmp_path / "x").read_bytes()
    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(OSError, match=r"^save: \S+ cannot be written: .*No space left on device$"):
        weights.save(tmp_path / "x", {"w": of("float32", 3)})
    assert (tmp_path / "x").read_bytes() == before
    assert os.listdir(tmp_path) == ["x"]
    with pytest.raises(NotADirectoryError, match="x"):
        weights.save(tmp_path / "x" / "y", {"w": of("float32", 3)})


def outputs(params, state):
    return NET.apply(params, state, X)[0]


def torch_net(torch):
    """The network of NET in PyTorch, in float64."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, padding="same"),
        torch.nn.BatchNorm2d(4, eps=1e-5),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 3),
    ).double()


# By our name: the name in PyTorch, and where our axes are among its axes.
TORCH = {
    "params/0/w": ("0.weight", (2, 3, 1, 0)),
    "params/0/b": ("0.bias", (0,)),
    "params/1/scale": ("1.weight", (0,)),
    "params/1/bias": ("1.bias", (0,)),
    "params/4/w": ("5.weight", (1, 0)),
    "params/4/b": ("5.bias", (0,)),
    "state/1/mean": ("1.running_mean", (0,)),
    "state/1/var": ("1.running_var", (0,)),
}


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is an optional development dependency")


def torch_outputs(torch, net):
    with torch.no_grad():
        return net.eval()(torch.tensor(np.asarray(X)).movedim(-1, 1)).numpy()


def test_pytorch_loads_our_file(torch, tmp_path):
    from safetensors.torch import load_file

    params, state = random_like(LIKE)
    weights.save(tmp_path / "x", {"params": params, "state": state})
    ours, net = load_file(tmp_path / "x"), torch_net(torch)
    theirs = {
        name: ours[our].permute(*np.argsort(axes).tolist()) for our, (name, axes) in TORCH.items()
    }
    net.load_state_dict(theirs, strict=False)  # `num_batches_tracked` has no counterpart
    np.testing.assert_allclose(torch_outputs(torch, net), outputs(params, state), 1e-12, 1e-12)


def test_pytorch_loads_bfloat16_and_float8(torch, tmp_path):
    from safetensors.torch import load_file

    values = [-1.5, 0.0, 448.0]
    tree = {d: jnp.asarray(values).astype(d) for d in ("bfloat16", "float8_e4m3fn")}
    weights.save(tmp_path / "x", tree)
    for name, tensor in load_file(tmp_path / "x").items():
        assert tensor.dtype == getattr(torch, name)
        assert tensor.float().tolist() == values


def test_a_state_dict_becomes_our_parameters(torch):
    torch.manual_seed(0)
    net = torch_net(torch)
    net.train()(torch.randn(5, 2, 6, 5, dtype=torch.float64))  # other running statistics
    theirs = net.state_dict()
    arrays = {our: theirs[name].numpy().transpose(axes) for our, (name, axes) in TORCH.items()}
    tree = weights.unflatten(arrays, {"params": LIKE[0], "state": LIKE[1]})
    ours = outputs(tree["params"], tree["state"])
    np.testing.assert_allclose(ours, torch_outputs(torch, net), 1e-12, 1e-12)
    with pytest.raises(ValueError, match=r"'w' must be float64\[2\], got torch.float64\[2\]"):
        weights.unflatten({"w": torch.zeros(2, dtype=torch.float64)}, {"w": of("float64", 2)})


def test_a_tree_of_flax_linen_becomes_our_parameters():
    nn = pytest.importorskip("flax.linen", reason="Flax is an optional development dependency")
    net = nn.Sequential(
        [
            nn.Conv(4, (3, 3), param_dtype=float),
            nn.BatchNorm(use_running_average=True, epsilon=1e-5, param_dtype=float),
            nn.relu,
            lambda x: x.mean((1, 2)),
            nn.Dense(3, param_dtype=float),
        ]
    )
    with jax.numpy_dtype_promotion("standard"):
        theirs = random_like(jax.eval_shape(net.init, jax.random.key(0), X))
    theirs = jax.tree.map(lambda a: a.astype(float), theirs)  # its statistics are in float32
    names = {
        "params/0/w": "params/layers_0/kernel",
        "params/0/b": "params/layers_0/bias",
        "params/1/scale": "params/layers_1/scale",
        "params/1/bias": "params/layers_1/bias",
        "params/4/w": "params/layers_4/kernel",
        "params/4/b": "params/layers_4/bias",
        "state/1/mean": "batch_stats/layers_1/mean",
        "state/1/var": "batch_stats/layers_1/var",
    }
    found = weights.flatten(theirs)
    assert set(found) == set(names.values())
    tree = weights.unflatten(
        {our: found[name] for our, name in names.items()}, {"params": LIKE[0], "state": LIKE[1]}
    )
    ours = outputs(tree["params"], tree["state"])
    np.testing.assert_allclose(ours, net.apply(theirs, X), 1e-12, 1e-12)


def test_a_missing_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for name, f in {"save": weights.save, "load": weights.load}.items():
        message = rf"^{name}: safetensors is missing; install funcnet\[checkpoint\]$"
        with pytest.raises(ModuleNotFoundError, match=message):
            f(tmp_path / "file", LIKE)
