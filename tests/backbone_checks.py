"""What every backbone must do within a captioner, and a program that checks it for backbones of torchvision and timm.

    python -m tests.backbone_checks FOLDER NAME[@SIZE] ...      prints one JSON object: what was found for each name

FOLDER holds torchvision and timm, installed without their dependencies, or is - where both are installed properly. It
is put on the path of this process only: the torchvision of PyPI belongs to a CUDA build of torch, and where it does not
fit, transformers cannot be imported either. Its two compiled operators, which no classifier uses, are declared so that
it can be imported at all.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import traceback
from pathlib import Path

import torch
from torch import nn
from transformers.initialization import no_init_weights
from transformers.utils.logging import disable_progress_bar

from modeling.backbones_external import ALIASES, leaves, require, resolve
from modeling.configuration_captioner import PictaleCaptionerConfig
from modeling.modeling_captioner import PictaleCaptionerForConditionalGeneration
from training.backbone_weights import load_backbone_weights
from training.photo_sources import is_chain

SMALL = {"vocab_size": 12, "embed_dim": 8, "context_dim": 8, "attention_dim": 8, "hidden_size": 8}


def make_captioner(name: str, size: int, options: dict | None = None) -> PictaleCaptionerForConditionalGeneration:
    """A tiny untrained captioner whose backbone has statistics to lose."""
    torch.manual_seed(0)
    config = PictaleCaptionerConfig(backbone=name, backbone_options=options, image_size=size, **SMALL)
    model = PictaleCaptionerForConditionalGeneration(config)
    for norm in model.encoder.backbone.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.1, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return model


def train_steps(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, steps: int) -> float:
    """A few steps of plain gradient descent; returns the last loss. Gradients are left in place."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(pixel_values=pixels, labels=labels).loss
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(module: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def check(model: PictaleCaptionerForConditionalGeneration, size: int) -> dict:
    """Go through all of it; the caller compares what comes back."""
    backbone = model.encoder.backbone
    pixels = torch.randn(2, 3, size, size)
    labels = torch.tensor([[4, 5, 6, 2], [7, 8, 2, -100]])
    model.eval()
    with torch.no_grad():
        features = backbone(pixels)
        maps = model(pixel_values=pixels, labels=labels, output_attentions=True).cross_attentions[0]
        ids = model.generate(pixel_values=pixels, max_new_tokens=3, num_beams=2)
        fused = backbone.fuse()
        difference = float((fused(pixels) - features).abs().max() / features.abs().max())
    found = {
        "features": list(features.shape),
        "finite": bool(features.isfinite().all()) and float(features.std()) > 0,
        "channels": backbone.channels,
        "grid": list(model.grid_size),
        "maps": list(maps.shape),
        "generated": list(ids.shape),
        "fused_difference": difference,
    }
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = PictaleCaptionerForConditionalGeneration.from_pretrained(folder).eval()
        with torch.no_grad():
            found["reloaded_equal"] = torch.allclose(loaded.encoder.backbone(pixels), features, atol=1e-5)
        del loaded
    stages = backbone.stages()
    held = sorted(id(p) for stage in stages for p in stage.parameters())
    found["stages"] = len(stages)
    found["stages_hold_all_once"] = held == sorted(id(p) for p in backbone.parameters())

    before = state_of(backbone)
    found["frozen_loss"] = train_steps(model, pixels, labels, 2)
    found["frozen_unchanged"] = same(backbone, before)
    found["chain"] = is_chain(backbone, size)
    found["partly_frozen_unchanged"], found["last_stage_changes"] = check_last_stage(model, pixels, labels)
    model.encoder.frozen, model.encoder._stages = False, ([], stages)
    backbone.requires_grad_(True)
    found["loss"] = train_steps(model, pixels, labels, 1)
    found["gradients"] = [any(p.grad is not None and p.grad.any() for p in stage.parameters()) for stage in stages]
    found["trained_changes"] = not same(backbone, before)
    return found


def check_last_stage(
    model: PictaleCaptionerForConditionalGeneration, pixels: torch.Tensor, labels: torch.Tensor
) -> tuple[bool, bool]:
    """Train the last stage only: whether the others keep weights and statistics, and whether it changes."""
    *still, last = model.encoder.backbone.stages()
    model.encoder.frozen, model.encoder._stages = False, (still, [last])
    last.requires_grad_(True)
    before = [state_of(stage) for stage in (*still, last)]
    train_steps(model, pixels, labels, 2)
    return all(same(*pair) for pair in zip(still, before[:-1], strict=True)), not same(last, before[-1])


@torch.no_grad()
def check_library(model: PictaleCaptionerForConditionalGeneration, name: str, size: int) -> dict:
    """How far the grid is from what the library's own classifier computes at that place, relative to the largest value:
    with the backbone's weights in the classifier, and with the classifier's weights read back from a file.
    """
    library, plain = resolve(name)
    backbone, pixels = model.encoder.backbone.eval(), torch.randn(2, 3, size, size)
    expected = backbone(pixels)
    with no_init_weights():
        if library == "timm":
            full = require("timm", name).create_model(plain).eval()
            full.load_state_dict(backbone.body.state_dict(), strict=False)
            seen = full.forward_features(pixels)
        else:
            quiet = {"init_weights": False} if plain in ("googlenet", "inception_v3") else {}
            full = require("torchvision", name).models.get_model(plain, **quiet).eval()
            full.load_state_dict(backbone.body.state_dict(), strict=False)
            seen = map_within(full, backbone.body, pixels)
    found = {"library_difference": float((seen - expected).abs().max() / expected.abs().max())}
    if sum(p.numel() for p in full.parameters()) < 30e6:
        for parameter in backbone.parameters():
            parameter.zero_()
        with tempfile.TemporaryDirectory() as folder:
            torch.save(full.state_dict(), Path(folder) / "full.pth")
            load_backbone_weights(backbone, name, Path(folder) / "full.pth")
        found["file_difference"] = float((backbone(pixels) - expected).abs().max() / expected.abs().max())
    return found


def map_within(full: nn.Module, body: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """What the module of a torchvision classifier gives that is the last of `body`."""
    names = [name for name, part in body.named_modules() if part is leaves(body)[-1]]
    is_dense = type(full).__name__ == "DenseNet"  # its last activation is no module
    maps = []
    part = full.features if is_dense else full.get_submodule(names[0])
    hook = part.register_forward_hook(lambda module, inputs, output: maps.append(output.clone()))
    full(pixels)
    hook.remove()
    return maps[0].relu() if is_dense else maps[0]


_DECLARED: list[torch.library.Library] = []  # operators are there as long as their library


def make_importable() -> None:
    """Declare the compiled operators of torchvision if it cannot be imported without; see the head of this file."""
    try:
        importlib.import_module("torchvision")
        return
    except (RuntimeError, OSError, ImportError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _DECLARED.append(library)


def main(arguments: list[str]) -> None:
    folder, *names = arguments
    disable_progress_bar()
    if folder != "-":
        sys.path.append(folder)
        make_importable()
    report = {}
    for entry in names:
        name, _, size = entry.partition("@")
        try:
            model = make_captioner(name, int(size or 64))
            report[name] = check(model, int(size or 64))
            if name in ALIASES:  # all of them chains of convolutions
                report[name] |= check_library(model, name, int(size or 64))
        except Exception:  # noqa: BLE001 - the report is read by a test, which shows it
            report[name] = {"error": traceback.format_exc()}
    for name in ALIASES:
        library, model = resolve(name)
        package = require(library, name)
        known = package.list_models(model) if library == "timm" else package.models.list_models(include=model)
        if model not in known:
            report[name] = {"error": f"{library} has no {model}"}
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1:])
