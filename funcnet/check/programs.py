"""Run programs: small ones in NumPy, others compiled in parallel.

Compilation is most of the time that a check takes.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from funcnet.check.interpreter import COST, cost, evaluate

Program = tuple[Callable[..., Any], tuple[Any, ...]]  # a function and its arguments

# Comparisons with a wide tolerance need no optimized code.
QUICK = {"xla_backend_optimization_level": 0}


def run_all(programs: Iterable[Program], options: Any = None) -> list[Any]:
    """Runs programs; returns the result of each, or the exception that it raised.

    Args:
      programs: Functions and their arguments.
      options: Compiler options of XLA. With `QUICK`, small programs are not compiled.
    """
    programs = list(programs)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # XLA releases the GIL while it compiles
        started = []
        for f, args in programs:
            try:
                traced = jax.jit(f).trace(*args)
                found = _interpreted(traced, args) if options is QUICK else None
                if found is None:
                    compiling = pool.submit(traced.lower().compile, compiler_options=options)
                    started.append(lambda args=args, started=compiling: started.result()(*args))
                else:
                    started.append(lambda found=found: found[0])
            except Exception as e:
                started.append(e)
        return [s if isinstance(s, Exception) else _run(s) for s in started]


def _interpreted(traced: Any, args: tuple[Any, ...]) -> list[Any] | None:
    """The result, in a list, of a program that NumPy evaluates, else None."""
    leaves = jax.tree.leaves(args)
    if cost(traced.jaxpr) > COST or any(_is_sharded(leaf) for leaf in leaves):
        return None
    try:
        leaves = evaluate(traced.jaxpr, leaves)
    except Exception:  # compiling it will tell whether the program or the interpreter is wrong
        return None
    return [jax.tree.unflatten(jax.tree.structure(traced.out_info), leaves)]


def _is_sharded(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1


def _run(program: Callable[[], Any]) -> Any:
    try:
        return jax.block_until_ready(program())
    except Exception as e:
        return e


def quick(f: Callable[..., Any]) -> Callable[..., Any]:
    """The function f, run as a `QUICK` program, which is traced once for arguments of one type."""
    compiled = jax.jit(f, compiler_options=QUICK)

    def run(*args: Any) -> Any:
        found = _interpreted(compiled.trace(*args), args)
        return compiled(*args) if found is None else found[0]

    return run
