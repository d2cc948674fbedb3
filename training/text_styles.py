"""Styles for training: the mean vectors of genres, and of the text around a sentence. Shapes: D thought width."""

from __future__ import annotations

import numpy as np

from .data_text import Corpus


def genre_means(corpus: Corpus, vectors: np.ndarray, sample: int = 20000) -> np.ndarray:
    """Mean sentence vector of each genre, float32 [genres, D]."""
    rng = np.random.default_rng(0)
    means = []
    for genre in range(len(corpus.genres)):
        rows = np.flatnonzero((corpus.genre == genre) & ~corpus.held_out)
        rows = np.sort(rng.choice(rows, min(sample, len(rows)), replace=False))
        means.append(vectors[rows].astype(np.float32).mean(0) if len(rows) else np.zeros(vectors.shape[1]))
    return np.stack(means).astype(np.float32)


class Surroundings:
    """Mean vectors of the text around a sentence: styles between one chapter's and a whole book's.

    Args:
        block: Sentences whose mean is computed once; styles are means over neighbouring blocks.
        widest: Most blocks of a style.
    """

    def __init__(self, corpus: Corpus, vectors: np.ndarray, block: int = 256, widest: int = 16) -> None:
        part = corpus.genre.astype(np.int32) * 2 + corpus.held_out  # nothing of a held-out book is in a style
        edges = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(part)]
        self.starts = np.concatenate([np.arange(a, b, block) for a, b in zip(edges, edges[1:], strict=False)])
        stops = np.append(self.starts[1:], len(part))
        self.part, self.widest, self.counts = part[self.starts], widest, stops - self.starts
        self.sums = np.stack(
            [vectors[a:b].astype(np.float32).sum(0) for a, b in zip(self.starts, stops, strict=True)]
        )  # [blocks, D]

    def style(self, sentence: int, rng: np.random.Generator) -> np.ndarray:
        """Mean vector of 1, 2, 4 ... `widest` blocks around a sentence, as many of them as are of its part: [D]."""
        block = int(np.searchsorted(self.starts, sentence, side="right")) - 1
        width = 2 ** int(rng.integers(0, self.widest.bit_length()))
        first = block - int(rng.integers(0, width))
        near = np.arange(max(first, 0), min(first + width, len(self.starts)))
        near = near[self.part[near] == self.part[block]]
        return self.sums[near].sum(0) / self.counts[near].sum()
