"""Runs whose rows have thoughts, tools or long conversations: what is planned, prompted and scored."""

import json
from math import exp
from pathlib import Path

import pytest
import tiny
import trl
from conftest import small_recipe
from datasets import load_from_disk
from transformers import MptConfig

from tuner.data.chat import render_prompt
from tuner.data.chat_templates import changed_template
from tuner.data.parse import Table
from tuner.errors import TunerError
from tuner.evaluation import results
from tuner.hub.card_use import use
from tuner.inference import generate
from tuner.inference.variants import load_variants
from tuner.methods.files import write_template
from tuner.metrics import chosen
from tuner.models.losses import row_losses
from tuner.models.shape import load_tokenizer
from tuner.planning import jobs, plan
from tuner.recipe import Recipe
from tuner.runs import Run
from tuner.tasks import TASKS
from tuner.training.window import train

pytestmark = pytest.mark.usefixtures("no_estimates")
QWEN3 = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny model with Qwen3's template, which reads 512 tokens."""
    folder = tiny.tiny_model(tmp_path_factory.mktemp("models") / "qwen3")
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = QWEN3.read_text()
    tokenizer.save_pretrained(folder)
    return folder


def recipe(model: Path, **settings) -> Recipe:
    return small_recipe(**{"model__name": str(model), "data__heldout": 2, "evaluation__max_new_tokens": 16} | settings)


def rows(answer: str, question: str = "question") -> list[dict]:
    """Eight conversations with this answer and this question, numbered."""
    contents = [{"user": f"{question} {n}", "assistant": f"{answer} {n}"} for n in range(8)]
    return [{"messages": [{"role": r, "content": c} for r, c in turns.items()]} for turns in contents]


def prepared(given: list[dict], model: Path, path: Path, **settings) -> Run:
    columns = list(dict.fromkeys(key for row in given for key in row))
    return plan.prepare(recipe(model, **settings), Table("rows.jsonl", columns, given), path=path)


THOUGHTFUL, PLAIN = rows("<think>\nlook\n</think>\n\nyes"), rows("yes")


@pytest.mark.parametrize(
    ("given", "thinks"), [(THOUGHTFUL, True), (PLAIN, False), (PLAIN[:5] + THOUGHTFUL[5:], False)]
)
def test_a_run_lets_the_model_think_if_most_rows_do(given, thinks, model, tmp_path):
    run = prepared(given, model, tmp_path / "run")
    assert run.plan["thinks"] is thinks
    tokenizer = load_tokenizer(model)
    for row in run.heldout():
        number = int(row["reference"].split()[-1])
        assert row["reference"] == f"yes {number}"
        own = "<think>" in given[number]["messages"][1]["content"]
        assert row["text"] == render_prompt(row["messages"], tokenizer, thinks=own)
        assert row["text"].endswith("assistant\n" if own else "</think>\n\n")
    asked = [{"role": "user", "content": "hey"}]
    (text,) = jobs.read_prompts(str(run.path), [asked], False)["texts"]
    assert text == render_prompt(asked, tokenizer, thinks=thinks)


def test_a_run_of_an_earlier_version_is_prompted_as_before(model, tmp_path):
    run = prepared(PLAIN, model, tmp_path / "run")
    entries = run.read_json("plan.json")
    del entries["thinks"]
    run.write_json("plan.json", entries)
    run = Run(run.path)
    messages = [m for row in PLAIN[:2] for m in row["messages"]][:-1]
    (text,) = jobs.read_prompts(str(run.path), [messages], False)["texts"]
    own = load_tokenizer(model).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert text == own


def test_variants_are_prompted_as_their_runs_were_trained(model, monkeypatch, finished):
    loaded = load_variants({"adapter": finished, "other": finished})
    assert loaded.thinks == {"adapter": False, "other": False}
    loaded.thinks.update(adapter=True, other=None)
    asked = [{"role": "user", "content": "hey"}]
    seen = []
    monkeypatch.setattr(generate, "render_prompt", lambda messages, tokenizer, thinks: seen.append(thinks) or "hey")
    for variant in ("base", "adapter", "other", "merged"):
        generate._prompt(loaded, variant, asked)
    assert seen == [True, True, None, True]


