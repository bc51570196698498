"""What the verdict needs to know of a run beside its scores."""

from tuner.data.baseline import in_words
from tuner.runs import Run
from tuner.tasks import task_of


def facts_of(run: Run) -> dict:
    """What the verdict needs to know of the run: its held-out rows, its baseline, and how its losses went."""
    facts: dict = {"heldout_rows": run.plan["heldout_rows"]}
    if repeated := run.plan.get("repeated_rows"):
        facts["repeated_rows"] = repeated
    if (label := run.plan.get("baseline")) is not None:
        facts["baseline"] = in_words(label)
    elif not task_of(run.plan).generates and "scored_rows" not in run.plan:  # see find_rival
        facts["unknown_head"] = True
    events = run.events()
    steps = [event for event in events if event["event"] == "step"]
    heldout = [event for event in events if event["event"] == "heldout" and event["loss"] is not None]
    end = run.last_event("end") or {}
    if steps:
        facts["course"] = _course(run, steps, heldout, end)
    if steps and heldout:
        last = [event["loss"] for event in steps[-run.plan["steps_per_epoch"] :]]
        loss = {"training": sum(last) / len(last), "lowest": min(e["loss"] for e in heldout)}
        facts["losses"] = {name: round(value, 5) for name, value in loss.items()} | {"last": heldout[-1]["loss"]}
        if end.get("kept", end.get("step")) != end.get("step"):
            facts["losses"]["kept"] = end["kept"]
    return facts


def _course(run: Run, steps: list[dict], heldout: list[dict], end: dict) -> dict:
    """How training went: how long, and its losses.

    Those of training are means over a tenth of the steps: at the beginning, after two thirds and at the end. Of the
    held-out losses there is the one before the first step, and the one after two thirds; see also `losses`.
    """
    tenth, late = max(1, len(steps) // 10), max(1, round(len(steps) * 2 / 3))
    parts = {"first": steps[:tenth], "middle": steps[max(0, late - tenth) : late], "final": steps[-tenth:]}
    course = {
        "rows": run.plan["rows"],
        "steps": steps[-1]["step"],
        "epochs": steps[-1].get("epoch"),
        "learning_rate": run.plan["settings"].get("learning_rate"),
        "seconds": end.get("seconds", steps[-1].get("seconds")),
        "ended": end.get("reason"),
    } | {name: round(sum(step["loss"] for step in part) / len(part), 5) for name, part in parts.items()}
    if heldout and heldout[0]["step"] == 0 < heldout[-1]["step"]:
        two_thirds = [event["loss"] for event in heldout if event["step"] <= heldout[-1]["step"] * 2 / 3]
        course |= {"heldout_start": heldout[0]["loss"], "heldout_middle": two_thirds[-1]}
    return course
