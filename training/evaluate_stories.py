"""Measure stories: do they belong to their photo, sound like their genre, read well, and are they various?

    python -m training.evaluate_stories --dataset flickr8k --books books
    python -m training.evaluate_stories --dataset flickr8k --books books everyday_stories --photos 100 --json
    python -m training.evaluate_stories --dataset flickr8k --books books --systems pictale \\
        --system "no choice:candidates=1" --stories stories.jsonl

`--dataset` has photos with captions by people, `--books` texts whose genre is known. Beside the pipeline stand the
plain recipe of 2015 on the same weights, the bookshelf, the bare caption and real passages (`training.story_systems`).

    found    share of stories whose photo is the one, among 100, to whose captions they are nearest (all-MiniLM-L6-v2)
    margin   cosine to the captions of their own photo less the mean of those to the others'
    words    share of the content words of the photo's captions that are taken up
    style    share that a classifier, trained on books that it is not asked about, takes for the genre they should have
    perplexity   of SmolLM2-135M-Instruct, a token
    distinct-1, -2, -3    different words, pairs, triples over all of them, in as many words of each system
    repeated     share of a story's sequences of four words that it had before
    copied       share of stories with eight words in a row out of the books
    length, first words, whole   words; seconds, medians

Intervals are of 95 %, over photos drawn with replacement; in JSON `by_style` has found, style and copied of each style.
`training.story_judges` says how to install the judges; a measure whose judge is missing is left out, and said to be.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from modeling.errors import DataError, PictaleError
from modeling.pipeline_story import StoryPipeline

from . import story_measures as measures
from .caption_sources import read_split
from .feature_cache import decode_image
from .figures import command_line
from .story_judges import FluencyJudge, SentenceJudge, StyleJudge
from .story_systems import SYSTEMS, Library, Tellers, Told, parse_system, read_library

COLUMNS = {
    "found": "found",
    "margin": "margin",
    "words": "words",
    "style": "style",
    "perplexity": "perplexity",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "repeated": "repeated",
    "copied": "copied",
    "length": "length",
    "first_words_s": "first words, s",
    "whole_s": "whole, s",
}
SHARES = ("found", "words", "style", "repeated", "copied")
MOST_WORDS = 5000  # of a system that distinct-n looks at


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


@dataclass(frozen=True)
class Judges:
    """Those that could be had; None is left out."""

    sentence: SentenceJudge | None = None
    fluency: FluencyJudge | None = None
    style: StyleJudge | None = None


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
        if len(images) == count and len(captions) >= measures.GALLERY:
            break
    if not images or len(captions) < 2:
        raise DataError(f"{data.name}: stories are measured on at least two photos with captions.")
    return Photos(images, captions, ids)


# -- scores ----------------------------------------------------------------------------------------------------------
def score(
    told: Sequence[Told], photos: Photos, copies: np.ndarray, judges: Judges, budget: int, draws: int
) -> dict[str, Any]:
    """All figures of one system's stories that the judges at hand can give.

    Args:
        copies: Whether each story has something copied from the books [stories].
        budget: Words that distinct-n looks at, the same for all systems.
        draws: For the intervals; 0 leaves them out.
    """
    texts, owner = [story.text for story in told], [story.photo for story in told]

    by_style: dict[str, dict[str, float]] = {style: {} for style in dict.fromkeys(story.style for story in told)}

    def figure(values: Any, digits: int = 4) -> dict[str, float]:
        statistic = values if callable(values) else measures.mean_of(values)
        return measures.rounded(measures.bootstrap(owner, statistic, draws), digits)

    def share(name: str, values: Sequence[Any] | np.ndarray) -> None:
        report[name] = figure(values)
        for style, shares in by_style.items():
            own = [float(value) for value, story in zip(values, told, strict=True) if story.style == style]
            shares[name] = round(statistics.fmean(own), 4)

    report: dict[str, Any] = {"stories": len(told)}
    if judges.sentence:
        vectors = np.stack([judges.sentence.embed(group).mean(0) for group in photos.captions])
        found, margin = measures.grounding(judges.sentence.embed(texts), vectors, owner)
        share("found", found)
        report["margin"] = figure(margin)
    report["words"] = figure([measures.word_recall(s.text, photos.captions[s.photo]) for s in told])
    if judges.style:
        guesses = judges.style.classify(texts, [story.book for story in told])
        share("style", [guess == story.style for guess, story in zip(guesses, told, strict=True)])
    if judges.fluency:
        report["perplexity"] = figure(measures.perplexity_of(*judges.fluency.losses(texts)), 1)
    for size in (1, 2, 3):
        report[f"distinct_{size}"] = round(measures.distinct(texts, size, budget), 4)
    report["repeated"] = figure([measures.repeated(text) for text in texts])
    share("copied", copies)
    report["length"] = figure([len(measures.plain_words(text)) for text in texts], 1)
    for name, key in (("first_words", "first_words_s"), ("whole", "whole_s"), ("processor", "processor_s")):
        times = [value for story in told if (value := getattr(story, name)) is not None]
        report[key] = round(statistics.median(times), 3) if times else None
    return report | {"by_style": by_style}


@dataclass(frozen=True)
class Evaluation:
    """A report, and the stories it is about, by system."""

    report: dict[str, Any]
    stories: dict[str, list[Told]]


def evaluate(
    pipe: StoryPipeline,
    photos: Photos,
    library: Library,
    judges: Judges,
    systems: Mapping[str, Mapping[str, Any] | None],
    styles: Sequence[str] | None = None,
    seed: int = 1,
    draws: int = 1000,
) -> Evaluation:
    """Tell and score; a system that cannot tell is left out, with its reason in `not_measured`.

    Args:
        systems: Options of the pipeline by name, see `story_systems.SYSTEMS`.
        styles: None: all of the pipeline that the library has texts of.
        seed, draws: See `Tellers` and `score`.

    Raises:
        DataError: no style that both know.
    """
    known = [style for style in pipe.styles if style in set(library.genres)]
    styles = list(styles) if styles else known
    if not styles or (strange := [style for style in styles if style not in known]):
        name = f"'{strange[0]}'" if styles else "any"
        raise DataError(f"No text of the style {name} was given, or the pipeline has none: choose from {known}.")
    captions = [caption for i in range(0, len(photos.images), 16) for caption in pipe.see(photos.images[i : i + 16])]
    tellers = Tellers(pipe, photos.images, captions, styles, library, seed)
    stories: dict[str, list[Told]] = {}
    missing: dict[str, str] = {}
    for name, options in systems.items():
        try:
            stories[name] = tellers.tell(name, options)
        except PictaleError as error:
            missing[name] = str(error)
    if not stories:
        raise DataError(f"No system could tell a story: {next(iter(missing.values()))}")
    budget = min(MOST_WORDS, *(measures.word_count(s.text for s in told) for told in stories.values()))
    print("looking for copies in the books", file=sys.stderr, flush=True)
    copies = measures.copied([s.text for told in stories.values() for s in told], library.paragraphs)
    rows = {}
    for name, told in stories.items():
        print(f"scoring {name}", file=sys.stderr, flush=True)
        rows[name] = score(told, photos, copies[: len(told)], judges, budget, draws)
        copies = copies[len(told) :]
    report: dict[str, Any] = {
        "photos": len(photos.images),
        "gallery": min(measures.GALLERY, len(photos.captions)),
        "styles": styles,
        "seed": seed,
        "systems": rows,
        "options": {name: dict(options or {}) for name, options in systems.items()},
        "distinct_words": budget,
        "not_measured": missing,
        "threads": torch.get_num_threads(),
    }
    if judges.style:
        report["style_judge"] = {
            "genres": judges.style.labels,
            "ceiling": round(judges.style.ceiling, 4),
            "ceiling_by_genre": measures.rounded(judges.style.ceiling_by_genre),
            "floor": rows.get("caption", {}).get("style", {}).get("value"),
        }
    return Evaluation(report, stories)


def find_judges(library: Library, sentence: str | None, fluency: str | None) -> tuple[Judges, dict[str, str]]:
    """The judges at hand, and a sentence for each that is not."""
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    makers = {
        "sentence": lambda: SentenceJudge(sentence),
        "fluency": lambda: FluencyJudge(fluency),
        "style": lambda: StyleJudge(library.texts, library.genres, library.books),
    }
    for name, make in makers.items():
        print(f"preparing the {name} judge", file=sys.stderr, flush=True)
        try:
            found[name] = make()
        except DataError as error:
            missing[name] = str(error)
    return Judges(**found), missing


# -- for reading -----------------------------------------------------------------------------------------------------
def markdown_table(report: Mapping[str, Any]) -> str:
    """The systems as the table of a model card, with intervals where there are any; a dash: not measured."""
    rows = report["systems"]
    columns = {key: title for key, title in COLUMNS.items() if any(row.get(key) is not None for row in rows.values())}
    lines = [["", *columns.values()], ["---"] * (len(columns) + 1)]
    lines += [[name, *(_cell(key, row.get(key)) for key in columns)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(key: str, figure: Any) -> str:
    if figure is None:
        return "-"
    value = figure["value"] if isinstance(figure, Mapping) else figure
    scale, form = (100, ".0f") if key in SHARES else (1, ".0f" if key in ("perplexity", "length") else ".2f")
    text = f"{scale * value:{form}}"
    if isinstance(figure, Mapping) and "low" in figure:
        text += f" ({scale * figure['low']:{form}} to {scale * figure['high']:{form}})"
    return text + (" %" if key in SHARES else "")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset", required=True, help="photos with captions: folder, file, Hub id, name in PICTALE_DATA"
    )
    parser.add_argument("--split", default="validation", help="train, validation, test, or all (validation)")
    parser.add_argument("--books", required=True, nargs="+", help="texts of known genre: data sets of books or stories")
    parser.add_argument("--model", help="pipeline folder or Hub id (the embedded default)")
    parser.add_argument("--photos", type=int, default=50, help="how many, at random (50)")
    parser.add_argument("--styles", help="NAME,NAME (all that the books have)")
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS), help="which (all)")
    parser.add_argument(
        "--system",
        action="append",
        default=[],
        metavar="NAME:OPTION=VALUE,...",
        help="one more: the pipeline with these options (repeatable)",
    )
    parser.add_argument("--bookshelf", metavar="FILE", help="what the bookshelf quotes from (that of the pipeline)")
    parser.add_argument("--seed", type=int, default=1, help="of the stories: photo i has seed + i (1)")
    parser.add_argument(
        "--bootstrap", type=int, default=1000, metavar="DRAWS", help="for the intervals; 0 for none (1000)"
    )
    parser.add_argument("--sentence-judge", metavar="DIR", help="another than the package's")
    parser.add_argument("--fluency-judge", metavar="DIR_OR_GGUF", help="another than the package's")
    parser.add_argument("--stories", type=Path, metavar="FILE", help="also write all stories, one JSON object a line")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return parser


def run(args: argparse.Namespace) -> Evaluation:
    if args.photos < 1 or args.bootstrap < 0:
        raise PictaleError("--photos must be at least 1, and --bootstrap at least 0.")
    systems = {name: SYSTEMS[name] for name in args.systems} | dict(map(parse_system, args.system))
    pipe = StoryPipeline.from_pretrained(args.model)
    if args.bookshelf:
        pipe.open_bookshelf(args.bookshelf)
    photos = choose_photos(args.dataset, args.split, args.photos)
    library = read_library(args.books)
    judges, missing = find_judges(library, args.sentence_judge, args.fluency_judge)
    styles = args.styles.split(",") if args.styles else None
    result = evaluate(pipe, photos, library, judges, systems, styles, args.seed, args.bootstrap)
    result.report["not_measured"].update(missing)
    result.report.update({"model": args.model or "embedded default", "dataset": args.dataset, "split": args.split})
    if args.stories:
        lines = [
            json.dumps({"system": name, "photo_id": photos.ids[story.photo], **asdict(story)}, ensure_ascii=False)
            for name, told in result.stories.items()
            for story in told
        ]
        args.stories.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    disable_progress_bar()  # of transformers, which draws one for the weights
    try:
        report = run(args).report
    except PictaleError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(report | {"command": command_line("evaluate_stories", arguments)}))
        return 0
    print(markdown_table(report))
    if judge := report.get("style_judge"):
        ceiling, floor = judge["ceiling"], judge["floor"]
        print(
            f"\nStyle judge: {ceiling:.0%} of real passages right" + (f", {floor:.0%} of captions." if floor else ".")
        )
    for name, reason in report["not_measured"].items():
        print(f"Not measured, {name}: {reason}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
