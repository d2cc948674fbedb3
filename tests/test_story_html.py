"""Stories as HTML, how they came about, many photos at once, and the text of books."""

import csv
import dataclasses
import io
import zipfile
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from modeling import Caption, ImageError, Passage, PictaleError, Story, StoryError, StyleError, load_image
from modeling.batch import BatchRow, rows_html, rows_to_csv, tell_many
from modeling.book_text import read_book
from modeling.look_closer import caption_table, where_in_words, why_this_story, word_strip
from modeling.story import Step
from modeling.story_html import origin_in_words, story_html, story_page, style_in_words
from modeling.visit import MAX_EARLIER, Seen, Visit, Wishes, add_style, find_style
from tests.fakes import FakePipeline, fake_style

HOSTILE = '<script>alert("x")</script> & <b>'


class Tags(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.tags, self.letters = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.letters += data


@pytest.fixture
def pipe() -> FakePipeline:
    return FakePipeline(words=3, names=(HOSTILE, "shape"))


@pytest.fixture
def seen(example_photos, pipe) -> Seen:
    return Seen(str(example_photos[0]), pipe.caption([example_photos[0]])[0])


def last(visits) -> Visit:
    *_, visit = visits
    return visit


def test_a_page_holds_the_story_its_photos_and_no_markup_of_others(pipe, seen):
    visit = last(Visit().tell(pipe, Wishes("horror", seed=3, strength=1.5), seen, {}))
    visit = last(visit.go_on(pipe, Wishes("horror", seed=4), None, HOSTILE, {}))
    page = story_page(visit.story, visit.photos, title=HOSTILE)
    tags = Tags(page)
    assert "script" not in tags.tags and "b" not in tags.tags
    assert tags.letters.count(HOSTILE) >= 4  # two headings, caption, own sentence
    assert tags.tags.count("img") == 1 and tags.tags.count("section") == 3
    assert "Horror at strength 1.5 · seed 3 · in the manner of The Book, A. Writer (1900)" in tags.letters
    assert Tags(story_page(visit.story)).letters.count("Title 3") == 2  # its own, where none is given
    assert len(story_page(visit.story)) < len(page)  # without the photo its thumbnail takes its place
    assert story_page(visit.story, ["gone.jpg"], title=HOSTILE) == story_page(visit.story, title=HOSTILE)


def test_the_markup_of_a_growing_story_only_grows(pipe, seen):
    pages = [story_html(visit.story) for visit in Visit().tell(pipe, Wishes("horror", seed=3), seen, {})]
    written = [page for page in pages if "passage" in page]
    assert len(written) > 3 and all("<h3>Title 3</h3>" in page and "The Book" in page for page in written)
    assert all(later.startswith(earlier) for earlier, later in zip(written, written[1:], strict=False))


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("science_fiction", "Science fiction"),
        ("romance:0.7,fairy_tale:0.3", "Romance 70 %, Fairy tale 30 %"),
        ("Aunt May", "Aunt May"),
    ],
)
def test_style_in_words(label, words):
    assert style_in_words(label) == words


def test_visit_steps_and_undo(pipe, seen):
    wishes = Wishes("horror", seed=1)
    first = last(Visit().tell(pipe, wishes, seen, {}))
    longer = last(first.go_on(pipe, wishes, seen, "  ", {}))
    assert len(longer.story.passages) == 2 and longer.story.passages[1].origin == "photo"
    assert longer.undo().story == first.story and longer.undo().photos == first.photos
    edited = first.edit(0, "Other words.")
    assert "edited by hand" in origin_in_words(edited.story, edited.story.passages[0])
    assert edited.undo().story == first.story
    other = last(longer.tell(pipe, Wishes("romance", seed=2), seen, {}))
    assert other.undo() == longer
    assert Visit().load(longer.story.to_json()).story == longer.story
    assert other.undo().undo().undo().story.passages == ()
    with pytest.raises(StoryError, match="nothing to undo"):
        Visit().undo()
    for _ in range(MAX_EARLIER + 2):
        other = last(other.tell(pipe, wishes, seen, {}))
    assert len(other.earlier) == MAX_EARLIER
    for bad in (Wishes("horror", seed="seven"), Wishes("horror", length="Endless"), Wishes("western")):
        with pytest.raises(PictaleError):
            last(Visit().tell(pipe, bad, seen, {}))


def test_a_title_is_letters():
    story = Story((Step(passages=(Passage("So.", "story", title=HOSTILE),)),))
    for page in (story_html(story), story_page(story)):
        assert "script" not in Tags(page).tags and HOSTILE in Tags(page).letters
    assert "<h3>" not in story_html(Story((Step(passages=(Passage("So.", "story"),)),)))


def test_a_blend_of_own_styles_has_the_pages_of_all(pipe):
    def with_pages(name, *pages):
        return dataclasses.replace(fake_style(name), pages=pages, page_vectors=np.ones((len(pages), 4), np.float16))

    own = {"aunt": with_pages("aunt", "One.", "Two."), "uncle": with_pages("uncle", "Three."), "cat": fake_style("cat")}
    for blend, pages in (
        ("aunt", ("One.", "Two.")),
        ("aunt:0.5,uncle:0.5", ("One.", "Two.", "Three.")),
        ("cat:0.5,uncle:0.5", ("Three.",)),
        ("horror:0.5,uncle:0.5", ("Three.",)),
    ):
        style = find_style(pipe, blend, own)
        assert style.pages == pages and style.page_vectors.shape == (len(pages), 4) and style.name == blend
    assert find_style(pipe, "cat:0.5,horror:0.5", own).page_vectors is None


