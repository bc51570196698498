"""Attack the app as somebody would who wishes it ill, and count what falls: `make attack`.

    python tests/attack.py --count 5000 --seed 3        # the same seed tries the same cases
    python tests/attack.py --only recipe/17,http-file/900 --seed 3

It starts a Hub double, the real app and processes that do cases without HTTP, tries malformed recipes, names, files,
models and requests, and looks at every answer. Meanwhile another visitor keeps asking for something cheap. Violations:
a traceback, server's path or a raw error in an answer; a wait of the other visitor, or time of the page's own process,
above the limit; memory above the limit; a planted case wrongly accepted or refused; a change of another's run.
"""

import argparse
import json
import os
import queue
import random
import re
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import attack_cases
import attack_http
import attack_models
import fresh
import psutil
from attack_cases import ACCEPT, Case
from attack_requests import Answer, Attacker
from attack_watch import Memory
from hub_double import Hub
from served import ROOT, serve

# Shares of the cases. Without HTTP first, then over HTTP.
INSIDE = {"recipe": 0.24, "name": 0.2, "file": 0.09, "pasted": 0.03, "model": 0.05}
OUTSIDE = {
    "handler": 0.12,
    "endpoint": 0.06,
    "request": 0.05,
    "path": 0.05,
    "upload": 0.014,
    "wire": 0.007,
    "origin": 0.01,
    "link": 0.009,
    "http-recipe": 0.02,
    "http-name": 0.02,
    "http-file": 0.02,
    "http-pasted": 0.01,
    "http-model": 0.02,
}
ENDLESS = {
    *INSIDE,
    "handler",
    "http-recipe",
    "http-name",
    "http-file",
    "http-pasted",
    "http-model",
}  # behind their tables
FEW = 1000  # cases: fewer are a short attack, without what may use up the time of a job with limits
LENGTHY = re.compile(
    r"\d MB|[1-9]00,000|million|GB|layers-[01]|template-|tokenizer-|aliases|merge keys|weights-a-|digits"
)
FROZEN = 1.0  # seconds
HUNG = 150  # seconds, more than a job with limits has
MOST_MEMORY = 3 * 2**30  # bytes, of the app and its children together, and of each process without HTTP
FIFO = r"/[^\s'\"]*/fifo\b"  # which the attack itself named
CANARY = "canary-7f3a9"  # in files that nobody may see
TRACEBACK = re.compile(r"Traceback \(most recent|File \"[^\"]+\", line \d+")
LOGGED = re.compile(r"^Traceback \(most recent call last\):\n(?:[ \t].*\n|\n)+\S.*", re.MULTILINE)
RAW = re.compile(
    r"\b[A-Z]\w+(?:Error|Exception)\b(?=[:(\\'\"])|object has no attribute|'?NoneType'? |object is not |"
    r"<gradio\.|<class '|0x7[0-9a-f]{8,}|"
    r"list index out|indices must be|unhashable type|positional argument|unexpected keyword|validation error for|"
    r"An event handler \(|invalid literal|unsupported operand|could not convert|codec can't|Internal Server Error"
)
UNEXPECTED = re.compile(r"unexpected(?:ly)? went wrong|failed unexpectedly|Something unexpected")


