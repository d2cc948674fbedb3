"""The bookshelf writer: a real passage of a novel that suits the photo and the style, with title and author.

Always fluent, and honest about being a quotation. With x the captions' vector, c the mean of captions and b the style:

    grounding   cos(v - m, x - c), v the passage's thought, m the mean of its genre's, in the components kept
    words       share of the wanted content words that the passage has, in any form, rare ones counting more
    style       cos(b - B, m - M), the same for all passages of a genre: how near its shelf is to the style; M the
                mean of all shelves, B that of the styles that are called as a shelf is
    thread      1 if the passage is of another book than the one that the story quoted last, else 0
    chance      what the seed adds, so that another seed opens another page

The first two are counted in standard deviations over the bookshelf, half each, `style` times `SHELVES` times the
strength; `thread` counts `OTHER_BOOK` against a passage. The sum decides; `chance` is added to the best `CANDIDATES`.
A passage that the story has quoted is not quoted again. A style that is a blend, or a user's own, needs no shelf of its
name: it leans towards the shelves that are near it.

Shapes: N passages, G genres, D thought width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from .bookshelf import BOOKSHELF_FILE, HOW_TO_BUILD, Bookshelf
from .errors import ModelFolderError, StoryError
from .neighbours import deviations, unit_rows
from .story_types import Candidate, Written
from .writer import PassageTask

SHELVES = 6.0
OTHER_BOOK = 4.0
CHANCE = 0.3
CANDIDATES = 20


class BookshelfWriter:
    """Quotes.

    Args:
        bookshelf: The bookshelf, or the file that it is read from when it is first needed; None: there is none.
        fingerprint: Of the pipeline's encoder.
        styles: Gives the vectors [D] of the pipeline's styles by name.
    """

    separator = "\n\n"

    def __init__(
        self,
        bookshelf: Bookshelf | str | Path | None,
        fingerprint: str,
        styles: Callable[[], Mapping[str, np.ndarray]],
    ) -> None:
        self._bookshelf, self._fingerprint, self._styles = bookshelf, fingerprint, styles
        self._lock = threading.Lock()
        if isinstance(bookshelf, Bookshelf):
            bookshelf.check_encoder(fingerprint)

    @property
    def bookshelf(self) -> Bookshelf:
        """Read at first use. Raises ModelFolderError if there is none, or none for this encoder."""
        with self._lock:
            if not isinstance(self._bookshelf, Bookshelf):
                if self._bookshelf is None or not Path(self._bookshelf).is_file():
                    raise ModelFolderError(
                        f"This pipeline has no bookshelf to quote from ({BOOKSHELF_FILE} in its folder): build one "
                        f"with `{HOW_TO_BUILD}`, or choose another writer."
                    )
                bookshelf = Bookshelf.load(self._bookshelf)
                bookshelf.check_encoder(self._fingerprint)
                self._bookshelf = bookshelf
            return self._bookshelf

    def prepare(self) -> None:
        """Read the bookshelf."""
        self.bookshelf.words  # noqa: B018 - computed at first use

    def write(self, task: PassageTask) -> Iterator[Written]:
        """The passage, whole."""
        best = self.search(task)
        yield Written(best[0].text, (tuple(best),))

    def search(self, task: PassageTask) -> list[Candidate]:
        """The best passages for a task, best first.

        Raises:
            StoryError: the story has quoted them all.
        """
        shelf, options = self.bookshelf, task.options
        rows = self._scores(task)
        total = (
            0.5 * deviations(rows["grounding"])
            + 0.5 * deviations(rows["words"])
            + options.strength * SHELVES * rows["style"]
            - OTHER_BOOK * rows["thread"]
        )
        quoted = shelf.quoted_in(task.wish.before)
        total[quoted] = -np.inf
        best = np.argsort(-total, kind="stable")[: min(CANDIDATES, len(total) - len(quoted))]
        if not len(best):
            raise StoryError("The story has quoted every passage of the bookshelf: go on with another writer.")
        chance = CHANCE * np.random.default_rng(task.seed).gumbel(size=len(best))
        candidates = [
            Candidate(
                shelf.passages[i],
                float(total[i] + luck),
                {name: float(values[i]) for name, values in rows.items()} | {"chance": float(luck)},
                shelf.books[shelf.book[i]].source,
            )
            for i, luck in zip(best.tolist(), chance, strict=True)
        ]
        return sorted(candidates, key=lambda c: -c.score)

    def _scores(self, task: PassageTask) -> dict[str, np.ndarray]:
        """Each score for all passages [N]."""
        shelf, wish = self.bookshelf, task.wish
        seen = shelf.project(wish.seen)  # [K]
        quoted = shelf.quoted_in(wish.before)
        others = shelf.book != shelf.book[quoted[-1]] if quoted else np.zeros(len(shelf.passages))
        return {
            "grounding": shelf.particular @ (seen / max(float(np.linalg.norm(seen)), 1e-8)),
            "words": shelf.recall(wish.content),
            "style": self._nearness(wish.style)[shelf.shelf],
            "thread": others.astype(np.float32),
        }

    def _nearness(self, style: np.ndarray | None) -> np.ndarray:
        """How near each shelf is to a style [G]."""
        shelf = self.bookshelf
        if style is None or len(shelf.genres) < 2:
            return np.zeros(len(shelf.genres), np.float32)
        middle = shelf.shelves.mean(0)
        named = [vector for name, vector in self._styles().items() if name in shelf.genres]
        wanted = style - (np.mean(named, 0) if len(named) > 1 else middle)
        return unit_rows(shelf.shelves - middle) @ unit_rows(wanted)
