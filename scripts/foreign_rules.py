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


class Foreign(NamedTuple):
    """A function with a hand-written gradient."""

    package: str  # the name of the distribution
    name: str
    make: Callable[[], tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]  # imports it
    findings: tuple[str, ...] = ()  # that the checker must make: "gradient of y"
    why: str = ""  # what is wrong, or meant
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
      why: What is wrong, or meant.
      **options: `truth` or `intent`, and keyword arguments of the function.
    """
    module, _, attribute = path.partition(":")

    def make() -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        found = LOADED[module]() if module in LOADED else import_module(module)
        f: Any = reduce(getattr, filter(None, attribute.split(".")), found)
        return (via(f) if via else f), args, options

    name = path.replace(":", ".").rstrip(".") + (f", {case}" if case else "")
    return Foreign(package, name, make, tuple(wrong.split(", ")) if wrong else (), why)


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


def rules() -> list[Foreign]:
    """The rows of the table."""
    f32 = jnp.float32
    x, causal = normal(3, 4), jnp.tril(jnp.ones((4, 4), bool))
    half = [normal(4, 3, seed=seed).astype(jnp.bfloat16) for seed in range(3)]
    attention = three(1, 4, 2, 3)
    blocks = lambda q, k: (None, None, 0.0, True, None, q, k, jnp.dtype(f32), None)
    flash = (normal(1, 1, 4, 3), normal(1, 1, 8, 3), normal(1, 1, 8, 3, seed=1))
    return [
        rule("exojax", "exojax.special.faddeeva:rewofzx", f32(0.7), f32(1.3),
             wrong="linearity of y, gradient of y",
             why="the constant 2/√π of ∂/∂y is not multiplied by the cotangent"),
        rule("fjformer", f"fjformer.kernels.cpu_ops.{FJ}:_flash_attn2", *flash,
             *blocks(2, 4), case="blocks of 2 queries and 4 keys",
             wrong="gradient of key_state, gradient of value_state",
             why="dK and dV of a block of keys are written at an offset of blocks of queries"),
        rule("fjformer", f"fjformer.kernels.cpu_ops.{FJ}:_flash_attn2", *flash,
             *blocks(2, 2), case="blocks of 2 queries and 2 keys"),
        rule("ejkernel", f"{EJ}.recurrent:recurrent", *attention, normal(1, 4, 2, 3, seed=3),
             case="with the gate g", wrong="shape of g",
             why="the cotangent of g has one more axis than g"),
        rule("ejkernel", f"{EJ}.flash_attention:flash_attention", *attention, causal=True),
        rule("ejkernel", f"{EJ}.flash_attention:flash_attention", *attention, normal(1, 2, 4, 4),
             normal(2), case="with bias and sinks", wrong="gradient of bias, gradient of sinks",
             via=lambda f: lambda q, k, v, bias, sinks: f(q, k, v, bias=bias, softmax_aux=sinks),
             why="bwd returns None for both"),
        rule("jax", f"{SPLASH}:attention_reference_custom", *half, jnp.bfloat16(0.3),
             via=lambda f: lambda q, k, v, sinks: f(causal, q, k, v, None, sinks),
             case="with bfloat16 sinks", wrong="dtype of sinks, scan",
             why="the cotangent of sinks is float32, which a loop rejects"),
        rule("flax", "flax.nnx:", f32(0.7), f32(2), via=nnx({"graph_updates": True}),
             case="custom_vjp(graph_updates=True)",
             wrong="second derivative of x, second derivative of y",
             why="the derivative of the gradient is 0"),
        rule("flax", "flax.nnx:", f32(0.7), f32(2), via=nnx({"graph_updates": False}),
             case="custom_vjp(graph_updates=False)"),
        rule("numpyro", "numpyro.distributions:DoublyTruncatedPowerLaw", f32(0.5), f32(1.3),
             f32(0.1), f32(0.9), case="log_prob",
             via=lambda d: lambda value, alpha, low, high: d(alpha, low, high).log_prob(value),
             wrong="gradient of low, gradient of high",
             why="they are of the density, not of its logarithm; that of high has a wrong sign"),
        rule("rlax", "rlax:clip_gradient", x, -0.5, 0.5, why="clipped",
             intent=lambda _, low, high, dy: (jnp.clip(dy, low, high), None, None)),
        rule("ott-jax", "ott.math.utils:softmin", x, f32(0.5), -1, wrong="none of gamma",
             why="bwd returns None for gamma"),
    ]  # fmt: skip
