"""The storyteller: a small language model of our own training, sentence by sentence the best of a few candidates.

It reads the request of `StoryPrompt.text`, names the story, and writes. Candidates for a sentence are one batch; the
best (`modeling.reranking`) is kept, and the next sentence's candidates go on from it. The story is over when the model
says so, or at the end of the sentence after which it would be longer than was asked for.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from .errors import ModelFolderError, StoryError
from .reranking import Proposal, Ranking, Wish
from .sampling import SamplingOptions
from .story_engine import StoryEngine, StoryState
from .story_prompt import StoryPrompt, newest, one_line, story_prompt
from .story_scheduler import Continuation
from .story_types import Candidate, StoryOptions, Written
from .style_pages import Page
from .text import directed_quotes
from .writer import PassageTask

MOST_WORDS_BEFORE = 120  # of the story so far that are read again, as in training
SENTENCE_TOKENS = 70  # of one sentence, at most
TOKENS_A_WORD = 1.4  # of English
TITLE_TOKENS = 20
STORY = "\nStory:"  # stands behind the title
UNTITLED = "A Story"
TITLE_TEMPERATURE = 0.8
MOST_SENTENCES = 100  # only a bound, for a model that has forgotten what words are
MOST_WORDS_BEYOND = 20  # a story may be longer by these than it was asked to be
REPEATS = 5  # tokens; so many in a row are not written twice
LEAST_SHARE = 0.6  # of the fewest words; before that it may not end
SENTENCE_END = re.compile(r"""[.!?…]["”')]*\s*$""")
ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|Prof|Capt|Col|Gen|No|[A-Z])\.\s*$")
HOW_TO_TRAIN = "python -m training.train_storyteller"


