"""Two books, five genres' worth of made-up sentences and some captions, for tests and for trying the path in seconds.

python -m training.tiny_text FOLDER
"""

from __future__ import annotations

import argparse
import itertools
import random
from pathlib import Path

GENRES = {
    "romance": ("Anna", "loved", "the young count", "with all her heart"),
    "horror": ("Igor", "feared", "the cold shadow", "behind the black door"),
}
PLACES = ("in the garden", "near the lake", "on the road", "by the old house")
TIMES = ("One day", "That night", "In the morning", "At last")


def write_tiny_text(folder: str | Path) -> Path:
    """Write `tiny-books` (eight books, two genres) and `tiny-captions` (sixty pictures) below `folder`."""
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
    return folder


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
