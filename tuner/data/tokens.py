"""Tokenized rows: token ids with their labels, and what a person should know about them."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from tuner.errors import TunerError, panics_as_errors
from tuner.words import count, said_by

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)
IGNORE_INDEX = -100  # the label that the loss leaves out
# What is cut out of conversations and texts: its name in notes, its noun, and where it stood.
LOST = (
    ("exchanges", "exchange", "{} at the beginning of conversations"),
    ("messages", "message", "the middle of {}"),
    ("prompts", "prompt", "the beginning of {}"),
    ("texts", "text", "the end of {}"),
)


class Encoded(NamedTuple):
    """Rows as tokens and labels, how many tokens each had before it was cut, and how many answers lost their end."""

    rows: list[dict]
    lengths: list[int]
    cut_answers: int
    notes: Mapping[str, int] = MappingProxyType({})  # as in Tokenized
    parts: Sequence[int] = ()  # as in Tokenized, if one of them is not 1


@dataclass(frozen=True)
class Tokenized:
    """Rows as they are trained on, {"input_ids": [...], "labels": [...]}, and what was cut to fit."""

    rows: list[dict]
    lengths: list[int]  # tokens of each row before it was cut
    max_length: int
    cut_answers: int  # rows that lost the end of their answer
    room: int | None = None  # the most tokens that the model can read, if there is a limit
    lost_from: str | None = None  # where the tokens stood that were cut off, if that is the same in all rows
    parts: list[int] = field(default_factory=list)  # how many of the rows each row that was given became
    notes: Counter = field(default_factory=Counter)  # how much of what was cut (LOST), split, or left out

    @property
    def truncated(self) -> int:
        """Rows that were longer than `max_length`."""
        return sum(length > self.max_length for length in self.lengths)

    @property
    def lost_tokens(self) -> int:
        """Tokens that were cut off."""
        return self.notes["tokens"] or sum(max(0, length - self.max_length) for length in self.lengths)

    @property
    def total_tokens(self) -> int:
        """Tokens in an epoch."""
        return sum(len(row["input_ids"]) for row in self.rows)

    @property
    def trained_tokens(self) -> int:
        """Tokens in an epoch that are learned from, or labels if each text has one."""
        return sum(len(row["labels"]) - row["labels"].count(IGNORE_INDEX) for row in self.rows)

    @property
    def warning(self) -> str | None:
        """What a person should know about rows that were too long, split, or not learned from in full."""
        return " ".join(filter(None, [self._too_long(), self._split(), self._left_out()])) or None

    def _too_long(self) -> str | None:
        if not self.truncated:
            return None
        most = max(self.lengths)
        longest = min(most, self.room or most)
        if longest > self.max_length:
            whole = "keep them whole" if longest == most else f"keep more of them: the model reads at most {longest:,}"
            advice = f" Set data.max_length to {longest:,} to {whole}, if memory allows."
        else:
            advice = " The model reads no more: shorten the rows, or choose a model with a longer context."
        lose_their = "loses the end of its" if self.cut_answers == 1 else "lose the end of their"
        answers = f" {self.cut_answers:,} of them {lose_their} answer." if self.cut_answers else ""
        are, they_lose = ("is", "It loses") if self.truncated == 1 else ("are", "They lose")
        lost = [where.format(count(self.notes[name], noun)) for name, noun, where in LOST if self.notes[name]]
        parts = self.lost_from or ", ".join(lost)
        return (
            f"{self.truncated:,} of {count(len(self.rows), 'row')} {are} longer than {self.max_length:,} tokens, by "
            f"up to {most - self.max_length:,}. {they_lose} {count(self.lost_tokens, 'token')}"
            f"{f', {parts}' if parts else ''}.{answers}{advice}"
        )

    def _split(self) -> str | None:
        if not self.notes["split"]:
            return None
        became = "became a row of its own" if self.notes["parts"] == 1 else f"became {self.notes['parts']:,} rows"
        return (
            f"{count(self.notes['split'], 'conversation')} with several answers {became}, one for each answer: the "
            "model's chat template rewrites earlier answers, so they can't be learned together."
        )

    def _left_out(self) -> str | None:
        if not self.notes["left_out"]:
            return None
        are = "is" if self.notes["left_out"] == 1 else "are"
        return (
            f"{count(self.notes['left_out'], 'answer')} of very long conversations {are} not learned from. Divide "
            "these conversations into shorter ones to learn from all."
        )


@contextmanager
def strangers_code(problem: str) -> Iterator[None]:
    """Run rules of somebody's tokenizer or template, which may fail in any way. Raises TunerError, with `problem`."""
    try:
        with panics_as_errors():
            yield
    except TunerError:
        raise
    except Exception as error:
        log.info("%s", problem, exc_info=error)
        said = said_by(error).partition("\n")[0][:120].rstrip(".")
        raise TunerError(f"{problem}{f' ({said})' * bool(said)}. Choose another model.") from None


def token_pieces(ids: list[int], learned: list[bool], tokenizer: "PreTrainedTokenizerBase") -> list[dict]:
    """Tokens as pieces of text: whether each is learned from ("trained"), and whether it is special tokens."""
    special, pieces, begin, end = set(tokenizer.all_special_ids), [], 0, 0
    kinds = [(is_learned, token in special) for token, is_learned in zip(ids, learned, strict=True)]
    for (trained, is_special), group in groupby(kinds):
        start, end = end, end + len(list(group))
        # Decoded with the piece before, because tokenizers drop the space before a text's first word.
        before, text = (
            tokenizer.decode(ids[begin:last], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for last in (start, end)
        )
        pieces.append({"text": text[len(before) :], "trained": trained, "special": is_special})
        begin = start
    return pieces


def check_ids(rows: Iterable[list[int]], vocabulary: int, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise TunerError if a token is beyond the model's embedding: a GPU that looks it up is lost to its process."""
    largest = max((max(ids, default=0) for ids in rows), default=0)
    if largest < vocabulary:
        return
    raise TunerError(
        f"The token '{tokenizer.convert_ids_to_tokens(largest)}' has the id {largest}, but this model knows only "
        f"{vocabulary} tokens, with ids up to {vocabulary - 1}: its tokenizer was made for another model. Leave that "
        "token out of the text, or choose a model with a tokenizer of its own."
    )


def histogram(lengths: Iterable[int], bins: int = 20) -> list[tuple[int, int, int]]:
    """(first, last, count) of at most `bins` bins of equal width over whole numbers; both ends are in the bin."""
    lengths = sorted(lengths)
    if not lengths:
        return []
    low, width = lengths[0], max(1, -(-(lengths[-1] - lengths[0] + 1) // bins))
    counts = {place: len(list(group)) for place, group in groupby(lengths, key=lambda length: (length - low) // width)}
    return [(low + i * width, low + (i + 1) * width - 1, counts.get(i, 0)) for i in range(max(counts) + 1)]
