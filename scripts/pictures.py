"""Pictures of the live page for the README: `python scripts/pictures.py [ADDRESS]`, while `make demo` runs.

Writes docs/page-light.png and docs/page-dark.png. Look at them, and compress them (pngquant), before you commit.
"""

import shutil
import sys
from pathlib import Path
from typing import Literal, get_args

from playwright.sync_api import expect, sync_playwright

DOCS = Path(__file__).resolve().parents[1] / "docs"
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")
CLICKS = ("Twelve Monkeys", "Fargo", "Toy Story", "Get Shorty")
Scheme = Literal["light", "dark"]


def main(address: str) -> None:
    """Click some titles as a new user, in both colour schemes."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for scheme in get_args(Scheme):
            page = browser.new_page(color_scheme=scheme, viewport={"width": 1240, "height": 884})
            page.goto(address)
            for number, title in enumerate(CLICKS, start=1):
                page.get_by_label("Or find a title").fill(title)
                page.get_by_role("button", name="Click it").click()
                expect(page.locator("#status")).to_have_attribute("data-answered", str(number), timeout=30_000)
            page.evaluate("Promise.all(document.getAnimations().map((one) => one.finished))")
            page.screenshot(path=DOCS / f"page-{scheme}.png")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:9180/")
