"""The `tuner` command, also `python -m tuner`: from a recipe to an adapter on the Hub, in a terminal.

Exit status: 0 on success; 2 if the request can't work, with every problem in plain words; 130 when interrupted.
"""

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tuner import cli_compare, cli_home, terminal
from tuner.errors import TunerError
from tuner.metrics import METRICS
from tuner.training.launch import ensure_one_process

if TYPE_CHECKING:
    from tuner.inference.generate import Loaded
    from tuner.recipe import Recipe
    from tuner.runs import Run

Options = argparse.Namespace
RECIPE = ("recipe", "a YAML file, a file of rows, or the name of a shipped recipe such as corporate")
RUN = cli_home.RUN


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    terminal.silence_libraries()
    try:
        options.run_command(options)
    except TunerError as error:
        if options.json:
            print(json.dumps({"event": "error", "problems": list(error.problems)}))
        for problem in error.problems:
            print(f"tuner: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if not (problem := terminal.disk_problem(error)):
            raise
        print(f"tuner: {problem}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tuner", description="Fine-tune a language model and see whether it helped.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable, help: str, *positional: tuple[str, str]) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        for argument, meaning in positional:
            sub.add_argument(argument, help=meaning)
        sub.add_argument("--json", action="store_true", help="print JSON, for programs")
        sub.set_defaults(run_command=run)
        return sub

    check = command("check", _check, "Show what training a recipe would do, or all its problems.", RECIPE)
    a_recipe_or_run = ("recipe", f"{RECIPE[1]}; or a run's folder, to resume it")
    train_help = "Train a recipe, or resume a run. Ctrl-C stops it and keeps what it has learned."
    train = command("train", _train, train_help, a_recipe_or_run)
    train.add_argument("--out", type=Path, metavar="RUN", help="the run's folder; a run that is there is resumed")
    command("evaluate", _evaluate, "Score base model and adapter on the held-out rows.", RUN)
    _add_chat(command("chat", _chat, "Chat with base model, adapter and merged model side by side.", RUN))
    merge = command("merge", _merge, "Merge the adapter into the 16-bit base model, and check the result.", RUN)
    merge.add_argument("others", nargs="*", metavar="RUN", help="more runs on the same base, for a weighted merge")
    merge.add_argument("--weights", help="a weight for each run, such as 0.7,0.3; equal weights by default")
    merge.add_argument("--out", type=Path, metavar="FOLDER", help="the folder for a weighted merge")
    cli_home.add_commands(command)
    command("runs", _runs, "List the runs.")
    command("methods", _methods, "List the methods and what they can do.")
    compare = command("compare", _compare, cli_compare.HELP)
    cli_compare.add_arguments(compare)
    for sub in (check, train, compare):
        sub.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="a setting, such as budget.steps=100; repeatable",
        )
    return parser


def _add_chat(chat: argparse.ArgumentParser) -> None:
    chat.add_argument("others", nargs="*", metavar="RUN", help="more runs on the same base model, to compare")
    chat.add_argument("--prompt", help="one message instead of a conversation")
    chat.add_argument("--system", help="a system prompt")
    chat.add_argument("--temperature", type=float, default=0.0, help="0, the default: always the likeliest token")
    chat.add_argument("--top-p", type=float, default=1.0, help="sample from the likeliest tokens with this total")
    chat.add_argument("--max-new-tokens", type=int, default=96, help="longest answer in tokens, 96 by default")
    chat.add_argument("--seed", type=int, default=0, help="the same seed gives the same answer")


def _recipe(options: Options) -> "Recipe":
    """The recipe with what --set changes in it."""
    import yaml

    from tuner.recipe import Recipe

    settings = {}
    for pair in options.set:
        key, equals, value = pair.partition("=")
        if not equals:
            raise TunerError(f"--set {pair}: '=' is missing. Give a setting and its value, such as budget.steps=100.")
        try:
            settings[key] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError):  # such as a date with a thirteenth month
            raise TunerError(f"--set {pair}: the value is not valid YAML. Check its brackets and quotes.") from None
    return Recipe.load(options.recipe).with_settings(settings)


