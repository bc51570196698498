"""Experiments on the page: their runs are the visitor's, one at a time, and go on only while the visitor looks."""

import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import with_rows
from conftest import plain
from visitors_runs import ANN, streamed

from tuner import gpu, recipe, runs
from tuner.errors import TunerError
from tuner.gpu_refusals import NoWindow
from tuner.recipe import Recipe
from tuner.runs import Run
from tuner.ui import checking, compare_api, compare_tab, compare_view, experiments, ownership, run_queue
from tuner.ui.checking import Entered
from tuner.ui.experiments import Choice
from tuner.ui.visitor import Visitor

pytest_plugins = ["page_fixtures"]

BOB = Visitor("bob")
PASTED = Entered(pasted="prompt,completion\n" + "a,b\n" * 8)
PLAN = {
    "settings": {"learning_rate": 0.001, "batch_size": 4, "rank": 8},
    "epochs": 2.0,
    "forecast": {"start_up": 1.0, "training": 4.0, "scoring": 2.0},
}
START = {"event": "start", "step": 0, "steps": 4}
END = {"event": "end", "reason": "steps", "step": 4, "seconds": 4.0}


class Trainer:
    """Stands in for the workers that check and prepare, and for the GPU: each run ends as `endings` say, in order."""

    def __init__(self):
        self.endings: list[str] = []  # "" for a good one, else what goes wrong
        self.error: type[TunerError] = TunerError  # as which endings are raised
        self.failures: list[str] = []  # like endings, of what goes wrong within the training
        self.trained: list[str] = []  # methods
        self.rows: list[Entered | None] = []  # with which each run was prepared
        self.held = threading.Lock()  # while it is held, nothing is trained

    def check(self, requested: Recipe, rows: Entered | None = None, visitor: Visitor = ANN) -> dict:
        """A plan."""
        if requested.method.name == "full":
            raise TunerError("Too large.")
        return PLAN

    def write_run(self, requested: Recipe, rows: Entered | None, visitor: Visitor, path: Path) -> Run:
        """A run that is ready to train."""
        self.rows.append(rows)
        run = Run(shutil.copytree(recipe.EXAMPLES / "finished", path))
        (run.path / "evaluation.json").unlink()
        run.write_text("events.jsonl", "")
        run.write_text("recipe.yaml", requested.to_yaml())
        return Run(path)

    def train(self, run: Run, slot: int):
        """Train the run, all at once."""
        with self.held:
            pass
        self.trained.append(run.recipe.method.name)
        ending = self.endings.pop(0) if self.endings else ""
        if self.failures and (failure := self.failures.pop(0)):
            run.append(START)
            run.append({"event": "error", "problems": [failure], "type": "TunerError", "step": 0})
            raise TunerError(failure)
        if ending:
            raise self.error(ending)
        run.append(START)
        run.append({"event": "step", "step": 4, "loss": 1.0, "seconds": 4.0})
        run.append(END)
        with_rows.scored(run, with_rows.rows())
        yield END


