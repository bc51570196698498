"""One verdict for all readers, whichever way a metric points; every metric that a recipe names is shown."""

import json
import shutil

import pytest
from conftest import in_order, keep_only, plain, small_recipe
from peft import TaskType
from test_scoring import OVERLAP, metric, pairs
from transformers.models.auto import modeling_auto

from tuner import metrics, runs, tasks, terminal
from tuner.errors import TunerError
from tuner.evaluation.answers import evaluate
from tuner.evaluation.score import score
from tuner.evaluation.verdict import judge, other_scores, with_interval
from tuner.hub.card import card
from tuner.metrics import METRICS, Metric
from tuner.planning import plan
from tuner.tasks import TASKS
from tuner.ui import fields, render, result

ERRORS = metric("errors", lambda reference, answer: (float(reference != answer), 1.0), higher_is_better=False)


def scored_by(metric: Metric, monkeypatch, *answers: tuple[str, str]) -> dict:
    """The scores of answers to "yes" by a metric that is in the table."""
    monkeypatch.setitem(METRICS, metric.name, metric)
    return score([metric], ["yes"] * len(answers), pairs(*answers))


def test_scores_of_the_first_version_are_rouge():
    assert metrics.metric_of({"rows": 3}).name == "rougeL"
    assert metrics.metric_of({"metric": "accuracy"}).title == "accuracy"


def test_fewer_errors_are_an_improvement(monkeypatch):
    better = scored_by(ERRORS, monkeypatch, *[("no", "yes")] * 20, *[("yes", "yes")] * 10)
    assert (better["base"]["errors"], better["adapter"]["errors"]) == (pytest.approx(2 / 3, abs=1e-4), 0)
    assert better["gain"]["errors"] == pytest.approx(2 / 3, abs=1e-4)
    assert 0 < better["gain"]["low"] < better["gain"]["errors"] < better["gain"]["high"]
    assert judge(better).kind == "good"
    assert "It helped" in terminal.verdict(better)
    assert in_order(terminal.verdict(better), "0.67", "0.00", "lower is better", "+0.67")
    worse = scored_by(ERRORS, monkeypatch, *[("yes", "no")] * 20, *[("yes", "yes")] * 10)
    assert worse["gain"]["high"] < 0
    assert judge(worse).kind == "bad"
    assert "It made things worse" in result.verdict(worse)
    assert judge(scored_by(ERRORS, monkeypatch, ("no", "no"), ("yes", "yes"))).kind == "unsure"


def test_more_errors_than_the_bars_can_show_still_fit_in_them(monkeypatch):
    rate = metric("rate", lambda reference, answer: (float(len(answer)), 1.0), higher_is_better=False)
    html = result.variants(scored_by(rate, monkeypatch, ("12345", "1234")))
    assert 'width:100.0%"></i>' in html
    assert 'width:80.0%"></i>' in html


def test_a_recipe_names_its_metrics_and_check_refuses_what_does_not_exist_or_does_not_fit():
    for named in ("auto", "answer_f1", ["rougeL", "answer_f1"]):
        assert plan.check(small_recipe(evaluation__metrics=named)).plan
    with pytest.raises(TunerError, match=r"there is no 'magic'. Use: rougeL, .*answer_f1"):
        plan.check(small_recipe(evaluation__metrics=["rougeL", "magic"]))
    with pytest.raises(TunerError, match=r"accuracy can't score text generation. Use auto, or: rougeL, .*answer_f1, "):
        plan.check(small_recipe(evaluation__metrics=["accuracy", "rougeL"]))
    with pytest.raises(TunerError) as refusal:
        plan.check(small_recipe(evaluation__metrics="magic", method__name="magic", data__source="nope.csv"))
    assert len(refusal.value.problems) == 3  # together with the other problems


def test_the_page_takes_several_metrics_with_commas_between_them():
    typed = fields.to_settings({"evaluation.metrics": " rougeL, answer_f1"})
    recipe = small_recipe().with_settings({"evaluation.metrics": typed["evaluation"]["metrics"]})
    assert recipe.evaluation.metrics == ["rougeL", "answer_f1"]
    assert fields.to_input("evaluation.metrics", recipe) == "rougeL, answer_f1"
    assert fields.to_input("evaluation.metrics", small_recipe()) == ""


