"""A bank of sentences to see by memory with: the nearest sentences of a photograph are its captions.

On disk a bank is a folder with
    caption_bank.safetensors   vectors int8 [n, D] and scales float16 [n], or vectors float16 [n, D]; which joint
                               embedding they belong to, and where the sentences came from, is in its metadata
    caption_bank.txt.xz        the sentences, one a line, UTF-8
so nothing is embedded when it is opened. The search is exact: one product of the photograph's vector with all n. Of
200,000 sentences of 128 numbers that took 12 ms of one core, the whole search 15 ms for 5 sentences and 22 ms for 100.

Shapes: n sentences, Q queries, D common width.
"""

from __future__ import annotations

import json
import lzma
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .caption_text import normalise_caption
from .errors import ModelFolderError, TextError
from .neighbours import Neighbour, unit_rows
from .text import content_words
from .word_forms import base_form

VECTORS_FILE, TEXT_FILE = "caption_bank.safetensors", "caption_bank.txt.xz"
MAX_TEXT_BYTES = 500_000_000  # unpacked: a small file can hold a text that fills the memory
SAME = 0.75  # sentences that share at least so much of their content words say the same


@dataclass(frozen=True)
class CaptionBank:
    """Sentences and their vectors in the space of a joint embedding.

    Args:
        sentences: n sentences as they are shown.
        vectors: float32 [n, D], length 1.
        embedding: Fingerprint of the joint embedding.
        source: Where the sentences came from, in words.
    """

    sentences: tuple[str, ...]
    vectors: np.ndarray = field(repr=False)
    embedding: str
    source: str = ""
    _words: dict[int, frozenset[str]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.sentences)

    @classmethod
    def from_sentences(
        cls,
        sentences: Iterable[str],
        embedding: Any,
        source: str = "your own sentences",
        progress: Callable[[float, str], None] | None = None,
    ) -> CaptionBank:
        """Embed sentences of your own; empty ones and repetitions are left out.

        Args:
            sentences: Texts, one sentence each.
            embedding: A `PictaleJointEmbedding`.
            progress: Called with the share done and what is being done.

        Raises:
            TextError: nothing left.
        """
        if isinstance(sentences, str):
            raise TypeError("from_sentences takes a list of sentences; put the one sentence in a list.")
        kept: dict[str, str] = {}
        for sentence in sentences:
            if spelt := normalise_caption(sentence):
                kept.setdefault(spelt, " ".join(sentence.split()))
        if not kept:
            raise TextError("A caption bank needs sentences: give at least one.")
        texts, vectors = tuple(kept.values()), []
        for start in range(0, len(texts), 4096):
            vectors.append(embedding.embed_texts(texts[start : start + 4096]))
            if progress:
                done = min(start + 4096, len(texts))
                progress(done / len(texts), f"{done:,} of {len(texts):,} sentences embedded")
        return cls(texts, np.concatenate(vectors), embedding.fingerprint(), source)

    def check_embedding(self, fingerprint: str) -> None:
        """Raise ModelFolderError unless the vectors are of the joint embedding with this fingerprint."""
        if self.embedding != fingerprint:
            raise ModelFolderError(
                f"This caption bank was made with another joint embedding ({self.embedding}, not {fingerprint}): make "
                "it anew with `python -m training.build_caption_bank`."
            )

    # -- files -------------------------------------------------------------------------------------------------------
    def save(self, folder: str | Path, dtype: str = "int8") -> None:
        """Write both files; existing ones are replaced only when the new ones are whole.

        Args:
            folder: Where; made if it is not there.
            dtype: "int8", a hundredth of a vector's length off, or "float16", twice as large.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if dtype == "int8":
            scales = np.abs(self.vectors).max(1) / 127
            scales = np.maximum(scales, 1e-4).astype(np.float16)
            whole = np.rint(self.vectors / scales[:, None].astype(np.float32)).clip(-127, 127).astype(np.int8)
            tensors = {"vectors": whole, "scales": scales}
        else:
            tensors = {"vectors": self.vectors.astype(np.float16)}
        metadata = {"format": "pictale-caption-bank", "embedding": self.embedding, "source": self.source}
        metadata["count"] = json.dumps(len(self))
        text = lzma.compress("".join(f"{s}\n" for s in self.sentences).encode(), preset=9 | lzma.PRESET_EXTREME)
        vectors_file, text_file = folder / f"{VECTORS_FILE}.writing", folder / f"{TEXT_FILE}.writing"
        save_file(tensors, vectors_file, metadata)
        text_file.write_bytes(text)
        os.replace(text_file, folder / TEXT_FILE)
        os.replace(vectors_file, folder / VECTORS_FILE)

    @classmethod
    def load(cls, folder: str | Path) -> CaptionBank:
        """Read a bank.

        Raises:
            ModelFolderError: missing, damaged, or not a bank.
        """
        folder = Path(folder)
        for name in (VECTORS_FILE, TEXT_FILE):
            if not (folder / name).is_file():
                raise ModelFolderError(
                    f"{folder} holds no caption bank (it has no {name}): make one with "
                    "`python -m training.build_caption_bank`."
                )
        try:
            with safe_open(folder / VECTORS_FILE, framework="np") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != "pictale-caption-bank":
                    raise ValueError("it is no caption bank")
                vectors = file.get_tensor("vectors").astype(np.float32)
                if "scales" in file.keys():  # noqa: SIM118
                    vectors *= file.get_tensor("scales").astype(np.float32)[:, None]
            sentences = _unpack(folder / TEXT_FILE).splitlines()
            if vectors.ndim != 2 or len(vectors) != len(sentences) or not len(sentences):
                raise ValueError(f"{len(vectors)} vectors for {len(sentences)} sentences")
            if not np.isfinite(vectors).all():
                raise ValueError("vectors that are not numbers")
            return cls(tuple(sentences), unit_rows(vectors), metadata["embedding"], metadata.get("source", ""))
        except (SafetensorError, lzma.LZMAError, OSError, EOFError, KeyError, ValueError) as error:
            raise ModelFolderError(
                f"The caption bank in {folder} is damaged ({error}): download or make it again."
            ) from None

    # -- search ------------------------------------------------------------------------------------------------------
    def nearest(self, queries: np.ndarray, k: int = 10, distinct: bool = True) -> list[list[Neighbour]]:
        """The k sentences nearest to each query, best first.

        Args:
            queries: [Q, D], length 1.
            k: Sentences for each; fewer only if the bank has no more.
            distinct: Leave out a sentence that says the same as a better one: whose content words are the same but for
                a quarter (1 minus `SAME`).

        Raises:
            TextError: k below 1.
        """
        if k < 1:
            raise TextError(f"k is the number of sentences, 1 or more, not {k}.")
        found = []
        for scores in np.atleast_2d(queries) @ self.vectors.T:  # [n]
            reach = min(4 * k + 16, len(self)) if distinct else min(k, len(self))
            chosen = self._choose(scores, reach, k, distinct)
            while len(chosen) < min(k, len(self)) and reach < len(self):  # many repetitions: look further down
                reach = min(4 * reach, len(self))
                chosen = self._choose(scores, reach, k, distinct)
            found.append([Neighbour(self.sentences[i], float(scores[i]), i) for i in chosen])
        return found

    def _choose(self, scores: np.ndarray, reach: int, k: int, distinct: bool) -> list[int]:
        """Rows of the best k of the `reach` largest scores, in order."""
        rows = np.argpartition(-scores, reach - 1)[:reach]
        rows = rows[np.lexsort((rows, -scores[rows]))].tolist()
        return self.without_repetitions(rows, k) if distinct else rows[:k]

    def without_repetitions(self, rows: Sequence[int], k: int) -> list[int]:
        """The first k rows, in order, none of which says the same as one before it."""
        chosen: list[int] = []
        for row in rows:
            words = self._content(row)
            if not any(says_the_same(words, self._content(other)) for other in chosen):
                chosen.append(row)
                if len(chosen) == k:
                    break
        return chosen

    def _content(self, row: int) -> frozenset[str]:
        if row not in self._words:
            self._words[row] = content_set(self.sentences[row])
        return self._words[row]


def content_set(sentence: str) -> frozenset[str]:
    """The content words of a sentence, whatever their form, or all its words where it has none."""
    return frozenset(map(base_form, content_words([sentence]) or normalise_caption(sentence).split()))


def says_the_same(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether two sentences share nearly all of their content words."""
    shared = len(one & other)
    return shared >= SAME * (len(one) + len(other) - shared)


def _unpack(path: Path) -> str:
    """The text of an xz file, which must not be a bomb."""
    with lzma.open(path) as file:
        data = file.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise ValueError(f"more than {MAX_TEXT_BYTES:,} bytes of text")
    return data.decode("utf-8")
