"""Trains a language model on the bytes of a text with hand-written backward rules.

    python scripts/train_lm.py                              # a transformer on Python's own manual
    python scripts/train_lm.py --model lstm --text FILE --out runs/lstm     # another model and text
    python scripts/train_lm.py --rules both --out runs/both         # and with JAX's autodiff
    python scripts/train_lm.py --memory --context 8192 --batch-size 1       # memory of one step

If it is stopped, the same command continues; `--fresh` starts over.

The default text is Python's help on its keywords and operators, `pydoc_data.topics`, which depends
a little on the version of Python. With seed 0, both models reached 1.71 bits per byte on the
held-out tenth of Python 3.11's text (two cores of an AMD EPYC, jax 0.10.2).
"""

import dataclasses
import functools
import json
import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import resumable
from command_line import command, make_folder, parse, write
from language_model import (
    BYTES,
    cut,
    generate,
    generate_again,
    loss,
    lstm,
    predictor,
    read_text,
    readable,
)
from lm_report import compare, describe, plot
from process import leave
from resumable import Job, Run, compile_
from trained import versions

from funcnet import optim, weights
from funcnet.layers import Layer
from funcnet.models import transformer
from funcnet.training import TrainState, evaluate, make_step

SIZES = {  # width, depth and learning rate that "auto" means
    "transformer": (128, 4, 3e-3),
    "lstm": (256, 1, 4e-3),
}
LARGEST_GRADIENT = 1.0  # gradients are clipped to this global norm


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a language model on the bytes of a text, and generates samples."""

    model: Literal["transformer", "lstm"] = "transformer"
    """Network that predicts the next byte from the previous ones."""
    text: Path | None = None
    """Any file; by default the text of Python's help on its keywords and operators."""
    held_out: float = 0.1
    """Fraction of the text, at its end, that is held out for evaluation."""
    width: int | Literal["auto"] = "auto"
    """Features per byte between the layers; auto is 128 for a transformer, 256 for an lstm."""
    depth: int | Literal["auto"] = "auto"
    """Number of layers; auto is 4 for a transformer, 1 for an lstm."""
    heads: int = 4
    """Number of attention heads of the transformer; width must be a multiple of twice it."""
    context: int = 128
    """Number of bytes that the model sees at once."""
    batch_size: int = 16
    """Number of pieces of text, each of `context` bytes, in a step."""
    dropout: float = 0.1
    """Dropout probability on what a layer adds to its input (transformer) or outputs (lstm)."""
    learning_rate: float | Literal["auto"] = "auto"
    """Peak of a schedule with warm-up for a tenth of the steps and then cosine decay; auto depends
    on the model."""
    weight_decay: float = 0.1
    """Decoupled weight decay of the weight matrices (AdamW)."""
    stretches: int = 15
    """Number of stretches of training; the held-out text is evaluated after each."""
    steps: int = 100
    """Number of training steps in a stretch."""
    seed: int = 0
    """Seed of the initial weights, the pieces of text, dropout and the samples."""
    rules: Literal["hand", "autodiff", "both"] = "hand"
    """Which gradients: hand-written rules, JAX autodiff, or both."""
    prompt: str = "The "
    """Text with which the samples begin."""
    samples: int = 2
    """Number of samples that the trained model generates."""
    sample_bytes: int = 400
    """Number of bytes generated after the prompt in each sample."""
    temperature: float = 0.7
    """Divides the logits for sampling: below 1 favours likely bytes, above 1 rare bytes."""
    memory: bool = False
    """Do not train, but print the memory and compile time of one step with hand rules, with
    autodiff, and with autodiff that recomputes each layer; and run the first."""
    out: Path = Path("runs/lm")
    """Folder for checkpoints and output files; a run in it that was stopped is continued."""
    fresh: bool = False
    """Start over, and remove the checkpoints in the folder."""


