"""`python -m tuner ...`: the whole way from a recipe to a pushed adapter, in a terminal.

Exit status 0 when it worked, 2 with every problem in plain words when the request can't work, 130 when interrupted.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from tuner.errors import TunerError


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
    chat = command("chat", _chat, "Talk to base, adapter and merged model side by side.", a_run)
    chat.add_argument("--prompt", help="one message instead of a conversation")
    chat.add_argument("--system", help="a system prompt")
    chat.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token every time")
    chat.add_argument("--top-p", type=float, default=1.0)
    chat.add_argument("--max-new-tokens", type=int, default=96)
    chat.add_argument("--seed", type=int, default=0)
    command("merge", _merge, "Merge the adapter into the 16-bit base, and check the result.", a_run)
    push = command(
        "push", _push, "Push the adapter with its card to the Hub.", a_run, ("repo", "owner/name, or a name")
    )
    push.add_argument("--public", action="store_true", help="let everybody see it; private otherwise")
    command("runs", _runs, "List the runs.")
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
    from tuner import plan

    result = plan.check(_recipe(options), base=_base(options.recipe)).plan
    print(json.dumps(result) if options.json else _plan_text(result))


def _plan_text(plan: dict) -> str:
    from tuner import forecast

    budget = f"{plan['steps']} steps ({plan['epochs']} epochs)" if plan["steps"] else f"{plan['seconds']:g} seconds"
    lines = [
        f"{plan['rows']} rows to train on, {plan['heldout_rows']} held out",
        f"{plan['tokens']} tokens an epoch, {plan['trained_tokens']} of them trained",
        f"{plan['steps_per_epoch']} steps an epoch; the budget is {budget}",
        f"{plan['trainable_parameters']:,} of {plan['model_parameters']:,} parameters are trained",
        *(forecast.sentences(plan["forecast"]) if "forecast" in plan else []),
        *(f"{c['setting']}: {c['value']} ({c['reason']})" for c in plan["chosen"]),
        *(f"Warning: {w}" for w in plan["warnings"]),
    ]
    return "\n".join(lines)


def _open_or_prepare(options):
    from tuner import plan, runs

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
    from tuner.train import train

    if not options.json:
        print(f"run {run.path}\n{_plan_text(run.plan)}")
    show = (lambda event: print(json.dumps(event), flush=True)) if options.json else _Progress()
    events = train(run)
    try:
        for event in events:
            if event["event"] != "heartbeat":
                show(event)
    finally:
        events.close()
    if not options.json:
        print(_verdict(run.read_json("evaluation.json")))


class _Progress:
    """A bar for a person."""

    def __init__(self):
        self.bar, self.heldout = None, None

    def __call__(self, event: dict) -> None:
        from tqdm import tqdm

        kind = event["event"]
        if kind == "start":
            self.bar = tqdm(total=event["steps"], initial=event["step"], unit="step", disable=False)
        elif kind == "schedule":
            self.bar.total = event["steps"]
        elif kind == "heldout":
            self.heldout = event["loss"]
        elif kind == "step":
            parts = {"loss": f"{event['loss']:.3f}", "tokens/s": f"{event['tokens_per_second']:.0f}"}
            if self.heldout is not None:
                parts["held-out"] = f"{self.heldout:.3f}"
            self.bar.set_postfix(parts, refresh=False)
            self.bar.update(event["step"] - self.bar.n)
        elif kind == "evaluating":
            if event["row"] == 0:
                self.bar = tqdm(total=event["rows"], unit="answer", desc="held-out rows", disable=False)
            self.bar.update(event["row"] - self.bar.n)
        elif kind == "evaluation":
            self.bar.update(self.bar.total - self.bar.n)
            self.bar.close()
        elif kind == "end":
            self.bar.close()


def _verdict(scores: dict | None) -> str:
    if not scores:
        return "Not scored: the run was stopped before its end. `evaluate` scores what it learned."
    base, adapter, gain = scores["base"], scores["adapter"], scores["gain"]
    if gain is None:
        return f"Held-out loss: base {base['loss']:.3f}, adapter {adapter['loss']:.3f}."
    sure = "it helped" if gain["low"] > 0 else "it made things worse" if gain["high"] < 0 else "no clear difference"
    return (
        f"On {scores['rows']} held-out rows, ROUGE-L: base {base['rougeL']:.2f}, adapter {adapter['rougeL']:.2f}; "
        f"gain {gain['rougeL']:+.2f} (95% interval {gain['low']:+.2f} to {gain['high']:+.2f}): {sure}."
    )


def _evaluate(options) -> None:
    from tuner import runs

    run = runs.open_run(options.run)
    scores = run.read_json("evaluation.json")
    if scores is None:
        from tuner import evaluate

        show = (lambda event: None) if options.json else _Progress()
        for event in evaluate.evaluate(run):
            show(event)
        scores = run.read_json("evaluation.json")
    print(json.dumps(scores) if options.json else _verdict(scores))


def _chat(options) -> None:
    from tuner import export, generate, runs

    run = runs.open_run(options.run)
    if not options.json:
        print("Loading and merging...", file=sys.stderr)
    check = export.merge(run)
    with generate.attached(run) as loaded:
        _converse(options, loaded, check)


def _converse(options, loaded, check: dict) -> None:
    from tuner import generate

    system = [{"role": "system", "content": options.system}] if options.system else []
    sampling = generate.Sampling(options.temperature, options.top_p, options.max_new_tokens, options.seed)
    conversations = {v: list(system) for v in generate.VARIANTS}
    while True:
        prompt = options.prompt if options.prompt is not None else _ask()
        if not prompt:
            return
        for messages in conversations.values():
            messages.append({"role": "user", "content": prompt})
        stream = generate.stream(loaded, conversations, sampling)
        *_, answers = stream if options.json else _shown(stream)
        for variant, messages in conversations.items():
            messages.append({"role": "assistant", "content": answers[variant]})
        if options.json:
            print(json.dumps({"prompt": prompt, **answers, "merge_check": check}), flush=True)
        if options.prompt is not None:
            return


def _shown(stream):
    """The same answers, drawn as they grow, a line a variant."""
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text  # an answer may hold square brackets, which are markup elsewhere

    with Live(refresh_per_second=8) as live:
        for answers in stream:
            table = Table.grid(padding=(0, 2))
            for variant, text in answers.items():
                table.add_row(f"[bold]{variant}", Text(text))
            live.update(table)
            yield answers


def _ask() -> str:
    try:
        return input("you> ").strip()
    except EOFError:
        return ""


def _merge(options) -> None:
    from tuner import export, runs

    run = runs.open_run(options.run)
    check = export.merge(run)
    if options.json:
        print(json.dumps({"merged": str(run.merged), **check}))
        return
    print(
        f"{run.merged}: on {check['tokens']} held-out tokens it agrees with the adapter on the 16-bit base in "
        f"{check['top1_agreement']:.1%}, with the adapter on the base as trained in "
        f"{check['top1_agreement_quantized']:.1%}."
    )


def _push(options) -> None:
    from tuner import hub, runs

    run = runs.open_run(options.run)
    token = os.environ.get("HF_TOKEN") or _stored_token()
    url = hub.push(run, options.repo, token=token, private=not options.public)
    print(json.dumps({"url": url}) if options.json else url)


def _stored_token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _runs(options) -> None:
    from tuner import runs

    rows = []
    for run in runs.list_runs():
        scores = run.read_json("evaluation.json")
        answered = scores and scores["gain"]
        rows.append(
            {
                "id": run.id,
                "status": run.status,
                "model": run.recipe.model.name,
                "data": run.recipe.data.source,
                "method": run.recipe.method.name,
                "rougeL": answered and {"base": scores["base"]["rougeL"], "adapter": scores["adapter"]["rougeL"]},
            }
        )
    if options.json:
        print(json.dumps({"runs": rows}))
    elif not rows:
        print("No runs yet. Try: python -m tuner train corporate")
    for row in [] if options.json else rows:
        score = f"  ROUGE-L {row['rougeL']['base']:.2f} -> {row['rougeL']['adapter']:.2f}" if row["rougeL"] else ""
        print(f"{row['id']}  {row['status']:11}  {row['method']} on {row['model']}, {row['data']}{score}")
