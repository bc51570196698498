"""Heartbeats: ZeroGPU can cancel a generator only when it yields, so a thread works while the generator yields."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

HEARTBEAT = 0.5  # seconds


def with_heartbeat(work: Callable[[Callable[[Any], None]], None], stop: Callable[[], None] | None) -> Iterator[Any]:
    """Yield what `work(put)` puts, and None after each half second without a value. Raises what the work raises.

    Closing the generator calls `stop` and waits until the work has ended; without a `stop` nobody waits for it.
    """
    results: queue.SimpleQueue = queue.SimpleQueue()
    end = object()

    def run() -> None:
        try:
            work(results.put)
        except Exception as error:
            results.put(error)
        finally:
            results.put(end)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            try:
                value = results.get(timeout=HEARTBEAT)
            except queue.Empty:
                value = None
            if value is end:
                return
            if isinstance(value, Exception):
                raise value
            yield value
    finally:
        if stop:
            if thread.is_alive():
                stop()
            thread.join()
