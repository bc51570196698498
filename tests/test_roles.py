"""What a link lets one do: every endpoint and handler of the page over HTTP, as owner, as link holder, as stranger.

Anybody can call any handler with any values; that the page shows no button for it protects nothing.
"""

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from html import unescape
from types import SimpleNamespace

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from hub_double import Hub
from scored import experiment_of
from visitors_runs import Gpu, copied, with_events
from wires import BuiltPage

from tuner import gpu, runs
from tuner.hub.contents import CONTENTS
from tuner.ui import actions, downloads, experiments, ownership, run_queue
from tuner.ui.visitor import ANYBODY

START = {"event": "start", "step": 0, "steps": 9}
CLOSED = {"event": "end", "reason": "window", "step": 4}
WITHDRAWN = {"event": "withdrawn"}
FINISHED, CONTINUING, STOPPED = (), (START, CLOSED), (START, CLOSED, WITHDRAWN)
NAME = "zebra-quilt"  # the run's, which is seen by whoever sees the run
WRONG = "wrong-secret"

# What each needs: nothing of a run, the run's id (to look, or to chat), or the owner's secret (to find what is one's
# own, or to change the run); and what has happened to the run before.
NOTHING, LOOK, CHAT, OWN, CHANGE = "nothing", "look", "chat", "own", "change"
ENDPOINTS = {
    "check": NOTHING,
    "preview": NOTHING,
    "train": NOTHING,
    "status": LOOK,
    "runs": LOOK,
    "rows": LOOK,
    "compare": NOTHING,
    "adopt": NOTHING,
    "comparison": LOOK,
    "chat": CHAT,
    "resume": (CHANGE, STOPPED),
    "stop": (CHANGE, CONTINUING),
    "delete": CHANGE,
    "merge": CHANGE,
    "push": CHANGE,
    "import_run": NOTHING,
    "download": CHANGE,  # which the run does not show, but a ticket does
}
HANDLERS = {
    "form.where.change: show_source": NOTHING,
    "form.where.input: suit_budget": NOTHING,
    "form.kind.input: _relabel": NOTHING,
    "form.example.input: show_example": NOTHING,
    "any input: check": NOTHING,
    "train.fetch.click: check": NOTHING,
    "after the rows change: columns": NOTHING,
    "form.preview_fold.expand: <lambda>": NOTHING,
    "form.preview_fold.collapse: <lambda>": NOTHING,
    "after form.preview_fold.expand: preview": NOTHING,
    "after any input: preview": NOTHING,
    "train.apply.click: apply": NOTHING,
    "train.card.click: remedy": NOTHING,
    "after train.apply.click: check": NOTHING,
    "method.name.change: choose": NOTHING,
    "form.methods.click: _choose": NOTHING,
    "form.methods_fold.expand: <lambda>": NOTHING,
    "form.methods_fold.collapse: <lambda>": NOTHING,
    "after form.methods_fold.expand: fill": NOTHING,
    "after any input: fill": NOTHING,
    "train.train.click: _begin": NOTHING,
    "after train.train.click: prepare": NOTHING,
    "train.resume.click: resume": (CHANGE, STOPPED),
    "train.stop.click: _stop": (CHANGE, CONTINUING),
    "train.timer.tick: _tick": (CHANGE, CONTINUING),
    "train.again.click: _leave": NOTHING,
    "after train.again.click: check": NOTHING,
    "train.chat.click: to_playground": LOOK,
    "train.push.click: to_push": LOOK,
    "rows.fold.expand or rows.over.input or rows.outcome.input or rows.order.input or rows.search.submit or "
    "rows.search.blur: turn": LOOK,
    "rows.previous.click: turn": LOOK,
    "rows.next.click: turn": LOOK,
    "train.shown.change: _forget": NOTHING,
    "compare.kind.input: _show_kind": NOTHING,
    "compare.kind.change or compare.methods.change or compare.number.change or compare.seconds.change: "
    "estimate": NOTHING,
    "compare.start_it.click: _press": NOTHING,
    "after compare.start_it.click: begin": NOTHING,
    "compare.timer.tick: _tick": LOOK,
    "compare.stop.click: do": (CHANGE, CONTINUING),
    "compare.resume.click: do": (CHANGE, STOPPED),
    "compare.again.click: <lambda>": NOTHING,
    "after compare.again.click: estimate": NOTHING,
    "earlier.fold.expand or compare.shown.change: _list_earlier": OWN,
    "earlier.listed.input: _choose": OWN,
    "earlier.delete.click: <lambda>": NOTHING,
    "earlier.sure.click: _delete": CHANGE,
    "after earlier.sure.click: estimate": NOTHING,
    "compare.fold.expand: _finished_runs": LOOK,
    "compare.hold.click: _hold_beside": LOOK,
    "Compare.select: estimate": NOTHING,
    "play.send.click or play.prompt.submit: _begin": NOTHING,
    "play.sent.change: _answer": CHAT,
    "after play.sent.change: _end": NOTHING,
    "after play.sent.change: _fail": NOTHING,
    "after play.stop.click: _end": NOTHING,
    "play.run.change: choose": LOOK,
    "play.clear.click: <lambda>": NOTHING,
    "play.add.click or play.adapter.submit: add": NOTHING,
    "play.examples.select: _use_example": LOOK,
    "mine.rows.click: _select": LOOK,
    "mine.delete.click: <lambda>": NOTHING,
    "mine.sure.click: _delete": CHANGE,
    "mine.push.click: _push": CHANGE,
    **{f"mine.download_{what}.click: offer": CHANGE for what in CONTENTS},
    "mine.import_run.upload: _import": NOTHING,
    "mine.chat.click: to_playground": LOOK,
    "mine.open.click: to_train": LOOK,
    "mine.resume.click: to_resume": (CHANGE, STOPPED),
    "Playground.select: update_runs": LOOK,
    "My runs.select: refresh": LOOK,
    "page.load: arrive": LOOK,
    "after page.load: check": NOTHING,
}
# What must have been called in the same session: only then does Gradio know of the choices and of a gr.State.
OFFER = "mine.chat.click: to_playground"
BEFORE = {
    "play.sent.change: _answer": (OFFER, "play.send.click or play.prompt.submit: _begin"),
    "play.run.change: choose": (OFFER,),
    "Playground.select: update_runs": (OFFER,),
    "play.examples.select: _use_example": (OFFER, "play.run.change: choose"),
    "earlier.listed.input: _choose": ("earlier.fold.expand or compare.shown.change: _list_earlier",),
    "compare.hold.click: _hold_beside": ("compare.fold.expand: _finished_runs",),
}
ROWS_CHANGE = "data.format.change or form.where.change or form.file.change or form.example.change or form.pasted.blur"


