"""Models that the attack puts on the Hub double: a good tiny one, and the same with one file made hostile."""

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Files = dict[str, bytes]
RECIPE = {"budget": {"steps": 2}, "evaluation": {"rows": 2, "max_new_tokens": 4}}


def _config(**changes: Any) -> Callable[[Files], Files]:
    return lambda files: {"config.json": json.dumps(json.loads(files["config.json"]) | changes).encode()}


def _without(key: str) -> Callable[[Files], Files]:
    def change(files: Files) -> Files:
        config = json.loads(files["config.json"])
        config.pop(key, None)
        return {"config.json": json.dumps(config).encode()}

    return change


def _file(name: str, content: bytes | str) -> Callable[[Files], Files]:
    return lambda files: {name: content if isinstance(content, bytes) else content.encode()}


def _template(template: Any) -> Callable[[Files], Files]:
    def change(files: Files) -> Files:
        settings = json.loads(files["tokenizer_config.json"]) | {"chat_template": template}
        # A file of its own would be read instead.
        return {"tokenizer_config.json": json.dumps(settings).encode(), "chat_template.jinja": None}

    return change


def _tokenizer(**changes: Any) -> Callable[[Files], Files]:
    return lambda files: {"tokenizer.json": json.dumps(json.loads(files["tokenizer.json"]) | changes).encode()}


def _settings(**changes: Any) -> Callable[[Files], Files]:
    return lambda files: {
        "tokenizer_config.json": json.dumps(json.loads(files["tokenizer_config.json"]) | changes).encode()
    }


def _weights(change: Callable[[dict], Any], size: int | None = None) -> Callable[[Files], Files]:
    def changed(files: Files) -> Files:
        data = files["model.safetensors"]
        (length,) = struct.unpack("<Q", data[:8])
        header = change(json.loads(data[8 : 8 + length]))
        new = header if isinstance(header, bytes) else json.dumps(header).encode()
        return {"model.safetensors": struct.pack("<Q", len(new) if size is None else size) + new + data[8 + length :]}

    return changed


def _each(**changes: Any) -> Callable[[dict], dict]:
    return lambda header: {key: value | changes if key != "__metadata__" else value for key, value in header.items()}


def _pickle_only(files: Files) -> Files:
    return {"model.safetensors": None, "pytorch_model.bin": pickle.dumps({"a": 1})}


def _index(place: str) -> Callable[[Files], Files]:
    def change(files: Files) -> Files:
        names = [
            name for name in json.loads(files["model.safetensors"][8:].split(b"}}", 1)[0] + b"}}") if name[0] != "_"
        ]
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, place)}
        return {
            "model.safetensors.index.json": json.dumps(index).encode(),
            "model.safetensors": None,
            "model-00001-of-00001.safetensors": files["model.safetensors"],
        }

    return change


LOOP = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
ODD_VALUES: dict[str, tuple] = {
    "num_hidden_layers": (20_000, 10**9, -1, "x", [2], None, 1e300, True),
    "hidden_size": (0, -48, 10**9, "48", None, [48], 2.5),
    "num_attention_heads": (0, -1, 7, "x", None, 10**9),
    "num_key_value_heads": (0, -1, 3, "x"),
    "vocab_size": (0, -1, 10**12, "x", None, 3),
    "intermediate_size": (-1, 10**12, "x"),
    "max_position_embeddings": (-1, "x", [1]),
    "model_type": ("nothing", 1, None, ["llama"], "../llama", "x" * 10_000),
    "architectures": (1, ["x"], [1], [["LlamaForCausalLM"]], {"a": 1}),
    "rope_parameters": (1, {"rope_type": "x"}, {"rope_type": "yarn"}, [1], {"rope_type": "linear", "factor": "x"}),
    "rms_norm_eps": ("x", None),
    "hidden_act": ("x", 1, None),
    "dtype": ("x", 1, "float7", ["float32"]),
    "pad_token_id": (10**9, -5, "x"),
    "eos_token_id": (10**9, "x", {"a": 1}),
    "id2label": (1, {"x": "y"}, ["a"]),
    "quantization_config": (
        1,
        {},
        {"quant_method": "gptq"},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "x"},
        "x",
        [1],
    ),
    "auto_map": ({"AutoConfig": "x.Y", "AutoModelForCausalLM": "x.Y"}, {"AutoConfig": "../x.Y"}, 1),
    "head_dim": (0, -1, "x", 10**9),
    "text_config": ({"model_type": "x"}, 1, {}),
    "tie_word_embeddings": ("x",),
    "base_model_tp_plan": (1,),
}
# Which of these leave a model that works, or may do so.
HARMLESS = {
    "architectures",
    "dtype",
    "pad_token_id",
    "eos_token_id",
    "id2label",
    "quantization_config",
    "rms_norm_eps",
}
HARMLESS |= {
    "rope_parameters",
    "tie_word_embeddings",
    "base_model_tp_plan",
    "max_position_embeddings",
    "text_config",
    "head_dim",
}
HARMLESS |= {"auto_map", "num_key_value_heads", "hidden_size", "hidden_act", "num_hidden_layers", "vocab_size"}
SURELY_BAD = {("num_hidden_layers", 20_000), ("num_hidden_layers", 10**9), ("hidden_size", 0), ("hidden_size", 10**9)}
SURELY_BAD |= {("vocab_size", 10**12), ("vocab_size", 3), ("hidden_act", "x"), ("num_hidden_layers", -1)}

