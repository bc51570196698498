"""What the files of a model may ask for: looked at before anything is parsed, built or allocated for them.

Anybody can put a model on the Hub whose few hundred bytes of config.json ask for millions of layers.
"""

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.errors import TunerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Megabytes of a file, by the end of its name, the first that fits; twice what any known model needs, or more.
MAX_FILE_MB = {
    "tokenizer_config.json": 16,
    "config.json": 4,
    "model.safetensors.index.json": 32,
    "chat_template.jinja": 1,
    ".json": 80,  # tokenizer.json, vocab.json and the like
    ".model": 80,
    ".txt": 80,
}
# Things that are built one by one: how their settings are named, the fewest and the most there may be, and what to
# call them. For DeBERTa, -1 positions are as many as fit; LLaVA's vision_feature_layer counts from the end.
MAX_COUNTS = (
    (re.compile(r"layers$|(^|_)n(um)?_layer$|blocks$|depths?$|hidden_groups$|inner_group_num$"), 0, 256, "layers"),
    (re.compile(r"experts?$"), 0, 1024, "experts"),
    (re.compile(r"labels$|classes$"), 0, 10_000, "labels"),
    (re.compile(r"position_embeddings$|positions$"), -1, 2**24, "positions"),
)
LABELS = "label2id"  # whose names are a person's, and no settings
MAX_VALUES = 100_000  # values in a configuration, most of which are labels
# Settings of answers that a model may bring along, and the bounds of each; others, and wrong ones, are left out.
GENERATION = {
    "do_sample": (0, 1),
    "temperature": (0, 100),
    "top_p": (0, 1),
    "top_k": (0, 10**6),
    "repetition_penalty": (0.1, 10),
    "length_penalty": (-10, 10),
    "no_repeat_ngram_size": (0, 100),
    "min_length": (0, 2048),
    "min_new_tokens": (0, 2048),
    "max_length": (1, 2**31),
    "max_new_tokens": (1, 2**31),
    "num_beams": (1, 16),
    "early_stopping": (0, 1),
}
TOKEN_IDS = ("bos", "eos", "pad", "decoder_start", "forced_bos", "forced_eos")
TOKEN_LISTS = ("suppress_tokens", "begin_suppress_tokens")
MAX_RULE = 10_000  # characters of a rule by which a tokenizer prepares texts
# How tokens become text again, in time that grows with the text, and how often each may. Of the kinds that mark words
# one is enough; several, one after another, could make much of a little. Known models use nothing else, and another
# rule, such as a regular expression, could stop the app for minutes.
DECODERS = dict.fromkeys(("BPEDecoder", "ByteLevel", "CTC", "Metaspace", "WordPiece"), 1)
DECODERS |= dict.fromkeys(("ByteFallback", "Fuse", "Replace", "Strip"), 2)  # known tokenizers have one of each
MARKS = {"BPEDecoder": "suffix", "CTC": "word_delimiter_token"}  # become blanks; an empty one stands everywhere
MAX_PATTERN = 20  # characters that a Replace looks for at each character of a text; known ones have 1
# Characters of a token: GPT-2, Llama 3 and Qwen have tokens of 128. An answer has at most so many times its tokens.
MAX_TOKEN = 1_000
MAX_MODULES = 20_000  # parts of a model; each takes 0.1 to 0.2 ms to build


def check_size(file: Path, name: str) -> None:
    """Raise TunerError if one of the model's files is too large to be read; missing ones are not."""
    limit = next((mb for end, mb in MAX_FILE_MB.items() if file.name.endswith(end)), None)
    if limit is not None and file.is_file() and (size := file.stat().st_size) > limit * 2**20:
        raise TunerError(
            f"'{name}' can't be loaded: {file.name} has {size >> 20:,} MB, and the limit is {limit} MB. "
            "Choose another model."
        )


def read_json(file: Path, name: str) -> dict:
    """The JSON object in one of the model's files. Raises TunerError if there is none, or if it is too large."""
    check_size(file, name)
    problem = "not a valid JSON object"
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        value, problem = None, "missing"
    except (ValueError, OSError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise TunerError(
            f"'{name}' can't be loaded: its {file.name} is {problem}. Download or copy it again, or choose another "
            "model."
        )
    return value


def check_config(settings: dict, name: str) -> None:
    """Raise TunerError if a configuration asks for more than any model has."""
    for seen, (key, value) in enumerate(_walk(settings)):
        if seen == MAX_VALUES:
            raise _excessive(name, f"it has more than {MAX_VALUES:,} values")
        if isinstance(value, int):
            _check_count(key, value, name)
    architectures = settings.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(item, str) for item in architectures):
        raise _excessive(name, "architectures is not a list of names")


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """All values in plain nested settings, with the names of their settings."""
    unseen = [("", value)]
    while unseen:
        key, value = unseen.pop()
        if isinstance(value, dict):
            unseen += ((key if key == LABELS else name, inner) for name, inner in value.items())
        elif isinstance(value, list):
            unseen += [(key, inner) for inner in value]
        else:
            yield key, value


