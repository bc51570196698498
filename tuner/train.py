"""One window of training: yields events, and leaves a checkpoint from which the next window goes on bit for bit.

The model is trained by TRL's SFTTrainer on the rows that `prepare` tokenised. Ours are the row order, the learning-
rate schedule (both are functions of the step alone, so that a resumed run needs no state for them) and the loss over
the trained tokens only.
"""

import logging
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Iterator
from statistics import median

import torch
from datasets import load_from_disk
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from tuner import checkpoint, evaluate, generate, hub_errors, models
from tuner.errors import TunerError
from tuner.methods import METHODS
from tuner.runs import Run

log = logging.getLogger(__name__)

PACE_STEPS = 8  # steps measured before a budget in seconds is turned into a number of steps
ENDLESS = 10**7  # steps, until that is done
GROUP = 10  # batches that are sorted by length together
HEARTBEAT = 1.0  # seconds


def train(run: Run) -> Iterator[dict]:
    """Train until the budget is spent or a stop is asked for, then score it; yields events, and a heartbeat a second.

    Closing the generator stops the run after its step and keeps what was learned. Raises TunerError for what a person
    can mend.
    """
    events: queue.SimpleQueue = queue.SimpleQueue()
    thread = threading.Thread(target=_work, args=(run, events), name=f"train-{run.id}", daemon=True)
    thread.start()
    try:
        while True:
            try:
                event = events.get(timeout=HEARTBEAT)
            except queue.Empty:
                yield {"event": "heartbeat"}
                continue
            if event is None:
                return
            if isinstance(event, TunerError):
                raise event
            yield event
    finally:
        if thread.is_alive():
            run.stop()
        thread.join()


def _work(run: Run, events: queue.SimpleQueue) -> None:
    try:
        with run.training():
            loaded = None
            if run.ending != "finished":
                window = Window(run, lambda event: events.put(run.append(event)))
                loaded = window.train()
            if run.ending == "finished" and run.read_json("evaluation.json") is None:
                for event in evaluate.evaluate(run, loaded):
                    events.put(event)
    except Exception as error:
        known = error if isinstance(error, TunerError) else hub_errors.explain(error, f"run {run.id}")
        if known is None:
            log.exception("run %s broke", run.id)
            known = TunerError(
                f"Run {run.id} broke in a way we did not foresee. What it learned is kept: start it again to go on."
            )
        _write_down(run, known)
        events.put(known)
    finally:
        events.put(None)


def _write_down(run: Run, error: TunerError) -> None:
    try:
        run.append({"event": "error", "problems": list(error.problems)})
    except OSError:
        log.exception("run %s: its error can't be written down", run.id)


