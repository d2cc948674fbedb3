"""Vectors for words that an encoder was not trained on, on disk rather than in memory.

Kiros et al., arXiv:1506.06726, section 2.3: a linear map takes the vectors of a large word2vec or GloVe file into the
space of the encoder's own word vectors; `training.expand_vocabulary` fits it. The result lies beside the weights:

    expansion.txt           the words, one a line, as `split_words` gives them, in the order of the file they came from
    expansion.safetensors   `vectors` float16 [n, E]; `offsets` int64 [n + 1], where each line of the text starts;
                            `order` int64 [n], the rows sorted by the bytes of their words
Both files are mapped, not read: a word is found by binary search and only its own row is touched, so that a million
words cost neither time nor memory at the start.

Shapes: n words, E word width.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from .errors import DataError, ModelFolderError

TABLE_FILE, WORDS_FILE = "expansion.safetensors", "expansion.txt"
_FORMAT = "pictale-expansion-1"
_HEADER = 4096  # bytes kept free for safetensors' header, which can only be written when everything else is
_DTYPES = {"F16": np.dtype("<f2"), "I64": np.dtype("<i8")}


@dataclass(frozen=True)
class VocabularyExpansion:
    """Words and vectors; `load` opens them, `write` makes them.

    Args:
        folder: Where the two files are.
        vectors: float16 [n, E], memory-mapped.
        text: bytes of the words, one a line, memory-mapped.
        offsets: int64 [n + 1], where each word starts in `text`.
        order: int64 [n], rows by their words' bytes.
        encoder: Fingerprint of the encoder whose word vectors these are like.
        fingerprint: Changes with any word or vector.
        source: Where the vectors came from, in words.
    """

    folder: Path
    vectors: np.ndarray
    text: np.ndarray
    offsets: np.ndarray
    order: np.ndarray
    encoder: str
    fingerprint: str
    source: str

    def __len__(self) -> int:
        return len(self.vectors)

    def __deepcopy__(self, memo: dict) -> VocabularyExpansion:
        return self  # nothing in it changes, and a copy would be read into memory

    def __reduce__(self) -> tuple:
        return VocabularyExpansion.load, (self.folder,)

    def word(self, row: int) -> str:
        """The word of a row."""
        return self._bytes(row).decode("utf-8")

    def row(self, word: str) -> int | None:
        """The row of a word as it is spelt; None if there is none."""
        wanted, low, high = word.encode("utf-8"), 0, len(self)
        while low < high:
            middle = (low + high) // 2
            row = int(self.order[middle])
            here = self._bytes(row)
            if here == wanted:
                return row
            low, high = (middle + 1, high) if here < wanted else (low, middle)
        return None

    def _bytes(self, row: int) -> bytes:
        return self.text[int(self.offsets[row]) : int(self.offsets[row + 1]) - 1].tobytes()

    @classmethod
    def load(cls, folder: str | Path) -> VocabularyExpansion:
        """Open the expansion of a model folder.

        Raises:
            ModelFolderError: it is missing, damaged, or its two files do not belong together.
        """
        folder = Path(folder)
        table, words = folder / TABLE_FILE, folder / WORDS_FILE
        try:
            with safe_open(table, framework="np") as file:  # checks the header against the size
                metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ModelFolderError(f"{table} is no vocabulary expansion: make one with training.expand_vocabulary.")
            text = np.memmap(words, np.uint8, "r")
            if zlib.crc32(text) != int(metadata["words_crc32"]):
                raise ModelFolderError(f"{words} does not belong to {table.name}: copy both again, or expand again.")
            arrays = {name: _mapped(table, name) for name in ("vectors", "offsets", "order")}
            return cls(folder, text=text, **arrays, **{k: metadata[k] for k in ("encoder", "fingerprint", "source")})
        except FileNotFoundError as error:
            raise ModelFolderError(
                f"There is no {error.filename or TABLE_FILE} in {folder}: copy it there, or expand the model again."
            ) from None
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            if isinstance(error, ModelFolderError):
                raise
            raise ModelFolderError(
                f"The vocabulary expansion in {folder} is damaged ({error}): expand again."
            ) from None

    @classmethod
    def write(
        cls, folder: str | Path, blocks: Iterable[tuple[list[str], np.ndarray]], encoder: str, source: str
    ) -> VocabularyExpansion:
        """Write words and their vectors as they come; what was there is replaced when all is whole.

        Args:
            folder: Where to.
            blocks: Words, each only once, and their vectors [*, E].
            encoder: Fingerprint of the encoder.
            source: Where the vectors came from.

        Raises:
            DataError: no words, one that holds a line break, or a vector that does not fit into float16.
        """
        folder = Path(folder)
        table, text = folder / f"{TABLE_FILE}.writing", folder / f"{WORDS_FILE}.writing"
        try:
            with table.open("wb") as values, text.open("wb") as lines:
                _write_files(values, lines, blocks, {"format": _FORMAT, "encoder": encoder, "source": source})
        except BaseException:
            table.unlink(missing_ok=True)
            text.unlink(missing_ok=True)
            raise
        os.replace(text, folder / WORDS_FILE)
        os.replace(table, folder / TABLE_FILE)
        return cls.load(folder)

    def copy_to(self, folder: str | Path) -> None:
        """Copy both files into another folder."""
        folder = Path(folder)
        if folder.resolve() == self.folder.resolve():
            return
        for name in (WORDS_FILE, TABLE_FILE):
            shutil.copyfile(self.folder / name, folder / f"{name}.writing")
            os.replace(folder / f"{name}.writing", folder / name)


def _write_files(
    values: BinaryIO, lines: BinaryIO, blocks: Iterable[tuple[list[str], np.ndarray]], metadata: dict[str, str]
) -> None:
    keys: list[bytes] = []
    width = crc = words_crc = 0
    source = metadata["source"]
    values.seek(_HEADER)
    for words, vectors in blocks:
        with np.errstate(over="ignore"):  # looked at below
            halves = np.ascontiguousarray(vectors, dtype="<f2")
        if not np.isfinite(halves).all():
            raise DataError(f"Vectors of {source} do not fit into float16: they are not finite or too large.")
        here = [word.encode("utf-8") for word in words]
        if any(b"\n" in key for key in here):
            raise DataError(f"A word of {source} holds a line break: leave such words out.")
        keys += here
        data = b"".join(key + b"\n" for key in here)
        crc, words_crc, width = zlib.crc32(halves, crc), zlib.crc32(data, words_crc), halves.shape[1]
        values.write(halves.tobytes())
        lines.write(data)
    if not keys:
        raise DataError(f"{source} holds no word that the vocabulary lacks.")
    offsets = np.cumsum([0, *(len(key) + 1 for key in keys)], dtype="<i8")
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype="<i8")
    values.write(offsets.tobytes() + order.tobytes())
    n = len(keys)
    shapes = {"vectors": ("F16", [n, width]), "offsets": ("I64", [n + 1]), "order": ("I64", [n])}
    values.seek(0)
    checks = {"words_crc32": str(words_crc), "fingerprint": f"{crc:08x}{words_crc:08x}"}
    values.write(_header({**metadata, **checks}, shapes))


def _header(metadata: dict[str, str], shapes: dict[str, tuple[str, list[int]]]) -> bytes:
    """A safetensors header that fills `_HEADER` bytes (github.com/huggingface/safetensors, "Format")."""
    entries: dict[str, object] = {"__metadata__": metadata}
    start = 0
    for name, (dtype, shape) in shapes.items():
        stop = start + _DTYPES[dtype].itemsize * int(np.prod(shape))
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}
        start = stop
    size = _HEADER - 8
    return size.to_bytes(8, "little") + json.dumps(entries).encode().ljust(size)


def _mapped(path: Path, name: str) -> np.ndarray:
    """A tensor of a safetensors file, memory-mapped."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))[name]
    offset, shape = 8 + size + entry["data_offsets"][0], tuple(entry["shape"])
    return np.memmap(path, _DTYPES[entry["dtype"]], "r", offset, shape)
