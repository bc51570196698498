"""The page's pieces of HTML say what they are given: plans, methods, rows, runs, scores and problems."""

import re

import gradio as gr
import pytest
from conftest import in_order, plain
from test_escape import FACTS, RUN

from tuner.errors import TunerError
from tuner.methods.registry import METHODS
from tuner.methods.spec import KINDS
from tuner.recipe import Recipe
from tuner.ui import chooser, elements, plan_card, problems, render, result
from tuner.ui.progress import Progress

pytest_plugins = ["page_fixtures"]
GB = 2**30
FORECAST = {
    "start_up": 2.0,
    "a_step": 0.5,
    "training": 70.0,
    "scoring": 20.0,
    "measured": False,
    "steps": 1,
    "memory": {"weights": 2 * GB, "adapter": GB, "activations": 0, "logits": GB // 2, "total": 7 * GB // 2},
    "available": 8 * GB,
}
LARGE = FACTS | {
    "steps": 1200,
    "epochs": 2.5,
    "steps_per_epoch": 480,
    "rows": 3840,
    "heldout_rows": 1,
    "tokens": 90_210,
    "trained_tokens": 31_007,
    "trainable_parameters": 30_300,
    "model_parameters": 3_410_176,
}


def words(html: str) -> str:
    """The text with single spaces."""
    return " ".join(plain(html).split())


def lines(html: str) -> list[str]:
    """The text of each item of a list."""
    return [words(item) for item in re.findall(r"<li>(.*?)</li>", html)]


def test_a_plan_says_what_there_is_to_learn_and_how_often():
    html = plan_card.plan_card(LARGE, "my <run>")
    assert lines(html) == [
        "3,840 rows to train on, 1 held-out row to score on",
        "90,210 tokens per epoch, 31,007 of them learned from",
        "3,840 rows at 8 per step: 480 steps per epoch",
        "Budget: 1,200 steps (2.5 epochs)",
        "30,300 of 3,410,176 parameters trained (0.9%)",
    ]
    assert words(html).startswith("What will happen my <run>")
    assert lines(plan_card.plan_card(LARGE | {"steps": None, "epochs": None, "seconds": 90}, ""))[3] == (
        "Budget: 90 seconds"
    )
    quota = {"left": 60, "resets_in": 9000}
    for unknown in (LARGE, LARGE | {"forecast": None}):
        assert plan_card.plan_card(unknown, "my <run>", quota) == html
    assert "t-parts" not in html
    warned = plan_card.plan_card(LARGE | {"warnings": ["First.", "Second."]}, "")
    assert re.findall(r't-warning">([^<]*)', warned) == ["First.", "Second."]


def test_a_plan_draws_its_time_and_its_memory_in_parts():
    html = plan_card.plan_card(LARGE | {"forecast": FORECAST}, "")
    time, memory = html.split('<div class="t-parts">')[1:]
    assert in_order(plain(time), "Time", "about 1 min 30 s, 1 step", "training 1 min 10 s", "scoring 20 s")
    assert re.findall(r"width:([\d.]+)%", time) == ["77.8", "22.2"]
    assert "estimated from the model's size" in plain(time)
    assert in_order(plain(memory), "Memory", "3.5 GB of 8.0 GB", "weights 2.0 GB", "adapter and optimizer 1.0 GB")
    assert in_order(plain(memory), "adapter and optimizer 1.0 GB", "logits 512 MB")
    assert re.findall(r"width:([\d.]+)%", memory) == ["25.0", "12.5", "6.2"]
    html = plan_card.plan_card(LARGE | {"forecast": FORECAST | {"measured": True, "memory": None}}, "")
    assert html.count('class="t-parts"') == 1
    assert "estimated from an earlier run" in html
    assert "Your GPU time" not in html


@pytest.mark.parametrize(("left", "shares"), [(240, [("37.5", "this run"), ("62.5", "left afterwards")]), (60, [])])
def test_a_plan_draws_its_share_of_the_visitors_gpu_time(left, shares):
    html = plan_card.plan_card(LARGE | {"forecast": FORECAST}, "", {"left": left, "resets_in": 9000})
    _, quota, _ = html.split('<div class="t-parts">')[1:]
    drawn = re.findall(r'width:([\d.]+)%" title="([\w ]+): ', quota)
    assert drawn == (shares or [("100.0", "this run")])
    assert in_order(plain(quota), "Your GPU time", f"{left // 60} min 00 s left today", "this run")


@pytest.mark.parametrize(
    ("left", "warning"),
    [
        (91, None),
        (90, None),
        (
            89.0,
            "This run will not finish today: it needs 1 min 30 s, and 1 min 29 s of your GPU time is left. It will "
            "pause safely, and you can resume it in 2 h 30 min. A budget of 69 seconds would finish today.",
        ),
        (
            23.9,
            "This run will not finish today: it needs 1 min 30 s, and 24 s of your GPU time is left. It will pause "
            "safely, and you can resume it in 2 h 30 min. A budget of 3 seconds would finish today.",
        ),
        # Two seconds would not even be enough for loading and a step.
        (
            22.9,
            "This run will not finish today: it needs 1 min 30 s, and 23 s of your GPU time is left. It will pause "
            "safely, and you can resume it in 2 h 30 min.",
        ),
    ],
)
def test_a_run_that_needs_more_gpu_time_than_is_left_is_warned_of(left, warning):
    facts = LARGE | {"forecast": FORECAST, "warnings": ["Few rows."]}
    html = plan_card.plan_card(facts, "", {"left": left, "resets_in": 9000})
    assert re.findall(r't-warning">([^<]*)', html) == ["Few rows."] + [warning] * bool(warning)


def test_chosen_settings_stand_with_their_values_and_reasons():
    chosen = [
        {"setting": "learning_rate", "value": 0.0025, "reason": "usual"},
        {"setting": "target_modules", "value": ["q_proj", "v_proj"], "reason": "the queries"},
        {"setting": "rank", "value": 16, "reason": "small"},
        {"setting": "dropout", "value": 0.0, "reason": "none"},
    ]
    html = plan_card.chosen_settings({"chosen": chosen})
    cells = [re.findall(r"<t[hd]>([^<]*)<", row) for row in html.split("<tr>")[1:]]
    assert cells == [
        ["learning rate", "0.0025", "usual"],
        ["target modules", "q_proj, v_proj", "the queries"],
        ["rank", "16", "small"],
        ["dropout", "0", "none"],
    ]
    assert words(plan_card.chosen_settings({})) == "What was chosen, and why"


def test_a_run_without_a_name_is_called_by_method_base_and_rows():
    settings = {"method": {"name": "ia3"}, "model": {"name": "a/b"}, "data": {"source": "x.csv"}}
    assert plan_card.title(Recipe.parse(settings)) == "ia3 on a/b, x.csv"
    assert plan_card.title(Recipe.parse(settings | {"name": "mine"})) == "mine"


COST = {
    "problems": [],
    "trainable_parameters": 303_104,
    "adapter_bytes": 3 * 2**19,
    "memory": 3 * GB,
    "steps": 1,
    "seconds": 75.0,
}


def method(html: str, name: str) -> str:
    """The method's button."""
    return re.search(rf'<button[^>]*data-method="{name}".*?</button>', html)[0]


def test_the_chooser_shows_every_method_once_by_kind_and_folds_the_less_common_ones():
    html = chooser.html({}, "lora")
    assert sorted(re.findall(r'data-method="(\w+)"', html)) == sorted(METHODS)
    common, _, more = html.partition("<details")
    for row in METHODS.values():
        assert row.title in plain(more if row.more else common)
    titles = [kind for kind in KINDS if any(row.kind == kind and not row.more for row in METHODS.values())]
    assert re.findall(r"<h4>(.*?)</h4>", html) == [kind.capitalize() for kind in titles]
    for kind, section in zip(titles, common.split("<section>")[1:], strict=True):
        assert chooser.SUMMARIES[kind] in section
        assert {METHODS[name].kind for name in re.findall(r'data-method="(\w+)"', section)} == {kind}
    number = sum(row.more for row in METHODS.values())
    assert f"<summary>More ({number})</summary>" in more
    assert chooser.SUMMARIES["more"] in more
    assert not more.startswith(" open")
    folded = next(row.name for row in METHODS.values() if row.more)
    assert chooser.html({}, folded).partition("<details")[2].startswith(" open")
    assert chooser.choices() == [(row.title, row.name) for row in METHODS.values()]


def test_each_kind_of_method_is_summed_up_by_what_it_trains():
    said = {
        "reparameterization": "small update",
        "additive adapter": "layers",
        "soft prompt": "before the prompt",
        "selective": "own weights",
        "hybrid": "two methods",
        "full": "all weights",
        "more": "Less common",
    }
    assert all(words in chooser.SUMMARIES[kind] for kind, words in said.items())


def test_the_chosen_method_is_marked_and_one_that_cant_be_used_is_disabled_with_the_reason():
    costs = {"ia3": COST, "dora": {"problems": ["Not on 8-bit.", "Another."]}, "qlora": COST | {"problems": ["No."]}}
    html = chooser.html(costs, "ia3", waiting=True)
    assert re.findall(r'aria-pressed="true"[^>]*', html) == ['aria-pressed="true"']
    assert 'class="t-method selected" data-method="ia3"' in html
    assert words(method(html, "ia3")).endswith(
        "303 K parameters 2 MB adapter 3.0 GB memory 1 min 15 s, 1 step training"
    )
    for name, reason in (("dora", "Not on 8-bit."), ("qlora", "No.")):
        assert " disabled>" in method(html, name)
        assert words(method(html, name)) == f"{METHODS[name].title} {reason}"
    lora = method(html, "lora")
    assert "disabled" not in lora
    assert lora.endswith('<span class="t-figures">…</span></button>')
    assert METHODS["lora"].explanation.split(" (http")[0] in plain(lora)
    assert "http" not in html
    assert "…" not in chooser.html(costs, "ia3")


@pytest.mark.parametrize(
    ("changes", "figure"),
    [
        ({"trainable_parameters": 999}, "999 parameters"),
        ({"trainable_parameters": 1000}, "1 K parameters"),
        ({"trainable_parameters": 999_499}, "999 K parameters"),
        ({"trainable_parameters": 999_500}, "1 M parameters"),
        ({"trainable_parameters": 12_340_000}, "12.3 M parameters"),
        ({"trainable_parameters": 7_000_000_000}, "7 B parameters"),
        ({"adapter_bytes": 2**20 - 1}, "1024 KB adapter"),
        ({"adapter_bytes": 1536}, "2 KB adapter"),
        ({"adapter_bytes": 2**20}, "1 MB adapter"),
        ({"memory": None}, "unknown memory"),
        ({"steps": 1200, "seconds": 61}, "1 min 01 s, 1,200 steps training"),
    ],
)
def test_a_methods_figures_have_their_units(changes, figure):
    assert figure in words(method(chooser.html({"lora": COST | changes}, ""), "lora"))


def test_the_chooser_grows_with_every_method_whose_costs_arrive():
    costs = [COST | {"name": "lora"}, {"name": "dora", "problems": ["No."]}]
    first, second, last = chooser.growing(iter(costs), "ia3")
    assert [page.count(" disabled") for page in (first, second, last)] == [0, 1, 1]
    assert all("303 K" in method(page, "lora") for page in (first, second, last))
    assert [page.count("…") for page in (first, second, last)] == [len(METHODS) - 1, len(METHODS) - 2, 0]
    assert all('selected" data-method="ia3"' in page for page in (first, second, last))


def test_a_method_is_explained_with_what_it_trains_and_its_paper():
    row = METHODS["ia3"]
    html = chooser.explanation("ia3")
    assert words(html) == f"{row.explanation} Trains {row.trains} ( paper )."
    assert f'href="{row.paper}"' in html


def test_the_preview_marks_what_is_learned_and_says_what_is_cut_off():
    pieces = [
        {"text": "<s>", "trained": False, "special": True},
        {"text": "ask", "trained": False, "special": False},
        {"text": "answer", "trained": True, "special": False},
        {"text": "</s>", "trained": True, "special": True},
    ]
    facts = {
        "rows": [pieces, pieces[1:3]],
        "histogram": [(900, 1100, 2), (1101, 1300, 1)],
        "longest": 1200,
        "max_length": 1100,
        "warning": "",
        "format": "Reading <x>.",
    }
    html = render.preview(facts)
    first, second = re.findall(r'<div class="t-tokens">(.*?)</div>', html)
    assert re.findall(r"<span( class=\"[\w ]*\")?>([^<]*)</span>", first) == [
        (' class="special"', "&lt;s&gt;"),
        ("", "ask"),
        (' class="trained"', "answer"),
        (' class="trained special"', "&lt;/s&gt;"),
    ]
    assert words(second) == "ask answer"
    assert in_order(plain(html), "Reading <x>.", "learned from", "context only", "special token", "900", "1300")
    assert words(html).endswith("No row is cut off: the longest has 1,200 of 1,100 tokens.")
    assert '<span class="trained">learned from</span><span>context only</span><span class="special">special' in html
    assert re.findall(r'<i class="(\w*)"', html) == ["", "cut"]
    warned = render.preview(facts | {"warning": "3 rows are cut."})
    assert warned.endswith('<p class="t-warning">3 rows are cut.</p>')


def test_an_examples_answers_stand_in_their_places_and_long_ones_are_cut():
    example = {"prompt": "p" * 600, "base": "b" * 601, "adapter": "", "reference": "r"}
    html = result.before_and_after([example, example | {"adapter": "a"}])
    first, second = html.split('class="t-example"')[1:]
    assert re.findall(r"<dt>(\w+)</dt><dd[^>]*>(.*?)</dd>", first) == [
        ("Before", "b" * 600 + " …"),
        ("After", "<em>(nothing)</em>"),
        ("Reference", "r"),
    ]
    assert "p" * 600 + "</p>" in first
    assert "<dt>After</dt><dd class='after'>a</dd>" in second


def test_a_runs_card_says_what_was_done_though_more_was_planned(mine):
    examples = [{"prompt": f"ask {i}", "base": "b", "adapter": "a", "reference": "r"} for i in range(4)]
    mine.write_json("evaluation.json", mine.read_json("evaluation.json") | {"examples": examples})
    last = {"loss": 1.0, "tokens_per_second": 70, "seconds_to_go": 130.0}
    drawn = {"losses": [(20, 2.0), (40, 1.0)], "heldout": [(0, 3.0), (20, 2.5), (40, 1.5)], "last": last}
    html = render.run_card(mine, Progress("finished", 40, 300, seconds=63.0, **drawn))
    assert in_order(plain(html), "corporate, 40 steps in 1 min 03 s", "ask 0", "ask 1", "1 min 03 s", "training time")
    assert "ask 2" not in html
    assert "Loss over 40 of 300 steps" in html
    live = render.run_card(mine, Progress("training", 40, 300, seconds=63.0, **drawn))
    assert html.count("<circle") == live.count("<circle") == 3


def test_scores_of_labels_have_no_exact_matches_and_others_have_both():
    def scores(metric: str) -> dict:
        own = {metric: 0.5, f"{metric}_low": 0.25, f"{metric}_high": 0.75}
        return {
            "metric": metric,
            "rows": 9,
            "base": own | {"exact_match": 0.125},
            "adapter": own | {metric: 0.625, "exact_match": 0.5},
            "gain": {metric: 0.125, "low": 0.0625, "high": 0.1875},
        }

    assert words(result.variants(scores("rougeL"))) == (
        "ROUGE-L Adapter against it Base model 0.50 0.25 to 0.75 +0.12 +0.06 to +0.19 With adapter 0.62 0.25 to 0.75"
    )
    assert words(result.other_metrics(scores("rougeL"))) == "Other metrics base adapter gain exact matches 12% 50% –"
    assert result.other_metrics(scores("accuracy")) == ""
    accuracy = scores("accuracy") | {"metric": "accuracy"}
    table = result.other_metrics(scores("rougeL") | {"other_metrics": [accuracy]})
    head, *rows = [re.findall(r"<t[hd]>([^<]*)<", row) for row in table.split("<tr>")[1:]]
    assert head == ["Other metrics", "base", "adapter", "gain"]
    assert [[cell[:4] for cell in row[1:]] for row in rows] == [["0.50", "0.62", "+0.1"]]


SCORED = {
    "metric": "rougeL",
    "base": {"rougeL": 0.1},
    "adapter": {"rougeL": 1.5},
    "gain": {"rougeL": -0.25, "low": -0.5, "high": 0.1},
}


def test_the_list_marks_the_selected_run_and_says_what_each_is():
    rows = [
        RUN | {"run": "a", "name": "First", "data": "x.csv", "status": "paused"},
        RUN | {"run": "b", "scores": SCORED | {"gain": None}},
        RUN | {"run": "c", "name": None, "scores": SCORED},
        RUN | {"run": "d", "name": None, "status": "damaged", "problems": ["One.", "Two."]},
        RUN | {"run": "e", "scores": SCORED | {"metric": "unknown"}},
    ]
    html = render.runs_list(rows, "b", "c")
    buttons = re.findall(r"<button.*?</button>", html)
    assert [words(button) for button in buttons] == [
        "First x.csv paused",
        "lora on m d finished",
        "lora on m d · included example finished -0.25",
        "d One. Two. damaged",
        "lora on m d finished",
    ]
    assert [re.search(r'data-run="(\w)" aria-pressed="(\w+)"', button).groups() for button in buttons] == [
        ("a", "false"),
        ("b", "true"),
        ("c", "false"),
        ("d", "false"),
        ("e", "false"),
    ]
    assert ["t-row selected" in button for button in buttons] == [False, True, False, False, False]
    assert re.findall(r't-mini (\w+)" title="([^"]*)"><i style="width:(\d+)%', html) == [
        ("base", "Base model: ROUGE-L 0.10", "10"),
        ("adapter", "With adapter: ROUGE-L 1.50", "100"),
    ]
    assert re.findall(r't-status (\w+)">(\w+)<', html)[0] == ("paused", "paused")
    assert words(render.runs_list([], "", "")) == "No runs yet. Train one, and it will appear here."


def test_the_merge_check_says_over_how_many_tokens_it_was_measured():
    check = {"top1_agreement": 0.995, "max_logit_difference": 0.12345, "tokens": 1}
    check |= {"top1_agreement_quantized": 0.5, "max_logit_difference_quantized": 12.3456}
    text = words(render.merge_check(check))
    assert text == (
        "Merged model compared with same top token largest logit difference the adapter on the 16-bit base (effect of "
        "merging) 99.5% 0.123 the adapter as trained (effect of merging and quantization) 50.0% 12.3 Measured on 1 "
        "token of held-out answers."
    )
    assert words(render.merge_check(None)) == (
        "The adapter is merged, and the merge checked, when the merged model first answers."
    )


def test_problems_are_counted_and_each_is_a_line():
    assert elements.problems([]) == elements.note("") == ""
    assert words(elements.problems(["One."])) == "This can't work yet One."
    assert words(elements.problems(["One.", "Two."])) == "2 problems to fix One. Two."
    assert words(elements.problems(["One.", "Two."], "It broke")) == "It broke One. Two."
    assert lines(elements.problems(["One.", "Two."])) == ["One.", "Two."]
    assert words(elements.folded("Title", "content")) == "Title content"
    assert words(render.push_link("https://hub/a")) == "Pushed: https://hub/a"
    assert 'href="https://hub/a"' in render.push_link("https://hub/a")


def test_an_error_is_told_in_its_own_words_or_by_a_number_that_the_log_has(caplog):
    assert problems.problems_of(TunerError("One.", "Two.")) == ["One.", "Two."]
    assert problems.problems_of(gr.Error("No GPU <now>.")) == ["No GPU <now>."]
    (full,) = problems.problems_of(OSError(28, "No space left on device"))
    assert full == "This machine's disk is full. Delete a run that you no longer need, then try again."
    assert not caplog.records

    class Foreign(Exception):
        message = "secret path"

    for error in (Foreign("x"), OSError(2, "secret"), ValueError("secret")):
        (told,) = problems.problems_of(error)
        number = re.fullmatch(
            r"Something unexpected went wrong \(error (\w{8})\)\. Nothing you entered is lost: try again\.", told
        )[1]
        assert number in caplog.records[-1].getMessage()
        assert caplog.records[-1].exc_info[1] is error
        (told,) = problems.problems_of(error, "run7")
        assert told == "Tuner failed unexpectedly (run run7). What the run learned is kept."
        assert "run7" in caplog.records[-1].getMessage()
        assert caplog.records[-1].exc_info[1] is error
    assert len(caplog.records) == 6
