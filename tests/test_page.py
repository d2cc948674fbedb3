"""The page as a person meets it, in a headless browser over a pipeline without models."""

import contextlib
import re
from pathlib import Path

import pytest
from PIL import Image

import app
from tests.fakes import FakePipeline
from tests.serving import served

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=window.fooled=1>"


@pytest.fixture(scope="module")
def pipeline() -> FakePipeline:
    return FakePipeline(words=30, pause=0.1)


@pytest.fixture(scope="module")
def url(browser, pipeline):
    with served(app.Page(lambda: pipeline).blocks) as url:
        yield url


@contextlib.contextmanager
def visit(browser, url, width=1280, permissions=()):
    """A fresh visit, which must end without an error in the browser's console."""
    context = browser.new_context(viewport={"width": width, "height": 850}, permissions=list(permissions))
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    page.get_by_role("button", name="Tell me a story").wait_for()
    yield page
    context.close()
    assert not errors


@pytest.fixture
def page(browser, url):
    with visit(browser, url) as page:
        yield page


def upload(page, path: Path) -> None:
    page.locator("input[type=file]").first.set_input_files(path)


def story(page):
    return page.locator("#story textarea")


def wait_for_story(page, pattern: str) -> str:
    page.wait_for_function(
        "pattern => new RegExp(pattern).test(document.querySelector('#story textarea').value)", arg=pattern
    )
    return story(page).input_value()


@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_photo_style_story(browser, url, width, example_photos):
    with visit(browser, url, width) as page:
        tell_a_story(page, example_photos)
        assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out


def tell_a_story(page, example_photos):
    upload(page, example_photos[0])
    captions = page.locator("#captions label")
    captions.first.wait_for()
    assert captions.count() == 3
    assert "a thing of colour" in captions.first.inner_text()
    assert "(61%)" in captions.first.inner_text()
    assert story(page).input_value() == ""

    page.get_by_label("Horror").check()
    page.get_by_role("button", name="Tell me a story").click()
    half = wait_for_story(page, "word3")
    whole = wait_for_story(page, "word29")
    assert whole.startswith(half) and len(half) < len(whole)  # it grew before our eyes
    seed = re.match(r"Seed (\d+), horror: a thing of colour", whole).group(1)
    page.get_by_text(f"Horror, seed {seed}.").wait_for()
    page.get_by_role("button", name="Tell me a story").wait_for()


def test_photo_from_the_camera(browser, url):
    with visit(browser, url, permissions=["camera"]) as page:
        page.get_by_label("Capture from camera").click()
        page.get_by_text("Click to Access Webcam").click()
        page.wait_for_function("[...document.querySelectorAll('video')].some(video => video.videoWidth > 0)")
        page.wait_for_timeout(500)  # the first frames are empty
        page.get_by_label("capture photo").click()
        page.locator("#captions label").first.wait_for()


def test_photo_from_the_clipboard(browser, url):
    with visit(browser, url, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.evaluate(
            """async () => {
                const canvas = new OffscreenCanvas(64, 48);
                const paint = canvas.getContext("2d");
                paint.fillStyle = "#0000ff";
                paint.fillRect(0, 0, 64, 48);
                const blob = await canvas.convertToBlob({type: "image/png"});
                await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
            }"""
        )
        page.get_by_label("Paste from clipboard").click()
        page.locator("#captions label", has_text="#0000ff").first.wait_for()


def test_words_show_where_it_looked(page, example_photos):
    upload(page, example_photos[0])
    words = page.locator("#words label")
    words.first.wait_for()
    assert [word.strip() for word in words.all_inner_texts()][:3] == ["a", "thing", "of"]
    heat = page.locator("#sight img")
    assert heat.count() == 0

    words.nth(1).click()
    heat.wait_for()
    first = heat.get_attribute("src")
    words.nth(3).click()
    page.wait_for_function("src => document.querySelector('#sight img').src != src", arg=first)
    size = heat.evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])")
    assert size == list(Image.open(example_photos[0]).size)

    page.locator("#captions label").nth(2).click()
    page.locator("#words label", has_text="light").wait_for()
    assert heat.count() == 0 or not heat.is_visible()
    words.nth(1).click()
    heat.wait_for()


