"""The trigrams that judge fluency: what a word is to them, probabilities that sum to one, order that they hear."""

import math

import numpy as np
import pytest

from modeling import DataError
from training.ngram_judge import KneserNey, NgramJudge

STORIES = [
    f"{name} went to the {place}. {who} saw a {thing} and was {mood}!"
    for name, who in (("Tom", "He"), ("Anna", "She"), ("[MALE]", "he"))
    for place in ("park", "sea", "old house")
    for thing in ("dog", "boat", "red kite")
    for mood in ("glad", "sad", "afraid")
]


@pytest.fixture(scope="module")
def judge():
    return NgramJudge([*STORIES, "Once in 1999 a zebra did n't come ."])


def test_kneser_ney_by_hand():
    model = KneserNey([["a", "b"], ["a", "b"], ["b", "a"]])
    assert model.vocabulary == {"a", "b", "</s>", "<unk>"}
    # <s><s>a 2, <s>ab 2, ab</s> 2, <s><s>b 1, <s>ba 1, ba</s> 1: three come once, three twice
    # what has how many words before it, at the beginning its count: <s>a 2, <s>b 1, ab 1, ba 1, b</s> 1, a</s> 1
    # a 2, b 2, </s> 2: none once
    three, two, one = 3 / (3 + 2 * 3), 5 / (5 + 2 * 1), 0.5
    assert [level[3] for level in model.levels] == pytest.approx([three, two, one])
    unigram = (2 - one) / 6 + one * 3 / 6 / 4
    bigram = (2 - two) / 3 + two * 2 / 3 * unigram
    assert model.probability(("<s>", "<s>", "a")) == pytest.approx((2 - three) / 3 + three * 2 / 3 * bigram)
    assert model.probability(("x", "<s>", "a")) == pytest.approx(bigram)
    assert model.probability(("x", "y", "a")) == pytest.approx(unigram)
    assert model.probability(("x", "y", "<unk>")) == pytest.approx(one * 3 / 6 / 4)


def test_words_names_and_digits(judge):
    words = judge.words("Tom and [female] didn't see 12 “Boats”, did n't they? He's glad!")
    assert " ".join(words) == "<name> and <name> didn't see <digits> <name> didn't they . he 's glad ."
    assert judge.words("I went to Zanzibar. Dog.") == ["i", "went", "to", "<name>", ".", "dog", "."]
    assert judge.words("") == []


def test_probabilities_sum_to_one(judge):
    for context in (("<s>", "<s>"), ("went", "to"), ("the", "old"), ("never", "seen"), ("<unk>", "the")):
        every = [judge.model.probability((*context, word)) for word in judge.model.vocabulary]
        assert sum(every) == pytest.approx(1) and min(every) > 0


def test_order_is_heard_and_unknown_words_are_counted(judge):
    texts = ["Tom went to the sea. He saw a dog and was sad.", "Sea the to went Tom. Sad was and dog a saw he."]
    losses, counts, unknown = judge.losses([*texts, "", "A zebra went to the sea."])
    assert counts.tolist() == [15, 15, 1, 8] and unknown.tolist() == [0, 0, 0, 1]  # the end of a text counts
    assert losses[0] < losses[1] / 3 and np.isfinite(losses).all()
    alone, _, _ = judge.losses(texts[:1])
    assert alone[0] == losses[0]


def test_a_loss_is_of_all_words_and_the_end(judge):
    trigrams = [("<s>", "<s>", "<name>"), ("<s>", "<name>", "went"), ("<name>", "went", "."), ("went", ".", "</s>")]
    expected = -sum(math.log(judge.model.probability(trigram)) for trigram in trigrams)
    assert judge.losses(["Tom went."])[0][0] == pytest.approx(expected)


def test_held_out_stories_are_not_learned(judge):
    assert judge.about["stories"] == 82 - 1 and judge.about["vocabulary"] == len(judge.model.vocabulary)
    assert 1 < judge.about["held_out"] < 20 and judge.about["held_out_unknown"] == 0
    strange = [*STORIES[:49], "Quite other words stand here, which nobody else would use.", *STORIES[49:]]
    other = NgramJudge(strange)  # the fiftieth
    assert "strange" not in other.model.vocabulary and other.about["held_out_unknown"] > 0.5


def test_what_is_judged_as_peoples_is_not_learned(judge):
    quoted = STORIES[0].replace("Tom", "Bill")  # names are all one
    assert NgramJudge(STORIES, [quoted]).about["stories"] < judge.about["stories"] - 1
    assert NgramJudge(STORIES, ["Tom went to the sea."]).about["stories"] == 81 - 1  # fewer than eight words


def test_too_few_stories_are_one_sentence():
    with pytest.raises(DataError, match=r"from 50 stories at least; 3 were given\.$"):
        NgramJudge(STORIES[:3])
