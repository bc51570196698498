"""Base models by their Hub names, from a Hub on loopback through the real clients; and those that must be refused."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT
from tiny import tiny_model

from tuner import recipe
from tuner.models.fetch import fetch_model
from tuner.models.load import load_base
from tuner.models.shape import Base, shape_of

# One process for many commands: a line of JSON for each, with its status and what it said.
COMMANDS = """
import contextlib, io, json, sys
from tuner.cli import main
for command in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(command)
    print(json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)
"""


def run_commands(hub, home, *commands: list[str]) -> list[tuple[int, str, str]]:
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        cwd=ROOT,
        env=hub.env(home),
        input=json.dumps(commands),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


FEW = ["--set", "data.max_rows=40", "--set", "budget={steps: 2}", "--set", "evaluation={rows: 2, max_new_tokens: 4}"]


def test_models_of_the_hub_train_by_their_real_names_and_the_shipped_recipe_runs_unmodified(hub, tmp_path):
    hub.add_model("Qwen/Qwen3-0.6B", tiny_model(tmp_path / "qwen", "qwen3"))
    hub.add_model("TinyLlama/TinyLlama-1.1B-Chat-v1.0", tiny_model(tmp_path / "llama"))
    qwen = ["train", "corporate", "--out", str(tmp_path / "q"), "--set", "model.name=Qwen/Qwen3-0.6B", *FEW]
    llama = ["train", "tinyllama-corporate", "--out", str(tmp_path / "t"), *FEW]
    for status, _, error in run_commands(hub, tmp_path / "home", qwen, llama):
        assert (status, error.count("Traceback")) == (0, 0), error
    config = json.loads((tmp_path / "q/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "Qwen/Qwen3-0.6B"
    plan = json.loads((tmp_path / "q/plan.json").read_text())
    assert plan["revision"] == hub.repo("Qwen/Qwen3-0.6B").sha


def test_a_prepared_run_needs_the_hub_no_more(hub, tmp_path):
    hub.add_model("Qwen/Qwen3-0.6B", tiny_model(tmp_path / "qwen", "qwen3"))
    command = ["train", "corporate", "--out", str(tmp_path / "q"), "--set", "model.name=Qwen/Qwen3-0.6B", *FEW]
    ((status, _, error),) = run_commands(hub, tmp_path / "home", command)
    assert status == 0, error
    asked = len(hub.seen)
    (tmp_path / "q/evaluation.json").unlink()
    again = ["evaluate", str(tmp_path / "q")], ["chat", str(tmp_path / "q"), "--prompt", "yo", "--max-new-tokens", "2"]
    for status, _, error in run_commands(hub, tmp_path / "home", *again):
        assert status == 0, error
    assert len(hub.seen) == asked


def test_what_cannot_be_trained_is_refused_before_any_training(hub, tmp_path):
    hub.add_model("google-bert/bert-base-uncased", tiny_model(tmp_path / "bert", "bert"))
    llama = tiny_model(tmp_path / "llama")
    config = json.loads((llama / "config.json").read_text())
    hub.add_model("old/pickled", {"config.json": json.dumps(config).encode(), "pytorch_model.bin": b"\x80\x02"})
    custom = config | {"model_type": "mystery", "auto_map": {"AutoConfig": "code.Mystery"}}
    weights = (llama / "model.safetensors").read_bytes()
    hub.add_model(
        "strange/code", {"config.json": json.dumps(custom).encode(), "model.safetensors": weights, "code.py": b""}
    )
    hub.add_model("meta/gated", llama, gated=True)
    hub.add_model("an/adapter", {"adapter_config.json": b"{}"})
    says = {
        "google-bert/bert-base-uncased": "is not a causal language model (it is BertForMaskedLM)",
        "old/pickled": "has no safetensors weights",
        "strange/code": "needs code of its own, which is not run here",
        "meta/gated": "is gated",
        "an/adapter": "holds no model (no config.json)",
        "no/where": "is not on the Hub, or it is private",
    }
    commands = [["train", "corporate", "--out", str(tmp_path / "r"), "--set", f"model.name={name}"] for name in says]
    for (name, sentence), (status, _, error) in zip(says.items(), run_commands(hub, tmp_path / "home", *commands)):
        assert status == 2, name
        assert sentence in error
        assert "Traceback" not in error
    assert not (tmp_path / "r").exists()


def test_the_shape_is_read_without_weights_and_agrees_with_the_loaded_model():
    tiny = recipe.Model(name="tiny-office")
    base = Base(fetch_model(tiny), tiny)
    shape = shape_of(base)
    model = load_base(base, quantization="none")
    assert shape.parameters == model.num_parameters()
    assert not any("lm_head" in name for name, _, _ in shape.linear_layers)
    assert len(shape.linear_layers) == 7 * shape.layers


@pytest.mark.parametrize(
    ("family", "context"),
    [("llama", 512), ("gpt2", 512), ("bart", 512), ("bert", 512), ("roberta", 512), ("distilbert", 512), ("t5", 2048)],
)
def test_the_context_is_what_the_model_can_read(tmp_path, family, context):
    """RoBERTa's two positions for padding are left out, and T5 has no bound of its own."""
    task = {"t5": "seq2seq", "bart": "seq2seq", "llama": "generation", "gpt2": "generation"}.get(family)
    labels = () if task else ("a", "b")
    base = Base(tiny_model(tmp_path, family), recipe.Model(name=family), task or "classification", labels)
    assert shape_of(base).context == context


def test_nf4_weights_are_four_bits_with_nested_constants():
    tiny = recipe.Model(name="tiny-office")
    model = load_base(Base(fetch_model(tiny), tiny))
    layer = model.model.layers[0].mlp.up_proj
    assert type(layer).__name__ == "Linear4bit"
    assert layer.weight.quant_state.quant_type == "nf4"
    assert layer.weight.quant_state.nested
    assert layer.weight.numel() * 2 == layer.in_features * layer.out_features
