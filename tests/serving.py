"""Serve a page to a test and open it in a headless browser; run app.py as its visitors find it."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

_OPTIONS = [
    "--no-sandbox",  # Chromium's own sandbox cannot start as root, which is what containers run as
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--use-fake-device-for-media-stream",  # a camera that shows a moving pattern
    "--use-fake-ui-for-media-stream",
]


@contextlib.contextmanager
def served(page, **settings) -> Iterator[str]:
    """Launch a page on a free port of this machine, as it is launched in earnest; yields its address."""
    import app

    try:
        yield app.serve(page, server_name="127.0.0.1", quiet=True, **settings)
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


@contextlib.contextmanager
def running_app(**environment: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """app.py in a process of its own, started from another folder on a free port; yields its address once it answers.

    Args:
        environment: Variables that it is to have beside those of this process.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment |= {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    with tempfile.TemporaryDirectory() as elsewhere:
        server = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "app.py")],
            cwd=elsewhere,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,  # what a script prints itself may be read by a program
        )
        try:
            url = f"http://127.0.0.1:{port}/"
            _wait_for_page(url, server)
            yield url, server
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait_for_page(url: str, server: subprocess.Popen, seconds: float = 120) -> None:
    """Return once the page answers; give up when the server has ended or time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"app.py ended with exit code {server.returncode} before its page was up.")
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise SystemExit(f"The page was not up after {seconds:.0f} seconds.")
