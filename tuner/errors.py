"""The exception for problems that a person can fix. Any other exception that reaches a person is a bug."""

from collections.abc import Iterator
from contextlib import contextmanager


class TunerError(Exception):
    """One or more problems, each shown as it is: what was given, why it can't work, what to do."""

    def __init__(self, *problems: str):
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise RuntimeError for a panic of a library in Rust, which is no Exception and would pass every handler."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # each library has a class of its own, and exports none
            raise
        raise RuntimeError(str(error)) from error
