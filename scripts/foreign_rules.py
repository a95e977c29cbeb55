"""Functions of other libraries with hand-written gradients, for `check_foreign.py`.

An entry says how a function is called, and what `funcnet.check_rule` finds. Where a gradient is
meant to differ from the derivative, `truth` or `intent` declares what is meant. What is wrong was
found to be wrong by finite differences or a formula too, at the versions in pyproject.toml.
"""

import importlib.util
import os
import sys
from collections.abc import Callable
from functools import reduce
from importlib import import_module
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np

os.environ.setdefault("KERAS_BACKEND", "jax")  # Keras reads it when it is imported.

PROVED, REFUTED, UNDECIDED = "proved", "refuted", "undecided"
PALLAS = "jax.experimental.pallas.ops"
SPLASH = f"{PALLAS}.tpu.splash_attention.splash_attention_kernel"
EJ, FJ = "ejkernel.kernels._xla", "jax_flash_attention_2"
TFP = "tensorflow_probability.substrates.jax.math"


class Foreign(NamedTuple):
    """A function with a hand-written gradient."""

    package: str  # the name of the distribution
    name: str
    make: Callable[[], tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]  # imports it
    findings: tuple[str, ...] = ()  # that the checker must make: "gradient of y"
    why: str = ""  # what is wrong, or meant, or why nothing can be compared
    is_undecided: bool = False

    @property
    def expected_verdict(self) -> str:
        """The verdict that the checker must reach."""
        return REFUTED if self.findings else UNDECIDED if self.is_undecided else PROVED


def rule(
    package: str,
    path: str,
    *args: Any,
    case: str = "",
    via: Callable[[Any], Any] | None = None,
    wrong: str = "",
    why: str = "",
    is_undecided: bool = False,
    **options: Any,
) -> Foreign:
    """An entry of the table.

    Args:
      package: The name of the distribution.
      path: The module and the function: "optax:scale_gradient".
      *args: The arguments of the function.
      case: What the entry tries, if the function has several.
      via: Makes the function to check of the one at `path`.
      wrong: The findings of the checker, separated by commas; "" if the rule is right.
      why: What is wrong, or meant, or why nothing can be compared.
      is_undecided: Whether nothing can be compared.
      **options: `truth` or `intent`, and keyword arguments of the function.
    """
    module, _, attribute = path.partition(":")

    def make() -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        found = LOADED[module]() if module in LOADED else import_module(module)
        f: Any = reduce(getattr, filter(None, attribute.split(".")), found)
        return (via(f) if via else f), args, options

    name = path.replace(":", ".").rstrip(".") + (f", {case}" if case else "")
    findings = tuple(wrong.split(", ")) if wrong else ()
    return Foreign(package, name, make, findings, why, is_undecided)


def normal(*shape: int, seed: int = 0) -> jax.Array:
    """Normally distributed numbers, different for each shape and seed."""
    random = np.random.default_rng([seed, *shape])
    return jnp.asarray(random.standard_normal(shape), jnp.float32)


def unit(*shape: int, seed: int = 0) -> jax.Array:
    """Numbers between 0.1 and 0.9."""
    random = np.random.default_rng([seed, *shape])
    return jnp.asarray(random.uniform(0.1, 0.9, shape), jnp.float32)


def three(*shape: int) -> list[jax.Array]:
    """Random query, key and value."""
    return [normal(*shape, seed=seed) for seed in range(3)]


def fjformer() -> Any:
    """One file of fjformer, because the package as a whole needs an older JAX."""
    package = importlib.util.find_spec("fjformer")
    assert package is not None
    file = f"{(package.submodule_search_locations or [''])[0]}/kernels/cpu_ops/{FJ}.py"
    spec = importlib.util.spec_from_file_location(FJ, file)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    names = {"GenerateRNG": lambda: None, "with_sharding_constraint": None}  # it imports these
    stub = SimpleNamespace(**names)
    with patch.dict(sys.modules, {"fjformer": stub, "fjformer.sharding": stub}):
        spec.loader.exec_module(found)
    return found


