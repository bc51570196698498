"""How rows are read: which column is the prompt and which the answer, and one normal form for all formats.

FORMATS is the whole knowledge: a new format is a row of it. Names are compared as wholes ("text" is not "context"),
exact names win over look-alikes, a choice between look-alikes is left to the person, and plain text comes last. Knows
nothing of files and of tokenizers.

    format = recognise(table, data); format.reason; rows = normalise(table, format)
"""

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product

from tuner import recipe
from tuner.data.parse import Problems, Table, quoted
from tuner.errors import TunerError

FILL_IN = "Fill it in, or drop the row."
ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user"}
ROLES |= dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant")


class Unfit(Exception):
    """What a row has that its role can't take: (what, remedy)."""


@dataclass(frozen=True)
class Format:
    """What was recognised in a table."""

    name: str
    columns: dict[str, str]  # role -> column
    reason: str


@dataclass(frozen=True)
class FormatRow:
    """A format: its roles, the columns' usual names, and how a row gets its normal form, which may raise Unfit."""

    name: str
    title: str
    roles: dict[str, Callable]  # role -> how its cell is read
    spellings: tuple[tuple[str, ...], ...]  # column names for the roles, in their order; the first is the format's own
    build: Callable[[dict], dict]
    optional: tuple[str, ...] = ()
    whole: tuple[tuple[str, ...], ...] = ()  # more spellings, whose names say nothing on their own
    unasked: Callable[[Table], bool] = lambda table: True  # may it be taken where nobody asked for it?

    @property
    def required(self) -> list[str]:
        return [role for role in self.roles if role not in self.optional]

    def names(self, role: str) -> list[str]:
        """The column names that stand for a role, in order of preference."""
        return list(dict.fromkeys(spelling[list(self.roles).index(role)] for spelling in self.spellings))


def read_text(cell, column: str) -> str:
    """A cell as text, unchanged. Raises Unfit."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)) or cell in ("NaN", "nan"):
        raise Unfit(f'no text in "{column}" ({"null" if cell is None else "NaN"})', FILL_IN)
    if isinstance(cell, (list, dict, tuple, bytes)):
        kind = {dict: "an object", bytes: "binary data"}.get(type(cell), "a list")
        raise Unfit(f'{kind} in "{column}" where text belongs', "Write it as one text, or map another column.")
    if not str(cell).strip():
        raise Unfit(f'an empty "{column}"', FILL_IN)
    return str(cell)


def read_optional(cell, column: str) -> str:
    """A cell as text; nothing, blanks and NaN are no text. Raises Unfit."""
    is_nan = isinstance(cell, float) and math.isnan(cell)
    return "" if cell is None or is_nan or (isinstance(cell, str) and not cell.strip()) else read_text(cell, column)


def read_label(cell, column: str) -> str:
    """A class, as text: a word, a whole number or a truth value. Raises Unfit."""
    is_float = isinstance(cell, float) and not math.isnan(cell)
    if is_float and not cell.is_integer():
        raise Unfit(f'a fraction in "{column}" where a class belongs', "Write classes as words or whole numbers.")
    return read_text(int(cell) if is_float else cell, column).strip()


def read_words(cell, column: str) -> list[str]:
    """A list of words, its JSON, or a text with blanks between the words; numbers become text. Raises Unfit."""
    words = _from_json(cell)
    if not isinstance(words, list):
        words = read_text(cell, column).split()
        if re.match(r"\[\s*['\"]|\[\S[^]]*\s[^]]*\]$", str(cell).strip()):  # as Python or NumPy prints a list
            raise Unfit(f'a list in "{column}" that is not JSON', 'Write it as ["Ada", "wrote"], in double quotes.')
    if not words:
        raise Unfit(f'an empty list in "{column}"', FILL_IN)
    part = f"words of {column}"
    texts = [word if isinstance(word, str) and word.strip() else read_label(word, part) for word in words]
    return ["".join(text.split()) for text in texts]  # as one word, or the numbers of those behind it would be off


def read_answers(cell, column: str) -> tuple[str, int]:
    """SQuAD's answers, their JSON or one text: the first ("": none) and its start (-1: not said). Raises Unfit."""
    given = _from_json(cell)
    if not isinstance(given, dict):
        return read_text(cell, column).strip(), -1
    texts, starts = given.get("text"), given.get("answer_start")
    if not isinstance(texts, list):
        raise Unfit(f'no list of texts in "{column}"', 'Write it as {"text": ["..."], "answer_start": [0]}.')
    start = starts[0] if isinstance(starts, list) and starts and isinstance(starts[0], int) else -1
    return read_text(texts[0], column) if texts else "", start


