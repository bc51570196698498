"""What an experiment took in all, on the page and in the terminal: training and scoring, without pauses."""

import json

import pytest
from conftest import plain
from scored import experiment_of, scored_run

from tuner import runs
from tuner.cli import main
from tuner.experiments.beside import beside
from tuner.experiments.ranking import results
from tuner.experiments.results import cost_in_words
from tuner.experiments.states import scoring_seconds
from tuner.runs import Run
from tuner.ui import compare_view


@pytest.mark.parametrize(
    ("events", "seconds"),
    [
        ("evaluating 10, answered 12, evaluating 12, answered 15, evaluating 15, evaluation 16", 6),
        # The window closes, and the next one opens an hour later.
        ("evaluating 10, answered 12, evaluating 12, unscored 13, starting 3600, evaluating 3610, evaluation 3611", 4),
        # Killed, in a terminal, which leaves no event: while it answers, and after all was answered.
        ("evaluating 10, answered 12, evaluating 12, evaluating 3600, answered 3604, evaluation 3605", 7),
        ("evaluating 10, answered 12, evaluating 3600, evaluation 3601", 3),
        ("evaluating 10, answered 8, evaluating 8, evaluation 9", 1),  # the clock was set back
        ("answered 5, evaluation 7", 2),
        ("step 5, end 7", 0),
    ],
)
def test_seconds_of_scoring_are_counted_without_pauses(tmp_path, events, seconds):
    lines = [event.split() for event in events.split(", ")]
    written = [json.dumps({"event": kind, "time": float(time)}) + "\n" for kind, time in lines]
    run = Run(tmp_path)
    run.write_text("events.jsonl", "".join(written))
    assert scoring_seconds(run) == seconds


def scored_for(run: Run, seconds: float) -> Run:
    """The run, with so many seconds of scoring in its log."""
    times = {"evaluating": 1e9, "evaluation": 1e9 + seconds}
    log = (run.path / "events.jsonl").read_text()
    run.write_text("events.jsonl", log + "".join(json.dumps({"event": e, "time": t}) + "\n" for e, t in times.items()))
    return Run(run.path)


def test_what_an_experiment_took_in_all_is_below_its_table_and_in_the_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    right = [number < 40 for number in range(64)]
    both = [scored_for(scored_run(tmp_path, name, right, seconds=30.0), 20) for name in ("one", "two")]
    experiment = experiment_of(both)
    told = "In all 1 min 40 s: 1 min 00 s of training and 40 s of scoring."
    assert cost_in_words(results(experiment)) == told
    html = plain(compare_view.results(experiment))
    assert html.index("not trained") < html.index(told)
    assert main(["compare", experiment.id]) == 0
    assert told in capsys.readouterr().out.splitlines()
    assert main(["compare", experiment.id, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seconds"] == {"training": 60.0, "scoring": 40.0}
    assert cost_in_words(beside(both).results) == ""  # they were trained for other reasons
    both[0].append({"event": "queued"})
    (both[0].path / "evaluation.json").unlink()  # what is interrupted, failed or to be scored again took time as well
    assert cost_in_words(results(experiment)) == told
