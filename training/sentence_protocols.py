"""How each task is scored: the protocols of the skip-thoughts paper (github.com/ryankiros/skip-thoughts, `eval_*.py`).

- MR, CR, SUBJ, MPQA: ten folds; in each, C of a logistic regression is chosen by ten folds of the other nine tenths.
- TREC: C by ten folds of the training part; accuracy on the test part, one classifier against the rest per class.
- MRPC: features |u - v| and u * v, with and without six hand features; C by ten shuffled folds on F1.
- SICK, STS-B: a distribution over five (six) degrees is predicted from the same features, trained towards the soft
  labels of Tai et al. (arXiv:1503.00075), until Pearson's r on the development part falls; the score is its mean.

C is one of 1, 2, 4 ... 256 and ties go to the smallest, as there.

scikit-learn (and scipy, which it brings) is imported where it is used: it is optional (training/requirements.txt).

Shapes: N rows, D features, P problems, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modeling.treebank import treebank_words

from .logistic_regression import fit_margins, rotate

GRID = tuple(2.0**power for power in range(9))
FOLDS = 10
KFOLD_SEED = 1234
SICK_BATCH, SICK_EPOCHS, SICK_RATE, SICK_ROUNDS = 128, 100, 1e-3, 100


def fold_masks(count: int, folds: int, shuffle: bool = False) -> np.ndarray:
    """True where a row is held out [folds, count]: contiguous folds, or shuffled ones."""
    from sklearn.model_selection import KFold

    splitter = KFold(folds, shuffle=shuffle, random_state=KFOLD_SEED if shuffle else None)
    masks = np.zeros((folds, count), dtype=bool)
    for mask, (_, held_out) in zip(masks, splitter.split(np.empty(count)), strict=True):
        mask[held_out] = True
    return masks


def pair_features(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[N, D] each -> [|u - v| ; u * v], [N, 2 D]."""
    return np.concatenate([np.abs(first - second), first * second], 1)


# -- classification ---------------------------------------------------------------------------------------------------
def nested_cross_validation(
    features: np.ndarray, labels: np.ndarray, folds: int = FOLDS, grid: Sequence[float] = GRID
) -> dict:
    """Accuracy of binary classification; C is chosen within each training part, which the held-out fold never enters.

    Returns:
        `accuracy` (mean over folds), `folds` (each), `c` (chosen in each); accuracies in percent.
    """
    from sklearn.metrics import accuracy_score

    rotated, truth = rotate(features), labels.astype(bool)
    outer = fold_masks(len(truth), folds)  # held out [F, N]
    inner = np.zeros((folds, folds, len(truth)), dtype=bool)
    for mask, kept in zip(inner, ~outer, strict=True):
        mask[:, kept] = fold_masks(kept.sum(), folds)
    validate = inner.reshape(folds * folds, -1)  # [F F, N]
    train = ~np.repeat(outer, folds, 0) & ~validate
    strength = np.tile(grid, folds * folds)
    columns = np.repeat(train, len(grid), 0).T  # [N, F F G]
    margins = fit_margins(rotated, np.broadcast_to(truth[:, None], columns.shape), columns, strength)
    right = (margins > 0) == truth[:, None]
    scored = np.repeat(validate, len(grid), 0).T
    accuracy = (right & scored).sum(0) / scored.sum(0)  # [F F G]
    best = np.array(grid)[accuracy.reshape(folds, folds, -1).mean(1).argmax(1)]  # [F]
    margins = fit_margins(rotated, np.repeat(truth[:, None], folds, 1), ~outer.T, best)
    scores = [100 * accuracy_score(truth[mask], margins[mask, i] > 0) for i, mask in enumerate(outer)]
    return {"accuracy": float(np.mean(scores)), "folds": scores, "c": best.tolist()}


def _predict(margins: np.ndarray, classes: int) -> np.ndarray:
    """Margins [N, ..., K] of one-against-rest classifiers (K = 1 for two classes) -> class numbers [N, ...]."""
    return (margins[..., 0] > 0).astype(int) if classes == 2 else margins.argmax(-1)


