"""The page as a person meets it, in a headless browser over a pipeline without models."""

import contextlib
import csv
import os
import re
from pathlib import Path

import pytest
from PIL import Image

import app
from tests.fakes import FakePipeline, fake_style
from tests.page_steps import end_of_story, open_tab, passages, tell, upload, visit, wait_for_passages, wait_for_story
from tests.serving import served

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=window.fooled=1>"


@pytest.fixture(scope="module")
def pipeline() -> FakePipeline:
    return FakePipeline(words=20, pause=0.1)


@pytest.fixture(scope="module")
def url(browser, pipeline):
    with served(app.Page(lambda: pipeline).blocks) as url:
        yield url


@pytest.fixture
def page(browser, url):
    with visit(browser, url) as page:
        yield page


@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_photo_style_story(browser, url, width, example_photos):
    with visit(browser, url, width) as page:
        upload(page, example_photos[0])
        captions = page.locator("#captions li:visible")
        captions.first.wait_for()
        assert captions.count() == 3  # what it remembers is closed
        assert "a thing of colour" in captions.first.inner_text()
        assert "(61%)" in captions.first.inner_text()
        assert not passages(page)

        page.get_by_label("Horror").check()
        page.get_by_role("button", name="Tell me a story").click()
        half = wait_for_story(page, "word3")
        whole = wait_for_story(page, "word19")
        assert whole.startswith(half) and len(half) < len(whole)  # it grew before our eyes
        seed = re.search(r"Seed (\d+), strength 1: a thing of colour", whole).group(1)
        assert page.locator("#story h3").inner_text() == f"Title {seed}"
        assert f"from photo 1 · Horror · seed {seed} · in the manner of The Book, A. Writer (1900)" in whole
        page.get_by_role("button", name="Tell me a story").wait_for()
        for tab in ("Look closer", "Your style", "Many photos", "Tell"):
            open_tab(page, tab)
            assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out


def test_wishes(page, example_photos, pipeline):
    """A blend, its strength and the length reach the pipeline; the page says what it was told with."""
    page.get_by_role("button", name="More wishes").click()
    page.get_by_label("Mix in").click()
    page.get_by_role("option", name="Romance").click()
    page.get_by_label("number input for Strength of the style").fill("1.5")
    page.get_by_label("number input for Strength of the style").press("Enter")
    page.get_by_label("Long").check()
    page.locator("#seed input, #seed textarea").fill("11")
    upload(page, example_photos[0])
    page.get_by_label("The bookshelf").check()
    text = tell(page)
    assert "written by bookshelf" in text
    assert "Everyday 70 %, Romance 30 % at strength 1.5 · seed 11" in text
    assert (pipeline.calls[-1]["options"].strength, pipeline.calls[-1]["options"].length) == (1.5, "long")


def test_photo_from_the_camera(browser, url):
    with visit(browser, url, permissions=["camera"]) as page:
        page.get_by_label("Capture from camera").click()
        page.get_by_text("Click to Access Webcam").click()
        page.wait_for_function("[...document.querySelectorAll('video')].some(video => video.videoWidth > 0)")
        page.wait_for_timeout(500)  # the first frames are empty
        page.get_by_label("capture photo").click()
        page.locator("#captions li").first.wait_for()


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
        page.locator("#captions li", has_text="#0000ff").first.wait_for()


def test_look_closer(page, example_photos):
    """Any word of any caption, the strip of a caption, the scores, and why the story won."""
    page.get_by_role("tab", name="Look closer").click()
    page.get_by_text("Give it a photo in the first tab").wait_for()
    page.get_by_role("tab", name="Tell", exact=True).click()
    tell(page, example_photos[0])
    page.get_by_role("tab", name="Look closer").click()
    words, heat, strip = page.locator("#words label"), page.locator("#heat img"), page.locator("#strip figure")
    words.first.wait_for()
    assert [word.strip() for word in words.all_inner_texts()][:3] == ["a", "thing", "of"]
    assert strip.count() == 5
    assert strip.nth(1).inner_text().strip() == "thing"
    assert "for “thing” it looked at the top on the right" in strip.nth(1).locator("img").get_attribute("alt")
    assert "-0.50" in page.locator("#scores").inner_text()
    assert "Something like thing. (0.50)" in page.locator("#scores").inner_text()
    assert page.locator("#why tbody tr").all_inner_texts()[1].startswith("Not this.")

    words.nth(1).click()
    heat.wait_for()
    assert "for “thing” it looked" in heat.get_attribute("alt")
    first = heat.get_attribute("src")
    words.nth(3).click()
    page.wait_for_function("src => document.querySelector('#heat img').src != src", arg=first)
    size = heat.evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])")
    assert size == list(Image.open(example_photos[0]).size)

    page.locator("#beams label").nth(2).click()
    page.locator("#words label", has_text="light").wait_for()
    heat.wait_for(state="detached")


