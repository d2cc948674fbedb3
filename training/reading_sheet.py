"""A blind reading sheet: who reads the stories does not know who told them.

`write_sheet` writes a table for any spreadsheet, the photos into a folder beside it, and a key, which readers do not
open. A reader gives each story three whole marks, from a copy of the sheet:

    sense        0 no sense, 1 some sentences, 2 a slip or two, 3 all of it follows
    about        the photo: 0 not about it, 1 a word or two, 2 mostly, or with something wrong, 3 of what is seen
    style_score  of the style that is named: 0 not heard, 1 a hint, 2 heard, 3 as in a book of its kind

On the sheet stand, shuffled, stories of each system about the same photos in the same styles, taken in turn, and, to
know what the marks mean: `real`, passages of books of the style; `people`, people's short stories about something else;
`written`, the stories of `hub_configs/written-stories` that nobody learned, about their own photos.

`read_back` gives means with intervals of 95 % over photos drawn with replacement (a story's mark being the mean of its
readers': they say nothing of what other readers would mark), and for each two readers their quadratic weighted kappa
(Cohen, 1968) and how often they are within one point.
"""

from __future__ import annotations

import csv
import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from modeling.errors import DataError
from modeling.story_types import MAX_SEED

from . import story_measures as measures
from .book_passages import tidy
from .caption_sources import caption_source, read_split
from .data_text import TextSource, load_rows
from .feature_cache import decode_image
from .story_systems import Photos, Tellers

MARKS = {"sense": "sense", "about": "about the photo", "style_score": "style"}
MOST = 3  # the best mark
COLUMNS = ("n", "photo", "photo_says", "style", "story", *MARKS, "note")
KEY = ("n", "system", "photo_id", "style", "seed", "story")  # the last is a digest, that tells one sheet from another
CAPTIONS = 3  # of a photo that are shown


@dataclass(frozen=True)
class Entry:
    """A story on the sheet; `seed` is None where none was drawn."""

    system: str
    photo_id: str
    image: Image.Image
    says: Sequence[str]
    style: str
    story: str
    seed: int | None = None


# -- what stands on it -----------------------------------------------------------------------------------------------
def told_entries(
    tellers: Tellers, photos: Photos, systems: Mapping[str, Mapping[str, Any] | None], count: int
) -> list[Entry]:
    """`count` stories of each system, the same photos and styles of all.

    Raises:
        PictaleError: a system cannot tell.
    """
    jobs = _in_turn(len(photos.images), tellers.styles, count)
    return [
        Entry(
            system=name,
            photo_id=photos.ids[told.photo],
            image=photos.images[told.photo],
            says=photos.captions[told.photo],
            style=told.style,
            story=told.text,
            seed=None if name in ("real", "caption") else (tellers.seed + told.photo) % (MAX_SEED + 1),
        )
        for name, options in systems.items()
        for told in tellers.tell(name, options, jobs)
    ]


def people_entries(
    texts: Sequence[str], photos: Photos, styles: Sequence[str], count: int, seed: int = 0
) -> list[Entry]:
    """`count` of people's stories at random, put to photos and styles that they know nothing of."""
    jobs = _in_turn(len(photos.images), styles, count)
    chosen = random.Random(seed).sample(list(texts), min(count, len(texts)))
    return [
        Entry("people", photos.ids[photo], photos.images[photo], photos.captions[photo], style, tidy(text))
        for text, (photo, style) in zip(chosen, jobs, strict=False)
    ]