@command("train_lm")
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program.

    Args:
      argv: The options; by default those of the command line.

    Returns:
      The exit status: 0; 2 after a one-line message on stderr if the options, the text or the
      folder are invalid; 130 or 143 if it was stopped by Ctrl-C or SIGTERM.
    """
    config = parse(Config, argv)
    check(config)
    text, held_out = divide(config, read_text(config.text))
    if config.memory:
        print(memory(config, text))
        return 0
    make_folder(config.out)

    trained = train(config, text, held_out)
    history, costs, seconds = trained.history, trained.costs, trained.seconds
    tokens = config.steps * config.batch_size * config.context
    for name, values in history.items():
        costs[name]["tokens per second"] = tokens / statistics.median(values["seconds"])
    rules, last = next(iter(trained.states.items()))
    result = {"bits_per_byte": history[rules]["held out"][-1], "seconds": seconds}
    record = {
        "config": {
            k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()
        },
        "versions": versions(),
        "result": result | {"peak_bytes": peak_bytes()},
        "costs": costs,
        "history": history,
    }
    files = {
        "curves": config.out / "curves.png",
        "model": config.out / "model.safetensors",
        "history": config.out / "history.json",
    }
    write(files["curves"], lambda file: plot(history, config.steps).savefig(file, dpi=150))
    write(files["history"], lambda file: file.write(json.dumps(record, indent=1).encode()))
    if trained.stopped:
        raise trained.stopped
    weights.save(files["model"], {"params": last.params, "state": last.state})
    for name, path in files.items():
        print(f"{name:8} {path.resolve()}")
    for i, text in enumerate(write_on(config, last)):
        print(f"{f' sample {i + 1} ':-^60}\n{text}")
    print("-" * 60)
    for name, cost in costs.items():
        print(f"{name}: {describe(cost)}")
    if config.rules == "both":
        print(compare(history, costs))
    parameters = sum(p.size for p in jax.tree.leaves(last.params))
    print(f"{parameters:,} parameters; trained in {seconds:.1f} s")
    print(f"peak memory of the process {peak_bytes() / 1e6:,.0f} MB")
    print(f"held-out bits per byte {result['bits_per_byte']:.4f}")
    return 0


def check(config: Config) -> None:
    """Raises a ValueError that names an option out of range."""
    width, depth, rate = sizes(config)
    heads = config.model == "lstm" or (config.heads >= 1 and width % config.heads == 0)
    even = config.model == "lstm" or width // max(config.heads, 1) % 2 == 0
    ranges = {
        "held_out": (0 < config.held_out < 1, "between 0 and 1"),
        "width": (width >= 1, "at least 1, or auto"),
        "depth": (depth >= 1, "at least 1, or auto"),
        "heads": (heads and even, f"at least 1, and divide the width {width} into even numbers"),
        "context": (config.context >= 1, "at least 1"),
        "batch_size": (config.batch_size >= 1, "at least 1"),
        "dropout": (0 <= config.dropout < 1, "in [0, 1)"),
        "learning_rate": (0 <= rate < math.inf, "a number of at least 0, or auto"),
        "weight_decay": (0 <= config.weight_decay < math.inf, "a number of at least 0"),
        "stretches": (config.stretches >= 1, "at least 1"),
        "steps": (config.steps >= 1, "at least 1"),
        "seed": (0 <= config.seed < 2**32, "in [0, 2**32)"),
        "prompt": (len(config.prompt) >= 1, "at least one character"),
        "samples": (config.samples >= 1, "at least 1"),
        "sample_bytes": (config.sample_bytes >= 1, "at least 1"),
        "temperature": (0 < config.temperature < math.inf, "above 0"),
    }
    for name, (holds, what) in ranges.items():
        if not holds:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must be {what}, got {getattr(config, name)!r}")


def sizes(config: Config) -> tuple[int, int, float]:
    """Returns width, depth and learning rate."""
    width, depth, rate = SIZES[config.model]
    return (
        width if config.width == "auto" else config.width,
        depth if config.depth == "auto" else config.depth,
        rate if config.learning_rate == "auto" else config.learning_rate,
    )


def divide(config: Config, text: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Splits the text into the bytes to train on and the held-out bytes.

    Raises:
      ValueError: If one of the two parts is not longer than the context.
    """
    held = round(config.held_out * len(text))
    rest = len(text) - held
    if min(rest, held) <= config.context:
        raise ValueError(
            f"--text must have more than --context {config.context} bytes to train on, and more "
            f"than that to hold out, got {rest} and {held}"
        )
    return jnp.asarray(text[:rest]), jnp.asarray(text[rest:])


def make_model(config: Config, *, checkpoint: bool = False, cache: int | None = None) -> Layer:
    """Makes the network with `language_model.predictor`; an lstm has no cache."""
    width, depth, _ = sizes(config)
    how = {"width": width, "depth": depth, "dropout": config.dropout, "checkpoint": checkpoint}
    if config.model == "lstm":
        return predictor(lstm(**how))
    return predictor(transformer(BYTES, heads=config.heads, head=False, cache=cache, **how))


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Makes AdamW with a schedule, gradient clipping and weight decay of the matrices.

    Repeated layers stack their parameters, so matrices are recognised by name, not by rank.
    """
    _, _, peak = sizes(config)
    steps = config.steps * config.stretches
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, steps // 10, steps)
    is_matrix = lambda path, _: path[-1].key.startswith("w")
    matrices = lambda params: jax.tree.map_with_path(is_matrix, params)
    return optax.chain(
        optax.clip_by_global_norm(LARGEST_GRADIENT),
        optim.adamw(schedule, weight_decay=config.weight_decay, mask=matrices),
    )


def draw(config: Config, train_state: TrainState, text: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws a random batch for the next step."""
    key = jax.random.fold_in(train_state.key, 2 * train_state.step + 1)  # steps use even numbers
    starts = jax.random.randint(key, (config.batch_size,), 0, len(text) - config.context)
    return cut(text, starts, config.context)


