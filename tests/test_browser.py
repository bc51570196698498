"""In a real Chromium: a visitor trains the example, comes back and chats; and what strangers write stays text."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from conftest import ROOT
from playwright.sync_api import Browser, Page, expect
from served import Served, serve
from signed_in import Site
from stage import Stage
from visitors_runs import with_events

from tuner.runs import Run
from tuner.ui import ownership
from tuner.ui.visitor import ANYBODY

pytest_plugins = ["browser"]

PATIENCE = 90_000  # milliseconds that a busy machine may take for one step
STEPS = 90  # of four rows: some 4 s of training, so that there is time to reload
OWN_ROW = '#runs .t-row:not([data-run="example"])'
PLANTED = "planted"
PHONE = {"width": 390, "height": 844}
# What Gradio itself says when a page is left while it listens.
LEAVING = ("AbortError", "Connection errored out", "ERR_NETWORK_CHANGED", "ERR_ABORTED")

expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The served app's address."""
    with serve(tmp_path_factory.mktemp("browser") / "runs") as address:
        yield address


@pytest.fixture
def visit(chromium: Browser, url: Served) -> Iterator[Callable[..., Page]]:
    """Opens the page as a new visitor; in the end, nothing may have come from elsewhere and no error been logged."""
    contexts, faults = [], []

    def opened(query: str = "", **settings) -> Page:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}} | settings)
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: faults.append(str(e)))
        page.on("request", lambda r: faults.append(f"external: {r.url}") if is_external(r.url) else None)
        page.goto(url + query)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [f for f in faults if not any(message in f for message in LEAVING)] == []


def is_external(address: str) -> bool:
    """Whether the address is on another machine."""
    parts = urlsplit(address)
    return parts.scheme in ("http", "https", "ws", "wss") and parts.hostname not in ("127.0.0.1", "localhost")


def points(page: Page) -> int:
    """Steps in the card's loss curve."""
    return page.evaluate("Number(document.querySelector('#card .t-curve')?.dataset.points || 0)")


def wait_for_more(page: Page, than: int) -> int:
    """Wait until the loss curve has more steps, and return how many."""
    page.wait_for_function("n => Number(document.querySelector('#card .t-curve')?.dataset.points || 0) > n", arg=than)
    return points(page)


def answered(page: Page, titles: list[str]) -> None:
    """Wait until the columns with these titles, and no others, have their answers."""
    for number, title in enumerate(titles):
        expect(page.locator(f"#chat-{number}")).to_contain_text(title)
        expect(page.locator(f"#chat-{number} .bot.message").first).not_to_be_empty()
    expect(page.locator(".t-columns [id^=chat-]:visible")).to_have_count(len(titles))
    expect(page.locator("#send")).to_be_visible()


def look_through_the_rows(page: Page) -> None:
    """Sort, filter, search and turn the pages of a run's scored rows, of which there are twelve."""
    page.get_by_role("button", name="All scored rows").click()
    rows, told = page.locator("#rows-list .t-scored"), page.locator("#rows-list")
    expect(rows).to_have_count(10)
    page.locator("#rows-next").click()
    expect(told).to_contain_text("Rows 11 to 12 of 12.")
    first = rows.first.locator(".prompt").inner_text()
    page.locator("#rows-search input, #rows-search textarea").fill(first)
    page.keyboard.press("Enter")
    expect(rows).to_have_count(1)
    page.locator("#rows-search input, #rows-search textarea").fill("")
    page.keyboard.press("Enter")
    expect(rows).to_have_count(10)
    page.locator("#rows-order input").click()
    page.get_by_role("option", name="As scored").click()
    expect(rows.first).to_contain_text("Row 1")
    page.get_by_label(re.compile("Adapter worse")).check()
    expect(page.locator("#rows-list .t-badge:not(.worse)")).to_have_count(0)
    page.locator("#rows-over input").click()
    page.get_by_role("option", name="Examples in the prompt", exact=True).click()
    expect(page.get_by_label(re.compile(r"All \(12\)"))).to_be_visible()
    page.get_by_label(re.compile("All ")).check()
    expect(rows).to_have_count(10)
    assert not page.evaluate("[...document.querySelectorAll('#rows-list mark *')].length")


