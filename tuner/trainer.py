"""TRL's SFTTrainer as a window drives it: our row order, our learning rate, and a loss over the trained tokens only.

Row order and learning rate are functions of the step alone, so that a resumed run needs no state for them.
"""

import torch
from torch.utils.data import DataLoader
from trl import SFTConfig, SFTTrainer

from tuner import models
from tuner.batches import ENDLESS
from tuner.losses import completion_loss
from tuner.recipe import Recipe


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


def decay(scheduler: str, progress: float) -> float:
    """The share of the peak rate after the warm-up, at `progress` from 0 to 1."""
    if scheduler == "constant":
        return 1.0
    if scheduler == "cosine":
        return 0.5 * (1 + torch.cos(torch.tensor(torch.pi * min(progress, 1.0))).item())
    return max(0.0, 1.0 - progress)
