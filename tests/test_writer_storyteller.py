"""The storyteller: a title, sentences chosen among candidates, an end; by an engine that says what it is told to."""

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from modeling import Source, StoryError, StoryOptions
from modeling.reranking import Proposal, Wish, weighted_sums
from modeling.sampling import SamplingOptions
from modeling.story_engine import StoryEngine
from modeling.story_scheduler import Continuation
from modeling.story_types import LENGTHS, Candidate
from modeling.style_pages import Page
from modeling.text import lyric_lines
from modeling.writer import PassageTask
from modeling.writer_storyteller import LEAST_SHARE, StorytellerWriter, _line_over, _seeds, _sentence_over
from tests.tiny import tiny_pipeline, tiny_storyteller

CAPTIONS = ["A dog runs on the beach.", "A red house."]
END = ""  # what a scripted engine says where the story ends


class Scripted(StoryEngine):
    """Says what it was told to, piece by piece; remembers what it was asked.

    Args:
        title: What comes after `Title:`, to the end of the line.
        rows: For each sentence what each candidate says: pieces that are joined, `END` where the story is over. The
            last ones are said again and again.
    """

    def __init__(self, title: str, *rows: Sequence[str]) -> None:
        self.title, self.rows = title, rows
        self.prompt, self.page = "", ""
        self.asked: list[tuple[int, tuple[int, ...], SamplingOptions, bool]] = []
        self.kept: list[int] = []
        self.opened = self.closed = 0
        self.titling = False

    def open(self, prompt: str, page: str = "", told: str = "") -> "Scripted":
        self.prompt, self.page = prompt, page
        return self

    def __enter__(self) -> "Scripted":
        self.opened += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.closed += 1

    def keep(self, index: int = 0) -> None:
        if not self.titling:
            self.kept.append(index)
        self.titling = False

    def write(
        self,
        seeds: Sequence[int],
        sampling: SamplingOptions,
        until: Callable[[str], bool],
        max_tokens: int | None = None,
        allow_end: bool = True,
    ) -> "Said":
        self.asked.append((len(seeds), tuple(seeds), sampling, allow_end))
        if until(f"{self.title}\nStory:"):  # it is asked for the title
            assert len(seeds) == 1 and not until(self.title) and not allow_end
            self.titling = True
            return Said(self._row(f"{self.title}\nStory:", "stop"))
        return Said(*self._steps(len(seeds), until))

    @staticmethod
    def _row(text: str, ended: str) -> list[Continuation]:
        return [Continuation((1,), text, (-1.0,), ended)]

    def _steps(self, count: int, until: Callable[[str], bool]) -> Iterator[list[Continuation]]:
        said = self.rows[min(len(self.kept), len(self.rows) - 1)][:count]
        pieces = [re.findall(r"\s*\S+\s*$|\s*\S+|\s+$", text) for text in said]
        rows = [Continuation()] * len(said)
        for step in range(1 + max(map(len, pieces))):
            for i, row in enumerate(rows):
                if row.ended:
                    continue
                if step >= len(pieces[i]):  # it has nothing more to say
                    rows[i] = Continuation(row.ids, row.text, row.log_probs, "end")
                    continue
                text = row.text + pieces[i][step]
                ended = "stop" if until(text) else ""
                rows[i] = Continuation((*row.ids, step), text, (*row.log_probs, -0.5), ended)
            yield list(rows)
            if all(row.ended for row in rows):
                return


class Said:
    """What is written, step by step."""

    def __init__(self, *steps: list[Continuation]) -> None:
        self.steps = steps

    def __enter__(self) -> "Said":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[list[Continuation]]:
        return iter(self.steps)

    def result(self) -> list[Continuation]:
        return self.steps[-1]


class FirstIsBest:
    """Ranks candidates by the place of a word in their text: `best`, then by order."""

    def __init__(self, wish: Wish, options: StoryOptions) -> None:
        self.kept: list[tuple[int, str]] = []

    def score(self, proposals: Sequence[Proposal]) -> list[Candidate]:
        return [
            Candidate(p.text, 10.0 * ("best" in p.text) - i, {"likelihood": p.log_prob})
            for i, p in enumerate(proposals)
        ]

    def keep(self, index: int, text: str) -> None:
        self.kept.append((index, text))