def _base(recipe_path: str) -> Path:
    from tuner.recipe import find

    return find(recipe_path).parent


def _check(options: Options) -> None:
    from tuner.planning import plan

    result = plan.check(_recipe(options), base=_base(options.recipe)).plan
    print(json.dumps(result) if options.json else terminal.plan_text(result))


def _open_or_prepare(options: Options) -> "Run":
    from tuner import runs
    from tuner.planning import plan

    if os.path.isfile(Path(options.recipe) / "recipe.yaml"):
        if not options.set and not options.out:
            return runs.Run(Path(options.recipe))
        _refuse_settings_of_a_run(options.recipe)
    recipe = _recipe(options)
    if options.out and os.path.isfile(options.out / "recipe.yaml"):  # False where the folder can't be read
        run = runs.Run(options.out)
        if run.recipe != recipe:
            raise TunerError(
                f"{options.out} holds a run of a different recipe. Choose another folder, or delete that run."
            )
        with suppress(TunerError):  # a plan that is missing or damaged is made again
            if run.plan["settings"]:
                return run
    return plan.prepare(recipe, base=_base(options.recipe), path=options.out)


def _refuse_settings_of_a_run(folder: str) -> None:
    from tuner.recipe import find

    try:
        find(folder)  # a shipped recipe may have the run's name
    except TunerError:
        raise TunerError(
            f"{folder} is a run: it resumes with its own settings in its own folder. --set and --out can't be used: "
            f"leave them out, or train a new run of its recipe, {Path(folder) / 'recipe.yaml'}."
        ) from None


def _train(options: Options) -> None:
    ensure_one_process()
    from tuner.run_files import check_trained_here

    run = _open_or_prepare(options)
    check_trained_here(run.plan)
    from tuner.training.window import train

    gc.freeze()  # or the garbage collections of a training would look through all that was imported
    if not options.json:
        print(f"run {run.path}\n{terminal.plan_text(run.plan)}")
    show = (lambda event: print(json.dumps(event), flush=True)) if options.json else terminal.Progress()
    events = train(run)
    try:
        for event in events:
            if event["event"] != "heartbeat":
                show(event)
    except KeyboardInterrupt:
        print(f"\ntuner: stopped. To resume: tuner train {run.path}", file=sys.stderr)
        raise
    finally:
        events.close()
    if not options.json:
        print(terminal.verdict(run.read_json("evaluation.json")))


def _evaluate(options: Options) -> None:
    from tuner import runs
    from tuner.evaluation.verdict import needs_scoring

    run = runs.open_run(options.run)
    if needs_scoring(run.read_json("evaluation.json")):
        from tuner.evaluation.answers import evaluate
        from tuner.training.tracking import tracked

        show = (lambda event: None) if options.json else terminal.Progress()
        # The end of its training would make these scores out of date.
        with run.training(), tracked(run, show) as put:
            for event in evaluate(run):
                put(event)
    scores = run.read_json("evaluation.json")
    print(json.dumps(scores) if options.json else terminal.verdict(scores))


def _chat(options: Options) -> None:
    with cli_home.opened([options.run, *options.others]) as runs:
        _chat_with(options, runs)


def _chat_with(options: Options, opened: list["Run"]) -> None:
    from tuner.inference import merge
    from tuner.inference.variants import load_variants

    if not options.json:
        print("Loading and merging...", file=sys.stderr)
    adapters, merged, check = dict(zip(_names(opened), opened)), {}, None
    if len(opened) == 1:
        adapters = {"adapter": opened[0]}
        # The 16-bit weights of a base that was published quantized are not downloaded for a mere answer.
        if merge.is_mergeable(opened[0]) and (opened[0].merged.is_dir() or "origin" not in opened[0].plan):
            check = merge.merge(opened[0])
            merged = {"merged": opened[0].merged}
    _converse(options, load_variants(adapters, merged), check)