def test_a_tool_call_is_the_reference_as_the_template_writes_it(model, tmp_path):
    calling = [
        {
            "tools": [TOOL],
            "messages": [
                {"role": "user", "content": f"weather {n}?"},
                {"role": "assistant", "content": "", "reasoning_content": "look", "tool_calls": [CALL]},
            ],
        }
        for n in range(8)
    ]
    run = prepared(calling, model, tmp_path / "run")
    for row in run.heldout():
        call = row["reference"].removeprefix("<tool_call>").removesuffix("</tool_call>")
        assert json.loads(call) == CALL["function"]
        assert '"name": "weather"' in row["text"]
        assert row["tools"] == [TOOL]
        assert row["text"].endswith("assistant\n")  # it may think before it calls


def test_a_held_out_prompt_leaves_room_for_its_answer(model, tmp_path):
    given = rows("yes", question="long " * 600)
    run = prepared(given, model, tmp_path / "run")
    tokenizer = load_tokenizer(model)
    for row in run.heldout():
        ids = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        assert 480 < len(ids) <= 512 - 16
        assert len(row["messages"][0]["content"]) > 3000  # as it was given
        assert "[...]" in row["text"]
    soft = {"method__name": "prompt_tuning", "method__rank": "auto", "method__virtual_tokens": 100}
    prompted = prepared(given, model, tmp_path / "prompted", **soft)
    for row in prompted.heldout():
        assert len(tokenizer(row["text"], add_special_tokens=False)["input_ids"]) <= 412 - 16
    greedy = prepared(given, model, tmp_path / "greedy", evaluation__max_new_tokens=2000)
    for row in greedy.heldout():
        assert 100 < len(tokenizer(row["text"], add_special_tokens=False)["input_ids"]) <= 128


def test_what_is_scored_of_an_answer_is_what_stands_behind_its_thought():
    given = [{"messages": [{"role": "user", "content": "hey"}], "reference": "yes"}]
    written = [{"base": "<think>\nyes yes yes", "adapter": "<think>\nno no no\n</think>\n\nyes"}]
    scores, _ = results.scores_of(chosen("answer_f1", TASKS["generation"]), given, written, {})
    assert (scores["adapter"]["answer_f1"], scores["base"]["answer_f1"] < 1) == (1.0, True)
    assert scores["examples"][0]["adapter"] == written[0]["adapter"]  # shown as it was written


def test_a_reference_is_scored_without_its_thought_as_answers_are():
    written = "<|channel>thought\nyes yes yes<channel|>no"
    given = [{"messages": [{"role": "user", "content": "hey"}], "reference": written}]
    given_answers = [{"base": "yes", "adapter": written}]
    scores, _ = results.scores_of(chosen("answer_f1", TASKS["generation"]), given, given_answers, {})
    assert (scores["adapter"]["answer_f1"], scores["base"]["answer_f1"]) == (1.0, 0.0)


def test_the_page_previews_each_answer_of_a_conversation_with_its_thought(model):
    turns = [m for row in THOUGHTFUL[:2] for m in row["messages"]]
    table = Table("rows.jsonl", ["messages"], [{"messages": turns}] * 8)
    checked = plan.check(recipe(model), table)
    text = jobs.preview_pieces("generation", checked.train.rows[0], checked.tokenizer)
    shown = [piece["text"] for piece in text if piece["trained"] and not piece["special"]]
    assert shown == [f"<think>\nlook\n</think>\n\nyes {n}" for n in (0, 1)]


