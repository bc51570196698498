"""Good exports pass whatever the task, the precision and the way home: as files, and pushed with the real client."""

import json
import shutil
from pathlib import Path

import fresh
import pytest
from conftest import ROOT, small_recipe
from tiny import tiny_model

from tuner import runs
from tuner.hub.push import push
from tuner.hub.verify import verify
from tuner.planning import plan
from tuner.training.window import train

COLORS = [{"text": f"the {c} thing {n}", "label": c} for n in range(12) for c in ("red", "blue")]
ECHO = [{"prompt": f"say {n}", "completion": f"{n} it is"} for n in range(24)]
KINDS = {  # family, rows, settings
    "qlora": ("llama", ECHO, {"method__name": "qlora", "model__quantization": "nf4"}),
    "lora": ("llama", ECHO, {"model__quantization": "none"}),
    "soft prompt": ("llama", ECHO, {"method__name": "prompt_tuning", "method__rank": "auto"}),
    "classification": ("bert", COLORS, {"model__quantization": "none"}),
    "encoder-decoder": ("t5", ECHO, {"model__quantization": "none"}),
}


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_good_export_passes(kind, tmp_path, no_estimates):
    family, rows, settings = KINDS[kind]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = tiny_model(tmp_path / "base", family)
    given = {"model__name": str(model), "data__source": str(file), "data__max_rows": None} | settings
    run = plan.prepare(small_recipe(**given, training__learning_rate=0.02), path=tmp_path / "run")
    list(train(run))
    report = verify(str(run.path))
    assert not report.differs
    assert any("4 answers" in sentence for sentence in report.same), report
    assert not report.unchecked


COMMANDS = """
import sys

from tuner.cli import main

try:
    status = main([*sys.argv[1:], "--json"])
except SystemExit as end:
    status = end.code
print("status", status)
"""


@pytest.mark.parametrize("fault", [False, True])
def test_a_private_push_is_verified_through_the_real_client(hub, finished, tmp_path, fault):
    token = hub.user("alice")
    run = runs.Run(Path(shutil.copytree(finished.path, tmp_path / "run")))
    push(run, "bosses", token=token, endpoint=hub.url)
    if fault:
        files = hub.repo("alice/bosses").files
        config = json.loads(files["adapter_config.json"])
        files["adapter_config.json"] = json.dumps(config | {"r": 8}).encode()
    done = fresh.run(
        ["-c", COMMANDS, "verify", "alice/bosses"], ROOT, env=hub.env(tmp_path / "home") | {"HF_TOKEN": token}
    )
    assert done.returncode == 0, done.stderr
    report, status = done.stdout.strip().splitlines()[-2:]
    assert status == f"status {int(fault)}", report
    assert ("r is 8 where the run had 4" in report) == fault
    assert token not in done.stdout + done.stderr


def test_a_pushed_run_is_trained_again_to_the_same_adapter(hub, finished, tmp_path):
    token = hub.user("alice")
    run = runs.Run(Path(shutil.copytree(finished.path, tmp_path / "run")))
    push(run, "bosses", token=token, endpoint=hub.url)
    again = tmp_path / "again"
    command = ["reproduce", "alice/bosses", "--out", str(again)]
    done = fresh.run(["-c", COMMANDS, *command], ROOT, env=hub.env(tmp_path / "home") | {"HF_TOKEN": token})
    assert done.stdout.strip().endswith("status 0"), done.stdout + done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    differs = {event["what"]: event["differs"] for event in events if event["event"] == "compared"}
    assert differs == {part: [] for part in ("versions", "settings", "rows", "machine", "adapter")}
    weights = "adapter/adapter_model.safetensors"
    assert (again / weights).read_bytes() == (finished.path / weights).read_bytes()
