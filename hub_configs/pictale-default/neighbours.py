"""Nearest rows by cosine, in blocks, so that a table which lies on disk need not fit into memory.

Shapes: Q queries, n rows, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from .errors import TextError


class Neighbour(NamedTuple):
    """A sentence or word, its cosine to the query (-1 to 1), and where it stands in what was searched."""

    text: str
    similarity: float
    index: int


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """float32 rows of length 1; a row of zeros stays."""
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def deviations(values: np.ndarray) -> np.ndarray:
    """Numbers less their mean, in standard deviations; 0 where all are the same."""
    deviation = float(values.std())
    return (values - values.mean()) / deviation if deviation > 1e-6 else np.zeros_like(values)


def row_blocks(table: np.ndarray, size: int = 16384) -> Iterator[np.ndarray]:
    """Consecutive rows of `table`."""
    return (table[start : start + size] for start in range(0, len(table), size))


def nearest_rows(queries: np.ndarray, blocks: Iterable[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k rows with the largest cosine, best first.

    Args:
        queries: [Q, D].
        blocks: Rows [*, D] in order, n in all; neither need have length 1.
        k: More than n gives n.

    Returns:
        Row numbers int64 [Q, min(k, n)] and cosines float32 of the same shape.

    Raises:
        TextError: k is below 1 or there are no rows.
    """
    if k < 1:
        raise TextError(f"k is the number of neighbours, 1 or more, not {k}.")
    queries, start = unit_rows(queries), 0
    rows = np.zeros((len(queries), 0), dtype=np.int64)
    cosines = np.zeros((len(queries), 0), dtype=np.float32)
    for block in blocks:
        here = np.broadcast_to(np.arange(start, start + len(block)), (len(queries), len(block)))
        rows = np.concatenate([rows, here], 1)
        cosines = np.concatenate([cosines, queries @ unit_rows(block).T], 1)
        best = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        rows, cosines = np.take_along_axis(rows, best, 1), np.take_along_axis(cosines, best, 1)
        start += len(block)
    if not start:
        raise TextError("There is nothing to search: give at least one sentence or word.")
    return rows, cosines
