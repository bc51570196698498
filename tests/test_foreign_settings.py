"""Whatever a configuration names as code for its attention or its experts is neither fetched nor asked for."""

import json

import pytest
from tiny import tiny_model

from tuner import recipe
from tuner.models.load import load_base
from tuner.models.shape import Base, load_config, shape_of

CODE = "evil/kernel"
LLAMA = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {"model_type": "clip_vision_model", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    "settings",
    [{f"{underscore}{kind}_implementation{end}": value}
     for underscore in ("", "_") for kind in ("attn", "experts") for end in ("", "_internal")
     for value in (CODE, f"{CODE}@main:run", f"paged|{CODE}", {"": CODE}, "flash_attention_2", 7)]
    + [{"use_kernels": True}],
    ids=str,
)  # fmt: skip
def test_code_that_a_configuration_names_is_ignored(tmp_path, settings):
    file = tiny_model(tmp_path / "m") / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    base = Base(file.parent, recipe.Model(name="m", quantization="none"))
    assert shape_of(base).layers == 2
    assert load_base(base).config._attn_implementation == "sdpa"


def test_an_implementation_that_pytorch_has_is_kept(tmp_path):
    file = tiny_model(tmp_path / "m") / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"attn_implementation": "eager"}))
    assert load_config(file.parent, "m")._attn_implementation == "eager"


@pytest.mark.parametrize("where", ["whole", "part", "by part", "only inner parts"])
def test_code_for_a_part_of_a_model_is_ignored(tmp_path, where):
    parts = {"text_config": {"model_type": "llama", "vocab_size": 64, **LLAMA}, "vision_config": VISION}
    settings = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], **parts}
    if where == "whole":
        settings["attn_implementation"] = CODE
    elif where == "part":
        parts["text_config"]["_attn_implementation"] = parts["vision_config"]["attn_implementation"] = CODE
    elif where == "by part":
        settings["attn_implementation"] = {"text_config": CODE, "vision_config": {"": CODE}}
    else:
        settings["attn_implementation"] = {"": "eager", "text_config": CODE, "vision_config": CODE}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    config = load_config(tmp_path, "m")
    assert config._attn_implementation == ("eager" if where == "only inner parts" else None)
    for part in (config.text_config, config.vision_config):
        assert part._attn_implementation is None
