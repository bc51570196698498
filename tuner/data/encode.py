"""Rows of every task as tokens and labels, and as held-out prompts with their references.

A tokenised row is {"input_ids": [...], "labels": [...]} whatever the task: labels are target tokens, one class, one
tag a token, or the first and last token of an answer. Text to write goes through data.py's templates.
"""

from collections.abc import Callable

from tuner.data.chat import CHUNK, tokenise_chats
from tuner.data.tokens import IGNORE_INDEX, Tokenised
from tuner.errors import TunerError
from tuner.tasks import TASKS

MOST_LABELS = 500


def labels_of(task: str, rows: list[dict]) -> tuple[str, ...]:
    """The labels of a task whose head gives one of them, sorted. Raises TunerError where they can't be learned."""
    if not TASKS[task].has_labels:
        return ()
    found = sorted({label for row in rows for label in ([row["label"]] if "label" in row else row["tags"])})
    if len(found) < 2:
        raise TunerError(
            f"All rows have the same label ({', '.join(found)}), so there is nothing to learn. Add others."
        )
    if len(found) > MOST_LABELS:
        raise TunerError(
            f"There are {len(found):,} different labels, such as '{found[0]}': these look like texts to be written, "
            "not like classes. Map the columns as prompt and completion (data.columns)."
        )
    return tuple(found)


def source(messages: list[dict]) -> str:
    """What an encoder reads of a conversation: the turns' texts, a line each."""
    return "\n".join(message["content"] for message in messages)


def tokenise(
    task: str, rows: list[dict], tokenizer, max_length: int, loss_on: str = "completion", labels: tuple[str, ...] = ()
) -> Tokenised:
    """Rows in normal form as tokens and labels. Raises TunerError where nothing to learn fits."""
    if task == "generation":
        return tokenise_chats(rows, tokenizer, max_length, loss_on)
    numbers = {label: i for i, label in enumerate(labels)}
    done, lengths, cut = [], [], 0
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        found, whole, lost = _ENCODERS[task](chunk, tokenizer, max_length, numbers)
        done, lengths, cut = done + found, lengths + whole, cut + lost
    if done and cut == len(done):
        raise TunerError(
            f"None of {len(done):,} answers fits into {max_length:,} tokens (data.max_length). Raise it, shorten the "
            "rows, or choose a model with a longer context."
        )
    return Tokenised(done, lengths, max_length, cut)


def _cut(tokenizer, max_length: int, *texts, **options) -> tuple:
    """The texts as tokens, cut to length, and how long each was before."""
    plain = {"verbose": False, **{k: v for k, v in options.items() if k != "truncation"}}
    whole = tokenizer(*texts, **plain)
    lengths = [len(ids) for ids in whole["input_ids"]]
    if max(lengths) > max_length:
        whole = tokenizer(*texts, max_length=max_length, **{"truncation": True, **options})
    return whole, lengths


def _targets(rows, tokenizer, max_length: int, numbers: dict) -> tuple[list[dict], list[int], int]:
    read, lengths = _cut(tokenizer, max_length, [source(row["messages"][:-1]) for row in rows])
    answers = [row["messages"][-1]["content"] for row in rows]
    targets = tokenizer(text_target=answers, verbose=False)["input_ids"]
    cut = [ids[: max_length - 1] + ids[-1:] if len(ids) > max_length else ids for ids in targets]
    done = [{"input_ids": i, "labels": t} for i, t in zip(read["input_ids"], cut, strict=True)]
    return (
        done,
        [max(n, len(t)) for n, t in zip(lengths, targets, strict=True)],
        sum(len(t) > max_length for t in targets),
    )


def _classes(rows, tokenizer, max_length: int, numbers: dict) -> tuple[list[dict], list[int], int]:
    read, lengths = _cut(tokenizer, max_length, [row["text"] for row in rows])
    done = [
        {"input_ids": ids, "labels": [numbers.get(row["label"], IGNORE_INDEX)]}
        for ids, row in zip(read["input_ids"], rows, strict=True)
    ]
    return done, lengths, 0


