"""`python -m tuner ...`: the whole way from a recipe to a pushed adapter, in a terminal.

Exit status 0 when it worked, 2 with every problem in plain words when the request can't work, 130 when interrupted.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from tuner import terminal
from tuner.errors import TunerError
from tuner.evaluation.metrics import METRICS, metric_of


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    _quiet()
    try:
        options.run_command(options)
    except TunerError as error:
        if options.json:
            print(json.dumps({"event": "error", "problems": list(error.problems)}))
        for problem in error.problems:
            print(f"tuner: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tuner: stopped. The same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tuner", description="Fine-tune a language model and see whether it helped."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run, help: str, *positional: tuple[str, str]) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        for argument, meaning in positional:
            sub.add_argument(argument, help=meaning)
        sub.add_argument("--json", action="store_true", help="print JSON for a program")
        sub.set_defaults(run_command=run)
        return sub

    a_recipe = ("recipe", "a YAML file, or a shipped recipe's name such as corporate")
    a_run = ("run", "a run's folder, or its id")
    for sub in (
        command(
            "check", _check, "Say what a recipe comes to, or all that is wrong with it; nothing is trained.", a_recipe
        ),
        command(
            "train",
            _train,
            "Train a recipe, or go on with a run. Ctrl-C stops it and keeps what was learned.",
            a_recipe,
        ),
    ):
        sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as budget.steps=100")
    sub.add_argument("--out", type=Path, metavar="RUN", help="the run's folder; if it is there, the run goes on")
    command("evaluate", _evaluate, "Score base and adapter on the held-out rows.", a_run)
    chat = command("chat", _chat, "Talk to base, adapters and merged model side by side.", a_run)
    chat.add_argument("others", nargs="*", metavar="RUN", help="further runs of the same base, a line each")
    chat.add_argument("--prompt", help="one message instead of a conversation")
    chat.add_argument("--system", help="a system prompt")
    chat.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token every time")
    chat.add_argument("--top-p", type=float, default=1.0)
    chat.add_argument("--max-new-tokens", type=int, default=96)
    chat.add_argument("--seed", type=int, default=0)
    merge = command("merge", _merge, "Merge the adapter into the 16-bit base, and check the result.", a_run)
    merge.add_argument("others", nargs="*", metavar="RUN", help="further runs of the same base, for a weighted sum")
    merge.add_argument("--weights", help="the share of each run, such as 0.7,0.3; equal ones if left out")
    merge.add_argument("--out", type=Path, help="the folder of a weighted sum")
    push = command(
        "push", _push, "Push the adapter with its card to the Hub.", a_run, ("repo", "owner/name, or a name")
    )
    push.add_argument("--public", action="store_true", help="let everybody see it; private otherwise")
    command("runs", _runs, "List the runs.")
    command("methods", _methods, "List the methods with their facts.")
    several = command(
        "compare", _compare, "Train several methods for the same seconds, and hold them against each other.", a_recipe
    )
    several.add_argument("--methods", required=True, help="their names, with commas between them")
    several.add_argument("--seconds", type=float, default=30, help="of training for each")
    several.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as evaluation.rows=20")
    return parser


def _quiet() -> None:
    """Libraries' progress bars and advice are not for whoever asked; set TUNER_DEBUG to see them."""
    if os.environ.get("TUNER_DEBUG"):
        return
    import logging
    import warnings

    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _recipe(options):
    import yaml

    from tuner.recipe import Recipe

    settings = {}
    for pair in options.set:
        key, equals, value = pair.partition("=")
        if not equals:
            raise TunerError(f"--set {pair}: give a setting and its value, such as --set budget.steps=100.")
        settings[key] = yaml.safe_load(value)
    return Recipe.load(options.recipe).with_settings(settings)


def _base(recipe_path: str) -> Path:
    from tuner.recipe import find

    return find(recipe_path).parent


def _check(options) -> None:
    from tuner.planning import plan

    result = plan.check(_recipe(options), base=_base(options.recipe)).plan
    print(json.dumps(result) if options.json else terminal.plan_text(result))


def _open_or_prepare(options):
    from tuner import runs
    from tuner.planning import plan

    if (Path(options.recipe) / "recipe.yaml").is_file() and not options.set and not options.out:
        return runs.Run(Path(options.recipe))
    recipe = _recipe(options)
    if options.out and (options.out / "recipe.yaml").is_file():
        run = runs.Run(options.out)
        if run.recipe != recipe:
            raise TunerError(
                f"{options.out} holds a run of another recipe. Choose another folder, or delete that one."
            )
        if run.plan:
            return run
    return plan.prepare(recipe, base=_base(options.recipe), path=options.out)


def _train(options) -> None:
    run = _open_or_prepare(options)
    from tuner.training.window import train

    if not options.json:
        print(f"run {run.path}\n{terminal.plan_text(run.plan)}")
    show = (lambda event: print(json.dumps(event), flush=True)) if options.json else terminal.Progress()
    events = train(run)
    try:
        for event in events:
            if event["event"] != "heartbeat":
                show(event)
    finally:
        events.close()
    if not options.json:
        print(terminal.verdict(run.read_json("evaluation.json")))


