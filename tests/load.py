"""Many visitors at once over real HTTP: pages that watch a run, and callers whose runs wait in line.

async with Crowd(url) as crowd:
    await crowd.resume(runs)
    await crowd.watch("run", 1000)
    print(await crowd.measure(pid, seconds=10))
"""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

import httpx
import psutil

ROWS = "prompt,completion\n" + "".join(f"do {i},Please do {i}.\n" for i in range(16))
RECIPE = "{budget: {steps: 4}, evaluation: {rows: 2, max_new_tokens: 4}}"
SHARING = 50  # visitors of one network address


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
        self.client = httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=None, keepalive_expiry=1))
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
        headers = {"X-Forwarded-For": f"203.0.{number // SHARING}.9"}
        answer = await self.client.post(f"{self.url}call/resume", json={"data": [run, secret]}, headers=headers)
        answer.raise_for_status()
        address = f"{self.url}call/resume/{answer.json()['event_id']}"
        async with self.client.stream("GET", address, headers=headers) as lines:
            async for line in lines.aiter_lines():
                values = json.loads(line[6:]) if line.startswith("data: ") else None
                if isinstance(values, dict) and "error" in values:
                    self.refused.append(values["error"])
                    return
                event = values[0] if isinstance(values, list) else {}
                if event.get("event") == "waiting":
                    self.places[run] = event["place"]

    def watch(self, run: str, number: int) -> None:
        """So many pages that show the run."""
        self.tasks += [asyncio.create_task(self._page(run, f"page{n}", 10 * n / number)) for n in range(number)]

    async def _page(self, run: str, session: str, start: float) -> None:
        seconds, seen, asked = 1.0, "", False
        await asyncio.sleep(start)
        while True:
            texts = iter((run, seen))
            data = [next(texts) if kind == "textbox" else None for kind in self.inputs]
            body = {"data": data, "fn_index": self.tick["id"], "session_hash": session}
            answer = await self.client.post(f"{self.url}run/predict", json=body)
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

    async def check(self) -> float:
        """Seconds until a visitor's check of the example is answered."""
        began = time.monotonic()
        answer = await self.client.post(f"{self.url}call/check", json={"data": [RECIPE, None, ROWS]})
        async with self.client.stream("GET", f"{self.url}call/check/{answer.json()['event_id']}") as lines:
            text = "".join([line async for line in lines.aiter_lines()])
        assert '"plan"' in text, text[:500]
        return time.monotonic() - began

    async def measure(self, pid: int, seconds: float) -> Load:
        """What the crowd costs the server with this process."""
        server = psutil.Process(pid)
        await self.check()  # which loads what is loaded once
        began, before, ticks, size = time.monotonic(), server.cpu_times(), self.ticks, self.bytes
        await asyncio.sleep(seconds)
        passed, after = time.monotonic() - began, server.cpu_times()
        ticks, size = self.ticks - ticks, self.bytes - size
        cpu = (after.user + after.system - before.user - before.system) / passed
        checks = [await self.check() for _ in range(3)]
        return Load(cpu, ticks / passed, size / max(1, ticks), max(checks), server.memory_info().rss / 2**20)
