"""The code on a model card that loads the adapter and runs it, for every task and kind of adapter."""

import json
import re

from tuner.methods.files import CONFIG, SECOND
from tuner.planning.answering import answer_limit
from tuner.recipe import Recipe
from tuner.runs import Run
from tuner.tasks import TaskRow, task_of

CONVERTER = "https://huggingface.co/spaces/ggml-org/gguf-my-repo"
GGUF = (
    "With llama.cpp: `llama-server -m FILE.gguf`. With Ollama, in this folder: `ollama create NAME -f Modelfile`, and "
    "then `ollama run NAME`."
)
HERE = "."  # in place of a repository: the folder that the code is run in


def fence(text: str, language: str = "text") -> str:
    """A code block whose fence is longer than any in the text."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", text)), 3)
    return f"{fence}{language}\n{text}\n{fence}"


def use(run: Run, recipe: Recipe, base: str | None, repo: str, kind: str) -> str:
    """The section on loading the adapter from `repo`; `base` is its base model on the Hub, if not the recipe's."""
    if kind == "gguf":
        return f"## How to use it\n\n{GGUF}"
    private = "If the repository is private, log in first: `hf auth login`."
    note = "Run it in this folder, or `python load.py`, which is the same." if repo == HERE else private
    if kind == "bottleneck":
        note += " This code needs Tuner's own module, `tuner`, because PEFT has no bottleneck adapters."
    if kind == "merged" and task_of(run.plan).chats:
        note += (
            " For llama.cpp, Ollama and LM Studio, convert it with llama.cpp's own `python convert_hf_to_gguf.py "
            f"FOLDER --outfile model.gguf`, or on the Hub with [gguf-my-repo]({CONVERTER})."
        )
    return f"## How to use it\n\n{fence(code(run, recipe, base, repo, kind), 'python')}\n\n{note}"


def code(run: Run, recipe: Recipe, base: str | None, repo: str, kind: str) -> str:
    """The lines that load what is in `repo` and answer the first held-out prompt; for the rest see `use`."""
    task = task_of(run.plan)
    return _load(run, recipe, task, base or recipe.model.name, repo, kind) + "\n" + _ask(run, task)


def kind_of(run: Run) -> str:
    """How the run's adapter is loaded: peft, hybrid (two parts), or one of our own kinds, selected or bottleneck."""
    config = run.read_json(f"adapter/{CONFIG}") or {}
    if "native" in config:
        return config["method"]
    return "hybrid" if (run.adapter / SECOND).is_dir() else "peft"


def _load(run: Run, recipe: Recipe, task: TaskRow, base: str, repo: str, kind: str) -> str:
    tokenizer = f'tokenizer = AutoTokenizer.from_pretrained("{repo}")'
    if kind == "peft" and task.chats:
        return (
            "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n\n"
            f'model = AutoPeftModelForCausalLM.from_pretrained("{repo}")\n{tokenizer}'
        )
    revision = run.plan.get("revision") if base == recipe.model.name else None
    pinned = f', revision="{revision}"' if revision else ""
    labels = run.plan.get("labels")
    if labels:
        pinned += f", id2label={json.dumps(dict(enumerate(labels)), ensure_ascii=False)}"
        pinned = re.sub(r'"(\d+)":', r"\1:", pinned)
        pinned += f", label2id={json.dumps({label: i for i, label in enumerate(labels)}, ensure_ascii=False)}"
    head = f"from transformers import {task.auto_class}, AutoTokenizer\n\n"
    load_base = f'model = {task.auto_class}.from_pretrained("{base}"{pinned})\n'
    load_adapter = f'model = PeftModel.from_pretrained(model, "{repo}")\n'
    if kind == "merged":
        return f'{head}model = {task.auto_class}.from_pretrained("{repo}")\n{tokenizer}'
    if kind in OWN_KINDS:
        imports, place, load = OWN_KINDS[kind]
        place = place.format(repo=repo) if repo != HERE else f'"{LOCAL[kind]}"'
        imports = imports if repo != HERE else re.sub("from huggingface_hub .*\n", "", imports)
        return f"{imports}{head}{load_base}{load.format(place=place)}\n{tokenizer}"
    if kind == "hybrid":
        load_adapter += f'model = PeftModel.from_pretrained(model, "{repo}", "{SECOND}", subfolder="{SECOND}")\n'
    if kind == "hybrid" and labels:
        load_adapter += _HEAD_ON
    return f"from peft import PeftModel\n{head}{load_base}{load_adapter}{tokenizer}"


