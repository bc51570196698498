"""How rows are read: which column is the prompt and which the answer, and one normal form for all formats.

FORMATS is the whole knowledge: a new format is a row of it. Names are compared as wholes ("text" is not "context"),
exact names win over look-alikes, and a choice between look-alikes is left to the person. Knows nothing of files and of
tokenizers.

    format = recognise(table, data); format.reason; rows = normalise(table, format)
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from tuner import recipe
from tuner.errors import TunerError
from tuner.parse import Problems, Table, quoted

FILL_IN = "Fill it in, or drop the row."
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}


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
    """A format: its roles, the columns' usual names, and how a row becomes {"messages": [...]} or {"text": ...}."""

    name: str
    title: str
    roles: dict[str, Callable]  # role -> how its cell is read
    spellings: tuple[tuple[str, ...], ...]  # column names for the roles, in their order; the first is the format's own
    build: Callable[[dict], dict]
    optional: tuple[str, ...] = ()

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
    blank = (
        cell is None or (isinstance(cell, float) and math.isnan(cell)) or (isinstance(cell, str) and not cell.strip())
    )
    return "" if blank else read_text(cell, column)


def read_turns(cell, column: str) -> list[dict]:
    """A cell that holds a conversation, OpenAI's or ShareGPT's, as a list or as its JSON. Raises Unfit."""
    shape = 'Write it as [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}].'
    if isinstance(cell, str):
        with contextlib.suppress(ValueError, RecursionError):
            cell = json.loads(cell)
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
        raise Unfit(
            f'a message in "{column}" that is not all text', "Pictures and sound can't be trained on; drop the row."
        )
    return "".join(part["text"] for part in content)


def _check_order(roles: list[str], column: str) -> None:
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if "system" in turns:
        raise Unfit(f'a system message in the midst of "{column}"', "Put it first, and only once.")
    if not turns:
        raise Unfit(f'no messages in "{column}"', FILL_IN)
    if turns[0] != "user":
        raise Unfit(f'a conversation in "{column}" that does not begin with the user', "Add a first question.")
    if any(a == b for a, b in pairwise(turns)):
        raise Unfit(f'two messages of the same role in a row in "{column}"', "Join the two into one.")
    if turns[-1] != "assistant":
        raise Unfit(
            f'a conversation in "{column}" that does not end with the assistant', "Add the answer, or drop it."
        )


def _exchange(prompt: str, completion: str) -> dict:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]}


FORMATS = {
    row.name: row
    for row in [
        FormatRow(
            name="messages",
            title="conversations as OpenAI writes them",
            roles={"messages": read_turns},
            spellings=(("messages",), ("chat",)),
            build=lambda cells: {"messages": cells["messages"]},
        ),
        FormatRow(
            name="sharegpt",
            title="conversations as ShareGPT writes them",
            roles={"conversations": read_turns},
            spellings=(("conversations",), ("conversation",)),
            build=lambda cells: {"messages": cells["conversations"]},
        ),
        FormatRow(
            name="instruction",
            title="instruction, input and output",
            roles={"instruction": read_text, "input": read_optional, "output": read_text},
            optional=("input",),
            spellings=(("instruction", "input", "output"), ("instruction", "context", "response")),
            build=lambda cells: _exchange(
                "\n\n".join(filter(None, (cells["instruction"], cells.get("input")))), cells["output"]
            ),
        ),
        FormatRow(
            name="prompt_completion",
            title="prompt and completion",
            roles={"prompt": read_text, "completion": read_text},
            spellings=(
                ("prompt", "completion"),
                ("question", "answer"),
                ("input", "output"),
                ("source", "target"),
                ("query", "response"),
                ("dialogue", "summary"),
                ("document", "summary"),
                ("article", "summary"),
                ("message", "reply"),
                ("user", "assistant"),
            ),
            build=lambda cells: _exchange(cells["prompt"], cells["completion"]),
        ),
        FormatRow(
            name="text",
            title="plain text",
            roles={"text": read_text},
            spellings=(("text",), ("content",)),
            build=lambda cells: {"text": cells["text"]},
        ),
    ]
}


def recognise(table: Table, data: recipe.Data) -> Format:
    """The format of a table's rows, the columns it takes and the reason. Raises TunerError if that is not clear."""
    shapes = list(FORMATS.values()) if data.format == "auto" else [FORMATS[data.format]]
    if data.columns:
        return _by_hand(table, shapes, data.columns)
    for why, match in _WAYS:
        for shape in shapes:
            found = list(match(shape, table.columns))
            if len(found) > 1:
                options = " or ".join(quoted(mapping.values()) for mapping in found)
                raise TunerError(
                    f"The columns of {table.name} can be read in several ways: {options}. {_map(found[0])}"
                )
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
    for spelling in shape.spellings[1:]:
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
    """The rows in one form: {"messages": [...]}, ending with the assistant's answer, or {"text": ...}.

    Text is kept as it is, blanks and all. `system` is put first where a row has no system message of its own. Raises
    TunerError with what is wrong in any row.
    """
    shape, problems, rows = FORMATS[format.name], Problems(), []
    if system and "text" in shape.roles:
        raise TunerError("A system prompt has no place in rows of plain text. Leave data.system out, or use prompts.")
    for index, cells in enumerate(table.rows):
        values = {}
        for role, column in format.columns.items():
            try:
                if column not in cells and role in shape.required:
                    raise Unfit(f'no "{column}"', FILL_IN)
                values[role] = shape.roles[role](cells.get(column), column)
            except Unfit as unfit:
                problems.add(table.place(index), *unfit.args)
        if len(values) < len(format.columns):
            continue
        row = shape.build(values)
        if system and row["messages"][0]["role"] != "system":
            row["messages"].insert(0, {"role": "system", "content": system})
        rows.append(row)
    problems.check()
    return rows
