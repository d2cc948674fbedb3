"""A captioner that learns to tell photographs apart beside saying what they show."""

import json

import pytest
import torch

from modeling.errors import RecipeError
from modeling.modeling_captioner import PictaleCaptionerForConditionalGeneration
from tests.conftest import REPOSITORY
from tests.tiny import tiny_captioner
from training import train_captioner
from training.captioner_recipe import CaptionerRecipe
from training.contrastive import ContrastiveCaptioner, ContrastiveOptions
from training.recipes import read_recipe
from training.tiny_photos import write_tiny_photos

RECIPE = REPOSITORY / "hub_configs" / "tiny-captioner" / "recipe.json"
SMALL = {"embedding_size": 16, "word_size": 8, "hidden_size": 12}
LABELS = torch.tensor([[5, 6, 2], [7, 8, 2], [6, 5, 2]])


def learner(weight=1.0, **changes):
    torch.manual_seed(0)
    captioner = tiny_captioner(**changes)
    return ContrastiveCaptioner(captioner, ContrastiveOptions(weight=weight, **SMALL)).train()


def test_the_loss_is_the_sum_of_both_and_reaches_the_backbone():
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model, owner = learner(2.0, freeze_backbone=False), torch.tensor([0, 0, 1])
    output = model(labels=LABELS, image_index=owner, pixel_values=pixels)
    told, matched = float(output.report["told"]), float(output.report["matched"])
    assert matched > 0 and output.loss.item() == pytest.approx(told + 2 * matched, rel=1e-5)
    output.loss.backward()
    assert model.captioner.encoder.backbone.stem.conv.weight.grad.abs().sum() > 0
    assert model.matching.embedding.words.weight.grad.abs().sum() > 0


def test_pixels_and_their_features_are_the_same_photograph():
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model = learner(freeze_backbone=False).eval()
    owner = torch.tensor([0, 1, 1])
    features = model.captioner.encoder.extract(pixels)
    by_pixels = model(labels=LABELS, image_index=owner, pixel_values=pixels)
    by_features = model(labels=LABELS, image_index=owner, region_features=features)
    torch.testing.assert_close(by_pixels.loss, by_features.loss)


def test_a_caption_without_a_photograph_is_matched_with_none():
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model = learner(freeze_backbone=False).eval()
    with_text = model(labels=LABELS, image_index=torch.tensor([0, 1, -1]), pixel_values=pixels)
    without = model(labels=LABELS[:2], image_index=torch.tensor([0, 1]), pixel_values=pixels)
    torch.testing.assert_close(with_text.report["matched"], without.report["matched"])


def recipe(photos, output, **more):
    settings = {"data.train": [str(photos)], "data.validation": [str(photos)], "training.output_dir": str(output)}
    settings |= {"model.freeze_backbone": False, "data.augment": {"crop": 0.9}, "contrastive": SMALL}
    settings |= {"training.evaluate_every": 3, "training.save_every": 2, "training.schedule": "constant", **more}
    return read_recipe(RECIPE, CaptionerRecipe, [f"{key}={json.dumps(value)}" for key, value in settings.items()])


def test_a_run_leaves_a_captioner_and_resumes_exactly(tmp_path):
    pytest.importorskip("pycocoevalcap", reason="captions are scored with pycocoevalcap (training/requirements.txt)")
    photos = write_tiny_photos(tmp_path / "tiny-photos")
    ema = {"training.ema_decay": 0.9}
    train_captioner.run(recipe(photos, tmp_path / "whole", **ema, **{"training.max_steps": 3}))
    train_captioner.run(recipe(photos, tmp_path / "cut", **ema, **{"training.max_steps": 2}))
    train_captioner.run(recipe(photos, tmp_path / "cut", **ema, **{"training.max_steps": 3}), resume=True)
    one, two = (
        PictaleCaptionerForConditionalGeneration.from_pretrained(tmp_path / name / "last").state_dict()
        for name in ("whole", "cut")
    )
    assert not [key for key in one if not torch.equal(one[key], two[key])]
    assert not [key for key in one if "matching" in key or "embedding.words" in key]
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert any("cider" in line for line in log)


def test_what_cannot_be_is_one_sentence(tmp_path):
    with pytest.raises(RecipeError, match="teaches the backbone, which is frozen"):
        recipe(tmp_path, tmp_path / "out", **{"model.freeze_backbone": True})
    with pytest.raises(RecipeError, match="goes with cross entropy"):
        recipe(tmp_path, tmp_path / "out", self_critical={"samples": 2})
    with pytest.raises(RecipeError, match="above 0"):
        ContrastiveOptions(weight=0)
