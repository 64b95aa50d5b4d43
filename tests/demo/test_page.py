"""The live page in a real browser, on the real stack: the demo as a user starts it, on a real Apache Kafka."""

import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Literal

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from demo.broker import ROOT, Broker, free_port
from demo.page.server import serving
from tests import needs
from tests.demo.test_hub import Stage
from tests.demo.test_preflight import free_ports

pytestmark = pytest.mark.kafka

BAR_MS = 500  # from the click to the new list
TRIES = 8  # of a click, on a machine where others work, too
TAKEOVER_MS = 60_000
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def address(demo_variables: dict[str, str], broker: Broker) -> Iterator[str]:
    """The page of a demo that goes on until it is told to end."""
    variables = demo_variables | {"BOOTSTRAP": broker.bootstrap, "RATE": "10", "DURATION": "0"} | free_ports()
    with subprocess.Popen(
        [sys.executable, "-m", "demo"], cwd=ROOT, env=os.environ | variables, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as demo:  # fmt: skip
        assert demo.stdout
        said = []
        for line in demo.stdout:
            said.append(line)
            if found := re.search(r"The live page: (\S+)", line):
                break
        else:
            pytest.fail("".join(said))
        try:
            yield found[1]
        finally:
            demo.send_signal(signal.SIGINT)
            rest = demo.stdout.read()
            assert demo.wait(60) == 0, rest


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = needs.command("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser, address: str) -> Iterator[Page]:
    """The page as somebody new sees it; it must not have complained when the test is over."""
    complaints: list[str] = []
    with chromium.new_context(viewport={"width": 1280, "height": 940}) as context:
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        expect(rows(page)).to_have_count(10, timeout=30_000)
        yield page
        assert complaints == []


def rows(page: Page) -> Locator:
    return page.locator("#list button:visible")


def answered(page: Page, clicks: int, timeout_ms: float = 30_000) -> None:
    """The list that knows of the clicks so far is on the page."""
    expect(page.locator("#status")).to_have_attribute("data-answered", str(clicks), timeout=timeout_ms)


def within_the_bar(page: Page, act: Callable[[int], None], clicks: Iterator[int]) -> None:
    """Click until one list is published, and on the screen, soon enough; the bar stays where it is."""
    seen = []
    for _ in range(TRIES):
        number = next(clicks)
        act(number)
        answered(page, number)
        status = page.locator("#status")
        seen.append((int(status.get_attribute("data-ms") or -1), int(status.get_attribute("data-screen") or -1)))
        if max(seen[-1]) < BAR_MS:
            return
    pytest.fail(f"no click of {TRIES} was answered within {BAR_MS} ms: {seen}")


def test_a_click_changes_the_list_at_once(page: Page) -> None:
    expect(page.get_by_role("heading", level=1)).to_have_text("Click a title. The list changes in milliseconds.")
    expect(page.locator("#list-title")).to_have_text(re.compile("^Everybody.s list$"))
    clicked: list[str] = []

    def click(_number: int) -> None:
        clicked.append(rows(page).nth(2).locator(".title").inner_text())
        rows(page).nth(2).click()

    within_the_bar(page, click, itertools.count(1))
    expect(page.locator("#list-title")).to_have_text("Your list")
    expect(page.locator("#status")).to_contain_text(
        re.compile(r"Published \d+ ms after your click, on this screen after \d+ ms")
    )
    expect(page.locator("#seen")).to_have_text(" · ".join(reversed(clicked)))
    expect(rows(page).first.locator(".why")).to_have_text(re.compile("^(because of Title|popular with everybody)"))
    expect(page.locator("#list")).to_contain_text(re.compile(f"because of {clicked[-1]}"))
    expect(rows(page).first.locator(".score")).to_have_text(re.compile(r"score -?\d+\.\d\d"))
    expect(rows(page).first.locator(".ms")).to_have_text(re.compile(r"^\+\d+ ms$"))
    assert clicked[-1] not in page.locator("#list .title").all_inner_texts(), "what was clicked is not recommended"


def test_the_figures_are_live(page: Page) -> None:
    for name in ("p50", "p99", "events", "lists", "own", "popular"):
        expect(page.locator(f"#{name}")).to_have_text(re.compile(r"^[\d,.]+( %)?$"), timeout=30_000)
    expect(page.locator("#bars")).to_have_attribute("aria-label", re.compile(r"median [\d,.]+ ms"))
    expect(page.locator("#run")).to_contain_text("until Ctrl-C")
    expect(page.locator(".worker")).to_have_count(2)


def test_keyboard_alone_will_do(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the list")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(rows(page).first).to_be_focused()
    page.keyboard.press("Enter")
    answered(page, 1)
    expect(rows(page).first).to_be_focused()
    page.get_by_label("Or find a title").focus()
    page.keyboard.type("title 17")
    page.keyboard.press("Enter")
    answered(page, 2)
    expect(page.locator("#seen")).to_contain_text("Title 17 ·")


def test_a_user_of_the_log_is_watched_and_one_starts_over(page: Page) -> None:
    who = page.get_by_label("You are")
    expect(who.locator("optgroup option").first).to_be_attached(timeout=30_000)
    user = who.locator("optgroup option").first.get_attribute("value")
    who.select_option(user)
    expect(page.locator("#list-title")).to_have_text(f"The list of user {user}")
    expect(page.locator("#status")).to_contain_text(re.compile(r"list published \d+ ms after it reached Kafka"))
    page.get_by_role("button", name="Start over").click()
    expect(page.locator("#list-title")).to_have_text(re.compile("^Everybody.s list$"))
    expect(page.locator("#seen")).to_have_text("nothing yet")


def test_a_worker_is_killed_and_lists_go_on(page: Page) -> None:
    clicks = itertools.count(1)
    within_the_bar(page, lambda _: rows(page).first.click(), clicks)
    mine = page.locator(".worker", has=page.locator(".you:visible"))
    number = re.findall(r"Worker (\d)", mine.inner_text())[0]
    page.get_by_role("button", name=f"Kill -9 worker {number}").click()
    notices = page.locator("#notices")
    expect(notices).to_contain_text(f"Worker {number} killed with kill -9.")
    rows(page).nth(1).click()
    answered(page, next(clicks), TAKEOVER_MS)
    expect(notices).to_contain_text(re.compile(r"Worker \d has taken partitions? [\d, and]+, \d+ s after the kill"))
    within_the_bar(page, lambda _: rows(page).first.click(), clicks)
    page.get_by_role("button", name=f"Bring back worker {number}").click()
    expect(notices).to_contain_text(
        re.compile(rf"Worker {number} has taken partitions? [\d, and]+\."), timeout=TAKEOVER_MS
    )
    expect(page.locator(".worker.down")).to_have_count(0)
    expect(page.locator("#pending")).to_have_text("0", timeout=TAKEOVER_MS)


def test_the_page_says_that_the_demo_has_ended_and_goes_on_with_the_next_one(chromium: Browser) -> None:
    """Its server is the real one; there is nobody behind it."""
    stage = Stage(free_port())
    with chromium.new_context() as context:
        page = context.new_page()
        with serving(stage.app, stage.hub, stage.port):
            page.goto(f"http://localhost:{stage.port}/")
            expect(rows(page)).to_have_count(10)
        expect(page.locator("#status")).to_contain_text("The demo has ended.")
        expect(rows(page).first).to_be_disabled()
        again = Stage(stage.port)
        with serving(again.app, again.hub, again.port):
            expect(rows(page).first).to_be_enabled(timeout=30_000)
            rows(page).nth(4).click()
            expect(page.locator("#seen")).to_have_text("nothing yet")
            expect(page.locator("#status")).to_contain_text("Your click is kept in Kafka.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(chromium: Browser, address: str, scheme: Literal["light", "dark"]) -> None:
    """Nothing is cut off or needs scrolling sideways, in 320 CSS pixels, and text stands out from what is behind."""
    with chromium.new_context(viewport={"width": 320, "height": 640}, color_scheme=scheme) as context:
        page = context.new_page()
        page.goto(address)
        expect(rows(page)).to_have_count(10, timeout=30_000)
        rows(page).first.click()
        answered(page, 1)
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        for selector in ("h1", ".lead", ".row .title", ".row .why", ".row .ms", ".hint", ".worker .kill", "#status b"):
            assert contrast(page.locator(selector).first) >= 4.5, selector


def contrast(element: Locator) -> float:
    """Of the element's text to the nearest background that is painted, by WCAG 2."""
    colours = element.evaluate(
        """(element) => {
            let behind = element;
            const painted = (one) => getComputedStyle(one).backgroundColor;
            while (painted(behind) === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
            return [getComputedStyle(element).color, painted(behind)];
        }"""
    )
    bright, dim = sorted((luminance(colour) for colour in colours), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def luminance(colour: str) -> float:
    channels = [int(text) / 255 for text in re.findall(r"\d+", colour)[:3]]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
