"""What a person sees in a terminal: plans, progress, verdicts and tables."""

import sys

from tuner.evaluation.metrics import METRICS
from tuner.evaluation.verdict import judge, other_scores
from tuner.tasks import TASKS

WIDTH = 119  # columns of a table where the terminal tells none


def plan_text(plan: dict) -> str:
    """What a recipe comes to."""
    from tuner.planning import forecast

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


class Progress:
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


def verdict(scores: dict | None) -> str:
    """Did it help, in a sentence or two."""
    if not scores:
        return "Not scored: the run was stopped before its end. `evaluate` scores what it learned."
    judged = judge(scores)
    others = [
        f"{title}: base {base}, adapter {adapter}, gain {gain}" for title, base, adapter, gain in other_scores(scores)
    ]
    return "\n".join([f"{judged.headline} {judged.text()}", *others])


def shown(stream):
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


def methods():
    """All methods, by kind."""
    from rich.table import Table

    from tuner.methods.registry import METHODS

    table = Table("name", "method", "what it trains", "on 4 bits", "merges", "tasks")
    before = None
    for row in sorted(METHODS.values(), key=lambda row: row.more):
        group = "more" if row.more else row.kind
        if group != before:
            table.add_section()
            table.add_row(f"[bold]{group}")
        before = group
        tasks = "all" if len(row.tasks) == len(TASKS) else ", ".join(row.tasks)
        facts = ["yes" if fact else "no" for fact in ("nf4" in row.quantizations, row.mergeable)]
        table.add_row(row.name, row.title, row.trains, *facts, tasks)
    return table


def comparison(rows: list[dict]):
    """A comparison's rows, best first."""
    from rich.table import Table

    metric = METRICS[rows[0]["metric"]].title
    drawn = Table(title=f"{metric} on held-out rows (95% interval); the base alone: {rows[0]['base'] or 0:.3f}")
    for column in ("method", metric, "held-out loss", "trained", "adapter", "steps", "seconds"):
        drawn.add_column(column, justify="left" if column == "method" else "right")
    for r in sorted(rows, key=lambda r: -(r["score"] or 0)):
        score = f"{r['score']:.3f} ({r['low']:.2f} to {r['high']:.2f})" if r["score"] is not None else "not measured"
        size = f"{r['adapter_bytes'] / 2**20:.2f} MB"
        sizes = f"{r['trainable_parameters']:,}", size, f"{r['steps']:,}", f"{r['seconds']:.1f}"
        drawn.add_row(r["title"], score, f"{r['loss']:.3f}", *sizes)
    return drawn


def print_table(table) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)


def say(event: dict) -> None:
    """Where a comparison stands, in one line that is written over."""
    done = event.get("seconds", 0.0) if event["event"] == "step" else None
    if done is not None or event["event"] in ("start", "evaluating"):
        what = f"{done:.0f} s, step {event['step']}" if done is not None else event["event"]
        print(
            f"\r{event['method']}: {what:40}", end="" if event["event"] != "row" else "\n", file=sys.stderr, flush=True
        )
