"""Debian's Chromium, driven by Playwright: a page that remembers what went wrong on it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import ConsoleMessage, Page, expect, sync_playwright

from servers import require

WIDTH_PX = 1400
HEIGHT_PX = 800
HARMLESS = "ResizeObserver loop"
"""Chromium's notice that a layout took more than one frame, as on a loaded machine; the page is right in the next."""

PATIENCE_MS = 30_000
"""Longest time for anything to appear; a loaded machine takes seconds, an idle one a tenth of one."""

# Asked on every page; a server without users answers 404, which Chromium reports as an error.
MLFLOWS_OWN = "/ajax-api/2.0/mlflow/users/current"


@contextmanager
def opened(address: str, *args: str, strict: bool = True) -> Iterator[Page]:
    """Open an address in a browser that has never been there; in the end, no error may have been reported.

    Args:
        address: the page.
        args: further arguments of Chromium.
        strict: whether errors on the page fail the test.
    """
    program = require("chromium", "chromium")
    complaints: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        own = message.location["url"].endswith(MLFLOWS_OWN) or HARMLESS in message.text
        if message.type == "error" and not own:
            complaints.append(f"{message.text} ({message.location['url']})")

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", *args])
        page = browser.new_page(
            viewport={"width": WIDTH_PX, "height": HEIGHT_PX}, locale="en-US", timezone_id="UTC"
        )
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        page.on("console", heard)
        page.on("pageerror", lambda error: HARMLESS in str(error) or complaints.append(str(error)))
        page.goto(address)
        yield page
        browser.close()
    assert not strict or not complaints, "\n".join(complaints)


def close_notices(page: Page) -> None:
    """Close MLflow's notice of the shared view, and its assistant, which takes a quarter of the window."""
    for title in ("Hide banner", "Close"):
        if (button := page.get_by_role("button", name=title, exact=True)).count():
            button.click()


def keep(page: Page, name: str, height_px: int = HEIGHT_PX, width_px: int = WIDTH_PX) -> None:
    """Take a picture of a page that has settled, where `CONVOY_SCREENSHOTS` names a folder for it."""
    folder = os.environ.get("CONVOY_SCREENSHOTS")
    if not folder:
        return
    close_notices(page)
    page.set_viewport_size({"width": width_px, "height": height_px})
    page.mouse.move(width_px - 200, 20)  # nothing is hovered over
    page.wait_for_timeout(1500)  # charts grow into their places
    Path(folder).mkdir(parents=True, exist_ok=True)
    page.screenshot(path=Path(folder) / f"{name}.png")
