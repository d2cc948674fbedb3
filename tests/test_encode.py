"""Sentences to vectors and back: `encode`, `nearest`, `nearest_words`, and their benchmark."""

import warnings

import numpy as np
import pytest
import torch

from modeling.configuration_skip_thoughts import ENCODER_TYPES
from modeling.errors import DataError, TextError
from modeling.neighbours import nearest_rows, row_blocks
from modeling.packed_recurrence import last_states, token_batches
from tests.tiny import tiny_encoder, tiny_tokenizer
from training.benchmark_encoder import benchmark, made_up_sentences, read_sentences
from training.data_text import TextSource

SENTENCES = [
    "the dog runs on the beach.",
    "she said",
    "",
    "the old lady of the house was in it, he said.",
    "nothing that this vocabulary knows",
    "a",
]


@pytest.fixture
def encoder():
    model = tiny_encoder(encoder_type="bi")
    model.tokenizer = tiny_tokenizer()
    return model


def test_last_states_are_those_of_each_sentence_alone():
    torch.manual_seed(0)
    gru, words = torch.nn.GRU(6, 5, batch_first=True), torch.randn(9, 6)
    lengths = np.array([7, 7, 4, 1])
    index = torch.randint(9, (4, 7))
    with torch.no_grad():
        states = last_states(gru, words, index, lengths)
        for row, length in enumerate(lengths):
            alone = gru(words[index[row : row + 1, :length]])[1][0, 0]
            torch.testing.assert_close(states[row], alone)


def test_batches_hold_every_sentence_once_within_both_limits():
    lengths = np.random.default_rng(0).integers(2, 40, 300)
    batches = list(token_batches(lengths, batch_tokens=100, batch_size=16))
    assert sorted(np.concatenate(batches)) == list(range(300))
    assert all(len(b) <= 16 and len(b) * lengths[b].max() <= 100 for b in batches)
    assert (np.diff(lengths[np.concatenate(batches)]) <= 0).all()
    assert [b.tolist() for b in token_batches(np.array([500, 3]), 100, 16)] == [[0], [1]]


@pytest.mark.parametrize("kind", ENCODER_TYPES)
def test_encode_is_the_forward_pass_of_each_sentence(kind):
    encoder, tokenizer = tiny_encoder(encoder_type=kind), tiny_tokenizer()
    vectors = encoder.encode(SENTENCES, tokenizer, normalize=False)
    for sentence, vector in zip(SENTENCES, vectors, strict=True):
        with torch.no_grad():
            thought = encoder(tokenizer(sentence, return_tensors="pt").input_ids).thought[0]
        np.testing.assert_allclose(vector, thought.numpy(), atol=1e-6)


def test_a_long_sentence_is_cut_before_its_end_mark(encoder):
    encoder.config.max_tokens = 6
    long, cut = encoder.encode(["dog cat beach runs sleeps red", "dog cat beach runs"], batch_tokens=8)
    np.testing.assert_allclose(long, cut, atol=1e-6)


