"""The door of the page's server: requests of other sites and of programs, over HTTP, and what nobody should send."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from served import Served, serve

from tuner.errors import TunerError
from tuner.ui import door
from tuner.ui.blocks import Page
from tuner.ui.visitor import Visitor, with_token

LIST = "/gradio_api/call/runs"
JSON = {"Content-Type": "application/json"}
NOTHING = {"data": [[]]}
# What no visitor should read: paths of the server, names of classes, Python's own words.
RAW = re.compile(r"/tmp/|/work/|\.py\b|Traceback|Error\b|Exception|object|NoneType|pydantic|got an unexpected")
SPACE = "tuner-tuner.hf.space"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The served app's address."""
    with serve(tmp_path_factory.mktemp("door") / "runs") as address:
        yield address


@pytest.fixture(scope="module")
def http(url: Served) -> Iterator[httpx.Client]:
    """Somebody who sends what no browser would."""
    with httpx.Client(base_url=url.rstrip("/"), timeout=60) as client:
        yield client


def elsewhere(port: str) -> dict[str, dict[str, str]]:
    return {
        "another site": {"Origin": "http://evil.example"},
        "no origin that could be named": {"Origin": "null"},
        "an empty origin": {"Origin": ""},
        "another port": {"Origin": "http://127.0.0.1:1"},
        "no port": {"Origin": "http://127.0.0.1"},
        "another scheme": {"Origin": f"https://127.0.0.1:{port}"},
        "another name of this machine": {"Origin": f"http://localhost:{port}"},
        "a name that begins with ours": {"Origin": f"http://127.0.0.1:{port}.evil.example"},
        "a name that ends with ours": {"Origin": f"http://evil.example.127.0.0.1:{port}"},
        "a user's name that is ours": {"Origin": f"http://127.0.0.1:{port}@evil.example"},
        "a browser that names no origin": {"Sec-Fetch-Site": "cross-site"},
        "a neighbor": {"Sec-Fetch-Site": "same-site"},
        "a link": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
        "a remembered password": {"Origin": "http://evil.example", "Authorization": "Basic eDp5"},
    }


@pytest.mark.parametrize("who", elsewhere(""))
def test_what_another_site_sends_is_refused_in_a_sentence_that_it_can_not_read(who, http, url):
    headers = elsewhere(url.rstrip("/").rpartition(":")[2])[who]
    for path in (LIST, "/gradio_api/queue/join", "/gradio_api/run/delete", "/gradio_api/upload", "/gradio_api/cancel"):
        answer = http.post(path, json=NOTHING, headers=headers)
        assert answer.status_code == 403
        assert answer.json()["detail"] == door.ELSEWHERE
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("headers", [{}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}])
def test_the_page_itself_and_programs_come_in(headers, http, url):
    for more in ({}, {"Origin": url.rstrip("/")}):
        assert http.post(LIST, json=NOTHING, headers=headers | more).status_code == 200


def test_a_program_with_a_token_comes_in_from_wherever_it_runs(http):
    headers = {"Origin": "http://elsewhere.example", "Authorization": "Bearer hf_x"}
    assert http.post(LIST, json=NOTHING, headers=headers).status_code == 200