def test_continue_undo_edit(page, example_photos, pipeline):
    tell(page, example_photos[0])
    own = page.locator("#own-sentence textarea")
    go = page.get_by_role("button", name="Go on")

    own.fill("Then the lights went out.")
    go.click()
    end_of_story(page)
    wait_for_passages(page, 3)
    assert passages(page)[1] == "Then the lights went out."
    assert own.input_value() == ""
    assert pipeline.calls[-1]["before"].endswith("Then the lights went out.")

    page.locator("#next-photo input[type=file]").set_input_files(example_photos[1])
    page.locator("#next-photo img").wait_for()
    go.click()
    end_of_story(page)
    wait_for_passages(page, 4)
    assert page.locator("#story figure").count() == 2
    assert "from photo 2" in page.locator("#story").inner_text()

    page.get_by_role("button", name="Undo").click()
    wait_for_passages(page, 3)
    page.get_by_role("button", name="Edit").click()
    text = page.get_by_label("Its text")
    text.wait_for()
    assert text.input_value() == passages(page)[-1]
    text.fill("It was a dark and stormy night.")
    page.get_by_role("button", name="Save").click()
    wait_for_story(page, "dark and stormy night")
    go.click()
    end_of_story(page)
    wait_for_passages(page, 4)
    assert pipeline.calls[-1]["before"].endswith("It was a dark and stormy night.")
    assert "from the story so far" in page.locator("#story").inner_text()


def test_a_new_story_does_not_lose_the_one_before(page, example_photos):
    first = tell(page, example_photos[0])
    assert tell(page) != first
    page.get_by_role("button", name="Undo").click()
    page.wait_for_function("text => document.querySelector('#story')?.innerText == text", arg=first)


def test_keep_and_load(browser, url, example_photos, tmp_path):
    with visit(browser, url, permissions=["clipboard-read", "clipboard-write"]) as page:
        whole = tell(page, example_photos[0])
        (text,) = passages(page)
        page.get_by_role("button", name="Copy").click()
        page.get_by_text("The story is copied.").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == text
        page.get_by_role("button", name="Keep it").click()
        kept = {}
        for name in ("As Markdown", "As web page", "To load again"):
            with page.expect_download() as download:
                page.get_by_role("button", name=name).click()
            kept[name] = tmp_path / download.value.suggested_filename
            download.value.save_as(kept[name])
        assert [path.name for path in kept.values()] == ["story.md", "story.html", "story.json"]
        assert "data:image/jpeg;base64," in kept["As Markdown"].read_text()

        page.reload()  # the browser has the story still
        wait_for_story(page, "word19")
        assert page.locator("#story").inner_text() == whole
    with visit(browser, url) as page:  # another browser has not
        assert not passages(page)
        page.get_by_role("button", name="Keep it").click()
        page.locator("input[type=file][accept*=json]").set_input_files(kept["To load again"])
        wait_for_passages(page, 1)
        assert passages(page) == [text]
        page.get_by_role("button", name="Go on").click()
        end_of_story(page)
        wait_for_passages(page, 2)
    with visit_file(browser, kept["As web page"]) as page:
        assert text in page.locator("main").inner_text()
        assert page.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 256


@contextlib.contextmanager
def visit_file(browser, path: Path):
    context = browser.new_context()
    page = context.new_page()
    page.goto(path.as_uri())
    yield page
    context.close()


BOOK = "\n\n".join(
    f"Passage number {i}. The old lady of the house said that the dog was in the sea." for i in range(30)
)


