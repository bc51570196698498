"""The loss of each task: logits paired with labels, and their cross-entropy, over batches of tokenized rows."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from tuner.data.tokens import IGNORE_INDEX

# Families whose code in transformers 5.23 reads padding, in all or some layers, whatever the attention mask says: tiny
# models of them answer differently in a padded batch than alone, or take no mask at all (xLSTM). XLNet's classifier
# reads the last position, padding or not.
UNMASKED = (
    "convbert",
    "fnet",
    "funnel",
    "minimax",
    "nystromformer",
    "recurrent_gemma",
    "rwkv",
    "xlnet",
    "xlstm",
    "yoso",
)
# Families whose code mixes the rows of a batch when it writes token by token.
ALONE = ("rwkv",)


def next_token(model: nn.Module, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """A causal model's logits, positions x vocabulary, in the columns of the batch that have a label; the labels."""
    labels = inputs["labels"][:, 1:]
    columns = (labels != IGNORE_INDEX).any(0).nonzero().flatten()
    # Counted from the end, because soft prompts add columns at the front.
    kept = columns - inputs["labels"].shape[1]
    logits = model(**_read(inputs), logits_to_keep=kept, use_cache=False).logits
    if logits.shape[1] != len(kept):  # a model that knows no such argument, such as xLSTM
        logits = logits[:, kept]
    return logits.flatten(0, 1), labels[:, columns].flatten()


def target_token(model: nn.Module, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """An encoder-decoder's logits, positions x vocabulary, for each token of the target; the labels."""
    labels = inputs["labels"]
    logits = model(**_read(inputs), decoder_input_ids=_before(model, labels), use_cache=False).logits
    return logits[:, -labels.shape[1] :].flatten(0, 1), labels.flatten()


def first_token(model: nn.Module, end: int) -> int:
    """The token that an encoder-decoder begins an answer with, as in training; `end` is the one that ends it."""
    if (start := getattr(model.config, "decoder_start_token_id", None)) is not None:
        return start
    return int(_before(model, torch.tensor([[end]]))[0, 0])  # such as T5Gemma's, PLBART's


def _before(model: nn.Module, labels: torch.Tensor) -> torch.Tensor:
    """What an encoder-decoder has written before each token of the target, as its own code has it if it says so."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return model.prepare_decoder_input_ids_from_labels(labels=labels.clone())  # FSMT's writes over them
    before = labels.roll(1, dims=1)
    before[:, 0] = model.config.decoder_start_token_id
    return before.masked_fill(before == IGNORE_INDEX, model.config.pad_token_id)


def whole_text(model: nn.Module, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """A classifier's logits, texts x labels; the labels."""
    return model(**_read(inputs)).logits, inputs["labels"][:, 0]


def each_token(model: nn.Module, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """A tagger's logits, tokens x tags; the labels."""
    return model(**_read(inputs)).logits.flatten(0, 1), inputs["labels"].flatten()


def span(model: nn.Module, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of where each answer begins, then of where it ends, 2 texts x tokens; the labels."""
    output = model(**_read(inputs))
    padding = inputs["attention_mask"] == 0
    logits = [
        scores.masked_fill(padding, torch.finfo(scores.dtype).min)
        for scores in (output.start_logits, output.end_logits)
    ]
    return torch.cat(logits), inputs["labels"].T.flatten()


SCORES: dict[str, Callable] = {f.__name__: f for f in (next_token, target_token, whole_text, each_token, span)}


def _read(inputs: dict) -> dict:
    return {k: v for k, v in inputs.items() if k != "labels"}


def mean_loss(objective: str, model: nn.Module, inputs: dict) -> torch.Tensor:
    """Mean cross-entropy in nats over all labels of a batch; `objective` names a function above."""
    logits, labels = SCORES[objective](model, inputs)
    return torch.nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX)


def count_labels(objective: str, inputs: dict) -> int:
    """The labels of a batch, which its mean loss is over."""
    # A causal model predicts nothing for the first position.
    labels = inputs["labels"][:, 1:] if objective == "next_token" else inputs["labels"]
    return int((labels != IGNORE_INDEX).sum())


def reads_padding(model: nn.Module) -> bool:
    """Whether a row's padding changes what the model makes of it, so that rows of other lengths must stand apart."""
    return model.config.model_type in UNMASKED


def writes_alone(model: nn.Module) -> bool:
    """Whether a text's answer must be written in a batch of its own."""
    return model.config.model_type in ALONE


def rows_together(objective: str, model: nn.Module, rows: int) -> int:
    """How many of so many rows may share a batch that is padded on the right, where a causal model reads it last."""
    return 1 if objective != "next_token" and reads_padding(model) else rows


def collate(rows: list[dict], padding: int = 0) -> dict[str, torch.Tensor]:
    """Tokenized rows as one right-padded batch with its attention mask, rows x longest row."""
    fill = {"input_ids": padding, "labels": IGNORE_INDEX}
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
    batch = {}
    for key in rows[0]:
        longest = max(len(row[key]) for row in rows)
        batch[key] = torch.tensor([row[key] + [fill.get(key, 0)] * (longest - len(row[key])) for row in rows])
    return batch


def heldout_loss(objective: str, model: nn.Module, rows: Sequence[dict], batch_size: int, padding: int = 0) -> float:
    """Mean cross-entropy in nats over all labels of `rows`."""
    return sum(heldout_losses(objective, model, rows, batch_size, padding))


def heldout_losses(
    objective: str, model: nn.Module, rows: Sequence[dict], batch_size: int, padding: int = 0
) -> list[float]:
    """What each row adds to the mean cross-entropy in nats over all labels of `rows`."""
    nats, labels = row_losses(objective, model, rows, batch_size, padding)
    return [value / max(1, sum(labels)) for value in nats]


@torch.inference_mode()
def row_losses(
    objective: str, model: nn.Module, rows: Sequence[dict], batch_size: int, padding: int = 0
) -> tuple[list[float], list[int]]:
    """The cross-entropy of each row in nats, summed over its labels, and how many labels it has."""
    nats, labels = [0.0] * len(rows), [0] * len(rows)
    device = next(model.parameters()).device
    batch_size = rows_together(objective, model, batch_size)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = collate([rows[i] for i in chosen], padding)
        logits, targets = SCORES[objective](model, {k: v.to(device) for k, v in batch.items()})
        loss = torch.nn.functional.cross_entropy(logits.float(), targets, ignore_index=IGNORE_INDEX, reduction="none")
        # Spans have all beginnings first, and then all ends.
        shape = (-1, len(chosen)) if objective == "span" else (len(chosen), len(loss) // len(chosen))
        axis = 0 if objective == "span" else 1
        each, counts = loss.reshape(shape).sum(axis), (targets != IGNORE_INDEX).reshape(shape).sum(axis)
        for i, value, count in zip(chosen, each.tolist(), counts.tolist(), strict=True):
            nats[i], labels[i] = value, count
    return nats, labels
