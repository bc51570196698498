"""`tuner compare`: train methods, seeds or a search and compare them, or compare runs that have finished.

tuner compare RECIPE --methods lora,ia3 --seconds 30
tuner compare RECIPE --search 6 --total-seconds 300
tuner compare RECIPE --seeds 4
tuner compare EXPERIMENT                    # resume one that was stopped
tuner compare RUN RUN2
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tuner import terminal
from tuner.errors import TunerError
from tuner.metrics import METRICS

if TYPE_CHECKING:
    from rich.table import Table

    from tuner.experiments.beside import Beside
    from tuner.experiments.experiment import Experiment
    from tuner.experiments.results import Results
    from tuner.recipe import Recipe

Options = argparse.Namespace
HELP = "Train methods, seeds or a search, and compare their scores; resume that; or compare finished runs."
STATES = {"loading": "loading the base model", "start": "starting", "evaluating": "scoring", "finished": "finished"}
STATES |= {"failed": "failed"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be compared, and how."""
    what = "a recipe with one of the options below; an experiment's folder or id, to resume it; or two runs and more"
    parser.add_argument("things", nargs="+", metavar="THING", help=what)
    parser.add_argument("--methods", help="names separated by commas, such as lora,ia3")
    parser.add_argument("--search", type=int, metavar="TRIALS", help="look for good settings in so many trials")
    parser.add_argument(
        "--seeds", type=int, metavar="NUMBER", help="train with so many seeds, to see how far chance goes"
    )
    parser.add_argument("--seconds", type=float, help="training time for each; the recipe's own budget by default")
    parser.add_argument("--total-seconds", type=float, metavar="SECONDS", help="training time in all")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the table (CSV) and a drawing (PNG) there")


def compare(options: Options, recipe: Callable[[], tuple["Recipe", Path]]) -> None:
    """Do what the options say; `recipe` reads options.recipe, and gives the folder in which its paths start.

    Raises TunerError with all problems.
    """
    if options.out:
        _check_writable(options.out)
    if any(given is not None for given in (options.methods, options.search, options.seeds)):
        if len(options.things) > 1:
            raise TunerError(f"Give one recipe, not {len(options.things)} ({', '.join(options.things)}).")
        options.recipe = options.things[0]
        _train(options, _created(options, *recipe()))
    elif len(options.things) > 1:
        _refuse_settings(options, "Runs that have finished")
        _show_beside(options)
    else:
        _train(options, _resumed(options))


def _created(options: Options, recipe: "Recipe", folder: Path) -> "Experiment":
    from tuner.experiments.candidates import request
    from tuner.experiments.experiment import create

    methods = None if options.methods is None else [*filter(None, map(str.strip, options.methods.split(",")))]
    numbers = {"search": options.search, "seeds": options.seeds}
    seconds = {"seconds": options.seconds, "total_seconds": options.total_seconds}
    return create(request(recipe, methods, **numbers, **seconds), folder)


def _resumed(options: Options) -> "Experiment":
    from tuner import recipe, runs
    from tuner.experiments.experiment import open_experiment

    (name,) = options.things
    try:
        experiment = open_experiment(name)
    except TunerError:
        for is_there in (recipe.find, runs.open_run):
            try:
                is_there(name)
            except TunerError:
                continue
            raise TunerError(
                f"{name} alone can't be compared. Say what to compare it with: --methods lora,ia3, --search 6, "
                "--seeds 4, or another run."
            ) from None
        raise TunerError(
            f"There is no experiment '{name}', no recipe and no run. Check the name, or start with: "
            "tuner compare corporate --methods lora,ia3"
        ) from None
    _refuse_settings(options, f"Experiment {experiment.id}, which resumes as it was begun,")
    return experiment


def _refuse_settings(options: Options, what: str) -> None:
    given = {"--seconds": options.seconds, "--total-seconds": options.total_seconds, "--set": options.set or None}
    if names := [name for name, value in given.items() if value is not None]:
        raise TunerError(f"{what} can't be given {' and '.join(names)}. Leave that out.")


