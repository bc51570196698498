"""A disk that goes read-only or full under the page: told in sentences, nothing is lost, and all is well afterwards.

It needs a Linux on which this user may mount a folder in a namespace of its own.
"""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.long

RUNS = ["gone", "mine", "paused"]
LOCKED = ["This machine's disk can't be written to at the moment. What was saved before is kept: try again later."]
IDLE = ["Run mine is not in training, so there is nothing to stop."]
FINE = {"my runs": True, "look": True, "status": "continuing", "rows": 80, "chat": ["adapter", "base"], "stop": IDLE}


def tried(folder, how: str) -> list[dict]:
    """What each action answered while the disk was broken so, and after it was mended."""
    command = ["unshare", "--map-root-user", "--mount", sys.executable, "tests/drive_disk.py", str(folder), how]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    for answer in answers:
        answer["list"].sort()
    return answers


@pytest.mark.parametrize("how", ["read-only", "full"])
def test_a_disk_that_breaks_loses_nothing_and_is_told_in_sentences(how, tmp_path):
    broken, mended = tried(tmp_path, how)
    assert broken.items() >= (FINE | {"list": RUNS}).items()
    assert broken["merge"][0].startswith("There is no room for this: ")
    assert broken["train"][0].startswith("This run needs about ")
    if how == "read-only":
        assert broken["resume"] == LOCKED
        assert broken["delete"] == ["Run gone can't be deleted: read-only file system."]
    else:
        assert broken["delete"] is None  # which makes room again
    for told in (broken, mended):
        assert str(tmp_path) not in f"{told}"
        assert "unexpected" not in f"{told}"
    status = "waiting" if how == "full" else "continuing"  # where it could be resumed
    assert mended.items() >= (FINE | {"resume": "paused", "status": status}).items()
    assert {"mine", "paused"} <= set(mended["list"])
