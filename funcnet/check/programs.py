"""Compile programs in parallel, because compilation is most of the time that a check takes."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

Program = tuple[Callable[..., Any], tuple[Any, ...]]  # a function and its arguments


# Comparisons with a wide tolerance need no optimized code.
QUICK = {"xla_backend_optimization_level": 0}


def run_all(programs: Iterable[Program], options: Any = None) -> list[Any]:
    """Compiles and runs programs; returns the result of each, or the exception that it raised.

    Args:
      programs: Functions and their arguments.
      options: Compiler options of XLA, for example `QUICK`.
    """
    programs = list(programs)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # XLA releases the GIL while it compiles
        started = []
        for f, args in programs:
            try:
                lowered = jax.jit(f).lower(*args)
                started.append(pool.submit(lowered.compile, compiler_options=options))
            except Exception as e:
                started.append(e)
        return [_run(s, args) for s, (_, args) in zip(started, programs, strict=True)]


def _run(started: Any, args: tuple[Any, ...]) -> Any:
    if isinstance(started, Exception):
        return started
    try:
        return jax.block_until_ready(started.result()(*args))
    except Exception as e:
        return e
