"""Files of the Theano models of 2015: .npz, .npy and Python 2 pickles, read without running anything they say.

Pickles go through an unpickler that can build nothing but dictionaries, lists, strings, numbers and arrays of numbers:
any other name in them is refused, and arrays are made here from their bytes, not by NumPy's own unpickling.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from modeling.errors import ModelFolderError

_DAMAGED = (
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    EOFError,
    OverflowError,
    pickle.UnpicklingError,
)


class OriginalFileError(ModelFolderError):
    """A file of an original model that is missing, damaged, or another than it should be."""


# -- pickles ----------------------------------------------------------------------------------------------------------
class _Dtype:
    """A dtype of a pickled array: its code, and the byte order that follows as its state."""

    def __init__(self, code: str | bytes, *_: Any) -> None:
        self.code, self.order = _text(code), "="

    def __setstate__(self, state: tuple) -> None:
        self.order = _text(state[1])

    def numbers(self) -> np.dtype:
        """The dtype, if it is one of plain numbers."""
        dtype = np.dtype(("" if self.order == "|" else self.order) + self.code)
        if dtype.kind not in "biuf":
            raise pickle.UnpicklingError(f"an array of {dtype}")
        return dtype


class _Array:
    """An array of numbers, kept as the bytes that were in the file, or of objects, kept as a list."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.fortran, self.dtype, self.data = False, _Dtype("f4"), b""

    def __setstate__(self, state: tuple) -> None:
        _, shape, self.dtype, self.fortran, self.data = state
        self.shape = tuple(int(n) for n in shape)

    def numbers(self) -> np.ndarray:
        """Read-only array."""
        data = self.data.encode("latin1") if isinstance(self.data, str) else self.data
        array = np.frombuffer(data, self.dtype.numbers())
        return array.reshape(self.shape, order="F" if self.fortran else "C")


def _text(value: str | bytes) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else value


def _scalar(dtype: _Dtype, data: str | bytes) -> float | int:
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype.numbers())[0].item()


def _encode(text: str, *_: Any) -> bytes:
    return text.encode("latin1")  # how Python 3 writes bytes into a pickle of protocol 2


_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,  # named as an argument of `_reconstruct` only
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): _encode,
    **{(module, "_reconstruct"): lambda *_: _Array() for module in _ARRAY_MODULES},
    **{(module, "scalar"): _scalar for module in _ARRAY_MODULES},
}


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only data is read")
        return _ALLOWED[module, name]


