"""Shared by the command and the scripts: exit statuses, and error messages of one line."""

import functools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

USAGE, CLOSED = 2, 141  # the latter as in a shell, for SIGPIPE

# Errors that a request can cause: values out of range, files, too much memory, missing packages.
# Others are bugs.
REQUEST = (
    ValueError,
    OverflowError,
    OSError,
    MemoryError,
    ModuleNotFoundError,
    jax.errors.JaxRuntimeError,
)


class Stopped(KeyboardInterrupt):
    """Raised to end the program after a signal, with a message that says what is saved.

    signal: The number of the signal; the exit status is 128 more, as in a shell.
    """

    def __init__(self, message: str = "interrupted", number: int = signal.SIGINT):
        super().__init__(message)
        self.signal = number


Main = Callable[[Sequence[str] | None], int]


def command(program: str) -> Callable[[Main], Callable[..., int]]:
    """Decorates `main` to print one line on stderr for errors that a user can cause.

    The exit status is then 2 if the request is wrong, 130 if the program is interrupted (Ctrl-C) or
    that of `Stopped`, and 141, without a line, if nothing reads its output any more (`| head`).
    """

    def decorate(main: Main) -> Callable[..., int]:
        @functools.wraps(main)
        def guarded(argv: Sequence[str] | None = None) -> int:
            try:
                jax.devices()  # raises what is wrong with JAX_PLATFORMS
            except RuntimeError as e:
                say(program, str(e))
                return USAGE
            try:
                status = main(argv)
                sys.stdout.flush()
            except BrokenPipeError:
                # Python flushes stdout once more at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return CLOSED
            except KeyboardInterrupt as e:
                stopped = e if isinstance(e, Stopped) else Stopped()
                say(program, str(stopped))
                return 128 + stopped.signal
            except REQUEST as e:
                say(program, str(e) or type(e).__name__)
                return USAGE
            return status

        return guarded

    return decorate


def say(program: str, message: str) -> None:
    """Writes one line on stderr."""
    sys.stderr.write(f"{program}: {' '.join(message.split())}\n")


def check_writable(option: str, path: Path) -> None:
    """Raises a ValueError if `path` cannot be written; to be called before the work starts."""
    try:
        is_new = not path.exists()
        if is_new or path.is_file() or path.is_dir():  # closing a pipe would end it
            path.open("ab").close()
        if is_new:
            path.unlink()
    except OSError as e:
        raise ValueError(
            f"{option} must be a file that can be written, got {path}: {e.strerror}"
        ) from None
