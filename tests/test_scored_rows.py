"""Every scored row can be looked at: sorted, filtered, searched and paged, with what answers lack marked."""

import json
import re
import time

import gradio as gr
import pytest
import with_rows
from conftest import plain
from test_escape import MARKUP

from tuner.errors import TunerError
from tuner.evaluation.results import ROWS
from tuner.runs import Run
from tuner.ui import api, rows, rows_view, train_tab
from tuner.ui.rows import look

pytest_plugins = ["page_fixtures"]


def numbers(found: dict) -> list[int]:
    return [row["row"] for row in found["rows"]]


@pytest.fixture
def run(mine: Run) -> Run:
    """Ann's run with 24 scored rows, on which the adapter is worse twice and equal once."""
    return with_rows.scored(mine, with_rows.rows())


def test_rows_are_sorted_by_the_adapters_gain_and_cut_into_pages(run):
    worst = look(run)
    assert numbers(worst) == [4, 12, 6, 1, 2, 3, 5, 7, 8, 9]
    assert [row["gain"] for row in worst["rows"][:3]] == [-1.0, -1.0, 0.0]
    assert (worst["found"], worst["page"], worst["pages"]) == (24, 1, 3)
    assert numbers(look(run, order="best"))[0] == 1
    assert numbers(look(run, order="scored", page=3)) == [21, 22, 23, 24]
    assert look(run, page=99)["page"] == 3
    assert look(run, page=-1)["page"] == 1


def test_rows_are_filtered_by_outcome_against_any_rival(run):
    assert look(run)["outcomes"] == {"all": 24, "better": 21, "worse": 2, "equal": 1}
    assert numbers(look(run, outcome="worse")) == [4, 12]
    assert numbers(look(run, outcome="equal")) == [6]
    assert look(run, "few_shot")["outcomes"] == {"all": 24, "better": 22, "worse": 2, "equal": 0}
    assert look(run, "nonsense")["over"] == look(run, "adapter")["over"] == "base"


def test_a_lower_score_is_a_gain_where_lower_is_better(run, monkeypatch):
    monkeypatch.setitem(rows.METRICS, "rougeL", type("Lower", (), {"higher_is_better": False}))
    assert numbers(look(run, outcome="better")) == [4, 12]


def test_the_search_looks_into_prompts_answers_and_references(run):
    assert numbers(look(run, search="QUESTION 17")) == [18]
    assert numbers(look(run, search=" wrong ")) == [4, 12]
    assert look(run, search="in full")["found"] == 24
    assert look(run, search="wrong", outcome="better")["found"] == 0
    assert look(run, search="wrong", outcome="better")["pages"] == 1


def test_a_page_is_of_bounded_size_whatever_the_rows_hold(run):
    long = [{"prompt": "p " * 9000, "reference": "a b " * 9000, "adapter": "b a " * 9000, "base": "c " * 9000}] * 30
    run.write_text(ROWS, "\n".join(map(json.dumps, long)))
    began = time.process_time()
    html = rows_view.page_of_rows(look(run))
    assert time.process_time() - began < 5
    assert len(html) < 10 * 4 * 12 * rows.MOST_CHARACTERS
    assert "(15,000 more characters)" in plain(html)
    assert all(len(text) < rows.MOST_CHARACTERS + 40 for row in look(run)["rows"] for text in map(str, row.values()))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "Run mine has no scored rows to show. Those of earlier versions kept none."),
        ("{", "Run mine: its evaluation_rows.jsonl is damaged."),
        ('{"prompt": 1, "reference": "", "adapter": ""}', "Run mine: its evaluation_rows.jsonl is damaged."),
        ("[" * 100_000, "Run mine: its evaluation_rows.jsonl is damaged."),
    ],
)
def test_missing_and_damaged_rows_are_a_sentence(text, problem, mine):
    (mine.path / ROWS).unlink(missing_ok=True)
    if text is not None:
        mine.write_text(ROWS, text)
    with pytest.raises(TunerError, match=re.escape(problem)):
        look(mine)
    assert problem in plain(rows_view.show("mine", "", "all", "worst", "", 1)[0])