def test_the_way_through(visit, tmp_path):
    page = visit()
    expect(page.locator("#card")).to_contain_text("per epoch")
    page.get_by_role("button", name="More settings").click()
    for label, value in {"Batch size": "4", "held-out rows that": "12", "Max new tokens": "8"}.items():
        page.locator("label", has_text=label).locator("input, textarea").fill(value)
    page.locator("#amount input").fill(str(STEPS))
    expect(page.locator("#card")).to_contain_text(f"Budget: {STEPS} steps")
    page.locator("#train").click()
    seen = wait_for_more(page, wait_for_more(page, 0))
    assert "run=" in page.url

    page.reload()
    expect(page.locator("#card .t-run")).to_have_attribute("data-phase", "training")
    assert wait_for_more(page, seen) > seen

    expect(page.locator("#card .t-verdict")).to_be_visible()
    expect(page.locator("#card .t-bar")).to_have_count(4)  # with and without examples in the prompt, and the adapter
    expect(page.locator("#card .t-example")).to_have_count(2)
    page.screenshot(path=tmp_path / "finished.png", full_page=True)
    look_through_the_rows(page)

    page.locator("#chat").click()
    page.locator("#examples").get_by_role("button").first.click()
    expect(page.locator(".t-reference")).to_be_visible()
    expect(page.locator("#prompt textarea")).not_to_have_value("")
    page.locator("#send").click()
    answered(page, ["Base model", "Adapter", "Merged model"])
    expect(page.locator("table", has_text="Merged model compared with")).to_contain_text("%")
    page.screenshot(path=tmp_path / "playground.png", full_page=True)

    prompt = page.locator("#chat-0 .user.message").inner_text()
    page.locator("#chat-run input").click()
    page.get_by_role("option", name="corporate · example").click()
    expect(page.locator("#prompt textarea")).to_have_value(prompt.strip())
    page.locator("#send").click()
    answered(page, ["Base model", "lora · corporate", "corporate · example"])
    expect(page.locator("table", has_text="Merged model compared with")).to_be_hidden()
    page.screenshot(path=tmp_path / "compared.png", full_page=True)

    stranger = visit()
    stranger.get_by_role("tab", name="My runs").click()
    expect(stranger.locator("#runs .t-row, #runs .t-note").first).to_be_visible()
    expect(stranger.locator(OWN_ROW)).to_have_count(0)
    page.get_by_role("tab", name="My runs").click()
    expect(page.locator(OWN_ROW)).to_have_count(1)


def test_problems_stand_in_place_and_nothing_typed_is_lost(visit):
    page = visit()
    page.get_by_label("Paste rows").check()
    typed = "prompt,completion\nhi,Good day.\nyo,\nhey,Hello.\nok,Agreed.\n<b>x</b>,y\n"
    page.locator("#pasted textarea").fill(typed)
    page.locator("#train").click()
    expect(page.locator("#card .t-problems")).to_contain_text("Row 2 (line 3)")
    expect(page.locator("#card .t-problems")).to_contain_text('an empty "completion"')
    expect(page.locator("#pasted textarea")).to_have_value(typed)
    expect(page.locator("#train")).to_be_enabled()
    page.get_by_label("Included example").check()
    expect(page.locator("#card")).to_contain_text("per epoch")


