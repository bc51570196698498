"""An experiment's results: a line for each candidate, by rank, and the pairs.

found = results(experiment)
found.lines, found.pairs, found.sentences
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import combinations
from math import inf
from typing import Any

from tuner.errors import TunerError
from tuner.evaluation.verdict import rival
from tuner.experiments import certainty
from tuner.experiments.answered import RIVALS
from tuner.experiments.certainty import Scored, Seeds
from tuner.experiments.compared import Compared
from tuner.experiments.experiment import Experiment
from tuner.experiments.results import Results, sentences_of
from tuner.experiments.states import State, scoring_seconds, seconds_of
from tuner.methods.registry import METHODS
from tuner.runs import Run

FIRST_TRIAL = "trial 1"  # of a search: with the settings that there were
COSTS = ("seconds", "trainable_parameters")  # against which scores are held


def results(experiment: Experiment) -> Results:
    """How the experiment stands. Raises TunerError if experiment.json or a run's rows can't be read."""
    asked, states = experiment.asked, experiment.states()
    groups: dict[str, list[State]] = {}
    for state in states:
        groups.setdefault(state.entry.get("candidate", state.entry["label"]), []).append(state)
    found = held_against(asked["kind"], groups)
    more = [*sentences_of(found), *_progress(experiment, states), *asked["notes"]]
    runs = [state.run for state in states if state.status not in ("waiting", "deleted")]
    costs = {"training": sum(map(seconds_of, runs)), "scoring": sum(map(scoring_seconds, runs))}
    return replace(found, sentences=more, seconds=costs)


def held_against(kind: str, groups: dict[str, list[State]]) -> Results:
    """Candidates with their runs, held against each other on the rows that all finished ones have in common."""
    finished = {label: [s.run for s in states if s.status == "finished"] for label, states in groups.items()}
    everything = [run for runs in finished.values() for run in runs]
    unfinished = [_line(label, states) for label, states in groups.items() if not finished[label]]
    if not everything:
        return Results(kind, lines=unfinished)
    compared = Compared(kind, everything)
    seeds = certainty.seeds_of(
        [compared.scored[run.id] for run in runs if run.id in compared.scored] for runs in finished.values()
    )
    lines = [_line(label, groups[label]) | _scores(compared, runs, seeds) for label, runs in finished.items() if runs]
    lines.sort(key=lambda line: _order(compared, line), reverse=compared.sign > 0)
    for rank, line in enumerate(lines, 1):
        line["rank"] = rank
    _mark_fronts(lines, compared.sign)
    # Runs beside each other may have different bases; those of an experiment share theirs.
    rivalled = finished[lines[0]["label"]] if kind == "beside" else everything
    rivals = compared.rivals_of(rivalled)
    return Results(
        kind,
        metric=compared.metric.name if compared.metric else None,
        rows=compared.rows,
        chosen_by=len(range(0, compared.rows, 2)) if compared.is_split else 0,
        best=lines[0]["label"],
        lines=lines + unfinished,
        rivals=_rivals(compared, rivals, rival(compared.evaluations[rivalled[0].id])),
        pairs=_pairs(kind, compared, {line["label"]: finished[line["label"]] for line in lines}, rivals, seeds),
    )


def _line(label: str, states: list[State]) -> dict[str, Any]:
    """What is known of a candidate before it is scored."""
    newest = next((s for s in reversed(states) if s.status not in ("finished", "waiting")), states[-1])
    done = sum(state.status == "finished" for state in states)
    part = f"{done} of {len(states)} finished" if done else newest.status
    line = {
        "label": label,
        "status": "finished" if done == len(states) else part,
        "problems": [problem for state in states for problem in state.problems],
        "runs": [state.run.id for state in states if state.status not in ("waiting", "deleted")],
        "settings": states[0].entry["settings"],
        "seeds": len(states),
        "finished_seeds": done,
    }
    with suppress(TunerError, FileNotFoundError):
        name = states[0].run.recipe.method.name
        line["title"] = METHODS[name].title if name in METHODS else name
    return line


def _scores(compared: Compared, runs: list[Run], seeds: Seeds | None) -> dict[str, Any]:
    """A candidate's scores and costs: means over its seeds."""
    found: dict[str, Any] = {"score": None, "low": None, "high": None, "spread": None}
    scored = [compared.scored[run.id] for run in runs if run.id in compared.scored]
    if len(scored) == len(runs):
        value, low, high = certainty.mean(scored, compared.scale, seeds, has_interval=compared.has_interval)
        found |= {"score": value, "low": low, "high": high, "spread": certainty.spread(scored)}
    elif compared.metric:
        found["score"] = _mean([score for run in runs if (score := compared.score(run.id)) is not None])
        if len(runs) == 1:
            adapter, name = compared.evaluations[runs[0].id]["adapter"], compared.metric.name
            found |= {bound: adapter.get(f"{name}_{bound}") for bound in ("low", "high")}
    if compared.is_split:
        found["choosing"] = _mean([compared.choosing(run.id) for run in runs])
    evaluations = [compared.evaluations[run.id] for run in runs]
    ends = [run.last_event("end") or {} for run in runs]
    losses = [compared.loss(run.id) for run in runs]
    return found | {
        "loss": _mean([loss for loss in losses if loss is not None]),
        "seconds": _mean([seconds_of(run) for run in runs]),
        "steps": _mean([end["step"] for end in ends if "step" in end]),
        "trainable_parameters": runs[0].plan["trainable_parameters"],
        "adapter_bytes": sum(file.stat().st_size for file in runs[0].adapter.rglob("*.safetensors")),
        "baseline": rival(evaluations[0]),
    }


