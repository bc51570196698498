"""The weights that a run ends with: those with the lowest held-out loss, whatever interrupts it; and when it stops."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from conftest import mostly_long, without_estimates
from safetensors.torch import load_file
from test_train import kill_after, start_in_a_process
from tiny import tiny_model

from tuner.evaluation.answers import evaluate
from tuner.models.losses import heldout_loss, heldout_losses
from tuner.planning import plan
from tuner.recipe import Recipe
from tuner.runs import Run
from tuner.runs_cleanup import bytes_to_train
from tuner.training import checkpoint, clock, ending, upkeep, window
from tuner.training.upkeep import Measured
from tuner.training.window import train

WORDS = ("report", "friday", "meeting", "thanks", "help", "question", "answer", "assistant", "system", "user")

# Random labels are learned by heart, and so answered worse and worse where they are held out.
BY_HEART = {
    "model.quantization": "none",
    "method.name": "full",
    "data.heldout": 30,
    "training.learning_rate": 0.002,
    "training.scheduler": "constant",
    "training.warmup_steps": 0,
    "training.batch_size": 4,
    "training.patience": 0,
    "training.checkpoint_seconds": 0.001,
    "budget.steps": 40,
    "evaluation.loss_every": 5,
    "evaluation.rows": 1,
}


@pytest.fixture(scope="module")
def by_heart(tmp_path_factory) -> dict:
    """The settings of a run that learns its rows by heart, on a tiny encoder."""
    folder, draw = tmp_path_factory.mktemp("given"), random.Random(1)
    rows = [{"text": " ".join(draw.choices(WORDS, k=6)), "label": "ab"[i % 2]} for i in range(46)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return BY_HEART | {
        "model.name": str(tiny_model(folder / "base", "bert")),
        "data.source": str(folder / "rows.jsonl"),
    }


def prepared(path: Path, by_heart: dict, **settings) -> Run:
    """A prepared run with these settings ("__" for the dot)."""
    changed = {name.replace("__", "."): value for name, value in settings.items()}
    with without_estimates():
        return plan.prepare(Recipe().with_settings(by_heart | changed), path=path)


@pytest.fixture
def make(tmp_path, by_heart):
    """A prepared run that learns its rows by heart."""

    def make(**settings) -> Run:
        return prepared(tmp_path / f"run{len(list(tmp_path.iterdir()))}", by_heart, **settings)

    return make


@pytest.fixture(scope="module")
def whole(tmp_path_factory, by_heart) -> Run:
    """An uninterrupted run that keeps its best weights. Tests only read it."""
    run = prepared(tmp_path_factory.mktemp("whole") / "run", by_heart)
    list(train(run))
    return run


@pytest.fixture
def told(monkeypatch) -> dict[int, float | list[float]]:
    """Losses by step that the held-out rows are said to have, in place of their own: alike, or those of the rows."""
    losses: dict[int, float | list[float]] = {}

    def measure(self, model) -> Measured:
        loss = losses[self.step()]
        rows = loss if isinstance(loss, list) else [loss / 2] * 2
        return Measured(sum(rows), rows)

    monkeypatch.setattr(upkeep.HeldoutLoss, "measure", measure)
    restore = window.Window._restore

    def restored(self) -> None:
        restore(self)
        self.heldout.step = lambda: self.step

    monkeypatch.setattr(window.Window, "_restore", restored)
    return losses


def losses(run: Run) -> dict[int, float]:
    return {e["step"]: e["loss"] for e in run.events() if e["event"] == "heldout"}


def end(run: Run) -> dict:
    return run.last_event("end")


def best_files(run: Run) -> list[str]:
    return sorted(file.name for file in run.checkpoints.glob("best-*"))


SHORT = {"budget__steps": 14, "evaluation__loss_every": 2, "training__checkpoint_seconds": 60}  # for losses as told


def weights(run: Run) -> dict[str, torch.Tensor]:
    (file,) = run.adapter.glob("*.safetensors")
    return load_file(file)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def train_to(run: Run, step: int) -> None:
    """Train, and stop at about this step: a reader of the events may be a step late."""
    for event in train(run):
        if event["event"] == "step" and event["step"] >= step:
            run.stop()


def unended(run: Run) -> None:
    """As if the run had been killed before it wrote its adapter and told of its end."""
    told = [e for e in run.events() if e["event"] not in ("end", "evaluating", "answered", "evaluation")]
    run.write_text("events.jsonl", "".join(json.dumps(e) + "\n" for e in told))
    shutil.rmtree(run.adapter)
    (run.path / "evaluation.json").unlink()
    assert run.status == "interrupted"


@pytest.fixture
def seen(monkeypatch) -> dict[int, dict[str, torch.Tensor]]:
    """The weights at each measurement, as an adapter has them."""
    seen, measured = {}, upkeep.Best.measured

    def note(self, step, loss, model, schedule):
        trained = ((name.removeprefix("base."), p) for name, p in model.named_parameters() if p.requires_grad)
        seen[step] = {name: p.detach().clone() for name, p in trained}
        return measured(self, step, loss, model, schedule)

    monkeypatch.setattr(upkeep.Best, "measured", note)
    return seen


def test_a_run_ends_with_earlier_weights_whose_heldout_loss_was_clearly_lower(whole, make, seen):
    lowest = min((loss, step) for step, loss in losses(whole).items() if step)[1]
    assert 0 < lowest < 40
    last = make(training__keep="last")
    list(train(last))
    assert losses(last) == losses(whole)
    for run, step in ((whole, lowest), (last, 40)):
        assert same(weights(run), seen[step])
        assert end(run)["kept"] == step
    assert (end(whole)["best"], end(whole)["best_loss"]) == (lowest, losses(whole)[lowest])
    assert end(whole)["last_loss"] == losses(whole)[40]
    assert [e["step"] for e in whole.events() if e["event"] == "best"][-1] == lowest
    assert whole.status == "finished"
    assert not best_files(whole)  # the adapter has them


def test_a_run_whose_lowest_heldout_loss_may_be_chance_ends_with_its_last_weights(make, told, seen):
    told |= {0: 5.0, 2: [1.0, 1.0]} | {step: [0.6, 1.5] for step in range(4, 15, 2)}
    run = make(**SHORT)
    list(train(run))
    assert (end(run)["kept"], end(run)["best"]) == (14, 2)
    assert same(weights(run), seen[14])
    assert ending.sentences(end(run)) == []


def test_the_scores_are_those_of_the_weights_that_were_kept(whole):
    copy = Run(shutil.copytree(whole.path, whole.path.with_name("scored")))
    scored = copy.read_json("evaluation.json")
    (copy.path / "evaluation.json").unlink()
    list(evaluate(copy))
    assert copy.read_json("evaluation.json") == scored


@pytest.mark.parametrize("step", mostly_long([2, 7, 13, 20], 7))
def test_stopped_anywhere_a_run_ends_with_the_same_best_weights(make, whole, step):
    run = make()
    train_to(run, step)
    list(train(run))
    assert same(weights(run), weights(whole))
    assert end(run)["kept"] == end(whole)["kept"]


@pytest.mark.long
def test_killed_a_run_ends_with_the_same_best_weights(make, whole):
    run = make()
    for event, step in (("best", 3), ("checkpoint", 8), ("heldout", 12), ("step", 23)):
        kill_after(start_in_a_process(run), event, step)
    list(train(run))
    assert same(weights(run), weights(whole))
    assert end(run)["kept"] == end(whole)["kept"]


def test_a_run_killed_before_its_end_was_told_ends_with_the_same_weights(make, whole, monkeypatch):
    run, forget = make(), checkpoint.forget_best
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "forget_best", lambda run, files=(): forget(run, files) if files else None)
        list(train(run))
    unended(run)
    list(train(run))
    assert same(weights(run), weights(whole))
    assert end(run)["kept"] == end(whole)["kept"]


def test_best_weights_whose_file_is_damaged_are_not_kept_and_nobody_is_told_that_they_were(make, told):
    told |= {0: 5.0, 2: 1.0} | dict.fromkeys(range(3, 15), 3.0)
    run = make(**SHORT)
    train_to(run, 5)
    (file,) = best_files(run)
    (run.checkpoints / file).write_bytes((run.checkpoints / file).read_bytes()[:-3])
    list(train(run))
    assert (end(run)["kept"], end(run)["best"]) == (14, 2)
    assert not any("Kept" in sentence for sentence in ending.sentences(end(run)))


# What counts as clearly lower


@pytest.mark.parametrize(
    ("last", "best", "is_clear"),
    [
        ([1.0, 1.1, 0.9, 1.0], [0.5, 0.6, 0.5, 0.4], True),
        ([1.0, 1.1, 0.9, 1.0], [1.0, 1.1, 0.9, 0.5], False),  # one row of four
        ([1.0, 1.1, 0.9, 1.0], [1.0, 1.1, 0.9, 1.0], False),
        ([0.5, 0.6, 0.5, 0.4], [1.0, 1.1, 0.9, 1.0], False),
        ([1.0, 1.0, 1.0, 1.0], [0.9, 0.9, 0.9, 0.9], True),
        ([1.0], [0.5], False),
        ([float("nan"), 1.0], [0.5, 0.5], True),
    ],
)
def test_a_loss_is_clearly_higher_if_the_choice_of_rows_does_not_explain_it(last, best, is_clear):
    assert Measured(sum(last), last).is_clearly_above(best) is is_clear


def test_clear_is_two_standard_errors():
    best = [0.0] * 16
    for mean, is_clear in ((0.49, False), (0.52, True)):  # of 16 differences whose deviation is 1.033
        last = [mean + sign for sign in (1.0, -1.0)] * 8
        assert Measured(sum(last), last).is_clearly_above(best) is is_clear


@pytest.mark.parametrize(
    ("objective", "family"),
    [("whole_text", "BertForSequenceClassification"), ("span", "BertForQuestionAnswering"),
     ("next_token", "LlamaForCausalLM"), ("each_token", "BertForTokenClassification")],
)  # fmt: skip
def test_each_row_adds_its_part_to_the_loss_of_all(objective, family):
    torch.manual_seed(0)
    kind = getattr(transformers, family)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = kind(kind.config_class(vocab_size=20, **sizes)).eval()
    draw, rows = random.Random(0), []
    for length in (5, 3, 7, 4, 6):
        ids = draw.choices(range(3, 20), k=length)
        each = [draw.randrange(2) for _ in ids]
        labels = {"whole_text": each[:1], "span": [1, 2], "next_token": [-100, -100, *ids[2:]], "each_token": each}
        rows.append({"input_ids": ids, "labels": labels[objective]})
    losses = heldout_losses(objective, model, rows, 2)
    counts = [sum(label != -100 for label in row["labels"]) for row in rows]
    for row, count, loss in zip(rows, counts, losses, strict=True):
        assert loss == pytest.approx(heldout_loss(objective, model, [row], 1) * count / sum(counts), rel=1e-4)
    assert sum(losses) == heldout_loss(objective, model, rows, 2)


# Stopping early


def test_a_run_stops_once_its_heldout_loss_has_not_improved_for_so_many_measurements(make, told, seen):
    told |= {0: 5.0, 2: 3.0, 4: 2.0, 6: 2.5, 8: 2.0, 10: 2.1}
    run = make(**SHORT, training__patience=3, training__scheduler="linear")
    list(train(run))
    assert same(weights(run), seen[4])
    assert (end(run)["reason"], end(run)["step"], end(run)["kept"], end(run)["steps"]) == ("patience", 10, 4, 14)
    assert run.status == "finished"
    assert run.is_trained
    assert end(run)["saved_seconds"] == pytest.approx(4 * end(run)["in_steps"] / 10, rel=0.02)
    stopped, kept = ending.sentences(end(run) | {"saved_seconds": 70.2})
    assert stopped == (
        "Stopped at step 10 of 14: the held-out loss had not improved since step 4. That saved 1 min 10 s."
    )
    assert kept == (
        "Kept the weights of step 4: their held-out loss was clearly lower (2.000) than that of the last step (2.100)."
    )
    rates = [e["learning_rate"] for e in run.events() if e["event"] == "step"]
    assert rates == pytest.approx([0.002 * (1 - step / 14) for step in range(10)])  # as if it went on to the end


def test_patience_lasts_across_windows_and_a_run_killed_as_it_stopped_is_not_trained_further(make, told):
    told |= {0: 5.0, 2: 3.0, 4: 2.0, 6: 2.5, 8: 2.0, 10: 2.1} | dict.fromkeys((1, 3, 5, 7, 9), 9.0)
    run = make(**SHORT, training__patience=3)
    train_to(run, 7)
    list(train(run))
    assert (end(run)["reason"], end(run)["step"], end(run)["kept"]) == ("patience", 10, 4)
    unended(run)
    list(train(run))
    assert (end(run)["reason"], end(run)["step"], end(run)["kept"]) == ("patience", 10, 10)  # 4 was deleted


def test_between_windows_a_run_has_its_last_weights_and_spends_no_time_on_a_choice(make, told, seen, monkeypatch):
    told |= {0: 5.0, 2: 1.0} | {step: float(step) for step in range(4, 15, 2)}
    run, asked = make(**SHORT), clock.Clock.is_time_to_leave
    with monkeypatch.context() as patch:
        patch.setattr(clock.Clock, "is_time_to_leave", lambda self, step: "window" if step == 7 else asked(self, step))
        list(train(run))
    assert (end(run)["reason"], end(run)["step"], end(run)["kept"], end(run)["best"]) == ("window", 7, 7, 2)
    assert not same(weights(run), seen[2])
    assert 7 not in losses(run)
    list(train(run))
    assert (end(run)["reason"], end(run)["step"], end(run)["kept"]) == ("steps", 14, 2)
    assert same(weights(run), seen[2])


@pytest.mark.parametrize("patience", mostly_long([0, 7], 7))
def test_without_patience_or_with_enough_of_it_all_steps_are_done(make, told, patience):
    told |= {0: 5.0} | {step: float(step) for step in range(2, 15, 2)}
    run = make(**SHORT, training__patience=patience)
    list(train(run))
    assert (end(run)["reason"], end(run)["step"], end(run)["kept"]) == ("steps", 14, 2)
    assert end(run)["rising_since"] == 2


def test_losses_that_are_no_numbers_improve_nothing(make, told):
    told |= {0: 5.0} | dict.fromkeys(range(2, 15, 2), float("nan"))
    run = make(**SHORT, training__patience=2)
    list(train(run))
    assert (end(run)["reason"], end(run)["step"], end(run)["kept"], end(run)["best"]) == ("patience", 4, 4, None)
    assert ending.sentences(end(run)) == []


@pytest.mark.parametrize(("loss", "better"), mostly_long([(1.0, True), (2.5, False)], (2.5, False)))
def test_a_run_stopped_between_two_measurements_has_the_better_weights(make, told, loss, better, monkeypatch):
    told |= {0: 5.0, 2: 4.0, 4: 3.0, 6: 2.0, 7: loss}
    run, report = make(**SHORT), window.Window._report

    def report_and_stop(win, logs):
        report(win, logs)
        if win.step == 7:
            run.stop()

    monkeypatch.setattr(window.Window, "_report", report_and_stop)
    list(train(run))
    assert (end(run)["reason"], end(run)["kept"]) == ("stopped", 7 if better else 6)
    assert end(run)["best"] == 6  # a resumed run knows nothing of what was measured between


# Losses that rise


@pytest.mark.parametrize(
    ("measured", "since"),
    [
        ({0: 5.0, 3: 4.0, 6: 3.0, 9: 2.0}, None),
        ({0: 5.0, 3: 4.0, 6: 3.0, 9: 3.5}, 6),
        ({0: 5.0, 3: 4.0, 6: 3.0, 9: 3.05}, None),  # no more than noise
        ({0: 5.0, 3: 4.0, 6: 3.9, 7: 3.0, 9: 3.5}, None),  # not for a third of the run
        ({0: 2.0, 3: 4.0, 6: 3.0, 9: 3.0}, 0),  # worse from the start
        ({0: 5.0, 3: 2.0, 6: 9.0, 9: 2.0}, None),
        ({}, None),
    ],
)
def test_losses_have_risen_if_they_have_for_a_third_of_the_run(whole, measured, since):
    best = upkeep.Best(whole, None)
    best.keeps = False
    for step, loss in measured.items():
        best.measured(step, Measured(loss, [loss, loss]), None, None)
    assert best.rising_since(9) == since


@pytest.mark.parametrize(
    ("since", "said"),
    [
        (None, []),
        (2, ["since step 2: what the run learned after it does not carry over to other rows"]),
        (0, ["from the start: what it learned does not carry over to other rows"]),
    ],
)
def test_a_run_that_kept_its_last_weights_says_that_their_loss_rose(make, told, since, said):
    told |= {0: 5.0 if since else 1.0} | {
        step: 2.0 + (step * 0.1 if since == 2 else -step * 0.01) for step in range(2, 15, 2)
    }
    told |= {0: 5.0} if since is None else {}
    run = make(**SHORT, training__keep="last")
    list(train(run))
    assert end(run)["kept"] == 14
    advice = "Train for fewer steps, or give more rows."
    assert ending.sentences(end(run)) == [f"The held-out loss has risen {how}. {advice}" for how in said]


# Rows that are learned by heart


def said_of_rows(run: Run) -> list[dict]:
    return [{k: v for k, v in e.items() if k != "time"} for e in run.events() if e["event"] == "overfitting"]


def test_a_run_says_that_it_learns_its_rows_by_heart_while_it_does(whole):
    said = said_of_rows(whole)
    assert said
    assert said[-1]["step"] == 40
    assert said[-1]["kept"] == end(whole)["kept"]
    for event in said:
        assert event["loss"] == losses(whole)[event["step"]] > 1.1 * event["lowest"]
        assert event["lowest"] == losses(whole)[event["since"]] == min(losses(whole).values())


@pytest.mark.parametrize("step", mostly_long([7, 22, 31], 22))
def test_a_resumed_run_says_of_its_rows_what_an_uninterrupted_one_says(make, whole, step):
    run = make()
    train_to(run, step)
    list(train(run))
    assert said_of_rows(run) == said_of_rows(whole)


# Runs of earlier versions, other methods and other budgets


def test_a_run_of_an_earlier_version_measures_as_its_recipe_says_and_keeps_its_last_weights(make, told):
    told |= {step: float(step) for step in range(0, 15, 2)}
    run = make(**SHORT, training__patience=1)
    run.write_json("plan.json", {name: value for name, value in run.plan.items() if name != "measuring"})
    list(train(run))
    assert list(losses(run)) == list(range(0, 15, 2))
    assert (end(run)["reason"], end(run)["kept"], end(run)["step"]) == ("steps", 14, 14)


def test_the_ranks_of_adalora_are_those_of_the_weights_that_were_kept(make, told):
    told |= {0: 9.0, 2: 1.0} | {step: 2.0 + step for step in range(4, 15, 2)}
    run = make(**SHORT, method__name="adalora", method__rank=4)
    list(train(run))
    assert end(run)["kept"] == 2
    assert json.loads((run.adapter / "adapter_config.json").read_text())["rank_pattern"] is None
    ranks = {len(tensor) for name, tensor in weights(run).items() if "lora_E" in name}
    assert len(ranks) == 1  # none was dropped yet


@pytest.mark.usefixtures("time_to_train")
def test_a_budget_in_seconds_is_measured_about_ten_times_and_keeps_its_best(make, told):
    told |= {step: 1.0 + abs(step - 7) for step in range(4000)}
    run = make(budget__steps=None, budget__seconds=8, evaluation__loss_every="auto", training__checkpoint_seconds=60)
    list(train(run))
    assert 6 <= len(losses(run)) <= 12
    assert end(run)["kept"] == min((loss, step) for step, loss in losses(run).items() if step)[1] < end(run)["step"]


def test_the_best_weights_are_part_of_the_disk_that_a_run_needs():
    facts = {"trainable_parameters": 100, "tokens": 7}
    assert bytes_to_train(facts | {"measuring": {"keep": "best"}}) - bytes_to_train(facts) == 3 * 400
    assert bytes_to_train(facts | {"measuring": {"keep": "last"}}) == bytes_to_train(facts)