def check_tokenizer(folder: Path) -> None:
    """Raise TunerError if the files of a tokenizer are too large, or if its rules make too much of a text."""
    for file in folder.glob("*"):
        check_size(file, "the base model")
    rules = folder / "tokenizer.json"
    if rules.is_file():
        status = rules.stat()
        _check_rules(rules, (status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=64)
def _check_rules(file: Path, changed: tuple[int, int]) -> None:
    """Raise TunerError if a rule for preparing texts is longer than any known one; it may add it to each word."""
    settings = read_json(file, "the base model")
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        for key, value in _walk(settings.get(part)):
            if isinstance(value, str) and len(value) > MAX_RULE and key != "precompiled_charsmap":
                raise TunerError(
                    f"The base model's tokenizer does not work: its {part} has a rule of {len(value):,} characters. "
                    "Choose another model."
                )


def check_decoding(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise TunerError unless any tokens become text in little time and of bounded length."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = getattr(backend, "decoder", None)
    decoders = [] if decoder is None else list(_decoders(json.loads(decoder.__getstate__())))
    problem = None
    for kind, count in Counter(decoder["type"] for decoder in decoders).items():
        if kind not in DECODERS:
            problem = f"has a part of the unknown kind {kind}"
        elif count > DECODERS[kind]:
            problem = f"has {count:,} parts of the kind {kind}, and the limit is {DECODERS[kind]}"
    for decoder in decoders:
        problem = _decoder_problem(decoder) or problem
    between = len(getattr(tokenizer, "replace_word_delimiter_char", ""))  # Wav2Vec2's, which is written in Python
    if between > 1:
        problem = f"writes {between:,} characters between words"
    emoji = getattr(tokenizer, "emoji", {}).get("emoji_inv", {})  # GPT-NeoX-Japanese's, in place of tokens
    longest = max(map(len, (*tokenizer.get_vocab(), *emoji.values())), default=0)
    if longest > MAX_TOKEN:
        problem = f"has a token of {longest:,} characters, and the limit is {MAX_TOKEN:,}"
    if problem:
        raise TunerError(
            f"The base model's tokenizer can't be used: what makes text of its tokens {problem}. Choose another model."
        )


def _decoder_problem(decoder: dict) -> str | None:
    """Why a part of a decoder could make texts longer, or take more time than they have characters."""
    kind = decoder["type"]
    if kind in MARKS and not decoder[MARKS[kind]]:
        return f"has a {kind} whose {MARKS[kind]} is empty"
    if kind != "Replace":
        return None
    pattern = decoder["pattern"].get("String")
    if not pattern or len(decoder["content"]) > len(pattern):
        return "replaces a regular expression, or a text by a longer one"
    if len(pattern) > MAX_PATTERN:
        return f"replaces a text of {len(pattern):,} characters, and the limit is {MAX_PATTERN}"
    return None


def _decoders(settings: dict) -> Iterator[dict]:
    """The parts of a decoder that do something, each of which may hold more."""
    if settings["type"] != "Sequence":
        yield settings
    for inner in settings.get("decoders", ()):
        yield from _decoders(inner)


def _check_count(key: str, count: int, name: str) -> None:
    if not -(2**63) <= count < 2**63:
        raise _excessive(name, f"{key[:80]} has more digits than a number of 64 bits")
    for pattern, fewest, most, things in MAX_COUNTS:
        if pattern.search(key) and not fewest <= count <= most:
            raise _excessive(name, f"{key[:80]} is {count:,}, and the limit is {most:,} {things}")


def _excessive(name: str, reason: str) -> TunerError:
    return TunerError(
        f"'{name}' can't be loaded: its config.json has values that can't be right ({reason}). Correct them, or "
        "choose another model."
    )


@contextmanager
def modules_counted(name: str) -> Iterator[None]:
    """Raise TunerError when a model that this thread builds gets too many parts, whatever its settings are called."""
    from torch.nn.modules import module

    thread, count = threading.get_ident(), 0

    def registered(*_: object) -> None:
        nonlocal count
        count += threading.get_ident() == thread
        if count > MAX_MODULES:
            raise _excessive(name, f"it describes more than {MAX_MODULES:,} modules")

    handle = module.register_module_module_registration_hook(registered)
    try:
        yield
    finally:
        handle.remove()


def generation_settings(folder: Path, vocabulary: int) -> dict:
    """What generation_config.json, or an older model's config.json, says of answers, as far as it can be right."""

    def is_token(value: Any) -> bool:
        return type(value) is int and 0 <= value < vocabulary

    try:
        settings = read_json(folder / "generation_config.json", folder.name)
    except TunerError:  # such as missing, too large, or no JSON
        settings = read_json(folder / "config.json", folder.name)
    kept = {
        name: settings[name]
        for name, (low, high) in GENERATION.items()
        if isinstance(settings.get(name), (int, float)) and low <= settings[name] <= high
    }
    for name in (*(f"{kind}_token_id" for kind in TOKEN_IDS), *TOKEN_LISTS):
        value = settings.get(name)
        if is_token(value) or (isinstance(value, list) and value and all(map(is_token, value))):
            kept[name] = value
    return kept
