"""Each of the five scores says what it should, and the total is their weighted sum."""

import dataclasses

import numpy as np
import pytest

from modeling import StoryOptions
from modeling.reranking import SMALL, Proposal, Ranking, Wish, weighted_sums
from tests.tiny import tiny_encoder, tiny_styles, tiny_tokenizer

SCORES = ("picture", "words", "style", "likelihood", "repetition")


@pytest.fixture(scope="module")
def encoder():
    model = tiny_encoder()
    model.tokenizer = tiny_tokenizer()
    return model


@pytest.fixture(scope="module")
def styles(encoder):
    return np.stack([style.vector for style in tiny_styles(encoder)])  # caption, romance, horror


@pytest.fixture
def rank(encoder, styles):
    def make(style=1, read=None, options=None, **wish):
        wish = Wish(np.ones(24, np.float32), None if style is None else styles[style], **wish)
        return Ranking(encoder, styles, wish, options or StoryOptions(), read)

    return make


def propose(*texts, log_prob=-2.0):
    return [Proposal(text, log_prob) for text in texts]


def scores(ranking, *texts, **kwargs):
    return [candidate.scores for candidate in ranking.score(propose(*texts, **kwargs))]


def read(sentences):
    """A joint space of made-up vectors: what is said of dogs lies one way, of houses the other."""
    return np.array([[float("dog" in s), float("house" in s)] for s in sentences]) + [0.1, 0.1]


def test_each_candidate_has_all_five_scores_in_the_order_given(rank):
    texts = ["A cat.", "A dog sleeps. It is old.", "No"]
    candidates = rank(read=read, view=np.array([1.0, 0.0])).score(propose(*texts))
    assert [c.text for c in candidates] == texts
    assert all(tuple(c.scores) == SCORES for c in candidates)


def test_picture_is_the_cosine_of_photo_and_passage(rank):
    ranking = rank(read=read, view=np.array([1.0, 0.0]))
    dog, house = (row["picture"] for row in scores(ranking, "A dog sleeps.", "The red house."))
    assert dog == pytest.approx(1.1 / np.hypot(1.1, 0.1)) and house == pytest.approx(0.1 / np.hypot(1.1, 0.1))
    ranking.keep(1, "The red house.")  # from now on of both sentences together
    (both,) = scores(ranking, "A dog sleeps.")
    assert both["picture"] == pytest.approx(1.2 / np.hypot(1.2, 1.2))
    whole = scores(rank(read=read, view=np.array([1.0, 0.0])), "The red house. A dog sleeps.")[0]
    assert both["picture"] == pytest.approx(whole["picture"])


def test_without_a_photo_or_a_weight_for_it_nothing_is_read(rank):
    def unread(sentences):
        raise AssertionError("read")

    view = np.array([1.0, 0.0])
    assert scores(rank(read=unread), "A dog.")[0]["picture"] == 0
    assert scores(rank(view=view), "A dog.")[0]["picture"] == 0
    assert scores(rank(read=unread, view=view, options=StoryOptions(weight_picture=0)), "A dog.")[0]["picture"] == 0


def test_words_count_in_any_form_and_over_the_whole_passage(rank):
    ranking = rank(content=("dogs", "running", "beach", "house"))
    assert [row["words"] for row in scores(ranking, "A dog ran.", "The beach.", "A cat.")] == [0.5, 0.25, 0.0]
    ranking.keep(0, "A dog ran.")
    assert [row["words"] for row in scores(ranking, "A dog.", "The beach.")] == [0.5, 0.75]
    assert scores(rank(), "A dog.")[0]["words"] == 0


def test_style_is_a_share_among_all_styles(rank, encoder, styles):
    text = ["A dog sleeps on the beach."]
    shares = [scores(rank(style=i), *text)[0]["style"] for i in range(3)]
    assert sum(shares) == pytest.approx(1, abs=1e-6)
    middle = styles.mean(0)
    towards = [np.dot(encoder.encode(text)[0] - middle, s - middle) / np.linalg.norm(s - middle) for s in styles]
    assert np.argmax(shares) == np.argmax(towards)
    assert scores(rank(style=None), *text)[0]["style"] == 0


