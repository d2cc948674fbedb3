"""Which of its own stories the storyteller learns from, and when a new model is better than the old one."""

import numpy as np
import pytest

from tests.storytelling import GOOD
from training.storyteller_comparison import Comparing, loss_difference, paired, verdict
from training.storyteller_scores import Judging, broken, closeness
from training.storyteller_selection import Selecting, select, totals

# -- rules -----------------------------------------------------------------------------------------------------------
TEXT = GOOD.format(what="dog", who="Igor", number="two")


def story(text=TEXT, **changes):
    return {"text": text, "title": "The Dog", "page": "", "length": "medium", "ended": True} | changes


def test_a_whole_story_breaks_no_rule():
    assert broken(story(), Judging()) is None
    assert broken(story(story()["text"] + ' "Yes," she said. "It is a dog."'), Judging()) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ended": False}, "has no end"),
        ({"text": story()["text"].rstrip(".")}, "has no end"),
        ({"text": "A dog ran. It was glad."}, "too short"),
        ({"length": "short"}, "too long"),
        ({"title": " "}, "no title"),
        ({"text": story()["text"] + " Title: The Cat."}, "words of the request"),
        ({"text": story()["text"] + ' He said "Yes.'}, "open quotation"),
        ({"text": story()["text"] + " They did not speak! They did not speak."}, "a sentence twice"),
        ({"text": story()["text"] + " At last Igor walked along the old road with a lamp again."}, "repeats itself"),
        ({"page": "But in the morning it was gone, and only two dogs remained."}, "copies the page"),
    ],
)
def test_rules(changes, reason):
    assert broken(story(**changes), Judging()) == reason


def test_bounds_of_the_rules_are_the_recipes():
    text = story()["text"] + " At last Igor walked along the old road with a lamp again."
    assert broken(story(text), Judging(repeated=0.2)) is None
    assert broken(story("A dog ran. It was glad."), Judging(length_slack=1.0)) is None
    seven = "But in the morning it was gone and then"
    assert broken(story(page=f"{seven}."), Judging()) is None  # seven words of the story in a row, not eight


def test_closeness_is_that_of_the_means():
    vectors = {"A dog ran.": [1.0, 0.0], "It sat.": [0.0, 1.0], "a": [1.0, 0.0], "b": [0.0, 1.0]}

    def embed(texts):
        return np.array([vectors[text] for text in texts], np.float32)

    found = closeness(embed, ["A dog ran. It sat.", "A dog ran.", "A dog ran."], [["a", "b"], ["a"], ["b"]])
    np.testing.assert_allclose(found, [1, 1, 0], atol=1e-6)


# -- selection -------------------------------------------------------------------------------------------------------
def told(prompt, number, text="One two three four.", style="romance", length="medium"):
    return {"prompt": prompt, "story": number, "text": text, "style": style, "length": length}


def test_totals_are_deviations_within_style_and_length():
    stories = [told(0, 0), told(0, 1), told(1, 0, style="horror"), told(1, 1, style="horror"), told(2, 0)]
    scores = [
        {"broken": None, "photo": 0.1, "style": 0.5},
        {"broken": None, "photo": 0.3, "style": None},
        {"broken": None, "photo": 0.8, "style": 0.1},
        {"broken": None, "photo": 0.9, "style": 0.1},
        {"broken": "has no end"},
    ]
    found = totals(stories, scores, {"photo": 2.0, "style": 1.0})
    np.testing.assert_allclose(found[:4], [-2, 2, -2, 2])
    assert found[4] == -np.inf


def test_the_best_of_each_prompt_and_of_these_a_share():
    stories = [told(prompt, number, f"Opening {prompt} of a story.") for prompt in range(4) for number in range(3)]
    values = [0.1, 0.9, 0.2, 0.8, 0.7, 0.6, 0.0, 0.1, 0.3, 0.5, 0.4, 1.0]
    scores = [{"broken": None, "photo": value} for value in values]
    scores[11] = {"broken": "repeats itself", "photo": 1.0}
    assert select(stories, scores, {"photo": 1.0}, Selecting(share=1.0)) == [1, 3, 9, 8]
    assert select(stories, scores, {"photo": 1.0}, Selecting(share=0.5)) == [1, 3]
    assert select(stories, scores, {"photo": -1.0}, Selecting(share=0.5)) == [6, 0]


def test_few_may_open_alike():
    texts = ["Once there was a dog.", "Once, there was a cat.", "once there was a cow", "Once there were dogs."]
    stories = [told(i, 0, text) for i, text in enumerate(texts)]
    scores = [{"broken": None, "photo": 1.0 - i / 10} for i in range(4)]
    assert select(stories, scores, {"photo": 1.0}, Selecting(share=1.0, openings=2)) == [0, 1, 3]


# -- comparison ------------------------------------------------------------------------------------------------------
def scores(photo, broken=None):
    return [{"broken": broken, "photo": value, "style": None} for value in photo]


def test_a_model_that_is_better_everywhere_is_found_so():
    rng = np.random.default_rng(0)
    stories, before = [told(i // 2, i % 2) for i in range(60)], rng.normal(0.3, 0.1, 60)
    weights = {"photo": 1.0, "style": 1.0, "whole": 1.0}
    better = paired(stories, scores(before), scores(before + 0.05 + rng.normal(0, 0.01, 60)), weights, 300)
    assert better["photo"]["value"] == pytest.approx(0.05, abs=0.01) and better["total"]["low"] > 0
    assert "style" not in better and better["whole"]["value"] == 0
    same = paired(stories, scores(before), scores(before), weights, 300)
    assert same["total"] == {"value": 0, "low": 0, "high": 0}
    worse = paired(stories, scores(before), scores(before, "has no end"), weights, 300)
    assert worse["total"]["high"] < 0
    flat_loss = {"value": 0.0}
    assert verdict(better, flat_loss, Comparing()) is None
    assert "do not find it better" in verdict(same, flat_loss, Comparing())
    assert "do not find it better" in verdict(worse, flat_loss, Comparing())
    assert "has risen by 0.030" in verdict(better, {"value": 0.03}, Comparing(loss_rise=0.02))


def test_intervals_are_over_prompts():
    stories = [told(i // 10, i % 10) for i in range(40)]
    gains = np.repeat([0.1, 0.1, 0.1, -0.1], 10)  # alike within a prompt: four observations, not forty
    report = paired(stories, scores(np.zeros(40)), scores(gains), {"photo": 1.0}, 500)
    assert report["photo"]["low"] < 0 < report["photo"]["high"]


def test_loss_is_of_tokens():
    found = loss_difference([[1.0, 1.0, 1.0], [3.0]], [[1.0, 1.0, 1.0], [5.0]], 50)
    assert found["old"] == 1.5 and found["new"] == 2.0 and found["value"] == 0.5
