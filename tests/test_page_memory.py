"""Sentences that the pipeline remembers, on the page: an option where there are any, nothing where there are none."""

import pytest

import app
from tests.fakes import FakePipeline
from tests.page_steps import open_tab, tell, upload, visit
from tests.serving import served

pytestmark = pytest.mark.browser
WAYS = "What the story goes by"


def test_a_story_goes_by_what_is_remembered(browser, example_photos):
    pipeline = FakePipeline(words=3, pause=0.2)
    with served(app.Page(lambda: pipeline).blocks) as url, visit(browser, url) as page:
        captions = page.locator("#captions")
        page.get_by_role("button", name="More wishes").click()
        upload(page, example_photos[0])
        page.get_by_role("radiogroup", name=WAYS).or_(page.get_by_text(WAYS)).first.wait_for()
        assert "a thing of colour" in captions.inner_text()
        assert not captions.get_by_text("Something like thing.").is_visible()
        captions.locator("summary").click()  # by both unless asked for otherwise
        captions.get_by_text("Something like thing.").wait_for()
        page.get_by_label("What it remembers").check()
        captions.locator("summary").wait_for(state="detached")
        captions.get_by_text("Something like thing.").wait_for()
        assert "a thing of colour" not in captions.inner_text()
        assert "(0.50)" in captions.inner_text()
        tell(page)
        assert pipeline.calls[-1]["given"] == [
            "Something like thing.",
            "Something like shape.",
            "Something like light.",
        ]
        open_tab(page, "Look closer")
        page.locator("#beams label", has_text="Something like shape.").wait_for()
        page.get_by_text("it remembers the sentence as a whole").wait_for()
        open_tab(page, "Tell")
        page.get_by_label("Its own words").check()
        captions.get_by_text("a thing of colour").first.wait_for()
        assert captions.locator("ol").count() == 1
        tell(page)
        assert len(pipeline.calls[-1]["given"]) == 3
        page.get_by_label("Both").check()
        captions.locator("summary").wait_for()
        assert captions.locator("ol").count() == 2
        tell(page)
        assert len(pipeline.calls[-1]["given"]) == 3  # who is there is said by what was written for the photo
        open_tab(page, "Look closer")
        page.locator("#beams label", has_text="a shape of colour").wait_for()
        assert page.locator("#beams label").count() == 3


def test_without_a_memory_there_is_no_choice(browser, example_photos):
    pipeline = FakePipeline(words=3, pause=0.2)
    pipeline.can_retrieve = False
    with served(app.Page(lambda: pipeline).blocks) as url, visit(browser, url) as page:
        page.get_by_role("button", name="More wishes").click()
        tell(page, example_photos[0])
        assert not page.get_by_text(WAYS).is_visible()
        open_tab(page, "Look closer")
        page.locator("#scores table").wait_for()
        assert "remembers" not in page.locator("#scores").inner_text()