def test_a_blend_is_a_style_beside_all_others(rank, styles, encoder):
    blend = styles[1:].mean(0)
    ranking = Ranking(encoder, styles, Wish(np.ones(24, np.float32), blend), StoryOptions())
    assert len(ranking.targets) == 4 and np.array_equal(ranking.targets[0], blend)
    assert len(rank(style=2).targets) == 3  # a known one only once


def test_the_style_of_a_passage_is_that_of_all_its_sentences(rank):
    ranking = rank()
    ranking.score(propose("A dog sleeps.", "A cat sleeps."))
    ranking.keep(1, "A cat sleeps.")
    second = scores(ranking, "The old lady said.")[0]
    whole = scores(rank(), "A cat sleeps. The old lady said.")[0]
    assert second["style"] == pytest.approx(whole["style"], abs=1e-5)
    assert second["style"] != pytest.approx(scores(rank(), "The old lady said.")[0]["style"], abs=1e-5)


def test_likelihood_is_the_writers_own(rank):
    candidates = rank().score([Proposal("A dog sleeps.", -1.5), Proposal("A dog", -2.5)])
    assert [c.scores["likelihood"] for c in candidates] == [-1.5, -2.5]


def test_repetition_counts_what_was_told_before_or_twice(rank):
    ranking = rank(before="The old lady said no. The dog sleeps on the beach.")
    texts = ("The dog sleeps in the house.", "A cat runs in the sea.", "Dog dog dog dog dog.", "Two words.")
    rows = scores(ranking, *texts)
    assert [row["repetition"] for row in rows] == pytest.approx([(1 / 4 + 2 / 4) / 2, 0, (2 / 3 + 3 / 4) / 2, 0])
    ranking = rank()  # the passage itself counts, too
    ranking.score(propose("The dog sleeps."))
    ranking.keep(0, "The dog sleeps.")
    assert scores(ranking, "The dog sleeps.")[0]["repetition"] == 1


def test_the_total_is_the_weighted_sum(rank):
    proposals = [Proposal("The dog sleeps on the beach.", -1), Proposal("She said so so so so.", -3)]
    options = StoryOptions(weight_style=0.7, weight_repetition=4.0, strength=1.5)
    ranking = rank(content=("dog",), read=read, view=np.array([1.0, 0.0]), options=options)
    candidates = ranking.score(proposals)
    for candidate in candidates:
        total = 0.0
        for name, value in candidate.scores.items():
            column = np.array([c.scores[name] for c in candidates])
            if name in SMALL:
                value = (value - column.mean()) / max(column.std(), SMALL[name])
            weight = getattr(options, f"weight_{name}") * (options.strength if name == "style" else 1)
            total += value * weight * (-1 if name == "repetition" else 1)
        assert candidate.score == pytest.approx(total)
    assert candidates[0].score > candidates[1].score


@pytest.mark.parametrize("name", SCORES)
def test_a_weight_decides_for_its_score(name):
    options = StoryOptions(**{f"weight_{n}": float(n == name) for n in SCORES})
    rows = [{n: 0.1 * i for n in SCORES} for i in (1, 2, 3)]
    order = np.argsort(weighted_sums(rows, options)).tolist()
    assert order == ([2, 1, 0] if name == "repetition" else [0, 1, 2])


def test_the_weight_of_the_style_grows_with_the_strength():
    rows = [{"style": 0.3}, {"style": 0.5}]
    sums = {s: weighted_sums(rows, StoryOptions(strength=s)) for s in (0.0, 1.0, 2.0)}
    assert sums[0.0] == [0, 0] and sums[2.0] == pytest.approx(2 * np.array(sums[1.0]))


def test_differences_too_small_to_matter_do_not():
    """They are counted in `SMALL`, not in their own deviations."""
    options = StoryOptions(weight_likelihood=1.0)
    small, large = (weighted_sums([{"likelihood": -2.0}, {"likelihood": -2.0 - d}], options) for d in (0.001, 1.0))
    assert small == pytest.approx([0.005, -0.005]) and large == pytest.approx([1, -1])


def test_a_single_candidate_has_nothing_to_be_compared_with():
    row = {"picture": 0.3, "words": 0.5, "style": 0.2, "likelihood": -3.0}
    assert weighted_sums([row], StoryOptions()) == [0.0]


def test_every_score_has_a_weight_among_the_options():
    weights = {f.name.removeprefix("weight_") for f in dataclasses.fields(StoryOptions) if f.name.startswith("weight_")}
    assert weights == set(SCORES)
