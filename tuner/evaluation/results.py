"""What a run keeps of its answers: evaluation.json with scores and costs, evaluation_rows.jsonl with every row."""

import json
from itertools import islice

from pydantic import TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from tuner.data.chat import without_thought
from tuner.errors import TunerError
from tuner.evaluation.score import VARIANTS, Losses, score
from tuner.metrics import Metric
from tuner.planning.answering import answer_limit
from tuner.run_files import MOST_BYTES, damage_of, read_text
from tuner.runs import Run

ROWS = "evaluation_rows.jsonl"
SHOWN = 8  # rows kept with their answers for the page and the card
MOST_ROWS = 2000  # as many as a recipe may ask for
COSTS = ("prompt_tokens", "answer_tokens", "seconds")


class Row(TypedDict):
    """A scored row: what was asked, what is right, and the adapter's answer; more is read as far as it is there."""

    prompt: str
    reference: str
    references: NotRequired[list[str]]
    adapter: str


ROW = TypeAdapter(Row)


def scores_of(metrics: list[Metric], rows: list[dict], answers: list[dict], losses: Losses) -> tuple[dict, list[dict]]:
    """The scores of the answers to `rows`, and each row with its answers and its scores by every metric."""
    # Thoughts are no part of an answer, and rows that were prepared earlier may have them in their references.
    final = [{v: without_thought(answer[v]) for v in VARIANTS if v in answer} for answer in answers]
    right = [[*map(without_thought, row.get("references", ()))] or without_thought(row["reference"]) for row in rows]
    scores = score(metrics, right, final, losses)
    # In runs of earlier versions, a conversation whose answers are learned from one by one has a loss for each.
    each = {name: values for name, values in scores.pop("each").items() if len(values["adapter"]) == len(rows)}
    answered = []
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        entry = {"prompt": row["messages"][-1]["content"], "reference": row["reference"]}
        entry |= {"references": row["references"]} if "references" in row else {}
        entry |= {variant: answer[variant] for variant in VARIANTS if variant in answer}
        for metric, values in each.items():
            entry |= {f"{variant}_{metric}": values[variant][number] for variant in values}
        answered.append(entry)
    others = ("references", *(f"_{metric}" for metric in each.keys() - {scores["metric"]}))
    scores["examples"] = [
        {key: value for key, value in entry.items() if not key.endswith(others)} for entry in answered[:SHOWN]
    ]
    return scores, answered


def write_rows(run: Run, answered: list[dict]) -> None:
    """Write every scored row with its answers into the run, one to a line."""
    run.write_text(ROWS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in answered))


def read_rows(run: Run) -> list[dict] | None:
    """The scored rows, each with all that its line has; None if the run kept none, as in earlier versions.

    Raises TunerError if they are damaged or too large.
    """
    path = run.path / ROWS
    try:
        if path.stat().st_size > MOST_BYTES:
            raise TunerError(
                f"The scored rows of run {run.id} have more than {MOST_BYTES >> 20} MB, too much to read."
            )
        rows = [json.loads(line) for line in islice(filter(None, read_text(path).split("\n")), MOST_ROWS)]
        for row in rows:
            ROW.validate_python(row)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, ValidationError) as error:
        how = damage_of(error)
        raise TunerError(f"Run {run.id}: its {ROWS} is {how}. Delete that file, then score the run again.") from None
    return rows


def costs_of(answers: list[dict]) -> dict[str, dict]:
    """By variant the mean tokens of a prompt and of an answer, and the mean seconds of an answer. Variants that answer
    in one batch share its seconds equally. Answers of earlier versions have none."""
    costs = {}
    for variant in VARIANTS:
        known = [answer["costs"][variant] for answer in answers if variant in answer.get("costs", {})]
        if known:
            costs[variant] = {name: round(sum(x) / len(known), 4) for name, x in zip(COSTS, zip(*known), strict=True)}
    return costs


def cut_of(run: Run, rows: list[dict], answers: list[dict]) -> dict:
    """How many answers reached the limit of tokens, and how many prompts were cut, now or when the run was prepared;
    nothing if none was."""
    limited = {
        variant: sum(variant in answer.get("cut", ()) for answer in answers)
        for variant in VARIANTS
        if any(variant in answer for answer in answers)
    }
    prompts = sum("lost" in answer or row.get("cut", False) for row, answer in zip(rows, answers, strict=True))
    if not prompts and not any(limited.values()):
        return {}
    return {"cut": {"max_new_tokens": answer_limit(run), "answers": limited, "prompts": prompts}}
