"""Captions and a story in the terminal.

    python -m modeling photo.jpg
    python -m modeling photo.jpg other.png --style horror --seed 3
    python -m modeling *.jpg --style romance:0.7,mystery:0.3 --json > stories.jsonl
    python -m modeling morning.jpg noon.jpg --one-story --save day.json
    python -m modeling evening.jpg --continue day.json --save day.json
    python -m modeling --continue day.json --sentence "Then the lights went out."
    python -m modeling photo.jpg --writer bookshelf --style mystery
    python -m modeling photo.jpg --writer HuggingFaceTB/SmolLM2-360M-Instruct
    python -m modeling photo.jpg --writer neural-storyteller --captions retrieve --beam-width 50
    python -m modeling --search "two dogs play in the snow" FOLDER

Stories go to standard output, everything else to standard error. With --json each line is one object with `photo`,
`captions` (each `text`, `score`, `remembered`), `style`, `seed`, `title`, `story`, if it is quoted `sources` and if it
is told in the manner of a page of a book `follows` (each `title`, `author`, `year`); of one story over several photos,
`photo` and `captions` are the last one's. A search prints the best photos of the folders, with --json one object each,
`photo` and `similarity`.

Exit code 0: all told; 2: something could not be used, said in one sentence each; the other photos
are told all the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from . import StoryPipeline
from .errors import ImageError, PictaleError, StoryError
from .story import Story
from .story_types import MAX_SEED, Caption, Source, books_of, check_seed
from .styles import Style

WIDTH = 92


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m modeling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="*", metavar="PHOTO", help="image files")
    parser.add_argument("--style", help="NAME, or a blend NAME:WEIGHT,NAME:WEIGHT (everyday)")
    parser.add_argument("--style-file", action="append", default=[], metavar="FILE", help="a style file of your own")
    parser.add_argument("--seed", type=int, help="reproduces a story; drawn and shown if not given")
    parser.add_argument("--model", help="pipeline folder or Hub id (the embedded default)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument(
        "--onnx",
        nargs="?",
        const="",
        metavar="DIR",
        help="caption with exported graphs, of DIR or of the captioner's folder onnx (training.export_onnx)",
    )
    searching = parser.add_argument_group("finding photos")
    searching.add_argument("--search", metavar="SENTENCE", help="the photos of the FOLDERs that a sentence tells of")
    searching.add_argument("--count", type=int, default=10, help="photos shown (10)")
    going_on = parser.add_argument_group("a story that goes on")
    going_on.add_argument("--one-story", action="store_true", help="one story over all photos")
    going_on.add_argument("--continue", dest="story", metavar="STORY", help="go on with a story that --save wrote")
    going_on.add_argument("--sentence", help="your own next sentence, kept as written and carried on")
    going_on.add_argument("--save", metavar="FILE", help="keep the story, to go on with it another time")
    options = parser.add_argument_group("how it is written")
    options.add_argument("--strength", type=float, help="how strongly the style is laid on (1)")
    options.add_argument("--num-captions", type=int, help="captions per photo (3)")
    options.add_argument("--captions", help="generate, retrieve from the caption bank, or both (both)")
    options.add_argument("--nearest-sentences", type=int, help="of the bank: how many (5; 100 in the recipe of 2015)")
    options.add_argument("--length", help="short, medium or long (medium)")
    options.add_argument("--candidates", type=int, help="sentences written for each one that is kept (3)")
    options.add_argument("--lyrics", action="store_true", default=None, help="a song, in lines")
    options.add_argument(
        "--writer",
        help="storyteller; bookshelf for a passage of a novel that suits the photo; neural-storyteller for the recipe "
        "of 2015; a language model's Hub id, folder or GGUF file; endpoint for the one that OPENAI_BASE_URL, "
        "OPENAI_MODEL and OPENAI_API_KEY name (storyteller)",
    )
    options.add_argument("--bookshelf", metavar="FILE", help="a bookshelf of your own, for --writer bookshelf")
    options.add_argument("--beam-width", type=int, help="of the recipe of 2015 (50)")
    return parser


def run(args: argparse.Namespace) -> int:
    """Tell what the command line asks for; returns the exit code."""
    if args.search is not None:
        return search(args)
    goes_on = args.one_story or args.story or args.sentence is not None
    if not (args.photos or goes_on) or (args.one_story and not args.photos):
        raise PictaleError("There is nothing to tell of: name a photo, or a story to --continue.")
    if args.save and not goes_on and len(args.photos) > 1:
        raise PictaleError("Only one story can be saved: add --one-story, or tell the photos one by one.")
    story = Story.load(args.story) if args.story else Story()  # before the models: a wrong file is told at once
    print("loading the models ...", file=sys.stderr)
    pipe = StoryPipeline.from_pretrained(args.model)
    if args.onnx is not None:
        pipe.use_onnx(args.onnx or None)
    for file in args.style_file:
        pipe.add_style(style := Style.load(file))
        args.style = args.style or style.name
    if args.bookshelf:
        pipe.open_bookshelf(args.bookshelf)
        args.writer = args.writer or "bookshelf"
    names = ("writer", "strength", "num_captions", "captions", "nearest_sentences", "length", "candidates", "lyrics")
    names += ("beam_width",)
    changes = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    args.seed = check_seed(args.seed)
    if args.writer and args.writer not in pipe.writers:
        changes["writer"] = args.writer = pipe.open_writer(args.writer)
    if about := pipe.about_writer(args.writer):
        print(f"writer: {about}", file=sys.stderr)
    code = tell_one(pipe, story, args, changes) if goes_on or args.save else tell_each(pipe, args, changes)
    if (after := pipe.about_writer(args.writer)) != about:  # now its speed is known
        print(f"writer: {after}", file=sys.stderr)
    return code


def tell_each(pipe: StoryPipeline, args: argparse.Namespace, changes: dict[str, Any]) -> int:
    """A story about each photo."""
    failed = False
    for i, photo in enumerate(args.photos, 1):
        print(f"[{i}/{len(args.photos)}] {photo}", file=sys.stderr)
        try:
            result = pipe(photo, style=args.style, seed=args.seed, **changes)
        except ImageError as error:  # this photo's fault: the others are told all the same
            print(f"pictale: {error}", file=sys.stderr)
            failed = True
            continue
        books = (result.sources, result.follows)
        show(photo, result.captions, result.style, result.seed, result.title, result.story, *books, args.json)
    return 2 if failed else 0


def tell_one(pipe: StoryPipeline, story: Story, args: argparse.Namespace, changes: dict[str, Any]) -> int:
    """One story over all photos, then the user's sentence, or going on with nothing new."""
    steps: list[tuple[str | None, str | None]] = [(photo, None) for photo in args.photos]
    if args.sentence is not None or not steps:
        steps.append((None, args.sentence))
    failed = False
    before = story
    for i, (photo, sentence) in enumerate(steps):
        print(f"[{i + 1}/{len(steps)}] {photo or sentence or 'going on'}", file=sys.stderr)
        seed = (args.seed + i) % (MAX_SEED + 1)
        so_far = story
        try:
            for grown in pipe.stream_continuation(so_far, photo, sentence, args.style, seed, **changes):
                if grown.passages != so_far.passages:
                    story = grown  # what was written stays, even if the writer breaks off
        except ImageError as error:
            print(f"pictale: {error}", file=sys.stderr)
            failed = True
        except StoryError as error:
            print(f"pictale: {error}", file=sys.stderr)
            failed = True
            break
    if story == before:
        return 2
    last = story.photos[-1] if story.photos else None
    name = (args.photos or [last.name])[-1] if last else None
    captions = last.captions if last else ()
    sources = books_of(source for passage in story.passages for source in passage.sources)
    follows = books_of(source for passage in story.passages for source in passage.follows)
    show(name, captions, story.passages[-1].style, args.seed, story.title, story.text, sources, follows, args.json)
    if args.save:
        story.save(args.save)
    return 2 if failed else 0