def test_own_style(browser, url, tmp_path, example_photos):
    book = tmp_path / "my book.txt"
    book.write_text(BOOK)
    with visit(browser, url) as page, visit(browser, url) as other:
        page.get_by_role("tab", name="Your style").click()
        button = page.get_by_role("button", name="Make my style")
        button.click()
        page.get_by_text("Your style has no name yet").wait_for()
        page.locator("#style-name input, #style-name textarea").fill("Aunt May")
        button.click()
        page.get_by_text("There is no text yet").wait_for()
        page.locator("#book input[type=file]").set_input_files(book)
        page.locator("#book").get_by_text("my book").first.wait_for()
        button.click()
        page.get_by_text("30 passages, from my book.txt").wait_for()
        with page.expect_download() as download:
            page.get_by_role("button", name="Download the style").click()
        file = tmp_path / "aunt.safetensors"
        download.value.save_as(file)
        page.get_by_role("tab", name="Tell", exact=True).click()
        assert page.get_by_label("Aunt May (yours)").is_checked()
        assert "Aunt May · seed" in tell(page, example_photos[0])

        assert other.get_by_label("Aunt May (yours)").count() == 0  # nobody else's
        other.get_by_role("tab", name="Your style").click()
        other.locator("input[type=file][accept*=safetensors]").set_input_files(file)
        other.get_by_text("30 passages, from my book.txt").wait_for()


def test_many_photos(page, example_photos, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_text("no photo at all")
    page.get_by_role("tab", name="Many photos").click()
    page.locator("#files input[type=file]").set_input_files([example_photos[0], broken, example_photos[1]])
    page.locator("#files").get_by_text("broken").first.wait_for()
    page.get_by_role("button", name="Caption them").click()
    page.get_by_text("3 of 3 photos").wait_for()
    rows = page.locator("#rows tbody tr").all_inner_texts()
    assert "a thing of colour" in rows[0] and "not a photo" in rows[1] and "a thing of colour" in rows[2]
    page.get_by_role("button", name="Caption them").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the table (CSV)").click()
    download.value.save_as(tmp_path / "photos.csv")
    with (tmp_path / "photos.csv").open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["photo"] for row in table] == [example_photos[0].name, "broken.jpg", example_photos[1].name]
    assert table[1]["problem"] and not table[0]["problem"]


def test_surprise(page):
    page.get_by_role("button", name="Surprise me").click()
    text = end_of_story(page)
    page.locator("#captions li").first.wait_for()
    assert "word19" in text


def test_example_and_seed(page):
    page.locator("#examples button.gallery-item").nth(1).click()
    page.locator("#captions li").first.wait_for()
    page.get_by_role("button", name="More wishes").click()
    seed = page.locator("#seed input, #seed textarea")
    seed.fill("11")
    first = tell(page)
    assert "Seed 11," in first
    page.get_by_role("button", name="Roll").click()
    page.wait_for_function("document.querySelector('#seed input, #seed textarea').value != '11'")
    assert f"Seed {seed.input_value()}," in tell(page)


def test_stop_keeps_what_was_told(page, example_photos, pipeline, monkeypatch):
    monkeypatch.setattr(pipeline, "words", 600)  # takes a minute
    upload(page, example_photos[0])
    page.locator("#captions li").first.wait_for()
    page.get_by_role("button", name="Tell me a story").click()
    wait_for_story(page, "word1")
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Tell me a story").wait_for()
    page.wait_for_timeout(300)  # what was on its way has come
    written, shown = pipeline.written, passages(page)
    page.wait_for_timeout(500)
    assert (pipeline.written, passages(page)) == (written, shown)
    assert "word599" not in shown[0]
    monkeypatch.undo()
    page.get_by_role("button", name="Go on").click()
    end_of_story(page)
    wait_for_passages(page, 2)
    assert passages(page)[0].startswith(shown[0])  # the words of the last step may have come too late to be shown


