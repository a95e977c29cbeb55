"""Tests of `scripts/train_mnist.py` on a small data set in the file format of MNIST."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import bench_step
import command_line
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_mnist
from resumable import FILES
from safetensors.numpy import load_file
from trained import largest_difference

from funcnet import datasets, ops, weights
from funcnet.layers import chain
from funcnet.training import TrainState, accuracy, evaluate, make_step

SCRIPT = Path(train_mnist.__file__)
TRAIN, TEST = 300, 101
LAST_LINE = r"test accuracy \d\.\d{4}"


def write_idx(path, values):
    sizes = b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes())


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    """Noise images with a bright bar; its position encodes the class."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    names = iter(datasets.SHA256)
    for n in (TRAIN, TEST):
        labels = rng.integers(0, 10, n)
        images = rng.integers(0, 100, (n, 28, 28))
        images[np.arange(n), 2 * labels + 4] = 255
        write_idx(folder / next(names), images)
        write_idx(folder / next(names), labels)
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setenv("FUNCNET_DATA", str(folder))
        yield datasets.mnist()  # Optax's schedules mix dtypes


def options(out, **changed):
    chosen = {"hidden": 16, "batch-size": 20, "epochs": 2, "out": out} | changed
    return [s for name, value in chosen.items() for s in (f"--{name}", *str(value).split())]


@pytest.fixture(scope="module")
def printed_and_out(tmp_path_factory):
    """The output and the folder of one run."""
    out, printed = tmp_path_factory.mktemp("runs") / "new" / "folder", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert train_mnist.main(options(out)) == 0
    return printed.getvalue(), out


@pytest.fixture(scope="module")
def trained(printed_and_out):
    return printed_and_out[1]


def reload(out, **config):
    """Loads the saved network as `weights.load` describes."""
    model = train_mnist.make_model(train_mnist.Config(hidden=(16,), **config))
    images = jax.ShapeDtypeStruct((1, 28, 28), jnp.uint8)
    params, state = jax.eval_shape(model.init, jax.random.key(0), images)
    tree = weights.load(out / "model.safetensors", {"params": params, "state": state})
    return model, tree["params"], tree["state"]


def test_what_is_printed(printed_and_out):
    curves, model, history, seconds, last = printed_and_out[0].splitlines()
    assert re.fullmatch(LAST_LINE, last)
    assert re.fullmatch(r"trained in \d+\.\d s", seconds)
    for line in (curves, model, history):
        assert Path(line.split(maxsplit=1)[1]).is_file()


@pytest.mark.slow
def test_what_is_saved(trained):
    assert sorted(os.listdir(trained)) == sorted(FILES)
    assert (trained / "curves.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((trained / "history.json").read_text())
    assert record["config"]["hidden"] == [16]
    assert record["config"]["out"] == str(trained)
    assert record["versions"]["jax"] == jax.__version__
    (values,) = record["history"].values()
    assert {len(v) for v in values.values()} == {2}
    assert record["result"]["test_accuracy"] == values["test accuracy"][-1]


def test_the_saved_network_is_the_trained_one(trained, data):
    """Its test accuracy is above chance (0.1) and equals the reported one."""
    model, params, state = reload(trained)
    images, labels = data.test_images, data.test_labels
    tested = evaluate(model, {"accuracy": accuracy}, params, state, images, labels)["accuracy"]
    reported = json.loads((trained / "history.json").read_text())["result"]["test_accuracy"]
    assert float(tested) == reported > 0.5


def test_paths_in_the_saved_file_can_be_read(trained):
    arrays = load_file(trained / "model.safetensors")
    assert arrays["params/2/0/w"].shape == (784, 16)
    assert arrays["state/2/1/mean"].shape == (16,)


def test_a_file_is_whole_or_not_there(tmp_path):
    def half(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    path = tmp_path / "model.safetensors"
    command_line.write(path, lambda file: file.write(b"whole"))
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'"):
        command_line.write(path, half)
    assert path.read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["model.safetensors"]


@pytest.mark.slow
def test_autodiff_trains_the_same_network(trained, tmp_path):
    """In float64 within 1e-8: the rules round differently, and Adam amplifies (see `compare`)."""
    assert train_mnist.main(options(tmp_path, rules="autodiff")) == 0
    hand, auto = reload(trained)[1:], reload(tmp_path)[1:]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 0, 1e-8), hand, auto)


