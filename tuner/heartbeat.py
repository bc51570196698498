"""Heartbeats: ZeroGPU cancels a generator only where it yields, so work is done in a thread, and the wait yields."""

import queue
import threading
from collections.abc import Callable, Iterator

HEARTBEAT = 0.5  # seconds


def with_heartbeat(work: Callable[[Callable], None], stop: Callable[[], None]) -> Iterator:
    """What `work(put)` puts, and None every half second that brings nothing. What it raises is raised here.

    Closing the generator calls `stop` and waits until the work has ended.
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
        if thread.is_alive():
            stop()
        thread.join()
