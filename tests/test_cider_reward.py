"""The CIDEr-D reward against the reference implementation."""

import random

import numpy as np
import pytest

from modeling.errors import DataError
from training.cider_reward import END, CiderReward

WORDS = "a the dog cat man woman red blue runs sleeps on with grass beach ball jumps".split()


def corpus(seed, photographs=12):
    rng = random.Random(seed)

    def caption(words):
        return [rng.choice(words) for _ in range(rng.randint(1, 14))]

    references = [[caption(WORDS) for _ in range(rng.randint(1, 6))] for _ in range(photographs)]
    written = [caption([*WORDS, "unseen", "other"]) for _ in range(photographs)]
    written[0] = references[0][0]  # a perfect one
    written[1] = [words for words in references[1][0] for _ in range(2)]  # counts above the reference's
    return references, written


def reference_scores(references, written):
    module = pytest.importorskip("pycocoevalcap.cider.cider", reason="the reward is compared with pycocoevalcap")
    truth = {i: [" ".join(words) for words in group] for i, group in enumerate(references)}
    return module.Cider().compute_score(truth, {i: [" ".join(words)] for i, words in enumerate(written)})[1]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("end", [[], [END]])
def test_reward_is_the_reference_implementation(seed, end):
    references, written = corpus(seed)
    references = [[words + end for words in group] for group in references]
    written = [words + end for words in written]
    found = CiderReward(references)(range(len(written)), written)
    np.testing.assert_allclose(found, reference_scores(references, written), atol=1e-9)
    assert found.max() > 1


def test_several_captions_of_a_photograph_and_any_order_give_the_same_scores():
    references, written = corpus(1)
    reward = CiderReward(references)
    images = [3, 3, 0, 5, 3, 0]
    captions = [written[i] for i in range(6)]
    singles = [reward([image], [words])[0] for image, words in zip(images, captions, strict=True)]
    assert reward(images, captions).tolist() == singles


def test_a_caption_that_does_not_end_is_worth_less():
    references = [["a dog runs with a ball".split() + [END]], ["two cats sleep on a bed".split() + [END]]]
    reward = CiderReward(references)
    whole, cut, dangling = reward(
        [0] * 3, [references[0][0], references[0][0][:-1], "a dog runs with a".split() + [END]]
    )
    assert whole == pytest.approx(10) and cut < whole and dangling < cut


def test_nothing_written_is_worth_nothing_and_unusable_references_are_refused():
    reward = CiderReward([[["a", "dog"]], [["a", "cat"]]])
    assert reward([0], [[]]).tolist() == [0.0]
    with pytest.raises(DataError, match="at least two photographs"):
        CiderReward([[["a", "dog"]]])
    with pytest.raises(DataError, match="each with a caption"):
        CiderReward([[["a", "dog"]], []])
