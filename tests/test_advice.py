"""Tune, prompt or neither: what is advised for which gains, in which words, and which step comes next."""

import json

import numpy as np
import pytest
from conftest import in_order
from recorded import SCORES, recorded, section

from tuner import recipe, terminal
from tuner.evaluation.advice import advise
from tuner.evaluation.facts import facts_of
from tuner.evaluation.figures import digits_of_gain, shown_gain, table
from tuner.evaluation.score import VARIANTS, score
from tuner.evaluation.verdict import judge
from tuner.hub.card import card
from tuner.metrics import METRICS

BETTER, EQUAL, WORSE = (0.2, 0.1, 0.3), (0.01, -0.05, 0.07), (-0.2, -0.3, -0.1)
# How training went: held-out losses that fell and stayed, of enough rows.
COURSE = {"rows": 480, "steps": 300, "epochs": 10.0, "learning_rate": 1e-3, "seconds": 104.3, "ended": "steps"}
COURSE |= {"first": 2.0, "middle": 1.0, "final": 1.0, "heldout_start": 2.0, "heldout_middle": 1.2}
LOSSES = {"training": 1.0, "lowest": 1.2, "last": 1.2}


def judged(over_base: dict[str, tuple], over_prompts=EQUAL, rows: int = 64, **more) -> dict:
    """The scores of a run with these gains (and intervals) over the base, and of the adapter over each prompt."""
    pairs = [
        {"of": one, "over": other, "rougeL": gain[0], "low": gain[1], "high": gain[2]}
        | {"wins": 30, "losses": 20, "ties": 14}
        for one, other, gain in (
            *((variant, "base", gain) for variant, gain in over_base.items()),
            *(("adapter", variant, over_prompts) for variant in over_base if variant != "adapter"),
        )
    ]
    scores = {v: {"rougeL": 0.3 + gain[0]} for v, gain in {"base": (0.0,), **over_base}.items()}
    gain = {key: value for key, value in pairs[[*over_base].index("adapter")].items() if key not in ("of", "over")}
    facts = {"metric": "rougeL", "rows": rows, "heldout_rows": 80, "gain": gain, "pairs": pairs}
    facts |= {"prompting": {"examples": 8}, "course": COURSE, "losses": LOSSES}
    return scores | facts | more


def gains(few_shot=EQUAL, few_shot_similar=EQUAL, adapter=BETTER) -> dict[str, tuple]:
    return {"few_shot": few_shot, "few_shot_similar": few_shot_similar, "adapter": adapter}


@pytest.mark.parametrize(
    ("over_base", "over_prompts", "advice", "kind", "headline"),
    [
        (gains(), BETTER, "tune", "good", "It helped."),
        (gains(), EQUAL, "tune", "good", "It helped."),
        (gains(BETTER), BETTER, "tune", "good", "It helped."),
        (gains(WORSE, WORSE), BETTER, "tune", "good", "It helped."),
        (gains(BETTER), EQUAL, "prompt", "unsure", "A prompt does as well."),
        (gains(few_shot_similar=BETTER), EQUAL, "prompt", "unsure", "A prompt does as well."),
        (gains(BETTER), WORSE, "prompt", "unsure", "A prompt does better."),
        (gains(BETTER, adapter=EQUAL), EQUAL, "prompt", "unsure", "A prompt does as well."),
        (gains(BETTER, adapter=WORSE), WORSE, "prompt", "bad", "A prompt does better."),
        (gains(adapter=EQUAL), EQUAL, "neither", "unsure", "Neither tuning nor a prompt clearly helped."),
        (gains(adapter=WORSE), WORSE, "neither", "bad", "It made things worse."),
        ({"adapter": BETTER}, EQUAL, "tune", "good", "It helped."),
        ({"adapter": EQUAL}, EQUAL, "neither", "unsure", "No clear difference."),
    ],
)
def test_tuning_is_advised_where_no_prompt_does_as_well(over_base, over_prompts, advice, kind, headline):
    verdict = judge(judged(over_base, over_prompts))
    assert (verdict.advice, verdict.kind, verdict.headline) == (advice, kind, headline)


