"""What happens in a story: which plot it follows.

A story in the style of a shelf of novels follows a page of one of them, as far as its events go: the thoughts of the
page's sentences less the mean of its shelf. The page is the one that the writer `bookshelf` would quote for this photo,
among those that tell and do not talk; its words are barred (`modeling.sampling.bar_copies`). Other stories follow a
short story of everyday life (`modeling.plots`). Which style is which is told by the vectors, so that it holds for
blends and for styles of a reader's own as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ModelFolderError, StoryError
from .neighbours import unit_rows
from .plots import PARTS, Events, Plots, in_parts, plan
from .reranking import Wish
from .text import split_sentences
from .writer import PassageTask, Writer

if TYPE_CHECKING:
    from .modeling_skip_thoughts import PictaleSkipThoughtsEncoder
    from .story_types import StoryOptions
    from .styles import Style

PAGE_SENTENCES = (3, 5)  # that a page must have to be a plot, and that are followed
SENTENCE_WORDS = (4, 22)
PAGES = 40  # that suit best, of which those are taken that tell something
SPEECH = frozenset('“”"')


class StoryPlots:
    """What `StoryPipeline` does with plots; expects its parts."""

    plots: Plots | None
    styles: Mapping[str, Style]
    writers: dict[str, Writer]
    encoder: PictaleSkipThoughtsEncoder
    _embedding_fingerprint: str
    _last_thought: Any

    def plot(
        self,
        seen: np.ndarray,
        style: np.ndarray,
        words: Sequence[str],
        seed: int,
        options: StoryOptions,
        before: str = "",
        label: str = "",
        new_photo: bool = True,
        view: np.ndarray | None = None,
    ) -> list[Events | None]:
        """What happens in each of `options.passages` passages; None where only the picture tells.

        Args:
            seen: x - c, what is particular to the photo [D].
            style: b [D].
            words: Content words of the captions.
            seed: Draws among the plots that suit best.
            before, label, new_photo, view: See `StoryPipeline._write_parts`.
        """
        if not options.plot or options.writer != "decoder":
            return [None] * options.passages
        about = unit_rows(seen)  # [D]
        if before.strip() and not new_photo:
            about = about + unit_rows(self._last_thought(before) - style)
        if not about.any():  # nothing to choose by
            return [None] * options.passages
        told = len(split_sentences(before))
        if options.strength > 0 and (genre := self._genre(style)):
            known = tuple(self.writers["bookshelf"].known(words))
            wish = Wish(about, style, known, (), before)
            task = PassageTask(about, wish, None, seed, dataclasses.replace(options, candidates=PAGES), label)
            if found := self._pages(task, genre, told // PAGE_SENTENCES[1]):
                return found
        if self.plots is None:
            return [None] * options.passages
        if self.plots.embedding != self._embedding_fingerprint:
            view = None  # what it sees is not what the plots were seen by
        return [Events(thoughts) for thoughts in plan(self.plots, options.passages, about, view, told, seed)]

    def _genre(self, style: np.ndarray) -> str:
        """The genre of the bookshelf that this style is like; "" if it is more like another style, or there is none."""
        vectors = {name: one.vector for name, one in self.styles.items()}
        if not style.any() or len(vectors) < 2:
            return ""
        middle = np.mean(list(vectors.values()), 0)
        near = {name: float(unit_rows(style - middle) @ unit_rows(vector - middle)) for name, vector in vectors.items()}
        try:
            shelf = self.writers["bookshelf"].bookshelf
        except ModelFolderError:  # there is none, or none for this encoder
            return ""
        nearest = max(near, key=near.get)
        return nearest if nearest in shelf.genres else ""

    def _pages(self, task: PassageTask, genre: str, skipped: int) -> list[Events]:
        """A page for every `PARTS` passages, of the pages of this genre that tell something; [] if there is none.

        Args:
            skipped: The first so many are left out.
        """
        writer = self.writers["bookshelf"]
        shelf = writer.bookshelf
        try:
            found = writer.search(task)
        except StoryError:  # all were quoted
            return []
        books = {book.source for book in shelf.books if book.genre == genre}
        mean = shelf.shelves[shelf.genres.index(genre)]
        looked_at = [(page, telling(page.text)) for page in found if page.source in books]
        pages = [(page, sentences) for page, sentences in looked_at if len(sentences) >= PAGE_SENTENCES[0]]
        planned: list[Events] = []
        while pages and len(planned) < task.options.passages:
            page, sentences = pages[skipped % len(pages)]
            parts = in_parts(self.encoder.encode(sentences) - mean, min(PARTS, task.options.passages - len(planned)))
            planned += [Events(thoughts.astype(np.float32), page.text, page.source) for thoughts in parts]
            skipped += 1
        return planned


def telling(page: str) -> list[str]:
    """The sentences of a page that tell something in a few words, the first of them."""
    short, long = SENTENCE_WORDS
    sentences = [s for s in split_sentences(page) if not SPEECH & set(s) and short <= len(s.split()) <= long]
    return sentences[: PAGE_SENTENCES[1]]
