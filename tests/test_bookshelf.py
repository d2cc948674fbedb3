"""The bookshelf: what is kept of a passage, which one is quoted, and how a shelf is filled."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from modeling import ModelFolderError, PictaleError, Source, StoryError
from modeling.__main__ import main as terminal
from modeling.bookshelf import Book, Bookshelf
from modeling.fingerprints import encoder_fingerprint
from modeling.styles import encode_passages
from modeling.word_forms import base_form
from tests.tiny import save_tiny_pipeline, tiny_encoder, tiny_pipeline, tiny_tokenizer
from training.book_passages import BookPassage, choose_passages, is_quotable, quotable_passages, tidy, wanted_words
from training.build_bookshelf import build, main

BOOKS = (
    Book(Source("Dracula", "Bram Stoker", 1897), "horror"),
    Book(Source("Carmilla", "J. Sheridan Le Fanu", 1872), "horror"),
    Book(Source("Emma", "Jane Austen", 1815), "romance"),
)
THINGS = ("dog", "cat", "door", "beach", "house")


def passages() -> tuple[list[str], list[int]]:
    texts = [
        f"At {hour} the {thing} of {book.source.title} {'runs' if book.genre == 'horror' else 'sleeps'} in the sea. "
        f"The lady said the {thing} of {book.source.title} was blue at {hour}."
        for book in BOOKS
        for thing in THINGS
        for hour in ("one", "two")
    ]
    return texts, [i // 10 for i in range(30)]


def thoughts(texts: list[str]) -> np.ndarray:
    encoder = tiny_encoder()
    encoder.tokenizer = tiny_tokenizer()
    return encode_passages(encoder, [[text] for text in texts])


@pytest.fixture(scope="module")
def shelf() -> Bookshelf:
    texts, book = passages()
    return Bookshelf.of(texts, BOOKS, book, thoughts(texts), encoder_fingerprint(tiny_encoder()), components=8)


@pytest.fixture(scope="module")
def pipe(shelf):
    pipe = tiny_pipeline()
    pipe.open_bookshelf(shelf)
    return pipe


def test_it_keeps_what_the_head_of_the_file_says(shelf):
    texts, _ = passages()
    vectors = thoughts(texts).astype(np.float64)
    centred = vectors - vectors.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    kept = shelf.codes * shelf.scale
    assert kept.shape == (30, 8) and np.abs(shelf.codes).max(0).tolist() == [127] * 8
    places = shelf.project(vectors - shelf.mean)
    assert np.all(np.abs(kept - places) <= shelf.scale / 2 + 1e-6)
    expected = centred @ directions[:8].T  # up to the sign of each direction, and float16
    np.testing.assert_allclose(np.abs(places), np.abs(expected), atol=2e-3 * np.abs(expected).max())
    horror = vectors[:20].mean(0), vectors[20:].mean(0)
    np.testing.assert_allclose(shelf.shelves, horror, atol=1e-6)
    assert shelf.genres == ("horror", "romance") and shelf.shelf.tolist() == [0] * 20 + [1] * 10


def test_a_file_gives_it_back(shelf, tmp_path):
    shelf.save(tmp_path / "new" / "shelf.safetensors")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["shelf.safetensors"]
    again = Bookshelf.load(tmp_path / "new" / "shelf.safetensors")
    for field in dataclasses.fields(Bookshelf):
        one, other = getattr(shelf, field.name), getattr(again, field.name)
        np.testing.assert_array_equal(one, other) if isinstance(one, np.ndarray) else None
        assert isinstance(one, np.ndarray) or one == other


def change(path, arrays=None, metadata=None):
    with safe_open(path, framework="np") as file:
        old = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file({**old[0], **(arrays or {})}, path, {**old[1], **(metadata or {})})


@pytest.mark.parametrize(
    "arrays, metadata, says",
    [
        ({}, {"format": "pictale-style"}, "no bookshelf"),
        ({}, {"version": "2"}, "no bookshelf"),
        ({}, {"books": "[]"}, "damaged"),
        ({}, {"books": "{"}, "damaged"),
        ({}, {"genres": '["horror"]'}, "damaged"),
        ({"text": np.zeros(9, np.uint8)}, {}, "damaged"),
        ({"codes": np.zeros((29, 8), np.int8)}, {}, "damaged"),
        ({"book": np.full(30, 3, np.int16)}, {}, "damaged"),
        ({"mean": np.full(24, np.nan, np.float32)}, {}, "damaged"),
        ({"more": np.zeros(1)}, {}, "damaged"),
    ],
)
def test_a_damaged_file_is_one_sentence(shelf, tmp_path, arrays, metadata, says):
    path = tmp_path / "shelf.safetensors"
    shelf.save(path)
    change(path, arrays, metadata)
    with pytest.raises(ModelFolderError, match=says) as caught:
        Bookshelf.load(path)
    assert "\n" not in str(caught.value)
    path.write_bytes(b"nothing")
    with pytest.raises(ModelFolderError, match="damaged"):
        Bookshelf.load(path)


def test_recall_counts_rare_words_more_and_any_form(shelf):
    wanted = ["dogs", "lady", "elephant"]  # 6 of 30 passages, all, none
    rare, common = np.log(1 + 30 / 6), np.log(2)
    expected = [(rare * ("dog" in text) + common) / (rare + common) for text in shelf.passages]
    np.testing.assert_allclose(shelf.recall(wanted), expected, rtol=1e-6)
    assert not shelf.recall(["elephant"]).any() and not shelf.recall([]).any()


def test_quotations_are_found_in_the_order_of_the_text(shelf):
    one, two, three = shelf.passages[3], shelf.passages[12], shelf.passages[20]
    assert shelf.quoted_in(f"{two}\n\nThen she said: {one[:50]}... no more. {three[20:]}") == [12, 3, 20]
    assert shelf.quoted_in("Nothing.") == shelf.quoted_in("") == []


# -- the writer ------------------------------------------------------------------------------------------------------
PLAIN = {"writer": "bookshelf", "strength": 0.0}


def test_the_photos_words_count(pipe):
    for thing in THINGS:
        result = pipe.tell([f"A {thing}."], style="horror", seed=1, **PLAIN)
        for candidate in result.candidates:
            assert candidate.scores["words"] == (f"the {thing} of" in candidate.text)
        assert any(candidate.scores["words"] for candidate in result.candidates)
        assert result.story == result.candidates[0].text and result.sources == (result.candidates[0].source,)
        assert result.sources[0].title in result.story and result.follows == () and result.title == ""
        assert [c.score for c in result.candidates] == sorted((c.score for c in result.candidates), reverse=True)


def test_a_score_is_the_sum_of_its_parts(pipe, shelf, monkeypatch):
    """Words and nearness count half each, in deviations over all passages; the style as the head of the module says."""
    writer, tasks = pipe.writers["bookshelf"], []
    search = writer.search
    monkeypatch.setattr(writer, "search", lambda task: tasks.append(task) or search(task))
    for strength, seed in ((0.0, 1), (1.0, 1), (2.0, 7)):
        best = pipe.tell(["A dog."], style="horror", seed=seed, writer="bookshelf", strength=strength).candidates
        rows = writer._scores(tasks[-1])
        assert len(best) == 20
        for one in best:
            place = shelf.passages.index(one.text)
            z = {name: (v[place] - v.mean()) / v.std() for name, v in rows.items() if name in ("grounding", "words")}
            expected = (z["grounding"] + z["words"]) / 2 + 6 * strength * rows["style"][place]
            assert one.score == pytest.approx(expected + one.scores["chance"], abs=1e-4)


def test_nearness_is_the_cosine_to_what_is_particular_to_the_photo(pipe, shelf):
    """Against the equation with full vectors: the shelf has as many components as passages allow."""
    texts, book = passages()
    vectors = thoughts(texts)
    whole = Bookshelf.of(texts, BOOKS, book, vectors, shelf.encoder, components=24)
    pipe.open_bookshelf(whole)
    x = pipe.think(["She was in it."]) - pipe._styles["caption"].vector
    particular = vectors - np.stack([vectors[:20].mean(0)] * 20 + [vectors[20:].mean(0)] * 10)
    cosines = particular @ x / np.linalg.norm(particular, axis=1) / np.linalg.norm(x)
    result = pipe.tell(["She was in it."], seed=1, **PLAIN)  # without a word to look for
    pipe.open_bookshelf(shelf)
    assert {c.scores["words"] for c in result.candidates} == {0}
    found = {texts.index(c.text): c.scores["grounding"] for c in result.candidates}
    assert set(found) == set(np.argsort(-cosines)[:20].tolist())
    np.testing.assert_allclose(list(found.values()), cosines[list(found)], atol=0.02)


@pytest.mark.parametrize("style, title", [("horror", ("Dracula", "Carmilla")), ("romance", ("Emma",))])
def test_the_style_decides_the_shelf(shelf, style, title):
    pipe = tiny_pipeline()
    named = {g: dataclasses.replace(pipe.styles[g], vector=shelf.shelves[i]) for i, g in enumerate(shelf.genres)}
    for one in named.values():
        pipe.add_style(one)
    pipe.open_bookshelf(shelf)
    told = {pipe.tell(["A dog."], style=style, seed=s, writer="bookshelf").sources[0].title for s in range(8)}
    assert told <= set(title)
    other = pipe.tell(["A dog."], style=style, seed=1, writer="bookshelf", strength=-1).sources[0].title
    assert other not in title  # told against the style


def test_a_story_repeats_nothing_until_all_is_told(pipe, shelf):
    story = pipe.start_story(np.zeros((40, 40, 3), np.uint8), captions=["A dog."], seed=1, **PLAIN)
    for seed in range(2, 31):
        story = pipe.continue_story(story, seed=seed)
        assert story.passages[-1].writer == "bookshelf"  # kept
    told = [passage.text for passage in story.passages]
    assert len(told) == len(set(told)) == 30 and set(told) == set(shelf.passages)
    books = [next(i for i, b in enumerate(BOOKS) if b.source.title in text) for text in told]
    assert books == sorted(books, key=books.index)  # a book is read to its end before another is opened
    with pytest.raises(StoryError, match="quoted every passage"):
        pipe.continue_story(story, seed=1)


def test_a_seed_gives_its_passage_again_and_others_give_others(pipe):
    told = {s: pipe.tell(["A house."], seed=s, **PLAIN).story for s in range(12)}
    assert len(set(told.values())) > 1
    assert told == {s: pipe.tell(["A house."], seed=s, **PLAIN).story for s in told}
    assert list(pipe.stream(["A house."], seed=3, **PLAIN))[-1] == told[3]


def test_without_a_bookshelf_or_with_another_encoders_it_is_one_sentence(shelf, tmp_path):
    pipe = tiny_pipeline()
    for place in (None, tmp_path / "none.safetensors"):
        pipe.open_bookshelf(place)
        with pytest.raises(PictaleError, match=r"no bookshelf .* `python -m training\.build_bookshelf .*another"):
            pipe.tell(["A dog."], writer="bookshelf")
    foreign = dataclasses.replace(shelf, encoder="0" * 12)
    with pytest.raises(ModelFolderError, match="another encoder"):
        pipe.open_bookshelf(foreign)
    foreign.save(tmp_path / "foreign.safetensors")
    pipe.open_bookshelf(tmp_path / "foreign.safetensors")
    with pytest.raises(ModelFolderError, match="another encoder"):
        pipe.start_story(np.zeros((40, 40, 3), np.uint8), writer="bookshelf")
    assert pipe.tell(["A dog."], seed=1).story  # the others are not held up by it


# -- filling it ------------------------------------------------------------------------------------------------------
GOOD = "The dog ran along the beach. A man stood by the old house and looked at the sea, which was blue."


@pytest.mark.parametrize(
    "text, good",
    [
        (GOOD, True),
        ("“Come,” said the man. The dog ran along the beach, and nobody saw where it went in the end.", True),
        (GOOD[:40], False),  # no whole sentence
        (GOOD.replace("The dog", "the dog"), False),
        (GOOD.replace("The dog", "But the dog"), False),
        (GOOD.replace("The dog", "He"), False),
        (GOOD.split(". ")[1], False),  # a single sentence
        (GOOD.replace("by the old house", "by Mary, John, Anna, Peter"), False),
        ("“The dog ran along the beach. A man stood by the old house and looked at the sea.” He sighed.", False),
        (GOOD.replace("dog", "dog [1]"), False),
        (GOOD.replace("blue", "told of in the last chapter"), False),
        (GOOD.replace("man", "savage"), False),
        (GOOD.replace("stood", "was standin'"), False),
        (GOOD.replace("A man", "“A man"), False),  # a quotation left open
    ],
)
def test_what_can_be_quoted(text, good):
    assert is_quotable(text) == good


def test_a_paragraph_is_tidied():
    assert tidy('  "Come,"  he said--_now_. ') == "“Come,” he said—now."


def test_passages_are_whole_paragraphs_of_the_length_asked_for():
    rows = [{"text": f"CHAPTER I\n\n{GOOD}\n\n{GOOD} {GOOD}\n\nShort. Very.\n"}, {"text": [GOOD]}]
    assert quotable_passages(rows, (10, 30)) == [BookPassage(GOOD, 0)]


def test_every_genre_has_its_share_and_every_word_its_passage():
    books = [*BOOKS, Book(Source("Little"), "short")]
    pool = [
        BookPassage(f"{word} {i} {book} " + "x" * 20, book) for book in range(3) for word in THINGS for i in range(20)
    ]
    pool += [BookPassage("dog", 3)]
    wanted = {base_form(word): 1.0 for word in THINGS}
    chosen = choose_passages(pool, books, wanted, 41)
    assert len(chosen) == len(set(chosen)) == 41 and chosen == sorted(chosen, key=pool.index)
    genres = [books[p.book].genre for p in chosen]
    assert (genres.count("short"), genres.count("horror"), genres.count("romance")) == (1, 20, 20)
    assert [sum(p.text.startswith(word) for p in chosen if p.book == 2) for word in THINGS] == [4] * 5
    assert all(5 <= sum(p.book == book for p in chosen) <= 15 for book in (0, 1))
    assert len(choose_passages(pool, books, {}, 1000)) == len(pool)


def test_pages_that_tell_come_before_those_that_talk():
    told = "A dog ran. The man {}. It was {}."
    spoken = "“A dog ran,” said the man {}. He was {}. It rained."
    short = "A dog ran to the man {}, and it was {}."
    pool = [BookPassage(text.format(i, i), 0) for i in range(20) for text in (spoken, told, short)]
    chosen = choose_passages(pool, BOOKS, {"dog": 1.0, "man": 0.5}, 20)
    assert {p.text for p in chosen} == {told.format(i, i) for i in range(20)}


def test_wanted_words_are_what_the_captioner_can_say():
    wanted = wanted_words(tiny_tokenizer())
    assert {"dog", "cat", "beach", "hous"} <= set(wanted) and "the" not in wanted
    assert all(0 < weight <= 1 for weight in wanted.values())


def book(words: str) -> str:
    return "\n\n".join(
        f"The old {word} of the {colour} house stood by the door. Nobody saw it, but the lady said it was {colour}."
        for word in words.split()
        for colour in ("red", "blue", "green", "white", "black", "grey")
    )


def test_the_command_builds_what_the_terminal_quotes(tmp_path, capsys):
    model = save_tiny_pipeline(tmp_path / "models")
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "one.txt").write_text("My Book\n\n" + book("dog cat beach night dogs"))
    (texts / "two.txt").write_text("Another\n\n" + book("table chair sofa lamp window"))
    settings = [
        *("--text", str(texts), "--encoder", str(tmp_path / "models" / "tiny-encoder")),
        *("--captioner", str(tmp_path / "models" / "tiny-captioner"), "--passages", "52", "--components", "6"),
    ]
    assert main([*settings, "--output", str(model), "--json"]) == 2  # paragraphs of 20 words are too short by default
    assert "0 paragraphs of 40 to 90 words" in capsys.readouterr().err
    assert main([*settings[:-4], "--passages", "0", "--output", str(model)]) == 2
    encoder = tiny_encoder()
    encoder.tokenizer = tiny_tokenizer()
    built = build(str(texts), encoder, tiny_tokenizer(), 52, 6, words=(15, 30))
    built.save(model / "bookshelf.safetensors")
    assert len(built.passages) == 52 and [b.source.title for b in built.quoted_books] == ["My Book", "Another"]

    from PIL import Image

    Image.new("RGB", (40, 40), "red").save(tmp_path / "photo.png")
    told = [str(tmp_path / "photo.png"), "--model", str(model), "--writer", "bookshelf", "--seed", "1"]
    assert terminal([*told, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["story"] in built.passages and record["sources"][0]["title"] in ("My Book", "Another")
    assert terminal(told) == 0
    assert f"\n— {record['sources'][0]['title']}\n" in capsys.readouterr().out
    (model / "bookshelf.safetensors").rename(tmp_path / "mine.safetensors")
    assert terminal(told) == 2 and "no bookshelf" in capsys.readouterr().err
    assert terminal([*told[:3], "--bookshelf", str(tmp_path / "mine.safetensors"), "--seed", "1", "--json"]) == 0
    assert "sources" in json.loads(capsys.readouterr().out)
