"""Add what the captioner says of their photos to stories about photos, for the storyteller to learn from.

    python -m training.caption_stories written_stories --photos flickr8k coco_subset --output runs/stories
    python -m training.caption_stories written_stories --photos flickr8k --output hub_configs/written-stories --publish

A row of the stories names its photo by `photo_source`, what the data set of photos is called, and `photo_id`; a second
one by `photo2`. Columns that are added, or made anew:

    seen       captions of the photo as the page would show them, surest first
    recalled   sentences of the bank that it brings to mind, but for captions of this very photo
    seen2      captions of the second photo

What was seen is kept in `OUTPUT.captions.jsonl`, so a run that was stopped goes on where it was, and another one with
the same models has nothing left to do. Photos that are missing or broken are named, and their rows have no such
captions.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, Features, List, Value
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from modeling.errors import DataError, PictaleError
from modeling.fingerprints import encoder_fingerprint
from modeling.pipeline_story import StoryPipeline

from .caption_sources import CaptionSplit, read_split, say_skipped
from .data_text import TextSource, load_rows
from .feature_cache import decode_image
from .json_lines import JsonLines
from .loop import replace_folder
from .story_systems import SEEING
from .storyteller_data import photos_of, source_name

SPLITS = ("train", "validation")
UNPUBLISHED = ("flickr8k",)  # data sets whose captions are not ours to pass on
BATCH = 64

Photo = tuple[str, str]


def read_splits(name: str) -> dict[str, Dataset]:
    """The splits of a data set of stories.

    Raises:
        DataError: nothing there, or its rows do not say which photos they are about.
    """
    first = load_rows(TextSource(name, split=SPLITS[0]))
    if missing := {"photo_source", "photo_id"} - set(first.column_names):
        raise DataError(f"The stories '{name}' have no column {' or '.join(sorted(missing))}, so no photo is known.")
    try:
        return {SPLITS[0]: first, SPLITS[1]: load_rows(TextSource(name, split=SPLITS[1]))}
    except DataError:  # stories to learn from alone
        return {SPLITS[0]: first}


def look(
    pipe: StoryPipeline,
    wanted: Collection[Photo],
    sources: Sequence[Any],
    cache: Path,
    batch_size: int = BATCH,
) -> dict[Photo, dict[str, list[str]]]:
    """What the pipeline sees in photos: `{"seen": [...], "recalled": [...]}` of each that can be read.

    Args:
        wanted: Data set and id.
        sources: Data sets of captioned photos.
        cache: What was seen, kept batch by batch.
        batch_size: Photos that are looked at together.
    """
    kept = JsonLines(cache, _settings(pipe))
    found = {(one["source"], one["id"]): one for one in kept.records}
    places: set[Photo] = set()
    for entry in sources:
        name = source_name(entry)
        if not any(source == name for source, _ in wanted):
            print(f"{name}: no story is about a photo of it.", file=sys.stderr)
            continue
        photos = read_split(entry, "all")
        rows = {(name, photos.image_ids[row]): row for row in range(len(photos))}
        places |= wanted & rows.keys()
        todo = {photo: row for photo, row in rows.items() if photo in wanted and photo not in found}
        with tqdm(total=len(todo), desc=name, unit="photo", disable=not todo) as bar:
            for records in _batches(pipe, photos, todo, name, batch_size, bar):
                kept.append(records)
                found |= {(one["source"], one["id"]): one for one in records}
    names = sorted("/".join(photo) for photo in wanted - places)
    say_skipped(f"{{}} of {len(wanted)} photos are in none of the data sets", names)
    return {photo: found[photo] for photo in wanted if photo in found}


def _settings(pipe: StoryPipeline) -> dict[str, Any]:
    """What captions depend on."""
    options = asdict(pipe.options.resolved())
    return {
        "captioner": encoder_fingerprint(pipe.captioner),
        "embedding": pipe.embedding.fingerprint() if pipe.embedding is not None else None,
        "bank": len(pipe.bank) if pipe.can_retrieve else 0,
        "options": {name: options[name] for name in SEEING},
    }


def _batches(
    pipe: StoryPipeline, photos: CaptionSplit, todo: Mapping[Photo, int], name: str, batch_size: int, bar: Any
) -> Iterator[list[dict[str, Any]]]:
    """Records of what is seen; broken photos are named at the end."""
    broken, rows = [], list(todo.values())
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        images = {row: image for row in part if (image := decode_image(photos.images[row])) is not None}
        broken += [photos.image_ids[row] for row in part if row not in images]
        records = []
        for row, captions in zip(images, pipe.see(list(images.values())) if images else (), strict=True):
            own = {_letters(text) for text in photos.captions[row]}
            remembered = [c.text for c in captions if c.remembered and _letters(c.text) not in own]
            seen = [c.text for c in captions if not c.remembered]
            records.append({"source": name, "id": photos.image_ids[row], "seen": seen, "recalled": remembered})
        yield records
        bar.update(len(part))
    say_skipped(f"{name}: {{}} of {len(rows)} photos cannot be read", broken)


def _letters(text: str) -> str:
    """By which a caption is known again: data sets differ in hyphens and spaces."""
    return "".join(re.findall(r"[^\W_]+", text.lower()))


def with_captions(rows: Dataset, seen: Mapping[Photo, Mapping[str, Any]], publish: bool = False) -> Dataset:
    """The rows with `seen`, `recalled` and `seen2`, in their order.

    Args:
        seen: Of `look`.
        publish: Leave out captions by people that may not be passed on.
    """
    made = []
    for row in rows:
        first, *second = photos_of(row)
        row["seen"] = list(seen[first]["seen"]) if first in seen else []
        row["recalled"] = list(seen[first]["recalled"]) if first in seen else []
        row["seen2"] = list(seen[second[0]]["seen"]) if second and second[0] in seen else None
        if publish and first[0] in UNPUBLISHED:
            row["captions"] = None
        if publish and second and second[0][0] in UNPUBLISHED:
            row["captions2"] = None
        made.append(row)
    texts = List(Value("string"))
    return Dataset.from_list(
        made, features=Features({**rows.features, "seen": texts, "recalled": texts, "seen2": texts})
    )


def check_output(output: Path) -> None:
    """Raise DataError unless stories can be written there: a new folder, or one that holds some."""
    if output.is_file():
        raise DataError(f"{output} is a file: name a folder for the stories.")
    if output.is_dir() and any(output.iterdir()) and not any(output.glob("*.parquet")):
        raise DataError(f"{output} holds something other than stories: name a new folder.")


def write_stories(splits: Mapping[str, Dataset], output: Path) -> None:
    """A folder with a parquet file for each split; all are swapped in at once, and other files stay."""

    def write(folder: Path) -> None:
        for file in output.iterdir() if output.is_dir() else ():
            if file.is_file() and file.suffix != ".parquet":
                shutil.copy2(file, folder / file.name)
        for split, rows in splits.items():
            table = rows.with_format("arrow")[:]
            pq.write_table(table, folder / f"{split}-00000-of-00001.parquet", compression="zstd", compression_level=12)

    replace_folder(output, write)


def run(
    stories: str,
    sources: Sequence[Any],
    output: Path,
    pipe: StoryPipeline,
    publish: bool = False,
    batch_size: int = BATCH,
) -> DatasetDict:
    """Caption the stories' photos and write the data set.

    Raises:
        DataError: no stories, no photos, none of the photos that they are about, or `output` is something else.
    """
    check_output(output)
    splits = read_splits(stories)
    wanted = {photo for rows in splits.values() for photo in _all_photos(rows)}
    seen = look(pipe, wanted, sources, output.with_name(output.name + ".captions.jsonl"), batch_size)
    if not seen:
        names = ", ".join(sorted({source for source, _ in wanted}))
        raise DataError(f"None of the photos that '{stories}' is about was found: give the data sets {names}.")
    made = DatasetDict({split: with_captions(rows, seen, publish) for split, rows in splits.items()})
    write_stories(made, output)
    return made


def _all_photos(rows: Dataset) -> Iterator[Photo]:
    columns = [name for name in ("photo_source", "photo_id", "photo2") if name in rows.column_names]
    for row in rows.select_columns(columns):
        yield from photos_of(row)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stories", help="data set of stories: folder, Hub id, or name below $PICTALE_DATA")
    parser.add_argument("--photos", nargs="+", required=True, metavar="DATASET", help="captioned photos, by their name")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", help="pipeline; without it, the embedded default")
    parser.add_argument("--publish", action="store_true", help=f"without people's captions of {', '.join(UNPUBLISHED)}")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"photos looked at together ({BATCH})")
    args = parser.parse_args(argv)
    if args.batch < 1:
        parser.error("--batch is 1 or more")
    disable_progress_bar()
    try:
        pipe = StoryPipeline.from_pretrained(args.model)
        made = run(args.stories, args.photos, args.output, pipe, args.publish, args.batch)
    except PictaleError as error:
        print(error, file=sys.stderr)
        return 1
    for split, rows in made.items():
        print(f"{split}: {len(rows)} stories, {sum(map(bool, rows['seen']))} with captions of the captioner's")
    return 0


if __name__ == "__main__":
    sys.exit(main())