def cross_validated_test(
    features: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray,
    shuffle: bool = False,
    f1: bool = False,
    folds: int = FOLDS,
    grid: Sequence[float] = GRID,
) -> dict:
    """C by cross-validation over the training rows, then one fit on all of them, scored on the test rows.

    Args:
        features, labels, test: [N, D], class numbers [N], True for test rows [N].
        shuffle: Folds are drawn rather than contiguous.
        f1: C is chosen by F1 of class 1 (and F1 is reported too) instead of by accuracy.

    Returns:
        `accuracy` (and `f1`) on the test rows in percent, and `c`.
    """
    from sklearn.metrics import accuracy_score, f1_score

    rotated, classes = rotate(features), int(labels.max()) + 1
    heads = 1 if classes == 2 else classes
    positive = labels[:, None] == np.array([1] if heads == 1 else np.arange(classes))  # [N, K]
    held_out = np.zeros((folds, len(labels)), dtype=bool)
    held_out[:, ~test] = fold_masks((~test).sum(), folds, shuffle)
    train = np.repeat(~held_out & ~test, len(grid) * heads, 0).T  # [N, F G K]
    strength = np.tile(np.repeat(grid, heads), folds)
    margins = fit_margins(rotated, np.tile(positive, folds * len(grid)), train, strength)
    predicted = _predict(margins.reshape(len(labels), folds, len(grid), heads), classes)  # [N, F, G]
    score = f1_score if f1 else accuracy_score
    table = [[score(labels[m], predicted[m, i, j]) for j in range(len(grid))] for i, m in enumerate(held_out)]
    c = grid[int(np.mean(table, 0).argmax())]
    margins = fit_margins(rotated, positive, np.repeat(~test[:, None], heads, 1), np.full(heads, c))
    final = _predict(margins, classes)[test]
    result = {"accuracy": 100 * float(accuracy_score(labels[test], final)), "c": c}
    return result | ({"f1": 100 * float(f1_score(labels[test], final))} if f1 else {})


def paraphrase_features(first: Sequence[str], second: Sequence[str]) -> np.ndarray:
    """Six features of a pair (Socher et al. 2011): numbers equal, equal and present, one set of numbers within the
    other, shares of common words in each sentence, and how alike the lengths are. [N, 6]."""
    rows = []
    for a, b in zip(map(treebank_words, first), map(treebank_words, second), strict=True):
        words, numbers = (set(a), set(b)), ({w for w in a if _is_number(w)}, {w for w in b if _is_number(w)})
        same = numbers[0] == numbers[1]
        within = numbers[0] <= numbers[1] or numbers[1] <= numbers[0]
        common = len(words[0] & words[1])
        lengths = (len(a) / max(len(b), 1) + len(b) / max(len(a), 1)) / 2
        shares = (common / max(len(words[0]), 1), common / max(len(words[1]), 1))
        rows.append((same, same and bool(numbers[0]), within, *shares, lengths))
    return np.array(rows, dtype=np.float64)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


# -- relatedness ------------------------------------------------------------------------------------------------------
def soft_labels(scores: np.ndarray, lowest: int, highest: int) -> np.ndarray:
    """Distributions over the degrees lowest..highest whose mean is the score (Tai et al., section 4.2) [N, C].

    For y between two degrees k and k + 1:  p_k = k + 1 - y,  p_(k+1) = y - k, all others 0.
    """
    below = np.clip(np.floor(scores), lowest, highest).astype(int)
    share = scores - below
    labels = np.zeros((len(scores), highest - lowest + 1))
    rows = np.arange(len(scores))
    labels[rows, below - lowest] = 1 - share
    labels[rows, np.minimum(below + 1, highest) - lowest] += share
    return labels


