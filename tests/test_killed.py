"""A process killed at any stage, or whose run is deleted under it: nothing is lost, and no other run is disturbed."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fresh
import pytest
from conftest import LEARNS, ROOT, small_recipe
from visitors_runs import ANN

from tuner import runs
from tuner.errors import TunerError
from tuner.inference import merge
from tuner.planning import plan
from tuner.runs import Run
from tuner.training.window import train
from tuner.ui import actions, ownership

pytestmark = pytest.mark.long
TRAINING = ["loading", "first step", "checkpoint", "saving", "scoring", "scored"]
MERGING = ["merging", "merged"]
LONGEST = 300  # seconds for a process to end, on a machine that has much else to do


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, small_base) -> Run:
    """A run that has not begun."""
    recipe = small_recipe(model__name=small_base, training__checkpoint_seconds=0.001).with_settings(LEARNS)
    return plan.prepare(recipe, path=tmp_path_factory.mktemp("prepared") / "run")


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory) -> Run:
    """The same run, trained in one go."""
    run = Run(shutil.copytree(prepared.path, tmp_path_factory.mktemp("whole") / "run"))
    list(train(run))
    return run


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    return tmp_path


def without_seconds(scores: dict) -> dict:
    """An evaluation without what was measured by the clock."""
    costs = {variant: {**cost, "seconds": None} for variant, cost in scores["costs"].items()}
    return {**scores, "costs": costs, "course": {**scores["course"], "seconds": None}}


def copied(run: Run, root: Path) -> Run:
    mine = Run(shutil.copytree(run.path, root / "mine"))
    ownership.claim(mine, ANN)
    return mine


@contextmanager
def held(stage: str, run: Run) -> Iterator[subprocess.Popen]:
    """A process that is held in the middle of this stage."""
    command = [fresh.PYTHON, "tests/drive_stages.py", stage, "merge" if stage in MERGING else "train", str(run.path)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([*command, "--json"], cwd=ROOT, env=environment, text=True, **pipes) as process:
        try:
            assert "held\n" in iter(process.stdout.readline, ""), process.stderr.read()
            yield process
        finally:
            process.kill()


def adapter(run: Run) -> bytes:
    return (run.adapter / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("stage", "how"),
    [*((stage, signal.SIGKILL) for stage in TRAINING), ("first step", signal.SIGTERM), ("saving", signal.SIGTERM)],
)
def test_a_training_killed_at_any_stage_is_resumed_as_if_nothing_had_happened(stage, how, prepared, whole, root):
    run = copied(prepared, root)
    with held(stage, run) as process:
        assert run.status == "training"
        with pytest.raises(TunerError, match="already in training"):
            list(train(Run(run.path)))
        with pytest.raises(TunerError, match="Stop it first"):
            actions.delete("mine", ANN)
        assert actions.summary(run)["status"] == "training"
        process.send_signal(how)
        assert process.wait(LONGEST) == -how
        process.stdout.read()  # it is dead when the other end is closed
    run = Run(run.path)
    assert run.status == ("prepared" if stage == "loading" else "interrupted")
    assert run.damage == []
    list(train(run))
    assert run.status == "finished"
    assert adapter(run) == adapter(whole)
    assert without_seconds(run.read_json("evaluation.json")) == without_seconds(whole.read_json("evaluation.json"))
    assert not [path.name for path in run.path.rglob("*.part")]


@pytest.mark.parametrize("stage", MERGING)
def test_a_merge_that_was_killed_is_done_again_and_two_at_once_become_one(stage, whole, root):
    run = copied(whole, root)
    with held(stage, run) as process:
        process.kill()
        process.stdout.read()
    assert run.status == "finished"
    assert merge.existing_check(run) is None
    with held(stage, run) as process, held_up(run) as second:
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(LONGEST) == 0
        assert second.wait(LONGEST) == 0
    assert merge.existing_check(run)["top1_agreement"] > 0.9
    assert not [path.name for path in run.path.rglob("*.part")]


@contextmanager
def held_up(run: Run) -> Iterator[subprocess.Popen]:
    """A second merge of the run, which waits for the first."""
    with subprocess.Popen([fresh.PYTHON, "-m", "tuner", "merge", str(run.path), "--json"], cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("stage", [*TRAINING, *MERGING])
def test_a_run_deleted_by_hand_ends_its_process_with_a_sentence_and_does_not_come_back(stage, prepared, whole, root):
    run = copied(whole if stage in MERGING else prepared, root)
    with held(stage, run) as process:
        shutil.rmtree(run.path)
        _, told = process.communicate("\n", timeout=LONGEST)
    assert process.returncode == 2
    assert "tuner: Run mine was deleted" in told or stage in MERGING
    assert "Traceback" not in told
    assert not run.path.exists()
    assert not Run(run.path).is_training
    assert not run.path.exists()
