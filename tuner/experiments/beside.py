"""Finished runs held beside each other: the settings that differ, their curves, and their scores on the same rows.

found = beside([open_run("one"), open_run("other")])
found.settings, found.curves, found.results.lines
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tuner.errors import TunerError
from tuner.experiments.answered import rows_of
from tuner.experiments.compared import base_model
from tuner.experiments.ranking import held_against
from tuner.experiments.results import Results, sentences_of
from tuner.experiments.states import State
from tuner.metrics import metric_of
from tuner.runs import Run
from tuner.tasks import task_of
from tuner.words import count

MOST_RUNS = 12  # beside each other
MOST_POINTS = 400  # of a curve


@dataclass(frozen=True)
class Beside:
    """Several finished runs, each under its label; plain values."""

    results: Results
    settings: dict[str, dict[str, Any]]  # setting that differs -> label -> value
    curves: dict[str, dict[str, list[tuple[int, float]]]]  # label -> "loss" and "heldout" -> (step, loss)

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)


def beside(runs: Sequence[Run]) -> Beside:
    """Hold the runs beside each other. Raises TunerError if they can't be, with the reasons of all."""
    _check(runs)
    labels = _labels(runs)
    groups = {
        label: [State({"run": run.id, "label": label, "settings": {}, "prepared": True}, run, "finished", [])]
        for label, run in labels.items()
    }
    found = held_against("beside", groups)
    found = replace(found, sentences=[*sentences_of(found), *_notes(labels, found)])
    return Beside(found, _differences(labels), {label: _curves(run) for label, run in labels.items()})


def _check(runs: Sequence[Run]) -> None:
    ids = [run.path.resolve() for run in runs]
    if len(set(ids)) < 2 or len(set(ids)) < len(ids):
        raise TunerError("Name at least two different runs to compare, each once.")
    names = [run.id for run in runs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise TunerError(f"Two of the runs are named {twice}, in different folders. Rename one of the two folders.")
    if len(runs) > MOST_RUNS:
        raise TunerError(f"{len(runs)} runs are too many to compare. Choose at most {MOST_RUNS}.")
    problems = [problem for run in runs for problem in run.damage]
    problems += [
        f"Run {run.id} is {run.status}, not finished, so it has no scores to compare."
        for run in runs
        if not run.damage and run.ending != "finished"
    ]
    if problems:
        raise TunerError(*problems)
    tasks = {task_of(run.plan).title: run.id for run in runs}
    if len(tasks) > 1:
        named = ", ".join(f"{run} learns {task}" for task, run in tasks.items())
        raise TunerError(f"Runs of different tasks can't be compared: {named}.")


def _labels(runs: Sequence[Run]) -> dict[str, Run]:
    """A name for each run: its own, or its id where that does not tell it apart."""
    named = [run.recipe.name for run in runs]
    return {
        name if name and named.count(name) == 1 and name not in {r.id for r in runs} else run.id: run
        for name, run in zip(named, runs)
    }


def _notes(labels: dict[str, Run], found: Results) -> list[str]:
    """On which rows the runs are compared, and by what."""
    scored = {label: len(rows_of(run)) for label, run in labels.items()}
    notes = [
        f"{label} was scored by an earlier version, which kept no answers to compare. Delete its evaluation.json, "
        f"then score it again: tuner evaluate {labels[label].id}"
        for label, rows in scored.items()
        if not rows
    ]
    if len({base_model(run) for run in labels.values()}) > 1:
        notes.append("The runs differ in base model or precision, so none is compared with an untrained model here.")
    if found.rows and any(rows > found.rows for rows in scored.values()):
        of = ", ".join(f"{rows:,} of {label}" for label, rows in scored.items())
        notes.append(f"Compared on the {count(found.rows, 'held-out row')} that all runs were scored on ({of}).")
    metrics = {metric_of(run.read_json("evaluation.json") or {}).name for run in labels.values()}
    if len(metrics) > 1:
        notes.append(f"The runs were judged by different metrics; here all are compared by {found.metric}.")
    return notes


def _differences(labels: dict[str, Run]) -> dict[str, dict[str, Any]]:
    """The settings in which the runs differ, those that were chosen automatically included."""
    values = {label: _settings(run) for label, run in labels.items()}
    names = dict.fromkeys(name for settings in values.values() for name in settings)
    rows = {name: {label: settings.get(name) for label, settings in values.items()} for name in names}
    return {name: row for name, row in rows.items() if any(value != row[next(iter(row))] for value in row.values())}


def _settings(run: Run) -> dict[str, Any]:
    """The run's settings by their dotted names, "auto" replaced by what was chosen."""
    flat: dict[str, Any] = {}
    for part, value in run.recipe.model_dump(exclude={"name"}).items():
        leaves = value.items() if isinstance(value, dict) else [("", value)]
        flat |= {f"{part}.{leaf}".rstrip("."): inner for leaf, inner in leaves}
    chosen = run.plan["settings"]
    return {
        name: chosen.get(name.rpartition(".")[2], value) if value == "auto" else value for name, value in flat.items()
    }


def _curves(run: Run) -> dict[str, list[tuple[int, float]]]:
    """Training and held-out loss by step; a window that starts at a step discards every later one."""
    losses: dict[str, dict[int, float]] = {"step": {}, "heldout": {}}
    for event in run.events():
        kind, step = event["event"], event.get("step", 0)
        if kind == "start":
            losses = {name: {s: x for s, x in curve.items() if s <= step} for name, curve in losses.items()}
        elif kind in losses and event.get("loss") is not None:
            losses[kind][step] = event["loss"]
    return {"loss": _thinned(losses["step"]), "heldout": _thinned(losses["heldout"])}


def _thinned(curve: dict[int, float]) -> list[tuple[int, float]]:
    """Means of neighboring points, so that there are at most MOST_POINTS."""
    points, size = list(curve.items()), -(-len(curve) // MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), max(1, size))]
    return [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]