def relatedness(features: np.ndarray, scores: np.ndarray, split: np.ndarray, lowest: int, seed: int = 0) -> dict:
    """Softmax regression towards soft labels, Adam, batches of 128 in one fixed order; every 100 epochs Pearson's r on
    the development rows decides whether to go on.

    Args:
        features, scores, split: [N, 2 D], [N], and 0 training, 1 development, 2 test [N].
        lowest: The lowest degree, 1 (SICK) or 0 (STS-B); the highest is 5.
        seed: Of the first weights.

    Returns:
        `pearson`, `spearman`, `mse` on the test rows, `dev_pearson`, `rounds` of 100 epochs until the best.
    """
    from scipy.special import softmax
    from scipy.stats import pearsonr, spearmanr

    x = np.concatenate([features, np.ones((len(features), 1))], 1).astype(np.float32)  # [N, 2 D + 1]
    order = np.random.RandomState(KFOLD_SEED).permutation(np.flatnonzero(split == 0))
    inputs, targets = x[order], soft_labels(scores[order], lowest, 5).astype(np.float32)
    bound = (6 / (features.shape[1] + targets.shape[1])) ** 0.5  # Glorot and Bengio, as Keras
    weight = np.random.default_rng(seed).uniform(-bound, bound, (x.shape[1], targets.shape[1])).astype(np.float32)
    weight[-1] = 0  # the bias
    optimizer = Adam(weight.shape, SICK_RATE)
    development, best = split == 1, (-1.0, np.zeros(len(scores)), 0)
    for number in range(1, SICK_ROUNDS + 1):
        for _ in range(SICK_EPOCHS):
            for start in range(0, len(inputs), SICK_BATCH):
                rows, wanted = inputs[start : start + SICK_BATCH], targets[start : start + SICK_BATCH]
                weight -= optimizer.step(rows.T @ (softmax(rows @ weight, 1) - wanted) / len(rows))
        expected = softmax(x.astype(np.float64) @ weight, 1) @ np.arange(lowest, 6)  # [N]
        r = _correlation(pearsonr, expected[development], scores[development])
        if r <= best[0]:
            break
        best = (r, expected, number)
    test, expected = split == 2, best[1]
    return {
        "pearson": _correlation(pearsonr, expected[test], scores[test]),
        "spearman": _correlation(spearmanr, expected[test], scores[test]),
        "mse": float(np.mean((expected[test] - scores[test]) ** 2)),
        "dev_pearson": best[0],
        "rounds": best[2],
    }


class Adam:
    """Kingma and Ba, arXiv:1412.6980. In NumPy, for the steps of so small a model take torch ten times as long."""

    def __init__(self, shape: tuple[int, ...], rate: float, decay: tuple[float, float] = (0.9, 0.999)) -> None:
        self.rate, self.decay, self.steps = rate, decay, 0
        self.mean, self.square = np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    def step(self, gradient: np.ndarray) -> np.ndarray:
        """What to take from the weights."""
        self.steps += 1
        first, second = self.decay
        self.mean += (1 - first) * (gradient - self.mean)
        self.square += (1 - second) * (gradient * gradient - self.square)
        rate = self.rate / (1 - first**self.steps)
        return rate * self.mean / (np.sqrt(self.square / (1 - second**self.steps)) + 1e-8)


def cosine_relatedness(first: np.ndarray, second: np.ndarray, scores: np.ndarray) -> dict:
    """Correlation of scores with the cosine of the two vectors; nothing is trained."""
    from scipy.stats import pearsonr, spearmanr

    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosine = (first * second).sum(1) / np.maximum(lengths, 1e-12)
    return {
        "cosine_pearson": _correlation(pearsonr, cosine, scores),
        "cosine_spearman": _correlation(spearmanr, cosine, scores),
    }


def _correlation(measure, predicted: np.ndarray, scores: np.ndarray) -> float:
    """Pearson's or Spearman's coefficient; 0 where the prediction is a constant."""
    return 0.0 if np.ptp(predicted) == 0 else float(measure(predicted, scores)[0])