TRUE_SHARES = {"base": 0.3, "few_shot": 0.5, "adapter": 0.7}
OPEN = (0.08, -0.02, 0.18)  # over a prompt that gains 0.2


@pytest.mark.parametrize(("heldout", "more"), [(80, "score more rows (evaluation.rows)"), (64, "hold out more rows")])
def test_rows_that_are_too_few_to_tell_prompt_and_adapter_apart_do_not_make_them_equal(heldout, more):
    verdict = judge(judged(gains(BETTER), OPEN, heldout_rows=heldout))
    assert (verdict.advice, verdict.headline) == ("prompt", "A prompt may do as well.")
    assert "in each prompt, which needs no training" in verdict.next_step
    assert f", or {more}" in verdict.next_step


@pytest.mark.parametrize("rows", [16, 64])
def test_an_adapter_that_is_better_than_a_prompt_is_hardly_ever_said_to_be_equal(rows):
    draw, said = np.random.default_rng(rows), []
    for _ in range(100):
        answers = [
            {v: "right" if draw.random() < share else "wrong" for v, share in TRUE_SHARES.items()} for _ in range(rows)
        ]
        said.append(judge(score([METRICS["accuracy"]], ["right"] * rows, answers)).headline)
    assert said.count("A prompt does as well.") <= 5
    assert said.count("A prompt may do as well.") >= 5


def test_a_fixed_prompt_is_advised_unless_looking_up_examples_is_clearly_better():
    scores = judged(gains(BETTER, BETTER))
    assert advise(scores) == ("prompt", "few_shot")
    assert judge(scores).next_step == (
        "Use the base model with these examples in each prompt, which needs no training."
    )
    more = {"of": "few_shot_similar", "over": "few_shot", "rougeL": 0.1, "low": 0.05, "high": 0.2}
    scores["pairs"].append(more)
    assert advise(scores) == ("prompt", "few_shot_similar")
    assert "the most similar rows in each prompt" in judge(scores).next_step


@pytest.mark.parametrize(
    ("change", "step"),
    [
        ({"rows": 9}, "Score at least 10 rows (evaluation.rows)."),
        ({"rows": 9, "heldout_rows": 9}, "Hold out at least 10 rows (data.heldout)."),
        ({"unknown_head": True}, ""),
        ({"fewest_rows": 4}, "Hold out more rows (data.heldout)."),
    ],
)
def test_scores_that_allow_no_claim_advise_only_how_to_get_one(change, step):
    verdict = judge(judged(gains(BETTER)) | change)
    assert (verdict.kind, verdict.advice, verdict.next_step) == ("unsure", "", step)


def test_scores_of_earlier_versions_are_judged_as_before():
    verdict = judge(SCORES)
    assert (verdict.kind, verdict.headline, verdict.advice, verdict.next_step) == ("good", "It helped.", "tune", "")
    loss = judge({"gain": None, "rows": 0, "base": {"loss": 2.3}, "adapter": {"loss": 1.2}})
    assert (loss.headline, loss.advice) == ("Only the loss was measured.", "")


def test_a_prompt_whose_answers_only_look_right_is_not_advised():
    fits = {"few_shot": {"rougeL": 0.49, "low": -0.02, "high": 0.02}}
    scores = judged(gains(BETTER, adapter=EQUAL))
    assert judge(scores | {"other_rows_of_prompts": fits}).advice == "neither"
    fits["few_shot"] |= {"low": 0.1, "high": 0.3}
    assert judge(scores | {"other_rows_of_prompts": fits}).advice == "prompt"


