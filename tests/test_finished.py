"""A finished run's scores of base and adapter are the same, and the right way round, wherever they are shown."""

import json
import re
import shutil
from html import unescape

import gradio as gr
import pytest
from conftest import in_order, plain
from scored import experiment_of
from visitors_runs import ANN

from tuner import runs, terminal
from tuner.cli import main
from tuner.errors import TunerError
from tuner.experiments.ranking import results
from tuner.hub.card import card
from tuner.rouge import rouge_l
from tuner.ui import actions, api, ownership, playground_tab, render, result, runs_tab, train_tab

LENGTH = 16  # tokens, as the run was scored


@pytest.fixture
def mine(finished, tmp_path, monkeypatch):
    """A copy of the finished run among this visitor's runs."""
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    run = runs.Run(shutil.copytree(finished.path, tmp_path / "mine"))
    ownership.claim(run, ANN)
    return run


@pytest.fixture
def scores(finished) -> dict:
    return finished.read_json("evaluation.json")


def test_the_scores_are_those_of_the_answers_and_show_that_the_run_helped(scores):
    for variant in ("base", "adapter"):
        each = [rouge_l(e["reference"], e[variant]) for e in scores["examples"]]
        assert [e[f"{variant}_rougeL"] for e in scores["examples"]] == pytest.approx(each, abs=1e-4)
        assert scores[variant]["rougeL"] == pytest.approx(
            sum(each) / len(each), abs=0.05
        )  # of all, not of those shown
    # The other way round all of this would be negative.
    assert scores["gain"]["rougeL"] > 0.05
    assert scores["gain"]["low"] > 0
    assert scores["adapter"]["loss"] < scores["base"]["loss"] - 0.1
    assert all(e["base"] != e["adapter"] for e in scores["examples"])


