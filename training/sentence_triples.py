"""Sentences with their neighbours, as the skip-thought model is trained on them."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from modeling.tokenization import BOS_ID, EOS_ID

from .data_text import TokenStore, pad_ids


class SentenceTriples(Dataset):
    """(sentence, previous, next) wherever all three stand in one document."""

    def __init__(self, store: TokenStore, runs: list[tuple[int, int]], max_length: int) -> None:
        self.store, self.max_tokens = store, max_length - 2
        middles = [np.arange(a + 1, b - 1) for a, b in runs if b - a >= 3]
        centres = np.concatenate(middles) if middles else np.zeros(0, dtype=np.int64)
        lengths = np.minimum(store.lengths, self.max_tokens)
        # an empty neighbour teaches nothing
        centres = centres[(lengths[centres - 1] > 0) & (lengths[centres] > 0) & (lengths[centres + 1] > 0)]
        self.centres = centres
        self.lengths = np.maximum.reduce([lengths[centres - 1], lengths[centres], lengths[centres + 1]]) + 2

    def __len__(self) -> int:
        return len(self.centres)

    def ids(self, i: int) -> list[int]:
        return [BOS_ID, *self.store[i][: self.max_tokens].tolist(), EOS_ID]

    def __getitem__(self, i: int) -> tuple[list[int], list[int], list[int]]:
        centre = int(self.centres[i])
        return self.ids(centre), self.ids(centre - 1), self.ids(centre + 1)


def collate(rows: list[tuple[list[int], list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """Padded int64 `input_ids`, `previous_ids` and `next_ids`."""
    sentence, before, after = zip(*rows, strict=True)
    named = {"input_ids": sentence, "previous_ids": before, "next_ids": after}
    return {name: torch.from_numpy(pad_ids(list(ids))) for name, ids in named.items()}
