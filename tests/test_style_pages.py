"""The page that a writer is shown: near to the photo, in the style, by the seed; from made-up vectors."""

import dataclasses

import numpy as np
import pytest

from modeling import ModelFolderError, Source, StoryOptions
from modeling.bookshelf import Book, Bookshelf
from modeling.reranking import Wish
from modeling.style_pages import Page, StylePages
from modeling.styles import Style
from modeling.writer import PassageTask

# Thoughts of six numbers: the first two are things that can be seen, the next two manners, the last two chance.
SIZE = 6
SEA, WOOD, GENTLE, GRIM = np.eye(SIZE, dtype=np.float32)[:4]
COMMON = np.full(SIZE, 0.3, np.float32)  # what all texts have
DRACULA, EMMA = Source("Dracula", "Bram Stoker", 1897), Source("Emma", "Jane Austen", 1815)


def style(name: str, vector: np.ndarray, **pages) -> Style:
    return Style(name, COMMON + vector, 30, "made up", "e" * 12, **pages)


STYLES = {
    "caption": style("caption", np.zeros(SIZE)),
    "horror": style("horror", GRIM),
    "romance": style("romance", GENTLE),
}


def shelf() -> Bookshelf:
    """Forty pages of each book: of the sea or of the wood, and more or less in the manner of their genre."""
    rng = np.random.default_rng(0)
    texts, book, thoughts = [], [], []
    for number, (name, manner) in enumerate((("horror", GRIM), ("romance", GENTLE))):
        for i in range(40):
            place, share = ("sea", SEA) if i % 2 else ("wood", WOOD), 0.25 + i // 2 / 20
            texts.append(f"Page {i} of {name}, of the {place[0]}, with {share:.2f} of its manner.")
            thoughts.append(COMMON + place[1] + share * manner + rng.normal(0, 0.02, SIZE))
            book.append(number)
    books = (Book(DRACULA, "horror"), Book(EMMA, "romance"))
    return Bookshelf.of(texts, books, book, np.array(thoughts, np.float32), "e" * 12, components=SIZE)


SHELF = shelf()


def task(label="horror", seen=SEA, seed=1, strength=1.0, own=None, vector=None, **options) -> PassageTask:
    if vector is None:
        shares = [(name, float(share or 1)) for name, _, share in (part.partition(":") for part in label.split(","))]
        vector = sum(STYLES[name].vector * share for name, share in shares) if own is None else own.vector
    wish = Wish(seen, vector if strength else None)
    return PassageTask(seen, wish, seed, StoryOptions(strength=strength, **options), label, ("A dog.",), own=own)


@pytest.fixture
def pages():
    return StylePages(lambda: SHELF, lambda: STYLES)


def chosen(pages, seeds=range(12), **wishes) -> list[Page]:
    return [pages(task(seed=seed, **wishes)) for seed in seeds]


def share_of_manner(page: Page) -> float:
    return float(page.text.split("with ")[1].split()[0])


def test_the_page_is_of_the_styles_genre_with_its_book(pages):
    for label, source in (("horror", DRACULA), ("romance", EMMA)):
        for page in chosen(pages, label=label):
            assert page.source == source and f"of {label}," in page.text and page.text in SHELF.passages


def test_it_is_near_to_what_the_photo_shows(pages):
    for seen, word in ((SEA, "sea"), (WOOD, "wood")):
        assert all(f"of the {word}," in page.text for page in chosen(pages, seen=seen))


def test_strength_moves_the_choice_towards_the_style(pages):
    """A weaker style takes pages that lie near the photo, a stronger one pages that sound like it."""
    mean = {s: np.mean([share_of_manner(page) for page in chosen(pages, strength=s)]) for s in (0.75, 1.0, 2.0, 5.0)}
    assert mean[0.75] < mean[1.0] < mean[2.0] <= mean[5.0]
    away = chosen(pages, strength=10.0, seen=WOOD - SEA)
    assert np.mean([share_of_manner(page) for page in away]) > 0.9


def test_no_page_in_no_style_or_a_faint_one(pages):
    for strength in (0.0, 0.5, 0.7, -1.0):
        assert pages(task(strength=strength)) is None
    assert pages(task(strength=0.8)) is not None


