"""In Chromium, signed in as on a Space: the page of another site can do nothing with the visitor's cookie."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import browser
import gradio
import httpx
import pytest
from gradio_client import Client
from hub_double import Hub
from playwright.sync_api import BrowserContext, Page, expect, sync_playwright
from served import serve
from signed_in import HOST, Provider, Proxy, Site, on_a_space

REAL = ("-u",)  # a Python of its own: Gradio reads the sign-in's settings when it is imported

PATIENCE = 90_000
STEPS = 60
FORMS = 18
HOME = f"https://{HOST}"
# On a Space Gradio asks for the Space's header and for fonts that the page does not use; both are blocked.
GRADIOS_OWN = ("https://huggingface.co/api/spaces/", "https://fonts.googleapis.com/")
# What a page of another site can try: as a program would, as old forms do, and without asking for an answer.
ATTACK = """async ([home, path, body]) => {
    const plain = {method: 'POST', credentials: 'include', body, signal: AbortSignal.timeout(30000)};
    const told = [];
    for (const options of [
        {...plain, headers: {'Content-Type': 'application/json'}},
        {...plain, mode: 'no-cors'},
    ]) {
        told.push(await fetch(home + path, options).then((r) => r.text(), () => 'refused'));
    }
    return told;
}"""
FORM = """([home, path, body]) => {
    const form = document.createElement('form');
    Object.assign(form, {method: 'POST', action: home + path, enctype: 'text/plain', target: path + body});
    const frame = document.createElement('iframe');
    frame.name = path + body;  // a second request to the same frame would end the first
    document.body.append(frame);
    const input = document.createElement('input');
    [input.name, input.value] = [body.slice(0, -1) + ', "x": "', '"}'];
    form.append(input);
    document.body.append(form);
    form.submit();
}"""

expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The app on a Space, with sign-in; the Hub; and a site of somebody else's."""
    if not browser.executable():
        (pytest.fail if browser.in_ci() else pytest.skip)(browser.MISSING)
    folder, hub = tmp_path_factory.mktemp("space"), Hub()
    owner, alice = hub.user("owner"), hub.user("alice", role="oauth")
    with Provider(alice) as provider:
        environment = on_a_space(provider, hub, folder / "home") | {"HF_TOKEN": owner}
        with (
            serve(folder / "runs", REAL, **environment) as url,
            Proxy(url, folder) as proxy,
            Site("<p>Nothing to see here.</p>") as site,
        ):
            yield SimpleNamespace(
                url=url,
                runs=folder / "runs",
                hub=hub,
                owner=owner,
                alice=alice,
                proxy=proxy,
                elsewhere=f"http://evil.example:{site.port}",
            )
    hub.close()


@pytest.fixture
def visitor(space: SimpleNamespace, tmp_path: Path) -> Iterator[BrowserContext]:
    """A browser that knows the Space and the other site, and sends cookies to whichever asks, as many still do."""
    preferences = tmp_path / "Default/Preferences"
    preferences.parent.mkdir()
    preferences.write_text('{"profile": {"cookie_controls_mode": 0, "block_third_party_cookies": false}}')
    options = browser.launch_options()
    options["args"] = [*options["args"], f"--host-resolver-rules={space.proxy.rules}", "--ignore-certificate-errors"]
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path, ignore_https_errors=True, viewport={"width": 1280, "height": 900}, **options
        )
        context.set_default_timeout(PATIENCE)
        yield context
        context.close()


def sign_in(page: Page) -> None:
    """Click through the sign-in, from the list of runs."""
    page.get_by_role("tab", name="My runs").click()
    page.locator('#runs [data-run="example"]').click()
    page.get_by_role("button", name="Push to the Hub").click()
    page.get_by_role("button", name="Sign in with Hugging Face").click()
    page.locator("#authorize").click()
    page.wait_for_url(f"{HOME}/**")


def train(page: Page, steps: int) -> str:
    """Train a run of these steps by clicking; returns its id once it has begun."""
    page.get_by_role("tab", name="Train").click()
    page.get_by_role("button", name="More settings").click()
    for label, value in {"Batch size": "4", "held-out rows that": "4", "Max new tokens": "8"}.items():
        page.locator("label", has_text=label).locator("input, textarea").fill(value)
    page.locator("#amount input").fill(str(steps))
    expect(page.locator("#card")).to_contain_text(f"Budget: {steps} steps")
    page.locator("#train").click()
    expect(page.locator("#card .t-run")).to_have_attribute("data-phase", "training")
    return page.url.partition("run=")[2].partition("&")[0]


