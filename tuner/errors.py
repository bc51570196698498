"""The exception for problems that a person can fix. Any other exception that reaches a person is a bug."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class Problem(str):
    """A sentence about a problem, with the settings that would solve it, by their paths."""

    remedy: dict[str, Any]

    def __new__(cls, sentence: str, remedy: dict[str, Any] | None = None) -> "Problem":
        """The sentence; `remedy` is empty if a person has to decide."""
        problem = super().__new__(cls, sentence)
        problem.remedy = remedy or {}
        return problem


def remedy_of(problems: Iterable[str]) -> dict[str, Any]:
    """The settings that would solve those of the problems that settings can solve."""
    remedies = [getattr(problem, "remedy", {}) for problem in problems]
    return {path: value for remedy in remedies for path, value in remedy.items()}


class TunerError(Exception):
    """One or more problems, each shown as it is: what was given, why it can't work, what to do."""

    def __init__(self, *problems: str):
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


@contextmanager
def collect(problems: list[str]) -> Iterator[None]:
    """Add the problems of a TunerError raised within, so that all can be shown together."""
    try:
        yield
    except TunerError as error:
        problems.extend(error.problems)


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise RuntimeError for a panic of a library in Rust, which is no Exception and would pass every handler."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # each library has a class of its own, and exports none
            raise
        raise RuntimeError(str(error)) from error
