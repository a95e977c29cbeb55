"""The loop of the training programs, which may be stopped at any moment and continues bit for bit.

After each epoch or stretch, Orbax saves the whole state and the measurements so far in
`--out`/checkpoints. The order of the data follows from the key and the step of the state, so the
same command continues as if it had not been stopped.
"""

import contextlib
import dataclasses
import functools
import hashlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from process import alone, signals, watch
from tqdm import tqdm
from trained import largest_difference

from funcnet import autodiff
from funcnet._extras import extra
from funcnet.checkpoints import Checkpoints
from funcnet.command.base import Stopped
from funcnet.training import TrainState

UNDER: dict[str, Callable[..., Any]] = {"hand": lambda f: f, "autodiff": autodiff}
History = dict[str, dict[str, list[float]]]

# Options that do not change what is trained; the text is compared by its bytes.
APART = {"out", "fresh", "memory", "text", "prompt", "samples", "sample_bytes", "temperature"}
FILES = ("checkpoints", "curves.png", "model.safetensors", "history.json")


class Diverged(ValueError):
    """Raised when a loss is nan."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What a program trains.

    Attributes:
      unit: What is run, measured and saved at a time: "epoch" or "stretch".
      count: The number of units.
      begin: Makes the state before the first step.
      run: The jitted `run(train_state, *data) -> (train_state, measured)`, which donates
        train_state; measured["loss"] holds the loss of each step.
      data: The arrays for `run`.
      measure: `measure(train_state, measured, *held_out) -> numbers by name`.
      held_out: The arrays for `measure`.
    """

    unit: str
    count: int
    begin: Callable[[], TrainState]
    run: Any
    data: tuple[Any, ...]
    measure: Callable[..., dict[str, Any]]
    held_out: tuple[Any, ...]


@dataclasses.dataclass
class Run:
    """What has been trained so far; dicts are keyed by "hand" or "autodiff" unless said otherwise.

    Attributes:
      states: The last states; no longer valid if training was stopped.
      options: What must be the same to continue: the options and a hash of the data, by name.
      history: The numbers of `Job.measure` and the "seconds" of each unit, as lists by name.
      costs: "compile seconds" and "temporary bytes".
      seconds: The duration of training, with compilation and without what was lost.
      stopped: Why training stopped before its end, to be raised after the report; else None.
    """

    states: dict[str, TrainState]
    options: dict[str, str]
    history: History
    costs: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    stopped: Stopped | Diverged | None = None

    @property
    def done(self) -> int:
        """The number of units that are done."""
        return len(next(iter(self.history.values())).get("seconds", []))


def train(config: Any, job: Job) -> Run:
    """Trains one network, or with `--rules both` two, which alternate unit by unit.

    Args:
      config: The options; `rules`, `out` and `fresh` are read. To continue a run, all others but
        those in `APART` must be those of the run.
      job: What to train.

    Returns:
      The run. If it was stopped, at least one unit is done.

    Raises:
      ValueError: If the folder holds another run, or another process uses it.
      Stopped: If a signal stopped it before the first unit was done.
      Diverged: If the loss became nan before the first unit was done.
      OSError: If a checkpoint cannot be written.
      ModuleNotFoundError: If a package is missing.
    """
    with extra("save", "checkpoint"):
        import safetensors  # noqa: F401  (needed at the end, when the network is saved)
    with alone(config.out), signals() as received, one_message():
        clear(config.out, checkpoints=config.fresh)
        with Checkpoints(config.out / "checkpoints") as checkpoints:
            run = begin(config, job, checkpoints)
            try:
                proceed(job, run, checkpoints, received)
            except Diverged as e:
                run.stopped = e
            except Stopped as e:
                run.stopped = Stopped(how_to_continue(config, job, run), e.signal)
    if run.stopped and not run.done:
        raise run.stopped
    return run


def begin(config: Any, job: Job, checkpoints: Checkpoints) -> Run:
    """Restores the run in the folder, or begins one."""
    names = list(UNDER) if config.rules == "both" else [config.rules]
    states = lambda: {name: job.begin() for name in names}
    options = options_of(config) | {"data of SHA-256": digest(job)}
    if not checkpoints.steps:
        return Run(states(), options, {name: {} for name in names})
    saved = checkpoints.extra()
    check_same(config.out, saved["options"], options)
    restored, _ = checkpoints.restore(jax.eval_shape(states))
    run = Run({name: restored[name] for name in names}, **saved)  # JAX sorts dicts
    print(f"{config.out} holds {job.unit} {run.done} of {job.count}; --fresh starts over")
    return run


