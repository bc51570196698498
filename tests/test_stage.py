"""The stage keeps its promises to the real `spaces` client: windows, warm workers, kills, lines and refusals."""

import http.client
import json
import os
import queue
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import fresh
import pytest
from stage import Stage

ON_STAGE = Path(__file__).parent / "on_stage.py"
TOKEN = "head.e30.tail"  # what spaces can read as a web token with nothing in it
SCRIPT = """
import json, os, sys, threading, types
import gradio as gr
import spaces
from gradio.context import LocalContext

ANSWERS = os.dup(1)
os.dup2(2, 1)  # spaces prints


class Headers(dict):
    pass


@spaces.GPU(duration=lambda seconds, *others: seconds)
def work(seconds, steps, gate, fails):
    for step in range(steps):
        yield [step, os.getpid()]
    if fails:
        raise ValueError(fails)
    if gate:
        open(gate).read()
        yield ["through", os.getpid()]


def call(name, url, token, *arguments):
    spaces.config.Config.zero_device_api_url = url
    if token:
        headers = Headers({"x-ip-token": token, "x-gradio-user": "app"})
        LocalContext.request.set(types.SimpleNamespace(headers=headers))
    answer = {"name": name, "values": [], "title": None, "message": None}
    try:
        for value in work(*arguments):
            answer["values"].append(value)
    except gr.Error as e:
        answer |= {"title": e.title, "message": str(e.message)}
    os.write(ANSWERS, json.dumps(answer).encode() + b"\\n")


# Not sys.stdin itself: a forked worker closes that one, and would wait for ever for the lock of who reads it.
for line in os.fdopen(os.dup(0)):
    threading.Thread(target=call, args=json.loads(line)).start()
"""


