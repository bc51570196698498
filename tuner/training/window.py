"""One window of training: yields events, and leaves a checkpoint from which the next window goes on bit for bit."""

import logging
import shutil
import time
from collections import deque
from collections.abc import Iterator

import torch
from datasets import load_from_disk
from transformers import TrainerCallback

from tuner import hub_errors, runs
from tuner.data.batches import Batches
from tuner.errors import TunerError
from tuner.evaluation.answers import ANSWERS, evaluate
from tuner.heartbeat import with_heartbeat
from tuner.inference import generate
from tuner.methods import attach
from tuner.methods.registry import METHODS, resolve
from tuner.models.device import autocast, device_type
from tuner.models.fetch import base_of
from tuner.models.load import forget_bases, shared_base
from tuner.models.losses import heldout_loss
from tuner.models.shape import load_tokenizer, shape_of
from tuner.planning.pace import PACES, pace_key, remember
from tuner.runs import Run
from tuner.training import checkpoint, trainer
from tuner.training.clock import MARGIN, PACE_STEPS, Clock

log = logging.getLogger(__name__)

HELDOUT_ROWS = 32  # of the held-out loss in mid-run; the evaluation at the end takes them all
SMALL_SHARE = 0.01  # of the time that held-out losses may take, and checkpoints
CHECKPOINT_SECONDS = 10  # between checkpoints, at least
WRITING = 50e6  # bytes a second that a checkpoint is taken to be written at before one was


class StopSignal:
    """When to leave: the run is asked to stop, or the granted seconds are over."""

    def __init__(self, run: Run, deadline: float | None):
        self.run, self.deadline = run, deadline

    @property
    def reason(self) -> str | None:
        """stopped, window, or None while there is time."""
        if self.run.is_asked_to_stop:
            return "stopped"
        return "window" if self.deadline is not None and time.monotonic() > self.deadline else None

    def is_set(self) -> bool:
        return self.reason is not None


def train(run: Run, window: float | None = None, opened: float | None = None) -> Iterator[dict]:
    """Train until the budget is spent or a stop is asked for, then score it; yields events, and a heartbeat a second.

    With `window` seconds, granted since `opened` (time.monotonic(); now if left out), the device is left before they
    are over, and the next call goes on. Closing the generator stops the run after its step and keeps what was learned.
    Raises TunerError for what a person can mend.
    """
    opened = time.monotonic() if opened is None else opened
    for event in with_heartbeat(lambda put: _work(run, window, opened, put), run.stop):
        yield event or {"event": "heartbeat"}


def _work(run: Run, window: float | None, opened: float, put) -> None:
    with run.training():
        one = Window(run, lambda event: put(run.append(event)), window, opened)
        try:
            loaded = None if run.is_trained else one.train()
            if run.is_trained and run.read_json("evaluation.json") is None:
                halt = StopSignal(run, None if window is None else opened + window - max(MARGIN, 0.05 * window))
                for event in evaluate(run, loaded, halt):
                    put(event)
        except Exception as error:
            known = _explain(error, run)
            _write_down(run, known)
            raise known from error
        finally:
            one.leave()


def _explain(error: Exception, run: Run) -> TunerError:
    if not isinstance(error, TunerError):
        forget_bases()  # a base may be left half changed, or the device full
    if isinstance(error, torch.OutOfMemoryError):
        return TunerError(
            f"The device ran out of memory in run {run.id}. What it learned is kept. Train a smaller base model, hold "
            "it in 4 bits, or take shorter rows or fewer rows a step."
        )
    known = error if isinstance(error, TunerError) else hub_errors.explain(error, f"run {run.id}")
    if known is None:
        log.exception("run %s broke", run.id, exc_info=error)
        known = TunerError(
            f"Run {run.id} broke in a way we did not foresee. What it learned is kept: start it again to go on."
        )
    return known


def _write_down(run: Run, error: TunerError) -> None:
    try:
        run.append({"event": "error", "problems": list(error.problems)})
    except OSError:
        log.exception("run %s: its error can't be written down", run.id)


