"""The page in a real browser that is installed already."""

import errno
import os
import shutil
import threading

import pytest

pytest.importorskip("flask", reason="the page needs flask: pip install 'shatter-lm[web]'")
pytest.importorskip("playwright", reason="driving a browser needs playwright")

from playwright import sync_api as playwright

from shatter.cli.label import answers, asking, web
from shatter.cli.label.queries import TextQuery
from shatter.cli.label.server import open_server
from shatter.cli.label.writer import open_writer

pytestmark = pytest.mark.slow  # each starts a browser

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
OWN = "document.title = 'owned'"
TAG = f'<script>{OWN}</script><img src="x" onerror="{OWN}"><b>b</b>'
LONG = "A second paragraph, so that one can see how a longer response is set. " * 6
SCREENSHOT = os.environ.get("SHATTER_SCREENSHOT")


@pytest.fixture(scope="module")
def browser():
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip(f"none of {', '.join(NAMES)} is installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser):
    """`open_page(address) -> page`, each in a profile of its own."""
    contexts = []

    def opened(address, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(5000)
        page.troubles = []
        page.on("pageerror", lambda error: page.troubles.append(str(error)))
        page.on("request", lambda request: page.troubles.extend(foreign(request.url, address)))
        page.goto(address)
        return page

    def foreign(url, address):
        return [] if url.startswith((address.partition("?")[0], "data:,")) else [url]

    yield opened
    for context in contexts:
        assert context.pages[0].troubles == []  # no script failed, and nothing came from elsewhere
        context.close()


@pytest.fixture
def site(tmp_path, queries):
    """A running page: its address, its queries and its answer file."""
    turns = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "שלום?"})
    said = ("one\n\ntwo", TAG)
    asked = dict(queries)
    asked["r0000-q001"] = TextQuery(
        "r0000-q001", turns, tuple(({"role": "assistant", "content": text},) for text in said)
    )
    prompt = "Explain to a child why the sky is blue during the day and red in the evening."
    asked["r0000-q002"] = TextQuery("r0000-q002", prompt, (TAG, "short", f"long\n\n{LONG}"))
    with open_writer(tmp_path / "answers.jsonl") as file:
        server = open_server(web.make_app(asked, file, seed=3))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.port}/", asked, file.path
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def wait_for(page, progress, query=None):
    """Waits until the page shows this progress, and a query that may be answered."""
    playwright.expect(page.locator("#progress")).to_have_text(progress)
    if query is not None:
        playwright.expect(page.locator("#prompt")).to_contain_text(query)
    wait_until_read(page)


def wait_until_read(page):
    """Waits until the page accepts keys, which it ignores right after it shows a query."""
    while page.evaluate("isEarly()"):
        page.wait_for_timeout(20)


def sign_in(page, name):
    page.get_by_label("Your name").fill(name)
    page.get_by_role("button", name="Start").click()


def shown(page):
    return page.locator(".response .text").all_inner_texts()


def order(asked, number, annotator):
    query = asked[f"r0000-q{number:03}"]
    return asking.display_order(query, annotator=annotator, seed=3)


