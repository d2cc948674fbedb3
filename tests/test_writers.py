"""Writers other than the story decoder: chosen by name, kept by a story, credited where they quote."""

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

    def known(self, words):
        return [word for word in words if word in ("dog", "house")]

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
    result = pipe.tell(CAPTIONS, style="romance", seed=1, writer="quoting", passages=3)
    assert result.content_words == ("dog", "house")
    assert result.story.split("\n\n") == ["Of dog and house, quoted."] * 3
    assert result.sources == Quoting.books and [str(s) for s in result.sources] == [
        "Dracula, Bram Stoker (1897)",
        "Kim",
    ]
    assert list(pipe.stream(CAPTIONS, style="romance", seed=1, writer="quoting", passages=3))[-1] == result.story
    assert pipe.tell(CAPTIONS, style="romance", seed=1).sources == ()
    names = "decoder, bookshelf, endpoint, quoting"
    for call in (pipe.tell, pipe.start_story):
        with pytest.raises(PictaleError, match=rf"no writer 'nobody': choose from {names}, or give the Hub id.*\.$"):
            call(CAPTIONS, writer="nobody")


def test_a_story_keeps_its_writer_and_its_sources(pipe, tmp_path):
    story = pipe.continue_story(
        Story(), sentence="There was a dog.", style="romance", seed=1, writer="quoting", passages=1
    )
    story = pipe.continue_story(story, seed=2, passages=1)
    assert [p.writer for p in story.passages] == ["decoder", "quoting", "quoting"]
    assert [p.sources for p in story.passages] == [(), Quoting.books[:1], Quoting.books[1:]]
    for grown in pipe.stream_continuation(story, seed=3, passages=1):  # whoever stops halfway has the source as well
        assert grown.passages[-1].sources == Quoting.books[:1] and Story.from_json(grown.to_json()) == grown
    other = pipe.continue_story(story, seed=3, writer="decoder")
    assert (other.passages[-1].writer, other.passages[-1].sources) == ("decoder", ())
    assert "— Dracula, Bram Stoker (1897)\n" in story.to_markdown()
