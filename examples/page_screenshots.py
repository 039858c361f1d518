"""The pictures of the server's page in docs/server.md: a desktop in light and in dark, and a phone.

    apt-get install chromium
    pip install 'beacon-memory[server]' playwright
    python examples/page_screenshots.py    # or: make screenshots

The page is the real one, served by this process; the answer is the model's own.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from beacon_memory.server.limits import Limits
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.testing import beacon_server

LEASE = """Lease of the flat at 12 Mill Lane
The tenant is Alice Moreau. The landlord is Victor Hall.
The rent is 900 euros a month. The deposit is 1,800 euros.
The lease begins on 1 June 2025 and ends on 4 May 2028. """
ROOMS = "The flat has two rooms, a kitchen, a bath and a cellar. It has been painted in white. " * 6
TALK = [
    ("user", "I live in Lyon, and my dog is called Rex."),
    ("assistant", "You live in Lyon, and your dog is called Rex."),
    ("user", "I will move into the flat in June."),
    ("assistant", "Then I wish you and Rex a good move in June."),
]
SHORT = Limits(default_tokens=48)  # of an answer
PATIENCE = 120_000  # milliseconds, on a busy machine
PICTURES = {
    "page-light.png": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "page-dark.png": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "page-phone.png": {"viewport": {"width": 360, "height": 700}, "color_scheme": "light"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("no chromium here: apt-get install chromium")
    with beacon_server(BeaconEngine(asked.model, "memory://"), limits=SHORT) as url, sync_playwright() as playwright:
        fill(url)
        expect.set_options(timeout=PATIENCE)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, options in PICTURES.items():
            page = browser.new_page(**options)
            page.set_default_timeout(PATIENCE)
            page.goto(f"{url}/#session/alice")
            expect(page.locator("#messages .held").last).not_to_be_empty()
            if name == "page-light.png":
                ask(page)
            page.wait_for_load_state("networkidle")
            path = asked.out / name
            page.screenshot(path=path)
            Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(path, optimize=True)
            print(f"{path}: {path.stat().st_size} bytes")
        browser.close()


def fill(url: str) -> None:
    """A session that read a lease and talked, and a few others."""
    with httpx.Client(base_url=f"{url}/v1", timeout=600) as http:
        lease = {"name": "lease", "text": LEASE + ROOMS}
        http.post("/sessions/alice/documents", json=lease).raise_for_status()
        said = [{"role": role, "content": text} for role, text in TALK]
        http.post("/sessions/alice/messages", json={"messages": said}).raise_for_status()
        for name in ("bob", "carol", "support/4711"):
            where = f"/sessions/{name.replace('/', '%2F')}/messages"
            http.post(where, json={"messages": said[:2]}).raise_for_status()
        http.put("/contexts/house-rules/documents/dogs", json={"text": "Dogs are welcome."}).raise_for_status()


def ask(page: Page) -> None:
    """Ask what stands in the lease, and show the passage."""
    page.get_by_label("Message", exact=True).fill("Who is the landlord of the flat?")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("status")).to_contain_text("Answered from")
    expect(page.locator("#messages .held").last).not_to_be_empty()
    if page.locator("#sources button").count():
        page.locator("#sources button").first.click()
        page.locator("#documents mark").first.wait_for()
    page.locator("#memory").evaluate("panel => panel.scrollTop = 0")


if __name__ == "__main__":
    main()
