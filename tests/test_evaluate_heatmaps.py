"""The measure of the heat maps: pairs that share nothing, halves, chance; the embedded captioner's maps are right."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import tiny_pipeline
from training.evaluate_heatmaps import (
    THINGS,
    Case,
    Pair,
    chance,
    describe,
    evaluate,
    find_pairs,
    hits,
    interval,
    main,
    named_things,
    share_on_the_right,
    side_by_side,
    word_things,
)

REPOSITORY = Path(__file__).resolve().parent.parent


def test_no_word_is_two_things():
    assert len(word_things()) == sum(len(words.split()) for words in THINGS.values())


def test_pairs_have_nothing_of_what_counts_in_common():
    captions = [
        ["A dog runs.", "The dogs play in snow."],  # sure: dog; possible: snow
        ["A man walks in snow.", "A boy."],  # sure: person
        ["A dog and a man.", "A man with his puppy."],
        ["A red thing.", "Nothing."],
        ["A horse on grass.", "A horse."],
    ]
    pairs = find_pairs(captions, 10)
    rows = [row for pair in pairs for row in pair.rows]
    assert pairs and len(set(rows)) == len(rows) and 3 not in rows
    things = [[{word_things().get(w) for w in text.lower().strip(".").split()} for text in texts] for texts in captions]
    for pair in pairs:
        for own, other in ((0, 1), (1, 0)):
            assert pair.things[own]
            for thing in pair.things[own]:
                assert all(thing in caption for caption in things[pair.rows[own]])
                assert not any(thing in caption for caption in things[pair.rows[other]])
    assert len(find_pairs(captions * 20, 7)) == 7
    assert find_pairs([["A dog."], ["Two dogs."]], 5) == []


def test_halves():
    maps = np.zeros((3, 2, 7))
    maps[0, :, 0], maps[1, 1, 6], maps[2, 0, 3] = 1, 0.5, 2
    assert share_on_the_right(maps).tolist() == [0, 1, 0.5]
    even = np.arange(8.0).reshape(2, 4)
    assert share_on_the_right(even) == pytest.approx((2 + 3 + 6 + 7) / 28)


def test_photographs_stand_side_by_side():
    both = side_by_side(Image.new("RGB", (30, 50), "red"), Image.new("L", (9, 9), 255), 16)
    assert both.size == (32, 16)
    assert both.getpixel((15, 8)) == (255, 0, 0) and both.getpixel((16, 8)) == (255, 255, 255)


def test_named_things_know_their_side():
    pair = Pair((0, 1), (frozenset({"dog"}), frozenset({"person", "car"})))
    words = "a dog and another dog look at a man in water".split()
    assert list(named_things(words, pair, False)) == [(1, "dog", 0), (8, "person", 1)]
    assert list(named_things(words, pair, True)) == [(1, "dog", 1), (8, "person", 0)]


def test_right_maps_are_told_from_maps_that_ignore_the_word():
    sides = [0, 1] * 40
    right = [Case(i // 2, "dog", side, (0.9 if side else 0.2, 0.5)) for i, side in enumerate(sides)]
    assert hits(right).mean() == 1 and interval(right) == (1, 1) and chance(right) == pytest.approx(0.5, abs=0.01)
    always_left = [Case(i // 2, "dog", side, (0.1,)) for i, side in enumerate(sides)]
    assert hits(always_left).mean() == 0.5 == chance(always_left)
    # things that are mostly on the left and maps that always are: often right, and no better than chance
    lopsided = [Case(i, "dog", int(i % 5 == 0), (0.1,)) for i in range(50)]
    assert hits(lopsided).mean() == pytest.approx(0.8) and chance(lopsided) == pytest.approx(0.8)
    low, high = interval(lopsided)
    assert 0.6 < low < 0.8 < high < 0.95


def test_interval_is_over_pairs_not_words():
    """Ten words of one pair that agree are one piece of evidence."""
    once = [Case(pair, "dog", 1, (0.9 if pair % 4 else 0.1,)) for pair in range(20)]
    tenfold = [case for case in once for _ in range(10)]
    assert interval(once) == interval(tenfold)


def test_maps_are_those_the_page_shows():
    pipe = tiny_pipeline()
    pictures = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]

    def encode(images):
        return pipe.captioner.encoder(pipe.image_processor(images, return_tensors="pt").pixel_values)

    captioner = SimpleNamespace(model=pipe.captioner, tokenizer=pipe.caption_tokenizer, encode=encode)
    described = describe(captioner, pictures, num_beams=3)
    for picture, (words, steps, maps) in zip(pictures, described, strict=True):
        caption = pipe.caption(picture, num_captions=1, num_beams=3)[0][0]
        assert tuple(words) == caption.words
        shown = np.stack([maps[parts].mean(0) for parts in steps])
        np.testing.assert_allclose(shown, caption.attention, atol=1e-5)


def test_bad_data_is_one_sentence(tmp_path, capsys):
    assert main(["--model", str(tmp_path), "--dataset", "flickr8k"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: ") and "Traceback" not in error


def test_embedded_captioner_looks_at_what_it_names():
    data, model = os.environ.get("PICTALE_DATA"), REPOSITORY / "hub_configs" / "captioner-flickr8k"
    if not data or not (Path(data) / "flickr8k").is_dir():
        pytest.skip("PICTALE_DATA does not hold flickr8k")
    if not (model / "model.safetensors").is_file():
        pytest.skip("the captioner has no weights in this tree")
    torch.manual_seed(0)
    report = evaluate(str(model), "flickr8k", "validation", pairs=25, num_beams=1)
    assert report["n"] >= 20
    assert report["interval"][0] > report["chance"]
    steps = report["share_by_step_after_the_word"]
    assert steps["0"] == max(steps.values()), "the map of another step fits better than the one that is shown"
