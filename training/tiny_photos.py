"""A data set of a few drawn pictures, for tests and for trying the whole path in seconds.

python -m training.tiny_photos FOLDER
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "yellow": (230, 210, 40)}
SHAPES = ("circle", "square")
PHRASES = ("a {c} {s}", "a {c} {s} on a white page", "there is a {c} {s}")


def draw(colour: str, shape: str, side: int = 64) -> bytes:
    """PNG bytes of one shape on white."""
    image = Image.new("RGB", (side, side), "white")
    box = (side // 6, side // 6, side - side // 6, side - side // 6)
    pen = ImageDraw.Draw(image)
    (pen.ellipse if shape == "circle" else pen.rectangle)(box, fill=COLOURS[colour])
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def write_tiny_photos(folder: str | Path) -> Path:
    """Write train and validation splits (the same eight pictures) as parquet; returns the folder."""
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    features = Features({"image": ImageFeature(), "image_id": Value("string"), "captions": List(Value("string"))})
    rows = [
        {
            "image": {"bytes": draw(colour, shape), "path": None},
            "image_id": f"{colour}-{shape}",
            "captions": [phrase.format(c=colour, s=shape) for phrase in PHRASES],
        }
        for colour in COLOURS
        for shape in SHAPES
    ]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation"):
        Dataset.from_list(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    print(write_tiny_photos(parser.parse_args().folder))
