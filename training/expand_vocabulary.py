"""Give a trained encoder the words of a large file of word vectors.

    python -m training.expand_vocabulary --model hub_configs/skip-thoughts-books --word-vectors glove.6B.100d.txt \
        --output runs/encoder-expanded [--words 200000]

Kiros et al., arXiv:1506.06726, section 2.3. On the words that both have, a linear map with intercept is fitted from the
file's space to the encoder's input word vectors, without regularisation; all other words of the file are mapped through
it. Words the encoder has learnt keep their own vectors. The output is the model's folder with two more files (see
`modeling.vocabulary_expansion`), and loads like the model.

The file is read as a stream (`training.word_vectors`: GloVe or word2vec text, word2vec binary, npz). A word of it is
taken if `modeling.words.split_words` sees one word in it, folded to lower case if the tokenizer does so; of
several that become the same the first is taken, since files are sorted by frequency.

Shapes: m shared words, d width of the file's vectors, E width of the encoder's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from modeling.errors import DataError, PictaleError, RecipeError
from modeling.model_folder import load_component
from modeling.modeling_skip_thoughts import PictaleSkipThoughtsEncoder
from modeling.tokenization import folds_case, knows_whole_words
from modeling.vocabulary_expansion import VocabularyExpansion
from modeling.words import split_words

from .loop import replace_folder
from .word_vectors import read_word_vectors, spellings, stream_word_vectors

BLOCK = 4096  # words mapped at a time


@dataclass(frozen=True)
class LinearMap:
    """y = x W + b.

    Args:
        weight, bias: float64 [d, E] and [E].
        explained: Share of the variance of the words fitted on that it explains (R2, over all E numbers together).
        shared: How many words it was fitted on.
    """

    weight: np.ndarray
    bias: np.ndarray
    explained: float
    shared: int


@dataclass(frozen=True)
class ExpansionReport:
    """What an expansion came to: words added, words fitted on, and `LinearMap.explained`."""

    words: int
    shared: int
    explained: float


def fit_linear_map(x: np.ndarray, y: np.ndarray) -> LinearMap:
    """Least squares from x [m, d] to y [m, E], with an intercept.

    Raises:
        DataError: fewer words than unknowns, so that the map would say nothing of other words.
    """
    if len(x) <= x.shape[1] + 1:
        raise DataError(
            f"Only {len(x)} words of the encoder have a vector of {x.shape[1]} numbers; the fit needs more words than "
            "numbers. Take vectors of the same language, or a larger file."
        )
    x, y = x.astype(np.float64), y.astype(np.float64)
    x_mean, y_mean = x.mean(0), y.mean(0)
    weight = np.linalg.lstsq(x - x_mean, y - y_mean, rcond=None)[0]  # of the centred, which is the same and steadier
    left = ((y - y_mean - (x - x_mean) @ weight) ** 2).sum() / ((y - y_mean) ** 2).sum()
    return LinearMap(weight, y_mean - x_mean @ weight, float(1 - left), len(x))


@torch.no_grad()
def fit_to_encoder(encoder: PictaleSkipThoughtsEncoder, path: str | Path) -> LinearMap:
    """The map from a file's space to the input word vectors of `encoder`."""
    tokenizer = encoder.tokenizer
    special = set(tokenizer.all_special_ids)
    ids = [i for i in range(encoder.config.vocab_size) if i not in special]
    names = tokenizer.convert_ids_to_tokens(ids)
    vectors, found = read_word_vectors(path, {s for name in names for s in spellings(name)}).matrix_for(names)
    learned = encoder.words.embed(torch.tensor(ids)).float().numpy()  # [V - special, E]
    return fit_linear_map(vectors[found], learned[found])


