"""What an adapter is compared with: the base's own answers, or if its head is untrained an answer that knows nothing.

Runs that learned nothing of use are named as such.
"""

import json
import random
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import in_order, plain, small_recipe
from scored import experiment_of
from visitors_runs import ANN, streamed

from tuner import cli, cli_compare, gpu, runs, terminal
from tuner.data.baseline import baseline_answer, in_words, most_frequent, most_frequent_number
from tuner.errors import TunerError
from tuner.evaluation.answers import evaluate
from tuner.evaluation.facts import facts_of
from tuner.evaluation.score import score
from tuner.evaluation.verdict import judge, needs_scoring
from tuner.experiments.ranking import results
from tuner.hub.card import card
from tuner.inference.predict import predict
from tuner.inference.variants import load_variants
from tuner.metrics import METRICS
from tuner.models.fetch import base_of
from tuner.models.load import shared_base
from tuner.planning import plan
from tuner.planning.heads import in_heads_order
from tuner.recipe import EXAMPLES, Recipe
from tuner.training.window import train
from tuner.ui import actions, api, ownership, playground_tab, progress, render, runs_tab, train_tab

pytestmark = pytest.mark.usefixtures("no_estimates")
SEEDS = range(10)
READER = {
    "model.name": "tiny-reader",
    "model.quantization": "none",
    "method.rank": 4,
    "training.learning_rate": 1e-3,
    "training.batch_size": 8,
    "evaluation.loss_every": 0,
    "budget.steps": 6,
}


def written(rows: list[dict], folder: Path) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def prepared(rows: list[dict], folder: Path, **settings) -> runs.Run:
    settings = {key.replace("__", "."): value for key, value in settings.items()} | {
        "data.source": written(rows, folder)
    }
    return plan.prepare(Recipe().with_settings(READER | settings), path=folder / "run")


def at_random(seed: int, rows: int = 160) -> list[dict]:
    draw = random.Random(seed)
    words = [
        "the",
        "tent",
        "office",
        "fabric",
        "thin",
        "sauce",
        "taste",
        "hot",
        "buy",
        "back",
        "again",
        "never",
        "good",
    ]
    return [
        {"text": " ".join(draw.choices(words, k=8)), "label": "positive" if draw.random() < 0.9 else "negative"}
        for _ in range(rows)
    ]


@pytest.mark.parametrize(
    ("task", "rows", "label", "text", "answer"),
    [
        ("classification", [{"label": "b"}, {"label": "a"}, {"label": "b"}], "b", "any", "b"),
        ("classification", [{"label": "b"}, {"label": "a"}], "a", "any", "a"),  # in the order of the alphabet
        ("token_classification", [{"tags": ["O", "B-PER", "O"]}], "O", "Ada wrote it", ""),
        ("token_classification", [{"tags": ["B-X", "O", "B-X"]}], "B-X", "a b", "X: a [1-1]\nX: b [2-2]"),
        ("question_answering", [{"question": "q", "context": "c", "answer": "c", "start": 0}], "", "q\nc", ""),
    ],
)
def test_the_best_answer_that_knows_nothing_is_the_most_frequent(task, rows, label, text, answer):
    assert most_frequent(task, rows) == label
    assert baseline_answer(task, label, text) == answer


def test_it_is_named_by_its_label():
    assert in_words("positive") == "always 'positive'"
    assert in_words("") == "always 'no answer'"
    assert in_words("x" * 50) == f"always '{'x' * 40}...'"


@pytest.fixture(scope="module")
def classified(tmp_path_factory) -> runs.Run:
    rows = at_random(0)
    run = prepared(rows, tmp_path_factory.mktemp("classified"), name="r", data__heldout=40, evaluation__rows=20)
    list(train(run))
    return run


