"""A barrier for residuals, where XLA would otherwise keep more than the rule saves."""

import functools
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

CPU = ("cpu",)
CPU_AND_GPU = ("cpu", "cuda", "rocm")

barrier_p = Primitive("barrier")
barrier_p.multiple_results = True


def barrier(tree: Any, *, on: tuple[str, ...] = CPU) -> Any:
    """`jax.lax.optimization_barrier` on some platforms; on the others it does nothing.

    A backward pass that computes again what the forward pass has computed needs it on a CPU, where
    XLA would find the common part and write it to memory. XLA for TPU and GPU computes the common
    part again by itself, and a barrier only splits what would be one pass over the data. The choice
    is made when a program is lowered, so that a program for several platforms has both.
    """
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, barrier_p.bind(*leaves, on=on))


def _jvp(primals: Any, tangents: Any, *, on: tuple[str, ...]) -> Any:
    return barrier_p.bind(*primals, on=on), list(tangents)


def _batch(args: Any, dims: Any, *, on: tuple[str, ...]) -> Any:
    return barrier_p.bind(*args, on=on), dims


def _lowered(*xs: Any, on: tuple[str, ...], platform: str | None) -> Any:
    return jax.lax.optimization_barrier(xs) if platform in on else xs


barrier_p.def_impl(lambda *xs, **_: list(xs))
barrier_p.def_abstract_eval(lambda *types, **_: list(types))
ad.primitive_jvps[barrier_p] = _jvp
batching.primitive_batchers[barrier_p] = _batch
for platform in (None, *CPU_AND_GPU):
    lower = mlir.lower_fun(functools.partial(_lowered, platform=platform), multiple_results=True)
    mlir.register_lowering(barrier_p, lower, platform=platform)
