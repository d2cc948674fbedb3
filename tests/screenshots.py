"""Make the pictures of the page that README shows, with the models in this repository.

    python -m tests.screenshots

One story at seed 1, a look at one of its words, a style made of a made-up book, a table of four photos.
"""

import io
from typing import Any

from PIL import Image

from tests.page_steps import end_of_story, open_tab, tell
from tests.serving import REPOSITORY, chromium, running_app

FOLDER = REPOSITORY / "hub_configs" / "pictale-default"
PHOTOS = sorted((FOLDER / "examples").glob("*.jpg"))
BOOK = "The wind had dropped by evening, and the boats lay still. Marit counted the lamps along the quay.\n\n" * 120
SETTLED = 1000  # milliseconds for pictures to be drawn
WIDTH, QUALITY = 920, 50  # of the files: four of them are a fifth of a megabyte


def picture(page: Any, name: str) -> None:
    page.wait_for_timeout(SETTLED)
    seen = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    seen = seen.resize((WIDTH, seen.height * WIDTH // seen.width), Image.Resampling.LANCZOS)
    seen.save(FOLDER / f"{name}.jpg", quality=QUALITY, optimize=True)
    print(FOLDER / f"{name}.jpg")


def visit(page: Any, url: str) -> None:
    page.goto(url)
    page.get_by_role("button", name="More wishes").click()
    page.locator("#seed input, #seed textarea").fill("1")
    page.get_by_role("button", name="More wishes").click()
    page.get_by_label("Fairy tale").first.check()
    tell(page, next(photo for photo in PHOTOS if photo.stem == "horses"))
    page.get_by_role("button", name="Go on").click()
    end_of_story(page)
    page.evaluate("window.scrollTo(0, 0)")
    picture(page, "page")
    open_tab(page, "Look closer")
    page.locator("#words label").filter(has_text="people").first.click()
    page.locator("#heat img").wait_for()
    picture(page, "closer")
    open_tab(page, "Your style")
    book = {"name": "tales of the harbour.txt", "mimeType": "text/plain", "buffer": BOOK.encode()}
    page.locator("#book input[type=file]").set_input_files(book)
    page.locator("#book").get_by_text("tales").first.wait_for()
    page.locator("#style-name textarea, #style-name input").fill("harbour")
    page.get_by_role("button", name="Make my style").click()
    page.locator("#style-made").get_by_text("harbour").wait_for()
    picture(page, "style")
    open_tab(page, "Many photos")
    page.locator("#files input[type=file]").set_input_files(PHOTOS[:4])
    page.locator("#files").get_by_text(PHOTOS[3].stem[:4]).first.wait_for()
    page.get_by_role("button", name="Caption them").click()
    page.get_by_text("4 of 4 photos").wait_for()
    picture(page, "many")


def main() -> None:
    with chromium() as browser, running_app() as (url, _):
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(120_000)
        visit(page, url)


if __name__ == "__main__":
    main()
