"""`tuner verify` against llama.cpp's own server; and exports as they are downloaded, whose base comes with Tuner."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from test_gguf import llama
from tiny import CHATML

from tuner import cli, limited, runs
from tuner.hub import download, gguf_file, gguf_tokenizer, receipt
from tuner.inference.merge import merge
from tuner.recipe import EXAMPLES
from tuner.ui import take_home
from tuner.ui.visitor import ANYBODY

__all__ = ["llama"]  # a fixture


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> runs.Run:
    """The shipped run, which was trained on 4-bit weights, merged."""
    run = runs.Run(Path(shutil.copytree(EXAMPLES / "finished", tmp_path_factory.mktemp("server") / "example")))
    merge(run)
    return run


@pytest.fixture(scope="module")
def good(example, tmp_path_factory) -> tuple[Path, Path]:
    """Adapter and merged model as they are downloaded."""
    folder, copies = tmp_path_factory.mktemp("good"), []
    for what in ("adapter", "merged"):
        archive, name = download.package(example, what)
        (folder / name).write_bytes(b"".join(archive.read()))
        with zipfile.ZipFile(folder / name) as opened:
            opened.extractall(folder)
        copies.append(folder / name.removesuffix(".zip"))
    return tuple(copies)


def test_downloads_are_as_the_run_was(good, capsys):
    assert cli.main(["verify", str(good[0]), "--merged", str(good[1])]) == 0
    printed = capsys.readouterr().out
    assert "DIFFERS" not in printed
    assert "The adapter: 4 answers" in printed
    assert "The merged model: its logits are the adapter's" in printed


# What is planted in the GGUF file, and what is said of the server that has it.
SERVERS = {
    "as it is": (lambda patch: None, 0, "The server: 4 answers, which end"),
    "another template": (
        lambda patch: patch.setattr(gguf_tokenizer, "portable_template", lambda *a: CHATML.replace("\n", " ")),
        1,
        "other tokens than in training",
    ),
    "a token before each text": (
        lambda patch: patch.setattr(gguf_tokenizer, "added_begin", lambda *a: "<|endoftext|>"),
        1,
        "There is one begin token more",
    ),
    "heads not interleaved": (
        lambda patch: patch.setattr(gguf_file, "_interleaved", lambda tensor, heads: tensor),
        1,
        "The server answers prompt 1 with",
    ),
}


@pytest.mark.parametrize("kind", SERVERS)
def test_llama_cpps_server_is_held_against_the_receipt(kind, good, example, llama, tmp_path, monkeypatch, capsys):
    plant, status, said = SERVERS[kind]
    run = runs.Run(Path(shutil.copytree(example.path, tmp_path / "run")))
    if kind == "a token before each text":  # llama.cpp adds what the file names as the beginning
        for name in ("tokenizer_config.json",):
            config = json.loads((run.merged / name).read_text())
            (run.merged / name).write_text(json.dumps(config | {"bos_token": "<|endoftext|>"}))
    plant(monkeypatch)
    gguf_file.write(run, tmp_path / "it.gguf", "it")
    server = llama(tmp_path / "it.gguf")
    command = ["verify", str(good[0]), "--server", f"{server.listening_address}/v1"]
    if status:
        with pytest.raises(SystemExit) as end:
            cli.main(command)
        assert end.value.code == status
    else:
        assert cli.main(command) == 0
    assert said in capsys.readouterr().out


def test_a_receipt_that_a_strangers_files_decide_of_is_written_in_a_bounded_process(example, tmp_path, monkeypatch):
    jobs, stream = [], limited.stream
    monkeypatch.setattr(limited, "stream", lambda job, *given, **how: jobs.append(job) or stream(job, *given, **how))
    take_home.prepare(example, "adapter", ANYBODY)  # on a base that comes with Tuner
    assert not jobs
    run = runs.Run(Path(shutil.copytree(example.path, tmp_path / "run")))
    run.write_text("recipe.yaml", run.recipe.with_settings({"model.name": "some/body"}).to_yaml())
    take_home.prepare(run, "adapter", ANYBODY)
    assert jobs == ["tuner.hub.jobs:write_receipt"]
    assert receipt.is_current(run)
    monkeypatch.setattr(receipt, "receipt", lambda run: pytest.fail("it was written again"))
    assert receipt.receipt_of(run) == run.read_json("receipt.json")
    take_home.prepare(run, "gguf", ANYBODY)
    assert jobs[1:] == ["tuner.hub.jobs:write_gguf"]
    weights = run.adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert not receipt.is_current(run)  # it was trained further
