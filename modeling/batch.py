"""Many photos at once: a row of captions (and a story) for each, and the rows as CSV.

    rows = list(tell_many(pipe, Path("holiday").glob("*.jpg"), stories=True, style="mystery"))
    Path("holiday.csv").write_text(rows_to_csv(rows), encoding="utf-8")

A photo that cannot be used gives a row that says why; the others are told all the same.
"""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import PurePath
from typing import Any

import numpy as np

from .errors import ImageError
from .story_types import Caption, check_seed, written_captions

COLUMNS = ("photo", "caption", "score", "other captions", "style", "seed", "story", "problem")
# a spreadsheet would compute what begins with one of these
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class BatchRow:
    """What came of one photo.

    Args:
        photo: Its file name, or its number where it has none.
        captions: Best first; empty with a problem.
        style, seed, story: Of the story; empty and None without one.
        problem: Why the photo could not be used, in a sentence, or "".
    """

    photo: str
    captions: tuple[Caption, ...] = ()
    style: str = ""
    seed: int | None = None
    story: str = ""
    problem: str = ""

    def cells(self) -> list[str]:
        """The row as text, in the order of `COLUMNS`."""
        best = self.captions[0] if self.captions else None
        return [
            self.photo,
            best.text if best else "",
            f"{best.score:.4f}" if best else "",
            " | ".join(caption.text for caption in written_captions(self.captions)[1:]),
            self.style,
            "" if self.seed is None else str(self.seed),
            self.story,
            self.problem,
        ]


def tell_many(
    pipe: Any,
    photos: Iterable[Any],
    stories: bool = False,
    style: Any = None,
    seed: int | None = None,
    **options: Any,
) -> Iterator[BatchRow]:
    """A row for each photo as soon as it is done.

    Args:
        pipe: A `StoryPipeline`.
        photos: Whatever `load_image` takes.
        stories: Tell a story about each, too; captions alone are many times faster.
        style, seed, options: Of the stories, as for a call of the pipeline; all get the same seed.

    Raises:
        PictaleError: an unknown style or option, before any work.
    """
    seed = check_seed(seed)
    for number, photo in enumerate(photos, 1):
        name = PurePath(fspath(photo)).name if isinstance(photo, (str, PathLike)) else f"photo {number}"
        try:
            if not stories:
                yield BatchRow(name, pipe.caption([photo])[0])
                continue
            story = pipe.start_story(photo, style, seed, thumbnails=False, **options)
            yield BatchRow(name, story.photos[0].captions, story.passages[0].style, seed, story.text)
        except ImageError as error:
            yield BatchRow(name, problem=str(error))


def rows_to_csv(rows: Iterable[BatchRow]) -> str:
    """CSV with a heading, for any spreadsheet: it begins with a byte order mark, by which Excel knows UTF-8, and cells
    that would be taken for formulas begin with an apostrophe."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for row in rows:
        cells = row.cells()
        writer.writerow([_plain(cell) if i != COLUMNS.index("score") else cell for i, cell in enumerate(cells)])
    return "\ufeff" + file.getvalue()


def rows_html(rows: Sequence[BatchRow], total: int, stories: bool = False) -> str:
    """A table of the rows so far, with how many of `total` there are; everything in it is escaped."""
    head = "".join(f"<th>{name}</th>" for name in ("photo", "caption", "sure", *(["story"] if stories else [])))
    lines = []
    for row in rows:
        if row.problem:
            cells = f'<td colspan="{3 if stories else 2}" class="problem">{html.escape(row.problem)}</td>'
        else:
            best = row.captions[0]
            sure = "" if best.remembered else f"{np.exp(best.score):.0%}"
            cells = f"<td>{html.escape(best.text)}</td><td>{sure}</td>"
            cells += f"<td>{html.escape(row.story)}</td>" if stories else ""
        lines.append(f"<tr><td>{html.escape(row.photo)}</td>{cells}</tr>")
    bar = f'<progress aria-label="photos done" value="{len(rows)}" max="{total}"></progress>'
    done = f'<p role="status">{bar} {len(rows)} of {total} photos</p>'
    return (
        f'{done}<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def _plain(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