class StorytellerWriter:
    """Writes with the storyteller's engine.

    Args:
        place: The model's folder, loaded when it is first needed, or the engine itself; None: the pipeline has none.
        pages: Gives the page of a book whose manner is to be taken.
        ranking: Makes the `Ranking` of a passage.
        device: Where it computes.
    """

    separator = "\n\n"

    def __init__(
        self,
        place: str | Path | StoryEngine | None,
        pages: Callable[[PassageTask], Page | None],
        ranking: Callable[[Wish, StoryOptions], Ranking],
        device: str | torch.device = "cpu",
    ) -> None:
        self._place, self._pages, self._ranking, self._device = place, pages, ranking, device
        self._engine = place if isinstance(place, StoryEngine) else None
        self.threads: int | None = None  # of torch for the engine; None: as many as it takes by itself
        self._lock = threading.Lock()

    @property
    def engine(self) -> StoryEngine:
        """Loaded at first use. Raises ModelFolderError if there is none, or it cannot be loaded."""
        with self._lock:
            if self._engine is None:
                if self._place is None:
                    raise ModelFolderError(
                        "This pipeline has no storyteller ('storyteller' in its pipeline.json): choose another writer, "
                        f"or train one with `{HOW_TO_TRAIN}`."
                    )
                self._engine = StoryEngine.load(self._place, device=self._device, threads=self.threads)
            return self._engine

    def prepare(self) -> None:
        """Load the model."""
        self.engine  # noqa: B018 - loaded at first use

    def write(self, task: PassageTask) -> Iterator[Written]:
        """The passage sentence by sentence, or word by word where there is one candidate only.

        Raises:
            StoryError: nothing was written, or memory has run out.
        """
        page = self._pages(task)
        prompt = story_prompt(task, newest(one_line(task.wish.before), MOST_WORDS_BEFORE), page.text if page else "")
        follows = (page.source,) if page and page.source else ()
        ranking = self._ranking(task.wish, task.options)
        told, title, choices = "", "", []
        with contextlib.ExitStack() as stack:
            state = stack.enter_context(self._open(prompt))
            if not prompt.before:
                title, state = self._title(state, prompt, task, stack)
            while len(choices) < MOST_SENTENCES:
                room = task.options.words[1] + MOST_WORDS_BEYOND - len(told.split())
                found = None
                for found in self._sentence(state, task, told, len(choices), room):
                    if isinstance(found, str):
                        yield Written(self._shown(f"{told}{found}", task), tuple(choices), title, follows)
                if not found:
                    break
                told, candidates, over = self._chosen(state, found, told, ranking)
                choices.append(candidates)
                yield Written(self._shown(told, task), tuple(choices), title, follows)
                if over or len(told.split()) >= task.options.words[1]:
                    break
        if not told:
            raise StoryError("The storyteller has written nothing: try another seed.")
        yield Written(self._shown(told, task, whole=True), tuple(choices), title, follows)

    def tell_several(self, task: PassageTask, count: int) -> tuple[str, str, list[Continuation]]:
        """Whole stories, each as the model tells it: one batch, no sentence chosen among others.

        Returns:
            The title, which all have; the page that was shown, or ""; the stories as they were written. One that did
            not come to its end within `MOST_WORDS_BEYOND` its length is cut there.
        """
        page = self._pages(task)
        prompt = story_prompt(task, "", page.text if page else "")
        most = task.options.words[1]

        def over(text: str) -> bool:
            words = len(text.split())
            return words >= most + MOST_WORDS_BEYOND or words >= most and _sentence_over(text)

        with contextlib.ExitStack() as stack:
            title, state = self._title(stack.enter_context(self._open(prompt)), prompt, task, stack)
            sampling = _sampling(task.options, int(TOKENS_A_WORD * (most + MOST_WORDS_BEYOND)))
            found = list(state.write(_seeds(task.seed, 1, count), sampling, until=over).result())
        return one_line(title), prompt.page, found

    # -- parts -------------------------------------------------------------------------------------------------------
    def _open(self, prompt: StoryPrompt, title: str = "") -> StoryState:
        text = f"{prompt.text()} {title}{STORY}" if title else prompt.text()
        return self.engine.open(text, prompt.page, one_line(prompt.before))

    def _title(
        self, state: StoryState, prompt: StoryPrompt, task: PassageTask, stack: contextlib.ExitStack
    ) -> tuple[str, StoryState]:
        """Have the model name the story; the state that is given goes on behind the title."""
        sampling = _sampling(task.options, TITLE_TOKENS, temperature=TITLE_TEMPERATURE)
        seeds = _seeds(task.seed, 0, 1)
        (found,) = state.write(seeds, sampling, until=lambda text: text.endswith(STORY), allow_end=False).result()
        title = found.text.partition("\n")[0].strip(' ".') or UNTITLED
        if found.ended == "stop":
            state.keep(0)
        else:  # it was carried away
            state = stack.enter_context(self._open(prompt, title))
        return directed_quotes(title), state

    def _sentence(
        self, state: StoryState, task: PassageTask, told: str, number: int, room: int
    ) -> Iterator[str | list[Continuation]]:
        """Ways to go on by a sentence, last; before it, where there is one way only, its text as it grows.

        The last item is empty where the story is over: the first of the candidates says so, or none says anything.
        """
        options = task.options
        may_end = len(told.split()) >= LEAST_SHARE * options.words[0]
        until = _line_over if options.lyrics else lambda text: bool(text.strip()) and _sentence_over(f"{told}{text}")
        sampling = _sampling(options, min(SENTENCE_TOKENS, max(int(TOKENS_A_WORD * room), 1)))
        seeds = _seeds(task.seed, number + 1, options.candidates)
        found: list[Continuation] = []
        with state.write(seeds, sampling, until=until, allow_end=may_end) as writing:
            for continuations in writing:
                found = list(continuations)
                if options.candidates == 1 and found[0].text.strip():
                    yield found[0].text.rpartition(" ")[0]
        over = found[0].ended == "end" and not found[0].text.strip()
        yield [] if over or not any(one.text.strip() for one in found) else found

    def _chosen(
        self, state: StoryState, found: list[Continuation], told: str, ranking: Ranking
    ) -> tuple[str, tuple[Candidate, ...], bool]:
        """The story with the best candidate, and all of them, best first; the state goes on from it, unless the story
        ends with it, in the middle of a sentence, which is said last."""
        rows = [row for row, one in enumerate(found) if one.text.strip()]
        proposals = [
            Proposal(directed_quotes(found[row].text.strip()), found[row].log_prob / max(len(found[row].ids), 1))
            for row in rows
        ]
        candidates = ranking.score(proposals)
        best = max(range(len(rows)), key=lambda i: candidates[i].score)
        state.keep(rows[best])
        told = f"{told}{found[rows[best]].text}"
        ranking.keep(best, directed_quotes(told.strip()))
        ordered = tuple(sorted(candidates, key=lambda candidate: -candidate.score))
        return told, ordered, found[rows[best]].ended == "end"

    @staticmethod
    def _shown(told: str, task: PassageTask, whole: bool = False) -> str:
        text = " ".join(told.split()).strip(" /").rstrip(" ,;:-")  # a comma waits for what follows it
        if whole and text and not SENTENCE_END.search(text) and not task.options.lyrics:
            text += "."
        return directed_quotes(text)


def _sampling(options: StoryOptions, most_tokens: int, temperature: float | None = None) -> SamplingOptions:
    return SamplingOptions(
        temperature=temperature or options.temperature,
        top_p=options.top_p,
        min_p=options.min_p,
        no_repeat_ngram_size=REPEATS,
        max_new_tokens=most_tokens,
    )


def _seeds(seed: int, part: int, count: int) -> list[int]:
    """Seeds of the candidates of one part of a story, unlike those of any other part or of a neighbouring seed."""
    return np.random.SeedSequence([seed, part]).generate_state(count).tolist()


def _sentence_over(text: str) -> bool:
    """Whether a text ends with a sentence: a stop outside quotation marks that belongs to no abbreviation."""
    if not SENTENCE_END.search(text) or text.count('"') % 2:
        return False
    return not ABBREVIATION.search(text)


def _line_over(text: str) -> bool:
    """Whether a line of a song is over."""
    return text.rstrip().endswith("/") and len(text.split()) > 1