@pytest.mark.parametrize(
    ("over_base", "over_prompts", "sentences"),
    [
        (
            gains(BETTER),
            EQUAL,
            "With 8 examples in the prompt, the base model scores 0.50, clearly better than without: +0.20 (+0.10 to "
            "+0.30). The adapter is not clearly better than that: +0.01 (-0.05 to +0.07).",
        ),
        (
            gains((0.1, 0.003, 0.2)),
            (-0.1, -0.2, -0.0004),
            "scores 0.40, clearly better than without: +0.100 (+0.003 to +0.200). The adapter is clearly worse than "
            "that: -0.1000 (-0.2000 to -0.0004).",
        ),
        (
            gains(),
            BETTER,
            "With 8 examples in the prompt, the base model scores 0.31, not clearly better than without: +0.01 (-0.05 "
            "to +0.07). The adapter is clearly better than that: +0.20 (+0.10 to +0.30).",
        ),
        (gains(), EQUAL, "Whether the adapter is better than that is open: +0.01 (-0.05 to +0.07)."),
        (gains(WORSE, WORSE), BETTER, "Examples in the prompt did not help the base model (0.10)."),
        (gains(few_shot_similar=(0.02, -0.1, 0.1)), BETTER, "With the 8 most similar rows in the prompt, the base"),
    ],
)
def test_the_prompt_is_told_as_far_as_it_matters(over_base, over_prompts, sentences):
    scores = judged(over_base, over_prompts)
    assert sentences in judge(scores).text()
    costs = {
        v: {"prompt_tokens": 1023.6 if v in over_base else 23, "answer_tokens": 4, "seconds": 1} for v in VARIANTS
    }
    cost = "Training took 104 s; with examples a prompt has 1,024 tokens, not 23."
    assert (cost in judge(scores | {"costs": costs}).text()) == ("did not help" not in sentences)


@pytest.mark.parametrize(("number", "said"), [(0, None), (1, "1 of the 80 held-out rows has"), (9, "9 of the 80")])
def test_a_verdict_names_held_out_prompts_that_are_also_trained_on(number, said):
    text = judge(judged({"adapter": BETTER}, repeated_rows=number)).text()
    assert ("so the scores look too good." in text) == bool(number)
    assert (said or "") in text


def test_rows_that_are_better_and_worse_are_counted():
    assert (
        "(95% interval +0.10 to +0.30): better on 30 rows, worse on 20, the same on 14."
        in judge(judged({"adapter": BETTER})).text()
    )


def test_why_no_prompt_was_tried_is_said():
    why = "The training rows are too long {for} this."
    verdict = judge(judged({"adapter": BETTER}, prompting={"why_not": why}))
    assert why in verdict.text()


STILL = {"heldout_middle": 1.3}
RISEN = {"losses": {"training": 0.5, "lowest": 1.2, "last": 1.6}}
FLAT = {"first": 2.0, "final": 1.98, "heldout_start": 2.0}
STAYED = {"losses": {"training": 1.98, "lowest": 1.99, "last": 1.99}}
ROSE = {"losses": {"training": 2.0, "lowest": 2.0, "last": 3.0}}


