"""Whether an adapter's configuration may be given to PEFT, if strangers wrote it.

PEFT does what it says: it imports the module that it names, loads a tokenizer from where it says, runs patterns over
the names of the base's layers, and makes tensors as large as its numbers. So a value is what the class has by default,
a number within bounds, a plain name, or a list of those: all that our methods, and most others, write.
"""

import re
from dataclasses import MISSING, Field, fields
from typing import Any

MOST = 2**16  # of any number: the widest of what methods make, such as the network behind P-tuning's vectors
MOST_NAMES = 20_000  # of layers, in one list
LONGEST = 600  # characters of a name
MOST_SHOWN = 60  # of a value in a sentence
NAME = re.compile(r"\w+(?:\.\w+)*", re.ASCII)
# What says where it comes from, which nothing is loaded by. The class of the model around a hybrid's second adapter
# is one of them: only AutoPeftModel asks for it.
TOLD = {"peft_version": str, "base_model_name_or_path": str, "revision": str, "inference_mode": bool}
LIBRARIES = ("peft.", "transformers.")
WORDS = {  # fields whose value may be one of these words, or any plain name
    "task_type": None,
    "target_modules": None,  # one name, or PEFT would take a pattern for it
    "bias": None,
    "prompt_tuning_init": ("RANDOM", "SAMPLE_VOCAB"),  # TEXT would load a tokenizer
}


def problem(saved: dict[str, Any]) -> str | None:
    """Why adapter_config.json with these entries can't be used, in a sentence."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    from tuner.methods import native

    kind = saved.get("native", saved.get("peft_type"))
    kinds = native.CONFIGS if "native" in saved else PEFT_TYPE_TO_CONFIG_MAPPING
    if not isinstance(kind, str) or kind not in kinds:
        return f"Its adapter_config.json is of a kind that is not known here ({_shown(kind)})."
    known = {field.name: field for field in fields(kinds[kind])}
    for name, value in saved.items():
        if name not in ("native", "peft_type") and not _is_harmless(name, value, known.get(name)):
            return f"Its adapter_config.json has {name} = {_shown(value)}, which no method here writes."
    return None


def different(saved: dict[str, Any], expected: Any) -> list[str]:
    """The numbers of a saved configuration that are not those of the one `expected`, by name."""
    return [
        name
        for name, value in saved.items()
        if _is_number(value) and name not in TOLD and value != getattr(expected, name, value)
    ]


def _is_harmless(name: str, value: Any, field: Field | None) -> bool:
    if name in TOLD:
        return value is None or (isinstance(value, TOLD[name]) and len(str(value)) <= LONGEST)
    if name == "auto_mapping":
        return value is None or _is_in_a_library(value)
    if field is None:
        return False
    return value == _default(field) or _is_word(name, value) or _is_plain(value) or _are_patterns(name, value)


def _default(field: Field) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _is_in_a_library(mapping: Any) -> bool:
    return (
        isinstance(mapping, dict)
        and all(map(_is_name, mapping.values()))
        and str(mapping.get("parent_library")).startswith(LIBRARIES)
    )


def _is_word(name: str, value: Any) -> bool:
    words = WORDS.get(name)
    return name in WORDS and _is_name(value) and (words is None or value in words)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST and bool(NAME.fullmatch(value))


def _is_plain(value: Any) -> bool:
    """Whether it is a number, true, false or nothing, or a list of those or of names."""
    if isinstance(value, list):
        return len(value) <= MOST_NAMES and all(_is_name(part) or _is_number(part) for part in value)
    return value is None or _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and -MOST <= value <= MOST  # a bool is an int, and NaN fits nowhere


def _are_patterns(name: str, value: Any) -> bool:
    """Whether these are the ranks or scales of single layers, by their names, as AdaLoRA keeps them."""
    return (
        name in ("rank_pattern", "alpha_pattern")
        and isinstance(value, dict)
        and len(value) <= MOST_NAMES
        and all(_is_name(key) and _is_plain(part) for key, part in value.items())
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]} ..."
