"""Backbones by name: transformers' AutoBackbone here, torchvision's and timm's in a process of their own (see
`tests.backbone_checks`). PICTALE_TIMM_PATH is a folder made by
    pip install --target FOLDER --no-deps timm torchvision==VERSION     (the one that belongs to the installed torch)
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, ConvNextConfig, Dinov2Config, ResNetConfig, SwinConfig

from modeling import backbones_external
from modeling.backbones import build_backbone
from modeling.backbones_external import ALIASES
from modeling.configuration_captioner import PictaleCaptionerConfig
from modeling.errors import DataError, ModelFolderError, PictaleError
from modeling.image_processing_captioner import PictaleImageProcessor
from modeling.images import load_image
from modeling.modeling_captioner import PictaleCaptionerForConditionalGeneration
from tests.backbone_checks import check, make_captioner
from training import train_captioner
from training.backbone_weights import backbone_preprocessing, load_backbone_weights
from training.captioner_recipe import CaptionerRecipe
from training.recipes import read_recipe
from training.tiny_photos import draw, write_tiny_photos

REPOSITORY = Path(__file__).resolve().parent.parent
# the smallest of every family that older captioners used, with the grid and channels it must give
OLDER = {
    "resnet18": (64, 2, 512),
    "wide_resnet50_2": (64, 2, 2048),
    "resnest14": (64, 2, 2048),
    "densenet121": (64, 2, 1024),
    "squeezenet1_1": (64, 3, 512),
    "mobilenet_v2": (64, 2, 1280),
    "mobilenet_v3_small": (64, 2, 576),
    "shufflenet_v2_x0_5": (64, 2, 1024),
    "vgg19": (64, 4, 512),
    "googlenet": (64, 2, 1024),
    "inception_v3": (139, 3, 2048),
}
FURTHER = {"timm:convnext_atto": (64, 2, 320), "timm:vit_tiny_patch16_224": (224, 14, 192)}
TRANSFORMERS = {
    "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 2, 1], layer_type="basic"),
    "convnext": ConvNextConfig(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 2, 1]),
    "swin": SwinConfig(image_size=64, embed_dim=12, depths=[1, 1, 1], num_heads=[1, 2, 3], window_size=4),
    "dinov2": Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14),
}


def assert_checks(found: dict, size: int, side: int, channels: int) -> None:
    assert "error" not in found, found["error"]
    assert found["features"] == [2, channels, side, side] and found["finite"]
    assert found["channels"] == channels and found["grid"] == [side, side]
    assert found["maps"] == [2, 1, 4, side * side]
    assert found["generated"][0] == 2 and 2 <= found["generated"][1] <= 4
    assert found["fused_difference"] < 1e-3 and found["reloaded_equal"]
    assert found["frozen_unchanged"] and found["trained_changes"]
    assert found["partly_frozen_unchanged"] and found["last_stage_changes"]
    assert found["stages"] >= 2 and found["stages_hold_all_once"]
    assert 0 < found["frozen_loss"] < 10 and 0 < found["loss"] < 10
    assert any(found["gradients"]) and len(found["gradients"]) == found["stages"]


# -- torchvision and timm ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report() -> dict:
    """One process for all names, because torchvision may only be imported where nothing else is tested."""
    folder = os.environ.get("PICTALE_TIMM_PATH")
    if folder is None:
        if not (importlib.util.find_spec("timm") and importlib.util.find_spec("torchvision")):
            pytest.skip("timm and torchvision are neither installed nor in the folder PICTALE_TIMM_PATH")
        folder = "-"
    names = [f"{name}@{size}" for name, (size, *_) in {**OLDER, **FURTHER}.items()]
    command = [sys.executable, "-m", "tests.backbone_checks", folder, *names]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", [*OLDER, *FURTHER])
def test_older_systems_encoder_works_by_name(report, name):
    """Grid, channels, attention maps, generate, save and load, training frozen and not, equal to the library's own."""
    found = report[name]
    assert_checks(found, *{**OLDER, **FURTHER}[name])
    assert all(found["gradients"])
    if name in OLDER:
        assert found["chain"]  # so the features of its frozen stages can be cached
        assert found["library_difference"] < 1e-5
        assert found.get("file_difference", 0) < 1e-5


