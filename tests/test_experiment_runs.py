"""Experiments with real trainings: what is missing is trained, and nothing twice, however they were interrupted."""

import json
import os
import re
import signal
import subprocess
import time

import fresh
import pytest
from conftest import ROOT, in_order, small_recipe
from scored import experiment_of, scored_run

from tuner import cli, runs
from tuner.errors import TunerError
from tuner.experiments import train as train_module
from tuner.experiments.beside import beside
from tuner.experiments.candidates import request
from tuner.experiments.experiment import Experiment, create, delete_orphans, open_experiment
from tuner.experiments.ranking import results
from tuner.experiments.states import FILE
from tuner.experiments.train import train_all
from tuner.runs import Run

QUICK = {"evaluation__rows": 12, "evaluation__max_new_tokens": 2, "evaluation__few_shot": 0, "data__max_rows": 40}
QUICK |= {"data__heldout": 12, "budget__steps": 2, "training__batch_size": 2, "model__quantization": "none"}
PATIENCE = 300  # seconds for a process, on a machine that has much else to do


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    return tmp_path / "runs"


def asked(small_base: str, methods: list[str] | None = None, **what):
    return request(small_recipe(model__name=small_base, **QUICK), methods, **what)


def without_checks(recipe) -> dict:
    """A plan for `create`, which the runs are prepared without."""
    return {"settings": {"learning_rate": 0.001, "batch_size": 2, "rank": 8}, "epochs": 1.0}


def starts(experiment: Experiment) -> dict[str, int]:
    """How often each run was begun."""
    return {s.entry["label"]: sum(e["event"] == "start" for e in s.run.events()) for s in experiment.states()}


def heldout(run: Run) -> list:
    return [row["messages"] for row in run.heldout()]


@pytest.mark.usefixtures("no_estimates")
def test_seeds_are_trained_on_the_same_rows_and_a_stopped_experiment_resumes(root, small_base):
    experiment = create(asked(small_base, seeds=2), check=without_checks)
    assert runs.list_runs() == []  # an experiment is no run
    events = train_all(experiment)
    label = next(event["label"] for event in events if event["event"] == "finished")
    assert label == "lora, seed 0"
    with pytest.raises(TunerError, match="in progress already"), open_experiment(experiment.id).driving():
        pass
    events.close()
    again = open_experiment(experiment.path)
    assert [state.status for state in again.states()] == ["finished", "waiting"]
    assert [e["label"] for e in train_all(again) if e["event"] == "finished"] == ["lora, seed 1"]
    assert starts(again) == {"lora, seed 0": 1, "lora, seed 1": 1}
    one, other = (state.run for state in again.states())
    assert heldout(one) == heldout(other)
    assert (one.recipe.seed, other.recipe.seed) == (0, 1)
    found = results(again)
    assert (found.rows, len(found.lines), found.lines[0]["finished_seeds"]) == (12, 1, 2)
    assert again.next_run() is None


def test_a_failure_is_set_aside_and_the_experiment_goes_on_without(root, small_base, monkeypatch):
    experiment = create(asked(small_base, ["lora", "ia3", "rslora"]), check=without_checks)
    prepared = []

    def prepare(recipe, path):
        prepared.append(recipe.method.name)
        if recipe.method.name == "lora":
            raise TunerError("There is no base model.")
        run = runs.create(recipe, path=path)
        run.write_json("plan.json", {"settings": {}, "trainable_parameters": 1})
        return run

    monkeypatch.setattr(experiment, "_prepare_here", prepare)

    def train(run):
        if run.recipe.method.name == "ia3":
            run.append({"event": "error", "problems": ["Run x ran out of memory."]})
            raise TunerError("Run x ran out of memory.")
        run.append({"event": "end", "reason": "steps", "step": 1, "seconds": 1.0})
        run.write_json("evaluation.json", {"base": {"loss": 3.0}, "adapter": {"loss": 2.0}, "gain": None})
        yield {"event": "evaluation"}

    monkeypatch.setattr("tuner.training.window.train", train)
    monkeypatch.setattr(train_module, "base_of", lambda run: "base")
    monkeypatch.setattr(train_module, "is_loaded", lambda base: True)
    events = [(e["label"], e["event"]) for e in train_all(experiment)]
    assert events == [("ia3", "failed"), ("rslora", "evaluation"), ("rslora", "finished")]
    assert [state.status for state in experiment.states()] == ["failed", "failed", "finished"]
    prepared.clear()
    assert list(train_all(experiment)) == []
    assert prepared == ["lora"]  # its base may have come back; what failed in training is not tried again
    found = results(experiment)
    assert "lora failed: There is no base model." in found.sentences
    assert "ia3 failed: Run x ran out of memory." in found.sentences
    assert found.best == "rslora"
    experiment.states()[1].run.write_json(
        "evaluation.json", {"base": {"loss": 3.0}, "adapter": {"loss": 1.0}, "gain": None}
    )
    experiment.states()[1].run.append({"event": "end", "reason": "steps", "step": 1, "seconds": 1.0})
    assert results(experiment).best == "ia3"  # finished by hand after all


