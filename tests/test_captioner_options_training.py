"""Options that keep a count or draw numbers while training: a resumed run equals an uninterrupted one."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from modeling.errors import DataError
from modeling.modeling_captioner import PictaleCaptionerForConditionalGeneration
from tests.conftest import REPOSITORY
from training import train_captioner
from training.recipes import read_recipe
from training.tiny_photos import write_tiny_photos

pytest.importorskip("pycocoevalcap", reason="captions are scored with pycocoevalcap (training/requirements.txt)")


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    photos = write_tiny_photos(folder / "photos")

    def run(output, resume=False, **settings):
        settings |= {"data.train": [str(photos)], "data.validation": [str(photos)], "training.output_dir": str(output)}
        settings["data.cache_dir"] = str(folder / "features")
        overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        path = REPOSITORY / "hub_configs" / "tiny-captioner" / "recipe.json"
        return train_captioner.run(read_recipe(path, train_captioner.CaptionerRecipe, overrides), resume)

    return run


def test_resumed_run_with_draws_counts_and_word_vectors_equals_an_uninterrupted_one(tmp_path, train):
    vectors = tmp_path / "glove.txt"
    words = enumerate("a red blue circle on".split(), 1)
    vectors.write_text("".join(f"{word} {i} 1 {i * i} -1\n" for i, word in words))
    settings = {
        "word_vectors": str(vectors),
        "data.vocabulary": "bpe",
        "data.vocabulary_size": 60,
        "data.batch_size": 3,
        "model.attention_mode": "hard",
        "model.attention_type": "multihead",
        "model.attention_heads": 4,
        "model.scheduled_sampling": "exponential",
        "model.scheduled_sampling_k": 2,
        "model.adaptive_cutoff": 40,
        "model.output_bottleneck": 24,
        "model.output_dropout": 0.3,
        "training.ema_decay": 0.9,
        "training.schedule": "constant",
        "training.save_every": 2,
        "training.evaluate_every": 20,
    }
    train(tmp_path / "whole", **settings, **{"training.max_steps": 7})
    train(tmp_path / "cut", **settings, **{"training.max_steps": 4})  # inside an epoch of 3
    train(tmp_path / "cut", True, **settings, **{"training.max_steps": 7})
    one, two = (
        PictaleCaptionerForConditionalGeneration.from_pretrained(tmp_path / name / "last").state_dict()
        for name in ("whole", "cut")
    )
    assert [key for key in one if not torch.equal(one[key], two[key])] == []
    assert one["training_steps.count"] == 7 and one["baseline.value"] < 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "cut" / "last")
    assert len(tokenizer) == 60 and tokenizer.decode(tokenizer("a red").input_ids[1:-1]) == "a red"


def test_recipe_without_its_word_vectors_is_said_in_one_sentence(tmp_path, train):
    with pytest.raises(DataError, match="Cannot read the word vectors"):
        train(tmp_path / "run", word_vectors=str(tmp_path / "nowhere.txt"))
