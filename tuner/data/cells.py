"""Reading one cell of a row: as text, a label, a list of words, an answer or a conversation.

Every reader takes the cell and its column's name, for the message, and raises RowError for what it can't read.
"""

import contextlib
import json
import math
import re
from itertools import pairwise
from typing import Any

from tuner.words import BROKEN, is_broken

FILL_IN = "Fill it in, or drop the row."
# Names that OpenAI, ShareGPT and others give to the roles of a conversation.
SPEAKERS = {"system": "system", "developer": "system", "user": "user", "human": "user"}
SPEAKERS |= dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant")


class RowError(Exception):
    """What is wrong with a row: (what it has, remedy), such as ('an empty "completion"', "Fill it in, ...")."""


def read_text(cell: Any, column: str) -> str:
    """A cell as text, unchanged. Raises RowError."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)) or cell in ("NaN", "nan"):
        raise RowError(f'no text in "{column}" ({"null" if cell is None else "NaN"})', FILL_IN)
    if isinstance(cell, (list, dict, tuple, bytes)):
        kind = {dict: "an object", bytes: "binary data"}.get(type(cell), "a list")
        raise RowError(f'{kind} in "{column}" where text belongs', "Write it as one text, or map another column.")
    if isinstance(cell, float) and math.isinf(cell):  # JSON's 1e400
        raise RowError(f'a number in "{column}" that is too large', "Write it as text, in quotes.")
    text = str(cell)
    if not text.strip():
        raise RowError(f'an empty "{column}"', FILL_IN)
    return whole_characters(text, column)


def whole_characters(text: str, column: str) -> str:
    """The text, unless it has half a character. Raises RowError."""
    if is_broken(text):
        raise RowError(f'{BROKEN} in "{column}"', "Write the text again, or drop the row.")
    return text


def read_optional(cell: Any, column: str) -> str:
    """A cell as text; null, NaN and whitespace are read as "". Raises RowError."""
    is_nan = isinstance(cell, float) and math.isnan(cell)
    return "" if cell is None or is_nan or (isinstance(cell, str) and not cell.strip()) else read_text(cell, column)


def read_label(cell: Any, column: str) -> str:
    """A label as text: a word, a whole number or a truth value. Raises RowError."""
    is_float = isinstance(cell, float) and not math.isnan(cell)
    if is_float and not cell.is_integer():
        raise RowError(f'a fraction in "{column}" where a label belongs', "Write labels as words or whole numbers.")
    return read_text(int(cell) if is_float else cell, column).strip()


def read_words(cell: Any, column: str) -> list[str]:
    """A list of words, its JSON, or a text with spaces between the words; numbers become text. Raises RowError."""
    words = from_json(cell)
    if not isinstance(words, list):
        text = read_text(cell, column)
        words = text.split()
        if _is_printed_list(text.strip()):
            raise RowError(f'a list in "{column}" that is not JSON', 'Write it as ["Ada", "wrote"], in double quotes.')
    if not words:
        raise RowError(f'an empty list in "{column}"', FILL_IN)
    part = f"words of {column}"
    texts = [
        whole_characters(word, part) if isinstance(word, str) and word.strip() else read_label(word, part)
        for word in words
    ]
    return ["".join(text.split()) for text in texts]  # as one word, or the numbers of later words would be off


def _is_printed_list(text: str) -> bool:
    """Whether it is a list as Python or NumPy prints it: ['Ada', 'wrote'] or [7 8]."""
    if text[:1] != "[":
        return False
    if text[1:].lstrip()[:1] in ("'", '"'):
        return True
    inside = text[1:-1]
    is_one_list = text[-1] == "]" and "]" not in inside[1:]
    return is_one_list and not inside[:1].isspace() and re.search(r"\s", inside) is not None


def read_answers(cell: Any, column: str) -> tuple[str, int]:
    """SQuAD's answers, their JSON or one text: the first answer ("": none) and its start (-1: not given).

    Raises RowError.
    """
    answers = from_json(cell)
    if not isinstance(answers, dict):
        return read_text(cell, column).strip(), -1
    texts, starts = answers.get("text"), answers.get("answer_start")
    if not isinstance(texts, list):
        raise RowError(f'no list of texts in "{column}"', 'Write it as {"text": ["..."], "answer_start": [0]}.')
    start = starts[0] if isinstance(starts, list) and starts and isinstance(starts[0], int) else -1
    return read_text(texts[0], column) if texts else "", start


def from_json(cell: Any) -> Any:
    """What a cell's text stands for if it is JSON, else the cell."""
    if isinstance(cell, str):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(cell)
    return cell


def read_turns(cell: Any, column: str) -> list[dict]:
    """A conversation as OpenAI or ShareGPT write it, a list or its JSON, as OpenAI's messages. Raises RowError."""
    shape = 'Write it as [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}].'
    cell = from_json(cell)
    if not isinstance(cell, list) or not all(isinstance(turn, dict) for turn in cell):
        raise RowError(f'no list of messages in "{column}"', shape)
    messages = []
    for turn in cell:
        role, content = (turn.get(a, turn.get(b)) for a, b in (("role", "from"), ("content", "value")))
        if role not in SPEAKERS:
            raise RowError(
                f'a message with the role "{role}" in "{column}"', "The roles are system, user and assistant."
            )
        if isinstance(content, list):
            content = _joined_parts(content, column)
        if not isinstance(content, str) or not content.strip():
            raise RowError(f'an empty {SPEAKERS[role]} message in "{column}"', FILL_IN)
        messages.append({"role": SPEAKERS[role], "content": whole_characters(content, column)})
    _check_order([message["role"] for message in messages], column)
    return messages


def _joined_parts(content: list, column: str) -> str:
    """OpenAI's content as a list of parts, as one text."""
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        raise RowError(f'a message in "{column}" that is not all text', "Drop the row: only text can be trained on.")
    return "".join(part["text"] for part in content)


def _check_order(roles: list[str], column: str) -> None:
    turns = roles[1:] if roles[:1] == ["system"] else roles
    conversation = f'a conversation in "{column}" that does not'
    if "system" in turns:
        raise RowError(f'a system message in the middle of "{column}"', "Put it first, and only once.")
    if not turns:
        raise RowError(f'no messages in "{column}"', FILL_IN)
    if turns[0] != "user":
        raise RowError(f"{conversation} begin with the user", "Add a first question.")
    if any(a == b for a, b in pairwise(turns)):
        raise RowError(f'two messages in a row with the same role in "{column}"', "Join the two into one.")
    if turns[-1] != "assistant":
        raise RowError(f"{conversation} end with the assistant", "Add the answer, or drop the row.")
