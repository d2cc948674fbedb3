"""Start the page as a visitor would, give it a photo in a real browser, wait for the story, take a picture.

    python -m tests.smoke [--screenshot FILE]

The server is started from another folder on a free port of this machine, and stopped at the end. Exit code 0 means that
a story came; the times printed count from the start of the process.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.serving import chromium

REPOSITORY = Path(__file__).resolve().parent.parent
PHOTO = REPOSITORY / "hub_configs" / "pictale-default" / "examples" / "dog.jpg"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_page(url: str, server: subprocess.Popen, seconds: float = 120) -> None:
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


def visit(url: str, screenshot: Path, started: float) -> None:
    """Upload, press the button, wait for the end of the story, look at a word."""
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(120_000)
        page.goto(url)
        tell = page.get_by_role("button", name="Tell me a story")
        tell.wait_for()
        print(f"page      {time.monotonic() - started:5.1f} s", flush=True)
        page.locator("input[type=file]").first.set_input_files(PHOTO)
        page.locator("#captions li").first.wait_for()
        print(f"captions  {time.monotonic() - started:5.1f} s", flush=True)
        for caption in page.locator("#captions li").all_inner_texts():
            print(f"    {caption.strip()}")
        page.get_by_label("Adventure").check()
        tell.click()
        stop = page.get_by_role("button", name="Stop")
        stop.wait_for()
        stop.wait_for(state="hidden")
        tell.wait_for()
        story = "\n".join(page.locator("#story .passage").all_inner_texts())
        print(f"story     {time.monotonic() - started:5.1f} s\n    {story}", flush=True)
        screenshot.parent.mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(500)
        page.screenshot(path=screenshot, full_page=True)
        page.get_by_role("tab", name="Look closer").click()
        page.locator("#words label").nth(1).click()
        page.locator("#heat img").wait_for()
        page.wait_for_timeout(1000)
        page.screenshot(path=screenshot.with_stem(screenshot.stem + "-closer"), full_page=True)
        if len(story.split()) < 10:
            raise SystemExit("The page told no story.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--screenshot", type=Path, default=REPOSITORY / ".ci" / "artefacts" / "page.png")
    screenshot = parser.parse_args().screenshot.absolute()
    port = free_port()
    environment = {**os.environ, "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as elsewhere:
        server = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "app.py")], cwd=elsewhere, env=environment, stdin=subprocess.DEVNULL
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for_page(url, server)
            visit(url, screenshot, started)
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
    print(f"picture   {screenshot}")


if __name__ == "__main__":
    main()
