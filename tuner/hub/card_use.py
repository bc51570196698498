"""The lines of code on a model card that load what was trained, for every task and kind of adapter."""

import json
import re

from tuner.methods.files import CONFIG, SECOND, is_native
from tuner.recipe import Recipe
from tuner.runs import Run
from tuner.tasks import TASKS, TaskRow


def fence(text: str, language: str = "text") -> str:
    """A code block that the text cannot end."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", text)), 3)
    return f"{fence}{language}\n{text}\n{fence}"


def use(run: Run, recipe: Recipe, base: str | None, repo: str) -> str:
    """How the adapter is loaded from `repo` and asked; `base` is its base's name on the Hub where the recipe's is
    none."""
    task = TASKS[run.plan.get("task", "generation")]
    code = _load(run, recipe, task, base or recipe.model.name, repo) + "\n" + _ask(run, recipe, task)
    said = "If the repository is private, log in first: `hf auth login`."
    if _kind(run) == "bottleneck":
        said += " `tuner` is Tuner's own module: PEFT has no bottleneck adapters."
    return f"## How to use it\n\n{fence(code, 'python')}\n\n{said}"


def _kind(run: Run) -> str:
    if not run.adapter.is_dir() or not is_native(run.adapter):
        return "hybrid" if (run.adapter / SECOND).is_dir() else "peft"
    return run.read_json(f"adapter/{CONFIG}")["method"]


def _load(run: Run, recipe: Recipe, task: TaskRow, base: str, repo: str) -> str:
    kind = _kind(run)
    tokenizer = f'tokenizer = AutoTokenizer.from_pretrained("{repo}")'
    if kind == "peft" and task.name == "generation":
        return (
            "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n\n"
            f'model = AutoPeftModelForCausalLM.from_pretrained("{repo}")\n{tokenizer}'
        )
    revision = run.plan.get("revision") if base == recipe.model.name else None
    pinned = f', revision="{revision}"' if revision else ""
    labels = run.plan.get("labels") or []
    if labels:
        pinned += f", id2label={json.dumps(dict(enumerate(labels)), ensure_ascii=False)}"
        pinned = re.sub(r'"(\d+)":', r"\1:", pinned)
        pinned += f", label2id={json.dumps({label: i for i, label in enumerate(labels)}, ensure_ascii=False)}"
    head = f"from transformers import {task.auto_class}, AutoTokenizer\n\n"
    made = f'model = {task.auto_class}.from_pretrained("{base}"{pinned})\n'
    put_on = f'model = PeftModel.from_pretrained(model, "{repo}")\n'
    if kind == "selected":
        imports = "from huggingface_hub import hf_hub_download\nfrom safetensors.torch import load_file\n"
        weights = f'load_file(hf_hub_download("{repo}", "adapter_model.safetensors"))'
        return f"{imports}{head}{made}model.load_state_dict({weights}, strict=False)\n{tokenizer}"
    if kind == "bottleneck":
        imports = "from huggingface_hub import snapshot_download\nfrom tuner.methods.native import load\n"
        return f'{imports}{head}{made}model = load(model, snapshot_download("{repo}"))\n{tokenizer}'
    if kind == "hybrid":
        put_on += f'model = PeftModel.from_pretrained(model, "{repo}", "{SECOND}", subfolder="{SECOND}")\n'
    if kind == "hybrid" and labels:
        put_on += _HEAD_ON
    return f"from peft import PeftModel\n{head}{made}{put_on}{tokenizer}"


# The second part switches the first part's head off.
_HEAD_ON = """for module in model.modules():
    if "ModulesToSave" in type(module).__name__:
        module.set_adapter("default")
"""


def _ask(run: Run, recipe: Recipe, task: TaskRow) -> str:
    rows = run.data / "heldout.jsonl"
    line = next(iter(rows.read_text(encoding="utf-8").splitlines()), None) if rows.is_file() else None
    messages = json.loads(line)["messages"] if line else [{"role": "user", "content": "Once"}]
    text = json.dumps(messages[-1]["content"], ensure_ascii=False)
    if task.name == "generation":
        return _generate(_prompt(run, messages, bool(line)), recipe, 'output[0][inputs["input_ids"].shape[1] :]')
    if task.name == "seq2seq":
        return _generate(f'inputs = tokenizer({text}, return_tensors="pt")', recipe, "output[0]")
    return _READ_OFF[task.name].format(text=text, question=text.partition("\\n")[0] + '"')


def _generate(ask: str, recipe: Recipe, written: str) -> str:
    return (
        f"{ask}\n"
        f"output = model.generate(**inputs, max_new_tokens={recipe.evaluation.max_new_tokens}, do_sample=False)\n"
        f"print(tokenizer.decode({written}, skip_special_tokens=True))"
    )


def _prompt(run: Run, messages: list[dict], is_row: bool) -> str:
    template = _chat_template(run)
    if not template or not is_row:
        beginning = "".join(f"{m['content']}\n" for m in messages) if is_row else messages[0]["content"]
        return f'inputs = tokenizer({json.dumps(beginning, ensure_ascii=False)}, return_tensors="pt")'
    thinking = ", enable_thinking=False" if "enable_thinking" in template else ""
    return (
        f"messages = {json.dumps(messages, indent=4, ensure_ascii=False)}\n"
        "inputs = tokenizer.apply_chat_template(\n"
        f'    messages, add_generation_prompt=True{thinking}, return_dict=True, return_tensors="pt"\n)'
    )


_READ_OFF = {
    "classification": """inputs = tokenizer({text}, return_tensors="pt")
print(model.config.id2label[int(model(**inputs).logits.argmax())])""",
    "token_classification": """words = {text}.split()
inputs = tokenizer(words, is_split_into_words=True, return_tensors="pt")
tags = model(**inputs).logits[0].argmax(-1)
for place, word in enumerate(inputs.word_ids()):
    if word is not None and word not in inputs.word_ids()[:place]:
        print(words[word], model.config.id2label[int(tags[place])])""",
    "question_answering": """question, _, context = {text}.partition("\\n")
inputs = tokenizer(question, context, return_tensors="pt")
found = model(**inputs)
first, last = int(found.start_logits.argmax()), int(found.end_logits.argmax())
print(tokenizer.decode(inputs["input_ids"][0, first : last + 1]))""",
}


def _chat_template(run: Run) -> str | None:
    """The template that the pushed tokenizer will have, in a file of its own or within its configuration."""
    file = run.adapter / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = (run.read_json("adapter/tokenizer_config.json") or {}).get("chat_template")
    return template if isinstance(template, str) else json.dumps(template) if template else None
