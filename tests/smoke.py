"""Start the page as a visitor would, give it a photo in a real browser, wait for the story, take a picture.

    python -m tests.smoke [--screenshot FILE]

The browser is open before the server's process starts, from another folder on a free port of this machine. The times
printed count from that start: what somebody waits for who has just typed `python app.py`. Exit code 0 means that a
story came.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from tests.serving import REPOSITORY, chromium, running_app

PHOTO = REPOSITORY / "hub_configs" / "pictale-default" / "examples" / "dog.jpg"


def visit(page: Any, url: str, screenshot: Path, started: float) -> None:
    """Upload, press the button, wait for the end of the story, look at a word."""
    page.goto(url)
    tell = page.get_by_role("button", name="Tell me a story")
    tell.wait_for()
    print(f"page      {time.monotonic() - started:5.1f} s", flush=True)
    page.locator("input[type=file]").first.set_input_files(PHOTO)
    page.locator("#captions li").first.wait_for()
    print(f"captions  {time.monotonic() - started:5.1f} s", flush=True)
    for caption in page.locator("#captions li:visible").all_inner_texts():
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
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(120_000)
        page.goto("about:blank")
        started = time.monotonic()
        with running_app() as (url, _):
            visit(page, url, screenshot, started)
    print(f"picture   {screenshot}")


if __name__ == "__main__":
    main()
