"""The page of a book that a writer is shown, to write in its manner.

The shifted vector picks it: of the pages of the wanted style (of the bookshelf's genre, or of the user's own book), the
one that is nearest to what the photo shows and to the style at once,

    cos(v - m, x - c) + s cos(v - m, b - a)         each in deviations over the pages

with v the page's thought, m the mean of the shelf, x - c what is particular to the photo, b the style, a the mean of
all styles, s the strength. So a blend takes a page of either book, weak styles one that lies near the photo, strong
ones one that sounds like the style and nothing else. The seed chooses among the best few.

Shapes: N pages, D thought width, K components of the bookshelf.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from .bookshelf import Bookshelf
from .errors import ModelFolderError
from .neighbours import deviations, unit_rows
from .story_prompt import FAINT, shortened_page
from .story_types import Source
from .styles import Style
from .writer import PassageTask

CHANCE = 0.3  # deviations that the seed adds to a page


@dataclass(frozen=True)
class Page:
    """A page, and where it stands if that is known."""

    text: str
    source: Source | None = None


class StylePages:
    """Finds pages.

    Args:
        bookshelf: Gives the bookshelf; raises ModelFolderError if there is none.
        styles: Gives the pipeline's styles by name, the mean of captions among them.
    """

    def __init__(self, bookshelf: Callable[[], Bookshelf], styles: Callable[[], Mapping[str, Style]]) -> None:
        self._bookshelf, self._styles = bookshelf, styles

    def __call__(self, task: PassageTask) -> Page | None:
        """The page for a task; None in no style, for a faint one, or where no page of it is known."""
        if task.options.strength < FAINT or task.wish.style is None:
            return None
        styles = self._styles()
        names = {part.partition(":")[0].strip(): None for part in task.label.split(",")}
        if task.own is not None and task.own.pages:  # those it is blended with may have some, too
            names |= {task.own.name: task.own}
        pools = [pool for name, own in names.items() if (pool := self._pages(name, own or styles.get(name)))]
        texts = [text for pool in pools for text in pool[0]]
        if not texts:
            return None
        vectors = np.concatenate([pool[1] for pool in pools])  # [N, D or K], differences from the mean of the shelf
        sources = [source for pool in pools for source in pool[2]]
        seen, style = (self._projected(v) for v in (task.wish.seen, self._particular(task.wish.style, styles)))
        rows = unit_rows(vectors)
        total = deviations(rows @ seen) + task.options.strength * deviations(rows @ style)
        total += CHANCE * np.random.default_rng(task.seed).gumbel(size=len(total))
        for place in np.argsort(-total, kind="stable")[:10].tolist():
            if text := shortened_page(texts[place]):
                return Page(text, sources[place])
        return None

    def _shelf(self) -> Bookshelf | None:
        try:
            return self._bookshelf()
        except ModelFolderError:
            return None

    def _pages(self, name: str, style: Style | None) -> tuple[list[str], np.ndarray, list[Source | None]] | None:
        """Texts, differences from the shelf's mean, and books of a style's pages; None if it has none."""
        shelf = self._shelf()
        if style is not None and style.pages:
            middle = shelf.mean if shelf is not None else style.vector
            rows = self._projected(style.page_vectors.astype(np.float32) - middle)
            return list(style.pages), rows, [None] * len(style.pages)
        if shelf is None or name not in shelf.genres:
            return None
        places = np.flatnonzero(shelf.shelf == shelf.genres.index(name))
        rows = shelf.codes[places] * shelf.scale
        texts = [shelf.passages[i] for i in places.tolist()]
        return texts, rows, [shelf.books[shelf.book[i]].source for i in places.tolist()]

    def _projected(self, difference: np.ndarray) -> np.ndarray:
        shelf = self._shelf()
        return difference if shelf is None else shelf.project(difference)

    @staticmethod
    def _particular(vector: np.ndarray, styles: Mapping[str, Style]) -> np.ndarray:
        """A style without what all have in common [D]."""
        others = [style.vector for name, style in styles.items() if name != "caption"]
        return vector - np.mean(others, axis=0) if len(others) > 1 else vector