@pytest.mark.long
def test_two_methods_are_compared_from_start_to_table_and_shown_again_by_the_link(visit, tmp_path):
    page = visit()
    expect(page.locator("#card")).to_contain_text("per epoch")
    page.get_by_role("button", name="More settings").click()
    settings = {"Batch size": "4", "held-out rows that": "12", "Max new tokens": "8", "Examples in the prompt": "0"}
    for label, value in settings.items():
        page.locator("label", has_text=label).locator("input, textarea").first.fill(value)
    page.get_by_role("tab", name="Compare").click()
    page.locator("#compare-seconds input").fill("5")
    page.locator("#compare-seconds input").blur()
    expect(page.locator("#compare-card")).to_contain_text("2 runs, 10 s of training in all")
    page.locator("#compare-start").click()
    expect(page.locator("#compare-card [data-phase=running]")).to_be_visible()
    page.reload()
    expect(page.locator("#compare-card [data-phase=done]")).to_be_visible()
    table = page.locator("#compare-results table")
    expect(table.locator("tbody tr", has_text="finished")).to_have_count(2)
    expect(page.locator("#compare-results svg.t-plot")).to_be_visible()
    for name in ("comparison.csv", "comparison.png"):
        with page.expect_download() as download:
            page.locator(f"a[download='{name}']").click()
        assert download.value.path().stat().st_size > 200
    page.screenshot(path=tmp_path / "compared.png", full_page=True)
    stranger = visit(f"?{urlsplit(page.url).query}")
    expect(stranger.locator("#compare-results table")).to_be_visible()
    expect(stranger.locator("#compare-stop, #compare-resume")).to_have_count(0)
    page.get_by_role("tab", name="My runs").click()
    expect(page.locator(OWN_ROW)).to_have_count(2)
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="Hold finished runs beside each other").click()
    for name in ("lora", "ia3"):
        page.locator("#beside-runs input").click()
        page.get_by_role("option", name=name, exact=True).click()
    page.keyboard.press("Escape")
    page.locator("#beside-compare").click()
    expect(page.locator("#beside-results")).to_contain_text("Settings that differ")


@pytest.mark.long
def test_a_click_on_what_would_solve_a_problem_solves_it(visit):
    page = visit()
    page.get_by_label("Paste rows").check()
    rows = "body,verdict\n" + "".join(f"what is written here is number {i},so it is {i}\n" for i in range(8))
    page.locator("#pasted textarea").fill(rows)
    page.locator("#pasted textarea").blur()
    page.locator("#card").get_by_role("button", name="Use this mapping").click()
    expect(page.locator("#card")).to_contain_text("per epoch")
    page.get_by_role("button", name="How the rows are read").click()
    for part, column in (("prompt", "body"), ("completion", "verdict")):
        expect(page.get_by_label(f"Column of the {part}")).to_have_value(column)


def test_markup_in_rows_is_shown_as_text_wherever_it_is_shown(visit):
    markup = "<b class=planted>x</b>"
    page = visit()
    page.get_by_label("Paste rows").check()
    page.locator("#pasted textarea").fill(f"{markup},{markup}2\n" + "a,b\n" * 8)
    page.locator("#train").click()
    expect(page.locator("#card .t-problems")).to_contain_text(markup)
    page.locator("#pasted textarea").fill("prompt,completion\n" + f"{markup} do it,{markup} Please do it.\n" * 8)
    page.get_by_role("button", name="What the model will see").click()
    expect(page.locator(".t-tokens").first).to_contain_text(f"{markup} do it")
    expect(page.locator(".t-tokens").first).to_contain_text(f"{markup} Please do it.")
    expect(page.locator(".planted")).to_have_count(0)


