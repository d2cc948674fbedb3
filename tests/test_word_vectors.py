"""Word vectors of every kind of file give the same table; a damaged or foreign file gives one sentence."""

import gzip
import tracemalloc

import numpy as np
import pytest

from modeling.errors import DataError
from training.word_vectors import WordVectors, read_word_vectors

WORDS = ["the", "café", ". .", "Paris", "dog", "at me@x.org", "the"]  # GloVe 840B has words with spaces, and repeats
VECTORS = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)


def as_text(header: bool = False, end: str = "\n") -> bytes:
    lines = [f"{len(WORDS)} 5"] if header else []
    lines += [f"{word} " + " ".join(map(repr, map(float, row))) for word, row in zip(WORDS, VECTORS, strict=True)]
    return "".join(line + end for line in lines).encode()


def as_binary(end: bytes = b"") -> bytes:
    rows = [word.replace(" ", "_").encode() + b" " + row.tobytes() for word, row in zip(WORDS, VECTORS, strict=True)]
    return b"7 5\n" + b"".join(row + end for row in rows)


def as_npz(tmp_path, dtype=np.float32, words=None) -> bytes:
    np.savez(tmp_path / "made.npz", words=np.array(WORDS) if words is None else words, vectors=VECTORS.astype(dtype))
    return (tmp_path / "made.npz").read_bytes()


def written(tmp_path, data: bytes):
    path = tmp_path / "vectors"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "kind",
    ["glove", "windows", "word2vec", "fasttext", "binary", "binary lines", "npz", "npz bytes", "glove.gz", "binary.gz"],
)
def test_every_kind_gives_the_same_table(tmp_path, kind):
    data = {
        "glove": as_text(),
        "windows": as_text(end="\r\n"),
        "word2vec": as_text(header=True),
        "fasttext": as_text(header=True, end=" \n"),
        "binary": as_binary(),
        "binary lines": as_binary(b"\n"),
        "npz": as_npz(tmp_path),
        "npz bytes": as_npz(tmp_path, words=np.array([word.encode() for word in WORDS])),
        "glove.gz": gzip.compress(as_text()),
        "binary.gz": gzip.compress(as_binary()),
    }[kind]
    expected = [word.replace(" ", "_") for word in WORDS[:6]] if "binary" in kind else WORDS[:6]
    path = written(tmp_path, data)
    found = read_word_vectors(path)
    assert found.words == expected and found.dim == 5 and len(found) == 6
    assert found.vectors.dtype == np.float32
    np.testing.assert_array_equal(found.vectors, VECTORS[:6])
    some = read_word_vectors(path, {"dog", "café", expected[5], "unicorn"})
    assert some.words == ["café", "dog", expected[5]]
    np.testing.assert_array_equal(some.vectors, VECTORS[[1, 4, 5]])


def test_half_precision_npz_is_read_as_float32(tmp_path):
    found = read_word_vectors(written(tmp_path, as_npz(tmp_path, np.float16)))
    assert found.vectors.dtype == np.float32
    np.testing.assert_array_equal(found.vectors, VECTORS[:6].astype(np.float16))


@pytest.mark.parametrize("kind", ["text", "binary", "npz"])
def test_few_words_of_a_big_file_need_little_memory(tmp_path, kind):
    count, dim = 60000, 100
    words, vectors = [f"w{i}" for i in range(count)], np.ones((count, dim), np.float32)
    path = tmp_path / "big"
    if kind == "npz":
        with path.open("wb") as file:
            np.savez(file, words=np.array(words), vectors=vectors)
    else:
        row = b" 1" * dim + b"\n" if kind == "text" else b" " + vectors[0].tobytes()
        path.write_bytes(b"".join([b"%d %d\n" % (count, dim), *(word.encode() + row for word in words)]))
    del words
    size = vectors.nbytes
    del vectors
    tracemalloc.start()
    found = read_word_vectors(path, {"w59999", "w5"})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.words == ["w5", "w59999"]
    assert peak < size / 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (as_text()[:-30], "cut off"),
        (as_text(header=True)[: len(as_text(header=True)) // 2], "cut off"),
        (as_text(header=True).rsplit(b"\n", 3)[0] + b"\n", "says 7 words and it holds 5"),
        (as_binary()[:-1], "says 7 words and it holds 6"),
        (gzip.compress(as_binary())[:-20], "cut off"),
        (gzip.compress(as_text())[:-20], "cut off"),
        (b"", "no file of word vectors"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4, "no file of word vectors"),
        (b"Call me Ishmael. Some years ago\nthere was a whale\n", "no file of word vectors"),
        (b"3 5\n" + b"\xff" * 300000, "no file of word vectors"),
        (b"3 0\n", "vectors of 0 values"),
        (b"dog 1 2 3\ncat 1 x 3\ncow 1 2 3\n", "line 2"),
        (b"dog 1 2 3\ncat 1 nan 3\n", "not finite"),
        (b"PK\x03\x04nonsense", "cut off"),
    ],
)
def test_a_damaged_or_foreign_file_is_said_in_one_sentence(tmp_path, data, message):
    path = written(tmp_path, data)
    with pytest.raises(DataError, match=message) as error:
        read_word_vectors(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_files_that_hold_something_else_are_refused(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_word_vectors(tmp_path / "nowhere")
    with pytest.raises(DataError, match="none of the wanted words"):
        read_word_vectors(written(tmp_path, as_text()), {"unicorn"})
    with pytest.raises(DataError, match="without pickled objects"):
        read_word_vectors(written(tmp_path, as_npz(tmp_path, words=np.array(WORDS, object))))
    with pytest.raises(DataError, match="words must be strings"):
        read_word_vectors(written(tmp_path, as_npz(tmp_path, words=np.array(WORDS[:3]))))
    np.savez(tmp_path / "other.npz", weights=VECTORS)
    with pytest.raises(DataError, match="without the arrays words and vectors"):
        read_word_vectors(tmp_path / "other.npz")


def test_matrix_for_takes_the_best_spelling():
    vectors = WordVectors(["Dog", "dog", "Paris", "NATO"], np.eye(4, dtype=np.float32))
    matrix, found = vectors.matrix_for(["dog", "unicorn", "paris", "nato", "Dog"])
    assert found.tolist() == [True, False, True, True, True] and found.dtype == bool
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, np.eye(4)[[1, 0, 2, 3, 0]] * found[:, None])


def test_fewer_dimensions_keep_the_most_of_the_dot_products_and_more_keep_all():
    rng = np.random.default_rng(1)
    vectors = WordVectors([f"w{i}" for i in range(50)], rng.normal(size=(50, 20)).astype(np.float32))
    tokens = ["w3", "none", *(f"w{i}" for i in range(10, 40))]
    whole, found = vectors.matrix_for(tokens)
    products = whole @ whole.T
    wide, _ = vectors.matrix_for(tokens, 33)
    assert wide.shape == (32, 33) and not wide[~found].any()
    np.testing.assert_allclose(wide @ wide.T, products, atol=1e-4)
    narrow, _ = vectors.matrix_for(tokens, 6)
    assert narrow.shape == (32, 6)
    left, values, right = np.linalg.svd(whole, full_matrices=False)
    best = (left[:, :6] * values[:6] ** 2) @ left[:, :6].T  # Eckart and Young: no map of rank 6 comes nearer
    np.testing.assert_allclose(narrow @ narrow.T, best, atol=1e-3)
