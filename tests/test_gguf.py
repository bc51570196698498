"""What Tuner writes as GGUF, llama.cpp answers as the run does, and ends where the run ends; what it can't is said."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import xllamacpp
from conftest import mostly_long
from tiny import CHATML, FAMILIES, tiny_model, tiny_tokenizer
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from tuner import cli, runs
from tuner.data.chat import render_prompt
from tuner.errors import TunerError
from tuner.hub import gguf_file, gguf_tokenizer, modelfile
from tuner.inference.merge import merge
from tuner.recipe import EXAMPLES

TEXT = "hey can u  send\n\nit 1234 by friday?? It's naïve — 東京 <|im_end|>\t ok"


@pytest.fixture(scope="module")
def llama() -> Callable[[Path], xllamacpp.Server]:
    """llama.cpp's own server in this process, for a GGUF file."""

    def serve(path: Path) -> xllamacpp.Server:
        given = xllamacpp.CommonParams()
        given.model.path, given.n_ctx, given.n_parallel, given.warmup = str(path), 512, 1, False
        given.cpuparams.n_threads, given.verbosity = 1, -1
        return xllamacpp.Server(given)

    return serve


def asked(server: xllamacpp.Server, messages: list[dict], most: int = 64) -> tuple[str, str, int]:
    """The answer to a chat, why it ended, and how many tokens the prompt had."""
    answer = server.handle_chat_completions({"messages": messages, "max_tokens": most, "temperature": 0})
    (choice,) = answer["choices"]
    return choice["message"]["content"], choice["finish_reason"], answer["usage"]["prompt_tokens"]


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> runs.Run:
    """The shipped finished run, merged."""
    run = runs.Run(Path(shutil.copytree(EXAMPLES / "finished", tmp_path_factory.mktemp("gguf") / "example")))
    merge(run)
    return run


def test_llama_cpp_gives_the_runs_own_answers_and_each_ends_by_itself(example, llama, tmp_path):
    assert cli.main(["download", str(example.path), "--what", "gguf", "--out", str(tmp_path / "it.zip")]) == 0
    with zipfile.ZipFile(tmp_path / "it.zip") as opened:
        opened.extractall(tmp_path)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert {path.name for path in folder.iterdir()} == {
        "corporate.gguf", "Modelfile", "README.md", "recipe.yaml", "evaluation.json", "curve.png", "receipt.json"
    }  # fmt: skip
    server, tokenizer = llama(folder / "corporate.gguf"), AutoTokenizer.from_pretrained(example.merged)
    rows = [json.loads(line) for line in (example.path / "evaluation_rows.jsonl").read_text().splitlines()]
    same = 0
    for held, scored in zip(example.heldout(12), rows, strict=False):
        text, reason, tokens = asked(server, held["messages"])
        prompt = render_prompt(held["messages"], tokenizer)
        assert reason == "stop"
        assert tokens == len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        same += text == scored["adapter"]
    assert same >= 11  # it was scored on 4-bit weights
    made = (folder / "Modelfile").read_text()
    assert "\nFROM ./corporate.gguf\n" in made
    card = (folder / "README.md").read_text()
    assert "llama-server -m" in card
    assert "from_pretrained" not in card
    assert "convert_hf_to_gguf" not in card
    assert 'PARAMETER stop "<|im_end|>"\n' in made
    assert "PARAMETER num_ctx 512\n" in made