def tell(engine: Scripted, page: Page | None = None, before: str = "", seed: int = 1, **options):
    """All that is written, as it grows."""
    rankings = []

    def ranking(wish, chosen):
        rankings.append(FirstIsBest(wish, chosen))
        return rankings[-1]

    writer = StorytellerWriter(engine, lambda task: page, ranking)
    nothing = np.zeros(3, np.float32)
    task = PassageTask(
        nothing, Wish(nothing, before=before), seed, StoryOptions(**options), "horror", ("a dog",), new_photo=not before
    )
    grown = list(writer.write(task))
    tell.ranking = rankings[0]
    return grown


TWELVE = " The dog sat by the sea and saw the boats go out."  # words


# -- the course of a story --------------------------------------------------------------------------------------------
def test_it_names_the_story_writes_it_and_ends_it():
    engine = Scripted(" The Sea ", [TWELVE], [TWELVE], [" It rained."], [END])
    grown = tell(engine, length="short", candidates=1)
    last = grown[-1]
    assert last.text == f"{(TWELVE * 2).strip()} It rained." and last.title == "The Sea"
    assert {written.title for written in grown} == {"The Sea"}
    assert engine.prompt == "Write a horror story, short.\nPhoto: A dog.\nTitle:"
    assert engine.kept == [0, 0, 0] and (engine.opened, engine.closed) == (1, 1)


def test_a_title_is_without_marks_around_it():
    for said in (' "The Sea."', " The Sea.", "The Sea"):
        assert tell(Scripted(said, [TWELVE]), length="short", candidates=1)[-1].title == "The Sea"
    assert tell(Scripted(' The "Sea" of Jo', [TWELVE]), candidates=1)[-1].title == "The “Sea” of Jo"


def test_a_story_that_goes_on_has_no_title_and_reads_what_was_told():
    engine = Scripted("no", [TWELVE])
    last = tell(engine, before="“It was late,” he said.", length="short", candidates=1)[-1]
    assert last.title == ""
    assert engine.prompt == 'Write a horror story, short.\nPhoto: A dog.\nStory: "It was late," he said.\nNext:'


def test_of_a_long_story_the_end_is_read():
    engine = Scripted("no", [TWELVE])
    tell(engine, before="It rained and rained. " * 100 + "She came.", length="short", candidates=1)
    read = engine.prompt.split("Story: ")[1].removesuffix("\nNext:")
    assert read == f"{'It rained and rained. ' * 29}She came."  # whole sentences, 120 words at most


@pytest.mark.parametrize("length", LENGTHS)
def test_it_may_end_when_enough_is_told_and_must_when_it_is_long(length):
    least, most = LENGTHS[length]
    engine = Scripted("T", [TWELVE])
    text = tell(engine, length=length, candidates=1)[-1].text
    count = len(text.split())
    assert most <= count < most + 12 and text.endswith("out.")  # the sentence in which it has become long enough
    allowed = [may_end for *_, may_end in engine.asked[1:]]
    assert allowed == [12 * i >= LEAST_SHARE * least for i in range(len(allowed))] and len(set(allowed)) == 2


def test_the_first_candidate_says_whether_it_is_over():
    lines = [TWELVE, " More best words."]
    for last, sentences in (([END, " More."], 2), ([" More.", END], 3)):
        engine = Scripted("T", lines, lines, last, [END])
        grown = tell(engine, length="short", candidates=2)
        assert len(grown[-1].choices) == sentences
    assert [c.text for c in grown[-1].choices[2]] == ["More."]  # the others count where it goes on


def test_nothing_at_all_is_one_sentence():
    for rows in ([END], [" \n "], ["  ", END]):
        with pytest.raises(StoryError, match=r"has written nothing: .*\.$"):
            tell(Scripted("T", rows), length="short", candidates=len(rows))


def test_a_model_without_words_comes_to_an_end():
    text = tell(Scripted("T", ["x"]), candidates=1)[-1].text  # never a sentence, nor a second word
    assert set(text) == {"x", "."}


def test_a_story_that_ends_within_a_sentence_is_not_gone_on_with():
    """The engine refuses to write on after the end."""
    engine = Scripted("T", [TWELVE] * 2, [TWELVE] * 2, [" And so", " The best end"], [" no more."] * 2)
    grown = tell(engine, length="short", candidates=2)
    assert grown[-1].text == f"{(TWELVE * 2).strip()} The best end." and len(engine.asked) == 1 + 3
    assert [c.text for c in grown[-1].choices[-1]] == ["The best end", "And so"]