def test_in_the_playground_and_the_terminal_each_answers_as_it_did_when_it_was_scored(mine, scores, capsys):
    first = scores["examples"][0]
    *_, answers = api.chat("mine", first["prompt"], max_new_tokens=LENGTH, visitor=ANN)
    assert (answers["base"], answers["adapter"]) == (first["base"], first["adapter"])
    # The merged model stands on the 16-bit base, so a word may differ.
    assert rouge_l(first["adapter"], answers["merged"]) > rouge_l(first["base"], answers["merged"])

    assert main(["chat", "mine", "--prompt", first["prompt"], "--max-new-tokens", str(LENGTH), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {variant: told[variant] for variant in answers} == answers

    empty = [[]] * playground_tab.COLUMNS
    *_, columns = playground_tab._answer(["mine"], None, first["prompt"], "", 0, 1, LENGTH, 0, *empty, visitor=ANN)
    shown = [column[-1]["content"] for column in columns[:3]]
    assert shown == [answers[variant] for variant in ("base", "adapter", "merged")]
    with gr.Blocks():
        tab = playground_tab.build(gr.BrowserState())
    picked = playground_tab.choose_runs(tab, ["mine"], [], "", [], ANN)
    titles = [picked[column]["label"] for column in tab.columns[:3]]
    assert all(re.search(v, title, re.IGNORECASE) for v, title in zip(answers, titles, strict=True))


def test_a_conversation_in_the_terminal_keeps_each_models_own_turns(mine, scores, monkeypatch, capsys):
    first, said = scores["examples"][0], iter([scores["examples"][0]["prompt"], "thx", ""])
    monkeypatch.setattr("builtins.input", lambda *_: next(said))
    assert main(["chat", "mine", "--max-new-tokens", str(LENGTH), "--json"]) == 0
    one, two = map(json.loads, capsys.readouterr().out.splitlines())
    asked = {"role": "user", "content": first["prompt"]}
    history = {v: [asked, {"role": "assistant", "content": one[v]}] for v in ("base", "adapter", "merged")}
    *_, expected = api.chat("mine", "thx", history=history, max_new_tokens=LENGTH, visitor=ANN)
    assert {v: two[v] for v in expected} == expected
    assert len(set(expected.values())) > 1


def test_the_page_shows_base_before_and_adapter_after(mine, scores):
    scores["adapter"]["exact_match"] = 0.25  # so few steps make no answer equal to its reference
    mine.write_json("evaluation.json", scores)
    html = render.run_card(mine)
    assert in_order(plain(html), "exact matches", "0%", "25%")
    base, adapter, gain = (scores[part] for part in ("base", "adapter", "gain"))
    verdict = plain(html.partition("How this was measured")[2])
    assert in_order(
        verdict, f"{scores['rows']} of 16 held-out rows", f"{base['rougeL']:.2f}", f"{adapter['rougeL']:.2f}"
    )
    assert in_order(verdict, f"{gain['low']:+.2f}", f"{gain['high']:+.2f}")
    bars = re.findall(r'class="t-bar (\w+)">(.*?)</tbody>', html)
    assert [kind for kind, _ in bars] == ["base", "adapter"]
    for kind, bar in bars:
        own = scores[kind]
        low, high = own["rougeL_low"], own["rougeL_high"]
        assert f"width:{own['rougeL']:.1%}" in bar
        assert f"left:{low:.1%};width:{high - low:.1%}" in bar
        assert re.search(kind, plain(bar), re.IGNORECASE)
        assert in_order(plain(bar), f"{own['rougeL']:.2f}", f"{low:.2f}", f"{high:.2f}")
    examples = html.split('class="t-example"')[1:]
    assert len(examples) == 2
    for example, part in zip(scores["examples"], examples, strict=False):
        titles, texts = (re.findall(rf"<{name}[^>]*>(.*?)</{name}>", part) for name in ("dt", "dd"))
        assert [unescape(text) for text in texts] == [example["base"], example["adapter"], example["reference"]]
        for title, meaning in zip(titles, ("before|base", "after|adapter", "reference"), strict=True):
            assert re.search(meaning, title, re.IGNORECASE)
        assert plain(part).index(example["prompt"]) < plain(part).index(example["base"])


def test_the_list_of_runs_shows_the_base_the_adapter_and_the_gain(mine, scores, capsys):
    html = render.runs_list([actions.summary(mine)], "mine", "example")
    minis = re.findall(r't-mini (\w+)" title="([^"]*)"><i style="width:([^"]*)"', html)
    assert [kind for kind, *_ in minis] == ["base", "adapter"]
    for kind, title, width in minis:
        assert width == f"{scores[kind]['rougeL']:.0%}"
        assert title.endswith(f"{scores[kind]['rougeL']:.2f}")
        assert re.search(kind, title, re.IGNORECASE)
    assert f"{scores['gain']['rougeL']:+.2f}" in plain(html)
    assert main(["runs"]) == 0
    assert in_order(capsys.readouterr().out, *(f"{scores[v]['rougeL']:.2f}" for v in ("base", "adapter")))
    assert main(["runs", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["runs"]
    assert row["scores"] == {v: scores[v]["rougeL"] for v in ("base", "adapter")}
    labels = {"metric": "accuracy", "base": {"accuracy": 0.25}, "adapter": {"accuracy": 0.75}}
    mine.write_json("evaluation.json", scores | labels | {"gain": {"accuracy": 0.5, "low": 0.1, "high": 0.6}})
    assert in_order(render.runs_list([actions.summary(mine)], "mine", "example"), "accuracy 0.25", "accuracy 0.75")


def test_the_terminal_says_what_base_and_adapter_scored(mine, scores, capsys):
    assert main(["evaluate", "mine"]) == 0
    said = capsys.readouterr().out
    base, adapter, gain = (scores[part] for part in ("base", "adapter", "gain"))
    assert in_order(said, "base", f"{base['rougeL']:.2f}", "adapter", f"{adapter['rougeL']:.2f}")
    assert in_order(said, f"{gain['rougeL']:+.2f}", f"{gain['low']:+.2f}", f"{gain['high']:+.2f}")


def test_the_card_says_what_base_and_adapter_scored_and_answered(mine, scores):
    scores["adapter"]["exact_match"] = 0.25  # so few steps make no answer equal to its reference
    mine.write_json("evaluation.json", scores)
    check = {"tokens": 123, "top1_agreement": 0.99, "top1_agreement_quantized": 0.88}
    mine.write_json("merge_check.json", check | {"max_logit_difference": 0.1, "max_logit_difference_quantized": 0.2})
    text = card(mine, "alice/office")
    helped = text.partition("## Did it help?")[2].partition("## ")[0]
    lines = helped.strip().partition("\n\n")[0].splitlines()
    head, _, *rows = ([cell.strip() for cell in line.split("|")[2:4]] for line in lines)
    assert ["base" in head[0], "adapter" in head[1]] == [True, True]
    metric, perplexity, exact, loss = rows
    for place, variant in enumerate(("base", "adapter")):
        own = scores[variant]
        assert metric[place] == f"{own['rougeL']:.3f} ({own['rougeL_low']:.3f} to {own['rougeL_high']:.3f})"
        assert perplexity[place].startswith(f"{scores['other_metrics'][0][variant]['perplexity']:.3f} (")
        assert exact[place] == f"{own['exact_match']:.1%}"
        assert loss[place] == f"{own['loss']:.3f}"
    gain = scores["gain"]
    assert in_order(helped, f"{gain['rougeL']:+.3f}", f"{gain['low']:+.3f}", f"{gain['high']:+.3f}")
    shown = text.partition("## Before and after")[2].partition("\n## ")[0]
    blocks = re.findall(r"^([A-Z][\w ]*)\n\n```text\n(.*?)\n```", shown, re.MULTILINE | re.DOTALL)
    expected = [(key, e[key]) for e in scores["examples"][:2] for key in ("prompt", "reference", "base", "adapter")]
    assert [said for _, said in blocks] == [said for _, said in expected]
    assert all(re.search(key, title, re.IGNORECASE) for (title, _), (key, _) in zip(blocks, expected, strict=True))
    assert in_order(text, "99.0%", "123", "88.0%")


def test_a_comparisons_line_is_the_adapters(mine, scores):
    found = results(experiment_of([mine]))
    (line,), base, adapter = found.lines, scores["base"], scores["adapter"]
    assert line["score"] == pytest.approx(adapter["rougeL"], abs=1e-4)
    assert (line["low"], line["high"]) == pytest.approx((adapter["rougeL_low"], adapter["rougeL_high"]), abs=1e-4)
    assert found.rivals[0]["score"] == pytest.approx(base["rougeL"], abs=1e-4)
    assert (line["loss"], line["steps"]) == (adapter["loss"], 8)
    assert line["seconds"] == mine.last_event("end")["seconds"]


def gains(low: float, high: float, rows: int = 40) -> dict:
    """An evaluation whose gain lies between these."""
    gain = {"rougeL": (low + high) / 2, "low": low, "high": high}
    return {"metric": "rougeL", "rows": rows, "gain": gain, "base": {"rougeL": 0.31}, "adapter": {"rougeL": 0.42}}


VERDICTS = {"good": "helped", "unsure": "no clear", "bad": "worse"}


@pytest.mark.parametrize(
    ("low", "high", "kind"),
    [(0.01, 0.2, "good"), (-0.1, 0.2, "unsure"), (0.0, 0.2, "unsure"), (-0.2, 0.0, "unsure"), (-0.2, -0.01, "bad")],
)
def test_the_verdict_claims_no_more_than_the_interval_does(low, high, kind):
    html, text = result.verdict(gains(low, high)), terminal.verdict(gains(low, high)).lower()
    title = plain(html.partition("</h3>")[0]).lower()
    for name, words in VERDICTS.items():
        assert (words in title) == (words in text) == (name == kind)
        assert (f"t-verdict {name}" in html) == (name == kind)
    assert in_order(plain(html), "40", f"{low:+.2f}", f"{high:+.2f}")
    assert ("may be chance" in html) == (kind == "unsure")
    assert in_order(text, "40", "0.31", "0.42", f"{low:+.2f}", f"{high:+.2f}")


def test_a_score_from_few_rows_is_called_a_hint():
    assert "hint" in result.verdict(gains(0.1, 0.2, rows=15))
    assert "hint" not in result.verdict(gains(0.1, 0.2, rows=16))


def test_without_answers_the_verdict_is_the_loss_of_base_and_then_of_adapter():
    losses = {"metric": "rougeL", "rows": 0, "gain": None, "base": {"loss": 2.5}, "adapter": {"loss": 1.25}}
    assert in_order(plain(result.verdict(losses)), "2.500", "1.250")
    assert in_order(terminal.verdict(losses), "base", "2.500", "adapter", "1.250")
    assert "t-verdict unsure" in result.verdict(losses)


def test_the_merge_check_tells_the_merges_share_from_quantizations():
    figures = {"top1_agreement": 0.99, "max_logit_difference": 0.125, "tokens": 321}
    check = figures | {"top1_agreement_quantized": 0.88, "max_logit_difference_quantized": 2.5}
    assert in_order(plain(render.merge_check(check)), "16-bit", "99.0%", "0.125", "quant", "88.0%", "2.5", "321")
    assert "%" not in render.merge_check(None)


@pytest.mark.parametrize(
    ("name", "text", "use"),
    [
        ("plan.json", "", api.status),
        ("plan.json", "{}", lambda run: list(api.chat(run, "yo"))),
        ("evaluation.json", '{"rows"', api.status),
        ("recipe.yaml", "method: [", lambda run: list(api.chat(run, "yo"))),
    ],
)
def test_the_page_lists_a_damaged_run_beside_the_others_and_says_what_is_wrong(name, text, use, mine, finished):
    broken = runs.Run(shutil.copytree(finished.path, mine.path.parent / "broken"))
    ownership.claim(broken, ANN)
    (broken.path / name).write_text(text)
    rows = api.runs(["broken", "mine", "gone"])
    assert [(row["run"], row["status"]) for row in rows][:2] == [("broken", "damaged"), ("mine", "finished")]
    visitor = {"runs": ["broken", "mine"], "shown": ""}
    _, listed, *_ = runs_tab.refresh(visitor, "broken")
    assert in_order(plain(listed), "Run broken", name, "damaged", "finished")
    assert "mine" in [run for _, run in playground_tab.choices(visitor["runs"])]
    if text != "{}":  # the card needs no setting of the plan
        assert in_order(plain(train_tab.panel("broken")[0]), "Run broken", name, "damaged")
    with pytest.raises(TunerError, match=f"Run broken: its {name} is"):
        use("broken")
    with pytest.raises(TunerError, match=f"Run broken: its {name} is"):
        actions.resume("broken", ANN)
    api.delete("broken", visitor=ANN)
    assert not broken.path.exists()


def test_scores_by_a_metric_that_this_tuner_lacks_are_a_sentence(mine, scores, capsys):
    named = json.loads(json.dumps(scores | {"metric": "meteor"}).replace("rougeL", "meteor"))
    mine.write_json("evaluation.json", named)
    sentence = "scored by 'meteor', a metric that this version of Tuner lacks"
    for command in ("evaluate", "train"):
        assert main([command, str(mine.path)]) == 2
        assert sentence in capsys.readouterr().err
    assert sentence in plain(train_tab.panel("mine")[0])
    rows = api.runs(["mine"])
    assert rows[0]["status"] == "finished"
    assert "t-minis" not in render.runs_list(rows[:1], "mine", "example")
    assert main(["runs"]) == 0
    assert in_order(capsys.readouterr().out, "mine", "finished", "lora on tiny-office")
    other = {"metric": "meteor", **{part: named[part] for part in ("base", "adapter", "gain")}}
    mine.write_json("evaluation.json", scores | {"other_metrics": [other]})
    assert sentence in plain(train_tab.panel("mine")[0])


def test_old_scores_without_intervals_are_shown(mine, scores):
    for variant in ("base", "adapter"):
        scores[variant] = {"rougeL": scores[variant]["rougeL"], "loss": scores[variant]["loss"]}
    del scores["examples"]
    mine.write_json("evaluation.json", scores)
    html = render.run_card(mine)
    bars = re.findall(r'class="t-bar (\w+)">(.*?)</tbody>', html)
    assert [kind for kind, _ in bars] == ["base", "adapter"]
    for kind, bar in bars:
        assert in_order(plain(bar), f"{scores[kind]['rougeL']:.2f}")
        assert "left:" not in bar
        assert " to " not in bar.partition("</td>")[0]


@pytest.mark.parametrize(
    ("low", "high", "base", "adapter", "digits"),
    [
        (0.001, 0.003, 0.31, 0.312, 3),
        (-0.0003, -0.0001, 0.31, 0.3098, 4),
        (0.0001, 0.4, 0.31, 0.51, 4),
        (0.01, 0.02, 0.3055, 0.3115, 3),
    ],
)
def test_a_firm_verdict_prints_as_many_digits_as_its_figures_need(low, high, base, adapter, digits):
    scores = gains(low, high) | {"base": {"rougeL": base}, "adapter": {"rougeL": adapter}}
    figures = f"{base:.{digits}f}", f"{adapter:.{digits}f}", f"{low:+.{digits}f}", f"{high:+.{digits}f}"
    assert figures[0] != figures[1]
    assert in_order(plain(result.verdict(scores)), *figures[2:])
    assert in_order(plain(result.variants(scores)), figures[0], *figures[2:], figures[1])
    for text in (plain(result.verdict(scores) + result.variants(scores)), terminal.verdict(scores)):
        assert in_order(text, *figures[2:])
        assert not re.search(r"[+-]0\.0+(?!\d)", text)


def test_a_gain_that_rounds_to_nothing_has_no_minus_sign():
    assert in_order(terminal.verdict(gains(-0.004, 0.004)), "+0.00", "+0.00", "+0.00")


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1)])
def test_fewer_than_ten_rows_are_too_few_to_tell(low, high):
    html, text = result.verdict(gains(low, high, rows=9)), terminal.verdict(gains(low, high, rows=9))
    assert "t-verdict unsure" in html
    assert text.startswith("Too few to tell: 9 held-out rows.")
    assert not re.search(r"interval|gain|[+-]0\.", text)
    assert "Too few" not in terminal.verdict(gains(low, high, rows=10))
