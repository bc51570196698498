"""A window of training: it learns, reports, stops, and resumes bit for bit, whatever ended it."""

import json
import subprocess
from itertools import islice
from pathlib import Path

import fresh
import pytest
import torch
from conftest import ROOT, in_order, mostly_long, small_recipe, timed
from safetensors import safe_open
from safetensors.torch import save as serialize

from tuner import gpu, runs
from tuner.data.batches import Batches
from tuner.errors import TunerError
from tuner.evaluation import answers
from tuner.evaluation.answers import evaluate
from tuner.inference import merge
from tuner.models import losses
from tuner.planning import plan
from tuner.training.clock import PACE_STEPS, Clock
from tuner.training.trainer import decay
from tuner.training.window import Window, train

pytestmark = pytest.mark.usefixtures("no_estimates")

# What plan.json held before runs had a format.
FIRST_PLAN = ("rows", "heldout_rows", "steps_per_epoch", "steps", "epochs", "seconds", "settings", "revision")
FIRST_PLAN += ("trainable_parameters", "warnings", "chosen")
OFTEN = {"training__checkpoint_seconds": 0.01}  # a checkpoint after every step
BRIEFLY = {"evaluation__rows": 1, "evaluation__max_new_tokens": 1}  # for scores that nobody reads


def weights(run: runs.Run) -> bytes:
    return (run.adapter / "adapter_model.safetensors").read_bytes()


def reports(run: runs.Run) -> dict:
    """Each step's last report, less what the clock decides."""
    reported = ("loss", "learning_rate", "grad_norm", "tokens", "epoch")
    return {e["step"]: [e[key] for key in reported] for e in run.events() if e["event"] == "step"}


def newest(run: runs.Run) -> int:
    """The step of the newest checkpoint."""
    return max(int(file.stem.removeprefix("step-")) for file in run.checkpoints.glob("step-*.safetensors"))


def steps(run: runs.Run) -> list[int]:
    return [e["step"] for e in run.events() if e["event"] == "step"]


@pytest.fixture
def make(tmp_path, small_base):
    """A prepared run of the small recipe; its folder's name counts up."""

    def make(**settings) -> runs.Run:
        recipe = small_recipe(**{"model__name": small_base} | BRIEFLY | settings)
        return plan.prepare(recipe, path=tmp_path / f"run{len(list(tmp_path.iterdir()))}")

    return make


@pytest.fixture(scope="module")
def whole(tmp_path_factory, small_base):
    """An uninterrupted run that the interrupted ones are held against."""
    recipe = small_recipe(model__name=small_base, budget__steps=9, **BRIEFLY, **OFTEN)
    run = plan.prepare(recipe, path=tmp_path_factory.mktemp("whole") / "run")
    list(train(run))
    return run


def test_it_learns_and_says_so_while_it_runs(make):
    run = make(budget__steps=12, evaluation__loss_every=4, training__learning_rate=5e-3)
    events = [e for e in train(run) if e["event"] != "heartbeat"]
    kinds = [e["event"] for e in events]
    assert kinds[0] == "start"
    assert "end" in kinds
    assert kinds[-1] == "evaluation"
    reported = [e for e in events if e["event"] == "step"]
    assert [e["step"] for e in reported] == list(range(1, 13))
    assert {"loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "seconds", "seconds_to_go"} <= set(
        reported[0]
    )
    heldout = [e["loss"] for e in events if e["event"] == "heldout"]
    assert [e["step"] for e in events if e["event"] == "heldout"][:: len(heldout) - 1] == [0, 12]
    assert heldout[-1] < heldout[0]
    assert reported[-1]["learning_rate"] < reported[5]["learning_rate"]
    assert run.status == "finished"
    stored = [e for e in run.events() if e["event"] != "heartbeat"]
    assert stored == events


