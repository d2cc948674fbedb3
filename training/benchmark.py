"""Time and memory of a pipeline on this machine.

    python -m training.benchmark [--model FOLDER_OR_ID] [--photos FOLDER] [--json]

Median over the photos, after one round to warm up: captions of a photo (beam 3, image processor and backbone included),
seconds to the first words of a story, and seconds per 100 words. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path

from modeling import PictaleError, StoryPipeline
from modeling.model_folder import DEFAULT_PIPELINE


def benchmark(pipe: StoryPipeline, photos: list[Path], style: str | None = None) -> dict[str, float]:
    """Figures by name; times in seconds, memory in MiB."""
    for photo in photos:
        pipe.caption(photo)
    caption_s = []
    for photo in photos * 2:
        start = time.perf_counter()
        pipe.caption(photo)
        caption_s.append(time.perf_counter() - start)
    first_s, hundred_s = [], []
    for seed, (photo, seen) in enumerate(zip(photos, pipe.see(photos), strict=True)):
        start, story = time.perf_counter(), ""
        for text in pipe.stream(seen, style=style, seed=seed, view=pipe.views(photo)[0]):
            story = text
            if len(first_s) == seed:
                first_s.append(time.perf_counter() - start)
        hundred_s.append((time.perf_counter() - start) / len(story.split()) * 100)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {
        "caption_s": statistics.median(caption_s),
        "first_words_s": statistics.median(first_s),
        "hundred_words_s": statistics.median(hundred_s),
        "hundred_words_worst_s": max(hundred_s),
        "peak_memory_mib": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="pipeline folder or Hub id (the embedded default)")
    parser.add_argument("--photos", default=str(DEFAULT_PIPELINE / "examples"), help="folder of .jpg files")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    photos = sorted(Path(args.photos).glob("*.jpg"))
    if not photos:
        sys.exit(f"benchmark: there is no .jpg file in {args.photos}.")
    try:
        figures = benchmark(StoryPipeline.from_pretrained(args.model), photos)
    except PictaleError as error:
        sys.exit(f"benchmark: {error}")
    print(json.dumps(figures) if args.json else "\n".join(f"{name:24}{value:8.3f}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
