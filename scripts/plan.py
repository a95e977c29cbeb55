"""What a training step of a transformer needs on many accelerators, before any of them is there.

    python scripts/plan.py tpu:v5e:4x4                     # a slice of 16 chips
    python scripts/plan.py tpu:v6e:4x4 --tensor 4          # heads and hidden units over 4 chips
    python scripts/plan.py gpu:h100:8                      # 8 GPUs of one NVLink domain

The program compiles `training.make_step` of `models.transformer` with `sharding.fsdp` for devices
that need not exist, by hand rules and by autodiff. The network computes in bfloat16 and keeps its
parameters and the state of AdamW in float32; its loss is `ops.linear_cross_entropy`.

How to read it. Bytes are those of one device, as XLA's compiler for it allocates them: arguments
are parameters, optimizer's state and examples; temporaries are all that a step needs in addition. A
collective sends its payload once for every pass of the loops around it. The times are estimates:
"compute" is that of the compiler's cost model (TPU) or a roofline (GPU); "communication" is the
payload of all collectives, that of an all-reduce twice, divided by the published bandwidth. The two
may overlap, so a step takes at least the longer one, which is named as its bound.

The compilers come with `pip install libtpu` or `pip install 'jax[cuda12]'`.
"""

import dataclasses
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import readme
import tyro
from command_line import check_writable, command, parse

from funcnet import autodiff, initializers, models, ops, optim, sharding
from funcnet.layers import Layer, chain
from funcnet.profile.collectives import collectives
from funcnet.profile.devices import Device, device_named, devices_of
from funcnet.profile.estimate import estimate
from funcnet.training import TrainState, make_step


@dataclasses.dataclass(frozen=True)
class Config:
    """Plans a training step of a transformer for many accelerators."""

    devices: Annotated[str, tyro.conf.Positional] = "tpu:v5e:4x4"
    """Device and shape of the slice (TPU), or number of devices (GPU), as in gpu:h100:8."""
    tensor: int = 1
    """Number of devices that share the heads and hidden units of each example."""
    vocabulary: int = 32768
    """Number of ids."""
    width: int = 1024
    """Features per position between the blocks."""
    depth: int = 8
    """Number of blocks."""
    heads: int = 16
    """Number of attention heads; width must be a multiple of twice it."""
    hidden: int = 2816
    """Hidden units of the feed-forward layers."""
    context: int = 1024
    """Number of positions of an example."""
    batch_size: int = 64
    """Number of examples in a step, on all devices together."""
    checkpoint: bool = True
    """With hand rules, recompute each block in the backward pass."""
    write: bool = False
    """Also put the table into scripts/README.md."""


@dataclasses.dataclass(frozen=True)
class Needs:
    """What one program needs; bytes are those of one device."""

    arguments: int
    temporary: int
    collectives: dict[str, tuple[int, int, bool]]  # kind: number, payload, whether in loops
    compute: float  # ms
    communication: float  # ms
    seconds: float  # of tracing and compilation


@command("plan")
def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status: 0, or 2 if the options are invalid."""
    config = parse(Config, argv)
    device, plan = check(config)
    if config.write:
        check_writable("--write", readme.page("plan"))
    rows: dict[str, Needs | str] = {}
    for name, by_hand, recompute in (
        ("hand rules + checkpoint" if config.checkpoint else "hand rules", True, config.checkpoint),
        ("autodiff", False, False),
        ("autodiff + checkpoint", False, True),
    ):
        rows[name] = needs(config, device, plan, by_hand=by_hand, recompute=recompute)
        print(f"{name}: compiled", file=sys.stderr)
    text = table(config, device, plan, rows)
    print(text, end="")
    if config.write:
        readme.write("plan", text)
    return 0


def check(config: Config) -> tuple[Device, sharding.Plan]:
    """Returns the device and the plan; raises a ValueError that names an option out of range."""
    found = re.fullmatch(r"(\w+:\w+):([\dx]+)", config.devices)
    if found is None:
        raise ValueError(
            f"devices must be a device and a shape, such as tpu:v5e:4x4, got {config.devices!r}"
        )
    device = device_named("plan", found[1])
    devices = devices_of(found[1], found[2])
    count = len(devices)
    for name in ("vocabulary", "depth", "hidden", "context", "batch_size", "tensor"):
        if getattr(config, name) < 1:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must be at least 1, got {getattr(config, name)}")
    if count % config.tensor:
        raise ValueError(f"--tensor must divide the {count} devices, got {config.tensor}")
    if config.batch_size % (count // config.tensor):
        raise ValueError(
            f"--batch-size must be a multiple of the {count // config.tensor} devices that share "
            f"the examples, got {config.batch_size}"
        )
    shape = count // config.tensor, config.tensor
    mesh = jax.sharding.Mesh(np.array(devices).reshape(shape), ("data", "model"))
    return device, sharding.fsdp(mesh, tensor="model")


def needs(
    config: Config, device: Device, plan: sharding.Plan, *, by_hand: bool, recompute: bool
) -> Needs | str:
    """Compiles one program; returns what it needs, or why XLA does not compile it."""
    program, arguments = step(config, plan, recompute=recompute)
    start = time.perf_counter()
    try:
        traced = jax.jit(program if by_hand else autodiff(program), donate_argnums=0)
        compiled = traced.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        required = re.search(r"\(([\d.]+)G\) exceeds", str(e))
        return f"no: {required[1]} GiB of temporaries" if required else "no"
    seconds = time.perf_counter() - start
    memory, text, cost = compiled.memory_analysis(), compiled.as_text(), estimate(compiled, device)
    assert memory is not None
    assert text is not None
    found: dict[str, tuple[int, int, bool]] = {}
    for one in collectives(text):
        number, payload, looped = found.get(one.kind, (0, 0, False))
        found[one.kind] = number + 1, payload + one.payload * one.times, looped or one.times > 1
    sent = sum(
        payload * (2 if kind == "all-reduce" else 1) for kind, (_, payload, _) in found.items()
    )
    return Needs(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        found,
        cost.milliseconds,
        1e3 * sent / device.link,
        seconds,
    )


def step(
    config: Config, plan: sharding.Plan, *, recompute: bool
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A training step, and the shapes of its arguments with their shardings."""
    model, optimizer = network(config, recompute=recompute), optim.adamw(1e-4)
    loss = lambda y, labels: ops.linear_cross_entropy(y[0], y[1], labels).mean(-1)
    ids = jax.ShapeDtypeStruct((config.batch_size, config.context), "int32")
    create = lambda: TrainState.create(model, optimizer, jax.random.key(0), ids)
    train_state = jax.eval_shape(create)
    over = jax.sharding.NamedSharding(plan.mesh, jax.sharding.PartitionSpec(plan.batch))
    put = lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)
    train_state = jax.tree.map(put, train_state, plan.shardings(train_state))
    ids = put(ids, over)
    return make_step(model, loss, optimizer, sharding=plan), (train_state, ids, ids)


