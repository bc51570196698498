"""What a visitor can do, by the page's functions and by the endpoints: guards, arguments and every field returned."""

import inspect
import math
import os
import shutil
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import gradio as gr
import pytest
from conftest import SMALL
from visitors_runs import ANN, CHECK, VISITOR, copied, streamed, with_events

from tuner import recipe
from tuner.data import sources
from tuner.errors import TunerError
from tuner.methods.registry import METHODS
from tuner.models import fetch
from tuner.planning import plan
from tuner.recipe import Recipe
from tuner.runs import Run
from tuner.tasks import TASKS
from tuner.ui import actions, api, home_api, run_queue
from tuner.ui.sampling import checked_sampling
from tuner.ui.visitor import Visitor

pytest_plugins = ["page_fixtures"]
ROWS = "prompt,completion\n" + "".join(f"hey {'so ' * i}{i},Hello {i}.\n" for i in range(12))
START = {"event": "start", "step": 0, "steps": 9}
PAUSED = {"event": "end", "reason": "window", "step": 4}


def problems(act, *given, **settings) -> list[str]:
    """Why it is refused, by a function of the page or by an endpoint."""
    streams = inspect.isgeneratorfunction(act)
    if inspect.isasyncgenfunction(act):
        act, streams = lambda *given, act=act, **settings: streamed(act(*given, **settings)), True
    with pytest.raises((TunerError, gr.Error)) as caught:
        next(act(*given, **settings)) if streams else act(*given, **settings)
    if isinstance(caught.value, gr.Error):
        assert (caught.value.title, caught.value.print_exception) == ("Tuner", False)
        return caught.value.message.split("\n")
    return list(caught.value.problems)


@contextmanager
def waiting(run: str):
    """The run waits for its turn, since others train at all places."""
    with ExitStack() as stack:
        for number in range(run_queue.queue.places):
            run_queue.queue.join(f"other{number}", f"visitor{number}")
            assert stack.enter_context(run_queue.queue.turn(f"other{number}"))
        run_queue.queue.join(run, VISITOR)
        yield
        run_queue.queue.leave(run)


@pytest.fixture
def started(monkeypatch) -> list[tuple]:
    """The runs that were queued: id, visitor and event. None of them is trained."""
    started = []
    monkeypatch.setattr(
        run_queue, "start", lambda run, visitor, event=None: started.append((run.id, visitor.session, event))
    )
    return started


def test_the_page_starts_with_the_shipped_example(monkeypatch, tmp_path):
    assert actions.starting_recipe() == Recipe.load("corporate")
    monkeypatch.setattr(recipe, "EXAMPLES", tmp_path)
    assert actions.starting_recipe() == Recipe()


def test_the_run_looked_at_last_is_the_last_to_be_forgotten(root, monkeypatch):
    monkeypatch.setattr(actions, "MOST_OPEN", 2)
    for name in "abc":
        copied(name)
    opened = {name: actions.open_run(name) for name in "ab"}
    assert actions.open_run("a") is opened["a"]
    actions.open_run("c")
    assert actions.open_run("a") is opened["a"]
    assert actions.open_run("b") is not opened["b"]
    for name in ("", None, "../a", str(root / "a"), "."):
        assert "There is no run" in problems(actions.open_run, name)[0]


def test_a_run_whose_recipe_is_another_file_or_was_written_again_is_opened_anew(mine):
    recipe_file, opened = mine.path / "recipe.yaml", actions.open_run("mine")
    assert actions.open_run("mine") is opened
    shutil.copy2(recipe_file, mine.path / "copy.yaml")  # of the same time
    (mine.path / "copy.yaml").rename(recipe_file)
    replaced = actions.open_run("mine")
    assert replaced is not opened
    os.utime(recipe_file, (1, 1))
    assert actions.open_run("mine") is not replaced


def test_the_example_is_installed_once_and_whole(root):
    assert not actions.has_example()
    actions.install_example()
    assert actions.has_example()
    assert Run(root / "example").status == "finished"
    (root / "example" / "note").touch()
    actions.install_example()
    assert (root / "example" / "note").exists()
    assert [path.name for path in root.iterdir()] == ["example"]