def _from_json(cell):
    """What a cell's text stands for, if it is JSON."""
    if isinstance(cell, str):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(cell)
    return cell


def read_turns(cell, column: str) -> list[dict]:
    """A cell that holds a conversation, OpenAI's or ShareGPT's, as a list or as its JSON. Raises Unfit."""
    shape = 'Write it as [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}].'
    cell = _from_json(cell)
    if not isinstance(cell, list) or not all(isinstance(turn, dict) for turn in cell):
        raise Unfit(f'no list of messages in "{column}"', shape)
    messages = []
    for turn in cell:
        role, content = (turn.get(a, turn.get(b)) for a, b in (("role", "from"), ("content", "value")))
        if role not in ROLES:
            raise Unfit(f'a message of the role "{role}" in "{column}"', "The roles are system, user and assistant.")
        if isinstance(content, list):
            content = _parts(content, column)
        if not isinstance(content, str) or not content.strip():
            raise Unfit(f'an empty message of the {ROLES[role]} in "{column}"', FILL_IN)
        messages.append({"role": ROLES[role], "content": content})
    _check_order([message["role"] for message in messages], column)
    return messages


def _parts(content: list, column: str) -> str:
    """OpenAI's content as a list of parts."""
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        raise Unfit(f'a message in "{column}" that is not all text', "Drop the row: only text can be trained on.")
    return "".join(part["text"] for part in content)


def _check_order(roles: list[str], column: str) -> None:
    turns, what = roles[1:] if roles[:1] == ["system"] else roles, f'a conversation in "{column}" that does not'
    if "system" in turns:
        raise Unfit(f'a system message in the midst of "{column}"', "Put it first, and only once.")
    if not turns:
        raise Unfit(f'no messages in "{column}"', FILL_IN)
    if turns[0] != "user":
        raise Unfit(f"{what} begin with the user", "Add a first question.")
    if any(a == b for a, b in pairwise(turns)):
        raise Unfit(f'two messages of the same role in a row in "{column}"', "Join the two into one.")
    if turns[-1] != "assistant":
        raise Unfit(f"{what} end with the assistant", "Add the answer, or drop it.")


def _exchange(completion: str, *prompt: str | None) -> dict:
    prompt = "\n\n".join(filter(None, prompt))
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]}


def _tagged(cells: dict) -> dict:
    words, tags = len(cells["tokens"]), len(cells["tags"])
    if words != tags:
        raise Unfit(f"{words} tokens and {tags} tags", "Give every token one tag.")
    return cells


def _located(cells: dict) -> dict:
    """The answer with its start: as given where that is right, otherwise its first place."""
    (answer, start), context = cells["answers"], cells["context"]
    if start < 0 or not context.startswith(answer, start):
        start = context.find(answer)
    if start < 0:
        raise Unfit("an answer that does not occur in its context", "Write it as it stands there, or drop the row.")
    question = " ".join(cells["question"].split())  # a held-out prompt is the question's line, then the text
    return {"question": question, "context": context, "answer": answer, "start": start if answer else -1}


def _spelled(text: str) -> tuple[tuple[str, ...], ...]:
    """Spellings out of a list of them, in which "a|b c" is short for "a c, b c"."""
    return tuple(names for row in text.split(",") for names in product(*(part.split("|") for part in row.split())))