def _order(compared: Compared, line: dict) -> float:
    value = line.get("choosing", line["score"]) if compared.metric else line["loss"]
    return -compared.sign * inf if value is None else value  # those that can't be told apart come last


def _rivals(compared: Compared, rivals: dict[str, Scored], baseline: str) -> list[dict[str, Any]]:
    """What needs no training, with its scores: the base model, and examples in its prompt."""
    lines, scale = [], certainty.scale_of([*compared.scored.values(), *rivals.values()]) if rivals else None
    for variant, scored in rivals.items():
        value, low, high = certainty.mean([scored], scale, has_interval=compared.has_interval)
        label = baseline if variant == "base" else RIVALS[variant]
        lines.append({"variant": variant, "label": label, "score": value, "low": low, "high": high})
    return lines


def _pairs(
    kind: str, compared: Compared, runs: dict[str, list[Run]], rivals: dict[str, Scored], seeds: Seeds | None
) -> list[dict[str, Any]]:
    """Every two candidates, and the first candidate with what needs no training."""
    if not compared.scored:
        return []
    scored = {
        label: [compared.scored[run.id] for run in made]
        for label, made in runs.items()
        if all(run.id in compared.scored for run in made)
    }
    labels, first = list(scored), next(iter(scored))
    if kind == "search":  # the best trial against the settings that there were
        chosen = [(first, FIRST_TRIAL)] * (first != FIRST_TRIAL and FIRST_TRIAL in scored)
        number = 1 if compared.is_split else max(1, len(labels) - 1)
    else:
        chosen = list(combinations(labels, 2))
        number = len(chosen)
    # The first was chosen out of so many by the same rows, unless others have chosen it.
    chances = 1 if compared.is_split else len(labels)
    trained = [(one, other, scored[other], number, True) for one, other in chosen]
    untrained = [(first, variant, [scored_rival], chances, False) for variant, scored_rival in rivals.items()]
    pairs, scale = [], certainty.scale_of([*compared.scored.values(), *rivals.values()])
    for of, over, others, together, is_trained in trained + untrained:
        facts = {"is_trained": is_trained, "has_interval": compared.has_interval}
        value, low, high = certainty.gain(scored[of], others, compared.metric, scale, seeds, together, **facts)
        bounds = {} if low is None else {"low": low, "high": high}
        won = certainty.wins(scored[of], others, compared.metric)
        pairs.append({"of": of, "over": over, compared.metric.name: value, **bounds, **won})
    return pairs


def _mark_fronts(lines: list[dict[str, Any]], sign: int) -> None:
    """Mark for each cost the lines that no other one beats: as good at less, or better for as much.

    A line without a score is marked for none: nobody can tell.
    """
    scored = [line for line in lines if line["score"] is not None]
    for line in lines:
        line["fronts"] = []
    for line in scored:
        line["fronts"] = [cost for cost in COSTS if not any(_beats(other, line, cost, sign) for other in scored)]


def _beats(other: dict, line: dict, cost: str, sign: int) -> bool:
    better, cheaper = sign * (other["score"] - line["score"]), line[cost] - other[cost]
    return better >= 0 and cheaper >= 0 and (better > 0 or cheaper > 0)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _progress(experiment: Experiment, states: list[State]) -> list[str]:
    """What has failed, is missing or does not fit into the seconds, in sentences."""
    sentences = []
    for state in states:
        if state.status == "failed":
            sentences.append(f"{state.entry['label']} failed: {' '.join(state.problems)}")
        elif state.status == "deleted":
            sentences.append(f"{state.entry['label']}: its run was deleted, and is not trained again.")
    if unbegun := experiment.unbegun:
        total = experiment.asked["total_seconds"]
        runs = "1 run was" if unbegun == 1 else f"{unbegun} runs were"
        sentences.append(f"{runs} not begun: there is no room for another one in {total:g} s.")
    return sentences
