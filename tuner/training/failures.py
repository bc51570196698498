"""What a person reads when a window fails, and what the run keeps of it."""

import logging
import traceback

from tuner import hub_errors
from tuner.errors import TunerError
from tuner.models import device_errors
from tuner.models.load import forget_bases
from tuner.models.shape import Base
from tuner.models.weights import not_finite_tensor
from tuner.runs import Run
from tuner.words import count

log = logging.getLogger(__name__)

FRESH_WORKER = "Resume it: a fresh worker will continue it."
LOG = "error.log"  # in the run's folder: the traceback of the latest unexpected error


def explain(error: Exception, run: Run) -> TunerError:
    """The error in plain words: what happened, what is kept, what to do. Also records it in the run.

    If the same error came back and nothing was learned in between, the message does not suggest resuming.
    """
    if not run.path.is_dir():
        return TunerError(f"Run {run.id} was deleted while it was in training, so nothing of it was kept.")
    events = run.events()
    step = _steps_done(events)
    problem = _in_words(error, run, step, _is_repeated(error, events))
    try:
        if not isinstance(error, TunerError):
            run.write_text(LOG, "".join(traceback.format_exception(error)))
        kind = type(error).__name__
        run.append({"event": "error", "problems": list(problem.problems), "type": kind, "step": _furthest(events)})
    except OSError:
        log.exception("run %s: its error can't be written down", run.id)
    for failed in list(device_errors.chain(error)):
        failed.__traceback__ = None  # its frames, and the functions that they run, hold the model and its activations
    return problem


def not_finite(what: str, step: int, settings: dict) -> TunerError:
    """Why the loss or a gradient can't be computed with any more at `step`, and what to do."""
    narrow = (
        " If that does not help, the model needs a wider range than float16 has: set model.dtype to float32."
        if settings["dtype"] == "float16"
        else ""
    )
    return TunerError(
        f"The {what} was no longer a finite number at step {step}. The learning rate "
        f"{settings['learning_rate']:g} is too high for this model: try a third of it.{narrow}"
    )


def no_loss(base: Base, dtype: str) -> TunerError:
    """Why a base that computes in this type has no finite loss before anything was learned, and what to do."""
    name = base.model.name
    if tensor := not_finite_tensor(base.folder, name):
        return TunerError(
            f"The weights of '{name}' can't be right: {tensor} holds NaN or infinity, so there is no loss to learn "
            "from. Download or copy the model again, or choose another one."
        )
    finite = "before anything was learned, though its weights are finite"
    if dtype == "float32":
        return TunerError(f"'{name}' can't be trained: its loss is no finite number {finite}. Choose another model.")
    wider = ", or to bfloat16 on a GPU that has it" if dtype == "float16" else ""
    return TunerError(
        f"'{name}' can't be trained in {dtype}: it overflows {finite}. Set model.dtype to float32{wider}."
    )


def too_short(what: str, seconds: float, start_up: float) -> TunerError:
    """That a budget or a window is over before anything was learned, and what to do."""
    given = count(round(seconds, 2), "second")
    return TunerError(
        f"The {what} of {given} was over before the first step was done: loading alone took "
        f"{start_up:.1f} seconds. Allow more seconds, or choose a smaller base model, shorter rows or fewer rows per "
        "step."
    )


def _in_words(error: Exception, run: Run, step: int, is_repeated: bool) -> TunerError:
    if isinstance(error, TunerError):
        return error
    forget_bases()  # a base may be left half changed, or the device full
    place = "while its answers were scored" if run.is_trained else f"after step {step}" if step else "before step 1"
    kept = f"{_kept(run)} {'Resuming would fail again.' if is_repeated else 'Resume it to try once more.'}"
    twice = " for the second time" if is_repeated else ""
    if reason := device_errors.breakdown(error):
        log.exception("run %s broke the GPU", run.id, exc_info=error)
        broken = device_errors.BROKEN.format(reason=reason)
        again = "This happened twice, so resuming would fail again." if is_repeated else FRESH_WORKER
        return TunerError(f"{broken} {_kept(run)} {again}")
    if device_errors.is_out_of_memory(error):
        return TunerError(
            f"Run {run.id} ran out of memory{twice} {place}. {kept} To save memory, train a new run with a smaller "
            "base model, 4-bit precision, shorter rows (data.max_length) or fewer rows per step (training.batch_size)."
        )
    if problem := hub_errors.explain(error, f"run {run.id}"):
        return problem
    log.exception("run %s failed", run.id, exc_info=error)
    advice = (
        " Train a new run with another method, precision or batch size, or with other rows." if is_repeated else ""
    )
    return TunerError(
        f"Run {run.id} failed{' twice in the same way,' if is_repeated else ''} {place}, with an unexpected "
        f"error ({type(error).__name__}). {kept}{advice} The details are in {LOG} in the run's folder."
    )


def _kept(run: Run) -> str:
    if run.is_trained:
        return "What it learned is kept."
    checkpoint = run.last_event("checkpoint")
    if not checkpoint or not checkpoint["step"]:
        return "It had learned nothing yet."
    return f"What it learned up to step {checkpoint['step']} is kept."


def _is_repeated(error: Exception, events: list[dict]) -> bool:
    """Whether the latest error was of the same type, with no new step and no new answer since."""
    index = max((i for i, event in enumerate(events) if event["event"] == "error"), default=None)
    if index is None or events[index].get("type") != type(error).__name__:
        return False
    answered = any(event["event"] == "answered" for event in events[index:])
    return not answered and _furthest(events) <= events[index]["step"]


def _furthest(events: list[dict]) -> int:
    return max((event["step"] for event in events if event["event"] == "step"), default=0)


def _steps_done(events: list[dict]) -> int:
    """Steps done when the window failed; a resumed window starts some steps back, at its checkpoint."""
    return next((event["step"] for event in reversed(events) if event["event"] in ("step", "start")), 0)