def test_rows_are_those_of_the_file_or_else_the_pasted_ones(tmp_path):
    (tmp_path / "table.csv").write_text("a,b\n" + "x,y\n" * 6)
    file, pasted = str(tmp_path / "table.csv"), "c,d\n" + "x,y\n" * 9
    assert actions.columns(actions.entered(file, pasted)) == ["a", "b"]
    assert actions.columns(actions.entered(None, pasted)) == ["c", "d"]
    for nothing in (None, "", " \n"):
        assert actions.entered(None, nothing) is None


def test_a_recipe_may_draw_from_more_rows_than_the_page_takes(tmp_path, monkeypatch):
    monkeypatch.setattr("tuner.data.table.MAX_ROWS", 5)
    (tmp_path / "rows.csv").write_text(ROWS)
    for given in ((None, ROWS), (str(tmp_path / "rows.csv"), "")):
        assert api.check("data: {max_rows: 4, heldout: 1}", *given)["plan"]["rows"] == 3
        assert "5 rows" in api.check("", *given)["problems"][0]
    assert api.requested(None, None, "", ANN) == (Recipe(), None, ANN)


def test_the_examples_plan_is_known_for_its_recipe_whatever_its_name(root):
    example = Recipe.load("corporate")
    assert actions.known_plan(example) is None
    actions.install_example()
    assert actions.known_plan(example)["model_parameters"] == 3410176
    assert actions.known_plan(example.model_copy(update={"name": None})) is not None
    assert actions.known_plan(example.model_copy(update={"seed": 1})) is None
    (root / "example" / "plan.json").unlink()
    actions._open.clear()
    assert actions.known_plan(example) is None


@pytest.mark.parametrize(
    ("settings", "cached", "local"),
    [
        ({}, None, True),
        ({"data.source": "owner/rows"}, "path", False),
        ({"model.name": "owner/base"}, None, False),
        ({"model.name": "owner/base", "model.revision": "v2"}, "path", True),
        ({"model.name": "not a name!"}, None, True),  # which checking reports
    ],
)
def test_what_is_shipped_or_downloaded_is_local(settings, cached, local, monkeypatch):
    asked = []
    monkeypatch.setattr(fetch, "_public_copy", lambda model: asked.append(model) or cached)
    requested = Recipe().with_settings(settings)
    assert actions.is_local(requested) is local
    if "model.revision" in settings:
        assert asked == [requested.model]


def test_a_preview_is_of_the_first_rows_and_of_all_lengths():
    requested = Recipe().with_settings(SMALL | {"data.max_length": 40})
    checked = plan.check(requested, sources.read_pasted(ROWS), local=False)
    seen = actions.preview(requested, actions.entered(None, ROWS))
    lengths = list(checked.train.lengths)
    assert len(seen["rows"]) == 3
    for row, pieces in zip(checked.train.rows, seen["rows"]):
        assert checked.tokenizer.decode(row["input_ids"]) == "".join(piece["text"] for piece in pieces)
    assert sum(count for *_, count in seen["histogram"]) == len(lengths)
    assert seen["histogram"][0][0] == min(lengths)
    assert (seen["longest"], seen["max_length"]) == (max(lengths), 40)
    assert seen["longest"] > min(lengths)
    assert (seen["truncated"], seen["lost_tokens"]) == (checked.train.truncated, checked.train.lost_tokens)
    assert (seen["warning"], seen["format"]) == (checked.train.warning, checked.format.reason)
    assert api.preview(requested.to_yaml(), None, ROWS) == seen
    assert api.check(requested.to_yaml(), None, ROWS)["plan"]["rows"] == len(lengths)
    assert set(api.check("{seed: x}")) == set(api.preview("{seed: x}")) == {"problems"}


@pytest.mark.parametrize("signed_in", [True, False])
def test_a_prepared_run_is_queued_for_its_visitor_and_reads_no_path(root, started, monkeypatch, signed_in):
    given = []
    monkeypatch.setattr(plan, "prepare", lambda *args, **more: given.append((*args, more)) or more["path"].mkdir())
    requested, rows = Recipe(seed=3), actions.entered(None, ROWS)
    run, _ = actions.prepare(requested, rows, Visitor(VISITOR, account="ann" if signed_in else None))
    assert run.path.parent == root
    assert given == [(requested, sources.read_pasted(ROWS), {"local": False, "token": False, "path": run.path})]
    assert started == [(run.id, VISITOR, {"event": "queued", "signed_in": signed_in})]