class Caller:
    """A process with one decorated generator, which it calls as asked."""

    def __init__(self, folder: Path):
        script = folder / "script.py"
        script.write_text(SCRIPT)
        with Stage() as stage:
            self.process = subprocess.Popen(
                [fresh.PYTHON, str(ON_STAGE), str(script)],
                env=os.environ | stage.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        self.answers = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.answers.put(json.loads(line))

    def send(
        self,
        stage: Stage,
        name: str = "one",
        token: str | None = None,
        seconds: int = 30,
        steps: int = 3,
        gate: Path | None = None,
        fails: str | None = None,
    ) -> None:
        """Begin a call; a gate is a pipe to which somebody has to write before the generator ends."""
        line = [name, stage.url, token, seconds, steps, gate and str(gate), fails]
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict:
        """The end of the call that ended next."""
        return self.answers.get(timeout=60)

    def call(self, stage: Stage, **arguments) -> dict:
        """Begin a call and wait for its end."""
        self.send(stage, **arguments)
        return self.answer()


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    """A process that calls the GPU as a Space does."""
    caller = Caller(tmp_path_factory.mktemp("caller"))
    yield caller
    caller.process.kill()
    caller.process.wait()


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A pipe that a call waits at until something is written to it."""
    os.mkfifo(tmp_path / "gate")
    return tmp_path / "gate"


def pids(answer: dict) -> set[int]:
    """The workers that gave the answer's values."""
    return {pid for _, pid in answer["values"]}


def steps(answer: dict) -> list:
    """The answer's values without their workers."""
    return [step for step, _ in answer["values"]]


def refusal(answer: dict) -> tuple[str, str]:
    """Title and message of a call that gave no value."""
    assert answer["values"] == []
    return answer["title"], answer["message"]


ABORTED = ("ZeroGPU worker error", "GPU task aborted")


def test_a_window_streams_its_values_from_a_worker_of_its_own(caller):
    with Stage() as stage:
        answer = caller.call(stage, seconds=30)
        [window] = stage.windows
    assert steps(answer) == [0, 1, 2]
    assert pids(answer) == {window.pid}
    assert window.pid != caller.process.pid
    assert (window.token, window.requested, window.how, window.killed_at) == (None, 30, "released", None)
    assert window.began <= window.ended


def test_a_second_call_reuses_the_warm_worker(caller):
    with Stage() as stage:
        assert pids(caller.call(stage)) == pids(caller.call(stage)) == {stage.windows[1].pid}


def test_after_its_workers_were_ended_the_stage_starts_cold(caller):
    with Stage() as stage:
        first = pids(caller.call(stage))
        stage.cold()
        second = pids(caller.call(stage))
    assert first.isdisjoint(second)
    assert [w.how for w in stage.windows] == ["released", "released"]


def test_a_window_that_overruns_is_killed_and_the_caller_told(caller, gate):
    with Stage() as stage:
        answer = caller.call(stage, seconds=1, gate=gate)
        [window] = stage.windows
    assert steps(answer) == [0, 1, 2]
    assert (answer["title"], answer["message"]) == ABORTED
    assert window.how == "killed"
    assert window.began + 1 <= window.killed_at <= window.ended


def test_a_worker_is_killed_at_the_asked_moment_cold_or_warm(caller, gate):
    with Stage(kill_after=[0.2, None, 0.2]) as stage:
        cold = caller.call(stage, gate=gate)
        unharmed = caller.call(stage)
        warm = caller.call(stage, gate=gate)
        after = caller.call(stage)
    assert [w.how for w in stage.windows] == ["killed", "released", "killed", "released"]
    assert [(a["title"], a["message"]) for a in (cold, warm)] == [ABORTED, ABORTED]
    assert all(0.2 <= w.killed_at - w.began < w.requested for w in stage.windows[::2])
    assert pids(unharmed) == pids(warm)
    assert pids(cold).isdisjoint(pids(unharmed) | pids(after))


def test_an_error_in_the_task_ends_the_window_as_failed_and_the_next_one_is_cold(caller):
    with Stage() as stage:
        answer = caller.call(stage, fails="on purpose")
        after = caller.call(stage)
    assert (answer["title"], answer["message"]) == ("ZeroGPU worker error", "ValueError")
    assert [w.how for w in stage.windows] == ["failed", "released"]
    assert pids(answer).isdisjoint(pids(after))


def test_a_spent_quota_names_what_was_asked_for_what_is_left_and_when_it_returns(caller):
    with Stage(quota={TOKEN: 12}) as stage:
        title, message = refusal(caller.call(stage, token=TOKEN, seconds=30))
    assert title == "ZeroGPU quota exceeded"
    assert "30s requested vs. 12s left" in message
    assert "Try again in 5:32:00" in message
    assert stage.windows == []


def test_a_spent_quota_without_a_token_is_the_limit_of_the_app(caller):
    with Stage(quota={"": 12}) as stage:
        title, message = refusal(caller.call(stage, seconds=30))
    assert title == "ZeroGPU quota exceeded"
    assert message.startswith("Space app has reached its GPU limit")


def test_used_seconds_are_taken_from_the_quota_of_their_token(caller):
    with Stage(quota={TOKEN: 30, "": 30}) as stage:
        caller.call(stage, token=TOKEN, seconds=30)
        left = stage.quota[TOKEN]
        message = refusal(caller.call(stage, token=TOKEN, seconds=30))[1]
    [window] = stage.windows
    assert window.token == TOKEN
    assert left == pytest.approx(30 - (window.ended - window.began))
    assert stage.quota[""] == 30
    assert f"30s requested vs. {int(left)}s left" in message


def test_too_long_a_duration_is_illegal(caller):
    with Stage(longest=60) as stage:
        title, message = refusal(caller.call(stage, seconds=61))
        assert caller.call(stage, seconds=60)["title"] is None
    assert title == "ZeroGPU illegal duration"
    assert "(61s) is larger than the maximum allowed" in message


def test_the_second_of_two_callers_waits_for_the_one_gpu_and_then_gets_it(caller, gate):
    with Stage() as stage:
        caller.send(stage, name="first", gate=gate)
        stage.wait_until(lambda: stage.windows and stage.windows[0].pid)
        caller.send(stage, name="second")
        stage.wait_until(lambda: stage.waiting)
        assert len(stage.windows) == 1
        gate.write_text("go")
        answers = {a["name"]: a for a in (caller.answer(), caller.answer())}
    first, second = stage.windows
    assert first.ended <= second.began
    assert steps(answers["first"]) == [0, 1, 2, "through"]
    assert steps(answers["second"]) == [0, 1, 2]
    assert [w.how for w in stage.windows] == ["released", "released"]


def test_two_callers_have_two_gpus_at_once(caller, gate):
    with Stage(gpus=2) as stage:
        caller.send(stage, name="first", gate=gate)
        stage.wait_until(lambda: stage.windows and stage.windows[0].pid)
        assert caller.call(stage, name="second")["name"] == "second"
        gate.write_text("go")
        assert caller.answer()["name"] == "first"
    assert {w.index for w in stage.windows} == {0, 1}


def test_patience_in_line_has_an_end(caller, gate):
    with Stage(queue_patience=0) as stage:
        caller.send(stage, name="first", gate=gate)
        stage.wait_until(lambda: stage.windows and stage.windows[0].pid)
        title = refusal(caller.call(stage, name="second", token=TOKEN))[0]
        gate.write_text("go")
        assert caller.answer()["title"] is None
    assert (title, len(stage.windows)) == ("ZeroGPU queue timeout", 1)


def test_a_caller_that_has_gone_leaves_the_line(caller, gate):
    with Stage() as stage:
        caller.send(stage, gate=gate)
        stage.wait_until(lambda: stage.windows and stage.windows[0].pid)
        connection = http.client.HTTPConnection(stage.url.removeprefix("http://"))
        connection.request("POST", "/schedule?taskId=1")
        answer = connection.getresponse()
        assert stage.waiting == 1
        answer.close()
        connection.close()
        stage.wait_until(lambda: not stage.waiting)
        gate.write_text("go")
        caller.answer()
    assert len(stage.windows) == 1


@pytest.mark.parametrize(
    ("why", "title", "words"),
    [
        ("quota", "ZeroGPU quota exceeded", "(30s requested vs. 40s left). Try again in 5:32:00"),
        ("runs", "ZeroGPU quota exceeded", "exceeded your ZeroGPU runs limit"),
        ("pending", "ZeroGPU pending credits exceeded", "too many ZeroGPU credits allocated to running tasks"),
        ("queue timeout", "ZeroGPU queue timeout", "No GPU was available after 60s"),
        ("unavailable", "ZeroGPU client error", "No GPU was available"),
        ("expired", "ZeroGPU client error", "Expired ZeroGPU proxy token"),
    ],
)
def test_each_refusal_is_told_in_the_words_of_the_platform(caller, why, title, words):
    with Stage(quota={TOKEN: 40}) as stage:
        stage.refuse = why
        message = refusal(caller.call(stage, token=TOKEN, seconds=30))
        stage.refuse = None
        assert caller.call(stage, token=TOKEN, seconds=30)["title"] is None
    assert message[0] == title
    assert words in message[1]


SEEN = "import sys, torch; print(sys.argv[1:], __name__, sys.path[0], torch.__name__, 'spaces' in sys.modules)"


@pytest.mark.parametrize("module", [False, True])
def test_a_script_and_a_module_run_as_the_main_one_with_torch_and_spaces(tmp_path, module):
    (tmp_path / "seen.py").write_text(SEEN)
    what = ["-m", "seen"] if module else [str(tmp_path / "seen.py")]
    with Stage() as stage:
        environment = os.environ | stage.environment | {"PYTHONPATH": str(tmp_path)}
        command = [fresh.PYTHON, str(ON_STAGE), *what, "a", "-b"]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.stdout.split("\n")[0] == f"['a', '-b'] __main__ {ON_STAGE.parent.parent} torch True", ended.stderr


def test_without_a_stage_the_launcher_says_so():
    command = [fresh.PYTHON, str(ON_STAGE), "app.py"]
    environment = {k: v for k, v in os.environ.items() if k != "SPACES_ZERO_GPU"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode
    assert "the environment of a stage is missing" in ended.stderr
