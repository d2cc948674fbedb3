"""Build the bookshelf that the writer of that name quotes from, out of novels.

    python -m training.build_bookshelf --text books --encoder hub_configs/skip-thoughts-books \\
        --output hub_configs/pictale-default

`--text` is a data set (folder of parquet files, Hub id or name below `$PICTALE_DATA`) whose rows have `text` and, to
name the source, `title`, `author`, `year` and `genre`; or a folder of .txt files. Whoever publishes a bookshelf
publishes its passages: take books in the public domain. `--output` is a pipeline's folder, where the file is found by
itself, or a file, for `pipe.open_bookshelf(FILE)`. A bookshelf belongs to the encoder it was built with: when that is
trained anew, build it again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import AutoTokenizer

from modeling.bookshelf import BOOKSHELF_FILE, Bookshelf
from modeling.errors import DataError, PictaleError
from modeling.fingerprints import encoder_fingerprint
from modeling.model_folder import load_component
from modeling.modeling_skip_thoughts import PictaleSkipThoughtsEncoder
from modeling.styles import encode_passages
from modeling.text import split_sentences

from .book_passages import PASSAGE_WORDS, books_of, choose_passages, quotable_passages, wanted_words
from .data_text import TextSource, load_rows

PASSAGES, COMPONENTS = 6500, 64
FEWEST = 50


def build(
    text: str,
    encoder: PictaleSkipThoughtsEncoder,
    caption_tokenizer: Any,
    passages: int = PASSAGES,
    components: int = COMPONENTS,
    words: tuple[int, int] = PASSAGE_WORDS,
) -> Bookshelf:
    """A bookshelf.

    Args:
        text: Data set or folder.
        encoder: Of the pipeline that will use it.
        caption_tokenizer: The captioner's; passages with words that captions use are preferred.
        passages: How many, if there are so many.
        components: K of the bookshelf.
        words: Least and most words of a passage.

    Raises:
        DataError: nothing to read, or fewer than `FEWEST` paragraphs that can be quoted.
    """
    rows = load_rows(TextSource(text))
    if "text" not in rows.column_names:
        raise DataError(f"'{text}' has no column 'text': name books, a paragraph a line.")
    books, found = books_of(rows), quotable_passages(rows, words)
    if len(found) < FEWEST:
        raise DataError(
            f"'{text}' has {len(found)} paragraphs of {words[0]} to {words[1]} words that can be quoted, a bookshelf "
            f"needs {FEWEST}: name more books, with a paragraph a line."
        )
    chosen = choose_passages(found, books, wanted_words(caption_tokenizer), passages)
    sentences = [split_sentences(passage.text) for passage in chosen]
    thoughts = [
        encode_passages(encoder, sentences[start : start + 250])
        for start in tqdm(range(0, len(sentences), 250), desc="encoding", unit="250 passages")
    ]
    return Bookshelf.of(
        [passage.text for passage in chosen],
        books,
        [passage.book for passage in chosen],
        np.concatenate(thoughts),
        encoder_fingerprint(encoder),
        components,
    )


def describe(bookshelf: Bookshelf, path: Path) -> dict[str, Any]:
    """What was built, for the screen."""
    genres = Counter(bookshelf.genres[g] for g in bookshelf.shelf.tolist())
    return {
        "output": str(path),
        "bytes": os.path.getsize(path),
        "passages": len(bookshelf.passages),
        "books": len(bookshelf.quoted_books),
        "genres": dict(sorted(genres.items())),
        "mean_words": round(sum(len(p.split()) for p in bookshelf.passages) / len(bookshelf.passages), 1),
        "encoder": bookshelf.encoder,
    }


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="data set of books, or folder of .txt files")
    parser.add_argument("--encoder", default="hub_configs/skip-thoughts-books", help="skip-thought encoder")
    parser.add_argument("--captioner", default="hub_configs/captioner-flickr8k", help="whose words are looked for")
    parser.add_argument("--output", required=True, help="folder of the pipeline, or file (.safetensors)")
    parser.add_argument("--passages", type=int, default=PASSAGES, help=f"how many ({PASSAGES})")
    parser.add_argument("--components", type=int, default=COMPONENTS, help=f"bytes kept of each thought ({COMPONENTS})")
    parser.add_argument("--json", action="store_true", help="print what was built as one JSON object")
    return parser


def main(arguments: list[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    path = Path(args.output)
    if path.suffix != ".safetensors":
        path = path / BOOKSHELF_FILE
    start = time.perf_counter()
    try:
        if min(args.passages, args.components) < 1:
            raise DataError("--passages and --components must be at least 1.")
        folder = Path(args.encoder)
        encoder = load_component(PictaleSkipThoughtsEncoder.from_pretrained, folder, "encoder").eval()
        tokenizer = load_component(AutoTokenizer.from_pretrained, Path(args.captioner), "captioner", weights=False)
        bookshelf = build(args.text, encoder, tokenizer, args.passages, args.components)
        bookshelf.save(path)
    except PictaleError as error:
        print(f"build_bookshelf: {error}", file=sys.stderr)
        return 2
    made = describe(bookshelf, path) | {"seconds": round(time.perf_counter() - start, 1)}
    if args.json:
        print(json.dumps(made))
    else:
        print("\n".join(f"{name:12} {value}" for name, value in made.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