def words_beyond(
    path: str | Path, known: set[str], lowercase: bool, limit: int | None
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Blocks of words of the file that are not in `known`, at most `limit` in all, and their vectors [*, d]."""
    seen, words, vectors = set(known), [], []
    left = sys.maxsize if limit is None else limit
    for written, vector in stream_word_vectors(path):
        if left <= 0:
            break
        pieces = split_words(written, lowercase)
        if len(pieces) == 1 and pieces[0] not in seen:
            seen.add(pieces[0])
            words.append(pieces[0])
            vectors.append(np.array(vector, dtype=np.float64))
            left -= 1
        if len(words) == BLOCK:
            yield words, np.stack(vectors)
            words, vectors = [], []
    if words:
        yield words, np.stack(vectors)


def expand_vocabulary(
    model: str | Path, word_vectors: str | Path, output: str | Path, words: int | None = None
) -> ExpansionReport:
    """Write the folder `output`: the encoder in `model` with the words of a file of word vectors.

    Args:
        model: Folder of an encoder with a word-level vocabulary.
        word_vectors: A file as `training.word_vectors` reads them.
        output: A new folder, or `model` itself.
        words: At most so many words are added; None: all.

    Raises:
        PictaleError: one of its kinds; the sentence says what was wrong.
    """
    model, output = Path(model), Path(output)
    if words is not None and words < 1:
        raise RecipeError(f"The number of words to add is 1 or more, not {words}.")
    encoder = load_component(PictaleSkipThoughtsEncoder.from_pretrained, model, "sentence encoder")
    if not knows_whole_words(encoder.tokenizer):
        raise RecipeError(f"{model} has a byte-pair vocabulary, which knows every word already.")
    in_place = output.resolve() == model.resolve()
    if output.exists() and not in_place:
        raise RecipeError(f"{output} is there already: choose a new folder, or the model's own.")
    fitted = fit_to_encoder(encoder, word_vectors)
    known, lowercase = set(encoder.tokenizer.get_vocab()), folds_case(encoder.tokenizer)
    mapped = (
        (found, vectors @ fitted.weight + fitted.bias)
        for found, vectors in words_beyond(word_vectors, known, lowercase, words)
    )
    added = 0

    def write(folder: Path) -> None:
        nonlocal added
        if not in_place:
            shutil.copytree(model, folder, dirs_exist_ok=True)
        source = f"{Path(word_vectors).name}, fitted on {fitted.shared} words"
        added = len(VocabularyExpansion.write(folder, mapped, encoder.fingerprint(), source))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["vocabulary_expansion"] = True  # said last, when there is one
        temporary = folder / "config.json.writing"
        temporary.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(temporary, folder / "config.json")

    write(model) if in_place else replace_folder(output, write)
    return ExpansionReport(added, fitted.shared, fitted.explained)


def neighbours(model: str | Path, words: list[str], k: int = 5) -> dict[str, list[str]]:
    """The k nearest words of each of `words`, by an expanded encoder."""
    if not words:
        return {}
    encoder = PictaleSkipThoughtsEncoder.from_pretrained(model)
    return {word: [n.text for n in found] for word, found in zip(words, encoder.nearest_words(words, k), strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the encoder")
    parser.add_argument("--word-vectors", required=True, help="GloVe or word2vec text, word2vec binary, or npz")
    parser.add_argument("--output", required=True, help="folder to write; may be the model's own")
    parser.add_argument("--words", type=int, help="add at most so many, the file's first ones (all)")
    parser.add_argument("--show", nargs="+", default=[], metavar="WORD", help="print the nearest neighbours of words")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    try:
        report = expand_vocabulary(args.model, args.word_vectors, args.output, args.words)
        found = neighbours(args.output, args.show)
    except PictaleError as error:
        sys.exit(f"expand_vocabulary: {error}")
    if args.json:
        print(json.dumps(asdict(report) | ({"neighbours": found} if found else {})))
        return
    print(
        f"{args.output}: {report.words:,} words more; fitted on {report.shared:,} shared words, "
        f"R2 {report.explained:.3f}"
    )
    for word, near in found.items():
        print(f"  {word}: {', '.join(near)}")


if __name__ == "__main__":
    main()
