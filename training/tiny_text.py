"""Two books, five genres' worth of made-up sentences, some captions and stories about them, for tests and for trying
the path in seconds.

python -m training.tiny_text FOLDER
"""

from __future__ import annotations

import argparse
import itertools
import random
from pathlib import Path
from typing import Any

GENRES = {
    "romance": ("Anna", "loved", "the young count", "with all her heart"),
    "horror": ("Igor", "feared", "the cold shadow", "behind the black door"),
}
PLACES = ("in the garden", "near the lake", "on the road", "by the old house")
TIMES = ("One day", "That night", "In the morning", "At last")


def write_tiny_text(folder: str | Path) -> Path:
    """Write `tiny-books` (eight books, two genres), `tiny-captions` (sixty pictures) and `tiny-stories` below
    `folder`."""
    from datasets import Dataset

    folder = Path(folder)
    books = []
    for (genre, words), number in itertools.product(GENRES.items(), range(4)):
        rng = random.Random(f"{genre} {number}")
        books.append({"genre": genre, "title": f"{genre} {number}", "text": _book(*words, rng)})
    captions = [
        [f"a {colour} {shape} {place}.", f"there is a {colour} {shape}.", f"the {shape} is {colour}."]
        for colour, shape, place in itertools.product(("red", "green", "blue", "yellow"), ("circle", "square"), PLACES)
    ]
    for name, rows in (("tiny-books", books), ("tiny-captions", [{"captions": c} for c in captions * 2])):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Dataset.from_list(rows).to_parquet(folder / name / "train.parquet")
    for split, rows in (("train", _stories(48)), ("validation", _stories(8))):
        (folder / "tiny-stories").mkdir(exist_ok=True)
        Dataset.from_list(rows).to_parquet(folder / "tiny-stories" / f"{split}.parquet")
    return folder


def _stories(count: int) -> list[dict[str, Any]]:
    """Rows as `hub_configs/written-stories` has them, each kind of continuation among them."""
    rows, kinds = [], ("one", "one_then_on", "one_then_photo", "one_then_sentence")
    shapes = itertools.cycle(itertools.product(("red", "green", "blue", "yellow"), ("circle", "square")))
    for number, (colour, shape) in zip(range(count), shapes, strict=False):
        kind, style = kinds[number % 4], ("everyday", "romance", "horror", "song", "own")[number % 5]
        rows.append(
            {
                "manner": "plain",
                "style": style,
                "register": "a diary" if style == "own" else None,
                "page": f"Anna loved the {shape}. She walked by the lake and said so."
                if style in ("romance", "horror", "own")
                else None,
                "length": ("short", "medium", "long")[number % 3],
                "photo_source": "tiny",
                "photo_id": str(number),
                "captions": [f"a {colour} {shape}.", f"there is a {colour} {shape} in the garden."],
                "seen": [f"A {colour} {shape}.", f"A {shape} in the garden."],
                "recalled": [f"The {shape} is {colour}."],
                "title": f"The {colour.capitalize()} {shape.capitalize()}",
                "story": f"A {colour} {shape} stood in the garden. Anna saw it and was glad.",
                "kind": kind,
                "sentence": "Then the lights went out." if kind == "one_then_sentence" else None,
                "next": None if kind == "one" else f"The {shape} was still there in the morning.",
                "captions2": ["a blue square."] if kind == "one_then_photo" else None,
                "photo2": ["tiny", "0"] if kind == "one_then_photo" else None,
                "seen2": ["A blue square."] if kind == "one_then_photo" else None,
            }
        )
    return rows


def _book(who: str, verb: str, whom: str, how: str, rng: random.Random) -> str:
    chapters = []
    for chapter in range(1, 4):
        paragraphs = []
        for _ in range(6):
            place, time = rng.choice(PLACES), rng.choice(TIMES)
            paragraphs.append(
                f'{time} {who} walked {place}. She {verb} {whom} {how}. "Where are you?" {who} said {place}. '
                f"Nobody answered, and {who} {verb} {whom} still."
            )
        chapters.append(f"CHAPTER {chapter}\n\n" + "\n\n".join(paragraphs))
    return "\n\n".join(chapters)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where tiny-books/ and tiny-captions/ are written")
    print(write_tiny_text(parser.parse_args().folder))


if __name__ == "__main__":
    main()
