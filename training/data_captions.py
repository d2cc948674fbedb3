"""Photographs with captions for the captioner: cleaning captions, the vocabulary, batches.

Data sets are read by `training.caption_sources`; several may be mixed. A batch holds photographs, each with several of
its captions, so that a photograph is looked at once for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from modeling.caption_text import normalise_caption
from modeling.errors import DataError, RecipeError
from modeling.modeling_captioner import IGNORE_INDEX
from modeling.tokenization import UNK_ID, build_bpe_tokenizer, build_word_tokenizer, count_words

from .caption_sources import CaptionSplit, read_split
from .feature_cache import FeatureCache
from .photo_sources import Photographs

__all__ = [
    "CaptionExamples",
    "CaptionSplit",
    "EpochBatches",
    "build_tokenizer",
    "collate",
    "normalise_caption",
    "read_split",
]

_SIDES = re.compile(r"\b(?:left|right)\b")


def build_tokenizer(
    splits: Sequence[CaptionSplit], min_count: int, vocabulary: str = "words", vocabulary_size: int | None = None
) -> PreTrainedTokenizerFast:
    """The vocabulary of the captions, at most `vocabulary_size` entries.

    Args:
        vocabulary: "words": every word seen at least `min_count` times; "bpe": byte-pair pieces (4096 unless
            `vocabulary_size` says otherwise), merged from pairs seen at least `min_count` times.

    Raises:
        RecipeError: another `vocabulary`.
    """
    texts = (normalise_caption(text) for split in splits for captions in split.captions for text in captions)
    if vocabulary == "words":
        return build_word_tokenizer(count_words(texts, lowercase=True), vocabulary_size or 10**6, min_count)
    if vocabulary == "bpe":
        return build_bpe_tokenizer(texts, vocabulary_size or 4096, min_count)
    raise RecipeError(f"vocabulary is words or bpe, not '{vocabulary}'.")


class CaptionExamples(torch.utils.data.Dataset):
    """Photographs that can be read, with tokenized captions and what the model sees of them.

    `examples[(row, view_seed)]` picks captions, view and augmentation by that seed alone, so an epoch can be repeated
    exactly.

    Args:
        splits, sources: in step; sources of one kind (see `training.photo_sources`).
        tokenizer: wraps a caption as start ... end.
        captions_per_image: captions drawn for a photograph each time; all if it has fewer.
        max_words: longer captions are left out of training.
        texts: captions of no photograph, to learn the language from.
        texts_per_image: so many of them are drawn with each photograph.
    """

    def __init__(
        self,
        splits: Sequence[CaptionSplit],
        sources: Sequence[FeatureCache | Photographs],
        tokenizer: PreTrainedTokenizerFast,
        captions_per_image: int = 5,
        max_words: int = 24,
        texts: Sequence[str] = (),
        texts_per_image: int = 0,
    ):
        self.captions_per_image, self.texts_per_image = captions_per_image, texts_per_image
        normal = [text for text in map(normalise_caption, texts) if text]
        ids = tokenizer(normal).input_ids if normal else []
        self.texts = [i[1:] for i in ids if len(i) <= max_words + 2 and UNK_ID not in i]
        self.rows: list[tuple[FeatureCache | Photographs, int]] = []
        self.labels: list[list[list[int]]] = []
        self.sided: list[bool] = []
        self.captions: list[list[str]] = []  # all of a photograph's, normalised
        self.kind = sources[0].kind
        for split, source in zip(splits, sources, strict=True):
            for row, captions in enumerate(split.captions):
                texts = [text for text in map(normalise_caption, captions) if text]
                ids = tokenizer(texts).input_ids if texts else []
                kept = [i[1:] for i in ids if len(i) <= max_words + 2]
                if source.usable[row] and kept:
                    self.rows.append((source, row))
                    self.labels.append(kept)
                    self.sided.append(any(_SIDES.search(text) for text in texts))
                    self.captions.append(texts)
        if not self.rows:
            raise DataError("No photograph with a usable caption is left: check the columns and max_words.")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def caption_count(self) -> int:
        return sum(len(labels) for labels in self.labels)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, list[list[int]], list[list[int]]]:
        index, seed = key
        source, row = self.rows[index]
        rng = np.random.default_rng((seed, index))
        chosen = rng.permutation(len(self.labels[index]))[: self.captions_per_image]
        # mirrored, what was left is right: a photograph with such captions is seen as it is
        can_mirror = source.views > 1 and not self.sided[index]
        view = int(rng.integers(2)) if can_mirror else 0
        captions = [self.labels[index][i] for i in chosen]
        texts = [self.texts[i] for i in rng.integers(len(self.texts), size=self.texts_per_image)] if self.texts else []
        return source.get(row, view, rng), captions, texts


class EpochBatches(torch.utils.data.Sampler[list[tuple[int, int]]]):
    """Batches of (row, seed), shuffled anew each epoch as a function of (seed, epoch) only."""

    def __init__(self, count: int, batch_size: int, seed: int = 0):
        self.count, self.batch_size, self.seed, self.epoch = count, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order, draw = rng.permutation(self.count), int(rng.integers(2**31))
        for start in range(0, self.count, self.batch_size):
            yield [(int(index), draw) for index in order[start : start + self.batch_size]]


def collate(
    examples: Sequence[tuple[torch.Tensor, list[list[int]], list[list[int]]]], kind: str = "region_features"
) -> dict[str, torch.Tensor]:
    """What the model sees of the photographs under the name `kind`, e.g. region features [B, P, F]; labels [R, T]
    padded with -100 and the image of each row [R], -1 for the texts at the end, which have none.
    """
    labels = [torch.tensor(ids) for _, captions, _ in examples for ids in captions]
    owners = torch.arange(len(examples)).repeat_interleave(torch.tensor([len(captions) for _, captions, _ in examples]))
    labels += [torch.tensor(ids) for _, _, texts in examples for ids in texts]
    return {
        kind: torch.stack([features for features, _, _ in examples]),
        "labels": nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
        "image_index": nn.functional.pad(owners, (0, len(labels) - len(owners)), value=-1),
    }