def test_of_a_run_that_cant_be_prepared_nothing_is_left(root, started, monkeypatch):
    def fail(*given, path, **settings):
        (path / "data").mkdir(parents=True)
        raise MemoryError

    monkeypatch.setattr(plan, "prepare", fail)
    (problem,) = problems(actions.prepare, Recipe())
    assert "needed more than 2.8 GB of memory" in problem
    assert (list(root.iterdir()), started) == ([], [])


def test_a_run_is_resumed_only_if_something_is_left_to_do_and_nobody_does_it(mine, started):
    (finished,) = problems(actions.resume, "mine", ANN)
    assert finished == (
        "Run mine has finished, so there is nothing to resume. For longer training, start a run with more steps."
    )
    with_events(mine, START, PAUSED)
    busy = ["Run mine is already in training or waiting for its turn."]
    with mine.training():
        assert problems(actions.resume, "mine", ANN) == busy
    with waiting("mine"):
        assert problems(actions.resume, "mine", ANN) == busy
    assert started == []
    assert actions.resume("mine", ANN).id == "mine"
    assert started == [("mine", VISITOR, {"event": "queued"})]
    copied("example")
    assert "belongs to everybody" in problems(actions.resume, "example", ANN)[0]


def test_who_watches_a_run_starts_its_next_window(mine, started):
    assert actions.watch("mine", ANN).id == "mine"
    assert started == []
    with_events(mine, START, PAUSED)
    actions.watch("mine", ANN)
    assert started == [("mine", VISITOR, {"event": "continued"})]


def test_stopping_withdraws_a_run_that_waits_and_asks_one_that_has_begun(mine):
    with_events(mine, START, {"event": "end", "reason": "stopped"})
    nothing = ["Run mine is not in training, so there is nothing to stop."]
    assert problems(actions.stop, "mine", visitor=ANN) == problems(api.stop, "mine", visitor=ANN) == nothing
    assert not mine.is_asked_to_stop
    with waiting("mine"):
        assert actions.stop("mine", visitor=ANN) == "withdrawn"
        assert not run_queue.queue.holds("mine")
    assert mine.last_event()["event"] == "withdrawn"
    assert not mine.is_asked_to_stop
    with mine.training():
        assert api.stop("mine", visitor=ANN) == "stopping"
        assert mine.is_asked_to_stop
    run_queue.queue.join("mine", VISITOR)
    with run_queue.queue.turn("mine"):  # it has its place, and its process is starting
        assert actions.stop("mine", visitor=ANN) == "stopping"
        assert mine.is_asked_to_stop
    with_events(mine, START, PAUSED)
    assert actions.stop("mine", visitor=ANN) == "withdrawn"  # from its next window
    copied("example")
    assert "belongs to everybody" in problems(api.stop, "example", visitor=ANN)[0]


def test_a_run_is_deleted_unless_it_trains_or_waits_or_is_the_example(mine):
    busy = ["Run mine is in training or waiting for its turn. Stop it first, then delete it."]
    with waiting("mine"):
        assert problems(api.delete, "mine", visitor=ANN) == busy
    with mine.training():
        assert problems(api.delete, "mine", visitor=ANN) == busy
    assert api.delete("mine", visitor=ANN) == "deleted"
    assert not mine.path.exists()
    example = copied("example")
    assert "belongs to everybody" in problems(api.delete, "example", visitor=ANN)[0]
    assert example.path.exists()


def test_one_run_stands_beside_its_base_with_its_adapter_and_its_merged_model(mine):
    for ids in (["mine"], ["mine", "mine"]):
        lineup = actions.lineup(ids, ANN)
        assert lineup.variants == ["base", "adapter", "merged"]
        assert (lineup.adapters["adapter"].id, lineup.merged["merged"].id) == ("mine", "mine")
        assert lineup.task is TASKS["generation"]
    copied("soft", "seq2seq", method__name="prefix_tuning")
    assert actions.lineup(["soft"], ANN).variants == ["base", "adapter"]
    assert actions.lineup(["soft"], ANN).task is TASKS["seq2seq"]
    assert problems(actions.lineup, [], ANN) == ["No run is chosen. Choose one, or train one first."]
    for name in ("b", "c", "d"):
        copied(name)
    assert problems(actions.lineup, ["mine", "b", "c", "d"], ANN) == [
        "4 runs are too many to compare side by side. Choose at most 3."
    ]
    assert "There is no run 'gone'" in problems(actions.lineup, ["mine", "gone"], ANN)[0]