def test_only_lora_weights_on_the_linear_layers_are_trained_and_in_float32(finished):
    with safe_open(finished.adapter / "adapter_model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {name.split(".")[-3] for name in tensors} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    assert {str(t.dtype) for t in tensors.values()} == {"torch.float32"}
    assert sum(t.numel() for t in tensors.values()) == finished.plan["trainable_parameters"]
    assert all(t.abs().sum() > 0 for name, t in tensors.items() if "lora_B" in name)


def test_the_adapter_names_its_base_and_no_path_of_this_machine(finished):
    for file in finished.adapter.glob("*.json"):
        assert str(ROOT) not in file.read_text()
        assert str(finished.path) not in file.read_text()
    assert (
        json.loads((finished.adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny-office"
    )


def start_in_a_process(run: runs.Run) -> subprocess.Popen:
    """Train in a process of its own, which prints its events, a line each."""
    return fresh.start(["-m", "tuner", "train", str(run.path), "--json"], ROOT)


def kill_after(process: subprocess.Popen, event: str, step: int = 0) -> None:
    """Kill it once it has said this; it is dead when the other end of its output is closed."""
    for line in process.stdout:
        if json.loads(line)["event"] == event and json.loads(line).get("step", 0) >= step:
            break
    process.kill()
    process.communicate()


def test_killed_in_mid_run_and_started_again_it_ends_with_the_same_adapter_bit_for_bit(make, whole):
    run = make(budget__steps=9, **OFTEN)
    kill_after(start_in_a_process(run), "checkpoint", 4)
    assert run.status == "interrupted"
    assert steps(run)[-1] < 9
    process = start_in_a_process(run)
    assert process.communicate()[0]
    assert process.returncode == 0
    assert run.status == "finished"
    assert [e["step"] for e in run.events() if e["event"] == "start"][-1] >= 4
    assert weights(run) == weights(whole)
    assert reports(run) == reports(whole)


def test_a_stop_keeps_what_was_learned_and_the_run_goes_on_to_the_same_end(make, whole):
    run = make(budget__steps=9, **OFTEN)
    for event in train(run):
        if event["event"] == "step" and event["step"] == 3:
            run.stop()
    assert run.status == "stopped"
    assert (run.adapter / "adapter_model.safetensors").is_file()
    assert run.read_json("evaluation.json") is None
    list(train(run))
    assert run.status == "finished"
    assert weights(run) == weights(whole)


def test_a_stop_is_seen_before_the_next_step(make, monkeypatch):
    run, report = make(budget__steps=9), Window._report

    def report_and_stop(window, logs):
        report(window, logs)
        if window.step == 3:
            run.stop()

    # From within the window, because a reader of the events may be some steps late.
    monkeypatch.setattr(Window, "_report", report_and_stop)
    list(train(run))
    assert steps(run) == [1, 2, 3]
    assert (newest(run), run.last_event("end")["reason"]) == (3, "stopped")


def test_a_closed_tab_stops_the_run_and_it_goes_on_to_the_same_end(make, whole):
    run = make(budget__steps=9, **OFTEN)
    events = train(run)
    list(islice((e for e in events if e["event"] == "step"), 3))
    events.close()
    assert run.status == "stopped"
    list(train(run))
    assert weights(run) == weights(whole)


def test_dropout_is_resumed_to_the_bit_too(make):
    settings = OFTEN | {"budget__steps": 8, "method__dropout": 0.2, "evaluation__loss_every": 3}
    whole, parted = make(**settings), make(**settings)
    list(train(whole))
    for event in train(parted):
        if event["event"] == "step" and event["step"] == 4:
            parted.stop()
    list(train(parted))
    assert weights(whole) == weights(parted)


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("place", mostly_long([-1000, 40, 3], -1000))
def test_a_flipped_bit_in_the_newest_checkpoint_is_seen_and_the_one_before_is_taken(make, whole, place):
    run = make(budget__steps=9, **OFTEN)
    for event in train(run):
        if event["event"] == "step" and event["step"] == 6:
            run.stop()
    before = newest(run) - 1
    flip(run.checkpoints / f"step-{newest(run):08d}.safetensors", place)
    list(train(run))
    assert [e["step"] for e in run.events() if e["event"] == "start"][-1] == before
    assert weights(run) == weights(whole)


def test_a_run_of_the_first_version_goes_on(make):
    """Its plan names no format and no folder of its base, and its checkpoints hold no checksum."""
    whole, run = (make(model__name="tiny-office", budget__steps=7, **OFTEN) for _ in range(2))
    list(train(whole))
    for event in train(run):
        if event["event"] == "step" and event["step"] == 6:
            run.stop()
    run.write_json("plan.json", {k: v for k, v in run.plan.items() if k in FIRST_PLAN})
    for file in run.checkpoints.glob("*.safetensors"):
        with safe_open(file, "pt") as stored:
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
            metadata = {"counters": stored.metadata()["counters"]}
        file.write_bytes(serialize(tensors, metadata))
    list(train(run))
    assert weights(run) == weights(whole)


@pytest.mark.long
@pytest.mark.usefixtures("time_to_train")
def test_a_run_of_the_first_version_with_a_budget_in_seconds_goes_on(make):
    """Its marks told no step, its windows no start-up."""
    run = make(model__name="tiny-office", budget__seconds=3)
    for event in train(run):
        if event["event"] == "schedule":
            run.stop()
    run.write_json("plan.json", {k: v for k, v in run.plan.items() if k in FIRST_PLAN})
    old = [{k: v for k, v in event.items() if k not in ("at", "start_up")} for event in run.events()]
    run.write_text("events.jsonl", "".join(json.dumps(event) + "\n" for event in old))
    assert gpu.seconds_needed(run) > 0
    list(train(run))
    assert run.status == "finished"


def test_a_run_of_a_newer_version_is_refused_in_plain_words(make):
    run = make()
    run.write_json("plan.json", run.plan | {"format": 99})
    with pytest.raises(TunerError, match="newer version"):
        list(train(run))


@pytest.mark.long
def test_a_broken_newest_checkpoint_is_passed_over_for_the_one_before(make, whole):
    run = make(budget__steps=9, **OFTEN)
    for event in train(run):
        if event["event"] == "step" and event["step"] == 6:
            run.stop()
    broken = run.checkpoints / f"step-{newest(run):08d}.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1000])
    before = newest(run) - 1
    list(train(run))
    assert [e["step"] for e in run.events() if e["event"] == "start"][-1] == before
    assert weights(run) == weights(whole)


def test_a_full_disk_in_mid_checkpoint_is_said_plainly_and_the_run_can_go_on(make, whole):
    run = make(budget__steps=9, **OFTEN)
    run.checkpoints.mkdir()
    full = run.checkpoints / "step-00000005.part"
    full.symlink_to("/dev/full")
    with pytest.raises(TunerError, match="disk is full"):
        list(train(run))
    assert run.status == "failed"
    assert newest(run) == 4
    full.unlink()
    list(train(run))
    assert weights(run) == weights(whole)


def test_a_finished_run_is_not_trained_again(finished):
    before = weights(finished), len(finished.events())
    assert [e for e in train(finished) if e["event"] != "heartbeat"] == []
    assert (weights(finished), len(finished.events())) == before


# -- a run that breaks

BREAKS = """
import sys
from tuner.models import losses
from tuner.runs import Run
mean_loss, run = losses.mean_loss, Run(sys.argv[1])
def poisoned(*arguments):
    if run.last_event("step", "start")["step"] == 3:
        raise IndexError("poisoned")
    return mean_loss(*arguments)
losses.mean_loss = poisoned
from tuner.cli import main
sys.exit(main(["train", sys.argv[1], "--json"]))
"""


@pytest.fixture
def poison(monkeypatch):
    """Let the loss of one step of a run raise an error, whichever process or window comes to it."""
    mean_loss = losses.mean_loss

    def poison(run: runs.Run, step: int, error: Exception) -> None:
        def poisoned(*arguments):
            if run.last_event("step", "start")["step"] == step:
                raise error
            return mean_loss(*arguments)

        monkeypatch.setattr(losses, "mean_loss", poisoned)

    return poison


def problem_of(run: runs.Run) -> str:
    with pytest.raises(TunerError) as caught:
        list(train(run))
    assert run.status == "failed"
    assert run.last_event("error")["problems"] == [str(caught.value)]
    return str(caught.value)


def test_a_run_that_breaks_twice_in_the_same_way_does_not_say_resume(make, poison):
    """The second time in a process of its own, from what the run's folder tells."""
    run = make(**OFTEN)
    poison(run, 3, IndexError("poisoned"))
    first = problem_of(run)
    assert in_order(first, run.id, "after step 3", "IndexError", "up to step 3 is kept", "Resume it", "error.log")
    assert "twice" not in first
    second = fresh.run(["-c", BREAKS, str(run.path)], ROOT)
    assert second.returncode == 2
    (message,) = json.loads(second.stdout.splitlines()[-1])["problems"]
    assert in_order(message, "twice in the same way", "after step 3", "up to step 3 is kept", "error.log")
    assert in_order(message, "Resuming would fail again", "new run with another method")
    assert "Resume it" not in message
    assert "IndexError: poisoned" in (run.path / "error.log").read_text()


def test_running_out_of_memory_twice_is_told_plainly_and_what_needs_less(make, poison):
    run = make()
    poison(run, 0, torch.OutOfMemoryError("no more"))
    first, second = problem_of(run), problem_of(run)
    assert in_order(first, "ran out of memory before step 1", "Resume it", "new run", "training.batch_size")
    assert in_order(second, "for the second time before step 1", "would fail again", "new run", "training.batch_size")
    assert "Resume it" not in second


def test_a_run_that_breaks_otherwise_or_further_on_may_be_resumed(make, poison):
    run = make(**OFTEN)
    poison(run, 2, IndexError("poisoned"))
    problem_of(run)
    poison(run, 2, KeyError("poisoned otherwise"))
    assert "Resume it" in problem_of(run)
    poison(run, 4, KeyError("poisoned later"))
    assert in_order(problem_of(run), "after step 4", "Resume it")
    poison(run, 3, KeyError("poisoned on the way"))
    (run.checkpoints / "step-00000004.safetensors").unlink()
    assert in_order(problem_of(run), "twice", "after step 3", "would fail again")
    poison(run, 4, KeyError("poisoned where it was before"))
    assert in_order(problem_of(run), "twice", "after step 4", "would fail again")


def test_scoring_that_breaks_twice_says_so_and_goes_on_once_it_can(make, monkeypatch):
    run = make(budget__steps=1)

    def broken(*arguments):
        raise IndexError("no such answer")

    with monkeypatch.context() as patch:
        patch.setattr(answers, "row_losses", broken)
        assert in_order(problem_of(run), "while its answers were scored", "What it learned is kept", "Resume it")
        second = problem_of(run)
    assert in_order(second, "twice in the same way", "while its answers were scored", "would fail again")
    list(train(run))
    assert run.status == "finished"


def test_scoring_that_came_further_before_it_broke_again_may_be_resumed(make, monkeypatch):
    run, answer = make(budget__steps=1, evaluation__rows=4), answers._answer
    monkeypatch.setattr(answers, "BATCH", 2)

    def break_after(batches: int) -> None:
        left = iter(range(batches))

        def broken(*arguments):
            if next(left, None) is None:
                raise IndexError("no such answer")
            return answer(*arguments)

        monkeypatch.setattr(answers, "_answer", broken)

    break_after(0)
    assert "Resume it" in problem_of(run)
    break_after(1)
    assert "Resume it" in problem_of(run)
    break_after(0)
    assert in_order(problem_of(run), "twice in the same way", "would fail again")


def test_a_learning_rate_that_blows_up_is_named_as_the_cause(make):
    run = make(model__name="tiny-office", training__learning_rate=1.0, method__alpha=2.0**30)
    with pytest.raises(TunerError, match=r"learning rate 1 is too high"):
        list(train(run))
    assert run.status == "failed"


@timed
@pytest.mark.usefixtures("time_to_train")
def test_a_budget_in_seconds_becomes_steps_after_the_first_ones_and_the_rate_lands(make):
    run = make(budget__seconds=5)
    events = list(train(run))
    marks = [(e["at"], e["steps"]) for e in events if e["event"] == "schedule"]
    reported = [e for e in events if e["event"] == "step"]
    end = next(e for e in events if e["event"] == "end")
    assert marks
    assert 0.7 * 5 < end["seconds"] <= 5
    assert end["step"] == reported[-1]["step"]
    assert reported[-1]["learning_rate"] < 0.1 * max(e["learning_rate"] for e in reported)


@pytest.mark.usefixtures("time_to_train")
def test_a_resumed_budget_walks_by_the_marks_that_were_written_down(make):
    run = make(budget__seconds=4)
    for event in train(run):
        if event["event"] == "schedule":
            run.stop()
    marks = [(e["at"], e["steps"]) for e in run.events() if e["event"] == "schedule"]
    assert marks
    first = next(e for e in train(run) if e["event"] == "step")
    assert first["steps"] == marks[-1][1]
    training, peak = run.recipe.training, run.plan["settings"]["learning_rate"]
    assert training.scheduler == "linear"
    left = 1 - Clock(None, warmup=0, seconds=4, marks=marks).rate_progress(first["step"] - 1)
    warmed = min(1, first["step"] / (min(training.warmup_steps, PACE_STEPS) + 1))
    assert first["learning_rate"] == pytest.approx(peak * warmed * left)


def test_a_run_longer_than_its_windows_goes_on_in_the_next_to_the_same_end(make, monkeypatch):
    settings = {"budget__steps": 8, "training__batch_size": 2, "evaluation__rows": 4}
    whole, parted = make(**settings), make(**settings)
    list(train(whole))
    leave = Clock.is_time_to_leave
    with monkeypatch.context() as patch:
        # However fast the machine is, a window is over after three steps.
        patch.setattr(Clock, "is_time_to_leave", lambda c, step: "window" if c.steps_done == 3 else leave(c, step))
        for done in (3, 6):
            list(train(parted, window=60))
            assert (parted.status, newest(parted)) == ("paused", done)
        list(train(parted, window=60))
    assert parted.status == "finished"
    assert [e["step"] for e in parted.events() if e["event"] == "start"] == [0, 3, 6]
    assert weights(parted) == weights(whole)
    assert parted.read_json("evaluation.json")["rows"] == 4


@pytest.mark.usefixtures("time_to_train")
def test_a_window_in_seconds_is_left_in_mid_run(make):
    run = make(budget__steps=5000, evaluation__loss_every=0)
    list(train(run, window=3))
    end = run.last_event("end")
    assert (run.status, end["reason"]) == ("paused", "window")
    assert 0 < end["step"] < 5000
    assert newest(run) == end["step"]


def test_a_window_too_short_for_one_step_is_said_plainly_and_the_run_can_go_on(make):
    run = make(budget__steps=1)
    with pytest.raises(TunerError, match="over before the first step"):
        list(train(run, window=0.01))
    assert run.status == "failed"
    list(train(run))
    assert run.status == "finished"


@pytest.mark.long
def test_a_process_killed_while_it_scores_leaves_a_run_that_can_still_be_scored(make):
    run = make(evaluation__rows=40, evaluation__max_new_tokens=64, data__max_rows=80, data__heldout=40)
    kill_after(start_in_a_process(run), "evaluating")
    assert run.status == "interrupted"
    before = weights(run)
    list(train(run))
    assert run.status == "finished"
    assert weights(run) == before
    assert run.read_json("evaluation.json")["rows"] == 40


def test_scoring_that_does_not_fit_a_window_takes_fewer_rows_at_once_until_it_does(make):
    run = make(budget__steps=1, evaluation__rows=32, data__max_rows=80, data__heldout=40)
    for event in train(run):
        if event["event"] == "evaluating":
            run.stop()
    unscored = [e for e in run.events() if e["event"] == "unscored"]
    assert unscored[-1]["reason"] == "stopped"
    run.append(unscored[-1] | {"reason": "window"})
    run.append(unscored[-1] | {"reason": "window"})
    events = list(train(run))
    assert [e["row"] for e in events if e["event"] == "answered"] == [8, 16, 24, 32]
    assert run.status == "finished"


def test_an_answer_longer_than_a_window_is_said_plainly_instead_of_asked_for_again_and_again(make):
    run = make(budget__steps=1, evaluation__rows=4)
    next(event for event in train(run) if event["event"] == "evaluating")  # and no further
    for _ in range(6):
        run.append({"event": "unscored", "reason": "window", "row": 0, "rows": 4})
    with pytest.raises(TunerError, match="one answer takes longer than a window"):
        list(train(run))


def test_what_was_made_of_a_stopped_runs_adapter_does_not_outlive_it(make):
    run = make(budget__steps=8, evaluation__rows=4)
    for event in train(run):
        if event["event"] == "step" and event["step"] == 2:
            run.stop()
    merge.merge(run)
    list(evaluate(run))
    assert run.status == "stopped"
    for event in evaluate(run):
        if event["event"] == "answered":
            break  # this scoring is cut short, and its answers are kept
    assert run.read_json(answers.ANSWERS)
    events = list(train(run))
    assert run.status == "finished"
    assert [e["row"] for e in events if e["event"] == "answered"] == [4]
    assert not run.merged.exists()
    assert run.read_json("merge_check.json") is None
    final = run.last_event("evaluation")
    assert final["time"] > run.last_event("end")["time"]


def test_a_budget_over_before_the_first_step_is_no_finished_run(make):
    run = make(budget__seconds=30)
    settings = run.recipe.with_settings({"budget.seconds": 0.01})
    run.write_text("recipe.yaml", settings.to_yaml())
    with pytest.raises(TunerError, match=r"budget of 0\.01 seconds was over before the first step"):
        list(train(run))
    assert run.status == "failed"


@pytest.mark.long
def test_a_base_that_was_trained_on_serves_the_next_run_unchanged(make, whole):
    """Two runs in one process share the loaded base: the second is what it would have been alone."""
    list(train(make(budget__steps=3, method__rank=8)))
    run = make(budget__steps=9, **OFTEN)
    list(train(run))
    assert weights(run) == weights(whole)


@pytest.mark.parametrize("quantization", mostly_long(["int8", "none"], "none"))
def test_other_ways_of_holding_the_base_train_too(make, quantization):
    run = make(model__quantization=quantization, budget__steps=3)
    list(train(run))
    assert run.status == "finished"


def test_loss_on_all_trains_the_prompt_too(make):
    completion, everything = make(), make(training__loss_on="all")
    assert everything.plan["trained_tokens"] == everything.plan["tokens"] > completion.plan["trained_tokens"]


def test_row_order_depends_on_seed_and_step_alone():
    lengths = [5, 3, 8, 1, 9, 2, 7, 4, 6, 5]
    whole = list(islice(Batches(lengths, 4, seed=1), 9))
    assert list(islice(Batches(lengths, 4, seed=1, start=4), 5)) == whole[4:]
    assert list(islice(Batches(lengths, 4, seed=2), 9)) != whole
    for epoch in (whole[:3], whole[3:6], whole[6:]):
        assert sorted(row for batch in epoch for row in batch) == list(range(10))
    assert whole[:3] != whole[3:6]


def test_rows_of_like_length_share_a_batch():
    lengths = [n % 40 + 1 for n in range(160)]
    batches = Batches(lengths, 16, seed=0).epoch(0)
    padded = sum(max(lengths[r] for r in batch) * len(batch) for batch in batches)
    assert padded < 1.15 * sum(lengths)


def test_grouping_by_length_leaves_chance_its_part():
    """Batches come in no order of length, and the same rows do not always meet."""
    lengths = list(range(1, 641))
    first, second = (Batches(lengths, 16, seed=0).epoch(number) for number in (0, 1))
    longest = [max(lengths[row] for row in batch) for batch in Batches(lengths[:160], 16, seed=0).epoch(0)]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)
    assert not {tuple(sorted(batch)) for batch in first} & {tuple(sorted(batch)) for batch in second}


def test_the_sizes_of_steps_are_those_of_their_padded_batches():
    batches = Batches([5, 3, 8, 1, 9, 2, 7], 3, seed=1)
    rows = list(islice(batches.since(2), 5))
    assert [len(batch) for batch in rows].count(1) >= 1  # the last batch of an epoch is smaller
    assert list(islice(batches.sizes(2), 5)) == [max(batches.lengths[r] for r in b) * len(b) for b in rows]


SCHEDULES = {
    "linear": [1, 0.75, 0.5, 0.25, 0, 0],
    "cosine": [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0, 0],
    "constant": [1, 1, 1, 1, 1, 1],
}


@pytest.mark.parametrize("scheduler", SCHEDULES)
def test_schedules_fall_from_one_as_their_name_says(scheduler):
    values = [decay(scheduler, progress) for progress in (0, 0.25, 0.5, 0.75, 1, 1.2)]
    assert values == pytest.approx(SCHEDULES[scheduler], abs=1e-6)


def test_nothing_in_the_run_is_a_pickle(finished):
    kinds = {Path(f).suffix for f in finished.path.rglob("*") if f.is_file()}
    assert not kinds & {".bin", ".pt", ".pth", ".pkl", ".ckpt"}
