"""A tokenizer and a chat template as GGUF holds them, so that llama.cpp reads the tokens that training saw.

llama.cpp knows how a byte-level BPE cuts a text into words by a name, and not from the file. The names that are known
here are those whose cutting is the same.
"""

import json
import re
from typing import TYPE_CHECKING, Any

from tuner.data.chat import render_prompt, stop_ids
from tuner.data.chat_templates import template_of
from tuner.errors import TunerError
from tuner.models.shape import load_tokenizer
from tuner.runs import Run

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How a text is cut, step by step: the kind, and its pattern or whether it cuts by GPT-2's -> llama.cpp's name for it.
CUTTING = {
    (("ByteLevel", True),): "gpt-2",
    (("Digits", True), ("ByteLevel", True)): "smollm",
    (("Split", _WORDS % "{1,3}"), ("ByteLevel", False)): "llama-bpe",
    (("Split", _WORDS % ""), ("ByteLevel", False)): "qwen2",
}
MOST_ENDS = 3  # eos, eot and eom
NORMALIZERS = (None, "NFC")  # llama.cpp does neither; text is in NFC but for rare signs
GENERATION = re.compile(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}")  # what transformers alone understands
DROPPED_SPACE = r"{#\1 \2#}"  # a comment, which drops the same space around it


def cutting(tokenizer: dict) -> str | None:
    """llama.cpp's name for how the tokenizer of a tokenizer.json cuts a text; None if it has none."""
    model, before = tokenizer.get("model") or {}, tokenizer.get("pre_tokenizer") or {}
    normalizer = (tokenizer.get("normalizer") or {}).get("type")
    if model.get("type") != "BPE" or model.get("byte_fallback") or normalizer not in NORMALIZERS:
        return None
    steps = before.get("pretokenizers") or [before]
    if any(step.get("add_prefix_space") or step.get("invert") for step in steps):
        return None
    return CUTTING.get(tuple(map(_step, steps)))


def _step(step: dict) -> tuple[str | None, Any]:
    kind = step.get("type")
    told = {"ByteLevel": "use_regex", "Digits": "individual_digits"}
    return kind, step.get(told[kind], True) if kind in told else (step.get("pattern") or {}).get("Regex")


def write(writer: "GGUFWriter", run: Run, vocabulary: int) -> None:
    """Write the merged run's tokenizer, template and end tokens. Raises TunerError if llama.cpp would read others."""
    folder = run.merged
    described = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(folder)
    _write_vocabulary(writer, described, vocabulary)
    template = portable_template(tokenizer, run.plan.get("thinks"))
    # It adds the token to every text once; whether a prompt has it is for the template to say.
    writer.add_add_bos_token(bool(added_begin(tokenizer, run.plan.get("thinks"))))
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    ends = run.plan.get("end_tokens") or stop_ids(tokenizer)
    if len(ends) > MOST_ENDS:
        raise TunerError(
            f"This model's answers end at {len(ends)} different tokens, and a GGUF file has room for {MOST_ENDS}: "
            "some answers would never end. Download the merged model instead."
        )
    for add, token in zip((writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id), ends):
        add(token)
    writer.add_chat_template(template)


PROBE = [{"role": "user", "content": "a"}]
PROBES = [
    PROBE,
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x y"}],
    [*PROBE, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c\nd"}],
]


def added_begin(tokenizer: "PreTrainedTokenizerBase", thinks: bool | None) -> str:
    """The token that a prompt begins with, if the tokenizer has one for that; "" if there is none."""
    begin = tokenizer.bos_token or ""
    return begin if render_prompt(PROBE, tokenizer, thinks=thinks).startswith(begin) else ""


def portable_template(tokenizer: "PreTrainedTokenizerBase", thinks: bool | None) -> str:
    """The chat template with what training chose written into it, for programs that render it by themselves.

    Raises TunerError if it would render other prompts than training saw.
    """
    own = template_of(tokenizer, is_own=thinks is None)
    text = GENERATION.sub(DROPPED_SPACE, tokenizer.chat_template or "")
    for switch in ("enable_thinking", "thinking"):
        if re.search(rf"\b{switch}\b", text):
            text = "{%- set " + switch + f" = {bool(thinks)}".lower() + " -%}" + text
    lead = "" if thinks or thinks is None else own.lead
    if lead:
        text += "{%- if add_generation_prompt -%}{{- " + json.dumps(lead) + " -}}{%- endif -%}"
    for messages in PROBES:
        try:
            expected = own.render(messages, None, prompt=True, thinks=bool(thinks)) + lead
        except TunerError:
            continue  # such as a system prompt, which some templates refuse
        if rendered(text, tokenizer, messages, prompt=True) != expected:
            raise TunerError("The chat template can't be written so that other programs render it as training did.")
    return text


def rendered(template: str, tokenizer: "PreTrainedTokenizerBase", messages: list[dict], *, prompt: bool) -> str:
    """The messages as another program renders them with this template."""
    return tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=prompt
    )


def _write_vocabulary(writer: "GGUFWriter", described: dict, size: int) -> None:
    from gguf import TokenType

    name = cutting(described)
    if not name:
        raise TunerError("llama.cpp has no name for how this tokenizer cuts a text into words.")
    model, added = described["model"], {token["id"]: token for token in described.get("added_tokens", [])}
    tokens = {number: token for token, number in model["vocab"].items()}
    tokens |= {number: token["content"] for number, token in added.items()}
    kinds = {n: TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED for n, token in added.items()}
    missing = [number for number in range(size) if number not in tokens]  # rows that were added to the embedding
    tokens |= {number: f"[PAD{number}]" for number in missing}
    kinds |= dict.fromkeys(missing, TokenType.UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list([tokens[number] for number in range(size)])
    writer.add_token_types([kinds.get(number, TokenType.NORMAL) for number in range(size)])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    writer.add_token_merges(merges)
