"""Numbers with their nouns, sentences that page and terminal share, what errors say, and half characters."""

import re

BROKEN = "half a character (a surrogate without its pair)"
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def is_broken(text: str) -> bool:
    """Whether a text has half a character, which neither a file nor a tokenizer accepts."""
    return not text.isascii() and _SURROGATE.search(text) is not None


def said_by(error: BaseException) -> str:
    """What a library's error says of somebody's values; nothing where Python only speaks of its own types."""
    text = str(error).strip()
    return "" if isinstance(error, (TypeError, AttributeError, IndexError)) or "<class '" in text else text


def count(number: float, noun: str) -> str:
    """A number with its noun: 1 step, 1,200 steps, 2.5 epochs."""
    number = int(number) if number == int(number) else number
    return f"{number:,} {noun}{'s' * (number != 1)}"


def gigabytes(size: float) -> str:
    """Bytes in words, such as 1.5 GB."""
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size / 2**20:.0f} MB"


def file_size(size: float) -> str:
    """Bytes in words, of what may be small: 18 KB."""
    return f"{size / 2**10:.0f} KB" if size < 2**20 else gigabytes(size)


def micro_batch(event: dict) -> str:
    """What a run's event of this name means."""
    return (
        f"{count(event['rows'], 'row')} at a time: {event['of']} did not fit in memory. Apart from rounding and "
        "dropout the result is the same."
    )
