"""Which of the captioner's beams are given: by their probability and by what a joint embedding sees in the photo."""

import numpy as np
import pytest

from modeling import StoryPipeline
from modeling.photo_captions import most_apt
from modeling.text import content_words
from modeling.word_forms import base_form
from tests.tiny import tiny_embedding, tiny_pipeline

DIFFERENT = [frozenset(word) for word in "abcdefg"]


@pytest.fixture(scope="module")
def pipe() -> StoryPipeline:
    pipe = tiny_pipeline()
    pipe.set_embedding(tiny_embedding(pipe.captioner))
    return pipe


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (70, 90, 3), dtype=np.uint8) for _ in range(3)]


def texts(captions):
    return [[caption.text for caption in group] for group in captions]


def test_the_first_is_the_most_apt_and_the_next_says_something_else():
    rng = np.random.default_rng(1)
    for weight in (0.5, 2.0, 20.0):
        vectors = rng.normal(size=(7, 4))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        scores, view = rng.normal(-1, 0.3, 7), vectors[3] + 0.1
        chosen = most_apt(scores, vectors @ view, vectors @ vectors.T, DIFFERENT, 4, weight)
        assert len(set(chosen)) == 4
        worth = scores + weight * (vectors @ view)
        assert chosen[0] == worth.argmax()
        for place in range(1, 4):
            before, rest = chosen[:place], [i for i in range(7) if i not in chosen[:place]]
            values = [worth[i] - weight / 2 * max(vectors[i] @ vectors[j] for j in before) for i in rest]
            assert chosen[place] == rest[int(np.argmax(values))]
    everything = most_apt(scores, vectors @ view, vectors @ vectors.T, DIFFERENT, 7, 1.0)
    assert sorted(everything) == list(range(7))


def test_what_adds_no_word_comes_last():
    scores, near, alike = [-1.0, -1.1, -1.2, -1.3], np.zeros(4), np.eye(4)
    words = [frozenset(w.split()) for w in ("dog run beach", "run beach", "dog run beach", "dog beach kite")]
    assert most_apt(scores, near, alike, words, 4, 2.0) == [0, 3, 1, 2]
    assert most_apt(scores, near, alike, words[:1] * 4, 3, 2.0) == [0, 1, 2]  # nothing else was thought of


def test_captions_are_chosen_of_the_beams(pipe, photos):
    beams = pipe.caption(photos, 8, 8, picture=0)
    chosen = pipe.caption(photos, 3, 8, picture=2.0)
    views = pipe.embed_photos(photos)
    for group, three, view in zip(beams, chosen, views, strict=True):
        said = pipe.embedding.embed_texts([caption.text for caption in group])
        words = [frozenset(map(base_form, content_words([caption.text]))) for caption in group]
        order = most_apt([caption.score for caption in group], said @ view, said @ said.T, words, 3, 2.0)
        assert [c.text for c in three] == [group[i].text for i in order]
        for caption in three:
            assert caption.attention.shape[0] == len(caption.words) and not caption.remembered
            np.testing.assert_allclose(caption.attention.sum((1, 2)), 1, atol=1e-4)
    assert texts(chosen) != texts([group[:3] for group in beams])  # else nothing was compared


def test_a_batch_is_its_photos(pipe, photos):
    together = texts(pipe.caption(photos))
    assert together == [texts(pipe.caption(photo))[0] for photo in photos]


def test_without_an_embedding_or_a_wish_the_beams_decide(pipe, photos):
    plain = tiny_pipeline()
    beams = texts(plain.caption(photos, 3, 8))
    assert texts(pipe.caption(photos, 3, 8, picture=0)) == beams
    assert texts(plain.caption(photos, 3, 8, picture=5.0)) == beams
    assert texts(pipe.caption(photos, 8, 8, picture=5.0)) == texts(plain.caption(photos, 8, 8))  # all are wanted


def test_stories_go_by_them(pipe, photos):
    option, result = {"captions": "generate", "style": "horror", "seed": 1}, {}
    for weight in (0.0, 2.0):
        result[weight] = pipe(photos[0], caption_picture=weight, **option)
        assert texts([result[weight].captions]) == texts(pipe.caption(photos[0], picture=weight))
    assert result[0.0].captions != result[2.0].captions
    old = pipe(photos[0], writer="neural-storyteller", beam_width=2, **option)
    assert texts([old.captions]) == texts([result[0.0].captions])
