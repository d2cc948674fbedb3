"""Word vectors from the files people have: GloVe, word2vec, fastText, NumPy.

    GloVe text             `word v1 ... vd` a line (nlp.stanford.edu/projects/glove); words may hold spaces
    word2vec, fastText     the same below a header line `count dimension` (fastText's .vec files)
    word2vec binary        header line, then `word ` and d little-endian float32 each (GoogleNews-vectors-negative300)
    npz                    arrays `words` [n] of strings and `vectors` [n, d]
The kind is told from the content, not from the name; each but npz may be gzipped. Files are read as a stream, so that a
few wanted words out of three million need little memory.

Shapes: n words, d values a vector, N tokens asked for.
"""

from __future__ import annotations

import gzip
import re
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy
from transformers import PreTrainedTokenizerFast

from modeling.errors import DataError
from modeling.modeling_captioner import PictaleCaptionerForConditionalGeneration
from modeling.tokenization import WORD_START

KINDS = "GloVe text, word2vec or fastText text, word2vec binary, or an npz with the arrays words and vectors"
LONGEST_LINE = 1 << 20
LONGEST_WORD = 1 << 12
BLOCK = 1 << 20
_HEADER = re.compile(rb"\s*(\d+)[ \t]+(\d+)\s*")


def spellings(token: str) -> tuple[str, ...]:
    """How a file may write `token`, best first: a cased file has no "paris", a lower-case one no "Paris"."""
    return tuple(dict.fromkeys((token, token.lower(), token.capitalize(), token.upper())))