@pytest.mark.parametrize(
    ("course", "more", "step"),
    [
        ({"final": 2.2}, ROSE, "Lower the learning rate, to 0.0001 for example, as the training loss rose from 2.00"),
        ({"final": 2.2}, {}, "Try a larger base model, as"),  # of other rows at each step
        (
            {"final": 1.95},
            ROSE,
            "Lower the learning rate, to 0.0001 for example, as the loss on held-out rows rose from",
        ),
        ({"final": 2.2, "learning_rate": None}, ROSE, "Lower the learning rate, as the training loss rose"),
        (FLAT | {"learning_rate": 0.5}, STAYED, "Raise the learning rate, to 1 for example,"),
        (FLAT | {"learning_rate": 1.0}, STAYED, "Try a larger base model"),
        (FLAT | {"epochs": None}, STAYED, "Raise the learning rate, to 0.01 for"),
        (FLAT, STAYED, "Raise the learning rate, to 0.01 for"),
        (
            FLAT | {"epochs": 0.1},
            STAYED,
            "Train longer, as less than one epoch was too little for the loss to fall.",
        ),
        (STILL, {}, "Train longer, as the loss was still falling at the end."),
        (STILL | {"ended": "patience"}, {}, "Try a larger base model, as"),
        ({}, RISEN, "Train on more rows than these 480, or for fewer epochs, as"),
        ({}, {"losses": RISEN["losses"] | {"kept": 40}}, "Train on more rows than these 480, as"),
        ({}, {"rows": 32}, "Score more rows (evaluation.rows), as on 32 of 80 a gain"),
        ({}, {"rows": 32, "heldout_rows": 32}, "Hold out more rows (data.heldout), as on 32 a gain"),
        ({}, {}, "Try a larger base model, as the loss fell and then stayed where it was."),
    ],
)
def test_the_next_step_follows_from_how_the_losses_went(course, more, step):
    verdict = judge(judged(gains(adapter=EQUAL), course=COURSE | course, **more))
    assert verdict.advice == "neither"
    assert verdict.next_step.startswith(step)
    assert verdict.next_step.count(". ") == 0
    assert step.split(",")[0] in terminal.verdict(judged(gains(adapter=EQUAL), course=COURSE | course, **more))


@pytest.mark.parametrize(
    ("course", "step"),
    [
        ({"middle": 1.2}, "Train longer, as the loss was still falling"),
        ({"final": 1.96, "middle": 1.98}, "Raise the learning rate"),
        ({}, "Try a larger base model"),
    ],
)
def test_without_held_out_losses_those_of_training_tell_the_next_step(course, step):
    known = {key: value for key, value in COURSE.items() if "heldout" not in key}
    scores = judged(gains(adapter=EQUAL), course=known | course)
    del scores["losses"]
    assert judge(scores).next_step.startswith(step)


def test_a_base_that_needs_no_tuning_is_kept():
    solved = {"base": {"rougeL": 0.97}, "adapter": {"rougeL": 0.9}}
    for gain in (EQUAL, WORSE):
        assert judge(judged({"adapter": gain}, course=COURSE | STILL) | solved).next_step == (
            "Use the base model as it is, as it already scores 0.97."
        )
    always = {"baseline": "always 'spam'"}  # an answer that knows nothing is no model to keep
    assert judge(judged({"adapter": EQUAL}) | solved | always).next_step.startswith("Try a larger base model")


def test_answers_that_only_look_right_get_no_advice_from_losses():
    fits = {"rougeL": 0.49, "low": -0.02, "high": 0.02}
    verdict = judge(judged({"adapter": BETTER}, rows=32, other_rows=fits))
    assert verdict.advice == "neither"
    assert verdict.next_step == "Check that each completion stands beside its own prompt."


def test_that_the_adapter_is_better_than_a_prompt_is_said_where_it_is():
    said = " It is also better than the base model with 8 examples in the prompt."
    assert judge(judged(gains(), BETTER)).summary.endswith(said)
    for scores in (judged(gains(), EQUAL), judged({"adapter": BETTER}), judged(gains(BETTER), EQUAL)):
        assert "also better" not in judge(scores).summary


def test_after_tuning_that_helped_a_step_is_named_only_if_there_is_more_to_gain_or_to_learn():
    assert judge(judged(gains(), BETTER)).next_step == ""
    falling = judge(judged(gains(), BETTER, course=COURSE | STILL)).next_step
    assert falling == "Train longer, as the loss was still falling at the end and there may be more to gain."
    assert "Score more rows" in judge(judged(gains(), EQUAL)).next_step
    assert "Hold out more rows" in judge(judged(gains(), EQUAL, rows=80)).next_step


