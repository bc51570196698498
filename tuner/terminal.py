"""What people see in a terminal: the plan, progress, the verdict and tables."""

import errno
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.evaluation.figures import HEADS, copied, table
from tuner.evaluation.verdict import judge, other_scores, rival
from tuner.inference.merge_check import in_float32, problem
from tuner.metrics import METRICS
from tuner.tasks import TASKS
from tuner.words import count, micro_batch

if TYPE_CHECKING:
    from rich.table import Table

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)  # a disk's errors, not ours
WIDTH = 119  # columns of a table if the output is not a terminal


def silence_libraries() -> None:
    """Hide the libraries' own progress bars and advice, and logged tracebacks; TUNER_DEBUG=1 shows them."""
    if os.environ.get("TUNER_DEBUG"):
        return
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Without any handler, Python prints what is logged; a run keeps its own tracebacks in error.log.
    logging.getLogger("tuner").addHandler(logging.NullHandler())


def disk_problem(error: OSError) -> str | None:
    """What is the matter with the disk, if that is why nothing could be written or read."""
    if error.errno not in DISK:
        return None
    where = f"{error.filename} can't be used" if error.filename else "A file can't be written"
    return f"{where}: {error.strerror.lower()}. What was saved before is kept."


def plan_text(plan: dict) -> str:
    """The plan in words: what training will do."""
    from tuner.planning import forecast

    budget = count(plan["seconds"] or 0, "second")
    if plan["steps"]:
        budget = f"{count(plan['steps'], 'step')} ({count(plan['epochs'], 'epoch')})"
    lines = [
        f"{count(plan['rows'], 'row')} to train on, {held_out(plan)}",
        f"{count(plan['tokens'], 'token')} per epoch, {plan['trained_tokens']:,} of them learned from",
        f"{count(plan['steps_per_epoch'], 'step')} per epoch; the budget is {budget}",
        f"{plan['trainable_parameters']:,} of {plan['model_parameters']:,} parameters are trained",
        *(forecast.sentences(plan["forecast"]) if "forecast" in plan else []),
        *(f"{c['setting']}: {c['value']} ({c['reason']})" for c in plan["chosen"]),
        *(f"Warning: {w}" for w in plan["warnings"]),
    ]
    return "\n".join(lines)


def held_out(plan: dict) -> str:
    """How many rows are held out, and how many of them are scored: 80 held out, 64 of them scored."""
    held, scored = plan["heldout_rows"], plan.get("scored_rows", plan["heldout_rows"])
    return f"{held:,} held out" + (f", {scored:,} of them scored" if scored < held else "")


class Progress:
    """Progress bars of training and of scoring, fed with a run's events."""

    def __init__(self):
        self.bar = self.scoring = self.heldout = None
        self.risen_since: int | None = None  # the step since which rows are learned by heart, as was said

    def __call__(self, event: dict) -> None:
        """Show one event."""
        from tqdm import tqdm

        kind = event["event"]
        if kind == "start":
            self.bar = tqdm(total=event["steps"], initial=event["step"], unit="step", disable=False)
        elif kind == "schedule":
            self.bar.total = event["steps"]
        elif kind == "micro_batch":
            tqdm.write(micro_batch(event), file=sys.stderr)
        elif kind == "untracked":
            tqdm.write(" ".join(event["problems"]), file=sys.stderr)
        elif kind == "heldout":
            self.heldout = event["loss"]
        elif kind == "overfitting":
            self._warn_of_overfitting(event)
        elif kind == "step":
            figures = {"loss": f"{event['loss']:.3f}", "tokens/s": f"{event['tokens_per_second']:.0f}"}
            if self.heldout is not None:
                figures["held-out"] = f"{self.heldout:.3f}"
            self.bar.set_postfix(figures, refresh=False)
            self.bar.update(event["step"] - self.bar.n)
        elif kind == "end":
            from tuner.training import ending

            self.bar.close()
            for sentence in ending.sentences(event):
                tqdm.write(sentence, file=sys.stderr)
        elif kind == "evaluating" and event["rows"] and self.scoring is None:
            rows = {"total": event["rows"], "initial": event["row"]}
            self.scoring = tqdm(**rows, unit="answer", desc="held-out rows", disable=False)
        elif kind == "answered":
            self.scoring.update(event["row"] - self.scoring.n)
        elif kind in ("evaluation", "unscored") and self.scoring is not None:
            self.scoring.close()

    def _warn_of_overfitting(self, event: dict) -> None:
        from tqdm import tqdm

        from tuner.training import ending

        if event["since"] != self.risen_since:  # or each further held-out loss would say it again
            self.risen_since = event["since"]
            tqdm.write(ending.by_heart(event), file=sys.stderr)