@dataclass
class Tally:
    """What was tried, and what fell."""

    folder: Path
    tried: Counter = field(default_factory=Counter)
    planted: Counter = field(default_factory=Counter)
    violations: list[tuple[str, str, str]] = field(default_factory=list)  # kind, case, what
    flights: list[tuple[float, float, Case]] = field(default_factory=list)  # start, end
    secrets: tuple[str, ...] = ()

    def add(self, kind: str, case: Case | None, what: str) -> None:
        """Note a violation."""
        name = f"{case.name} ({case.about})" if case else "at the end"
        self.violations.append((kind, name, what[:400]))

    def judge(self, case: Case, answer: Answer, traceback: str = "") -> None:
        """Look at an answer."""
        self.tried[case.family] += 1
        text = re.sub(FIFO, "FIFO", answer.text.replace(str(self.folder / "uploads"), ""))
        given = repr(case.given) if len(repr(case.given)) < 50_000 else ""
        given = unquote(unquote(given)).replace("FOLDER", str(self.folder))
        shown = [secret for secret in self.secrets if secret in text and secret not in given]
        if TRACEBACK.search(text):
            self.add("traceback shown", case, text)
        elif shown:
            self.add(
                "server path shown" if shown[0].startswith("/") else "secret shown", case, _around(text, shown[0])
            )
        elif answer.outcome == "fault" or UNEXPECTED.search(text):
            self.add("unexpected error", case, traceback.strip().rpartition("\n")[2] + " " + text)
        elif (raw := RAW.search(text)) and answer.outcome != ACCEPT and raw[0] not in given:
            self.add("raw error shown", case, _around(text, raw[0]))
        if case.expect:
            self.planted[case.expect] += 1
            if answer.outcome not in (case.expect, "fault", "none"):
                self.add(f"wrongly {answer.outcome}ed".replace("refuseed", "refused"), case, text)


def _around(text: str, part: str) -> str:
    place = text.find(part)
    return text[max(0, place - 120) : place + 160]


# -- which cases


def chosen(shares: dict[str, float], count: int, seed: int) -> list[Case]:
    """The cases of these families: all of a table if there is room, else a sample of it that has all its good ones."""
    cases = []
    for family, share in shares.items():
        make, rows = (
            (attack_cases.make, attack_cases.rows_of) if family in INSIDE else (attack_http.make, attack_http.rows_of)
        )
        quota, table = max(2, round(count * share)), 0 if family == "handler" else len(rows(family))
        numbers: list[int] = list(range(max(table, quota) if family in ENDLESS else table))
        if count < FEW:
            numbers = [i for i in numbers if i >= table or not LENGTHY.search(rows(family)[i][0])]
        if quota < len(numbers):
            good = [i for i in range(table) if rows(family)[i][1] == ACCEPT]
            others = random.Random(f"{seed}/{family}").sample(
                sorted(set(numbers) - set(good)), max(0, quota - len(good))
            )
            numbers = sorted([*good, *others])
        cases += [make(family, number, seed) for number in numbers]
    return cases


def only(names: str, seed: int) -> list[Case]:
    """The named cases; a family without a number is its whole table."""
    cases = []
    for name in names.split(","):
        family, _, number = name.partition("/")
        source = attack_cases if family in INSIDE else attack_http
        numbers = [int(number)] if number else range(len(source.rows_of(family)))
        cases += [source.make(family, i, seed) for i in numbers]
    return cases


# -- without HTTP


