"""The README on a Space of one's own: the real `hf` client uploads what the app needs and nothing else."""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import fresh
import pytest
from conftest import ROOT
from test_readme import blocks, shell

NEEDED = ("app.py", "LICENSE", "README.md", "requirements.txt", "pre-requirements.txt", "tuner/", "examples/")
JUNK = (
    *(
        "runs/abc/recipe.yaml",
        "runs/abc/adapter/adapter_model.safetensors",
        ".venv/lib/secret.py",
        ".env",
        "notes.log",
    ),
    *("tuner/__pycache__/cli.cpython-312.pyc", "tuner/ui/__pycache__/page.cpython-312.pyc", "my-model/config.json"),
    *("examples/__pycache__/words.cpython-312.pyc", "examples/finished/lock", "examples/finished/lock.look"),
    *(".venv/lib/site-packages/x/requirements.txt", ".venv/lib/site-packages/tuner/cli.py", ".venv/examples/x.jsonl"),
)


def hf_commands(first: str) -> list[str]:
    """The README's commands of the `hf` client in the block that begins with `first`, on one line each."""
    (block,) = [block for block in blocks("bash") if block.startswith(first)]
    return [line.removeprefix(".venv/bin/") for line in block.replace("\\\n", "").splitlines()]


@pytest.fixture
def checkout(tmp_path) -> Path:
    """All that git tracks, in a folder where a page has run and a model has been trained."""
    folder = tmp_path / "checkout"
    for name in filter(None, shell("git ls-files -z", ROOT).stdout.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    for name in JUNK:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("not to be uploaded")
    return folder


def run(command: str, folder: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess:
    """The command as the reader "reader" types it."""
    return shell(command.replace("YOUR-NAME", "reader"), folder, **env)


def test_the_upload_holds_what_the_app_needs_and_nothing_else_and_starts(checkout, tmp_path, hub):
    tracked = {name for name in shell("git ls-files -z", ROOT).stdout.split("\0") if name.startswith(NEEDED)}
    (command,) = hf_commands(".venv/bin/hf upload")
    result = run(command, checkout, hub.env(tmp_path / "home") | {"HF_TOKEN": hub.user("reader")})
    assert result.returncode == 0, result.stderr
    files = hub.repo("reader/tuner", "spaces").files
    assert files.keys() == tracked | {".gitattributes"}  # which the Hub adds

    space = tmp_path / "space"
    for name, content in files.items():
        (space / name).parent.mkdir(parents=True, exist_ok=True)
        (space / name).write_bytes(content)
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "TUNER_RUNS")}
    code = "import app, tuner; print(app.page.build().title, tuner.__file__)"
    started = subprocess.run([fresh.PYTHON, "-c", code], cwd=space, env=env, capture_output=True, text=True)
    assert started.returncode == 0, started.stderr
    assert started.stdout.split() == ["Tuner", str(space / "tuner/__init__.py")]
    assert (space / "runs/example/recipe.yaml").is_file()


def test_the_lines_for_a_bucket_create_it_and_mount_it_where_the_runs_are_to_be(tmp_path, hub):
    env = hub.env(tmp_path / "home") | {"HF_TOKEN": hub.user("reader")}
    for command in hf_commands("hf buckets create"):
        run(command, tmp_path, env)  # the double knows no buckets; what is asked of it is what counts
    asked = [(seen.method, seen.path) for seen in hub.seen]
    assert ("POST", "/api/buckets/reader/tuner-runs") in asked
    assert ("PUT", "/api/spaces/reader/tuner/volumes") in asked
    mounted = re.search(r"tuner-runs:(\S+)", (ROOT / "README.md").read_text())[1]
    assert f"`{mounted}/runs`" in (ROOT / "README.md").read_text()