def test_a_model_whose_positions_have_another_name_is_not_asked_for_more(tmp_path, model):
    import torch
    from transformers import MptForCausalLM

    config = MptConfig(d_model=48, n_heads=4, n_layers=2, vocab_size=320, max_seq_len=64, expansion_ratio=2)
    with torch.random.fork_rng():
        MptForCausalLM(config).save_pretrained(tmp_path / "mpt")
    tiny.tiny_tokenizer().save_pretrained(tmp_path / "mpt")
    given = Table("rows.jsonl", ["messages"], rows("yes", question="long " * 40))
    checked = plan.check(recipe(tmp_path / "mpt"), given)
    assert checked.train.max_length == 64
    assert "The model reads no more: shorten the rows" in checked.train.warning
    with pytest.raises(TunerError, match=r"100 tokens do not fit the model's context of 64"):
        plan.check(recipe(tmp_path / "mpt", data__max_length=100), given)


def test_the_card_asks_the_model_to_think_if_its_rows_did(model, tmp_path):
    for given, thinks in ((THOUGHTFUL, True), (PLAIN, False)):
        run = prepared(given, model, tmp_path / str(thinks))
        (run.adapter).mkdir(exist_ok=True)
        (run.adapter / "chat_template.jinja").write_text(QWEN3.read_text())
        assert f"enable_thinking={thinks}" in use(run, run.recipe, None, "me/it", "adapter")


def test_an_adapter_takes_along_the_template_that_it_was_trained_with(model, tmp_path):
    tokenizer = load_tokenizer(model)
    run = prepared(PLAIN, model, tmp_path / "run")
    template = run.plan["chat_template"]
    write_template(tmp_path, run.plan)
    tokenizer.save_pretrained(tmp_path)
    write_template(tmp_path, run.plan)
    pushed = load_tokenizer(tmp_path)
    assert pushed.chat_template == template != tokenizer.chat_template
    messages = [m for row in PLAIN[:2] for m in row["messages"]][:-1]
    as_pushed = pushed.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert as_pushed == render_prompt(messages, tokenizer) == render_prompt(messages, pushed)
    tokenizer.chat_template = (QWEN3.parent / "qwen2_5.jinja").read_text()
    assert changed_template(tokenizer) is None  # TRL's only has marks more


FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content if loop.last or m.role == 'user' else 'earlier' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_conversation_whose_answers_are_learned_from_one_by_one_is_one_held_out_row(tmp_path):
    model = tiny.tiny_model(tmp_path / "forgetful")
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = FORGETFUL
    tokenizer.save_pretrained(model)
    turns = ("user", "question"), ("assistant", "please send"), ("user", "more"), ("assistant", "report by friday")
    given = [{"messages": [{"role": role, "content": f"{text} {n % 7}"} for role, text in turns]} for n in range(40)]
    settings = {"data__heldout": 30, "data__max_rows": 40, "evaluation__rows": 10, "evaluation__max_new_tokens": 1}
    run = prepared(given, model, tmp_path / "run", budget__steps=1, **settings)
    tokenized = load_from_disk(str(run.data / "heldout"))
    assert len(tokenized) == 60
    assert (run.plan["heldout_rows"], run.plan["scored_rows"], run.plan["heldout_parts"]) == (30, 10, [2] * 30)
    assert 0 < run.plan["repeated_rows"] <= 30
    assert run.plan["measuring"]["first"] == 20  # weights are chosen by rows that are not scored
    list(train(run))
    loaded = load_variants({"adapter": run})
    with loaded.sharing_base[0].model_for("adapter") as adapter:
        nats, labels = row_losses("next_token", adapter, tokenized, 4)
    scored = [json.loads(line) for line in (run.path / "evaluation_rows.jsonl").read_text().splitlines()]
    expected = [exp(sum(nats[i : i + 2]) / sum(labels[i : i + 2])) for i in range(0, 20, 2)]
    assert [row["adapter_perplexity"] for row in scored] == pytest.approx(expected, rel=1e-3)
    scores = run.read_json("evaluation.json")
    assert scores["heldout_rows"] == 30
    assert "rows" not in scores["other_metrics"][0]
