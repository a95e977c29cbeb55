"""Shared code of the programs: options, the name of the processor, atomic file writes."""

import contextlib
import io
import os
import platform
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import tyro

from funcnet.command.base import check_writable, command

__all__ = ["check_writable", "command", "cpu", "make_folder", "parse", "write"]

Config = TypeVar("Config")


def parse(config: type[Config], argv: Sequence[str] | None, program: str | None = None) -> Config:
    """Parses the options into a configuration.

    Raises:
      ValueError: If an option or its value is invalid. The message is tyro's, without its box.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(config, args=argv, prog=program)
    except SystemExit as e:
        if e.code != 2:  # --help
            raise
    text = box.getvalue().partition("\n")[2].partition("For full helptext")[0]
    line = " ".join(word for word in text.split() if word.strip("│─╰╯|-+"))
    raise ValueError(re.sub(r" Got errors:.*(?= Argument helptext)", "", line))


def cpu() -> str:
    """Returns the name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def make_folder(out: Path) -> None:
    """Creates the folder; raises a ValueError now if files could not be written into it later."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as e:
        raise ValueError(f"--out must be a folder to write in, got {out}: {e.strerror}") from None


def write(path: Path, to: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file with `to(file)`; the file gets its name only when it is complete."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            to(file)
        os.replace(part, path)
    except OSError as e:
        if e.errno:
            e.filename = str(path)  # Python names no file when a disk is full
        raise
    finally:
        part.unlink(missing_ok=True)
