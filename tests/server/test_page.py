"""The page at `/` in a real Chromium: chat, the memory laid open, forgetting, keys, keyboards and phones."""

from __future__ import annotations

import re
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Route, expect, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from beacon_memory import BeaconConfig
from beacon_memory.models.finder import Finder
from beacon_memory.server.keys import Keys
from beacon_memory.stores import open_store
from beacon_memory.testing import beacon_server, scripted_engine

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
EVIL = "<img src=x onerror=\"document.title='hacked'\"><b>bold</b>"
FACT = "The key of the shed hangs behind the green door. "
YEARS = " ".join(f"In {year} it was painted anew." for year in range(1900, 1930))
SIZES = {"wide": {"width": 1280, "height": 800}, "phone": {"width": 360, "height": 740}}
Opened = Callable[..., Page]


class Gate:
    """Where an answer waits for its test."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()

    def __call__(self, seen: str) -> str:
        self.open.wait(30)
        return "It hangs behind the green door, as you said."


@pytest.fixture(scope="module")
def gate() -> Gate:
    return Gate()


@pytest.fixture(scope="module")
def url(gate: Gate) -> Iterator[str]:
    # More than a question stays raw: one that is folded is not looked for.
    engine = scripted_engine(gate, config=BeaconConfig(window=64, keep_last=48, anchors="last"))
    engine.memory.model.finder = Finder(((1, 0), (0, 1)), (2.0, 1.0), 0.0)  # finds something, whatever is asked
    with beacon_server(engine) as url:
        yield url


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as http:
        yield http


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, url: str) -> Iterator[Opened]:
    """Open the page, in a tab of its own. Nothing may be fetched from elsewhere, refused by the policy, or fail."""
    bad: list[str] = []

    def told(message: ConsoleMessage) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:  # a refusal, which is shown
            bad.append(message.text)

    contexts = []

    def visit(where: str = "", *, at: str = url, size: str = "wide", **options: Any) -> Page:
        context = browser.new_context(viewport=SIZES[size], reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", told)
        page.on("pageerror", lambda error: bad.append(str(error)))
        page.on("request", lambda request: request.url.startswith(at) or bad.append(request.url))
        page.goto(f"{at}/{where}")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert bad == []


@pytest.fixture
def session(http: httpx.Client) -> str:
    """A session that talked, and read a document."""
    name = f"s-{uuid.uuid4()}"
    said = [{"role": "user", "content": FACT + YEARS}, {"role": "assistant", "content": "Good."}]
    http.post(f"/v1/sessions/{name}/messages", json={"messages": said}).raise_for_status()
    lease = {"name": "lease", "text": " ".join(f"The rent of year {n} is {n}0 euros." for n in range(12))}
    http.post(f"/v1/sessions/{name}/documents", json=lease).raise_for_status()
    return name


def messages(http: httpx.Client, session: str) -> list[str]:
    found = http.get(f"/v1/sessions/{quote(session, safe='')}/messages").json()
    return [one["content"] for one in found.get("data", [])]


def until_there(page: Page, held: list[Route]) -> None:
    """Wait for a request that is left waiting."""
    for _ in range(150):
        if held:
            return
        page.wait_for_timeout(100)
    raise AssertionError("nothing was asked")


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_role("button", name="Send").click()


def confirm(page: Page, button: str) -> None:
    page.get_by_role("dialog").get_by_role("button", name=button).click()


def test_a_talk_is_begun_answered_piece_by_piece_and_remembered(visit: Opened, http: httpx.Client) -> None:
    page, name = visit(), f"new/{uuid.uuid4()} ü"
    expect(page.get_by_text("No session is open")).to_be_visible()
    page.get_by_label("New session").fill(name)
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("heading", name=name)).to_be_focused()
    page.evaluate(
        "window.pieces = 0; new MutationObserver(all => window.pieces += all.filter(one => "
        "one.target.closest?.('[aria-busy=true]')).length).observe(document.getElementById('messages'), "
        "{subtree: true, childList: true})"
    )
    ask(page, "Where is the key?")
    expect(page.locator("#messages li")).to_have_count(2)
    expect(page.locator("#messages li").nth(1)).to_contain_text("behind the green door")
    expect(page.get_by_role("status")).to_contain_text("Answered from")
    assert page.evaluate("window.pieces") > 3
    assert messages(http, name) == ["Where is the key?", "It hangs behind the green door, as you said."]
    expect(page.get_by_role("navigation").get_by_role("link", name=name)).to_have_attribute("aria-current", "page")
    page.reload()
    expect(page.locator("#messages li")).to_have_count(2)


def test_what_is_said_while_its_session_still_opens_stays_to_be_seen(visit: Opened, gate: Gate) -> None:
    page, name = visit(), f"slow-{uuid.uuid4()}"
    held: list[Route] = []
    page.route(f"**/v1/sessions/{name}", lambda route: route.continue_() if held else held.append(route))
    page.get_by_label("New session").fill(name)
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("heading", name=name)).to_be_focused()
    gate.open.clear()
    try:
        ask(page, "Where is the key?")
        expect(page.locator("#messages li")).to_have_count(2)
        with page.expect_response(f"**/v1/sessions/{name}"):
            held[0].continue_()
        page.unroute(f"**/v1/sessions/{name}")
        page.wait_for_timeout(200)
        expect(page.locator("#messages li")).to_have_count(2)
    finally:
        gate.open.set()
    expect(page.locator("#messages li").nth(1)).to_contain_text("behind the green door")
    expect(page.locator("#messages li")).to_have_count(2)


def test_an_answer_that_is_stopped_leaves_no_trace(visit: Opened, http: httpx.Client, session: str, gate: Gate) -> None:
    page = visit(f"#session/{session}")
    before = messages(http, session)
    expect(page.locator("#messages li")).to_have_count(len(before))
    gate.open.clear()
    try:
        ask(page, "Where is the key?")
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("status")).to_contain_text("nothing was remembered")
    finally:
        gate.open.set()
    expect(page.get_by_label("Message", exact=True)).to_have_value("Where is the key?")
    expect(page.locator("#messages li")).to_have_count(len(before))
    assert messages(http, session) == before


def test_an_answer_that_cannot_be_looked_at_afterwards_stays_and_is_remembered(
    visit: Opened, http: httpx.Client, session: str
) -> None:
    """The page said that nothing was remembered, and put the question back."""
    page = visit(f"#session/{session}")
    expect(page.locator("#messages .held").first).not_to_be_empty()
    before = messages(http, session)
    page.route(f"**/v1/sessions/{session}", lambda route: route.fulfill(status=503, body="{}"))
    ask(page, "Where is the key?")
    expect(page.get_by_role("alert")).to_contain_text("503")
    expect(page.get_by_role("status")).to_contain_text("Answered from")
    expect(page.get_by_label("Message", exact=True)).to_have_value("")
    expect(page.locator("#messages li")).to_have_count(len(before) + 2)
    expect(page.locator("#messages li").last).to_contain_text("behind the green door")
    assert messages(http, session)[len(before) :][0] == "Where is the key?"
    page.unroute(f"**/v1/sessions/{session}")
    ask(page, "And now?")
    expect(page.locator("#messages li[data-place]")).to_have_count(len(before) + 4)
    expect(page.locator("#messages li")).to_have_count(len(before) + 4)


def test_an_answer_that_was_whole_when_it_was_lost_is_told_as_remembered(visit: Opened, http: httpx.Client) -> None:
    page, name = visit(), f"lost-{uuid.uuid4()}"
    page.get_by_label("New session").fill(name)
    page.get_by_role("button", name="Open").click()

    def cut(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=answer.text().replace("data: [DONE]", ""))

    page.route("**/v1/chat/completions", cut)
    ask(page, "Where is the key?")
    expect(page.get_by_role("status")).to_contain_text("it is remembered")
    expect(page.get_by_label("Message", exact=True)).to_have_value("")
    expect(page.locator("#messages li[data-place]")).to_have_count(2)
    assert len(messages(http, name)) == 2


def test_what_comes_late_of_another_session_is_not_shown(visit: Opened, http: httpx.Client, session: str) -> None:
    """Its messages took the place of those of the session that was opened meanwhile."""
    other, held = f"other-{uuid.uuid4()}", list[Route]()
    said = {"messages": [{"role": "user", "content": f"Other {n}."} for n in range(5)]}
    http.post(f"/v1/sessions/{other}/messages", json=said).raise_for_status()
    page = visit()
    page.route(f"**/v1/sessions/{session}/messages*", lambda route: held.append(route))
    page.goto(f"{http.base_url}#session/{session}")
    until_there(page, held)
    page.goto(f"{http.base_url}#session/{other}")
    expect(page.locator("#messages .held").nth(4)).not_to_be_empty()
    with page.expect_response(f"**/v1/sessions/{session}/messages*"):
        held[0].continue_()
    page.locator("#query").fill("Other")
    with page.expect_response("**/search"):
        page.locator("#query").press("Enter")
    page.wait_for_timeout(100)
    expect(page.locator("#messages li")).to_have_count(5)
    expect(page.locator("#messages li").first).to_contain_text("Other 0.")


def test_what_was_asked_of_a_session_is_not_done_to_the_next_one(
    visit: Opened, http: httpx.Client, session: str
) -> None:
    """A session that was opened while the page asked whether to forget another one was forgotten in its place."""
    other = f"other-{uuid.uuid4()}"
    http.post(f"/v1/sessions/{other}/messages", json={"messages": [{"role": "user", "content": "Hi"}]})
    page = visit(f"#session/{session}")
    expect(page.locator("#messages .held").first).not_to_be_empty()
    page.get_by_role("button", name="Forget this session").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.evaluate(f"location.hash = '#session/{other}'")  # as going back does
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("#messages li")).to_have_count(1)
    assert [http.get(f"/v1/sessions/{name}").status_code for name in (session, other)] == [200, 200]


def test_the_newest_prefix_counts(visit: Opened, http: httpx.Client) -> None:
    """What was found for an older prefix came late, and took its place."""
    held, mine = list[Route](), uuid.uuid4().hex
    for name in (f"{mine}-one", f"{mine}-two"):
        http.post(f"/v1/sessions/{name}/messages", json={"messages": [{"role": "user", "content": "Hi"}]})
    page = visit()
    expect(page.locator("#model")).not_to_be_empty()
    page.route(re.compile(f"/v1/sessions\\?prefix={mine}&"), lambda route: held.append(route))
    page.locator("#prefix").fill(mine)
    until_there(page, held)
    page.locator("#prefix").fill(f"{mine}-one")
    expect(page.locator("#sessions li")).to_have_count(1)
    with page.expect_response(re.compile(f"/v1/sessions\\?prefix={mine}&")):
        held[0].continue_()
    page.wait_for_timeout(100)
    expect(page.locator("#sessions li")).to_have_count(1)


def test_two_tabs_that_speak_at_once_are_both_remembered(
    visit: Opened, http: httpx.Client, session: str, gate: Gate
) -> None:
    tabs, before = [visit(f"#session/{session}") for _ in range(2)], messages(http, session)
    for page in tabs:
        expect(page.locator("#messages .held").first).not_to_be_empty()
    gate.open.clear()
    try:
        for n, page in enumerate(tabs):
            ask(page, f"Where is the key of tab {n}?")
    finally:
        gate.open.set()
    for page in tabs:
        expect(page.get_by_role("status")).to_contain_text("Answered from")
        expect(page.get_by_role("alert")).to_be_hidden()
    said = messages(http, session)[len(before) :]
    assert sorted(text for text in said if "tab" in text) == [f"Where is the key of tab {n}?" for n in range(2)]
    assert len(said) == 4


def test_a_session_that_is_forgotten_while_it_answers_stays_forgotten(
    visit: Opened, http: httpx.Client, session: str, gate: Gate
) -> None:
    page = visit(f"#session/{session}")
    expect(page.locator("#messages .held").first).not_to_be_empty()
    gate.open.clear()
    try:
        ask(page, "Where is the key?")
        page.get_by_role("button", name="Forget this session").click()
        confirm(page, "Forget all of it")
        expect(page.get_by_role("status")).to_contain_text("It is forgotten")
    finally:
        gate.open.set()
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.get_by_label("Message", exact=True)).to_have_value("Where is the key?")
    expect(page.locator("#messages li")).to_have_count(0)
    assert http.get(f"/v1/sessions/{session}").status_code == 404


def test_the_memory_is_laid_open(visit: Opened, http: httpx.Client, session: str) -> None:
    page = visit(f"#session/{session}")
    info = http.get(f"/v1/sessions/{session}").json()
    memory = page.get_by_role("complementary", name="Memory")
    expect(memory.get_by_role("img")).to_have_attribute("aria-label", re.compile(r"folded 4x: [\d,]+ tokens, raw: \d+"))
    expect(memory.locator("dl")).to_contain_text(f"{info['slots']:,} of {info['budget']:,}")
    first, last = page.locator("#messages .held").nth(0), page.locator("#messages .held").nth(1)
    expect(first).to_have_text(re.compile(r"4x \d+"))
    expect(last).to_have_text(re.compile(r"raw \d+"))
    lease = memory.locator("#documents li")
    expect(lease).to_contain_text(re.compile(r"lease\d+ tokens: 4x"))
    lease.locator("summary").click()
    expect(lease).to_contain_text("The rent of year 9 is 90 euros.")


@pytest.mark.parametrize("kind", ["session", "context"])
def test_passages_that_were_found_are_marked_in_the_text(
    visit: Opened, http: httpx.Client, session: str, kind: str
) -> None:
    http.delete(f"/v1/sessions/{session}/messages/lease").raise_for_status()
    http.put(f"/v1/contexts/{session}/documents/shed", json={"text": FACT + YEARS}).raise_for_status()
    page = visit(f"#{kind}/{session}")
    page.get_by_label("Find passages about").fill("Where is the key of the shed?")
    page.get_by_role("button", name="Find").click()
    expect(page.get_by_role("heading", name="Passages that were found")).to_be_visible()
    passage = page.locator("#sources li").nth(1)
    expect(passage).to_contain_text("message 1" if kind == "session" else "document shed")
    passage.get_by_role("button").click()
    marked = page.locator("#messages mark:focus" if kind == "session" else "#documents mark:focus")
    expect(marked).to_have_text(passage.locator(".words").inner_text())


def test_sources_come_with_the_answer_itself(visit: Opened, session: str) -> None:
    page = visit(f"#session/{session}")
    ask(page, "Where is the key of the shed?")
    expect(page.get_by_role("heading", name="Sources of the answer")).to_be_visible()
    expect(page.locator("#sources li .words").first).to_be_visible()
    expect(page.locator("#messages mark, #documents mark").first).to_be_attached()


def test_text_from_memory_is_never_html(visit: Opened, http: httpx.Client) -> None:
    name = f"{EVIL}{uuid.uuid4()}"
    where = f"/v1/sessions/{quote(name, safe='')}"
    said = [{"role": "user", "content": EVIL}, {"role": "assistant", "content": f"{EVIL} I see."}]
    http.post(f"{where}/messages", json={"messages": said}).raise_for_status()
    http.post(f"{where}/documents", json={"name": EVIL, "text": f"{EVIL} and {FACT}" * 9}).raise_for_status()
    put = {"text": f"{EVIL} {FACT}"}
    http.put(f"/v1/contexts/{quote(name, safe='')}/documents/{quote(EVIL, safe='')}", json=put).raise_for_status()
    page = visit(f"#session/{quote(name, safe='')}")
    expect(page.get_by_role("heading", name=name)).to_be_visible()
    expect(page.locator("#messages .words").first).to_have_text(EVIL)
    ask(page, EVIL)
    expect(page.get_by_role("status")).to_contain_text("Answered from")
    page.get_by_label("Find passages about").fill(EVIL)
    page.get_by_role("button", name="Find").click()
    page.locator("#documents summary").click()
    expect(page.locator("#documents .words")).to_contain_text(EVIL)
    page.get_by_role("button", name="Forget message 1").click()
    expect(page.get_by_role("dialog")).to_contain_text(EVIL)
    page.keyboard.press("Escape")
    assert page.locator("img:not([role]), b").count() == 0
    assert page.title() == "beacon-memory"


def test_the_browser_itself_refuses_html_and_what_comes_from_elsewhere(browser: Browser, url: str) -> None:
    policy = httpx.get(url).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    with browser.new_page() as page:
        page.goto(url)
        with pytest.raises(PlaywrightError, match="TrustedHTML"):
            page.evaluate("document.body.innerHTML = '<b>x</b>'")
        with pytest.raises(PlaywrightError, match="Failed to fetch"):
            page.evaluate("fetch('http://127.0.0.2:1/')")
    index = httpx.get(url).text
    assert re.findall(r"<script(?! type=\"module\" src=\"/page/)|<style|style=|\bon\w+=|https?://", index) == []
    assert httpx.get(f"{url}/page/files.py").status_code == 404
    assert httpx.get(f"{url}/page/..%2Ffiles.py").status_code == 404


def test_a_message_a_document_and_a_session_are_forgotten_once_that_is_confirmed(
    visit: Opened, http: httpx.Client, session: str
) -> None:
    page = visit(f"#session/{session}")
    forget = page.get_by_role("button", name="Forget message 2")
    forget.click()
    confirm(page, "Keep")
    expect(forget).to_be_focused()
    assert len(messages(http, session)) == 3
    forget.click()
    confirm(page, "Forget it")
    expect(page.get_by_role("status")).to_contain_text("message is forgotten")
    assert "Good." not in messages(http, session)
    page.get_by_role("button", name="Forget the document lease").click()
    confirm(page, "Forget it")
    expect(page.locator("#documents")).to_have_text("none")
    assert len(messages(http, session)) == 1
    page.get_by_role("button", name="Forget this session").click()
    page.keyboard.press("Escape")
    assert http.get(f"/v1/sessions/{session}").status_code == 200
    page.get_by_role("button", name="Forget this session").click()
    confirm(page, "Forget all of it")
    expect(page.get_by_role("status")).to_contain_text("It is forgotten")
    expect(page.locator("#messages li")).to_have_count(0)
    assert http.get(f"/v1/sessions/{session}").status_code == 404


def test_what_has_moved_meanwhile_is_not_forgotten_in_place_of_another(
    visit: Opened, http: httpx.Client, session: str
) -> None:
    said = [
        {"role": "user", "content": "One."},
        {"role": "user", "content": "Two."},
        {"role": "user", "content": "Three."},
    ]
    http.post(f"/v1/sessions/{session}-m/messages", json={"messages": said}).raise_for_status()
    page = visit(f"#session/{session}-m")
    expect(page.locator("#messages .held").last).not_to_be_empty()
    http.delete(f"/v1/sessions/{session}-m/messages/0").raise_for_status()
    page.get_by_role("button", name="Forget message 2").click()
    confirm(page, "Forget it")
    expect(page.get_by_role("alert")).to_contain_text("changed meanwhile")
    assert messages(http, f"{session}-m") == ["Two.", "Three."]


def test_a_branch_is_gone_back_to(visit: Opened, http: httpx.Client, session: str) -> None:
    talk = [{"role": "user", "content": "Hi, it is me."}, {"role": "assistant", "content": "Hello there, who are you?"}]
    for question in ("Where is it?", "And what is it?"):
        said = [
            *talk,
            {"role": "user", "content": "I am Ada, of course."},
            talk[1],
            {"role": "user", "content": question},
        ]
        body = {"model": "scripted", "messages": said, "session_id": f"{session}-b"}
        http.post("/v1/chat/completions", json=body).raise_for_status()
    page = visit(f"#session/{session}-b")
    expect(page.locator("#messages")).to_contain_text("And what is it?")
    page.get_by_role("button", name="Go back to branch").click()
    confirm(page, "Go back")
    expect(page.locator("#messages")).to_contain_text("Where is it?")
    assert "And what is it?" not in messages(http, f"{session}-b")


def test_the_newest_messages_come_first_and_earlier_ones_when_asked_for(
    visit: Opened, http: httpx.Client, session: str
) -> None:
    said = [{"role": "assistant" if n % 2 else "user", "content": f"Number {n}."} for n in range(130)]
    http.post(f"/v1/sessions/{session}/messages", json={"messages": said}).raise_for_status()
    page = visit(f"#session/{session}")
    expect(page.locator("#messages li")).to_have_count(100)
    expect(page.locator("#messages li").last).to_contain_text("Number 129.")
    page.get_by_role("button", name="Earlier messages").click()
    expect(page.locator("#messages li").first).to_contain_text(FACT.strip())
    expect(page.get_by_role("button", name="Earlier messages")).to_be_hidden()


def test_documents_of_a_name_are_read_asked_and_put_in_front(visit: Opened, http: httpx.Client, session: str) -> None:
    name = f"house-{session}"
    put = {"text": "The caretaker of the house is Nora Lind. " * 6}
    http.put(f"/v1/contexts/{name}/documents/staff", json=put).raise_for_status()
    page = visit(f"#context/{name}")
    expect(page.get_by_text("they are not remembered")).to_be_visible()
    ask(page, "Who is the caretaker?")
    expect(page.locator("#messages li")).to_have_count(2)
    expect(page.get_by_role("status")).to_contain_text("Answered from")
    page.get_by_text("Read a text").click()
    page.get_by_label("Its name").fill("rules")
    page.get_by_label("Its text").fill("No dogs in the house. " * 9)
    page.get_by_role("button", name="Read", exact=True).click()
    expect(page.locator("#documents li")).to_have_count(2)
    page.goto(f"{page.url.partition('#')[0]}#session/{session}")
    page.get_by_label("Documents in front").select_option(name)
    ask(page, "Who is the caretaker?")
    expect(page.get_by_role("status")).to_contain_text("Answered from")
    assert session in [one["id"] for one in http.get("/v1/sessions", params={"limit": 1000}).json()["data"]]


def test_a_refusal_is_told_and_the_question_is_kept(visit: Opened, http: httpx.Client, session: str) -> None:
    page = visit(f"#session/{session}")
    expect(page.locator("#messages .held").first).not_to_be_empty()
    http.delete(f"/v1/sessions/{session}").raise_for_status()
    page.get_by_role("button", name="Forget message 1").click()
    confirm(page, "Forget it")
    expect(page.get_by_role("alert")).to_contain_text("no session")
    http.put(f"/v1/contexts/{session}/documents/a", json={"text": FACT}).raise_for_status()
    page.reload()
    page.get_by_label("Documents in front").select_option(session)
    http.delete(f"/v1/contexts/{session}").raise_for_status()
    ask(page, "Where is it?")
    expect(page.get_by_role("alert")).to_contain_text("no context")
    expect(page.get_by_label("Message", exact=True)).to_have_value("Where is it?")


def test_a_server_with_keys_is_opened_by_a_key_that_stays_in_the_tab(visit: Opened, tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    secret = keys.add("acme")
    engine = scripted_engine(lambda seen: "Hello!", None)
    with beacon_server(engine, keys=keys, place=lambda namespace: open_store("memory://")) as guarded:
        page = visit(at=guarded)
        expect(page.get_by_role("alert")).to_contain_text("no API key")
        page.get_by_label("API key").fill("sk-beacon-wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("unknown here")
        page.get_by_label("API key").fill(secret)
        page.get_by_role("button", name="Use").click()
        expect(page.locator("#model")).to_have_text("scripted")
        expect(page.get_by_label("API key")).to_have_value("")
        page.get_by_label("New session").fill("ada")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="ada")).to_be_visible()
        ask(page, "Hi")
        expect(page.locator("#messages")).to_contain_text("Hello!")
        page.reload()
        expect(page.locator("#messages")).to_contain_text("Hello!")
        assert page.evaluate("[localStorage.length, document.cookie, sessionStorage.length]") == [0, "", 1]
        assert secret not in page.url
        page.get_by_role("button", name="Forget", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("no API key")
        assert page.evaluate("sessionStorage.length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", list(SIZES))
def test_it_is_accessible_in_every_size_and_scheme(visit: Opened, session: str, size: str, scheme: str) -> None:
    page = visit(f"#session/{session}", size=size, color_scheme=scheme)
    expect(page.locator("#messages li").last).to_be_visible()
    for panel in ("Sessions", "Memory", "dialog") if size == "phone" else ("", "dialog"):
        if panel == "dialog":
            page.get_by_role("button", name="Forget this session").click()
            expect(page.get_by_role("button", name="Keep")).to_be_focused()
        elif panel:
            button = page.get_by_role("button", name=panel, exact=True)
            button.focus()
            page.keyboard.press("Enter")
            expect(button).to_have_attribute("aria-expanded", "true")
            expect(page.locator("#places" if panel == "Sessions" else "#memory")).to_be_visible()
        found = Axe().run(page)
        told = [f"{one['id']}: {[node['target'] for node in one['nodes']]}" for one in found.response["violations"]]
        assert told == []
        assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) > 384) == (scheme == "light")


def test_a_keyboard_is_enough(visit: Opened, session: str, http: httpx.Client) -> None:
    page = visit(f"#session/{session}", size="phone")
    expect(page.locator("#messages .held").first).not_to_be_empty()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the message field")).to_be_focused()
    for _ in range(20):
        if page.evaluate("document.activeElement.id") == "say":
            break
        page.keyboard.press("Tab")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    page.keyboard.type("One line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("and another?")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("Answered from")
    assert messages(http, session)[-2] == "One line\nand another?"
    live = page.get_by_role("log")
    expect(live).to_have_attribute("aria-live", "polite")