def _names(opened: list["Run"]) -> list[str]:
    """A name for each run beside "base": its id, or its path if the ids don't tell them apart."""
    ids = [run.id for run in opened]
    return ids if len({"base", *ids}) > len(ids) else [str(run.path.resolve()) for run in opened]


def _converse(options: Options, loaded: "Loaded", check: dict | None) -> None:
    from tuner.inference import generate

    system = [{"role": "system", "content": options.system}] if options.system else []
    sampling = generate.Sampling(options.temperature, options.top_p, options.max_new_tokens, options.seed)
    conversations = {v: list(system) for v in loaded.variants}
    while True:
        prompt = options.prompt if options.prompt is not None else terminal.read_prompt()
        if not prompt:
            return
        for messages in conversations.values():
            messages.append({"role": "user", "content": prompt})
        stream = generate.stream(loaded, conversations, sampling)
        *_, answers = stream if options.json else terminal.shown(stream)
        for variant, messages in conversations.items():
            messages.append({"role": "assistant", "content": answers[variant]})
        if options.json:
            extra = {"merge_check": check} if check else {}
            print(json.dumps({"prompt": prompt, **answers, **extra}), flush=True)
        if options.prompt is not None:
            return


def _merge(options: Options) -> None:
    from tuner import runs
    from tuner.inference import merge

    run = runs.open_run(options.run)
    if options.others:
        _merge_weighted(options, [run, *map(runs.open_run, options.others)])
        return
    check = merge.merge(run)
    if options.json:
        print(json.dumps({"merged": str(run.merged), **check}))
        return
    print(terminal.merge_check(run.merged, check))


def _merge_weighted(options: Options, opened: list["Run"]) -> None:
    from tuner.inference import merge

    if not options.out:
        raise TunerError("A weighted merge needs a folder to write to. Add --out FOLDER.")
    given = options.weights
    try:
        weights = [float(w) for w in given.split(",")] if given else [1 / len(opened)] * len(opened)
    except ValueError:
        raise TunerError(
            f"--weights {given}: these are not numbers. Separate them by commas, as in 0.7,0.3."
        ) from None
    if len(weights) != len(opened):
        raise TunerError(f"--weights {given}: got {len(weights)} for {len(opened)} runs. Give one weight per run.")
    merge.merge_weighted(dict(zip(opened, weights)), options.out)
    shares = dict(zip(_names(opened), weights))
    print(json.dumps({"merged": str(options.out), "shares": shares}) if options.json else options.out)


def _runs(options: Options) -> None:
    from tuner import runs

    rows = [_summary(run) for run in runs.list_runs()]
    print(json.dumps({"runs": rows}) if options.json else terminal.runs_text(rows))


def _summary(run: "Run") -> dict:
    """A run as `tuner runs` lists it; metric and scores are None if it has not been scored, or is damaged."""
    row = dict.fromkeys(("id", "status", "model", "data", "method", "metric", "scores")) | {"id": run.id}
    if problems := run.damage:
        return row | {"status": "damaged", "problems": problems}
    scores, recipe = run.read_json("evaluation.json"), run.recipe
    metric = scores.get("metric", "rougeL") if scores and scores["gain"] else None
    metric = metric if metric in METRICS else None
    return row | {
        "status": run.status,
        "model": recipe.model.name,
        "data": recipe.data.title,
        "method": recipe.method.name,
        "metric": metric,
        "scores": metric and {v: scores[v][metric] for v in ("base", "adapter")},
        "problems": problems,
    }


def _methods(options: Options) -> None:
    from tuner.methods.registry import METHODS
    from tuner.methods.spec import facts

    if options.json:
        print(json.dumps({"methods": [facts(row) for row in METHODS.values()]}))
        return
    terminal.print_table(terminal.methods())


def _compare(options: Options) -> None:
    cli_compare.compare(options, lambda: (_recipe(options), _base(options.recipe)))