def network(config: Config, *, recompute: bool) -> Layer:
    """Makes the transformer, from ids to its features and the weights of the output layer."""

    def init(key, x):
        shape = config.width, config.vocabulary
        return {"w": initializers.lecun_normal(key, shape, x.dtype)}, ()

    def apply(params, state, x, *, key=None, train=False) -> Any:
        del key, train
        return (x, params["w"]), state

    body = models.transformer(
        config.vocabulary,
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        hidden=config.hidden,
        checkpoint=recompute,
        head=False,
    )
    net = chain(body, Layer(init, apply, "Output()"))

    def narrow(params, state, x, **options):
        params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
        return net.apply(params, state, x, **options)

    return net._replace(apply=narrow)


def table(config: Config, device: Device, plan: sharding.Plan, rows: dict[str, Needs | str]) -> str:
    """The results as Markdown."""
    train_state = step(config, plan, recompute=False)[1][0]
    count = sum(int(np.prod(a.shape)) for a in jax.tree.leaves(train_state.params))
    kinds = sorted(
        {kind for row in rows.values() if isinstance(row, Needs) for kind in row.collectives}
    )
    head = ["one device", *rows]
    lines: list[list[str]] = []

    def line(name: str, show: Callable[[Needs], str], missing: str = "") -> None:
        cells = (show(row) if isinstance(row, Needs) else missing for row in rows.values())
        lines.append([name, *cells])

    line("arguments, GB", lambda r: f"{r.arguments / 1e9:.3g}")
    line("temporaries, GB", lambda r: f"{r.temporary / 1e9:.3g}")
    fits = lambda r: "yes" if r.arguments + r.temporary <= device.memory else "no"
    lines.append(
        [f"fits {device.memory / 1e9:.0f} GB"]
        + [fits(row) if isinstance(row, Needs) else row for row in rows.values()]
    )
    for kind in kinds:
        line(f"{kind}: number; GB", lambda r, kind=kind: sent(r.collectives.get(kind)))
    line("compute, ms (estimate)", lambda r: f"{r.compute:.3g}")
    line("communication, ms (estimate)", lambda r: f"{r.communication:.3g}")
    bound = lambda r: "compute" if r.compute >= r.communication else "communication"
    line("bound by (estimate)", bound)
    line("trace and compile, s", lambda r: f"{r.seconds:.0f}")
    title = (
        f"{count / 1e6:,.3f} million parameters, {config.batch_size} × {config.context} tokens, on "
        f"{config.devices}, {dict(plan.mesh.shape)}, jax {jax.__version__}:"
    )
    rule = ["---"] * len(head)
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))
    return f"{title}\n\n{body}\n"


def sent(found: tuple[int, int, bool] | None) -> str:
    """Number and payload of the collectives of a kind."""
    if found is None:
        return "0"
    number, payload, looped = found
    return f"{number}; {payload / 1e9:.3g}{' (in loops)' if looped else ''}"


if __name__ == "__main__":
    sys.exit(main())
