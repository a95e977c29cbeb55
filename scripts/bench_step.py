"""What a training step costs: funcnet beside raw JAX with Optax, Equinox and Flax.

    python scripts/bench_step.py [--rounds 200] [--json FILE]

Two tables, of one step each:

1. train_mnist.py's default network, optimizer and batch, with hand rules, with autodiff, and
   written out in raw JAX with Optax;
2. a small network (784-50-10, batch 100, SGD) in a Python loop of compiled steps, where the cost of
   the call counts, and in funcnet's scanned epoch.

How to read them: all candidates of a table take turns, each round in another order, so that noise
of the machine meets all of them, and a turn begins with a step that is not timed, which meets what
the one before has left. A number is the median of the rounds with its quartiles, and "ratio" is the
median, with quartiles, of the time divided by raw JAX's of the same round. A ratio is known no
better than its quartiles are apart. Compilation is not in the times. The loops of table 2 use one
batch again and again; the epoch also shuffles the examples and gathers its batches. funcnet's
dropout draws half the random bits of `jax.random.bernoulli`, which is most of what it gains in
table 1. Equinox and Flax come with the extra `bench`; without them their rows say so.
"""

import dataclasses
import importlib
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import train_mnist
from command_line import check_writable, command, cpu, parse

from funcnet import autodiff, ops, optim
from funcnet.layers import mlp
from funcnet.profile import in_turns, quartiles
from funcnet.training import TrainState, accuracy, make_epoch, make_step

Loop = Callable[[int], None]  # runs a number of steps and waits for the last one
EPS, ALPHA = 1e-5, 0.9  # of Batch Normalization
INPUTS, HIDDEN, CLASSES, BATCH = 784, 50, 10, 100  # of the small network


@dataclasses.dataclass(frozen=True)
class Config:
    """Times training steps: funcnet, raw JAX with Optax, Equinox, Flax."""

    rounds: int = 200
    """How often each candidate gets its turn."""
    json: Path | None = None
    """File for the numbers."""


@command("bench_step")
def main(argv: Sequence[str] | None = None) -> int:
    """Runs both comparisons and prints their tables; returns the exit status."""
    config = parse(Config, argv)
    if config.rounds < 1:
        raise ValueError(f"--rounds must be at least 1, got {config.rounds}")
    if config.json is not None:
        check_writable("--json", config.json)
    record = {"machine": machine(), "rounds": config.rounds}
    print(", ".join(f"{k} {v}" for k, v in record["machine"].items()))
    for title, loops, steps in (
        ("train_mnist.py's network, one step", main_job(), 1),
        ("784-50-10, batch 100, SGD, a step in a Python loop", small_network(), 20),
    ):
        record[title] = table = compare(loops, steps, config.rounds)
        print(f"\n{title}\n{'':28}{'µs (quartiles)':>24}{'ratio (quartiles)':>24}")
        for name, row in table.items():
            show = lambda q, digits: f"{q[1]:.{digits}f} ({q[0]:.{digits}f}, {q[2]:.{digits}f})"
            cells = (show(row["µs"], 0), show(row["ratio"], 3)) if row else ("not installed", "")
            print(f"{name:28}{cells[0]:>24}{cells[1]:>24}")
    if config.json is not None:
        text = json.dumps(record, indent=1, ensure_ascii=False)
        config.json.write_text(text, encoding="utf-8")
    return 0


def compare(
    loops: dict[str, Loop | None], steps: int, rounds: int, baseline: str = "raw JAX"
) -> dict[str, Any]:
    """Quartiles of the time of a step in µs, and of its ratio to the baseline, for each loop."""
    times = in_turns({k: loop for k, loop in loops.items() if loop}, rounds, steps=steps)
    row = lambda t: {"µs": quartiles(t), "ratio": quartiles(t / times[baseline])}
    return {name: row(times[name]) if loop else None for name, loop in loops.items()}


def python_loop(step: Callable[..., Any], carry: Any, *batch: Any) -> Loop:
    """`carry, out = step(carry, *batch)` again and again."""

    def loop(steps: int) -> None:
        nonlocal carry
        for _ in range(steps):
            carry, _ = step(carry, *batch)
        jax.block_until_ready(carry)

    return loop


