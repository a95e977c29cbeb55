"""Claims: the statements that an experiment checks, each with the numbers that decide it."""

from typing import NamedTuple


class Claim(NamedTuple):
    """A statement of the source about an experiment.

    statement: One sentence, which may turn out false.
    holds: Whether the statement is true for this run.
    numbers: The measured numbers that decide it.
    """

    statement: str
    holds: bool
    numbers: dict[str, float]

    def __str__(self) -> str:
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in self.numbers.items())
        return f"{'✓' if self.holds else '✗'} {self.statement} ({numbers})"


def claim(statement: str, holds: object, /, **numbers: object) -> Claim:
    """Makes a claim; underscores in the names of the numbers become spaces."""
    by_name = {name.replace("_", " "): float(value) for name, value in numbers.items()}  # pyright: ignore
    return Claim(statement, bool(holds), by_name)
