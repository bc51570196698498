"""What a model card says: each figure of a run in its place, and what differs from run to run."""

import re
from importlib import metadata
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from recorded import EVENTS, HUB, MERGED, PLAN, SCORES, recorded, section

from tuner.evaluation.verdict import judge
from tuner.hub import card
from tuner.metrics import METRICS
from tuner.recipe import Recipe


def front(text: str) -> dict:
    """The card's front matter; its results as (task, dataset, metric)."""
    facts = ModelCard(text).data.to_dict()
    for entry in facts.pop("model-index", []):
        (result,) = entry["results"]
        facts["results"] = (entry["name"], result["task"], result["dataset"], result["metrics"])
    return facts


def test_each_figure_of_a_card_stands_where_it_belongs(tmp_path):
    text = card.card(recorded(tmp_path, merge_check=MERGED), "alice/office")
    adapter = "[Qwen/Qwen3-0.6B](https://huggingface.co/Qwen/Qwen3-0.6B), revision `c0ffee`"
    source = "[knkarthick/dialogsum](https://huggingface.co/datasets/knkarthick/dialogsum) (en)"
    assert text.partition("\n---\n")[2].partition("\n\n## ")[0].strip() == (
        f"# office\n\nThis adapter for {adapter} was trained with Tuner, using LoRA, on 1,234 rows of {source}. It "
        "contains only the trained weights: load it together with its base model, as shown below."
    )
    judged = judge(SCORES, 3)
    assert section(text, "Did it help?") == (
        "| on held-out rows | base model | with adapter |\n|---|---|---|\n"
        "| ROUGE-L, higher is better (95% interval) | 0.123 (0.111 to 0.136) | 0.457 (0.432 to 0.479) |\n"
        "| answer F1 (95% interval; gain +0.343 (+0.330 to +0.355)) | 0.212 (0.203 to 0.222) | "
        "0.555 (0.540 to 0.569) |\n"
        "| answers equal to the reference | 1.2% | 23.8% |\n"
        "| loss, nats, lower is better | 2.346 | 1.235 |\n\n"
        f"**It helped.** {judged.text()} Training never saw these 1,064 rows; base model and adapter answered them, "
        "choosing the likeliest token each time, up to 64 tokens, on the base model in 4-bit (NF4), as in training. "
        "ROUGE-L is computed as in rouge_score, but over words of every script. "
        "The intervals are Wilson's with the rows' effective sample size; that of the gain is paired."
    )
    one, two = (
        "\n\n".join(
            f"{heading}\n\n```text\n{key} {i}\n```"
            for heading, key in (
                ("Prompt", "prompt"),
                ("Reference", "reference"),
                ("Base model", "base"),
                ("With adapter", "adapter"),
            )
        )
        for i in (1, 2)
    )
    assert section(text, "Before and after") == (
        f"The first held-out rows, not selected by hand.\n\n{one}\n\n---\n\n{two}"
    )
    assert section(text, "Data") == (
        f"- source: {source}\n"
        "- training: 1,234 rows with 56,789 tokens, 23,456 of them learned from\n"
        '- held out: 1,137 rows. Holding out "test".\n'
        "- format: chatml. By its columns.\n"
        "- truncated: 1,003 rows\n"
        "- warning: Mind the rows.\n"
        "- warning: And &lt;b>this&lt;/b>."
    )
    training, versions = section(text, "Training").split("\n\n")
    assert training == (
        "- steps: 1,037 of 4,000 (2.5 epochs), stopped early\n"
        "- time: 123.5 s, device: NVIDIA &lt;H200>, 22,222 tokens\n"
        "- energy: not measured\n"
        "- final loss: 0.625 (training), 0.875 (held-out), in nats per token\n"
        "- parameters: 75,776 trained; the base model has 3,410,176"
    )
    libraries = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "huggingface_hub")
    installed = ", ".join(f"{name} {metadata.version(name)}" for name in libraries)
    assert versions == f"Library versions when this card was written: {installed}."
    limits = section(text, "Limits").splitlines()
    assert len(limits) == 6
    assert limits[0] == (
        "- It learned one narrow task from 1,234 rows. On anything else, expect it to be no better than the base "
        "model, or worse."
    )
    assert limits[1].startswith("- The scores come from 1,064 rows of the same source.")
    assert limits[2] == (
        "- It was trained and scored on the base model in 4-bit (NF4). The code above loads the base model "
        "unquantized, so the answers can differ slightly. Merged into the 16-bit base model, it predicts the same "
        "next token as the adapter for 98.8% of 123 held-out tokens, and the same as the adapter on the base model "
        "as trained for 87.7%."
    )
    parts = re.findall(r"^#+ (.*)", re.sub(r"```.*?```", "", text.partition("\n---\n")[2], flags=re.DOTALL), re.M)
    assert parts == [
        "office", "How to use it", "Did it help?", "Before and after", "Data", "Settings", "Training", "Limits"
    ]  # fmt: skip


