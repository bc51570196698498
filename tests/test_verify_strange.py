"""What may neither fool nor stop a verification: damaged exports, odd servers, strangers' receipts and templates."""

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_verify import change_weights, edit, export, exported, merged, unpack

from tuner.errors import TunerError
from tuner.hub import contents, reproduce, verify_answers, verify_server
from tuner.hub.receipt_shape import checked
from tuner.hub.verify import verify
from tuner.hub.verify_report import Report
from tuner.hub.verify_server import Server, check_server
from tuner.models.shape import load_tokenizer

__all__ = ["export", "exported", "merged"]  # fixtures


@pytest.fixture
def model(merged, tmp_path) -> Path:
    """The merged model as it is exported."""
    return unpack(contents.merged(merged, "ann/x", None), tmp_path / "model")


def without_numbers(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if "norm" in name:
            tensor.fill_(float("nan"))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-200])


def delete(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def hold_tongue(folder: Path) -> None:
    edit(folder / "generation_config.json", lambda config: config.update(suppress_tokens=list(range(10, 400))))


@pytest.mark.parametrize(
    ("spoil", "status"),
    [(without_numbers, 1), (hold_tongue, 1), (cut("model.safetensors"), 2), (delete("model.safetensors"), 2),
     (delete("config.json"), 2)],
)  # fmt: skip
def test_a_merged_model_that_is_broken_never_passes_beside_its_adapter(spoil, status, export, model):
    assert verify(str(export), merged=str(model)).status == 0
    spoil(model)
    report = verify(str(export), merged=str(model))
    assert report.status == status
    assert any("merged model" in said for said in [*report.differs, *report.unchecked])


@pytest.mark.parametrize("spoil", [cut("adapter_config.json"), delete("adapter_config.json")])
def test_an_adapter_without_its_configuration_differs(spoil, export):
    spoil(export)
    report = verify(str(export))
    assert report.status == 1
    assert "adapter_config.json is missing or damaged" in report.differs[0]


@pytest.mark.parametrize("beside", ["config.json", "lora.gguf"])
def test_other_files_beside_an_adapter_do_not_hide_it(beside, export, exported):
    (export / beside).write_text("{}")
    assert verify(str(export)).status == 0
    change_weights(export, lambda tensors: next(iter(tensors.values())).add_(1))
    assert "tensors differ from the run's" in verify(str(export)).differs[0]


def test_a_receipt_keeps_all_that_was_written_of_the_training(export):
    written = json.loads((export / "receipt.json").read_text())
    assert checked(written)["training"] == written["training"]
    assert {"device", "threads", "steps"} <= written["training"].keys()


@pytest.mark.parametrize(("logit", "said"), [(9.99, None), (2.0, "not the likeliest token")])
def test_an_answer_may_end_at_another_token_than_the_tokenizers(logit, said, export, monkeypatch):
    tokenizer = load_tokenizer(export)
    ids = tokenizer("Good morning", add_special_tokens=False)["input_ids"]
    end = max({*range(20)} - {*ids, tokenizer.eos_token_id})
    logits = torch.zeros(1, len(tokenizer))
    logits[0, ids[-1]], logits[0, end] = 10.0, logit
    monkeypatch.setattr(verify_answers, "_logits", lambda *given: logits)
    prompt = {"ids": [1], "answer": "Good morning"}
    problem = verify_answers._parts(None, tokenizer, prompt, tokenizer.decode(ids[:-1]), 0.02, (end,))
    assert problem is None if said is None else said in problem


def test_an_export_whose_answers_could_not_be_compared_does_not_pass(export):
    edit(export / "receipt.json", lambda known: known.update(prompts=None))
    assert verify(str(export)).status == 2


def test_a_gguf_file_is_for_a_server_and_not_called_broken(merged, tmp_path):
    folder = unpack(contents.gguf(merged, "ann/x", None), tmp_path / "gguf")
    report = verify(str(folder))
    assert (report.status, report.differs) == (2, [])
    assert "--server" in report.unchecked[0]


def test_a_template_that_writes_the_day_is_not_another_template(export):
    template = export / "chat_template.jinja"
    template.write_text("{# {{ strftime_now('%d') }} #}" + template.read_text())
    report = verify(str(export))
    assert not any("renders prompt" in said for said in report.differs)
    assert any("writes the day" in said for said in report.unchecked)


def test_a_merged_export_is_reproduced_by_its_hashes_alone(finished, model, tmp_path):
    known = json.loads((model / "receipt.json").read_text())
    changed = next(iter(known["adapter"]["adapter_model.safetensors"]))
    known["adapter"]["adapter_model.safetensors"][changed] = "other"
    known["adapter"][f"{tmp_path}/elsewhere/adapter_model.safetensors"] = {"a": "b"}
    said = reproduce._weights(finished.adapter, model, known)
    assert len(said) == 1
    assert "1 of" in said[0]


RECEIPTS = {
    "a turn without text": lambda known: known["prompts"][0].update(messages=[{}]),
    "a turn of numbers": lambda known: known["prompts"][0].update(messages=[{"role": "user", "content": 7}]),
    "another precision": lambda known: known["base"].update(quantization="zzz"),
    "no tokens to answer": lambda known: known.update(max_new_tokens=-1),
    "settings that are none": lambda known: known["training"].update(settings=[1]),
}


@pytest.mark.parametrize("name", RECEIPTS)
def test_a_receipt_that_can_not_be_one_is_refused(name, export):
    edit(export / "receipt.json", RECEIPTS[name])
    with pytest.raises(TunerError, match="is damaged, or of another version"):
        verify(str(export))


KNOWN = {
    "prompts": [{"messages": [{"role": "user", "content": "a"}], "text": "a", "ids": [1], "answer": "Hello there",
                 "ended": True}],
    "task": "generation", "max_new_tokens": 20,
}  # fmt: skip


class Odd:
    """A server that answers as a test says, and what it was asked with which key."""

    def __init__(self):
        self.answer: Callable[[BaseHTTPRequestHandler], None] = lambda handler: None
        self.keys: list[str | None] = []
        self.otherwise = 404
        odd = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                odd.keys.append(self.headers.get("Authorization"))
                odd.answer(self) if "/chat/" in self.path else self.send_error(odd.otherwise)

            def do_GET(self) -> None:
                odd.keys.append(self.headers.get("Authorization"))
                self.send_error(404)

            def log_message(self, *given) -> None:
                """Keep the test's output quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def odd() -> Iterator[Odd]:
    started = Odd()
    yield started
    started.server.shutdown()
    started.server.server_close()


def says(value) -> Callable[[BaseHTTPRequestHandler], None]:
    content = value if isinstance(value, bytes) else json.dumps(value).encode()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def half_a_body(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def told(logprobs) -> dict:
    return {"choices": [{"message": {"content": "Hello you"}, "finish_reason": "stop", "logprobs": logprobs}]}


OTHERWISE = [
    told([1]), told({"content": ["a"]}),
    told({"content": [{"token": "Hello", "top_logprobs": None}, {"token": " you"}]}),
    told({"content": [{"token": "Hello"}, {"token": " you", "logprob": None, "top_logprobs": [{"token": " there"}]}]}),
    told({"content": [
        {"token": "Hello"},
        {"token": " you", "logprob": -9.0, "top_logprobs": [{"token": " there", "logprob": -0.001}]},
    ]}),
]  # fmt: skip


@pytest.mark.parametrize("value", OTHERWISE)
def test_a_server_that_tells_odd_likelihoods_is_compared_by_its_text(value, odd):
    odd.answer, report = says(value), Report()
    check_server(report, Server(odd.url), KNOWN)
    assert "The server answers prompt 1 with 'Hello you'" in report.differs[0]


@pytest.mark.parametrize("status", [302, 401, 403, 500])
def test_a_gateway_that_has_chats_alone_is_compared_by_its_answers(status, odd):
    answer = {"choices": [{"message": {"content": "Hello there"}, "finish_reason": "stop"}]}
    odd.answer, odd.otherwise, report = says(answer), status, Report()
    check_server(report, Server(odd.url), KNOWN)
    assert report.same == ["The server: 1 answers, which end"]


@pytest.mark.parametrize("answer", [half_a_body, says(b"[" * 200_000), says({"choices": {"a": 1}}), says([1])])
def test_a_server_that_gives_no_answer_is_said_to(answer, odd):
    odd.answer = answer
    with pytest.raises(TunerError, match=r"no usable answer|has no choices"):
        check_server(Report(), Server(odd.url), KNOWN)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:port", "http://[::1", "http://a b:80", "http://", "http://127.0.0.1:99999", "x://a", ""]
)
def test_what_is_no_address_is_said_to_be_none(url):
    with pytest.raises(TunerError, match=r"no address|no usable answer"):
        check_server(Report(), Server(url), KNOWN)


def test_a_servers_key_goes_to_no_other_server(odd):
    other = Odd()

    def elsewhere(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", f"{other.url}/v1/chat/completions")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    odd.answer = elsewhere
    with pytest.raises(TunerError, match="status 302"):
        check_server(Report(), Server(odd.url, key="a key"), KNOWN)
    assert other.keys == []
    assert "Bearer a key" in odd.keys
    other.server.shutdown()
    other.server.server_close()


def test_a_server_that_drips_is_not_waited_for(odd, monkeypatch):
    from threading import Event

    ended = Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        while not ended.wait(0.05):
            handler.wfile.write(b" ")
            handler.wfile.flush()

    monkeypatch.setattr(verify_server, "PATIENCE", 0.5)
    odd.answer = drip
    with pytest.raises(TunerError, match="no usable answer"):
        check_server(Report(), Server(odd.url), KNOWN)
    ended.set()


def test_what_was_found_of_the_files_is_told_though_the_server_is_down(export):
    report = verify(str(export), server=Server("http://127.0.0.1:1"))
    assert report.status == 2
    assert any("The adapter" in said for said in report.same)
    assert any("The server could not be checked" in said for said in report.unchecked)