def test_an_annotator_from_name_to_all_done(site, open_page, tmp_path):
    address, asked, path = site
    page = open_page(address, viewport={"width": 1200, "height": 800})
    sign_in(page, " Ann ")
    wait_for(page, "0 of 5 answered", "prompt 0")
    assert page.url == f"{address}?annotator=Ann"
    assert shown(page) == [f"response 0.{k}" for k in order(asked, 0, "Ann")]
    assert answers.read_events(path) == []

    page.keyboard.press("Shift")  # a key without a meaning
    page.keyboard.press("3")  # no such response
    page.keyboard.press("Control+1")
    page.keyboard.press("2")
    page.keyboard.press("2")  # pressed twice in a hurry
    wait_for(page, "1 of 5 answered", "Be brief.")
    playwright.expect(page.get_by_role("status")).to_have_text("Answer recorded. 1 of 5 answered.")
    (first,) = answers.read_events(path)
    assert first.ranks[order(asked, 0, "Ann")[1]] == 1 and 0 < first.seconds < 20

    # A conversation; what looks like a tag is text.
    assert page.locator("#prompt .role").all_inner_texts() == ["system", "user"]
    texts = [("one\n\ntwo", TAG)[k] for k in order(asked, 1, "Ann")]
    assert shown(page) == [f"assistant\n{text}" for text in texts]
    assert page.title() == "Which is best?"
    assert page.locator("#responses").locator("b, img, script").count() == 0
    page.get_by_role("button", name="Choose response 1").click()
    wait_for(page, "2 of 5 answered", "the sky is blue")
    second = answers.read_events(path)[1]
    assert second.ranks[order(asked, 1, "Ann")[0]] == 1

    page.screenshot(path=tmp_path / "page.png")
    if SCREENSHOT:
        page.screenshot(path=SCREENSHOT)
    before = shown(page)
    page.reload()
    wait_for(page, "2 of 5 answered", "the sky is blue")
    assert shown(page) == before and len(before) == 3

    page.locator(".response .text").nth(2).click()  # anywhere on it
    wait_for(page, "3 of 5 answered", "prompt 3")
    assert answers.read_events(path)[2].ranks[order(asked, 2, "Ann")[2]] == 1
    page.keyboard.press("0")
    wait_for(page, "4 of 5 answered", "prompt 4")
    assert answers.read_events(path)[3].ranks == (1, 1)
    page.get_by_role("button", name="Undo").click()
    wait_for(page, "3 of 5 answered", "prompt 3")
    assert answers.read_events(path)[4].undoes == answers.read_events(path)[3].event_id
    page.keyboard.press("s")
    wait_for(page, "3 of 5 answered, 1 skipped", "prompt 4")
    page.keyboard.press("t")
    playwright.expect(page.get_by_role("heading", name="All done")).to_be_visible()
    playwright.expect(page.locator("#summary")).to_contain_text("4 of 5 answered, 1 skipped.")
    playwright.expect(page.locator("#file")).to_have_text(f"Answers in {path}")
    wait_until_read(page)
    page.keyboard.press("Backspace")
    wait_for(page, "3 of 5 answered, 1 skipped", "prompt 4")
    events = [(event.event, event.query_id[-1]) for event in answers.read_events(path)]
    kinds = ["answer"] * 4 + ["undo", "skip", "answer", "undo"]
    assert events == list(zip(kinds, "01233344", strict=True))
    assert [one.query_id[-1] for one in answers.current_answers(path)] == ["0", "1", "2"]


def test_two_annotators_and_the_keyboard_alone(site, open_page):
    address, asked, path = site
    ann, bo = open_page(address), open_page(f"{address}?annotator=Bo", color_scheme="dark")
    ann.keyboard.type("Ann")  # the name has the focus
    ann.keyboard.press("Enter")
    for page in (ann, bo):
        wait_for(page, "0 of 5 answered", "prompt 0")
    ann.keyboard.press("1")
    wait_for(ann, "1 of 5 answered")
    wait_for(bo, "0 of 5 answered", "prompt 0")
    bo.keyboard.press("Tab")
    bo.keyboard.press("Tab")
    playwright.expect(bo.get_by_role("button", name="Choose response 2")).to_be_focused()
    bo.keyboard.press("Enter")
    wait_for(bo, "1 of 5 answered")
    found = [(one.annotator, one.query_id) for one in answers.current_answers(path)]
    assert found == [("Ann", "r0000-q000"), ("Bo", "r0000-q000")]
    ann_event, bo_event = answers.read_events(path)
    assert ann_event.ranks[order(asked, 0, "Ann")[0]] == 1
    assert bo_event.ranks[order(asked, 0, "Bo")[1]] == 1

    # Another tab of Bo's browser knows the name; another name has its own progress.
    tab = bo.context.new_page()
    tab.goto(address)
    playwright.expect(tab.get_by_label("Your name")).to_have_value("Bo")
    tab.get_by_role("button", name="Start").click()
    wait_for(tab, "1 of 5 answered")
    tab.get_by_role("button", name="change").click()
    sign_in(tab, "Cy")
    wait_for(tab, "0 of 5 answered", "prompt 0")