def written_entries(
    stories: str, photo_sets: Sequence[Any], styles: Sequence[str], count: int, seed: int = 0
) -> list[Entry]:
    """`count` validation stories at random about their own photos, as even by style as they come.

    Args:
        stories: Data set with `photo_source`, `photo_id`, `style`, `story`.
        photo_sets: Data sets of photos; `photo_source` is the last part of a name.

    Raises:
        DataError: none has its photo there.
    """
    rows = [row for row in load_rows(TextSource(stories, split="validation")) if row["style"] in styles]
    random.Random(seed).shuffle(rows)
    wanted = {(row["photo_source"], row["photo_id"]) for row in rows}
    found: dict[tuple[str, str], tuple[Image.Image, list[str]]] = {}
    for entry in photo_sets:
        data, name = read_split(entry, "all"), caption_source(entry).path.rstrip("/").rpartition("/")[2]
        for place, photo_id in enumerate(data.image_ids):
            if (name, photo_id) in wanted and (image := decode_image(data.images[place])) is not None:
                found[name, photo_id] = image, data.captions[place]
    by_style: dict[str, list[Mapping[str, Any]]] = {style: [] for style in styles}
    for row in rows:
        if (row["photo_source"], row["photo_id"]) in found:
            by_style[row["style"]].append(row)
    turns = max(map(len, by_style.values()))
    chosen = [rows[turn] for turn in range(turns) for rows in by_style.values() if turn < len(rows)][:count]
    if not chosen:
        raise DataError(f"No photo of the validation stories of '{stories}' is in the data sets of --written-photos.")
    return [
        Entry(
            "written", row["photo_id"], *found[row["photo_source"], row["photo_id"]], row["style"], tidy(row["story"])
        )
        for row in chosen
    ]


