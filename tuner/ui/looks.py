"""What people who watch a run see: one look at its folder, and one card, shared by all of them for a moment."""

import hashlib
import math
import threading
import time
import zlib
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from tuner import runs
from tuner.methods.files import CONFIG
from tuner.runs import Run
from tuner.ui import actions, elements, progress, render, run_queue
from tuner.ui.problems import problems_of

MOMENT = 0.5  # seconds for which people who only watch share a look
MOST_LOOKS = 1000  # runs whose card is kept
TICKS = 40  # a second, of all pages together
LONGEST_TICK = 32  # seconds; less than progress.RECENT, in which a watched run's next window has to start
AWAY = 90  # seconds after which a page that was closed, or is hidden, counts no longer


@dataclass(frozen=True)
class Look:
    """A run at one moment, as everybody sees it."""

    phase: str  # one of progress.py's, or gone
    card: str
    has_adapter: bool = False
    is_live: bool = False  # something will happen without anybody pressing a button
    mark: str = field(default="", compare=False)  # another one for another card


class _Watched:
    """A run's newest look, and what its card was made from."""

    def __init__(self):
        self.lock = threading.Lock()
        self.look: Look | None = None
        self.at = 0.0
        self.made_from: tuple | None = None


_watched: OrderedDict[Path, _Watched] = OrderedDict()
_pages: OrderedDict[str, float] = OrderedDict()  # session -> when its page looked last
_lock = threading.Lock()


def at(run: str, moment: float = 0.0) -> Look:
    """The run as it is now, or was this many seconds ago at most; what is wrong with it stands in the card."""
    if not runs.ID.fullmatch(run):
        return _look(run, _Watched())  # of which nothing is kept, since anybody can send any text
    folder = (runs.RUNS / run).absolute()
    with _lock:
        watched = _watched.setdefault(folder, _Watched())
        _watched.move_to_end(folder)
        while len(_watched) > MOST_LOOKS:
            _watched.popitem(last=False)
    with watched.lock:
        if not watched.look or time.monotonic() - watched.at >= moment:
            watched.look = _look(run, watched)
            watched.at = time.monotonic()
        return watched.look


def _look(run: str, watched: _Watched) -> Look:
    try:
        opened = actions.open_run(run)
        now = run_queue.look(opened)
        # All that the card shows; it is made again only if something of it has changed.
        made_from = (opened, now, render.place_and_wait(run), opened.last_event("micro_batch", "end"), _scored(opened))
        if watched.made_from == made_from:
            card, mark = watched.look.card, watched.look.mark
        else:
            card = render.run_card(opened, now)
            mark = hashlib.blake2b(card.encode(), digest_size=8).hexdigest()
        watched.made_from = made_from
        # Between a worker's death and its event, the folder alone would say that the run has ended.
        is_live = now.phase in progress.LIVE or run_queue.queue.holds(run)
        return Look(now.phase, card, (opened.adapter / CONFIG).is_file(), is_live, mark)
    except Exception as error:
        watched.made_from = None
        return Look("gone", elements.problems(problems_of(error)))


def _scored(run: Run) -> tuple | None:
    try:
        status = (run.path / "evaluation.json").stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def seconds_between(session: str) -> float:
    """Seconds until this page should look again: the more pages are open, the less often each looks."""
    now = time.monotonic()
    with _lock:
        _pages[session] = now
        _pages.move_to_end(session)
        while now - next(iter(_pages.values())) > AWAY:
            _pages.popitem(last=False)
        share = len(_pages) / TICKS
    seconds = min(LONGEST_TICK, 2 ** math.ceil(math.log2(max(1.0, share))))
    # Pages that were opened at the same time must not all look at the same time.
    return seconds if seconds == 1 else round(seconds * (0.75 + zlib.crc32(session.encode()) / 2**33), 1)
