"""Tests of training a language model on a small text that repeats a sentence."""

import contextlib
import dataclasses
import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import language_model
import numpy as np
import pytest
import train_lm
from resumable import FILES

import funcnet
from funcnet import autodiff, weights
from funcnet.training import TrainState, evaluate

SCRIPT = Path(train_lm.__file__)
SENTENCE = b"Sphinx of black quartz, judge my vow. "
LAST_LINE = r"held-out bits per byte \d+\.\d{4}"
SMALL = {"width": 32, "depth": 2, "heads": 2, "context": 16, "batch-size": 8}


@pytest.fixture(scope="module", autouse=True)
def promotion():
    with jax.numpy_dtype_promotion("standard"):  # Optax's schedules mix dtypes
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text"
    path.write_bytes(60 * SENTENCE)
    return path


def options(text, out, **changed):
    chosen = SMALL | {"text": text, "stretches": 3, "steps": 50, "learning-rate": 0.01, "out": out}
    chosen |= {
        "dropout": 0.0,
        "samples": 2,
        "sample-bytes": 50,
        "temperature": 0.1,
        "prompt": "Sphinx of b",
    }
    chosen |= changed
    return [s for name, value in chosen.items() for s in (f"--{name}", str(value))]


@pytest.fixture(scope="module", params=train_lm.SIZES)
def trained(request, text, tmp_path_factory):
    """The output, folder and configuration of a run with `--rules both`."""
    out, printed = tmp_path_factory.mktemp("runs") / "new" / "folder", io.StringIO()
    argv = options(text, out, model=request.param, rules="both")
    with contextlib.redirect_stdout(printed):
        assert train_lm.main(argv) == 0
    return printed.getvalue(), out, train_lm.parse(train_lm.Config, argv)


def reload(out, config):
    """Loads the saved network as `weights.load` describes."""
    model = train_lm.make_model(config)
    x = jax.ShapeDtypeStruct((1, config.context), jnp.int32)
    params, state = jax.eval_shape(model.init, jax.random.key(0), x)
    tree = weights.load(out / "model.safetensors", {"params": params, "state": state})
    return model, tree["params"], tree["state"]


def pieces(config):
    """The pieces of the held-out text on which the loss is measured."""
    _, held = train_lm.divide(config, language_model.read_text(config.text))
    starts = jnp.arange(0, len(held) - config.context, config.context)
    return language_model.cut(held, starts, config.context)


@pytest.mark.slow
def test_what_is_printed(trained):
    printed = trained[0]
    assert re.fullmatch(LAST_LINE, printed.splitlines()[-1])
    for name in ("curves", "model", "history"):
        assert Path(re.search(rf"^{name} +(.+)$", printed, re.MULTILINE)[1]).is_file()
    assert re.search(r"peak memory of the process [\d,]+ MB", printed)
    cost = r"^{}: [\d,]+ tokens per second, [\d,.]+ MB of temp.*, compiled in [\d.]+ s$"
    assert all(re.search(cost.format(n), printed, re.MULTILINE) for n in ("hand", "autodiff"))
    samples = re.split(r"^-+(?: sample \d -+)?\n", printed, flags=re.MULTILINE)[1:3]
    assert all(s.startswith("Sphinx of b") and len(s.rstrip("\n")) == 61 for s in samples)


@pytest.mark.slow
def test_what_is_saved(trained):
    out = trained[1]
    assert sorted(os.listdir(out)) == sorted(FILES)
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((out / "history.json").read_text())
    assert record["config"]["context"] == 16
    assert record["config"]["out"] == str(out)
    assert record["versions"]["jax"] == jax.__version__
    values = record["history"]["hand"]
    assert {len(v) for v in values.values()} == {3}
    assert record["result"]["bits_per_byte"] == values["held out"][-1]
    assert record["costs"]["hand"]["temporary bytes"] > 0


@pytest.mark.slow
def test_it_learns(trained):
    """Before training all bytes are about equally likely; afterwards the sentence is known.

    The position in the sentence at which a piece of 16 bytes begins still costs log₂ 38 bits.
    """
    _, out, config = trained
    model, params, state = reload(out, config)
    untrained, _ = jax.jit(model.init)(jax.random.key(0), pieces(config)[0])
    nats = lambda p: evaluate(model, {"": language_model.loss}, p, state, *pieces(config))[""]
    assert 7.9 < nats(untrained) / math.log(2) < 8.2
    reported = json.loads((out / "history.json").read_text())["history"]["hand"]["held out"]
    assert float(nats(params)) / math.log(2) == pytest.approx(reported[-1], rel=1e-12)
    assert reported[-1] < reported[0] < 8
    assert reported[-1] < 1.2


