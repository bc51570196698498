"""Helper: adapters of other people, made with plain PEFT on tiny bases, and a Hub that this process asks for them."""

import json
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from hub_double import Hub
from huggingface_hub import constants
from safetensors.torch import load_file, save, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = "ann/base"
CLASSES = {"CAUSAL_LM": AutoModelForCausalLM, "SEQ_CLS": AutoModelForSequenceClassification}
IDS = torch.arange(5, 25)[None]


def ask_here(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process's client ask the double, with an empty cache."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", f"{home}/cache")


def make(base: Path, config: peft.PeftConfig, folder: Path, **options) -> torch.Tensor:
    """Save an adapter with random weights as PEFT does; returns what plain PEFT then answers with it."""
    kind = CLASSES[config.task_type]
    torch.manual_seed(0)
    model = peft.get_peft_model(kind.from_pretrained(base, **options), config)
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.05 * torch.randn_like(p)
    model.save_pretrained(folder)
    change_config(folder, lambda c: c.update(base_model_name_or_path=BASE))
    with torch.inference_mode():
        loaded = peft.PeftModel.from_pretrained(kind.from_pretrained(base, **options), folder).eval()
        return loaded(input_ids=IDS).logits


def change_config(folder: Path, change: Callable[[dict], object]) -> None:
    """Change an adapter's configuration."""
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))


def change_weights(folder: Path, change: Callable[[dict], dict]) -> None:
    """Change an adapter's tensors."""
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def tensors(**named: torch.Tensor) -> bytes:
    """A safetensors file."""
    return save(named)
