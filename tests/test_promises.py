"""What is promised of a repeated run: bit for bit on one CPU, which the tests of training show, and nowhere else."""

import re

import pytest
from conftest import ROOT

from tuner.hub.card import card

PROMISE = re.compile(r"bit[ -]for[ -]bit|bit-identical|bitwise", re.IGNORECASE)
READ = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
READ += [*(ROOT / "tuner").rglob("*.py"), *(ROOT / "examples").glob("*.md")]


def test_readme_and_card_say_where_a_run_repeats_bit_for_bit(finished):
    said = (
        "Bit for bit holds on one CPU with the same number of threads and the same library versions; on a GPU the "
        "rows, learning rates and random numbers are the same, but GPU kernels are not deterministic, and how far "
        "apart two runs end is not measured."
    )
    assert said in " ".join((ROOT / "README.md").read_text().split())
    assert (
        "The same steps with the same seed give the same adapter bit for bit on one CPU, with the same number of "
        "threads and the same library versions. GPU kernels are not deterministic; how far apart two runs on a GPU "
        "end is not measured.\n"
    ) in card(finished)


@pytest.mark.parametrize("path", [path for path in READ if PROMISE.search(path.read_text())], ids=lambda p: p.name)
def test_nothing_promises_bit_for_bit_without_naming_the_cpu(path):
    paragraphs = re.split(r"\n\s*\n|\n- ", path.read_text())
    for i, paragraph in enumerate(paragraphs):
        if PROMISE.search(paragraph):
            assert re.search(r"\bCPU\b|\bdevices\b", " ".join(paragraphs[i : i + 2])), paragraph
