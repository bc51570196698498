"""A run from elsewhere on this machine: whether it can go on here, and how long that takes."""

from datasets import load_from_disk

from tuner.data.tokens import Tokenized
from tuner.errors import TunerError, collect
from tuner.methods import attach, config_check
from tuner.methods.files import CONFIG, SECOND
from tuner.methods.registry import METHODS, resolve
from tuner.models.fetch import base_of
from tuner.models.shape import Base, load_tokenizer, shape_of
from tuner.planning import forecast
from tuner.planning.base_check import check_vocabulary
from tuner.planning.heldout import prompt_tokens
from tuner.planning.memory import attach_on_meta, count_trainable, method_key
from tuner.planning.method_check import method_problems
from tuner.planning.scoring import Prompts
from tuner.planning.trackers import tracking_problems
from tuner.runs import Run


def check_here(run: Run, token: str | bool | None) -> None:
    """Give the run this machine's forecast. Its base must be here.

    Raises TunerError with all that keeps a visitor's run from going on here, or its adapter from being loaded.
    """
    recipe, plan, base = run.recipe, run.plan, base_of(run, token)
    problems = [*method_problems(recipe, base), *tracking_problems(recipe, local=False)]
    with collect(problems):
        _check_adapter(run, base)
    if (run.data / "train").is_dir() and not problems:
        train, heldout = (list(load_from_disk(str(run.data / part))) for part in ("train", "heldout"))
        with collect(problems):
            check_vocabulary(base, shape_of(base), load_tokenizer(base.folder), [*train, *heldout])
        lengths = [len(row["input_ids"]) for row in train]
        rows = Tokenized(train, lengths, plan["settings"]["max_length"], 0)
        trainable, prompts = count_trainable(base, method_key(recipe)), Prompts(prompt_tokens(base, heldout))
        estimate = forecast.estimate_run(recipe, base, plan["settings"], rows, len(heldout), trainable, prompts)
        with collect(problems):
            forecast.check_memory(estimate, recipe, plan["settings"]["batch_size"])
        with collect(problems):
            forecast.check_limits(estimate, rows.total_tokens)
        run.write_json("plan.json", plan | {"forecast": estimate, "trainable_parameters": trainable})
    if problems:
        raise TunerError(*problems)


def _check_adapter(run: Run, base: Base) -> None:
    """Raise TunerError unless the adapter is configured as its recipe says, so that it is no larger."""
    expected = _configs(run, base)
    for place, config in zip((f"adapter/{CONFIG}", f"adapter/{SECOND}/{CONFIG}"), expected, strict=False):
        saved = run.read_json(place)
        if saved is not None and (different := config_check.different(saved, config)):
            raise TunerError(f"The run's adapter is not as its recipe says: {', '.join(different)} differ.")


def _configs(run: Run, base: Base) -> list:
    """The configurations of the run's method on its base, with what PEFT fills in, in the order of attaching."""
    recipe, row = run.recipe, METHODS[run.recipe.method.name]
    if row.needs_storage:
        return row.configs(resolve(recipe, shape_of(base), base.row, run.plan["settings"]))
    planned = {f"method.{name}": value for name, value in run.plan["settings"].items() if name in row.settings}
    model = attach_on_meta(base, method_key(recipe.with_settings(planned)))
    return attach.configs(model)
