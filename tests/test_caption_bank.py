"""A caption bank finds what a full sort finds, repeats nothing, and comes back from its files."""

import lzma
import os

import numpy as np
import pytest

from modeling import CaptionBank, ModelFolderError
from modeling.caption_bank import TEXT_FILE, VECTORS_FILE
from modeling.errors import TextError
from modeling.neighbours import unit_rows
from tests.tiny import tiny_captioner, tiny_embedding

SENTENCES = [
    "A brown dog runs on the beach.",
    "The brown dog is running on a beach!",
    "A brown dog at the beach, running",
    "Two cats sleep.",
    "An old lady opens the door.",
    "Red houses by night.",
]


@pytest.fixture(scope="module")
def embedding():
    return tiny_embedding(tiny_captioner())


def random_bank(n=500, size=16, seed=0):
    vectors = unit_rows(np.random.default_rng(seed).normal(size=(n, size)))
    words = np.random.default_rng(1).integers(0, 5000, (n, 4))
    return CaptionBank(
        tuple(" ".join(f"word{chr(97 + w % 26) * 3}{w}x" for w in row) for row in words), vectors, "e" * 12
    )


def test_the_nearest_are_those_of_a_full_sort():
    bank, queries = random_bank(), unit_rows(np.random.default_rng(2).normal(size=(3, 16)))
    for query, found in zip(queries, bank.nearest(queries, 20, distinct=False), strict=True):
        scores = bank.vectors @ query
        order = np.argsort(-scores, kind="stable")[:20]
        assert [n.index for n in found] == order.tolist()
        np.testing.assert_allclose([n.similarity for n in found], scores[order], rtol=1e-6)
        assert [n.text for n in found] == [bank.sentences[i] for i in order]
    assert bank.nearest(queries, 20) == bank.nearest(queries, 20, distinct=False)  # none says the same as another


def test_what_says_the_same_does_not_fill_the_k(embedding):
    bank = CaptionBank.from_sentences(SENTENCES, embedding)
    [found] = bank.nearest(bank.vectors[:1], 3)
    assert found[0].index == 0 and found[0].similarity == pytest.approx(1, abs=1e-5)
    assert not {1, 2} & {n.index for n in found}
    assert len(bank.nearest(bank.vectors[:1], 3, distinct=False)[0]) == 3
    assert {n.index for n in bank.nearest(bank.vectors[:1], 100)[0]} == {0, 3, 4, 5}


def test_many_repetitions_are_looked_past():
    near = unit_rows(np.ones((300, 4)) + np.random.default_rng(0).normal(0, 1e-3, (300, 4)))
    far = unit_rows(np.array([[1.0, 0, 0, 0], [0, 1, 0, 0]]))
    texts = ("A dog runs on grass.",) * 300 + ("A cat sleeps.", "The sea by night.")
    [found] = CaptionBank(texts, np.concatenate([near, far]).astype(np.float32), "x").nearest(near[:1], 3)
    assert len(found) == 3 and {found[1].index, found[2].index} == {300, 301}


@pytest.mark.parametrize("dtype, error", [("int8", 0.01), ("float16", 1e-3)])
def test_it_comes_back_from_its_files(dtype, error, tmp_path):
    bank = random_bank()
    bank.save(tmp_path, dtype)
    again = CaptionBank.load(tmp_path)
    assert (again.sentences, again.embedding, again.source) == (bank.sentences, bank.embedding, bank.source)
    assert np.abs(again.vectors - bank.vectors).max() < error
    assert not list(tmp_path.glob("*.writing"))
    size = (tmp_path / VECTORS_FILE).stat().st_size
    assert size < len(bank) * (16 + 2 if dtype == "int8" else 32) + 1000


def test_sentences_of_ones_own(embedding):
    shares = []
    bank = CaptionBank.from_sentences(
        ["A  dog\nruns.", "a dog runs", " ", "?!", "A cat."], embedding, progress=lambda share, _: shares.append(share)
    )
    assert bank.sentences == ("A dog runs.", "A cat.") and shares[-1] == 1
    np.testing.assert_array_equal(bank.vectors, embedding.embed_texts(["A dog runs.", "A cat."]))
    assert bank.embedding == embedding.fingerprint()
    with pytest.raises(TextError, match="at least one"):
        CaptionBank.from_sentences([" "], embedding)
    with pytest.raises(TypeError, match="list"):
        CaptionBank.from_sentences("A dog.", embedding)
    with pytest.raises(TextError, match="1 or more"):
        bank.nearest(bank.vectors, 0)


def test_damaged_and_foreign_banks_are_refused_in_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(ModelFolderError, match="holds no caption bank"):
        CaptionBank.load(tmp_path)
    bank = random_bank(20)
    bank.save(tmp_path)
    with pytest.raises(ModelFolderError, match="another joint embedding"):
        bank.check_embedding("f" * 12)

    def damaged():
        with pytest.raises(ModelFolderError, match="damaged") as error:
            CaptionBank.load(tmp_path)
        assert "\n" not in str(error.value)

    (tmp_path / TEXT_FILE).write_bytes(lzma.compress(b"one sentence\n"))
    damaged()
    monkeypatch.setattr("modeling.caption_bank.MAX_TEXT_BYTES", 1000)
    (tmp_path / TEXT_FILE).write_bytes(lzma.compress(b"x" * 1001))
    damaged()
    (tmp_path / TEXT_FILE).write_bytes(b"no archive")
    damaged()
    os.truncate(tmp_path / VECTORS_FILE, 100)
    damaged()
