"""What is downloaded from the real app: whole, in parts, resumed after a cut; loaded from its folder by plain PEFT."""

import hashlib
import io
import os
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fresh
import httpx
import psutil
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from served import Served, serve

from tuner import runs
from tuner.recipe import EXAMPLES
from tuner.ui import downloads, ownership
from tuner.ui.visitor import ANYBODY

GOOD = {"tokens": 9, "top1_agreement": 1.0, "max_logit_difference": 0.0, "merge_failed": False}
GOOD |= {"top1_agreement_quantized": 1.0, "max_logit_difference_quantized": 0.0}
MIB = 2**20


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The served app's address."""
    with serve(tmp_path_factory.mktemp("downloads") / "runs") as address:
        yield address


@pytest.fixture(scope="module")
def client(app: Served) -> Client:
    return Client(app, verbose=False)


@pytest.fixture(scope="module")
def http(app: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=app.rstrip("/"), timeout=120) as opened:
        yield opened


def merged_run(app: Served, name: str, size: int, content: bytes = b"") -> tuple[runs.Run, str]:
    """A run of the app with a merged model of so many bytes, nothing beyond `content`; and its secret."""
    run = runs.Run(Path(shutil.copytree(EXAMPLES / "finished", app.log.parent / "runs" / name)))
    secret = ownership.claim(run, ANYBODY)
    run.merged.mkdir()
    with open(run.merged / "model.safetensors", "wb") as file:
        file.write(content)
        file.truncate(size)
    run.write_json("merge_check.json", GOOD)
    return run, secret


def offered(client: Client, run: str, what: str, secret: str = "") -> dict:
    return client.predict(run, what, secret, api_name="/download")


