"""Measure stories: do they belong to their photo, sound like their genre, read well, and are they various?

    python -m training.evaluate_stories --dataset flickr8k --books books
    python -m training.evaluate_stories --dataset flickr8k --books books everyday_stories --photos 100 --json \\
        --fluency everyday_stories simple_stories:vist,vwp,mctest
    python -m training.evaluate_stories --dataset flickr8k --books books --systems pictale \\
        --system "no choice:candidates=1" --strengths 0 0.5 1.5 --own-books FOLDER --stories stories.jsonl
    python -m training.evaluate_stories --dataset flickr8k --books books --reading-sheet sheet.csv \\
        --written-photos flickr8k coco_subset --people everyday_stories:storycloze
    python -m training.evaluate_stories --read-back sheet-anna.csv sheet-ben.csv --key sheet.key.csv

`--dataset` has photos with captions by people, `--books` texts whose genre is known. Beside the pipeline stand the
plain recipe of 2015 on the same weights, the bookshelf, the bare caption and real passages (`training.story_systems`).

    found    share of stories whose photo is the one, among 100, to whose captions they are nearest (all-MiniLM-L6-v2)
    margin   cosine to the captions of their own photo less the mean of those to the others'
    words    share of the content words of the photo's captions that are taken up
    style    share that a classifier, trained on books that it is not asked about, takes for the genre they should have
    perplexity, unknown    a word, by trigrams of people's stories (`training.ngram_judge`); share of words new to them
    distinct-1, -2, -3    different words, pairs, triples over all of them, in as many words of each system
    repeated     share of a story's sequences of four words that it had before
    copied       share of stories with eight words in a row out of the books or the stories that writers learned
    length, first words, whole   words; seconds, medians

Intervals are of 95 %, over photos drawn with replacement. So are those of the differences from the first system, on the
same photos with the same seeds; one that has 0 inside is no difference. In JSON `by_style` has found, style and copied
of each style. A measure whose judge is missing is left out, and said to be; `training.story_judges` tells how to
install them. Whether stories make sense no judge here can say: read them, blind (`training.reading_sheet`). What the
style does as its strength grows is seen with `--strengths`, whether a book of one's own is heard with `--own-books`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from modeling.errors import DataError, PictaleError
from modeling.pipeline_story import StoryPipeline

from . import reading_sheet as sheet
from . import story_measures as measures
from .data_text import TextSource, load_rows
from .figures import command_line
from .ngram_judge import NgramJudge
from .own_books import measure_own_books
from .story_judges import SentenceJudge, StyleJudge
from .story_scores import Judges, Scored, difference_table, differences, markdown_table, score
from .story_systems import (
    SYSTEMS,
    Library,
    Photos,
    Tellers,
    Told,
    choose_photos,
    parse_system,
    people_stories,
    read_library,
)

MOST_WORDS = 5000  # of a system that distinct-n looks at
WRITTEN = "hub_configs/written-stories"


@dataclass(frozen=True)
class Evaluation:
    """A report, the stories it is about, by system, and who told them."""

    report: dict[str, Any]
    stories: dict[str, list[Told]]
    tellers: Tellers


def open_tellers(
    pipe: StoryPipeline,
    photos: Photos,
    library: Library,
    styles: Sequence[str] | None = None,
    seed: int = 1,
    together: int = 1,
) -> Tellers:
    """Look at the photos, once for all systems.

    Args:
        styles: None: all of the pipeline that the library has texts of.
        together: Stories that are told at once.

    Raises:
        DataError: no style that both know.
    """
    known = [style for style in pipe.styles if style in set(library.genres)]
    styles = list(styles) if styles else known
    if not styles or (strange := [style for style in styles if style not in known]):
        name = f"'{strange[0]}'" if styles else "any"
        raise DataError(f"No text of the style {name} was given, or the pipeline has none: choose from {known}.")
    captions = [caption for i in range(0, len(photos.images), 16) for caption in pipe.see(photos.images[i : i + 16])]
    return Tellers(pipe, photos.images, captions, styles, library, seed, together)


def read_written(name: str) -> list[list[str]]:
    """What a writer may have learned by heart: of each training row of `hub_configs/written-stories` the story, the
    passage after it and the page it was told by."""
    rows = load_rows(TextSource(name))
    columns = [column for column in ("story", "next", "page") if column in rows.column_names]
    if not columns:
        raise DataError(f"'{name}' is no data set of written stories: it needs a column story.")
    return [[row[column] or "" for column in columns] for row in rows.select_columns(columns)]


def evaluate(
    tellers: Tellers,
    photos: Photos,
    judges: Judges,
    systems: Mapping[str, Mapping[str, Any] | None],
    written: Sequence[Sequence[str]] = (),
    draws: int = 1000,
) -> Evaluation:
    """Tell and score; a system that cannot tell is left out, with its reason in `not_measured`.

    Args:
        systems: Options of the pipeline by name, see `story_systems.SYSTEMS`; differences are from the first.
        written: Texts that a writer was trained on, see `read_written`.
        draws: See `score`.

    Raises:
        DataError: no system can tell.
    """
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
    print("looking for copies", file=sys.stderr, flush=True)
    texts = [s.text for told in stories.values() for s in told]
    copies = {"books": measures.copied(texts, tellers.library.paragraphs)}
    if written:
        copies["written stories"] = measures.copied(texts, written)
    scored: dict[str, Scored] = {}
    for name, told in stories.items():
        print(f"scoring {name}", file=sys.stderr, flush=True)
        own = {place: found[: len(told)] for place, found in copies.items()}
        scored[name] = score(told, photos, own, judges, budget, draws)
        copies = {place: found[len(told) :] for place, found in copies.items()}
    first, *others = scored
    rows = {name: one.row for name, one in scored.items()}
    report: dict[str, Any] = {
        "photos": len(photos.images),
        "gallery": min(measures.GALLERY, len(photos.captions)),
        "styles": list(tellers.styles),
        "seed": tellers.seed,
        "systems": rows,
        "differences_from": first,
        "differences": {name: differences(scored[first], scored[name], draws) for name in others},
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
    if judges.fluency:
        report["fluency_judge"] = judges.fluency.about
    return Evaluation(report, stories, tellers)


def find_judges(
    library: Library, sentence: str | None = None, fluency: Sequence[str] = ()
) -> tuple[Judges, dict[str, str]]:
    """The judges at hand, and a sentence for each that is not.

    Args:
        sentence: See `SentenceJudge`.
        fluency: Data sets of people's stories, see `story_systems.people_stories`.
    """

    def fluency_judge() -> NgramJudge:
        if not fluency:
            raise DataError("it learns from people's stories: name some with --fluency.")
        return NgramJudge([text for name in fluency for text in people_stories(name)], library.short_stories())

    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    makers = {
        "sentence": lambda: SentenceJudge(sentence),
        "fluency": fluency_judge,
        "style": lambda: StyleJudge(library.texts, library.genres, library.books),
    }
    for name, make in makers.items():
        print(f"preparing the {name} judge", file=sys.stderr, flush=True)
        try:
            found[name] = make()
        except DataError as error:
            missing[name] = str(error)
    return Judges(**found), missing


# -- the command -----------------------------------------------------------------------------------------------------
def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="photos with captions: folder, file, Hub id, name in PICTALE_DATA")
    parser.add_argument("--split", default="validation", help="train, validation, test, or all (validation)")
    parser.add_argument("--books", nargs="+", help="texts of known genre: data sets of books or stories")
    parser.add_argument("--model", help="pipeline folder or Hub id (the embedded default)")
    parser.add_argument("--photos", type=int, default=50, help="how many, at random (50)")
    parser.add_argument("--styles", help="NAME,NAME (all that the books have)")
    parser.add_argument(
        "--systems", nargs="+", choices=list(SYSTEMS), help="which (all; of a reading sheet pictale, real)"
    )
    parser.add_argument(
        "--system",
        action="append",
        default=[],
        metavar="NAME:OPTION=VALUE,...",
        help="one more: the pipeline with these options (repeatable)",
    )
    parser.add_argument(
        "--strengths",
        nargs="+",
        type=float,
        default=[],
        metavar="S",
        help="further systems: each strength of the style",
    )
    parser.add_argument("--bookshelf", metavar="FILE", help="what the bookshelf quotes from (that of the pipeline)")
    parser.add_argument("--seed", type=int, default=1, help="of the stories: photo i has seed + i (1)")
    parser.add_argument("--together", type=int, default=1, help="stories told at once; above 1 no times are given (1)")
    parser.add_argument("--stories", type=Path, metavar="FILE", help="also write all stories, one JSON object a line")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    judges = parser.add_argument_group("measuring")
    judges.add_argument(
        "--bootstrap", type=int, default=1000, metavar="DRAWS", help="for the intervals; 0 for none (1000)"
    )
    judges.add_argument("--sentence-judge", metavar="DIR", help="another than the package's")
    judges.add_argument(
        "--fluency",
        nargs="+",
        default=[],
        metavar="DATASET[:SOURCE,...]",
        help="people's short stories that no writer was trained on, for the fluency judge to learn from",
    )
    judges.add_argument(
        "--written-stories", default=WRITTEN, metavar="DATASET", help=f"that writers learned ({WRITTEN})"
    )
    judges.add_argument("--own-books", metavar="FOLDER", help="books, each of which becomes a style to tell in")
    sheets = parser.add_argument_group("reading")
    sheets.add_argument(
        "--reading-sheet", type=Path, metavar="OUT.csv", help="write a blind reading sheet, and no more"
    )
    sheets.add_argument("--stories-each", type=int, default=28, metavar="N", help="on the sheet, of each system (28)")
    sheets.add_argument("--written-photos", nargs="+", default=[], metavar="DATASET", help="photos of written stories")
    sheets.add_argument("--people", metavar="DATASET[:SOURCE,...]", help="people's stories, about anything")
    sheets.add_argument("--read-back", nargs="+", type=Path, metavar="SHEET.csv", help="marks of readers, and no more")
    sheets.add_argument("--key", type=Path, metavar="OUT.key.csv", help="of the sheet that is read back")
    return parser


def run(args: argparse.Namespace) -> Evaluation:
    systems = _systems(args, SYSTEMS)
    pipe, photos, library = _open(args, args.photos)
    styles = args.styles.split(",") if args.styles else None
    tellers = open_tellers(pipe, photos, library, styles, args.seed, args.together)
    judges, missing = find_judges(library, args.sentence_judge, args.fluency)
    try:
        written = read_written(args.written_stories)
    except DataError as error:
        written, missing["copies of written stories"] = [], str(error)
    result = evaluate(tellers, photos, judges, systems, written, args.bootstrap)
    report, stories = result.report, result.stories
    report["not_measured"].update(missing)
    report.update({"model": args.model or "embedded default", "dataset": args.dataset, "split": args.split})
    if args.own_books:
        told = stories[report["differences_from"]]
        report["own_books"] = measure_own_books(args.own_books, tellers, library, told, args.bootstrap)
    if args.stories:
        lines = [
            json.dumps({"system": name, "photo_id": photos.ids[story.photo], **asdict(story)}, ensure_ascii=False)
            for name, told in stories.items()
            for story in told
        ]
        args.stories.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return result


def make_sheet(args: argparse.Namespace) -> str:
    """Write the reading sheet that the command line asks for; what was done, in a sentence."""
    if args.stories_each < 1:
        raise PictaleError("--stories-each must be at least 1.")
    systems = _systems(args, ("pictale", "real"))
    pipe, photos, library = _open(args, min(args.photos, args.stories_each))
    styles = args.styles.split(",") if args.styles else None
    tellers = open_tellers(pipe, photos, library, styles, args.seed, args.together)
    entries = sheet.told_entries(tellers, photos, systems, args.stories_each)
    if args.written_photos:
        entries += sheet.written_entries(
            args.written_stories, args.written_photos, tellers.styles, args.stories_each, args.seed
        )
    if args.people:
        texts = people_stories(args.people)
        entries += sheet.people_entries(texts, photos, tellers.styles, args.stories_each, args.seed)
    key = sheet.write_sheet(args.reading_sheet, entries, args.seed)
    return f"{args.reading_sheet}: {len(entries)} stories to read. {key} says whose they are: no reader should open it."


def _systems(args: argparse.Namespace, default: Sequence[str]) -> dict[str, dict[str, Any] | None]:
    named = {name: SYSTEMS[name] for name in args.systems or default} | dict(map(parse_system, args.system))
    return named | {f"strength {strength:g}": {"strength": strength} for strength in args.strengths}


def _open(args: argparse.Namespace, count: int) -> tuple[StoryPipeline, Photos, Library]:
    if count < 1 or args.bootstrap < 0 or args.together < 1:
        raise PictaleError("--photos and --together must be at least 1, and --bootstrap at least 0.")
    if not args.dataset or not args.books:
        raise PictaleError("Name photos with --dataset, and texts of known genre with --books.")
    pipe = StoryPipeline.from_pretrained(args.model)
    if args.bookshelf:
        pipe.open_bookshelf(args.bookshelf)
    return pipe, choose_photos(args.dataset, args.split, count), read_library(args.books)


def main(arguments: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    disable_progress_bar()  # of transformers, which draws one for the weights
    try:
        if args.reading_sheet:
            print(make_sheet(args))
            return 0
        if args.read_back and not args.key:
            raise PictaleError("Name the file that says whose the stories are with --key.")
        report = sheet.read_back(args.read_back, args.key) if args.read_back else run(args).report
    except PictaleError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(report | {"command": command_line("evaluate_stories", arguments)}))
    else:
        print(sheet.reading_table(report) if args.read_back else _tables(report))
    for name, reason in report["not_measured"].items() if not args.json else ():
        print(f"Not measured, {name}: {reason}", file=sys.stderr)
    return 0


def _tables(report: Mapping[str, Any]) -> str:
    parts = [markdown_table(report)]
    if report["differences"]:
        parts.append(
            f"Differences from {report['differences_from']}, on the same photos:\n\n{difference_table(report)}"
        )
    if judge := report.get("style_judge"):
        ceiling, floor = judge["ceiling"], judge["floor"]
        parts.append(
            f"Style judge: {ceiling:.0%} of real passages right" + (f", {floor:.0%} of captions." if floor else ".")
        )
    if judge := report.get("fluency_judge"):
        held_out, unknown = judge["held_out"], judge["held_out_unknown"]
        parts.append(
            f"Fluency judge: {judge['stories']:,} stories learned; perplexity {held_out:.0f} of those held out, "
            f"{unknown:.1%} of their words unknown."
        )
    for name, book in report.get("own_books", {}).items():
        parts.append(
            f"Stories in the style of {name}: {book['taken']['value']:.0%} taken for it (of stories in the genres "
            f"{book['others']:.0%}, of its own passages {book['ceiling']:.0%}), {book['copied']:.0%} copy from it."
        )
    return "\n\n".join(parts)


if __name__ == "__main__":
    raise SystemExit(main())
