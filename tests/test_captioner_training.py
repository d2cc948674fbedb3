"""The captioner's data, training and evaluation on the tiny preset."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from modeling.errors import DataError, RecipeError
from modeling.modeling_captioner import IGNORE_INDEX, PictaleCaptionerForConditionalGeneration
from training import evaluate_captioner, train_captioner
from training.data_captions import (
    CaptionExamples,
    CaptionSplit,
    EpochBatches,
    build_tokenizer,
    collate,
    normalise_caption,
    read_split,
)
from training.feature_cache import FeatureCache
from training.recipes import read_recipe
from training.tiny_photos import write_tiny_photos

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPE = REPOSITORY / "hub_configs" / "tiny-captioner" / "recipe.json"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_tiny_photos(tmp_path_factory.mktemp("data") / "tiny-photos")


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


def overrides(photos, cache, output, **more):
    settings = {"data.train": [str(photos)], "data.validation": [str(photos)], "data.cache_dir": str(cache)}
    settings |= {"training.output_dir": str(output), **more}
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def need_metrics():
    pytest.importorskip("pycocoevalcap", reason="captions are scored with pycocoevalcap (training/requirements.txt)")


def train_tiny(photos, cache, output, resume=False, **more):
    need_metrics()
    recipe = read_recipe(RECIPE, train_captioner.CaptionerRecipe, overrides(photos, cache, output, **more))
    return train_captioner.run(recipe, resume)


@pytest.fixture(scope="module")
def trained(photos, shared_cache, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "tiny"
    return output, train_tiny(photos, shared_cache, output)


# -- data --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('A man , in a T-shirt , rides the "big" wave .', "a man in a t-shirt rides the big wave"),
        ("  Two  dogs\nrun.", "two dogs run"),
        ("The dog\u2019s ball", "the dog's ball"),
        ("black & white - dog --", "black and white dog"),
        ("' quoted '", "quoted"),
        ("...", ""),
    ],
)
def test_normalise_caption(text, expected):
    assert normalise_caption(text) == expected
    assert normalise_caption(expected) == expected


def make_examples(captions, views=2, **options):
    count = len(captions)
    split = CaptionSplit("test", [b""] * count, [str(i) for i in range(count)], captions)
    features = np.zeros((count, views, 4, 3), np.float16)
    features[:, 1:] = 1
    cache = FeatureCache(None, features, np.array([True] * count), views=views)
    return CaptionExamples([split], [cache], build_tokenizer([split], 1), **options)


def test_mirrored_picture_is_never_shown_with_left_or_right():
    examples = make_examples([["a dog on the left", "a dog"], ["a cat", "one cat"]])
    views = [[int(examples[row, seed][0].max()) for seed in range(40)] for row in (0, 1)]
    assert set(views[0]) == {0}
    assert set(views[1]) == {0, 1}


def test_same_seed_same_batch_and_every_photograph_once_an_epoch():
    batches = EpochBatches(10, 4, seed=3)
    first = list(batches)
    assert first == list(batches) and len(first) == len(batches) == 3
    assert sorted(row for batch in first for row, _ in batch) == list(range(10))
    batches.set_epoch(1)
    assert list(batches) != first
    examples = make_examples([["a dog", "the dog", "one dog"]], captions_per_image=2)
    assert examples[0, 5][1] == examples[0, 5][1]
    assert len({tuple(map(tuple, examples[0, seed][1])) for seed in range(20)}) > 1


def test_collate_pads_with_ignored_labels_and_knows_each_rows_picture():
    examples = make_examples([["a big dog", "dog"], ["cat"]])
    batch = collate([examples[0, 0], examples[1, 0]])
    assert batch["region_features"].shape == (2, 4, 3)
    assert batch["image_index"].tolist() == [0, 0, 1]
    lengths = (batch["labels"] != IGNORE_INDEX).sum(1).tolist()
    assert sorted(lengths) == [2, 2, 4]  # words and the end id
    ends = [row[n - 1] for row, n in zip(batch["labels"].tolist(), lengths, strict=True)]
    assert set(ends) == {2}


def test_texts_come_after_the_captions_and_belong_to_no_photograph():
    texts = ["One cat.", "a dog", "word " * 30, "a dinosaur"]  # too long, and a word that no photograph taught
    examples = make_examples([["a dog", "dog"], ["one cat"]], texts=texts, texts_per_image=3)
    assert len(examples.texts) == 2
    batch = collate([examples[0, 0], examples[1, 0]])
    assert batch["image_index"].tolist() == [0, 0, 1, *[-1] * 6]
    words = [[i for i in row if i != IGNORE_INDEX] for row in batch["labels"].tolist()]
    assert all(row in examples.texts for row in words[3:])
    assert examples[0, 0][2] == examples[0, 0][2]
    assert len({tuple(map(tuple, examples[0, seed][2])) for seed in range(20)}) > 1


def test_a_captioner_learns_from_texts_too(photos, shared_cache, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    pq.write_table(pa.table({"captions": [["a red square", "a square"], ["a blue circle"]]}), texts / "train.parquet")
    short = {"training.max_steps": 4, "training.evaluate_every": 4, "training.save_every": 4}
    result = train_tiny(photos, shared_cache, tmp_path / "out", **{"data.texts": [str(texts)], **short})
    assert result.steps == 4
    pq.write_table(pa.table({"text": ["a book"]}), texts / "train.parquet")
    with pytest.raises(DataError, match="has no column captions; it has text"):
        train_tiny(photos, shared_cache, tmp_path / "no", **{"data.texts": [str(texts)], **short})


def test_too_long_captions_and_unreadable_photographs_are_left_out():
    split = CaptionSplit("test", [b""] * 3, list("abc"), [["word " * 30, "a dog"], ["word " * 30], ["a dog"]])
    cache = FeatureCache(None, np.zeros((3, 1, 4, 3), np.float16), np.array([True, True, False]))
    examples = CaptionExamples([split], [cache], build_tokenizer([split], 1), max_words=10)
    assert len(examples) == 1 and examples.caption_count == 1


def test_unusable_data_is_said_in_one_sentence(tmp_path, photos):
    with pytest.raises(DataError, match="There is no file or folder"):
        read_split(str(tmp_path / "nowhere"), "train")
    with pytest.raises(DataError, match="has no split 'winter'"):
        read_split(str(photos), "winter")
    with pytest.raises(DataError, match="No photograph"):
        make_examples([[]])


def test_column_missing(tmp_path):
    from datasets import Dataset

    Dataset.from_dict({"colour": ["x"], "captions": [["y"]]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match="no column 'image'"):
        read_split(str(tmp_path), "train")


def test_dataset_found_under_pictale_data(photos, monkeypatch):
    monkeypatch.setenv("PICTALE_DATA", str(photos.parent))
    assert len(read_split("tiny-photos", "train", limit=3)) == 3


# -- training ----------------------------------------------------------------------------------------------------------
def test_tiny_preset_learns_to_tell_its_pictures_apart(trained, photos, monkeypatch):
    monkeypatch.setattr("training.metrics_captions.has_java", lambda: False)  # METEOR takes twenty seconds to start
    output, result = trained
    assert result.best_metric > 400
    report, captions = evaluate_captioner.evaluate(str(output / "best"), str(photos), "validation", latency_photos=0)
    assert report["distinct_captions"] == 1.0
    for name, caption in captions.items():
        assert all(word in caption.lower() for word in name.split("-")), (name, caption)


def test_the_recipe_of_a_run_is_kept_with_it(trained, photos, shared_cache):
    output, _ = trained
    made = read_recipe(RECIPE, train_captioner.CaptionerRecipe, overrides(photos, shared_cache, output))
    assert read_recipe(output / "recipe.json", train_captioner.CaptionerRecipe) == made


def test_saved_folder_is_complete_and_half_the_size(trained):
    output, _ = trained
    best = output / "best"
    names = {path.name for path in best.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    } <= names
    model = PictaleCaptionerForConditionalGeneration.from_pretrained(best)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert (best / "model.safetensors").stat().st_size < 2.3 * model.num_parameters()
    assert len(PreTrainedTokenizerFast.from_pretrained(best)) == model.config.vocab_size
    settings = json.loads((best / "generation_config.json").read_text())
    assert settings["suppress_tokens"] == [0, 1, 3] and settings["num_beams"] == 3


def test_resumed_run_equals_an_uninterrupted_one(tmp_path, photos, shared_cache):
    settings = {"training.schedule": "constant", "training.save_every": 2, "training.evaluate_every": 3}
    settings |= {"data.batch_size": 3, "model.output_dropout": 0.3, "training.ema_decay": 0.9}
    whole = train_tiny(photos, shared_cache, tmp_path / "whole", **settings, **{"training.max_steps": 11})
    train_tiny(photos, shared_cache, tmp_path / "cut", **settings, **{"training.max_steps": 4})  # inside an epoch of 3
    resumed = train_tiny(photos, shared_cache, tmp_path / "cut", True, **settings, **{"training.max_steps": 11})
    assert whole.steps == resumed.steps == 11
    one, two = (
        PictaleCaptionerForConditionalGeneration.from_pretrained(tmp_path / name / "last").state_dict()
        for name in ("whole", "cut")
    )
    differing = {key: (one[key] - two[key]).abs().max().item() for key in one if not torch.equal(one[key], two[key])}
    assert not differing


def test_output_of_another_run_is_not_overwritten(trained, photos, shared_cache):
    with pytest.raises(RecipeError, match="--resume"):
        train_tiny(photos, shared_cache, trained[0])


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), MemoryError()]
)
def test_out_of_memory_is_told_with_what_to_lower(tmp_path, monkeypatch, capsys, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(train_captioner, "run", fail)
    assert train_captioner.main([str(RECIPE), "--set", "data.batch_size=32"]) == 2
    said = capsys.readouterr().err
    assert "with data.batch_size 32" in said and "data.batch_size=16" in said and said.count("\n") == 1
    error = RuntimeError("something else")
    with pytest.raises(RuntimeError, match="something else"):
        train_captioner.main([str(RECIPE)])


def test_command_line_says_errors_in_one_line(tmp_path, capsys):
    assert train_captioner.main([str(RECIPE), "--set", "data.colour=red"]) == 2
    assert "unknown key 'colour'" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert evaluate_captioner.main(["--model", str(tmp_path / "empty"), "--dataset", "x"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: Cannot load a captioner") and error.count("\n") == 1


def test_real_recipe_is_readable():
    folder = REPOSITORY / "hub_configs" / "captioner-flickr8k"
    recipe = read_recipe(folder / "recipe.json", train_captioner.CaptionerRecipe)
    assert recipe.training.metric == "cider" and recipe.training.greater_is_better
