"""Small files in the layout of the Theano models of 2015, and their equations in NumPy.

The equations are written from their description (rows times matrices, gates [r | u] in W, b, U, candidate in Wx, bx and
Ux), not from this project's models. Pickles are written as Python 2 wrote them: strings as bytes, protocol 0 or 2.
"""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path

import numpy as np

WORDS = ["<eos>", "UNK", "a", "dog", "runs", "on", "the", "beach", ".", "caf\u00e9", "Dog", "cat"]


def matrix(rng, *shape):
    return rng.uniform(-0.5, 0.5, shape).astype(np.float32)


def gru(rng, prefix: str, width: int, size: int) -> dict[str, np.ndarray]:
    return {
        f"{prefix}_W": matrix(rng, width, 2 * size),
        f"{prefix}_b": matrix(rng, 2 * size),
        f"{prefix}_U": matrix(rng, size, 2 * size),
        f"{prefix}_Wx": matrix(rng, width, size),
        f"{prefix}_bx": matrix(rng, size),
        f"{prefix}_Ux": matrix(rng, size, size),
    }


def dense(rng, prefix: str, rows: int, columns: int) -> dict[str, np.ndarray]:
    return {f"{prefix}_W": matrix(rng, rows, columns), f"{prefix}_b": matrix(rng, columns)}


# -- equations --------------------------------------------------------------------------------------------------------
def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def step(p: dict, prefix: str, x: np.ndarray, h: np.ndarray) -> np.ndarray:
    """One word: x [E], h [D] -> [D], in double precision."""
    size = len(h)
    gates = sigmoid(x @ p[f"{prefix}_W"] + p[f"{prefix}_b"] + h @ p[f"{prefix}_U"])
    r, u = gates[:size], gates[size:]
    n = np.tanh(r * (h @ p[f"{prefix}_Ux"]) + x @ p[f"{prefix}_Wx"] + p[f"{prefix}_bx"])
    return u * h + (1 - u) * n


def last_state(p: dict, prefix: str, vectors: np.ndarray) -> np.ndarray:
    h = np.zeros(p[f"{prefix}_Ux"].shape[0])
    for x in vectors.astype(np.float64):
        h = step(p, prefix, x, h)
    return h


def unit(v):
    return v / np.linalg.norm(v)