@pytest.mark.slow
def test_both_and_another_seed(trained, tmp_path, capsys):
    assert train_mnist.main(options(tmp_path, rules="both", seed=1)) == 0
    out = capsys.readouterr().out
    differences = re.findall(r"epoch (\d): largest difference of parameters (\S+)", out)
    assert [int(epoch) for epoch, _ in differences] == [1, 2]
    assert all(0 < float(d) < 1e-8 for _, d in differences)  # 0 would mean the same computation
    assert re.search(r"takes \d\.\d{3} of its time", out)
    assert re.fullmatch(LAST_LINE, out.splitlines()[-1])
    history = json.loads((tmp_path / "history.json").read_text())["history"]
    assert list(history) == ["hand", "autodiff"]
    w = lambda out: reload(out)[1][2][0]["w"]
    assert (w(trained) != w(tmp_path)).mean() > 0.99


def test_the_largest_difference_is_over_all_leaves():
    a = {"w": jnp.array([1.0, 2.0]), "b": (jnp.array([[-1.0]]),)}
    b = {"w": jnp.array([1.0, 2.5]), "b": (jnp.array([[1.0]]),)}
    assert largest_difference(a, b) == 2
    assert largest_difference(a, a) == 0


@pytest.mark.few
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("sgd", "adamw") else [pytest.mark.slow])
        for name in train_mnist.OPTIMIZERS
    ],
)
def test_every_optimizer_decays_the_matrices_alone(name):
    """With a gradient of 0, only weight decay moves parameters."""
    config = train_mnist.Config(optimizer=name, learning_rate=0.1, weight_decay=0.5)
    optimizer = train_mnist.make_optimizer(config, steps=20)
    params = {"w": jnp.full((2, 2), 3.0), "b": jnp.full(2, 3.0)}
    zero = jax.tree.map(jnp.zeros_like, params)
    state = optimizer.init(params)
    for _ in range(3):  # the learning rate of the first step is 0
        updates, state = optimizer.update(zero, state, params)
    assert (updates["w"] < 0).all()
    assert (updates["b"] == 0).all()


def test_the_schedule_warms_up_and_ends_at_zero():
    config = train_mnist.Config(optimizer="sgd", learning_rate=0.5)
    optimizer = train_mnist.make_optimizer(config, steps=100)
    state, rates = optimizer.init(0.0), []
    for _ in range(101):
        update, state = optimizer.update(jnp.array(1.0), state)
        rates.append(-float(update))
    assert np.argmax(rates) == 10
    np.testing.assert_allclose([rates[0], rates[10], rates[100]], [0, 0.5, 0], atol=1e-8)


def test_options_reach_the_network():
    config = train_mnist.Config(hidden=(7,), activation="tanh", dropout=0.25, shift=2)
    mlp = "chain(Dense(7), BatchNorm(), tanh, Dropout(0.25), Dense(10))"
    assert repr(train_mnist.make_model(config)) == f"chain(Shift(2), pixels, {mlp})"
    images = jax.ShapeDtypeStruct((1, 28, 28), jnp.uint8)
    config = train_mnist.Config(hidden=(500,), initializer="normal")
    params, _ = train_mnist.make_model(config).init(jax.random.key(0), images)
    w = np.asarray(params[2][0]["w"])
    assert abs(w.std() / 0.01 - 1) < 5 / np.sqrt(2 * w.size)


