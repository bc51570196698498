"""Tokenised rows: token ids with a label each, and what a person should know of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

IGNORE_INDEX = -100  # the label that the loss leaves out


@dataclass(frozen=True)
class Tokenised:
    """Rows as they are trained on, {"input_ids": [...], "labels": [...]}, and what tokenising came to."""

    rows: list[dict]
    lengths: list[int]  # tokens of each row before it was cut
    max_length: int
    cut_answers: int  # rows that lost the end of their answer

    @property
    def truncated(self) -> int:
        return sum(length > self.max_length for length in self.lengths)

    @property
    def lost_tokens(self) -> int:
        return sum(max(0, length - self.max_length) for length in self.lengths)

    @property
    def total_tokens(self) -> int:
        return sum(len(row["input_ids"]) for row in self.rows)

    @property
    def trained_tokens(self) -> int:
        return sum(len(row["labels"]) - row["labels"].count(IGNORE_INDEX) for row in self.rows)

    @property
    def warning(self) -> str | None:
        """What a person should know of the rows that were too long."""
        if not self.truncated:
            return None
        most = max(self.lengths)
        answers = f", and {self.cut_answers:,} of them lose the end of their answer" if self.cut_answers else ""
        return (
            f"{self.truncated:,} of {len(self.rows):,} rows are longer than {self.max_length:,} tokens, by up to "
            f"{most - self.max_length:,}, and lose {self.lost_tokens:,} tokens, from the beginning of the prompt first"
            f"{answers}. Set data.max_length to {most:,} to keep them whole, if memory allows."
        )


def histogram(lengths: Iterable[int], bins: int = 20) -> list[tuple[int, int, int]]:
    """How many lengths lie from one number to another, both counted in, in at most `bins` steps of equal width."""
    lengths = sorted(lengths)
    if not lengths:
        return []
    low, width = lengths[0], max(1, -(-(lengths[-1] - lengths[0] + 1) // bins))
    counts = {place: len(list(group)) for place, group in groupby(lengths, key=lambda length: (length - low) // width)}
    return [(low + i * width, low + (i + 1) * width - 1, counts.get(i, 0)) for i in range(max(counts) + 1)]