LOADED = {f"fjformer.kernels.cpu_ops.{FJ}": fjformer}


def nnx(options: dict[str, bool]) -> Callable[[Any], Any]:
    """The example of the documentation of `nnx.custom_vjp`: sin(x) y."""

    def make(nnx: Any) -> Callable[..., Any]:
        class Foo(nnx.Module):
            def __init__(self, x: Any, y: Any):
                self.x, self.y = nnx.Param(x), nnx.Param(y)

        @nnx.custom_vjp(**options)
        def f(m: Any) -> Any:
            return jnp.sin(m.x) * m.y

        def fwd(m: Any) -> Any:
            return f(m), (jnp.cos(m.x), jnp.sin(m.x), m)

        def bwd(saved: Any, dy: Any) -> Any:
            cos, sin, m = saved
            if options["graph_updates"]:
                (updates,), dy = dy
                dm = jax.tree.map(lambda x: x, updates)
                dm["x"][...], dm["y"][...] = cos * dy * m.y, sin * dy
            else:
                dm = nnx.clone(m)
                dm.x[...], dm.y[...] = cos * dy * m.y, sin * dy
            return (dm,)

        f.defvjp(fwd, bwd)
        return lambda x, y: f(Foo(x, y))

    return make


def while_loop(loop: Any) -> Callable[..., Any]:
    """A loop of Equinox, whose gradient recomputes from checkpoints."""
    step = lambda w, carry: (carry[0] + 1, jnp.tanh(w @ carry[1]))
    kind = {"kind": "checkpointed", "max_steps": 5, "checkpoints": 2}
    return lambda x, w: loop(lambda c: c[0] < 5, lambda c: step(w, c), (0, x), **kind)[1]


def solved(diffrax: Any) -> Callable[..., Any]:
    """An ODE solved by Diffrax, whose gradient is the continuous adjoint."""
    term, solver = diffrax.ODETerm(lambda _, y, w: jnp.tanh(w @ y)), diffrax.Dopri5()
    options = {"t0": 0.0, "t1": 1.0, "dt0": 0.1, "adjoint": diffrax.BacksolveAdjoint()}
    return lambda y, w: diffrax.diffeqsolve(term, solver, y0=y, args=w, **options).ys


def odeint(solve: Any) -> Callable[..., Any]:
    """An ODE solved by JAX, whose gradient is the continuous adjoint."""
    rate = lambda y, t, w: jnp.tanh(w @ y) * jnp.cos(t)
    return lambda y, t, w: solve(rate, y, t, w, rtol=1e-6, atol=1e-6)


def sinkhorn(solve: Any) -> Callable[..., Any]:
    """The cost of entropic optimal transport, whose gradient is implicit."""
    cloud = import_module("ott.geometry.pointcloud").PointCloud
    return lambda x, y: solve(cloud(x, y, epsilon=0.5), threshold=1e-5).reg_ot_cost


def fixed_point(solver: Any) -> Callable[..., Any]:
    """A fixed point by JAXopt, whose gradient is implicit."""
    f = lambda x, w: jnp.tanh(w @ x + 1)
    return lambda w: solver(f, maxiter=200).run(jnp.zeros(3), w).params


def root(optimistix: Any) -> Callable[..., Any]:
    """A root by Optimistix, whose gradient is implicit."""
    f, newton = lambda x, w: x - jnp.tanh(w @ x + 1), optimistix.Newton(rtol=1e-6, atol=1e-6)
    return lambda w: optimistix.root_find(f, newton, jnp.zeros(3), w).value


def optimum(custom_root: Any) -> Callable[..., Any]:
    """Ridge regression as the root of its gradient, with JAXopt's decorator."""
    loss = lambda w, reg, x, y: jnp.sum((x @ w - y) ** 2) / 2 + reg * jnp.sum(w**2) / 2
    solve = lambda _, reg, x, y: jnp.linalg.solve(x.T @ x + reg * jnp.eye(3), x.T @ y)
    f = custom_root(jax.grad(loss))(solve)
    return lambda reg, x, y: f(None, reg, x, y)