def test_a_base_that_is_gone_stops_the_experiment_and_no_run_is_given_up(root, small_base, monkeypatch):
    experiment = create(asked(small_base, ["lora", "ia3"]), check=without_checks)

    def prepare(recipe, path):
        run = runs.create(recipe, path=path)
        run.write_json("plan.json", {"settings": {}})
        return run

    def gone(run):
        raise TunerError("The base model is gone.")

    monkeypatch.setattr(experiment, "_prepare_here", prepare)
    monkeypatch.setattr(train_module, "base_of", gone)
    for _ in range(2):
        with pytest.raises(TunerError, match=r"The base model is gone\."):
            list(train_all(experiment))
        assert [state.status for state in experiment.states()] == ["prepared", "waiting"]


def test_a_run_that_was_not_prepared_to_its_end_is_prepared_again_in_the_same_place(root, small_base):
    experiment = create(asked(small_base, ["lora", "ia3"]), check=without_checks)
    made = []

    def killed(recipe, path):
        made.append(path)
        runs.create(recipe, path=path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiment.next_run(killed)

    def prepare(recipe, path):
        made.append(path)
        run = runs.create(recipe, path=path)
        run.write_json("plan.json", {"settings": {}})
        return run

    again = open_experiment(experiment.path)
    run = again.next_run(prepare)
    assert made == [run.path, run.path]
    assert again.next_run(prepare).path == run.path  # it is not trained yet
    assert len(made) == 2
    run.delete()
    assert again.states()[0].status == "deleted"
    assert again.next_run(prepare).path != run.path


def trial(experiment: Experiment, score: float, seconds: float = 4.0) -> Run:
    """The next run of a search, which trains and scores in no time."""

    def prepare(recipe, path):
        run = runs.create(recipe, path=path)
        run.write_json("plan.json", {"settings": {}, "trainable_parameters": 1})
        return run

    run = experiment.next_run(prepare)
    run.append({"event": "end", "reason": "steps", "step": 1, "seconds": seconds})
    run.write_json("evaluation.json", {"base": {"loss": 3.0}, "adapter": {"loss": score}, "gain": None})
    return run


def test_a_search_ends_with_its_trials_and_begins_none_that_does_not_fit_into_the_seconds(root, small_base):
    experiment = create(asked(small_base, search=3), check=without_checks)
    made = [trial(experiment, score) for score in (2.0, 1.0, 1.5)]
    assert experiment.next_run() is None
    assert [run.recipe.name for run in made] == ["trial 1", "trial 2", "trial 3"]
    assert results(experiment).best == "trial 2"
    assert made[0].recipe.method == experiment.recipe.method  # the settings that there were
    assert made[1].recipe.training.learning_rate != "auto"
    short = create(asked(small_base, search=4, seconds=4, total_seconds=9), check=without_checks)
    for score in (2.0, 1.0):
        trial(short, score, seconds=4.2)
    assert short.next_run() is None
    told = results(short).sentences
    assert "2 runs were not begun: there is no room for another one in 9 s." in told
    assert short.recipe.budget.seconds == 4


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "its experiment.json is damaged. Its runs are kept"),
        ("[]", "its experiment.json is damaged"),
        ('{"format": 1}', "its experiment.json is damaged"),
        ('{"format": 99}', "was made by a newer version of Tuner. Update Tuner."),
        (None, "its experiment.json is missing"),
    ],
)
def test_a_damaged_experiment_is_said_to_be(root, small_base, content, problem, capsys):
    experiment = create(asked(small_base, seeds=2), check=without_checks)
    file = experiment.path / FILE
    file.unlink() if content is None else file.write_text(content)
    for look in (lambda: experiment.next_run(), lambda: results(experiment), lambda: list(train_all(experiment))):
        with pytest.raises(TunerError, match=re.escape(problem)):
            look()