def verdict(scores: dict | None) -> str:
    """Did it help? A few sentences, the next step, all variants, and a line for each further metric."""
    if not scores:
        return "Not scored: the run stopped before its end. To score what it has learned so far, use `tuner evaluate`."
    judged, name = judge(scores), rival(scores).removesuffix(" model")
    others = [
        f"{title}: {name} {base}, adapter {adapter}, gain {gain}"
        for title, base, adapter, gain in other_scores(scores)
    ]
    step = [f"Next step: {judged.next_step}"] if judged.next_step else []
    sources = [copied(scores)] if copied(scores) else []
    return "\n".join([f"{judged.headline} {judged.text()}", *step, *_variants(scores), *sources, *others])


def _variants(scores: dict) -> list[str]:
    """The table of all variants, if the base model was also given examples."""
    rows = [HEADS, *rows] if (rows := table(scores, rival(scores))) else []
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def merge_check(folder: Path, check: dict) -> str:
    """Where the merged model is, and how far it agrees with the adapter."""
    if failure := problem(check):
        return f"{failure} The merged model is in {folder}."
    return (
        f"The merged model is in {folder}. On {check['tokens']} held-out tokens, its most likely token is "
        f"that of the adapter on the 16-bit base model for {check['top1_agreement']:.1%}, and that of the adapter on "
        f"the base model as trained for {check['top1_agreement_quantized']:.1%}. {in_float32(check)}"
    ).rstrip()


def runs_text(rows: list[dict]) -> str:
    """A line for each run, as `tuner runs --json` has them."""
    lines = []
    for row in rows:
        scores, facts = row["scores"], f"{row['method']} on {row['model']}, {row['data']}"
        score = f"  {METRICS[row['metric']].title} {scores['base']:.2f} -> {scores['adapter']:.2f}" if scores else ""
        lines.append(f"{row['id']}  {row['status']:11}  {' '.join(row['problems']) or facts + score}")
    return "\n".join(lines) or "No runs yet. Try: tuner train corporate"


def read_prompt() -> str:
    """The next message of a conversation; empty at its end."""
    try:
        return input("you> ").strip()
    except EOFError:
        return ""


def shown(stream: Iterator[dict[str, str]]) -> Iterator[dict[str, str]]:
    """The same answers, displayed as they grow, one line per variant."""
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text  # an answer may contain square brackets, which Rich would read as markup

    with Live(refresh_per_second=8) as live:
        for answers in stream:
            table = Table.grid(padding=(0, 2))
            for variant, text in answers.items():
                table.add_row(f"[bold]{variant}", Text(text))
            live.update(table)
            yield answers


def methods() -> "Table":
    """All methods, by kind."""
    from rich.table import Table

    from tuner.methods.registry import METHODS

    table = Table("name", "method", "what it trains", "on 4-bit", "merges", "tasks")
    last = None
    for row in METHODS.values():  # those of a kind stand together, and the further ones last
        kind = "more" if row.more else row.kind
        if kind != last:
            table.add_section()
            table.add_row(f"[bold]{kind}")
        last = kind
        tasks = "all" if len(row.tasks) == len(TASKS) else ", ".join(row.tasks)
        facts = ["yes" if fact else "no" for fact in ("nf4" in row.quantizations, row.mergeable)]
        table.add_row(row.name, row.title, row.trains, *facts, tasks)
    return table


def print_table(table: "Table") -> None:
    """Print a table, as wide as the terminal."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)
