"""What the attack tries in one process: malformed recipes, names and run ids; attack_files.py and attack_models.py
have files and models. A case is made from its family, its number and the seed alone, so that it can be made again.

The first cases of a family are its table, row by row, and each of them knows whether it must be refused; later ones
are mutations of rows, of which only what no answer may contain is known.
"""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import attack_files
import attack_models

REFUSE, ACCEPT = "refuse", "accept"
ROWS = "prompt,completion\n" + "".join(f"hey can u do task {i},Could you please do task {i}?\n" for i in range(24))
GOOD = "method: {rank: 4}\nbudget: {steps: 2}\nevaluation: {rows: 2, max_new_tokens: 4}\n"


@dataclass
class Case:
    """One thing to try: what is called, with what, and what must become of it (None: anything but a fault)."""

    family: str
    number: int
    about: str
    expect: str | None
    call: str
    given: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What `--only` takes."""
        return f"{self.family}/{self.number}"


Row = tuple[str, str | None, str, dict[str, Any]]  # about, expect, call, given

# -- names

LONG = "a" * 10_000
NAMES = [
    *("../../../../etc/passwd", "/etc/passwd", "/dev/zero", "/dev/full", "/dev/stdin", "/proc/self/environ", "FIFO"),
    *("..", ".", "../example", "./example", "example/", "/example", "example/..", "example/../example", "//example"),
    *("example ", " example", "example\t", "example\n", "\nexample", "example\u00a0", "example\u200b", "Example"),
    *("EXAMPLE", "example.", "example\\", "..\\example", "exampl\u0435", "\uff45xample", "\u202eelpmaxe"),
    *(
        "%2e%2e%2fexample",
        "..%2fexample",
        "example%00",
        "example%20",
        "example?x=1",
        "example#x",
        "example;ls",
        "a" * 300,
    ),
    *(LONG, "a/" * 200 + "b", "a/b/c", "a//b", "a/../b", "a/..", "../a/b", "owner/.hidden/..", "refs/pr/1/../../../x"),
    *("file:///etc/passwd", "http://127.0.0.1:9/x", "https://example.org/x/y", "hf://datasets/a/b", "s3://a/b", "~/x"),
    *("~root/.ssh/id_rsa", "$HOME/x", "${HOME}", "{0.__class__}", "%s%s%n", "-rf", "--help", "*", "[a]", "a:b", "a@b"),
    *(
        "ex\x00ample",
        "ex\x1bample",
        "\ud800/\udfff",
        "🎚/🎚",
        "con/aux",
        "<script>alert(1)</script>",
        "' OR 1=1 --",
        "a b/c d",
    ),
]
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,90}(/[\w.-]{1,90})?", re.ASCII)
CALLS_OF_A_RUN = ("status", "stop", "delete", "resume", "merge", "chat", "open")
NAMED_IN_A_RECIPE = ("model.name", "model.revision", "data.source", "data.config", "data.split", "data.heldout_split")
NAMED_IN_A_RECIPE += ("method.start_from",)


def recipe_with(place: str, value: Any) -> str:
    """A recipe, in YAML that any text can be written in, where one setting has this value."""
    settings: dict[str, Any] = {"budget": {"steps": 2}, "evaluation": {"rows": 2}}
    part, _, leaf = place.partition(".")
    if part == "budget":
        settings["budget"] = {}
    if leaf:
        settings.setdefault(part, {})[leaf] = value
    else:
        settings[part] = value
    if place == "model.revision":
        settings["model"]["name"] = "good/model"
    if place in ("data.config", "data.split", "data.heldout_split"):
        settings["data"]["source"] = "good/rows"
    return json.dumps(settings)


def _names() -> list[Row]:
    rows: list[Row] = []
    for name in NAMES:
        shown = ascii(name)[:50]
        for place in NAMED_IN_A_RECIPE:
            given = {"recipe": recipe_with(place, name), "rows": "" if place.startswith("data.") else ROWS}
            rows.append((f"{place} {shown}", REFUSE, "check", given))
        for call in CALLS_OF_A_RUN:
            # Spaces around ids with commas between are no part of them.
            expect = None if call == "chat" and name.strip() == "example" else REFUSE
            rows.append((f"{call} of run {shown}", expect, call, {"run": name}))
        rows.append(
            (f"push to {shown}", None if REPOSITORY.fullmatch(name.strip()) else REFUSE, "push", {"repository": name})
        )
    rows.append(("the owner's private model", REFUSE, "check", {"recipe": recipe_with("model.name", "owner/private")}))
    private = {"recipe": recipe_with("data.source", "owner/private-rows"), "rows": ""}
    rows.append(("the owner's private dataset", REFUSE, "check", private))
    rows.append(("a model on the Hub", ACCEPT, "check", {"recipe": recipe_with("model.name", "good/model")}))
    revision = recipe_with("model.revision", "main")
    rows.append(("a model's branch", ACCEPT, "check", {"recipe": revision}))
    rows.append(("the example", ACCEPT, "status", {"run": "example"}))
    return rows


# -- recipes

NUMBERS = {
    **dict.fromkeys(("data.max_rows", "budget.steps", "training.warmup_steps", "evaluation.loss_every"), None),
    "training.patience": None,
    **dict.fromkeys(("data.max_length", "data.heldout", "training.weight_decay", "training.max_grad_norm"), None),
    **dict.fromkeys(("budget.epochs", "budget.seconds", "method.alpha", "training.checkpoint_seconds"), None),
    **{"method.rank": 1024, "method.dropout": 1, "method.virtual_tokens": 512, "method.bottleneck": 1024},
    **{"method.layers": 200, "training.learning_rate": 1, "training.batch_size": 1024, "seed": 2**31 - 1},
    **{"data.seed": 2**31 - 1, "evaluation.few_shot": 32, "evaluation.seconds": None},
    **{"evaluation.rows": 2000, "evaluation.max_new_tokens": 2048},
}  # and the largest value, where there is one
CHOICES = (
    "task",
    "model.quantization",
    "model.dtype",
    "training.scheduler",
    "training.keep",
    "training.loss_on",
    "method.name",
)
CHOICES += ("data.format", "data.header", "data.encoding", "data.empty", "evaluation.metrics", "tracking")
TEXTS = (
    "name",
    "model.name",
    "model.revision",
    "data.source",
    "data.config",
    "data.split",
    "data.system",
    "data.format",
)
PARTS = ("model", "data", "method", "training", "budget", "evaluation")
NO_NUMBER = (
    ".nan",
    ".inf",
    "-.inf",
    "-1",
    "-1e308",
    "[1]",
    "{a: 1}",
    "yes",
    "'1; rm -rf'",
    "'\\0'",
    "0x",
    "1,5",
    "''",
)
NO_NUMBER += (
    "'１２'",
    "!!binary aGk=",
    "2020-01-01",
    "!!python/object/apply:os.system [id]",
    "!!set {1}",
    "1.5.2",
    "'9' * 9",
)
NO_TEXT = (
    "[a]",
    "{a: b}",
    "12",
    "1.5",
    "yes",
    "!!python/name:os.system",
    "!!set {a}",
    "[[[[]]]]",
    ".nan",
)
HUGE = ("1" + "0" * 30, "1e300", "9" * 4000, "9" * 5000, "1" + "_0" * 3000, "1:" * 300 + "1", "0b" + "1" * 9000)


def _setting(place: str, value: str) -> str:
    part, _, leaf = place.partition(".")
    head = "" if part == "budget" else "budget: {steps: 2}\n"
    return head + (f"{part}:\n  {leaf}: {value}\n" if leaf else f"{part}: {value}\n")


LAUGHS = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 7))
DOCUMENTS = {
    "aliases of aliases": LAUGHS,
    "merge keys of merge keys": MERGES,
    "an alias of itself": "a: &a [*a]\nmodel: *a\n",
    "a merge of itself": "a: &a {<<: *a}\n",
    "100,000 open brackets": "[" * 100_000,
    "100,000 open braces": "{a: " * 100_000,
    "100,000 nested blocks": "".join(" " * i + "a:\n" for i in range(1000)),
    "a list of 100,000 dashes": "- " * 100_000,
    "1 MB of one name": "name: " + "x" * 2**20,
    "1 MB of blanks in quotes": "name: '" + " " * 2**20,
    "1 MB of line breaks in quotes": "name: '" + "\n" * 2**20,
    "100,000 unknown settings": "".join(f"k{i}: 1\n" for i in range(100_000)),
    "an unknown setting of 1 MB": "x" * 1000 + ": 1\n" + "y" * 2**20 + ": 1\n",
    "a template of 2,000 columns": 'data: {columns: {prompt: "' + "{task}" * 1300 + '", completion: done}}\n',
    "a template of attributes": 'data: {columns: {prompt: "{task.__class__}", completion: done}}\n',
    "a template of open braces": 'data: {columns: {prompt: "' + "{" * 7000 + '", completion: done}}\n',
    "a key that is a list": "? [a, b]\n: c\n",
    "a key that is an object": "? {a: b}\n: c\n",
    "a key that is a number": "1: 2\n",
    "a key that is nothing": "~: 2\n",
    "two documents": "name: a\n---\nname: b\n",
    "an open quote": 'name: "abc\n',
    "an open flow": "model: {name: a\n",
    "a tab as indent": "model:\n\tname: a\n",
    "a NUL": "name: a\0b\n",
    "an escaped NUL in a model's name": 'model: {name: "a\\0b"}\n',
    "half a pair in a name": 'model: {name: "\\ud800"}\n',
    "a raw half of a pair": "name: \ud800\n",
    "an impossible date": "name: 2020-99-99\n",
    "an impossible time": "name: 2020-01-01 99:99:99\n",
    "no integer": "seed: !!int abc\n",
    "no float": "seed: !!float abc\n",
    "no truth": "seed: !!bool abc\n",
    "no time": "seed: !!timestamp abc\n",
    "no base64": "name: !!binary '%%%'\n",
    "pairs of nothing": "model: !!pairs [a]\n",
    "an ordered map of nothing": "model: !!omap [a]\n",
    "a map that is a list": "model: !!map [a]\n",
    "a Python object": "name: !!python/object/apply:os.system ['touch HERE/owned']\n",
    "a Python module": "name: !!python/module:os\n",
    "a Python tuple": "model: !!python/tuple [a]\n",
    "an unknown tag": "model: !x {name: a}\n",
    "a tag that is a URL": "model: !<tag:example.org,2000:x> {name: a}\n",
    "an unknown anchor": "model: *nobody\n",
    "an unknown directive": "%FOO bar\n---\nname: [\n",
    "a version of the future": "%YAML 9.9\n---\nname: [\n",
    "a list": "- a\n- b\n",
    "a text": "hello\n",
    "a number": "12\n",
    "a truth value": "yes\n",
    "JSON with a half": '{"model": {"name": "\\ud83d"}}',
    "100,000 columns": "data: {columns: {" + ",".join(f"a{i}: b" for i in range(100_000)) + "}}\n",
    "100,000 target modules": "method: {target_modules: [" + ",".join(f"m{i}" for i in range(100_000)) + "]}\n",
    "a slow pattern of target modules": "method: {target_modules: ['(a+)+$', '" + "a" * 5000 + "!']}\n",
    "100,000 metrics": "evaluation: {metrics: [" + ",".join(["rougeL"] * 100_000) + "x]}\n",
    "three budgets": "budget: {steps: 1, epochs: 1, seconds: 1}\n",
}

# An empty name is one, which Python reads where there is no base64; and a date may be read as text.
TAKEN = {"no base64", "an impossible date", "an impossible time"}


def _recipes() -> list[Row]:
    def row(about: str, expect: str | None, text: str) -> Row:
        return about, expect, "check", {"recipe": text, "rows": ROWS}

    rows = [row(f"{part} is {value}", REFUSE, f"{part}: {value}\n") for part in PARTS for value in NO_TEXT if value]
    rows += [row(f"{place}: {v}", REFUSE, _setting(place, v)) for place in NUMBERS for v in NO_NUMBER]
    for place, most in NUMBERS.items():
        rows += [row(f"{place}: {v[:9]}", None if most is None else REFUSE, _setting(place, v)) for v in HUGE]
        if most is not None:
            rows.append(row(f"{place}: one too many", REFUSE, _setting(place, str(most + 1))))
    rows += [row(f"{place}: {v}", REFUSE, _setting(place, v)) for place in TEXTS for v in NO_TEXT]
    for place in CHOICES:
        some = (*NO_TEXT, "nothing", "'../x'", "'auto '", "LoRA!", "'" + "x" * 5000 + "'", "__class__", "'\\0'")
        listed = [v for v in some if not (place == "evaluation.metrics" and v in ("[a]",))]
        rows += [row(f"{place}: {v[:40]}", REFUSE, _setting(place, v)) for v in listed]
    for part in PARTS:
        for key in ("__class__", "__init__", "model_config", "model_fields", "x" * 3000, "''", "nam", "<b>"):
            rows.append(row(f"{part}.{key[:20]}", REFUSE, f"{part}:\n  {key}: 1\n"))
    rows += [row(about, None if about in TAKEN else REFUSE, text) for about, text in DOCUMENTS.items()]
    twice = "budget: {steps: 2}\nbudget: {steps: 3}\n"
    rows += [row("a setting twice", None, twice), row("a mark before the text", None, "\ufeff" + GOOD)]
    methods = ("lora", "qlora", "rslora", "dora", "ia3", "vera", "bitfit", "prompt_tuning", "bottleneck")
    rows += [
        row(f"good: {m}", None if m in ("vera", "bottleneck") else ACCEPT, _setting("method.name", m)) for m in methods
    ]
    goods = (GOOD, "{}", '{"budget": {"steps": 2}}', "budget: {epochs: 0.1}\n", "seed: 3\nbudget: {steps: 1e0}\n")
    goods += (
        "name: Grüße 🎚\nbudget: {steps: 2}\n",
        "data: {columns: {prompt: prompt, completion: completion}}\nbudget: {steps: 2}\n",
    )
    rows += [row(f"good: {text[:30]!r}", ACCEPT if text != "{}" else None, text) for text in goods]
    return rows


# -- mutations

ODD = list("{}[]:,-&*!|>'\"%@`#?<\0\n\t \\~\u2028\u202e\ufeff\ud800😀0159eE._")


def mutated(rng: random.Random, text: str) -> str:
    """The text with a few pieces cut, doubled, swapped or replaced."""
    for _ in range(rng.randint(1, 4)):
        here, there = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        there = min(there, here + 40)
        piece = text[here:there]
        new = rng.choice(
            (
                "",
                piece * 2,
                piece[::-1],
                rng.choice(ODD),
                rng.choice(ODD) * rng.choice((2, 50, 3000)),
                rng.choice(HUGE),
            )
        )
        text = text[:here] + new + text[there:]
    return text


def mutated_row(rng: random.Random, rows: list[Row]) -> Row:
    """A row, one of whose texts is mutated."""
    about, _, call, given = rng.choice(rows)
    texts = [key for key, value in given.items() if isinstance(value, str) and key != "rows" and value]
    if not texts:
        return about, None, call, given
    key = rng.choice(texts)
    return f"{about}, mutated", None, call, {**given, key: mutated(rng, given[key])}


TABLES: dict[str, Callable[[], list[Row]]] = {
    "recipe": _recipes,
    "name": _names,
    "file": attack_files.table,
    "pasted": attack_files.pasted,
    "model": attack_models.table,
}
_made: dict[str, list[Row]] = {}
_short: dict[str, list[Row]] = {}


def short_rows(family: str) -> list[Row]:
    """The rows of a family that are short enough to be mutated."""
    if family not in _short:
        _short[family] = [
            row for row in rows_of(family) if len(str(row[3])) < 20_000 and row[2] in ("check", "pasted")
        ]
    return _short[family]


def rows_of(family: str) -> list[Row]:
    """The table of a family, made once."""
    if family not in _made:
        _made[family] = TABLES[family]()
    return _made[family]


def make(family: str, number: int, seed: int) -> Case:
    """The case of this number: a row of the table, or behind its end a mutation."""
    rows = rows_of(family)
    if number < len(rows):
        row = rows[number]
    else:
        rng = random.Random(f"{seed}/{family}/{number}")
        mutate = attack_files.mutation if family == "file" else None
        row = mutate(rng) if mutate else mutated_row(rng, short_rows(family))
    return Case(family, number, *row)