def _in_turn(photos: int, styles: Sequence[str], count: int) -> list[tuple[int, str]]:
    """Photo and style of each story: photos in turn, each time round in another style."""
    return [(k % photos, styles[(k % photos + k // photos) % len(styles)]) for k in range(count)]


def write_sheet(path: str | Path, entries: Sequence[Entry], seed: int = 0) -> Path:
    """Write the sheet, photos and key; returns where the key is.

    Raises:
        DataError: the sheet, its photos or its key are there already, maybe with marks in it.
    """
    path = Path(path)
    folder, key = path.with_suffix(""), path.with_suffix(".key.csv")
    if path == folder:
        raise DataError(f"Call the reading sheet {path}.csv.")
    for place in (path, folder, key):
        if place.exists():
            raise DataError(f"{place} is there already, and may have marks in it: write the sheet elsewhere.")
    folder.mkdir(parents=True)
    shuffled = random.Random(seed).sample(list(entries), len(entries))
    files: dict[str, str] = {}
    rows, owners = [], []
    for n, entry in enumerate(shuffled, 1):
        if entry.photo_id not in files:
            files[entry.photo_id] = f"{folder.name}/{len(files) + 1:03}.jpg"
            entry.image.convert("RGB").save(path.parent / files[entry.photo_id], quality=90)
        says = " | ".join(entry.says[:CAPTIONS])
        rows.append([n, files[entry.photo_id], says, entry.style, entry.story, *[""] * (len(MARKS) + 1)])
        seed_told = "" if entry.seed is None else entry.seed
        owners.append([n, entry.system, entry.photo_id, entry.style, seed_told, _digest(entry.story)])
    for place, header, lines in ((path, COLUMNS, rows), (key, KEY, owners)):
        with place.open(
            "w", newline="", encoding="utf-8-sig"
        ) as file:  # with the mark by which spreadsheets know UTF-8
            csv.writer(file).writerows([header, *lines])
    return key


def _digest(story: str) -> str:
    return hashlib.sha256(" ".join(story.split()).encode()).hexdigest()[:12]


# -- what readers found ----------------------------------------------------------------------------------------------
def read_back(sheets: Sequence[str | Path], key: str | Path, draws: int = 1000) -> dict[str, Any]:
    """Means by system in `reading`, and `agreement` of each two readers.

    Args:
        sheets: Of each reader one, the same stories in each.
        key: That was written with the sheet.

    Raises:
        DataError: a file that is not there, or lacks a column, row or mark, or has a mark that is none or a row that
            the key does not know.
    """
    owners = {row["n"]: row for row in _read(key, KEY)}
    numbers = list(owners)
    marks = np.array([_marks(Path(sheet), owners) for sheet in sheets])  # [readers, stories, 3]
    mean = marks.mean(0)
    reading: dict[str, dict[str, Any]] = {}
    for system in dict.fromkeys(row["system"] for row in owners.values()):
        own = [i for i, n in enumerate(numbers) if owners[n]["system"] == system]
        photos = [owners[numbers[i]]["photo_id"] for i in own]
        reading[system] = {"n": len(own)} | {
            mark: measures.rounded(measures.bootstrap(photos, measures.mean_of(mean[own, column]), draws))
            for column, mark in enumerate(MARKS)
        }
    missing: dict[str, str] = {}
    agreement = []
    for a, b in combinations(range(len(sheets)), 2):
        pair: dict[str, Any] = {"readers": [Path(sheets[i]).stem for i in (a, b)]}
        for column, mark in enumerate(MARKS):
            one, other = marks[a, :, column], marks[b, :, column]
            pair[mark] = {"within_one": round(float((abs(one - other) <= 1).mean()), 4)}
            try:
                pair[mark]["kappa"] = _kappa(one, other)
            except ImportError:
                missing["kappa of two readers"] = "it needs scikit-learn: pip install -r training/requirements.txt."
        agreement.append(pair)
    return {"stories": len(numbers), "reading": reading, "agreement": agreement, "not_measured": missing}


def _kappa(one: np.ndarray, other: np.ndarray) -> float | None:
    """Quadratic weighted kappa; None where both give all stories one and the same mark."""
    from sklearn.metrics import cohen_kappa_score

    if len({*one, *other}) == 1:
        return None
    return round(float(cohen_kappa_score(one, other, labels=list(range(MOST + 1)), weights="quadratic")), 4)


def _marks(sheet: Path, owners: Mapping[str, Mapping[str, str]]) -> list[list[int]]:
    """Marks of a reader in the order of the key [stories, 3]."""
    rows: dict[str, dict[str, str]] = {}
    for row in _read(sheet, COLUMNS[:-1]):
        n = row["n"].removesuffix(".0")
        if n not in owners:
            raise DataError(f"{sheet}: the key knows no story number '{n}'.")
        if n in rows:
            raise DataError(f"{sheet}: story number {n} is there twice.")
        if _digest(row["story"]) != owners[n]["story"]:
            raise DataError(f"{sheet}: story number {n} is not the one of the key: it belongs to another sheet.")
        rows[n] = row
    if absent := [n for n in owners if n not in rows]:
        raise DataError(f"{sheet}: {len(absent)} of {len(owners)} stories are missing, number {absent[0]} among them.")
    return [[_mark(sheet, n, mark, rows[n][mark]) for mark in MARKS] for n in owners]


def _mark(sheet: Path, n: str, mark: str, text: str) -> int:
    plain = text.strip().removesuffix(".0")
    if not plain:
        raise DataError(f"{sheet}: story number {n} has no mark for {mark}.")
    if plain not in map(str, range(MOST + 1)):
        raise DataError(f"{sheet}: '{text}' for {mark} of story number {n} is no mark: use 0, 1, 2 or {MOST}.")
    return int(plain)


def _read(path: str | Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """Rows of a table, as spreadsheets of any country write it."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): save the sheet as CSV in UTF-8.") from None
    header = text.partition("\n")[0]
    rows = csv.DictReader(text.splitlines(keepends=True), delimiter=";" if ";" in header else ",")
    if lacking := [column for column in columns if column not in (rows.fieldnames or ())]:
        raise DataError(f"{path} has no column {lacking[0]}: keep the columns {', '.join(columns)}.")
    found = [{name: row[name] or "" for name in columns} for row in rows]
    return [row for row in found if any(row.values())]  # spreadsheets may write empty ones at the end


def reading_table(report: Mapping[str, Any]) -> str:
    """What `read_back` found as Markdown."""
    lines = [["", "stories", *MARKS.values()], ["---"] * (len(MARKS) + 2)]
    for system, row in report["reading"].items():
        cells = ["{value:.2f} ({low:.2f} to {high:.2f})".format(**row[mark]) for mark in MARKS]
        lines.append([system, str(row["n"]), *cells])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    for pair in report["agreement"]:
        parts = []
        for mark, title in MARKS.items():
            kappa = pair[mark].get("kappa")
            parts.append(f"{title} {'-' if kappa is None else f'{kappa:.2f}'} ({pair[mark]['within_one']:.0%})")
        table += f"\n\n{' and '.join(pair['readers'])}, weighted kappa (within one point): {', '.join(parts)}."
    return table
