"""The runs of an experiment ask the base only once for the same answer, and again for every other one."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import small_recipe
from tiny import tiny_office

from tuner import runs, terminal
from tuner.evaluation import answers, untuned
from tuner.evaluation.untuned import FILE, Untuned
from tuner.experiments.candidates import request
from tuner.experiments.experiment import Experiment, create
from tuner.experiments.states import scoring_seconds
from tuner.experiments.train import train_all
from tuner.inference import generate
from tuner.planning import plan
from tuner.planning.scoring import seconds_together
from tuner.runs import Run
from tuner.training.window import train
from tuner.ui import result

pytestmark = pytest.mark.usefixtures("no_estimates")
QUICK = {"evaluation__rows": 10, "evaluation__max_new_tokens": 3, "evaluation__few_shot": 1, "data__max_rows": 40}
QUICK |= {"data__heldout": 10, "budget__steps": 2, "training__batch_size": 2, "model__quantization": "none"}
BASES = ("base", "few_shot", "few_shot_similar")


def recipe(base: str, **settings):
    return small_recipe(**{"model__name": base, **QUICK, **settings})


def without_checks(recipe) -> dict:
    """A plan for `create`, which the runs are prepared without."""
    return {"settings": {"learning_rate": 0.001, "batch_size": 2, "rank": 8}, "epochs": 1.0}


def rows_of(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.path / "evaluation_rows.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return str(tiny_office(tmp_path_factory.mktemp("once") / "tiny-office"))


@pytest.fixture(scope="module")
def compared(base, tmp_path_factory) -> tuple[Experiment, list[list[str]]]:
    """Two methods, trained and scored, and the variants that answered in each call of the models."""
    asked: list[list[str]] = []
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "RUNS", root)

        def counted(loaded, active, variants, *rest, real=generate.answer, **others):
            asked.append(variants)
            return real(loaded, active, variants, *rest, **others)

        patch.setattr(generate, "answer", counted)
        experiment = create(request(recipe(base), ["lora", "prefix_tuning"]), check=without_checks)
        list(train_all(experiment))
    return experiment, asked


def runs_of(experiment: Experiment) -> list[Run]:
    return [state.run for state in experiment.states()]


def test_the_second_run_asks_only_its_adapter(compared):
    experiment, asked = compared
    first, second = runs_of(experiment)
    answered = [variant for variants in asked for variant in variants]
    assert (answered.count("base"), answered.count("adapter")) == (30, 20)  # of them 20 with examples
    given, copied = (run.read_json("evaluation.json") for run in (first, second))
    assert "copied" not in given
    assert copied["copied"] == dict.fromkeys(BASES, first.id)
    for variant in BASES:
        assert [row[variant] for row in rows_of(first)] == [row[variant] for row in rows_of(second)]
        assert given["costs"][variant] == copied["costs"][variant]
        assert given[variant] == copied[variant]
    assert given["adapter"] != copied["adapter"]
    # Its costs are those of the first run, which page and terminal say.
    told = f"The base model was asked in run {first.id}: its answers and what they cost were copied."
    for shown in (result.variants, terminal.verdict):
        assert told in shown(copied)
        assert "copied" not in shown(given)
    assert 0 < scoring_seconds(second) < scoring_seconds(first)


def test_what_is_copied_is_what_the_run_would_have_answered_itself(compared, base, tmp_path):
    _, second = runs_of(compared[0])
    alone = plan.prepare(second.recipe, path=tmp_path / "alone")
    list(train(alone))
    assert not (alone.path / FILE).exists()
    mine, copied = (run.read_json("evaluation.json") for run in (alone, second))
    for name in (*BASES, "adapter", "gain", "pairs", "rows", "cut"):
        assert mine.get(name) == copied.get(name)
    assert rows_of(alone) == rows_of(second)


def prepared(recipe, path: Path, known: Run) -> Untuned:
    run = plan.prepare(recipe, path=path)
    shutil.copy(known.path / FILE, run.path / FILE)
    return Untuned(run)


def shares(known: Untuned) -> dict[str, float]:
    return known.shares(known.run.heldout()[: known.run.recipe.evaluation.rows])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"method__name": "rslora", "training__learning_rate": 0.1}, (1.0, 1.0)),
        ({"evaluation__rows": 4}, (1.0, 1.0)),  # fewer of the same rows
        ({"evaluation__few_shot": 2}, (1.0, 0.0)),
        ({"evaluation__max_new_tokens": 4}, (0.0, 0.0)),
        ({"model__quantization": "int8"}, (0.0, 0.0)),
        ({"model__dtype": "bfloat16"}, (0.0, 0.0)),
        ({"data__heldout": 9, "data__seed": 5}, None),  # other rows, of which some may be the same
    ],
)
def test_only_the_very_same_answer_is_found(compared, base, tmp_path, settings, expected):
    known = prepared(recipe(base, **settings), tmp_path / "run", runs_of(compared[0])[0])
    found = (*shares(known).values(),)
    assert found == expected if expected else max(found) < 1


def test_an_answer_of_another_base_device_or_library_is_not_found(compared, base, tmp_path, monkeypatch):
    first, _ = runs_of(compared[0])
    assert {*shares(Untuned(first)).values()} == {1.0}
    with monkeypatch.context() as patch:
        patch.setattr(untuned, "version", lambda library: "0.0")
        assert {*shares(Untuned(first)).values()} == {0.0}
    with monkeypatch.context() as patch:
        patch.setattr(untuned, "device_type", lambda: "tpu")
        assert {*shares(Untuned(first)).values()} == {0.0}
    other = tmp_path / "tiny-office"
    shutil.copytree(base, other)
    os.utime(other / "model.safetensors", (1, 1))
    assert {*shares(prepared(recipe(str(other)), tmp_path / "run", first)).values()} == {0.0}


def test_the_estimate_of_a_later_run_has_no_seconds_of_answers_that_are_known(compared, tmp_path):
    first, second = runs_of(compared[0])
    assert not {"untuned"} & (first.plan["forecast"].keys() | second.plan["forecast"].keys())
    alone = plan.check(second.recipe).plan["forecast"]
    saved = sum(alone["untuned"].values())
    assert 0 < saved < alone["scoring"]
    # One estimate for both: the machine may be slower now than when the runs were prepared.
    for earlier, left in (([], alone["scoring"]), ([first], alone["scoring"] - saved)):
        later = Run(shutil.copytree(second.path, tmp_path / f"after {len(earlier)}"))
        later.write_json("plan.json", second.plan | {"forecast": alone})
        untuned.share(later, earlier)
        forecast = Run(later.path).plan["forecast"]
        assert forecast == {key: value for key, value in alone.items() if key != "untuned"} | {
            "scoring": pytest.approx(left)
        }


def test_the_seconds_of_several_runs_have_the_bases_answers_once():
    forecast = {"start_up": 1.0, "training": 10.0, "scoring": 9.0, "untuned": {"base": 2.0, "examples": 5.0}}
    assert seconds_together([forecast] * 3, 3, have_same_examples=True) == 60 - 2 * 7
    assert seconds_together([forecast], 3, have_same_examples=False) == 60 - 2 * 2


class Killed(BaseException):
    """Ends the process, as far as Python code can tell."""


def kill_at(patch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Let so many files be written, and end at the next; returns the names of those that are written."""
    written: list[str] = []
    real = Run.write_text

    def write_text(self, name, text):
        if len(written) == number:
            raise Killed
        written.append(name)
        real(self, name, text)

    patch.setattr(Run, "write_text", write_text)
    return written


