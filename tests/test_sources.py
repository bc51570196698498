"""Where rows come from: files, shipped examples and Hub datasets, and what a visitor may reach."""

import json
import subprocess
import sys
from dataclasses import replace

import fresh
import pytest
from tables import CSV, ROWS, write

from tuner.data import sources
from tuner.errors import TunerError
from tuner.recipe import EXAMPLES, Data


def test_a_visitor_reaches_no_file(tmp_path, monkeypatch):
    here = tmp_path / "here"
    (here / "runs" / "1234").mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path))
    for file in (tmp_path / "rows.csv", here / "rows.csv", here / "runs/1234/rows.csv", here / "runs/1234.csv"):
        write(file, CSV)
    write(here / "runs" / "rows", CSV)
    (here / "examples").symlink_to(EXAMPLES)
    files = ["rows.csv", "./rows.csv", str(here / "rows.csv"), "../rows.csv", "~/rows.csv", "runs/1234/rows.csv"]
    files += ["runs/1234.csv", "examples/corporate.jsonl", str(EXAMPLES / "corporate.jsonl")]
    for source in files:
        assert sources.read(Data(source=source), here, local=True).rows  # they are there for who may read them
    for source in (*files, "..", "a/..", "x" * 5000, "a\0b"):
        with pytest.raises(TunerError, match=r"can't be read here\. Upload a file") as caught:
            sources.read(Data(source=source), here, local=False)
        assert "corporate.jsonl" in str(caught.value)
    for source in ("runs/1234", "runs/rows", "no/where"):  # whether there is such a folder can't be told
        with pytest.raises(TunerError, match="HF_HUB_OFFLINE is set"):
            sources.read(Data(source=source), here, local=False)


def test_shipped_examples_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = sources.read_file(EXAMPLES / "corporate.jsonl")
    for local in (True, False):
        assert sources.read(Data(source="corporate.jsonl"), None, local=local) == replace(shipped, origin="example")