def test_bad_file_gives_a_sentence_and_forgets_the_photo_before(page, example_photos, tmp_path):
    upload(page, example_photos[0])
    page.locator("#captions li").first.wait_for()
    page.get_by_label("Remove Image").click()
    page.locator("#captions li").first.wait_for(state="hidden")
    bad = tmp_path / "diary.jpg"
    bad.write_text("no photo at all")
    upload(page, bad)
    page.get_by_text("diary.jpg is not a photo that can be read").wait_for()
    assert page.locator("#captions li").count() == 0
    page.get_by_label("Remove Image").wait_for(state="hidden")  # no broken picture stays
    upload(page, example_photos[1])
    page.locator("#captions li").first.wait_for()


def test_no_photo_gives_a_sentence(page):
    page.get_by_role("button", name="Tell me a story").click()
    page.get_by_text("There is no photo yet").wait_for()
    page.get_by_role("button", name="Tell me a story").wait_for()


def test_strange_seed_gives_a_sentence(page, example_photos):
    upload(page, example_photos[0])
    page.locator("#captions li").first.wait_for()
    page.get_by_role("button", name="More wishes").click()
    page.locator("#seed input, #seed textarea").fill("seven")
    page.get_by_role("button", name="Tell me a story").click()
    page.get_by_text("The seed seven is not a whole number").wait_for()


def test_text_is_never_html(browser, tmp_path, example_photos):
    """Captions, stories, sentences, styles, seeds and file names are letters, whatever they look like."""
    pipeline = FakePipeline(words=1, pause=0.3, names=(HOSTILE, "b", "c"))
    pipeline.styles |= {HOSTILE: fake_style(HOSTILE)}
    with served(app.Page(lambda: pipeline).blocks) as url, visit(browser, url) as page:
        upload(page, example_photos[0])
        page.locator("#captions li").first.wait_for()
        assert HOSTILE in page.locator("#captions li").first.inner_text()
        assert HOSTILE in tell(page)
        page.locator("#own-sentence textarea").fill(f"{HOSTILE} ${{window.fooled=2}} {{{{value}}}}")
        page.get_by_role("button", name="Go on").click()
        end_of_story(page)
        assert passages(page)[1] == f"{HOSTILE} ${{window.fooled=2}} {{{{value}}}}"
        page.get_by_role("tab", name="Look closer").click()
        page.locator("#words label").nth(1).click()
        page.locator("#heat img").wait_for()
        page.get_by_role("tab", name="Many photos").click()
        bad = tmp_path / f"{HOSTILE}.jpg"
        bad.write_text("no photo at all")
        page.locator("#files input[type=file]").set_input_files([bad])
        page.locator("#files").get_by_text("img").first.wait_for()
        page.get_by_role("button", name="Caption them").click()
        page.get_by_text("1 of 1 photos").wait_for()
        page.get_by_role("tab", name="Tell", exact=True).click()
        page.get_by_role("button", name="More wishes").click()
        page.locator("#seed input, #seed textarea").fill("<img src=x>")
        page.get_by_role("button", name="Tell me a story").click()
        page.get_by_text("The seed <img src=x> is not").wait_for()
        page.wait_for_timeout(200)
        assert page.evaluate("window.fooled") is None


# the label of gradio's upload area says what it does in other words than those written on it
AXE_OPTIONS = "{resultTypes: ['violations'], rules: {'label-content-name-mismatch': {enabled: false}}}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(browser, url, example_photos, scheme):
    """axe-core (npm, `PICTALE_AXE` names its axe.min.js) finds nothing serious on any tab."""
    script = os.environ.get("PICTALE_AXE")
    if not script:
        pytest.skip("PICTALE_AXE does not name axe.min.js of the npm package axe-core")
    with visit(browser, url, color_scheme=scheme) as page:
        tell(page, example_photos[0])
        page.add_script_tag(path=script)
        for tab in ("Tell", "Look closer", "Your style", "Many photos"):
            page.get_by_role("tab", name=tab, exact=True).click()
            page.wait_for_timeout(500)
            page.wait_for_function("!document.querySelector('.pending')")  # what is being computed is pale
            page.wait_for_timeout(700)  # colours fade in
            found = page.evaluate("axe.run(document, " + AXE_OPTIONS + ").then(result => result.violations)")
            serious = [
                f"{tab}: {rule['id']}: {node['html'][:200]} {node['failureSummary']}"
                for rule in found
                for node in rule["nodes"]
                if rule["impact"] in ("serious", "critical")
            ]
            assert not serious, "\n".join(serious)


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