def make_stretch(config: Config, model: Layer, optimizer: optax.GradientTransformation) -> Any:
    """Makes the jitted `stretch(train_state, text) -> (train_state, {"loss": (steps,)})`.

    It donates the buffers of train_state.
    """
    step = make_step(model, loss, optimizer)

    @functools.partial(jax.jit, donate_argnums=0)
    def stretch(train_state: TrainState, text: jax.Array):
        def one(train_state, _):
            return step(train_state, *draw(config, train_state, text))

        return jax.lax.scan(one, train_state, None, length=config.steps)

    return stretch


def begin(config: Config, model: Layer, optimizer: optax.GradientTransformation) -> TrainState:
    """Creates the state before the first step."""
    x = jax.ShapeDtypeStruct((1, config.context), jnp.int32)
    create = jax.jit(lambda key: TrainState.create(model, optimizer, key, x))  # one program
    return create(jax.random.key(config.seed))


def train(config: Config, text: jax.Array, held_out: jax.Array) -> Run:
    """Trains the model, or continues; the history has the bits per byte of each stretch."""
    model, optimizer = make_model(config), make_optimizer(config)
    starts = jnp.arange(0, len(held_out) - config.context, config.context)
    at_once = max(1, 2**14 // config.context)

    def measure(train_state, measured, *pieces):
        params, state = train_state.params, train_state.state
        tested = evaluate(model, {"loss": loss}, params, state, *pieces, batch_size=at_once)
        nats = {"training": measured["loss"].mean(), "held out": tested["loss"]}
        return {name: value / math.log(2) for name, value in nats.items()}

    job = Job(
        unit="stretch",
        count=config.stretches,
        begin=lambda: begin(config, model, optimizer),
        run=make_stretch(config, model, optimizer),
        data=(text,),
        measure=measure,
        held_out=cut(held_out, starts, config.context),
    )
    return resumable.train(config, job)


def write_on(config: Config, trained: TrainState) -> list[str]:
    """Returns samples: the prompt and its continuation by the trained model.

    A transformer sees the last `context` bytes through its caches, and so takes as long for each
    byte; an lstm reads them all again.
    """
    prompt = os.fsencode(config.prompt)
    ids = jnp.tile(jnp.array(list(prompt), jnp.int32), (config.samples, 1))
    key = jax.random.fold_in(trained.key, 2 * trained.step)  # of the next step, which is not run
    how = {"key": key, "temperature": config.temperature, "length": config.sample_bytes}
    if config.model == "transformer":
        written = generate(make_model(config, cache=config.context), trained.params, ids, **how)
    else:
        model, how = make_model(config), how | {"context": config.context}
        written = generate_again(model, trained.params, trained.state, ids, **how)
    return [readable(prompt + bytes(row)) for row in written.tolist()]


def peak_bytes() -> int:
    """Returns the peak memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def memory(config: Config, text: jax.Array) -> str:
    """Tabulates memory and compile time of one training step; runs the step of the first row."""
    rows = {
        "hand rules": ("hand", False),
        "autodiff": ("autodiff", False),
        "autodiff, checkpointed": ("autodiff", True),
    }
    optimizer, ran = make_optimizer(config), ""
    lines = [f"{'':24}{'temporary MB':>14}{'compile s':>12}"]
    state = begin(config, make_model(config), optimizer)
    batch = draw(config, state, text)
    types = jax.tree.map(jax.typeof, (state, *batch))
    for title, (rules, checkpoint) in rows.items():
        model = make_model(config, checkpoint=checkpoint)
        step = jax.jit(make_step(model, loss, optimizer), donate_argnums=0)
        compiled, cost = compile_(rules, step, *types)
        temporary, seconds = cost["temporary bytes"] / 1e6, cost["compile seconds"]
        lines.append(f"{title:24}{temporary:14,.1f}{seconds:12.1f}")
        if not ran:  # before the others can add to the peak
            start = time.perf_counter()
            jax.block_until_ready(compiled(state, *batch))
            ran = (
                f"a step by {title} took {time.perf_counter() - start:.1f} s; peak memory of the "
                f"process {peak_bytes() / 1e6:,.0f} MB"
            )
    has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e6
    head = f"{config.model}, {config.batch_size} × {config.context} bytes in a step"
    return "\n".join([head, *lines, f"{'this machine has':24}{has:14,.1f}", ran])


if __name__ == "__main__":
    leave(main())
