"""The code on a model card loads what was trained, whatever the task and the kind of adapter."""

import json
from types import SimpleNamespace

import fresh
import pytest
import torch
from conftest import small_recipe
from test_matrix import ROWS, small_run
from tiny import tiny_model
from transformers import AutoTokenizer

from tuner import recipe, runs
from tuner.data import sources
from tuner.hub import card_use
from tuner.hub.push import push
from tuner.inference.variants import load_variants
from tuner.planning import plan
from tuner.tasks import TASKS
from tuner.training.window import train

# Each task, and each way in which what was trained lies in its folder.
PUSHED = [
    ("llama", "generation", "full"),
    ("llama", "generation", "bottleneck"),
    ("llama", "generation", "prompt_tuning"),
    ("llama", "generation", "lora_ia3"),
    ("t5", "seq2seq", "lora"),
    ("bart", "seq2seq", "bitfit"),
    ("distilbert", "classification", "lora_ia3"),
    ("bert", "classification", "lora"),
    ("roberta", "token_classification", "ia3"),
    ("distilbert", "question_answering", "upper_layers"),
]
LOAD = """
import json, re, sys, torch
for place, card in json.load(sys.stdin).items():
    loaded = {}
    exec(re.search(r"```python\\n(.*?)\\n```", card, re.DOTALL)[1], loaded)
    model, inputs = loaded["model"].eval(), dict(loaded["inputs"])
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.zeros(1, 3, dtype=torch.long)
    with torch.inference_mode():
        torch.save((inputs, model(**inputs)[0]), place)
"""


@pytest.fixture
def bases(tmp_path, monkeypatch):
    for family in {family for family, _, _ in PUSHED}:
        tiny_model(tmp_path / "bases" / family, family)
    monkeypatch.setattr(recipe, "EXAMPLES", tmp_path / "bases")


def test_the_cards_lines_load_every_kind_of_adapter_for_every_task_in_a_fresh_process(hub, bases, tmp_path):
    token, cards, made = hub.user("alice"), {}, {}
    for number, (family, task, method) in enumerate(PUSHED):
        table = sources.read_pasted("\n".join(map(json.dumps, ROWS[task])))
        chosen = small_run(family, method, "none").with_settings({"task": task, "budget.steps": 3})
        run = plan.prepare(chosen, table, path=tmp_path / f"run{number}")
        list(train(run))
        name = f"{family}-{task}-{method}".replace("_", "-")
        push(run, name, token=token, endpoint=hub.url)
        seen = str(tmp_path / f"seen{number}")
        cards[seen], made[seen] = hub.repo(f"alice/{name}").files["README.md"].decode(), run
    loaded = fresh.run(["-c", LOAD], tmp_path, json.dumps(cards), hub.env(tmp_path / "home") | {"HF_TOKEN": token})
    assert loaded.returncode == 0, loaded.stderr
    for seen, run in made.items():
        inputs, outputs = torch.load(seen)
        with load_variants({"adapter": run}).model_for("adapter") as model, torch.inference_mode():
            assert torch.allclose(model(**inputs)[0], outputs, atol=1e-4), run.recipe.method.name


def test_the_cards_lines_read_off_the_whole_answer_to_a_question(tmp_path, capsys):
    run = runs.create(small_recipe(), path=tmp_path / "run")
    question, context, answer = "who came?", "yesterday anna berg came", "anna berg"
    row = {"messages": [{"role": "user", "content": f"{question}\n{context}"}], "reference": answer}
    run.write_text("data/heldout.jsonl", json.dumps(row) + "\n")
    tokenizer = AutoTokenizer.from_pretrained(recipe.EXAMPLES / "tiny-reader")
    begin = context.index(answer)
    place = tokenizer(question, context).char_to_token
    first, last = (place(at, sequence_index=1) for at in (begin, begin + len(answer) - 1))
    assert first < last

    def model(input_ids, **inputs):
        """Sure of where the answer begins and ends."""
        size = input_ids.shape[1]
        start, end = (torch.eye(size)[at : at + 1] for at in (first, last))
        return SimpleNamespace(start_logits=start, end_logits=end)

    lines = card_use._ask(run, run.recipe, TASKS["question_answering"])
    exec(lines, {"model": model, "tokenizer": tokenizer})
    assert capsys.readouterr().out.strip().lower() == answer
