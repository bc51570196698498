"""Conversations as a chat model sees them: rendered by its template, tokenized, cut to length, answers labeled.

Generation sees what training saw: `render_prompt` and the rows to train on go through one template, and the tokens of
a row start with exactly the tokens of its prompt. No torch here.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from tuner.data.tokens import IGNORE_INDEX, Encoded
from tuner.errors import TunerError
from tuner.words import BROKEN, is_broken

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EARLIER = 100  # answers of a conversation that are learned from beside its last; each costs two renderings
# For tokenizers without a chat template, as in many base models: a line per message, an end token after an answer.
PLAIN = (
    "{{ bos }}{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
)


def render_prompt(messages: list[dict], tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text that the model answers, from `messages`; to be tokenized without adding special tokens."""
    check_characters(messages)
    return _template([messages], tokenizer, prompt=True)[0]


def check_characters(messages: list[dict]) -> None:
    """Raise TunerError if a message has half a character."""
    if any(is_broken(message["content"]) for message in messages):
        raise TunerError(f"The message has {BROKEN}. Write it again.")


def stop_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens that end an answer: the tokenizer's own, and the one that its template writes after an answer.

    They differ in base models with a borrowed template, such as Qwen2.5's, which would otherwise never stop.
    """
    mark = tokenizer(_end_mark(tokenizer), add_special_tokens=False)["input_ids"]
    ids = [tokenizer.eos_token_id, *(mark if len(mark) == 1 else [])]
    return list(dict.fromkeys(id for id in ids if id is not None))


def _template(conversations: list[list[dict]], tokenizer, prompt: bool) -> list[str]:
    """Each conversation as text; a `prompt` ends where the answer begins. Raises TunerError."""
    import jinja2

    if not conversations:
        return []
    options = {"chat_template": None if tokenizer.chat_template else PLAIN, "bos": _bos(tokenizer)}
    try:
        # Templates that know enable_thinking would make the model think aloud, which the rows do not teach.
        return tokenizer.apply_chat_template(
            conversations, tokenize=False, add_generation_prompt=prompt, enable_thinking=False, **options
        )
    except jinja2.TemplateError as error:
        raise TunerError(
            f"The model's chat template refuses these messages ({error}). Many templates allow no system prompt, or "
            "require user and assistant to alternate: change data.system or the rows, or choose another model."
        ) from None
    except Exception as error:  # templates are programs, and may fail in any way
        reason = (str(error).strip().partition("\n")[0] or type(error).__name__)[:120].rstrip(".")
        raise TunerError(f"The model's chat template is broken ({reason}). Choose another model.") from None


def _bos(tokenizer) -> str:
    """The token that the tokenizer puts before every text by itself; "" if it puts none."""
    return tokenizer.bos_token if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else ""


def _end_mark(tokenizer) -> str:
    """What the template writes after an answer, such as <|im_end|>; "" if it writes nothing. Raises TunerError."""
    turns = [{"role": "user", "content": "7391"}, {"role": "assistant", "content": "8462"}]
    question, answer, rest = _template([turns], tokenizer, prompt=False)[0].rpartition("8462")
    if not answer or "7391" not in question:
        raise TunerError("The model's chat template leaves out plain text (pictures only?). Choose another model.")
    # Up to the first whitespace: Phi's writes <|end|>, a line break and, after the last answer only, an end token.
    return rest.split()[0] if rest.strip() else ""


@dataclass(frozen=True)
class _Rendered:
    """A row as text; places are counted in characters."""

    text: str
    trained: list[tuple[int, int]]  # the spans that are learned from
    answer: int  # where the last answer begins


def _render(rows: list[dict], tokenizer, loss_on: str) -> Iterator[_Rendered]:
    """The rows as text, with what is learned from: every answer and its end mark, but not the line break after it."""
    chats = [row["messages"] for row in rows if "messages" in row]
    mark, bos, eos = _end_mark(tokenizer) if chats else "", _bos(tokenizer), tokenizer.eos_token or ""
    wholes = _template(chats, tokenizer, prompt=False)
    prompts = _template([chat[:-1] for chat in chats], tokenizer, prompt=True)
    rendered = zip(chats, wholes, prompts, strict=True)
    for row in rows:
        if "text" in row:
            text = bos + row["text"] + eos
            yield _Rendered(text, [(0, len(text))], 0)
            continue
        chat, whole, prompt = next(rendered)
        if whole.startswith(prompt):
            trained = _earlier_answers(chat, whole, mark, tokenizer)
        else:
            # DeepSeek's, for one, opens a thought in the prompt and removes it once the answer is there.
            whole, trained = prompt + row["messages"][-1]["content"] + mark, []
        text = _until(mark, whole) if mark else whole.removesuffix(eos) + eos
        trained.append((len(prompt), len(text)))
        yield _Rendered(text, [(0, len(text))] if loss_on == "all" else trained, len(prompt))


def _until(mark: str, text: str) -> str:
    """The text up to the end of its last mark."""
    return text[: text.rindex(mark) + len(mark)] if mark else text


def _earlier_answers(chat: list[dict], whole: str, mark: str, tokenizer) -> list[tuple[int, int]]:
    """The spans of the EARLIER answers before the last one.

    Some templates, such as Qwen3's, rewrite earlier answers. Generation never writes those, so they are not learned
    from.
    """
    spans = []
    for index in [i for i, message in enumerate(chat[:-1]) if message["role"] == "assistant"][-EARLIER:]:
        before = _template([chat[:index]], tokenizer, prompt=True)[0]
        after = _template([chat[: index + 1]], tokenizer, prompt=False)[0]
        end = _until(mark, after)
        if whole.startswith(end) and after.startswith(before):
            spans.append((len(before), len(end)))
    return spans


@dataclass(frozen=True)
class _Labeled:
    """A row as tokens and labels."""

    ids: list[int]
    labels: list[int]
    answer: int  # the index of the last answer's first token


def _encode(rendered: list[_Rendered], tokenizer) -> Iterator[_Labeled]:
    """Tokens with the boundaries of generation: a row's tokens start with exactly the tokens of its prompt."""
    plain = {"add_special_tokens": False, "verbose": False}
    # Offsets take time, and are needed only if a row has several answers.
    mapped = tokenizer.is_fast and any(len(row.trained) > 1 for row in rendered)
    wholes = tokenizer([row.text for row in rendered], **plain, return_offsets_mapping=mapped)
    prompts = tokenizer([row.text[: row.answer] for row in rendered], **plain)["input_ids"]
    for index, (row, prompt) in enumerate(zip(rendered, prompts, strict=True)):
        ids = wholes["input_ids"][index]
        if ids[: len(prompt)] != prompt:
            yield _encode_in_parts(row, tokenizer)
        elif len(row.trained) == 1:
            first = len(prompt) if row.trained[0][0] else 0
            yield _Labeled(ids, [IGNORE_INDEX] * first + ids[first:], len(prompt))
        else:
            labels = _labels(ids, wholes["offset_mapping"][index], row.trained) if mapped else None
            yield _Labeled(ids, labels, len(prompt)) if labels else _encode_in_parts(row, tokenizer)