# What is planted, and what shows it.
PLANTED = {
    "heads not interleaved": lambda patch: patch.setattr(gguf_file, "_interleaved", lambda tensor, heads: tensor),
    "template": lambda patch: patch.setattr(gguf_tokenizer, "portable_template", lambda *a: CHATML.replace("\n", "")),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_fault_would_be_seen(planted, example, llama, tmp_path, monkeypatch):
    PLANTED[planted](monkeypatch)
    gguf_file.write(example, tmp_path / "it.gguf", "it")
    server = llama(tmp_path / "it.gguf")
    rows = [json.loads(line) for line in (example.path / "evaluation_rows.jsonl").read_text().splitlines()]
    told = [asked(server, held["messages"])[:2] for held in example.heldout(4)]
    assert told != [(row["adapter"], "stop") for row in rows[:4]]


@pytest.mark.parametrize("ends", [[2, 0], [5]], ids=["its own", "planted"])
def test_an_end_mark_that_llama_cpp_does_not_know_by_its_name_ends_answers(ends, example, llama, tmp_path):
    run = runs.Run(Path(shutil.copytree(example.path, tmp_path / "run")))
    for file in (path for path in run.merged.iterdir() if path.suffix in (".json", ".jinja")):
        file.write_text(file.read_text().replace("<|im_end|>", "<|fin|>"))
    run.write_json("plan.json", run.plan | {"end_tokens": ends})
    gguf_file.write(run, tmp_path / "it.gguf", "it")
    _, reason, _ = asked(llama(tmp_path / "it.gguf"), run.heldout(1)[0]["messages"])
    assert reason == ("stop" if ends == [2, 0] else "length")


OTHERS = {
    "qwen2": ("Qwen2ForCausalLM", {**FAMILIES["llama"][1], "tie_word_embeddings": False}),
    "mistral": ("MistralForCausalLM", FAMILIES["llama"][1]),
}


def of_family(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch, **config) -> Path:
    """A random model of a family in the shape of tiny.py's, with sharp choices."""
    if kind in OTHERS:
        monkeypatch.setitem(FAMILIES, kind, OTHERS[kind])
    tiny_model(folder, kind)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=torch.manual_seed(len(name)))
            parameter.copy_(noise / 4 + ("norm" in name))
    for key, value in config.items():
        setattr(model.config, key, value)
    model.save_pretrained(folder)
    return folder


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64, "rope_theta": 10_000.0}
KINDS = {
    "llama": ("llama", {}),
    "llama 3.1's positions": ("llama", {"rope_parameters": LLAMA3}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
}


@pytest.mark.parametrize("kind", mostly_long(KINDS, "qwen3"))
def test_each_family_writes_what_transformers_writes(kind, llama, tmp_path, monkeypatch):
    family, config = KINDS[kind]
    run = runs.Run(tmp_path)
    of_family(run.merged, family, monkeypatch, **config)
    run.write_json("plan.json", {"format": 2, "task": "generation", "end_tokens": [2], "settings": {}})
    gguf_file.write(run, tmp_path / "it.gguf", "it")
    server = llama(tmp_path / "it.gguf")
    model, tokenizer = (cls.from_pretrained(run.merged) for cls in (AutoModelForCausalLM, AutoTokenizer))
    for words in ("please send me the report", "hey can u get me " * 6):
        prompt = tokenizer(words, return_tensors="pt")
        with torch.inference_mode():
            logits = model(**prompt).logits[0, -1].log_softmax(-1)
        told = server.handle_completions(
            {"prompt": words, "max_tokens": 1, "temperature": 0, "n_probs": 5, "logprobs": 5}
        )
        (best,) = told["choices"]
        top = best["logprobs"]["content"][0]["top_logprobs"]
        expected = logits.topk(5)
        assert [entry["id"] for entry in top] == expected.indices.tolist()
        assert [entry["logprob"] for entry in top] == pytest.approx(expected.values.tolist(), abs=0.02)


CUTTERS = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "llama-bpe": "{1,3}",
    "qwen2": "",
}


@pytest.mark.parametrize("name", CUTTERS)
def test_a_text_is_cut_by_llama_cpp_as_by_the_tokenizer(name, llama, tmp_path):
    run = runs.Run(tmp_path)
    tiny_model(run.merged, "llama")
    steps = CUTTERS[name]
    if isinstance(steps, str):
        split = pre_tokenizers.Split(Regex(gguf_tokenizer._WORDS % steps), "isolated")
        steps = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    own = Tokenizer.from_file(str(run.merged / "tokenizer.json"))
    own.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    own.normalizer = normalizers.NFC() if name == "qwen2" else None
    own.save(str(run.merged / "tokenizer.json"))
    run.write_json("plan.json", {"format": 2, "task": "generation", "end_tokens": [2], "settings": {}})
    assert gguf_tokenizer.cutting(json.loads(own.to_str())) == name
    gguf_file.write(run, tmp_path / "it.gguf", "it")
    answer = llama(tmp_path / "it.gguf").handle_completions({"prompt": TEXT, "max_tokens": 1})
    assert answer["usage"]["prompt_tokens"] == len(own.encode(TEXT, add_special_tokens=False).ids)


