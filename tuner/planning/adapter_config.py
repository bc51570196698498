"""A stranger's adapter_config.json: read with bounds, and written anew with nothing in it but what is understood.

PEFT would follow whatever such a file names: code, other files, regular expressions that never end, and ways to begin
that change the base's own weights, which other adapters answer with. Patterns are matched here, within a few seconds,
and PEFT is given the names of the layers instead.
"""

import re
import time
from collections.abc import Collection
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from tuner import names
from tuner.errors import TunerError
from tuner.methods.files import CONFIG
from tuner.methods.registry import METHODS
from tuner.models.bounds import read_json
from tuner.recipe import Recipe
from tuner.tasks import TASKS

# PEFT's kinds -> the method that is the same. LoRA's variants are told by their settings.
KINDS = {
    "LORA": "lora",
    "ADALORA": "adalora",
    "IA3": "ia3",
    "ADAPTION_PROMPT": "llama_adapter",
    "PROMPT_TUNING": "prompt_tuning",
    "PREFIX_TUNING": "prefix_tuning",
    "P_TUNING": "p_tuning",
    "BEFT": "bitfit",
    "LN_TUNING": "layernorm",
    "VERA": "vera",
    "OFT": "oft",
    "LOHA": "loha",
    "LOKR": "lokr",
    "MISS": "miss",
    "HRA": "hra",
    "FOURIERFT": "fourierft",
    "RANDLORA": "randlora",
    "DELORA": "delora",
    "ROAD": "road",
    "HIRA": "hira",
    "SUPERTUNING": "supertuning",
}
VARIANTS = {"use_dora": "dora", "use_rslora": "rslora"}  # of LoRA
# Settings that matter in training only, that say who wrote the file, or that PEFT finds out from the base.
ASIDE = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "encoder_dropout", "eva_config", "inference_mode",
    "init_ia3_weights", "kasa_config", "loftq_config", "lora_ga_config", "megatron_config", "megatron_core",
    "num_attention_heads", "num_layers", "num_transformer_submodules", "orth_reg_weight", "peft_type", "peft_version",
    "prompt_tuning_init", "prompt_tuning_init_text", "revision", "runtime_config", "task_type", "token_dim",
    "tokenizer_kwargs", "tokenizer_name_or_path",
}  # fmt: skip
PATTERNS = ("target_modules", "exclude_modules", "feedforward_modules")  # names of layers, or one regular expression
PER_LAYER = ("rank_pattern", "alpha_pattern", "lambda_pattern", "n_frequency_pattern")  # expression -> number
NAMES = ("modules_to_save", "layers_pattern")
STRINGS = {
    "bias": {"none"},
    "init_weights": {"bat", "mini", "lycoris", "gaussian", "zero"},
    "init_lora_weights": {"gaussian", "eva", "orthogonal", "mclora"},
    "variant": {"road_1", "road_2", "road_4"},
    "encoder_reparameterization_type": {"MLP", "LSTM"},
    "target_modules": {"all-linear", "self_attn", "attn"},  # the latter two of LLaMA-Adapter
}
MOST = {"encoder_num_layers": 16, "num_virtual_tokens": 4096, "adapter_len": 4096, "adapter_layers": 512, "r": 4096}
LARGEST = 2**31  # of other numbers, such as seeds
MOST_NAMES = 5000
LONGEST = 2000  # characters of a regular expression
SECONDS = 5.0  # for all regular expressions of a file
LAYER = re.compile(r"[\w.-]{1,300}", re.ASCII)


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """The adapter's configuration: of a kind, a task and a base that can be used. Raises TunerError."""
    config = read_json(folder / CONFIG, name)
    if "native" in config:
        raise TunerError(
            f"'{name}' holds weights that Tuner trained in its own way, not PEFT's. To chat with them, open the run "
            "that they were trained in."
        )
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in KINDS:
        raise TunerError(
            f"'{name}' is an adapter of the kind {shown(kind)}, which can't be used here. Choose one of "
            f"{', '.join(KINDS)}."
        )
    task = config.get("task_type")
    if task is not None and task not in [row.peft_type for row in TASKS.values()]:
        raise TunerError(
            f"'{name}' is an adapter for the task {shown(task)}, which can't be used here. Choose another."
        )
    _check_base(config.get("base_model_name_or_path"), name)
    revision = config.get("revision")
    if revision is not None and not (isinstance(revision, str) and names.fits("revision", revision)):
        config["revision"] = None
    return config


def _check_base(base: Any, name: str) -> None:
    if isinstance(base, str) and names.fits("model", base):
        return
    given = f"'{names.shown(base)}'" if isinstance(base, str) and base else "nothing"
    raise TunerError(
        f"'{name}' does not say which model on the Hub it was trained on: its {CONFIG} has {given} as "
        "base_model_name_or_path. Ask its author to put the base model's name there, as owner/name."
    )


def method_of(config: dict[str, Any]) -> str:
    """The method, a row of METHODS, that such an adapter is of."""
    kind = KINDS[config["peft_type"]]
    return next((name for key, name in VARIANTS.items() if kind == "lora" and config.get(key) is True), kind)