@dataclass(frozen=True)
class WordVectors:
    """Words and their vectors, float32 [n, d], in step; the first of words that are given twice."""

    words: list[str]
    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.words)

    @property
    def dim(self) -> int:
        return self.vectors.shape[1]

    def matrix_for(self, tokens: Sequence[str], dim: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of `tokens`, at the files' own scale; each token is looked up in all its `spellings`.

        Args:
            tokens: N tokens.
            dim: Width wanted; None keeps d. A linear map with orthonormal rows or columns makes it: towards fewer
                dimensions the one that keeps most of the tokens' dot products (the leading right singular vectors),
                towards more a fixed random one, which keeps all of them.

        Returns:
            float32 [N, dim or d], zero where unknown, and bool [N], whether known.
        """
        rows = {word: row for row, word in reversed(list(enumerate(self.words)))}
        index = [next((rows[s] for s in spellings(token) if s in rows), -1) for token in tokens]
        found = np.array(index, np.int64) >= 0
        known = self.vectors[np.array(index, np.int64)[found]]  # [known, d]
        if dim is not None and dim != self.dim:
            known = known @ linear_map(known, dim)
        matrix = np.zeros((len(tokens), self.dim if dim is None else dim), np.float32)
        matrix[found] = known
        return matrix, found


def linear_map(vectors: np.ndarray, dim: int) -> np.ndarray:
    """The map [d, dim] that `WordVectors.matrix_for` describes, for vectors [n, d]."""
    width = vectors.shape[1]
    if dim >= width:
        return np.linalg.qr(np.random.default_rng(0).normal(size=(dim, width)))[0].T.astype(np.float32)
    values, directions = np.linalg.eigh(vectors.T.astype(np.float64) @ vectors)  # ascending
    return directions[:, np.argsort(-values)[:dim]].astype(np.float32)


def read_word_vectors(path: str | Path, wanted: Collection[str] | None = None) -> WordVectors:
    """Read a file of word vectors.

    Args:
        path: A file of one of the kinds above.
        wanted: Keep only these words, as they are spelt (`spellings` helps); None keeps all.

    Raises:
        DataError: the file is missing, of another kind, damaged or cut off, or holds none of the wanted words.
    """
    table = _Table(wanted)
    for word, vector in stream_word_vectors(path, wanted):
        table.add(word, vector)
    if not table.words:
        raise DataError(f"The word vectors {path} hold none of the wanted words; take vectors of the same language.")
    vectors = table.finish()
    if not np.isfinite((vectors.min(), vectors.max())).all():
        raise DataError(f"The word vectors {path} hold numbers that are not finite; download or convert them again.")
    return WordVectors(table.words, vectors)


def stream_word_vectors(path: str | Path, wanted: Collection[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """The words of a file and their vectors, float32 [d], one by one in its order, repeated words and all.

    Args:
        path: As for `read_word_vectors`.
        wanted: Words that are looked for; others may come as well.

    Raises:
        DataError: the file is missing, of another kind, damaged or cut off.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        yield from _read_npz(path) if magic[:2] == b"PK" else _read_stream(path, magic[:2] == b"\x1f\x8b", wanted)
    except OSError as error:  # gzip's BadGzipFile too
        reason = error.strerror or str(error)
        raise DataError(f"Cannot read the word vectors {path}: {reason}. Give a file of {KINDS}.") from None
    except (EOFError, zipfile.BadZipFile, zlib.error):
        raise _cut_off(path, "its compressed data ends early or is damaged") from None


class _Table:
    """Grows by doubling in place, whatever a header claims."""

    def __init__(self, wanted: Collection[str] | None):
        self.wanted = None if wanted is None else set(wanted)
        self.words: list[str] = []
        self.seen: set[str] = set()
        self.vectors = np.zeros((0, 0), np.float32)

    def add(self, word: str, vector: np.ndarray) -> None:
        if word in self.seen or (self.wanted is not None and word not in self.wanted):
            return
        if len(self.words) == len(self.vectors):
            self.vectors.resize((max(1024, 2 * len(self.words)), len(vector)), refcheck=False)
        self.vectors[len(self.words)] = vector
        self.words.append(word)
        self.seen.add(word)

    def finish(self) -> np.ndarray:
        self.vectors.resize((len(self.words), self.vectors.shape[1]), refcheck=False)
        return self.vectors


def _cut_off(path: Path, why: str) -> DataError:
    return DataError(f"The word vectors {path} are cut off or damaged: {why}. Download or unpack the file again.")


def _foreign(path: Path, why: str) -> DataError:
    return DataError(f"{path} is no file of word vectors ({why}). Give {KINDS}.")


@torch.no_grad()
def start_from_word_vectors(
    captioner: PictaleCaptionerForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, path: str | Path
) -> int:
    """Write the vectors of a file over the word vectors of a new captioner.

    They are brought to its width as `WordVectors.matrix_for` does, and all scaled by one factor, so that their values
    are as large as the ones they replace; words the file does not know, special tokens and byte-pair pieces inside
    words keep their random vectors. Rare adaptive words keep as much of theirs as their narrower table can hold.

    Returns:
        How many entries of the vocabulary were found.

    Raises:
        DataError: as `read_word_vectors`.
    """
    tokens = words_of(tokenizer)
    vectors = read_word_vectors(path, {spelling for token in tokens if token for spelling in spellings(token)})
    matrix, found = (torch.from_numpy(a) for a in vectors.matrix_for(tokens, captioner.config.word_dim))
    words = captioner.embedding if captioner.config.adaptive_cutoff is None else captioner.words.head
    matrix *= words.weight[words.weight.any(1)].square().mean().sqrt() / matrix[found].square().mean().sqrt()
    matrix, frequent = matrix.to(words.weight), len(words.weight)
    words.weight[found[:frequent]] = matrix[:frequent][found[:frequent]]
    rare = found[frequent:]
    if rare.any():
        table = captioner.words
        known = matrix[frequent:][rare]
        table.tail_projection.weight.copy_(torch.from_numpy(linear_map(known.numpy(), table.tail.weight.shape[1])))
        table.tail.weight[rare] = known @ table.tail_projection.weight
    return int(found.sum())


def words_of(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The word that each id spells alone; empty for special tokens and for pieces inside a word."""
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    in_pieces, special = any(token.startswith(WORD_START) for token in tokens), set(tokenizer.all_special_tokens)
    starts = [token not in special and (not in_pieces or token.startswith(WORD_START)) for token in tokens]
    return [token.removeprefix(WORD_START) if start else "" for token, start in zip(tokens, starts, strict=True)]


# -- text and binary --------------------------------------------------------------------------------------------------
def _read_stream(path: Path, gzipped: bool, wanted: Collection[str] | None) -> Iterator[tuple[str, np.ndarray]]:
    with gzip.open(path, "rb") if gzipped else path.open("rb", buffering=BLOCK) as file:
        first = file.readline(LONGEST_LINE)
        header = _HEADER.fullmatch(first)
        if header is None:
            parts = first.split()
            if len(parts) < 3 or _floats(parts[1:]) is None:
                raise _foreign(path, "its first line is neither a word with its values nor a count and a dimension")
            yield from _read_text(path, file, len(parts) - 1, None, wanted, first)
            return
        count, dim = map(int, header.groups())
        if not 0 < dim <= LONGEST_LINE // 4:
            raise _foreign(path, f"its header gives vectors of {dim} values")
        first = file.readline(LONGEST_LINE)
        parts = first.split()
        is_text = len(parts) > dim and _floats(parts[-dim:]) is not None
        yield from (_read_text if is_text else _read_binary)(path, file, dim, count, wanted, first)


def _floats(parts: list[bytes]) -> np.ndarray | None:
    try:
        return np.array(parts, np.float32)
    except ValueError:
        return None


def _read_text(
    path: Path, file: BinaryIO, dim: int, count: int | None, wanted: Collection[str] | None, line: bytes
) -> Iterator[tuple[str, np.ndarray]]:
    """`line` is the first one, read already."""
    # most lines of a big file are not wanted: those are only looked at up to the first space
    heads = None if wanted is None else {part for word in wanted for part in word.encode().split(None, 1)[:1]}
    number = 0
    while line:
        number += 1
        following = file.readline(LONGEST_LINE)
        body = line.rstrip()
        if body and (not following or heads is None or body.split(None, 1)[0] in heads):
            parts = body.rsplit(None, dim)
            vector = _floats(parts[1:]) if len(parts) == dim + 1 else None
            if vector is None:
                why = f"line {number + (count is not None)} does not hold a word and {dim} numbers"
                raise _cut_off(path, why) if not following else _foreign(path, why)
            yield parts[0].decode("utf-8", "replace"), vector
        line = following
    if count is not None and number < count:
        raise _cut_off(path, f"its header says {count} words and it holds {number}")


def _read_binary(
    path: Path, file: BinaryIO, dim: int, count: int, wanted: Collection[str] | None, data: bytes
) -> Iterator[tuple[str, np.ndarray]]:
    """`data` are the first bytes below the header, read already."""
    names = None if wanted is None else {word.encode() for word in wanted}
    size, at = 4 * dim, 0
    for number in range(count):
        space = data.find(b" ", at)
        while space < 0 or len(data) < space + 1 + size:
            if space < 0 and len(data) - at > LONGEST_WORD + size:
                raise _foreign(path, f"after {number} words comes something else")
            more = file.read(max(BLOCK, size))
            if not more:
                raise _cut_off(path, f"its header says {count} words and it holds {number}")
            data, at = data[at:] + more, 0
            space = data.find(b" ")
        name = data[at:space].lstrip(
            b"\n"
        )  # the original program ends each vector with a line feed, GoogleNews does not
        if len(name) > LONGEST_WORD:
            raise _foreign(path, f"after {number} words comes something else")
        at = space + 1 + size
        if names is None or name in names:
            yield name.decode("utf-8", "replace"), np.frombuffer(data, "<f4", dim, space + 1)


# -- npz ---------------------------------------------------------------------------------------------------------------
def _read_npz(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    with zipfile.ZipFile(path) as archive:
        if not {"words.npy", "vectors.npy"} <= set(archive.namelist()):
            raise _foreign(path, "a zip without the arrays words and vectors; unpack it and give one of its files")
        with archive.open("words.npy") as words, archive.open("vectors.npy") as vectors:
            try:
                (count, *more), of_words = _npy_header(words)
                (rows, *dims), of_vectors = _npy_header(vectors)
            except ValueError as error:
                raise _foreign(path, str(error)) from None
            if more or len(dims) != 1 or rows != count or of_words.kind not in "US" or of_vectors.kind != "f":
                raise _foreign(path, "words must be strings [n] and vectors floats [n, d]")
            step = max(1, BLOCK // max(of_vectors.itemsize * dims[0], of_words.itemsize, 1))
            for start in range(0, count, step):
                n = min(step, count - start)
                names, values = words.read(n * of_words.itemsize), vectors.read(n * dims[0] * of_vectors.itemsize)
                if len(names) < n * of_words.itemsize or len(values) < n * dims[0] * of_vectors.itemsize:
                    raise _cut_off(path, f"it says {count} words and holds fewer")
                names, values = np.frombuffer(names, of_words), np.frombuffer(values, of_vectors)
                names = np.char.decode(names, "utf-8", "replace") if of_words.kind == "S" else names
                yield from zip(names.tolist(), values.reshape(n, dims[0]).astype(np.float32), strict=True)


def _npy_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    version = npy.read_magic(file)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError("an array of an unknown version")
    shape, by_columns, dtype = read(file)
    if dtype.hasobject or (by_columns and len(shape) > 1):
        raise ValueError("save words as an array of strings and vectors row by row, without pickled objects")
    if not shape:
        raise ValueError("an array without rows")
    return shape, dtype