def test_a_story_that_breaks_off_ends_with_a_period():
    for said, shown in ((" It rained, and", "It rained, and."), (" It rained,", "It rained."), (" “No” --", "“No”.")):
        grown = tell(Scripted("T", [TWELVE], [TWELVE], [said]), length="short", candidates=1)
        assert grown[-1].text == f"{(TWELVE * 2).strip()} {shown}"
        for before, after in zip(grown, grown[1:], strict=False):
            assert after.text.startswith(before.text)


# -- candidates -------------------------------------------------------------------------------------------------------
def test_choices_hold_all_candidates_best_first_and_the_story_goes_on_from_the_best():
    engine = Scripted("T", [" One.", " Two best.", " Three."], [TWELVE * 2, TWELVE * 4, TWELVE], [END])
    last = tell(engine, length="short", candidates=3)[-1]
    assert [c.text for c in last.choices[0]] == ["Two best.", "One.", "Three."]
    assert engine.kept == [1, 0] and last.text.startswith("Two best. The dog")
    assert tell.ranking.kept[0] == (1, "Two best.") and tell.ranking.kept[1] == (0, last.text)
    for choice in last.choices:
        assert [c.score for c in choice] == sorted((c.score for c in choice), reverse=True)
    assert last.choices[0][0].scores["likelihood"] == -0.5  # of each token


def test_a_blank_candidate_is_none():
    engine = Scripted("T", [" One.", "", " Two best."], [TWELVE * 4] * 3)
    last = tell(engine, length="short", candidates=3)[-1]
    assert [c.text for c in last.choices[0]] == ["Two best.", "One."] and engine.kept[0] == 2


def test_one_candidate_streams_word_by_word_and_several_by_sentences():
    grown = tell(Scripted("T", [TWELVE]), length="short", candidates=1)
    texts = [written.text for written in grown]
    assert all(b.startswith(a) for a, b in zip(texts, texts[1:], strict=False))
    assert len(set(texts)) >= 48 and {
        len(b.split()) - len(a.split()) for a, b in zip(texts, texts[1:], strict=False)
    } <= {0, 1}
    grown = tell(Scripted("T", [TWELVE] * 3), length="short", candidates=3)
    texts = [written.text for written in grown]
    assert [len(text.split()) for text in dict.fromkeys(texts)] == [12, 24, 36, 48]
    assert [len(written.choices) for written in grown] == [1, 2, 3, 4, 4]


def test_quotation_marks_have_sides():
    rows = [' "Come," he said.'], [' "Sit by the sea. See the boats go out."'], [" It's late."], [TWELVE]
    grown = tell(Scripted("T", *rows), length="short", candidates=1)
    assert grown[-1].text.startswith("“Come,” he said. “Sit by the sea. See the boats go out.” It's late. The dog")
    first, second, *_ = grown[-1].choices
    assert (first[0].text, second[0].text) == ("“Come,” he said.", "“Sit by the sea. See the boats go out.”")


def test_a_song_is_written_in_lines():
    lines = [" The sea is wide, /", " the boats are gone. The night /", " is long. /"] * 3
    grown = tell(Scripted("T", *([line] for line in lines), [END]), lyrics=True, length="short", candidates=1)
    last = grown[-1]
    assert [choice[0].text for choice in last.choices] == [line.strip() for line in lines]
    assert last.text == "".join(lines).strip(" /")  # the marks are what the lines are broken at
    assert lyric_lines(last.text).split("\n")[:3] == ["The sea is wide,", "The boats are gone. The night", "Is long."]


# -- pages, options, seeds --------------------------------------------------------------------------------------------
def test_a_page_is_shown_barred_and_its_book_named():
    source = Source("Dracula", "Bram Stoker", 1897)
    engine = Scripted("T", [TWELVE])
    grown = tell(engine, Page('He said: "No."', source), candidates=1)
    assert '\nPage: He said: "No."\n' in engine.prompt and engine.page == 'He said: "No."'
    assert {written.follows for written in grown} == {(source,)}
    engine = Scripted("T", [TWELVE])
    assert tell(engine, Page("He said."), candidates=1)[-1].follows == () and engine.page == "He said."
    engine = Scripted("T", [TWELVE])
    assert tell(engine, candidates=1)[-1].follows == () and engine.page == ""