def test_a_link_is_for_looking_and_an_owners_link_makes_its_browser_an_owner(visit, url):
    run = Run(shutil.copytree(ROOT / "examples/finished", url.log.parent / "runs/handed-on"))
    secret = ownership.claim(run, ANYBODY)
    asked = []
    for secret_part, is_own in (("#secret=wrong", False), (f"#secret={secret}", True)):
        page = visit(f"?run=handed-on{secret_part}")
        page.on("request", lambda request: asked.append(request.url))
        expect(page.locator("#card .t-verdict")).to_be_visible()
        expect(page.get_by_text(ownership.LINK_ONLY)).to_have_count(0 if is_own else 1)
        expect(page.locator("#chat")).to_be_visible()
        is_whole = "side => side.scrollHeight <= side.clientHeight + 1"
        assert page.locator(".t-side").evaluate(is_whole)
        expect(page.locator("#push-it")).to_be_visible(visible=is_own)
        assert page.url == f"{url}?run=handed-on"
        page.get_by_role("tab", name="My runs").click()
        expect(page.locator('#runs .t-row[data-run="example"]')).to_be_visible()
        expect(page.locator(OWN_ROW)).to_have_count(int(is_own))
    page.locator(OWN_ROW).click()
    expect(page.locator("#owner-link textarea, #owner-link input")).to_have_value(
        f"{url}?run=handed-on#secret={secret}"
    )
    expect(page.locator("#run-link textarea, #run-link input")).to_have_value(f"{url}?run=handed-on")
    page.goto(f"{url}?run=handed-on")  # the browser remembers
    expect(page.locator("#push-it")).to_be_visible()
    page.get_by_role("tab", name="My runs").click()
    page.locator('#runs .t-row[data-run="example"]').click()
    expect(page.locator("#owner-link")).to_be_hidden()
    assert not [address for address in asked if secret in address]
    assert secret not in url.log.read_text()


@pytest.mark.long
def test_an_owners_link_resumes_nothing_by_itself_until_resume_was_pressed_in_its_browser(visit, url):
    run = Run(shutil.copytree(ROOT / "examples/finished", url.log.parent / "runs/given"))
    secret = ownership.claim(run, ANYBODY)
    with_events(run, {"event": "start", "step": 0, "steps": 9}, {"event": "end", "reason": "window", "step": 4})
    page = visit(f"?run=given#secret={secret}")
    for _ in range(2):
        expect(page.get_by_text(ownership.BY_LINK)).to_be_visible()
        expect(page.locator("#card .t-run")).to_have_attribute("data-phase", "continuing")
        for _ in range(2):  # of which the first has been answered when the second comes
            page.wait_for_event("request", lambda request: request.method == "POST")
        assert run.last_event()["event"] == "end"
        page.reload()
    page.locator("#resume").click()
    expect(page.get_by_text(ownership.BY_LINK)).to_have_count(0)
    expect(page.locator("#card .t-run")).not_to_have_attribute("data-phase", "continuing")
    assert run.last_event("queued")
    page.wait_for_function(f"window.localStorage.getItem('tuner-runs') === '{{\"given\":\"{secret}\"}}'")
    expect(page.locator("#again")).to_be_visible()  # there are no rows to train on


@pytest.mark.long
def test_one_tab_of_an_owner_does_not_forget_the_runs_of_another(visit, url):
    run = Run(shutil.copytree(ROOT / "examples/finished", url.log.parent / "runs/other-tab"))
    first = visit()
    first.get_by_role("tab", name="My runs").click()
    first.locator('#runs .t-row[data-run="example"]').click()
    second = first.context.new_page()
    second.goto(f"{url}?run=other-tab#secret={ownership.claim(run, ANYBODY)}")
    expect(second.locator("#push-it")).to_be_visible()
    first.locator("#open-run").click()  # which saves the list that the first tab knows
    expect(first.locator("#card .t-verdict")).to_be_visible()
    second.goto(f"{url}?run=other-tab")
    expect(second.locator("#push-it")).to_be_visible(timeout=20_000)
    for page in (first, second):
        page.reload()
        page.get_by_role("tab", name="My runs").click()
        expect(page.locator(OWN_ROW)).to_have_count(1)


@pytest.mark.long
def test_dark_and_a_phones_width(visit, tmp_path):
    page = visit("?__theme=dark", viewport=PHONE)
    expect(page.locator("#card")).to_contain_text("per epoch")
    assert page.evaluate("document.body.classList.contains('dark')")
    for name in ("Train", "Playground", "Compare", "My runs"):
        page.get_by_role("tab", name=name).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        page.screenshot(path=tmp_path / f"{name}.png", full_page=True)


