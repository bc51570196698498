"""The zip of a whole run becomes a run elsewhere, which goes on bit for bit; what is no run's zip is refused."""

import hashlib
import io
import json
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from conftest import small_recipe

from tuner import recipe, runs
from tuner.cli import main
from tuner.errors import TunerError
from tuner.hub import download, import_run
from tuner.planning import plan
from tuner.training.window import train

GB = 2**30


@pytest.fixture(scope="module", autouse=True)
def small_model(small_base):
    """The shipped model in small, under its name: a run that leaves names no folder of this machine."""
    shutil.copy(recipe.EXAMPLES / "corporate.yaml", Path(small_base).parent)
    shutil.copy(recipe.EXAMPLES / "corporate.jsonl", Path(small_base).parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "EXAMPLES", Path(small_base).parent)
        yield


def prepared(path: Path) -> runs.Run:
    settings = {"model__name": "tiny-office", "budget__steps": 30, "evaluation__loss_every": 10}
    return plan.prepare(small_recipe(**settings), path=path)


def stopped_at(run: runs.Run, step: int) -> runs.Run:
    training = train(run)
    next(event for event in training if event.get("event") == "step" and event["step"] >= step)
    training.close()
    return runs.Run(run.path)


@pytest.fixture(scope="module")
def exported(small_model, tmp_path_factory) -> Path:
    """The zip of a run that was stopped at step 20 of 30."""
    folder = tmp_path_factory.mktemp("exported")
    archive, name = download.package(stopped_at(prepared(folder / "run"), 20), "run")
    (folder / name).write_bytes(b"".join(archive.read()))
    return folder / name


