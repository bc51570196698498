"""The loss curve of a run as a picture, for its card. Drawn with matplotlib's Figure alone, which shares no state."""

import io
import math

from tuner.runs import Run

COLORS = {"training": "#94a3b8", "held-out": "#0f766e"}


def picture(run: Run) -> bytes | None:
    """Training loss and held-out loss by step as a PNG, the same bytes each time; None if there are none."""
    lines = {"training": _losses(run, "step"), "held-out": _losses(run, "heldout")}
    if not any(lines.values()):
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name, points in lines.items():
        if points:
            style = {"marker": "o", "markersize": 4} if name == "held-out" else {"linewidth": 1}
            axes.plot(*zip(*sorted(points.items())), label=f"{name} loss", color=COLORS[name], **style)
    axes.set(xlabel="step", ylabel="loss, nats per token", ylim=(0, None))
    axes.grid(color="#e2e8f0")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    written = io.BytesIO()
    figure.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()


def _losses(run: Run, kind: str) -> dict[int, float]:
    """The loss at each step; a window that began again at an earlier step replaces what came after that."""
    losses: dict[int, float] = {}
    for event in run.events():
        step, loss = event.get("step"), event.get("loss")
        if event["event"] == "start" and step is not None:
            losses = {at: old for at, old in losses.items() if at <= step}
        elif event["event"] == kind and loss is not None and math.isfinite(loss):
            losses[step] = loss
    return losses