def test_facts_have_the_losses_from_which_the_next_step_follows(tmp_path):
    plan = {
        "heldout_rows": 5,
        "rows": 40,
        "steps_per_epoch": 10,
        "settings": {"learning_rate": 0.002},
        "task": "seq2seq",
    }
    steps = [{"event": "step", "step": i, "loss": 30.0 - i, "epoch": i / 10, "seconds": i} for i in range(1, 31)]
    heldout = [
        {"event": "heldout", "step": i, "loss": loss} for i, loss in ((0, 4.0), (10, 3.0), (20, 2.0), (30, 1.5))
    ]
    end = {"event": "end", "step": 30, "seconds": 31.5, "reason": "steps"}
    run = recorded(tmp_path / "one", plan=plan, events=[*steps, *heldout, end])
    assert facts_of(run)["course"] == {
        **{"rows": 40, "steps": 30, "epochs": 3.0, "learning_rate": 0.002, "seconds": 31.5, "ended": "steps"},
        **{"first": 28.0, "middle": 11.0, "final": 1.0, "heldout_start": 4.0, "heldout_middle": 2.0},
    }
    assert "repeated_rows" not in facts_of(run)
    bare = recorded(tmp_path / "two", plan=plan | {"repeated_rows": 2}, events=steps[:1])
    assert facts_of(bare)["repeated_rows"] == 2
    assert facts_of(bare)["course"] == {
        **{"rows": 40, "steps": 1, "epochs": 0.1, "learning_rate": 0.002, "seconds": 1, "ended": None},
        **{"first": 29.0, "middle": 29.0, "final": 29.0},
    }
    assert "course" not in facts_of(recorded(tmp_path / "three", plan=plan, events=[]))


# -- figures


def four(rows: int = 24) -> dict:
    """Scores of four variants: the similar examples help, the adapter more."""
    right = [f"word{i} and more of it {i}" for i in range(rows)]
    answers = [
        {"base": "word", "few_shot": "word", "few_shot_similar": f"word{i}", "adapter": text}
        for i, text in enumerate(right)
    ]
    return score([METRICS["rougeL"], METRICS["answer_f1"]], right, answers)


def test_each_variant_is_compared_with_those_before_it():
    scores = four()
    for part in (scores, *scores["other_metrics"]):
        name = part["metric"]
        compared = [(pair["of"], pair["over"]) for pair in part["pairs"]]
        assert compared == [
            ("few_shot", "base"),
            ("few_shot_similar", "base"),
            ("few_shot_similar", "few_shot"),
            ("adapter", "base"),
            ("adapter", "few_shot"),
            ("adapter", "few_shot_similar"),
        ]
        for pair in part["pairs"]:
            gain = part[pair["of"]][name] - part[pair["over"]][name]
            assert pair[name] == pytest.approx(gain, abs=2e-4)
            assert pair["wins"] + pair["losses"] + pair["ties"] == 24
        assert part["gain"] == {key: value for key, value in part["pairs"][3].items() if key not in ("of", "over")}
    same, similar, *_ = scores["pairs"]
    assert (same["wins"], same["losses"], same["ties"]) == (0, 0, 24)
    assert (similar["wins"], similar["losses"], similar["ties"]) == (24, 0, 0)
    assert scores["each"].keys() == {"rougeL", "answer_f1"}
    assert judge(scores).advice == "tune"


def test_both_prompts_over_the_base_have_wider_intervals_than_one():
    right, draw = [str(i % 7) for i in range(40)], [str(i % 5) for i in range(40)]
    answers = [{"base": b, "few_shot": a, "few_shot_similar": a, "adapter": a} for a, b in zip(right, draw)]
    one, _, alike, adapter, *_ = score([METRICS["accuracy"]], right, answers)["pairs"]
    assert one["low"] < adapter["low"] < adapter["high"] < one["high"]
    assert alike["accuracy"] == 0
    alone = [{key: value for key, value in row.items() if key != "few_shot"} for row in answers]
    assert score([METRICS["accuracy"]], right, alone)["pairs"][0]["low"] == adapter["low"]