def test_a_person_at_the_terminal_gives_paths(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    write(tmp_path / "recipes" / "rows.csv", CSV)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for source, base in (
        ("rows.csv", tmp_path / "recipes"), ("recipes/rows.csv", None), ("~/recipes/rows.csv", None),
        (str(tmp_path / "recipes" / "rows.csv"), EXAMPLES),
    ):  # fmt: skip
        assert sources.read(Data(source=source), base, local=True).rows == ROWS
    with pytest.raises(TunerError, match=r"There is no file 'data/none\.csv'"):
        sources.read(Data(source="data/none.csv"), tmp_path, local=True)


READ_HUB = """
import json, sys
from tuner.data import sources
from tuner.errors import TunerError
from tuner.recipe import Data
for data, token in json.loads(sys.argv[1]):
    try:
        table = sources.read(Data(**data), None, local=False, token=token)
        rows = table.rows[0], table.place(6), table.notes, table.rows[-1]
        print(json.dumps([len(table.rows), sorted(set(table.splits)), *rows]))
    except TunerError as error:
        print(json.dumps(str(error)))
"""


def read_hub(hub, home, *datasets: tuple[dict, str | None], **more: str) -> list:
    """What `sources.read` returns in a process whose Hub is `hub`: the client reads its endpoint when imported."""
    env = hub.env(home) | {"TUNER_MAX_ROWS": "50"} | more
    completed = fresh.run(["-c", READ_HUB, json.dumps(datasets)], EXAMPLES.parent, env=env)
    assert completed.returncode == 0, completed.stderr
    return [json.loads(line) for line in completed.stdout.splitlines()]


def test_hub_datasets(hub, tmp_path):
    def lines(count):
        return "".join(json.dumps(ROWS[i % 8]) + "\n" for i in range(count)).encode()

    token = hub.user("alice", role="read")
    hub.add_dataset("alice/mails", {"train.jsonl": lines(6), "validation.jsonl": lines(4), "test.jsonl": lines(3)})
    hub.add_dataset("alice/hidden", {"train.jsonl": lines(60)}, private=True)
    hub.add_dataset("alice/huge", {"train.csv": b"prompt,completion\n" + b"a,b\n" * 51})
    card = "---\nconfigs:\n" + "".join(f"- config_name: {c}\n  data_files: {c}.csv\n" for c in ("en", "de")) + "---\n"
    german = CSV.partition("\n")[0] + "\n" + "ja,nein\n" * 7
    hub.add_dataset("alice/tongues", {"README.md": card.encode(), "en.csv": CSV.encode(), "de.csv": german.encode()})
    answers = read_hub(
        hub,
        tmp_path,
        ({"source": "alice/mails"}, None),
        ({"source": "alice/mails", "split": "test", "heldout_split": "train"}, None),
        ({"source": "alice/mails", "split": "banana"}, None),
        ({"source": "alice/hidden", "max_rows": 2}, token),
        ({"source": "alice/hidden"}, None),
        ({"source": "alice/huge"}, None),
        ({"source": "alice/tongues", "config": "de"}, None),
        ({"source": "alice/tongues"}, None),
    )
    assert answers[0] == [
        10,
        ["train", "validation"],
        ROWS[0],
        [1, None, 'split "validation" of alice/mails'],
        [],
        ROWS[3],
    ]
    assert answers[1][:2] == [9, ["test", "train"]]
    assert "data.split: alice/mails has no split 'banana'. Set it to one of: train, validation, test." in answers[2]
    assert answers[3][0] == 20
    assert answers[3][4] == ["Only the first 20 rows of the split 'train' were read."]
    assert "'alice/hidden' is not on the Hub, or it is private" in answers[4]
    assert "has more than 50 rows" in answers[5]
    assert answers[6][:3] == [7, ["train"], {"prompt": "ja", "completion": "nein"}]
    assert "data.config: the configurations of 'alice/tongues' are en, de. Set it" in answers[7]


def test_this_machines_own_token_opens_nothing_to_a_visitor(hub, tmp_path):
    token = hub.user("owner", role="read")
    hub.add_dataset("owner/hidden", {"train.csv": CSV.encode()}, private=True)
    datasets = ({"source": "owner/hidden"}, None), ({"source": "owner/hidden"}, token)
    refused, read = read_hub(hub, tmp_path, *datasets, HF_TOKEN=token)
    assert "'owner/hidden'" in refused
    assert read[0] == len(ROWS)


def test_hub_datasets_hold_the_names_of_classes(hub, tmp_path):
    card = """---
dataset_info:
  features:
  - {name: text, dtype: string}
  - {name: label, dtype: {class_label: {names: {'0': bad, '1': good}}}}
  - {name: tags, list: {class_label: {names: {'0': O, '1': PER}}}}
---
"""
    labeled, unlabeled_row = {"text": "a", "label": 1, "tags": [1, 0]}, {"text": "b", "label": -1, "tags": []}
    files = {
        f"{split}.jsonl": f"{json.dumps(row)}\n".encode() * 4
        for split, row in (("train", labeled), ("test", unlabeled_row))
    }
    hub.add_dataset("alice/moods", {"README.md": card.encode(), **files})
    hub.add_dataset("alice/bare", files)
    datasets = ({"source": "alice/moods"}, {"source": "alice/moods", "split": "test", "heldout_split": "train"})
    moods, unlabeled, bare = read_hub(hub, tmp_path, *((data, None) for data in (*datasets, {"source": "alice/bare"})))
    named, unnamed = {"text": "a", "label": "good", "tags": ["PER", "O"]}, {"text": "b", "label": None, "tags": []}
    assert [moods[2], moods[5]] == [named, unnamed]
    assert [unlabeled[2], unlabeled[5]] == [unnamed, named]
    assert bare[2] == labeled


def test_rows_sorted_by_class_are_read_whole_though_few_are_wanted(hub, tmp_path):
    card = "---\ndataset_info:\n  features:\n  - {name: text, dtype: string}\n"
    card += "  - {name: label, dtype: {class_label: {names: {'0': bad, '1': good}}}}\n---\n"
    lines = [json.dumps({"text": "a", "label": int(i >= 20)}) for i in range(40)]
    hub.add_dataset("alice/sorted", {"README.md": card.encode(), "train.jsonl": "\n".join(lines).encode()})
    (answer,) = read_hub(hub, tmp_path, ({"source": "alice/sorted", "max_rows": 2}, None))
    assert (answer[0], answer[2]["label"], answer[5]["label"]) == (40, "bad", "good")


def test_no_network(hub, tmp_path):
    hub.close()
    (answer,) = read_hub(hub, tmp_path, ({"source": "alice/mails"}, None))
    assert "the dataset 'alice/mails'" in answer.lower()
    assert "network" in answer


def test_reading_needs_no_torch(tmp_path):
    path = write(tmp_path / "rows.csv", CSV)
    code = (
        "import sys; from tuner.data import chat, sources; sources.read_file(sys.argv[1]); "
        "assert not {'torch', 'transformers', 'datasets', 'pandas', 'gradio'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=EXAMPLES.parent, check=True)
