"""Features of a frozen backbone, computed once and kept on disk.

A cache is a folder named by a fingerprint of everything that decides its content: the backbone's weights, the
preprocessing, the photographs and the views. Change one of them and it is another folder, so a cache is never stale.
It holds
    features.npy   float16 [images, views, P, F], memory-mapped
    state.npy      uint8 [images]: 0 to do, 1 done, 2 broken
    key.json       what the fingerprint was made of, for people
State follows the features to disk, so a killed run goes on where it stopped. View 0 is the photograph, view 1 its
mirror image.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from modeling.errors import DataError, ImageError
from modeling.images import load_image

from .caption_sources import image_names, say_skipped

TO_DO, DONE, BROKEN = 0, 1, 2
FORMAT_VERSION = 2


@dataclass(frozen=True)
class FeatureCache:
    """An opened cache: `features` float16 [images, views, P, F] on disk, `usable` bool [images].

    `kind` is the captioner's argument that the features are for; `stage_features` are [images, views, C, h, w].
    """

    folder: Path
    features: np.ndarray
    usable: np.ndarray
    kind: str = "region_features"

    def __len__(self) -> int:
        return len(self.usable)

    @property
    def views(self) -> int:
        return self.features.shape[1]

    def get(self, row: int, view: int = 0, rng: np.random.Generator | None = None) -> torch.Tensor:
        """Features [P, F] of one photograph, float16; nothing about them is random."""
        return torch.from_numpy(np.array(self.features[row, view]))

    def get_many(self, rows: Sequence[int]) -> torch.Tensor:
        """Region features [B, P, F] of the unmirrored photographs, float16."""
        return torch.from_numpy(self.features[list(rows), 0])


def weights_fingerprint(module: nn.Module) -> str:
    """Hash of all parameters and buffers, names excluded."""
    digest = hashlib.sha256()
    for tensor in module.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def images_fingerprint(images: Sequence[bytes | None]) -> str:
    """Hash of the encoded photographs in order."""
    digest = hashlib.sha256()
    for data in images:
        digest.update(hashlib.sha256(data or b"").digest())
    return digest.hexdigest()


def decode_image(data: bytes | None) -> Image.Image | None:
    """The photograph as the pipeline would read it, or None if it cannot be read."""
    try:
        return load_image(data)
    except ImageError:
        return None


def open_cache(
    encoder: nn.Module,
    processor,
    images: Sequence[bytes | None],
    root: str | Path,
    *,
    views: int = 2,
    batch_size: int = 16,
    label: str = "photographs",
    kind: str = "region_features",
) -> FeatureCache:
    """Open the cache of `images`, computing whatever is still missing.

    Args:
        encoder: a captioner's encoder; `extract(pixel_values)` gives [B, P, F]. Its weights are part of the key.
        processor: the image processor; its settings are part of the key.
        images: encoded photographs; None or undecodable bytes are marked broken and counted.
        root: folder that holds all caches.
        views: 1 for the photograph alone, 2 with its mirror image.
        label: what the progress bar says.
        kind: which argument of the captioner the features are for.

    Raises:
        DataError: no image can be read.
    """
    key = {
        "format": FORMAT_VERSION,
        "backbone": weights_fingerprint(encoder.backbone),
        "preprocessing": {k: v for k, v in json.loads(processor.to_json_string()).items() if k != "auto_map"},
        "images": images_fingerprint(images),
        "count": len(images),
        "views": views,
    }
    folder = Path(root).expanduser() / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
    was_training = encoder.training
    encoder.eval()
    if not (folder / "key.json").exists():
        _create(folder, key, _feature_shape(encoder, processor), len(images), views)
    features = np.lib.format.open_memmap(folder / "features.npy", mode="r+")
    state = np.lib.format.open_memmap(folder / "state.npy", mode="r+")
    _fill(encoder, processor, images, features, state, batch_size, label)
    encoder.train(was_training)
    broken = int((state == BROKEN).sum())
    if broken:
        names = image_names(images, np.flatnonzero(np.array(state) == BROKEN))
        say_skipped(f"{label}: {{}} of {len(images)} images cannot be read", names)
    if broken == len(images):
        raise DataError(f"{label}: none of the {len(images)} images can be read.")
    return FeatureCache(folder, np.load(folder / "features.npy", mmap_mode="r"), np.array(state) == DONE, kind)


def _feature_shape(encoder: nn.Module, processor) -> tuple[int, int]:
    """(P, F), measured on a grey picture."""
    pixels = processor(Image.new("RGB", (32, 32), "grey"), return_tensors="pt").pixel_values
    with torch.inference_mode():
        return tuple(encoder.extract(pixels).shape[1:])


def _create(folder: Path, key: dict, shape: tuple[int, int], count: int, views: int) -> None:
    """Empty files; key.json comes last, because its presence says that the others are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    np.lib.format.open_memmap(
        folder / "features.npy", mode="w+", dtype=np.float16, shape=(count, views, *shape)
    ).flush()
    np.lib.format.open_memmap(folder / "state.npy", mode="w+", dtype=np.uint8, shape=(count,)).flush()
    temporary = folder / "key.json.writing"
    temporary.write_text(json.dumps(key, indent=1, sort_keys=True), encoding="utf-8")
    os.replace(temporary, folder / "key.json")


@torch.inference_mode()
def _fill(encoder, processor, images, features, state, batch_size: int, label: str) -> None:
    """Compute what `state` says is still to do, batch by batch."""
    rows = np.flatnonzero(np.array(state) == TO_DO)
    if not len(rows):
        return
    device = next(encoder.parameters()).device
    if hasattr(encoder, "prepare_for_inference"):
        encoder.prepare_for_inference()
    views = features.shape[1]
    with tqdm(total=len(rows), desc=f"features of {label}", unit="image", mininterval=2, file=sys.stderr) as bar:
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            decoded = [decode_image(images[int(row)]) for row in batch]
            good = [int(row) for row, image in zip(batch, decoded, strict=True) if image is not None]
            if good:
                pixels = processor([image for image in decoded if image is not None], return_tensors="pt").pixel_values
                for view in range(views):
                    seen = encoder.extract((pixels if view == 0 else pixels.flip(-1)).to(device))
                    features[good, view] = seen.to(torch.float16).cpu().numpy()
            features.flush()
            state[batch] = BROKEN
            state[good] = DONE
            state.flush()
            bar.update(len(batch))