def test_the_table_of_all_variants_has_scores_gains_rows_and_costs(tmp_path):
    scores = four() | {"prompting": {"examples": 1}, "heldout_rows": 24}
    scores["costs"] = {v: {"prompt_tokens": 1000.4, "answer_tokens": 3, "seconds": 0.256} for v in VARIANTS}
    rows = table(scores, "base model")
    titles = ["base model", "1 example in the prompt", "the most similar row in the prompt", "adapter"]
    assert [row[0] for row in rows] == titles
    assert rows[0][2:] == ("", "", "1,000", "0.26")
    assert rows[2][2] == shown_gain(scores, scores["pairs"][1])
    assert rows[3][3] == "24 / 0 / 0"
    del scores["each"]
    shown = terminal.verdict(scores)
    assert in_order(shown, "over the base model", *titles, "24 / 0 / 0")
    text = section(card(recorded(tmp_path, scores=scores)), "Did it help?")
    assert in_order(text, "| | score | over the base model |", "| base model | 0.000 ", "| adapter | 1.000 ", "wider")
    two = {key: value for key, value in scores.items() if "few_shot" not in key}
    assert table(two, "base model") == []
    assert "over the base model" not in terminal.verdict(two)


def test_right_answers_that_are_all_empty_are_named():
    scores = score([METRICS["answer_f1"]], [""] * 12, [{"base": "x", "adapter": ""}] * 12)
    verdict = judge(scores)
    assert (verdict.kind, verdict.headline) == ("unsure", "No verdict: all right answers are empty.")
    assert verdict.summary == "All right answers are empty, so this only says how often nothing is answered."
    assert verdict.summary in verdict.text()
    assert verdict.next_step.startswith("Check the column of right answers")
    some = score([METRICS["answer_f1"]], [""] * 11 + ["a"], [{"base": "x", "adapter": ""}] * 12)
    assert "are empty" not in judge(some).text()


def test_a_model_that_answers_nothing_is_named():
    rows = [{"reference": "a", "base": "x", "adapter": " "}] * 3
    scores = judged(gains(adapter=WORSE))
    assert judge(scores | {"examples": rows}).notes == ("The first 3 answers of the adapter are empty.",)
    assert judge(scores | {"examples": rows[:2]}).notes == ()
    assert judge(scores | {"examples": [*rows, {"reference": "a", "base": "x", "adapter": "y"}]}).notes == ()
    right = [{"reference": "", "base": "x", "adapter": ""}] * 3
    assert judge(scores | {"examples": right}).notes == ()


def test_a_metric_for_which_right_answers_are_too_short_is_named():
    right = [f"yes {n % 3}" for n in range(12)]
    answers = [{"base": "no", "adapter": text} for text in right]
    scores = score([METRICS["rougeL"], METRICS["bleu"]], right, answers)
    said = "Even right answers score 0.00 in BLEU here, because they are too short for it: choose other metrics"
    assert said in judge(scores).text()
    first = score([METRICS["bleu"], METRICS["chrf"]], right, answers) | {"course": COURSE}
    assert said in judge(first).text()
    assert judge(first).next_step == ""
    long = [f"{text} is all that there is" for text in right]
    assert "best" not in score([METRICS["bleu"]], long, answers)
    assert "best" not in score([METRICS["exact_match"]], right, answers)


def test_an_interval_that_holds_zero_is_seen_to_hold_it():
    pair = {"rougeL": 0.0147, "low": -0.0019, "high": 0.0317}
    assert digits_of_gain(pair, 2) == 3
    assert shown_gain({"metric": "rougeL"}, pair, 3) == "+0.015 (-0.002 to +0.032)"
    example = json.loads((recipe.EXAMPLES / "finished/evaluation.json").read_text())
    assert "+0.015 (-0.002 to +0.032)" in table(example, "base model")[2]
