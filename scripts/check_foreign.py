"""Run `funcnet.check_rule` on the hand-written gradients of other libraries.

    python scripts/check_foreign.py             prints the table
    python scripts/check_foreign.py --only ott  prints rows with "ott" in library or function

Each row is one function with a `jax.custom_vjp` inside, on small random arguments in float32. If a
gradient is meant to differ from autodiff's, the row says how, and a finding is not an error.
Libraries that are not installed are skipped, with a line for each row. To install all of them
(recurrentgemma requires an older absl-py than tokamax, but works with the newer one):

    uv pip install diffrax equinox flax jax-md keras ott-jax qwix rlax tokamax==0.0.12
    uv pip install --no-deps recurrentgemma
"""

import contextlib
import dataclasses
import io
import os
import platform
import sys
from collections.abc import Callable, Sequence
from importlib import import_module, metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from command_line import command, parse

PALLAS = "jax.experimental.pallas.ops"

os.environ.setdefault("KERAS_BACKEND", "jax")  # Keras reads it when it is imported.


@dataclasses.dataclass(frozen=True)
class Config:
    """Run `funcnet.check_rule` on the hand-written gradients of other libraries."""

    only: str = ""
    """Print only rows with this text in the name of the library or the function."""


class Foreign(NamedTuple):
    """A function of another library; `make()` imports it and returns (f, args, kwargs)."""

    package: str  # the name of the distribution
    name: str
    make: Callable[[], tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]
    intended: str = ""  # how the gradient is meant to differ from autodiff's


def normal(*shape: int, seed: int = 0) -> jax.Array:
    """Normally distributed numbers, different for each shape and seed."""
    random = np.random.default_rng([seed, *shape])
    return jnp.asarray(random.standard_normal(shape), jnp.float32)


def qkv(*shape: int) -> list[jax.Array]:
    """Random query, key and value."""
    return [normal(*shape, seed=seed) for seed in range(3)]


def plain(library: str, module: str, name: str, *args: Any, by: str = "", **kwargs: Any) -> Foreign:
    """The row of a function that is called directly; `by` is the intended difference."""
    make = lambda: (getattr(import_module(module), name), args, kwargs)
    return Foreign(library, f"{module}.{name}", make, by)


def tokamax_vjp(kind: str, op: str, vjp: str, *args: Any, **static: Any) -> Foreign:
    """The row of the backward pass of a GPU kernel, combined with the forward in plain JAX."""

    def make():
        base = import_module(f"tokamax._src.ops.{kind}.base")
        rule = getattr(base, vjp)
        f = getattr(base, op)().replace(vjp=rule() if isinstance(rule, type) else rule)
        return (lambda *xs: f(*xs, **static)), args, {}

    return Foreign("tokamax", f"{kind}.base.{vjp}", make)


def qwix(
    name: str, config: str, *args: Any, qtype: Any = None, by: str = "", **static: Any
) -> Foreign:
    """The row of a product, quantized to `qtype` or, without a qtype, not quantized."""

    def make():
        module = import_module(f"qwix._src.core.{name}")
        options = getattr(module, config)(lhs_qtype=qtype, rhs_qtype=qtype)
        return (lambda *xs: getattr(module, name)(*xs, config=options, **static)), args, {}

    return Foreign("qwix", f"{name}({qtype or 'not quantized'})", make, by)


def while_loop():
    """Equinox's while loop, whose backward pass recomputes from checkpoints."""
    loop = import_module("equinox.internal").while_loop
    step = lambda w, carry: (carry[0] + 1, jnp.tanh(w @ carry[1]))
    options = {"kind": "checkpointed", "max_steps": 5, "checkpoints": 2}
    f = lambda x, w: loop(lambda c: c[0] < 5, lambda c: step(w, c), (0, x), **options)[1]
    return f, (normal(3), normal(3, 3)), {}


def backsolve():
    """The continuous adjoint of an ODE, by Diffrax."""
    diffrax = import_module("diffrax")
    term = diffrax.ODETerm(lambda _, y, w: jnp.tanh(w @ y))
    solver, adjoint = diffrax.Dopri5(), diffrax.BacksolveAdjoint()
    f = lambda y, w: diffrax.diffeqsolve(term, solver, 0.0, 1.0, 0.05, y, w, adjoint=adjoint).ys
    return f, (normal(3), normal(3, 3)), {}


