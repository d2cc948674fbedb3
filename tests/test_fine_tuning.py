"""Training the backbone, whole or its last stages: what changes, what does not, and where its input comes from."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from modeling.configuration_captioner import PictaleCaptionerConfig
from modeling.errors import ModelFolderError, RecipeError
from modeling.image_processing_captioner import PictaleImageProcessor
from modeling.modeling_captioner import PictaleCaptionerForConditionalGeneration
from training import captioner_recipe, train_captioner
from training.loop import LoopOptions, parameter_groups
from training.photo_sources import AugmentOptions, FrozenStages, Photographs, is_chain, open_source
from training.recipes import read_recipe
from training.tiny_photos import COLOURS, SHAPES, draw, write_tiny_photos

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPE = REPOSITORY / "hub_configs" / "tiny-captioner" / "recipe.json"
PROCESSOR = PictaleImageProcessor(size={"height": 64, "width": 64})
PHOTOS = [draw(colour, shape) for colour in COLOURS for shape in SHAPES]
TINY = {
    "vocab_size": 23,
    "backbone_options": {"width": 0.25, "depth": 0.3, "head_channels": 24},
    "image_size": 64,
    "embed_dim": 12,
    "context_dim": 16,
    "attention_dim": 10,
    "hidden_size": 14,
    "freeze_backbone": False,
}


def make_model(**changes):
    torch.manual_seed(0)
    model = PictaleCaptionerForConditionalGeneration(PictaleCaptionerConfig(**{**TINY, **changes}))
    with torch.no_grad():  # statistics as a trained backbone has them, not 0 and 1
        for module in model.encoder.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model


def train_step(model, **inputs):
    model.train()
    labels = torch.tensor([[5, 6, 2], [7, 8, 2]])
    model(labels=labels, **inputs).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1).step()


@pytest.fixture(scope="module")
def pixels():
    torch.manual_seed(1)
    return torch.randn(2, 3, 64, 64)


# -- what learns -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("learning", [1, 3, None])
@pytest.mark.parametrize("train_batch_norm", [False, True])
def test_only_the_last_stages_change_and_statistics_where_asked_for(pixels, learning, train_batch_norm):
    model = make_model(trainable_stages=learning, train_batch_norm=train_batch_norm)
    stages = model.encoder.backbone.stages()
    before = [{key: value.clone() for key, value in stage.state_dict().items()} for stage in stages]
    train_step(model, pixel_values=pixels)
    for index, (stage, old) in enumerate(zip(stages, before, strict=True)):
        learns = index >= len(stages) - (learning or len(stages))
        for key, value in stage.state_dict().items():
            if "num_batches" in key:
                continue
            if "running" in key:
                assert torch.equal(value, old[key]) != (learns and train_batch_norm), (index, key)
            elif key.endswith("conv.weight") or not learns:
                assert torch.equal(value, old[key]) != learns, (index, key)
    assert model.encoder.projection.weight.grad is not None


def test_evaluation_in_between_changes_nothing_about_what_learns(pixels):
    model = make_model(trainable_stages=2, train_batch_norm=True)
    model.train()
    modes = [module.training for module in model.modules()]
    model.eval()
    assert not any(module.training for module in model.modules())
    model.train()
    assert [module.training for module in model.modules()] == modes


def test_impossible_number_of_stages_is_one_sentence():
    for count in (0, 10):
        with pytest.raises(ModelFolderError, match="choose 1 to 9"):
            make_model(trainable_stages=count)
    make_model(trainable_stages=10, freeze_backbone=True)  # nothing to train, so nothing to refuse


def test_backbone_has_a_group_of_its_own():
    model = make_model(trainable_stages=2)
    groups = parameter_groups(model, LoopOptions("out", weight_decay=0.1), {"encoder.backbone": 1e-5})
    backbone = {id(p) for stage in model.encoder.backbone.stages()[-2:] for p in stage.parameters()}
    slow = {id(p) for group in groups if group.get("lr") == 1e-5 for p in group["params"]}
    everything = [id(p) for group in groups for p in group["params"]]
    assert slow == backbone
    assert sorted(everything) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert all((p.dim() > 1) == (group["weight_decay"] > 0) for group in groups for p in group["params"])
    with pytest.raises(RecipeError, match="nothing in it learns"):
        parameter_groups(make_model(freeze_backbone=True), LoopOptions("out"), {"encoder.backbone": 1e-5})


# -- where the input comes from ----------------------------------------------------------------------------------------
def test_cached_stage_gives_the_loss_and_the_gradients_of_the_whole_path(tmp_path):
    options = {"region_dropout": 0.0, "embed_dropout": 0.0, "output_dropout": 0.0}
    model = make_model(trainable_stages=3, **options)
    source = open_source(model.encoder, PROCESSOR, PHOTOS, tmp_path, views=2)
    assert source.kind == "stage_features" and source.features.ndim == 5
    model.train()
    labels, rows, photographs = torch.tensor([[5, 6, 2], [7, 8, 2]]), [3, 6], Photographs(PHOTOS, PROCESSOR, views=2)
    for view in (0, 1):
        cached, pixels = (
            torch.stack([one.get(row, view, np.random.default_rng(0)) for row in rows]) for one in (source, photographs)
        )
        exact = model.encoder.extract_frozen(pixels)
        assert not exact.requires_grad
        torch.testing.assert_close(cached.float(), exact, rtol=2e-3, atol=2e-3)  # the cache is float16
        found = []
        for inputs in ({"pixel_values": pixels}, {"stage_features": exact}, {"stage_features": cached}):
            model.zero_grad()
            loss = model(labels=labels, **inputs).loss
            loss.backward()
            grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            found.append((loss.detach(), grads))
        (loss, gradients), (same_loss, same_gradients), (near_loss, _) = found
        torch.testing.assert_close(near_loss, loss, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(same_loss, loss)
        assert any("backbone.head" in name for name in gradients) and same_gradients.keys() == gradients.keys()
        for name in gradients:
            torch.testing.assert_close(same_gradients[name], gradients[name], rtol=1e-4, atol=1e-6)


def test_cache_is_kept_while_later_stages_learn_and_made_anew_when_earlier_ones_differ(tmp_path):
    model = make_model(trainable_stages=2)
    first = open_source(model.encoder, PROCESSOR, PHOTOS, tmp_path)
    with torch.no_grad():
        model.encoder.backbone.head.conv.weight.mul_(2)
    assert open_source(model.encoder, PROCESSOR, PHOTOS, tmp_path).folder == first.folder
    with torch.no_grad():
        model.encoder.backbone.stem.conv.weight.mul_(2)
    assert open_source(model.encoder, PROCESSOR, PHOTOS, tmp_path).folder != first.folder
    assert open_source(make_model(trainable_stages=3).encoder, PROCESSOR, PHOTOS, tmp_path).folder != first.folder


def test_source_follows_what_learns(tmp_path):
    def kind(augment=None, **changes):
        return open_source(make_model(**changes).encoder, PROCESSOR, PHOTOS, tmp_path, augment=augment).kind

    assert kind(freeze_backbone=True) == "region_features"
    assert kind(trainable_stages=2) == "stage_features"
    assert kind() == "pixel_values"
    assert kind(AugmentOptions(crop=0.8), trainable_stages=2) == "pixel_values"
    assert kind(AugmentOptions(crop=0.8, cached=1), trainable_stages=2) == "stage_features"
    assert kind(AugmentOptions(crop=0.8, cached=1), freeze_backbone=True) == "region_features"


def test_a_backbone_that_is_no_chain_reads_photographs(tmp_path, monkeypatch):
    model = make_model(trainable_stages=2)
    assert is_chain(model.encoder.backbone, 64)
    plain = type(model.encoder.backbone).forward
    monkeypatch.setattr(type(model.encoder.backbone), "forward", lambda self, x: plain(self, x) + 1)
    assert not is_chain(model.encoder.backbone, 64)
    assert open_source(model.encoder, PROCESSOR, PHOTOS, tmp_path).kind == "pixel_values"


def test_frozen_stages_are_the_first_ones(pixels):
    model = make_model(trainable_stages=4).eval()
    part = FrozenStages(model.encoder)
    stages = model.encoder.backbone.stages()
    expected = nn.Sequential(*stages[:-4])(pixels)
    torch.testing.assert_close(part.extract(pixels), expected, rtol=1e-4, atol=1e-5)
    part.prepare_for_inference()
    torch.testing.assert_close(part.extract(pixels), expected, rtol=1e-3, atol=1e-4)
    assert sum(p.numel() for p in part.backbone.parameters()) == sum(
        p.numel() for s in stages[:-4] for p in s.parameters()
    )


# -- photographs -------------------------------------------------------------------------------------------------------
def test_augmentation_is_decided_by_the_seed_and_stays_mild():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8))
    options = AugmentOptions(crop=0.7, colour=0.3)
    one, two, other = (options(image, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, two) and not np.array_equal(np.array(one.resize((8, 8))), np.array(other.resize((8, 8))))
    for seed in range(30):
        crop = AugmentOptions(crop=0.7)(image, np.random.default_rng(seed))
        assert 0.6 * 80 * 60 < crop.width * crop.height <= 80 * 60
    assert np.array_equal(AugmentOptions()(image, np.random.default_rng(0)), image)
    with pytest.raises(RecipeError, match="crop above 0"):
        AugmentOptions(crop=0)
    with pytest.raises(RecipeError, match="cached copies from 0"):
        AugmentOptions(cached=-1)


def test_photographs_are_what_the_processor_makes_and_their_mirror():
    source = Photographs(PHOTOS, PROCESSOR, views=2)
    straight, mirrored = (source.get(2, view, np.random.default_rng(0)) for view in (0, 1))
    assert torch.equal(straight, source.get_many([2])[0]) and torch.equal(mirrored, straight.flip(-1))


def test_broken_photographs_are_told_of_and_skipped(capsys):
    cut = PHOTOS[1][: len(PHOTOS[1]) // 2]
    source = Photographs([PHOTOS[0], b"no picture", None, cut, PHOTOS[4]], PROCESSOR)
    assert source.usable.tolist() == [True, False, False, True, True]
    assert "2 of 5 images cannot be read" in capsys.readouterr().err
    assert torch.equal(source.get_many([3])[0], source.get_many([4])[0])
    assert capsys.readouterr().err.count("image number 3 cannot be read") == 1


# -- whole runs --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_tiny_photos(tmp_path_factory.mktemp("data") / "tiny-photos")


def run_tiny(photos, output, resume=False, **more):
    pytest.importorskip("pycocoevalcap", reason="captions are scored with pycocoevalcap (training/requirements.txt)")
    settings = {"data.train": [str(photos)], "data.validation": [str(photos)]}
    settings |= {"data.cache_dir": str(photos.parent / "features"), "training.output_dir": str(output), **more}
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return train_captioner.run(read_recipe(RECIPE, train_captioner.CaptionerRecipe, overrides), resume)


@pytest.fixture(scope="module")
def first_stage(photos, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "first"
    run_tiny(photos, output, **{"training.max_steps": 4, "training.evaluate_every": 4})
    return output / "best"


def load(folder):
    return PictaleCaptionerForConditionalGeneration.from_pretrained(folder)


PARTS = {
    "cached stage": {"model.trainable_stages": 2, "data.augment": {"crop": 0.7, "cached": 2}},
    "photographs": {"data.augment": {"crop": 0.8, "colour": 0.2}, "data.workers": 1, "model.train_batch_norm": True},
}


@pytest.mark.parametrize("part", PARTS)
def test_resumed_run_equals_an_uninterrupted_one(photos, first_stage, tmp_path, part):
    settings = {"initial": str(first_stage), "model.freeze_backbone": False, "backbone_learning_rate": 1e-3}
    settings |= {"data.batch_size": 3, "training.schedule": "constant", "training.save_every": 2}
    settings |= {"training.evaluate_every": 3, "training.ema_decay": 0.9, **PARTS[part]}
    whole = run_tiny(photos, tmp_path / "whole", **settings, **{"training.max_steps": 7})
    run_tiny(photos, tmp_path / "cut", **settings, **{"training.max_steps": 4})  # inside an epoch of 3 steps
    resumed = run_tiny(photos, tmp_path / "cut", True, **settings, **{"training.max_steps": 7})
    assert whole.steps == resumed.steps == 7
    one, two, start = (
        load(path).state_dict() for path in (tmp_path / "whole/last", tmp_path / "cut/last", first_stage)
    )
    assert not [key for key in one if not torch.equal(one[key], two[key])]
    changed = {key for key in one if not torch.equal(one[key], start[key])}
    assert "encoder.backbone.head.conv.weight" in changed
    assert ("encoder.backbone.stem.conv.weight" in changed) == (part == "photographs")
    assert ("encoder.backbone.head.norm.running_mean" in changed) == (part == "photographs")


def test_tuned_backbone_is_in_the_folder_and_fuses(photos, first_stage, tmp_path):
    settings = {"initial": str(first_stage), "model.freeze_backbone": False, "training.max_steps": 2}
    run_tiny(photos, tmp_path / "run", **settings, **{"training.evaluate_every": 2})
    model = load(tmp_path / "run" / "best")
    pixels = Photographs(PHOTOS, PROCESSOR).get_many(range(8))
    with torch.no_grad():
        plain = model.eval().encoder(pixels).last_hidden_state
        fused = model.prepare_for_inference().encoder(pixels).last_hidden_state
        untuned = load(first_stage).eval().encoder(pixels).last_hidden_state
    torch.testing.assert_close(plain, fused, rtol=1e-3, atol=2e-3)
    assert (plain - untuned).abs().max() > 0.01


def test_the_backbone_of_initial_is_frozen_unless_the_recipe_says_otherwise(first_stage):
    data = captioner_recipe.CaptionDataOptions([], [])
    recipe = train_captioner.CaptionerRecipe(data, LoopOptions("out"), initial=str(first_stage))
    for changes, learning in (({}, 0), ({"freeze_backbone": False, "trainable_stages": 1}, 3)):
        recipe.model = changes
        model, _ = captioner_recipe.load_initial(recipe)
        assert sum(p.requires_grad for p in model.encoder.backbone.parameters()) == learning