def test_a_full_disk_shows_and_the_answer_is_tried_again(site, open_page, monkeypatch):
    address, _, path = site

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    page = open_page(f"{address}?annotator=Ann")
    wait_for(page, "0 of 5 answered", "prompt 0")
    before = shown(page)
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", full)
    page.keyboard.press("1")
    trouble = page.get_by_role("alert")
    playwright.expect(trouble).to_contain_text("No space left on device. This answer was not")
    wait_for(page, "0 of 5 answered", "prompt 0")
    assert shown(page) == before and path.read_bytes() == b""
    monkeypatch.setattr(os, "fsync", fsync)
    event_id = page.evaluate("eventId")
    page.get_by_role("button", name="Try again").click()
    wait_for(page, "1 of 5 answered", "Be brief.")
    playwright.expect(trouble).to_be_hidden()
    assert [one.event_id for one in answers.current_answers(path)] == [event_id]


def test_an_answer_whose_confirmation_is_lost_is_not_doubled(site, open_page):
    address, _, path = site
    page = open_page(f"{address}?annotator=Ann")
    wait_for(page, "0 of 5 answered", "prompt 0")

    def lose(route):
        route.fetch()  # it arrives
        route.abort()

    page.route("**/api/answer", lose)
    page.keyboard.press("1")
    playwright.expect(page.get_by_role("alert")).to_contain_text("does not respond")
    assert len(answers.read_events(path)) == 1
    page.unroute("**/api/answer")
    wait_until_read(page)
    page.keyboard.press("2")  # another choice: the page says so and the recorded one stays
    playwright.expect(page.get_by_role("alert")).to_contain_text("undo it to change it")
    wait_for(page, "1 of 5 answered", "Be brief.")  # the next query
    assert len(answers.read_events(path)) == 1
    playwright.expect(page.get_by_role("button", name="Try again")).to_be_hidden()
    page.keyboard.press("t")
    wait_for(page, "2 of 5 answered")
    playwright.expect(page.get_by_role("alert")).to_be_hidden()


def test_two_tabs_of_one_annotator(site, open_page):
    address, _, path = site
    page = open_page(f"{address}?annotator=Ann")
    tab = page.context.new_page()
    tab.goto(f"{address}?annotator=Ann")
    for one in (page, tab):
        wait_for(one, "0 of 5 answered", "prompt 0")
    page.keyboard.press("1")
    wait_for(page, "1 of 5 answered", "Be brief.")
    tab.keyboard.press("2")
    trouble = tab.get_by_role("alert")
    playwright.expect(trouble).to_contain_text("has answered or skipped query")
    playwright.expect(trouble).to_contain_text("Nothing was recorded. Below is what is asked now.")
    wait_for(tab, "1 of 5 answered", "Be brief.")
    tab.keyboard.press("u")  # takes back the first tab's answer, as the standing says
    wait_for(tab, "0 of 5 answered", "prompt 0")
    page.keyboard.press("u")
    playwright.expect(page.get_by_role("alert")).to_contain_text("is not your last answer here")
    wait_for(page, "0 of 5 answered", "prompt 0")
    assert [event.event for event in answers.read_events(path)] == ["answer", "undo"]


def test_a_page_of_another_project_on_the_same_port(site, open_page, tmp_path):
    """The page was open while the program was started again for another project."""
    address, asked, path = site
    page = open_page(f"{address}?annotator=Ann")
    wait_for(page, "0 of 5 answered", "prompt 0")
    other = {name: query._replace(prompt="Which tea?") for name, query in asked.items()}
    with open_writer(tmp_path / "other" / "answers.jsonl") as file:
        client = web.make_app(other, file, seed=3).test_client()

        def to_the_other(route):
            request = route.request
            options = {"base_url": address, "headers": {"Content-Type": "application/json"}}
            where = request.url.removeprefix(address.rstrip("/"))
            found = client.open(where, method=request.method, data=request.post_data, **options)
            route.fulfill(status=found.status_code, json=found.get_json())

        page.route("**/api/*", to_the_other)
        page.keyboard.press("1")
        trouble = page.get_by_role("alert")
        playwright.expect(trouble).to_contain_text("something else than what is asked here")
        wait_for(page, "0 of 5 answered", "Which tea?")
        assert file.events == [] and answers.read_events(path) == []
        page.keyboard.press("1")
        wait_for(page, "1 of 5 answered")
        assert [event.query_id for event in file.events] == ["r0000-q000"]