def test_a_classifiers_rival_is_the_most_frequent_label_of_its_training_rows(classified):
    scores = classified.read_json("evaluation.json")
    assert classified.plan["baseline"] == "positive"
    assert scores["baseline"] == "always 'positive'"
    held = [row["reference"] for row in classified.heldout()[:20]]
    assert scores["base"]["accuracy"] == Counter(held)["positive"] / 20
    assert {example["base"] for example in scores["examples"]} == {"positive"}
    assert "loss" not in scores["base"]  # that of an untrained head says nothing
    assert scores["adapter"]["loss"] > 0
    assert judge(scores).kind == "unsure"


def test_page_terminal_and_card_name_the_rival_and_never_a_base_model_that_scores(classified, tmp_path):
    scores, text = classified.read_json("evaluation.json"), card(classified)
    assert "On 20 of 40 held-out rows, an answer that is always 'positive' scores" in terminal.verdict(scores)
    html = plain(render.run_card(classified))
    assert in_order(
        html, "On 20 of 40 held-out rows,", "that of an answer that is always 'positive'", "Always 'positive'"
    )
    assert "| on held-out rows | always 'positive' | with adapter |" in text
    assert in_order(text, "Always 'positive'\n\n```text\npositive\n```")
    assert in_order(text, "compared with a constant answer")
    for shown in (terminal.verdict(scores), html, text.partition("Did it help?")[2].partition("## Data")[0]):
        assert "base model scores" not in shown
        assert "Base model\n" not in shown
    found = results(experiment_of([runs.Run(shutil.copytree(classified.path, tmp_path / "mine"))]))
    assert found.rivals[0]["label"] == "always 'positive'"
    assert found.rivals[0]["score"] == pytest.approx(scores["base"]["accuracy"])
    assert "is not clearly better than an answer that is always 'positive'" in " ".join(found.sentences)
    titles = playground_tab._titles(playground_tab.actions.Lineup({"adapter": classified}, {}))
    assert titles == ["Base model, head untrained", "Adapter"]


def test_the_plan_says_how_many_rows_are_scored_and_what_with(classified):
    text = terminal.plan_text(classified.plan)
    assert "120 rows to train on, 40 held out, 20 of them scored" in text
    assert "compared with: always 'positive' (the base model's head is new and untrained" in text
    assert "40 held-out rows , 20 of them scored" in plain(render.plan_card.plan_card(classified.plan, ""))


def test_a_label_of_a_stranger_is_shown_as_text(classified, tmp_path):
    mine = runs.Run(shutil.copytree(classified.path, tmp_path / "mine"))
    mine.write_json("evaluation.json", mine.read_json("evaluation.json") | {"baseline": "always '<b>{base}|`'"})
    assert "always '{base}<b>" not in render.run_card(mine)
    assert "<b>{base}" not in render.run_card(mine)
    assert "always '<b>{base}|`'" in terminal.verdict(mine.read_json("evaluation.json"))
    assert "<b>" not in card(mine).partition("Did it help?")[2].partition("## Data")[0]


