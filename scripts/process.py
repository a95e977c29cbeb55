"""A process that may be stopped at any moment: its signals, its exit, the lock of its folder."""

import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, NoReturn

from funcnet.command.base import Stopped


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list, so that they interrupt nothing.

    After the first signal, a second one acts as usual.
    """
    received: list[int] = []

    def as_usual() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def receive(number: int, _: Any) -> None:
        received.append(number)
        as_usual()

    before = {n: signal.signal(n, receive) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        as_usual()


def watch(received: list[int], f: Callable[..., Any], *args: Any) -> Any:
    """Returns f(*args), called in another thread: the main one is told of a signal only in Python.

    Raises:
      Stopped: As soon as a signal is received. The other thread goes on.
    """
    executor = futures.ThreadPoolExecutor(1)
    result = executor.submit(f, *args)
    executor.shutdown(wait=False)  # ends the thread after f
    while not received and not futures.wait([result], 0.05).done:
        pass
    if received:
        raise Stopped(number=received[0])
    return result.result()


def leave(status: int) -> NoReturn:
    """Ends the process; after a signal at once, as Python's exit waits for the other threads."""
    if status > 128:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Locks a folder; the lock ends with the process.

    Raises:
      ValueError: If another process has locked it.
    """
    folder = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        raise ValueError(f"--out must not be in use, but another process trains in {out}") from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(folder)
