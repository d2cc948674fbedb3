"""Stories told in the style of one's own book, and the judge that has that book as a class of its own."""

import pytest

from modeling import DataError
from tests.tiny import tiny_pipeline
from training.evaluate_stories import open_tellers
from training.own_books import measure_own_books
from training.story_systems import Library, Told, choose_photos
from training.tiny_photos import write_tiny_photos


def book(words: str, paragraphs: int = 40) -> str:
    """Paragraphs of about 70 of these words, each twice wrapped."""
    own = words.split()
    lines = []
    for i in range(paragraphs):
        said = [own[(i * 7 + k * (1 + i % 3)) % len(own)] for k in range(70)]
        lines.append(f"The {' '.join(said[:35])}\n{' '.join(said[35:])} at {i} o'clock.")
    return "\n\n".join(lines)


@pytest.fixture(scope="module")
def tellers(tmp_path_factory):
    photos = choose_photos(str(write_tiny_photos(tmp_path_factory.mktemp("data") / "tiny-photos")), "train", 3)
    library = Library()
    for genre, words in (("horror", "grave ghost blood night fear"), ("romance", "love heart kiss bride tender")):
        for number in range(5):
            for i, text in enumerate(book(words, 8).split("\n\n")):
                library.texts.append(f"{text} {number} {i}")
                library.genres.append(genre)
                library.books.append(number + 5 * (genre == "romance"))
    return open_tellers(tiny_pipeline(), photos, library, seed=2)


def test_each_book_is_a_style_and_a_class(tellers, tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (training/requirements.txt)")
    (tmp_path / "sea tales.txt").write_text(book("sail ship mast storm wave deck captain harbour rope anchor"))
    (tmp_path / "farm.md").write_text(book("cow field plough barn hay farmer harvest gate wheat horse"))
    (tmp_path / "notes.pdf").write_text("Not a book.")
    others = [Told(0, "horror", "A ghost, blood, a grave."), Told(1, "horror", "A barn, a cow, hay and wheat.")]
    told = {"sea tales": "The storm broke the mast of the ship.", "farm": "The heart of a bride, tender love."}
    seen = []

    def tell(photo, style, options):
        seen.append((photo, style, style in tellers.pipe.styles))
        copied = "the " + " ".join(book("cow field plough barn hay farmer harvest gate wheat horse").split()[1:12])
        return Told(photo, style, copied if style == "farm" and photo == 1 else told[style])

    monkeypatch.setattr(tellers, "_one", tell)
    report = measure_own_books(tmp_path, tellers, tellers.library, others, draws=20)
    assert list(report) == ["farm", "sea tales"] and all(known for *_, known in seen)
    assert {(photo, style) for photo, style, _ in seen} == {(p, s) for p in range(3) for s in report}
    sea, farm = report["sea tales"], report["farm"]
    assert sea["taken"] == {"value": 1, "low": 1, "high": 1} and sea["ceiling"] == 1 and sea["others"] == 0
    assert farm["taken"]["value"] == pytest.approx(1 / 3, abs=1e-4) and farm["others"] == 0.5
    assert (sea["copied"], farm["copied"]) == (0, pytest.approx(1 / 3, abs=1e-4)) and sea["stories"] == 3
    with pytest.raises(DataError, match=r"a style 'farm' already: call the file farm\.md otherwise"):
        measure_own_books(tmp_path, tellers, tellers.library, others, draws=0)


def test_a_folder_without_books_is_one_sentence(tellers, tmp_path):
    with pytest.raises(DataError, match=r"no \.txt, \.md or \.epub file"):
        measure_own_books(tmp_path, tellers, tellers.library, [], 0)
    (tmp_path / "short.txt").write_text(book("one two", 3))
    with pytest.raises(DataError, match=r"short\.txt has 3 passages"):
        measure_own_books(tmp_path, tellers, tellers.library, [], 0)
