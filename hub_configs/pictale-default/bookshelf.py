"""A bookshelf: passages of novels with their thoughts, small enough to ship, to be quoted by what a photo shows.

One safetensors file, built by `python -m training.build_bookshelf`:

    text        uint8 [bytes]     the passages, a line each, in UTF-8, compressed by bz2
    book        int16 [N]         index of each passage's book in the metadata's `books`
    codes       int8 [N, K]       round(z / scale), at most 127 in size, of z = (v - mean) @ components.T; v the
                                  passage's thought, the mean of its sentences' unit vectors
    scale       float32 [K]       the largest |z| of each component, over 127
    mean        float32 [D]       mean thought of all passages
    components  float16 [K, D]    the K principal directions of the thoughts, orthonormal
    shelves     float32 [G, D]    mean thought of the passages of each genre

with `books` (title, author, year, genre of each), `genres` and the fingerprint of the encoder in its metadata: like a
style, a bookshelf belongs to one encoder. Differences of thoughts need no mean: they are projected as they are.

Shapes: N passages, K components, D thought width, G genres.
"""

from __future__ import annotations

import bz2
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .errors import ModelFolderError
from .story_types import Source
from .text import is_content_word
from .word_forms import base_form
from .words import split_words

BOOKSHELF_FILE = "bookshelf.safetensors"
FORMAT, VERSION = "pictale-bookshelf", "1"
HOW_TO_BUILD = "python -m training.build_bookshelf --text BOOKS --encoder ENCODER --output FOLDER"
MAX_TEXT_BYTES = 64_000_000  # decompressed: a small file must not fill the memory
KEY_CHARACTERS = 40  # of a passage's beginning and end, by which it is found again in a story


@dataclass(frozen=True)
class Book:
    """A book on the shelf."""

    source: Source
    genre: str = ""


