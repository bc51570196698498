"""Many visitors at once over real HTTP: pages that watch a run, and callers whose runs wait in line.

async with Crowd(url) as crowd:
    await crowd.resume(runs)
    await crowd.watch("run", 1000)
    print(await crowd.measure(pid, seconds=10))
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import psutil

ROWS = "prompt,completion\n" + "".join(f"do {i},Please do {i}.\n" for i in range(16))
RECIPE = "{budget: {steps: 4}, evaluation: {rows: 2, max_new_tokens: 4}}"
TRAINING = "{budget: {seconds: 60}, evaluation: {rows: 2, max_new_tokens: 4}}"
STREAMS = ("train", "resume")  # whose last line repeats the last event
# What a further visitor asks for, of each endpoint.
ASKED = {"check": [RECIPE, None, ROWS], "status": ["example"], "chat": ["example", "hey", None, "", 0, 1, 8, 0, ""]}
SHARING = 50  # visitors of one network address


def address(number: int) -> dict[str, str]:
    """The headers of a visitor of this network address."""
    return {"X-Forwarded-For": f"203.{number // 200}.{number % 200}.9"}


@dataclass
class Load:
    """What a crowd costs."""

    cpu: float  # seconds of the server's processor, per second
    ticks: float  # looks of all pages, per second
    bytes: float  # of their answers, per tick
    check: float  # seconds that another visitor's check takes, at most
    memory: float  # MB of the server

    def __str__(self) -> str:
        return (
            f"{self.cpu:.3f} CPU s/s, {self.ticks:.1f} ticks/s of {self.bytes:,.0f} bytes, a check takes "
            f"{self.check:.2f} s at most, {self.memory:,.0f} MB"
        )


class Crowd:
    """Visitors with pages and API clients of their own."""

    def __init__(self, url: str):
        self.url = f"{url}gradio_api/"
        # A connection for each request: a busy server would close a kept one just when it is used again.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self.client = httpx.AsyncClient(timeout=300, limits=limits)
        self.tasks: list[asyncio.Task] = []
        self.refused: list[str] = []
        self.places: dict[str, int] = {}  # as they were shown, by run
        self.ticks, self.bytes = 0, 0

    async def __aenter__(self) -> "Crowd":
        config = (await self.client.get(self.url.replace("gradio_api/", "config"))).json()
        kinds = {component["id"]: component["type"] for component in config["components"]}
        self.tick = next(d for d in config["dependencies"] if any(event == "tick" for _, event in d["targets"]))
        self.inputs = [kinds[component] for component in self.tick["inputs"]]
        self.outputs = [kinds[component] for component in self.tick["outputs"]]
        return self

    async def __aexit__(self, *error) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.client.aclose()

    async def resume(self, runs: Mapping[str, str]) -> None:
        """A caller of /resume for each run with its secret, who follows it; returns when all have a place."""
        callers = [asyncio.create_task(self._follow(*run, number)) for number, run in enumerate(runs.items())]
        self.tasks += callers
        while len(self.places) + len(self.refused) < len(runs):
            for caller in callers:
                if caller.done():
                    caller.result()
            await asyncio.sleep(0.1)

    async def _follow(self, run: str, secret: str, number: int) -> None:
        await asyncio.sleep(0.01 * number)  # all at once would be too many connections to accept
        async for event in self.call("resume", [run, secret], address(number // SHARING)):
            if "error" in event:
                self.refused.append(event["error"])
            elif event.get("event") == "waiting":
                self.places[run] = event["place"]
            elif event.get("event") == "starting":
                self.places.setdefault(run, 0)

    async def train(self, number: int, events: list[dict]) -> None:
        """Train a run to its end, as this visitor, and write down its events."""
        async for event in self.call("train", [TRAINING, None, ROWS], address(100 + number)):
            events.append(event)

    async def call(self, endpoint: str, data: list, headers: Mapping[str, str] | None = None) -> AsyncIterator[Any]:
        """What the endpoint streams; an error is a dictionary with the key "error"."""
        answer = await self.client.post(f"{self.url}call/{endpoint}", json={"data": data}, headers=headers)
        answer.raise_for_status()
        stream = f"{self.url}call/{endpoint}/{answer.json()['event_id']}"
        async with self.client.stream("GET", stream, headers=headers) as lines:
            kind = ""
            async for line in lines.aiter_lines():
                kind = line[7:] if line.startswith("event: ") else kind
                values = json.loads(line[6:]) if line.startswith("data: ") else None
                if isinstance(values, dict):
                    yield values
                elif values and (kind == "generating" or endpoint not in STREAMS):
                    yield values[0]

    def watch(self, run: str, number: int) -> None:
        """So many pages that show the run, opened within ten seconds."""
        self.tasks += [asyncio.create_task(self._page(run, n, 10 * n / number)) for n in range(number)]

    async def _page(self, run: str, number: int, start: float) -> None:
        seconds, seen, asked, session = 1.0, "", False, f"page-{run}-{number}"
        headers = address(200 + number // SHARING)
        await asyncio.sleep(start)
        while True:
            texts = iter((run, seen))
            data = [next(texts) if kind == "textbox" else None for kind in self.inputs]
            body = {"data": data, "fn_index": self.tick["id"], "session_hash": session}
            answer = await self.client.post(f"{self.url}run/predict", json=body, headers=headers)
            answer.raise_for_status()
            self.ticks += asked  # the first one of each page is on its way before anybody knows how many there are
            self.bytes += len(answer.content) * asked
            asked = True
            for kind, value in zip(self.outputs, answer.json()["data"]):
                if kind == "timer" and isinstance(value, dict) and value.get("value"):
                    seconds = value["value"]
                if kind == "textbox" and isinstance(value, str):
                    seen = value
            await asyncio.sleep(seconds)

    async def wait(self, endpoint: str = "check") -> float:
        """Seconds until a further visitor is answered."""
        began = time.monotonic()
        answers = [answer async for answer in self.call(endpoint, ASKED[endpoint])]
        assert answers, endpoint
        assert "error" not in answers[-1], answers[-1]
        assert not answers[-1].get("problems"), answers[-1]
        return time.monotonic() - began

    async def measure(self, pid: int, seconds: float) -> Load:
        """What the crowd costs the server with this process."""
        server = psutil.Process(pid)
        await self.wait()  # which loads what is loaded once
        began, before, ticks, size = time.monotonic(), server.cpu_times(), self.ticks, self.bytes
        await asyncio.sleep(seconds)
        passed, after = time.monotonic() - began, server.cpu_times()
        ticks, size = self.ticks - ticks, self.bytes - size
        cpu = (after.user + after.system - before.user - before.system) / passed
        checks = [await self.wait() for _ in range(3)]
        return Load(cpu, ticks / passed, size / max(1, ticks), max(checks), server.memory_info().rss / 2**20)