def main_job() -> dict[str, Loop | None]:
    """The step of train_mnist.py with its default options."""
    config = train_mnist.Config()
    steps = 60000 // config.batch_size * config.epochs
    images = jax.random.randint(jax.random.key(0), (config.batch_size, 28, 28), 0, 256, jnp.uint8)
    labels = jnp.arange(config.batch_size) % CLASSES

    model, optimizer = train_mnist.make_model(config), train_mnist.make_optimizer(config, steps)
    metrics = {"accuracy": accuracy}
    step = make_step(model, ops.softmax_cross_entropy, optimizer, metrics=metrics)
    compiled = jax.jit(step, donate_argnums=0)
    create = lambda: TrainState.create(model, optimizer, jax.random.key(1), images)
    return {
        "funcnet, hand rules": python_loop(compiled, create(), images, labels),
        "funcnet, autodiff": python_loop(autodiff(compiled), create(), images, labels),
        "raw JAX": python_loop(*raw_main_job(config, steps), images, labels),
    }


def raw_main_job(config: train_mnist.Config, steps: int) -> tuple[Callable[..., Any], Any]:
    """The same step in plain functions of JAX and Optax, and what it starts from."""
    _, peak, decay = train_mnist.OPTIMIZERS["adamw"]
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, steps // 10, steps)
    matrices = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    optimizer = optax.adamw(schedule, weight_decay=decay, mask=matrices)

    def normalize(p, running, x):
        mean = x.mean(0)
        var = ((x - mean) ** 2).mean(0)
        follow = lambda old, new: ALPHA * old + (1 - ALPHA) * new
        y = p["scale"] * ((x - mean) * jax.lax.rsqrt(var + EPS)) + p["bias"]
        return y, jax.tree.map(follow, running, {"mean": mean, "var": var})

    def forward(params, running, x, key):
        most, image_shape, new = config.shift, x.shape[1:], []
        padded = jnp.pad(x, ((0, 0), (most, most), (most, most)))
        keys = jax.random.split(key, 1 + len(running))
        corners = jax.random.randint(keys[0], (len(x), 2), 0, 2 * most + 1)
        cut = lambda image, corner: jax.lax.dynamic_slice(image, corner, image_shape)
        x = jax.vmap(cut)(padded, corners).reshape(len(x), -1).astype(float) / 255
        for p, r, k in zip(params["hidden"], running, keys[1:], strict=True):
            x, r = normalize(p, r, x @ p["w"] + p["b"])
            keep = jax.random.bernoulli(k, 1 - config.dropout, x.shape)
            x = jnp.where(keep, jax.nn.relu(x) / (1 - config.dropout), 0)
            new.append(r)
        return x @ params["out"]["w"] + params["out"]["b"], new

    def objective(params, running, x, labels, key):
        logits, running = forward(params, running, x, key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        hits = (logits.argmax(-1) == labels).astype(jnp.float32)
        return losses.mean(), (running, hits.mean())

    def step(carry, x, labels):
        params, running, opt_state, key, i = carry
        key_i = jax.random.fold_in(key, i)
        (loss, (running, hits)), grads = jax.value_and_grad(objective, has_aux=True)(
            params, running, x, labels, key_i
        )
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, running, opt_state, key, i + 1), {"loss": loss, "accuracy": hits}

    def dense(key, n, m, gain):
        return {"w": jnp.sqrt(gain / n) * jax.random.normal(key, (n, m)), "b": jnp.zeros(m)}

    widths = (INPUTS, *config.hidden)
    keys = jax.random.split(jax.random.key(1), len(widths))
    hidden = [
        dense(k, n, m, 2.0) | {"scale": jnp.ones(m), "bias": jnp.zeros(m)}
        for k, n, m in zip(keys, widths, widths[1:], strict=False)
    ]
    params = {"hidden": hidden, "out": dense(keys[-1], widths[-1], CLASSES, 1.0)}
    running = [{"mean": jnp.zeros(m), "var": jnp.ones(m)} for m in config.hidden]
    start = (params, running, optimizer.init(params), jax.random.key(2), jnp.zeros((), jnp.int32))
    return jax.jit(step, donate_argnums=0), start


