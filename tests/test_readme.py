"""Every command and code block of the README works as described."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fresh
import pytest
import yaml
from conftest import ROOT
from huggingface_hub import SpaceHardware
from served import serve

from tuner.recipe import Recipe

TEXT = (ROOT / "README.md").read_text()
FRONT = yaml.safe_load(TEXT.split("---")[1])


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


def commands() -> list[str]:
    """The README's commands, without their comments."""
    return [line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder in which the commands run one after the other."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def shell(command: str, folder: Path, **env: str) -> subprocess.CompletedProcess:
    """The command in a shell, as a reader types it."""
    path = f"{sys.prefix}/bin:{os.environ['PATH']}"
    env = os.environ | env | {"PATH": path, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, shell=True, cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.long
def test_the_commands_work_one_after_the_other(folder, hub):
    tuner_commands = [command for command in commands() if command.startswith("tuner ")]
    assert len(tuner_commands) == 17
    env = hub.env(folder / "home") | {"HF_TOKEN": hub.user("reader")}
    for command in [command.replace("YOUR-NAME", "reader") for command in tuner_commands]:
        result = fresh.run(["-m", *shlex.split(command)], folder, env=env)
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip()
        assert "Traceback" not in result.stderr
    assert "README.md" in hub.repo("reader/my-first-adapter").files
    # The base model can't do the shipped task; this run teaches it.
    scores = json.loads((folder / "my-run/evaluation.json").read_text())
    assert scores["base"]["rougeL"] <= 0.4
    assert scores["adapter"]["rougeL"] >= 0.8
    assert json.loads((folder / "my-run/merge_check.json").read_text())["top1_agreement"] >= 0.99


def test_the_make_targets_exist(folder):
    for command in [c for c in commands() if c.startswith("make")]:
        assert shell(f"{command} -n -C {ROOT}", folder).returncode == 0


def test_the_front_matter_is_a_valid_spaces():
    assert FRONT["sdk"] == "gradio"
    assert FRONT["license"] == "apache-2.0"
    assert (ROOT / FRONT["app_file"]).is_file()
    assert FRONT["suggested_hardware"] in {hardware.value for hardware in SpaceHardware}
    assert len(FRONT["short_description"]) <= 60
    assert FRONT["hf_oauth"] is True
    assert set(FRONT["colorFrom"].split() + FRONT["colorTo"].split()) <= {
        *("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
    }


def test_the_yaml_is_a_recipe():
    (text,) = blocks("yaml")
    assert Recipe.from_yaml(text).data.columns == {"prompt": "question", "completion": "reply"}


@pytest.mark.long
def test_the_library_works_as_shown(folder):
    result = fresh.run(["-c", blocks("python")[0]], folder)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 22
    assert "'low'" in lines[-2]
    assert {"base", "adapter", "merged"} <= ast.literal_eval(lines[-1]).keys()


def test_the_endpoints_answer_as_shown(folder):
    with serve(folder / "runs") as url:
        result = fresh.run(["-c", blocks("python")[1].replace("http://127.0.0.1:7860", url)], folder)
    assert result.returncode == 0, result.stderr
    assert "/train" in result.stdout


def test_pictures_and_links_are_there():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_the_tree_is_the_real_one():
    """Every module stands under its package, and nothing else does."""
    named, package = set(), ""
    for line in TEXT[TEXT.index("    app.py ") :].split("\n\n")[0].splitlines():
        depth = len(line) - len(line.lstrip()) - 4
        if depth <= 2:
            head = line.split()[0]
            package = {0: "", 2: "tuner/" if head.endswith(".py") else f"tuner/{head}"}[depth]
        named |= {f"{package}{name}" for name in re.findall(r"\w+\.py\b", line)}
        if depth == 0 and line.strip() != "tuner/":
            assert (ROOT / line.split()[0]).exists()
    modules = {str(f.relative_to(ROOT)) for f in (ROOT / "tuner").rglob("*.py") if not f.stem.startswith("__")}
    assert named == modules | {"app.py"}
