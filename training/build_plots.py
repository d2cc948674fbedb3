"""Make the plots that stories follow, out of short stories: vectors of what happens in them, none of their words.

    python -m training.build_plots --stories everyday_stories --captions caption_bank \\
        --output hub_configs/pictale-default

`--stories` are data sets of short stories (rows with `sentences`, or .txt files of a few sentences each). Looked at are
those that a small decoder can tell: of exactly `--sentences` sentences, neither long nor spoken, in common words, and
not held out from training. Kept are the `--count` that captions of photographs most often come nearest to, by the
thoughts and in the joint embedding, so that there is something for every photo and little that nobody photographs. Some
stories are near to everything: how near each is anyway is taken off (compare the local scaling of Conneau et al.,
arXiv:1710.04087).

The file belongs to the encoder and, as far as it is chosen by the photo, to the joint embedding: when one of them is
trained anew, build it again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from modeling.errors import DataError, PictaleError
from modeling.fingerprints import encoder_fingerprint
from modeling.model_folder import load_component
from modeling.modeling_joint_embedding import PictaleJointEmbedding
from modeling.modeling_skip_thoughts import PictaleSkipThoughtsEncoder
from modeling.neighbours import unit_rows
from modeling.plots import PLOTS_FILE, Plots
from modeling.words import split_words

from .caption_sources import read_captions
from .data_text import Corpus, TextSource, load_corpus
from .sentence_vectors import sentence_vectors

COUNT, SENTENCES, COMPONENTS = 1000, 5, 64
FEWEST = 20
PLAIN_WORDS = 8000  # of the decoder's vocabulary, the most common
SENTENCE_WORDS = (4, 17)  # and marks
PICTURES = 8000  # that are asked what they come nearest to, at random
NEAREST = 3  # stories that a picture's captions speak for
ANYWAY = 0.01  # share of the pictures, a story's nearest, by which it is told how near it is to pictures anyway
QUOTES = frozenset('“”"')


def stories_of(corpus: Corpus, sentences: int, vocabulary: Mapping[str, int]) -> np.ndarray:
    """First sentence of each story of so many sentences that can be a plot.

    Args:
        vocabulary: Of the decoder, by rank.

    Raises:
        DataError: fewer than `FEWEST`.
    """

    def plain(text: str) -> bool:
        words = split_words(text)
        common = all(vocabulary.get(word, PLAIN_WORDS) < PLAIN_WORDS for word in words)
        return common and SENTENCE_WORDS[0] <= len(words) <= SENTENCE_WORDS[1] and not QUOTES & set(words)

    starts = [
        start
        for start, stop in corpus.runs(held_out=False)
        if stop - start == sentences and all(map(plain, corpus.sentences[start:stop]))
    ]
    if len(starts) < FEWEST:
        raise DataError(
            f"There are {len(starts)} plain stories of exactly {sentences} sentences, plots need {FEWEST}: name more, "
            "or change --sentences."
        )
    return np.array(starts)


def nearness(stories: Sequence[np.ndarray], pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """How near pictures are to stories, as `Plots.nearest` adds it up, and how near each story is to pictures anyway.

    Args:
        stories, pictures: For each space unit vectors [N, .] and [M, .].

    Returns:
        float32 [M, N], and its mean over each story's nearest pictures [N].
    """
    total = np.zeros((len(pictures[0]), len(stories[0])), np.float32)
    for picture, story in zip(pictures, stories, strict=True):
        cosines = picture @ story.T
        total += (cosines - cosines.mean(1, keepdims=True)) / np.maximum(cosines.std(1, keepdims=True), 1e-8)
    few = max(1, int(ANYWAY * len(total)))
    return total, np.partition(total, -few, axis=0)[-few:].mean(0)


def principal_directions(rows: np.ndarray, count: int) -> np.ndarray:
    """The directions in which rows [n, D] differ most, orthonormal [count, D]."""
    _, directions = np.linalg.eigh((rows.T @ rows / len(rows)).astype(np.float64))  # rising
    return directions[:, ::-1].T[:count].astype(np.float32)


def build(
    corpus: Corpus,
    captions: Sequence[Sequence[str]],
    encoder: PictaleSkipThoughtsEncoder,
    vocabulary: Mapping[str, int],
    embedding: PictaleJointEmbedding | None = None,
    count: int = COUNT,
    sentences: int = SENTENCES,
    components: int = COMPONENTS,
    source: str = "",
) -> Plots:
    """Plots of the stories in `corpus` that suit pictures with such captions.

    Args:
        captions: Of each picture.
        encoder, embedding: Of the pipeline that will use them; None: chosen by the thoughts alone.
        vocabulary: Of its decoder, by rank.
        count, sentences, components: N, S and K of `modeling.plots`.

    Raises:
        DataError: too few stories, or captions of fewer than two pictures.
    """
    if len(captions) < 2:
        raise DataError("Plots are chosen by what is photographed: name captions of at least two pictures.")
    starts = stories_of(corpus, sentences, vocabulary)
    rows = starts[:, None] + np.arange(sentences)  # [n, S]
    texts = [corpus.sentences[i] for i in rows.ravel()]
    thoughts = sentence_vectors(encoder, encoder.tokenizer, texts).astype(np.float32)  # [n * S, D]
    mean = thoughts.mean(0)
    chosen = np.sort(np.random.default_rng(0).permutation(len(captions))[:PICTURES])
    captions = [captions[i] for i in chosen.tolist()]
    owners = np.repeat(np.arange(len(captions)), [len(group) for group in captions])
    spoken = [text for group in captions for text in group]
    told = sentence_vectors(encoder, encoder.tokenizer, spoken).astype(np.float32)
    told = _means(told - told.mean(0), owners, len(captions))
    by_story = (thoughts - mean).reshape(len(starts), sentences, -1)
    stories, pictures, views = [unit_rows(by_story.mean(1))], [unit_rows(told)], None
    if embedding is not None:
        views = unit_rows(embedding.embed_texts(texts).reshape(len(starts), sentences, -1).mean(1))
        stories.append(views)
        pictures.append(unit_rows(_means(embedding.embed_texts(spoken), owners, len(captions))))
    near, anyway = nearness(stories, pictures)
    nearest = np.argsort(anyway - near, axis=1)[:, :NEAREST]
    counts = np.bincount(nearest.ravel(), minlength=len(starts))
    best = np.sort(np.argsort(-counts, kind="stable")[:count])
    return Plots.of(
        by_story[best],
        principal_directions(by_story[best].reshape(-1, by_story.shape[-1]), components),
        encoder_fingerprint(encoder),
        nearness([part[best] for part in stories], pictures)[1],
        None if views is None else views[best],
        "" if embedding is None else embedding.fingerprint(),
        source,
    )


def _means(rows: np.ndarray, owners: np.ndarray, count: int) -> np.ndarray:
    """Mean of the rows of each owner [count, .]; owners are rising."""
    edges = np.searchsorted(owners, np.arange(count))
    return np.add.reduceat(rows, edges) / np.bincount(owners, minlength=count)[:, None]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", required=True, nargs="+", metavar="NAME", help="data sets of short stories")
    parser.add_argument("--captions", required=True, nargs="+", metavar="NAME", help="data sets of captions")
    parser.add_argument("--encoder", default="hub_configs/skip-thoughts-books", help="skip-thought encoder")
    parser.add_argument("--decoder", default="hub_configs/story-decoder-books", help="whose words are common")
    parser.add_argument(
        "--embedding", default="hub_configs/joint-embedding-flickr8k", help='joint embedding; "" for none'
    )
    parser.add_argument("--output", required=True, help="folder of the pipeline, or file (.safetensors)")
    parser.add_argument("--count", type=int, default=COUNT, help=f"how many plots ({COUNT})")
    parser.add_argument("--sentences", type=int, default=SENTENCES, help=f"of each ({SENTENCES})")
    parser.add_argument("--components", type=int, default=COMPONENTS, help=f"bytes kept of each thought ({COMPONENTS})")
    parser.add_argument("--json", action="store_true", help="print what was built as one JSON object")
    return parser


def make(args: argparse.Namespace, path: Path) -> dict[str, Any]:
    if min(args.count, args.sentences, args.components) < 1:
        raise DataError("--count, --sentences and --components must be at least 1.")
    encoder = load_component(PictaleSkipThoughtsEncoder.from_pretrained, Path(args.encoder), "encoder").eval()
    load = PreTrainedTokenizerFast.from_pretrained
    tokenizer = load_component(load, Path(args.decoder), "decoder's tokenizer", weights=False)
    embedding = None
    if args.embedding:
        place = Path(args.embedding)
        embedding = load_component(PictaleJointEmbedding.from_pretrained, place, "joint embedding").eval()
    corpus = load_corpus([TextSource(name) for name in args.stories])
    captions = [group for name in args.captions for group in read_captions(name, "train") if group]
    names = ", ".join(Path(name).name for name in args.stories)
    sizes = {"count": args.count, "sentences": args.sentences, "components": args.components}
    plots = build(corpus, captions, encoder, tokenizer.get_vocab(), embedding, source=names, **sizes)
    plots.save(path)
    return {
        "output": str(path),
        "bytes": os.path.getsize(path),
        "plots": len(plots),
        "sentences": plots.codes.shape[1],
        "components": plots.codes.shape[2],
        "encoder": plots.encoder,
        "embedding": plots.embedding,
    }


def main(arguments: list[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    disable_progress_bar()
    path = Path(args.output)
    if path.suffix != ".safetensors":
        path = path / PLOTS_FILE
    start = time.perf_counter()
    try:
        made = make(args, path)
    except PictaleError as error:
        print(f"build_plots: {error}", file=sys.stderr)
        return 2
    made["seconds"] = round(time.perf_counter() - start, 1)
    print(json.dumps(made) if args.json else "\n".join(f"{name:12} {value}" for name, value in made.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
