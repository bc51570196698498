"""ROUGE of summaries by the base model, with examples in its prompt, after LoRA and after full fine-tuning.

Each figure is by Tuner and by rouge_score, on rows of one's own.

python benchmarks/rouge.py dialogsum.dev.jsonl [--steps 200] [--rows 100]

DialogSum's rows (https://github.com/cylnlp/dialogsum) may not be passed on with this code; any file of dialogues and
summaries will do. The base is the shipped T5 of 2.4 million parameters.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rouge_score.rouge_scorer import RougeScorer

import tuner
from tuner.evaluation.advice import pair_of
from tuner.evaluation.figures import shown_gain
from tuner.evaluation.score import VARIANTS
from tuner.evaluation.verdict import judge
from tuner.recipe import Method

KINDS = ["rougeL", "rouge1", "rouge2", "rougeLsum"]
METHODS = {"lora": 3e-3, "full": 5e-4}  # and their learning rates


Table = dict[str, list[tuple[float, float]]]


def figures(rows: str, method: str, steps: int, heldout: int, folder: Path) -> tuple[Table, dict]:
    """For each variant Tuner's score and rouge_score's mean of each kind; and all scores."""
    settings = {
        "model.name": "tiny-summarizer",
        "model.quantization": "none",
        "data.source": rows,
        "data.heldout": heldout,
        "training.learning_rate": METHODS[method],
        "budget.steps": steps,
        "evaluation.rows": heldout,
        "evaluation.metrics": KINDS,
    }
    recipe = tuner.Recipe.load("support").model_copy(update={"method": Method(name=method)}).with_settings(settings)
    run = tuner.prepare(recipe, path=folder / method)
    list(tuner.train(run))
    scores = run.read_json("evaluation.json")
    answered = [json.loads(line) for line in (run.path / "evaluation_rows.jsonl").read_text().splitlines()]
    scorer, table = RougeScorer(KINDS), {}
    for variant in [variant for variant in VARIANTS if variant in answered[0]]:
        each = [scorer.score(row["reference"], row[variant]) for row in answered]
        ours = {part["metric"]: part[variant] for part in (scores, *scores["other_metrics"])}
        theirs = {kind: sum(row[kind].fmeasure for row in each) / len(each) for kind in KINDS}
        table[variant] = [(ours[kind][kind], theirs[kind]) for kind in KINDS]
    return table, scores


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=100)
    options = parser.parse_args()
    print("|  |", " | ".join(KINDS), "| rougeL over the base |\n|" + "---|" * (len(KINDS) + 2))
    with tempfile.TemporaryDirectory() as folder:
        for method in METHODS:
            table, scores = figures(str(options.file.resolve()), method, options.steps, options.rows, Path(folder))
            for variant in table if method == "lora" else ["adapter"]:
                cells = [f"{ours:.4f} ({theirs:.4f})" for ours, theirs in table[variant]]
                gain = shown_gain(scores, pair_of(scores, variant, "base"), 3) if variant != "base" else ""
                name = method if variant == "adapter" else variant
                print(f"| {name} |", " | ".join([*cells, gain]), "|", flush=True)
            print(f"\n{method}: {judge(scores).headline} {judge(scores).text()}\n", file=sys.stderr)


if __name__ == "__main__":
    main()