def odeint():
    """The continuous adjoint of an ODE, by JAX."""
    solve = import_module("jax.experimental.ode").odeint
    rate = lambda y, t, w: jnp.tanh(w @ y) * jnp.cos(t)
    f = lambda y, t, w: solve(rate, y, t, w, rtol=1e-6, atol=1e-6)
    return f, (normal(3), jnp.asarray([0.0, 0.4, 1.0]), normal(3, 3)), {}


def sinkhorn():
    """The cost of optimal transport, with implicit differentiation of the potentials."""
    cloud = import_module("ott.geometry.pointcloud").PointCloud
    solve = import_module("ott.solvers.linear").solve
    f = lambda x, y: solve(cloud(x, y, epsilon=0.5), threshold=1e-5).reg_ot_cost
    return f, (normal(5, 2), normal(4, 2)), {}


def rows() -> list[Foreign]:
    """The rows of the table."""
    f32, fp8, e4m3 = jnp.float32, "flax.linen.fp8_ops", jnp.float8_e4m3fn
    x, one, history, sizes = normal(3, 4), jnp.ones(1), jnp.abs(normal(4)), jnp.asarray([3, 5])
    norm = (normal(2, 4, 8), normal(8), normal(8, seed=1))
    labels, causal = jnp.asarray([0, 2, 1, 4]), jnp.tril(jnp.ones((4, 4), bool))
    definite = normal(3, 3) @ normal(3, 3).T / 3 + jnp.eye(3)
    quaternion = jnp.asarray([0.1, 0.5, -0.5, 0.7])
    factors, contracted = (normal(4, 3), normal(3, 5)), (((1,), (0,)), ((), ()))
    splash = f"{PALLAS}.tpu.splash_attention.splash_attention_kernel"
    adjoint = "continuous adjoint: exact but for the discretization"
    fixed_point = "implicit: exact at the fixed point"
    straight = "straight-through"
    statistics = f"{straight}; new statistics in place of cotangents"
    return [
        plain("optax", "optax", "scale_gradient", x, 0.5, by="scaled"),
        plain("rlax", "rlax", "clip_gradient", x, -0.5, 0.5, by="clipped"),
        Foreign("equinox", "equinox.internal.while_loop(kind='checkpointed')", while_loop),
        plain("equinox", "equinox.debug", "backward_nan", normal(3), terminate=False),
        Foreign("diffrax", "diffrax.BacksolveAdjoint", backsolve, adjoint),
        Foreign("jax", "jax.experimental.ode.odeint", odeint, adjoint),
        plain("jax", f"{PALLAS}.tpu.flash_attention", "mha_reference", *qkv(2, 2, 4, 3),
              normal(2, 2, 4, 4), causal=True),
        plain("jax", splash, "attention_reference_custom", causal, *qkv(4, 3), None, normal(),
              attn_logits_soft_cap=2.0),
        plain("jax", f"{PALLAS}.tpu.megablox", "gmm", normal(8, 8), normal(2, 8, 8), sizes,
              f32, (8, 8, 8), interpret=True),
        plain("jax", f"{PALLAS}.gpu.layer_norm", "layer_norm", *norm, interpret=True),
        plain("jax", f"{PALLAS}.gpu.rms_norm", "rms_norm", *norm, interpret=True),
        plain("jax", f"{PALLAS}.gpu.attention", "mha", *qkv(1, 16, 2, 16), None, 0.25, True,
              interpret=True),
        plain("tokamax", "tokamax", "linear_softmax_cross_entropy_loss", normal(4, 3), labels,
              normal(3, 5), implementation="xla"),
        plain("tokamax", "tokamax", "layer_norm", *norm, implementation="xla"),
        tokamax_vjp("attention", "DotProductAttention", "DotProductAttentionVjp",
                    *qkv(2, 4, 2, 8), is_causal=True),
        tokamax_vjp("gated_linear_unit", "GatedLinearUnit", "GatedLinearUnitVjp",
                    normal(4, 3), normal(3, 2, 5), activation=jax.nn.silu),
        tokamax_vjp("ragged_dot", "RaggedDot", "vjp", normal(8, 3), normal(2, 3, 4),
                    group_sizes=sizes, activation=jax.nn.silu),
        plain("flax", fp8, "in_qdq", f32, e4m3, x, one, history, by=statistics),
        plain("flax", fp8, "out_qdq", f32, e4m3, x, one, history, by=statistics),
        plain("flax", fp8, "in_q", f32, e4m3, x, one, history, by=f"none for inp; {statistics}"),
        plain("flax", fp8, "out_dq", f32, one, 2 * one, x, by=straight),
        qwix("dot_general_qt", "DotGeneralQtConfig", *factors, dimension_numbers=contracted),
        qwix("dot_general_qt", "DotGeneralQtConfig", *factors, dimension_numbers=contracted,
             qtype="int8", by=straight),
        qwix("conv_general_qt", "ConvGeneralQtConfig", normal(2, 3, 6, 5), normal(4, 3, 3, 2),
             window_strides=(2, 1), padding="SAME"),
        qwix("ragged_dot_qt", "RaggedDotQtConfig", normal(8, 3), normal(2, 3, 4),
             group_sizes=sizes, qtype="int8", by=straight),
        plain("ott-jax", "ott.math.utils", "softmin", x, jnp.asarray(0.5), -1),
        *(plain("ott-jax", "ott.math.matrix_square_root", name, definite, by=fixed_point)
          for name in ("sqrtm", "sqrtm_only", "inv_sqrtm_only")),
        Foreign("ott-jax", "ott.solvers.linear.solve", sinkhorn, fixed_point),
        plain("jax-md", "jax_md._nn.uma.kernels", "_segment_mm_2d", normal(8, 3), normal(2, 4, 3),
              sizes),
        plain("jax-md", "jax_md.rigid_body", "_quaternion_rotate", quaternion, normal(3),
              by="projected to the tangent space of the rotations"),
        plain("recurrentgemma", "recurrentgemma.jax.layers", "sqrt_bound_derivative", history, 1.0,
              by="bounded"),
        plain("keras", "keras.quantizers", "fake_quant_with_min_max_vars", x, jnp.asarray(-1.0),
              jnp.asarray(1.0), by=straight),
    ]  # fmt: skip