BY_DEFAULT = "<|im_start|>system\nYou are Qwen.<|im_end|>\n"
QWEN = "{%- if messages[0]['role'] != 'system' -%}{{- '" + BY_DEFAULT + "' -}}{%- endif -%}" + CHATML
THINKING = CHATML.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
)
MARK = "<|im_start|>"
COUNTED = CHATML.replace("{{ message['content'] }}", "{{ loop.index }}: {{ message['content'] }}")


@pytest.mark.parametrize(
    ("template", "thinks", "begin"),
    [
        (CHATML, False, ""),
        (QWEN, False, ""),
        (THINKING, False, ""),
        (THINKING, True, ""),
        (CHATML, False, "<|im_start|>"),
    ],
    ids=["ChatML", "a default system prompt", "not thinking", "thinking", "a token that is added to every text"],
)
def test_ollamas_template_puts_together_what_training_saw(template, thinks, begin):
    tokenizer = tiny_tokenizer(template)
    pieces = modelfile.take_apart(lambda messages: render_prompt(messages, tokenizer, thinks=thinks), begin)
    assert ("You are Qwen." in pieces.without_system) == (template is QWEN)
    portable = gguf_tokenizer.portable_template(tokenizer, thinks)
    for messages in gguf_tokenizer.PROBES:
        expected = render_prompt(messages, tokenizer, thinks=thinks)
        assert begin + pieces.prompt(messages) == expected
        assert gguf_tokenizer.rendered(portable, tokenizer, messages, prompt=True) == expected
    assert ("</think>" in pieces.template()) == (template is THINKING and not thinks)
    made = modelfile.modelfile("it.gguf", pieces, ["<|im_end|>", 'a"b'], 2048)
    assert f'TEMPLATE """{pieces.template()}"""\n' in made
    assert 'PARAMETER stop """a"b"""\n' in made


@pytest.mark.parametrize(
    "template", [COUNTED, CHATML.replace("_start", "{{ '{{' }}")], ids=["counted", "Go's own mark"]
)
def test_a_template_that_ollama_has_no_words_for_is_left_out(template):
    tokenizer = tiny_tokenizer(template)
    pieces = modelfile.take_apart(lambda messages: render_prompt(messages, tokenizer), "")
    assert pieces is None
    made = modelfile.modelfile("it.gguf", pieces, ["<|im_end|>"], 2048)
    assert "TEMPLATE" not in made
    assert modelfile.CANT in made


@pytest.mark.parametrize(
    ("change", "said"),
    [({"model_type": "mamba"}, "of the kind mamba"), ({"rope_parameters": {"rope_type": "yarn"}}, "yarn"),
     ({"hidden_act": "gelu"}, "the activation gelu")],
    ids=["family", "positions", "activation"],
)  # fmt: skip
def test_what_can_not_be_written_is_said_with_the_way_to_do_it(change, said, example, tmp_path):
    run = runs.Run(Path(shutil.copytree(example.path, tmp_path / "run")))
    shutil.rmtree(run.merged / "gguf", ignore_errors=True)
    run.write_json("merged/config.json", run.read_json("merged/config.json") | change)
    with pytest.raises(TunerError, match=said) as caught:
        gguf_file.files(run, "it")
    assert "convert_hf_to_gguf.py" in str(caught.value)
    assert gguf_file.CONVERTER in str(caught.value)
    assert not list(run.merged.glob("*gguf*"))


def test_more_end_tokens_than_a_file_has_room_for_are_refused(example, tmp_path):
    """Or answers that end at the fourth would never end."""
    run = runs.Run(Path(shutil.copytree(example.path, tmp_path / "run")))
    shutil.rmtree(run.merged / "gguf", ignore_errors=True)
    run.write_json("plan.json", run.plan | {"end_tokens": [0, 5, 6, 2]})
    with pytest.raises(TunerError, match="end at 4 different tokens"):
        gguf_file.files(runs.Run(run.path), "it")


@pytest.mark.parametrize(
    ("config", "tokens"),
    [({"model_type": "llama"}, 9000), ({"model_type": "mistral", "sliding_window": 4096}, 4096),
     ({"model_type": "mistral", "sliding_window": None}, 9000),
     ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}, 9000),
     ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": True}, 4096)],
)  # fmt: skip
def test_the_context_ends_where_llama_cpp_would_see_more_than_the_run(config, tokens):
    assert gguf_file._context(config | {"max_position_embeddings": 9000}) == tokens