def _evaluate(options) -> None:
    from tuner import runs

    run = runs.open_run(options.run)
    scores = run.read_json("evaluation.json")
    if scores is None:
        from tuner.evaluation.answers import evaluate

        show = (lambda event: None) if options.json else terminal.Progress()
        for event in evaluate(run):
            show(event)
        scores = run.read_json("evaluation.json")
    print(json.dumps(scores) if options.json else terminal.verdict(scores))


def _chat(options) -> None:
    from tuner import runs
    from tuner.inference import generate, merge

    opened = [runs.open_run(name) for name in (options.run, *options.others)]
    if not options.json:
        print("Loading and merging...", file=sys.stderr)
    adapters, merged, check = {run.id: run for run in opened}, {}, None
    if len(opened) == 1:
        adapters = {"adapter": opened[0]}
        if merge.is_mergeable(opened[0]):
            check = merge.merge(opened[0])
            merged = {"merged": opened[0].merged}
    _converse(options, generate.attached(adapters, merged), check)


def _converse(options, loaded, check: dict | None) -> None:
    from tuner.inference import generate

    system = [{"role": "system", "content": options.system}] if options.system else []
    sampling = generate.Sampling(options.temperature, options.top_p, options.max_new_tokens, options.seed)
    conversations = {v: list(system) for v in loaded.variants}
    while True:
        prompt = options.prompt if options.prompt is not None else _ask()
        if not prompt:
            return
        for messages in conversations.values():
            messages.append({"role": "user", "content": prompt})
        stream = generate.stream(loaded, conversations, sampling)
        *_, answers = stream if options.json else terminal.shown(stream)
        for variant, messages in conversations.items():
            messages.append({"role": "assistant", "content": answers[variant]})
        if options.json:
            told = {"merge_check": check} if check else {}
            print(json.dumps({"prompt": prompt, **answers, **told}), flush=True)
        if options.prompt is not None:
            return


def _ask() -> str:
    try:
        return input("you> ").strip()
    except EOFError:
        return ""


def _merge(options) -> None:
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
    print(
        f"{run.merged}: on {check['tokens']} held-out tokens it agrees with the adapter on the 16-bit base in "
        f"{check['top1_agreement']:.1%}, with the adapter on the base as trained in "
        f"{check['top1_agreement_quantized']:.1%}."
    )


def _merge_weighted(options, opened: list) -> None:
    from tuner.inference import merge

    if not options.out:
        raise TunerError("Say where the sum is to lie: --out FOLDER.")
    try:
        shares = [float(w) for w in options.weights.split(",")] if options.weights else [1 / len(opened)] * len(opened)
    except ValueError:
        raise TunerError(
            f"--weights {options.weights}: give numbers with commas between them, such as 0.7,0.3."
        ) from None
    if len(shares) != len(opened):
        raise TunerError(f"--weights gives {len(shares)} shares for {len(opened)} runs. Give one a run.")
    merge.merge_weighted(dict(zip(opened, shares)), options.out)
    told = dict(zip((run.id for run in opened), shares))
    print(json.dumps({"merged": str(options.out), "shares": told}) if options.json else options.out)


def _push(options) -> None:
    from tuner import runs
    from tuner.hub import push

    run = runs.open_run(options.run)
    token = os.environ.get("HF_TOKEN") or _stored_token()
    url = push.push(run, options.repo, token=token, private=not options.public)
    print(json.dumps({"url": url}) if options.json else url)


def _stored_token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _runs(options) -> None:
    from tuner import runs

    rows = []
    for run in runs.list_runs():
        scores = run.read_json("evaluation.json")
        answered = scores and scores["gain"] and metric_of(scores).name
        rows.append(
            {
                "id": run.id,
                "status": run.status,
                "model": run.recipe.model.name,
                "data": run.recipe.data.source,
                "method": run.recipe.method.name,
                "metric": answered,
                "scores": answered and {v: scores[v][answered] for v in ("base", "adapter")},
            }
        )
    if options.json:
        print(json.dumps({"runs": rows}))
    elif not rows:
        print("No runs yet. Try: python -m tuner train corporate")
    for row in [] if options.json else rows:
        told = row["scores"]
        score = f"  {METRICS[row['metric']].title} {told['base']:.2f} -> {told['adapter']:.2f}" if told else ""
        print(f"{row['id']}  {row['status']:11}  {row['method']} on {row['model']}, {row['data']}{score}")


def _methods(options) -> None:
    from tuner.methods.registry import METHODS
    from tuner.methods.spec import facts

    if options.json:
        print(json.dumps({"methods": [facts(row) for row in METHODS.values()]}))
        return
    terminal.print_table(terminal.methods())


def _compare(options) -> None:
    from tuner.experiments import compare

    runs = compare.prepare(_recipe(options), options.methods.split(","), options.seconds, _base(options.recipe))
    rows = []
    for event in compare.compare(runs):
        if event["event"] == "row":
            rows.append({k: v for k, v in event.items() if k != "event"})
        if not options.json:
            terminal.say(event)
    if options.json:
        print(json.dumps({"rows": rows}))
        return
    terminal.print_table(terminal.comparison(rows))
