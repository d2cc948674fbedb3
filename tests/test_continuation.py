"""Stories that go on: reproducible, undone exactly, with the user's sentence as it was."""

import numpy as np
import pytest
from PIL import Image

from modeling import Caption, ImageError, PictaleError, Story, StoryError, StyleError
from tests.tiny import tiny_pipeline

SENTENCE = '  Then the "old lady" — Gerald\'s —\n said NO...'


def photo(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (80, 60, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def story(pipe):
    return pipe.start_story(photo(0), style="romance", seed=1, strength=1.5)


def test_a_story_begins_as_the_pipeline_tells_it(pipe, story):
    result = pipe(photo(0), style="romance", seed=1, strength=1.5)
    assert story.text == result.story and story.passages[0].choices == result.choices
    assert story.title == story.passages[0].title == result.title != "" and story.passages[0].follows == ()
    (passage,) = story.passages
    assert (passage.origin, passage.photo, passage.style, passage.strength, passage.seed) == (
        "photo",
        0,
        "romance",
        1.5,
        1,
    )
    assert [c.text for c in story.photos[0].captions] == [c.text for c in result.captions]
    winners = [choice[0].scores for choice in result.choices]
    assert passage.scores == {name: pytest.approx(np.mean([w[name] for w in winners])) for name in winners[0]}


@pytest.mark.parametrize(
    "step", [{}, {"sentence": SENTENCE}, {"photo": photo(3)}, {"photo": photo(3), "sentence": SENTENCE}]
)
def test_steps(pipe, story, step):
    before = story.to_json()
    longer = pipe.continue_story(story, seed=4, **step)
    assert longer == pipe.continue_story(story, seed=4, **step) != pipe.continue_story(story, seed=5, **step)
    assert longer.undo() == story and story.to_json() == before
    assert longer.text.startswith(story.text) and len(longer.passages) == (3 if "sentence" in step else 2)
    assert Story.from_json(longer.to_json()) == longer
    last = longer.passages[-1]
    assert (last.style, last.strength, last.seed) == ("romance", 1.5, 4)  # as before, unless told otherwise
    assert last.title == "" and longer.title == story.title  # a story has one
    assert last.origin == ("sentence" if "sentence" in step else "photo" if "photo" in step else "story")
    assert last.photo == (1 if "photo" in step else None) and len(longer.photos) == 1 + ("photo" in step)
    if "sentence" in step:
        assert longer.passages[1].text == SENTENCE and longer.passages[1].origin == "user"
        assert SENTENCE in longer.text


def test_loading_a_story_and_going_on_is_going_on(pipe, story, tmp_path):
    story.save(tmp_path / "story.json")
    again = Story.load(tmp_path / "story.json")
    assert pipe.continue_story(again, seed=2) == pipe.continue_story(story, seed=2)


def test_what_was_told_matters(pipe, story):
    longer = {
        pipe.continue_story(s, seed=2).passages[-1].text for s in (story, story.edit(0, "The cat was in the sea."))
    }
    assert len(longer) == 2


def test_what_the_photo_shows_is_told_and_what_was_told_is_not_wanted_again(pipe, monkeypatch):
    """The words to take up: the sentence's first, then those of the newest photo that no passage has."""
    wanted, write = [], pipe._write
    monkeypatch.setattr(pipe, "_write", lambda x, words, *a, **k: wanted.append(words) or write(x, words, *a, **k))
    captions = ["A dog sleeps on the red beach."]
    story = pipe.start_story(photo(0), "romance", 1, captions)
    assert set(wanted[0]) == {"dog", "sleeps", "red", "beach"}
    told = story.edit(0, "Dogs of the beach!")
    pipe.continue_story(told, sentence="The old lady of the house.", seed=2)
    assert wanted[1] == ["lady", "house", "sleeps", "red"]
    pipe.continue_story(told, photo(1), seed=2, captions=["A cat runs to the dog."])
    assert set(wanted[2]) == {"cat", "runs"}


def prompts(pipe, monkeypatch):
    """What the storyteller reads from now on."""
    read, engine = [], pipe.writers["storyteller"].engine
    opened = engine.open

    def reading(prompt, *rest):
        if prompt.endswith(("Title:", "Next:")):  # else the title that a model was carried away with is read again
            read.append(prompt)
        return opened(prompt, *rest)

    monkeypatch.setattr(engine, "open", reading)
    return read


def test_the_writer_reads_the_story_so_far(pipe, story, monkeypatch):
    read = prompts(pipe, monkeypatch)
    begun = pipe.start_story(photo(0), "horror", 1, ["A dog runs.", "A cat."])
    assert read[-1] == "Write a horror story, short.\nPhoto: A dog runs.\nTitle:"
    told = begun.edit(0, "It was night. The dog ran.")
    pipe.continue_story(told, seed=2)
    first = "Write a horror story, short.\nPhoto: A dog runs.\n"
    assert read[-1] == f"{first}Story: It was night. The dog ran.\nNext:"
    pipe.continue_story(told, sentence="Then “he”\ncame.", seed=2)
    assert read[-1] == f'{first}Story: It was night. The dog ran. Then "he" came.\nNext:'
    pipe.continue_story(told, photo(1), seed=2, captions=["a red house"])
    assert read[-1] == (
        "Write a horror story, short.\nStory: It was night. The dog ran.\nNew photo: A red house.\nNext:"
    )


def test_another_style_is_taken_and_kept(pipe, story):
    longer = pipe.continue_story(story, style="horror", seed=2, strength=0.5, lyrics=True)
    assert longer.passages[-1].style == "horror" and longer.passages[-1].lyrics and not longer.passages[0].lyrics
    again = pipe.continue_story(longer.edit(1, "He came."), sentence="So it was.", seed=3).passages[-1]
    assert (again.style, again.strength) == ("horror", 0.5)


@pytest.mark.parametrize("step", [{}, {"sentence": SENTENCE}, {"photo": photo(3)}])
def test_a_stream_is_of_whole_stories(pipe, story, step):
    grown = list(pipe.stream_continuation(story, seed=4, **step))
    assert grown[-1] == pipe.continue_story(story, seed=4, **step)
    assert grown[-1].passages[-1].choices
    for before, after in zip(grown, grown[1:], strict=False):
        assert after.text.startswith(before.text) and after.undo() == story
        assert Story.from_json(before.to_json()) == before


def test_one_story_over_several_photos_is_one_step_after_the_other(pipe):
    photos = [photo(i) for i in range(3)]
    together = pipe.start_story(photos, style="horror", seed=7)
    story = pipe.start_story(photos[0], style="horror", seed=7)
    for i, one in enumerate(photos[1:], 8):
        story = pipe.continue_story(story, one, style="horror", seed=i)
    assert together == story and [p.photo for p in story.passages] == [0, 1, 2]
    assert len(list(pipe.stream_story(photos[:2], style="horror", seed=7))) > 4


def test_a_story_may_begin_with_a_sentence_alone(pipe):
    story = pipe.continue_story(Story(), sentence=SENTENCE, seed=1)
    assert [p.origin for p in story.passages] == ["user", "sentence"] and story.passages[1].text
    assert pipe.continue_story(story, seed=2).undo() == story


def test_captions_that_are_known_are_not_made_again(pipe, story, monkeypatch):
    captions = pipe.caption(photo(0))[0]
    monkeypatch.setattr(pipe, "caption", None)
    assert pipe.start_story(photo(0), "romance", 1, captions, strength=1.5) == story
    own = pipe.start_story(photo(0), "romance", 1, ["An old lady."], thumbnails=False)
    assert own.photos[0].captions == (Caption("An old lady.", 0.0),) and own.photos[0].thumbnail is None


def test_the_name_of_a_file_is_kept_without_its_folder(pipe, tmp_path):
    photo(0).save(tmp_path / "beach.png")
    assert pipe.start_story(tmp_path / "beach.png", seed=1).photos[0].name == "beach.png"


def test_the_recipe_of_2015_forgets_what_was_told(pipe, story):
    plain = {"writer": "neural-storyteller", "beam_width": 3, "seed": 1}
    first, second = (
        pipe.continue_story(s, **plain).passages[-1] for s in (story, story.edit(0, "The cat was in the sea."))
    )
    assert first == second and first.writer == "neural-storyteller"


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda p, s: p.continue_story(s, sentence=" \n"), StoryError),
        (lambda p, s: p.continue_story(s, sentence="a" * 30_000), StoryError),
        (lambda p, s: p.continue_story(s, photo=b"none"), ImageError),
        (lambda p, s: p.continue_story(s, style="western"), StyleError),
        (lambda p, s: p.continue_story(s, seed=-1), PictaleError),
        (lambda p, s: p.continue_story(Story()), StoryError),
        (lambda p, s: p.start_story([]), ImageError),
        (lambda p, s: p.start_story(photo(0), captions=[" "]), PictaleError),
    ],
)
def test_bad_calls_are_one_sentence(pipe, story, call, error):
    with pytest.raises(error) as caught:
        call(pipe, story)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