def test_encode_is_silent_but_for_a_bar_that_is_asked_for(encoder, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode([*SENTENCES, "dog " * 500])
    assert capfd.readouterr() == ("", "")
    encoder.encode(SENTENCES, progress=True)
    assert "6/6" in capfd.readouterr().err


def test_half_precision_is_asked_for_or_comes_from_autocast_and_from_the_model(encoder):
    exact, half = encoder.encode(SENTENCES), encoder.encode(SENTENCES, dtype=torch.bfloat16)
    assert half.dtype == np.float32 and not np.array_equal(exact, half)
    assert (exact * half).sum(1).min() > 0.999
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(encoder.encode(SENTENCES), half)
    assert encoder.dtype == torch.float32
    assert (encoder.encode(SENTENCES, dtype=torch.float16) * exact).sum(1).min() > 0.9999
    assert (encoder.half().encode(SENTENCES) * exact).sum(1).min() > 0.9999


def test_nearest_sentences_are_those_of_largest_cosine(encoder, tmp_path):
    queries = ["the dog sleeps.", "he said a cat"]
    found = encoder.nearest(queries, SENTENCES, k=3, batch_size=2)
    cosines = encoder.encode(queries) @ encoder.encode(SENTENCES).T
    for neighbours, row in zip(found, cosines, strict=True):
        assert [n.index for n in neighbours] == np.argsort(-row)[:3].tolist()
        assert [n.text for n in neighbours] == [SENTENCES[n.index] for n in neighbours]
        np.testing.assert_allclose([n.similarity for n in neighbours], np.sort(row)[::-1][:3], atol=1e-6)
    np.save(tmp_path / "vectors.npy", encoder.encode(SENTENCES, normalize=False))
    kept = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    again = encoder.nearest(queries, SENTENCES, k=3, vectors=kept)
    assert [[n.index for n in row] for row in again] == [[n.index for n in row] for row in found]
    assert len(encoder.nearest(queries, SENTENCES, k=100)[0]) == len(SENTENCES)


def test_nearest_says_what_is_wrong(encoder):
    with pytest.raises(TypeError, match="list"):
        encoder.nearest("a dog", SENTENCES)
    with pytest.raises(TextError, match="1 or more, not 0"):
        encoder.nearest(["a dog"], SENTENCES, k=0)
    with pytest.raises(TextError, match="at least one sentence"):
        encoder.nearest(["a dog"], [])
    with pytest.raises(TextError, match=r"6 sentences of this encoder give \(6, 24\)"):
        encoder.nearest(["a dog"], SENTENCES, vectors=np.zeros((5, 24)))


def test_nearest_rows_do_not_depend_on_the_blocks():
    rng = np.random.default_rng(0)
    table, queries = rng.normal(size=(50, 4)), rng.normal(size=(3, 4))
    rows, cosines = nearest_rows(queries, [table], 7)
    for size in (1, 7, 16):
        again = nearest_rows(queries, row_blocks(table, size), 7)
        np.testing.assert_array_equal(rows, again[0])
        np.testing.assert_allclose(cosines, again[1], atol=1e-6)


def test_nearest_words_are_words_and_never_the_word_itself(encoder):
    found = encoder.nearest_words(["dog", "Night"], k=4)
    with torch.no_grad():
        table = encoder.words.embed(torch.arange(encoder.config.vocab_size))
    names = encoder.tokenizer.convert_ids_to_tokens(range(encoder.config.vocab_size))
    for word, neighbours in zip(("dog", "night"), found, strict=True):
        cosines = torch.cosine_similarity(table[names.index(word)], table[4:], dim=-1)
        expected = [names[4 + i] for i in cosines.argsort(descending=True).tolist() if names[4 + i] != word]
        assert [n.text for n in neighbours] == expected[:4]
    assert len(encoder.nearest_words(["dog"], k=10**6)[0]) == encoder.config.vocab_size - 5
    with pytest.raises(TextError, match="'submarine' is not one word"):
        encoder.nearest_words(["submarine"])
    with pytest.raises(TextError, match="'the dog' is not one word"):
        encoder.nearest_words(["the dog"])
    with pytest.raises(TextError, match="1 or more"):
        encoder.nearest_words(["dog"], k=0)


def test_the_benchmark_compares_the_same_vectors(encoder, tmp_path):
    words = [t for t in encoder.tokenizer.get_vocab() if t not in encoder.tokenizer.all_special_tokens]
    sentences = made_up_sentences(words, 200)
    assert len(sentences) == 200 and 9 < np.mean([len(s.split()) for s in sentences]) < 13
    figures = benchmark(encoder, sentences, 150, {"embedding_size": 8, "hidden_size": 12})
    assert figures["paper_largest_difference"] < 1e-5
    assert 0.999 < figures["model_bfloat16"]["smallest_cosine"] < 1.001
    assert figures["paper_sentences"] == 150 and figures["model"]["sentences_per_s"] > 0
    (tmp_path / "a.txt").write_text("It rained. He left. She stayed.")
    assert read_sentences(TextSource(str(tmp_path)), 2) == ["It rained.", "He left."]
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match="with sentences in it"):
        read_sentences(TextSource(str(tmp_path)), 2)