def test_a_base_that_was_trained_for_the_very_labels_is_its_own_rival(classified, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = base_of(classified).folder
    for names, has_rival in ((["Negative", "positive"], False), (["toxic", "fine"], True)):
        own = tmp_path / names[0]
        labels = dict(enumerate(names))
        AutoModelForSequenceClassification.from_pretrained(folder, id2label=labels).save_pretrained(own)
        AutoTokenizer.from_pretrained(folder).save_pretrained(own)
        settings = READER | {"model.name": str(own), "data.source": written(at_random(0), tmp_path)}
        checked = plan.check(Recipe().with_settings(settings))
        assert ("baseline" in checked.plan) == has_rival


@pytest.mark.parametrize("names", [{1: "Negative", 0: "positive"}, {0: "NEGATIVE", 1: "POSITIVE"}])
def test_labels_in_another_order_are_those_of_the_bases_own_head(classified, tmp_path, names):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    folder = base_of(classified).folder
    own = AutoModelForSequenceClassification.from_pretrained(folder, id2label=names)
    own.save_pretrained(tmp_path / "own")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(tmp_path / "own")
    rows = at_random(0)
    settings = READER | {"model.name": str(tmp_path / "own"), "data.source": written(rows, tmp_path)}
    checked = plan.check(Recipe().with_settings(settings))
    assert "baseline" not in checked.plan
    assert checked.plan["labels"] == [names[0].lower(), names[1].lower()]
    texts = [row["text"] for row in rows[:20]]
    told = pipeline("text-classification", model=own, tokenizer=tokenizer)(texts)
    answers = predict(shared_base(checked.base), tokenizer, checked.base, texts)
    assert answers == [one["label"].lower() for one in told]
    assert len(set(answers)) == 2


@pytest.mark.parametrize(
    ("names", "labels", "ordered"),
    [
        ({1: "B", 0: "c"}, ("b", "c"), ("c", "b")),
        ({0: "b", 1: "B"}, ("B", "b"), ("B", "b")),  # which differ by capital letters alone
        ({0: "c", 1: "a"}, ("b", "c"), ("b", "c")),
        ({0: "I_x", 1: "O", 2: "B_x"}, ("B-X", "I-X", "O"), ("I-X", "O", "B-X")),  # as rows of B_X are read
        ({0: "c", 1: "b", 2: "a"}, ("b", "c"), ("b", "c")),
        ({}, (), ()),
    ],
)
def test_labels_are_put_in_a_heads_order_only_if_they_are_all_its_own(names, labels, ordered):
    assert in_heads_order(labels, names) == ordered


def as_made_before(run: runs.Run, folder: Path) -> runs.Run:
    """The run as versions left it that compared an adapter with its base even where that had an untrained head."""
    mine = runs.Run(shutil.copytree(run.path, folder))
    kept = {key: value for key, value in mine.plan.items() if key not in ("baseline", "scored_rows")}
    mine.write_json("plan.json", kept)
    scores = {k: v for k, v in mine.read_json("evaluation.json").items() if k not in ("baseline", "heldout_rows")}
    gain = {"low": 0.3, "high": 0.6}
    other = {"metric": "macro_f1", "base": {"macro_f1": 0.1}, "adapter": {"macro_f1": 0.9}}
    other["gain"] = {"macro_f1": 0.8, **gain}
    scores |= {"base": {"accuracy": 0.1, "loss": 0.9}, "gain": {"accuracy": 0.5, **gain}, "other_metrics": [other]}
    mine.write_json("evaluation.json", scores)
    return mine


def test_an_earlier_run_that_beat_a_head_at_random_is_not_said_to_have_helped(classified, tmp_path):
    mine = as_made_before(classified, tmp_path / "mine")
    (mine.path / "evaluation_rows.jsonl").unlink()
    scores, found = mine.read_json("evaluation.json"), results(experiment_of([mine]))
    assert judge(scores).kind == "unsure"
    for text in (terminal.verdict(scores), plain(render.run_card(mine)), card(mine).partition("## Data")[0]):
        assert "No verdict: the base model's head may be untrained." in text
        assert "Score the run again" in text
        assert not re.search("It helped|it helped|[+]0[.]80|[+]0[.]50", text)
        assert "head perhaps untrained" in text
    assert (found.lines[0]["baseline"], found.rivals) == ("base model, head perhaps untrained", [])
    few = judge(scores | {"rows": 3}).text()
    assert in_order(few, "A verdict takes at least 10", "Score the run again")
    assert "+0.50" not in render.runs_list([playground_tab.actions.summary(mine)], "", "")


def test_an_earlier_run_that_is_scored_again_is_compared_with_an_answer_that_knows_nothing(classified, tmp_path):
    mine = as_made_before(classified, tmp_path / "mine")
    list(evaluate(mine))
    assert runs.Run(mine.path).plan["baseline"] == "positive"
    assert mine.read_json("evaluation.json") == classified.read_json("evaluation.json")


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_the_terminal_scores_an_earlier_run_again_once(command, classified, tmp_path, capsys):
    mine = as_made_before(classified, tmp_path / "mine")
    assert cli.main([command, str(mine.path)]) == 0
    assert mine.read_json("evaluation.json") == classified.read_json("evaluation.json")
    assert "Score the run again" not in capsys.readouterr().out
    file = mine.path / "evaluation.json"
    written = file.stat().st_mtime_ns
    assert cli.main([command, str(mine.path)]) == 0
    assert file.stat().st_mtime_ns == written


@pytest.fixture
def earlier(classified, tmp_path, monkeypatch) -> runs.Run:
    """Ann's run, made by an earlier version, which has no verdict."""
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    monkeypatch.setattr(gpu, "train", lambda run, slot: train(run))  # in this process
    run = as_made_before(classified, tmp_path / "earlier")
    ownership.claim(run, ANN)
    return run


def offered(run: runs.Run) -> tuple[str, str]:
    """The names of the buttons that resume the run, on its page and in the list; "" for none."""
    _, _, _, _, on_page, *_ = train_tab.panel(run.id, ANN)
    _, _, _, in_list, *_ = runs_tab.refresh({"runs": {run.id: ""}}, run.id, ANN)
    return tuple(button["value"] if button["visible"] else "" for button in (on_page, in_list))


def test_the_page_offers_to_score_an_earlier_run_again_and_the_api_does_so_once(earlier):
    assert offered(earlier) == ("Score again", "Score again")
    assert "Score the run again" in plain(render.run_card(earlier))
    events = [event["event"] for event in streamed(api.resume("earlier", visitor=ANN))]
    assert in_order(" ".join(events), "run", "queued", "starting", "evaluating", "evaluation")
    assert earlier.read_json("evaluation.json")["baseline"] == "always 'positive'"
    assert api.status("earlier")["phase"] == "finished"
    assert offered(earlier) == ("", "")
    with pytest.raises(TunerError, match="there is nothing to resume"):
        actions.resume("earlier", ANN)


def test_a_run_that_cannot_be_scored_again_says_why_and_may_be_tried_again(earlier):
    shutil.rmtree(earlier.adapter)
    list(streamed(api.resume("earlier", visitor=ANN)))
    assert api.status("earlier")["phase"] == "failed"
    assert "The adapter of run earlier is gone" in plain(render.run_card(earlier))
    assert offered(earlier) == ("Resume", "Resume")


WINDOW, STOPPED = ({"event": "unscored", "reason": reason, "row": 1, "rows": 20} for reason in ("window", "stopped"))


@pytest.mark.parametrize(
    ("event", "phase"),
    [
        (WINDOW, "continuing"),  # the next window is requested while somebody watches
        ({"event": "died"}, "continuing"),
        (STOPPED, "unjudged"),
        ({"event": "queued"}, "waiting"),
        ({"event": "withdrawn"}, "unjudged"),
    ],
)
def test_scoring_again_goes_on_in_the_next_window_unless_it_was_stopped(event, phase, earlier):
    earlier.append({"event": "starting"})
    earlier.append(event)
    assert progress.read(earlier).phase == phase


def test_an_earlier_run_without_its_training_rows_gets_no_verdict(classified, tmp_path):
    mine = as_made_before(classified, tmp_path / "mine")
    shutil.rmtree(mine.data / "train")
    list(evaluate(mine))
    scores = mine.read_json("evaluation.json")
    assert judge(scores).headline == "No verdict: the base model's head may be untrained."
    assert "Score the run again" not in judge(scores).template
    assert not needs_scoring(scores)


def test_a_base_whose_head_is_untrained_is_not_asked(classified, tmp_path, monkeypatch):
    mine = runs.Run(shutil.copytree(classified.path, tmp_path / "mine"))
    loaded = load_variants({"adapter": mine})
    assert [active.variants for active in loaded.sharing_base] == [("base",), ("adapter",)]
    untouched = replace(loaded.sharing_base[0], activate=None)  # which fails if it is used
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    list(evaluate(mine, replace(loaded, sharing_base=[untouched, loaded.sharing_base[1]])))
    assert mine.read_json("evaluation.json") == classified.read_json("evaluation.json")
    (paces,) = json.loads((tmp_path / "paces.json").read_text()).values()
    assert {name for pace in paces for name in pace} == {"seconds_per_lone_answer", "run"}


@pytest.mark.parametrize(
    ("task", "labels", "rows", "label"),
    [
        ("classification", ["a", "b"], [[1], [0], [1]], "b"),
        ("classification", ["a", "b"], [[1], [0]], "a"),
        ("token_classification", ["B-PER", "O"], [[-100, 1, 0, -100, 1, -100]], "O"),
        ("question_answering", [], [[3, 4]], ""),
    ],
)
def test_tokenized_rows_tell_the_most_frequent_label_as_well(task, labels, rows, label):
    assert most_frequent_number(task, rows, labels) == label


def test_models_that_write_their_answers_are_their_own_rivals(finished):
    assert "baseline" not in finished.plan
    assert "baseline" not in finished.read_json("evaluation.json")


@pytest.mark.parametrize("rows", [3, 9])
def test_a_plan_warns_of_too_few_held_out_rows(rows):
    (warning,) = (w for w in plan.check(small_recipe(evaluation__rows=rows)).plan["warnings"] if "scored" in w)
    assert warning.startswith(f"Only {rows} held-out rows will be scored, too few to tell whether it helped.")
    assert not any("scored" in w for w in plan.check(small_recipe(evaluation__rows=10)).plan["warnings"])


# -- few rows


def test_few_rows_of_an_earlier_version_lose_their_intervals(finished, tmp_path):
    mine = runs.Run(shutil.copytree(finished.path, tmp_path / "mine"))
    scores = mine.read_json("evaluation.json")
    old = {key: value for key, value in scores.items() if key not in ("heldout_rows", "losses", "other_rows", "pairs")}
    other = {"metric": "answer_f1", "gain": {"answer_f1": 0.5, "low": 0.4, "high": 0.6}}
    for variant in ("base", "adapter"):
        other[variant] = {"answer_f1": 0.5, "answer_f1_low": 0.4, "answer_f1_high": 0.6}
    mine.write_json("evaluation.json", old | {"rows": 3, "other_metrics": [other]})
    read = mine.read_json("evaluation.json")
    assert not re.search(r'low"|high"', json.dumps(read))
    shown = [terminal.verdict(read), plain(render.run_card(mine)), card(mine).partition("## Data")[0]]
    for text in shown:
        assert "Too few to tell: 3 held-out rows." in text
        assert "interval" not in text
        assert not any(said in text for said in ("It helped", "No clear", "It made"))
    assert "t-bars" not in render.run_card(mine)
    assert render.run_card(mine).count("t-example'") + render.run_card(mine).count('t-example"') == 8  # all rows
    (mine.path / "evaluation_rows.jsonl").unlink()
    found = results(experiment_of([mine]))
    assert (found.lines[0]["low"], found.lines[0]["high"]) == (None, None)
    assert "no interval" in f"{list(cli_compare.comparison(found).columns[2].cells)}"
    mine.write_json("evaluation.json", old | {"rows": 12})
    assert mine.read_json("evaluation.json")["gain"]["low"] == scores["gain"]["low"]


# -- what a run is named after it


def scores_of(gain=(0.1, 0.05, 0.15), rows=64, **facts) -> dict:
    value, low, high = gain
    return {
        "metric": "rougeL",
        "rows": rows,
        "base": {"rougeL": 0.3, "loss": 2.0},
        "adapter": {"rougeL": 0.3 + value, "loss": 1.0},
        "gain": {"rougeL": value, "low": low, "high": high},
    } | facts


def test_the_verdict_counts_rows_as_the_card_does():
    assert judge(scores_of(rows=1064)).text().startswith("On 1,064 held-out rows, ")
    assert judge(scores_of(rows=1064, heldout_rows=2000)).text().startswith("On 1,064 of 2,000 held-out rows, ")
    assert judge(scores_of(rows=64, heldout_rows=64)).text().startswith("On 64 held-out rows, ")
    few = judge(scores_of(rows=5, heldout_rows=16))
    assert few.headline == "Too few to tell: 5 of 16 held-out rows."
    assert "A verdict takes at least 10 scored rows (evaluation.rows)." in few.text()
    assert judge(scores_of(rows=1, heldout_rows=1)).headline == "Too few to tell: 1 held-out row."


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ((0.1, 0.05, 0.15), (-0.2, -0.3, -0.1), "By answer F1, it made things worse: -0.20 (95% interval -0.30 to"),
        ((0.1, 0.05, 0.15), (0.01, -0.1, 0.1), "By answer F1, there is no clear difference: +0.01 (95% interval"),
        ((0.01, -0.1, 0.1), (0.2, 0.1, 0.3), "By answer F1, it helped: +0.20 (95% interval +0.10 to +0.30)."),
        ((0.1, 0.05, 0.15), (0.2, 0.1, 0.3), None),
        ((0.01, -0.1, 0.1), (0.02, -0.1, 0.2), None),
    ],
)
def test_a_metric_that_says_something_else_is_named(first, second, said):
    other = {"metric": "answer_f1", "base": {"answer_f1": 0.5}, "adapter": {"answer_f1": 0.5}}
    other["gain"] = dict(zip(("answer_f1", "low", "high"), second))
    text = judge(scores_of(first, other_metrics=[other])).text()
    assert (said in text) if said else "By answer F1" not in text


