"""FORMATS: one row per way of writing rows, and how each is read into a kind of rows that tasks learn from.

A new format is one new row: page, recipe and error messages read the table. Knows nothing about files or tokenizers.

    format = recognize(table, data); format.reason; rows = normalize(table, format)
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from tuner.data.cells import (
    FILL_IN,
    RowError,
    from_json,
    read_answers,
    read_label,
    read_optional,
    read_text,
    read_turns,
    read_words,
)
from tuner.data.parse import Table
from tuner.data.problems import Problems
from tuner.errors import TunerError
from tuner.tasks import CONVERSATION, LABELED_TEXT, QUESTION_CONTEXT, TAGGED_TOKENS, TEXT


@dataclass(frozen=True)
class FormatRow:
    """A format: its columns, their usual names, and how a row's cells become a row of a kind that tasks learn from."""

    name: str
    title: str
    becomes: str  # a kind of rows of tasks.py
    roles: dict[str, Callable]  # role -> how its cell is read (cells.py)
    spellings: tuple[tuple[str, ...], ...]  # column names for the roles, in their order; the first is the format's own
    build: Callable[[dict], dict] = dict  # cells by role -> the row; may raise RowError
    optional: tuple[str, ...] = ()
    whole: tuple[tuple[str, ...], ...] = ()  # more spellings, of which single names mean nothing
    fits: Callable[[Table], bool] = lambda table: True  # whether it may be recognized automatically
    is_last: bool = False  # recognized only if no other format has all of its names

    @property
    def required(self) -> list[str]:
        """The roles that every row must have a column for."""
        return [role for role in self.roles if role not in self.optional]

    def names(self, role: str) -> list[str]:
        """The column names that stand for a role, in order of preference."""
        return list(dict.fromkeys(spelling[list(self.roles).index(role)] for spelling in self.spellings))


@dataclass(frozen=True)
class Format:
    """The format recognized in a table."""

    row: FormatRow
    columns: dict[str, str]  # role -> column
    reason: str

    @property
    def name(self) -> str:
        """The name of its row in FORMATS."""
        return self.row.name


def exchange(completion: str, *prompt: str | None) -> dict:
    """A conversation of one question, whose parts become paragraphs, and its answer."""
    prompt = "\n\n".join(filter(None, prompt))
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]}


def _tagged(cells: dict) -> dict:
    words, tags = len(cells["tokens"]), len(cells["tags"])
    if words != tags:
        counts = [f"{n} {noun}{'' if n == 1 else 's'}" for n, noun in ((words, "token"), (tags, "tag"))]
        raise RowError(" and ".join(counts), "Give every token one tag.")
    return cells


def _located(cells: dict) -> dict:
    """The answer with its start: as given if that is right, otherwise its first occurrence."""
    (answer, start), context = cells["answers"], cells["context"]
    if start < 0 or not context.startswith(answer, start):
        start = context.find(answer)
    if start < 0:
        raise RowError("an answer that does not occur in its context", "Copy it from the context, or drop the row.")
    question = " ".join(cells["question"].split())  # a held-out prompt is the question's line, then the context
    return {"question": question, "context": context, "answer": answer, "start": start if answer else -1}


def _spelled(text: str) -> tuple[tuple[str, ...], ...]:
    """Spellings from a list separated by commas, in which "a|b c" is short for "a c, b c"."""
    return tuple(names for row in text.split(",") for names in product(*(part.split("|") for part in row.split())))


FORMATS = {
    row.name: row
    for row in [
        FormatRow(
            name="messages",
            title="OpenAI conversations",
            becomes=CONVERSATION,
            roles={"messages": read_turns},
            spellings=_spelled("messages, chat"),
        ),
        FormatRow(
            name="sharegpt",
            title="ShareGPT conversations",
            becomes=CONVERSATION,
            roles={"conversations": read_turns},
            spellings=_spelled("conversations, conversation"),
            build=lambda cells: {"messages": cells["conversations"]},
        ),
        FormatRow(
            name="instruction",
            title="instruction, input and output",
            becomes=CONVERSATION,
            roles={"instruction": read_text, "input": read_optional, "output": read_text},
            optional=("input",),
            spellings=_spelled("instruction input output, instruction context response"),
            build=lambda cells: exchange(cells["output"], cells["instruction"], cells.get("input")),
        ),
        FormatRow(
            name="prompt_completion",
            title="prompt and completion",
            becomes=CONVERSATION,
            roles={"prompt": read_text, "completion": read_text},
            spellings=_spelled(
                "prompt completion, question answer, input output, source target, query response, "
                "dialogue|document|article summary, message reply, user assistant"
            ),
            whole=_spelled("text summary"),
            build=lambda cells: exchange(cells["completion"], cells["prompt"]),
        ),
        FormatRow(
            name="squad",
            title="question, context and answer",
            becomes=QUESTION_CONTEXT,
            roles={"question": read_text, "context": read_text, "answers": read_answers},
            spellings=_spelled("question context answers|answer, question passage answer"),
            build=_located,
            # Other rows with a question, a context and an answer may be meant for generation.
            fits=lambda table: any(isinstance(from_json(row.get("answers")), dict) for row in table.rows),
        ),
        FormatRow(
            name="tokens_tags",
            title="tokens and their tags",
            becomes=TAGGED_TOKENS,
            roles={"tokens": read_words, "tags": read_words},
            spellings=_spelled("tokens|words tags|ner_tags|ner|labels"),
            build=_tagged,
        ),
        FormatRow(
            name="text_label",
            title="text and its label",
            becomes=LABELED_TEXT,
            roles={"text": read_text, "label": read_label},
            spellings=_spelled("text|sentence|review|content|message label|sentiment|category|class"),
        ),
        FormatRow(
            name="text",
            title="plain text",
            becomes=TEXT,
            roles={"text": read_text},
            spellings=_spelled("text, content"),
            is_last=True,
        ),
    ]
}
USUAL = FORMATS["prompt_completion"]  # suggested if nothing is recognized


def normalize(table: Table, format: Format, system: str | None = None) -> list[dict]:
    """The table's rows as the kind of rows that their format becomes (tasks.py has their keys).

    Text is kept as it is, whitespace and all. `system` becomes the first message of rows without a system message of
    their own. Raises TunerError with the problems of all rows.
    """
    shape, problems, rows = format.row, Problems(), []
    for index, cells in enumerate(table.rows):
        values = {}
        for role, column in format.columns.items():
            try:
                if column not in cells and role in shape.required:
                    raise RowError(f'no "{column}"', FILL_IN)
                values[role] = shape.roles[role](cells.get(column), column)
            except RowError as error:
                problems.add(table.place(index), *error.args)
        try:
            if len(values) == len(format.columns):
                rows.append(shape.build(values))
        except RowError as error:
            problems.add(table.place(index), *error.args)
    problems.check()
    if system and shape.becomes != CONVERSATION:
        raise TunerError(f"Rows of {shape.title} can't have a system prompt. Leave data.system out.")
    for row in rows if system else ():
        if row["messages"][0]["role"] != "system":
            row["messages"].insert(0, {"role": "system", "content": system})
    return rows