def test_several_runs_stand_beside_their_base_in_the_order_in_which_they_are_named(mine, models, monkeypatch):
    copied("b", seed=1)
    monkeypatch.setattr("tuner.models.load.load_base", None)  # on ZeroGPU this process has no device to load to
    lineup = actions.lineup(["b", "mine", "b"], ANN)
    assert lineup.variants == ["base", "b", "mine"]
    assert models.imports == 1
    assert {variant: run.id for variant, run in lineup.adapters.items()} == {"b": "b", "mine": "mine"}
    copied("exact", model__quantization="none")
    assert "different bases" in problems(actions.lineup, ["mine", "exact"], ANN)[0]


def test_whether_a_run_can_be_merged_is_known_from_its_method_and_else_from_its_model(root, models, monkeypatch):
    asked = []
    monkeypatch.setattr("tuner.inference.merge.is_mergeable", lambda run: asked.append(run.id) or len(asked) > 1)
    assert actions.can_merge(copied("a"))
    assert not actions.can_merge(copied("b", method__name="prefix_tuning"))
    assert (asked, models.imports) == ([], 0)
    assert METHODS["bitfit"].mergeable
    c = copied("c", method__name="bitfit")
    assert [actions.can_merge(c), actions.can_merge(c)] == [False, True]
    assert (asked, models.imports) == (["c", "c"], 2)


SAMPLING = {"temperature": 0.5, "top_p": 0.25, "max_new_tokens": 7, "seed": 3}


@pytest.mark.parametrize(
    ("name", "low", "high", "below", "above"),
    [
        ("temperature", 0, 5, -0.01, 5.01),
        ("top_p", 0.01, 1, 0.0099, 1.01),
        ("max_new_tokens", 1, 2048, 0, 2049),
        ("seed", 0, 2**31 - 1, -1, 2**31),
    ],
)
def test_sampling_is_refused_outside_of_its_bounds(name, low, high, below, above):
    for value in (low, high, str(low)):
        checked = checked_sampling(SAMPLING | {name: value})
        assert checked == SAMPLING | {name: float(value) if name in ("temperature", "top_p") else int(value)}
        assert type(checked[name]) is type(SAMPLING[name])
    for value in (below, above, None, "many", math.nan, math.inf):
        said = problems(checked_sampling, SAMPLING | {name: value})
        assert said == [f"{name}: {value} can't be used. Give a number from {low} to {high}."]
    assert len(problems(checked_sampling, dict.fromkeys(SAMPLING, "x"))) == 4


def test_the_endpoint_asks_each_model_with_its_own_history(mine, models):
    history = {
        "base": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "merged": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}],
    }
    told = list(api.chat(" mine ,", "more?", history, "Be brief.", *SAMPLING.values(), visitor=ANN))
    assert told[-1] == {v: f"Good day from {v}" for v in ("base", "adapter", "merged")}
    assert len(told) == 2
    ((adapters, merged, conversations, sampling),) = models.asked
    assert [run.id for run in adapters.values()] == ["mine"]
    assert merged == {"merged": mine.merged}
    assert models.merges == ["mine"]
    system, turn = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "more?"}
    assert conversations == {
        "base": [system, *history["base"], turn],
        "adapter": [system, turn],
        "merged": [system, *history["merged"], turn],
    }
    assert sampling == SAMPLING
    list(api.chat("mine", "hi", visitor=ANN))
    _, _, conversations, sampling = models.asked[-1]
    assert conversations["adapter"] == [{"role": "user", "content": "hi"}]
    assert sampling == {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 96, "seed": 0}


