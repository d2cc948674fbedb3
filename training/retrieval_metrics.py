"""How well photographs and sentences find each other: recall and median rank, as papers on Flickr8k count them.

A photograph has several sentences (five in Flickr8k). Looking for sentences with a photograph, its rank is that of the
best of its own sentences; looking for photographs with a sentence, it is that of the sentence's photograph. R@k is the
share of queries with a rank of k or better, in percent (Hodosh et al. 2013; ryankiros/visual-semantic-embedding).

Shapes: N photographs, M sentences, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

RECALL_AT = (1, 5, 10)


def ranks(images: np.ndarray, texts: np.ndarray, owner: np.ndarray, block: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Ranks, 1 the best, of each photograph's best sentence int64 [N] and of each sentence's photograph int64 [M].

    Equal scores count against: the right one ranks behind every wrong one that scores as high.

    Args:
        images, texts: [N, D], [M, D], length 1.
        owner: the photograph of each sentence, int64 [M]; every photograph has one at least.
        block: queries scored at once.
    """
    to_text = np.zeros(len(images), dtype=np.int64)
    right = np.einsum("md,md->m", images[owner], texts)
    best = np.full(len(images), -np.inf, dtype=right.dtype)
    np.maximum.at(best, owner, right)
    for start, stop in pairwise([*range(0, len(images), block), len(images)]):
        scores = images[start:stop] @ texts.T  # [b, M]
        own = owner == np.arange(start, stop)[:, None]
        to_text[start:stop] = 1 + (_reaches(scores, best[start:stop]) & ~own).sum(1)
    to_image = np.zeros(len(texts), dtype=np.int64)
    for start, stop in pairwise([*range(0, len(texts), block), len(texts)]):
        scores = texts[start:stop] @ images.T  # [b, N]
        own = owner[start:stop, None] == np.arange(len(images))
        to_image[start:stop] = 1 + (_reaches(scores, right[start:stop]) & ~own).sum(1)
    return to_text, to_image


def _reaches(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Where a score [b, n] is not below the right one's [b], but for rounding."""
    return scores >= right[:, None] - 1e-7


def recalls(found: np.ndarray) -> dict[str, float]:
    """r1, r5, r10 in percent and the median rank."""
    shares = {f"r{k}": 100 * float((found <= k).mean()) for k in RECALL_AT}
    return shares | {"median_rank": float(np.median(found))}


def retrieval_scores(images: np.ndarray, texts: np.ndarray, owner: Sequence[int]) -> dict[str, float]:
    """`to_text_r1` ... `to_image_median_rank`, and `rsum`, the sum of the six recalls (arXiv:1707.05612)."""
    to_text, to_image = (recalls(found) for found in ranks(images, texts, np.asarray(owner, dtype=np.int64)))
    scores = {f"to_text_{k}": v for k, v in to_text.items()} | {f"to_image_{k}": v for k, v in to_image.items()}
    return scores | {"rsum": sum(v for k, v in scores.items() if not k.endswith("rank"))}