@pytest.mark.parametrize(
    ("space", "settings"),
    [
        ({}, {"method.name": "lora"}),
        ({"lora": {"method.rank": {"low": 9, "high": 8, "first": 8, "whole": True}}}, {"method.name": "lora"}),
        ({"lora": {"method.rank": {"low": 1, "high": 8, "first": 8, "whole": True}}}, {"method.rank": 5}),
        (
            {"lora": {"method.rank": {"low": 1, "high": 8, "first": 8, "whole": True}}},
            {"method.name": "lora", "method.rank": "auto"},
        ),
    ],
)
def test_a_search_that_was_changed_by_hand_is_said_to_be_damaged(space, settings, tmp_path):
    run = scored_run(tmp_path, "mine", [True] * 12)
    experiment = experiment_of([run], "search", 4, space=space)
    asked = experiment.asked
    asked["runs"][0]["settings"] = settings
    experiment.write_json(FILE, asked)
    with pytest.raises(TunerError, match=rf"its {FILE} is damaged. Its runs are kept"):
        experiment.next_run()


def test_a_trial_whose_loss_is_no_number_does_not_stop_the_search(tmp_path):
    run = scored_run(tmp_path, "mine", [True] * 12)
    run.write_json("evaluation.json", {"base": {"loss": 3.0}, "adapter": {"loss": float("nan")}, "gain": None})
    space = {"lora": {"method.rank": {"low": 1, "high": 8, "first": 8, "whole": True}}}
    experiment = experiment_of([run], "search", 4, space=space)
    made = []

    def prepare(recipe, path):
        made.append(recipe.method.rank)
        path.mkdir()
        Run(path).write_json("plan.json", {})
        return Run(path)

    experiment.next_run(prepare)
    assert 1 <= made[0] <= 8


def test_names_of_runs_in_a_changed_file_lead_nowhere_else(root, small_base):
    experiment = create(asked(small_base, seeds=2), check=without_checks)
    known = json.loads((experiment.path / FILE).read_text())
    for name in ("../outside", "/etc", "a/b", "", "a" * 70, "."):
        known["runs"][0]["run"] = name
        (experiment.path / FILE).write_text(json.dumps(known))
        with pytest.raises(TunerError, match="damaged"):
            experiment.states()
    for name in ("../x", f"../runs/{experiment.id}", str(experiment.path), "", "nothing"):
        with pytest.raises(TunerError, match="There is no experiment"):
            open_experiment(name, local=False)


def test_an_experiment_is_deleted_without_its_runs_and_not_while_it_is_in_progress(root, small_base):
    experiment = create(asked(small_base, search=2), check=without_checks)
    run = trial(experiment, 1.0)
    with experiment.driving():
        assert experiment.is_driven
        with pytest.raises(TunerError, match="in progress already"):
            experiment.delete()
    experiment.delete()
    assert not experiment.path.exists()
    assert Run(run.path).recipe.name == "trial 1"


def test_an_experiment_goes_once_its_runs_are_gone_and_a_day_has_passed(root, small_base):
    experiment = create(asked(small_base, search=2), check=without_checks)
    run = trial(experiment, 1.0)
    assert delete_orphans(seconds=-1) == []
    run.delete()
    assert delete_orphans() == []
    with experiment.driving():
        assert delete_orphans(seconds=-1) == []
    assert delete_orphans(seconds=-1) == [experiment.id]
    assert not experiment.path.exists()


def test_problems_of_all_candidates_are_told_before_anything_is_written(root, small_base):
    def check(recipe):
        raise TunerError(f"{recipe.method.name} can't.", "And more.")

    with pytest.raises(TunerError) as refusal:
        create(asked(small_base, ["lora", "ia3"]), check=check)
    assert refusal.value.problems == ("lora: lora can't.", "lora: And more.", "ia3: ia3 can't.", "ia3: And more.")
    with pytest.raises(TunerError) as refusal:
        create(asked(small_base, seeds=2), check=check)
    assert refusal.value.problems == ("lora can't.", "And more.")
    with pytest.raises(TunerError, match="nobody/nothing"):
        create(request(small_recipe(model__name="nobody/nothing"), seeds=2))
    assert not root.exists() or not any(root.iterdir())