def test_rows_known_by_heart_are_named():
    losses = {"training": 0.021, "lowest": 1.2, "last": 1.9}
    text = judge(scores_of(losses=losses)).text()
    assert "It learned its rows by heart: its training loss fell to 0.021 while its loss on held-out rows rose" in text
    assert "rose from 1.200 to 1.900." in text
    assert "It learned its rows by heart: " in judge(scores_of(rows=6, losses=losses)).text()
    for fine in ({"training": 0.9}, {"last": 1.3}, {"training": 0.4, "last": 1.5}):
        assert "by heart" not in judge(scores_of(losses=losses | fine)).text()


def test_weights_from_before_a_run_learned_its_rows_by_heart_are_not_said_to_know_them(finished, tmp_path):
    losses = {"training": 0.021, "lowest": 1.2, "last": 1.9, "kept": 18}
    text = judge(scores_of(losses=losses)).text()
    assert "After step 18 it learned its rows by heart: its training loss fell to 0.021" in text
    assert "rose from 1.200 to 1.900. The weights of step 18 were kept, and they are what was scored." in text
    assert "for fewer epochs" not in text
    run = runs.Run(Path(shutil.copytree(finished.path, tmp_path / "run")))
    run.append({"event": "heldout", "step": 4, "loss": 1.25})
    last = run.last_event("end")
    for kept in (last["step"], 3):
        run.append(last | {"kept": kept})
        assert facts_of(run)["losses"].get("kept") == (3 if kept == 3 else None)


