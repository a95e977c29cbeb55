"""Tests that a training program may be stopped at any moment and continues bit for bit.

The loop is tested with a random walk for a network; the slow tests kill real processes.
"""

import dataclasses
import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import resumable
import train_cnn
import train_lm
import train_mnist
from process import alone, signals, watch
from test_train_mnist import data  # noqa: F401  (a fixture)

import funcnet
from funcnet.command.base import Stopped
from funcnet.training import TrainState

STEPS, COUNT = 4, 4


@dataclasses.dataclass(frozen=True)
class Config:
    out: Path
    rules: str = "both"
    seed: int = 0
    widths: tuple[int, ...] = (3,)
    fresh: bool = False


def walk(config, in_unit=None, do=None, *, scale=1.0, nan_at=None):
    """Trains a random walk; calls `do` in a unit, before its state is saved."""

    def begin():
        key = jax.random.key(config.seed)
        return TrainState(jnp.zeros(config.widths), (), (), key, jnp.zeros((), jnp.int32))

    def step(state, scale):
        key = jax.random.fold_in(state.key, state.step)
        params = state.params + scale * jax.random.normal(key, state.params.shape)
        loss = (
            jnp.where(state.step + 1 == nan_at, jnp.nan, params.sum()) if nan_at else params.sum()
        )
        return state._replace(params=params, step=state.step + 1), {"loss": loss}

    @functools.partial(jax.jit, donate_argnums=0)
    def run(state, scale):
        return jax.lax.scan(lambda state, _: step(state, scale), state, None, length=STEPS)

    def measure(state, measured, held_out):
        if state.step == STEPS * (in_unit or 0):
            do()
        return {"loss": measured["loss"].mean(), "held out": state.params @ held_out}

    given, held_out = (jnp.asarray(scale),), (jnp.ones(config.widths[-1]),)
    job = resumable.Job("stretch", COUNT, begin, run, given, measure, held_out)
    config.out.mkdir(exist_ok=True)
    return resumable.train(config, job)