# -- pickles as Python 2 wrote them -----------------------------------------------------------------------------------
class Python2Pickler(pickle._Pickler):
    """Writes str and bytes as Python 2 byte strings, and arrays of numbers as NumPy 1 did."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_string(self, value):
        data = value.encode("utf-8") if isinstance(value, str) else value
        if self.bin:
            head = pickle.SHORT_BINSTRING + bytes([len(data)]) if len(data) < 256 else pickle.BINSTRING
            head = head if len(data) < 256 else head + struct.pack("<i", len(data))
            self.write(head + data)
        else:
            self.write(pickle.STRING + repr(data)[1:].encode("ascii") + b"\n")
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string

    def name(self, module: str, name: str):
        self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())

    def save_array(self, array):
        self.name("numpy.core.multiarray", "_reconstruct")
        self.write(pickle.MARK)
        self.name("numpy", "ndarray")
        self.save((0,))
        self.save("b")
        self.write(pickle.TUPLE + pickle.REDUCE)
        self.memoize(array)
        self.write(pickle.MARK)
        self.save(1)
        self.save(tuple(int(n) for n in array.shape))
        self.name("numpy", "dtype")
        self.write(pickle.MARK)
        for argument in ("O8" if array.dtype == object else array.dtype.str[1:], 0, 1):
            self.save(argument)
        self.write(pickle.TUPLE + pickle.REDUCE)
        order = "|" if array.dtype == object else "<"
        self.save((3, order, None, None, None, -1, -1, 63 if array.dtype == object else 0))
        self.write(pickle.BUILD)
        self.save(False)
        self.save(list(array.ravel()) if array.dtype == object else array.tobytes())
        self.write(pickle.TUPLE + pickle.BUILD)

    dispatch[np.ndarray] = save_array


def python2_pickle(value, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol, fix_imports=True).dump(value)
    return buffer.getvalue()


def save_object_array(path: Path, rows: list[np.ndarray]) -> None:
    """An .npy file of one vector per word, as utable.npy is."""
    array = np.empty(len(rows), dtype=object)
    for i, row in enumerate(rows):
        array[i] = row
    with path.open("wb") as file:
        header = {"descr": "|O", "fortran_order": False, "shape": array.shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(python2_pickle(array))


# -- whole models -----------------------------------------------------------------------------------------------------
def write_skip_thoughts(folder: Path, uni: int = 6, bi: int = 4, width: int = 5, extra: int = 3) -> dict[str, dict]:
    """uni_skip.npz, bi_skip.npz, utable.npy, btable.npy, dictionary.txt; arrays by file and table."""
    rng = np.random.default_rng(0)
    u = {"Wemb": matrix(rng, 7, width)} | gru(rng, "encoder", width, uni) | dense(rng, "ff_logit", uni, 7)
    b = {"Wemb": matrix(rng, 7, width)} | gru(rng, "encoder", width, bi) | gru(rng, "encoder_r", width, bi)
    np.savez(folder / "uni_skip.npz", history_errs=[], **u)
    np.savez(folder / "bi_skip.npz", history_errs=[], **b)
    options = {"dim": uni, "dim_word": width, "n_words_src": 7, "encoder": "gru", "reload_": False, "decay_c": 0.0}
    (folder / "uni_skip.npz.pkl").write_bytes(python2_pickle(options, 0))
    (folder / "bi_skip.npz.pkl").write_bytes(python2_pickle(options, 0))
    words = [*WORDS, *(f"word{i}" for i in range(extra))]
    tables = {part: [matrix(rng, width) for _ in words] for part in ("uni", "bi")}
    tables["bi"] = [row[None] for row in tables["bi"]]  # (1, E), as regressed rows are
    save_object_array(folder / "utable.npy", tables["uni"])
    save_object_array(folder / "btable.npy", tables["bi"])
    (folder / "dictionary.txt").write_bytes("".join(f"{w}\n" for w in words).encode("utf-8"))
    lookup = {part: {w: r.ravel() for w, r in zip(words, rows, strict=True)} for part, rows in tables.items()}
    return {"uni": u, "bi": b, "tables": lookup}


def combine_skip(model: dict, words: list[str], use_eos: bool = False) -> np.ndarray:
    """Thought of one sentence of words, by the equations, uni and bi part of length 1."""
    words = [w if w in model["tables"]["uni"] else "UNK" for w in words] + (["<eos>"] if use_eos else [])
    u, b = (np.stack([model["tables"][part][w] for w in words]) for part in ("uni", "bi"))
    forward, backward = last_state(model["bi"], "encoder", b), last_state(model["bi"], "encoder_r", b[::-1])
    return np.concatenate([unit(last_state(model["uni"], "encoder", u)), unit(np.concatenate([forward, backward]))])


def write_decoder(folder: Path, deep: bool, options: bool = True, thought: int = 14, width: int = 5, size: int = 8):
    """romance.npz with options and dictionary; its arrays."""
    rng = np.random.default_rng(1)
    count = len(WORDS)
    arrays = {"Wemb": matrix(rng, count, width)} | dense(rng, "ff_state", thought, size)
    arrays |= gru(rng, "decoder", width, size)
    if deep:
        arrays |= dense(rng, "ff_hid", size, width)
    arrays |= dense(rng, "ff_logit", width if deep else size, count)
    arrays["ff_logit_W"] *= 6  # so that the next word is not a matter of rounding
    np.savez(folder / "romance.npz", **arrays)
    if options:
        (folder / "romance.npz.pkl").write_bytes(python2_pickle({"dim": size, "doutput": deep}, 0))
    dictionary = {word: i for i, word in enumerate(WORDS) if i > 1} | {"rare": count, "rarer": count + 1}
    (folder / "romance_dictionary.pkl").write_bytes(python2_pickle(dictionary, 2))
    return arrays


def decoder_logits(p: dict, thought: np.ndarray, ids: list[int], deep: bool) -> np.ndarray:
    """Scores after the start and after each word: [len(ids) + 1, V]."""
    h = np.tanh(thought @ p["ff_state_W"] + p["ff_state_b"])
    rows = []
    for word in [-1, *ids]:
        x = np.zeros(p["Wemb"].shape[1]) if word < 0 else p["Wemb"][word].astype(np.float64)
        h = step(p, "decoder", x, h)
        hidden = np.tanh(h @ p["ff_hid_W"] + p["ff_hid_b"]) if deep else h
        rows.append(hidden @ p["ff_logit_W"] + p["ff_logit_b"])
    return np.array(rows)


def write_embedding(folder: Path, bow: bool = False, width: int = 5, size: int = 6, features: int = 9):
    """coco_embedding.npz with options and dictionary; its arrays."""
    rng = np.random.default_rng(2)
    arrays = {"Wemb": matrix(rng, len(WORDS), size if bow else width)}
    arrays |= {} if bow else gru(rng, "encoder", width, size)
    arrays |= dense(rng, "ff_image", features, size)
    np.savez(folder / "coco_embedding.npz", **arrays)
    (folder / "coco_embedding.npz.pkl").write_bytes(python2_pickle({"encoder": "bow" if bow else "gru"}, 0))
    dictionary = {word: i for i, word in enumerate(WORDS) if i > 1} | {"late": len(WORDS)}
    (folder / "coco_embedding.npz.dictionary.pkl").write_bytes(python2_pickle(dictionary, 0))
    return arrays
