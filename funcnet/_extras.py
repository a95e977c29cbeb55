"""Packages that are no dependencies of funcnet, but of one of its extras."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def extra(f: str, name: str) -> Iterator[None]:
    """Imports in this context say which extra to install if a package is missing.

    Raises:
      ModuleNotFoundError: If a package is missing.

    >>> with extra("save", "checkpoint"):
    ...     import no_such_package
    Traceback (most recent call last):
    ModuleNotFoundError: save: no_such_package is missing; install funcnet[checkpoint]
    """
    try:
        yield
    except ModuleNotFoundError as e:
        message = f"{f}: {e.name} is missing; install funcnet[{name}]"
        raise ModuleNotFoundError(message, name=e.name) from None