def checked(row: Foreign) -> str | tuple[str, str, str]:
    """The version, the verdict and the findings in one line; or why the row is skipped."""
    from funcnet import check_rule

    try:
        version = metadata.version(row.package)
        f, args, kwargs = row.make()
    except metadata.PackageNotFoundError:
        return "not installed"
    except (ImportError, AttributeError) as error:
        return cell(f"{type(error).__name__}: {error}")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # backward_nan prints
            report = check_rule(f, *args, **kwargs)
    except Exception as error:  # from the library or the checker: go on with the next row
        return version, "not checked", cell(f"{type(error).__name__}: {error}")
    found = [cell(f"{x.kind} `{x.argument}` {x.message}") for x in report.findings]
    return version, "proved" if report.ok else "refuted", "; ".join(found)


def cell(text: str, width: int = 160) -> str:
    """A text as one line that fits a cell."""
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= width else line[: width - 1] + "…"


def show(chosen: list[Foreign]) -> None:
    """Prints the table in Markdown, each row as soon as it is done, then the machine."""
    print(
        "| library | function | by design | verdict | findings |", "|---|---|---|---|---|", sep="\n"
    )
    for row in chosen:
        result = checked(row)
        if isinstance(result, str):
            print(f"skipped: {row.package}, {row.name}: {result}", flush=True)
            continue
        version, verdict, found = result
        cells = (f"{row.package} {version}", f"`{row.name}`", row.intended, verdict, found)
        print(f"| {' | '.join(cells)} |", flush=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    print(f"\njax {jax.__version__}, Python {platform.python_version()}, {machine}.")


@command("check_foreign")
def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    config = parse(Config, argv)
    chosen = [row for row in rows() if config.only in f"{row.package} {row.name}"]
    if not chosen:
        raise ValueError(f"--only must be part of the name of a row, got {config.only!r}")
    del sys.argv[1:]  # tokamax reads it and rejects unknown options
    show(chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