def adapter(run: runs.Run) -> str:
    return hashlib.sha256((run.adapter / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_a_run_that_moves_at_step_20_ends_with_the_adapter_of_one_that_stays(exported, tmp_path):
    whole = prepared(tmp_path / "whole")
    list(train(whole))
    moved = import_run.import_run(exported, tmp_path / "elsewhere" / "moved")
    assert moved.status == "stopped"
    saved = moved.last_event("checkpoint")["step"]
    first = next(event for event in list(train(moved)) if event["event"] == "start")
    assert first["step"] == saved >= 20
    assert moved.ending == runs.Run(whole.path).ending == "finished"
    assert adapter(moved) == adapter(whole)
    assert moved.read_json("evaluation.json")["adapter"] == whole.read_json("evaluation.json")["adapter"]


def test_the_terminal_takes_it_in_and_tells_where_it_is(exported, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    assert main(["import", str(exported)]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.parent == tmp_path
    assert runs.Run(path).status == "stopped"
    assert main(["import", str(exported), "--out", str(path), "--json"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_zip_made_again_by_hand_is_taken_too(exported, tmp_path):
    with zipfile.ZipFile(exported) as old, zipfile.ZipFile(tmp_path / "again.zip", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr("my folder/" + name.partition("/")[2], old.read(name))
        new.writestr("__MACOSX/my folder/._recipe.yaml", b"\0\1")
        new.writestr("my folder/.DS_Store", b"\0")
        new.writestr("my folder/notes.txt", b"mine")
    run = import_run.import_run(tmp_path / "again.zip", tmp_path / "run")
    assert run.damage == []
    assert not list(run.path.rglob("notes.txt"))


def test_what_a_page_noted_of_its_turns_stays_behind(exported, tmp_path):
    """Or the run would wait here for a turn that nobody asked for, and an owner's page would begin it."""
    queued = changed(exported, tmp_path, **{"events.jsonl": lambda old: old + b'{"event": "queued", "time": 9e9}\n'})
    run = import_run.import_run(queued, tmp_path / "run")
    assert [event for event in run.events() if event["event"] == "queued"] == []
    assert run.events()[-1]["event"] == "imported"
    assert run.last_event("end")["reason"] == "stopped"


def changed(exported: Path, folder: Path, **parts: bytes | Callable[[bytes], bytes] | None) -> Path:
    """The zip with other contents of some of the run's files: None leaves one out, and new ones are added."""
    file = folder / "changed.zip"
    with zipfile.ZipFile(exported) as old, zipfile.ZipFile(file, "w") as new:
        top = old.namelist()[0].partition("/")[0]
        held = {name.partition("/")[2]: old.read(name) for name in old.namelist()}
        for name, part in parts.items():
            held[name] = part(held[name]) if callable(part) else part
        for name, content in held.items():
            if content is not None:
                new.writestr(f"{top}/{name}", content)
    return file


def entry(old: str, new: str) -> Callable[[bytes], bytes]:
    def replaced(content: bytes) -> bytes:
        assert old.encode() in content
        return content.replace(old.encode(), new.encode(), 1)

    return replaced


def put(**entries) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps(json.loads(content) | entries).encode()


def arrow(rows: list[dict]) -> bytes:
    table, sink = pyarrow.Table.from_pylist(rows), io.BytesIO()
    with pyarrow.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue()


ROWS = "data/train/data-00000-of-00001.arrow"
CONFIG = "adapter/adapter_config.json"
REFUSED = {
    "no recipe": ({"recipe.yaml": None}, "not the zip of a whole run"),
    "no plan": ({"plan.json": None}, "not the zip of a whole run"),
    "a recipe that is none": ({"recipe.yaml": b"- 1"}, "recipe.yaml is damaged"),
    "a recipe that makes objects": ({"recipe.yaml": b"name: !!python/object/apply:os.getcwd []"}, "recipe.yaml"),
    "half a plan": ({"plan.json": lambda old: old[:99]}, "plan.json is damaged"),
    "a newer plan": ({"plan.json": put(format=99)}, "newer version of Tuner"),
    "a folder as base": ({"plan.json": put(model_folder="/etc")}, "was a folder on the machine"),
    "a path as base": ({"recipe.yaml": entry("name: tiny-office", "name: ../../etc")}, "can't be a model's name"),
    "a batch of a billion": ({"plan.json": entry('"batch_size": ', '"batch_size": 99999999')}, "training.batch_size"),
    "a setting that is none": ({"plan.json": put(settings={"surprise": 1})}, "surprise"),
    "a length of text": ({"plan.json": put(settings={"max_length": "all"})}, "data.max_length"),
    "steps beyond all": ({"plan.json": put(steps=2**40)}, "plan.json is incomplete"),
    "rows that are none": ({ROWS: b"ARROW1" + bytes(99)}, "rows (train) can't be read"),
    "rows of text": ({ROWS: arrow([{"input_ids": ["rm"], "labels": [1]}])}, "not as Tuner writes them"),
    "rows without labels": ({ROWS: arrow([{"input_ids": [1, 2]}])}, "not as Tuner writes them"),
    "prompts that are none": ({"data/heldout.jsonl": b"[]\n"}, "data/heldout.jsonl is damaged"),
    "scores that are none": ({"evaluation.json": b'{"gain": 1}'}, "evaluation.json is damaged"),
    "a checkpoint that is none": ({"checkpoints/step-00000020.safetensors": b"\x80\x04."}, "is damaged"),
    "a pattern for layers": ({CONFIG: put(target_modules="(a+)+$")}, "target_modules"),
    "a module to import": ({CONFIG: put(megatron_core="antigravity", megatron_config={})}, "megatron_config"),
    "a rank of a billion": ({CONFIG: put(r=10**9)}, "r = 1000000000"),
    "an adapter of no kind": ({CONFIG: put(peft_type="MINE")}, "not known here ('MINE')"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_a_runs_is_refused_in_words_and_nothing_is_left(name, exported, tmp_path):
    parts, said = REFUSED[name]
    with pytest.raises(TunerError) as refused:
        import_run.import_run(changed(exported, tmp_path, **parts), tmp_path / "run")
    assert said in str(refused.value)
    assert "Traceback" not in str(refused.value)
    assert "  " not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["changed.zip"]


def hostile(path: Path, name: str, content: bytes = b"x", mode: int = 0o644) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("run/recipe.yaml", b"")
        file.writestr("run/plan.json", b"{}")
        info = zipfile.ZipInfo("placeholder")
        info.filename, info.external_attr = name, mode << 16
        file.writestr(info, content)
    return path


@pytest.mark.parametrize(
    "name", ["../evil", "run/../../evil", "/etc/evil", "C:evil", "run\\..\\evil", "..", "run/adapter/../../../evil"]
)
def test_a_zip_that_climbs_out_of_its_folder_is_refused_before_anything_is_written(name, tmp_path):
    file = hostile(tmp_path / "it.zip", name)
    with pytest.raises(TunerError, match=r"outside of the run's folder.*nothing was unpacked"):
        import_run.import_run(file, tmp_path / "new" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["it.zip"]


def test_a_link_is_refused(tmp_path):
    file = hostile(tmp_path / "it.zip", "run/adapter/adapter_config.json", b"/etc/passwd", stat.S_IFLNK | 0o777)
    with pytest.raises(TunerError, match="outside of the run's folder"):
        import_run.import_run(file, tmp_path / "run")


@pytest.mark.parametrize(
    ("most", "said"), [(GB, "this page accepts at most 1.0 GB"), (None, "of the disk are free")], ids=["page", "disk"]
)
def test_a_zip_that_unpacks_to_terabytes_is_refused_by_what_it_says_of_itself(most, said, tmp_path):
    file = bomb(tmp_path / "it.zip", 2**50)
    with pytest.raises(TunerError, match=said):
        import_run.import_run(file, tmp_path / "run", most=most)
    assert not (tmp_path / "run").exists()


def bomb(path: Path, size: int) -> Path:
    """A zip whose checkpoint says that it has so many bytes, and holds a million zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("recipe.yaml", b"")
        file.writestr("plan.json", b"{}")
        file.writestr("checkpoints/step-00000020.safetensors", bytes(10**6))
        file.filelist[-1].file_size = size
    return path


def test_a_file_that_is_larger_than_it_says_is_not_unpacked_further(tmp_path):
    file = bomb(tmp_path / "it.zip", 10)
    with pytest.raises(TunerError, match="no zip, or a damaged one"):
        import_run.import_run(file, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_zip_half_a_zip_and_an_encrypted_one_are_refused_in_words(exported, tmp_path):
    half, none, locked = (tmp_path / name for name in ("half.zip", "none.zip", "locked.zip"))
    half.write_bytes(exported.read_bytes()[:-100])
    none.write_bytes(b"a text")
    content = bytearray(exported.read_bytes())
    at = content.find(b"PK\1\2")
    while at >= 0:
        content[at + 8] |= 1  # the flag of an encrypted entry
        at = content.find(b"PK\1\2", at + 4)
    locked.write_bytes(bytes(content))
    for file, said in ((half, "damaged"), (none, "is no zip"), (locked, "encrypted"), (tmp_path / "no", "no file")):
        with pytest.raises(TunerError, match=said):
            import_run.import_run(file, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_two_files_of_one_name_and_too_many_files_are_refused(tmp_path):
    twice = tmp_path / "twice.zip"
    with zipfile.ZipFile(twice, "w") as file:
        for name in ("recipe.yaml", "plan.json"):
            file.writestr(name, b"{}")
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("plan.json", b"{}")
    many = tmp_path / "many.zip"
    with zipfile.ZipFile(many, "w") as file:
        for number in range(import_run.MOST_FILES + 1):
            file.writestr(f"{number}", b"")
    for file, said in ((twice, "twice under the same name"), (many, "10,001 files")):
        with pytest.raises(TunerError, match=said):
            import_run.import_run(file, tmp_path / "run")
