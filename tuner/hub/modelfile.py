"""Ollama's Modelfile for a GGUF file: the run's chat template in Ollama's language, and the run's end marks.

Ollama renders a chat by a Go template of its own, and where it has none it guesses. Without the right one a model
answers badly, and without the end marks it never stops. So the template is taken apart into what stands before and
behind each message, put together again, and compared with what training saw.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

from tuner.errors import TunerError

CANT = (
    "# Ollama's language can't express this model's chat template, so Ollama would ask it otherwise than it was\n"
    "# trained. Use llama.cpp, LM Studio or another program that reads the template from the GGUF file."
)
Render = Callable[[list[dict]], str]  # a prompt as training saw it


@dataclass(frozen=True)
class Pieces:
    """What stands around each message, by role; at the beginning of a chat without a system prompt; and at its end."""

    around: dict[str, tuple[str, str]]
    without_system: str
    lead: str

    def prompt(self, messages: list[dict]) -> str:
        """The prompt as Ollama puts it together."""
        begin = "" if messages[0]["role"] == "system" else self.without_system
        return begin + "".join(m["content"].join(self.around[m["role"]]) for m in messages) + self.lead

    def template(self) -> str:
        """The same in Go's language. All on one line: its marks that trim would take line breaks of the text."""
        (system, user, answer), content = (self.around[r] for r in ("system", "user", "assistant")), "{{ .Content }}"
        return (
            f'{{{{ if ne (index .Messages 0).Role "system" }}}}{self.without_system}{{{{ end }}}}'
            f'{{{{ range .Messages }}}}{{{{ if eq .Role "system" }}}}{content.join(system)}'
            f'{{{{ else if eq .Role "user" }}}}{content.join(user)}'
            f'{{{{ else if eq .Role "assistant" }}}}{content.join(answer)}{{{{ end }}}}{{{{ end }}}}{self.lead}'
        )


SYSTEM, USER, ANSWER, NEXT = "5281", "7391", "8462", "6173"  # stand for messages; no template has these numbers
CHATS = [
    [("user", "a")],
    [("system", "Be brief."), ("user", "x y")],
    [("user", "a"), ("assistant", "b\n\nc"), ("user", "d")],
    [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")],
]


def take_apart(render: Render, begin: str) -> Pieces | None:
    """The pieces of a chat template, without the token `begin` that is added to every text; None if there are none."""
    try:
        alone = _around(render, begin, ("user", USER))
        system = _around(render, begin, ("system", SYSTEM), ("user", USER))
        chat = _around(render, begin, ("user", USER), ("assistant", ANSWER), ("user", NEXT))
    except (TunerError, ValueError):  # such as a template that allows no system prompt
        return None
    before = _common_end(alone[0], system[1], chat[2])
    behind = _common_start(alone[1], chat[1])
    pieces = Pieces(
        {
            "system": (system[0], system[1].removesuffix(before)),
            "user": (before, behind),
            "assistant": (chat[1].removeprefix(behind), chat[2].removesuffix(before)),
        },
        alone[0].removesuffix(before),
        alone[1].removeprefix(behind),
    )
    chats = [[{"role": role, "content": text} for role, text in chat] for chat in CHATS]
    is_same = all(pieces.prompt(chat) == render(chat).removeprefix(begin) for chat in chats)
    is_plain = "{{" not in pieces.prompt(chats[-1]) + pieces.without_system and '"""' not in pieces.template()
    return pieces if is_same and is_plain else None


def _around(render: Render, begin: str, *messages: tuple[str, str]) -> list[str]:
    """What stands before, between and behind the messages. Raises ValueError if one is not there."""
    rest, parts = render([{"role": role, "content": text} for role, text in messages]).removeprefix(begin), []
    for _, text in messages:
        place = rest.index(text)
        parts.append(rest[:place])
        rest = rest[place + len(text) :]
    return [*parts, rest]


def _common_start(*texts: str) -> str:
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in same)


def _common_end(*texts: str) -> str:
    return _common_start(*(text[::-1] for text in texts))[::-1]


def modelfile(gguf: str, pieces: Pieces | None, ends: list[str], context: int) -> str:
    """The Modelfile for a GGUF file beside it; `ends` are the texts of the tokens that end an answer."""
    lines = [
        "# ollama create NAME -f Modelfile",
        "# Smaller and faster: ollama create NAME -f Modelfile --quantize q4_K_M",
        f"FROM ./{gguf}",
        f'TEMPLATE """{pieces.template()}"""' if pieces else CANT,
        *(f"PARAMETER stop {quoted}" for quoted in map(_quoted, ends)),
        "# As it was scored: always the likeliest token.",
        "PARAMETER temperature 0",
        f"PARAMETER num_ctx {context}",
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return f'"{text}"' if '"' not in text else f'"""{text}"""'