def _train(options: Options, experiment: "Experiment") -> None:
    from tuner.experiments.ranking import results
    from tuner.experiments.results import cost_in_words
    from tuner.experiments.train import train_all

    resume = f"tuner compare {experiment.path}"
    if not options.json:
        print(f"experiment {experiment.path}", file=sys.stderr)
    events = train_all(experiment)
    try:
        for event in events:
            if not options.json:
                show_event(event)
    except KeyboardInterrupt:
        print(f"\ntuner: stopped; what was trained is kept. To resume: {resume}", file=sys.stderr)
        raise
    finally:
        events.close()
    found = results(experiment)
    written = _written(options, found)
    if options.json:
        print(json.dumps({"experiment": experiment.id, **found.as_dict(), "files": written}))
        return
    terminal.print_table(comparison(found))
    print("\n".join([cost_in_words(found), *found.sentences, *(f"Written: {path}" for path in written)]))


def _show_beside(options: Options) -> None:
    from tuner import runs
    from tuner.experiments.beside import beside

    found = beside([runs.open_run(name) for name in options.things])
    written = _written(options, found.results)
    if options.json:
        print(json.dumps({**found.as_dict(), "files": written}))
        return
    terminal.print_table(comparison(found.results))
    terminal.print_table(differences(found))
    print("\n".join([*found.results.sentences, *(f"Written: {path}" for path in written)]))


def _written(options: Options, found: "Results") -> list[str]:
    from tuner.experiments import plot

    if not options.out:
        return []
    with _writing(options.out):
        return [str(path) for path in plot.write(found, options.out)]


def _check_writable(folder: Path) -> None:
    """Raise TunerError, before anything is trained, if the folder can't be made or written to."""
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        from tuner.run_files import reason

        raise TunerError(f"--out: {folder} can't be written to ({reason(error)}). Choose another folder.") from None


def show_event(event: dict) -> None:
    """Show how far an experiment is, in one line that each event overwrites."""
    state = STATES.get(event["event"])
    if event["event"] == "step":
        state = f"step {event['step']}, {event['seconds']:.0f} s"
    if state:
        end = "\n" if event["event"] in ("finished", "failed") else ""
        print(f"\r{event['label']}: {state:40}", end=end, file=sys.stderr)  # which a "\r" flushes


def comparison(found: "Results") -> "Table":
    """The candidates by rank, then what needs no training. A star marks what no other is as good and as cheap as."""
    from rich.markup import escape  # a label may contain square brackets
    from rich.table import Table

    metric = METRICS[found.metric] if found.metric else None
    title = f"{metric.title} on held-out rows (95% interval; {metric.direction})" if metric else "Held-out loss"
    table = Table(title=title, caption="* none is as good for fewer seconds, or with fewer parameters")
    has_seeds, has_choice = (any(line.get(key) is not None for line in found.lines) for key in ("spread", "choosing"))
    columns = ["", "", "score", *["spread of seeds"] * has_seeds, *["when chosen"] * has_choice, "held-out loss"]
    for number, column in enumerate([*columns, "trained parameters", "adapter", "steps", "seconds"]):
        table.add_column(column, justify="left" if number == 1 else "right")
    for line in found.lines:
        name = escape(line["label"])
        if "rank" not in line:
            table.add_row("", name, line["status"])
            continue
        stars = {cost: "*" if cost in line["fronts"] else " " for cost in ("seconds", "trainable_parameters")}
        table.add_row(
            f"{line['rank']}",
            name,
            _score(line),
            *[_figure(line["spread"])] * has_seeds,
            *[_figure(line.get("choosing"))] * has_choice,
            _figure(line["loss"]),
            f"{line['trainable_parameters']:,}{stars['trainable_parameters']}",
            f"{line['adapter_bytes'] / 2**20:.2f} MB",
            "" if line["steps"] is None else f"{line['steps']:,.0f}",
            f"{line['seconds']:.1f}{stars['seconds']}",
        )
    for rival in found.rivals:
        table.add_row("", escape(rival["label"]), _score(rival))
    return table


def differences(found: "Beside") -> "Table":
    """The settings in which runs differ."""
    from rich.markup import escape
    from rich.table import Table

    labels = list(found.curves)
    table = Table("setting", *map(escape, labels), title="Settings that differ")
    for setting, values in found.settings.items():
        table.add_row(setting, *(escape(f"{values[label]}") for label in labels))
    return table


def _score(line: dict) -> str:
    if line["score"] is None:
        return "not measured"
    bounds = "no interval" if line["low"] is None else f"{line['low']:.2f} to {line['high']:.2f}"
    return f"{line['score']:.3f} ({bounds})"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
