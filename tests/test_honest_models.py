"""Models that are unusual but honest are not refused by the bounds that keep strangers' tricks out."""

import json

import pytest

from tuner.errors import TunerError
from tuner.models import bounds
from tuner.models.shape import load_config

# Of published configurations, what looks like a count and is none, or is larger than most.
CONFIGS = {
    "DeBERTa v3": {"max_relative_positions": -1, "position_buckets": 256, "max_position_embeddings": 512},
    "LLaVA": {"vision_feature_layer": -2, "text_config": {"num_hidden_layers": 32}},
    "XLNet": {"n_layer": 12, "clamp_len": -1, "mem_len": None},
    "Llama 4": {"text_config": {"no_rope_layers": [1, 1, 1, 0], "max_position_embeddings": 10_485_760}},
    "DeepSeek V3": {"n_routed_experts": 256, "num_hidden_layers": 61, "first_k_dense_replace": 3},
    "labels that end like settings": {"id2label": {"399": "players"}, "label2id": {"players": 399, "classes": 12_000}},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_configuration_is_not_refused(name):
    bounds.check_config(CONFIGS[name], name)


def test_deberta_v3_is_looked_at(tmp_path):
    settings = {"model_type": "deberta-v2", "architectures": ["DebertaV2ForMaskedLM"], "relative_attention": True}
    settings |= {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings |= {"vocab_size": 64, "max_relative_positions": -1, "position_buckets": 4, "pad_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps(settings | {"pos_att_type": "p2c|c2p"}))
    assert load_config(tmp_path, "m").num_hidden_layers == 2


@pytest.mark.parametrize(("megabytes", "is_refused"), [(6, False), (17, True)])
def test_settings_of_a_tokenizer_may_name_tens_of_thousands_of_added_tokens(tmp_path, megabytes, is_refused):
    """Speech models have 28,000 of them, in 5 MB."""
    (file := tmp_path / "tokenizer_config.json").write_text(" " * (megabytes << 20))
    if not is_refused:
        return bounds.check_size(file, "m")
    with pytest.raises(TunerError, match="the limit is 16 MB"):
        bounds.check_size(file, "m")
