"""Cross-entropy over the tokens with a label, with logits made only in the columns that hold one."""

import torch


def completion_loss(model, inputs: dict, reduction: str = "mean") -> torch.Tensor:
    """Cross-entropy in nats of a right-padded batch (input_ids, attention_mask, labels: rows x columns)."""
    labels = inputs["labels"][:, 1:]
    columns = (labels != -100).any(0).nonzero().flatten()
    logits = model(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], logits_to_keep=columns, use_cache=False
    ).logits
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels[:, columns].flatten(), reduction=reduction
    )


@torch.inference_mode()
def heldout_loss(model, rows, batch_size: int) -> float:
    """Mean cross-entropy over the trained tokens of `rows` (input_ids, labels), in nats a token."""
    total, count = 0.0, 0
    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    for start in range(0, len(order), batch_size):
        batch = [rows[i] for i in order[start : start + batch_size]]
        longest = max(len(r["input_ids"]) for r in batch)
        ids, labels, mask = (torch.tensor(x, device=device) for x in zip(*(_padded(r, longest) for r in batch)))
        inputs = {"input_ids": ids, "labels": labels, "attention_mask": mask}
        total += completion_loss(model, inputs, "sum").item()
        count += int((labels[:, 1:] != -100).sum())
    return total / max(1, count)


def _padded(row: dict, longest: int) -> tuple[list[int], list[int], list[int]]:
    n = len(row["input_ids"])
    gap = longest - n
    return row["input_ids"] + [0] * gap, row["labels"] + [-100] * gap, [1] * n + [0] * gap