def test_odd_scores_and_rivals_that_some_rows_lack_do_no_harm(run):
    odd = with_rows.rows()
    odd[0]["adapter_rougeL"], odd[1]["base_rougeL"], odd[2]["adapter_rougeL"] = "high", None, float("nan")
    del odd[7]["few_shot"]
    run.write_text(ROWS, "\n".join(map(json.dumps, odd)))
    found = look(run, order="scored")
    assert found["rivals"] == ["base", "few_shot_similar"]
    assert [row["gain"] for row in found["rows"][:3]] == [0.0, 0.0, 0.0]
    assert "question 0" in plain(rows_view.page_of_rows(found))
    json.dumps(found, allow_nan=False)


def test_no_rows_and_no_file_outside_of_the_run_are_shown(run):
    run.write_text(ROWS, "")
    found = look(run)
    assert (found["rows"], found["over"], found["pages"]) == ([], "", 1)
    assert "No rows match the search and the choice above." in rows_view.page_of_rows(found)
    for name in ("../mine", "", "mine/../mine", str(run.path)):
        with pytest.raises(TunerError, match="There is no run"):
            api.rows(name)


def test_an_endpoint_gives_the_same_page_to_programs(run):
    assert api.rows("mine", over="few_shot", outcome="worse", search="question", page=1) == dict(
        look(run, "few_shot", "worse", "worst", "question", 1)
    )
    for wrong in ({"outcome": "lost"}, {"order": "random"}):
        with pytest.raises(TunerError, match="is not one of: "):
            api.rows("mine", **wrong)


def test_words_that_the_other_text_lacks_are_marked():
    marked = rows_view.marked
    assert marked("a very good day", "a good night") == "a <mark>very</mark> good <mark>day</mark>"
    assert marked("same words", "same words") == "same words"
    assert marked("no, yes", "no yes") == "no<mark>,</mark> yes"
    assert marked("我喜欢苹果", "我喜欢梨") == "我喜欢<mark>苹果</mark>"
    assert marked("", "a") == "<em>(nothing)</em>"
    assert marked("x < y", "") == "<mark>x &lt; y</mark>"
    long = "word " * rows_view.MOST_WORDS
    assert marked(long + "beyond", long) == long + "beyond"


def test_an_answer_is_compared_with_the_closest_of_several_references(run):
    several = [row | {"references": ["quite another", with_rows.RIGHT]} for row in with_rows.rows()]
    run.write_text(ROWS, "\n".join(map(json.dumps, several)))
    html = rows_view.page_of_rows(look(run, outcome="better"))
    adapter = re.search(r"<dd class='adapter' tabindex='0'>(.*?)</dd>", html)[1]
    assert adapter == with_rows.RIGHT
    assert "<mark>quite another</mark>" in html


def test_what_strangers_wrote_stays_text_in_every_place(run):
    row = dict.fromkeys(("prompt", "reference", *with_rows.VARIANTS), MARKUP) | {"references": [MARKUP, "x"]}
    run.write_text(ROWS, json.dumps(row))
    html = rows_view.page_of_rows(look(run))
    assert "<img" not in html
    assert "onerror=&quot;" in re.sub("</?mark>", "", html)
    assert "<script" not in rows_view.page_of_rows(look(run, search="<script>"))


def test_the_browser_is_shown_for_scored_rows_only_and_forgets_the_run_before(run, mine):
    assert train_tab.panel("mine")[-1] == gr.update(visible=True)
    shown = rows_view.show("mine", "few_shot", "worse", "worst", "", 1)
    assert [value for _, value in shown[1]["choices"]] == ["base", "few_shot", "few_shot_similar"]
    assert shown[1]["value"] == "few_shot"
    assert [title for title, _ in shown[2]["choices"]] == [
        "All (24)", "Adapter better (22)", "Adapter worse (2)", "Equal (0)"
    ]  # fmt: skip
    assert [button["interactive"] for button in shown[4:]] == [False, False]
    assert [button["interactive"] for button in rows_view.show("mine", "", "all", "worst", "", 2)[4:]] == [True, True]
    turn = rows_view._turn(by=1)
    assert turn("mine", "base", "all", "worst", "", 2)[3] == 3
    (run.path / ROWS).unlink()
    assert train_tab.panel("mine")[-1] == train_tab.panel("")[-1] == gr.update(visible=False, open=False)
    assert rows_view._forget()[1] == ""
