"""TRL's SFTTrainer, or transformers' own Trainer, as a window drives it: our row order, our learning rate, and a loss
over what has a label only.

Row order and learning rate are functions of the step alone, so that a resumed run needs no state for them.
"""

from functools import partial

import torch
import transformers
from torch.utils.data import DataLoader

from tuner.data.batches import ENDLESS
from tuner.methods import attach
from tuner.methods.schedules import SCHEDULES
from tuner.models import losses
from tuner.models.device import device_type
from tuner.recipe import Recipe
from tuner.tasks import TaskRow


class Driven:
    """What we change in either trainer."""

    objective = "next_token"
    schedule = None  # of the method, where it has one

    def get_train_dataloader(self) -> DataLoader:
        loader = DataLoader(self.train_dataset, batch_sampler=self.batches, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.batch_tokens, self.padded_tokens = int(inputs["attention_mask"].sum()), inputs["input_ids"].numel()
        loss = losses.mean_loss(self.objective, model, inputs)
        return loss if self.schedule is None else loss + self.schedule.penalty()

    def floating_point_ops(self, inputs) -> int:
        return 0


def build(model, tokenizer, rows, recipe: Recipe, task: TaskRow, settings: dict, rate, callback):
    """The trainer of an adapted model on tokenised rows; `rate(step)` is the learning rate's share of its peak."""
    kind, config, extra = _classes(task)
    # In bfloat16, TRL's choice for a quantised base, Adam loses small steps and a resumed run would differ from a
    # whole one.
    start = attach.start_values(model)
    arguments = config(
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
        use_cpu=device_type() == "cpu",
        seed=recipe.seed,
        remove_unused_columns=False,
        **extra,
    )
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable, lr=settings["learning_rate"], weight_decay=recipe.training.weight_decay, fused=True
    )
    trainer = kind(
        model=model,
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=partial(losses.collate, padding=tokenizer.pad_token_id or 0),
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)),
        callbacks=[callback],
    )
    trainer.objective = task.objective
    for name, p in model.named_parameters():
        if p.requires_grad:
            p.data = start[name]
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _classes(task: TaskRow):
    """The trainer's class, that of its arguments, and what only these are told."""
    if task.trainer == "trl.SFTTrainer":
        from trl import SFTConfig, SFTTrainer

        told = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
        return type("Trainer", (Driven, SFTTrainer), {}), SFTConfig, told
    return type("Trainer", (Driven, transformers.Trainer), {}), transformers.TrainingArguments, {}


def schedule_of(name: str | None, model):
    """The method's schedule for this model, or None."""
    return SCHEDULES[name](model) if name else None


def decay(scheduler: str, progress: float) -> float:
    """The share of the peak rate after the warm-up, at `progress` from 0 to 1."""
    if scheduler == "constant":
        return 1.0
    if scheduler == "cosine":
        return 0.5 * (1 + torch.cos(torch.tensor(torch.pi * min(progress, 1.0))).item())
    return max(0.0, 1.0 - progress)
