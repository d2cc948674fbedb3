"""Writers of any making: chosen by name, kept by a story, credited where they quote or take the manner of a book."""

from collections.abc import Iterator

import pytest

from modeling import PictaleError, Source, Story
from modeling.story_types import Candidate, Written
from modeling.writer import PassageTask
from tests.tiny import tiny_pipeline

CAPTIONS = ["A dog runs on the beach.", "A red house."]


class Quoting:
    """Quotes sentences out of two books in turn; knows only the words that it is given."""

    separator = "\n\n"
    books = (Source("Dracula", "Bram Stoker", 1897), Source("Kim"))

    def prepare(self):
        pass

    def write(self, task: PassageTask) -> Iterator[Written]:
        number = task.wish.before.count("quoted")
        words = " and ".join(task.wish.content)
        one = Candidate(f"Of {words}, quoted.", 1.0, {"words": 0.5}, self.books[number % 2])
        yield Written(one.text, ((one,),))


@pytest.fixture
def pipe():
    pipe = tiny_pipeline()
    pipe.writers["quoting"] = Quoting()
    return pipe


def test_a_writer_is_chosen_by_name(pipe):
    result = pipe.tell(CAPTIONS, style="romance", seed=1, writer="quoting")
    assert result.story == "Of dog and runs and beach and red and house, quoted." and result.title == ""
    assert result.sources == Quoting.books[:1] and str(result.sources[0]) == "Dracula, Bram Stoker (1897)"
    assert list(pipe.stream(CAPTIONS, style="romance", seed=1, writer="quoting"))[-1] == result.story
    assert pipe.tell(CAPTIONS, style="romance", seed=1).sources == ()
    names = "storyteller, neural-storyteller, bookshelf, endpoint, quoting"
    for call in (pipe.tell, pipe.start_story):
        with pytest.raises(PictaleError, match=rf"no writer 'nobody': choose from {names}, or give the Hub id.*\.$"):
            call(CAPTIONS, writer="nobody")


def test_a_story_keeps_its_writer_and_its_sources(pipe, tmp_path):
    story = pipe.continue_story(Story(), sentence="There was a dog.", style="romance", seed=1, writer="quoting")
    story = pipe.continue_story(story, seed=2)
    assert [p.writer for p in story.passages] == ["storyteller", "quoting", "quoting"]
    assert [p.sources for p in story.passages] == [(), Quoting.books[:1], Quoting.books[1:]]
    for grown in pipe.stream_continuation(story, seed=3):  # whoever stops halfway has the source as well
        assert grown.passages[-1].sources == Quoting.books[:1] and Story.from_json(grown.to_json()) == grown
    other = pipe.continue_story(story, seed=3, writer="storyteller")
    assert (other.passages[-1].writer, other.passages[-1].sources) == ("storyteller", ())
    assert "— Dracula, Bram Stoker (1897)\n" in story.to_markdown()


class Following(Quoting):
    """Names the story, and was shown a page."""

    def write(self, task: PassageTask) -> Iterator[Written]:
        yield Written("It was", title="The Night", follows=self.books[:1])
        yield Written("It was night.", title="The Night", follows=self.books[:1])


def test_a_title_and_the_books_that_were_followed_are_kept(pipe, tmp_path):
    pipe.writers["following"] = Following()
    result = pipe.tell(CAPTIONS, style="romance", seed=1, writer="following")
    assert (result.story, result.title, result.follows) == ("It was night.", "The Night", Quoting.books[:1])
    assert result.sources == ()
    for grown in pipe.stream_continuation(Story(), sentence="So.", style="romance", seed=1, writer="following"):
        if len(grown.passages) > 1:
            assert grown.title == "The Night" and grown.passages[-1].follows == Quoting.books[:1]
            assert Story.from_json(grown.to_json()) == grown
    text = grown.to_markdown()
    assert text.startswith("# The Night\n") and "— in the manner of Dracula, Bram Stoker (1897)\n" in text


def test_every_writer_that_is_there_is_known(pipe):
    assert all(pipe.has_writer(name) for name in ("storyteller", "neural-storyteller", "quoting"))
    assert not any(pipe.has_writer(name) for name in ("bookshelf", "endpoint", "decoder", "nobody"))
    assert pipe.about_writer("storyteller") == pipe.about_writer("nobody") == pipe.about_writer(None) == ""