def _tags(rows, tokenizer, max_length: int, numbers: dict) -> tuple[list[dict], list[int], int]:
    read, lengths = _cut(tokenizer, max_length, [row["tokens"] for row in rows], is_split_into_words=True)
    done = []
    for number, row in enumerate(rows):
        # A word's first token stands for the word, as in Devlin et al. 2019, section 5.3.
        heads = first_tokens(read.word_ids(number))
        tags = [IGNORE_INDEX if word is None else numbers.get(row["tags"][word], IGNORE_INDEX) for word in heads]
        done.append({"input_ids": read["input_ids"][number], "labels": tags})
    return done, lengths, sum(all(tag == IGNORE_INDEX for tag in row["labels"]) for row in done)


def first_tokens(words: list[int | None]) -> list[int | None]:
    """Each token's word where it is the word's first token, else None."""
    return [word if word != before else None for before, word in zip([None, *words], words, strict=False)]


def _spans(rows, tokenizer, max_length: int, numbers: dict) -> tuple[list[dict], list[int], int]:
    texts = [row["question"] for row in rows], [row["context"] for row in rows]
    read, lengths = _cut(tokenizer, max_length, *texts, truncation="only_second", return_offsets_mapping=True)
    done, lost = [], 0
    for number, row in enumerate(rows):
        place = token_span(read["offset_mapping"][number], read.sequence_ids(number), row["start"], len(row["answer"]))
        lost += place == [0, 0] and row["start"] >= 0
        kinds = {k: read[k][number] for k in ("token_type_ids",) if k in read}
        done.append({"input_ids": read["input_ids"][number], "labels": place, **kinds})
    return done, lengths, lost


def token_span(offsets: list, sequences: list, start: int, length: int) -> list[int]:
    """First and last token of an answer in the text; [0, 0], the token before all text, where it is not there."""
    inside = [i for i, (a, b) in enumerate(offsets) if sequences[i] == 1 and a < start + length and b > start]
    whole = inside and offsets[inside[0]][0] <= start and offsets[inside[-1]][1] >= start + length
    return [inside[0], inside[-1]] if start >= 0 and whole else [0, 0]


_ENCODERS: dict[str, Callable] = {
    "seq2seq": _targets, "classification": _classes, "token_classification": _tags, "question_answering": _spans,
}  # fmt: skip


def heldout_prompt(row: dict) -> dict | None:
    """A held-out row as a prompt and its reference; None for plain text, which has no answer."""
    if "messages" in row:
        return {"messages": row["messages"][:-1], "reference": row["messages"][-1]["content"]}
    if "label" in row:
        return _asked(row["text"], row["label"])
    if "tokens" in row:
        return _asked(" ".join(row["tokens"]), "\n".join(entities(row["tokens"], row["tags"])))
    if "context" in row:
        return _asked(f"{row['question']}\n{row['context']}", row["answer"])
    return None


def _asked(prompt: str, reference: str) -> dict:
    return {"messages": [{"role": "user", "content": prompt}], "reference": reference}


def entities(words: list[str], tags: list[str]) -> list[str]:
    """The entities of BIO tags, a line each such as "PER: Ada Lovelace [3-4]", with the numbers of their words.

    An I- that continues nothing begins an entity, as in the CoNLL scorer. Tags without B- and I- are a word each.
    """
    spans: list[tuple[str, int, int]] = []
    for number, tag in enumerate(tags):
        if tag in ("O", ""):
            continue
        kind = tag[2:] if tag[:2] in ("B-", "I-") else tag
        if tag[:2] == "I-" and spans and spans[-1][0] == kind and spans[-1][2] == number - 1:
            spans[-1] = (kind, spans[-1][1], number)
        else:
            spans.append((kind, number, number))
    return [f"{kind}: {' '.join(words[a : b + 1])} [{a + 1}-{b + 1}]" for kind, a, b in spans]
