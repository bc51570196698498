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


def cells(html: str) -> list[list[str]]:
    """The cells of the table of variants."""
    table = html.partition('class="t-wide"')[2].partition("</table>")[0]
    rows = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in table.split("<tr>")[1:]]
    return [[" ".join(plain(cell).split()) for cell in row] for row in rows]


def figures(part: dict) -> list[str]:
    """A variant's score and interval as a cell of the table."""
    return [f"{part['rougeL']:.2f} {part['rougeL_low']:.2f} to {part['rougeL_high']:.2f}"]


def test_each_variant_has_a_bar_with_its_interval_and_a_line_of_gains_and_costs(run):
    html, scores = render.run_card(run), run.read_json("evaluation.json")
    bars = re.findall(r'class="t-bar (\w+)">(.*?)</div>', html)
    assert [kind for kind, _ in bars] == list(with_rows.VARIANTS)
    for kind, bar in bars:
        assert in_order(plain(bar), *(f"{scores[kind][key]:.2f}" for key in ("rougeL", "rougeL_low", "rougeL_high")))
    head, *lines = cells(html)
    assert head == list(HEADS)
    assert lines[0] == ["base model", *figures(scores["base"]), "–", "–", "20", "0.05"]
    pair = scores["pairs"][0]
    assert (pair["of"], pair["over"]) == ("few_shot", "base")
    gain = f"{pair['rougeL']:+.2f} {pair['low']:+.2f} to {pair['high']:+.2f}"
    assert lines[1] == ["4 examples in the prompt", *figures(scores["few_shot"]), gain, "21 / 3 / 0", "412", "0.31"]
    assert lines[3][3] == "21 / 2 / 1"
    assert f"Training took {duration(run.last_event('end')['seconds'])}, once." in plain(html)


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
    assert "t-wide" not in html
    assert "data-copy" not in html


def test_too_few_rows_have_no_bars_and_no_table(run):
    with_rows.scored(run, with_rows.rows(9))
    html = render.run_card(run)
    assert "t-bar " not in html
    assert "t-wide" not in html


def test_what_strangers_wrote_stays_text_on_the_card(run):
    messages = [{"role": MARKUP, "content": MARKUP}]
    for prompting in ({"messages": messages}, {"text": MARKUP}, {"why_not": MARKUP}):
        with_rows.scored(run, with_rows.rows(), prompting=prompting, baseline=MARKUP)
        html = render.run_card(run)
        assert "<img" not in html
        assert 'onerror="alert' not in html
