"""A tokenizer and models that are real but tiny, so that tests need neither network nor patience.

`tiny_tokenizer()` is a byte-level BPE with a ChatML template; `tiny_model(folder)` saves a random two-layer model of
about 50,000 parameters with it, of any of FAMILIES, in the shape that `from_pretrained(folder)` loads.
"""

from __future__ import annotations

from pathlib import Path

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = (
    "Please send me the report by Friday. Thank you for your help with the meeting, it went well.",
    "hey can u get me that report by friday thx a lot, the meeting was great",
    "system user assistant: You are a helpful assistant. What is the question? Here is the answer.",
)
DECODER = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
ENCODER = {**DECODER, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.1}
GROUPED = {"num_key_value_heads": 2, "max_position_embeddings": 512}
# Class, configuration (positions as each calls them), and how the published models of the family begin to decode.
FAMILIES = {
    "llama": ("LlamaForCausalLM", {**DECODER, **GROUPED, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", {**DECODER, **GROUPED, "head_dim": 12}),
    "gpt2": (
        "GPT2LMHeadModel",
        {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 512,
         "attn_pdrop": 0, "resid_pdrop": 0, "embd_pdrop": 0},
    ),
    "t5": (
        "T5ForConditionalGeneration",
        {"d_model": 48, "d_kv": 12, "d_ff": 96, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0,
         "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0},
    ),
    "bart": (
        "BartForConditionalGeneration",
        {"d_model": 48, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "init_std": 0.1,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "max_position_embeddings": 512,
         "dropout": 0.0, "decoder_start_token_id": 2, "forced_eos_token_id": 2},
    ),
    "bert": ("BertForMaskedLM", {**ENCODER, "max_position_embeddings": 512}),
    "roberta": ("RobertaForMaskedLM", {**ENCODER, "max_position_embeddings": 514}),
    "distilbert": (
        "DistilBertForMaskedLM",
        {"dim": 48, "hidden_dim": 96, "n_layers": 2, "n_heads": 4, "dropout": 0.0, "attention_dropout": 0.0,
         "initializer_range": 0.1},
    ),
}  # fmt: skip


def tiny_tokenizer(chat_template: str | None = CHATML):
    """A `PreTrainedTokenizerFast` of about 320 tokens that knows every byte; without a template if given None."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(TEXT * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=512
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def encoder_tokenizer():
    """The same alphabet as encoders have it: a mark before each text and behind it, and none for a chat."""
    from tokenizers import processors

    tokenizer = tiny_tokenizer(None)
    begin, end = "<|im_start|>", "<|im_end|>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", pair=f"{begin} $A {end} $B:1 {end}:1", special_tokens=[(begin, 1), (end, 2)]
    )
    return tokenizer


def tiny_model(folder: Path, family: str = "llama", seed: int = 0, **sizes: int) -> Path:
    """Save a random two-layer model of the family with its tokenizer in `folder`; returns the folder.

    `sizes` are settings of its configuration other than the family's."""
    import torch
    import transformers

    name, shape = FAMILIES[family]
    decodes = name.endswith(("CausalLM", "LMHeadModel"))
    tokenizer = tiny_tokenizer() if decodes else encoder_tokenizer()
    kind = getattr(transformers, name)
    config = kind.config_class(
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shape | sizes,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def tiny_office(folder: Path) -> Path:
    """Save the shipped model in small in `folder`: its tokenizer, two layers, 64 channels, random weights. A step on
    it takes a quarter of the time."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from tuner.recipe import EXAMPLES

    smaller = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
    smaller |= {"num_attention_heads": 4, "num_key_value_heads": 4, "dtype": "float32"}
    config = AutoConfig.from_pretrained(EXAMPLES / "tiny-office", **smaller)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(EXAMPLES / "tiny-office").save_pretrained(folder)
    return Path(folder)
