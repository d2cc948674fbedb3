"""Who tells the stories that are measured, of which photos, and what it is measured against.

    pictale             the pipeline as it is
    neural-storyteller  the plain recipe of 2015 on the same weights
    bookshelf           a real passage that suits the photo, where the pipeline has a bookshelf
    caption             the first caption and nothing else
    real                passages of the style's own books, about anything

Any other is the pipeline with other options.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from modeling.errors import DataError, PictaleError
from modeling.pipeline_story import StoryPipeline
from modeling.story_types import MAX_SEED, Caption

from .book_passages import tidy
from .caption_sources import read_split
from .data_text import TextSource, load_rows, row_documents
from .feature_cache import decode_image
from .story_measures import GALLERY

SYSTEMS: dict[str, dict[str, Any] | None] = {
    "pictale": {},
    "neural-storyteller": {"writer": "neural-storyteller"},
    "bookshelf": {"writer": "bookshelf"},
    "caption": None,
    "real": None,
}
# options that decide what is seen, not how it is told
SEEING = ("captions", "nearest_sentences", "num_captions", "caption_beams", "caption_picture")
REAL_WORDS = (60, 130)  # of a passage of a book, about the length of a story
PASSAGES_A_BOOK = 150


@dataclass(frozen=True)
class Photos:
    """What is told of.

    Args:
        images: Photos measured.
        captions: By people, of these photos and then of others that they are told from.
        ids: Of the photos measured.
    """

    images: list[Any]
    captions: list[list[str]]
    ids: list[str]


def choose_photos(dataset: Any, split: str, count: int, seed: int = 0) -> Photos:
    """`count` photos at random, and captions of as many more as make a gallery of 100.

    Raises:
        DataError: fewer than two photos with captions.
    """
    data = read_split(dataset, split)
    order = np.random.default_rng(seed).permutation(len(data)).tolist()
    images, captions, ids = [], [], []
    for row in order:
        if len(images) < count:
            image = decode_image(data.images[row])
            if image is None:
                continue
            images.append(image)
            ids.append(data.image_ids[row])
        captions.append(data.captions[row])
        if len(images) == count and len(captions) >= GALLERY:
            break
    if not images or len(captions) < 2:
        raise DataError(f"{data.name}: stories are measured on at least two photos with captions.")
    return Photos(images, captions, ids)


@dataclass(frozen=True)
class Told:
    """A story that is measured.

    Args:
        photo: Index among the photos measured.
        style: It should be in.
        text: As read.
        first_words, whole: Seconds from the captions to the first words and to the end; None where nothing was made.
        processor: Seconds of processor time to the end.
        book: Number, in the library, of the book it stands in.
    """

    photo: int
    style: str
    text: str
    first_words: float | None = None
    whole: float | None = None
    processor: float | None = None
    book: int | None = None


@dataclass
class Library:
    """Texts of known genre.

    Args:
        texts, genres, books: Passages, the genre of each, and the number of its book (of a set of short stories, of
            the story).
        numbers: Number of each book by title and author.
        paragraphs: All paragraphs of each book, for `story_measures.copied`.
    """

    texts: list[str] = field(default_factory=list)
    genres: list[str] = field(default_factory=list)
    books: list[int] = field(default_factory=list)
    numbers: dict[tuple[str, str], int] = field(default_factory=dict)
    paragraphs: list[Sequence[str]] = field(default_factory=list)

    def of_genre(self, genre: str) -> list[int]:
        return [i for i, g in enumerate(self.genres) if g == genre]

    def short_stories(self) -> list[str]:
        """Those that stand in no book."""
        return [text for text, book in zip(self.texts, self.books, strict=True) if book < 0]


def read_library(names: Sequence[str], a_book: int = PASSAGES_A_BOOK, seed: int = 0) -> Library:
    """Passages of data sets of books (`text`, `genre`) and of short stories (`sentences`, genre everyday).

    Args:
        names: Folders, Hub ids, or names below `$PICTALE_DATA`.
        a_book: Passages of each book, at random; of a set of short stories, `a_book` times 10 stories.
        seed: Which ones.

    Raises:
        DataError: nothing there that says of which genre it is.
    """
    library, rng = Library(), random.Random(seed)
    for name in names:
        source = TextSource(name)
        rows = load_rows(source)
        if "text" in rows.column_names and "genre" in rows.column_names:
            for row in tqdm(rows, desc=f"reading {name}", unit="book"):
                lines = row["text"].split("\n") if isinstance(row["text"], str) else list(row["text"] or ())
                number = len(library.paragraphs)
                library.paragraphs.append(lines)
                library.numbers[row.get("title") or "", row.get("author") or ""] = number
                _add(library, rng, list(passages_of(lines)), a_book, row["genre"], lambda n=number: n)
        elif "sentences" in rows.column_names:
            stories = [" ".join(row["sentences"]) for row in rows]
            chosen = rows.select(sorted(rng.sample(range(len(rows)), min(len(rows), 10 * a_book))))
            texts = [" ".join(s) for row in chosen for (s,), _ in row_documents(row, source, rng)]
            first = len(library.paragraphs)
            library.paragraphs.append(stories)
            for i, text in enumerate(texts):  # a story is a book of its own, to the folds of the style judge
                _add(library, rng, [text], 1, "everyday", lambda i=i, first=first: -1 - first * 10**6 - i)
        else:
            raise DataError(
                f"'{name}' does not say of which genre its texts are: it needs text and genre, or sentences."
            )
    return library


def _add(library: Library, rng: random.Random, passages: list[str], count: int, genre: str, number: Any) -> None:
    for passage in passages if len(passages) <= count else rng.sample(passages, count):
        library.texts.append(passage)
        library.genres.append(genre)
        library.books.append(number())


def passages_of(lines: Sequence[str]) -> Iterator[str]:
    """Neighbouring whole paragraphs of `REAL_WORDS` words in all, without headings."""
    short, long = REAL_WORDS
    current: list[str] = []
    for line in lines:
        words = line.split()
        if not words:
            continue
        is_prose = line.rstrip()[-1] in ".!?\"'”" and not line.isupper() and len(words) > 3
        if not is_prose or len(words) + sum(len(p.split()) for p in current) > long:
            current = []
        if is_prose and len(words) <= long:
            current.append(line)
            if sum(len(p.split()) for p in current) >= short:
                yield tidy(" ".join(current))
                current = []


def people_stories(name: str) -> list[str]:
    """Short stories by people, as they stand.

    Args:
        name: Data set with `sentences` or `text`; `NAME:a,b` takes the rows whose `source` is a or b.

    Raises:
        DataError: it is not there, or has neither column, or none of these rows.
    """
    place, _, sources = name.partition(":")
    rows = load_rows(TextSource(place))
    column = next((c for c in ("sentences", "text") if c in rows.column_names), None)
    wanted = sources.split(",") if sources else []
    if column is None or (wanted and "source" not in rows.column_names):
        raise DataError(f"'{place}' needs a column sentences or text" + (", and source." if wanted else "."))
    found = [row[column] for row in rows if not wanted or row["source"] in wanted]
    if not found:
        raise DataError(f"'{place}' has no story of the source {sources or 'wanted'}.")
    return [text if isinstance(text, str) else " ".join(text) for text in found]


class Tellers:
    """Tells all stories of a system.

    Args:
        pipe: The pipeline.
        images, captions: Photos, and what it saw in them.
        styles: To tell each in.
        library: Real passages.
        seed: Photo number i has the seed `seed + i`.
        together: Stories that are told at once, in one batch of the storyteller; above 1 no times are measured.
    """

    def __init__(
        self,
        pipe: StoryPipeline,
        images: Sequence[Any],
        captions: Sequence[Sequence[Caption]],
        styles: Sequence[str],
        library: Library,
        seed: int = 1,
        together: int = 1,
    ) -> None:
        self.pipe, self.images, self.captions, self.styles = pipe, images, captions, styles
        self.library, self.seed, self.together = library, seed, together

    def tell(
        self, system: str, options: Mapping[str, Any] | None, jobs: Sequence[tuple[int, str]] | None = None
    ) -> list[Told]:
        """A story for each photo and style, or for these `jobs`.

        Raises:
            ModelFolderError: the system needs something that the pipeline has not.
        """
        jobs = jobs or [(photo, style) for photo in range(len(self.images)) for style in self.styles]
        if system == "caption":
            return [Told(photo, style, self.captions[photo][0].text) for photo, style in jobs]
        if system == "real":
            return self._real(jobs)
        self._one(*jobs[0], options)  # warm up, and fail early
        bar = {"total": len(jobs), "desc": system, "unit": "story", "file": sys.stderr}
        if self.together == 1:
            return [self._one(*job, options) for job in tqdm(jobs, **bar)]
        with ThreadPoolExecutor(self.together) as pool:
            told = list(tqdm(pool.map(lambda job: self._one(*job, options), jobs), **bar))
        return [replace(one, first_words=None, whole=None, processor=None) for one in told]

    def _real(self, jobs: Sequence[tuple[int, str]]) -> list[Told]:
        rng, told = random.Random(self.seed), []
        used: Counter[str] = Counter()
        pools = {style: self.library.of_genre(style) for style in self.styles}
        for style in self.styles:
            rng.shuffle(pools[style])
        for photo, style in jobs:
            if pool := pools[style]:
                i = pool[used[style] % len(pool)]
                used[style] += 1
                told.append(Told(photo, style, self.library.texts[i], book=self.library.books[i]))
        return told

    def _one(self, photo: int, style: str, options: Mapping[str, Any] | None) -> Told:
        options = dict(options or {})
        sees_anew = any(name in SEEING for name in options)
        seen = options.pop("captions", None) if sees_anew else self.captions[photo]
        seed = (self.seed + photo) % (MAX_SEED + 1)
        start, processor, first = time.perf_counter(), time.process_time(), None
        for story in self.pipe.stream_story(self.images[photo], style, seed, seen, thumbnails=False, **options):
            if first is None and story.text.strip():
                first = time.perf_counter() - start
        whole, processor = time.perf_counter() - start, time.process_time() - processor
        books = [self.library.numbers.get((s.title, s.author)) for s in story.passages[-1].sources]
        return Told(photo, style, story.text, first, whole, processor, books[0] if books else None)


def parse_system(text: str) -> tuple[str, dict[str, Any]]:
    """`NAME:option=value,option=value` as a name and options, which are numbers where they read as numbers."""
    name, separator, settings = text.partition(":")
    options: dict[str, Any] = {}
    for setting in settings.split(",") if settings else ():
        key, equals, value = setting.partition("=")
        if not equals:
            break
        for kind in (int, float):
            try:
                options[key.strip()] = kind(value)
                break
            except ValueError:
                options[key.strip()] = {"true": True, "false": False}.get(value.lower(), value)
    if not (separator and name and options):
        raise PictaleError(f"--system takes NAME:OPTION=VALUE,OPTION=VALUE, not '{text}'.")
    return name, options