def test_the_settings_on_a_card_are_those_given_and_those_chosen_with_the_reason(tmp_path):
    given = {
        "name": "a|b",
        "method.alpha": 3,
        "data.columns": {"prompt": "frå|ge"},
        "seed": 11,
        "data.source": "/x/y.csv",
    }
    shown = section(card.card(recorded(tmp_path, HUB | given)), "Settings").splitlines()
    assert shown[:2] == ["| setting | value | meaning |", "|---|---|---|"]
    rows = {row[0]: row[1:] for row in (re.split(r"(?<!\\)\|", line[2:-2]) for line in shown[2:])}
    rows = {name.strip(): [cell.strip() for cell in cells] for name, cells in rows.items()}
    help_of = Recipe.model_fields["method"].annotation.model_fields
    assert rows["name"] == [r"a\|b", "your name for the run"]
    assert rows["seed"] == ["11", Recipe.model_fields["seed"].description]
    assert rows["method.rank"] == ["7", f"{help_of['rank'].description} (the method's own)"]
    assert rows["method.alpha"] == ["3.0", help_of["alpha"].description]  # given, so nothing was chosen
    layers = [r'["q_proj", "v\|proj"]', f"{help_of['target_modules'].description} (a guess)"]
    assert rows["method.target_modules"] == layers
    assert rows["method.dropout"] == ["auto", help_of["dropout"].description]  # of which the plan says nothing
    assert rows["data.format"][0] == "chatml"
    assert rows["data.columns"][0] == r'{"prompt": "frå\|ge"}'
    assert "| data.columns |" not in card.card(recorded(tmp_path))
    assert rows["data.source"][0] == "rows.csv"
    empty = {"model.revision", "budget.steps", "budget.epochs", "budget.seconds", "evaluation.seconds"}
    empty |= {"method.start_from"}
    empty |= {f"data.{name}" for name in ("split", "heldout_split", "system", "max_rows", "seed")}
    names = [
        f"{part}.{name}" if name else part
        for part, field in Recipe.model_fields.items()
        for name in getattr(field.annotation, "model_fields", [""])
    ]
    assert list(rows) == [name for name in names if name not in empty]