def attacks(page: Page, run: str) -> Iterator[tuple[str, str]]:
    """Paths and bodies of requests that push, delete, stop, resume and train, as programs and the page send them."""
    dependencies = page.evaluate("window.gradio_config.dependencies")
    given = {"push": [run, "alice/stolen", "", False], "train": ["budget: {steps: 1}", None, ""], "delete": [run]}
    given |= {"stop": [run], "resume": [run], "merge": [run]}
    for name, data in given.items():
        yield f"/gradio_api/call/{name}", json.dumps({"data": data})
        yield f"/gradio_api/run/{name}", json.dumps({"data": data})
        (number,) = [d["id"] for d in dependencies if d["api_name"] == name and d["api_visibility"] == "public"]
        yield "/gradio_api/queue/join", json.dumps({"data": data, "fn_index": number, "session_hash": "x"})
    for number in [d["id"] for d in dependencies if d["api_visibility"] == "private" and d["backend_fn"]]:
        data = [run] * len(next(d for d in dependencies if d["id"] == number)["inputs"])
        yield "/gradio_api/queue/join", json.dumps({"data": data, "fn_index": number, "session_hash": "x"})


def posts(space: SimpleNamespace, part: str = "") -> list[str]:
    """What the other site's page has sent to the Space so far."""
    heads = [head for head in space.proxy.seen if head.startswith("POST") and "Origin: http://evil.example" in head]
    return [head for head in heads if part in head]


@pytest.mark.long
def test_another_site_does_nothing_with_the_visitors_cookie_and_the_visitor_does_everything(space, visitor):
    faults, sent = [], []
    page = visitor.new_page()
    page.on("console", lambda m: faults.append(m.text) if "Content Security Policy" in m.text else None)
    page.goto(HOME)
    sign_in(page)
    page.get_by_role("tab", name="My runs").click()
    page.locator('#runs [data-run="example"]').click()
    page.get_by_role("button", name="Push to the Hub").click()
    expect(page.get_by_role("button", name="Logout (alice)")).to_be_visible()
    run = train(page, STEPS)

    evil = visitor.new_page()
    evil.on("response", lambda r: sent.append((r.request.method, r.status)) if r.url.startswith(HOME) else None)
    evil.goto(space.elsewhere)
    before = sorted(path.name for path in space.runs.iterdir() if path.is_dir())
    tried = list(attacks(page, run))
    assert len(tried) > 30
    for path, body in tried:
        assert not [told for told in evil.evaluate(ATTACK, [HOME, path, body]) if told not in ("", "refused")]
    for path, body in tried[:FORMS]:
        evil.evaluate(FORM, [HOME, path, body])
    while len(posts(space, "Dest: iframe")) < FORMS:
        evil.wait_for_timeout(100)
    assert {status for method, status in sent if method == "POST"} == {403}
    assert len(posts(space)) == len(tried) + FORMS
    assert all("Cookie: session=" in head for head in posts(space))  # or nothing would have been shown
    evil.goto(f"{HOME}/?run={run}")  # a link
    expect(evil.locator("#card .t-run")).to_be_visible()
    assert evil.evaluate("document.referrer") in ("", space.elsewhere + "/")
    evil.close()

    expect(page.locator("#card .t-verdict")).to_be_visible()
    assert (space.runs / run / "events.jsonl").read_text().count('"event": "step"') == STEPS
    assert sorted(path.name for path in space.runs.iterdir() if path.is_dir()) == before
    assert not [name for kind, name in space.hub.repos if kind == "models"]

    page.locator("#push-it").click()
    page.locator("#repository textarea, #repository input").first.fill("alice/mine")
    page.locator("#push").click()
    expect(page.locator("#pushed a")).to_have_attribute("href", f"{space.hub.url}/alice/mine")
    assert space.hub.repo("alice/mine").private
    uploads = {seen.token for seen in space.hub.seen if seen.method != "GET"}
    assert uploads - {None} == {space.alice}  # large files go to an address that is signed
    assert space.owner not in space.hub.tokens()

    page.locator("#delete-run").click()
    page.locator("#delete-sure").click()
    expect(page.locator(f'#runs [data-run="{run}"]')).to_have_count(0)
    assert not (space.runs / run).exists()
    assert not [fault for fault in faults if not any(name in fault for name in GRADIOS_OWN)]


@pytest.mark.long
def test_a_program_with_a_token_trains_and_pushes_and_deletes(space):
    bob = space.hub.user("bob")
    client = Client(space.url, verbose=False, token=bob)
    recipe = "training: {batch_size: 4}\nbudget: {steps: 2}\nevaluation: {rows: 4, max_new_tokens: 8, loss_every: 0}"
    first, *_ = client.submit(recipe=recipe, api_name="/train")
    own = {"run": first["run"], "secret": first["secret"]}
    before = len(space.hub.seen)
    address = client.predict(**own, repository="bob/mine", token=bob, api_name="/push")
    assert address.endswith("/bob/mine")
    assert {seen.token for seen in space.hub.seen[before:]} - {None} == {bob}
    assert client.predict(**own, api_name="/delete") == "deleted"


@pytest.mark.long
def test_the_page_tells_no_path_of_this_machine(space):
    config = httpx.get(f"{space.url}config", headers={"X-Forwarded-Host": HOST}).text
    assert "Sign in with Hugging Face" in config
    assert str(Path(gradio.__file__).parent) not in config
