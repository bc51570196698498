"""One window of training: yields events, and leaves a checkpoint from which the next window resumes.

On one CPU, with the same number of threads, it resumes bit for bit; GPU kernels are not deterministic.
"""

import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress

import torch
import transformers
from datasets import Dataset, load_from_disk
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tuner.data.batches import Batches
from tuner.errors import panics_as_errors
from tuner.evaluation.answers import ANSWERS, evaluate
from tuner.evaluation.results import ROWS
from tuner.evaluation.verdict import needs_scoring
from tuner.heartbeat import with_heartbeat
from tuner.inference.variants import LoadedVariants, trained_variants
from tuner.methods import attach
from tuner.methods.files import write_template
from tuner.methods.registry import METHODS, resolve
from tuner.models.device import device_type
from tuner.models.fetch import base_of
from tuner.models.load import choose_threads, is_loaded, shared_base
from tuner.models.shape import load_tokenizer, shape_of
from tuner.planning import start_from
from tuner.runs import Run
from tuner.training import checkpoint, ending, energy, failures, tracking, trainer
from tuner.training.base_state import snapshot
from tuner.training.clock import MARGIN, PACE_STEPS, Clock, StopSignal
from tuner.training.launch import ensure_one_process
from tuner.training.micro_batches import MicroBatch, release_memory
from tuner.training.upkeep import Best, Checkpoints, HeldoutLoss, Measured

RECENT_STEPS = 20  # that tokens per second are averaged over
# Of the loss in float16, which begins at 2 ** 16: below it, what overflows is not owed to the scale.
LEAST_SCALE = 2.0**-16


def train(run: Run, window: float | None = None, opened: float | None = None) -> Iterator[dict]:
    """Train until the budget is spent or a stop is requested, then score; yields events, at least one a second.

    `window` is the number of seconds granted since `opened` (time.monotonic(), by default now): the device is left
    before they are over, and the next call resumes. Closing the generator stops the run after its current step and
    keeps what it learned. Raises TunerError if the run can't continue.
    """
    ensure_one_process()
    opened = time.monotonic() if opened is None else opened
    for event in with_heartbeat(lambda put: _train_and_score(run, window, opened, put), run.stop):
        yield event or {"event": "heartbeat"}


def _train_and_score(run: Run, seconds: float | None, opened: float, put: Callable[[dict], None]) -> None:
    with run.training(), tracking.tracked(run, put) as put:
        window = Window(run, energy.metered(lambda event: put(run.append(event))), seconds, opened)
        loaded = None
        try:
            with panics_as_errors():
                loaded = None if run.is_trained else window.train()
                if run.is_trained and needs_scoring(run.read_json("evaluation.json")):
                    stop = StopSignal(run, None if seconds is None else opened + seconds - max(MARGIN, 0.05 * seconds))
                    for event in evaluate(run, loaded, stop):
                        put(event)
        except Exception as error:
            raise failures.explain(error, run) from error
        finally:
            loaded = None  # an error's traceback keeps this frame
            window.leave()


