"""What the verdict needs to know of a run beside its scores."""

from tuner.data.baseline import in_words
from tuner.runs import Run
from tuner.tasks import task_of


def facts_of(run: Run) -> dict:
    """What the verdict needs to know of the run: its held-out rows, its baseline, and how its losses went."""
    facts: dict = {"heldout_rows": run.plan["heldout_rows"]}
    if (label := run.plan.get("baseline")) is not None:
        facts["baseline"] = in_words(label)
    elif not task_of(run.plan).generates and "scored_rows" not in run.plan:  # see find_rival
        facts["unknown_head"] = True
    events = run.events()
    steps = [event["loss"] for event in events if event["event"] == "step"]
    heldout = [event["loss"] for event in events if event["event"] == "heldout" and event["loss"] is not None]
    if steps and heldout:
        last = steps[-run.plan["steps_per_epoch"] :]
        losses = {"training": sum(last) / len(last), "lowest": min(heldout), "last": heldout[-1]}
        facts["losses"] = {name: round(loss, 5) for name, loss in losses.items()}
        end = run.last_event("end") or {}
        if end.get("kept", end.get("step")) != end.get("step"):
            facts["losses"]["kept"] = end["kept"]
    return facts