def test_the_losses_that_are_told_are_the_last_epochs_and_the_lowest_and_the_last_held_out_ones(finished, tmp_path):
    run = runs.Run(Path(shutil.copytree(finished.path, tmp_path / "run")))
    for step, loss in ((3, 1.25), (4, 1.5)):
        run.append({"event": "heldout", "step": step, "loss": loss})
    losses = [event["loss"] for event in run.events() if event["event"] == "step"]
    last = losses[-run.plan["steps_per_epoch"] :]
    assert len(last) < len(losses)
    assert facts_of(run)["losses"] == {"training": pytest.approx(sum(last) / len(last), abs=1e-5)} | {
        "lowest": 1.25,
        "last": 1.5,
    }


def test_a_held_out_loss_above_the_bases_is_named_unless_it_helped():
    worse = {"adapter": {"rougeL": 0.31, "loss": 2.5}}
    assert "higher than the base model's (2.500 and 2.000)" in judge(scores_of((0.01, -0.1, 0.1)) | worse).text()
    assert "higher than" not in judge(scores_of() | worse).text()
    assert "higher than" not in judge(scores_of((0.01, -0.1, 0.1))).text()


def test_answers_that_fit_other_rows_as_well_are_no_help():
    about = ["tent", "sauce", "lamp", "chair", "phone", "clock", "glove", "spoon"]
    references = [f"We are pleased to send you the {thing} number {i}" for i, thing in enumerate(about * 4)]
    shuffled = references[5:] + references[:5]
    for answers, kind in ((references, "good"), (shuffled, "unsure")):
        pairs = [{"base": "no idea", "adapter": answer} for answer in answers]
        scores = score([METRICS["rougeL"]], references, pairs)
        assert scores["gain"]["low"] > 0.4
        assert judge(scores).kind == kind
    assert judge(scores).headline == "It learned how answers look, not what they depend on."
    assert "Check that each completion stands beside its own prompt." in judge(scores).text()
    assert 0.75 < scores["other_rows"]["rougeL"] < 0.9
    # Of a gain of 0.4, answers that fit others less well by a quarter are the prompts' own.
    name, unsure = "rougeL", {"low": -0.01, "high": 0.2}
    for others, kind in ((0.61, "unsure"), (0.59, "good")):
        assert judge(scores_of((0.4, 0.3, 0.5), other_rows={name: others, **unsure})).kind == kind


