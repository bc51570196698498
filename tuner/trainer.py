"""TRL's SFTTrainer as a window drives it: our row order, our learning rate, and a loss over the trained tokens only.

Row order and learning rate are functions of the step alone, so that a resumed run needs no state for them.
"""

import random
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader
from trl import SFTConfig, SFTTrainer

from tuner import models
from tuner.losses import completion_loss
from tuner.recipe import Recipe

ENDLESS = 10**7  # steps
GROUP = 10  # batches that are sorted by length together


class CompletionTrainer(SFTTrainer):
    """SFTTrainer with our row order, and logits only where a token is trained: no entropy, accuracy or flop count."""

    def get_train_dataloader(self) -> DataLoader:
        loader = DataLoader(self.train_dataset, batch_sampler=self.batches, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.batch_tokens, self.padded_tokens = int(inputs["attention_mask"].sum()), inputs["input_ids"].numel()
        return completion_loss(model, inputs)

    def floating_point_ops(self, inputs) -> int:
        return 0


def build(model, tokenizer, rows, recipe: Recipe, settings: dict, rate, callback) -> CompletionTrainer:
    """The trainer of a PEFT model on tokenised rows; `rate(step)` is the learning rate's share of its peak."""
    import transformers

    # In bfloat16, TRL's choice for a quantised base, Adam loses small steps and a resumed run would differ from a
    # whole one.
    start = {name: p.detach().float() for name, p in model.named_parameters() if p.requires_grad}
    arguments = SFTConfig(
        output_dir="unused",  # nothing is saved by the Trainer
        per_device_train_batch_size=settings["batch_size"],
        max_grad_norm=recipe.training.max_grad_norm,
        max_steps=ENDLESS,  # the clock ends it
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=False,
        bf16=settings["dtype"] == "bfloat16",
        fp16=settings["dtype"] == "float16",
        use_cpu=models.device() == "cpu",
        seed=recipe.seed,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable, lr=settings["learning_rate"], weight_decay=recipe.training.weight_decay, fused=True
    )
    trainer = CompletionTrainer(
        model,
        arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)),
        callbacks=[callback],
    )
    for name, p in model.named_parameters():
        if p.requires_grad:
            p.data = start[name]
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


class Batches:
    """Row numbers of each step from `start` on, without end: every epoch shuffled anew, rows of like length together.

    A function of the seed and the step alone.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int, start: int = 0):
        self.lengths, self.batch_size, self.seed, self.start = lengths, batch_size, seed, start

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Iterator[list[int]]:
        return self.since(self.start)

    def since(self, step: int) -> Iterator[list[int]]:
        per_epoch = -(-len(self.lengths) // self.batch_size)
        epoch, skip = divmod(step, per_epoch)
        while True:
            yield from self.epoch(epoch)[skip:]
            epoch, skip = epoch + 1, 0

    def sizes(self, step: int) -> Iterator[int]:
        """Padded tokens of each step from `step` on."""
        for rows in self.since(step):
            yield max(self.lengths[row] for row in rows) * len(rows)

    def epoch(self, epoch: int) -> list[list[int]]:
        shuffle = random.Random(f"{self.seed}/{epoch}").shuffle
        rows = list(range(len(self.lengths)))
        shuffle(rows)
        size = self.batch_size * GROUP
        groups = [sorted(rows[i : i + size], key=self.lengths.__getitem__) for i in range(0, len(rows), size)]
        batches = [g[i : i + self.batch_size] for g in groups for i in range(0, len(g), self.batch_size)]
        shuffle(batches)
        return batches


def decay(scheduler: str, progress: float) -> float:
    """The share of the peak rate after the warm-up, at `progress` from 0 to 1."""
    if scheduler == "constant":
        return 1.0
    if scheduler == "cosine":
        return 0.5 * (1 + torch.cos(torch.tensor(torch.pi * min(progress, 1.0))).item())
    return max(0.0, 1.0 - progress)