@pytest.mark.slow
def test_it_writes_what_it_has_learned(trained):
    """This includes text beyond the context, and prompts that are longer than the context."""
    _, out, config = trained
    _, params, state = reload(out, config)
    last = TrainState(params, state, (), jax.random.key(0), jnp.zeros((), jnp.int32))
    for known in (5, 30):
        prompt = (2 * SENTENCE)[:known]
        write = dataclasses.replace(config, prompt=prompt.decode(), samples=2, sample_bytes=50)
        for text in train_lm.write_on(write, last):
            assert text.encode() == (4 * SENTENCE)[: known + 50]


@pytest.mark.parametrize("model", train_lm.SIZES)
def test_all_rules_are_ours(model):
    """The traced network and loss contain exactly these rules; with autodiff, none."""
    config = train_lm.Config(model=model, width=8, depth=2, heads=2, context=4, batch_size=2)
    net, optimizer = train_lm.make_model(config), train_lm.make_optimizer(config)
    state = jax.eval_shape(lambda: train_lm.begin(config, net, optimizer))
    ids = jnp.zeros((2, 4), jnp.int32)

    def objective(params):
        return language_model.loss(net.apply(params, state.state, ids)[0], ids).mean()

    def rules(f):
        jaxpr = str(jax.make_jaxpr(f)(state.params))
        return set(re.findall(r"custom_vjp_call\[\s*name=(\w+)", jaxpr))

    own = {
        "transformer": {"affine", "dot_product_attention", "rope", "swiglu"},
        "lstm": {"lstm"},
    }
    assert rules(objective) == {"embedding", "rms_norm", "linear_cross_entropy"} | own[model]
    assert rules(autodiff(objective)) == set()


@pytest.mark.slow
def test_both_train_the_same_network(trained):
    """Training amplifies rounding of float64; a difference of 0 would mean the same computation."""
    printed, out, _ = trained
    found = re.findall(r"stretch (\d): largest difference of parameters (\S+)", printed)
    assert [int(stretch) for stretch, _ in found] == [1, 2, 3]
    assert 0 < float(found[0][1]) < 1e-9
    record = json.loads((out / "history.json").read_text())
    assert list(record["history"]) == list(record["costs"]) == ["hand", "autodiff"]
    hand, auto = (values["held out"] for values in record["history"].values())
    assert hand == pytest.approx(auto, rel=1e-6)
    ratios = r"[\d.]+ of the time .* [\d.]+ of the temporary memory, [\d.]+ of the compile time"
    assert re.search(ratios, printed)


@pytest.mark.slow
def test_memory(text, tmp_path, capsys):
    """Autodiff saves the attention scores of all pairs of bytes; the hand-written rules do not."""
    argv = [*options(text, tmp_path, context=200, depth=1), "--memory"]
    assert train_lm.main(argv) == 0
    out = capsys.readouterr().out
    rows = re.findall(r"^(hand rules|autodiff.*?) +([\d,.]+) +([\d.]+)$", out, re.MULTILINE)
    assert [row[0] for row in rows] == ["hand rules", "autodiff", "autodiff, checkpointed"]
    hand, auto, _ = (float(row[1].replace(",", "")) for row in rows)
    assert hand < auto
    assert re.search(r"a step by hand rules took [\d.]+ s; peak memory .* [\d,]+ MB", out)
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_the_optimizer_decays_the_matrices_alone():
    """With a gradient of 0, only weight decay moves parameters."""
    config = train_lm.Config(width=8, heads=2, depth=2, steps=10, learning_rate=0.1)
    model, optimizer = train_lm.make_model(config), train_lm.make_optimizer(config)
    like = jax.eval_shape(lambda: train_lm.begin(config, model, optimizer).params)
    zero, params = (jax.tree.map(f, like) for f in (jnp.zeros_like, jnp.ones_like))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for _ in range(3):  # the learning rate of the first step is 0
        updates, state = update(zero, state, params)
    moved = {
        jax.tree_util.keystr(path): bool(u.any()) for path, u in jax.tree.leaves_with_path(updates)
    }
    assert moved == {path: "scale" not in path for path in moved}
    assert set(moved.values()) == {True, False}


@pytest.mark.slow
def test_gradients_are_limited():
    """After the first step, M = (1 − b1) gradient, with the gradient clipped to norm 1."""
    config = train_lm.Config(weight_decay=0.0)
    optimizer, params = train_lm.make_optimizer(config), {"w": jnp.ones((2, 2))}
    _, (_, adam) = optimizer.update({"w": 1e9 * params["w"]}, optimizer.init(params), params)
    np.testing.assert_allclose(adam.M["w"], 0.1 * params["w"] / 2, rtol=1e-6)


def test_pieces_of_text():
    text = jnp.arange(10, dtype=jnp.uint8)
    x, labels = language_model.cut(text, jnp.array([0, 6]), 3)
    assert x.tolist() == [[0, 1, 2], [6, 7, 8]]
    assert labels.tolist() == [[1, 2, 3], [7, 8, 9]]
    assert x.dtype == labels.dtype == jnp.int32


