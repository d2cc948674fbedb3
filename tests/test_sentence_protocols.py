"""Each evaluation protocol on data small enough to check by hand or against a plain re-implementation."""
# ruff: noqa: E402

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install -r training/requirements.txt")

from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import KFold

from training import sentence_protocols as protocols
from training.logistic_regression import fit_margins, rotate
from training.sentence_protocols import (
    cosine_relatedness,
    cross_validated_test,
    fold_masks,
    nested_cross_validation,
    pair_features,
    paraphrase_features,
    relatedness,
    soft_labels,
)

GRID = (1.0, 16.0, 256.0)


def blobs(count: int, width: int, classes: int = 2, seed: int = 0, noise: float = 1.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    features = rng.normal(size=(classes, width))[labels] + noise * rng.normal(size=(count, width))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32), labels


def reference(c: float) -> LogisticRegression:
    return LogisticRegression(C=c, solver="liblinear", tol=1e-8, max_iter=10000)


# -- the solver -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(120, 10), (40, 90)])
def test_margins_are_those_of_liblinear(shape):
    features, labels = blobs(*shape)
    train = np.random.default_rng(1).random((shape[0], 4)) < 0.7
    strength = np.array([1.0, 4.0, 64.0, 256.0])
    margins = fit_margins(rotate(features), np.repeat(labels[:, None] == 1, 4, 1), train, strength)
    for column, c in enumerate(strength):
        kept = train[:, column]
        expected = reference(c).fit(features[kept], labels[kept]).decision_function(features)
        np.testing.assert_allclose(margins[:, column], expected, atol=0.01 * np.abs(expected).max())


def test_problems_solved_in_blocks_are_the_same(monkeypatch):
    features, labels = blobs(60, 8)
    masks, strength = np.random.default_rng(1).random((60, 7)) < 0.8, np.tile([1.0], 7)
    truth = np.repeat(labels[:, None] == 1, 7, 1)
    whole = fit_margins(rotate(features), truth, masks, strength)
    monkeypatch.setattr("training.logistic_regression.VALUES_AT_ONCE", 130)
    np.testing.assert_allclose(fit_margins(rotate(features), truth, masks, strength), whole, atol=1e-3)


def test_rotation_keeps_inner_products_and_drops_empty_directions():
    features = np.repeat(np.random.default_rng(0).normal(size=(6, 3)), 2, 1)  # rank 3, width 6
    rotated = rotate(features).numpy()
    assert rotated.shape == (6, 4)  # and the column of ones
    np.testing.assert_allclose(rotated @ rotated.T, features @ features.T + 1, atol=1e-5)


# -- classification ---------------------------------------------------------------------------------------------------
def test_folds_are_those_of_the_original():
    contiguous = fold_masks(23, 10)
    assert contiguous.sum(1).tolist() == [3, 3, 3, 2, 2, 2, 2, 2, 2, 2]
    assert (contiguous.sum(0) == 1).all() and np.flatnonzero(contiguous[1]).tolist() == [3, 4, 5]
    shuffled = fold_masks(23, 10, shuffle=True)
    assert (shuffled.sum(0) == 1).all() and (shuffled != contiguous).any()


def test_nested_cross_validation_equals_a_plain_loop():
    features, labels = blobs(90, 6, noise=2.0)
    result = nested_cross_validation(features, labels, folds=3, grid=GRID)
    scores, chosen = [], []
    for train, test in KFold(3).split(features):
        inner = []
        for c in GRID:
            folds = KFold(3).split(train)
            inner.append(
                np.mean(
                    [
                        reference(c)
                        .fit(features[train[a]], labels[train[a]])
                        .score(features[train[b]], labels[train[b]])
                        for a, b in folds
                    ]
                )
            )
        chosen.append(GRID[int(np.argmax(inner))])
        model = reference(chosen[-1]).fit(features[train], labels[train])
        scores.append(100 * model.score(features[test], labels[test]))
    assert result["c"] == chosen
    np.testing.assert_allclose(result["folds"], scores)
    assert result["accuracy"] == pytest.approx(np.mean(scores))