def cut_and_resumed(http: httpx.Client, app: Served, address: str, size: int) -> tuple[str, int]:
    """The SHA-256 of a download that is cut twice in the middle; and by how many bytes the app's memory grew."""
    process, digest, have, most = psutil.Process(app.pid), hashlib.sha256(), 0, 0
    before = process.memory_info().rss
    tag = http.head(address).headers["ETag"]
    for limit in (size // 3, 2 * size // 3, size):
        asked = {"Range": f"bytes={have}-", "If-Range": tag} if have else {}
        with http.stream("GET", address, headers=asked) as answer:
            assert answer.status_code == (206 if have else 200)
            for chunk in answer.iter_bytes(MIB):
                digest.update(chunk)
                have += len(chunk)
                if have % (64 * MIB) < MIB:
                    most = max(most, process.memory_info().rss)
                if have >= limit:
                    break  # the connection is closed with the block
    assert have == size
    return digest.hexdigest(), most - before


@pytest.mark.parametrize(
    ("size", "filled"),
    [(10 * MIB, True), pytest.param(5 * 2**30, False, marks=pytest.mark.long)],
    ids=["10 MB", "5 GB"],
)
def test_a_download_that_is_cut_resumes_with_flat_memory(size, filled, app, client, http):
    run, secret = merged_run(app, f"merged{size}", size, os.urandom(size) if filled else b"the beginning")
    it = offered(client, run.id, "merged", secret)
    archive, name = downloads.download.package(run, "merged")  # laid out here, from the same files
    assert (it["name"], it["bytes"]) == (name, archive.size)
    assert archive.size > size
    expected = hashlib.sha256()
    for chunk in archive.read():
        expected.update(chunk)
    digest, grown = cut_and_resumed(http, app, it["address"], it["bytes"])
    assert digest == expected.hexdigest()
    assert grown < 60 * MIB


def test_any_part_that_a_browser_asks_for_is_sent(app, client, http):
    it = offered(client, "example", "adapter")
    whole = http.get(it["address"])
    assert (whole.status_code, len(whole.content)) == (200, it["bytes"])
    assert whole.headers["Content-Disposition"] == f'attachment; filename="{it["name"]}"'
    assert whole.headers["Accept-Ranges"] == "bytes"
    tag, size = whole.headers["ETag"], it["bytes"]
    for asked, start, end in (("5-9", 5, 10), ("7-", 7, size), ("-4", size - 4, size), (f"3-{size * 2}", 3, size)):
        part = http.get(it["address"], headers={"Range": f"bytes={asked}"})
        assert (part.status_code, part.content) == (206, whole.content[start:end])
        assert part.headers["Content-Range"] == f"bytes {start}-{end - 1}/{size}"
    for odd in ("bytes=1-2,5-6", "lines=1-2", "bytes=-", "bytes=x-"):
        assert http.get(it["address"], headers={"Range": odd}).status_code == 200
    for beyond in (f"bytes={size}-", "bytes=9-3", "bytes=-0"):
        refused = http.get(it["address"], headers={"Range": beyond})
        assert (refused.status_code, refused.headers["Content-Range"]) == (416, f"bytes */{size}")
    other = http.get(it["address"], headers={"Range": "bytes=5-9", "If-Range": '"another"'})
    assert (other.status_code, len(other.content)) == (200, size)
    head = http.head(it["address"], headers={"If-Range": tag})
    assert (head.status_code, head.headers["Content-Length"], head.content) == (200, f"{size}", b"")


def test_only_who_owns_a_run_gets_a_ticket_and_its_address_tells_no_secret(app, client, http):
    run, secret = merged_run(app, "owned", 10)
    for wrong in ("", "wrong"):
        with pytest.raises(AppError, match="Only the run's owner"):
            offered(client, run.id, "run", wrong)
    with pytest.raises(AppError, match=r"'\.\./etc' can't be downloaded\. Choose one of: adapter, merged, gguf, run"):
        offered(client, run.id, "../etc", secret)
    it = offered(client, run.id, "run", secret)
    assert secret not in it["address"]
    held = zipfile.ZipFile(io.BytesIO(http.get(it["address"]).content))
    folder = it["name"].removesuffix(".zip")
    assert {f"{folder}/recipe.yaml", f"{folder}/plan.json", f"{folder}/data/heldout.jsonl"} <= set(held.namelist())
    assert not [name for name in held.namelist() if "owner" in name or "lock" in name or "merged" in name]
    run.write_text("evaluation.json", (run.path / "evaluation.json").read_text() + " ")  # scored again meanwhile
    with pytest.raises(httpx.RemoteProtocolError), http.stream("GET", it["address"]) as broken:
        list(broken.iter_bytes())
    gone = http.get(f"{downloads.PATH}{'x' * 43}/{it['name']}")
    assert (gone.status_code, gone.json()["detail"]) == (410, downloads.GONE)


def test_a_ticket_is_good_for_an_hour_and_the_oldest_goes_first(monkeypatch):
    now, offers = [1000.0], downloads.Tickets()
    monkeypatch.setattr(downloads.time, "monotonic", lambda: now[0])
    keys = [offers.add(None, "it.zip").split("/")[2] for _ in range(downloads.MOST + 1)]
    assert offers.find(keys[0]) is None
    assert offers.find(keys[1]).name == "it.zip"
    now[0] += downloads.GOOD_FOR + 1
    assert offers.find(keys[-1]) is None
    offers.add(None, "new.zip")
    assert len(offers) == 1


LOADED = """
import runpy, sys, torch
loaded = runpy.run_path(sys.argv[1])
with torch.inference_mode():
    torch.save(loaded["model"](**loaded["inputs"]).logits, sys.argv[2])
assert "tuner" not in sys.modules
"""


@pytest.mark.parametrize("what", ["adapter", "merged"])
def test_what_was_downloaded_loads_from_its_folder_without_tuner(what, finished, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tuner.inference.merge import merge

    run = runs.Run(Path(shutil.copytree(finished.path, tmp_path / "run")))
    merge(run)
    done = subprocess.run(
        [fresh.PYTHON, "-m", "tuner", "download", str(run.path), "--what", what, "--out", str(tmp_path / "it.zip")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(tmp_path / "it.zip")
    with zipfile.ZipFile(tmp_path / "it.zip") as opened:
        opened.extractall(tmp_path / "home")
    (folder,) = (tmp_path / "home").iterdir()
    loaded = fresh.run(["-c", LOADED, str(folder / "load.py"), str(tmp_path / "logits")], tmp_path)
    assert loaded.returncode == 0, loaded.stderr
    # Plain PEFT on the run's own files, in the type that the base is stored in.
    model = AutoModelForCausalLM.from_pretrained(run.merged if what == "merged" else EXAMPLES / run.recipe.model.name)
    model = model if what == "merged" else PeftModel.from_pretrained(model, run.adapter)
    tokens = AutoTokenizer.from_pretrained(run.adapter).apply_chat_template(
        run.heldout(1)[0]["messages"], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    with torch.inference_mode():
        assert torch.equal(torch.load(tmp_path / "logits"), model(**tokens).logits)
    assert loaded.stdout.strip()


def test_a_reader_who_takes_nothing_is_given_up_and_the_place_is_free(tmp_path, monkeypatch):
    import asyncio

    from tuner.hub.archive import lay_out
    from tuner.places import Asker

    monkeypatch.setattr(downloads, "STALLED", 0.05)
    archive, asker = lay_out({"a": bytes(3 * MIB)}), Asker(address="192.0.2.7")

    async def read(takes: bool) -> int:
        taken = 0

        async def send(message: dict) -> None:
            nonlocal taken
            taken += len(message.get("body", b""))
            if message["type"] == "http.response.body" and not takes:
                await asyncio.Event().wait()

        await downloads._Response(downloads._send(archive, 0, archive.size, asker)).stream_response(send)
        return taken

    async def many() -> list[int]:
        stalled = [read(False) for _ in range(2 * downloads.AT_ONCE["address"])]
        return await asyncio.wait_for(asyncio.gather(*stalled, read(True)), 30)

    assert asyncio.run(many())[-1] == archive.size
