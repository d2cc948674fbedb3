"""What a sentence encoder is measured against: its untrained twin, mean word vectors, tf-idf, and the paper.

An untrained recurrent network over random word vectors already does well on these tasks (Wieting and Kiela,
arXiv:1901.10444), so a figure says little until the same figure of the same network without training stands beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling.words import split_words

from .sentence_protocols import FOLDS, GRID, cosine_relatedness, fold_masks, paraphrase_features, relatedness
from .sentence_tasks import LabelledSentences, SentencePairs
from .word_vectors import read_word_vectors, spellings

# Kiros et al., arXiv:1506.06726, and the README of github.com/ryankiros/skip-thoughts (combine-skip). Only figures that
# were read in a public source stand here; the paper's other cells are left out.
PAPER_ROWS: dict[str, dict[str, dict[str, float]]] = {
    "uni-skip (2400)": {
        "sick": {"pearson": 0.8477, "spearman": 0.7780, "mse": 0.2872},
        "mrpc": {"accuracy": 73.0, "f1": 81.9},
    },
    "bi-skip (2400)": {
        "sick": {"pearson": 0.8405, "spearman": 0.7696, "mse": 0.2995},
        "mrpc": {"accuracy": 71.2, "f1": 81.2},
    },
    "combine-skip (4800)": {
        "sick": {"pearson": 0.8584, "spearman": 0.7916, "mse": 0.2687},
        "mrpc": {"accuracy": 73.0, "f1": 82.0, "accuracy_with_features": 75.8, "f1_with_features": 83.0},
        "mr": {"accuracy": 76.5},
        "cr": {"accuracy": 80.1},
        "subj": {"accuracy": 93.6},
        "mpqa": {"accuracy": 87.1},
        "trec": {"accuracy": 92.2},
    },
}


class SentenceVectors:
    """Vectors of sentences, each computed once and kept in memory.

    Args:
        encode: Gives vectors [n, D] of a list of texts; its second argument says whether the text wants an end mark
            because its final period was taken away (SICK).
    """

    def __init__(self, encode: Callable[[list[str], bool], np.ndarray]) -> None:
        self._encode = encode
        self.rows: dict[tuple[str, bool], np.ndarray] = {}

    def add(self, sentences: Iterable[str], eos: bool = False) -> None:
        """Compute those that are not there yet, in one go, so that they can be sorted by length."""
        new = [s for s in dict.fromkeys(sentences) if (s, eos) not in self.rows]
        if new:
            self.rows.update(((s, eos), row) for s, row in zip(new, self._encode(new, eos), strict=True))

    def __call__(self, sentences: Sequence[str], eos: bool = False) -> np.ndarray:
        """float32 [len(sentences), D]."""
        self.add(sentences, eos)
        return np.stack([self.rows[s, eos] for s in sentences])


def untrained_twin(encoder: Any, seed: int) -> Any:
    """A model of the same class and configuration, with the weights that training starts from.

    Word vectors that lie in a file beside the weights (a converted original) are the trained ones all the same; a
    vocabulary expansion was fitted to the trained weights, and the twin goes without.
    """
    config = copy.deepcopy(encoder.config)
    if getattr(config, "vocabulary_expansion", False):
        config.vocabulary_expansion = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin = type(encoder)(config)
    twin.tokenizer = encoder.tokenizer
    return twin.eval()


def mean_word_vectors(encoder: Any) -> Callable[[list[str], bool], np.ndarray]:
    """Mean of the model's own word vectors over a sentence, its special tokens aside [n, E], length 1."""
    return lambda sentences, eos: _unit(encoder.mean_word_vectors(sentences))


def mean_file_vectors(path: str | Path, sentences: Iterable[str]) -> Callable[[list[str], bool], np.ndarray]:
    """Mean of the word vectors of a GloVe or word2vec file [n, d]; words that it does not hold are left out.

    Only vectors of words that `sentences` use are kept.
    """
    tokens = sorted({word for sentence in sentences for word in split_words(sentence)})
    table = read_word_vectors(path, {s for token in tokens for s in spellings(token)})
    matrix, found = table.matrix_for(tokens)
    known = {token: row for row, token in enumerate(tokens) if found[row]}

    def encode(sentences: list[str], eos: bool) -> np.ndarray:
        means = np.zeros((len(sentences), matrix.shape[1]), dtype=np.float32)
        for i, sentence in enumerate(sentences):
            rows = [known[word] for word in split_words(sentence) if word in known]
            if rows:
                means[i] = matrix[rows].mean(0)
        return _unit(means)

    return encode


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