def test_the_options_reach_the_engine():
    engine = Scripted("T", [TWELVE] * 4)
    tell(engine, temperature=0.3, top_p=0.5, min_p=0.2, candidates=4)
    (count, _, title, _), *sentences = engine.asked
    assert count == 1 and (title.top_p, title.min_p) == (0.5, 0.2)
    for count, seeds, sampling, _ in sentences:
        assert count == len(set(seeds)) == 4
        assert (sampling.temperature, sampling.top_p, sampling.min_p) == (0.3, 0.5, 0.2)
        assert sampling.no_repeat_ngram_size > 0 and sampling.max_new_tokens >= 20


def test_seeds_differ_between_parts_candidates_and_neighbours():
    drawn = [seed for one in (1, 2, 3) for part in range(20) for seed in _seeds(one, part, 8)]
    assert len(set(drawn)) == len(drawn) and min(drawn) >= 0
    assert _seeds(1, 2, 3) == _seeds(1, 2, 3) == _seeds(1, 2, 8)[:3]


# -- where sentences end ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "over"),
    [
        (" It rained.", True),
        (" It rained! ", True),
        (" It rained?", True),
        (" It rained...", True),
        (" It rained…", True),
        (' "It rained."', True),
        (' "It rained." ', True),
        (' "It rained.', False),  # the speech goes on
        (' "No," he said. "It rained.', False),
        (' "No," he said. "It rained."', True),
        (' "Will you?" ', True),
        (" (It rained.)", True),
        (" It rained", False),
        (" It rained,", False),
        ("", False),
        (" Mr.", False),
        (" She saw Mrs.", False),
        (" St. ", False),
        (" It was J.", False),
        (" It was No.", False),
        (" It was noon.", True),
        (" She asked for the Dr.", False),
        (" He said so to Kim.", True),
    ],
)
def test_where_a_sentence_is_over(text, over):
    assert _sentence_over(text) is over


def test_where_a_line_of_a_song_is_over():
    assert _line_over(" The sea is wide, /") and _line_over(" The sea /  ")
    assert not _line_over(" The sea is wide.") and not _line_over(" /") and not _line_over("")


# -- the tiny model, the whole path -----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def test_a_seed_is_a_story(pipe):
    first = pipe.tell(CAPTIONS, style="romance", seed=3)
    assert pipe.tell(CAPTIONS, style="romance", seed=3) == first
    assert tiny_pipeline().tell(CAPTIONS, style="romance", seed=3) == first
    others = [pipe.tell(CAPTIONS, style="romance", seed=seed) for seed in range(4, 8)]
    assert len({first.story, *(other.story for other in others)}) == 5
    assert len({first.title, *(other.title for other in others)}) == 5


def test_the_best_of_its_candidates_is_the_one_with_the_highest_sum(pipe):
    result = pipe.tell(CAPTIONS, style="romance", seed=3, weight_words=3.0)
    options = StoryOptions(weight_words=3.0)
    for choice in result.choices:
        sums = weighted_sums([candidate.scores for candidate in choice], options)
        assert [c.score for c in choice] == pytest.approx(sums, abs=1e-5) and sums[0] == max(sums)


def test_nothing_of_a_page_is_copied(pipe, monkeypatch):
    """A story that the model writes by itself it cannot write where the same text is the page that it is shown."""
    engine = pipe.writers["storyteller"].engine
    told = pipe.tell(CAPTIONS, style="romance", seed=3, candidates=1).story
    opened, pages = engine.open, []

    def barring(prompt, page="", before=""):  # the prompt stays as it was: only what is barred changes
        pages.append(page)
        return opened(prompt, told, before)

    monkeypatch.setattr(engine, "open", barring)
    other = pipe.tell(CAPTIONS, style="romance", seed=3, candidates=1).story
    assert set(pages) == {""}

    def runs(text, size=6):
        ids = engine.encode(text)
        return {tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)}

    assert other != told and not runs(other) & runs(told)


def test_the_model_is_loaded_when_it_first_writes(monkeypatch):
    pipe = tiny_pipeline()
    with monkeypatch.context() as patch:
        patch.setattr(StoryEngine, "load", lambda *_, **__: pytest.fail("it is too early to load it"))
        assert pipe.has_writer("storyteller") and pipe.about_writer("storyteller") == ""
        assert pipe.tell(CAPTIONS, writer="neural-storyteller", beam_width=2).story
    loaded = []
    load = StoryEngine.load
    monkeypatch.setattr(StoryEngine, "load", lambda folder, **k: loaded.append(folder) or load(folder, **k))
    assert pipe.tell(CAPTIONS, seed=1).story and pipe.tell(CAPTIONS, seed=2).story
    assert loaded == [tiny_storyteller()]