@pytest.mark.long
def test_on_zerogpu_a_run_goes_on_in_the_next_window_while_its_tab_is_open(chromium, tmp_path):
    launcher = (str(ROOT / "tests/on_stage.py"),)
    with Stage() as stage, serve(tmp_path / "runs", launcher, **stage.environment, TUNER_WINDOW_SECONDS="10") as url:
        page = chromium.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(url)
        expect(page.locator("#card .t-parts").first).to_be_visible()
        page.get_by_label("Seconds", exact=True).check()
        page.locator("#amount input").fill("13")
        expect(page.locator("#card")).to_contain_text("Budget: 13 seconds")
        expect(page.locator("#card .t-parts-names").first).to_contain_text("training 13 s")
        page.locator("#train").click()
        expect(page.locator("#card .t-run")).to_have_attribute("data-phase", "training")
        link = page.url
        other = chromium.new_page()
        other.goto(link)
        expect(other.locator("#card .t-run")).to_be_visible()
        for looking_on in (page, other):
            expect(looking_on.locator("#card .t-verdict")).to_be_visible()
        assert len(stage.windows) >= 2
        assert len({window.pid for window in stage.windows}) == 1
        assert {window.how for window in stage.windows} == {"released"}
        page.close()
        other.close()


@pytest.mark.long
def test_on_zerogpu_a_spent_quota_is_told_in_the_card_and_the_run_goes_on_later(chromium, tmp_path):
    launcher = (str(ROOT / "tests/on_stage.py"),)
    with Stage() as stage, serve(tmp_path / "runs", launcher, **stage.environment) as url:
        context = chromium.new_context(extra_http_headers={"X-IP-Token": "a.eyJ1IjoxfQ.c"})
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(url)
        page.locator("#amount input").fill("5")
        expect(page.locator("#card")).to_contain_text("Budget: 5 steps")
        stage.quota = {"a.eyJ1IjoxfQ.c": 4}
        page.locator("#train").click()
        expect(page.locator("#card .t-problems")).to_contain_text("4 s is left. The full quota is back in 5 h 32 min.")
        expect(page.locator("#card .t-problems")).to_contain_text("The run is safe")
        stage.quota = None
        page.locator("#resume").click()
        expect(page.locator("#card .t-verdict")).to_be_visible()
        context.close()


# What strangers write stays text in every place that shows it, and fetches nothing from anywhere


def markup(site: str) -> list[str]:
    """Pieces of HTML, CSS and templates with which to load something, run something or lead somewhere."""
    return [
        f"<img class={PLANTED} src={site}/i onerror=fetch('{site}/e')>",
        f"<svg class={PLANTED} onload=fetch('{site}/v')>",
        f"<script class={PLANTED} src={site}/s></script>",
        f"<iframe class={PLANTED} src={site}/f></iframe>",
        f'<p class={PLANTED} style="background:url({site}/c)">x</p>',
        f"<style class={PLANTED}>@import '{site}/y';</style>",
        f"<form class={PLANTED} action={site}/a><input autofocus onfocus=fetch('{site}/o')></form>",
        f"<meta class={PLANTED} http-equiv=refresh content='0;url={site}/m'>",
        f"<link class={PLANTED} rel=stylesheet href={site}/l>",
        f"<object class={PLANTED} data={site}/b></object>",
        f"${{fetch('{site}/t')}} {{{{fetch}}}} $$x$$ &lt;b&gt;",
    ]


@pytest.fixture
def site() -> Iterator[Site]:
    """Somebody's site, which waits for visitors."""
    with Site("caught") as site:
        yield site


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, chromium: Browser, url: Served) -> Iterator[Page]:
    """A visitor's page; in the end nothing was asked of another site, and no policy stood in the page's own way."""
    context, faults = chromium.new_context(viewport={"width": 1280, "height": 900}), []
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.on("console", lambda m: faults.append(m.text) if "Content Security Policy" in m.text else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else faults.append(r.url))
    page.goto(f"{url}?__theme={request.param}")
    yield page
    assert page.locator(f".{PLANTED}").count() == 0
    context.close()
    assert faults == []


