"""Conversations and plain text as tokens and labels, cut to length.

The tokens of a row start with exactly the tokens of its prompt. No torch here.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from tuner.data.chat import AS_WRITTEN, EARLIER, Chat, Rendered, render, thinks, token_count, trained_spans
from tuner.data.chat_templates import Span, bos_of, template_of
from tuner.data.tokens import IGNORE_INDEX, Encoded
from tuner.errors import TunerError
from tuner.words import count

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUOTED = 40  # characters of a row that is named


def encode_chats(
    rows: list[dict],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    loss_on: str,
    numbers: dict[str, int],
) -> Encoded:
    """Conversations and plain text as tokens and labels; `numbers` are not used.

    Raises TunerError if the chat template refuses a row, or leaves out its tools.
    """
    encoder = _Encoder(tokenizer, max_length, loss_on, tokenizer.eos_token or "", Counter())
    chats = [_chat(row, tokenizer) if "messages" in row else None for row in rows]
    _check_tools([chat for chat in chats if chat])
    bos = bos_of(tokenizer)
    texts = [
        render(chat, encoder.eos) if chat else Rendered(_marked(row["text"], bos, encoder.eos))
        for chat, row in zip(chats, rows, strict=True)
    ]
    encoded, lengths, cut_answers, parts = [], [], 0, []
    for chat, text, tokens in zip(chats, texts, encoder.tokenize(texts, chats), strict=True):
        for row, length in encoder.rows(chat, text, tokens):
            lengths.append(length)
            short = encoder.cut(row)
            cut_answers += len(short.ids) - short.answer < len(row.ids) - row.answer
            encoder.notes["tokens"] += length - len(short.ids) if length > max_length else 0
            encoded.append({"input_ids": short.ids, "labels": short.labels})
        parts.append(len(encoded) - sum(parts))
    return Encoded(encoded, lengths, cut_answers, encoder.notes, parts)


def _chat(row: dict, tokenizer) -> Chat:
    tools = row.get("tools") or None
    return Chat(row["messages"], template_of(tokenizer, tools), tools, thinks(row), row.get("learned", 0))


def _marked(text: str, bos: str, eos: str) -> str:
    """A plain text with the tokens that begin and end every text, unless it was written with them."""
    return bos + text.removeprefix(bos) + ("" if text.rstrip().endswith(eos) else eos)


def _check_tools(chats: list[Chat]) -> None:
    """Raise TunerError if a template leaves out tools or their calls, which it does without a word."""
    calling = [chat for chat in chats if any("tool_calls" in m or m["role"] == "tool" for m in chat.messages)]
    texts = [chat for chat in calling if any("tool_calls" in m and m["content"].strip() for m in chat.messages)]
    several = [chat for chat in calling if any(len(m.get("tool_calls", ())) > 1 for m in chat.messages)]
    thoughts = [c for c in calling if any("tool_calls" in m and "reasoning_content" in m for m in c.messages)]
    for what, unwritten in (
        ("tool calls", [chat for chat in calling if not chat.template.writes_calls]),
        ("all but one of several calls in a message", [c for c in several if not c.template.writes_several_calls]),
        ("the text or the call where a message has both", [c for c in texts if not c.template.writes_text_of_calls]),
        ("thoughts before tool calls", [chat for chat in thoughts if not chat.template.writes_thoughts_of_calls]),
        ("the list of tools", [chat for chat in chats if chat.tools and not chat.template.writes_tools]),
    ):
        if unwritten:
            first = next(m["content"] for m in unwritten[0].messages if m["role"] == "user")
            begins = " ".join(first.split())
            quoted = begins if len(begins) <= QUOTED else f"{begins[:QUOTED].rstrip()} ..."
            raise TunerError(
                f"This model's chat template leaves out {what}, which {count(len(unwritten), 'row')} "
                f'{"has" if len(unwritten) == 1 else "have"}, such as the one that begins "{quoted}". Choose a model '
                "whose template knows tools, such as Qwen/Qwen3-0.6B, or drop these rows."
            )


@dataclass(frozen=True)
class _Tokens:
    """A text as tokens."""

    ids: list[int]
    prompt: list[int]  # of the prompt alone
    offsets: list[Span] | None  # in characters, where they are needed and known


@dataclass(frozen=True)
class _Labeled:
    """A row as tokens and labels."""

    ids: list[int]
    labels: list[int]
    answer: int  # the index of the last answer's first token


@dataclass(frozen=True)
class _Encoder:
    tokenizer: "PreTrainedTokenizerBase"
    max_length: int
    loss_on: str
    eos: str
    notes: Counter  # what was cut, and how many rows were made of others

    def tokenize(self, texts: list[Rendered], chats: list[Chat | None]) -> Iterator[_Tokens]:
        """The texts with the boundaries of generation."""
        # Offsets take time, and are needed only if a row has several answers.
        mapped = self.tokenizer.is_fast and any(chat and (len(chat.answers) > 1 or chat.lead) for chat in chats)
        wholes = self.tokenizer([t.text for t in texts], **AS_WRITTEN, return_offsets_mapping=mapped)
        prompts = self.tokenizer([t.text[: t.answer] for t in texts], **AS_WRITTEN)["input_ids"]
        offsets = wholes["offset_mapping"] if mapped else [None] * len(texts)
        for parts in zip(wholes["input_ids"], prompts, offsets, strict=True):
            yield _Tokens(*parts)

    def rows(self, chat: Chat | None, text: Rendered, tokens: _Tokens) -> Iterator[tuple[_Labeled, int]]:
        """The row, and how many tokens it had; or one for each answer, if the template rewrites earlier answers."""
        whole = [(0, len(text.text))]
        if chat is None:
            self.notes["texts"] += len(tokens.ids) > self.max_length
            yield self.label(text, tokens, whole), len(tokens.ids)
            return
        short, shown, read = self.fitted(chat, text, tokens)
        spans = {"all": [(0, len(shown.text))], "last": [(shown.begin, len(shown.text))]}.get(self.loss_on)
        spans = spans or trained_spans(short, shown)
        if spans:
            is_bounded = self.loss_on == "completion" and not chat.template.is_marked
            self.notes["left_out"] += max(0, len(short.answers) - 1 - EARLIER) if is_bounded else 0
            yield self.label(shown, read, spans), len(tokens.ids)
            return
        self.notes["left_out"] += max(0, len(chat.answers) - 1 - EARLIER)
        self.notes["split"] += 1
        most = 2 * len(short.messages)  # about twice what fits: many long prompts would take long to read
        for answer in chat.answers[-EARLIER - 1 :]:
            part = chat.until(answer, most)
            text = render(part, self.eos)
            (tokens,) = self.tokenize([text], [part])
            _, shown, read = self.fitted(part, text, tokens)
            self.notes["parts"] += 1
            yield self.label(shown, read, [(shown.begin, len(shown.text))]), len(tokens.ids)

    def fitted(self, chat: Chat, text: Rendered, tokens: _Tokens) -> tuple[Chat, Rendered, _Tokens]:
        """The conversation with a prompt that leaves room for the answer, or a quarter of all room if that is more."""
        answer = len(tokens.ids) - len(tokens.prompt)
        room = max(self.max_length - answer, self.max_length // 4)
        if len(tokens.ids) <= self.max_length or len(tokens.prompt) <= room:
            return chat, text, tokens
        lead = token_count(text.text[text.begin : text.answer], self.tokenizer)
        messages, cut = chat.shortened(chat.messages[:-1], room - lead, self.tokenizer)
        self.notes.update(cut)
        chat = replace(chat, messages=[*messages, chat.messages[-1]])
        text = render(chat, self.eos)
        (tokens,) = self.tokenize([text], [chat])
        return chat, text, tokens

    def label(self, text: Rendered, tokens: _Tokens, trained: list[Span]) -> _Labeled:
        """Tokens with their labels: a row's tokens start with exactly the tokens of its prompt."""
        ids, prompt = tokens.ids, tokens.prompt
        if ids[: len(prompt)] != prompt:
            return self.label_parts(text, trained)
        if len(trained) == 1 and trained[0][0] in (0, text.answer):
            first = len(prompt) if trained[0][0] else 0
            return _Labeled(ids, [IGNORE_INDEX] * first + ids[first:], len(prompt))
        labels = _labels(ids, tokens.offsets, trained) if tokens.offsets else None
        return _Labeled(ids, labels, len(prompt)) if labels else self.label_parts(text, trained)

    def label_parts(self, text: Rendered, trained: list[Span]) -> _Labeled:
        """The same part by part, for the few with a token that would cross a boundary."""
        cuts = sorted({0, text.answer, len(text.text), *(place for span in trained for place in span)})
        ids, labels, answer = [], [], 0
        for start, end in pairwise(cuts):
            answer = len(ids) if start == text.answer else answer
            part = self.tokenizer(text.text[start:end], **AS_WRITTEN)["input_ids"]
            is_trained = any(a <= start < b for a, b in trained)
            ids += part
            labels += part if is_trained else [IGNORE_INDEX] * len(part)
        return _Labeled(ids, labels, answer)

    def cut(self, row: _Labeled) -> _Labeled:
        """The row in at most `max_length` tokens, with as much of its answer as possible: something is always trained.

        A prompt that could not be shortened, because of its tools for one, loses its beginning but for a first token
        that begins every text, and keeps a quarter of `max_length`. Then the answer loses its end.
        """
        over = len(row.ids) - self.max_length
        if over <= 0:
            return row
        kept = int(row.ids[0] == self.tokenizer.bos_token_id)
        left = max(0, min(over, row.answer - self.max_length // 4 - kept))
        self.notes["prompts"] += left > 0
        ids, labels = (part[:kept] + part[kept + left :] for part in (row.ids, row.labels))
        return _Labeled(ids[: self.max_length], labels[: self.max_length], row.answer - left)


def _labels(ids: list[int], offsets: list[Span], trained: list[Span]) -> list[int] | None:
    """The labels, or None if no token starts at the beginning of an answer."""
    starts, labels = [start for start, _ in offsets], [IGNORE_INDEX] * len(ids)
    for begin, end in trained:
        first, last = bisect_left(starts, begin), bisect_left(starts, end)
        if first == len(starts) or starts[first] != begin:
            return None
        labels[first:last] = ids[first:last]
    return labels
