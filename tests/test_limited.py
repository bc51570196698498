"""Jobs for strangers run in real processes: each limit ends them, in words, while other jobs go on."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import ROOT, timed

from tuner import limited
from tuner.errors import TunerError
from tuner.limited import Asker, Limits
from tuner.models import device
from tuner.planning import pace, probe
from tuner.planning.pace import cpu_look
from tuner.planning.probe import Look
from tuner.recipe import Recipe
from tuner.ui import checking
from tuner.ui.visitor import Visitor

TRYING = Limits("Trying this", "Try something else.", 1)
SHORT = TRYING._replace(seconds=0.5)
LATE = "Trying this took longer than 1 seconds, so it was stopped. Try something else."
LARGE = "Trying this needed more than 191 MB of memory, so it was stopped. Try something else."
BROKEN = "Trying this ended its process: a file is damaged, or needs too much memory. Try something else."


@pytest.fixture(scope="module")
def jobs_here() -> None:
    """No job is done in this process."""


@pytest.fixture(autouse=True)
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[limited._Pool]:
    """A new pool, whose processes end with the test."""
    pool = limited._Pool()
    monkeypatch.setattr(limited, "_pool", pool)
    yield pool
    if pool._server:
        pool._control.close()
        pool._server.wait(10)


def refusal(job: str, *arguments, limits: Limits = TRYING, asker: Asker = limited.NOBODY) -> str:
    """What the visitor reads."""
    with pytest.raises(TunerError) as caught:
        limited.run(job, *arguments, limits=limits, asker=asker)
    (problem,) = caught.value.problems
    return problem


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(true: Callable[[], bool]) -> None:
    """Wait until it is true."""
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def gone(pid: int, seconds: float = 20) -> bool:
    """Whether the process has ended within these seconds."""
    until = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < until:
        time.sleep(0.01)
    return not is_alive(pid)


def test_a_job_returns_plain_values_and_its_worker_does_the_next_one():
    assert limited.run("json:loads", '{"a": [1, null, "\\ud800"]}', limits=TRYING) == {"a": [1, None, "\ud800"]}
    assert limited.run("os:getpid", limits=TRYING) == limited.run("os:getpid", limits=TRYING) != os.getpid()


def test_a_job_streams_what_it_yields_and_is_ended_when_nobody_listens(pool):
    walk = limited.stream("os:walk", "/usr", limits=TRYING)
    assert next(walk)[0] == "/usr"
    assert next(walk)[0].startswith("/usr/")
    pid = limited.run("os:getpid", limits=TRYING)  # of another worker
    walk.close()
    assert len(pool.idle) == 1
    assert limited.run("os:getpid", limits=TRYING) == pid


@timed
@pytest.mark.parametrize(
    ("job", "arguments", "said"),
    [
        pytest.param("time:sleep", [60], LATE, marks=pytest.mark.long),
        ("re:fullmatch", ["(a+)+b", "a" * 40], LATE),  # which holds Python's lock, so no thread could end it
        ("builtins:bytearray", [10**9], LARGE),
        ("operator:mul", ["x", 10**9], LARGE),
        ("operator:mul", ["x", 5 * 10**7], LARGE),  # a value too large to send
        ("os:abort", [], BROKEN),
        ("os:_exit", [0], BROKEN),
        ("sys:exit", [3], BROKEN),
        ("os:closerange", [0, 99], BROKEN),
        ("signal:raise_signal", [signal.SIGKILL], BROKEN),
        ("ctypes:string_at", [1], BROKEN),  # a segmentation fault
    ],
)
def test_what_takes_too_much_is_refused_in_words_and_the_next_job_works(monkeypatch, job, arguments, said):
    monkeypatch.setattr(limited, "BYTES", 2 * 10**8)
    limits = TRYING if said == LATE else TRYING._replace(seconds=20)  # a busy machine takes its time with the others
    began = time.monotonic()
    assert refusal(job, *arguments, limits=limits) == said
    assert limited.run("builtins:abs", -7, limits=TRYING) == 7
    assert time.monotonic() - began < 15


def test_what_a_job_prints_goes_nowhere(capfd):
    limited.run("builtins:abs", -7, limits=TRYING)
    for stream in ("", ">&2"):
        assert limited.run("os:system", f"head -c 1000000000 /dev/zero {stream}", limits=TRYING) == 0
    assert capfd.readouterr() == ("", "")


def test_a_persons_problem_passes_whole_and_any_other_is_a_bug_with_its_trace():
    with pytest.raises(TunerError) as caught:
        limited.run("tuner.planning.jobs:settings", "{", limits=Limits("", "", 60))
    with pytest.raises(RuntimeError, match=r"Traceback[^$]*ValueError"):
        limited.run("builtins:int", "x", limits=TRYING)
    with pytest.raises(OSError, match="Traceback") as missing:
        limited.run("os:stat", "/nowhere", limits=TRYING)
    assert missing.value.errno == 2
    assert limited.run("builtins:abs", -7, limits=TRYING) == 7
    assert caught.value.problems


@timed
def test_others_need_not_wait_for_a_slow_job():
    limited.run("builtins:abs", -7, limits=TRYING)
    given = {"asker": Asker("eve"), "limits": SHORT}
    slow = [threading.Thread(target=refusal, args=("time:sleep", 60), kwargs=given) for _ in range(3)]
    for thread in slow:
        thread.start()
    for _ in range(10):
        began = time.monotonic()
        assert limited.run("builtins:abs", -7, limits=TRYING, asker=Asker("ann")) == 7
        assert time.monotonic() - began < 0.5
    for thread in slow:
        thread.join()


def test_a_visitor_may_not_ask_for_everything_at_once(pool, monkeypatch):
    monkeypatch.setitem(limited.MOST_ASKED, "session", 2)
    with pool.place(Asker("eve")), pool.place(Asker("eve")):
        assert "many checks at once" in refusal("builtins:abs", -7, asker=Asker("eve"))
        assert limited.run("builtins:abs", -7, limits=TRYING, asker=Asker("ann")) == 7
        monkeypatch.setitem(limited.MOST, "all", 2)
        monkeypatch.setattr(limited, "PATIENCE", 0.1)
        assert "busy checking what others" in refusal("builtins:abs", -7, asker=Asker("ann"))
    assert limited.run("builtins:abs", -7, limits=TRYING, asker=Asker("eve")) == 7


@timed
def test_whoever_opens_many_pages_leaves_a_place_to_others():
    limited.run("builtins:abs", -7, limits=TRYING)
    many = [{"asker": Asker(f"page {number}", "203.0.113.7"), "limits": SHORT} for number in range(6)]
    slow = [threading.Thread(target=refusal, args=("time:sleep", 60), kwargs=given) for given in many]
    for thread in slow:
        thread.start()
    for _ in range(10):
        began = time.monotonic()
        assert limited.run("builtins:abs", -7, limits=TRYING, asker=Asker("ann", "198.51.100.4")) == 7
        assert time.monotonic() - began < 0.5
    for thread in slow:
        thread.join()


def test_while_two_addresses_flood_a_thirds_check_waits_for_one_job_to_end_at_most(pool):
    begun, ends, waiting = [], threading.Semaphore(0), pool._places["checks"]._waiting

    def job(number: int, address: str) -> None:
        with pool.place(Asker(f"{address} {number}", address)):
            begun.append(address)
            assert ends.acquire(timeout=20)

    with ThreadPoolExecutor(41) as visitors:
        try:
            flood = [visitors.submit(job, number, "8.8.8.8") for number in range(20)]
            until(lambda: len(begun) == 3 and len(waiting) == 17)
            flood += [visitors.submit(job, number, "7.7.7.7") for number in range(20)]
            until(lambda: len(begun) == 4 and len(waiting) == 36)
            mine = visitors.submit(job, 0, "9.9.9.9")
            until(lambda: len(waiting) == 37)
            ends.release()
            until(lambda: len(begun) == 5)
        finally:
            ends.release(41)
    assert begun[4] == "9.9.9.9"
    assert not [done.exception() for done in (*flood, mine) if done.exception()]


def test_no_check_waits_for_a_download(pool):
    downloads = Limits("Downloading", "", 60, "downloads")
    with ExitStack() as stack:
        for name in "abcd":
            stack.enter_context(pool.place(Asker(name), downloads.line))
        assert limited.run("builtins:abs", -7, limits=TRYING, asker=Asker("a")) == 7


def test_whoever_sends_no_session_shares_no_places_with_others_who_send_none(pool):
    with pool.place(Asker("", "203.0.113.7")), pool.place(Asker("", "203.0.113.7")):
        assert limited.run("builtins:abs", -7, limits=TRYING, asker=Asker("", "198.51.100.4")) == 7


def test_a_worker_has_no_secret_and_no_card(monkeypatch):
    secrets = {"HF_TOKEN": "hf_1", "OAUTH_CLIENT_SECRET": "2", "MY_KEY": "3", "SPACES_ZERO_GPU": "true"}
    for name, value in (secrets | {"TUNER_MAX_ROWS": "9", "CUDA_VISIBLE_DEVICES": "0"}).items():
        monkeypatch.setenv(name, value)
    lines = Path(f"/proc/{limited.run('os:getpid', limits=TRYING)}/environ").read_text().split("\0")
    given = dict(line.split("=", 1) for line in lines if line)
    assert not secrets.keys() & given.keys()
    assert (given["TUNER_MAX_ROWS"], given["CUDA_VISIBLE_DEVICES"]) == ("9", "")


@pytest.mark.parametrize("place", ["{}/x.csv", "simplecache::{}/x.csv", "zip://x.csv::{}/x.zip", "s3://bucket/x.csv"])
def test_a_worker_opens_no_address_but_the_hubs(place):
    with socket.create_server(("127.0.0.1", 0)) as inner:
        inner.settimeout(0)
        address = f"http://127.0.0.1:{inner.getsockname()[1]}"
        with pytest.raises(RuntimeError, match="only the Hub is asked for rows"):
            limited.run("fsspec:get_fs_token_paths", place.format(address), limits=Limits("", "", 30))
        with pytest.raises(BlockingIOError):
            inner.accept()


def test_a_worker_has_no_open_file_of_the_app_nor_of_other_workers():
    with ExitStack() as stack:
        for _ in range(2):  # whose sockets and pipes the third could inherit
            walk = limited.stream("os:walk", "/usr", limits=TRYING._replace(seconds=30))
            stack.callback(walk.close)
            next(walk)
        pid = limited.run("os:getpid", limits=TRYING)
        open_files = {int(file.name): os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()}
    assert [open_files.pop(number) for number in (0, 1, 2)] == [os.devnull] * 3
    assert sorted(place.partition(":")[0] for place in open_files.values()) == ["pipe", "socket"]


def test_a_worker_ends_with_its_parent_though_the_app_still_listens(pool):
    worker, parent = limited.run("os:getpid", limits=TRYING), limited.run("os:getppid", limits=TRYING)
    os.kill(parent, signal.SIGKILL)
    assert gone(worker, 10)


def test_a_machine_that_runs_out_of_memory_ends_a_worker_before_anything_else():
    worker, parent = limited.run("os:getpid", limits=TRYING), limited.run("os:getppid", limits=TRYING)
    scores = [int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (worker, parent, os.getpid())]
    assert scores == [1000, scores[2], scores[2]]


def test_a_dead_worker_is_replaced_and_a_dead_parent_too(pool):
    worker, parent = limited.run("os:getpid", limits=TRYING), limited.run("os:getppid", limits=TRYING)
    os.kill(worker, signal.SIGKILL)
    assert gone(worker)
    while pool.idle[-1].is_idle:  # the parent hangs up, too, as soon as it has seen it
        time.sleep(0.01)
    assert limited.run("os:getpid", limits=TRYING) != worker
    os.kill(parent, signal.SIGKILL)
    pool._server.wait(10)
    assert limited.run("os:getppid", limits=TRYING) != parent


def test_the_processes_end_with_the_app_however_it_ends():
    code = (
        "import time; from tuner import limited; L = limited.Limits('', '')\n"
        "print(limited.run('os:getpid', limits=L), limited.run('os:getppid', limits=L), flush=True)\n"
        "limited.run('time:sleep', 60, limits=L)"
    )
    app = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pids = list(map(int, app.stdout.readline().split()))
    assert all(map(is_alive, pids))
    app.kill()
    app.wait()
    assert all(map(gone, pids))


def test_a_job_that_comes_before_the_preparation_is_not_ended_by_it(pool):
    worker = limited.run("os:getpid", limits=TRYING)
    limited.start("builtins:abs", lambda: (-7,))
    assert is_alive(worker)
    assert limited.run("os:getpid", limits=TRYING) == worker


def test_the_pages_jobs_are_counted_by_page_and_by_address_and_its_downloads_apart(monkeypatch):
    asked = {}

    def stream(job: str, *given, limits: Limits, asker: Asker) -> Iterator[None]:
        asked[job] = limits, asker
        yield "/cache/model" if job.endswith(":fetch") else None

    monkeypatch.setattr(limited, "stream", stream)
    monkeypatch.setattr(checking, "_fetched", {})
    mallory = Visitor("page 1", "203.0.113.7")
    elsewhere = Recipe.parse({"model": {"name": "mallory/model"}})
    assert checking.check(elsewhere, None, mallory) is None
    assert list(checking.survey(elsewhere, None, mallory)) == [None]
    assert {asker for _, asker in asked.values()} == {Asker("page 1", "203.0.113.7")}
    assert {job.partition(":")[2]: limits.line for job, (limits, _) in asked.items()} == {
        "fetch": "downloads",
        "check": "checks",
        "survey": "checks",
    }


def test_who_comes_while_the_preparation_is_made_ready_waits_for_a_prepared_worker(pool):
    asked, known = threading.Event(), threading.Event()

    def arguments() -> tuple:
        asked.set()
        assert known.wait(10)
        return ("TUNER_PREPARED", "yes")

    preparing = threading.Thread(target=limited.start, args=("os:putenv", arguments))
    preparing.start()
    assert asked.wait(10)
    with ThreadPoolExecutor(1) as visitors:
        answer = visitors.submit(limited.run, "subprocess:getoutput", "echo $TUNER_PREPARED", limits=TRYING)
        with pytest.raises(TimeoutError):
            answer.result(0.5)
        known.set()
        assert answer.result(30) == "yes"
    preparing.join()


def test_the_page_has_another_process_look_where_its_own_threads_hold_nothing_up(monkeypatch):
    # Threads of Python take turns of 5 ms: a look in this process would wait for its turn at each operation.
    monkeypatch.setattr(pace, "cpu_look", cpu_look)
    monkeypatch.setattr(pace, "_looked", None)
    monkeypatch.setattr(probe, "look", lambda seconds: pytest.fail("looked here"))
    described = checking.device()
    assert 1e8 < described["look"][0] < 1e13
    assert 1e-7 < described["look"][1] < 1e-2
    assert checking.device() == described  # less than a minute ago
    with device.described(described):
        assert pace.cpu_look() == Look(*described["look"])
