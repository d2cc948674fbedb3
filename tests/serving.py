"""Serve a page to a test and open it in a headless browser."""

import contextlib
import shutil
from collections.abc import Iterator

_OPTIONS = [
    "--no-sandbox",  # Chromium's own sandbox cannot start as root, which is what containers run as
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--use-fake-device-for-media-stream",  # a camera that shows a moving pattern
    "--use-fake-ui-for-media-stream",
]


@contextlib.contextmanager
def served(page) -> Iterator[str]:
    """Launch a page on a free port of this machine, with the looks it has in earnest; yields its address."""
    import app

    _, url, _ = page.queue().launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, theme=app.theme(), css=app.CSS
    )
    try:
        yield url
    finally:
        page.close(verbose=False)


def chromium_program() -> str | None:
    """The Chromium or Chrome of this machine."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextlib.contextmanager
def chromium() -> Iterator:
    """A headless Chromium under playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_program(), args=_OPTIONS)
        yield browser
        browser.close()
