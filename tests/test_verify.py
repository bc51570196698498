"""Exports held against their receipts: planted faults are named, and good exports pass."""

import json
import shutil
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import load_file, save_file

from tuner.cli import main
from tuner.hub import contents
from tuner.hub.verify import verify
from tuner.hub.verify_report import Report
from tuner.hub.verify_server import Server, check_server
from tuner.runs import Run


def unpack(files: contents.Files, folder: Path) -> Path:
    """The files of an export in a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    return folder


@pytest.fixture(scope="session")
def exported(finished, tmp_path_factory) -> Path:
    return unpack(contents.adapter(finished, "ann/x", None), tmp_path_factory.mktemp("exported"))


@pytest.fixture
def export(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "export"))


@pytest.fixture(scope="session")
def merged(finished, tmp_path_factory) -> Run:
    from tuner.inference.merge import merge

    run = Run(Path(shutil.copytree(finished.path, tmp_path_factory.mktemp("merged") / "run")))
    merge(run)
    return run


def edit(file: Path, change: Callable[[dict], object]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def add_begin_token(folder: Path) -> None:
    def change(tokenizer: dict) -> None:
        begin = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
        text = {"Sequence": {"id": "A", "type_id": 0}}
        number = next(t["id"] for t in tokenizer["added_tokens"] if t["content"] == "<|im_start|>")
        special = {"<|im_start|>": {"id": "<|im_start|>", "ids": [number], "tokens": ["<|im_start|>"]}}
        tokenizer["post_processor"] = {
            "type": "TemplateProcessing", "single": [begin, text], "pair": [begin, text], "special_tokens": special,
        }  # fmt: skip

    edit(folder / "tokenizer.json", change)


def drop_token(folder: Path) -> None:
    def change(tokenizer: dict) -> None:
        tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != "<|im_start|>"]
        tokenizer["model"]["vocab"].pop("<|im_start|>", None)

    edit(folder / "tokenizer.json", change)
    edit(folder / "tokenizer_config.json", lambda c: c.pop("extra_special_tokens", None))


def shift_token(folder: Path) -> None:
    def change(tokenizer: dict) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        a, b = "a", "e"
        vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]

    edit(folder / "tokenizer.json", change)


def change_weights(folder: Path, change: Callable[[dict], object]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def zero_a_layer(tensors: dict) -> None:
    for name, tensor in tensors.items():
        if ".layers.1." in name:
            tensor.zero_()


def swap_template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("<|im_start|>", "### "))


def other_revision(folder: Path) -> None:
    edit(folder / "receipt.json", lambda r: r["base"].update(name="Qwen/Qwen3-0.6B", revision="c0ffee"))
    there = {"base_model_name_or_path": "Qwen/Qwen3-0.6B", "revision": "beef"}
    edit(folder / "adapter_config.json", lambda c: c.update(there))


FAULTS = {
    "template": (swap_template, "has another chat template"),
    "end token": (
        lambda f: edit(f / "tokenizer_config.json", lambda c: c.update(eos_token="<|endoftext|>")),
        "has the end token <|endoftext|>",
    ),
    "begin token": (add_begin_token, "adds other tokens of its own"),
    "added token": (drop_token, "lacks the added token <|im_start|>"),
    "shifted token": (shift_token, "gives tokens other numbers"),
    "a layer": (lambda f: change_weights(f, zero_a_layer), "tensors differ from the run's"),
    "another run": (
        lambda f: change_weights(f, lambda ts: [t.add_(0.1) for t in ts.values()]),
        "tensors differ from the run's",
    ),
    "alpha": (
        lambda f: edit(f / "adapter_config.json", lambda c: c.update(lora_alpha=8)),
        "lora_alpha is 8 where the run had 32",
    ),
    "base": (
        lambda f: edit(f / "receipt.json", lambda r: r["base"]["files"].update({"model.safetensors": "0"})),
        "has other weights than in training",
    ),
    "revision": (other_revision, "revision is beef where the adapter was trained on c0ffee"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault, export):
    plant, said = FAULTS[fault]
    plant(export)
    report = verify(str(export))
    assert said in report.differs[0]
    assert report.status == 1


@pytest.mark.parametrize("fault", ["a layer", "alpha"])
def test_the_answers_alone_show_other_weights(fault, export):
    FAULTS[fault][0](export)
    edit(export / "receipt.json", lambda r: r["adapter"].clear())
    report = verify(str(export))
    assert len(report.differs) == 1
    assert "answers prompt" in report.differs[0]


def test_good_exports_pass(finished, exported, merged, capsys):
    assert verify(str(finished.path)).status == 0
    assert main(["verify", str(exported), "--merged", str(merged.merged), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["differs"] == report["unchecked"] == []
    assert "The adapter: 4 answers" in report["same"]
    assert "The merged model: its logits are the adapter's" in report["same"]


def test_a_merged_export_passes_by_itself(merged, tmp_path):
    export = unpack(contents.merged(merged, "ann/x", None), tmp_path)
    report = verify(str(export))
    assert report.differs == report.unchecked == []
    assert "The merged model: 4 answers" in report.same


def test_a_merged_model_that_came_otherwise_is_named(exported, merged, tmp_path):
    def found(name: str, plant: Callable[[Path], object]) -> str:
        folder = Path(shutil.copytree(merged.merged, tmp_path / name))
        plant(folder)
        return "\n".join(verify(str(exported), merged=str(folder)).differs)

    def round_to_4_bits(folder: Path) -> None:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        tensors = load_file(folder / "model.safetensors")
        for name, tensor in tensors.items():
            if "_proj" in name:
                tensors[name] = dequantize_4bit(*quantize_4bit(tensor.float(), quant_type="nf4")).to(tensor.dtype)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    def end_elsewhere(folder: Path) -> None:
        edit(folder / "generation_config.json", lambda c: c.update(eos_token_id=5))

    def quantize(folder: Path) -> None:
        edit(folder / "config.json", lambda c: c.update(quantization_config={"load_in_4bit": True}))

    assert "was merged into a quantized base model" in found("rounded", round_to_4_bits)
    assert "The merged model is quantized" in found("quantized", quantize)
    assert "ends answers at the tokens [5]" in found("ends", end_elsewhere)
    assert "The merged model's tokenizer has another chat template" in found("template", swap_template)


@pytest.fixture
def served(export):
    """A server with the recorded answers, and what it does otherwise."""
    edit(export / "receipt.json", lambda r: [prompt.update(ended=True) for prompt in r["prompts"][1:]])
    prompts = json.loads((export / "receipt.json").read_text())["prompts"]
    faults = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            known = next((p for p in prompts if asked.get("messages") == p["messages"]), None)
            by_text = next((p for p in prompts if p["text"] in (asked.get("prompt"), asked.get("content"))), None)
            reason = faults.get("reason", "stop" if known and known["ended"] else "length")
            answers = {
                "/v1/chat/completions": lambda: {
                    "choices": [{"message": {"content": faults.get("text", known["answer"])}, "finish_reason": reason}]
                },
                "/v1/completions": lambda: {"choices": [{"text": by_text["answer"], "finish_reason": "stop"}]},
                "/apply-template": lambda: {"prompt": known["text"]},
                "/tokenize": lambda: {"tokens": faults.get("first", []) + by_text["ids"]},
            }
            if self.path in faults.get("without", ()):
                self.send_error(404)
                return
            body = json.dumps(answers[self.path]()).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", faults
    server.shutdown()
    server.server_close()


def test_a_server_that_answers_otherwise_is_named(export, served):
    url, faults = served

    def found(**planted) -> tuple[str, str]:
        faults.clear()
        faults.update(planted)
        report = Report()
        check_server(report, Server(url), json.loads((export / "receipt.json").read_text()))
        return "\n".join(report.differs), "\n".join(report.unchecked)

    assert found() == ("", "")
    assert "does not end its answer" in found(reason="length")[0]
    assert "chat template is another" in found(text="Hm.")[0]
    assert "Check its weights" in found(text="Hm.", without=["/v1/completions"])[0]
    assert "one begin token more" in found(first=[1])[0]
    assert "only its answers are compared" in found(without=["/apply-template", "/tokenize"])[1]


def test_what_can_not_be_checked_is_said(export, exported, capsys):
    (export / "receipt.json").unlink()
    assert main(["verify", str(export)]) == 2
    assert "nothing to compare with" in capsys.readouterr().err
    good = json.loads((exported / "receipt.json").read_text())
    for text in ("[", "[]", "{}", json.dumps(good | {"task": "x"}), json.dumps(good | {"prompts": [1]}), "[" * 10**5):
        (export / "receipt.json").write_text(text)
        assert main(["verify", str(export)]) == 2
        assert "is damaged" in capsys.readouterr().err
    assert main(["verify", "no/such/thing/here"]) == 2
    assert torch.is_inference_mode_enabled() is False