def test_own_styles_never_reach_the_pipeline(pipe):
    own = add_style(pipe, fake_style("aunt", 300), {})
    assert find_style(pipe, "horror", own) == "horror"
    blend = find_style(pipe, Wishes("aunt", "horror", 50).blend(), own)
    assert blend.name == "aunt:0.5,horror:0.5" and (blend.vector == 200).all()
    assert "aunt" not in pipe.styles and Wishes("aunt", "horror", 0).blend() == "aunt"
    with pytest.raises(StyleError, match="already"):
        add_style(pipe, fake_style("horror"), own)


def test_look_closer_is_escaped_and_says_where(pipe, seen):
    visit = last(Visit().tell(pipe, Wishes("horror", seed=3), seen, {}))
    strip = Tags(word_strip(load_image(seen.photo), seen.captions[0]))
    assert strip.tags.count("img") == len(seen.captions[0].words) and "script" not in strip.tags
    assert word_strip(load_image(seen.photo), Caption("no maps", 0.0)) == ""
    for page in (caption_table(seen.captions), why_this_story(visit.story.passages)):
        assert "script" not in Tags(page).tags and HOSTILE in Tags(page).letters
    assert "tell a story first" in why_this_story(())
    for (row, column), words in {
        (0, 0): "at the top on the left",
        (3, 3): "in the middle",
        (6, 6): "at the bottom on the right",
    }.items():
        assert where_in_words(_one(row, column)) == words


def _one(row: int, column: int) -> np.ndarray:
    attention = np.zeros((7, 7))
    attention[row, column] = 1
    return attention


def test_many_photos(pipe, example_photos, tmp_path):
    broken = tmp_path / "=cmd.jpg"
    broken.write_text("no photo")
    pixels = Image.open(example_photos[1])
    rows = list(tell_many(pipe, [example_photos[0], broken, pixels], stories=True, style="horror", seed=5))
    assert [bool(row.problem) for row in rows] == [False, True, False]
    assert [row.photo for row in rows] == [example_photos[0].name, "=cmd.jpg", "photo 3"]
    single = pipe.start_story(example_photos[0], "horror", 5)
    assert rows[0].story == single.text and rows[0].captions[0].text == single.photos[0].captions[0].text
    assert any(caption.remembered for caption in rows[0].captions)
    text = rows_to_csv(rows)
    assert text.startswith("\ufeff")
    table = list(csv.DictReader(io.StringIO(text[1:], newline="")))
    assert table[0]["caption"] == rows[0].captions[0].text and table[0]["score"] == "-0.5000"
    written = [caption.text for caption in rows[0].captions if not caption.remembered]
    assert table[0]["other captions"].split(" | ") == written[1:]
    assert table[1]["photo"] == "'=cmd.jpg" and "not a photo" in table[1]["problem"]
    assert not list(tell_many(pipe, [], seed=1)) and next(tell_many(pipe, [pixels])).story == ""
    [one] = tell_many(pipe, [pixels], stories=True, style="horror", captions="retrieve")
    assert one.captions[0].remembered and "%" not in rows_html([one], 1, stories=True)  # a cosine is no share
    page = Tags(rows_html([*rows, BatchRow(HOSTILE, problem=HOSTILE)], 9, stories=True))
    assert "script" not in page.tags and page.letters.count(HOSTILE) >= 3
    with pytest.raises(ImageError):
        pipe.caption([broken])


def epub(path, chapters: list[str], **more: str):
    spine = "".join(f'<itemref idref="c{i}"/>' for i in range(len(chapters)))
    items = "".join(f'<item id="c{i}" href="text/c%20{i}.xhtml"/>' for i in range(len(chapters)))
    parts = f"<manifest>{items}</manifest><spine>{spine}</spine>"
    package = f'<package xmlns="http://www.idpf.org/2007/opf">{parts}</package>'
    container = (
        '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>'
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in {"META-INF/container.xml": container, "OEBPS/book.opf": package, **more}.items():
            archive.writestr(name, text)
        for i, chapter in enumerate(chapters):
            archive.writestr(f"OEBPS/text/c {i}.xhtml", chapter)
    return path


def test_epub_is_read_in_order(tmp_path):
    pages = [
        "<html><head><title>No</title><style>p {}</style></head><h1>One</h1><p>It was\n <i>late</i> &amp; cold.</p>",
        "<html><body><p>The end.</p><script>no()</script></body></html>",
    ]
    assert read_book(epub(tmp_path / "a.epub", pages)) == "One\n\nIt was late & cold.\n\nThe end."


def test_strange_books_give_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "torn.epub").write_bytes(b"PK\3\4 no zip")
    (tmp_path / "binary.txt").write_bytes(b"\0\1\2")
    (tmp_path / "book.pdf").write_bytes(b"%PDF")
    locked = {"META-INF/encryption.xml": "<a/>", "META-INF/rights.xml": "<a/>"}
    epub(tmp_path / "locked.epub", ["x"], **locked)
    epub(tmp_path / "entities.epub", [], **{"META-INF/container.xml": "<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>"})
    epub(tmp_path / "long.epub", ["x" * 5000])
    (tmp_path / "long.txt").write_text("x" * 5000)
    monkeypatch.setattr("modeling.book_text.MAX_BOOK_CHARACTERS", 1000)
    for name, words in {
        "torn.epub": "damaged",
        "binary.txt": "not plain text",
        "book.pdf": "not a .txt",
        "locked.epub": "copy-protected",
        "entities.epub": "damaged",
        "long.epub": "longer than any book",
        "long.txt": "longer than any book",
        "none.txt": "cannot be read",
    }.items():
        with pytest.raises(StyleError, match=words):
            read_book(tmp_path / name)