def test_choosing_c_never_sees_the_held_out_fold(monkeypatch):
    """Labels of a held-out fold may be anything: neither C nor the classifier of that fold changes."""
    features, labels = blobs(60, 6, noise=2.0)
    seen = []
    solve = protocols.fit_margins

    def spy(rotated, truth, train, strength):
        seen.append((train, strength))
        return solve(rotated, truth, train, strength)

    monkeypatch.setattr(protocols, "fit_margins", spy)
    before = nested_cross_validation(features, labels, folds=3, grid=GRID)
    outer = fold_masks(60, 3)
    inner_train, _ = seen[0]
    for fold, held_out in enumerate(outer):
        mine = inner_train[:, fold * 3 * len(GRID) : (fold + 1) * 3 * len(GRID)]
        assert not mine[held_out].any() and mine.any(0).all()
    np.testing.assert_array_equal(seen[1][0], ~outer.T)
    flipped = labels.copy()
    flipped[outer[0]] = 1 - flipped[outer[0]]
    after = nested_cross_validation(features, flipped, folds=3, grid=GRID)
    assert after["c"][0] == before["c"][0]
    assert after["folds"][0] == pytest.approx(100 - before["folds"][0])


def test_ties_go_to_the_smallest_c():
    features, labels = blobs(60, 6, noise=0.01)
    assert nested_cross_validation(features, labels, folds=3, grid=GRID)["c"] == [1.0] * 3


def test_several_classes_are_one_against_the_rest():
    features, labels = blobs(150, 8, classes=4, noise=1.5)
    test = np.arange(150) >= 110
    result = cross_validated_test(features, labels, test, folds=3, grid=GRID)

    def decide(c, train, rows):
        fitted = [
            reference(c).fit(features[train], labels[train] == k).decision_function(features[rows]) for k in range(4)
        ]
        return np.argmax(fitted, 0)

    means = [np.mean([np.mean(decide(c, a, b) == labels[b]) for a, b in KFold(3).split(features[~test])]) for c in GRID]
    assert result["c"] == GRID[int(np.argmax(means))]
    assert result["accuracy"] == pytest.approx(100 * np.mean(decide(result["c"], ~test, test) == labels[test]))


def test_paraphrases_choose_c_by_f1_over_shuffled_folds():
    features, labels = blobs(120, 6, noise=2.5)
    test = np.arange(120) >= 90
    result = cross_validated_test(features, labels, test, shuffle=True, f1=True, folds=3, grid=GRID)
    folds = list(KFold(3, shuffle=True, random_state=1234).split(features[~test]))
    means = [
        np.mean([f1_score(labels[b], reference(c).fit(features[a], labels[a]).predict(features[b])) for a, b in folds])
        for c in GRID
    ]
    assert result["c"] == GRID[int(np.argmax(means))]
    predicted = reference(result["c"]).fit(features[~test], labels[~test]).predict(features[test])
    assert result["f1"] == pytest.approx(100 * f1_score(labels[test], predicted))
    assert result["accuracy"] == pytest.approx(100 * np.mean(predicted == labels[test]))


def test_hand_features_of_paraphrases():
    rows = paraphrase_features(
        ["He sold 3 cats .", "He sold 3 cats .", "No numbers here .", "a b"],
        ["He sold 3 dogs .", "He sold 3 or 4 cats .", "None either .", "c d e f"],
    )
    np.testing.assert_allclose(rows[0], [1, 1, 1, 4 / 5, 4 / 5, 1])
    np.testing.assert_allclose(rows[1], [0, 0, 1, 1, 5 / 7, (5 / 7 + 7 / 5) / 2])
    np.testing.assert_allclose(rows[2], [1, 0, 1, 1 / 4, 1 / 3, (4 / 3 + 3 / 4) / 2])
    np.testing.assert_allclose(rows[3], [1, 0, 1, 0, 0, (2 / 4 + 4 / 2) / 2])


