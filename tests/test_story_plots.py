"""Stories in the style of a shelf of novels follow a page of one of them, and say it in other words."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from modeling import Story
from modeling.__main__ import main as terminal
from modeling.bookshelf import BOOKSHELF_FILE, Book, Bookshelf
from modeling.sampling import bar_copies, runs_of
from modeling.story_html import story_html
from modeling.story_plots import telling
from modeling.story_types import Source
from modeling.styles import encode_passages
from modeling.text import split_sentences
from tests.test_plots import CAPTIONS, LONG, made
from tests.tiny import save_tiny_pipeline, tiny_pipeline

BOOKS = (
    Book(Source("Dracula", "Bram Stoker", 1897), "horror"),
    Book(Source("Emma", "Jane Austen", 1815), "romance"),
)
THINGS = ("dog", "cat", "door", "beach", "house")


def page(thing: str, hour: str, told: bool) -> str:
    if not told:
        return f"“The {thing} is blue,” he said. “The old lady sleeps in the house,” she said to the {thing} at {hour}."
    return (
        f"The old {thing} runs in the night. The lady of the {thing} sleeps at {hour}. The red {thing} was on a beach. "
        f"He said the night was old. She was in the blue house of the {thing}. A cat sleeps."
    )


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline()
    texts = [page(t, hour, told) for _ in BOOKS for t in THINGS for hour in ("one", "two") for told in (True, False)]
    vectors = encode_passages(pipe.encoder, [split_sentences(text) for text in texts])
    owner = [i // 20 for i in range(40)]
    pipe.open_bookshelf(Bookshelf.of(texts, BOOKS, owner, vectors, pipe._fingerprint, components=8))
    return pipe


def test_what_of_a_page_is_told():
    text = "He ran. “Stop!” she cried to the man. " + "The night was very dark and cold. " * 7
    assert telling(text) == ["The night was very dark and cold."] * 5
    assert telling("The house " + "of the old man " * 9 + "fell.") == []


def test_a_story_follows_a_page_of_its_shelf(pipe, monkeypatch):
    told, conditions = [], pipe.decoder.conditions.forward

    def spy(thought, **rest):
        told.append(thought[0].numpy())
        return conditions(thought, **rest)

    monkeypatch.setattr(pipe.decoder.conditions, "forward", spy)
    result = pipe.tell(CAPTIONS, "horror", seed=1, plot=0.6, fading=0.0, focus=0.5, content_words=0, **LONG)
    x = pipe.think(CAPTIONS) - pipe._styles["caption"].vector
    b, shelf = pipe.styles["horror"].vector, pipe.writers["bookshelf"].bookshelf
    (followed,) = {events.page for events in pipe.plot(x, b, [], 1, pipe._options({**LONG, "content_words": 0}))}
    assert followed in shelf.passages[:20] and "“" not in followed
    events = pipe.encoder.encode(split_sentences(followed)[:5]) - shelf.shelves[0]
    rest = [thought for thought in told if np.abs(thought - b - 0.5 * x).max() > 1e-6]
    shares = np.array([[0.3], [0.6], [0.6], [0.6], [0.6]])  # the first sentence is about the photo first of all
    np.testing.assert_allclose(rest, b + (1 - shares) * 0.5 * x + shares * events, atol=1e-5)
    assert result.follows == (BOOKS[0].source,) and result.sources == ()


@pytest.mark.parametrize("style", ["horror", "romance", "romance:0.9,horror:0.1"])
def test_the_style_says_which_shelf(pipe, style):
    for seed in range(3):
        follows = pipe.tell(CAPTIONS, style, seed=seed, **LONG).follows
        assert follows == (BOOKS[0 if style == "horror" else 1].source,)
    assert pipe.tell(CAPTIONS, style, seed=1, plot=0.0, **LONG).follows == ()


def test_a_story_in_no_style_or_about_nothing_follows_no_page(pipe):
    assert pipe.tell(CAPTIONS, "horror", seed=1, strength=0.0, **LONG).follows == ()
    options, style = pipe._options(LONG), pipe.styles["horror"].vector
    assert pipe.plot(np.zeros_like(style), style, [], 1, options) == [None] * options.passages


def test_a_style_unlike_all_shelves_follows_everyday_life():
    pipe = tiny_pipeline()
    texts = [page(thing, "one", True) for thing in THINGS] * 8
    vectors = encode_passages(pipe.encoder, [split_sentences(text) for text in texts])
    pipe.open_bookshelf(Bookshelf.of(texts, BOOKS, [0] * 40, vectors, pipe._fingerprint, components=8))
    pipe.plots = made(pipe._fingerprint)[1]
    assert pipe.tell(CAPTIONS, "horror", seed=1, **LONG).follows
    everyday = pipe.tell(CAPTIONS, "romance", seed=1, **LONG)  # there is no such shelf
    assert not everyday.follows and any(c[0].scores["plot"] for c in everyday.choices)
    other = dataclasses.replace(pipe.styles["romance"], name="mine", vector=pipe.styles["horror"].vector * 1.02)
    assert pipe.tell(CAPTIONS, other, seed=1, **LONG).follows  # by its vector, not by its name


def test_where_no_page_tells_anything_the_plots_or_the_picture_do():
    pipe = tiny_pipeline()
    texts = [page(thing, hour, False) for thing in THINGS for hour in ("one", "two", "three", "four")]
    vectors = encode_passages(pipe.encoder, [split_sentences(text) for text in texts])
    pipe.open_bookshelf(Bookshelf.of(texts, BOOKS, [0] * 20, vectors, pipe._fingerprint, components=8))
    picture = pipe.tell(CAPTIONS, "horror", seed=1, **LONG)
    assert picture == pipe.tell(CAPTIONS, "horror", seed=1, plot=0.0, **LONG)
    pipe.plots = made(pipe._fingerprint)[1]
    assert pipe.tell(CAPTIONS, "horror", seed=1, **LONG).story != picture.story


def test_no_six_words_and_marks_of_the_page_are_said(pipe, monkeypatch):
    """With a decoder that knows nothing but the page by heart: what it would say next is what stands there."""
    ids, tokenizer = {}, pipe.decoder_tokenizer
    rng = np.random.default_rng(0)
    for size in (2, 3, 6):
        text = rng.integers(4, 9, 40).tolist()
        runs = runs_of(text, size)
        windows = {tuple(text[i : i + size]) for i in range(len(text) - size + 1)}
        assert {(*key, value) for key, values in runs.items() for value in values} == windows
        for _ in range(50):
            start = int(rng.integers(0, 30))
            row = torch.tensor([text[start : start + 9]])
            log_probs = torch.zeros(1, 12)
            bar_copies(log_probs, row, runs)
            barred = {i for i in range(12) if torch.isinf(log_probs[0, i])}
            assert barred == {i for i in range(12) if (*row[0, len(row[0]) - size + 1 :].tolist(), i) in windows}
    assert runs_of([5, -1, 6], 2) == {(-1,): [6]} and runs_of([], 6) == {}

    options, found = {**LONG, "candidates": 8, "temperature": 0.3}, 0
    for seed in range(5):
        result = pipe.tell(CAPTIONS, "horror", seed=seed, **options)
        x = pipe.think(CAPTIONS) - pipe._styles["caption"].vector
        known = pipe._words_to_show([type("C", (), {"text": c})() for c in CAPTIONS], pipe.options)
        events = pipe.plot(x, pipe.styles["horror"].vector, [*pipe.writer.known(known)], seed, pipe._options(options))
        for text in (events[0].page, result.story):
            ids[text] = tokenizer(text.replace(".", " ."), add_special_tokens=False).input_ids
        shared = set(runs_of(ids[events[0].page], 6)) & set(runs_of(ids[result.story], 6))
        copies = {
            (*key, value)
            for key in shared
            for value in set(runs_of(ids[events[0].page], 6)[key]) & set(runs_of(ids[result.story], 6)[key])
        }
        assert not copies
        found += bool(events[0].page)
    assert found == 5


def test_a_story_that_goes_on_follows_further_pages(pipe):
    pages = set()
    x = pipe.think(CAPTIONS) - pipe._styles["caption"].vector
    b, options = pipe.styles["horror"].vector, pipe._options(LONG)
    for before in ("", "The dog sleeps. " * 5, "The dog sleeps. " * 10):
        pages.add(pipe.plot(x, b, ["dog"], 1, options, before)[0].page)
    assert len(pages) == 3
    four = pipe.plot(x, b, ["dog"], 1, pipe._options({**LONG, "passages": 4}))
    assert four[0].page == four[1].page != four[2].page == four[3].page


def test_what_is_followed_is_said_and_kept(pipe, tmp_path):
    photo = np.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype=np.uint8)
    *grown, story = pipe.stream_story(photo, "horror", seed=1, **LONG)
    assert story.passages[-1].follows == (BOOKS[0].source,)
    story.save(tmp_path / "story.json")
    assert Story.load(tmp_path / "story.json") == story
    assert "after a page of Dracula, Bram Stoker (1897)" in story.to_markdown()
    markup = [story_html(part) for part in (*grown, story)]
    assert "after a page of Dracula" in markup[-1]
    assert all(b.startswith(a) for a, b in zip(markup, markup[1:], strict=False))


def test_the_terminal_says_it_too(pipe, tmp_path, capsys):
    folder = save_tiny_pipeline(tmp_path)
    pipe.writers["bookshelf"].bookshelf.save(folder / BOOKSHELF_FILE)
    from PIL import Image

    Image.new("RGB", (40, 40), "red").save(tmp_path / "photo.png")
    arguments = [str(tmp_path / "photo.png"), "--model", str(folder), "--style", "horror", "--seed", "1"]
    assert terminal(arguments) == 0
    assert "— after a page of Dracula, Bram Stoker (1897)" in capsys.readouterr().out
    assert terminal([*arguments, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["follows"] == [{"title": "Dracula", "author": "Bram Stoker", "year": 1897}]