class Window(TrainerCallback):
    """One window: the model, its optimizer and the clock, reporting through `emit`."""

    def __init__(self, run: Run, emit, window: float | None, opened: float):
        self.run, self.emit, self.window, self.opened = run, emit, window, opened
        self.recipe, self.plan = run.recipe, run.plan
        self.settings = self.plan["settings"]
        self.model = None
        self.latest: deque[tuple[int, float]] = deque(maxlen=20)  # tokens and seconds of a step

    def train(self) -> generate.Loaded:
        """Train to the window's end and save the adapter; returns the models, still on the device."""
        self.base = base_of(self.run)
        rows = load_from_disk(str(self.run.data / "train"))
        self.heldout = load_from_disk(str(self.run.data / "heldout"))
        self.heldout = self.heldout.select(range(min(HELDOUT_ROWS, self.plan["heldout_rows"])))
        self._build(rows)
        counters = checkpoint.load(self.run, self.model, self.trainer.optimizer, self.trainer.schedule) or {}
        self.step = self.first = self.trainer.batches.start = counters.get("step", 0)
        self.tokens, self.random = counters.get("tokens", 0), counters.get("random")
        self.clock.spent = counters.get("seconds", 0.0)
        self.clock.paces.extend(map(tuple, counters.get("paces", [])))
        self.heldout_cost = counters.get("heldout_cost", 0.0)
        self.save_cost = 12 * self.plan["trainable_parameters"] / WRITING
        self.start_up = round(time.monotonic() - self.opened, 3)
        self.emit(
            {
                "event": "start",
                "step": self.step,
                "steps": self.clock.steps,
                "device": device_name(),
                "start_up": self.start_up,
            }
        )
        if self.recipe.evaluation.loss_every and not self.step:
            self._report_heldout()
        self.last = self.heldout_at = self.saved_at = time.monotonic()
        self.clock.begin()
        self._keep_back()
        self.reason = self.clock.is_time_to_leave(self.step)
        if not self.reason:
            self.trainer.train()
        if self.step == 0 or (self.reason == "window" and self.step == self.first):
            what = "budget" if self.reason == "clock" else "window"
            seconds = self.recipe.budget.seconds if what == "budget" else self.window
            raise TunerError(
                f"The {what} of {seconds:g} seconds was over before one step was done: loading alone took "
                f"{self.start_up:.1f}. Take more seconds, a smaller base model, shorter rows or fewer rows a step."
            )
        self._finish()
        return generate.just_trained(self.run, self.base, self.trainer.processing_class, self.model)

    def leave(self) -> None:
        """Leave the shared base as it was found."""
        if self.model is not None:
            attach.detach(self.model)
            self.model = self.trainer = None

    def _build(self, rows) -> None:
        import transformers

        row, shape = METHODS[self.recipe.method.name], shape_of(self.base)
        base = shared_base(self.base)
        # After loading, which draws random numbers where a base is not loaded already.
        transformers.set_seed(self.recipe.seed)
        self.model = attach.attach(base, row.configs(resolve(self.recipe, shape, self.base.row)))
        lengths = [len(ids) for ids in rows["input_ids"]]
        batches = Batches(lengths, self.settings["batch_size"], self.recipe.seed)
        # The first version counted once, after the first steps, and did not say so.
        marks = [(e.get("at", PACE_STEPS), e["steps"]) for e in self.run.events() if e["event"] == "schedule"]
        self.clock = Clock(
            batches.sizes,
            warmup=self.recipe.training.warmup_steps,
            steps=self.plan["steps"],
            seconds=self.recipe.budget.seconds,
            window=self.window,
            opened=self.opened,
            marks=marks,
        )
        self.first = 0
        tokenizer = load_tokenizer(self.base.folder)
        task = self.base.row
        self.trainer = trainer.build(self.model, tokenizer, rows, self.recipe, task, self.settings, self._rate, self)
        self.trainer.batches = batches
        self.trainer.schedule = trainer.schedule_of(row.schedule, self.model)

    def _rate(self, step: int) -> float:
        """The learning rate's share of its peak at a step of this window."""
        step += self.first
        # A budget in seconds may begin to fall before its warm-up is over.
        warmed = min(1.0, (step + 1) / (self.clock.warmup + 1))
        return warmed * trainer.decay(self.recipe.training.scheduler, self.clock.rate_progress(step))

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

    def on_optimizer_step(self, args, state, control, **kwargs):
        if self.trainer.schedule:
            self.trainer.schedule.stepped(self.step + 1, self.clock.rate_progress(self.step + 1))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in logs:
            return
        # In float16 a step whose gradients overflow is skipped, and the loss scaled down for the next.
        told = [logs["loss"]] if self.settings["dtype"] == "float16" else [logs["loss"], logs["grad_norm"]]
        if not torch.isfinite(torch.tensor(told)).all():
            raise TunerError(
                f"The loss stopped being a number at step {self.step + 1}. The learning rate "
                f"{self.settings['learning_rate']:g} is too high for this model: try a third of it."
            )
        now = time.monotonic()
        self.step += 1
        self.tokens += self.trainer.batch_tokens
        self.latest.append((self.trainer.batch_tokens, now - self.last))
        mark = self.clock.stepped(self.step, self.trainer.padded_tokens, now - self.last)
        if mark:
            self.emit({"event": "schedule", "at": mark[0], "steps": mark[1]})
        self._report(logs)
        self._between_steps(control)

    def _report(self, logs: dict) -> None:
        tokens, seconds = zip(*self.latest)
        self.emit(
            {
                "event": "step",
                "step": self.step,
                "steps": self.clock.steps,
                "epoch": round(self.step / self.plan["steps_per_epoch"], 3),
                "loss": round(logs["loss"], 5),
                # Of the step that was taken; the Trainer's own figure is wrong at the first step after a resume.
                "learning_rate": self.settings["learning_rate"] * self._rate(self.step - 1 - self.first),
                "grad_norm": round(float(logs["grad_norm"]), 5),
                "tokens": self.tokens,
                "tokens_per_second": round(sum(tokens) / sum(seconds), 1),
                "seconds": round(self.clock.seconds, 3),
                "seconds_to_go": round(self.clock.to_go(self.step), 1),
            }
        )

    def _between_steps(self, control) -> None:
        self.reason = "stopped" if self.run.is_asked_to_stop else self.clock.is_time_to_leave(self.step)
        now = time.monotonic()
        every = self.recipe.evaluation.loss_every
        if every and (
            self.reason in ("steps", "clock")
            or (self.step % every == 0 and now - self.heldout_at >= self.heldout_cost / SMALL_SHARE)
        ):
            self._report_heldout()
            self.reason = self.reason or self.clock.is_time_to_leave(self.step)
        patience = self.recipe.training.checkpoint_seconds
        if patience == "auto":
            patience = max(CHECKPOINT_SECONDS, self.save_cost / SMALL_SHARE)
        if self.reason or now - self.saved_at >= patience:
            self._save()
            self.reason = self.reason or self.clock.is_time_to_leave(self.step)
        if self.reason:
            control.should_training_stop = True
        # Not counted as the next step's time.
        self.last = time.monotonic()

    def _report_heldout(self) -> None:
        began = time.monotonic()
        self.model.eval()
        padding = self.trainer.processing_class.pad_token_id or 0
        with autocast(self.recipe.model):
            loss = heldout_loss(self.base.row.scores, self.model, self.heldout, self.settings["batch_size"], padding)
        self.model.train()
        self.emit({"event": "heldout", "step": self.step, "loss": round(loss, 5)})
        self.heldout_at = time.monotonic()
        self.heldout_cost = self.heldout_at - began

    def _save(self) -> None:
        began = time.monotonic()
        counters = {"seconds": self.clock.seconds, "tokens": self.tokens, "heldout_cost": self.heldout_cost}
        counters["paces"] = list(self.clock.paces)[-8:]
        checkpoint.save(self.run, self.step, counters, self.model, self.trainer.optimizer, self.trainer.schedule)
        self.saved_at = time.monotonic()
        self.save_cost = self.saved_at - began
        self._keep_back()
        self.emit({"event": "checkpoint", "step": self.step, "seconds": round(self.save_cost, 4)})

    def _keep_back(self) -> None:
        # The adapter is a third of a checkpoint.
        self.clock.leaving = 1.5 * self.save_cost + self.heldout_cost

    def _finish(self) -> None:
        # What was made of an earlier adapter of this run does not hold for this one.
        shutil.rmtree(self.run.merged, ignore_errors=True)
        for made in ("merge_check.json", "evaluation.json", ANSWERS):
            (self.run.path / made).unlink(missing_ok=True)
        with self.run.folder("adapter") as folder:
            # A local path means nothing to whoever loads the adapter.
            attach.save(self.model, folder, self.recipe.model.name)
            self.trainer.processing_class.save_pretrained(folder)
        self.model.eval()
        self._remember()
        self.emit(
            {
                "event": "end",
                "reason": self.reason,
                "step": self.step,
                "seconds": round(self.clock.seconds, 3),
                "in_window": round(time.monotonic() - self.opened, 3),
                "in_steps": round(self.clock.in_steps, 3),
                # Both of this window, in bytes, to hold against the plan's estimate; a CPU's can't be told.
                "peak_memory": torch.cuda.max_memory_allocated() if device_type() == "cuda" else None,
                "seconds_per_step": round(self.clock.in_steps / max(1, self.clock.done), 4),
            }
        )

    def _remember(self) -> None:
        """Write down the pace, for the estimates of later runs like this one."""
        if pace := self.clock.seconds_per_token:
            remember(
                runs.RUNS / PACES,
                pace_key(device_type(), self.recipe),
                {"seconds_per_token": pace, "start_up": self.start_up},
            )


def device_name() -> str:
    """The device as people know it."""
    return torch.cuda.get_device_name() if device_type() == "cuda" else "CPU"
