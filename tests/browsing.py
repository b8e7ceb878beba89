"""Chromium, headless: the machine's own."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright import sync_api

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)"
)
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


@contextlib.contextmanager
def launched() -> Iterator["sync_api.Browser"]:
    """Yields a running browser. Not for a whole session: its loop would be in asyncio's way."""
    from playwright import sync_api

    with sync_api.sync_playwright() as playwright:
        # Chromium's sandbox does not start as root, as CI runs.
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@contextlib.contextmanager
def opener(browser: "sync_api.Browser") -> Iterator[Callable[..., "sync_api.Page"]]:
    """Yields a function that opens a page; what fails in a page fails the block."""
    contexts, failures = [], []

    def open_page(url: str, viewport: dict[str, int] = WIDE, **options: object) -> "sync_api.Page":
        context = browser.new_context(viewport=viewport, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: failures.append(error))
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not failures