def qwix(module: Any) -> Callable[..., Any]:
    """A product of Qwix, not quantized."""
    dims, options = (((1,), (0,)), ((), ())), module.DotGeneralQtConfig()
    return lambda x, w: module.dot_general_qt(x, w, dimension_numbers=dims, config=options)


def aqt(config: Any) -> Callable[..., Any]:
    """A product of AQT with 8-bit arguments and an exact backward pass."""
    product = config(fwd_bits=8, dlhs_bits=None, drhs_bits=None)
    return lambda x, w: product(x, w, (((1,), (0,)), ((), ())))


def rules() -> list[Foreign]:
    """The rows of the table."""
    f32 = jnp.float32
    x, causal = normal(3, 4), jnp.tril(jnp.ones((4, 4), bool))
    half = [normal(4, 3, seed=seed).astype(jnp.bfloat16) for seed in range(3)]
    attention = three(1, 4, 2, 3)
    blocks = lambda q, k: (None, None, 0.0, True, None, q, k, jnp.dtype(f32), None)
    flash = (normal(1, 1, 4, 3), normal(1, 1, 8, 3), normal(1, 1, 8, 3, seed=1))
    norm, kinked = (normal(2, 4, 8), normal(8), normal(8, seed=1)), jnp.asarray([0.5, 0, -1], f32)
    labels, sizes = jnp.asarray([0, 2, 1, 4]), jnp.asarray([3, 5])
    fp8 = lambda f: lambda x: f(f32, jnp.float8_e4m3fn, x, jnp.ones(1), jnp.ones(4))
    product, straight = jnp.matmul, "straight-through"
    law = (f32(0.5), f32(1.3), f32(0.1), f32(0.9))
    log_prob = lambda d: lambda value, alpha, low, high: d(alpha, low, high).log_prob(value)
    cdf = lambda d: lambda value, alpha, low, high: d(alpha, low, high).cdf(value)
    bias = lambda f: lambda q, k, v, bias, sinks: f(q, k, v, bias=bias, softmax_aux=sinks)
    return [
        # Attention and other kernels.
        rule("fjformer", f"fjformer.kernels.cpu_ops.{FJ}:_flash_attn2", *flash,
             *blocks(2, 4), case="blocks of 2 queries and 4 keys",
             wrong="gradient of key_state, gradient of value_state",
             why="dK and dV of a block of keys are written at an offset of blocks of queries"),
        rule("fjformer", f"fjformer.kernels.cpu_ops.{FJ}:_flash_attn2", *flash,
             *blocks(2, 2), case="blocks of 2 queries and 2 keys"),
        rule("ejkernel", f"{EJ}.flash_attention:flash_attention", *attention, causal=True),
        rule("ejkernel", f"{EJ}.flash_attention:flash_attention", *attention, normal(1, 2, 4, 4),
             normal(2), case="with bias and sinks", via=bias,
             wrong="gradient of bias, gradient of sinks", why="bwd returns None for both"),
        rule("ejkernel", f"{EJ}.recurrent:recurrent", *attention,
             wrong="jit, gradient of key",
             why="bwd needs the values of gates; dK uses the transpose of what it must"),
        rule("ejkernel", f"{EJ}.recurrent:recurrent", *attention, normal(1, 4, 2, 3, seed=3),
             case="with the gate g", wrong="shape of g",
             why="the cotangent of g has one more axis than g"),
        rule("ejkernel", f"{EJ}.mean_pooling:mean_pooling", normal(2, 4, 3)),
        rule("ejkernel", f"{EJ}.fused_cross_entropy._xla_impl_fwd:_fused_ce_core", normal(4, 5),
             labels, unit(4), -100, wrong="none of weights", why="bwd returns None for weights"),
        rule("ejkernel", f"{EJ}.fused_kl_divergence._xla_impl_fwd:_fused_kl_core", normal(4, 5),
             normal(4, 5, seed=1), unit(4), wrong="gradient of teacher, none of weights",
             why="bwd returns 0 for teacher and None for weights"),
        rule("jax", f"{SPLASH}:attention_reference_custom", *half, jnp.bfloat16(0.3),
             via=lambda f: lambda q, k, v, sinks: f(causal, q, k, v, None, sinks),
             case="with bfloat16 sinks", wrong="dtype of sinks, scan",
             why="the cotangent of sinks is float32, which a loop rejects"),
        rule("jax", f"{PALLAS}.tpu.flash_attention:mha_reference", *three(2, 2, 4, 3),
             normal(2, 2, 4, 4), causal=True),
        rule("jax", f"{PALLAS}.tpu.flash_attention:flash_attention", *three(1, 1, 128, 8),
             is_undecided=True, why="the kernel needs a TPU, and has no option interpret"),
        rule("jax", f"{PALLAS}.tpu.megablox:gmm", normal(8, 8), normal(2, 8, 8), sizes, f32,
             (8, 8, 8), interpret=True, wrong="vmap of rhs",
             why="under vmap, in interpret mode, drhs is nan"),
        rule("jax", f"{PALLAS}.gpu.layer_norm:layer_norm", *norm, interpret=True),
        rule("jax", f"{PALLAS}.gpu.rms_norm:rms_norm", *norm, interpret=True),
        rule("tokamax", "tokamax:linear_softmax_cross_entropy_loss", normal(4, 3), labels,
             normal(3, 5), implementation="xla"),
        rule("tokamax", "tokamax:layer_norm", *norm, implementation="xla"),
        rule("jax-md", "jax_md._nn.uma.kernels:_segment_mm_2d", normal(8, 3), normal(2, 4, 3),
             sizes),
        # Solvers: implicit gradients and adjoints.
        rule("jaxopt", "jaxopt:FixedPointIteration", 0.3 * normal(3, 3), via=fixed_point),
        rule("jaxopt", "jaxopt.implicit_diff:custom_root", f32(0.5), normal(6, 3), normal(6),
             via=optimum),
        rule("jaxopt", "jaxopt.isotonic:isotonic_l2_pav", normal(6)),
        rule("optimistix", "optimistix:", 0.3 * normal(3, 3), via=root, case="root_find"),
        rule("equinox", "equinox.internal:while_loop", normal(3), normal(3, 3), via=while_loop),
        rule("diffrax", "diffrax:", normal(3), normal(3, 3), via=solved, case="BacksolveAdjoint"),
        rule("jax", "jax.experimental.ode:odeint", normal(3), jnp.asarray([0, 0.4, 1], f32),
             normal(3, 3), via=odeint, tolerance=1e-4,
             why="with tolerance=1e-4: the steps of its adjoint depend on the cotangent"),
        rule("jax", "jax.scipy.sparse.linalg:cg", normal(3, 3), normal(3), case="of w wᵀ + 1",
             via=lambda cg: lambda w, b: cg(lambda x: w @ (w.T @ x) + x, b, tol=1e-6)[0]),
        rule("ott-jax", "ott.solvers.linear:solve", normal(5, 2), normal(4, 2),
             via=sinkhorn),
        rule("ott-jax", "ott.math.utils:softmin", x, f32(0.5), -1, wrong="none of gamma",
             why="bwd returns None for gamma"),
        rule("ott-jax", "ott.math.utils:logsumexp", x, 1),
        rule("ott-jax", "ott.math.utils:lambertw", unit(4)),
        # Special functions, densities, projections.
        rule("exojax", "exojax.special.faddeeva:rewofzx", f32(0.7), f32(1.3),
             wrong="linearity of y, gradient of y",
             why="the constant 2/√π of ∂/∂y is not multiplied by the cotangent"),
        rule("exojax", "exojax.postproc.spin_rotation:integrated_rotkernel_trans", unit(4),
             unit(4, seed=1)),
        rule("tfp-nightly", f"{TFP}:lambertw", unit(4)),
        rule("tfp-nightly", f"{TFP}:dawsn", unit(4)),
        rule("jaxoplanet", "jaxoplanet.core.kepler:kepler", unit(4), unit(4, seed=1) / 2),
        rule("numpyro", "numpyro.distributions:DoublyTruncatedPowerLaw", *law, case="log_prob",
             via=log_prob, wrong="gradient of low, gradient of high",
             why="they are of the density, not of its logarithm; that of high has a wrong sign"),
        rule("numpyro", "numpyro.distributions:DoublyTruncatedPowerLaw", *law, case="cdf", via=cdf),
        rule("numpyro", "numpyro.distributions.util:log1mexp", -unit(4)),
        rule("distrax", "distrax._src.utils.math:multiply_no_nan", normal(3), kinked),
        rule("optax", "optax.losses._classification:weighted_logsoftmax", normal(3),
             jnp.asarray([0.5, 0, 0.2], f32)),
        rule("optax", "optax.projections:projection_simplex", normal(5)),
        rule("lineax", "lineax._norm:two_norm", normal(4)),
        rule("e3nn-jax", "e3nn_jax._src.utils.einsum:einsum", x, normal(4, 2),
             via=lambda f: lambda x, y: f("ij,jk->ik", x, y)),
        rule("jax", "jax.numpy:sinc", jnp.asarray([0.3, 0, 2.6], f32)),
        rule("jax", "jax.numpy:logaddexp", normal(3), normal(3)),
        rule("jax", "jax.nn:relu", kinked, wrong="kink of x",
             why="0 at 0, where autodiff of maximum has 1/2"),
        rule("jax", "jax.nn:relu", kinked, truth=lambda x: jnp.where(x > 0, x, 0),
             case="with 0 at 0", why="as declared; a difference across 0 has 1/2"),
        # Gradients that differ from the derivative on purpose, and wrappers.
        rule("rlax", "rlax:clip_gradient", x, -0.5, 0.5, why="clipped",
             intent=lambda _, low, high, dy: (jnp.clip(dy, low, high), None, None)),
        rule("optax", "optax:scale_gradient", x, 0.5, truth=lambda x, s: s * x, why="scaled"),
        rule("recurrentgemma", "recurrentgemma.jax.layers:sqrt_bound_derivative", unit(4), 1.0,
             intent=lambda x, most, dy: dy / jnp.sqrt(jnp.maximum(4 * x, 1 / most**2)),
             why="the derivative of √x, bounded"),
        rule("keras", "keras.quantizers:fake_quant_with_min_max_vars", x, f32(-1), f32(1),
             truth=lambda x, low, high: jnp.clip(x, low, high), why=straight),
        rule("flax", "flax.linen.fp8_ops:in_qdq", x, via=fp8, truth=lambda x: x, why=straight),
        rule("aqtp", "aqt.jax.v2.config:config_v4", x, normal(4, 5), truth=product,
             via=aqt, why=straight),
        rule("aqtp", "aqt.jax_legacy.jax.primitives:round_with_gradient", x, truth=lambda x: x,
             why=straight),
        rule("qwix", "qwix._src.core.dot_general_qt:", x, normal(4, 5), via=qwix),
        rule("jax-md", "jax_md.space:transform", f32(2), x, why="forces without the box's factor",
             intent=lambda _, r, dy: (jnp.sum(r * dy), dy)),
        rule("flax", "flax.nnx:", f32(0.7), f32(2), via=nnx({"graph_updates": True}),
             case="custom_vjp(graph_updates=True)",
             wrong="second derivative of x, second derivative of y",
             why="the derivative of the gradient is 0"),
        rule("flax", "flax.nnx:", f32(0.7), f32(2), via=nnx({"graph_updates": False}),
             case="custom_vjp(graph_updates=False)"),
    ]  # fmt: skip
