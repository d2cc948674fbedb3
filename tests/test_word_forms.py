"""Inflected forms of a word are one word, different words are not."""

import pytest

from modeling.word_forms import base_form, taken_up

FAMILIES = [
    "dog dogs dog's",
    "run runs running ran",
    "ride rides riding rode ridden",
    "sit sits sitting sat",
    "stand stands standing stood",
    "lady ladies",
    "carry carries carried carrying",
    "hop hops hopping hopped",
    "play plays playing played",
    "fly flies flying flew",
    "ski skis skiing skied",
    "sky skies",
    "bus buses",
    "glass glasses",
    "child children",
    "woman women",
    "die dies died dying",
    "tie ties tied tying",
    "leaf leaves",
    "tree trees",
    "see sees seeing",
    "swim swims swimming swam swum",
    "dress dresses dressed dressing",
    "smile smiles smiled smiling",
    "Beach beaches",
]


@pytest.mark.parametrize("family", FAMILIES)
def test_forms_of_a_word_share_a_key_that_no_other_word_has(family):
    keys = {base_form(word) for word in family.split()}
    assert len(keys) == 1
    others = {base_form(word) for other in FAMILIES if other != family for word in other.split()}
    assert not keys & others


def test_short_words_are_left_alone():
    for word in ("red", "bed", "ring", "king", "sing", "shed", "gas", "is", "a"):
        assert base_form(word) == word


def test_what_was_taken_up():
    assert taken_up(["dog", "riding", "beach"], ["they", "rode", "dogs"]) == ["dog", "riding"]
    assert taken_up([], ["dog"]) == [] == taken_up(["dog"], [])
