"""What is wrong with rows, in few sentences."""

import itertools
from collections.abc import Iterable

from tuner.errors import TunerError

NAMED = 5  # rows, or kinds of problems, to list; the rest is only counted
QUOTED = 50  # names to list


class Problems:
    """What is wrong with rows, in few sentences: each kind of problem once, with the first of its rows."""

    def __init__(self) -> None:
        self.kinds: dict[tuple[str, str, str], list[tuple[int, int | None]]] = {}

    def add(self, place: tuple[int, int | None, str], what: str, remedy: str) -> None:
        """Add a problem: `what` continues "Row 17 has", `remedy` is a sentence of its own."""
        row, line, name = place
        self.kinds.setdefault((name, what, remedy), []).append((row, line))

    def sentences(self) -> list[str]:
        """A sentence for each of the first kinds, and one for the rest."""
        listed = [_sentence(*kind, rows) for kind, rows in itertools.islice(self.kinds.items(), NAMED)]
        rest = sum(len(rows) for rows in itertools.islice(self.kinds.values(), NAMED, None))
        return listed + ([f"And {rest} more {'problem' if rest == 1 else 'problems'} of other kinds."] if rest else [])

    def check(self) -> None:
        """Raise TunerError if there are any."""
        if self.kinds:
            raise TunerError(*self.sentences())


def _sentence(name: str, what: str, remedy: str, rows: list[tuple[int, int | None]]) -> str:
    numbers = [str(row) if line in (None, row) else f"{row} (line {line})" for row, line in rows[:NAMED]]
    if len(rows) == 1:
        return f"Row {numbers[0]} of {name} has {what}. {remedy}"
    listed = ", ".join(numbers) + f" and {len(rows) - NAMED:,} more" if len(rows) > NAMED else and_join(numbers)
    return f"Rows {listed} of {name} have {what}. {remedy}"


def and_join(words: list[str]) -> str:
    """Words with commas, and \"and\" before the last."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def quoted(names: Iterable[str]) -> str:
    """Names in quotes, with "and" before the last; "none" if there are none. Of very many, the first ones."""
    names = [f'"{name}"' for name in names]
    return and_join(names[:QUOTED] + ([f"{len(names) - QUOTED:,} more"] if len(names) > QUOTED else [])) or "none"