# -- tf-idf -----------------------------------------------------------------------------------------------------------
class TfidfBaseline:
    """Logistic regression (LIBLINEAR) on tf-idf of lower-case words and pairs of words.

    Weights are counted on training rows only, anew in every outer fold. To stay within minutes, C is chosen on the
    first of the ten inner folds rather than on all. For SICK and STS-B the features are those of a vector made of the
    2,000 most frequent single words.
    """

    def _words(self, **options: Any) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        return TfidfVectorizer(tokenizer=_lower_words, token_pattern=None, lowercase=False, **options)

    def classify(self, task: LabelledSentences, folds: int = FOLDS, grid: Sequence[float] = GRID) -> dict:
        """The accuracy that `nested_cross_validation` or, with a test part, `cross_validated_test` measures."""
        from sklearn.metrics import accuracy_score

        texts, labels = np.array(task.sentences, dtype=object), task.labels
        splits = [task.test] if task.test.any() else list(fold_masks(len(labels), folds))
        scores, chosen = [], []
        for test in splits:
            vectorizer = self._words(ngram_range=(1, 2)).fit(texts[~test])
            train, held_out = vectorizer.transform(texts[~test]), vectorizer.transform(texts[test])
            c = self._choose(train, labels[~test], accuracy_score, folds, grid)
            predicted = self._fit(train, labels[~test], c).predict(held_out)
            scores.append(100 * float(accuracy_score(labels[test], predicted)))
            chosen.append(c)
        return {"accuracy": float(np.mean(scores)), "folds": scores, "c": chosen}

    def paraphrase(self, task: SentencePairs, folds: int = FOLDS, grid: Sequence[float] = GRID) -> dict:
        """The scores of MRPC, without and with the hand features."""
        from scipy import sparse
        from sklearn.metrics import accuracy_score, f1_score

        test, labels, result = task.split == 2, task.scores.astype(int), {}
        vectorizer = self._words(ngram_range=(1, 2))
        vectorizer.fit(_texts_of(task, ~test))
        first, second = vectorizer.transform(task.first), vectorizer.transform(task.second)
        plain = sparse.hstack([abs(first - second), first.multiply(second)]).tocsr()
        hand = sparse.csr_matrix(paraphrase_features(task.first, task.second))
        for suffix, features in (("", plain), ("_with_features", sparse.hstack([plain, hand]).tocsr())):
            c = self._choose(features[~test], labels[~test], f1_score, folds, grid)
            predicted = self._fit(features[~test], labels[~test], c).predict(features[test])
            result[f"accuracy{suffix}"] = 100 * float(accuracy_score(labels[test], predicted))
            result[f"f1{suffix}"] = 100 * float(f1_score(labels[test], predicted))
        return result

    def relate(self, task: SentencePairs, lowest: int) -> dict:
        """The scores of SICK (`lowest` 1) or STS-B (0)."""
        from scipy import sparse

        vectorizer = self._words(max_features=2000)
        vectorizer.fit(_texts_of(task, task.split == 0))
        first, second = vectorizer.transform(task.first), vectorizer.transform(task.second)
        features = sparse.hstack([abs(first - second), first.multiply(second)]).toarray()
        test = task.split == 2
        cosine = cosine_relatedness(first[test].toarray(), second[test].toarray(), task.scores[test])
        return relatedness(features, task.scores, task.split, lowest) | cosine

    def _fit(self, features: Any, labels: np.ndarray, c: float) -> Any:
        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsRestClassifier

        classifier = LogisticRegression(C=c, solver="liblinear")
        return (classifier if labels.max() == 1 else OneVsRestClassifier(classifier)).fit(features, labels)

    def _choose(self, features: Any, labels: np.ndarray, score: Any, folds: int, grid: Sequence[float]) -> float:
        held_out = fold_masks(len(labels), folds)[0]
        scores = [
            score(labels[held_out], self._fit(features[~held_out], labels[~held_out], c).predict(features[held_out]))
            for c in grid
        ]
        return grid[int(np.argmax(scores))]


def _texts_of(task: SentencePairs, rows: np.ndarray) -> list[str]:
    return [side[i] for side in (task.first, task.second) for i in np.flatnonzero(rows)]


def _lower_words(text: str) -> list[str]:
    return split_words(text, lowercase=True)