def test_the_endpoint_refuses_what_no_model_can_be_asked(mine, models):
    no_texts = [{"role": "user", "content": 3}, {"role": "user"}, {"content": "x"}]
    for turn in [{"role": "oracle", "content": "x"}, *no_texts, "x", ["user", "x"]]:
        (said,) = problems(api.chat, "mine", "hi", {"adapter": [turn]}, visitor=ANN)
        assert said.startswith('history: a turn is not {"role": "user" or "assistant", "content": text}.')
    for role in ("system", "user", "assistant"):
        next(api.chat("mine", "hi", {"base": [{"role": role, "content": "x"}]}, visitor=ANN))
    asked = len(models.asked)
    assert len(problems(api.chat, "mine", "hi", temperature=6, seed=-1, visitor=ANN)) == 2
    copied("labels", "classification", method__name="prefix_tuning")
    assert problems(api.chat, "labels", "hi", system="Be brief.", visitor=ANN) == [
        "system: models for text classification have no system prompt. Leave it out."
    ]
    assert len(models.asked) == asked
    assert "No run is chosen" in problems(api.chat, " , ", "hi", visitor=ANN)[0]
    next(api.chat("labels", "hi", visitor=ANN))
    assert (models.asked[-1][1], models.merges) == ({}, ["mine"] * 3)


def test_merging_gives_the_merge_check_and_needs_no_run_of_ones_own(mine, models):
    assert api.merge("mine", visitor=ANN) == CHECK
    copied("example")
    assert api.merge("example", visitor=ANN) == CHECK
    assert models.merges == ["mine", "example"]
    assert "There is no run" in problems(api.merge, "gone", visitor=ANN)[0]


@pytest.mark.parametrize(("token", "given"), [(" hf_x \n", "hf_x"), ("", None), ("  ", None)])
@pytest.mark.parametrize("private", [True, False])
def test_a_push_passes_on_what_it_is_given(mine, monkeypatch, token, given, private):
    asked = []

    def push(run, repository, what, *, token, private, failed_merge, data_name, into, tell):
        assert (failed_merge, what, data_name, into) == (False, "adapter", None, "main")
        asked.append((run.id, repository, token, private))
        return "https://hub/ann/x"

    monkeypatch.setattr("tuner.hub.push.push", push)
    signed_in = replace(ANN, token="hf_own")
    for visitor in (ANN, signed_in):
        assert home_api.push("mine", "ann/x", token, private, visitor=visitor) == "https://hub/ann/x"
    assert actions.push("mine", None, private, signed_in) == "https://hub/ann/x"
    assert asked == [
        ("mine", "ann/x", given, private),
        ("mine", "ann/x", given or "hf_own", private),
        ("mine", "", "hf_own", private),
    ]


def test_a_run_is_summed_up_in_plain_values(root):
    copied("mine", model__quantization="int8", method__name="ia3", method__rank="auto")
    (row,) = api.runs(["mine"])
    scores = row.pop("scores")
    assert row == {
        "run": "mine",
        "name": "corporate",
        "status": "finished",
        "model": "tiny-office",
        "quantization": "int8",
        "data": "corporate.jsonl",
        "method": "ia3",
        "problems": [],
    }
    assert {"metric", "rows", "base", "adapter", "gain", "heldout_rows"} < set(scores)
    assert "examples" not in scores
    with_events(copied("open", name=None), START, PAUSED)
    row = api.runs(["open"])[0]
    assert (row["name"], row["status"], row["scores"]) == (None, "paused", None)
    copied("broken").write_text("plan.json", "{")
    (problem,) = api.runs(["broken"])[0].pop("problems")
    assert problem.startswith("Run broken: its plan.json is damaged.")
    assert {key: value for key, value in api.runs(["broken"])[0].items() if key != "problems"} == {
        "run": "broken",
        "name": None,
        "status": "damaged",
        "model": "",
        "quantization": "",
        "data": "",
        "method": "",
        "scores": None,
    }


def test_runs_are_listed_once_each_in_their_order_with_the_example_at_the_end(root):
    assert api.runs([]) == []
    for name in ("b", "a", "example"):
        copied(name)
    assert [row["run"] for row in api.runs(["b", "gone", "a", "b"])] == ["b", "a", "example"]
    assert [row["run"] for row in api.runs(["example", "a"])] == ["example", "a"]


