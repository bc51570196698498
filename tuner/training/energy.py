"""Energy that a training took, by the machine's own counters: those that codecarbon reads, and nothing estimated.

Linux counts what processors take (RAPL, powercap), where it lets this user read it; NVIDIA's driver counts what a card
takes. Both count other programs as well. ZeroGPU's cards are shared, so they are not read. Memory, fans and all else
are not counted.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from tuner.models.device import ZERO, device_type
from tuner.runs import Run

log = logging.getLogger(__name__)

POWERCAP = Path("/sys/class/powercap")
AT = ("checkpoint", "end")  # events that tell what was counted since the window was opened
NAMES = {"processor": "processor", "card": "GPU"}

Counter = Callable[[], float]  # joules, from any start


def metered(emit: Callable[[dict], None]) -> Callable[[dict], None]:
    """`emit`, whose checkpoints and end tell the joules since now, by what was counted."""
    counters = {"processor": _processor(), "card": _card()}
    counters = {name: counter for name, counter in counters.items() if counter}
    opened = {name: counter() for name, counter in counters.items()}

    def emit_with_energy(event: dict) -> None:
        if counters and event["event"] in AT:
            event = event | {"joules": {name: round(read() - opened[name], 3) for name, read in counters.items()}}
        emit(event)

    return emit_with_energy


class Counted:
    """A fold of a run's events: the joules of each window, by what was counted."""

    def __init__(self):
        self.windows: list[dict[str, float]] = []

    def add(self, event: dict) -> None:
        """Take the next event into account."""
        if event["event"] == "start":
            self.windows.append({})
        elif self.windows and isinstance(joules := event.get("joules"), dict):
            self.windows[-1] = joules


def of_run(run: Run) -> dict[str, float]:
    """The joules of all windows, by what was counted; nothing if a window was not counted."""
    windows = run.log.fold(Counted).windows
    return {name: sum(w[name] for w in windows) for name in NAMES if windows and all(name in w for w in windows)}


def sentence(run: Run) -> str | None:
    """The energy in words; None if it was not counted."""
    counted = of_run(run)
    parts = [f"{counted[name] / 3600:.2g} Wh by the {title}" for name, title in NAMES.items() if name in counted]
    if not parts:
        return None
    return f"{' and '.join(parts)}, by counters of the machine that count all programs on it, and nothing else of it"


def _processor() -> Counter | None:
    """All processors together; a counter begins again at 0 when it is full, which takes minutes at least."""
    found = [zone for zone in POWERCAP.glob("*-rapl:*") if zone.name.count(":") == 1]
    try:
        most = {zone: int((zone / "max_energy_range_uj").read_text()) for zone in found}
        last = {zone: int((zone / "energy_uj").read_text()) for zone in found}
    except (OSError, ValueError):  # only the administrator may read it
        return None
    total = 0.0

    def read() -> float:
        nonlocal total
        for zone in found:
            now = int((zone / "energy_uj").read_text())
            total += (now - last[zone]) % (most[zone] + 1) / 1e6
            last[zone] = now
        return total

    return read if found else None


def _card() -> Counter | None:
    if ZERO or device_type() != "cuda":
        return None
    try:
        import pynvml
        import torch

        pynvml.nvmlInit()
        card = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(card)
    except Exception as error:  # no driver of that kind, a part of a card, or a card from before 2017
        log.info("the GPU's energy is not counted: %r", error)
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1e3