class Window(TrainerCallback):
    """One window: the model, its optimizer and the clock. Reports through `emit`, and ends the trainer in time."""

    def __init__(self, run: Run, emit: Callable[[dict], None], window: float | None, opened: float):
        self.run, self.emit, self.window, self.opened = run, emit, window, opened
        self.recipe, self.plan = run.recipe, run.plan
        self.settings = self.plan["settings"]
        self.model = self.trainer = self.restore_base = None
        self.is_warm = False  # whether the base was loaded before this window
        self.latest: deque[tuple[int, float]] = deque(maxlen=RECENT_STEPS)  # tokens and seconds of a step

    def train(self) -> LoadedVariants:
        """Train to the end of the window and save the adapter; returns the models, still on the device."""
        if device_type() == "cuda":
            torch.cuda.reset_peak_memory_stats()  # a warm worker has trained other runs
        self.base = base_of(self.run)
        self._build(load_from_disk(str(self.run.data / "train")))
        self._restore()
        if self.heldout.every != 0 and not self.step:
            self._measure_heldout_loss()
        self.last = self.checkpoints.saved_at = time.monotonic()
        self.clock.begin()
        self._reserve_time_to_leave()
        self.reason = self._time_to_leave()
        if not self.reason:
            self.trainer.train()
        did_nothing = self.reason == "window" and self.batches_seen == self.first_batch
        if did_nothing or (self.reason == "clock" and self.step == 0):
            ended = ("budget", self.recipe.budget.seconds) if self.reason == "clock" else ("window", self.window)
            raise failures.too_short(*ended, self.start_up)
        self._finish()
        return trained_variants(self.run, self.base, self.trainer.processing_class, self.model)

    def leave(self) -> None:
        """Restore the shared base, and hold nothing else."""
        if self.model is not None:
            attach.detach(self.model)
            self.restore_base()
        self.model = self.trainer = self.restore_base = None
        with suppress(RuntimeError):  # a lost GPU fails here once more, and must not hide why it was lost
            release_memory()

    def _build(self, rows: Dataset) -> None:
        method, shape = METHODS[self.recipe.method.name], shape_of(self.base)
        self.is_warm = is_loaded(self.base)
        base = shared_base(self.base)
        choose_threads(self.base)
        self.restore_base = snapshot(base)
        # Seeded only now: loading the base draws random numbers, but the base may be loaded already.
        transformers.set_seed(self.recipe.seed)
        self.model = attach.attach(base, method.configs(resolve(self.recipe, shape, self.base.row, self.settings)))
        start_from.begin(self.run, self.model)
        batches = Batches([len(ids) for ids in rows["input_ids"]], self.settings["batch_size"], self.recipe.seed)
        # Runs of the first version counted their steps once, after the first few, and did not record where.
        marks = [(e.get("at", PACE_STEPS), e["steps"]) for e in self.run.events() if e["event"] == "schedule"]
        self.clock = Clock(
            lambda step: batches.sizes(step + self.skipped),
            warmup=self.recipe.training.warmup_steps,
            steps=self.plan["steps"],
            seconds=self.recipe.budget.seconds,
            window=self.window,
            opened=self.opened,
            marks=marks,
        )
        self.first = self.skipped = 0
        tokenizer, task = load_tokenizer(self.base.folder), self.base.row
        self.micro_batch = MicroBatch(self.run, self.emit)
        self.trainer = trainer.build(
            self.model, tokenizer, rows, self.recipe, task, self.settings, self._rate, self, self.micro_batch
        )
        self.trainer.batches = batches
        self.trainer.schedule = trainer.schedule_of(method.schedule, self.model)

    def _restore(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        counters = checkpoint.load(self.run, self.model, self.trainer.optimizer, self.trainer.schedule) or {}
        self.step = self.first = counters.get("step", 0)
        self.skipped = counters.get("skipped", 0)
        self.first_batch = self.trainer.batches.start = self.batches_seen
        if "loss_scale" in counters:
            self.trainer.accelerator.scaler.load_state_dict(counters["loss_scale"])
        self.tokens, self.random = counters.get("tokens", 0), counters.get("random")
        self.clock.spent = counters.get("seconds", 0.0)
        self.clock.paces.extend(map(tuple, counters.get("paces", [])))
        padding = self.trainer.processing_class.pad_token_id or 0
        self.heldout = self.clock.heldout = HeldoutLoss(self.run, self.base, padding, counters, self.micro_batch)
        self.best = Best(self.run, counters.get("best"))
        self.checkpoints = Checkpoints(self.run)
        self.start_up = round(time.monotonic() - self.opened, 3)
        start = {"step": self.step, "steps": self.clock.steps, "device": device_name(), "start_up": self.start_up}
        start["threads"] = torch.get_num_threads()  # which decide in what order a CPU adds
        self.emit({"event": "start", **start})
        self.micro_batch.begin(counters.get("micro_batch"), self.trainer.optimizer)

    def _rate(self, step: int) -> float:
        """The learning rate's share of its peak at a step of this window."""
        step += self.first
        # With a budget in seconds, the rate may begin to fall before the warm-up is over.
        warmed = min(1.0, (step + 1) / (self.clock.warmup + 1))
        return warmed * trainer.decay(self.recipe.training.scheduler, self.clock.rate_progress(step))

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Correct the first learning rate, which was computed before the checkpoint's step was known."""
        for group in self.trainer.optimizer.param_groups:
            group["lr"] = self.settings["learning_rate"] * self._rate(0)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Restore the random state before a resumed window's first step."""
        if self.random:
            # Not earlier: building the trainer and its data loader draws random numbers, which an uninterrupted run
            # does not do here.
            checkpoint.restore_random_state(self.random)
            self.random = None

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        """Let the method's schedule act after each update."""
        if self.trainer.schedule and not self.trainer.accelerator.optimizer_step_was_skipped:
            self.trainer.schedule.stepped(self.step + 1, self.clock.rate_progress(self.step + 1))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict | None = None,
        **kwargs,
    ) -> None:
        """Count and report a step. Raises TunerError if its loss is not a finite number."""
        if "loss" not in logs:
            return
        is_skipped = self.trainer.accelerator.optimizer_step_was_skipped
        if not self.step and not math.isfinite(logs["loss"]):
            raise failures.no_loss(self.base, self.settings["dtype"])
        if not torch.isfinite(torch.tensor([logs["loss"], 0.0 if is_skipped else logs["grad_norm"]])).all():
            raise failures.not_finite("loss", self.step + 1, self.settings)
        if is_skipped:
            self._skip(control)
            return
        now = time.monotonic()
        self.step += 1
        self.tokens += self.trainer.batch_tokens
        self.latest.append((self.trainer.batch_tokens, now - self.last))
        mark = self.clock.record_step(self.step, self.trainer.padded_tokens, now - self.last)
        if mark:
            self.emit({"event": "schedule", "at": mark[0], "steps": mark[1]})
        self.best.learned(logs["loss"])
        self._report(logs)
        self._between_steps(control)

    def _skip(self, control: TrainerControl) -> None:
        """Count a batch whose gradients overflowed in float16: nothing was learned, and the loss is scaled down."""
        scale = self.trainer.accelerator.scaler.get_scale()
        if scale < LEAST_SCALE:
            raise failures.not_finite("gradient", self.step + 1, self.settings)
        self.skipped += 1
        self.emit({"event": "skipped", "step": self.step, "loss_scale": scale})
        self._between_steps(control, is_skipped=True)

    def _report(self, logs: dict) -> None:
        tokens, seconds = zip(*self.latest)
        self.emit(
            {
                "event": "step",
                "step": self.step,
                "steps": self.clock.steps,
                "epoch": round(self.batches_seen / self.plan["steps_per_epoch"], 3),
                "loss": round(logs["loss"], 5),
                # That this step used; the Trainer's own figure is wrong at the first step after resuming.
                "learning_rate": self.settings["learning_rate"] * self._rate(self.step - 1 - self.first),
                "grad_norm": round(float(logs["grad_norm"]), 5),
                "tokens": self.tokens,
                "tokens_per_second": round(sum(tokens) / sum(seconds), 1),
                "seconds": round(self.clock.seconds, 3),
                "seconds_to_go": round(self.clock.seconds_left(self.step), 1),
            }
        )

    @property
    def batches_seen(self) -> int:
        """Batches of the whole run so far, those of skipped steps included."""
        return self.step + self.skipped

    def _between_steps(self, control: TrainerControl, *, is_skipped: bool = False) -> None:
        self.reason = "stopped" if self.run.is_asked_to_stop else self._time_to_leave()
        is_last = self.reason in ("steps", "clock")
        if not is_skipped and self.heldout.is_due(self.step, self.clock.seconds, is_last=is_last):
            self._measure_heldout_loss()
            self.reason = self.reason or self._time_to_leave()
        if self.reason or self.checkpoints.is_due():
            saved = self.checkpoints.save(self.step, self._counters(), self.trainer, self.best)
            self._reserve_time_to_leave()
            self.emit(saved)
            self.reason = self.reason or self._time_to_leave()
        if self.reason:
            control.should_training_stop = True
        # The next step's time starts here.
        self.last = time.monotonic()

    def _time_to_leave(self) -> str | None:
        """Why the window ends here: `patience`, or what the clock says; None to go on."""
        if self.best.is_over and self.step != self.clock.steps:
            return "patience"
        return self.clock.is_time_to_leave(self.step)

    def _counters(self) -> dict:
        """What a checkpoint keeps beside tensors."""
        scaler = self.trainer.accelerator.scaler
        return {
            "seconds": self.clock.seconds,
            "tokens": self.tokens,
            "heldout_cost": self.heldout.seconds,
            "measured_at": self.heldout.measured_at,
            "best": self.best.state,
            "paces": list(self.clock.paces)[-8:],
            "micro_batch": self.micro_batch.rows,
        } | ({"skipped": self.skipped, "loss_scale": scaler.state_dict()} if scaler else {})

    def _measure_heldout_loss(self) -> None:
        measured = self._heldout_loss()
        if self.best.measured(self.step, measured, self.model, self.trainer.schedule):
            self.emit({"event": "best", "step": self.step, "loss": measured.loss})
        if overfitting := self.best.overfitting():
            self.emit(overfitting)

    def _heldout_loss(self) -> Measured:
        measured = self.heldout.measure(self.model)
        if not self.step and not math.isfinite(measured.loss):
            raise failures.no_loss(self.base, self.settings["dtype"])
        self.heldout.measured_at = self.clock.seconds
        self.emit({"event": "heldout", "step": self.step, "loss": measured.loss})
        return measured

    def _reserve_time_to_leave(self) -> None:
        # The adapter is a third of a checkpoint.
        self.clock.leaving = 1.5 * self.checkpoints.seconds + self.heldout.seconds

    def _finish(self) -> None:
        # Whatever was made from an earlier adapter of this run is out of date now.
        shutil.rmtree(self.run.merged, ignore_errors=True)
        for name in ("merge_check.json", "evaluation.json", ROWS, ANSWERS):
            (self.run.path / name).unlink(missing_ok=True)
        kept = self.best.end_with(self.step, self.reason, self.model, self.trainer.schedule, self._heldout_loss)
        with self.run.folder("adapter") as folder:
            # A path on this machine means nothing to whoever loads the adapter.
            attach.save(self.model, folder, self.base.model.name)
            self.trainer.processing_class.save_pretrained(folder)
            write_template(folder, self.run.plan)
        self.model.eval()
        # Parts of a batch are slower, and the next run may not need them.
        if self.micro_batch.rows == self.micro_batch.batch:
            ending.remember_pace(self.run, self.clock, None if self.is_warm else self.start_up)
        self.emit(
            {
                "event": "end",
                "reason": self.reason,
                "step": self.step,
                "seconds": round(self.clock.seconds, 3),
                "in_window": round(time.monotonic() - self.opened, 3),
                "in_steps": round(self.clock.in_steps, 3),
                # Of this window, in bytes, to compare with the plan's estimate; not measured on a CPU.
                "peak_memory": torch.cuda.max_memory_allocated() if device_type() == "cuda" else None,
                "seconds_per_step": round(self.clock.in_steps / max(1, self.clock.steps_done), 4),
                **ending.facts(self.best, self.clock, self.step, self.reason, kept),
            }
        )
        if self.run.is_trained:
            checkpoint.forget_best(self.run)


def device_name() -> str:
    """The device's product name, or `CPU`."""
    return torch.cuda.get_device_name() if device_type() == "cuda" else "CPU"
