"""What the page does with a visitor's input, as jobs for limited.py: plain values in, plain values out.

`device` is what the app's process says of its device: a worker has none, and must not touch one. A recipe is
nested settings, rows are the path of an uploaded file and the pasted text, and a token is the visitor's or False.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from tuner import recipe as recipes
from tuner.data import sources
from tuner.data.chat import render_prompt
from tuner.data.encode import preview_pieces, source
from tuner.data.table import Table
from tuner.data.tokens import histogram
from tuner.errors import TunerError
from tuner.models import device as devices
from tuner.models.ends import end_tokens
from tuner.models.fetch import base_of, fetch_model, is_shipped
from tuner.models.shape import load_tokenizer
from tuner.planning import adopt, forecast, pace, plan, probe, start_from
from tuner.planning.method_costs import method_costs
from tuner.planning.trackers import tracking_problems
from tuner.recipe import Recipe
from tuner.runs import Run

PREVIEWED = 3  # rows
Rows = list  # the paths of files, or None, and pasted text, or None


def warm_up(device: dict) -> None:
    """Plan the shipped recipes, so that their models are known to all workers."""
    shipped = map(Recipe.load, sorted(recipes.EXAMPLES.glob("*.yaml")))
    for recipe in shipped:
        if is_shipped(recipe.model.name):
            check(device, recipe.model_dump(), [None, None], False)


def look() -> list[float]:
    """What the CPU does just now: see `probe.look`. In the app's process other threads would hold it up."""
    return list(probe.look(pace.MEASURED_SECONDS))


def settings(text: str) -> dict:
    """The settings of a recipe in YAML, every default filled in. Raises TunerError with all problems."""
    recipe = Recipe.from_yaml(text)
    if problems := tracking_problems(recipe, local=False):  # or the form, which has no input for it, would drop it
        raise TunerError(*problems)
    return recipe.model_dump()


def columns(rows: Rows, example: str, data: dict) -> list[str]:
    """The columns of the rows as `data` reads them, or of an included example. Raises TunerError."""
    table = _read(rows, Recipe.parse({"data": data}).data) or sources.read_file(recipes.EXAMPLES / Path(example).name)
    return table.columns


def fetch(recipe: dict, token: str | bool) -> str:
    """Download the base model, and an adapter to start from; returns the base's folder. Raises TunerError."""
    given = Recipe.parse(recipe)
    start_from.find(given, local=False, token=token)
    return str(fetch_model(given.model, None, token, forecast.MAX_PARAMETERS))


def fetch_adopted(name: str, quantization: str, token: str | bool) -> None:
    """Download an adapter of the Hub and its base. Raises TunerError."""
    adopt.fetch(name, quantization, token, forecast.MAX_PARAMETERS)


def adopt_adapter(name: str, quantization: str, token: str | bool, path: str) -> None:
    """Write the folder of a run at `path` that answers with an adapter of the Hub. Raises TunerError."""
    adopt.adopt(name, quantization, token=token, most=forecast.MAX_PARAMETERS, path=Path(path))


def check(device: dict, recipe: dict, rows: Rows, token: str | bool) -> dict:
    """The plan. Raises TunerError with all problems."""
    with devices.described(device):
        return plan.check(*_given(recipe, rows), local=False, token=token).plan


def preview(device: dict, recipe: dict, rows: Rows, token: str | bool) -> dict:
    """What the model will see: rows in pieces, the histogram of lengths, and what is cut off. Raises TunerError."""
    with devices.described(device):
        checked = plan.check(*_given(recipe, rows), local=False, token=token)
    train, base, tokenizer = checked.train, checked.base, checked.tokenizer
    return {
        "rows": [preview_pieces(base.task, row, tokenizer, base.labels) for row in train.rows[:PREVIEWED]],
        "histogram": histogram(train.lengths),
        "max_length": train.max_length,
        "longest": max(train.lengths),
        "truncated": train.truncated,
        "lost_tokens": train.lost_tokens,
        "warning": train.warning,
        "format": checked.format.reason,
    }


def prepare(device: dict, recipe: dict, rows: Rows, token: str | bool, path: str) -> None:
    """Write the run's folder at `path`. Raises TunerError with all problems."""
    with devices.described(device):
        plan.prepare(*_given(recipe, rows), local=False, token=token, path=Path(path))


def survey(device: dict, recipe: dict, rows: Rows, token: str | bool) -> Iterator[dict]:
    """What each method would cost: see `method_costs`."""
    with devices.described(device):
        yield from method_costs(*_given(recipe, rows), local=False, token=token)


def read_prompts(
    run: str, conversations: list[list[dict]], token: str | bool, adapters: list[str | None] | None = None
) -> dict | None:
    """The conversations as texts that the run's base reads, and the tokens that end its answers.

    `adapters` are the runs, on the same base, that answer them, or None for the base; by default all are this run's.
    None for a base without a chat template. Raises TunerError if it can't read them.
    """
    opened = Run(Path(run))
    base = base_of(opened, token)
    tokenizer = _tokenizer(base.folder)
    answering = [path and Run(Path(path)) for path in adapters or [run] * len(conversations)]
    reading = [adopt.tokenizer_for(each, tokenizer) if each else tokenizer for each in answering]
    if base.row.chats:
        thinks = [(each or opened).plan.get("thinks") for each in answering]
        given = zip(conversations, reading, thinks, strict=True)
        texts = [render_prompt(messages, reads, thinks=thought) for messages, reads, thought in given]
    else:
        texts = [source(m) for m in conversations]
    for text in texts:
        # A rule may be slow with a part alone, as which taggers and question answerers read it.
        parts = [] if base.row.chats else [*text.split(), *text.partition("\n")]
        tokenizer([text, *parts], verbose=False)
    ends = opened.plan.get("end_tokens") or end_tokens(base, tokenizer)
    for own in reading:
        ends = list(dict.fromkeys([*ends, *(end_tokens(base, own) if own is not tokenizer else ())]))
    return {"texts": texts, "ends": ends} if base.row.chats else None


_tokenizer = lru_cache(maxsize=2)(load_tokenizer)  # of those who chat


def _given(recipe: dict, rows: Rows) -> tuple[Recipe, Table | None]:
    requested = Recipe.parse(recipe)
    return requested, _read(rows, requested.data)


def _read(rows: Rows, data: recipes.Data) -> Table | None:
    """The uploaded or pasted rows; None if the recipe names their source. Raises TunerError."""
    files, pasted = rows
    if files:
        return sources.read_files(files, [Path(file).name for file in files], data)
    return sources.read_pasted(pasted, data) if pasted is not None else None
