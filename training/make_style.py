"""Make a style from any text, in seconds and without training.

    python -m training.make_style --text dracula.txt --name "bram stoker" --output bram-stoker.safetensors
    python -m training.make_style --text my_books/ --name mine --output mine.safetensors

`--text` takes a .txt, .md or .epub file or a folder of them, or a data set (folder of parquet files or Hub id) whose
rows have `text`, `sentences` or `captions`; `--genre` then picks one genre, or all of them into a folder:

    python -m training.make_style --text books --genre all --output hub_configs/pictale-default/styles

Use a style with `pipe.add_style(Style.load("mine.safetensors"))`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from tqdm import tqdm

from modeling.errors import PictaleError, StyleError
from modeling.fingerprints import encoder_fingerprint
from modeling.modeling_skip_thoughts import PictaleSkipThoughtsEncoder
from modeling.styles import BOOK_SUFFIXES, MINIMUM_PASSAGES, Style, encode_passages, make_style, read_texts

from .data_text import TextSource, load_corpus
from .recipes import dataset_location


def styles_from_dataset(
    dataset: str, encoder: PictaleSkipThoughtsEncoder, genre: str | None = None, max_passages: int = 5000
) -> dict[str, Style]:
    """Styles of the genres of a data set, as the trainers read it, its held-out part left aside.

    Args:
        dataset: Folder, Hub id, or name below `$PICTALE_DATA`.
        encoder: The skip-thought encoder of the pipeline that will use the styles.
        genre: Only this one; None: each genre there is.
        max_passages: Per genre, evenly sampled. A passage is up to four consecutive sentences of one scene or story; of
            a caption set, one caption.
    """
    corpus = load_corpus([TextSource(dataset)])
    wanted = corpus.genres if genre is None else [genre]
    styles = {}
    for name in tqdm(wanted, desc="styles", unit="genre"):
        size = 1 if name == "caption" else 4
        passages = [
            corpus.sentences[i : min(i + size, stop)]
            for start, stop in corpus.runs(held_out=False)
            if corpus.genres[corpus.genre[start]] == name
            for i in range(start, stop, size)
        ]
        if len(passages) < MINIMUM_PASSAGES:
            raise StyleError(
                f"'{dataset}' has {len(passages)} passages of genre '{name}', a style needs {MINIMUM_PASSAGES}: its "
                f"genres are {', '.join(corpus.genres)}."
            )
        chosen = passages[:: max(1, -(-len(passages) // max_passages))]
        vector = encode_passages(encoder, chosen).mean(0)
        source = f"{len(chosen)} passages of {Path(dataset).name}, genre {name}"
        styles[name] = Style(name, vector, len(chosen), source, encoder_fingerprint(encoder), (0, 0))
    return styles


def make(args: argparse.Namespace) -> list[tuple[Style, Path]]:
    """The styles that the command line asks for, and the files they belong in."""
    encoder = PictaleSkipThoughtsEncoder.from_pretrained(args.encoder).eval()
    output = Path(args.output)
    place = Path(dataset_location(args.text))
    is_text = place.is_file() or (place.is_dir() and any(f.suffix.lower() in BOOK_SUFFIXES for f in place.rglob("*")))
    if args.genre or not is_text:
        styles = styles_from_dataset(args.text, encoder, None if args.genre in (None, "all") else args.genre)
        if len(styles) > 1:
            return [(style, output / f"{name}.safetensors") for name, style in styles.items()]
        return [(dataclasses.replace(style, name=args.name or style.name), output) for style in styles.values()]
    with tqdm(total=100, unit="%", desc="reading", leave=False) as bar:
        style = make_style(
            read_texts(place),
            args.name or output.stem,
            encoder,
            source=Path(args.text).name,
            progress=lambda share, _: bar.update(int(100 * share) - bar.n),
        )
    return [(style, output)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="text file, folder of text files, or data set")
    parser.add_argument("--name", help="what the style is called (the name of the output file)")
    parser.add_argument("--output", required=True, help="style file to write (.safetensors); of all genres, a folder")
    parser.add_argument("--genre", help="of a data set: this genre, or 'all' for a style of each")
    parser.add_argument("--encoder", default="hub_configs/skip-thoughts-books", help="skip-thought encoder")
    parser.add_argument("--json", action="store_true", help="print what was made as one JSON object")
    args = parser.parse_args()
    try:
        for style, path in make(args):
            style.save(path)
            made = {"name": style.name, "passages": style.passages, "source": style.source, "output": str(path)}
            print(json.dumps(made) if args.json else f"{path}: style '{style.name}' of {style.passages:,} passages")
    except PictaleError as error:
        sys.exit(f"make_style: {error}")


if __name__ == "__main__":
    main()
