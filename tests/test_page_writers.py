"""Writers on the page, in a headless browser: what the server has can be chosen, and nothing is lost when it fails."""

import httpx
import pytest

import app
from tests.page_steps import end_of_story, passages, upload, visit, wait_for_passages, wait_for_story
from tests.serving import served
from tests.support.chat_server import KEY, running_chat
from tests.test_page import HOSTILE
from tests.tiny import tiny_pipeline

pytestmark = pytest.mark.browser


def test_a_story_by_the_endpoint(browser, example_photos, monkeypatch):
    pipe = tiny_pipeline()
    with running_chat() as chat, served(app.Page(lambda: pipe).blocks) as url, visit(browser, url) as page:
        for name, value in (("BASE_URL", chat.url), ("API_KEY", KEY), ("MODEL", "org/tale")):
            monkeypatch.setenv(f"OPENAI_{name}", value)
        upload(page, example_photos[0])
        page.locator("#captions li").first.wait_for()
        page.get_by_label("Horror").check()
        page.get_by_role("button", name="More wishes").click()
        page.get_by_label("tale, a language model elsewhere: captions and story are sent there").check()
        chat.story, chat.pause = f"**Title**\n\nDog # ran and {HOSTILE} barked at all of us.", 0.2
        page.get_by_role("button", name="Tell me a story").click()
        half = wait_for_story(page, "Dog 1 ran")
        text = end_of_story(page)
        assert "barked at all of us." in text and "barked" not in half and "Title" not in text
        assert passages(page)[0].startswith(f"Dog 1 ran and {HOSTILE} barked") and "written by endpoint" in text
        assert page.evaluate("window.fooled") is None

        chat.statuses = [(429, {"Retry-After": "90"}, {})]
        page.locator("#own-sentence textarea").fill("Then the lights went out.")
        page.get_by_role("button", name="Go on").click()
        page.get_by_text("try again in 2 minutes").wait_for()
        wait_for_passages(page, 2)  # what was told, and the visitor's own sentence
        assert passages(page)[1] == "Then the lights went out."

        chat.story = "Words " * 4000
        page.locator("#own-sentence textarea").fill("")
        page.get_by_role("button", name="Go on").click()
        wait_for_story(page, "Words Words")
        page.get_by_role("button", name="Stop").click()
        page.get_by_role("button", name="Tell me a story").wait_for()
        assert chat.hung_up.wait(60)  # a write of the server's failed before it had said all
        *_, stopped = passages(page)
        assert (
            len(passages(page)) == 3
            and len(stopped.split()) < 900
            and KEY not in page.content() + httpx.get(f"{url}config").text
        )