def bits(run):
    """The bits of the states, and the history without the durations."""
    key = lambda state: state._replace(key=jax.random.key_data(state.key))
    states = jax.tree.map(lambda a: a.tobytes(), {k: key(s) for k, s in run.states.items()})
    history = {
        name: {k: v for k, v in values.items() if k != "seconds"}
        for name, values in run.history.items()
    }
    return list(run.states), states, history


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bits of a run that was not stopped."""
    run = walk(Config(tmp_path_factory.mktemp("whole")))
    assert run.stopped is None
    assert run.done == COUNT
    return bits(run)


class Killed(BaseException):
    """Like `kill -9`: nothing handles it."""


def kill():
    raise Killed


def saved(out):
    """The steps of the checkpoints."""
    folder = out / "checkpoints"
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


@pytest.mark.few
@pytest.mark.parametrize("unit", range(1, COUNT + 1))
def test_a_run_that_was_killed_ends_as_one_that_was_not(unit, whole, tmp_path):
    config = Config(tmp_path)
    with pytest.raises(Killed):
        walk(config, unit, kill)
    (tmp_path / "checkpoints" / f"{STEPS * unit}.orbax-checkpoint-tmp").mkdir()  # half-written
    (tmp_path / ".history.json.1.part").touch()
    assert bits(walk(config)) == whole
    assert saved(tmp_path) == [STEPS * (COUNT - 1), STEPS * COUNT]
    assert os.listdir(tmp_path) == ["checkpoints"]


@pytest.mark.few
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_run_after_what_is_saved(number, whole, tmp_path):
    """It comes when one of the two walks has done its part of stretch 3."""
    config, stop = Config(tmp_path), lambda: signal.raise_signal(number)
    for fresh, command in [(False, "command"), (True, "command without --fresh")]:
        run = walk(dataclasses.replace(config, fresh=fresh), 3, stop)
        then = f"the same {command} continues after stretch 2"
        assert str(run.stopped) == f"stopped in stretch 3 of 4; {then}"
        assert run.stopped.signal == number
        assert run.done == 2
    assert bits(walk(config)) == whole


def test_a_signal_before_anything_is_saved(whole, tmp_path, monkeypatch):
    """It stops the compilation."""
    lower = resumable.UNDER["hand"]
    stop = lambda f: signal.raise_signal(signal.SIGTERM) or lower(f)
    monkeypatch.setitem(resumable.UNDER, "hand", stop)
    message = "^stopped in stretch 1 of 4; the same command begins again$"
    with pytest.raises(Stopped, match=message) as stopped:
        walk(Config(tmp_path))
    assert stopped.value.signal == signal.SIGTERM
    monkeypatch.undo()
    assert bits(walk(Config(tmp_path))) == whole


def test_a_loss_of_nan_stops_the_run(tmp_path):
    run = walk(Config(tmp_path), nan_at=10)
    assert isinstance(run.stopped, resumable.Diverged)
    assert str(run.stopped) == "the loss is nan at step 10, in stretch 3; stretch 2 is saved"
    assert saved(tmp_path) == [4, 8]
    assert {len(v) for v in run.history["hand"].values()} == {2}
    message = "^the loss is nan at step 1, in stretch 1; nothing is saved$"
    with pytest.raises(resumable.Diverged, match=message):
        walk(Config(tmp_path / "other"), nan_at=1)


def test_a_finished_run_is_not_run_again(whole, tmp_path, capsys):
    config = Config(tmp_path)
    walk(config)
    capsys.readouterr()
    assert bits(walk(config, COUNT, kill)) == whole
    assert capsys.readouterr().out == f"{tmp_path} holds stretch 4 of 4; --fresh starts over\n"


def test_fresh_starts_over(whole, tmp_path):
    walk(Config(tmp_path, seed=1), COUNT - 1, lambda: signal.raise_signal(signal.SIGINT))
    (tmp_path / ".mine.1.part").touch()
    assert bits(walk(Config(tmp_path, fresh=True))) == whole
    assert sorted(os.listdir(tmp_path)) == [".mine.1.part", "checkpoints"]


OTHER = {
    "seed": ({"seed": 5}, "--seed 0, got --seed 5"),
    "rules": ({"rules": "hand"}, "--rules both, got --rules hand"),
    "network and seed": (
        {"seed": 5, "widths": (2, 3)},
        "--seed 0 --widths 3, got --seed 5 --widths 2 3",
    ),
}


@pytest.mark.third
@pytest.mark.parametrize(("changed", "message"), OTHER.values(), ids=OTHER)
def test_another_run_is_refused_in_one_line(changed, message, whole, tmp_path):
    config = Config(tmp_path)
    walk(config, 2, lambda: signal.raise_signal(signal.SIGINT))
    hint = "--fresh starts over, another --out keeps both"
    with pytest.raises(ValueError) as error:
        walk(dataclasses.replace(config, **changed))
    assert str(error.value) == f"--out {tmp_path} holds a run with {message}; {hint}"
    with pytest.raises(
        ValueError, match=r"a run with data of SHA-256 \w+, got data of SHA-256 \w+;"
    ):
        walk(config, scale=2.0)
    assert bits(walk(config)) == whole


def test_a_folder_is_used_by_one_process(tmp_path):
    with alone(tmp_path), pytest.raises(ValueError, match="another process trains in"):
        walk(Config(tmp_path))
    assert os.listdir(tmp_path) == []


def test_signals_are_collected_once():
    """The first is noted; the second acts as before."""
    usual = signal.getsignal(signal.SIGINT)
    with signals() as received:
        signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGINT]
        with pytest.raises(Stopped) as stopped:
            watch(received, time.sleep, 1)
        assert stopped.value.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is usual


def test_watch_returns_and_raises():
    assert watch([], divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        watch([], divmod, 7, 0)


def test_what_comes_after_training_may_change():
    names = {f for config in (train_lm.Config, train_mnist.Config) for f in vars(config())}
    assert names >= resumable.APART


PROGRAMS = {  # options with which they train for seconds, in many units
    "train_mnist": "--hidden 16 --batch-size 20 --epochs 12",
    "train_cnn": "--channels 2 --convolutions 1 --batch-size 50 --epochs 12 --rules both",
    "train_lm": "--width 8 --heads 2 --depth 1 --context 8 --batch-size 2 --steps 5 --stretches 12 "
    "--samples 1 --sample-bytes 5",
}


def curves(out):
    """The history without the durations."""
    history = json.loads((out / "history.json").read_text())["history"]
    return {
        name: {k: v for k, v in values.items() if k != "seconds"}
        for name, values in history.items()
    }


def assert_same_run(out, expected):
    """The same bits of the parameters, the same curves, and no other files."""
    assert curves(out) == curves(expected)
    model = "model.safetensors"
    assert (out / model).read_bytes() == (expected / model).read_bytes()
    assert sorted(os.listdir(out)) == sorted(os.listdir(expected)) == sorted(resumable.FILES)
    assert saved(out) == saved(expected)


def test_a_program_that_was_stopped_continues(tmp_path, monkeypatch, capsys):
    """What it writes and says when it is stopped, continued, and called once more."""
    whole, out, evaluate = tmp_path / "whole", tmp_path / "out", train_mnist.evaluate
    call = lambda out: train_mnist.main(
        ["--hidden", "16", "--batch-size", "20", "--epochs", "3", "--out", str(out)]
    )
    assert call(whole) == 0
    expected = capsys.readouterr().out.splitlines()[-1]

    with monkeypatch.context() as patch:
        stop = lambda *args: signal.raise_signal(signal.SIGTERM) or evaluate(*args)
        patch.setattr(train_mnist, "evaluate", stop)
        assert call(out) == 143
    message = "train_mnist: stopped in epoch 2 of 3; the same command continues after epoch 1"
    assert capsys.readouterr().err.splitlines()[-1] == message
    assert sorted(os.listdir(out)) == ["checkpoints", "curves.png", "history.json"]
    assert {len(v) for v in curves(out)["hand"].values()} == {1}

    for done in (1, 3):
        assert call(out) == 0
        first, *_, last = capsys.readouterr().out.splitlines()
        assert first == f"{out} holds epoch {done} of 3; --fresh starts over"
        assert last == expected
        assert_same_run(out, whole)

    assert train_cnn.main(["--out", str(out)]) == 2
    message = f"train_cnn: --out {out} holds a run of another program or version; --fresh starts"
    assert capsys.readouterr().err.startswith(message)
    assert_same_run(out, whole)


@pytest.mark.parametrize("package", ["orbax.checkpoint", "safetensors"])
def test_a_missing_package_is_one_line(package, tmp_path, monkeypatch, capsys):
    """It is told before the training."""
    monkeypatch.setitem(sys.modules, package, None)
    assert train_mnist.main(["--out", str(tmp_path)]) == 2
    expected = rf"train_mnist: \w+: {package} is missing; install funcnet\[checkpoint\]\n"
    assert re.fullmatch(expected, capsys.readouterr().err)


def start(program, out, *, full=False):
    """Starts a program as a user does; files of at most 4096 bytes stand for a full disk."""
    env = {**os.environ, "PYTHONPATH": str(Path(funcnet.__file__).parent.parent)}
    if full:
        env.pop("JAX_COMPILATION_CACHE_DIR", None)
    limit = ["bash", "-c", 'ulimit -f 4; exec "$@"', "bash"] if full else []
    command = [sys.executable, sys.modules[program].__file__, *PROGRAMS[program].split()]
    return subprocess.Popen(
        [*limit, *command, "--out", str(out)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def until(process, condition):
    """Waits for a condition; raises an error if the process ends before."""
    while not condition():
        if process.poll() is not None:
            pytest.fail(f"it ended too early: {process.communicate()}")
        time.sleep(0.0005)


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_kills_at_random_moments(program, tmp_path):
    """Six kills in the time that a whole run takes, from its first to its last moment."""
    whole, out, choose = tmp_path / "whole", tmp_path / "out", random.Random(program)
    began = time.perf_counter()
    finish(start(program, whole))
    seconds = time.perf_counter() - began
    for _ in range(6):
        process = start(program, out)
        time.sleep(choose.uniform(0, seconds))
        process.kill()
        process.communicate()
    finish(start(program, out))
    assert_same_run(out, whole)


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_is_killed_interrupted_and_out_of_space(program, tmp_path):
    """It is killed in the middle of a save, has no space left, and is interrupted by Ctrl-C."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    reference = start(program, whole)

    process = start(program, out)
    until(process, lambda: len(saved(out)) > 1)
    until(process, lambda: any((out / "checkpoints").glob("*.orbax-checkpoint-tmp")))
    process.kill()
    process.communicate()

    before = saved(out)[-1]
    process = start(program, out, full=True)
    _, err = process.communicate()
    assert process.returncode == 2
    assert err.splitlines()[-1] == f"{program}: [Errno 27] File too large: '{out}/checkpoints'"
    assert "Traceback" not in err
    assert "ERROR" not in err
    assert saved(out)[-1] == before

    process = start(program, out)
    until(process, lambda: saved(out)[-1] > before)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert re.fullmatch(rf"{program}: stopped in .* continues after .*", err.splitlines()[-1])
    assert "Traceback" not in err
    assert sorted(os.listdir(out)) == ["checkpoints", "curves.png", "history.json"]

    assert finish(start(program, out)).splitlines()[-1] == finish(reference).splitlines()[-1]
    assert_same_run(out, whole)
