"""Photographs with captions from wherever a person has them: which format it is, which split, and what is unusable.

A data set is a name, or an object with more to say:
    "flickr8k"                          a folder or file, looked up in $PICTALE_DATA first, or a Hub id
    {"path": "annotations/captions_train2017.json", "images": "train2017"}
    {"path": "holiday/", "validation_share": 0.1}
The format is told from the files (`training.caption_formats` lists them).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from modeling.errors import DataError, RecipeError

from . import caption_formats as formats
from .caption_records import ImageFiles, Records, canonical_split
from .recipes import dataset_location, from_dict

ALL = "all"
READERS: dict[str, Callable[..., Records]] = {
    "datasets": formats.read_datasets,
    "imagefolder": formats.read_imagefolder,
    "coco": formats.read_coco,
    "karpathy": formats.read_karpathy,
    "flickr": formats.read_flickr,
    "table": formats.read_table,
}
LOOKED_FOR = (
    "parquet files, metadata.csv or metadata.jsonl (imagefolder), captions_*.json (COCO), dataset_*.json (Karpathy), "
    "*.token or *.token.txt (Flickr), one CSV, TSV or JSON-lines file with a photograph and a caption in each row"
)


@dataclass(frozen=True)
class CaptionSource:
    """A data set as a recipe names it.

    Args:
        path: file, folder, name in $PICTALE_DATA, or Hub id.
        images: folder of the photographs, where they are not beside the captions.
        format: one of `READERS`; told from the files by default.
        config: configuration of a Hub dataset that has several.
        split: read this split whichever is asked for; "all" reads everything.
        validation_share: part of the photographs held out as split validation where the data set has none, or has but
            one split. Which ones is decided by their names, so it stays the same when others are added.
    """

    path: str
    images: str | None = None
    format: str | None = None
    config: str | None = None
    split: str | None = None
    validation_share: float = 0.0

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in READERS:
            raise RecipeError(f"There is no format '{self.format}'; choose from {', '.join(READERS)}.")
        if not 0 <= self.validation_share < 1:
            raise RecipeError(f"validation_share is a part of 1, 0.1 for example, not {self.validation_share}.")


@dataclass(frozen=True)
class CaptionSplit:
    """One split of one data set: encoded photographs (None where missing), their ids and captions, in step.

    `images` may be lazy, so that `images[row]` reads a file; take each photograph when it is needed.
    """

    name: str
    images: Sequence[bytes | None]
    image_ids: list[str]
    captions: list[list[str]]

    def __len__(self) -> int:
        return len(self.image_ids)


def caption_source(entry: str | Mapping[str, Any] | CaptionSource) -> CaptionSource:
    """A data set as a recipe or a command line names it."""
    if isinstance(entry, CaptionSource):
        return entry
    if isinstance(entry, str) and entry.startswith("{"):  # on a command line
        try:
            entry = json.loads(entry)
        except ValueError as error:
            raise RecipeError(f"'{entry[:80]}' is not JSON ({error}).") from None
    if isinstance(entry, str):
        return CaptionSource(entry)
    return from_dict(CaptionSource, entry, "data set")


def read_split(entry: str | Mapping[str, Any] | CaptionSource, split: str, limit: int | None = None) -> CaptionSplit:
    """Read one split of a data set. Captions that are empty or not text, and photographs that are not where they should
    be, are left out and named on standard error.

    Args:
        entry: see the head of this file.
        split: train, validation, test (also by their usual other names), or all. A data set without splits counts as
            train.
        limit: only the first photographs.

    Raises:
        DataError: nothing there, an unknown format, no such split, or nothing usable in it.
    """
    source = caption_source(entry)
    records = read_records(source)
    rows = choose_split(records, source.split or split, source)
    rows, captions = usable_captions(records, rows, source.path)
    pictures = records.images(rows)
    if isinstance(pictures, ImageFiles):
        there = [i for i, found in enumerate(pictures.paths) if found is not None]
        if not there:
            raise DataError(
                f"None of the {len(rows)} photographs that '{source.path}' names is in its folder (the first is "
                f"'{pictures.names[0]}'): say where they are with \"images\"."
            )
        missing = [name for name, found in zip(pictures.names, pictures.paths, strict=True) if found is None]
        say_skipped(f"{source.path}: {{}} of {len(rows)} photographs are not there", missing)
        pictures = pictures.take(there)
        rows, captions = [rows[i] for i in there], [captions[i] for i in there]
    if limit is not None and limit < len(rows):
        rows, captions, pictures = rows[:limit], captions[:limit], pictures.take(range(limit))
    name = f"{source.path} {source.split or split}"
    return CaptionSplit(name, pictures, [records.image_ids[row] for row in rows], captions)


def read_captions(entry: str | Mapping[str, Any] | CaptionSource, split: str) -> list[list[str]]:
    """The captions alone, as `read_split` gives them, also where the photographs are not at hand."""
    source = caption_source(entry)
    records = read_records(source)
    return usable_captions(records, choose_split(records, source.split or split, source), source.path)[1]


def read_records(source: CaptionSource) -> Records:
    """All rows of a data set, looked up in $PICTALE_DATA first."""
    path = os.path.expanduser(dataset_location(source.path))
    images = source.images and os.path.expanduser(dataset_location(source.images))
    kind = source.format or detect_format(path)
    options = {"config": source.config} if kind == "datasets" else {}
    return READERS[kind](path, images, **options)


def detect_format(path: str) -> str:
    """Which reader can read `path`.

    Raises:
        DataError: none can; the message says what was looked for.
    """
    place = Path(path)
    if place.is_file():
        return _format_of_file(place)
    if not place.exists():
        if place.is_absolute() or place.suffix or path.startswith(".") or path.count("/") > 1:
            raise DataError(
                f"There is no file or folder '{path}': check the name, or set PICTALE_DATA to the folder that holds it."
            )
        return "datasets"
    tables = formats.matching(place, *formats.TABLES)
    metadata = formats.matching(place, "metadata.*", "*/metadata.*")
    stored = formats.matching(place, "*.parquet", "*/*.parquet", "*.arrow", "dataset_dict.json")
    found = {
        "datasets": [file for file in stored if file not in metadata],
        "imagefolder": [file for file in metadata if _names_files(file)],
        "coco": formats.matching(place, *formats.COCO_FILES),
        "karpathy": formats.matching(place, *formats.KARPATHY_FILES),
        "flickr": formats.matching(place, *formats.FLICKR_FILES),
        "table": tables,
    }
    kind = next((kind for kind, files in found.items() if files), None)
    if kind is None:
        raise DataError(f"{path} holds no captions that can be read; looked for {LOOKED_FOR}.")
    splits = {formats.split_of_file(file) for file in tables} - {None}
    if kind == "table" and len(tables) > max(len(splits), 1):
        names = ", ".join(file.name for file in tables[:5])
        raise DataError(f"{path} holds several files that may be captions ({names}): give one of them as path.")
    return kind


def _format_of_file(file: Path) -> str:
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        return "datasets"
    if suffix == ".json":
        content = file.read_bytes()  # not parsed: these files are large, and are parsed when they are read
        if b'"sentences"' in content[:100_000]:
            return "karpathy"
        if b'"annotations"' in content:
            return "coco"
        raise DataError(f"{file} is neither COCO's JSON of captions (annotations) nor Karpathy's (images, sentences).")
    if suffix in (".csv", ".tsv", ".jsonl"):
        return "table"
    if suffix in (".txt", ".token"):
        with file.open(encoding="utf-8", errors="replace") as lines:
            return "flickr" if any(map(formats.TOKEN_LINE.match, islice(lines, 20))) else "table"
    raise DataError(f"{file} is no file of captions that can be read; looked for {LOOKED_FOR}.")


def _names_files(metadata: Path) -> bool:
    """Whether a metadata file is one that `datasets` understands."""
    with metadata.open("rb") as file:
        return b"file_name" in file.read(100_000) or metadata.suffix == ".parquet"


# -- splits ------------------------------------------------------------------------------------------------------------
def choose_split(records: Records, split: str, source: CaptionSource) -> list[int]:
    """Rows of a split; see `read_split` and `CaptionSource.validation_share`."""
    every = range(len(records.image_ids))
    if split.lower() == ALL:
        return list(every)
    wanted = canonical_split(split)
    splits = records.splits if any(records.splits) else ["train"] * len(every)
    names = set(filter(None, splits))
    if source.validation_share and (len(names) == 1 or "validation" not in names):
        whole = names.pop() if len(names) == 1 else "train"
        parted = [row for row in every if splits[row] == whole]
        held = {parted[i] for i in held_out([records.image_ids[row] for row in parted], source.validation_share)}
        splits = list(splits)
        for row in parted:
            splits[row] = "validation" if row in held else "train"
    rows = [row for row in every if splits[row] == wanted]
    if not rows:
        there = ", ".join(f"'{name}'" for name in dict.fromkeys(filter(None, splits))) or "none"
        raise DataError(
            f"The data set '{source.path}' has no split '{split}', only {there}: name one of these, or 'all', or give "
            "the data set a validation_share to hold out."
        )
    return rows


def held_out(image_ids: Sequence[str], share: float) -> list[int]:
    """Places of the ids whose hash puts them into the held-out part: about `share` of all, at least one, never all."""
    ranks = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 for name in image_ids]
    order = sorted(range(len(ranks)), key=lambda i: ranks[i])
    count = sum(rank < share for rank in ranks)
    return sorted(order[: min(max(count, 1), len(order) - 1)])


# -- what is unusable --------------------------------------------------------------------------------------------------
def usable_captions(records: Records, rows: Sequence[int], name: str) -> tuple[list[int], list[list[str]]]:
    """Rows with at least one caption that says something, and their captions, on one line each."""
    kept, captions, unusable, without = [], [], [], []
    for row in rows:
        texts = [" ".join(text.split()) if isinstance(text, str) else "" for text in records.captions[row]]
        good = [text for text in texts if any(letter.isalnum() for letter in text)]
        unusable += [records.image_ids[row]] * (len(texts) - len(good))
        if good:
            kept.append(row)
            captions.append(good)
        else:
            without.append(records.image_ids[row])
    say_skipped(f"{name}: {{}} captions are empty or not text", unusable)
    say_skipped(f"{name}: {{}} of {len(rows)} photographs have no caption", without)
    if not kept:
        raise DataError(f"'{name}' has no caption that is text: check its columns.")
    return kept, captions


def image_names(images: Sequence[bytes | None], rows: Iterable[int]) -> list[str]:
    """What to call photographs when speaking of them: their names where they have some, else their numbers."""
    names = getattr(images, "names", None)
    return [names[row] if names is not None else f"number {row}" for row in rows]


_said: set[str] = set()


def say_skipped(what: str, names: Sequence[str]) -> None:
    """Say on standard error, once and by one process, how many of something are skipped, and the first few names."""
    if not names:
        return
    shown = ", ".join(name[:60] or "no name" for name in dict.fromkeys(names[:3])) + (", ..." if len(names) > 3 else "")
    message = f"{what.format(len(names))} and are skipped ({shown})."
    if message not in _said and os.environ.get("RANK", "0") == "0":
        _said.add(message)
        print(message, file=sys.stderr)
