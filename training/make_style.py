"""Make a style from any text, in seconds and without training.

    python -m training.make_style --text dracula.txt --name "bram stoker" --output bram-stoker.safetensors
    python -m training.make_style --text my_books/ --name mine --output mine.safetensors

`--text` takes a .txt or .md file or a folder of them, or a data set (folder of parquet files or Hub id) whose rows have
`text`, `sentences` or `captions`; `--genre` then keeps the rows of one genre. Use the result with
`StoryPipeline.add_style(Style.load("mine.safetensors"))` or put it into the `styles/` folder of a pipeline.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from modeling.errors import PictaleError, StyleError
from modeling.modeling_skip_thoughts import PictaleSkipThoughtsEncoder
from modeling.styles import MINIMUM_PASSAGES, Style, encode_passages, encoder_fingerprint, make_style

from .data_text import TextSource, load_corpus
from .recipes import dataset_location


def read_texts(path: str) -> list[str] | None:
    """Contents of a .txt/.md file or of all of them in a folder; None if there are none."""
    place = Path(path)
    if place.is_file() and place.suffix.lower() not in (".txt", ".md"):
        raise StyleError(f"{path} is not a .txt or .md file: save the text as one of these.")
    if place.is_file():
        return [place.read_text(encoding="utf-8", errors="replace")]
    files = [f for f in sorted(place.rglob("*")) if f.suffix.lower() in (".txt", ".md")] if place.is_dir() else []
    return [f.read_text(encoding="utf-8", errors="replace") for f in files] or None


def style_from_dataset(
    name: str, dataset: str, genre: str | None, encoder: PictaleSkipThoughtsEncoder, max_passages: int = 5000
) -> Style:
    """A style from the passages of a data set as the trainers read it (held-out part left aside).

    A passage is up to four consecutive sentences of one document; of a caption set, one caption.
    """
    corpus = load_corpus([TextSource(dataset)])
    size = 1 if "caption" in corpus.genres else 4
    passages = [
        corpus.sentences[i : min(i + size, stop)]
        for start, stop in corpus.runs(held_out=False)
        if genre is None or corpus.genres[corpus.genre[start]] == genre
        for i in range(start, stop, size)
    ]
    if len(passages) < MINIMUM_PASSAGES:
        raise StyleError(
            f"'{dataset}' has only {len(passages)} passages of genre '{genre}'; it needs {MINIMUM_PASSAGES}."
        )
    chosen = passages[:: max(1, -(-len(passages) // max_passages))]
    vectors = encode_passages(encoder, chosen)
    source = f"{len(chosen)} passages of {Path(dataset).name}" + (f", genre {genre}" if genre else "")
    return Style(name, vectors.mean(0), len(chosen), source, encoder_fingerprint(encoder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="text file, folder of text files, or data set")
    parser.add_argument("--name", required=True, help="what the style is called")
    parser.add_argument("--output", required=True, help="style file to write (.safetensors)")
    parser.add_argument("--genre", help="only rows of this genre (data sets)")
    parser.add_argument("--encoder", default="hub_configs/skip-thoughts-books", help="skip-thought encoder")
    parser.add_argument("--json", action="store_true", help="print what was made as one JSON object")
    args = parser.parse_args()
    try:
        encoder = PictaleSkipThoughtsEncoder.from_pretrained(args.encoder).eval()
        texts = None if args.genre else read_texts(dataset_location(args.text))
        if texts is None:
            style = style_from_dataset(args.name, args.text, args.genre, encoder)
        else:
            with tqdm(total=100, unit="%", desc="reading", leave=False) as bar:
                style = make_style(
                    texts,
                    args.name,
                    encoder,
                    source=Path(args.text).name,
                    progress=lambda share, _: bar.update(int(100 * share) - bar.n),
                )
        style.save(args.output)
    except PictaleError as error:
        sys.exit(f"make_style: {error}")
    made = {"name": style.name, "passages": style.passages, "source": style.source, "output": args.output}
    print(json.dumps(made) if args.json else f"{args.output}: style '{style.name}' of {style.passages:,} passages")


if __name__ == "__main__":
    main()
