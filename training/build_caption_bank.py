"""Make the caption bank of a joint embedding: sentences worth remembering, and their vectors.

    python -m training.build_caption_bank --model hub_configs/joint-embedding-flickr8k --data flickr8k coco_subset
    python -m training.build_caption_bank --model DIR --data my_captions.csv sentences.txt --output DIR --limit 0

The bank is written into the model's folder unless --output names another. A source is a data set of captions
(`training.caption_sources`; its training split) or a text file with a sentence in each line. Left out are sentences of
fewer than --min-words or more than --max-words words, sentences with a word that the embedding does not know, and
sentences that say the same as one that is kept: whose vector has a cosine above --max-similarity to its vector, or that
share nearly all content words with it. Of what is left --limit are drawn at random, so that what is photographed often
has many sentences (0: all are kept).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from modeling.caption_bank import TEXT_FILE, VECTORS_FILE, CaptionBank, content_set
from modeling.caption_text import normalise_caption
from modeling.errors import DataError, PictaleError
from modeling.modeling_joint_embedding import PictaleJointEmbedding
from modeling.text import clean_text

from .caption_sources import read_captions
from .embedding_recipe import load_eyes
from .evaluate_retrieval import CAPTIONER, ENCODER, load_embedding
from .recipes import dataset_location

BLOCK = 1024


@dataclass(frozen=True)
class BankOptions:
    """Which sentences are kept, see the head of this file."""

    limit: int = 0
    min_words: int = 5
    max_words: int = 16
    max_similarity: float = 0.98
    seed: int = 0

    def __post_init__(self) -> None:
        if self.limit < 0 or not 1 <= self.min_words <= self.max_words or not -1 <= self.max_similarity <= 1:
            raise DataError(
                "A bank takes a limit of 0 or more, at least one word, max_words no less than min_words, and a "
                "max_similarity from -1 to 1."
            )


def read_sentences(name: str, split: str = "train") -> list[str]:
    """The captions of a data set, or the lines of a text file."""
    path = Path(dataset_location(name)).expanduser()
    if path.is_file() and path.suffix.lower() in (".txt", ".md"):
        return [
            line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
        ]
    return [text for group in read_captions(name, split) for text in group]


def readable(sentence: str) -> str:
    """A caption as a person would write it: one sentence, capital and period."""
    text = " ".join(sentence.replace('"', " ").split()).strip(" .,;:!-'")
    return clean_text(text.lower() if text.isupper() else text)


def plain_sentences(texts: Sequence[str], embedding: PictaleJointEmbedding, options: BankOptions) -> list[str]:
    """Those of a fit length whose words are all known, each spelling once, in the order of the seed."""
    kept: dict[str, str] = {}
    for text in texts:
        spelt = normalise_caption(text)
        if spelt not in kept and options.min_words <= len(spelt.split()) <= options.max_words:
            kept[spelt] = text
    unknown = embedding.tokenizer.unk_token_id
    encoded = embedding.tokenizer.backend_tokenizer.encode_batch_fast(list(kept))
    good = [text for text, encoding in zip(kept.values(), encoded, strict=True) if unknown not in encoding.ids]
    order = np.random.default_rng(options.seed).permutation(len(good))
    return [readable(good[i]) for i in order]


def choose_distinct(sentences: Sequence[str], vectors: np.ndarray, options: BankOptions) -> list[int]:
    """Rows to keep, in order, none saying the same as one before it.

    The vectors are compared in blocks: with the kept ones by one product, then within the block.
    """
    kept: list[int] = []
    chosen = np.zeros((0, vectors.shape[1]), dtype=np.float32)
    meanings: set[frozenset[str]] = set()
    limit = options.limit or len(sentences)
    bar = tqdm(total=len(sentences), desc="choosing", unit="sentence", file=sys.stderr, mininterval=2)
    for start in range(0, len(sentences), BLOCK):
        block = vectors[start : start + BLOCK]
        bar.update(len(block))
        free = (block @ chosen.T > options.max_similarity).sum(1) == 0
        near = block @ block.T > options.max_similarity
        taken: list[int] = []
        for i in np.flatnonzero(free):
            meaning = content_set(sentences[start + i])
            if meaning in meanings or near[i, taken].any():
                continue
            meanings.add(meaning)
            taken.append(int(i))
            if len(kept) + len(taken) == limit:
                break
        kept += [start + i for i in taken]
        chosen = np.concatenate([chosen, block[taken]])
        if len(kept) == limit:
            break
    bar.close()
    return kept


def build(embedding: PictaleJointEmbedding, names: Sequence[str], split: str, options: BankOptions) -> CaptionBank:
    """The bank of the sentences of `names`.

    Raises:
        DataError: no sentence is left.
    """
    texts = [text for name in names for text in read_sentences(name, split)]
    sentences = plain_sentences(texts, embedding, options)
    if options.limit:  # enough to choose from: near-duplicates are a minority
        sentences = sentences[: 3 * options.limit]
    if not sentences:
        raise DataError(
            f"None of {len(texts):,} sentences has {options.min_words} to {options.max_words} words that the embedding "
            "knows: change --min-words or --max-words."
        )
    with tqdm(total=len(sentences), desc="embedding", unit="sentence", file=sys.stderr) as bar:
        bank = CaptionBank.from_sentences(
            sentences,
            embedding,
            source=", ".join(Path(name).name for name in names),
            progress=lambda share, _: bar.update(int(share * len(sentences)) - bar.n),
        )
    rows = choose_distinct(bank.sentences, bank.vectors, options)
    print(f"{len(texts):,} sentences read, {len(rows):,} kept", file=sys.stderr)
    return CaptionBank(tuple(bank.sentences[i] for i in rows), bank.vectors[rows], bank.embedding, bank.source)


def make(args: argparse.Namespace) -> dict[str, Any]:
    """Build and write the bank that the command line asks for; returns what was made."""
    options = BankOptions(args.limit, args.min_words, args.max_words, args.max_similarity, args.seed)
    captioner, _ = load_eyes(args.captioner)
    bank = build(load_embedding(args.model, captioner, args.encoder), args.data, args.split, options)
    folder = Path(args.output or args.model)
    bank.save(folder, args.dtype)
    size = sum((folder / name).stat().st_size for name in (VECTORS_FILE, TEXT_FILE))
    return {"output": str(folder), "sentences": len(bank), "embedding": bank.embedding, "bytes": size}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a joint embedding")
    parser.add_argument("--data", required=True, nargs="+", metavar="NAME", help="data sets of captions, or text files")
    parser.add_argument("--split", default="train", help="of the data sets")
    parser.add_argument("--output", help="folder to write the bank into (the model's)")
    parser.add_argument("--captioner", default=CAPTIONER, help="captioner whose backbone the embedding belongs to")
    parser.add_argument("--encoder", default=ENCODER, help="skip-thought encoder, for an embedding that reads with it")
    parser.add_argument("--limit", type=int, default=0, help="most sentences; 0: all that are left")
    parser.add_argument("--min-words", type=int, default=BankOptions.min_words)
    parser.add_argument("--max-words", type=int, default=BankOptions.max_words)
    parser.add_argument("--max-similarity", type=float, default=BankOptions.max_similarity, help="cosine, 0.98")
    parser.add_argument("--dtype", choices=("int8", "float16"), default="int8", help="of the vectors on disk")
    parser.add_argument("--seed", type=int, default=0, help="which sentences are drawn")
    parser.add_argument("--json", action="store_true", help="print what was made as one JSON object")
    args = parser.parse_args(arguments)
    disable_progress_bar()
    try:
        made = make(args)
    except PictaleError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(made))
    else:
        print(f"{made['output']}: {made['sentences']:,} sentences, {made['bytes'] / 2**20:.2f} MiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