def test_a_blend_takes_pages_of_both(pages):
    sources = {page.source for page in chosen(pages, range(40), label="horror:0.5,romance:0.5")}
    assert sources == {DRACULA, EMMA}
    mostly = [page.source for page in chosen(pages, range(40), label="horror:0.9,romance:0.1")]
    assert mostly.count(DRACULA) > 30


def test_the_seed_opens_a_page_again_and_other_seeds_others(pages):
    first = chosen(pages, range(20))
    assert first == chosen(pages, range(20)) and len(set(first)) > 2


def test_the_best_page_is_the_one_with_the_highest_sum(pages, monkeypatch):
    """Against the formula at the head of the module, without the seed's part."""
    monkeypatch.setattr("modeling.style_pages.CHANCE", 0.0)
    rows = SHELF.codes[:40] * SHELF.scale
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    middle = np.mean([STYLES["horror"].vector, STYLES["romance"].vector], 0)
    for strength in (0.8, 1.0, 3.0):
        sums = np.zeros(40)
        for weight, wanted in ((1, SEA), (strength, STYLES["horror"].vector - middle)):
            cosines = rows @ SHELF.project(wanted)
            sums += weight * (cosines - cosines.mean()) / cosines.std()
        assert pages(task(strength=strength)).text == SHELF.passages[int(sums.argmax())]


# -- a book of one's own ----------------------------------------------------------------------------------------------
def own_style(name="mine", manner=GENTLE, **changes) -> Style:
    both = [(i, *place) for i in range(8) for place in (("sea", SEA), ("wood", WOOD))]
    texts = tuple(f"My page {i} of the {name}." for i, name, _ in both)
    vectors = np.stack([COMMON + seen + (0.3 + i / 10) * manner for i, _, seen in both])
    made = style(name, manner, pages=texts, page_vectors=vectors.astype(np.float16))
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize("with_shelf", [True, False])
def test_a_style_of_ones_own_shows_pages_of_its_book(with_shelf):
    def bookshelf():
        if with_shelf:
            return SHELF
        raise ModelFolderError("There is none.")

    mine = own_style()
    known = StylePages(bookshelf, lambda: {**STYLES, "mine": mine})
    brought = StylePages(bookshelf, lambda: STYLES)  # of a visitor: the pipeline does not know it
    for seen, word in ((SEA, "sea"), (WOOD, "wood")):
        for seed in range(5):
            one = known(task("mine", seen, seed, vector=mine.vector))
            assert one.source is None and one.text in mine.pages and one.text.endswith(f"of the {word}.")
            assert brought(task("mine", seen, seed, own=mine)) == one
    assert brought(task("mine", vector=mine.vector)) is None


def test_a_blend_of_ones_own_style_takes_its_pages_too(pages):
    mine = own_style(manner=GENTLE)
    blend = dataclasses.replace(
        mine, name="mine:0.5,horror:0.5", vector=0.5 * mine.vector + 0.5 * STYLES["horror"].vector
    )
    found = {page.source for page in chosen(pages, range(60), label=blend.name, own=blend)}
    assert found == {None, DRACULA}


def test_a_style_of_ones_own_that_keeps_no_pages_has_none(pages):
    bare = own_style(pages=(), page_vectors=None)
    assert pages(task("mine", own=bare)) is None
    assert pages(task("horror", own=dataclasses.replace(STYLES["horror"]))).source == DRACULA  # but a genre has


def test_without_a_bookshelf_there_is_no_page():
    def missing():
        raise ModelFolderError("There is none.")

    assert StylePages(missing, lambda: STYLES)(task()) is None


def test_a_page_that_is_one_endless_sentence_is_passed_over(pages):
    endless = own_style(pages=("word " * 300, "A short one."), page_vectors=np.stack([COMMON + GRIM, COMMON + SEA]))
    assert {page.text for page in chosen(pages, label="mine", own=endless)} == {"A short one."}
    all_of_them = dataclasses.replace(endless, pages=("word " * 300,) * 2)
    assert pages(task("mine", own=all_of_them)) is None


def test_pages_are_shortened_to_what_the_storyteller_has_learned():
    texts = tuple(" ".join(["He sat down by the sea and looked."] * 30) for _ in range(2))
    long = own_style(pages=texts, page_vectors=np.stack([COMMON + GRIM, COMMON + SEA]))
    page = StylePages(lambda: SHELF, lambda: STYLES)(task("mine", own=long))
    assert page.text == " ".join(["He sat down by the sea and looked."] * 10)  # eighty words