class Visit:
    """Somebody who calls handlers and endpoints of a served page, and what they know: ids, and a secret or not."""

    def __init__(self, served: SimpleNamespace, run: str, secret: str, experiment: str = "a-guess"):
        self.served, self.run, self.secret, self.session = served, run, secret, uuid.uuid4().hex
        self.experiment = experiment
        self.kept = {"runs": {self.run: self.secret, self.experiment: self.secret}, "shown": self.run}

    def call(self, name: str) -> str:
        """What the handler answers, as text."""
        handler = self.served.handlers[name]
        names = self.served.built.names
        body = {
            "data": [self._value(names[c._id], c) for c in handler.inputs],
            "fn_index": handler._id,
            "session_hash": self.session,
            "event_data": {"run": self.run, "index": 0, "value": ""},
        }
        self.served.http.post("queue/join", json=body).raise_for_status()
        with self.served.http.stream("GET", "queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                if "process_completed" in line:
                    return line.removeprefix("data: ")

    def _value(self, name: str, component) -> object:
        known = {
            "train.shown": self.run,
            "mine.selected": self.run,
            "train.browser": self.kept | {"opened": {"run": self.run, "secret": self.secret}},
            "compare.shown": self.experiment,
            "earlier.listed": self.experiment,
            "compare.runs": [self.run, "example"],
            "play.run": [self.run],
            "play.prompt": "hello",
            "play.pending": "hello",  # as the browser keeps it
            "mine.repository": "alice/x",
            "mine.token": self.served.token,
            "mine.private": True,
            "evaluation.rows": 0,  # so that nothing is planned
        }
        return known.get(name, getattr(component, "value", None))

    def endpoint(self, name: str) -> str:
        """What the endpoint answers first, as text."""
        given = {"secret": self.secret} if ENDPOINTS[name] not in (NOTHING, LOOK) else {}
        given |= {
            "push": {"repository": "alice/x", "token": self.served.token},
            "chat": {"message": "hello"},
            "runs": {"runs": [self.run]},
        }.get(name, {})
        without = {"runs": {}, "comparison": {"experiment": self.experiment}, "adopt": {"adapter": "alice/x"}}
        given |= without.get(name, {"run": self.run})
        job = self.served.client.submit(**given, api_name=f"/{name}")
        try:
            return json.dumps(next(iter(job)) if name in ("resume", "chat") else job.result(30))
        except (AppError, StopIteration):
            return str(job.exception(30))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The real page behind a real server; no GPU and no Hub but our own."""
    hub = Hub()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "RUNS", tmp_path_factory.mktemp("roles"))
        for name, value in {"ENDPOINT": hub.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
            patch.setattr(f"huggingface_hub.constants.{name}", value)
        built = BuiltPage(has_oauth=False)
        _, url, _ = built.blocks.queue().launch(prevent_thread_lock=True, quiet=True, show_error=True)
        handlers = {
            f"{built._triggers(f)}: {f.name}".replace(ROWS_CHANGE, "after the rows change"): f
            for f in built._handlers()
            if f.fn
        }
        client = Client(url, verbose=False)
        with httpx.Client(base_url=f"{url}gradio_api/", timeout=30) as http:
            yield SimpleNamespace(
                built=built, http=http, handlers=handlers, client=client, hub=hub, token=hub.user("alice")
            )
        built.blocks.close(verbose=False)
    hub.close()


@pytest.fixture
def world(served: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[tuple], SimpleNamespace]]:
    """Makes the run `mine`, to which this has happened; others train at all places, so a run that is started waits."""
    models = Gpu()
    for name in ("chat", "merge", "import_core"):
        monkeypatch.setattr(gpu, name, getattr(models, name))
    with ExitStack() as stack:
        for number in range(run_queue.queue.places):
            run_queue.queue.join(f"other{number}", f"visitor{number}")
            assert stack.enter_context(run_queue.queue.turn(f"other{number}"))

        def made(events: tuple) -> SimpleNamespace:
            actions.install_example()
            run = copied(f"run-{uuid.uuid4().hex[:9]}", name=NAME)
            for rows, said in (
                (run.data / "heldout.jsonl", "psst"),
                (run.path / "evaluation_rows.jsonl", '"prompt": "'),
            ):
                rows.write_text(rows.read_text().replace(said, f"{said}{NAME} "))
            if events:
                with_events(run, *events)
            secret, experiment = ownership.claim(run, ANYBODY), experiment_of([run], name=f"of-{run.id}")
            experiment.write_json(ownership.FILE, run.read_json(ownership.FILE))
            return SimpleNamespace(run=run, secret=secret, models=models, experiment=experiment)

        yield made
        for run in runs.list_runs():
            run_queue.queue.holds(run.id) and run_queue.withdraw(run)


def trace(served: SimpleNamespace, world: SimpleNamespace) -> tuple:
    """All that changes if a run is changed, or if anything is spent on it."""
    both = [*world.run.path.rglob("*"), *world.experiment.path.rglob("*")]
    files = {f: f.read_bytes() for f in both if f.is_file() and not f.name.startswith("lock")}
    return (
        files,
        run_queue.queue.holds(world.run.id),
        world.models.merges[:],
        len(served.hub.seen),
        len(downloads.tickets),
    )


def right(row: str | tuple) -> tuple[str, tuple]:
    """A row's right, and what has happened to the run."""
    return row if isinstance(row, tuple) else (row, FINISHED)


def test_every_endpoint_and_every_handler_is_in_the_table(served):
    assert {f.api_name for f in served.built.blocks.fns.values() if f.api_visibility != "private"} == set(ENDPOINTS)
    assert set(served.handlers) == set(HANDLERS)


def taking_a_run(table: dict) -> list[str]:
    """The rows that are given a run's id."""
    return [name for name, row in table.items() if right(row)[0] != NOTHING]


@pytest.mark.parametrize("name", [*taking_a_run(ENDPOINTS), *taking_a_run(HANDLERS)])
def test_who_may_do_what(served, world, name):
    needed, events = right((ENDPOINTS | HANDLERS)[name])
    world = world(events)
    for role, secret in (("stranger", WRONG), ("link holder", WRONG), ("owner", world.secret)):
        known = (world.run.id, world.experiment.id) if role != "stranger" else ("a-guess", "another-guess")
        visit = Visit(served, known[0], secret, known[1])
        for earlier in BEFORE.get(name, ()):
            visit.call(earlier)
        before = trace(served, world)
        answer = visit.endpoint(name) if name in ENDPOINTS else unescape(visit.call(name))
        changed = trace(served, world) != before
        assert role == "owner" or world.secret not in answer
        if needed == CHANGE:
            assert changed == (role == "owner"), (role, answer)
            refused = ownership.LINK_ONLY in answer or experiments.NOT_YOURS in answer
            assert refused == (role == "link holder"), (role, answer)
        elif needed == LOOK:
            assert not changed
            assert (NAME in answer) == (role != "stranger"), (role, answer)
        elif needed == OWN:
            assert not changed
            assert ("1 of 1 run" in answer) == (role == "owner"), (role, answer)
        else:
            assert len(world.models.asked) == ("stranger", "link holder", "owner").index(role), answer
            assert world.models.merges == ([world.run.id] if role == "owner" else [])


def test_wrong_secrets_change_nothing_and_tell_nothing(served, world):
    world = world(CONTINUING)
    others = ownership.claim(copied("another"), ANYBODY)
    wrong = [
        others,
        "",
        None,
        7,
        {},
        [],
        "x" * 10_000,
        world.secret[:-1],
        world.secret + "x",
        world.secret.upper(),
    ]
    wrong += [f"guess {number}" for number in range(5)]
    before = trace(served, world)
    answers = set()
    for secret in wrong:
        visit = Visit(served, world.run.id, secret)
        answers.add(unescape(json.loads(visit.call("train.stop.click: _stop"))["output"]["data"][0]))
    assert len(answers) == 1
    assert ownership.LINK_ONLY in answers.pop()
    assert trace(served, world) == before