@pytest.mark.parametrize("page", ["light"], indirect=True)
def test_questions_and_answers_are_the_text_that_they_are(page, site):
    page.get_by_role("tab", name="Playground").click()
    expect(page.locator("#chat-run")).to_contain_text("corporate · example")
    pieces = markup(site.url)
    for text in (pieces[0] + pieces[3], pieces[-1]):
        page.get_by_role("button", name="New conversation").click()
        expect(page.locator("#chat-0 .message")).to_have_count(0)
        page.locator("#prompt textarea").fill(text)
        page.locator("#send").click()
        for column in range(3):
            expect(page.locator(f"#chat-{column} .bot.message")).to_be_visible()
            assert page.locator(f"#chat-{column} .user.message").text_content() == text
        expect(page.locator("#send")).to_be_visible()
    assert site.seen == []


@pytest.mark.long
def test_a_whole_run_of_markup_in_every_tab(page, site, tmp_path):
    rows = tmp_path / "rows.jsonl"
    pieces = markup(site.url) * 3
    rows.write_text("".join(json.dumps({"prompt": f"{n} {p}", "completion": p}) + "\n" for n, p in enumerate(pieces)))
    page.get_by_label("Upload a file").check()
    page.locator("#file input[type=file]").set_input_files(rows)
    page.get_by_role("button", name="More settings").click()
    page.locator("label", has_text="Name").locator("input, textarea").first.fill(
        f"<img class={PLANTED} src={site.url}/n>"
    )
    for label, value in {"Batch size": "4", "held-out rows that": "4", "Max new tokens": "8"}.items():
        page.locator("label", has_text=label).locator("input, textarea").fill(value)
    page.get_by_label("Steps", exact=True).check()
    page.locator("#amount input").fill("3")
    expect(page.locator("#card")).to_contain_text("Budget: 3 steps")
    page.get_by_role("button", name="What the model will see").click()
    expect(page.locator(".t-tokens").first).to_contain_text("<")
    page.get_by_role("button", name="Recipe (YAML)").click()
    expect(page.locator("#yaml .cm-content")).to_contain_text("name: <img")
    page.get_by_role("button", name="Compare all methods").click()
    expect(page.locator("#methods .t-method").first).to_be_visible()
    page.locator("#train").click()
    expect(page.locator("#card .t-verdict")).to_be_visible()
    expect(page.locator("#card .t-example").first).to_contain_text("<")
    page.locator("#chat").click()
    expect(page.locator("#examples")).to_contain_text("<")
    page.locator("#examples").get_by_role("button").first.click()
    expect(page.get_by_label("Prompt", exact=True)).not_to_have_value("")
    page.locator("#send").click()
    expect(page.locator("#chat-1 .bot.message")).not_to_be_empty()
    page.get_by_role("tab", name="My runs").click()
    expect(page.locator("#runs")).to_contain_text("<")
    page.locator('#runs .t-row:not([data-run="example"])').click()
    page.get_by_role("button", name="Use via API").click()
    expect(page.locator("body")).to_contain_text("/train")
    assert site.seen == []


@pytest.mark.long
def test_a_held_out_row_brings_its_earlier_turns(visit, url):
    run = Run(shutil.copytree(ROOT / "examples/finished", url.log.parent / "runs/turns"))
    said = [("system", "be kind"), ("user", "first"), ("assistant", "answer"), ("user", "second")]
    rows = [{"messages": [{"role": r, "content": t} for r, t in said], "reference": "last"}]
    run.write_text("data/heldout.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    page = visit(f"?run=turns#secret={ownership.claim(run, ANYBODY)}")
    page.locator("#chat").click()
    page.locator("#examples").get_by_role("button").first.click()
    expect(page.locator("#prompt textarea")).to_have_value("second")
    for column in range(2):
        expect(page.locator(f"#chat-{column} .message")).to_have_text(["first", "answer"])
    page.locator("#send").click()
    expect(page.locator("#chat-1 .message")).to_have_count(4)
