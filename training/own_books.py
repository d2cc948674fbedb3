"""Whether stories in the style of a book of one's own sound like that book.

From each book a style is made, as a user would, and all photos are told in it. A style judge learns the passages of all
these books, each book being a class of its own beside the genres, and is asked which class the stories read like.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeling.book_text import BOOK_SUFFIXES, read_book
from modeling.errors import DataError

from . import story_measures as measures
from .story_judges import StyleJudge
from .story_systems import Library, Tellers, Told, passages_of

PARTS = 5  # of a book, which are books of their own to the folds of the judge
A_PART = 60  # passages of each, at most


def measure_own_books(
    folder: str | Path, tellers: Tellers, library: Library, others: Sequence[Told], draws: int
) -> dict[str, dict[str, Any]]:
    """By book: `taken`, the share of the stories in its style that are taken for it; `others`, of stories told in the
    genres; `ceiling`, of its own passages, by a classifier that has not learned them; `copied` from it.

    The styles stay with the pipeline, under the names of the files.

    Args:
        folder: Of .txt, .md or .epub files.
        tellers: Whose pipeline tells.
        library: Texts of the genres.
        others: Stories told in the genres.
        draws: For the intervals; 0 leaves them out.

    Raises:
        DataError: no book, one with too few passages, or called as a style is; scikit-learn is missing.
        StyleError: a book that cannot be read.
    """
    files = sorted(file for file in Path(folder).glob("*") if file.suffix.lower() in BOOK_SUFFIXES)
    if not files:
        raise DataError(f"There is no .txt, .md or .epub file in {folder}.")
    texts, genres, books = list(library.texts), list(library.genres), list(library.books)
    paragraphs: dict[str, list[str]] = {}
    for file in files:
        name = re.sub(r"[^\w .'-]+", " ", file.stem).strip()[:40]
        if name in {*tellers.pipe.styles, *library.genres, *paragraphs}:
            raise DataError(f"There is a style '{name}' already: call the file {file.name} otherwise.")
        paragraphs[name] = [" ".join(part.split()) for part in re.split(r"\n\s*\n", read_book(file))]
        passages = list(passages_of(paragraphs[name]))
        if len(passages) < 2 * PARTS:
            raise DataError(f"{file.name} has {len(passages)} passages to learn from: give a longer text.")
        for part in range(PARTS):
            start, stop = (len(passages) * k // PARTS for k in (part, part + 1))
            own = passages[start:stop][:: max(1, -(-(stop - start) // A_PART))]
            texts += own
            genres += [name] * len(own)
            books += [max([*books, 0]) + 1] * len(own)
    judge = StyleJudge(texts, genres, books, PARTS)
    guessed = judge.classify([story.text for story in others], [story.book for story in others])
    report = {}
    for file, name in zip(files, paragraphs, strict=True):
        tellers.pipe.add_style(tellers.pipe.make_style(file, name))
        told = tellers.tell(name, {}, [(photo, name) for photo in range(len(tellers.images))])
        taken = [guess == name for guess in judge.classify([story.text for story in told])]
        copies = measures.copied([story.text for story in told], [paragraphs[name]])
        report[name] = {
            "stories": len(told),
            "taken": measures.rounded(measures.bootstrap([s.photo for s in told], measures.mean_of(taken), draws)),
            "others": round(guessed.count(name) / max(len(guessed), 1), 4),
            "ceiling": round(judge.ceiling_by_genre[name], 4),
            "copied": round(float(copies.mean()), 4),
        }
    return report