def search(args: argparse.Namespace) -> int:
    """The photos of folders that a sentence tells of."""
    if not args.photos:
        raise PictaleError("There is nowhere to search: name the folder of the photos after the sentence.")
    print("loading the models ...", file=sys.stderr)
    pipe = StoryPipeline.from_pretrained(args.model)

    def tell(share: float, what: str) -> None:
        print(f"\r{what}", end="\n" if share == 1 else "", file=sys.stderr, flush=True)

    found = [photo for folder in args.photos for photo in pipe.search(folder, args.search, args.count, progress=tell)]
    for photo in sorted(found, key=lambda photo: -photo.similarity)[: args.count]:
        if args.json:
            record = {"photo": str(photo.path), "similarity": round(photo.similarity, 4)}
            print(json.dumps(record, ensure_ascii=False))
        else:
            print(f"{photo.similarity:6.3f}  {photo.path}")
    return 0


def show(
    photo: str | None,
    captions: Sequence[Caption],
    style: str,
    seed: int,
    title: str,
    story: str,
    sources: Sequence[Source],
    follows: Sequence[Source],
    as_json: bool,
) -> None:
    if as_json:
        described = [{"text": c.text, "score": round(c.score, 4), "remembered": c.remembered} for c in captions]
        record = {"photo": photo, "captions": described, "style": style, "seed": seed, "title": title, "story": story}
        for name, books in (("sources", sources), ("follows", follows)):
            if books:
                record[name] = [dataclasses.asdict(book) for book in books]
        print(json.dumps(record, ensure_ascii=False), flush=True)
        return
    for caption in captions:
        print(f"  {caption.text}{'  (remembered)' if caption.remembered else ''}")
    lines = "\n".join(textwrap.fill(line, WIDTH) for line in story.split("\n"))
    credit = "".join(f"— {text}\n" for text in [*sources, *(f"in the manner of {book}" for book in follows)])
    heading = f"{title}\n\n" if title else ""
    print(f"\n{heading}{lines}\n{credit}\n({style}, seed {seed})\n", flush=True)


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        return run(args)
    except PictaleError as error:
        print(f"pictale: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
