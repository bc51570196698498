"""What a finished run's card says of all variants: bars, gains, rows won and lost, costs, and the prompt to copy."""

import json
import re
from dataclasses import replace
from html import unescape

import pytest
import with_rows
from conftest import in_order, plain
from test_escape import MARKUP

from tuner.evaluation import verdict
from tuner.evaluation.figures import HEADS
from tuner.planning.forecast import duration
from tuner.runs import Run
from tuner.ui import render, result

pytest_plugins = ["page_fixtures"]


@pytest.fixture
def run(mine: Run) -> Run:
    """Ann's run, whose 24 rows were answered by all four variants."""
    return with_rows.scored(mine, with_rows.rows())


def advised(monkeypatch: pytest.MonkeyPatch, advice: str, next_step: str = "") -> None:
    """The verdict gives this advice."""
    judge = verdict.judge
    told = {"advice": advice, "next_step": next_step}
    monkeypatch.setattr(result, "judge", lambda scores: replace(judge(scores), **told))


def bars(html: str) -> dict[str, list[str]]:
    """By variant what its part of the table says: its name, its score, the adapter against it, and its cost."""
    parts = re.findall(r'class="t-bar (\w+)">(.*?)</tbody>', html)
    cells = {kind: re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", part) for kind, part in parts}
    return {kind: [" ".join(plain(cell).split()) for cell in row] for kind, row in cells.items()}


def figures(part: dict) -> str:
    """A variant's score and interval."""
    return f"{part['rougeL']:.2f} {part['rougeL_low']:.2f} to {part['rougeL_high']:.2f}"


def test_each_variant_has_a_bar_with_its_interval_its_distance_from_the_adapter_and_its_cost(run):
    html, scores = render.run_card(run), run.read_json("evaluation.json")
    shown = bars(html)
    assert [*shown] == list(with_rows.VARIANTS)
    assert [row[1] for row in shown.values()] == [figures(scores[variant]) for variant in shown]
    assert [row[0] for row in shown.values()] == [
        *("Base model", "4 examples in the prompt", "The 4 most similar rows in the prompt", "With adapter")
    ]
    pair = next(p for p in scores["pairs"] if (p["of"], p["over"]) == ("adapter", "few_shot"))
    gain = f"{pair['rougeL']:+.2f} {pair['low']:+.2f} to {pair['high']:+.2f}"
    counts = f"{pair['wins']} better, {pair['ties']} same, {pair['losses']} worse"
    assert shown["few_shot"][2:] == [f"{gain} {counts}", "412 tokens 0.31 s"]
    assert shown["base"][2].endswith("21 better, 1 same, 2 worse")
    assert shown["adapter"][2] == f"trained once, in {duration(run.last_event('end')['seconds'])}"


def test_what_the_prompts_gained_over_the_base_model_and_how_it_was_measured_is_in_a_fold(run):
    html, scores = render.run_card(run), run.read_json("evaluation.json")
    fold = html.partition("How this was measured")[2].partition("</details>")[0]
    assert verdict.judge(scores).figures(lambda score: f" {score} ") in plain(fold)
    pair = scores["pairs"][0]
    gain = f"{pair['rougeL']:+.2f}", f"{pair['low']:+.2f} to {pair['high']:+.2f}"
    assert in_order(plain(fold), *(HEADS[place] for place in (2, 3)), "4 examples in the prompt", *gain, "21 / 3 / 0")
    assert in_order(plain(fold), "Training never saw these 24 rows", "ROUGE-L is computed as in", "paired")


def test_the_page_says_a_headline_and_one_sentence_and_its_notes_stay_in_sight(run):
    with_rows.scored(run, with_rows.rows(12), heldout_rows=20)
    judged = verdict.judge(run.read_json("evaluation.json"))
    before = render.run_card(run).partition("<table")[0]
    assert plain(before).strip().startswith(judged.headline)
    assert in_order(plain(before), judged.headline, judged.summary, "With so few rows this is only a hint.")
    assert judged.summary.startswith("On 12 of 20 held-out rows, the adapter's gain over the base model")
    assert judged.figures() not in plain(before)


def test_a_prompt_that_does_as_well_is_open_and_can_be_copied(run, monkeypatch):
    advised(monkeypatch, "prompt")
    html = render.run_card(run)
    shown = html.partition("<details open>")[2].partition("</details>")[0]
    assert in_order(plain(shown), "The prompt that does as well", "an example", "its answer", "{your text}")
    copied = json.loads(unescape(re.search(r'data-copy="([^"]*)"', shown)[1]))
    assert copied == with_rows.PROMPTING["messages"]
    advised(monkeypatch, "tune")
    assert "<details open>" not in render.run_card(run)
    assert "The prompt with examples that was compared" in render.run_card(run)


def test_a_prompt_for_an_encoder_decoder_is_one_text(run):
    scores = run.read_json("evaluation.json") | {"prompting": {"examples": 2, "fewest": 1, "text": "a\nb <i>"}}
    html = result.prompt(scores, is_open=True)
    assert unescape(re.search(r'data-copy="([^"]*)"', html)[1]) == "a\nb <i>"
    assert "<i>" not in html
    assert "The prompts had 1 to 2 of the rows" in plain(html)


def test_the_next_step_stands_on_the_card(run, monkeypatch):
    advised(monkeypatch, "neither", "Train for more epochs.")
    assert in_order(plain(render.run_card(run)), "Next", "Train for more epochs.")
    advised(monkeypatch, "tune")
    assert "t-next" not in render.run_card(run)


def test_why_there_is_no_prompt_to_compare_with_is_said(run):
    rows = [{key: v for key, v in row.items() if not key.startswith("few_shot")} for row in with_rows.rows()]
    costs = {variant: with_rows.COSTS[variant] for variant in ("base", "adapter")}
    with_rows.scored(run, rows, prompting={"why_not": "No example fits."}, costs=costs)
    html = render.run_card(run)
    assert re.findall(r'class="t-bar (\w+)">', html) == ["base", "adapter"]
    assert "No example fits." in plain(html)
    assert "data-copy" not in html


def test_a_run_of_an_earlier_version_has_neither_rivals_nor_costs(mine):
    later = {"few_shot", "few_shot_similar", "pairs", "costs", "prompting", "course", "short"}
    scores = mine.read_json("evaluation.json")
    mine.write_json("evaluation.json", {key: value for key, value in scores.items() if key not in later})
    html = render.run_card(mine)
    assert re.findall(r'class="t-bar (\w+)">', html) == ["base", "adapter"]
    assert bars(html)["base"][2] != "–"
    assert len(bars(html)["base"]) == 3  # no costs
    assert "data-copy" not in html


def test_where_all_right_answers_are_empty_no_gain_is_shown(run):
    with_rows.scored(run, with_rows.rows(), empty_references=True)
    assert bars(render.run_card(run))["base"][2] == "–"


def test_too_few_rows_have_no_bars_and_no_table(run):
    with_rows.scored(run, with_rows.rows(9))
    html = render.run_card(run)
    assert "t-bar" not in html


def test_what_strangers_wrote_stays_text_on_the_card(run):
    messages = [{"role": MARKUP, "content": MARKUP}]
    for prompting in ({"messages": messages}, {"text": MARKUP}, {"why_not": MARKUP}):
        with_rows.scored(run, with_rows.rows(), prompting=prompting, baseline=MARKUP)
        html = render.run_card(run)
        assert "<img" not in html
        assert 'onerror="alert' not in html