@dataclass(frozen=True)
class Bookshelf:
    """Passages with compact thoughts, see the head of this file for the arrays."""

    passages: tuple[str, ...]
    books: tuple[Book, ...]
    book: np.ndarray
    codes: np.ndarray
    scale: np.ndarray
    mean: np.ndarray
    components: np.ndarray
    genres: tuple[str, ...]
    shelves: np.ndarray
    encoder: str

    # -- making ------------------------------------------------------------------------------------------------------
    @classmethod
    def of(
        cls,
        passages: Sequence[str],
        books: Sequence[Book],
        book: Sequence[int],
        thoughts: np.ndarray,
        encoder: str,
        components: int = 64,
    ) -> Bookshelf:
        """From passages and their thoughts.

        Args:
            passages: Single lines, at least one.
            books, book: The books, and which of them each passage is of.
            thoughts: [N, D].
            encoder: Fingerprint of the encoder that they come from.
            components: K, at most the smaller side of `thoughts`.
        """
        genre = np.array([books[i].genre for i in book])
        genres = tuple(sorted(set(genre.tolist())))
        shelves = np.stack([thoughts[genre == name].mean(0) for name in genres])
        mean = thoughts.mean(0)
        _, directions = np.linalg.eigh(np.cov(thoughts - mean, rowvar=False).astype(np.float64))  # rising
        directions = directions[:, ::-1].T[: min(components, *thoughts.shape)].astype(np.float16)  # [K, D]
        places = (thoughts - mean) @ directions.astype(np.float32).T  # [N, K]
        scale = np.maximum(np.abs(places).max(0), 1e-8).astype(np.float32) / 127
        return cls(
            tuple(passages),
            tuple(books),
            np.array(book, np.int16),
            np.rint(places / scale).astype(np.int8),
            scale,
            mean.astype(np.float32),
            directions,
            genres,
            shelves.astype(np.float32),
            encoder,
        )

    def save(self, path: str | os.PathLike) -> None:
        """Write the file; an existing one is replaced only when the new one is whole."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = bz2.compress("\n".join(self.passages).encode())
        arrays = {name: getattr(self, name) for name in ("book", "codes", "scale", "mean", "components", "shelves")}
        books = [[b.source.title, b.source.author, b.source.year, b.genre] for b in self.books]
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "encoder": self.encoder,
            "books": json.dumps(books, ensure_ascii=False),
            "genres": json.dumps(self.genres),
        }
        temporary = path.with_name(path.name + ".writing")
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}  # strides would not be heeded
        save_file({**arrays, "text": np.frombuffer(text, np.uint8)}, temporary, metadata)
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Bookshelf:
        """Read a bookshelf.

        Raises:
            ModelFolderError: missing, damaged, or no bookshelf.
        """
        try:
            with safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
                    raise ModelFolderError(f"{path} is no bookshelf of this version: build one with `{HOW_TO_BUILD}`.")
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            books = tuple(Book(Source(str(t), str(a), y), str(g)) for t, a, y, g in json.loads(metadata["books"]))
            text = _decompressed(arrays.pop("text"))
            genres = tuple(json.loads(metadata["genres"]))
            shelf = cls(tuple(text.split("\n")), books, genres=genres, encoder=metadata["encoder"], **arrays)
            shelf._check()
            return shelf
        except FileNotFoundError:
            raise ModelFolderError(f"There is no bookshelf {path}: build one with `{HOW_TO_BUILD}`.") from None
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            if isinstance(error, ModelFolderError):
                raise
            raise ModelFolderError(
                f"The bookshelf {path} is damaged ({str(error)[:100]}): download or build it again."
            ) from None

    def _check(self) -> None:
        """Raise ValueError unless the arrays fit together."""
        passages, components = self.codes.shape
        width = len(self.mean)
        fits = (
            len(self.passages) == len(self.book) == passages > 0
            and self.scale.shape == (components,)
            and self.components.shape == (components, width)
            and self.shelves.shape == (len(self.genres), width)
            and {book.genre for book in self.quoted_books} <= set(self.genres)
        )
        if not fits:
            raise ValueError("its parts do not fit together")
        if not all(np.isfinite(a).all() for a in (self.scale, self.mean, self.components, self.shelves)):
            raise ValueError("its vectors are none")

    def check_encoder(self, fingerprint: str) -> None:
        """Raise ModelFolderError unless the bookshelf was built with the encoder of this fingerprint."""
        if self.encoder != fingerprint:
            raise ModelFolderError(
                f"The bookshelf was built with another encoder ({self.encoder}, not {fingerprint}): build it again "
                f"with this one: `{HOW_TO_BUILD}`."
            )

    # -- looking things up -------------------------------------------------------------------------------------------
    @property
    def quoted_books(self) -> list[Book]:
        """The books that passages are taken from. Raises ValueError if one is not there."""
        numbers = sorted(set(self.book.tolist()))
        if numbers[0] < 0 or numbers[-1] >= len(self.books):
            raise ValueError("it quotes a book that it does not name")
        return [self.books[i] for i in numbers]

    @cached_property
    def shelf(self) -> np.ndarray:
        """Index into `genres` of each passage [N]."""
        return np.array([self.genres.index(self.books[i].genre) for i in self.book.tolist()])

    @cached_property
    def particular(self) -> np.ndarray:
        """What is particular to each passage among those of its genre, float32 [N, K], of length 1."""
        means = self.project(self.shelves - self.mean)  # [G, K]
        rows = self.codes * self.scale - means[self.shelf]
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-8)

    def project(self, difference: np.ndarray) -> np.ndarray:
        """Differences of thoughts [..., D] in the bookshelf's directions [..., K]."""
        return difference @ self.components.astype(np.float32).T

    @cached_property
    def words(self) -> dict[str, np.ndarray]:
        """For each base form of a content word the passages that have it, rising."""
        found: dict[str, list[int]] = {}
        forms: dict[str, str] = {}  # "" for words that are none of content
        for i, passage in enumerate(self.passages):
            words = set(split_words(passage, lowercase=True))
            for word in words:
                if word not in forms:
                    forms[word] = base_form(word) if is_content_word(word) else ""
            for form in {forms[word] for word in words}:
                if form:
                    found.setdefault(form, []).append(i)
        return {form: np.array(rows, np.int32) for form, rows in found.items()}

    def recall(self, wanted: Iterable[str]) -> np.ndarray:
        """Share of the wanted words that each passage has, in any form, the rarer the more it counts, 0..1 [N].

        A word that n of N passages have counts log(1 + N / n); one that none has does not count.
        """
        shares, total = np.zeros(len(self.passages), np.float32), 0.0
        for form in dict.fromkeys(map(base_form, wanted)):
            if (rows := self.words.get(form)) is not None:
                weight = float(np.log(1 + len(self.passages) / len(rows)))
                shares[rows] += weight
                total += weight
        return shares / total if total else shares

    @cached_property
    def _keys(self) -> dict[str, list[int]]:
        """Passages by their first and last characters."""
        keys: dict[str, list[int]] = {}
        for i, passage in enumerate(self.passages):
            for key in {passage[:KEY_CHARACTERS], passage[-KEY_CHARACTERS:]}:
                keys.setdefault(key, []).append(i)
        return keys

    def quoted_in(self, text: str) -> list[int]:
        """Passages whose beginning or end stands in a text, in the order of the text, the last one last."""
        found: dict[int, None] = {}
        for start in range(max(len(text) - KEY_CHARACTERS + 1, 0)):
            for i in self._keys.get(text[start : start + KEY_CHARACTERS], ()):
                found.pop(i, None)
                found[i] = None
        return list(found)


def _decompressed(data: np.ndarray) -> str:
    """The text; ValueError if it is not whole, or longer than any bookshelf."""
    decompressor = bz2.BZ2Decompressor()
    text = decompressor.decompress(data.tobytes(), MAX_TEXT_BYTES)
    if not decompressor.eof:
        raise ValueError("its text is not whole or too long")
    return text.decode()
