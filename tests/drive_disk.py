"""What visitors meet on a disk of 8 MB that goes read-only or full: python tests/drive_disk.py FOLDER read-only|full

To be run where it may mount: unshare --map-root-user --mount python tests/drive_disk.py ... It prints what each action
said, while the disk was broken and once it was mended.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

folder, how = Path(sys.argv[1]), sys.argv[2]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "runs", folder], check=True)
os.environ |= {"TUNER_RUNS": str(folder / "runs"), "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}

import gradio as gr  # noqa: E402
from visitors_runs import copied, streamed, with_events  # noqa: E402

from tuner import runs  # noqa: E402
from tuner.errors import TunerError  # noqa: E402
from tuner.evaluation.answers import heldout_rows  # noqa: E402
from tuner.recipe import Recipe  # noqa: E402
from tuner.ui import actions, api, render, run_queue, runs_tab  # noqa: E402
from tuner.ui.problems import problems_of  # noqa: E402

ROWS = "prompt,completion\n" + "".join(f"say {i},I say {i}\n" for i in range(20))


def chat() -> list[str]:
    """The last answers to one message."""
    turns = [{"role": "user", "content": "need that report asap"}]
    lineup = actions.Lineup({"adapter": actions.open_run("mine")}, {})
    *_, texts = actions.chat(lineup, dict.fromkeys(("base", "adapter"), turns), **SAMPLING)
    return sorted(texts)


SAMPLING = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 4, "seed": 0}


def train() -> str:
    """A new run."""
    return next(streamed(api.train("budget: {steps: 2}", None, ROWS)))["event"]


ACTIONS = {
    "list": lambda: [run.id for run in runs.list_runs()],
    "my runs": lambda: bool(runs_tab.refresh({"runs": ["mine", "paused"]}, "mine")),
    "look": lambda: "It helped" in render.run_card(actions.open_run("mine")),
    "status": lambda: api.status("paused")["phase"],
    "rows": lambda: len(heldout_rows(actions.open_run("mine"))),
    "chat": chat,
    "stop": lambda: actions.stop("mine"),
    "resume": lambda: actions.resume("paused").id,
    "merge": lambda: actions.merge("mine")["tokens"] > 0,
    "train": train,
    "delete": lambda: actions.delete("gone"),
}


def tried() -> dict:
    """What each action answered, or was told."""
    told = {}
    for name, act in ACTIONS.items():
        try:
            told[name] = act()
        except (TunerError, gr.Error, OSError) as error:
            told[name] = problems_of(error)
        run_queue.queue.leave("paused")
    return told


def main() -> None:
    """Break the disk, try everything, mend it, and try again."""
    run_queue.queue = run_queue.RunQueue(0)  # nothing gets its turn
    for name in ("mine", "paused", "gone"):
        copied(name)
    with_events(runs.Run(runs.RUNS / "paused"), {"event": "start", "step": 0}, {"event": "end", "reason": "window"})
    Recipe.load("corporate")
    filler = folder / "filler"
    if how == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    else:
        with open(filler, "wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass
    broken = tried()
    if how == "read-only":
        subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
    else:
        filler.unlink()
    del ACTIONS["merge"], ACTIONS["train"]  # for which 8 MB are too few
    print(json.dumps([broken, tried()]))


if __name__ == "__main__":
    main()