_ROWS = [
    FormatRow(
        "messages", "conversations as OpenAI writes them", {"messages": read_turns}, _spelled("messages, chat"), dict
    ),
    FormatRow(
        name="sharegpt",
        title="conversations as ShareGPT writes them",
        roles={"conversations": read_turns},
        spellings=_spelled("conversations, conversation"),
        build=lambda cells: {"messages": cells["conversations"]},
    ),
    FormatRow(
        name="instruction",
        title="instruction, input and output",
        roles={"instruction": read_text, "input": read_optional, "output": read_text},
        optional=("input",),
        spellings=_spelled("instruction input output, instruction context response"),
        build=lambda cells: _exchange(cells["output"], cells["instruction"], cells.get("input")),
    ),
    FormatRow(
        name="prompt_completion",
        title="prompt and completion",
        roles={"prompt": read_text, "completion": read_text},
        spellings=_spelled(
            "prompt completion, question answer, input output, source target, query response, "
            "dialogue|document|article summary, message reply, user assistant"
        ),
        whole=_spelled("text summary"),
        build=lambda cells: _exchange(cells["completion"], cells["prompt"]),
    ),
    FormatRow(
        name="squad",
        title="question, context and answer",
        roles={"question": read_text, "context": read_text, "answers": read_answers},
        spellings=_spelled("question context answers|answer, question passage answer"),
        build=_located,
        # Other rows with a question, a context and an answer may be meant for generation.
        unasked=lambda table: any(isinstance(_from_json(row.get("answers")), dict) for row in table.rows),
    ),
    FormatRow(
        name="tokens_tags",
        title="tokens and their tags",
        roles={"tokens": read_words, "tags": read_words},
        spellings=_spelled("tokens|words tags|ner_tags|ner|labels"),
        build=_tagged,
    ),
    FormatRow(
        name="text_label",
        title="text and its label",
        roles={"text": read_text, "label": read_label},
        spellings=_spelled("text|sentence|review|content|message label|sentiment|category|class"),
        build=dict,
    ),
    FormatRow("text", "plain text", {"text": read_text}, _spelled("text, content"), dict),
]
FORMATS = {row.name: row for row in _ROWS}


def recognise(table: Table, data: recipe.Data) -> Format:
    """The format of a table's rows, the columns it takes and the reason. Raises TunerError if that is not clear."""
    shapes = list(FORMATS.values()) if data.format == "auto" else [FORMATS[data.format]]
    if data.columns:
        return _by_hand(table, shapes, data.columns)
    shapes = [shape for shape in shapes if data.format != "auto" or shape.unasked(table)]
    ways = [(why, match, shape) for why, match in _WAYS for shape in shapes]
    # Plain text gives way to whole rows of other names, be they look-alikes, and comes before names of different rows.
    for why, match, shape in sorted(ways, key=lambda way: (way[1] is _crossed, way[2].name == "text")):
        found = list(match(shape, table.columns))
        if len(found) > 1:
            options = " or ".join(quoted(mapping.values()) for mapping in found)
            raise TunerError(f"The columns of {table.name} can be read in several ways: {options}. {_map(found[0])}")
        if found:
            return _format(table, shape, found[0], why)
    raise TunerError(_unrecognised(table, shapes))


def _exact(shape: FormatRow, columns: list[str]) -> Iterator[dict[str, str]]:
    if all(shape.names(role)[0] in columns for role in shape.required):
        yield {role: shape.names(role)[0] for role in shape.required}


def _folded(shape: FormatRow, columns: list[str]) -> Iterator[dict[str, str]]:
    known = _fold(columns)
    yield from _exact(shape, list(known)) if known.keys() != set(columns) else ()


def _alike(shape: FormatRow, columns: list[str]) -> Iterator[dict[str, str]]:
    """Whole rows of look-alikes: "question" with "answer", "dialogue" with "summary"."""
    known = _fold(columns)
    for spelling in shape.spellings[1:] + shape.whole:
        mapping = {role: name for role, name in zip(shape.roles, spelling, strict=True) if role in shape.required}
        if all(name in known for name in mapping.values()):
            yield mapping


def _crossed(shape: FormatRow, columns: list[str]) -> Iterator[dict[str, str]]:
    """Names of different rows together, such as "prompt" with "response"."""
    known, mappings = _fold(columns), [{}]
    for role in shape.required:
        names = [name for name in shape.names(role) if name in known]
        mappings = [mapping | {role: name} for mapping in mappings for name in names]
    yield from mappings


_WAYS = (
    ("the names match exactly", _exact),
    ("the names match but for capitals and blanks", _folded),
    ("these names are commonly used for that", _alike),
    ("these names are commonly used for that", _crossed),
)


def _fold(columns: list[str]) -> dict[str, str]:
    """The columns by their names in small letters; the first one counts."""
    return {column.strip().lower().replace(" ", "_").replace("-", "_"): column for column in reversed(columns)}