# -- real kills


@pytest.mark.long
@pytest.mark.parametrize(
    ("what", "size"), [(["--methods", "lora,ia3,rslora"], 3), (["--search", "6"], 6), (["--seeds", "4"], 4)]
)
def test_an_experiment_killed_in_its_middle_finishes_only_what_is_missing(
    what, size, root, small_base, tmp_path, capsys
):
    steps = {"budget.steps": 30, "training.checkpoint_seconds": 0.001, "evaluation.few_shot": 0}
    recipe = small_recipe(model__name=small_base, **QUICK).with_settings(steps)
    (tmp_path / "mine.yaml").write_text(recipe.to_yaml())
    command = ["-m", "tuner", "compare", str(tmp_path / "mine.yaml"), *what, "--json"]
    environment = os.environ | {"TUNER_RUNS": str(root), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([fresh.PYTHON, *command], cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
        try:
            experiment = killed_in_the_second_run(process, root)
        finally:
            process.kill()
    done, begun = (state.run for state in experiment.states()[:2])
    finished = (done.path / "evaluation.json").stat().st_mtime_ns
    assert [Run(done.path).status, Run(begun.path).status] == ["finished", "interrupted"]
    capsys.readouterr()
    assert cli.main(["compare", experiment.id, "--json", "--out", str(tmp_path / "out")]) == 0
    shown = json.loads(capsys.readouterr().out)
    states = experiment.states()
    assert [state.status for state in states] == ["finished"] * size
    assert len(runs.list_runs()) == size
    assert list(starts(experiment).values()) == [1, 2, *[1] * (size - 2)]
    assert begun.events()[-1]["event"] == "evaluation"
    resumed = [event["step"] for event in begun.events() if event["event"] == "start"]
    assert resumed[0] == 0 < resumed[1] < 30
    assert (done.path / "evaluation.json").stat().st_mtime_ns == finished
    assert shown["experiment"] == experiment.id
    assert sum(len(line["runs"]) for line in shown["lines"]) == size
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"comparison.csv", "comparison.png"}
    assert len({json.dumps(heldout(state.run)) for state in states}) == 1


def killed_in_the_second_run(process: subprocess.Popen, root) -> Experiment:
    """Kill the process once its experiment's second run has a checkpoint of some steps."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        for file in root.glob(f"*/{FILE}"):
            experiment = Experiment(file.parent)
            states = experiment.states()
            last = states[1].run.last_event("checkpoint") if len(states) > 1 else None
            if last and last["step"] >= 3:
                process.send_signal(signal.SIGKILL)
                process.wait(PATIENCE)
                process.stdout.read()  # it is dead when the other end is closed
                return experiment
        time.sleep(0.02)
    raise AssertionError("no second run began")


@pytest.mark.long
def test_a_killed_search_has_the_trials_of_an_uninterrupted_one(root, small_base, tmp_path):
    recipe = small_recipe(model__name=small_base, **QUICK)
    whole = create(request(recipe, search=6), tmp_path)
    list(train_all(whole))
    cut = create(request(recipe, search=6), tmp_path)
    for number in range(6):
        events = train_all(open_experiment(cut.path))  # as another process would
        assert next(e["label"] for e in events if e["event"] == "finished") == f"trial {number + 1}"
        events.close()
    assert [s.entry["settings"] for s in cut.states()] == [s.entry["settings"] for s in whole.states()]


@pytest.mark.long
def test_a_method_against_itself_with_other_seeds_is_mostly_no_difference(root, tmp_path):
    """Twelve seeds in six pairs, each an experiment of two candidates that differ by nothing but their seed."""
    settings = QUICK | {"budget__steps": 12, "training__learning_rate": 0.01, "training__batch_size": 8}
    settings |= {"data__max_rows": 200, "data__heldout": 64, "evaluation__rows": 64, "evaluation__max_new_tokens": 24}
    experiment = create(request(small_recipe(**settings), seeds=12), check=without_checks)
    list(train_all(experiment))
    made = [state.run for state in experiment.states()]
    told = [beside(made[i : i + 2]).results.sentences[0] for i in range(0, 12, 2)]
    assert sum("is clearly better than" in said for said in told) <= 1
    assert in_order(results(experiment).sentences[0], "12 seeds of lora score", "with a standard deviation of")
