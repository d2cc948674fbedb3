"""Word vectors in the captioner: they land in the right rows, at the right size, and stay when frozen."""

import numpy as np
import pytest
import torch

from modeling.tokenization import build_bpe_tokenizer, build_word_tokenizer
from tests.captioners import make_model
from training.word_vectors import start_from_word_vectors, words_of

TEXTS = ["a dog runs", "a cat runs", "the dog and a cat", "a dog in paris", "dogs sleep", "a the a the a"]
KNOWN = ["a", "dog", "Paris", "sleep", "in", "and", "dogs"]


@pytest.fixture
def path(tmp_path):
    vectors = 9 * np.random.default_rng(0).normal(size=(len(KNOWN), 12))
    lines = [f"{word} {' '.join(map(str, row))}" for word, row in zip(KNOWN, vectors, strict=True)]
    (tmp_path / "glove.txt").write_text("\n".join([*lines, "</s> " + "1 " * 12]) + "\n")
    return tmp_path / "glove.txt"


def gram(rows):
    """Cosines of all pairs, which every orthonormal map and every scale leaves alone."""
    rows = torch.nn.functional.normalize(rows.double(), dim=1)
    return rows @ rows.T


def file_rows(path, words):
    table = {line.split(" ")[0]: [float(v) for v in line.split(" ")[1:13]] for line in path.read_text().splitlines()}
    return torch.tensor([table[word] for word in words], dtype=torch.float64)


@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": False}, {"embed_dim": 20}, {"freeze_embeddings": True}]
)
def test_known_words_get_their_vectors_and_the_others_keep_theirs(path, changes):
    tokenizer = build_word_tokenizer(TEXTS)
    model = make_model(**{"vocab_size": len(tokenizer), **changes})
    with torch.no_grad():
        model.embedding.weight[0] = 0  # padding, which is not counted where sizes are compared
    before = model.embedding.weight.detach().clone()
    assert start_from_word_vectors(model, tokenizer, path) == 7
    after = model.embedding.weight.detach()
    known = tokenizer.convert_tokens_to_ids([word.lower() for word in KNOWN])
    assert 3 not in known
    torch.testing.assert_close(gram(after[known]), gram(file_rows(path, KNOWN)))
    torch.testing.assert_close(after[known].square().mean().sqrt(), before[1:].square().mean().sqrt())
    others = [i for i in range(len(tokenizer)) if i not in known]
    assert torch.equal(after[others], before[others])
    if not changes:
        torch.testing.assert_close(after[known] / after[known].norm(), (m := file_rows(path, KNOWN).float()) / m.norm())


def test_narrower_vectors_keep_what_they_can(path):
    tokenizer = build_word_tokenizer(TEXTS)
    model = make_model(vocab_size=len(tokenizer), output_bottleneck=8)
    start_from_word_vectors(model, tokenizer, path)
    known = tokenizer.convert_tokens_to_ids([word.lower() for word in KNOWN])
    found, given = gram(model.embedding.weight.detach()[known]), gram(file_rows(path, KNOWN))
    torch.testing.assert_close(found, given)  # seven vectors fit into eight dimensions


def test_adaptive_words_of_both_tables(path):
    tokenizer = build_word_tokenizer(TEXTS)
    model = make_model(vocab_size=len(tokenizer), adaptive_cutoff=7)
    before = model.embed(torch.arange(len(tokenizer))).detach()
    assert start_from_word_vectors(model, tokenizer, path) == 7
    after = model.embed(torch.arange(len(tokenizer))).detach()
    frequent = [w for w in KNOWN if tokenizer.convert_tokens_to_ids(w.lower()) < 7]
    rare = [w for w in KNOWN if w not in frequent]
    assert len(frequent) > 1 and len(rare) > 2
    ids = [tokenizer.convert_tokens_to_ids(w.lower()) for w in frequent]
    torch.testing.assert_close(gram(after[ids]), gram(file_rows(path, frequent)))
    scale = after[ids].norm() / file_rows(path, frequent).norm()
    ids = [tokenizer.convert_tokens_to_ids(w.lower()) for w in rare]
    left, values, right = np.linalg.svd(file_rows(path, rare).numpy() * float(scale), full_matrices=False)
    best = torch.from_numpy((left[:, :3] * values[:3]) @ right[:3]).float()  # the tail is 12 / 4 wide
    torch.testing.assert_close(after[ids], best)
    assert torch.equal(after[1:4], before[1:4])


def test_frozen_words_do_not_move_in_training(path):
    tokenizer = build_word_tokenizer(TEXTS)
    for changes in ({}, {"adaptive_cutoff": 7}):
        model = make_model(vocab_size=len(tokenizer), freeze_embeddings=True, **changes).train()
        start_from_word_vectors(model, tokenizer, path)
        before = model.embed(torch.arange(len(tokenizer))).detach()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        for _ in range(3):
            labels = torch.randint(4, len(tokenizer), (2, 5))
            model(region_features=torch.randn(2, 4, 24), labels=labels).loss.backward()
            optimizer.step()
        assert torch.equal(model.embed(torch.arange(len(tokenizer))), before)


def test_only_whole_words_are_looked_up_among_pieces(path):
    tokenizer = build_bpe_tokenizer(TEXTS * 3, vocab_size=45)
    words = words_of(tokenizer)
    assert words[:4] == [""] * 4 and "dog" in words and "a" in words
    inside = [i for i, token in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))) if token == "a"]
    assert [words[i] for i in inside] == [""]
    model = make_model(vocab_size=len(tokenizer))
    assert start_from_word_vectors(model, tokenizer, path) == len(set(words) & {word.lower() for word in KNOWN})
