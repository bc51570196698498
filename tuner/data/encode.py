"""Rows of every task as tokens and labels, and as held-out prompts with their references.

A tokenized row is {"input_ids": [...], "labels": [...]} whatever the task: labels are target tokens, one class, one
tag for each token, or the first and last token of an answer. Conversations go through chat.py's templates. No torch.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tuner.data import tags
from tuner.data.chat import check_characters
from tuner.data.chat_rows import encode_chats
from tuner.data.chat_templates import fold
from tuner.data.shorten import shorten
from tuner.data.tokens import IGNORE_INDEX, Encoded, Tokenized, strangers_code, token_pieces
from tuner.errors import TunerError
from tuner.tasks import TASKS

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

CHUNK = 512  # rows tokenized at a time
MOST_LABELS = 500


def labels_of(task: str, rows: list[dict]) -> tuple[str, ...]:
    """The labels of a task whose head gives one of them, sorted. Raises TunerError if they can't be learned."""
    if not TASKS[task].has_labels:
        return ()
    labels = sorted({label for row in rows for label in ([row["label"]] if "label" in row else row["tags"])})
    if len(labels) < 2:
        raise TunerError(
            f"All rows have the same label ({', '.join(labels)}), so there is nothing to learn. Add rows with "
            "other labels."
        )
    if len(labels) > MOST_LABELS:
        raise TunerError(
            f"There are {len(labels):,} different labels, such as '{labels[0]}': they look like text to generate, "
            "not like classes. Map the columns as prompt and completion (data.columns)."
        )
    return tuple(labels)


def source(messages: list[dict]) -> str:
    """What an encoder reads of a conversation: the texts of all messages, each on a new line."""
    check_characters(messages)
    return "\n".join(message["content"] for message in messages)