def test_page_terminal_and_card_show_every_metric_that_a_recipe_names(finished, tmp_path, monkeypatch):
    monkeypatch.setitem(METRICS, "overlap", OVERLAP)
    monkeypatch.setitem(METRICS, "errors", ERRORS)
    mine = runs.Run(shutil.copytree(finished.path, tmp_path / "mine"))
    (mine.path / "evaluation.json").unlink()
    named = {"evaluation.metrics": ["overlap", "rougeL", "errors"]}
    mine.write_text("recipe.yaml", mine.recipe.with_settings(named).to_yaml())
    mine = runs.Run(mine.path)
    list(evaluate(mine))
    scores, before = mine.read_json("evaluation.json"), finished.read_json("evaluation.json")
    assert scores["metric"] == "overlap"
    assert {"overlap", "overlap_low", "overlap_high", "exact_match", "loss"} == set(scores["adapter"])
    assert [other["metric"] for other in scores["other_metrics"]] == ["rougeL", "errors"]
    rouge = scores["other_metrics"][0]
    assert rouge["adapter"]["rougeL"] == before["adapter"]["rougeL"]
    assert rouge["gain"] == before["gain"]
    shown = f"{rouge['base']['rougeL']:.2f}", f"{rouge['adapter']['rougeL']:.2f}", f"{rouge['gain']['rougeL']:+.2f}"
    for text in (terminal.verdict(scores), plain(render.run_card(mine))):
        assert in_order(text, judge(scores).headline, f"{scores['adapter']['overlap']:.2f}", "ROUGE-L", *shown)
        assert in_order(text, *shown, "Errors", "lower is better")
    text = card(mine)
    assert in_order(text, "Overlap, higher is better", f"{scores['base']['overlap']:.3f}", "ROUGE-L", "Errors")
    assert in_order(text, "ROUGE-L", f"{rouge['gain']['rougeL']:+.3f}", f"{rouge['base']['rougeL']:.3f}", "Errors")
    assert judge(scores).headline in text


