"""Byte-pair vocabularies: text comes back as it was, ids follow frequency, words are found again in their pieces."""

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from modeling.errors import RecipeError
from modeling.tokenization import SPECIAL_TOKENS, WORD_START, build_bpe_tokenizer, build_word_tokenizer, whole_words
from tests.tiny import tiny_captioner, tiny_pipeline
from training.data_captions import CaptionSplit, build_tokenizer

TEXTS = ["a dog runs on the beach", "the dog's t-shirt", "two skateboarders skate on a skateboard", "a dog skates"] * 5


@pytest.fixture(scope="module")
def tokenizer():
    return build_bpe_tokenizer(TEXTS, vocab_size=60)


def test_text_comes_back_and_is_wrapped(tokenizer):
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt").input_ids
    assert (batch[:, 0] == 1).all() and (batch == 2).any(1).all()
    assert tokenizer.batch_decode(batch, skip_special_tokens=True) == TEXTS
    assert tokenizer.decode(tokenizer("A DOG\u2019s skateboards").input_ids, skip_special_tokens=True) == (
        "a dog's skateboards"  # a word never seen
    )
    assert 3 in tokenizer("a \u732b").input_ids  # only a character never seen is unknown
    assert len(tokenizer) <= 60


def test_ids_are_the_special_ones_and_then_by_frequency(tokenizer):
    assert tokenizer.convert_ids_to_tokens(range(4)) == list(SPECIAL_TOKENS)
    counts = np.bincount(np.concatenate(tokenizer(TEXTS).input_ids), minlength=len(tokenizer))[4:]
    assert (np.diff(counts) <= 0).all() and counts[0] > 0


def test_saved_tokenizer_loads_with_auto(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(TEXTS).input_ids == tokenizer(TEXTS).input_ids
    assert again.batch_decode(again(TEXTS).input_ids, skip_special_tokens=True) == TEXTS


def test_words_are_found_in_their_pieces(tokenizer):
    for kind in (tokenizer, build_word_tokenizer(TEXTS)):
        tokens = kind.convert_ids_to_tokens(kind("two skateboarders skate").input_ids[1:-1])
        words = whole_words(tokens)
        assert [word for word, _ in words] == ["two", "skateboarders", "skate"]
        assert [place for _, places in words for place in places] == list(range(len(tokens)))
    assert whole_words([]) == []
    assert whole_words(["board", WORD_START + "a"]) == [("board", [0]), ("a", [1])]


def test_recipes_choose_the_vocabulary():
    split = CaptionSplit("test", [b""] * len(TEXTS), list(map(str, range(len(TEXTS)))), [[text] for text in TEXTS])
    pieces = build_tokenizer([split], 2, "bpe", 40)
    assert len(pieces) == 40 and WORD_START + "dog" in pieces.get_vocab()
    words = build_tokenizer([split], 6)
    assert words.convert_tokens_to_ids("dog") > 3 and words.convert_tokens_to_ids("beach") == 3
    assert len(build_tokenizer([split], 1, "words", 7)) == 7
    with pytest.raises(RecipeError, match="words or bpe"):
        build_tokenizer([split], 1, "letters")


def test_pipeline_shows_one_map_for_a_word(tokenizer):
    pipe = tiny_pipeline()
    pipe.captioner, pipe.caption_tokenizer = tiny_captioner(vocab_size=len(tokenizer)), tokenizer
    pipe.captioner.generation_config.suppress_tokens = [0, 1, 3]
    [[caption]] = pipe.caption([Image.linear_gradient("L").convert("RGB")], num_captions=1)
    pieces = tokenizer(" ".join(caption.words)).input_ids[1:-1]
    assert len(caption.words) == len(caption.attention) < len(pieces)
    assert not any(WORD_START in word for word in caption.words) and WORD_START not in caption.text
    np.testing.assert_allclose(caption.attention.sum((1, 2)), 1, atol=1e-5)
