"""Captions and a story in the terminal.

    python -m modeling photo.jpg
    python -m modeling photo.jpg other.png --style horror --seed 3
    python -m modeling *.jpg --style romance:0.7,mystery:0.3 --json > stories.jsonl

Stories go to standard output, everything else to standard error. With --json each line is one object with `photo`,
`captions` (each `text`, `score`), `style`, `seed`, `story`. Exit code 0: all told; 2: something could not be used, said
in one sentence each; the other photos are told all the same.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import textwrap
from typing import Any

from .errors import ImageError, PictaleError


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m modeling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="image files")
    parser.add_argument("--style", help="NAME, or a blend NAME:WEIGHT,NAME:WEIGHT (everyday)")
    parser.add_argument("--seed", type=int, help="reproduces a story; drawn and shown if not given")
    parser.add_argument("--strength", type=float, help="how strongly the style is laid on (1)")
    parser.add_argument("--num-captions", type=int, help="captions per photo (3)")
    parser.add_argument("--model", help="pipeline folder or Hub id (the embedded default)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    return parser


def tell_photos(args: argparse.Namespace) -> int:
    """Tell a story about each photo; returns the exit code."""
    from .pipeline_story import MAX_SEED, StoryPipeline  # after --help and argument errors: torch takes seconds

    print("loading the models ...", file=sys.stderr)
    pipe = StoryPipeline.from_pretrained(args.model)
    changes = {k: v for k, v in (("strength", args.strength), ("num_captions", args.num_captions)) if v is not None}
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(MAX_SEED)
    failed = False
    for i, photo in enumerate(args.photos, 1):
        print(f"[{i}/{len(args.photos)}] {photo}", file=sys.stderr)
        try:
            result = pipe(photo, style=args.style, seed=seed, **changes)
        except ImageError as error:  # this photo's fault: the others are told all the same
            print(f"pictale: {error}", file=sys.stderr)
            failed = True
            continue
        show(photo, result, args.json)
    return 2 if failed else 0


def show(photo: str, result: Any, as_json: bool) -> None:
    if as_json:
        captions = [{"text": c.text, "score": round(c.score, 4)} for c in result.captions]
        record = {"photo": photo, "captions": captions, "style": result.style, "seed": result.seed}
        print(json.dumps({**record, "story": result.story}, ensure_ascii=False), flush=True)
        return
    for caption in result.captions:
        print(f"  {caption.text}")
    print(f"\n{textwrap.fill(result.story, 92)}\n\n({result.style}, seed {result.seed})\n", flush=True)


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        return tell_photos(args)
    except PictaleError as error:
        print(f"pictale: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
