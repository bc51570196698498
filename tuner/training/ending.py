"""How training ended: what the log says of it, in figures and in words."""

from typing import TYPE_CHECKING

from tuner import runs
from tuner.models.device import device_type
from tuner.planning.forecast import duration
from tuner.planning.pace import PACES, pace_key, remember
from tuner.runs import Run

if TYPE_CHECKING:
    from tuner.training.clock import Clock
    from tuner.training.upkeep import Best


def facts(best: "Best", clock: "Clock", step: int, reason: str, kept: int) -> dict:
    """What the end of a window says beside its figures: the step of the adapter's weights, and how losses moved."""
    latest = best.state["latest"]
    found = {"kept": kept, "steps": clock.steps, "best": best.state["step"], "best_loss": best.state["loss"]}
    found |= {"last_loss": latest and latest[1], "rising_since": best.rising_since(step)}
    if reason == "patience":
        found["saved_seconds"] = round(clock.seconds_left(step), 3)
    return found


def sentences(end: dict) -> list[str]:
    """What a person should know about the end of training, from its event; runs of earlier versions say less."""
    step, best, saved, loss, last = (end.get(k) for k in ("step", "best", "saved_seconds", "best_loss", "last_loss"))
    lines = []
    if end.get("reason") == "patience" and best is not None:
        of = f" of {end['steps']:,}" if end.get("steps") else ""
        less = "" if saved is None else f" That saved {duration(saved)}."
        lines.append(f"Stopped at step {step:,}{of}: the held-out loss had not improved since step {best:,}.{less}")
    if best is not None and end.get("kept") == best != step and None not in (loss, last):
        lines.append(
            f"Kept the weights of step {best:,}: their held-out loss was clearly lower ({loss:.3f}) than that of the "
            f"last step ({last:.3f})."
        )
    if not lines and (since := end.get("rising_since")) is not None:
        what = f"since step {since:,}: what the run learned after it" if since else "from the start: what it learned"
        lines.append(
            f"The held-out loss has risen {what} does not carry over to other rows. Train for fewer steps, or give "
            "more rows."
        )
    return lines


def by_heart(event: dict | None) -> str:
    """That the rows are being learned by heart, from the event that says so; empty without one."""
    since, lowest, loss, kept = ((event or {}).get(key) for key in ("since", "lowest", "loss", "kept"))
    if None in (since, lowest, loss):
        return ""
    began = f"step {since:,}" if since else "the start"
    then = "Train for fewer steps, or give more rows."
    if kept is not None:
        then = f"Unless it falls again, the weights of step {kept:,} will be kept."
    return (
        f"It is learning its rows by heart: the held-out loss has risen from {lowest:.3f} to {loss:.3f} since "
        f"{began}, while the training loss has fallen. {then}"
    )


def remember_pace(run: Run, clock: "Clock", start_up: float | None) -> None:
    """Record the pace, for the estimates of later runs like this one; `start_up` if the base had to be loaded."""
    if pace := clock.seconds_per_token:
        measured = {"seconds_per_token": pace, "seconds_per_step": clock.seconds_per_step}
        measured |= {} if start_up is None else {"start_up": start_up}
        remember(runs.RUNS / PACES, pace_key(device_type(), run.recipe), measured, run.id)