def _format(table: Table, shape: FormatRow, names: dict[str, str], why: str) -> Format:
    known = _fold(table.columns) | {column: column for column in table.columns}
    for role in shape.optional:
        there = [name for name in shape.names(role) if name in known]
        names = {role: there[0]} | names if there else names
    columns = {role: known[names[role]] for role in shape.roles if role in names}
    taken = ", ".join(f'"{column}" as {role}' for role, column in columns.items())
    unused = [column for column in table.columns if column not in columns.values()]
    rest = f" Not used: {quoted(unused)}." if unused else ""
    return Format(shape.name, columns, f"Took {taken} ({shape.title}), because {why}.{rest}")


def _by_hand(table: Table, shapes: list[FormatRow], columns: dict[str, str]) -> Format:
    fitting = [shape for shape in shapes if columns.keys() <= shape.roles.keys()]
    problems = [
        f"{table.name} has no column '{column}' for the {role}. Its columns are {quoted(table.columns)}."
        for role, column in columns.items()
        if column not in table.columns
    ]
    if not fitting:
        roles = "; ".join(f"{shape.name}: {', '.join(shape.roles)}" for shape in shapes)
        problems.append(f"No format has the parts {quoted(columns)} together. There are: {roles}.")
    if problems:
        raise TunerError(*problems)
    for shape in fitting:
        # What was not mapped by hand is taken by its own name where it has one.
        rest = {role: shape.names(role)[0] for role in shape.roles if role not in columns}
        mapping = {role: column for role, column in rest.items() if column in table.columns} | columns
        if all(role in mapping for role in shape.required):
            return _format(table, shape, mapping, "you said so")
    missing = [role for role in fitting[0].required if role not in columns]
    raise TunerError(
        f"No column of {table.name} is mapped to the {' and the '.join(missing)}. "
        f"Its columns are {quoted(table.columns)}. Add to data.columns what is missing."
    )


def _unrecognised(table: Table, shapes: list[FormatRow]) -> str:
    """What is there, what is missing and how to map it."""
    known = _fold(table.columns)
    for shape in shapes:
        has = {role: known[name] for role in shape.required for name in shape.names(role)[::-1] if name in known}
        missing = [role for role in shape.required if role not in has]
        if has and missing:
            free = [column for column in table.columns if column not in has.values()]
            remedy = _map(has | dict(zip(missing, free, strict=False))) if free else f"Add a column {quoted(missing)}."
            return (
                f"{table.name} has {quoted(has.values())} for the {' and the '.join(has)}, but no column for the "
                f"{' and the '.join(missing)}. Its columns are {quoted(table.columns)}. {remedy}"
            )
    shape = FORMATS["prompt_completion"] if len(shapes) > 1 else shapes[0]
    mapping = dict(zip(shape.required, [*table.columns, "..."], strict=False))
    wanted = "prompt and completion" if len(shapes) > 1 else " and ".join(shape.required)
    return (
        f"The columns of {table.name} are not recognised: {quoted(table.columns)}. "
        f"Name the columns in the first line ({wanted}), or say which is which. {_map(mapping)}"
    )


def _map(mapping: dict[str, str]) -> str:
    pairs = ", ".join(f"{role}: {json.dumps(column, ensure_ascii=False)}" for role, column in mapping.items())
    return f"Map them by hand, such as data.columns: {{{pairs}}}."


def normalise(table: Table, format: Format, system: str | None = None) -> list[dict]:
    """The rows in normal form: {"messages": [...]}, ending with the assistant's answer, or a row of text, text and
    label, tokens and tags, or question, context, answer and start (-1: no answer).

    Text is kept as it is, blanks and all. `system` is put first where a row has no system message of its own. Raises
    TunerError with what is wrong in any row.
    """
    shape, problems, rows = FORMATS[format.name], Problems(), []
    for index, cells in enumerate(table.rows):
        values = {}
        for role, column in format.columns.items():
            try:
                if column not in cells and role in shape.required:
                    raise Unfit(f'no "{column}"', FILL_IN)
                values[role] = shape.roles[role](cells.get(column), column)
            except Unfit as error:
                problems.add(table.place(index), *error.args)
        try:
            if len(values) == len(format.columns):
                rows.append(shape.build(values))
        except Unfit as error:
            problems.add(table.place(index), *error.args)
    problems.check()
    for row in rows if system else ():
        if "messages" not in row:
            raise TunerError(f"A system prompt has no place in rows of {shape.title}. Leave data.system out.")
        if row["messages"][0]["role"] != "system":
            row["messages"].insert(0, {"role": "system", "content": system})
    return rows
