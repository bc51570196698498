"""The guide to extending Tuner, walked: its blocks go into a copy of the tree, and its commands are run there."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

GUIDE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (An? .*?)\n(.*?)(?=^## |\Z)", GUIDE, re.M | re.S))
# "In `FILE`, at the end of `TABLE`:" and the like, or "A new file, `FILE`:", then the block.
WHERE = "at the end of|after|before|in place of|at its end"
PLACE = rf"(?:In|A new file,) `([^`]+)`(?:, ({WHERE})(?: `([^`]+)`)?)?"
BLOCK = re.compile(rf"{PLACE}:\n\n```(?:python|text)\n(.*?)```", re.S)


def insert(text: str, where: str, anchor: str, block: str) -> str:
    """The text with the block at the end, in the table `anchor`, or at the one line that reads `anchor`."""
    lines = text.splitlines(keepends=True)
    if where == "at its end":
        return text + block
    if where == "at the end of":
        tables = [n for n in ast.parse(text).body if isinstance(n, (ast.Assign, ast.AnnAssign))]
        (table,) = [n for n in tables if ast.unparse(n).partition(" = ")[0].partition(":")[0] == anchor]
        first = table.end_lineno
        while not lines[first - 2].strip().endswith("),"):  # the table's last row
            first -= 1
        return "".join([*lines[: first - 1], block, *lines[first - 1 :]])
    (number,) = [n for n, line in enumerate(lines) if line.strip() == anchor]
    before, after = {"before": (0, 0), "after": (1, 1), "in place of": (0, 1)}[where]
    return "".join([*lines[: number + before], block, *lines[number + after :]])


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of what is needed to run: the package, the page, the examples."""
    copy = tmp_path_factory.mktemp("extended")
    for name in ("tuner", "examples", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("app.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def extend(tree: Path, text: str) -> list[Path]:
    """Do what the section says; returns the files that it touched."""
    touched = []
    for name, where, anchor, block in BLOCK.findall(text):
        file = tree / name
        if where:
            file.write_text(insert(file.read_text(), where, anchor, block))
        else:
            assert not file.exists(), name
            file.write_text(block)
        touched.append(file)
    return list(dict.fromkeys(touched))


def run(command: list[str] | str, cwd: Path, tree: Path) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": str(tree), "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
    return subprocess.run(command, shell=isinstance(command, str), cwd=cwd, env=env, capture_output=True, text=True)


@pytest.mark.long
@pytest.mark.parametrize("title", SECTIONS)
def test_a_section_says_what_to_do(tree, tmp_path, title):
    text = SECTIONS[title]
    touched = extend(tree, text)
    (promised,) = re.findall(r"^\*\*(\d+) files?", text, re.M)
    assert len(touched) == int(promised)
    modules = " ".join(str(file) for file in touched if file.suffix == ".py")
    for check in ("check", "format --check"):
        linted = run(f"ruff {check} --config {ROOT}/pyproject.toml {modules}", tree, tree)
        assert linted.returncode == 0, linted.stdout
    (commands,) = re.findall(r"```bash\n(.*?)```", text, re.S)
    (printed,) = re.findall(r"prints? (?:a line with )?`([^`]+)`", text)
    done = run("set -e\n" + commands, tmp_path, tree)
    assert done.returncode == 0, done.stdout + done.stderr
    assert printed in done.stdout
    assert "Traceback" not in done.stderr


def test_every_kind_of_extension_has_its_section():
    kinds = ("method", "format", "metric", "task", "tab", "endpoint")
    assert all(any(kind in title for title in SECTIONS) for kind in kinds)