class Worker:
    """A process that does cases as the page would; it is ended, and begun again, when a case hangs or eats memory."""

    def __init__(self, settings: dict, env: dict[str, str], folder: Path):
        self.settings, self.env, self.folder, self.process = settings, env, folder, None

    def begin(self) -> None:
        """Start the process, and wait until it is ready."""
        own = Path(tempfile.mkdtemp(prefix="worker-", dir=self.folder))
        arguments = [str(ROOT / "tests/attack_inside.py"), json.dumps(self.settings | {"folder": str(own)})]
        os.mkfifo(own / "fifo")
        env = self.env | {"TUNER_RUNS": str(own / "runs"), "PYTHONPATH": str(ROOT)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with open(own / "log", "wb") as log:
            self.process = subprocess.Popen(
                [fresh.PYTHON, *arguments], cwd=own, env=env, stderr=log, text=True, **pipes
            )
        pid = json.loads(self.process.stdout.readline() or "0")
        assert pid, (own / "log").read_text()
        self.real = psutil.Process(pid)

    def do(self, case: Case) -> dict | str:
        """The result of a case, or why there is none: hung, memory, died."""
        if self.process is None:
            self.begin()
        self.process.stdin.write(case.name + "\n")
        self.process.stdin.flush()
        deadline = time.monotonic() + HUNG
        while not select.select([self.process.stdout], [], [], 0.2)[0]:
            if time.monotonic() > deadline:
                return self.end("hung")
            if self._memory() > MOST_MEMORY:
                return self.end("memory")
        line = self.process.stdout.readline()
        return json.loads(line) if line else self.end("died")

    def _memory(self) -> int:
        try:
            return self.real.memory_info().rss
        except psutil.Error:
            return 0

    def end(self, why: str = "") -> str:
        """End the process."""
        if self.process:
            self.process.kill()
            self.process.wait()
        self.process = None
        return why


def attack_inside(cases: list[Case], tally: Tally, workers: list[Worker], ends: float) -> None:
    """Do the cases in the processes."""
    waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
    for case in cases:
        waiting.put(case)

    def work(worker: Worker) -> None:
        while time.monotonic() < ends and not waiting.empty():
            case = waiting.get()
            result = worker.do(case)
            if isinstance(result, str):
                tally.tried[case.family] += 1
                tally.add({"memory": "memory above the limit"}.get(result, f"process {result}"), case, "")
                continue
            tally.judge(case, Answer(result["outcome"], result["text"]), result["traceback"])
            # An answer is computed on this machine's processor where there is no GPU.
            if case.call != "chat" and result["seconds"] > FROZEN + result["size"] / 2**20:
                tally.add("page's process busy", case, f"{result['seconds']:.1f} s")
        worker.end()

    _together([lambda worker=worker: work(worker) for worker in workers])


def _together(deeds: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=deed) for deed in deeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# -- over HTTP


def attack_outside(cases: list[Case], tally: Tally, attacker: Attacker, ends: float, hands: int = 4) -> None:
    """Send the cases, several at a time."""
    waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
    for case in cases:
        waiting.put(case)

    def work() -> None:
        while time.monotonic() < ends:
            try:
                case = waiting.get_nowait()
            except queue.Empty:
                return
            started = time.time()
            try:
                answer = attacker.do(case)
            except TimeoutError:
                tally.add("no answer", case, "")
                answer = Answer("none", "")
            # The connection or a stream was closed: refused, as long as others are served.
            except (OSError, ValueError, HTTPException) as error:
                answer = Answer("refuse", str(error) if isinstance(error, ValueError) else "")
            tally.flights.append((started, time.time(), case))
            tally.judge(case, answer)

    _together([work] * hands)


@contextmanager
def watched(url: str, pid: int) -> Iterator[list[dict]]:
    """Another visitor's waits, once the block is over."""
    waits: list[dict] = []
    command = [sys.executable, str(ROOT / "tests/attack_watch.py"), url, str(pid)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield waits
    finally:
        waits += json.loads(process.communicate()[0] or "[]")


def judge_waits(waits: list[dict], tally: Tally) -> float:
    """Note the waits above the limit, with the cases that were under way; the longest."""
    longest = 0.0
    for wait in waits:
        took = wait["took"] - wait["stalled"]
        longest = max(longest, took)
        if took > FROZEN or not wait["answered"]:
            begun, over = wait["at"] - 0.5, wait["at"] + wait["took"]
            suspects = [c for s, e, c in tally.flights if s < over and e > begun]
            suspects.sort(key=lambda c: c.family == "handler")
            names = "; ".join(f"{c.name} ({c.about[:40]})" for c in suspects[:8])
            kind = "other visitor waited" if wait["answered"] else "other visitor was not served"
            tally.add(kind, None, f"{wait['what']}: {took:.1f} s, during {names}")
    return longest


def _state(folder: Path) -> dict[str, bytes]:
    names = ("recipe.yaml", "plan.json", "evaluation.json", "adapter/adapter_config.json")
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def judge_traces(folder: Path, hub: Hub, owner: str, before: dict, tally: Tally) -> None:
    """What must be as it was: another's run, the example, the repositories, the folders beside that of uploads."""
    for run, state in before.items():
        if _state(folder / "runs" / run) != state:
            tally.add("another's run was changed", None, run)
        if (folder / "runs" / run / "stop").exists():
            tally.add("another's run was changed", None, f"{run}: it was told to stop")
    if strays := [str(f) for f in folder.rglob("*owned*") if "uploads" not in f.parts]:
        tally.add("a file was written elsewhere", None, ", ".join(strays))
    if used := [seen.path for seen in hub.seen if seen.token == owner]:
        tally.add("the owner's token was used", None, f"{len(used)} times, first for {used[0]}")
    if pushed := [name for _, name in hub.repos if "stolen" in name]:
        tally.add("another's run was pushed", None, ", ".join(pushed))


def judge_log(log: str, tally: Tally) -> None:
    """Note each traceback that was logged: what strangers send must not fill the log of whoever runs the app."""
    for traceback in LOGGED.findall(log):
        tally.add("a bug was logged", None, traceback[-400:])


# -- all of it


def stock(hub: Hub, folder: Path) -> tuple[str, str]:
    """Put models, rows and accounts on the Hub; the tokens of the Space's owner and of a visitor."""
    import tiny

    owner, visitor = hub.user("owner"), hub.user("alice")
    models = attack_models.all_files(tiny.tiny_model(folder / "good-model"))
    for name, files in models.items():
        hub.add_model(name, files)
    rows = {
        "train.jsonl": "".join(
            json.dumps(p) + "\n" for p in [{"prompt": f"a {i}", "completion": f"b {i}"} for i in range(24)]
        ).encode()
    }
    hub.add_model("owner/private", models["good/model"], private=True)
    hub.add_dataset("owner/private-rows", rows, private=True)
    hub.add_dataset("good/rows", rows)
    return owner, visitor


def run(options: argparse.Namespace) -> Tally:
    """The whole attack."""
    folder = Path(tempfile.mkdtemp(prefix="tuner-attack-")).resolve()
    tally, hub, began = Tally(folder), Hub(), time.monotonic()
    ends = began + options.seconds
    try:
        owner, visitor = stock(hub, folder)
        for name in ("canary.txt", "canary.csv"):
            (folder / name).write_text(f"prompt,completion\n{CANARY},{CANARY}\n" * 9)
        hidden = (
            ROOT / "tuner",
            Path(sys.prefix).resolve(),
            folder / "runs",
            folder / "worker",
            folder / "hub",
            Path.home() / ".cache",
        )
        tally.secrets = (*map(str, hidden), CANARY, owner, visitor, "root:x:0:0")
        env = {**hub.env(folder / "hub"), "OMP_NUM_THREADS": "1", "HF_TOKEN": owner, "TUNER_CHECK_SECONDS": "10"}
        cases = only(options.only, options.seed) if options.only else None
        inside = [c for c in cases if c.family in INSIDE] if cases else chosen(INSIDE, options.count, options.seed)
        outside = (
            [c for c in cases if c.family not in INSIDE] if cases else chosen(OUTSIDE, options.count, options.seed)
        )
        random.Random(options.seed).shuffle(outside)  # so that no kind is alone with itself
        if inside:
            workers = [Worker({"seed": options.seed, "token": visitor}, env, folder) for _ in range(options.processes)]
            attack_inside(inside, tally, workers, began + options.seconds * 0.6)
        middle = time.monotonic()
        report = {"seconds without HTTP": middle - began}
        if outside:
            report |= _over_http(
                outside, tally, hub, owner, folder, env, ends, floods=options.count >= FEW and not cases
            )
        report["seconds over HTTP"] = time.monotonic() - middle
        report["seconds in all"] = time.monotonic() - began
        show(tally, report, options)
        return tally
    finally:
        hub.close()
        shutil.rmtree(folder, ignore_errors=True)


def _over_http(
    cases: list[Case], tally: Tally, hub: Hub, owner: str, folder: Path, env: dict[str, str], ends: float, floods: bool
) -> dict[str, Any]:
    os.mkfifo(folder / "fifo")
    (folder / "link").symlink_to("/etc/passwd")
    ours = {k: v for k, v in env.items() if k.startswith(("HF_", "NO_PROXY", "TRANSFORMERS", "TUNER_CHECK"))}
    ours |= {"GRADIO_TEMP_DIR": str(folder / "uploads"), "TUNER_MAX_SECONDS": "20", "TUNER_RUNS": str(folder / "runs")}
    with serve(folder / "runs", **ours) as url:
        port = int(url.rstrip("/").rpartition(":")[2])
        pid = next(
            c.pid for c in psutil.net_connections("tcp") if c.laddr.port == port and c.status == psutil.CONN_LISTEN
        )
        victim = "v" * 16
        shutil.copytree(ROOT / "examples/finished", folder / "runs" / victim)
        before = {name: _state(folder / "runs" / name) for name in (victim, "example")}
        attacker, memory = Attacker(url, victim, str(folder)), Memory(pid)
        check = attacker.by_name["check"]
        attacker.call(check, [attack_cases.GOOD, None, attack_cases.ROWS], "first")  # loads what is loaded once
        memory.start()
        with watched(url, pid) as waits:
            attack_outside(cases, tally, attacker, ends)
            if floods:
                attack_outside(
                    [attack_http.make("flood", n, 0) for n in range(len(attack_http.floods()))],
                    tally,
                    attacker,
                    ends + 60,
                    1,
                )
        memory.over.set()
        longest = judge_waits(waits, tally)
        if not psutil.pid_exists(pid):
            tally.add("the app died", None, url.log.read_text()[-300:])
        judge_traces(folder, hub, owner, before, tally)
        judge_log(url.log.read_text(), tally)
        if memory.most > MOST_MEMORY:
            tally.add("memory above the limit", None, f"{memory.most / 2**20:.0f} MB")
    return {
        "questions of the other visitor": len(waits),
        "longest wait (s)": longest,
        "memory at first (MB)": memory.first / 2**20,
        "most memory (MB)": memory.most / 2**20,
    }


def show(tally: Tally, report: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the counts, and each violation with what reproduces it."""
    print(f"\nattack --seed {options.seed} --count {options.count}")
    for family, number in tally.tried.items():
        print(f"  {family:<34}{number:>8,}")
    print(f"  {'tried in all':<34}{sum(tally.tried.values()):>8,}")
    for kind, number in tally.planted.items():
        print(f"  {f'planted, to be {kind}ed'.replace('refuseed', 'refused'):<34}{number:>8,}")
    for name, value in report.items():
        print(f"  {name:<34}{value:>8,.1f}" if isinstance(value, float) else f"  {name:<34}{value:>8,}")
    kinds = Counter(kind for kind, _, _ in tally.violations)
    print(f"  {'violations':<34}{len(tally.violations):>8,}")
    for kind, number in kinds.most_common():
        print(f"    {kind:<32}{number:>8,}")
    shown: Counter = Counter()
    for kind, name, what in tally.violations:
        shown[kind] += 1
        if shown[kind] <= options.show:
            print(f"{kind}: {name}: {what!r}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Attack the app.")
    parser.add_argument("--seed", type=int, default=0, help="the same seed tries the same cases")
    parser.add_argument("--count", type=int, default=5000, help="about how many cases to try")
    parser.add_argument("--seconds", type=float, default=600, help="stop after this time")
    parser.add_argument("--only", default="", help="cases or whole families to try, such as recipe/17,origin")
    parser.add_argument("--processes", type=int, default=2, help="processes that do cases without HTTP")
    parser.add_argument("--show", type=int, default=20, help="violations of each kind to print")
    return parser


if __name__ == "__main__":
    raise SystemExit(bool(run(parser().parse_args()).violations))