NOTHING = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
HOSTILE: dict[str, Callable[[Files], Files]] = {
    "config-garbage": _file("config.json", b"\xff\xfe{"),
    "config-list": _file("config.json", "[1]"),
    "config-empty": _file("config.json", ""),
    "config-empty-object": _file("config.json", "{}"),
    "config-deep": _file("config.json", '{"a":' * 50_000),
    "config-digits": _file("config.json", '{"hidden_size": ' + "9" * 5000 + "}"),
    "config-large": _file("config.json", '{"a": "' + "x" * 20_000_000 + '"}'),
    "config-half": _file("config.json", '{"model_type": "\\ud800"}'),
    "tokenizer-garbage": _file("tokenizer.json", b"\0\xff garbage"),
    "tokenizer-list": _file("tokenizer.json", "[]"),
    "tokenizer-cut": lambda files: {"tokenizer.json": files["tokenizer.json"][:2000]},
    "tokenizer-empty-model": _tokenizer(model={}),
    "tokenizer-no-vocabulary": _tokenizer(model={"type": "BPE", "vocab": {}, "merges": []}),
    "tokenizer-wrong-merges": _tokenizer(model={"type": "BPE", "vocab": {"a": 0}, "merges": ["x y"]}),
    "tokenizer-huge-ids": _tokenizer(model={"type": "WordLevel", "vocab": {"a": 2**31}, "unk_token": "a"}),
    "tokenizer-slow-pattern": _tokenizer(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a|a?)+$|(.*)*x"}, "behavior": "Isolated"}
        | {"invert": False}
    ),
    "tokenizer-replaces": _tokenizer(
        normalizer={"type": "Replace", "pattern": {"Regex": "."}, "content": "b" * 10**5}
    ),
    "tokenizer-prepends": _tokenizer(normalizer={"type": "Prepend", "prepend": "b" * 10_000_000}),
    "tokenizer-deep": _file("tokenizer.json", '{"model":' * 100_000),
    "tokenizer-no-settings": _file("tokenizer_config.json", "[1]"),
    "tokenizer-odd-class": _settings(tokenizer_class="os.system"),
    "tokenizer-own-code": _settings(auto_map={"AutoTokenizer": ["x.Y", None]}, tokenizer_class="Y"),
    "tokenizer-odd-marks": _settings(eos_token={"a": 1}, pad_token=[1], unk_token=5),
    "tokenizer-no-length": _settings(model_max_length="x"),
    "template-loops": _template("{% for i in range(10**9) %}{% for j in range(10**9) %}{% endfor %}{% endfor %}"),
    "template-long-text": _template("{{ 'a' * 10**9 }}" + LOOP),
    "template-power": _template("{{ 9 ** (9 ** 9) }}" + LOOP),
    "template-loops-over-loops": _template(
        "{% for i in range(9999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}"
    ),
    "template-doubles": _template(
        "{% set n = namespace(t='aaaaaaaaaa') %}{% for i in range(40) %}{% set n.t = n.t + n.t %}{% endfor %}{{ n.t }}"
    ),
    "template-format": _template("{{ '%999999999d' % 1 }}" + LOOP),
    "template-format-method": _template("{{ '{:>999999999}'.format(1) }}" + LOOP),
    "template-calls-itself": _template("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
    "template-reaches-out": _template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "template-opens": _template("{{ cycler.__init__.__globals__.os.popen('id').read() }}"),
    "template-includes": _template("{% include '/etc/passwd' %}"),
    "template-raises": _template("{{ raise_exception('HERE') }}"),
    "template-broken": _template("{% for %}{{"),
    "template-undefined": _template("{{ nothing.at.all }}"),
    "template-divides": _template("{{ 1 / 0 }}"),
    "template-halves": _template("\ud800" + LOOP),
    "template-list": _template([1, {"name": 2}]),
    "template-object": _template({"a": 1}),
    "template-long": _template("{{ 'x' }}" * 300_000),
    "template-deep": _template("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}"),
    "weights-empty": _file("model.safetensors", b""),
    "weights-garbage": _file("model.safetensors", b"garbage" * 1000),
    "weights-cut": lambda files: {"model.safetensors": files["model.safetensors"][:-5000]},
    "weights-long-header": _weights(lambda header: header, 2**62),
    "weights-header-of-100-mb": _weights(lambda header: header, 100_000_000),
    "weights-header-zero": _weights(lambda header: header, 0),
    "weights-header-list": _weights(lambda header: [1]),
    "weights-header-deep": _weights(lambda header: b'{"a":' * 100_000),
    "weights-odd-type": _weights(_each(dtype="X9")),
    "weights-no-type": _weights(_each(dtype=None)),
    "weights-odd-shape": _weights(_each(shape=[-1, "x"])),
    "weights-huge-shape": _weights(_each(shape=[2**62, 2**62])),
    "weights-odd-offsets": _weights(_each(data_offsets=[10**15, 0])),
    "weights-negative-offsets": _weights(_each(data_offsets=[-8, -1])),
    "weights-no-offsets": _weights(_each(data_offsets="x")),
    "weights-flat": _weights(lambda header: dict.fromkeys(header, 1)),
    "weights-none": _weights(lambda header: {}),
    "weights-others": _weights(lambda header: {f"x{i}": value for i, value in enumerate(header.values())}),
    "weights-a-million-names": _weights(
        lambda header: header | dict.fromkeys(map("x{}".format, range(300_000)), NOTHING)
    ),
    "pickle-only": _pickle_only,
    "index-outside": _index("../../../../etc/passwd"),
    "index-absolute": _index("/etc/passwd"),
    "index-missing": _index("model-00002-of-00002.safetensors"),
    "index-list": lambda files: {
        "model.safetensors.index.json": b"[1]",
        "model.safetensors": None,
        "model-00001-of-00001.safetensors": files["model.safetensors"],
    },
    "adapter": _file("adapter_config.json", '{"base_model_name_or_path": "/etc"}'),
    "adapter-garbage": _file("adapter_config.json", "["),
    "no-config": lambda files: {"config.json": None},
    "no-tokenizer": lambda files: {"tokenizer.json": None, "tokenizer_config.json": None},
}
# Not sure to be refused: what a template leaves out, or a file that nothing reads, harms nobody.
UNSURE = {"config-large", "tokenizer-slow-pattern", "tokenizer-replaces", "tokenizer-odd-marks", "template-includes"}
UNSURE |= {
    "tokenizer-no-length",
    "template-undefined",
    "template-long",
    "template-object",
    "template-list",
    "adapter-garbage",
}
UNSURE |= {
    "tokenizer-no-settings",
    "tokenizer-odd-class",
    "tokenizer-own-code",
    "weights-a-million-names",
    "template-deep",
}
UNSURE |= {"index-list", "tokenizer-huge-ids", "tokenizer-no-vocabulary", "template-halves"}