def as_recipe(config: dict[str, Any], name: str, quantization: str) -> Recipe:
    """A recipe that says of the adapter what a run's recipe says: its base, its method, and where it is from."""
    base = {"name": config["base_model_name_or_path"], "revision": config.get("revision")}
    settings = {"name": name[:80], "model": base | {"quantization": quantization}, "data": {"source": name}}
    return Recipe.parse(settings | {"method": {"name": method_of(config)}})


def understood(config: dict[str, Any], modules: Collection[str], name: str) -> dict[str, Any]:
    """The settings for PEFT: checked, with layers of the base, `modules`, in place of patterns. Raises TunerError."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known = {field.name: field for field in fields(PEFT_TYPE_TO_CONFIG_MAPPING[config["peft_type"]])}
    matcher, settings = _Matcher(modules, name), {}
    for key, value in config.items():
        default = _default(known[key]) if key in known else None
        if key in ASIDE or value == default or (key not in known and not value):
            continue
        if key in PER_LAYER and key in known:
            settings[key] = _per_layer(key, value, matcher, config["peft_type"])
        elif key in PATTERNS and isinstance(value, str) and value not in STRINGS.get(key, ()):
            settings[key] = matcher.layers(key, value)
        elif key in known and _is_plain(key, value):
            settings[key] = value
        else:
            raise TunerError(
                f"'{name}' can't be used: its {CONFIG} sets {names.shown(key)} to {shown(value)}, which is not "
                "supported here. Choose another adapter."
            )
    row = METHODS[method_of(config)]
    if "target_modules" in settings and not settings["target_modules"]:
        raise TunerError(
            f"'{name}' does not fit {config['base_model_name_or_path']}: {row.title}'s target_modules names none of "
            "its layers. Choose another adapter."
        )
    return settings | {key: config[key] for key in ("peft_type", "task_type") if key in config}


def _default(field: Field) -> Any:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else None


def _is_plain(key: str, value: Any) -> bool:
    """Whether the value is a switch, a number within bounds, a known word, or names of layers."""
    if isinstance(value, bool):
        return True
    if isinstance(value, int | float):
        return -1 <= value <= MOST.get(key, LARGEST)
    if isinstance(value, str):
        return value in STRINGS.get(key, ()) or (key in NAMES and LAYER.fullmatch(value) is not None)
    if key == "layers_to_transform":
        return isinstance(value, list) and len(value) <= MOST_NAMES and all(type(number) is int for number in value)
    return key in PATTERNS + NAMES and _are_layers(value)


def _are_layers(value: Any) -> bool:
    is_list = isinstance(value, list) and len(value) <= MOST_NAMES
    return is_list and all(isinstance(item, str) and LAYER.fullmatch(item) for item in value)


def _per_layer(key: str, value: Any, matcher: "_Matcher", kind: str) -> dict[str, Any]:
    """What differs between layers, by the full names of the layers."""
    if not isinstance(value, dict) or len(value) > MOST_NAMES:
        raise matcher.refused(key, value)
    if kind == "ADALORA":  # which ranks were kept, by the names of parameters
        if all(isinstance(kept, list) and len(kept) <= MOST["r"] for kept in value.values()):
            return value
        raise matcher.refused(key, value)
    found: dict[str, Any] = {}
    for pattern, number in value.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number <= LARGEST:
            raise matcher.refused(key, number)
        for layer in matcher.layers(key, rf"(.*\.)?({pattern})"):
            found.setdefault(layer, number)
    return found


class _Matcher:
    """Matches a file's regular expressions with the base's layers, all of them within SECONDS."""

    def __init__(self, modules: Collection[str], name: str):
        self.modules, self.name, self.end = modules, name, time.monotonic() + SECONDS

    def refused(self, key: str, value: Any) -> TunerError:
        """That a setting can't be used."""
        return TunerError(
            f"'{self.name}' can't be used: {key} in its {CONFIG} is {shown(value)}, which can't be right. Choose "
            "another adapter."
        )

    def layers(self, key: str, pattern: str) -> list[str]:
        """The layers that the pattern matches. Raises TunerError if it is none, or takes too long."""
        import regex

        if len(pattern) > LONGEST:
            raise self.refused(key, pattern)
        try:
            compiled = regex.compile(pattern)
            return [layer for layer in self.modules if layer and compiled.fullmatch(layer, timeout=self._left())]
        except TimeoutError:
            raise TunerError(
                f"'{self.name}' can't be used: {key} in its {CONFIG} is a regular expression that takes longer than "
                f"{SECONDS:g} seconds to match. Choose another adapter."
            ) from None
        except (regex.error, RecursionError, OverflowError, MemoryError):
            raise self.refused(key, pattern) from None

    def _left(self) -> float:
        return max(0.001, self.end - time.monotonic())


def shown(value: Any) -> str:
    """The beginning of a value."""
    return names.shown(f"{value}"[: names.SHOWN + 1])
