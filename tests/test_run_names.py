"""A run's id is one strict pattern before it touches the disk, and no message shows where runs are."""

import gradio as gr
import pytest
from visitors_runs import ANN, copied, streamed, with_events

from tuner import runs
from tuner.errors import TunerError
from tuner.recipe import Recipe
from tuner.ui import actions, api, run_queue
from tuner.ui.problems import problems_of

pytest_plugins = ["page_fixtures"]

NO_IDS = ["", " ", "example ", " example", "example\n", "example.", "./example", "example/", "exam\0ple", "a" * 65]
NO_IDS += ["a" * 300, "a" * 5000, "ex\ud800ample", ".", "..", ".deleted-0", "ex*mple", "exa\u0301mple", "Ｅxample"]
NO_IDS += ["\u202eexample", "CON:", "example:stream", "~", "$HOME", "%2e%2e"]
ACTIONS = (actions.open_run, actions.own_run, actions.stop, actions.delete, actions.resume, actions.watch, api.status)


@pytest.mark.parametrize("name", NO_IDS)
def test_what_is_no_id_finds_no_run_and_touches_nothing(name, root):
    copied("example")
    for act in ACTIONS:
        with pytest.raises((TunerError, gr.Error)) as caught:
            act(name)
        (told,) = problems_of(caught.value)
        assert told.startswith("There is no run '")
        assert len(told) < 200
        assert told.isprintable()
        told.encode()
        assert str(root) not in told
    assert [path.name for path in root.iterdir()] == ["example"]


def test_the_ids_of_new_runs_and_names_of_runs_made_by_hand_are_ids(root):
    for name in (*(runs.create(Recipe()).id for _ in range(100)), "example", "lora-v2", "lora.v2_b", "7", "-a"):
        assert runs.ID.fullmatch(name)


def test_a_run_is_not_found_by_its_name_in_other_letters_where_the_file_system_would(root, monkeypatch):
    """As on macOS: the shipped example can't be changed, under no name."""
    copied("Example")
    (root / "eXAMPLE").symlink_to("Example")
    listed = runs.os.listdir
    monkeypatch.setattr(runs.os, "listdir", lambda folder: [name for name in listed(folder) if name != "eXAMPLE"])
    assert actions.open_run("Example").id == "Example"
    with pytest.raises(TunerError, match="There is no run"):
        actions.open_run("eXAMPLE")


def test_on_ones_own_machine_a_path_works(root, tmp_path):
    run = copied("mine")
    assert runs.open_run(run.path).path == run.path
    assert runs.open_run(f"{run.path}/").path == run.path
    assert runs.open_run("mine", root).id == "mine"


def test_a_folder_of_runs_that_cannot_be_written_to_is_not_named_to_visitors(root):
    root.rmdir()
    root.write_text("a file")
    with pytest.raises(TunerError) as caught:
        runs.create(Recipe())
    assert str(caught.value) == "There can't be a new run: the folder of runs can't be written to (not a directory)."
    assert runs.list_runs() == []
    assert actions.summaries(["mine"]) == []


def test_a_visitor_sees_no_path_of_a_run_that_was_made_on_this_machine(root, tmp_path, monkeypatch):
    """A run of the terminal, whose model and rows are folders here, seen through its link."""
    folder = tmp_path / "models" / "own"
    run = copied("mine", model__name=str(folder), data__source=str(tmp_path / "rows.csv"))
    run.write_json("plan.json", run.plan | {"model_folder": str(folder)})
    with_events(run, {"event": "start", "step": 0}, {"event": "end", "reason": "stopped"})
    shown = api.status("mine")
    assert str(tmp_path) not in f"{shown}"
    assert (shown["model"], shown["data"]) == ("own", "rows.csv")
    monkeypatch.setattr(run_queue, "queue", run_queue.RunQueue(0))
    monkeypatch.setattr(actions, "_fetch_base", lambda *given: None)
    monkeypatch.setattr(actions, "prepare", lambda *given: (run, "secret"))
    for stream in (api.resume("mine", visitor=ANN), api.train("{}", visitor=ANN)):
        event = next(streamed(stream))
        assert event["plan"]["steps"] == run.plan["steps"]
        assert str(tmp_path) not in f"{event}"