def test_another_site_gets_no_permission_to_send_more(http):
    asks = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    answer = http.options(LIST, headers=asks | {"Access-Control-Request-Headers": "authorization"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_another_site_reads_nothing_and_signs_nobody_out_but_may_link_here(http):
    script = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    stream = "/gradio_api/queue/data?session_hash=x"
    for path in ("/", "/config", "/gradio_api/info", stream, "/logout"):
        assert http.get(path, headers=script).status_code == 403
        assert http.get(path, headers={"Origin": "http://evil.example"}).status_code == 403
    for path in ("/logout", stream, "/gradio_api/heartbeat/x"):
        assert http.get(path, headers=link).status_code == 403
    assert http.get("/?run=abc", headers=link).status_code == 200


NAMES_OF_ELSEWHERE = ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", "10.0.0.1", "", "[", "[::1")


@pytest.mark.parametrize("host", NAMES_OF_ELSEWHERE)
def test_a_name_of_elsewhere_that_leads_to_this_machine_is_not_served(host, http):
    origin = {"Origin": f"http://{host}"}
    for answer in (http.get("/config", headers={"Host": host}), http.post(LIST, headers={"Host": host} | origin)):
        assert answer.status_code == 421
        assert "GRADIO_SERVER_NAME" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/gradio_api/file=http://127.0.0.1:1/x", "/gradio_api/proxy=http://127.0.0.1:1/x"])
def test_nothing_is_fetched_for_a_visitor(path, http):
    assert http.get(path).json()["detail"] == door.CLOSED
    assert http.post("/gradio_api/component_server", json={}).json()["detail"] == door.CLOSED


def test_what_gradio_offers_its_developers_is_closed(http):
    assert http.get("/gradio_api/dev/reload", timeout=5).json()["detail"] == door.CLOSED
    assert http.post("/gradio_api/process_recording").json()["detail"] == door.CLOSED
    assert http.get("/monitoring").status_code == 403
    assert http.get("/monitoring/summary").status_code == 403


ANSWERS = [
    "/",
    "/gradio_api/startup-events",
    "/config",
    "/theme.css",
    "/nowhere",
    "/logout",
    "/gradio_api/file=/etc/passwd",
    "/manifest.json",
]


@pytest.mark.parametrize("path", [*ANSWERS, LIST, "/gradio_api/run/nowhere"])
def test_every_answer_says_what_the_browser_may_do_with_it(path, http):
    answer = (
        http.post(path, json=NOTHING) if path.startswith(("/gradio_api/call", "/gradio_api/run")) else http.get(path)
    )
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ") if " " in part)
    assert "http" not in answer.headers["content-security-policy"]
    assert policy["default-src"] in ("'self'", "'none'")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize("name", ["a.html", "a.svg", "a.xml", "a.js", "a.txt", "a.json", "a.png"])
def test_an_uploaded_file_runs_nothing_when_it_is_opened(name, http):
    content = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'><script>alert(1)</script></svg>"
    (path,) = http.post("/gradio_api/upload", files={"files": (name, content)}).json()
    for part in ({}, {"Range": "bytes=0-9"}):
        answer = http.get(f"/gradio_api/file={path}", headers={"X-Secret": "sesame"} | part)
        assert answer.content == content
        assert "sandbox" in answer.headers["content-security-policy"]
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        attached = answer.headers["content-disposition"].startswith("attachment")
        assert attached or answer.headers["content-type"].split(";")[0] in (
            "text/plain",
            "application/json",
            "image/png",
        )
        assert "sesame" not in str(answer.headers)


def test_a_request_that_is_too_large_is_refused_before_it_is_read(http):
    too_large = door.MAX_BODY_BYTES + 1
    for body in (b" " * too_large, (b" " * 2**20 for _ in range(too_large // 2**20 + 1))):
        answer = http.post(LIST, content=body, headers=JSON)
        assert answer.status_code == 413
        assert answer.json()["detail"].startswith("This request is larger than 8 MB. Upload large rows as a file")
    sizes = (
        {"Host": "localhost", "Content-Length": str(door.MAX_UPLOAD_BYTES)},
        {"Host": "localhost", "Content-Length": str(10**9)},
    )
    assert [knock(size, path="/gradio_api/upload")[0] for size in sizes] == [200, 413]


def test_what_gradio_itself_can_not_read_is_told_without_its_own_words(http):
    (run,) = [f["id"] for f in http.get("/config").json()["dependencies"] if f["api_name"] == "status"]
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    bodies = [
        ("/gradio_api/queue/join", {"data": [], "fn_index": 9999, "session_hash": "x"}),
        ("/gradio_api/queue/join", {"data": [], "fn_index": "x", "session_hash": "x"}),
        ("/gradio_api/queue/join", {"data": [], "session_hash": "x", "trigger_id": {}}),
        ("/gradio_api/queue/join", [1]),
        ("/gradio_api/run/nowhere", {"data": []}),
        ("/gradio_api/call/nowhere", {"data": []}),
        ("/gradio_api/call/v2/nowhere", {}),
        ("/gradio_api/call/v2/runs", {"run": 5, "nothing": 1}),
        ("/gradio_api/run/check", {"data": ["", file, ""]}),
        ("/gradio_api/run/check", {"data": ["", {"path": "x" * 5000, "meta": {"_type": "gradio.FileData"}}, ""]}),
        ("/gradio_api/run/check", {"data": ["", "/etc/passwd", ""]}),
        ("/gradio_api/run/check", {"data": [{"a": [1]}, None, 7]}),
        ("/gradio_api/run/check", {"data": []}),
        ("/gradio_api/run/status", {"data": [{"a": 1}, 2, 3, 4]}),
        ("/gradio_api/run/status", {"data": [], "fn_index": run, "event_data": {"x": 1}}),
    ]
    contents = [b"{", b"\xff", b"[" * 100_000, b'{"data": ' + b"[" * 900 + b"]" * 900 + b"}", b""]
    answers = [http.post(path, json=body) for path, body in bodies]
    answers += [
        http.post(path, content=c, headers=JSON) for c in contents for path in (LIST, "/gradio_api/run/status")
    ]
    for answer in answers:
        assert answer.status_code in (200, 400, 404, 422, 500)
        assert not RAW.search(answer.text), answer.text
        assert json.loads(answer.text)


@pytest.fixture(scope="module")
def broken() -> Iterator[Client]:
    """A page whose handlers all break, each in its own way."""

    def at_once(kind: str) -> str:
        raise {"sentence": TunerError("Choose a model."), "toast": gr.Error("Too late."), "raw": KeyError(Path.cwd())}[
            kind
        ]

    def later(kind: str) -> Iterator[str]:
        yield "begun"
        at_once(kind)

    async def awaited(kind: str) -> str:
        return at_once(kind)

    async def awaited_later(kind: str):
        yield "begun"
        at_once(kind)

    def unreadable(kind: str) -> gr.Dropdown:
        return object

    with Page() as page:
        given, shown = gr.Textbox(), gr.Dropdown(["a"])
        for function in (at_once, later, awaited, awaited_later):
            gr.Button().click(function, given, gr.Textbox(), api_name=function.__name__)
        gr.Button().click(unreadable, shown, gr.Image(), api_name="unreadable")
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, app_kwargs=dict(door.APP), show_error=True)
    yield Client(url, verbose=False)
    page.close()


@pytest.mark.parametrize("handler", ["at_once", "later", "awaited", "awaited_later"])
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("sentence", r"Choose a model\."),
        ("toast", r"Too late\."),
        ("raw", r"Something unexpected went wrong \(error \w+\)"),
    ],
)
def test_whatever_breaks_in_a_handler_is_told_in_a_sentence(handler, kind, told, broken):
    with pytest.raises(AppError, match=told) as error:
        broken.predict(kind, api_name=f"/{handler}")
    assert not RAW.search(str(error.value).replace("(error", ""))


def test_what_gradio_refuses_before_or_after_a_handler_is_told_too(broken):
    with pytest.raises(AppError, match="not in the list of choices"):
        broken.predict("b", api_name="/unreadable")
    with pytest.raises(AppError, match="Something unexpected went wrong"):
        broken.predict("a", api_name="/unreadable")


def knock(headers: dict[str, str], method: str = "POST", path: str = "/gradio_api/queue/join") -> tuple[int, dict]:
    """Status and headers of the door's answer to a request, with a room behind it that answers 200."""
    sent = []

    async def room(scope, receive, send):
        cors = [
            (b"access-control-allow-origin", b"*"),
            (b"x-host", dict(scope["headers"]).get(b"x-forwarded-host", b"")),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": cors})

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request"}

    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "scheme": "http", "headers": pairs}
    asyncio.run(door.Door(room)(scope, receive, send))
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


@pytest.fixture
def on_a_space(monkeypatch):
    monkeypatch.setenv("SPACE_ID", "tuner/tuner")
    monkeypatch.setenv("SPACE_HOST", f"{SPACE},tuner.example")


PROXIED = {"Host": SPACE, "X-Forwarded-Proto": "https"}


@pytest.mark.parametrize("origin", [f"https://{SPACE}", "https://tuner.example", f"https://{SPACE.upper()}"])
def test_behind_a_spaces_proxy_its_own_addresses_come_in(origin, on_a_space):
    for headers in (PROXIED, {"Host": "10.0.0.7:7860"}, {"Host": "10.0.0.7:7860", "X-Forwarded-Host": SPACE}):
        assert knock(headers | {"Origin": origin})[0] == 200
    status, headers = knock(PROXIED | {"Origin": origin, "X-Forwarded-Host": "evil.example"})
    assert (status, headers["x-host"]) == (200, "")
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    "origin",
    [f"http://{SPACE}", f"https://{SPACE}.evil.example", "https://other.hf.space", "https://huggingface.co", "null"],
)
def test_behind_a_spaces_proxy_all_others_are_refused(origin, on_a_space):
    for headers in (PROXIED, PROXIED | {"X-Forwarded-Host": "other.hf.space"}, {"Host": "10.0.0.7:7860"}):
        assert knock(headers | {"Origin": origin})[0] == 403


def test_a_proxy_of_ones_own_is_known_by_the_headers_it_adds(monkeypatch):
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    added = {"Host": "127.0.0.1:7860", "X-Forwarded-Host": "tuner.example", "X-Forwarded-Proto": "https, http"}
    assert knock(added | {"Origin": "https://tuner.example"})[0] == 200
    assert knock(added | {"Origin": "http://tuner.example"})[0] == 403
    assert knock({"Host": "tuner.example:80", "Origin": "http://tuner.example"})[0] == 200


@pytest.mark.parametrize("setting", [{"GRADIO_SERVER_NAME": "127.0.0.1"}, {"GRADIO_SHARE": "False"}])
def test_a_setting_that_serves_nobody_else_lets_no_other_name_in(setting, monkeypatch):
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    assert knock({"Host": "evil.example:7860"})[0] == 421
    assert knock({"Host": "127.0.0.1:7860"})[0] == 200


@pytest.mark.parametrize("forwarded", ["hf.space", "tuner.example,", ".", ""])
def test_a_part_of_a_spaces_name_is_not_its_name(forwarded, on_a_space):
    headers = PROXIED | {"X-Forwarded-Host": forwarded, "Origin": f"https://{forwarded}"}
    assert knock(headers)[0] == 403
    assert knock(PROXIED | {"X-Forwarded-Host": forwarded})[1]["x-host"] == ""


def test_what_several_proxies_wrote_in_lines_of_their_own_is_read_as_one():
    written = [(b"x-forwarded-for", b"1.1.1.1"), (b"host", b"localhost"), (b"x-forwarded-for", b"198.41.30.7")]
    assert dict(door._cleaned(written)) == {b"host": b"localhost", b"x-forwarded-for": b"1.1.1.1,198.41.30.7"}


@pytest.mark.parametrize("name", ["X-Gradio-Server", "x-gradio-server"])
def test_the_address_that_a_visitor_says_the_page_has_is_told_to_nobody(name, http):
    config = http.get("/config", headers={name: "http://evil.example/"})
    assert config.status_code == 200
    assert "evil.example" not in config.text


def test_there_are_no_websockets():
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(door.Door(None)({"type": "websocket", "path": "/", "headers": []}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize("typed", [None, "", " "])  # an input that the page has not shown yet holds nothing
def test_without_a_typed_token_the_sign_ins_is_used(typed):
    assert with_token(Visitor(token="hf_signed_in"), typed).token == "hf_signed_in"
    assert with_token(Visitor(token="hf_signed_in"), "hf_typed").token == "hf_typed"
