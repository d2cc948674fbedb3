"""Every score says what it should, and the total is their weighted sum."""

import dataclasses

import numpy as np
import pytest

from modeling import StoryOptions
from modeling.reranking import SMALL, Proposal, Ranking, Wish, weighted_sums
from tests.tiny import tiny_encoder, tiny_styles, tiny_tokenizer

VOCABULARY = tiny_tokenizer().get_vocab()
AGAINST = ("repetition", "echo", "speech", "thread")


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
    def make(seen=None, style=1, **wish):
        seen = np.ones(24, np.float32) if seen is None else seen
        wish = Wish(seen, None if style is None else styles[style], **wish)
        return Ranking(encoder, styles, styles[0], VOCABULARY, wish, StoryOptions())

    return make


def propose(*texts, log_prob=-2.0, finished=True):
    return [Proposal(text, log_prob, finished) for text in texts]


def scores(ranking, *texts, **kwargs):
    return [candidate.scores for candidate in ranking.score(propose(*texts, **kwargs))]


def test_grounding_is_highest_for_what_was_seen(rank, encoder, styles):
    texts = ["A dog sleeps.", "The red house.", "An old lady said."]
    for i, text in enumerate(texts):
        seen = encoder.encode([text])[0] - styles[1]
        values = [row["grounding"] for row in scores(rank(seen=seen), *texts)]
        assert np.argmax(values) == i and values[i] == pytest.approx(1, abs=1e-5)


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
    nearest = np.argmax(
        [
            np.dot(encoder.encode(text)[0] - styles.mean(0), s - styles.mean(0)) / np.linalg.norm(s - styles.mean(0))
            for s in styles
        ]
    )
    assert np.argmax(shares) == nearest
    assert scores(rank(style=None), *text)[0]["style"] == 0


def test_passages_are_scored_as_they_would_be(rank, encoder):
    """Grounding and style of the second sentence are those of both together."""
    ranking = rank()
    ranking.score(propose("A dog sleeps.", "A cat sleeps."))
    ranking.keep(1, "A cat sleeps.")
    second = scores(ranking, "The old lady said.")[0]
    whole = scores(rank(), "A cat sleeps. The old lady said.")[0]
    for name in ("grounding", "style", "words"):
        assert second[name] == pytest.approx(whole[name], abs=1e-5)


def test_echo_counts_words_that_were_told_before_in_any_form(rank):
    ranking = rank(before="The dogs ran.")
    texts = ("A dog sleeps.", "The house, the red house.", "She said so.", "Dogs and dogs run.")
    rows = scores(ranking, *texts)
    assert [row["echo"] for row in rows] == pytest.approx([1 / 2, 1 / 3, 0, 1])


def test_speech_is_what_stands_in_quotation_marks(rank):
    said, silent = "“A dog,” she said.", "A dog slept."

    def counted(ranking):
        return [row["speech"] for row in scores(ranking, said, silent)]

    assert counted(rank(before="The dogs ran.")) == [1, 0]
    assert counted(rank(before="“A dog,” she said.")) == [1, 0]  # told since
    assert counted(rank()) == counted(rank(before="She said: “A dog.” ")) == [2, 0]
    ranking = rank(before="“No,” she said. The dogs ran.")
    ranking.score(propose("She said: “A dog.”"))
    ranking.keep(0, "She said: “A dog.”")
    assert counted(ranking) == [2, 0]


def test_only_a_story_must_not_begin_in_the_middle(rank):
    texts = ("But the dog slept.", "The dog slept.")
    assert [row["thread"] for row in scores(rank(), *texts)] == [1, 0]
    assert [row["thread"] for row in scores(rank(before="The dogs ran."), *texts)] == [0, 0]


def test_repetition_counts_what_was_told_before_or_twice(rank):
    ranking = rank(before="The old lady said no. The dog sleeps on the beach.")
    rows = scores(
        ranking, "The dog sleeps in the house.", "A cat runs in the sea.", "Dog dog dog dog dog.", "Two words."
    )
    assert [row["repetition"] for row in rows] == pytest.approx([(1 / 4 + 2 / 4) / 2, 0, (2 / 3 + 3 / 4) / 2, 0])


def test_fluency_ending_and_length(rank):
    whole, cut = rank().score([Proposal("A dog sleeps.", -1.5, True), Proposal("A dog", -2.5, False)])
    assert (whole.scores["fluency"], cut.scores["fluency"]) == (-1.5, -2.5)
    assert (whole.scores["ending"], cut.scores["ending"]) == (1, 0)
    words = [4, 8, 30, 45, 60, 80]
    values = [row["length"] for row in scores(rank(), *(" ".join(["dog"] * n) + "." for n in words))]
    assert values == pytest.approx([0.5, 1, 1, 0.5, 0, 0])


def test_the_thread_is_that_of_captions_and_story(rank):
    ranking = rank(given=("A man sleeps.",), before="Gerald said no.")
    assert [row["thread"] for row in scores(ranking, "He sleeps.", "She sleeps.", "Gerald and Edward ran.")] == [
        0,
        1,
        1,
    ]


def test_the_total_is_the_weighted_sum(rank):
    proposals = [*propose("The dog sleeps on the beach.", log_prob=-1), *propose("She", log_prob=-3, finished=False)]
    ranking = rank(content=("dog",), given=("A man.",))
    ranking.options = dataclasses.replace(ranking.options, weight_style=0.7, weight_thread=4.0)
    candidates = ranking.score(proposals)
    for candidate in candidates:
        total = 0.0
        for name, value in candidate.scores.items():
            column = np.array([c.scores[name] for c in candidates])
            if name in SMALL:
                value = (value - column.mean()) / max(column.std(), SMALL[name])
            total += value * getattr(ranking.options, f"weight_{name}") * (-1 if name in AGAINST else 1)
        assert candidate.score == pytest.approx(total)
    assert candidates[0].score > candidates[1].score


@pytest.mark.parametrize("name", ["grounding", "words", "style", "fluency", "ending", "length", *AGAINST])
def test_a_weight_decides_for_its_score(name):
    none = {f"weight_{n}": 0.0 for n in ("grounding", "words", "style", "fluency", "ending", "length", *AGAINST)}
    options = StoryOptions(**{**none, f"weight_{name}": 1.0})
    rows = [
        {n: 0.1 * i for n in ("grounding", "words", "style", "fluency", "ending", "length", *AGAINST)}
        for i in (1, 2, 3)
    ]
    totals = weighted_sums(rows, options)
    assert np.argsort(totals).tolist() == ([2, 1, 0] if name in AGAINST else [0, 1, 2])


def test_a_single_candidate_has_nothing_to_be_compared_with():
    row = {"grounding": 0.3, "words": 0.5, "style": 0.2, "fluency": -3.0}
    assert weighted_sums([row], StoryOptions()) == [0.0]
