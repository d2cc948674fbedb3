"""What one visitor has on the table: nothing told is lost, nothing grows without end, nobody else sees it."""

import dataclasses
import itertools
from types import SimpleNamespace

import pytest

from modeling import PictaleError, StoryError, StyleError
from modeling import visit as visits
from modeling.visit import Seen, Visit, Wishes, add_style, find_style
from tests.fakes import FakePipeline, fake_style


@pytest.fixture
def pipe() -> FakePipeline:
    return FakePipeline(words=6)


@pytest.fixture
def seen(pipe, example_photos) -> Seen:
    return Seen(str(example_photos[0]), pipe.caption(str(example_photos[0]))[0])


def last(steps) -> Visit:
    *_, visit = steps
    return visit


def test_each_word_is_a_visit_that_could_be_kept(pipe, seen):
    steps = list(Visit().tell(pipe, Wishes("horror", seed=1), seen, {}))
    texts = [step.story.text for step in steps]
    assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:], strict=False))
    again = last(steps[3].go_on(pipe, Wishes("horror", seed=2), None, None, {}))
    assert again.story.text.startswith(texts[3])


def test_a_step_that_takes_too_long_is_stopped_and_kept(pipe, seen, monkeypatch):
    clock = SimpleNamespace(monotonic=itertools.count(step=visits.MAX_SECONDS / 3).__next__)  # three steps take so long
    monkeypatch.setattr(visits, "time", clock)
    told = []
    with pytest.raises(StoryError, match="took too long"):
        for step in Visit().tell(pipe, Wishes("horror", seed=1), seen, {}):
            told.append(step)
    assert told and pipe.written < 6  # it wrote no further
    monkeypatch.undo()
    assert len(last(told[-1].go_on(pipe, Wishes("horror"), None, "Then it rained.", {})).story.passages) >= 2


def test_a_story_has_an_end(pipe, seen, monkeypatch):
    visit = last(Visit().tell(pipe, Wishes("horror", seed=1), seen, {}))
    monkeypatch.setattr(visits, "MAX_PASSAGES", len(visit.story.passages))
    with pytest.raises(StoryError, match="as long as it can get"):
        last(visit.go_on(pipe, Wishes("horror"), None, None, {}))
    with pytest.raises(StoryError, match="not begun"):
        last(Visit().go_on(pipe, Wishes("horror"), None, None, {}))


def test_stories_put_aside_come_back_the_newest_first(pipe, seen):
    visit, texts = Visit(), []
    for seed in range(visits.MAX_EARLIER + 3):
        visit = last(visit.tell(pipe, Wishes("horror", seed=seed), seen, {}))
        texts.append(visit.story.text)
    for text in reversed(texts[-visits.MAX_EARLIER - 1 : -1]):
        visit = visit.undo()
        assert visit.story.text == text and visit.photos == (seen.photo,)
    assert not visit.undo().story.passages  # the oldest are gone


def test_own_styles_are_the_visitors_and_not_too_many(pipe):
    own = add_style(pipe, fake_style("aunt may", 40), {})
    assert "aunt may" not in pipe.styles and find_style(pipe, "horror", own) == "horror"
    blend = find_style(pipe, "aunt may:50,horror:50", own)
    assert (blend.name, blend.vector[0]) == ("aunt may:0.5,horror:0.5", (40 + 100) / 2)
    assert add_style(pipe, fake_style("aunt may", 50), own)["aunt may"].passages == 50  # made again
    with pytest.raises(StyleError, match="already"):
        add_style(pipe, fake_style("horror"), own)
    with pytest.raises(StyleError, match="another encoder"):
        add_style(pipe, dataclasses.replace(fake_style("mine"), encoder="elsewhere"), own)
    many = {f"style {i}": fake_style(f"style {i}") for i in range(visits.MAX_OWN_STYLES)}
    with pytest.raises(StyleError, match="reload the page"):
        add_style(pipe, fake_style("one more"), many)


@pytest.mark.parametrize("seed", ["seven", "1.5", float("nan"), float("inf"), [1], "9" * 5000])
def test_a_strange_seed_gives_a_sentence(seed):
    with pytest.raises(PictaleError, match="whole number"):
        Wishes("horror", seed=seed).checked_seed()


def test_all_photos_can_be_looked_at(pipe, seen, example_photos):
    visit = last(Visit().tell(pipe, Wishes("horror", seed=1), seen, {}))
    assert [name for name, _ in visit.gallery(seen)] == [f"Photo 1: {example_photos[0].name}"]
    other = dataclasses.replace(seen, photo=str(example_photos[1]))
    assert visit.gallery(other)[-1] == ("The photo in the frame", other)
    loaded = Visit().load(visit.story.to_json())
    ((_, shown),) = loaded.gallery()
    assert shown.photo == visit.story.photos[0].thumbnail and shown.captions[0].text == seen.captions[0].text