def until_done(monkeypatch, act, begin) -> Iterator[int]:
    """Begin anew and end `act` before its first, second, ... write, then do it again."""
    for number in range(100):
        begin()
        with monkeypatch.context() as patch:
            kill_at(patch, number)
            try:
                act()
            except Killed:
                pass
            else:
                return
        act()
        yield number
    raise AssertionError


def test_a_kill_before_any_write_of_the_scoring_changes_nothing(compared, tmp_path, monkeypatch):
    _, second = runs_of(compared[0])
    run = Run(tmp_path / second.id)
    expected, known = second.read_json("evaluation.json"), second.read_json(FILE)

    def begin():
        shutil.rmtree(run.path, ignore_errors=True)
        shutil.copytree(second.path, run.path)
        for name in ("evaluation.json", "evaluation_rows.jsonl"):
            (run.path / name).unlink()
        shutil.copy(runs_of(compared[0])[0].path / FILE, run.path / FILE)

    numbers = []
    for number in until_done(monkeypatch, lambda: list(answers.evaluate(run)), begin):
        numbers.append(number)
        scores = run.read_json("evaluation.json")
        for name in (*BASES, "adapter", "pairs", "copied"):
            assert scores[name] == expected[name]
        assert run.read_json(FILE).keys() == known.keys()
        assert not (run.path / "answers.json").exists()
    assert len(numbers) >= 4  # answers, rows, what others may copy, scores


def test_a_kill_before_any_write_of_the_preparation_leaves_the_second_run_its_copies(compared, tmp_path, monkeypatch):
    experiment = compared[0]
    first, second = runs_of(experiment)
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    again = Experiment(tmp_path / experiment.id)
    plan.prepare(second.recipe, path=tmp_path / "prepared")

    def prepare(recipe, path):
        shutil.copytree(tmp_path / "prepared", path, dirs_exist_ok=True, ignore=lambda *_: ["plan.json"])
        Run(path).write_json("plan.json", Run(tmp_path / "prepared").plan)

    def begin():
        for folder in (experiment.path, first.path, second.path):
            shutil.rmtree(tmp_path / folder.name, ignore_errors=True)
            if folder != second.path:
                shutil.copytree(folder, tmp_path / folder.name)
        known = again.asked
        known["runs"][1]["prepared"] = False
        again.write_json("experiment.json", known)

    numbers = []
    for number in until_done(monkeypatch, lambda: again.next_run(prepare), begin):
        numbers.append(number)
        run = again.states()[1].run
        assert {*shares(Untuned(run)).values()} == {1.0}
        assert "untuned" not in run.plan["forecast"]
        assert run.plan["forecast"]["scoring"] == pytest.approx(second.plan["forecast"]["scoring"], rel=0.5)
    assert len(numbers) == 4  # the plan, copies, its new estimate, the experiment


@pytest.mark.parametrize("content", ["{", "[]", '{"a": {"text": 1}}', '{"a": {"run": 5}}'])
def test_damaged_copies_are_no_reason_to_fail(compared, content, tmp_path):
    first, _ = runs_of(compared[0])
    shutil.copytree(first.path, tmp_path / "one")
    run, other = Run(tmp_path / "one"), Run(tmp_path / "other")
    (run.path / FILE).write_text(content)
    assert shares(Untuned(run)) == {}
    other.path.mkdir()
    untuned.share(other, [run])
    assert other.read_json(FILE) == {}


def test_another_seed_asks_again_with_its_own_examples(base, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    experiment = create(request(recipe(base), seeds=2), check=without_checks)
    list(train_all(experiment))
    first, second = runs_of(experiment)
    asked, again = (run.heldout(1)[0] for run in (first, second))
    assert (asked["text"] == again["text"], asked["few_shot"] == again["few_shot"]) == (True, False)
    copied = second.read_json("evaluation.json")["copied"]
    assert copied["base"] == first.id
    assert "few_shot" not in copied
