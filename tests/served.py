"""The real app in a separate process, on a free port, with its own folder of runs and without network.

with serve(tmp_path) as url: Client(url)
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fresh

ROOT = Path(__file__).resolve().parent.parent
START = 180  # seconds that a busy machine may take


class Served(str):
    """The app's address, with its process's number."""

    pid: int
    log: Path


@contextmanager
def serve(runs: Path, launcher: tuple[str, ...] = (), port: int = 0, **environment: str) -> Iterator[Served]:
    """The app's address, on this port if one is named; at the end it is stopped, with its training processes."""
    port = port or _free_port()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GRADIO_", "SPACE", "OAUTH_"))}
    ours = {"TUNER_RUNS": runs.name, "GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    # Several processes train at once here, and threads that wait for each other in a spin would slow all of them down.
    ours["OMP_NUM_THREADS"] = "1"
    url = Served(f"http://127.0.0.1:{port}/")
    # On the stage `spaces` has to come before torch.
    command = [sys.executable if launcher else fresh.PYTHON, *launcher, str(ROOT / "app.py")]
    with open(runs.parent / f"app-{port}.log", "wb") as log:
        app = subprocess.Popen(
            command,
            cwd=runs.parent,  # not the checkout: the app must find its files from anywhere
            env=kept | ours | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            url.pid, url.log = app.pid, Path(log.name)
            _wait(app, url, url.log)
            yield url
        finally:
            for lock in runs.glob("*/lock"):
                (lock.parent / "stop").touch()
            app.terminate()
            app.wait(30)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _wait(app: subprocess.Popen, url: str, log: Path) -> None:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if app.poll() is not None:
                break
            time.sleep(0.1)
    raise AssertionError(f"the app did not answer:\n{log.read_text()}")