# What loads the kinds that are not PEFT's: imports, where the files are, and the line. LOCAL: those in this folder.
OWN_KINDS = {
    "selected": (
        "from huggingface_hub import hf_hub_download\nfrom safetensors.torch import load_file\n",
        'hf_hub_download("{repo}", "adapter_model.safetensors")',
        "model.load_state_dict(load_file({place}), strict=False)",
    ),
    "bottleneck": (
        "from huggingface_hub import snapshot_download\nfrom tuner.methods.native import load\n",
        'snapshot_download("{repo}")',
        "model = load(model, {place})",
    ),
}
LOCAL = {"selected": "adapter_model.safetensors", "bottleneck": HERE}

# Loading the second part disables the first part's head.
_HEAD_ON = """for module in model.modules():
    if "ModulesToSave" in type(module).__name__:
        module.set_adapter("default")
"""


def _ask(run: Run, task: TaskRow) -> str:
    rows = run.heldout(1)
    messages = rows[0]["messages"] if rows else [{"role": "user", "content": "Once"}]
    text = json.dumps(messages[-1]["content"], ensure_ascii=False)
    limit = answer_limit(run)
    if task.chats:
        return _generate(_prompt(run, messages, bool(rows)), limit, 'output[0][inputs["input_ids"].shape[1] :]')
    if task.generates:
        return _generate(f'inputs = tokenizer({text}, return_tensors="pt")', limit, "output[0]")
    return READ_OFF[task.objective].format(text=text)


def _generate(ask: str, limit: int, written: str) -> str:
    return (
        f"{ask}\n"
        f"output = model.generate(**inputs, max_new_tokens={limit}, do_sample=False)\n"
        f"print(tokenizer.decode({written}, skip_special_tokens=True))"
    )


def _prompt(run: Run, messages: list[dict], is_row: bool) -> str:
    template = _chat_template(run)
    if not template or not is_row:
        beginning = "".join(f"{m['content']}\n" for m in messages) if is_row else messages[0]["content"]
        return f'inputs = tokenizer({json.dumps(beginning, ensure_ascii=False)}, return_tensors="pt")'
    thinks = bool(run.plan.get("thinks"))
    thinking = f", enable_thinking={thinks}" if "enable_thinking" in template else ""
    return (
        f"messages = {json.dumps(messages, indent=4, ensure_ascii=False)}\n"
        "inputs = tokenizer.apply_chat_template(\n"
        f'    messages, add_generation_prompt=True{thinking}, return_dict=True, return_tensors="pt"\n)'
    )


READ_OFF = {
    "whole_text": """inputs = tokenizer({text}, return_tensors="pt")
print(model.config.id2label[int(model(**inputs).logits.argmax())])""",
    "each_token": """words = {text}.split()
inputs = tokenizer(words, is_split_into_words=True, return_tensors="pt")
tags = model(**inputs).logits[0].argmax(-1)
for place, word in enumerate(inputs.word_ids()):
    if word is not None and word not in inputs.word_ids()[:place]:
        print(words[word], model.config.id2label[int(tags[place])])""",
    "span": """question, _, context = {text}.partition("\\n")
inputs = tokenizer(question, context, return_tensors="pt")
output = model(**inputs)
first, last = int(output.start_logits.argmax()), int(output.end_logits.argmax())
print(tokenizer.decode(inputs["input_ids"][0, first : last + 1]))""",
}


def _chat_template(run: Run) -> str | None:
    """The chat template of the pushed tokenizer, from its own file or from the tokenizer's configuration."""
    file = run.adapter / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = (run.read_json("adapter/tokenizer_config.json") or {}).get("chat_template")
    return template if isinstance(template, str) else json.dumps(template) if template else None
