"""The joint embedding's training, evaluation and bank on the tiny preset."""

import json

import numpy as np
import pytest
import torch

from modeling import CaptionBank, PictaleJointEmbedding, PictaleJointEmbeddingConfig
from modeling.errors import DataError, RecipeError
from modeling.image_processing_captioner import PictaleImageProcessor
from tests.conftest import REPOSITORY
from tests.tiny import tiny_captioner, tiny_encoder, tiny_tokenizer
from training import build_caption_bank, evaluate_retrieval, train_joint_embedding
from training.build_caption_bank import BankOptions, choose_distinct, readable
from training.embedding_recipe import JointEmbeddingRecipe
from training.feature_cache import FeatureCache
from training.figures import measurement
from training.recipes import read_recipe
from training.tiny_photos import COLOURS, PHRASES, SHAPES, write_tiny_photos
from training.train_joint_embedding import MeanFeatures, SentencePairs

RECIPE = REPOSITORY / "hub_configs" / "tiny-joint-embedding" / "recipe.json"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photos and an untrained captioner, whose random features tell eight pictures apart."""
    place = tmp_path_factory.mktemp("tiny")
    write_tiny_photos(place / "photos")
    tiny_captioner().save_pretrained(place / "captioner")
    PictaleImageProcessor(size={"height": 64, "width": 64}).save_pretrained(place / "captioner")
    return place


def tiny_recipe(place, output, **more):
    settings = {"captioner": str(place / "captioner"), "data.cache_dir": str(place / "features")}
    settings |= {"data.train": [str(place / "photos")], "data.validation": [str(place / "photos")]}
    settings |= {"training.output_dir": str(output), **more}
    return read_recipe(RECIPE, JointEmbeddingRecipe, [f"{key}={json.dumps(value)}" for key, value in settings.items()])


@pytest.fixture(scope="module")
def trained(place):
    output = place / "run"
    return output, train_joint_embedding.run(tiny_recipe(place, output))


def test_photographs_and_their_captions_find_each_other(trained, place):
    output, result = trained
    assert result.best_metric > 550  # of 600
    report = evaluate_retrieval.evaluate(str(output / "best"), str(place / "captioner"), str(place / "photos"), "train")
    assert report["rsum"] == pytest.approx(result.best_metric, abs=10)  # features of the cache are float16
    assert report["to_text_median_rank"] == 1 and report["sentences"] == len(COLOURS) * len(SHAPES) * len(PHRASES)
    assert report["photo_ms"] > 0 and "bank" not in report


def test_the_command_lines(trained, place, capsys):
    output, _ = trained
    model = ["--model", str(output / "best"), "--captioner", str(place / "captioner")]
    assert evaluate_retrieval.main([*model, "--dataset", str(place / "photos"), "--latency", "0", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["photographs"] == 8
    one = measurement(report, "0" * 16, "mine")
    assert one["rows"]["photo to sentence"]["r5"] == pytest.approx(report["to_text_r5"], rel=1e-3)
    assert evaluate_retrieval.main([*model, "--dataset", str(place / "photos"), "--latency", "0"]) == 0
    assert "| photo -> sentence |" in capsys.readouterr().out
    bank = ["--data", str(place / "photos"), "--min-words", "3", "--output", str(place / "bank"), "--json"]
    assert build_caption_bank.main([*model, *bank]) == 0
    made = json.loads(capsys.readouterr().out)
    bank = CaptionBank.load(place / "bank")
    assert made["sentences"] == len(bank) and made["bytes"] < 10_000
    assert {sentence.rstrip(".").lower() for sentence in bank.sentences} <= {
        phrase.format(c=c, s=s) for phrase in PHRASES for c in COLOURS for s in SHAPES
    }
    assert evaluate_retrieval.main(["--model", str(place / "nowhere"), *model[2:], "--dataset", "x"]) == 2
    assert "Error: There is no model folder" in capsys.readouterr().err


def test_a_resumed_run_is_the_uninterrupted_one(place, tmp_path):
    more = {"training.schedule": "constant", "training.save_every": 3, "training.evaluate_every": 3}
    more |= {"training.ema_decay": 0.9}
    more |= {"model.word_dropout": 0.2, "data.sentences": [str(place / "photos")], "data.sentence_batch": 4}
    more |= {"data.batch_size": 4}
    train_joint_embedding.run(tiny_recipe(place, tmp_path / "whole", **more, **{"training.max_steps": 8}))
    train_joint_embedding.run(tiny_recipe(place, tmp_path / "half", **more, **{"training.max_steps": 3}))  # in an epoch
    train_joint_embedding.run(tiny_recipe(place, tmp_path / "half", **more, **{"training.max_steps": 8}), resume=True)
    whole, resumed = (PictaleJointEmbedding.from_pretrained(tmp_path / name / "last") for name in ("whole", "half"))
    for name, weights in whole.state_dict().items():
        assert torch.equal(weights, resumed.state_dict()[name]), name


def test_means_kept_of_a_cache_train_as_the_regions_do(place, tmp_path):
    features = np.random.default_rng(0).random((5, 2, 4, 64)).astype(np.float16)
    cache = FeatureCache(tmp_path, features, np.ones(5, bool), views=2)
    means = MeanFeatures(cache, block=2)
    model = PictaleJointEmbedding(PictaleJointEmbeddingConfig(64, image_pooling="mean", vocab_size=9)).eval()
    np.testing.assert_allclose(
        model.embed_images(means.get_many([4, 1])), model.embed_images(cache.get_many([4, 1])), atol=1e-3
    )
    assert torch.equal(means.get(3, 1), torch.from_numpy(features[3, 1].astype(np.float32)).mean(0, True).half())
    more = {"model.image_pooling": "mean", "training.epochs": 60}
    assert train_joint_embedding.run(tiny_recipe(place, tmp_path / "run", **more)).best_metric > 450


@pytest.mark.parametrize("kind", ["sum", "hardest"])
def test_the_other_losses_learn_too(kind, place, tmp_path):
    result = train_joint_embedding.run(tiny_recipe(place, tmp_path, **{"loss.kind": kind, "training.epochs": 60}))
    assert result.best_metric > 450


def test_a_frozen_skip_thought_encoder_reads(place, tmp_path):
    encoder = tiny_encoder()
    encoder.save_pretrained(tmp_path / "encoder")
    tiny_tokenizer().save_pretrained(tmp_path / "encoder")
    more = {"encoder": str(tmp_path / "encoder"), "training.epochs": 2, "training.max_steps": None}
    with pytest.raises(RecipeError, match="skip-thoughts"):
        tiny_recipe(place, tmp_path / "run", **more)
    settings = {"sentence_encoder": "skip-thoughts", "embedding_size": 8}
    train_joint_embedding.run(tiny_recipe(place, tmp_path / "run", **more, model=settings))
    report = evaluate_retrieval.evaluate(
        str(tmp_path / "run" / "best"),
        str(place / "captioner"),
        str(place / "photos"),
        "train",
        encoder=str(tmp_path / "encoder"),
        latency=0,
    )
    assert report["photographs"] == 8 and report["parameters_beside_backbone"] < 2500
    model = PictaleJointEmbedding.from_pretrained(tmp_path / "run" / "best")
    assert not any(name.startswith(("gru", "words")) for name, _ in model.named_parameters())


def test_words_start_from_a_file(place, tmp_path):
    names = ["red", "square", "page"]
    vectors = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    np.savez(tmp_path / "vectors.npz", words=np.array(names), vectors=vectors)
    recipe = tiny_recipe(place, tmp_path / "run", word_vectors=str(tmp_path / "vectors.npz"))
    captioner, _ = train_joint_embedding.load_eyes(recipe.captioner)
    captions = [[[phrase.format(c="red", s="square") for phrase in PHRASES]]]
    model = train_joint_embedding.build_embedding(recipe, captioner, captions)
    rows = model.words.weight[model.tokenizer.convert_tokens_to_ids(names)].detach().numpy()
    scale = rows[0] / vectors[0]
    np.testing.assert_allclose(rows / vectors, scale[0], rtol=1e-4)
    assert not model.words.weight[0].any()


def test_pairs_tell_of_one_photograph_and_are_drawn_by_the_seed():
    groups = [[f"a {colour} {shape}" for shape in SHAPES] for colour in ("red", "blue")] + [["only one"], ["twice"] * 2]
    tokenizer = train_joint_embedding_tokenizer(groups)
    pairs = SentencePairs(groups, tokenizer, max_words=10)
    assert len(pairs.groups) == 2
    drawn = pairs.draw(2, (3, 4))
    assert torch.equal(drawn, pairs.draw(2, (3, 4))) and len(drawn) == 4
    texts = [tokenizer.decode(row[row >= 0], skip_special_tokens=True).split() for row in drawn]
    for first, second in zip(texts[:2], texts[2:], strict=True):
        assert first[1] == second[1] and first[2] != second[2]
    with pytest.raises(DataError, match="two captions"):
        SentencePairs([["one"]], tokenizer, 10)


def train_joint_embedding_tokenizer(groups):
    from modeling.tokenization import build_word_tokenizer

    return build_word_tokenizer(text for group in groups for text in group)


def test_a_bank_keeps_what_differs():
    sentences = ["A dog runs.", "A dog running!", "The cat sleeps.", "Red sky at night.", "A cat asleep."]
    angles = np.array([0.0, 0.5, 1.0, 2.0, 1.01])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    assert choose_distinct(sentences, vectors, BankOptions(max_similarity=0.999)) == [0, 2, 3]
    assert choose_distinct(sentences, vectors, BankOptions(limit=2)) == [0, 2]
    with pytest.raises(DataError, match="max_words"):
        BankOptions(min_words=9, max_words=8)
    assert readable('a man  rides "his" horse .') == "A man rides his horse."
    assert readable("A DOG RUNS") == "A dog runs."