def fitted_source(
    messages: list[dict], room: int, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[str, Mapping[str, int]]:
    """What an encoder reads of a conversation in at most so many tokens, and how much of what was cut.

    As elsewhere what was said last stays. A text by itself is left whole: its end is cut off as it is tokenized.
    """

    def size(some: list[dict]) -> int:
        return len(tokenizer(source(some), verbose=False)["input_ids"])

    if len(messages) == 1 or size(messages) <= room:
        return source(messages), {}
    kept, cut = shorten(messages, size, room, tokenizer)
    return source(kept), cut


def tokenize(
    task: str,
    rows: list[dict],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    loss_on: str = "completion",
    labels: tuple[str, ...] = (),
) -> Tokenized:
    """Rows of the kind that the task learns from, as tokens and labels. Raises TunerError if no answer fits."""
    encode = ENCODERS[TASKS[task].objective]
    numbers = {label: i for i, label in enumerate(labels)}
    encoded, lengths, cut, notes, parts = [], [], 0, Counter(), []
    for start in range(0, len(rows), CHUNK):
        with strangers_code("The model's tokenizer can't read these rows"):
            part = Encoded(*encode(rows[start : start + CHUNK], tokenizer, max_length, loss_on, numbers))
        encoded += part.rows
        lengths += part.lengths
        cut += part.cut_answers
        notes.update(part.notes)
        parts += part.parts or [1] * len(part.rows)
    # Plain text has no answer to lose.
    if encoded and cut == len(encoded) and any(map(heldout_prompt, rows)):
        raise TunerError(
            f"None of {len(encoded):,} answers fits into {max_length:,} tokens (data.max_length); the shortest row "
            f"has {min(lengths):,}. Raise data.max_length, shorten the rows, or choose a model with a longer context."
        )
    tokenized = Tokenized(encoded, lengths, max_length, cut, parts=parts, notes=notes)
    if encode is encode_chats or notes["exchanges"] or notes["messages"]:
        return tokenized
    return replace(tokenized, lost_from="from the end of the text")


def _truncated(
    tokenizer: "PreTrainedTokenizerBase", max_length: int, *texts: list, **options: Any
) -> tuple["BatchEncoding", list[int]]:
    """The texts as tokens, at most `max_length` each, and how long each was before."""
    plain = {"verbose": False, **{k: v for k, v in options.items() if k != "truncation"}}
    batch = tokenizer(*texts, **plain)
    lengths = [len(ids) for ids in batch["input_ids"]]
    if max(lengths) > max_length:
        batch = tokenizer(*texts, max_length=max_length, **{"truncation": True, **options})
    return batch, lengths


def _targets(rows: list[dict], tokenizer, max_length: int, loss_on: str, numbers: dict[str, int]) -> Encoded:
    """The last answer as labels, all before it as input."""
    if any("tools" in row or any(m["role"] == "tool" or "tool_calls" in m for m in row["messages"]) for row in rows):
        raise TunerError(
            "An encoder-decoder has no chat template that could write tool calls, which some rows have. Choose a "
            "causal model whose template knows tools, such as Qwen/Qwen3-0.6B, or drop these rows."
        )
    batch, lengths, notes = _sources(rows, tokenizer, max_length)
    answers = [fold(row["messages"][-1])["content"] for row in rows]
    targets = tokenizer(text_target=answers, verbose=False)["input_ids"]
    cut = [ids[: max_length - 1] + ids[-1:] if len(ids) > max_length else ids for ids in targets]
    encoded = [{"input_ids": i, "labels": t} for i, t in zip(batch["input_ids"], cut, strict=True)]
    longer = [max(n, len(t)) for n, t in zip(lengths, targets, strict=True)]
    return encoded, longer, sum(len(t) > max_length for t in targets), notes


def _sources(rows: list[dict], tokenizer, max_length: int) -> tuple["BatchEncoding", list[int], Counter]:
    """All before the last answers as tokens, how long each was before it was cut, and how much of what was cut."""
    texts, notes = [source(row["messages"][:-1]) for row in rows], Counter()
    lengths = [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]
    for number, row in enumerate(rows):
        if lengths[number] > max_length:
            texts[number], cut = fitted_source(row["messages"][:-1], max_length, tokenizer)
            notes.update(cut or {"texts": 1})
    return _truncated(tokenizer, max_length, texts)[0], lengths, notes


def _classes(rows: list[dict], tokenizer, max_length: int, loss_on: str, numbers: dict[str, int]) -> Encoded:
    """The number of the text's label."""
    batch, lengths = _truncated(tokenizer, max_length, [row["text"] for row in rows])
    encoded = [
        {"input_ids": ids, "labels": [numbers.get(row["label"], IGNORE_INDEX)]}
        for ids, row in zip(batch["input_ids"], rows, strict=True)
    ]
    return encoded, lengths, 0


def _tags(rows: list[dict], tokenizer, max_length: int, loss_on: str, numbers: dict[str, int]) -> Encoded:
    """The number of each word's tag, at the word's first token, as in Devlin et al. 2019, section 5.3."""
    words = [row["tokens"] for row in rows]
    batch, lengths = _truncated(tokenizer, max_length, words, is_split_into_words=True)
    encoded = []
    for number, row in enumerate(rows):
        heads = first_tokens(batch.word_ids(number))
        targets = [IGNORE_INDEX if word is None else numbers.get(row["tags"][word], IGNORE_INDEX) for word in heads]
        encoded.append({"input_ids": batch["input_ids"][number], "labels": targets})
    return encoded, lengths, sum(all(tag == IGNORE_INDEX for tag in row["labels"]) for row in encoded)


def first_tokens(words: list[int | None]) -> list[int | None]:
    """For each token its word if it is the word's first token, else None."""
    return [word if word != before else None for before, word in zip([None, *words], words, strict=False)]


def _spans(rows: list[dict], tokenizer, max_length: int, loss_on: str, numbers: dict[str, int]) -> Encoded:
    """The first and last token of the answer."""
    texts = [row["question"] for row in rows], [row["context"] for row in rows]
    batch, lengths = _truncated(tokenizer, max_length, *texts, truncation="only_second", return_offsets_mapping=True)
    encoded, cut = [], 0
    for number, row in enumerate(rows):
        offsets, sequences = batch["offset_mapping"][number], batch.sequence_ids(number)
        span = token_span(offsets, sequences, row["start"], len(row["answer"]))
        cut += span == [0, 0] and row["start"] >= 0
        types = {k: batch[k][number] for k in ("token_type_ids",) if k in batch}
        encoded.append({"input_ids": batch["input_ids"][number], "labels": span, **types})
    return encoded, lengths, cut


def token_span(offsets: list, sequences: list, start: int, length: int) -> list[int]:
    """First and last token of an answer in the context; [0, 0], the token before all text, if there is none.

    `start` and `length` are in characters; `offsets` and `sequences` are the tokenizer's, one for each token.
    """
    inside = [i for i, (a, b) in enumerate(offsets) if sequences[i] == 1 and a < start + length and b > start]
    whole = inside and offsets[inside[0]][0] <= start and offsets[inside[-1]][1] >= start + length
    return [inside[0], inside[-1]] if whole else [0, 0]


# By objective (tasks.py): rows, tokenizer, max_length, loss_on and the numbers of the labels -> Encoded.
ENCODERS: dict[str, Callable[..., Encoded]] = {
    "next_token": encode_chats,
    "target_token": _targets,
    "whole_text": _classes,
    "each_token": _tags,
    "span": _spans,
}


def preview_pieces(
    task: str, row: dict, tokenizer: "PreTrainedTokenizerBase", labels: tuple[str, ...] = ()
) -> list[dict]:
    """A tokenized row as `token_pieces`, with what is learned from marked; a text's label is the last piece."""
    ids, targets = row["input_ids"], row["labels"]
    match TASKS[task].objective:
        case "target_token":
            return token_pieces(ids + targets, [False] * len(ids) + [True] * len(targets), tokenizer)
        case "whole_text":
            label = [labels[targets[0]]] if targets[0] != IGNORE_INDEX else []
            pieces = token_pieces(ids, [False] * len(ids), tokenizer)
            return pieces + [{"text": text, "trained": True, "special": False} for text in label]
        case "span":
            first, last = targets
            return token_pieces(ids, [0 < first <= i <= last for i in range(len(ids))], tokenizer)
        case _:
            return token_pieces(ids, [label != IGNORE_INDEX for label in targets], tokenizer)


def heldout_prompt(row: dict) -> dict | None:
    """A held-out row as {"messages": [...], "reference": text}; None for plain text, which has no answer.

    Where there are several right answers, "references" has them all.
    """
    if "messages" in row:
        tools = {"tools": row["tools"]} if "tools" in row else {}
        return {"messages": row["messages"][:-1], "reference": row["messages"][-1]["content"], **tools}
    if "label" in row:
        return _prompt(row["text"], row["label"])
    if "tokens" in row:
        return _prompt(" ".join(row["tokens"]), "\n".join(tags.entities(row["tokens"], row["tags"])))
    if "context" in row:
        several = {"references": row["answers"]} if "answers" in row else {}
        return _prompt(f"{row['question']}\n{row['context']}", row["answer"]) | several
    return None


def _prompt(text: str, reference: str) -> dict:
    return {"messages": [{"role": "user", "content": text}], "reference": reference}