# -- relatedness ------------------------------------------------------------------------------------------------------
def test_soft_labels_are_the_formula():
    labels = soft_labels(np.array([1.0, 3.3, 4.75, 5.0]), 1, 5)
    np.testing.assert_allclose(labels[0], [1, 0, 0, 0, 0])
    np.testing.assert_allclose(labels[1], [0, 0, 0.7, 0.3, 0], atol=1e-12)
    np.testing.assert_allclose(labels[2], [0, 0, 0, 0.25, 0.75])
    np.testing.assert_allclose(labels[3], [0, 0, 0, 0, 1])
    scores = np.random.default_rng(0).uniform(0, 5, 50)
    labels = soft_labels(scores, 0, 5)
    np.testing.assert_allclose(labels.sum(1), 1)
    np.testing.assert_allclose(labels @ np.arange(6), scores)


def test_adam_is_torch_s():
    import torch

    rng = np.random.default_rng(0)
    weight = torch.tensor(rng.normal(size=(3, 2)), dtype=torch.float32, requires_grad=True)
    mine, theirs = weight.detach().numpy().copy(), torch.optim.Adam([weight], 0.01)
    optimizer = protocols.Adam((3, 2), 0.01)
    for _ in range(20):
        gradient = rng.normal(size=(3, 2)).astype(np.float32)
        weight.grad = torch.from_numpy(gradient)
        theirs.step()
        mine -= optimizer.step(gradient)
    np.testing.assert_allclose(mine, weight.detach().numpy(), atol=1e-6)


def related(seed: int = 0, noise: float = 0.3):
    """Pairs whose likeness the features tell, up to some noise, in three parts."""
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(300, 12)), rng.normal(size=(300, 12))
    second += rng.uniform(0, 3, (300, 1)) * first
    cosine = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    scores = np.clip(3 + 2 * cosine + noise * rng.normal(size=300), 1, 5)
    split = np.repeat([0, 1, 2], [200, 40, 60])
    return pair_features(first, second), scores, split, first, second


def test_relatedness_predicts_the_mean_of_its_distribution(monkeypatch):
    monkeypatch.setattr(protocols, "SICK_RATE", 0.01)
    features, scores, split, *_ = related()
    result = relatedness(features, scores, split, lowest=1)
    assert result["pearson"] > 0.6 and result["spearman"] > 0.6
    assert result["mse"] < scores[split == 2].var()


def test_test_scores_never_steer_relatedness(monkeypatch):
    monkeypatch.setattr(protocols, "SICK_EPOCHS", 5)
    features, scores, split, *_ = related()
    before = relatedness(features, scores, split, lowest=1)
    shuffled = scores.copy()
    shuffled[split == 2] = np.random.default_rng(3).permutation(scores[split == 2])
    after = relatedness(features, shuffled, split, lowest=1)
    assert (after["rounds"], after["dev_pearson"]) == (before["rounds"], before["dev_pearson"])
    assert after["pearson"] != before["pearson"]


def test_training_stops_when_the_development_score_falls(monkeypatch):
    monkeypatch.setattr(protocols, "SICK_EPOCHS", 1)
    monkeypatch.setattr(protocols, "SICK_RATE", 0.0)  # nothing is learned, so the second round is no better
    features, scores, split, *_ = related()
    assert relatedness(features, scores, split, lowest=1)["rounds"] == 1


def test_cosine_relatedness():
    *_, first, second = related()
    cosine = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    scores = np.random.default_rng(0).uniform(0, 5, len(cosine))
    result = cosine_relatedness(first, second, scores)
    assert result["cosine_pearson"] == pytest.approx(pearsonr(cosine, scores)[0])
    assert result["cosine_spearman"] == pytest.approx(spearmanr(cosine, scores)[0])
    assert cosine_relatedness(np.zeros((3, 2)), np.ones((3, 2)), np.arange(3.0))["cosine_pearson"] == 0