def _unpickle(file: BinaryIO, path: Path) -> Any:
    try:
        # Python 2 strings are bytes; latin1 keeps each byte as one character
        return _DataUnpickler(file, encoding="latin1").load()
    except (*_DAMAGED, MemoryError, RecursionError) as error:
        raise OriginalFileError(
            f"{path} is damaged or no pickle of plain data ({_first_line(error)}): copy the original file again."
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def read_pickle(path: str | Path) -> Any:
    """Dictionaries, lists, strings and numbers of a pickle; arrays in it become NumPy arrays."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _plain(_unpickle(file, path), path)
    except OSError as error:
        raise OriginalFileError(f"Cannot read {path}: {error.strerror}.") from None


def _plain(value: Any, path: Path) -> Any:
    if isinstance(value, _Array):
        return _numbers(value, path)
    if isinstance(value, dict):
        return {key: _plain(item, path) for key, item in value.items()}
    return [_plain(item, path) for item in value] if isinstance(value, (list, tuple)) else value


def _numbers(array: Any, path: Path) -> np.ndarray:
    try:
        return array.numbers()
    except (*_DAMAGED, pickle.UnpicklingError) as error:
        raise OriginalFileError(f"{path} holds something that is no array of numbers ({_first_line(error)}).") from None


def read_dictionary(path: str | Path) -> dict[str, int]:
    """Word -> id of a pickled dictionary of the original trainers; words that Python 2 kept as bytes are UTF-8.

    Raises:
        OriginalFileError: it is not a dictionary of words to numbers.
    """
    words = read_pickle(path)
    if not isinstance(words, dict) or not words or not all(isinstance(i, int) for i in words.values()):
        raise OriginalFileError(f"{path} is not a dictionary of words and their numbers: give the one of the training.")
    return {_word(word): number for word, number in words.items()}


def _word(word: Any) -> str:
    text = _text(word) if isinstance(word, (str, bytes)) else str(word)
    try:
        return text.encode("latin1").decode("utf-8")
    except UnicodeError:  # it was a Unicode string in the pickle already
        return text


# -- arrays -----------------------------------------------------------------------------------------------------------
def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "created on Python 2"
        version = npy.read_magic(file)
        return npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)


class NpzArrays:
    """The arrays of an .npz file, each read when it is asked for."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with zipfile.ZipFile(self.path) as archive:
                self.names = {name.removesuffix(".npy") for name in archive.namelist()}
        except (OSError, zipfile.BadZipFile) as error:
            raise OriginalFileError(
                f"{self.path} cannot be read as an .npz file ({_first_line(error)}): it is cut off or another kind of "
                "file; copy the original again."
            ) from None

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __call__(self, name: str, *shape: int | None) -> np.ndarray:
        """The array `name`, float32.

        Args:
            shape: What its shape must be, None where any size will do.

        Raises:
            OriginalFileError: it is missing, damaged, not finite, or of another shape.
        """
        if name not in self.names:
            known = ", ".join(sorted(self.names)) or "nothing"
            raise OriginalFileError(f"{self.path} has no array '{name}' (it has {known[:300]}): it is another model's.")
        try:
            with warnings.catch_warnings(), np.load(self.path, allow_pickle=False) as archive:
                warnings.simplefilter("ignore")
                array = np.asarray(archive[name], dtype=np.float32)
        except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, *_DAMAGED) as error:
            raise OriginalFileError(
                f"The array '{name}' of {self.path} cannot be read ({_first_line(error)}): copy the original again."
            ) from None
        if len(shape) != array.ndim or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            raise OriginalFileError(
                f"The array '{name}' of {self.path} has the shape {array.shape}, and not ({wanted}) as its other "
                "arrays want it: the file is another model's."
            )
        if not np.isfinite(array).all():
            raise OriginalFileError(f"The array '{name}' of {self.path} holds numbers that are not finite.")
        return array


def read_vector(path: str | Path) -> np.ndarray:
    """The one vector of an .npy file, float32 [D]."""
    path = Path(path)
    rows = list(read_rows(path))
    vector = np.concatenate(rows) if rows else np.zeros(0)
    if vector.size < 2 or not np.isfinite(vector).all():
        raise OriginalFileError(f"{path} does not hold a vector of finite numbers: give a style's .npy file.")
    return vector.astype(np.float32)


def count_rows(path: str | Path) -> int:
    """Length of the first dimension of an .npy file, out of its header."""
    return _open_npy(Path(path), lambda file: _read_header(file)[0][0])


def read_rows(path: str | Path) -> Iterator[np.ndarray]:
    """Rows of an .npy file, each float32 and flat, whether it holds a matrix or pickled objects that are vectors."""
    path = Path(path)
    shape, _, dtype = _open_npy(path, _read_header)
    if not dtype.hasobject:
        try:
            table = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, *_DAMAGED) as error:
            raise OriginalFileError(f"{path} is cut off ({_first_line(error)}): copy the original again.") from None
        if dtype.kind not in "biuf":
            raise OriginalFileError(f"{path} holds {dtype} and no numbers: it is another kind of file.")
        yield from (np.asarray(row, dtype=np.float32).ravel() for row in table)
        return
    with path.open("rb") as file:
        _read_header(file)
        outer = _unpickle(file, path)
    if not isinstance(outer, _Array) or not isinstance(outer.data, list) or len(outer.data) != shape[0]:
        raise OriginalFileError(f"{path} does not hold a list of vectors: it is another kind of file.")
    for row in outer.data:
        yield np.asarray(_numbers(row, path), dtype=np.float32).ravel()


def _open_npy(path: Path, read: Any) -> Any:
    try:
        with path.open("rb") as file:
            return read(file)
    except OSError as error:
        raise OriginalFileError(f"Cannot read {path}: {error.strerror or error}.") from None
    except _DAMAGED as error:
        raise OriginalFileError(
            f"{path} is not an .npy file ({_first_line(error)}): copy the original again."
        ) from None


def read_words(path: str | Path) -> list[str]:
    """Lines of `dictionary.txt`, UTF-8."""
    path = Path(path)
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            return [line.strip() for line in file]
    except OSError as error:
        raise OriginalFileError(f"Cannot read {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise OriginalFileError(f"{path} is not a list of words in UTF-8: give dictionary.txt.") from None