def proceed(job: Job, run: Run, checkpoints: Checkpoints, received: list[int]) -> None:
    """Runs, measures and saves the units that remain, and keeps `run` up to date."""
    if run.done == job.count:
        return
    call = functools.partial(watch, received)
    start, compiled = time.perf_counter() - run.seconds, {}
    for name in run.states:  # the same program whether the state is restored or not
        like = jax.eval_shape(job.begin)
        compiled[name], run.costs[name] = compile_(name, job.run, like, *job.data, call=call)

    names, units = list(run.states), range(run.done, job.count)
    with tqdm(units, "training", job.count, initial=run.done, unit=job.unit) as bar:
        for i in bar:
            rows = {}
            for name in names[:: 1 if i % 2 else -1]:  # alternates which runs first
                begun = time.perf_counter()
                state, measured = call(execute, compiled[name], run.states[name], *job.data)
                seconds = time.perf_counter() - begun
                check_loss(measured["loss"], state, job, i)
                row = job.measure(state, measured, *job.held_out) | {"seconds": seconds}
                rows[name] = {k: float(v) for k, v in row.items()}
                run.states[name] = state
            if len(names) > 1:
                difference = largest_difference(*(run.states[name].params for name in names))
                rows["autodiff"]["difference"] = difference
                bar.write(f"{job.unit} {i + 1}: largest difference of parameters {difference:.1e}")
            shown = rows[names[0]]
            bar.set_postfix({k: f"{v:.4f}" for k, v in shown.items() if k != "seconds"})
            for name in names:
                for k, v in rows[name].items():
                    run.history[name].setdefault(k, []).append(v)
            run.seconds = time.perf_counter() - start
            saved = {k: getattr(run, k) for k in ("options", "history", "costs", "seconds")}
            checkpoints.save(int(run.states[names[0]].step), run.states, extra=saved)


def how_to_continue(config: Any, job: Job, run: Run) -> str:
    """The message of a run that was stopped by a signal."""
    where = f"stopped in {job.unit} {run.done + 1} of {job.count}"
    if not run.done:
        return f"{where}; the same command begins again"
    command = "the same command" + " without --fresh" * config.fresh
    return f"{where}; {command} continues after {job.unit} {run.done}"


def compile_(
    rules: str, f: Any, *args: Any, call: Callable[..., Any] = lambda f: f()
) -> tuple[Any, dict[str, float]]:
    """Compiles the jitted f with the given rules; also returns compile time and memory."""
    start = time.perf_counter()
    compiled = call(UNDER[rules](f.lower)(*args).compile)
    seconds = time.perf_counter() - start
    temporary = compiled.memory_analysis().temp_size_in_bytes
    return compiled, {"compile seconds": seconds, "temporary bytes": temporary}


def execute(compiled: Any, *args: Any) -> Any:
    """Runs a compiled function to its end."""
    return jax.block_until_ready(compiled(*args))


def check_loss(losses: jax.Array, state: TrainState, job: Job, i: int) -> None:
    """Raises Diverged if the loss of a step is nan."""
    wrong = np.flatnonzero(np.isnan(losses))
    if wrong.size:
        step = int(state.step) - losses.size + int(wrong[0]) + 1
        kept = f"{job.unit} {i} is saved" if i else "nothing is saved"
        raise Diverged(f"the loss is nan at step {step}, in {job.unit} {i + 1}; {kept}")


def options_of(config: Any) -> dict[str, str]:
    """The options that must be the same to continue, as they are typed."""
    typed = lambda v: " ".join(map(str, v)) if isinstance(v, tuple) else str(v)
    options = dataclasses.asdict(config).items()
    return {f"--{k.replace('_', '-')}": typed(v) for k, v in options if k not in APART}


def digest(job: Job) -> str:
    """A hash of all data."""
    total = hashlib.sha256()
    for array in jax.tree.leaves((job.data, job.held_out)):
        total.update(f"{array.dtype}{array.shape}".encode())
        total.update(np.asarray(array).tobytes())
    return total.hexdigest()[:16]


def check_same(out: Path, stored: dict[str, str], now: dict[str, str]) -> None:
    """Raises a ValueError that names the options in which the run of the folder differs."""
    what = "a run of another program or version"
    if stored.keys() == now.keys():
        differ = [name for name in now if stored[name] != now[name]]
        if not differ:
            return
        has, got = (" ".join(f"{name} {run[name]}" for name in differ) for run in (stored, now))
        what = f"a run with {has}, got {got}"
    raise ValueError(f"--out {out} holds {what}; --fresh starts over, another --out keeps both")


@contextlib.contextmanager
def one_message() -> Iterator[None]:
    """Keeps Orbax from printing more about a full disk than the error that it raises."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    hook = sys.unraisablehook
    late = lambda e: str(e.exc_value) == "Event loop is closed"  # of files after the first error
    sys.unraisablehook = lambda e: None if late(e) else hook(e)
    try:
        yield
    finally:
        sys.unraisablehook = hook


def clear(out: Path, *, checkpoints: bool) -> None:
    """Removes what a killed process left half-written and, if asked, the checkpoints."""
    folder = out / "checkpoints"
    if checkpoints and folder.exists():
        folder.rename(out / f".checkpoints.{os.getpid()}.part")  # all at once
    for name in FILES:
        for part in out.glob(f".{name}.*.part"):
            shutil.rmtree(part) if part.is_dir() else part.unlink()
