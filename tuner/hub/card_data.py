"""What a card says of the data: where it is from, and how it was read. A file of one's own is not named."""

from pathlib import PurePath

from tuner.data.files import split_of
from tuner.data.parse import GZIP, SUFFIXES
from tuner.data.sources import is_hub_name
from tuner.hub.card_scores import UNKNOWN, counted, line, number
from tuner.recipe import Recipe
from tuner.runs import Run

OWN = "a file that is not published"


def origin(run: Run) -> str:
    """Where the rows are from: own, example or hub. Runs of earlier versions don't say; a file of theirs is own."""
    found = (run.plan.get("data") or {}).get("origin")
    return found or ("hub" if is_hub_name(run.recipe.data.source) else "own")


def source(run: Run, named: str | None = None) -> str:
    """The rows' name on a card, a link if they are on the Hub; `named` is their owner's name for them."""
    data = run.recipe.data
    if origin(run) == "hub":
        revision = (run.plan.get("data") or {}).get("revision")
        config, pinned = f" ({data.config})" if data.config else "", f", revision `{revision}`" if revision else ""
        return f"[{data.source}](https://huggingface.co/datasets/{data.source}){config}{pinned}"
    if origin(run) == "example":
        return f"`{line(without_paths(run).data.title)}`, an example that comes with Tuner"
    return f"{line(named)}, {OWN}" if named else OWN


def title(run: Run, named: str | None = None) -> str:
    """The rows' name as plain text."""
    return named or (OWN if origin(run) == "own" else without_paths(run).data.title)


def public_recipe(run: Run) -> Recipe:
    """The run's recipe as anybody may read it: with no path, and a file of one's own under another name."""
    recipe = without_paths(run)
    if origin(run) != "own":
        return recipe
    named = [_neutral(name) for name in recipe.data.sources]
    if len(named) == 1:
        return recipe.with_settings({"data.source": f"rows{named[0]}"})
    return recipe.with_settings({"data.source": [f"rows-{i}{ending}" for i, ending in enumerate(named, 1)]})


def _neutral(name: str) -> str:
    """How a file's name ends that tells how it is read: as which split, and in which format."""
    split, path = split_of(name), PurePath(name.lower())
    suffixes = [suffix for suffix in path.suffixes[-2:] if suffix in (*SUFFIXES, GZIP)]
    return (f".{split}" if split else "") + "".join(suffixes)


def without_paths(run: Run) -> Recipe:
    """The run's recipe with names in place of this machine's paths."""
    recipe, own_folder = run.recipe, run.plan.get("model_folder")
    named = [name if is_hub_name(name) else PurePath(name.replace("\\", "/")).name for name in recipe.data.sources]
    settings = {"data.source": named if len(named) > 1 else named[0]} | (
        {"model.name": PurePath(own_folder).name} if own_folder else {}
    )
    if start := run.plan.get("start"):
        # Of an adapter on the Hub the exact version; the id of a run would let anybody look at it.
        of_hub = f"{start['adapter']}@{start['revision']}"
        settings["method.start_from"] = of_hub if start["adapter"] else "earlier-run"
    return recipe.with_settings(settings)


def data_section(run: Run, named: str | None, license: str | None) -> str:
    """The section on the data; `license` is that of a dataset on the Hub, as its card says."""
    plan = run.plan
    choices = {choice["setting"]: choice for choice in plan.get("chosen", [])}
    unknown = {"value": UNKNOWN, "reason": ""}
    heldout, form = choices.get("held-out rows", unknown), choices.get("format", unknown)
    tokens, trained = counted(plan.get("tokens"), "token"), number(plan.get("trained_tokens"))
    lines = [
        f"- source: {source(run, named)}",
        *([f"- license of the data: {line(license)}"] if license else []),
        f"- training: {counted(plan.get('rows'), 'row')} with {tokens}, {trained} of them learned from",
        f"- held out: {counted(plan.get('heldout_rows'), 'row')}. {_public(run, heldout['reason'])}",
        f"- format: {line(form['value'])}. {_public(run, form['reason'])}",
        f"- truncated: {counted(plan.get('truncated_rows'), 'row')}",
    ]
    return "## Data\n\n" + "\n".join([*lines, *(f"- warning: {_public(run, w)}" for w in plan.get("warnings", []))])


def _public(run: Run, text: str) -> str:
    """A sentence of the plan on one line, without the names of files of one's own."""
    if origin(run) == "own":
        for name in run.recipe.data.sources:
            text = text.replace(name, "the file").replace(PurePath(name.replace("\\", "/")).name, "the file")
    return line(text)