def _changes() -> dict[str, tuple[Callable[[Files], Files], str | None]]:
    changes = {name: (change, None if name in UNSURE else "refuse") for name, change in HOSTILE.items()}
    for key, values in ODD_VALUES.items():
        for number, value in enumerate(values):
            sure = key not in HARMLESS or any(key == k and value == v for k, v in SURELY_BAD)
            changes[f"odd-{key}-{number}"] = _config(**{key: value}), "refuse" if sure else None
        changes[f"no-{key}"] = _without(key), None
    return changes


def all_files(good: Path) -> dict[str, Files]:
    """The files of each hostile model, by its name on the Hub; `good` is the folder of the model that works."""
    files = {path.name: path.read_bytes() for path in good.iterdir()}
    models = {"good/model": files}
    for name, (change, _) in _changes().items():
        changed = files | change(files)
        models[f"hostile/{name}"] = {key: value for key, value in changed.items() if value is not None}
    return models


def table() -> list[tuple]:
    """All rows: about, what must become of it, the call, what is given."""
    rows = []
    for name, (_, expect) in _changes().items():
        text = json.dumps(RECIPE | {"model": {"name": f"hostile/{name}", "quantization": "none"}})
        kind = "chat" if name.startswith("template") else "check"
        rows.append((f"model {name}", expect, "check", {"recipe": text, "rows": kind}))
    good = json.dumps(RECIPE | {"model": {"name": "good/model"}})
    return [*rows, ("good: model", "accept", "check", {"recipe": good, "rows": "chat"})]