def _labels(ids: list[int], offsets: list[tuple[int, int]], trained: list[tuple[int, int]]) -> list[int] | None:
    """The labels, or None if no token starts at the beginning of an answer."""
    starts, labels = [start for start, _ in offsets], [IGNORE_INDEX] * len(ids)
    for begin, end in trained:
        first, last = bisect_left(starts, begin), bisect_left(starts, end)
        if starts[first] != begin:
            return None
        labels[first:last] = ids[first:last]
    return labels


def _encode_in_parts(row: _Rendered, tokenizer) -> _Labeled:
    """The row tokenized part by part, for the few with a token that would cross a boundary."""
    cuts = sorted({0, row.answer, len(row.text), *(place for span in row.trained for place in span)})
    ids, labels, answer = [], [], 0
    for start, end in pairwise(cuts):
        answer = len(ids) if start == row.answer else answer
        part = tokenizer(row.text[start:end], add_special_tokens=False, verbose=False)["input_ids"]
        trained = any(a <= start < b for a, b in row.trained)
        ids += part
        labels += part if trained else [IGNORE_INDEX] * len(part)
    return _Labeled(ids, labels, answer)


def _cut(row: _Labeled, max_length: int, kept: int) -> _Labeled:
    """The row in at most `max_length` tokens, with as much of its answer as possible.

    The prompt loses its beginning, as in generation, except for its first `kept` tokens and for a quarter of
    `max_length` at its end; what is still too long is cut from the answer's end. So every row keeps tokens to learn
    from.
    """
    over = len(row.ids) - max_length
    left = max(0, min(over, row.answer - max_length // 4 - kept))
    ids, labels = (part[:kept] + part[kept + left :] for part in (row.ids, row.labels))
    return _Labeled(ids[:max_length], labels[:max_length], row.answer - left)


def encode_chats(
    rows: list[dict],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    loss_on: str,
    numbers: dict[str, int],
) -> Encoded:
    """Conversations and plain text as tokens and labels; `numbers` are not used.

    Raises TunerError if the chat template refuses a row.
    """
    encoded, lengths, cut_answers = [], [], 0
    for row in _encode(list(_render(rows, tokenizer, loss_on)), tokenizer):
        lengths.append(len(row.ids))
        if len(row.ids) > max_length:
            whole, row = row, _cut(row, max_length, kept=int(row.ids[0] == tokenizer.bos_token_id))
            cut_answers += len(row.ids) - row.answer < len(whole.ids) - whole.answer
        encoded.append({"input_ids": row.ids, "labels": row.labels})
    return encoded, lengths, cut_answers
