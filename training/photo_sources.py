"""What a training step sees of a photograph: cached features of the frozen part of the backbone, or pixels.

A source has
    kind                 the captioner's argument it feeds: region_features, stage_features or pixel_values
    usable               bool [photographs]
    views                1, or 2 with the mirror image
    get(row, view, rng)  one photograph's tensor, for training
    get_many(rows)       several, as they are, for evaluation
`training.feature_cache.FeatureCache` is one. `open_source` chooses by what learns:

    the backbone is frozen                        cached region features: no convolution in a training step
    its last stages learn (`trainable_stages`)    cached output of the last frozen stage: only the stages that learn run
    all of it learns, or `augment` is given and   the photographs themselves
    `augment.cached` is 0
The second needs a backbone that is a plain chain of its stages; another one reads photographs too.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import nn

from modeling.backbones import run_stages
from modeling.captioner_encoder import CaptionerEncoder
from modeling.errors import DataError, RecipeError

from .caption_sources import image_names, say_skipped
from .feature_cache import FeatureCache, decode_image, open_cache


@dataclass
class AugmentOptions:
    """The `data.augment` section: what is done to training photographs besides mirroring.

    Args:
        crop: smallest share of the area that a random crop keeps; its shape is between 3:4 and 4:3 of the photograph's.
            1 keeps all of it. A caption may tell of what was cut off, so keep most.
        colour: brightness, contrast and saturation are each scaled by a factor from 1 - colour to 1 + colour.
        cached: of a frozen backbone, features of so many changed copies of each photograph are computed once and drawn
            from beside its own, which costs a training step nothing. 0 changes and looks at the photographs anew in
            every epoch.
    """

    crop: float = 1.0
    colour: float = 0.0
    cached: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1 or not 0 <= self.colour < 1 or self.cached < 0:
            raise RecipeError(
                "data.augment takes a crop above 0 and up to 1, a colour from 0 to below 1, and cached copies from 0."
            )

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """A changed copy of `image`, decided by `rng` alone."""
        if self.crop < 1:
            share, aspect = rng.uniform(self.crop, 1), np.exp(rng.uniform(-1, 1) * np.log(4 / 3))
            width = min(round(image.width * np.sqrt(share * aspect)), image.width)
            height = min(round(image.height * np.sqrt(share / aspect)), image.height)
            left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
            image = image.crop((left, top, left + width, top + height))
        if self.colour:
            for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                image = enhance(image).enhance(rng.uniform(1 - self.colour, 1 + self.colour))
        return image


class Photographs:
    """Pixels [3, H, W] of encoded photographs, decoded each time; in the workers of a DataLoader, if it has any.

    One whose header cannot be read is not usable; one that breaks later in the file is told of and replaced by the next
    that can be read, so that every process has a batch of the same size.

    Args:
        images: encoded photographs, None where missing.
        processor: the image processor.
        views: 2 to mirror half of what training sees.
        augment: applied in `get`, never in `get_many`.
        label: how messages name them.
    """

    kind = "pixel_values"

    def __init__(
        self,
        images: Sequence[bytes | None],
        processor,
        views: int = 1,
        augment: AugmentOptions | None = None,
        label: str = "photographs",
    ):
        self.images, self.processor, self.views, self.augment, self.label = images, processor, views, augment, label
        self.usable = np.array([_has_header(data) for data in images])
        names = image_names(images, np.flatnonzero(~self.usable))
        say_skipped(f"{label}: {{}} of {len(images)} images cannot be read", names)
        if not self.usable.any():
            raise DataError(f"{label}: none of the {len(images)} images can be read.")

    def _decode(self, row: int) -> Image.Image:
        for step in range(len(self.images)):
            other = (row + step) % len(self.images)
            image = decode_image(self.images[other]) if self.usable[other] else None
            if image is not None:
                return image
            if self.usable[other]:
                self.usable[other] = False  # in this worker
                name = image_names(self.images, [other])[0]
                print(f"{self.label}: image {name} cannot be read; the next takes its place.", file=sys.stderr)
        raise DataError(f"{self.label}: no image can be read.")

    def _pixels(self, images: list[Image.Image]) -> torch.Tensor:
        return self.processor(images, return_tensors="pt").pixel_values

    def get(self, row: int, view: int, rng: np.random.Generator) -> torch.Tensor:
        """Pixels [3, H, W], augmented."""
        image = self._decode(row)
        if self.augment is not None:
            image = self.augment(image, rng)
        pixels = self._pixels([image])[0]
        return pixels.flip(-1) if view else pixels

    def get_many(self, rows: Sequence[int]) -> torch.Tensor:
        """Pixels [B, 3, H, W], neither augmented nor mirrored."""
        return self._pixels([self._decode(row) for row in rows])


def _has_header(data: bytes | None) -> bool:
    try:
        with Image.open(io.BytesIO(data or b"")):
            return True
    except (OSError, ValueError, Image.DecompressionBombError):
        return False


class FrozenStages(nn.Module):
    """The frozen stages of a captioner's encoder, in the shape that the feature cache asks for.

    Its weights alone are part of the cache's key, so the stages that learn may change without a new cache.
    """

    def __init__(self, encoder: CaptionerEncoder):
        super().__init__()
        self.backbone = nn.ModuleList(encoder._stages[0])
        self._encoder = (encoder,)  # in a tuple: a submodule would put its weights into the key
        self.eval()

    def prepare_for_inference(self) -> None:
        self._encoder[0].prepare_for_inference()

    def extract(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[B, C', h', w']"""
        return self._encoder[0].extract_frozen(pixel_values)


@torch.no_grad()
def is_chain(backbone: nn.Module, side: int) -> bool:
    """Whether running the stages one after the other is what the backbone does, tried on noise of side x side."""
    was_training = {module: module.training for module in backbone.modules()}
    backbone.eval()
    weight = next(backbone.parameters())
    noise = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(weight)
    try:
        same = torch.equal(run_stages(backbone.stages(), noise), backbone(noise))
    except Exception:  # noqa: BLE001 - what a stage raises when it is not called its own way can be anything
        same = False
    for module, mode in was_training.items():
        module.training = mode
    return same


def open_source(
    encoder: CaptionerEncoder,
    processor,
    images: Sequence[bytes | None],
    cache_dir: str | Path,
    *,
    views: int = 1,
    augment: AugmentOptions | None = None,
    label: str = "photographs",
    precision: str = "fp32",
) -> FeatureCache | Photographs:
    """The source of `images` that suits what learns of the encoder; see the head of this file.

    Args:
        augment: None for evaluation or for no augmentation.
        precision: of cached features, see `open_cache`.
    """
    cached = augment is None or augment.cached > 0
    more = {"views": views, "label": label, "precision": precision, "augment": augment}
    if cached and encoder.frozen:
        return open_cache(encoder, processor, images, cache_dir, **more)
    frozen = encoder._stages[0]
    if cached and frozen and is_chain(encoder.backbone, processor.size["height"]):
        stages = FrozenStages(encoder)
        return open_cache(stages, processor, images, cache_dir, kind="stage_features", **more)
    return Photographs(images, processor, views, augment, label)