def test_the_status_of_a_run_has_every_field(mine):
    mine.write_json("merge_check.json", CHECK)
    status = api.status("mine")
    assert {key: status[key] for key in ("run", "status", "phase", "place", "step", "steps")} == {
        "run": "mine",
        "status": "finished",
        "phase": "finished",
        "place": None,
        "step": 300,
        "steps": 300,
    }
    assert status["events"] == mine.events()[-20:]
    assert status["evaluation"] == mine.read_json("evaluation.json")
    assert (status["merge_check"], status["plan"]) == (CHECK, mine.plan)
    assert status["recipe"] == mine.recipe.to_yaml()
    assert set(status) == {*api.runs(["mine"])[0], "phase", "place", "step", "steps", "events", "evaluation"} | {
        "merge_check",
        "plan",
        "recipe",
    }
    with_events(mine, {**START, "steps": 40}, {"event": "step", "step": 7, "steps": 40, "loss": 1.0}, PAUSED)
    with waiting("mine"):
        status = api.status("mine")
    assert (status["phase"], status["status"], status["place"]) == ("waiting", "paused", 1)
    assert (status["step"], status["steps"], status["evaluation"]) == (7, 40, None)


EVENTS = [{"event": "waiting", "place": 2, "seconds": None}, {"event": "step", "step": 1}, {"event": "end"}]


@pytest.fixture
def followed(monkeypatch) -> list[tuple]:
    """Who followed which run, and what its reader had still to read; each is given EVENTS."""
    followed = []

    async def follow(run, visitor, reader, is_listening):
        followed.append((run.id, visitor.session, [event["event"] for event in reader.read()]))
        assert is_listening()
        for event in EVENTS:
            yield event

    monkeypatch.setattr(run_queue, "follow", follow)
    return followed


def test_training_names_the_run_and_then_streams_its_events(mine, followed, monkeypatch):
    with_events(mine, {"event": "queued"}, START)
    given = []
    monkeypatch.setattr(actions, "prepare", lambda *args: given.append(args) or (mine, "secret"))
    first, *rest = streamed(api.train("{seed: 3, data: {max_rows: 5}}", None, ROWS, visitor=ANN))
    assert first == {"event": "run", "run": "mine", "secret": "secret", "plan": mine.plan}
    assert rest == EVENTS
    ((requested, table, visitor),) = given
    assert (requested.seed, visitor, table.pasted) == (3, ANN, ROWS)
    assert followed == [("mine", VISITOR, ["queued", "start"])]


def test_resuming_streams_only_what_happens_from_now_on(mine, followed, started, monkeypatch):
    with_events(mine, START, PAUSED)
    monkeypatch.setattr(run_queue, "start", lambda run, visitor, event: run.append(event))
    first, *rest = streamed(api.resume("mine", visitor=ANN))
    assert first == {"event": "run", "run": "mine", "plan": mine.plan}
    assert rest == EVENTS
    assert followed == [("mine", VISITOR, ["queued"])]


def test_every_problem_of_a_refused_call_is_a_line(root):
    said = problems(api.train, "{seed: x, budget: {steps: 0}}", None, "", ANN)
    assert len(said) == 2
    for call in (
        api.status,
        api.stop,
        api.delete,
        api.merge,
        lambda run: next(streamed(api.resume(run, visitor=ANN))),
    ):
        assert problems(call, "gone") == [
            "There is no run 'gone'. Check the id in your list of runs, or train a new one."
        ]
    assert "There is no run" in problems(home_api.push, "gone", "a/b", "hf_x")[0]


def test_a_strangers_template_is_rendered_where_it_can_be_ended_and_nowhere_else(mine, models, monkeypatch):
    talk = {variant: [{"role": "user", "content": f"hi {variant}"}] for variant in ("base", "adapter")}
    lineup = actions.Lineup({"adapter": mine}, {})
    given = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 4, "seed": 0}
    assert list(actions.chat(lineup, talk, **given))
    monkeypatch.setattr(actions, "is_shipped", lambda name: False)
    assert list(actions.chat(lineup, talk, **given))
    (_, _, shipped, plain), (_, _, foreign, sampling) = models.asked
    assert (shipped, plain.get("ends")) == (talk, None)
    assert [text.count(f"hi {variant}") for variant, text in foreign.items()] == [1, 1]
    assert all(isinstance(text, str) for text in foreign.values())
    assert all(isinstance(end, int) for end in sampling["ends"])