def test_every_plain_name_is_one_the_library_has(report):
    assert not [name for name, found in report.items() if "has no" in found.get("error", "")]
    families = (
        "resnet wide_resnet resnest densenet squeezenet mobilenet shufflenet vgg19 googlenet inception_v3".split()
    )
    assert all(any(name.startswith(family) for name in ALIASES) for family in families)


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (ModuleNotFoundError("No module named 'torchvision'", name="torchvision"), "not installed: pip install"),
        (
            RuntimeError("operator torchvision::nms does not exist\nmore"),
            "does not work with torch .*nms does not exist",
        ),
    ],
)
@pytest.mark.parametrize("name", ["resnet50", "timm:convnext_atto", "resnest50"])
def test_missing_or_broken_package_is_one_sentence(monkeypatch, failure, sentence, name):
    def broken(package):
        raise failure

    monkeypatch.setattr(backbones_external.importlib, "import_module", broken)
    with pytest.raises(ModelFolderError, match=sentence) as error:
        build_backbone(name)
    assert "\n" not in str(error.value) and name.split(":")[-1][:8] in str(error.value)


def test_nothing_optional_is_imported_with_the_package():
    code = "import sys, modeling, modeling.backbones; assert not {'torchvision', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


# -- transformers ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=TRANSFORMERS)
def folder(request, tmp_path):
    """A folder with the configuration of a small model and no weights."""
    TRANSFORMERS[request.param].save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def side_of(folder: Path) -> int:
    return {"swin": 64, "dinov2": 56}.get(json.loads((folder / "config.json").read_text())["model_type"], 64)


def test_auto_backbone_works_by_folder(folder):
    size = side_of(folder)
    model = make_captioner(f"transformers:{folder}", size)
    backbone = model.encoder.backbone
    side = {"swin": 4, "dinov2": 4}.get(backbone.options["config"]["model_type"], 2)
    assert backbone.channels == {"swin": 48}.get(backbone.options["config"]["model_type"], 24)
    assert_checks(check(model, size), size, side, backbone.channels)


def test_saved_captioner_needs_its_source_no_more(folder, tmp_path):
    size = side_of(folder)
    model = make_captioner(f"transformers:{folder}", size).eval()
    model.save_pretrained(tmp_path / "saved")
    shutil.rmtree(folder)
    loaded = PictaleCaptionerForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    pixels = torch.randn(1, 3, size, size)
    with torch.no_grad():
        assert torch.equal(loaded.encoder.extract(pixels), model.encoder.extract(pixels))


def test_training_script_takes_it(tmp_path):
    """From a recipe that names it to a folder that loads without it."""
    pytest.importorskip("pycocoevalcap", reason="the captioner is evaluated with pycocoevalcap")
    write_tiny_photos(tmp_path / "photos")
    TRANSFORMERS["convnext"].save_pretrained(tmp_path / "source")
    settings = {"image_mean": [0.4] * 3, "image_std": [0.2] * 3, "crop_size": {"height": 64, "width": 64}}
    (tmp_path / "source" / "preprocessor_config.json").write_text(json.dumps(settings))
    changes = {
        "model": {"backbone": f"transformers:{tmp_path / 'source'}", "hidden_size": 16, "embed_dim": 8},
        "data": {"train": [str(tmp_path / "photos")], "validation": [str(tmp_path / "photos")], "min_count": 1},
        "training": {"output_dir": str(tmp_path / "run"), "max_steps": 2, "evaluate_every": 2, "metric": "cider"},
        "backbone_weights": "random",
    }
    changes["data"] |= {"cache_dir": str(tmp_path / "features"), "batch_size": 4, "validation_images": 2}
    (tmp_path / "recipe.json").write_text(json.dumps(changes))
    train_captioner.run(read_recipe(tmp_path / "recipe.json", CaptionerRecipe, []))
    shutil.rmtree(tmp_path / "source")
    model = PictaleCaptionerForConditionalGeneration.from_pretrained(tmp_path / "run" / "best")
    processor = PictaleImageProcessor.from_pretrained(tmp_path / "run" / "best")
    assert model.config.image_size == processor.size["height"] == 64 and list(processor.image_mean) == [0.4] * 3
    pixels = processor(load_image(draw("red", "circle")), return_tensors="pt").pixel_values
    assert model.eval().generate(pixel_values=pixels, max_new_tokens=3).shape[0] == 1


def test_fused_copy_is_a_copy(folder):
    """transformers hooks the forward of its models; a copy that still calls the original would follow its weights."""
    size = side_of(folder)
    backbone = build_backbone(f"transformers:{folder}").eval()
    fused, pixels = backbone.fuse(), torch.randn(1, 3, size, size)
    with torch.no_grad():
        expected = fused(pixels)
        for parameter in backbone.parameters():
            parameter.zero_()
        assert torch.equal(fused(pixels), expected)


def test_weights_of_the_source_and_of_a_file(folder, tmp_path):
    name, size = f"transformers:{folder}", side_of(folder)
    source = build_backbone(name)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.uniform_(-0.2, 0.2)
    source.body.save_pretrained(folder)
    torch.save({"state_dict": {f"module.{k}": v for k, v in source.body.state_dict().items()}}, tmp_path / "w.pth")
    pixels = torch.randn(1, 3, size, size)
    for path in (None, tmp_path / "w.pth"):
        target = build_backbone(name)
        load_backbone_weights(target, name, path)
        with torch.no_grad():
            assert torch.equal(target.eval()(pixels), source.eval()(pixels))