def test_shift_moves_images_only_in_training():
    """A bright pixel moves by −1, 0 or 1 along each axis; outside the image it is lost."""
    image = jnp.zeros((28, 28), jnp.uint8).at[0, 5].set(255)
    images, shift = jnp.tile(image, (400, 1, 1)), train_mnist.Shift(1)
    moved, _ = shift.apply((), (), images, key=jax.random.key(0), train=True)
    assert moved.dtype == jnp.uint8
    at = {tuple(np.argwhere(m)[0].tolist()) for m in np.asarray(moved) if m.any()}
    assert at == {(0, 4), (0, 5), (0, 6), (1, 4), (1, 5), (1, 6)}
    lost = float((moved.max((1, 2)) == 0).mean())
    assert abs(lost - 1 / 3) < 5 * np.sqrt(2 / 9 / 400)
    np.testing.assert_array_equal(shift.apply((), (), images)[0], images)
    still, _ = train_mnist.Shift(0).apply((), (), images, train=True)
    np.testing.assert_array_equal(still, images)
    with pytest.raises(ValueError, match=r"Shift\(1\): apply needs a key when train=True"):
        chain(shift).apply(((),), ((),), images, train=True)


def test_pixels_are_rows_of_numbers_from_0_to_1():
    x = train_mnist.pixels(jnp.array([[[0, 255], [51, 102]]], jnp.uint8))
    np.testing.assert_allclose(x, [[0, 1, 0.2, 0.4]], 1e-15)


WRONG = {
    "--optimizer foo": r"--optimizer.*'sgd'.*'adamw'",
    "--activation foo": r"--activation.*relu.*tanh",
    "--initializer foo": r"--initializer.*he.*xavier",
    "--rules foo": r"--rules.*hand.*both",
    "--hiden 3": r"--hiden.*--hidden",
    "--hidden 0": r"--hidden must be .*at least 1, got \(0,\)",
    "--hidden a": r"--hidden.*INT",
    "--dropout 1.5": r"--dropout must be in \[0, 1\), got 1.5",
    "--dropout nan": r"--dropout must be in \[0, 1\), got nan",
    "--shift -1": "--shift must be at least 0, and less than half an image, got -1",
    "--shift 14": "--shift must be at least 0, and less than half an image, got 14",
    "--shift 100": "--shift must be .* less than half an image, got 100",
    "--epochs 0": "--epochs must be at least 1, got 0",
    "--epochs": "^train_mnist: Missing value for argument '--epochs'",
    "--batch-size 0": "--batch-size must be 1 to 300",
    "--batch-size 301": "--batch-size must be 1 to 300, the number of images, got 301",
    "--learning-rate -1": "--learning-rate must be .*at least 0.*got -1",
    "--learning-rate nan": "--learning-rate must be .*at least 0.*got nan",
    "--weight-decay -1": "--weight-decay must be .*at least 0.*got -1",
    "--seed -1": "--seed must be in .*got -1",
    "--out /dev/null/runs": "--out must be a folder to write in, got /dev/null/runs",
}


@pytest.mark.parametrize(("wrong", "message"), WRONG.items(), ids=WRONG)
def test_wrong_options_end_in_one_line(wrong, message, tmp_path, capsys):
    argv = ["--out", str(tmp_path), *wrong.split()]
    assert train_mnist.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("train_mnist: ")
    assert re.search(message, err)
    assert not set(err) & set("│─╭╮╰╯")


