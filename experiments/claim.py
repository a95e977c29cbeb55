"""What an experiment shows: statements, each with the numbers that make it true or false."""

from typing import NamedTuple


class Claim(NamedTuple):
    """A statement of the source about an experiment.

    statement: One sentence, that may be false.
    holds: Whether it is true of this run.
    numbers: What it was decided by.
    """

    statement: str
    holds: bool
    numbers: dict[str, float]

    def __str__(self) -> str:
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in self.numbers.items())
        return f"{'✓' if self.holds else '✗'} {self.statement} ({numbers})"


def claim(statement: str, holds: object, /, **numbers: object) -> Claim:
    """A claim; an underscore in the name of a number is a space."""
    by_name = {name.replace("_", " "): float(value) for name, value in numbers.items()}  # pyright: ignore
    return Claim(statement, bool(holds), by_name)