def test_deeper_grid_by_option(tmp_path):
    TRANSFORMERS["resnet"].save_pretrained(tmp_path)
    backbone = build_backbone(f"transformers:{tmp_path}", out_stage=-2)
    assert (backbone.channels, backbone.grid(64, 64), backbone.stride) == (16, (4, 4), 16)


def test_sources_that_cannot_be_used(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelFolderError, match="'bert' model, which cannot serve as a backbone"):
        build_backbone(f"transformers:{tmp_path}")
    with pytest.raises(ModelFolderError, match="give a folder with a config.json"):
        build_backbone("transformers:nobody/nothing")
    with pytest.raises(ModelFolderError, match="names no model"):
        build_backbone("timm:")
    TRANSFORMERS["resnet"].save_pretrained(tmp_path)
    with pytest.raises(ModelFolderError, match="does not take these backbone_options .*'width'"):
        build_backbone(f"transformers:{tmp_path}", width=0.5)


def test_picture_size_the_network_refuses(tmp_path):
    TRANSFORMERS["dinov2"].save_pretrained(tmp_path)
    config = PictaleCaptionerConfig(backbone=f"transformers:{tmp_path}", image_size=5, vocab_size=12)
    with pytest.raises(ModelFolderError, match="takes no pictures of 5 x 5 .*56"):
        _ = PictaleCaptionerForConditionalGeneration(config).grid_size


# -- names, files, preprocessing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "meant"), [("resnet5", "resnet50"), ("vgg_19", "vgg19"), ("lite0", "Use one of")])
def test_unknown_name_is_answered_with_close_ones(name, meant):
    with pytest.raises(ModelFolderError, match=meant):
        build_backbone(name)


def test_files_that_are_not_the_weights(tmp_path):
    backbone = build_backbone("efficientnet_lite0", width=0.25, depth=0.3, head_channels=24)
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, sentence in (
        ("text.pth", "not a weights file"),
        ("text.safetensors", "not a weights file"),
        ("other.pth", "another model"),
        ("list.pth", "no weights by name"),
        ("missing.pth", "no weights file"),
    ):
        with pytest.raises(DataError, match=sentence) as error:
            load_backbone_weights(backbone, "efficientnet_lite0", tmp_path / name)
        assert "\n" not in str(error.value)


def test_backbone_of_a_trained_captioner_is_found_in_its_file(tmp_path):
    options = {"width": 0.25, "depth": 0.3, "head_channels": 24}
    model = make_captioner("efficientnet_lite0", 64, options).eval()
    model.save_pretrained(tmp_path)
    backbone = build_backbone("efficientnet_lite0", **options)
    load_backbone_weights(backbone, "efficientnet_lite0", tmp_path / "model.safetensors")
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(backbone.eval()(pixels), model.encoder.backbone(pixels))


def test_densenet_files_of_old_are_read(tmp_path):
    from training.backbone_weights import read_weights

    old = {"features.denseblock1.denselayer1.norm.1.weight": torch.ones(1), "features.1.conv.1.0.weight": torch.ones(1)}
    torch.save(old, tmp_path / "old.pth")
    new = {"features.denseblock1.denselayer1.norm1.weight", "features.1.conv.1.0.weight"}
    assert set(read_weights(tmp_path / "old.pth")) == new


def test_preprocessing_belongs_to_the_weights(tmp_path):
    assert backbone_preprocessing("efficientnet_lite1")["image_size"] == 240
    assert backbone_preprocessing("efficientnet_lite0")["image_mean"] == [127 / 255] * 3
    assert backbone_preprocessing("vgg19")["image_std"] == [0.229, 0.224, 0.225]
    assert backbone_preprocessing("inception_v3") == {
        "image_size": 299,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    TRANSFORMERS["dinov2"].save_pretrained(tmp_path)
    assert backbone_preprocessing(f"transformers:{tmp_path}")["image_size"] == 56
    settings = {"image_mean": [0.1] * 3, "image_std": [0.2] * 3, "size": {"shortest_edge": 48}}
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", **settings})
    )
    found = {"image_size": 48, "image_mean": [0.1] * 3, "image_std": [0.2] * 3}
    assert backbone_preprocessing(f"transformers:{tmp_path}") == found


def test_pretrained_weights_offline_are_one_sentence(tmp_path):
    TRANSFORMERS["resnet"].save_pretrained(tmp_path)
    name = f"transformers:{tmp_path}"
    with pytest.raises(PictaleError, match="cannot be had .*random") as error:
        load_backbone_weights(build_backbone(name), name)
    assert "\n" not in str(error.value)