@pytest.fixture
def trainer(root: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """What checks, prepares and trains; with a queue of its own."""
    trainer = Trainer()
    monkeypatch.setattr(checking, "check", trainer.check)
    monkeypatch.setattr(checking, "write_run", trainer.write_run)
    monkeypatch.setattr(gpu, "train", trainer.train)
    monkeypatch.setattr(run_queue, "queue", run_queue.RunQueue(1))
    return trainer


TWO = Choice(("lora", "ia3"))


def begun(choice: Choice = TWO, rows: Entered | None = None) -> tuple[str, Visitor]:
    """Ann's new experiment, and Ann with its secret."""
    made, secret = experiments.start(choice, Recipe.load("corporate"), rows, ANN)
    return made.id, replace(ANN, secrets={made.id: secret})


def until(name: str, condition: Callable[[experiments.Standing], bool], owner: Visitor | None = None):
    """Look, as a page does, until the condition holds."""
    deadline = time.monotonic() + 20
    while not condition(now := experiments.advance(name, owner or Visitor())):
        assert time.monotonic() < deadline, now
        time.sleep(0.005)
    return now


def phase(name: str) -> str:
    return experiments.standing(experiments.open_experiment(name)).phase


def test_runs_are_trained_one_after_another_while_the_owner_looks(trainer):
    name, owner = begun(rows=PASTED)
    assert phase(name) == "next"
    assert until(name, lambda now: True, BOB).phase == "next"  # nothing happens for somebody else
    done = until(name, lambda now: now.phase == "done", owner)
    assert (done.done, done.size) == (2, 2)
    assert trainer.trained == ["lora", "ia3"]
    assert [rows.pasted for rows in trainer.rows] == [PASTED.pasted] * 2
    opened = experiments.open_experiment(name)
    until(name, lambda now: not (opened.path / experiments.ROWS).exists(), owner)
    # Its runs are the visitor's, by the experiment's secret.
    for run in map(Run, (runs.RUNS / run for run in experiments.runs_of(opened))):
        assert ownership.is_owner(run, Visitor(secrets={run.id: owner.secrets[name]}))
        assert not ownership.is_owner(run, BOB)


def test_a_run_that_ends_while_the_experiment_is_looked_at_does_not_hold_it_up(trainer, monkeypatch):
    looked, train, states_of = threading.Event(), trainer.train, experiments.states_of

    def waits(run: Run, slot: int):
        run.append(START)
        assert looked.wait(20)
        yield from train(run, slot)

    def ends_meanwhile(opened):
        states = states_of(opened)
        looked.set()
        while run_queue.queue.held():
            time.sleep(0.005)
        return states

    monkeypatch.setattr(gpu, "train", waits)
    name, owner = begun()
    until(name, lambda now: now.state and now.state.run.last_event("start"), owner)
    monkeypatch.setattr(experiments, "states_of", ends_meanwhile)
    assert phase(name) == "running"
    assert phase(name) == "next"


def test_uploaded_files_are_kept_until_all_runs_are_prepared(trainer, tmp_path, monkeypatch):
    files = [tmp_path / name / "rows.csv" for name in ("one", "two")]
    for number, file in enumerate(files):
        file.parent.mkdir()
        file.write_text(f"rows {number}")
    name, owner = begun(rows=Entered([str(file) for file in files]))
    for file in files:
        file.unlink()
    seen = []
    write_run = checking.write_run

    def look(*given) -> Run:
        seen.append([Path(file).read_text() for file in given[1].files])
        return write_run(*given)

    monkeypatch.setattr(checking, "write_run", look)
    until(name, lambda now: now.phase == "done", owner)
    assert seen == [["rows 0", "rows 1"]] * 2


def test_a_stopped_experiment_begins_nothing_until_its_owner_resumes_it(trainer):
    name, owner = begun()
    experiments.stop(name, owner)
    assert until(name, lambda now: True, owner).phase == "paused"
    assert trainer.trained == []
    for act in (experiments.stop, experiments.resume):
        with pytest.raises(TunerError, match="Only whoever started it can stop, resume or delete it"):
            act(name, BOB)
    experiments.resume(name, owner)
    until(name, lambda now: now.phase == "done", owner)
    with pytest.raises(TunerError, match="nothing to resume"):
        experiments.resume(name, owner)


def test_an_experiment_that_nobody_looked_at_for_long_waits_for_resume(trainer):
    name, owner = begun()
    file = runs.RUNS / name / "experiment.json"
    os.utime(file, (0, 0))
    assert until(name, lambda now: True, owner).phase == "paused"
    experiments.resume(name, owner)
    until(name, lambda now: now.phase == "done", owner)


def test_a_run_in_its_middle_is_resumed_and_not_begun_anew(trainer, monkeypatch):
    name, owner = begun()
    monkeypatch.setattr(
        gpu, "train", lambda run, slot: iter([run.append(START), run.append(END | {"reason": "stopped"})])
    )
    now = until(name, lambda now: now.phase == "paused", owner)
    monkeypatch.setattr(gpu, "train", trainer.train)
    monkeypatch.setattr(experiments.actions, "resume", lambda run, visitor: resumed.append((run, visitor)))
    resumed = []
    experiments.resume(name, owner)
    ((run, visitor),) = resumed
    assert run == now.state.run.id
    assert visitor.secrets[run] == owner.secrets[name]
    assert len(experiments.runs_of(experiments.open_experiment(name))) == 1


def test_a_run_that_fails_is_told_and_the_next_is_trained(trainer):
    trainer.endings = ["No memory."]
    name, owner = begun()
    until(name, lambda now: now.phase == "done", owner)
    assert trainer.trained == ["lora", "ia3"]
    html = compare_view.results(experiments.open_experiment(name))
    assert "lora failed: No memory." in plain(html)


def test_where_the_visitors_gpu_time_is_used_up_the_experiment_waits(trainer):
    spent, trainer.error = "No GPU time left.", NoWindow
    trainer.endings = [spent, spent, ""]
    name, owner = begun()
    for times in (1, 2):  # it is not given up where it is refused with the same words again
        now = until(name, lambda now, times=times: now.phase == "paused" and len(trainer.trained) == times, owner)
        told = " ".join(plain(compare_view.live(now)).split())
        assert "0 of 2 runs are over." in told
        assert f"lora stopped early {spent}" in told
        held = experiments.states_of(experiments.open_experiment(name))[0]
        assert (held.status, held.problems) == ("failed", [spent])
        assert trainer.trained == ["lora"] * times
        with trainer.held:
            experiments.resume(name, owner)
            # Its page looks again only while it goes on.
            assert [(now.phase, now.done) for now in (experiments.advance(name, owner),)] == [("running", 0)]
    until(name, lambda now: now.phase == "done", owner)
    assert trainer.trained == ["lora", "lora", "lora", "ia3"]


@pytest.mark.parametrize("where", ["failures", "endings"])  # in its training, or before or after it
def test_on_zerogpu_a_run_that_fails_by_itself_does_not_hold_up_the_next(trainer, monkeypatch, where):
    monkeypatch.setattr(gpu, "ZERO", True)
    setattr(trainer, where, ["The loss is not a number."])
    name, owner = begun()
    now = until(name, lambda now: now.phase == "done", owner)
    assert trainer.trained == ["lora", "ia3"]
    assert [state.status for state in now.over] == ["failed", "finished"]


def test_what_a_comparison_will_take_has_what_its_runs_share_once(trainer, monkeypatch):
    shared = {"forecast": PLAN["forecast"] | {"untuned": {"base": 0.5, "examples": 1.0}}}
    monkeypatch.setattr(checking, "check", lambda *asked: PLAN | shared)
    requested = Recipe.load("corporate")
    assert experiments.cost(TWO, requested)["seconds"] == 2 * 7 - 1.5
    assert experiments.cost(Choice(seeds=4), requested)["seconds"] == 4 * 7 - 3 * 0.5  # each with examples of its own


def test_more_than_one_run_of_an_experiment_never_waits_or_trains(trainer, monkeypatch):
    held = []
    train = trainer.train
    monkeypatch.setattr(gpu, "train", lambda run, slot: held.append(len(run_queue.queue.held())) or train(run, slot))
    name, owner = begun(Choice(seeds=4))
    until(name, lambda now: now.phase == "done", owner)
    assert held == [1] * 4


@pytest.mark.parametrize(
    ("choice", "problem"),
    [
        (Choice(("lora",)), "lora alone can't be compared"),
        (Choice(tuple(f"m{i}" for i in range(7))), "7 methods are too many here. Choose at most 6."),
        (Choice(search=13), "13 runs are too many here. Choose at most 12."),
        (Choice(("lora", "ia3"), seeds=12), "24 runs are too many here. Choose at most 12."),
        (Choice(("lora", "ia3"), seeds=6, seconds=76), "at most 75: .* or in 12 together"),
        (Choice(seeds=4, seconds=0), "must be more than 0, and at most 225"),
        (Choice(seeds=4, seconds=226), "this page trains for at most 15 min 00 s, in one run or in 4 together"),
        (Choice(seeds=4, seconds=float("nan")), "must be more than 0"),
        (Choice(("lora", "nonsense")), "There is no method 'nonsense'"),
        (Choice(("lora", "full")), "full: Too large."),
    ],
)
def test_what_cant_be_compared_is_refused_before_anything_is_written(choice, problem, trainer, root):
    for act in (experiments.start, experiments.cost):
        with pytest.raises(TunerError, match=problem):
            act(choice, Recipe.load("corporate"), None, ANN)
    assert list(root.iterdir()) == []


def test_numbers_out_of_range_are_refused_in_the_card_and_not_by_a_toast_over_an_old_estimate(monkeypatch):
    tab = SimpleNamespace(start=None, shown="shown")
    with compare_tab.gr.Blocks():
        compare_tab._choice(tab)
    monkeypatch.setattr(compare_tab.form, "read", lambda *given: (Recipe.load("corporate"), None))
    for number, seconds, problem in ((99, 10, "99 runs are too many here."), (1, 10, "at least 2 trials"),
                                     (0, 10, "Enter how many trials"), (3, 0, "must be more than 0")):  # fmt: skip
        typed = {tab.number: tab.number.preprocess(number), tab.seconds: tab.seconds.preprocess(seconds)}
        card = compare_tab._estimate(tab, {tab.shown: "", tab.kind: "search", tab.methods: [], **typed})
        assert problem in plain(card)


def test_the_cost_is_told_for_all_runs_together(trainer):
    told = experiments.cost(Choice(seeds=3, seconds=5), Recipe.load("corporate"))
    assert told == {"runs": 3, "training": 15, "seconds": 21.0, "notes": []}
    html = plain(compare_view.cost(told, "<b>mine</b>"))
    assert "3 runs , 15 s of training in all" in html
    assert "About 21 s in all" in html


def test_a_visitor_has_few_experiments_at_once_and_what_is_kept_for_them_is_bounded(trainer, root, monkeypatch):
    for _ in range(4):
        begun()
    with pytest.raises(TunerError, match="4 runs that wait or train"):
        begun()
    monkeypatch.setattr(experiments, "MOST_WITH_ROWS", 1)
    for session in ("carl", "dora"):
        made, _ = experiments.start(Choice(seeds=2), Recipe.load("corporate"), PASTED, Visitor(session))
    assert [file.parents[1].name for file in root.glob("*/rows/pasted")] == [made.id]
    for file in root.glob("*/experiment.json"):
        os.utime(file, (0, 0))
    experiments._clean()
    assert list(root.iterdir()) == []


def test_rows_that_were_entered_are_kept_for_a_day_and_then_their_owner_is_told(trainer, root, monkeypatch):
    name, owner = begun(rows=PASTED)
    experiments._clean()
    assert (root / name / "rows/pasted").exists()
    file = root / name / "experiment.json"
    os.utime(file, (0, 0))
    monkeypatch.setattr(experiments.experiment, "delete_orphans", lambda: [])  # as if a run of it were left
    experiments._clean()
    assert not list(root.glob("*/rows/*"))
    experiments.resume(name, owner)
    with pytest.raises(TunerError, match="were deleted after a day"):
        experiments.advance(name, owner)
    assert phase(name) == "next"
    assert trainer.trained == []


def test_strange_ids_open_no_experiment(trainer, mine):
    name, _ = begun()
    for given in ("", "../x", "mine", f"{name}/", f"../runs/{name}", "x" * 300):
        with pytest.raises(TunerError, match="There is no experiment"):
            experiments.open_experiment(given)


# The tab.


def kept_of(values: list) -> dict:
    """What the browser remembers after Start."""
    return values[1]


@pytest.fixture
def started(trainer) -> tuple[str, dict]:
    """Ann's experiment and what her browser remembers."""
    name, owner = begun()
    return name, {"runs": {name: owner.secrets[name]}, "shown": ""}


def test_the_tab_shows_progress_then_the_ranking_and_keeps_the_runs(started):
    name, kept = started
    seen, drawn, sent, deadline = "", "", [], time.monotonic() + 20
    while 'data-phase="done"' not in drawn:
        assert time.monotonic() < deadline
        listed, card, results, timer, _, stop, resume, again, mark = compare_tab._tick(name, kept, seen, ANN)
        kept = listed if isinstance(listed, dict) and "runs" in listed else kept
        if isinstance(mark, str):
            seen, drawn = mark, card
        sent += [results] * isinstance(results, str)
    assert len(sent) == len(set(sent))  # each table and drawing once
    opened = experiments.open_experiment(name)
    assert kept["runs"] == dict.fromkeys([*experiments.runs_of(opened), name], kept["runs"][name])
    assert (timer.active, stop["visible"], resume["visible"], again["visible"]) == (False, False, False, True)
    results = compare_view.results(opened)
    assert results == compare_tab.panel(name)[1]
    assert "scored highest, but that may be luck" in plain(results)
    for part in ('<svg xmlns="http://www.w3.org/2000/svg"', 'download="comparison.csv"', 'download="comparison.png"'):
        assert part in results
    half = compare_tab._tick(name, kept, f"0 {seen.partition(' ')[2]}", ANN)
    assert ('data-phase="done"' in half[1], half[2]) == (True, compare_tab.gr.skip())  # not the drawing once more
    again = compare_tab._tick(name, kept, seen, ANN)
    assert again == [compare_tab.gr.skip()] * len(again)


def test_only_the_owner_sees_buttons(started):
    name, kept = started
    own = compare_tab.panel(name, Visitor(secrets=kept["runs"]))
    other = compare_tab.panel(name, BOB)
    assert (own[4]["visible"], other[4]["visible"]) == (True, False)
    assert experiments.NOT_YOURS in plain(other[0])
    assert compare_tab._does(experiments.stop)(name, None, BOB)[0].count("t-problems") == 1
    assert compare_tab._does(experiments.stop)(name, kept, ANN)[5]["visible"] is True
    assert compare_tab.show(name, BOB)[0] == name
    assert compare_tab.show("gone", BOB)[0] == ""
    assert "There is no experiment" in plain(compare_tab.panel("gone")[0])


def test_finished_runs_are_held_beside_each_other(trainer, root):
    names = []
    for number in range(2):
        run = trainer.write_run(
            Recipe.load("corporate").with_settings({"seed": number}), None, ANN, root / f"r{number}"
        )
        list(trainer.train(run, 0))
        names.append(run.id)
    html = compare_tab._hold_beside(names)
    assert "Settings that differ" in html
    assert plain(html.partition("Settings that differ")[2]).split()[:6] == ["Setting", "r0", "r1", "seed", "0", "1"]
    assert "Name at least two different runs" in plain(compare_tab._hold_beside(None))
    assert "7 runs are too many here." in plain(compare_tab._hold_beside(["r0"] * 7))
    assert "There is no run" in plain(compare_tab._hold_beside(["../r0", "r1"]))
    choices = compare_tab._finished_runs({"runs": ["r0", "gone"], "shown": ""})["choices"]
    assert ("corporate", "r0") in choices


# Earlier experiments.


def own(*known: tuple[str, str]) -> dict:
    """What a browser remembers: ids, newest first, with their secrets."""
    return {"runs": dict(known), "shown": ""}


def made(choice: Choice = TWO) -> tuple[str, str]:
    """Ann's new experiment and its secret."""
    opened, secret = experiments.start(choice, Recipe.load("corporate"), None, ANN)
    return opened.id, secret


def test_a_browser_lists_its_own_experiments_with_kind_base_data_and_how_far_they_are(trainer, root):
    older, newer = made(), made(Choice(seeds=3))
    until(older[0], lambda now: now.phase == "done", Visitor(secrets=dict([older])))
    kept = own(newer, ("a-run", "x"), older, ("gone", "x"))
    listed, delete, asking, _ = compare_tab._list_earlier(kept, older[0], ANN)
    what = "tiny-office · corporate.jsonl"
    assert listed["choices"] == [
        (f"Several seeds · {what} · 0 of 3 runs done · {newer[0][:6]}", newer[0]),
        (f"Several methods · {what} · 2 of 2 runs done · {older[0][:6]}", older[0]),
    ]
    assert (listed["value"], delete["visible"], asking["visible"]) == (older[0], True, False)
    # Of somebody else's, nothing is listed, and what is shown by a link can't be deleted.
    listed, delete, *_ = compare_tab._list_earlier(own((older[0], "wrong")), older[0], BOB)
    assert (listed["choices"], listed["value"], delete["visible"]) == ([], None, False)
    (root / newer[0] / "experiment.json").write_text("{")
    listed, *_ = compare_tab._list_earlier(kept, "", ANN)
    assert listed["choices"][0] == (f"can't be read · {newer[0][:6]}", newer[0])


def test_the_chosen_one_is_shown(started):
    name, kept = started
    shown, *panel = compare_tab._choose(name, kept, ANN)
    assert shown == name
    assert "0 of 2 runs are over." in plain(panel[0])
    assert panel[4]["visible"] is True  # Stop
    assert compare_tab._choose(None, kept, ANN)[0] == ""


def test_a_deleted_experiment_leaves_its_runs_to_their_owner(started, root):
    name, kept = started
    secret = kept["runs"][name]
    until(name, lambda now: now.phase == "done", Visitor(secrets=kept["runs"]))
    made_runs = experiments.runs_of(experiments.open_experiment(name))
    remaining, problem, shown, *panel = compare_tab._delete(name, kept, ANN)
    assert (problem, shown, panel[1]) == ("", "", "")
    assert not (root / name).exists()
    # No page had looked since the last run was made, so the browser did not know it yet.
    assert remaining["runs"] == dict.fromkeys(made_runs, secret)
    for run in made_runs:
        assert ownership.is_owner(experiments.actions.open_run(run), Visitor(secrets=remaining["runs"]))


@pytest.mark.parametrize("is_training", [True, False])
def test_an_experiment_in_progress_is_stopped_before_it_is_deleted(is_training, started, trainer, root, monkeypatch):
    name, kept = started
    owner, free = Visitor(secrets=kept["runs"]), threading.Event()

    def waits(run: Run, slot: int):
        run.append(START)
        assert free.wait(20)
        yield from trainer.train(run, slot)

    monkeypatch.setattr(gpu, "train", waits)
    if is_training:
        until(name, lambda now: now.phase == "running", owner)
    assert "Press Stop and wait" in plain(compare_tab._delete(name, kept, ANN)[1])
    experiments.stop(name, owner)
    if is_training:
        assert "Press Stop and wait" in plain(compare_tab._delete(name, kept, ANN)[1])
    free.set()
    until(name, lambda now: now.phase == "paused", owner)
    assert (root / name).exists()
    assert compare_tab._delete(name, kept, ANN)[1] == ""
    assert not (root / name).exists()


def test_only_the_owner_deletes_an_experiment_and_not_while_its_next_run_is_prepared(started, root):
    name, kept = started
    experiments.stop(name, Visitor(secrets=kept["runs"]))
    assert experiments.NOT_YOURS in plain(compare_tab._delete(name, own((name, "wrong")), BOB)[1])
    with experiments.alone(root / name):
        assert "Press Stop and wait" in plain(compare_tab._delete(name, kept, ANN)[1])
    assert (root / name / "experiment.json").is_file()
    assert "There is no experiment" in plain(compare_tab._delete("gone", kept, ANN)[1])


# The endpoints.


def test_programs_stream_all_runs_and_then_the_ranking(trainer):
    events = list(streamed(compare_api.compare("", None, "", "lora, ia3", seconds=5, visitor=ANN)))
    first, last = events[0], events[-1]
    assert first["event"] == "experiment"
    assert {event["label"] for event in events[1:-1]} == {"lora", "ia3"}
    assert [event["label"] for event in events if event["event"] == "end"] == ["lora", "ia3"]
    assert (last["event"], last["phase"], last["done"], len(last["lines"])) == ("results", "done", 2, 2)
    assert compare_api.comparison(first["experiment"])["sentences"] == last["sentences"]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"search": float("nan")}, "search: nan can't be used. Give a whole number, or 0."),
        ({"seeds": float("inf")}, "seeds: inf can't be used. Give a whole number, or 0."),
        ({"seeds": 2.5}, "seeds: 2.5 can't be used. Give a whole number, or 0."),
        ({"search": None, "seeds": None, "methods": None}, "There is nothing to compare."),
        ({"seeds": 2, "seconds": None}, "must be more than 0"),
    ],
)
def test_numbers_of_programs_that_are_none_are_refused_in_words(given, problem, trainer):
    with pytest.raises(TunerError, match=problem):
        next(streamed(compare_api.compare("", visitor=ANN, **given)))


def test_programs_resume_with_the_secret_alone(trainer):
    name, owner = begun()
    experiments.stop(name, owner)
    with pytest.raises(TunerError, match="Only whoever started it"):
        next(streamed(compare_api.compare("", experiment=name, secret="wrong", visitor=BOB)))
    events = list(streamed(compare_api.compare("", experiment=name, secret=owner.secrets[name], visitor=BOB)))
    assert events[0] == {"event": "experiment", "experiment": name}
    assert events[-1]["phase"] == "done"
