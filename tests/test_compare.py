"""`tuner compare`, and several runs' adapters side by side and merged together."""

import io
import json

import pytest
import torch
from conftest import in_order, small_recipe, timed, without_estimates
from scored import experiment_of, scored_run
from transformers import AutoModelForCausalLM

from tuner import cli_compare, runs
from tuner.cli import main
from tuner.errors import TunerError
from tuner.experiments import train as train_module
from tuner.experiments.ranking import results
from tuner.experiments.train import train_all
from tuner.inference import generate, merge
from tuner.inference.variants import load_variants
from tuner.methods.registry import METHODS
from tuner.models import load
from tuner.models.fetch import base_of
from tuner.models.load import is_loaded
from tuner.planning import plan
from tuner.training import window
from tuner.training.window import train

QUICK = {"evaluation__rows": 1, "evaluation__max_new_tokens": 2}
FEW = [
    "data.max_rows=40",
    "evaluation={rows: 4, max_new_tokens: 4, loss_every: 0, few_shot: 0}",
    "training.batch_size=4",
]
PROMPT = [{"role": "user", "content": "yo i gotta bounce early tmrw"}]


@timed
@pytest.mark.usefixtures("time_to_train")
def test_compare_trains_each_method_for_the_same_seconds_on_the_same_base_with_its_own_defaults(
    capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    command = ["compare", "corporate", "--methods", "lora,ia3,full", "--seconds", "2", "--json"]
    assert main([*command, *(part for setting in FEW for part in ("--set", setting))]) == 0
    shown = json.loads(capsys.readouterr().out)
    lines = {line["label"]: line for line in shown["lines"]}
    assert set(lines) == {"lora", "ia3", "full"}
    for name, line in lines.items():
        (run,) = map(runs.open_run, line["runs"])
        # Full fine-tuning needs 16-bit weights, so all methods train on them.
        assert run.recipe.model.quantization == "none"
        assert run.recipe.budget.seconds == 2
        width = 256
        assert run.plan["settings"]["learning_rate"] == METHODS[name].learning_rate(width)
        assert line["seconds"] <= 2.5
        assert line["steps"] > 0
        assert line["score"] is not None
        assert line["adapter_bytes"] > 0
    sizes = [lines[name]["trainable_parameters"] for name in ("ia3", "lora", "full")]
    assert sizes == sorted(sizes)
    assert "All train on the 16-bit base model, because Full fine-tuning can't on another." in shown["sentences"]
    assert [rival["label"] for rival in shown["rivals"]] == ["base model"]


def test_the_base_is_loaded_before_the_first_method_begins(tmp_path, monkeypatch, no_estimates):
    run = plan.prepare(small_recipe(), path=tmp_path / "run")
    load.forget_bases()

    def train(run):
        yield {"event": "began", "loaded": is_loaded(base_of(run))}

    monkeypatch.setattr(window, "train", train)
    events = train_all(experiment_of([run]))
    about = {"run": "run", "label": run.recipe.name}
    assert next(events) == {**about, "event": "loading"}
    assert next(events) == {**about, "event": "began", "loaded": True}
    events.close()


def test_a_comparison_is_refused_with_the_problems_of_all_methods_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    command = ["compare", "corporate", "--set", "data.source=nope.csv", "--methods"]
    assert main([*command, "ia3,lora"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("tuner: ia3: There is no file 'nope.csv'")
    assert second.startswith("tuner: lora: There is no file 'nope.csv'")
    assert main([*command, "lorra,ia3"]) == 2
    assert "There is no method 'lorra'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["corporate"], "corporate alone can't be compared. Say what to compare it with: --methods lora,ia3, "),
        (["nothing"], "There is no experiment 'nothing', no recipe and no run. Check the name, or start with: "),
        (["one", "two"], "There is no run 'one'."),
        (["one", "two", "--seeds", "2"], "Give one recipe, not 2 (one, two)."),
        (["one", "two", "--seconds", "2"], "Runs that have finished can't be given --seconds. Leave that out."),
        (["{experiment}", "--set", "seed=1"], "which resumes as it was begun, can't be given --set. Leave that out."),
        (["corporate", "--search", "0"], "A search takes at least 2 trials, and this one has 0."),
        (["corporate", "--seeds", "0"], "Give 2 to 20 seeds, not 0: one alone says nothing about chance."),
        (["corporate", "--methods", ""], "There is no method ''. Choose from: lora, "),
        (["corporate", "--methods", "lora,,"], "lora alone can't be compared. Name at least two methods, or ask for"),
        (["{experiment}", "--seconds", "0"], "resumes as it was begun, can't be given --seconds. Leave that out."),
        (["{run}", "other", "--out", "{run_folder}/recipe.yaml"], "recipe.yaml can't be written to (file exists). "),
        (["corporate", "--seeds", "2", "--out", "/dev/null/x"], "--out: /dev/null/x can't be written to (not a dir"),
        (["corporate", "--search", "1"], "A search takes at least 2 trials, and this one has 1."),
        (["{run}"], "alone can't be compared. Say what to compare it with: "),
    ],
)
def test_what_can_not_be_compared_is_refused_in_the_terminal(words, problem, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    run = scored_run(tmp_path, "mine", [True] * 12)
    given = {"experiment": str(experiment_of([run]).path), "run": run.id}
    given["run_folder"] = str(run.path)
    assert main(["compare", *(word.format(**given) for word in words)]) == 2
    assert problem in capsys.readouterr().err


def test_a_table_that_can_not_be_written_is_said_without_a_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    for name in ("good", "poor"):
        scored_run(tmp_path, name, [True] * 12)
    (tmp_path / "out/comparison.csv").mkdir(parents=True)
    assert main(["compare", "good", "poor", "--out", str(tmp_path / "out")]) == 2
    assert "out can't be written to (is a directory). Choose another folder." in capsys.readouterr().err


def test_finished_runs_are_shown_beside_each_other(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    for name, right in (("good", 60), ("poor", 3)):
        scored_run(tmp_path, name, [n < right for n in range(64)], method__rank=right)
    assert main(["compare", "good", "poor", "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert in_order(told, "1", "good", "0.938", "2", "poor", "0.047", "base model", "0.000")
    assert in_order(told, "method.rank", "60", "3", "good is clearly better than poor, the next best: +0.891 in")
    assert in_order(told, "Written:", "comparison.csv", "Written:", "comparison.png")
    assert main(["compare", "good", "poor", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["settings"]["method.rank"] == {"good": 60, "poor": 3}
    assert shown["files"] == []


def test_an_interrupted_comparison_says_how_to_resume_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    experiment = experiment_of([scored_run(tmp_path, "mine", [True] * 12)])

    def interrupted(given):
        yield {"run": "mine", "label": "mine", "event": "start"}
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "train_all", interrupted)
    assert main(["compare", experiment.id]) == 130
    told = capsys.readouterr().err
    assert in_order(told, "mine: starting", "stopped; what was trained is kept. To resume: tuner compare")
    assert told.endswith(f"tuner compare {experiment.path}\n")


COLUMNS = ("", "", "score", "held-out loss", "trained parameters", "adapter", "steps", "seconds")


def test_the_table_has_each_figure_in_its_column_and_the_best_first(tmp_path):
    good = scored_run(tmp_path, "good [b]", [n < 48 for n in range(64)], seconds=29.96, parameters=75776)
    poor = scored_run(tmp_path, "poor", [n < 16 for n in range(64)], seconds=3.04, parameters=90)
    experiment = experiment_of([poor, good])
    table = cli_compare.comparison(results(experiment))
    assert f"{table.title}" == "ROUGE-L on held-out rows (95% interval; higher is better)"
    assert tuple(column.header for column in table.columns) == COLUMNS
    assert [tuple(cells) for cells in zip(*(column.cells for column in table.columns))] == [
        ("1", "good \\[b]", "0.750 (0.63 to 0.84)", "2.000", "75,776*", "0.07 MB", "8", "30.0*"),
        ("2", "poor", "0.250 (0.16 to 0.37)", "2.000", "90*", "0.00 MB", "8", "3.0*"),
        ("", "base model", "0.000 (0.00 to 0.06)", "", "", "", "", ""),
    ]
    (good.path / "evaluation.json").unlink()
    table = cli_compare.comparison(results(experiment))
    assert [*table.columns[2].cells][-1] != "interrupted"
    assert "interrupted" in [*table.columns[2].cells]


def test_progress_is_one_line_that_is_overwritten(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(written, line_buffering=True))
    told, events = (
        [],
        [
            {"event": "start", "step": 0},
            {"event": "step", "step": 12, "seconds": 3.6, "loss": 1.0},
            {"event": "heldout", "step": 12, "loss": 1.0},
            {"event": "evaluating", "row": 0},
            {"event": "finished"},
        ],
    )
    for event in events:
        cli_compare.show_event({"label": "ia3"} | event)
        told.append(written.getvalue().decode())  # at once, although no line has ended
    one, two, three, four = (f"\ria3: {state:40}" for state in ("starting", "step 12, 4 s", "scoring", "finished"))
    assert told == [one, one + two, one + two, one + two + three, f"{one}{two}{three}{four}\n"]


@pytest.fixture(scope="module")
def several(tmp_path_factory, small_base):
    """Runs of four methods on one base: mixed in one batch, attached in turn, not mergeable."""
    folder, made = tmp_path_factory.mktemp("several"), {}
    for name in ("lora", "rslora", "ia3", "prefix_tuning"):
        rate = METHODS[name].learning_rate(256)
        settings = QUICK | {"model__name": small_base}
        recipe = small_recipe(method__name=name, method__rank="auto", training__learning_rate=rate, **settings)
        with without_estimates():
            made[name] = plan.prepare(recipe, path=folder / name)
        list(train(made[name]))
    return made


def answers(adapters: dict, *variants: str) -> dict[str, str]:
    loaded = load_variants(adapters)
    sampling = generate.Sampling(max_new_tokens=12)
    *_, last = generate.stream(loaded, dict.fromkeys(variants or loaded.variants, PROMPT), sampling)
    return last


def test_any_number_of_adapters_answer_on_one_base_as_each_does_alone(several):
    together = answers(several)
    assert set(together) == {"base", *several}
    for name, run in several.items():
        assert answers({"adapter": run}, "adapter")["adapter"] == together[name]


def test_switching_adapters_does_not_load_the_base_again(several):
    from tuner.models.fetch import base_of
    from tuner.models.load import shared_base

    answers({"adapter": several["lora"]})
    before = shared_base(base_of(several["lora"]))
    answers(several)
    assert shared_base(base_of(several["ia3"])) is before


def test_adapters_of_different_bases_are_refused_side_by_side(several, tmp_path):
    other = plan.prepare(small_recipe(model__quantization="none", **QUICK), path=tmp_path / "other")
    list(train(other))
    with pytest.raises(TunerError, match="different bases"):
        load_variants({"a": several["lora"], "b": other})


def test_a_weighted_merge_is_the_weighted_sum_of_its_runs(several, tmp_path, capsys):
    def weights(folder) -> dict[str, torch.Tensor]:
        return {n: p.float() for n, p in AutoModelForCausalLM.from_pretrained(folder).named_parameters()}

    one, other = several["lora"], several["ia3"]
    for run in (one, other):
        merge.merge(run)
    merge.merge_weighted({one: 1.0, other: 0.0}, tmp_path / "one")
    alone = weights(one.merged)
    assert all(torch.equal(p, alone[n]) for n, p in weights(tmp_path / "one").items())
    assert (
        main(["merge", str(one.path), str(other.path), "--weights", "0.5,0.5", "--out", str(tmp_path / "half")]) == 0
    )
    second, half = weights(other.merged), weights(tmp_path / "half")
    base = weights(one.recipe.model.name)
    moved = 0
    for name, p in half.items():
        expected = base[name] + 0.5 * (alone[name] - base[name]) + 0.5 * (second[name] - base[name])
        assert torch.allclose(p, expected, atol=0.01)
        assert (p - expected).norm() <= 0.1 * (expected - base[name]).norm() + 1e-3 * base[name].norm(), name
        moved += int(not torch.equal(p, base[name]))
    assert moved > 10
    capsys.readouterr()
    assert main(["merge", str(one.path), str(other.path), "--out", str(tmp_path / "equal"), "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["shares"].values()) == [0.5, 0.5]


def test_methods_that_leave_the_weights_alone_cannot_be_merged(several, tmp_path):
    with pytest.raises(TunerError, match="can't be merged"):
        merge.merge_weighted({several["lora"]: 0.5, several["prefix_tuning"]: 0.5}, tmp_path / "sum")
    assert not (tmp_path / "sum").exists()