def test_example_seed_and_dice(page):
    page.locator("#examples button.gallery-item").nth(1).click()
    page.locator("#captions label").first.wait_for()
    tell, seed = page.get_by_role("button", name="Tell me a story"), page.locator("#seed input, #seed textarea")
    seed.fill("11")
    tell.click()
    first = wait_for_story(page, "^Seed 11, everyday.*word29")
    page.get_by_role("button", name="Roll").click()
    page.wait_for_function("document.querySelector('#seed input, #seed textarea').value != '11'")
    rolled = seed.input_value()
    tell.wait_for()
    tell.click()
    assert wait_for_story(page, f"^Seed {rolled}, .*word29") != first


def test_stop(page, example_photos, pipeline):
    upload(page, example_photos[0])
    page.locator("#captions label").first.wait_for()
    page.get_by_role("button", name="Tell me a story").click()
    wait_for_story(page, "word1")
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Tell me a story").wait_for()
    page.wait_for_timeout(300)  # what was on its way has come
    written, shown = pipeline.written, story(page).input_value()
    page.wait_for_timeout(500)
    assert (pipeline.written, story(page).input_value()) == (written, shown)
    assert "word29" not in shown
    page.get_by_role("button", name="Tell me a story").click()
    wait_for_story(page, "word29")


def test_bad_file_gives_a_sentence_and_forgets_the_photo_before(page, example_photos, tmp_path):
    upload(page, example_photos[0])
    page.locator("#captions label").first.wait_for()
    page.get_by_label("Remove Image").click()
    page.locator("#captions").wait_for(state="hidden")
    bad = tmp_path / "diary.jpg"
    bad.write_text("no photo at all")
    upload(page, bad)
    page.get_by_text("diary.jpg is not a photo that can be read").wait_for()
    assert page.locator("#captions label").count() == 0
    page.get_by_label("Remove Image").wait_for(state="hidden")  # no broken picture stays
    upload(page, example_photos[1])
    page.locator("#captions label").first.wait_for()


def test_no_photo_gives_a_sentence(page):
    page.get_by_role("button", name="Tell me a story").click()
    page.get_by_text("There is no photo yet").wait_for()
    page.get_by_role("button", name="Tell me a story").wait_for()


def test_strange_seed_gives_a_sentence(page, example_photos):
    upload(page, example_photos[0])
    page.locator("#captions label").first.wait_for()
    page.locator("#seed input, #seed textarea").fill("seven")
    page.get_by_role("button", name="Tell me a story").click()
    page.get_by_text("The seed seven is not a whole number").wait_for()


def test_text_is_never_html(browser, tmp_path, example_photos):
    """Captions, stories, seeds and file names are letters, whatever they look like."""
    with (
        served(app.Page(lambda: FakePipeline(words=1, names=(HOSTILE, "b", "c"))).blocks) as url,
        visit(browser, url) as page,
    ):
        upload(page, example_photos[0])
        page.locator("#captions label").first.wait_for()
        assert HOSTILE in page.locator("#captions label").first.inner_text()
        page.locator("#words label").nth(1).click()
        page.locator("#sight img").wait_for()
        page.get_by_role("button", name="Tell me a story").click()
        assert HOSTILE in wait_for_story(page, "word0")
        page.locator("#seed input, #seed textarea").fill(HOSTILE)
        page.get_by_role("button", name="Tell me a story").click()
        page.get_by_text(f"The seed {HOSTILE} is not").wait_for()
        page.get_by_label("Remove Image").click()
        page.locator("#captions").wait_for(state="hidden")
        bad = tmp_path / f"{HOSTILE}.jpg"
        bad.write_text("no photo at all")
        upload(page, bad)
        page.get_by_text("is not a photo that can be read").wait_for()
        page.wait_for_timeout(200)
        assert page.evaluate("window.fooled") is None


def test_nothing_is_fetched_from_elsewhere(browser, url):
    context = browser.new_context()
    page = context.new_page()
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(url)
    page.get_by_role("button", name="Tell me a story").wait_for()
    page.wait_for_timeout(500)
    context.close()
    assert requests
    assert not [address for address in requests if not address.startswith((url, "data:", "blob:"))]