LABELED = {
    "metric": "accuracy",
    "rows": 16,
    "base": {"accuracy": 0.25, "accuracy_low": 0.125, "accuracy_high": 0.375},
    "adapter": {"accuracy": 0.75, "accuracy_low": 0.625, "accuracy_high": 0.875},
    "gain": {"accuracy": 0.5, "low": 0.25, "high": 0.625},
}
CHANGES = {  # settings and what the run's files hold instead -> what the card says of it, and what no more
    "one row, one token": (
        {"evaluation.max_new_tokens": 1},
        {"scores": SCORES | {"rows": 1}},
        [
            "Training never saw this row; base model and adapter answered it, choosing the likeliest token each "
            "time, up to 1 token, on",
            "The scores come from 1 row of the same source.",
        ],
        ["these 1"],
    ),
    "labels": (
        {"model.quantization": "int8"},
        {"plan": PLAN | {"task": "classification", "labels": ["no", "yes"]}},
        [
            "| on held-out rows | base model, head perhaps untrained | with adapter |",
            "**No verdict: the base model's head may be untrained.**",
            "answered them, on the base model in 8-bit, as in training. ROUGE-L is computed as in rouge_score, but "
            "over words of every script. The "
            "intervals are Wilson's with the rows' effective sample size; that of the gain is paired.",
            "on the base model in 8-bit. The code above",
        ],
        ["likeliest token"],
    ),
    "another metric": (
        {},
        {"scores": LABELED},
        [
            "| accuracy, higher is better (95% interval) | 0.250 (0.125 to 0.375) | 0.750 (0.625 to 0.875) |",
            f" accuracy is computed as in {METRICS['accuracy'].package}. ",
        ],
        ["ROUGE"],
    ),
    "loss alone": (
        {},
        {"scores": {"gain": None, "base": {"loss": 2.5}, "adapter": {"loss": 1.25}}},
        [
            "| ROUGE-L, higher is better | not measured | not measured |",
            "| answers equal to the reference | not measured | not measured |",
            "| loss, nats, lower is better | 2.500 | 1.250 |\n\nThe rows are plain text without prompts, so only "
            "the loss on held-out rows was measured.\n\n## Data",
            "The scores come from 0 rows",
        ],
        ["Training never saw", "Before and after", "Wilson"],
    ),
    "no scores": (
        {},
        {"scores": None},
        ["## Did it help?\n\nHeld-out scores: not measured.\n\n## Data", "The scores come from 0 rows"],
        ["Before and after", "| loss"],
    ),
    "all steps": (
        {},
        {"events": [*EVENTS, {"event": "end", "step": 4000, "reason": "steps", "seconds": 5.0}]},
        ["- steps: 4,000 (2.5 epochs), all steps done\n- time: 5.0 s, device: NVIDIA"],
        [" of 4,000"],
    ),
    "all seconds": (
        {},
        {"events": [*EVENTS, {"event": "end", "step": 4000, "reason": "clock", "seconds": 60.04}]},
        ["- steps: 4,000 (2.5 epochs), all seconds used\n- time: 60.0 s"],
        ["all steps"],
    ),
    "between windows": (
        {},
        {"events": [*EVENTS, {"event": "end", "step": 4000, "reason": "window", "seconds": 1.0}]},
        ["- steps: 4,000 (2.5 epochs)\n- time: 1.0 s"],
        [],
    ),
    "not trained": (
        {},
        {"events": []},
        [
            "- steps: not measured (not measured epochs)\n"
            "- time: not measured, device: not measured, not measured tokens\n"
            "- energy: not measured\n"
            "- final loss: not measured (training), not measured (held-out), in nats per token"
        ],
        [],
    ),
    "not a step": (
        {},
        {"events": [{"event": "end", "step": 5, "reason": "steps", "seconds": 1.0}]},
        ["- steps: 5 (not measured epochs), all steps done\n- time: 1.0 s, device: not measured, not measured tokens"],
        [],
    ),
    "not planned": (
        {},
        {"plan": {}},
        [
            "using LoRA, on not measured rows of",
            "- training: not measured rows with not measured tokens, not measured of them learned from\n"
            "- held out: not measured rows. \n- format: not measured. \n- truncated: not measured rows\n\n",
            "- parameters: not measured trained; the base model has not measured\n",
            "| method.rank | auto |",
        ],
        ["warning", "revision"],
    ),
    "not merged": ({}, {}, ["differ slightly. Whether merging changes the answers: not measured.\n"], []),
    "16-bit": (
        {"model.quantization": "none"},
        {},
        ["\n- Whether merging changes the answers: not measured.\n", "on the base model in 16-bit, as in training."],
        ["unquantized"],
    ),
    "can't be merged": (
        {"method.name": "prompt_tuning"},
        {},
        ["differ slightly. What it learned can't be merged into the base model.\n", "using Prompt tuning, on"],
        [],
    ),
    "a shipped model": (
        {"model.name": "tiny-office"},
        {"plan": PLAN | {"revision": None}},
        ["This adapter for tiny-office, a model that comes with Tuner was trained"],
        ["revision"],
    ),
    "a folder": (
        {"model.name": "/home/jane/my-model"},
        {"plan": PLAN | {"model_folder": "/home/jane/my-model", "revision": None}},
        ["This adapter for my-model, a model that is not published was trained", "| model.name | my-model |"],
        ["jane"],
    ),
    "a shipped source": (
        {"data.source": "corporate.jsonl", "data.config": None},
        {"plan": PLAN | {"data": {"origin": "example", "revision": None}}},
        ["rows of `corporate.jsonl`, an example that comes with Tuner. It contains"],
        ["datasets/"],
    ),
    "a visitor's file that is named like an example": (
        {"data.source": "corporate.jsonl", "data.config": None},
        {"plan": PLAN | {"data": {"origin": "own", "revision": None}}},
        ["- source: a file that is not published\n", "| data.source | rows.jsonl |"],
        ["comes with Tuner", "corporate.jsonl"],
    ),
    "a dataset's commit": (
        {},
        {"plan": PLAN | {"data": {"origin": "hub", "revision": "beef"}}},
        ["knkarthick/dialogsum) (en), revision `beef`\n"],
        [],
    ),
    "a file, whose name the warnings tell": (
        {"data.source": r"C:\jane\`my` rows.csv"},
        {"plan": PLAN | {"warnings": ["`my` rows.csv has a header."]}},
        ["- source: a file that is not published\n", "- warning: the file has a header.\n"],
        ["jane", "my", "datasets/"],
    ),
    "several files": (
        {"data.source": ["a/layoffs.train.csv", "b/layoffs-test.jsonl.gz", "secret.plans"]},
        {},
        ['| data.source | ["rows-1.train.csv", "rows-2.test.jsonl.gz", "rows-3"] |'],
        ["layoffs", "secret"],
    ),
    "a folder by another path": (
        {"model.name": "../models/.."},
        {"plan": PLAN | {"model_folder": "/home/jane/my-model", "revision": None}},
        ["This adapter for my-model, a model that is not published was trained", "| model.name | my-model |"],
        ["jane"],
    ),
    "a file that is there": (
        {"data.source": str(Path(__file__))},
        {},
        ["- source: a file that is not published\n"],
        ["comes with Tuner", "test_card_figures"],
    ),
    "a file in a folder": (
        {"data.source": "jane/Rows.JSONL"},
        {},
        ["- source: a file that is not published\n", "| data.source | rows.jsonl |"],
        ["jane", "datasets/"],
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_card_says_what_differs_in_a_run(case, tmp_path):
    settings, files, says, silent = CHANGES[case]
    text = card.card(recorded(tmp_path, HUB | settings, **files), "alice/office").partition("\n---\n")[2]
    for sentence in says:
        assert sentence in text
    for words in silent:
        assert words not in text.replace("| model.revision |", "")


@pytest.mark.parametrize(
    ("repo", "name", "title", "loaded"),
    [
        ("alice/office", "mine", "office", "alice/office"),
        (None, "my <first>\nrun", "my &lt;first> run", "OWNER/my-first-run"),
        (None, "a/b/c d", "c d", "OWNER/c-d"),
        (None, "Büro", "Büro", "OWNER/B-ro"),
        (None, None, "adapter-run", "OWNER/adapter-run"),
    ],
)
def test_a_card_is_named_after_its_repository_the_run_or_its_id(repo, name, title, loaded, tmp_path):
    text = card.card(recorded(tmp_path, HUB | {"name": name}), repo)
    assert f"\n---\n\n# {title}\n\nThis adapter" in text
    assert f'from_pretrained("{loaded}")' in text


def test_a_shipped_model_under_its_name_on_the_hub_is_named_without_its_revision(tmp_path):
    run = recorded(tmp_path, HUB | {"model.name": "tiny-office"})
    text = card.card(run, "alice/office", "alice/office-base")
    assert (
        "This adapter for [alice/office-base](https://huggingface.co/alice/office-base) (Tuner's example model "
        "tiny-office, unchanged) was trained"
    ) in text
    assert front(text)["base_model"] == "alice/office-base"
    renamed = front(card.card(recorded(tmp_path), "alice/office", "alice/office-base"))
    assert renamed["base_model"] == "alice/office-base"
    assert "(Tuner's example" not in card.card(recorded(tmp_path), "alice/office", HUB["model.name"])
    beside = card.base_card("office-base", "alice/office")
    assert "# office-base\n" in beside
    assert "to load [alice/office](https://huggingface.co/alice/office), an adapter" in beside
    assert front(beside) == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["tuner"]
    }  # fmt: skip


def test_the_front_matter_says_what_the_hub_lists_a_model_by(tmp_path):
    run = recorded(tmp_path, HUB | {"data.heldout_split": "test", "data.split": "train"})
    generation = {"type": "text-generation", "name": "Text generation"}
    dataset = {"type": "knkarthick/dialogsum", "name": "knkarthick/dialogsum, held-out rows"}
    results = [{"type": "rouge", "value": 0.4567, "name": "ROUGE-L"}]
    assert front(card.card(run, "alice/office")) == {
        "base_model": "Qwen/Qwen3-0.6B",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["tuner", "lora", "qlora", "sft", "text-generation"],
        "datasets": ["knkarthick/dialogsum"],
        "metrics": ["rouge"],
        "results": ("office", generation, dataset | {"config": "en", "split": "test"}, results),
    }
    labeled = PLAN | {"task": "classification", "labels": ["no", "yes"]}
    mine = {"model.name": "tiny-office", "data.source": "mine.csv", "model.quantization": "none"}
    run = recorded(
        tmp_path, mine | {"method.name": "full"}, labeled, LABELED, config={"native": "X", "method": "selected"}
    )
    task = {"type": "text-classification", "name": "Text classification"}
    scored = [{"type": "accuracy", "value": 0.75, "name": "accuracy"}]
    facts = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["tuner", "full", "text-classification"],
        "metrics": ["accuracy"],
        "results": ("run", task, {"type": "custom", "name": "a file that is not published, held-out rows"}, scored),
    }
    base = {"base_model": "a/b", "base_model_relation": "finetune"}
    assert front(card.card(run, "a/run", "a/b")) == facts | base
    assert front(card.card(run, "a/run")) == facts
    without = front(
        card.card(recorded(tmp_path, mine, scores=SCORES | {"adapter": {"loss": 1.0}, "gain": None}), "a/run")
    )
    assert without == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["tuner", "lora", "sft", "text-generation"],
    }


@pytest.mark.parametrize(
    ("method", "quantization", "tagged"), [("lora", "int8", True), ("ia3", "nf4", False), ("lora", "none", False)]
)
def test_only_lora_on_a_quantized_base_is_tagged_as_qlora(method, quantization, tagged, tmp_path):
    settings = {"method.name": method, "model.quantization": quantization}
    tags = front(card.card(recorded(tmp_path, HUB | settings)))["tags"]
    assert tags == ["tuner", method, *["qlora"] * tagged, "sft", "text-generation"]


@pytest.mark.parametrize(
    ("config", "second", "library"),
    [({}, False, "peft"), ({}, True, "peft"), ({"native": "X", "method": "bottleneck"}, True, "transformers")],
)
def test_the_library_of_an_adapter_is_what_loads_it(config, second, library, tmp_path):
    run = recorded(tmp_path, config=config)
    if second:
        (run.adapter / "second").mkdir()
    assert front(card.card(run))["library_name"] == library
