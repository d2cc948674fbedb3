"""Photographs with captions: reading data sets, cleaning captions, batches for the captioner.

A data set is a folder of parquet files or a Hub id, whatever `datasets.load_dataset` takes, with the columns
    image (encoded photograph), image_id (str), captions (list of str).
Several may be mixed. A batch holds photographs, each with several of its captions, so that a photograph is looked at
once for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from modeling.errors import DataError
from modeling.modeling_captioner import IGNORE_INDEX
from modeling.tokenization import build_word_tokenizer, count_words

from .feature_cache import FeatureCache
from .recipes import dataset_location

COLUMNS = ("image", "image_id", "captions")
_SIDES = re.compile(r"\b(?:left|right)\b")


@dataclass(frozen=True)
class CaptionSplit:
    """One split of one data set: encoded photographs (None where missing), their ids and captions, in step."""

    name: str
    images: Sequence[bytes | None]
    image_ids: list[str]
    captions: list[list[str]]

    def __len__(self) -> int:
        return len(self.image_ids)


def read_split(name: str, split: str, limit: int | None = None) -> CaptionSplit:
    """Read one split; `name` is looked up as `training.recipes.dataset_location` says.

    Raises:
        DataError: the data set or the split does not exist, or a column is missing.
    """
    import datasets

    try:
        table = datasets.load_dataset(dataset_location(name), split=split)
    except Exception as error:  # noqa: BLE001 - datasets raises its own, huggingface_hub's, pyarrow's and OSError for the same cause
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"Cannot read split '{split}' of the data set '{name}' ({reason}). Give a folder of parquet files or a "
            f"Hub id, or set PICTALE_DATA to the folder that holds '{name}'."
        ) from None
    missing = [column for column in COLUMNS if column not in table.column_names]
    if missing:
        raise DataError(f"The data set '{name}' has no column '{missing[0]}'; it needs {', '.join(COLUMNS)}.")
    table = table.cast_column("image", datasets.Image(decode=False))
    if limit is not None:
        table = table.select(range(min(limit, len(table))))
    images = [_encoded(image) for image in table["image"]]
    captions = [[str(c) for c in (entry if isinstance(entry, list) else [entry]) if c] for entry in table["captions"]]
    return CaptionSplit(f"{name} {split}", images, [str(i) for i in table["image_id"]], captions)


def _encoded(image: dict | None) -> bytes | None:
    if not image:
        return None
    if image["bytes"] is not None:
        return image["bytes"]
    try:
        with open(image["path"], "rb") as file:
            return file.read()
    except OSError:
        return None  # counted as broken by the feature cache


def normalise_caption(text: str) -> str:
    """Words, apostrophes and hyphens in lower case; other punctuation carries nothing in a caption and is dropped.

    Example:
        >>> normalise_caption('A man , in a T-shirt , rides the "big" wave .')
        'a man in a t-shirt rides the big wave'
    """
    text = text.lower().replace("\u2019", "'").replace("\u2018", "'").replace("&", " and ")
    text = re.sub(r"[^\w'\- ]|_|(?<!\w)['-]+|['-]+(?!\w)", " ", text)
    return " ".join(text.split())


def build_tokenizer(splits: Sequence[CaptionSplit], min_count: int) -> PreTrainedTokenizerFast:
    """The vocabulary of the captions: every word seen at least `min_count` times."""
    texts = (normalise_caption(text) for split in splits for captions in split.captions for text in captions)
    return build_word_tokenizer(count_words(texts, lowercase=True), 10**6, min_count, lowercase=True)


class CaptionExamples(torch.utils.data.Dataset):
    """Photographs that can be read, with tokenized captions and cached features.

    `examples[(row, view_seed)]` picks captions and view by that seed alone, so an epoch can be repeated exactly.

    Args:
        splits, caches: in step.
        tokenizer: wraps a caption as start ... end.
        captions_per_image: captions drawn for a photograph each time; all if it has fewer.
        max_words: longer captions are left out of training.
    """

    def __init__(
        self,
        splits: Sequence[CaptionSplit],
        caches: Sequence[FeatureCache],
        tokenizer: PreTrainedTokenizerFast,
        captions_per_image: int = 5,
        max_words: int = 24,
    ):
        self.captions_per_image = captions_per_image
        self.rows: list[tuple[FeatureCache, int]] = []
        self.labels: list[list[list[int]]] = []
        self.sided: list[bool] = []
        self.captions: list[list[str]] = []  # all of a photograph's, normalised
        for split, cache in zip(splits, caches, strict=True):
            for row, captions in enumerate(split.captions):
                texts = [text for text in map(normalise_caption, captions) if text]
                ids = tokenizer(texts).input_ids if texts else []
                kept = [i[1:] for i in ids if len(i) <= max_words + 2]
                if cache.usable[row] and kept:
                    self.rows.append((cache, row))
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

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, list[list[int]]]:
        index, seed = key
        cache, row = self.rows[index]
        rng = np.random.default_rng((seed, index))
        chosen = rng.permutation(len(self.labels[index]))[: self.captions_per_image]
        # mirrored, what was left is right: a photograph with such captions is seen as it is
        can_mirror = cache.features.shape[1] > 1 and not self.sided[index]
        view = int(rng.integers(2)) if can_mirror else 0
        return cache.get(row, view), [self.labels[index][i] for i in chosen]


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


def collate(examples: Sequence[tuple[torch.Tensor, list[list[int]]]]) -> dict[str, torch.Tensor]:
    """Region features [B, P, F], labels [R, T] padded with -100 and the image of each row [R]."""
    labels = [torch.tensor(ids) for _, captions in examples for ids in captions]
    return {
        "region_features": torch.stack([features for features, _ in examples]),
        "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
        "image_index": torch.arange(len(examples)).repeat_interleave(
            torch.tensor([len(captions) for _, captions in examples])
        ),
    }