def test_answers_are_compared_with_the_two_rows_behind_their_own():
    references = [f"word{i // 2}" for i in range(20)]  # every other row has the same reference as the next
    scores = score([METRICS["rougeL"]], references, [{"base": "no", "adapter": text} for text in references])
    assert scores["other_rows"]["rougeL"] == 0.25


def test_references_that_are_all_alike_say_nothing_of_other_rows():
    same = score([METRICS["rougeL"]], ["I can't say."] * 20, [{"base": "no", "adapter": "I can't say."}] * 20)
    assert "other_rows" not in same
    assert judge(same).kind == "good"
    mostly = ["yes"] * 18 + ["no"] * 2
    scores = score([METRICS["rougeL"]], mostly, [{"base": "", "adapter": answer} for answer in mostly])
    assert judge(scores).kind == "good"


@pytest.mark.long
@pytest.mark.parametrize("seed", SEEDS)
def test_labels_at_random_are_never_said_to_help(seed, tmp_path):
    run = prepared(at_random(seed, 400), tmp_path, budget__steps=100, seed=seed)
    list(train(run))
    scores = run.read_json("evaluation.json")
    assert judge(scores).kind != "good"


@pytest.mark.long
@pytest.mark.parametrize("seed", SEEDS)
def test_shuffled_completions_are_never_said_to_help(seed, tmp_path):
    rows = [json.loads(line) for line in (EXAMPLES / "corporate.jsonl").read_text().splitlines()]
    completions = [row["completion"] for row in rows]
    random.Random(seed).shuffle(completions)
    source = written([row | {"completion": text} for row, text in zip(rows, completions, strict=True)], tmp_path)
    settings = {"budget.steps": 24, "evaluation.rows": 48, "evaluation.max_new_tokens": 24, "seed": seed}
    run = plan.prepare(
        Recipe.load("corporate").with_settings(settings | {"data.source": source}), path=tmp_path / "run"
    )
    list(train(run))
    assert judge(run.read_json("evaluation.json")).kind != "good"
