"""Rows of strangers on the Hub come from the dataset's own files: nothing they say makes the server ask elsewhere."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from test_whose_token import ROWS, ask

ELSEWHERE = "takes its rows from elsewhere than its own files"


@pytest.fixture
def inner() -> Iterator[tuple[str, list[str]]]:
    """A server of an inner network: its address, and what it was asked."""
    asked = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path}")
            self.send_response(404)
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


def configs(place: str) -> str:
    """Settings in a card that take the rows from this place."""
    return f"configs:\n- config_name: default\n  data_files: {json.dumps(place)}\n"


# How the settings of a card may be written so that readers differ: on what a line is, what begins a file, what counts.
CARDS = {
    "plain": ("README.md", "---\n{}---\n", True),
    "bare carriage return": ("README.md", "---\n# x\n---\r{}---\n", True),
    "carriage returns": ("README.md", "---\r{}\r---\r\n", True),
    "windows": ("README.md", "---\r\n{}\r\n---\r\n", True),
    "space before": ("README.md", "\n \n---\n{}---\n", True),
    "byte order mark": ("README.md", "\ufeff---\n{}---\n", True),
    "line separator": ("README.md", "---\u2028{}---\n", False),
    "twice": ("README.md", "---\nconfigs: []\n{}---\n", True),
    "aliased": ("README.md", "---\nx: &x\n  - a\n{}---\n", True),
    "later block": ("README.md", "# Title\n---\n{}---\n", False),
    "no end": ("README.md", "---\n{}", False),
    "folder": ("data/README.md", "---\n{}---\n", False),
    "yaml": (".huggingface.yaml", "{}", True),
    "yaml, byte order mark": (".huggingface.yaml", "\ufeff{}", True),
    "yaml, separators": (".huggingface.yaml", "a: 1\x85{}", True),
    "yaml, carriage return": (".huggingface.yaml", "# x\r{}", True),
}


def test_a_card_is_read_as_the_library_reads_it(hub, tmp_path, inner):
    address, asked = inner
    for number, (file, text, _) in enumerate(CARDS.values()):
        card = text.format(configs(f"{address}/{number}.csv")).encode()
        hub.add_dataset(f"a/d{number}", {file: card, "train.jsonl": ROWS})
    answers = ask(hub, tmp_path, *(("rows", f"a/d{number}", False) for number in range(len(CARDS))))
    for name, answer in zip(CARDS, answers, strict=True):
        assert ELSEWHERE in answer[0] if CARDS[name][2] else answer > 20, (name, answer)
    assert asked == []


def test_both_cards_of_a_dataset_count_as_one(hub, tmp_path, inner):
    address, asked = inner
    own, foreign = configs("train.jsonl"), configs(f"{address}/x.csv")
    pairs = [(own, foreign), (foreign, own), (foreign, "x: 1"), (own, "configs: 3"), (own, "- 1"), (own, "3: 4")]
    for number, (readme, settings) in enumerate(pairs):
        files = {"README.md": f"---\n{readme}---\n".encode(), ".huggingface.yaml": settings.encode()}
        hub.add_dataset(f"a/d{number}", {**files, "train.jsonl": ROWS})
    first, second, third, *rest = ask(hub, tmp_path, *(("rows", f"a/d{n}", False) for n in range(len(pairs))))
    assert ELSEWHERE in first[0]
    assert second > 20  # the second card is the one that counts
    assert ELSEWHERE in third[0]
    assert all("is damaged" in answer[0] for answer in rest), rest
    assert asked == []


BROKEN = [
    "configs: 3\n",
    "configs:\n- data_files: x\n",
    "configs:\n- config_name: [1]\n",
    "configs:\n- config_name: a\n  data_files: {a: b}\n",
    "configs:\n- 7\n",
    "configs:\n- config_name: a\n  features: 7\n",
    "? [a]\n: b\n",
    "3: 4\n",
    "[" * 3000 + "\n",
    "x: !!python/object:os.system {}\n",
    "x: \udc80\n",
]


def test_a_card_of_garbage_is_refused_in_words(hub, tmp_path):
    for number, text in enumerate(BROKEN):
        card = f"---\n{text}---\n".encode("utf-8", "surrogateescape")
        hub.add_dataset(f"a/d{number}", {"README.md": card, "train.jsonl": ROWS})
    answers = ask(hub, tmp_path, *(("rows", f"a/d{number}", False) for number in range(len(BROKEN))))
    for text, answer in zip(BROKEN, answers, strict=True):
        assert isinstance(answer, list), text
        assert "The README.md of the dataset 'a/d" in answer[0], text
        assert "is damaged" in answer[0]


def test_pictures_inside_of_columns_are_not_fetched(hub, tmp_path, inner):
    address, asked = inner
    picture = {"path": f"{address}/x.png", "bytes": None}
    kinds = {
        "struct": ("struct:\n    - {name: p, dtype: image}", {"p": picture}),
        "list": ("list: image", [picture]),
        "list of structs": ("list:\n    - {name: p, dtype: image}", [{"p": picture}]),
        "plain": ("dtype: image", picture),
    }
    rows = [json.loads(line) for line in ROWS.decode().splitlines()]
    for number, (kind, value) in enumerate(kinds.values()):
        columns = "".join(f"  - {{name: {name}, dtype: string}}\n" for name in rows[0])
        card = f"---\ndataset_info:\n  features:\n{columns}  - name: x\n    {kind}\n---\n"
        lines = "\n".join(json.dumps(row | {"x": value}) for row in rows)
        hub.add_dataset(f"a/d{number}", {"README.md": card.encode(), "train.jsonl": lines.encode()})
    answers = ask(hub, tmp_path, *(("rows", f"a/d{number}", False) for number in range(len(kinds))))
    assert asked == []
    assert answers == [len(rows)] * len(kinds)