@pytest.mark.slow
def test_every_piece_can_be_drawn_and_each_step_draws_others():
    config, text = train_lm.Config(context=3, batch_size=50), jnp.arange(9, dtype=jnp.uint8)
    state = TrainState((), (), (), jax.random.key(0), jnp.zeros((), jnp.int32))
    x, labels = train_lm.draw(config, state, text)
    np.testing.assert_array_equal(x + 1, labels)
    assert set(x[:, 0].tolist()) == set(range(6))
    assert (train_lm.draw(config, state._replace(step=state.step + 1), text)[0] != x).any()
    assert (train_lm.draw(config, state, text)[0] == x).all()


def test_the_text_of_every_python(tmp_path):
    text = language_model.read_text(None)
    assert len(text) > 300_000
    assert b"lambda" in text.tobytes()
    path = tmp_path / "some"
    path.write_bytes(bytes(range(100)))
    config = train_lm.Config(text=path, held_out=0.25, context=4)
    first, last = train_lm.divide(config, language_model.read_text(path))
    assert first.tolist() + last.tolist() == list(range(100))
    assert len(last) == 25


def test_readable():
    assert language_model.readable("né\n\t".encode()) == "né\n\t"
    assert language_model.readable(b"a\xffb\x1b[0m") == "a\ufffdb\ufffd[0m"


WRONG = {
    "--model foo": r"--model.*transformer.*lstm",
    "--rules foo": r"--rules.*hand.*both",
    "--witdh 3": r"--witdh.*--width",
    "--width 0": "--width must be at least 1, or auto, got 0",
    "--depth 0": "--depth must be at least 1, or auto, got 0",
    "--heads 0": "--heads must be at least 1, and divide the width 128",
    "--heads 3": "--heads must be at least 1, and divide the width 128 into even numbers, got 3",
    "--heads 128": "--heads must be at least 1, and divide the width 128 into even numbers",
    "--context 0": "--context must be at least 1, got 0",
    "--batch-size 0": "--batch-size must be at least 1, got 0",
    "--dropout 1": r"--dropout must be in \[0, 1\), got 1.0",
    "--dropout nan": r"--dropout must be in \[0, 1\), got nan",
    "--learning-rate nan": "--learning-rate must be .*at least 0.*got nan",
    "--weight-decay -1": "--weight-decay must be .*at least 0.*got -1",
    "--stretches 0": "--stretches must be at least 1, got 0",
    "--steps 0": "--steps must be at least 1, got 0",
    "--held-out 1": "--held-out must be between 0 and 1, got 1.0",
    "--samples 0": "--samples must be at least 1, got 0",
    "--sample-bytes 0": "--sample-bytes must be at least 1, got 0",
    "--temperature 0": "--temperature must be above 0, got 0.0",
    "--prompt=": "--prompt must be at least one character, got ''",
    "--seed -1": "--seed must be in .*got -1",
    "--text /nowhere": "--text must be a file, got /nowhere: No such file",
    "--text /": "--text must be a file, got /: Is a directory",
    "--text /dev/null": "--text must have more than --context 128 bytes .* got 0 and 0",
    "--context 50000": "--text must have more than --context 50000 bytes .* got \\d+ and \\d+",
    "--out /dev/null/runs": "--out must be a folder to write in, got /dev/null/runs",
}


@pytest.mark.parametrize(("wrong", "message"), WRONG.items(), ids=WRONG)
def test_wrong_options_end_in_one_line(wrong, message, tmp_path, capsys):
    assert train_lm.main(["--out", str(tmp_path), *wrong.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("train_lm: ")
    assert re.search(message, err)


def run(*argv, cwd):
    """Runs the program as a user does: in a separate process, in float32, from another folder."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), *argv],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(funcnet.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_person_runs_it(tmp_path):
    """The default text comes with every Python installation."""
    sizes = [s for k, v in SMALL.items() for s in (f"--{k}", str(v))]
    done = run(*sizes, "--steps", "3", "--stretches", "2", "--sample-bytes", "5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(LAST_LINE, done.stdout.splitlines()[-1])
    assert (tmp_path / "runs" / "lm" / "model.safetensors").is_file()
    assert "training: 100%" in done.stderr
    assert "held out=" in done.stderr


def test_a_person_errs(tmp_path):
    done = run("--model", "foo", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("model", train_lm.SIZES)
def test_the_default_options_learn(model, tmp_path):
    """A quarter of the steps suffices; for comparison, bzip2 needs 1.7 bits per byte here."""
    done = run("--model", model, "--stretches", "4", cwd=tmp_path)
    assert float(done.stdout.split()[-1]) < 3
