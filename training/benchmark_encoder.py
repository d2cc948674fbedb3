"""Sentences a second of a skip-thought encoder, tokenization included.

    python -m training.benchmark_encoder --model hub_configs/skip-thoughts-books [--text DATASET] [--json]

Three measurements in one run, over the same sentences (captions of a data set, or made up of the model's vocabulary
with the lengths and word frequencies of captions):

    model     `encode` of the model, float32, and the same in bfloat16 with its largest error
    paper     `encode` of a uni encoder of the paper's size (2400, words of 620) with random weights
    padded    the same encoder on batches of 128 in corpus order, padded to their longest, as most ports do it

Each is given per second, and per second of processor time of one core, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling.configuration_skip_thoughts import PictaleSkipThoughtsConfig
from modeling.errors import DataError, PictaleError
from modeling.model_folder import load_component
from modeling.modeling_skip_thoughts import PictaleSkipThoughtsEncoder
from modeling.text import split_sentences

from .data_text import TextSource, load_rows, pad_ids

PAPER = {"embedding_size": 620, "hidden_size": 2400, "encoder_type": "uni", "adaptive_cutoff": None}
PADDED_BATCH = 128  # of `skipthoughts.encode`


def read_sentences(source: TextSource, count: int) -> list[str]:
    """The first `count` sentences of a data set with a column captions, sentences or text."""
    sentences: list[str] = []
    for row in load_rows(source):
        sentences += row.get("captions") or row.get("sentences") or split_sentences(row.get("text") or "")
        if len(sentences) >= count:
            return sentences[:count]
    if not sentences:
        raise DataError(f"'{source.dataset}' needs a column captions, sentences or text with sentences in it.")
    return sentences


def made_up_sentences(words: list[str], count: int) -> list[str]:
    """`count` strings of 8 and more of `words` (11 in the mean), the r-th word with a frequency as 1 / (r + 2.7)."""
    rng = np.random.default_rng(0)
    weights = 1 / (np.arange(len(words)) + 2.7)
    lengths = 7 + rng.geometric(0.25, count)
    drawn = rng.choice(len(words), lengths.sum(), p=weights / weights.sum())
    return [" ".join(words[i] for i in part) for part in np.split(drawn, np.cumsum(lengths)[:-1])]


def rates(work: Callable[[], Any], count: int) -> dict[str, float]:
    """`count` divided by the seconds, and by the processor seconds, of `work()`."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return {"sentences_per_s": count / wall, "sentences_per_cpu_s": count / processor}


@torch.inference_mode()
def padded_in_corpus_order(encoder: PictaleSkipThoughtsEncoder, sentences: list[str], tokenizer: Any) -> np.ndarray:
    """What `encode` does, without sorting and packing: the baseline."""
    vectors = []
    for start in range(0, len(sentences), PADDED_BATCH):
        flat, starts = encoder._token_ids(sentences[start : start + PADDED_BATCH], tokenizer)  # over-long ones cut
        ids = torch.from_numpy(pad_ids(np.split(flat, starts[1:-1]))).to(encoder.device)
        vectors.append(torch.nn.functional.normalize(encoder(ids).thought, dim=-1).cpu().numpy())
    return np.concatenate(vectors)


def benchmark(
    encoder: PictaleSkipThoughtsEncoder, sentences: list[str], paper_sentences: int, paper: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Figures of the head of this file; `paper` replaces sizes of the paper's encoder."""
    tokenizer = encoder.tokenizer
    encoder.eval().encode(sentences[:PADDED_BATCH])  # first calls allocate
    exact, half = [], []
    full = rates(lambda: exact.append(encoder.encode(sentences)), len(sentences))
    halved = rates(lambda: half.append(encoder.encode(sentences, dtype=torch.bfloat16)), len(sentences))
    cosines = (exact[0] * half[0]).sum(1)
    torch.manual_seed(0)
    sizes = {**PAPER, "vocab_size": len(tokenizer), "max_tokens": encoder.config.max_tokens, **(paper or {})}
    large = PictaleSkipThoughtsEncoder(PictaleSkipThoughtsConfig(**sizes)).eval()
    few = sentences[:paper_sentences]
    packed_vectors, padded_vectors = [], []
    large.encode(few[:2], tokenizer)
    packed = rates(lambda: packed_vectors.append(large.encode(few, tokenizer)), len(few))
    padded = rates(lambda: padded_vectors.append(padded_in_corpus_order(large, few, tokenizer)), len(few))
    return {
        "threads": torch.get_num_threads(),
        "sentences": len(sentences),
        "tokens_per_sentence": float(np.diff(encoder._token_ids(sentences, tokenizer)[1]).mean()),
        "model": full,
        "model_bfloat16": {**halved, "smallest_cosine": float(cosines.min())},
        "paper_sentences": len(few),
        "paper": packed,
        "paper_padded": padded,
        "paper_ratio": packed["sentences_per_s"] / padded["sentences_per_s"],
        "paper_ratio_cpu": packed["sentences_per_cpu_s"] / padded["sentences_per_cpu_s"],
        "paper_largest_difference": float(np.abs(packed_vectors[0] - padded_vectors[0]).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the encoder, or Hub id")
    parser.add_argument("--text", help="data set with captions or sentences (folder, Hub id); none: made up")
    parser.add_argument("--sentences", type=int, default=10000, help="how many for the model (10000)")
    parser.add_argument("--paper-sentences", type=int, default=1000, help="how many for the paper's size (1000)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    try:
        encoder = load_component(PictaleSkipThoughtsEncoder.from_pretrained, Path(args.model), "sentence encoder")
        tokens = encoder.tokenizer.convert_ids_to_tokens(range(len(encoder.tokenizer)))
        words = [t for t in tokens if t not in encoder.tokenizer.all_special_tokens]
        sentences = (
            read_sentences(TextSource(args.text), args.sentences)
            if args.text
            else made_up_sentences(words, args.sentences)
        )
        figures = benchmark(encoder, sentences, args.paper_sentences)
    except PictaleError as error:
        sys.exit(f"benchmark_encoder: {error}")
    if args.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        line = ", ".join(f"{k} {v:,.4g}" for k, v in value.items()) if isinstance(value, dict) else f"{value:,.4g}"
        print(f"{name:26}{line}")


if __name__ == "__main__":
    main()