def small_network() -> dict[str, Loop | None]:
    """A network so small that the call costs as much as the mathematics."""
    x = jax.random.uniform(jax.random.key(0), (BATCH, INPUTS))
    labels = jnp.arange(BATCH) % CLASSES
    model, optimizer = mlp(HIDDEN, CLASSES), optim.sgd(0.1)
    step = make_step(model, ops.softmax_cross_entropy, optimizer)
    create = lambda: TrainState.create(model, optimizer, jax.random.key(1), x)
    return {
        "funcnet": python_loop(jax.jit(step, donate_argnums=0), create(), x, labels),
        "raw JAX": raw_small(x, labels),
        "Equinox, filter_jit": optional(equinox_small, x, labels),
        "Flax, nnx.jit": optional(flax_small, x, labels),
        "funcnet, scanned epoch": scanned(step, create(), x, labels),
    }


def scanned(step: Callable[..., Any], carry: TrainState, x: jax.Array, labels: jax.Array) -> Loop:
    """`make_epoch` over as many batches as steps are wanted."""
    epoch = make_epoch(step, batch_size=BATCH)
    data = {}

    def loop(steps: int) -> None:
        nonlocal carry
        if steps not in data:
            data[steps] = jnp.tile(x, (steps, 1)), jnp.tile(labels, steps)
        carry, _ = epoch(carry, *data[steps])
        jax.block_until_ready(carry)

    return loop


def raw_small(x: jax.Array, labels: jax.Array) -> Loop:
    """Plain functions."""
    optimizer = optax.sgd(0.1)

    def objective(params, x, labels):
        (w1, b1), (w2, b2) = params
        logits = jax.nn.relu(x @ w1 + b1) @ w2 + b2
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(carry, x, labels):
        params, opt_state = carry
        loss, grads = jax.value_and_grad(objective)(params, x, labels)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    dense = lambda key, n, m: (jax.random.normal(key, (n, m)) / jnp.sqrt(n), jnp.zeros(m))
    k1, k2 = jax.random.split(jax.random.key(1))
    params = (dense(k1, INPUTS, HIDDEN), dense(k2, HIDDEN, CLASSES))
    return python_loop(jax.jit(step, donate_argnums=0), (params, optimizer.init(params)), x, labels)


def equinox_small(x: jax.Array, labels: jax.Array) -> Loop:
    """As Equinox's documentation writes it, and with the model's buffers donated."""
    eqx = importlib.import_module("equinox")
    optimizer = optax.sgd(0.1)
    model = eqx.nn.MLP(INPUTS, CLASSES, HIDDEN, depth=1, key=jax.random.key(1))

    def objective(model, x, labels):
        logits = jax.vmap(model)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(batch, carry):
        model, opt_state = carry
        loss, grads = eqx.filter_value_and_grad(objective)(model, *batch)
        updates, opt_state = optimizer.update(grads, opt_state, model)
        return (eqx.apply_updates(model, updates), opt_state), loss

    compiled = eqx.filter_jit(step, donate="all-except-first")
    carry = (model, optimizer.init(eqx.filter(model, eqx.is_array)))
    return python_loop(lambda carry, *batch: compiled(batch, carry), carry, x, labels)


def flax_small(x: jax.Array, labels: jax.Array) -> Loop:
    """As Flax's documentation writes it."""
    nnx = importlib.import_module("flax.nnx")
    rngs = nnx.Rngs(1)
    model = nnx.Sequential(
        nnx.Linear(INPUTS, HIDDEN, rngs=rngs), jax.nn.relu, nnx.Linear(HIDDEN, CLASSES, rngs=rngs)
    )
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    def objective(model, x, labels):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), labels).mean()

    @nnx.jit
    def step(model, optimizer, x, labels):
        loss, grads = nnx.value_and_grad(objective)(model, x, labels)
        optimizer.update(model, grads)
        return loss

    def loop(steps: int) -> None:
        for _ in range(steps):
            step(model, optimizer, x, labels)
        jax.block_until_ready(nnx.state(model))

    return loop


def optional(make: Callable[..., Loop], *args: Any) -> Loop | None:
    """`make(*args)`, or None where its library is not installed."""
    try:
        return make(*args)
    except ImportError:
        return None


def machine() -> dict[str, str]:
    """What the numbers depend on."""
    versions = {}
    for name in ("jax", "jaxlib", "optax", "equinox", "flax"):
        try:
            versions[name] = importlib.import_module(name).__version__
        except ImportError:
            versions[name] = "not installed"
    return {
        "device": jax.devices()[0].device_kind,
        "CPU": f"{cpu()} ({os.cpu_count()} cores)",
        "system": platform.system(),
        "Python": platform.python_version(),
        **versions,
    }


if __name__ == "__main__":
    sys.exit(main())