def test_missing_data_ends_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FUNCNET_DATA", str(tmp_path / "nowhere"))
    assert train_mnist.main(options(tmp_path)) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "nowhere must hold train-images-idx3-ubyte" in err


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (1, np.full(TRAIN, 10), "the labels of the data must be 0 to 9, got 10"),
        (3, np.full(TEST, 200), "the labels of the data must be 0 to 9, got 200"),
        (2, np.zeros((TEST, 14, 14)), r"test images of the shape \(28, 28\), got \(101, 14, 14\)"),
    ],
)
def test_data_that_do_not_fit_end_in_one_line(
    file, values, message, data, tmp_path, monkeypatch, capsys
):
    for i, (name, array) in enumerate(zip(datasets.SHA256, data, strict=True)):
        write_idx(tmp_path / name, values if i == file else array)
    monkeypatch.setenv("FUNCNET_DATA", str(tmp_path))
    assert train_mnist.main(options(tmp_path / "out")) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.search(message, err)


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (ValueError("a\nb"), 2, "a b"),
        (OSError(28, "No space left on device"), 2, "[Errno 28] No space left on device"),
        (MemoryError(), 2, "MemoryError"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"), 2, "RESOURCE_EXHAUSTED"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_stops_training_is_one_line(raised, status, line, data, tmp_path, monkeypatch, capsys):
    def train(*_):
        raise raised

    monkeypatch.setattr(train_mnist, "train", train)
    assert train_mnist.main(options(tmp_path)) == status
    assert capsys.readouterr().err == f"train_mnist: {line}\n"


def test_a_mistake_of_ours_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(train_mnist, "train", None)
    with pytest.raises(TypeError):
        train_mnist.main(options(tmp_path))


def test_a_pipe_is_a_file_that_can_be_written(tmp_path):
    """A pipe, as in `--json >(jq)`, must be neither closed nor waited for."""
    os.mkfifo(tmp_path / "pipe")
    command_line.check_writable("--json", tmp_path / "pipe")


def test_help_is_not_an_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        train_mnist.main(["--help"])
    assert stopped.value.code == 0
    assert "--weight-decay" in capsys.readouterr().out


@pytest.mark.slow
def test_the_benchmark_compares_equals(data):
    """Without random parts, five steps of its raw JAX equal five steps of `train_mnist`.

    Two things are not compared: the biases before Batch Normalization, which have no effect and a
    gradient of only rounding error, and the running means, which move with these biases.
    """
    config = train_mnist.Config(hidden=(12, 8), batch_size=20, dropout=0.0, shift=0)
    images, labels = data.train_images[:20], data.train_labels[:20]
    model, optimizer = train_mnist.make_model(config), train_mnist.make_optimizer(config, 30)
    step = make_step(model, ops.softmax_cross_entropy, optimizer, metrics={"accuracy": accuracy})
    ours = TrainState.create(model, optimizer, jax.random.key(0), images)
    raw_step, raw = bench_step.raw_main_job(config, 30)

    first, norm1, _, second, norm2, _, last = ours.params[2]
    hidden = [first | norm1, second | norm2]
    params = jax.tree.map(jnp.array, {"hidden": hidden, "out": last})
    running = [{k: jnp.array(v) for k, v in s.items()} for s in ours.state[2] if s]
    raw = (params, running, raw[2], *raw[3:])
    step = jax.jit(step)
    for _ in range(5):
        ours, expected = step(ours, images, labels)
        raw, measured = raw_step(raw, images, labels)
        close(measured, expected)
    first, norm1, _, second, norm2, _, last = ours.params[2]
    raw_hidden = [{k: v for k, v in p.items() if k != "b"} for p in raw[0]["hidden"]]
    close(raw_hidden, [{"w": first["w"]} | norm1, {"w": second["w"]} | norm2])
    close(raw[0]["out"], last)
    close([s["var"] for s in raw[1]], [s["var"] for s in ours.state[2] if s])


def close(a, b):
    """Asserts equality up to float64 rounding, as amplified by five steps of Adam."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-8, 1e-8), a, b)


def run(*argv, cwd):
    """Runs the program as a user does: in a separate process, in float32, from another folder."""
    root = str(Path(datasets.__file__).parent.parent)
    return subprocess.run(
        [sys.executable, str(SCRIPT), *argv],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_person_runs_it(tmp_path):
    done = run("--hidden", "8", "--epochs", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(LAST_LINE, done.stdout.splitlines()[-1])
    assert (tmp_path / "runs" / "mnist" / "model.safetensors").is_file()
    assert "training: 100%" in done.stderr
    assert "loss=" in done.stderr
    assert "accuracy=" in done.stderr


def test_a_person_errs(tmp_path):
    done = run("--optimizer", "foo", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_full_mnist(seed, tmp_path, monkeypatch):
    """The required accuracy with default options: 98.6 % for each of five seeds."""
    monkeypatch.delenv("FUNCNET_DATA")
    done = run("--seed", str(seed), cwd=tmp_path)
    assert float(done.stdout.split()[-1]) >= 0.986