class Window(TrainerCallback):
    """One window: the model, its optimizer and the clock, reporting through `emit`."""

    def __init__(self, run: Run, emit):
        self.run, self.emit = run, emit
        self.recipe, self.plan = run.recipe, run.plan
        self.settings = self.plan["settings"]
        self.durations: deque[float] = deque(maxlen=20)  # seconds a step
        self.tokens_seen: deque[int] = deque(maxlen=20)

    def train(self) -> generate.Loaded:
        """Train to the window's end and save the adapter; returns the models, still on the device."""
        folder = models.fetch(self.recipe.model.model_copy(update={"revision": self.plan["revision"]}))
        rows = load_from_disk(str(self.run.data / "train"))
        self.heldout = load_from_disk(str(self.run.data / "heldout")).select(range(min(64, self.plan["heldout_rows"])))
        self.trainer = self._trainer(folder, rows)
        counters = checkpoint.load(self.run, self.trainer.model, self.trainer.optimizer) or {}
        self.step = self.first = counters.get("step", 0)
        self.steps = counters.get("steps", self.plan["steps"])
        self.seconds_before, self.tokens = counters.get("seconds", 0.0), counters.get("tokens", 0)
        self.random = counters.get("random")
        self.trainer.batches.start = self.step
        self.trainer.args.max_steps = (self.steps or ENDLESS) - self.step
        self.emit({"event": "start", "step": self.step, "steps": self.steps, "device": _device_name()})
        if self.recipe.evaluation.loss_every and not self.step:
            self._report_heldout()
        self.began = self.last = time.monotonic()
        self.saved = self.began
        self.reason = "steps"
        if self.trainer.args.max_steps > 0:
            self.trainer.train()
        self._finish()
        return generate.Loaded(self.trainer.processing_class, self.trainer.model.eval())

    def _trainer(self, folder, rows) -> "CompletionTrainer":
        import transformers
        from peft import get_peft_model

        transformers.set_seed(self.recipe.seed)
        base = models.load(folder, self.recipe.model)
        model = get_peft_model(base, METHODS[self.recipe.method.name].config(self.recipe))
        # In bfloat16, TRL's choice for a quantised base, Adam loses small steps and a resumed run would differ from a
        # whole one.
        start = {name: p.detach().float() for name, p in model.named_parameters() if p.requires_grad}
        training = self.recipe.training
        arguments = SFTConfig(
            output_dir=str(self.run.path),
            per_device_train_batch_size=self.settings["batch_size"],
            max_grad_norm=training.max_grad_norm,
            max_steps=1,  # set when the checkpoint has been read
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            gradient_checkpointing=False,
            bf16=self.settings["dtype"] == "bfloat16",
            fp16=self.settings["dtype"] == "float16",
            use_cpu=models.device() == "cpu",
            seed=self.recipe.seed,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        batches = Batches([len(ids) for ids in rows["input_ids"]], self.settings["batch_size"], self.recipe.seed)
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trainable, lr=self.settings["learning_rate"], weight_decay=training.weight_decay, fused=True
        )
        trainer = CompletionTrainer(
            model,
            arguments,
            train_dataset=rows,
            processing_class=models.load_tokenizer(folder),
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)),
            callbacks=[self],
        )
        trainer.batches = batches
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.data = start[name]
        trainer.remove_callback(transformers.PrinterCallback)
        return trainer

    def _rate(self, step: int) -> float:
        """The learning rate's share of its peak at a step of this window."""
        step, steps = step + getattr(self, "first", 0), getattr(self, "steps", None)
        warmup = min(self.recipe.training.warmup_steps, (steps or ENDLESS) // 10)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return decay(
            self.recipe.training.scheduler, 0.0 if steps is None else (step - warmup) / max(1, steps - warmup)
        )

    def on_train_begin(self, args, state, control, **kwargs):
        # The scheduler computed its first rate before the checkpoint's step was known.
        for group in self.trainer.optimizer.param_groups:
            group["lr"] = self.settings["learning_rate"] * self._rate(0)

    def on_step_begin(self, args, state, control, **kwargs):
        if self.random:
            # Only now: making the data loader and the trainer drew random numbers that the whole run did not draw
            # here.
            torch.set_rng_state(self.random["cpu"])
            if "cuda" in self.random and torch.cuda.is_available():
                torch.cuda.set_rng_state(self.random["cuda"])
            self.random = None

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in logs:
            return
        if not torch.isfinite(torch.tensor([logs["loss"], logs["grad_norm"]])).all():
            raise TunerError(
                f"The loss stopped being a number at step {self.step + 1}. The learning rate "
                f"{self.settings['learning_rate']:g} is too high for this model: try a third of it."
            )
        now = time.monotonic()
        self.step += 1
        self.durations.append(now - self.last)
        self.tokens_seen.append(self.trainer.batch_tokens)
        self.last, self.tokens = now, self.tokens + self.trainer.batch_tokens
        if self.steps is None and len(self.durations) == PACE_STEPS:
            self._fix_steps()
        self._report(logs)
        self._between_steps(control)

    def _fix_steps(self) -> None:
        pace = median(self.durations)
        left = (
            max(0.0, self.recipe.budget.seconds - self.seconds) * 0.97
        )  # a little for held-out losses and checkpoints
        self.steps = self.step + max(1, int(left / pace))
        self.emit({"event": "schedule", "steps": self.steps, "seconds_per_step": round(pace, 4)})

    def _report(self, logs: dict) -> None:
        pace = sum(self.durations) / len(self.durations)
        budget = self.recipe.budget.seconds
        left = (self.steps - self.step) * pace if self.steps else budget - self.seconds
        self.emit(
            {
                "event": "step",
                "step": self.step,
                "steps": self.steps,
                "epoch": round(self.step / self.plan["steps_per_epoch"], 3),
                "loss": round(logs["loss"], 5),
                # Of the step that was taken; the Trainer's own figure is wrong at the first step after a resume.
                "learning_rate": self.settings["learning_rate"] * self._rate(self.step - 1 - self.first),
                "grad_norm": round(float(logs["grad_norm"]), 5),
                "tokens": self.tokens,
                "tokens_per_second": round(sum(self.tokens_seen) / sum(self.durations), 1),
                "seconds": round(self.seconds, 3),
                "seconds_to_go": round(max(0.0, left), 1),
            }
        )

    def _between_steps(self, control) -> None:
        every = self.recipe.evaluation.loss_every
        if self.run.is_asked_to_stop:
            self.reason = "stopped"
        elif self.recipe.budget.seconds and self.seconds >= self.recipe.budget.seconds:
            self.reason = "clock"
        over = self.step == self.steps or self.reason != "steps"
        if every and (self.step % every == 0 or over):
            self._report_heldout()
        if over or time.monotonic() - self.saved >= self.recipe.training.checkpoint_seconds:
            self._save()
        if over:
            control.should_training_stop = True
        # Not counted as the next step's time.
        self.last = time.monotonic()

    def _report_heldout(self) -> None:
        model = self.trainer.model
        model.eval()
        loss = evaluate.heldout_loss(model, self.heldout, self.settings["batch_size"])
        model.train()
        self.emit({"event": "heldout", "step": self.step, "loss": round(loss, 5)})

    def _save(self) -> None:
        counters = {"steps": self.steps, "seconds": self.seconds, "tokens": self.tokens}
        checkpoint.save(self.run, self.step, counters, self.trainer.model, self.trainer.optimizer)
        self.saved = time.monotonic()
        self.emit({"event": "checkpoint", "step": self.step})

    def _finish(self) -> None:
        with self.run.folder("adapter") as folder:
            model = self.trainer.model
            # A local path means nothing to whoever loads the adapter.
            model.peft_config["default"].base_model_name_or_path = self.recipe.model.name
            # PEFT would ask the Hub whether the base's vocabulary grew; ours never does.
            model.save_pretrained(folder, save_embedding_layers=False)
            self.trainer.processing_class.save_pretrained(folder)
            (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card; ours is written for the push
        self.emit({"event": "end", "reason": self.reason, "step": self.step, "seconds": round(self.seconds, 3)})

    @property
    def seconds(self) -> float:
        """Seconds of training so far, this window's and those before it."""
        return self.seconds_before + time.monotonic() - self.began


class CompletionTrainer(SFTTrainer):
    """SFTTrainer with our row order, and logits only where a token is trained: no entropy, accuracy or flop count."""

    def get_train_dataloader(self) -> DataLoader:
        loader = DataLoader(self.train_dataset, batch_sampler=self.batches, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.batch_tokens = int(inputs["attention_mask"].sum())
        return completion_loss(model, inputs)

    def floating_point_ops(self, inputs) -> int:
        return 0


class Batches:
    """Row numbers of each step from `start` on, without end: every epoch shuffled anew, rows of like length together.

    A function of the seed and the step alone.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int, start: int = 0):
        self.lengths, self.batch_size, self.seed, self.start = lengths, batch_size, seed, start

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Iterator[list[int]]:
        per_epoch = -(-len(self.lengths) // self.batch_size)
        epoch, skip = divmod(self.start, per_epoch)
        while True:
            yield from self.epoch(epoch)[skip:]
            epoch, skip = epoch + 1, 0

    def epoch(self, epoch: int) -> list[list[int]]:
        shuffle = random.Random(f"{self.seed}/{epoch}").shuffle
        rows = list(range(len(self.lengths)))
        shuffle(rows)
        size = self.batch_size * GROUP
        groups = [sorted(rows[i : i + size], key=self.lengths.__getitem__) for i in range(0, len(rows), size)]
        batches = [g[i : i + self.batch_size] for g in groups for i in range(0, len(g), self.batch_size)]
        shuffle(batches)
        return batches


def completion_loss(model, inputs: dict) -> torch.Tensor:
    """Mean cross-entropy over the tokens with a label; logits are made only in the columns that hold one."""
    labels = inputs["labels"][:, 1:]
    columns = (labels != -100).any(0).nonzero().flatten()
    logits = model(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], logits_to_keep=columns, use_cache=False
    ).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels[:, columns].flatten())


def decay(scheduler: str, progress: float) -> float:
    """The share of the peak rate after the warm-up, at `progress` from 0 to 1."""
    if scheduler == "constant":
        return 1.0
    if scheduler == "cosine":
        return 0.5 * (1 + torch.cos(torch.tensor(torch.pi * min(progress, 1.0))).item())
    return max(0.0, 1.0 - progress)


def _device_name() -> str:
    return torch.cuda.get_device_name() if models.device() == "cuda" else "CPU"