def test_the_prompt_of_a_scored_row_is_its_last_question(finished, tmp_path):
    mine = runs.Run(shutil.copytree(finished.path, tmp_path / "mine"))
    (mine.path / "evaluation.json").unlink()
    roles = ("system", "user", "assistant", "user")
    turns = [[{"role": role, "content": f"{role} {i} of {row}"} for i, role in enumerate(roles)] for row in range(4)]
    rows = [{"messages": messages, "reference": "x"} for messages in turns]
    mine.write_text("data/heldout.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    mine.write_json("answers.json", {f"{row}": {"base": "b", "adapter": f"{row}"} for row in range(4)})
    list(evaluate(mine))
    examples = mine.read_json("evaluation.json")["examples"]
    assert [(e["prompt"], e["adapter"]) for e in examples] == [(f"user 3 of {row}", f"{row}") for row in range(4)]


@pytest.mark.parametrize(
    ("low", "high", "headline"),
    [(0.1, 0.2, "It helped."), (-0.1, 0.2, "No clear difference."), (-0.2, -0.1, "It made things worse.")],
)
def test_card_page_and_terminal_give_one_verdict(low, high, headline, finished, tmp_path):
    mine = runs.Run(shutil.copytree(finished.path, tmp_path / "mine"))
    gain = {"rougeL": (low + high) / 2, "low": low, "high": high}
    others = {"rougeL": 0.0, "low": 0.1, "high": 0.2}
    scores = mine.read_json("evaluation.json") | {"gain": gain, "rows": 40, "other_rows": others, "pairs": []}
    mine.write_json("evaluation.json", scores)
    for text in (terminal.verdict(scores), plain(result.verdict(scores)), plain(render.run_card(mine)), card(mine)):
        assert headline in text
        assert text.count("It helped.") + text.count("No clear") + text.count("It made") == 1


def test_a_verdict_takes_ten_rows(monkeypatch):
    answers = [("no", "yes")] * 10
    scores = [scored_by(ERRORS, monkeypatch, *answers[:rows]) for rows in (9, 10)]
    assert [judge(score).kind for score in scores] == ["unsure", "good"]
    assert judge(scores[0]).headline == "Too few to tell: 9 held-out rows."


# -- each figure in its place


def evaluated(base, adapter, low, high, rows=40, name="rougeL", gain=None) -> dict:
    gains = {name: adapter - base if gain is None else gain, "low": low, "high": high}
    return {"metric": name, "rows": rows, "base": {name: base}, "adapter": {name: adapter}, "gain": gains}


ROUGE = METRICS["rougeL"].explanation
HINT = " With so few rows this is only a hint."


@pytest.mark.parametrize(
    ("scores", "kind", "headline", "sentences"),
    [
        (
            evaluated(0.3124, 0.4567, 0.051, 0.2149, 20),
            "good",
            "It helped.",
            f"On 20 held-out rows, the base model scores 0.31 in ROUGE-L and the adapter 0.46 ({ROUGE}). The gain is "
            "+0.14 (95% interval +0.05 to +0.21).",
        ),
        (
            evaluated(0.71, 0.4, -0.52, -0.11, 15, "accuracy"),
            "bad",
            "It made things worse.",
            "On 15 held-out rows, the base model scores 0.71 in accuracy and the adapter 0.40 (the share of texts "
            f"that got the right label). The gain is -0.31 (95% interval -0.52 to -0.11).{HINT}",
        ),
        (
            evaluated(0.5, 0.4988, -0.0149, 0.0012, 10),
            "unsure",
            "No clear difference.",
            f"On 10 held-out rows, the base model scores 0.50 in ROUGE-L and the adapter 0.50 ({ROUGE}). The gain is "
            f"+0.00 (95% interval -0.01 to +0.00).{HINT}",
        ),
        (
            evaluated(0.25, 1.0, 0.6, 0.9, 1),
            "unsure",
            "Too few to tell: 1 held-out row.",
            f"On it, the base model scores 0.25 in ROUGE-L and the adapter 1.00 ({ROUGE}). A verdict takes at "
            "least 10 held-out rows.",
        ),
        (
            evaluated(0.9, 0.2, 0.6, 0.8, 31, "errors", gain=0.7),
            "good",
            "It helped.",
            "On 31 held-out rows, the base model scores 0.90 in Errors and the adapter 0.20 (as the test says; lower "
            "is better). The gain is +0.70 (95% interval +0.60 to +0.80).",
        ),
    ],
)  # fmt: skip
def test_a_verdict_names_each_figure_for_what_it_is(monkeypatch, scores, kind, headline, sentences):
    monkeypatch.setitem(METRICS, "errors", ERRORS)
    verdict = judge(scores)
    assert (verdict.kind, verdict.headline, verdict.text()) == (kind, headline, sentences)
    marked = verdict.text(lambda score: f"*{score}*")
    assert in_order(marked, f"base model scores *{verdict.base}*", f"the adapter *{verdict.adapter}*")
    assert marked.count("*") == 4


@pytest.mark.parametrize(("low", "high"), [(0, 0.3), (-0.3, 0), (0, 0)])
def test_an_interval_that_ends_at_nothing_is_no_difference(low, high):
    assert judge(evaluated(0.4, 0.5, low, high)).kind == "unsure"


@pytest.mark.parametrize(
    ("scores", "digits", "shown"),
    [
        (evaluated(0.5, 0.6, 0.05, 0.15), 2, ("0.50", "0.60", "+0.10", "+0.05", "+0.15")),
        (evaluated(0.5, 0.6, 0.05, 0.15), 3, ("0.500", "0.600", "+0.100", "+0.050", "+0.150")),
        (evaluated(0.5012, 0.5046, 0.0012, 0.0061), 2, ("0.501", "0.505", "+0.003", "+0.001", "+0.006")),  # 0.50, 0.50
        (evaluated(0.501, 0.5149, 0.0041, 0.02), 2, ("0.501", "0.515", "+0.014", "+0.004", "+0.020")),  # from +0.00
        (evaluated(0.6, 0.5, -0.15, -0.0004), 2, ("0.6000", "0.5000", "-0.1000", "-0.1500", "-0.0004")),
        (evaluated(0.5, 0.50004, 0.00003, 0.00006), 2, ("0.5000", "0.5000", "+0.0000", "+0.0000", "+0.0001")),
        (evaluated(0.5012, 0.5046, -0.0012, 0.0061), 2, ("0.50", "0.50", "+0.00", "+0.00", "+0.01")),  # unsure
        (evaluated(0.5012, 0.5046, -0.0012, 0.0061), 3, ("0.501", "0.505", "+0.003", "-0.001", "+0.006")),
        (evaluated(0.5012, 0.5014, 0.0001, 0.0003), 3, ("0.5012", "0.5014", "+0.0002", "+0.0001", "+0.0003")),
    ],
)
def test_a_firm_verdict_has_the_digits_that_tell_its_figures_apart(scores, digits, shown):
    base, adapter, *gain = shown
    verdict = judge(scores, digits)
    assert (verdict.base, verdict.adapter) == (base, adapter)
    assert "The gain is {} (95% interval {} to {})".format(*gain) in verdict.text()


@pytest.mark.parametrize(("rows", "said"), [(1, "1 has a loss."), (3, "3 have a loss.")])
def test_a_metric_without_an_interval_says_how_many_rows_have_a_loss(rows, said):
    part = {"metric": "perplexity", "rows": rows, "gain": {"perplexity": 0.1}}
    part |= {variant: {"perplexity": 2.0} for variant in ("base", "adapter")}
    assert said in judge(evaluated(0.5, 0.6, 0.05, 0.15) | {"other_metrics": [part]}).text()


def test_without_prompts_the_verdict_tells_both_losses():
    verdict = judge({"gain": None, "rows": 0, "base": {"loss": 2.34567}, "adapter": {"loss": 1.2}})
    assert (verdict.kind, verdict.headline) == ("unsure", "Only the loss was measured.")
    assert verdict.text(str.upper) == (
        "On held-out text, the base model's loss is 2.346 and the adapter's 1.200 (lower is better)."
    )


def test_further_metrics_are_told_each_with_its_intervals(monkeypatch):
    monkeypatch.setitem(METRICS, "errors", ERRORS)
    others = [
        {
            "metric": name,
            "base": {name: base, f"{name}_low": base - 0.111, f"{name}_high": base + 0.222},
            "adapter": {name: adapter, f"{name}_low": adapter - 0.033, f"{name}_high": adapter + 0.044},
            "gain": {name: gain, "low": gain - 0.05, "high": gain + 0.06},
        }
        for name, base, adapter, gain in (("errors", 0.5, 0.25, 0.25), ("answer_f1", 0.3, 0.7, -0.001))
    ]
    scores = evaluated(0.1, 0.2, 0.05, 0.15)
    assert other_scores(scores | {"other_metrics": others}) == [
        ("Errors (lower is better)", "0.50 (0.39 to 0.72)", "0.25 (0.22 to 0.29)", "+0.25 (+0.20 to +0.31)"),
        ("answer F1", "0.30 (0.19 to 0.52)", "0.70 (0.67 to 0.74)", "+0.00 (-0.05 to +0.06)"),
    ]
    assert other_scores(scores | {"other_metrics": others[1:]}, 3) == [
        ("answer F1", "0.300 (0.189 to 0.522)", "0.700 (0.667 to 0.744)", "-0.001 (-0.051 to +0.059)")
    ]
    assert other_scores(scores) == []
    assert with_interval({"exact_match": 0.125}, "exact_match", 3) == "0.125"
    assert with_interval({"f": 0.5, "f_low": 0.0, "f_high": 1.0}, "f") == "0.50 (0.00 to 1.00)"


def test_metrics_are_chosen_by_name_and_refused_with_what_there_is(monkeypatch):
    keep_only(monkeypatch, METRICS, ("rougeL", "accuracy", "entity_f1", "answer_f1", "perplexity"))
    generation, tags = TASKS["generation"], TASKS["token_classification"]
    for requested, names in (
        ("auto", ["rougeL", "perplexity"]),
        ("answer_f1", ["answer_f1"]),
        ([], ["rougeL", "perplexity"]),
    ):
        assert [metric.name for metric in metrics.chosen(requested, generation)] == names
    twice = ["answer_f1", "rougeL", "answer_f1"]
    assert [metric.name for metric in metrics.chosen(twice, generation)] == ["answer_f1", "rougeL"]
    with pytest.raises(TunerError) as refused:
        metrics.chosen(["bertscore", "rougeL", "accuracy", "meteor", "entity_f1"], generation)
    assert refused.value.problems == (
        "evaluation.metrics: there is no 'bertscore, meteor'. Use: rougeL, accuracy, entity_f1, answer_f1, "
        "perplexity.",
        "evaluation.metrics: accuracy, entity_f1 can't score text generation. Use auto, or: rougeL, answer_f1, "
        "perplexity.",
    )
    assert metrics.unfit(["rougeL", "entity_f1"], tags) == [
        "evaluation.metrics: rougeL can't score named entities and other tags of words. Use auto, or: entity_f1."
    ]
    assert metrics.unknown("auto") == metrics.unfit("auto", tags) == metrics.unfit("meteor", tags) == []


def test_scores_by_a_metric_that_is_gone_say_so():
    with pytest.raises(TunerError) as refused:
        metrics.metric_of({"metric": "meteor"})
    assert refused.value.problems == (
        "This run was scored by 'meteor', a metric that this version of Tuner lacks. Update Tuner, or delete "
        "evaluation.json in the run's folder and score it again by another metric.",
    )


# -- tasks

NAMES = ("generation", "seq2seq", "classification", "token_classification", "question_answering")


@pytest.mark.parametrize(
    ("rows", "decoder", "encoder_decoder"),
    [
        (tasks.CONVERSATION, "generation", "seq2seq"),
        (tasks.TEXT, "generation", "seq2seq"),
        ("", "generation", "seq2seq"),
        (tasks.LABELED_TEXT, "classification", "classification"),
        (tasks.TAGGED_TOKENS, "token_classification", "token_classification"),
        (tasks.QUESTION_CONTEXT, "question_answering", "question_answering"),
    ],
)
def test_a_task_is_inferred_from_the_kind_of_rows_and_of_model(monkeypatch, rows, decoder, encoder_decoder):
    keep_only(monkeypatch, TASKS, NAMES)
    for table in (TASKS, dict(reversed(TASKS.items()))):  # whatever the order of the table
        monkeypatch.setattr(tasks, "TASKS", table)
        assert tasks.task_for("auto", rows, False) == decoder
        assert tasks.task_for("auto", rows, True) == encoder_decoder
    assert tasks.task_for("question_answering", rows, True) == "question_answering"


def test_the_task_of_a_run_is_its_plans_and_of_the_first_version_generation(monkeypatch):
    keep_only(monkeypatch, TASKS, NAMES)
    assert tasks.task_of({"task": "seq2seq"}).title == "text to text"
    assert tasks.task_of({}).title == "text generation"
    shown = {row.name: (row.pipeline, row.metric, row.chats, row.prompt_lines) for row in TASKS.values()}
    assert shown == {
        "generation": ("text-generation", "rougeL", True, 1),
        "seq2seq": ("text2text-generation", "rougeL", False, 1),
        "classification": ("text-classification", "accuracy", False, 1),
        "token_classification": ("token-classification", "entity_f1", False, 1),
        "question_answering": ("question-answering", "answer_f1", False, 4),
    }
    facts = ("generates", "encoder_decoder", "has_labels", "architecture")
    assert {fact: [row.name for row in TASKS.values() if getattr(row, fact)] for fact in facts} == {
        "generates": ["generation", "seq2seq"],
        "encoder_decoder": ["seq2seq"],
        "has_labels": ["classification", "token_classification"],
        "architecture": ["generation"],
    }


@pytest.mark.parametrize(
    ("task", "model_type", "model", "auto_class", "peft_type", "trainer"),
    [
        ("generation", "llama", "LlamaForCausalLM", "CausalLM", "CAUSAL_LM", "trl.SFTTrainer"),
        ("seq2seq", "t5", "T5ForConditionalGeneration", "Seq2SeqLM", "SEQ_2_SEQ_LM", "transformers.Trainer"),
        ("classification", "bert", "BertForSequenceClassification", "SequenceClassification", "SEQ_CLS", None),
        ("token_classification", "bert", "BertForTokenClassification", "TokenClassification", "TOKEN_CLS", None),
        ("question_answering", "bert", "BertForQuestionAnswering", "QuestionAnswering", "QUESTION_ANS", None),
    ],
)
def test_a_task_has_the_classes_that_other_packages_made_for_it(
    task, model_type, model, auto_class, peft_type, trainer
):
    row = TASKS[task]
    assert getattr(modeling_auto, row.mapping)[model_type] == model
    assert (row.auto_class, row.peft_type) == (f"AutoModelFor{auto_class}", TaskType[peft_type])
    assert row.trainer == (trainer or "transformers.Trainer")
