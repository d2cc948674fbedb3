"""Image backbones: photograph in, grid of features out.

EfficientNet-Lite is EfficientNet (arXiv:1905.11946) without squeeze-and-excitation, with ReLU6 for swish and a stem and
head that are not scaled with the width. The TensorFlow original is tensorflow/tpu `efficientnet/lite`; "SAME" padding,
BatchNorm epsilon and the order of the layers follow it, so weights converted from it load by order
(`training/backbone_weights.py`).

A backbone is an `nn.Module` with
    forward(pixel_values [B, 3, H, W]) -> [B, C, h, w],
    channels (int, C), stride (int, about H / h), grid(H, W) -> (h, w), fuse() -> a copy for inference only, and
    stages() -> its parts in order from the input, which together hold every parameter once.
One that needs more than its name to be built again has it in `options` (dict), which a captioner keeps in its
configuration. `build_backbone` finds one by name; `register_backbone` adds a name; those of torchvision, timm and
transformers are in `backbones_external.py`.

Shapes: B batch, C channels, H x W pixels, h x w grid.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .backbones_external import ALIASES, LIBRARIES, build_external, did_you_mean, is_external
from .errors import ModelFolderError

# Stage table of EfficientNet-Lite0: repeats, kernel, stride, expansion, output channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS = 32
BATCH_NORM_EPSILON = 1e-3


class SameConv2d(nn.Conv2d):
    """TensorFlow's "SAME" padding: output = ceil(input / stride), the odd pixel goes right and below."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        if stride == 1:
            return nn.functional.conv2d(x, self.weight, self.bias, padding=kernel // 2, groups=self.groups)
        pads = []
        for size in (x.shape[-1], x.shape[-2]):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        x = nn.functional.pad(x, pads)
        return nn.functional.conv2d(x, self.weight, self.bias, stride=stride, groups=self.groups)


class ConvNorm(nn.Module):
    """Convolution, BatchNorm and, unless `activate` is False, ReLU6."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, activate: bool = True
    ):
        super().__init__()
        self.conv = SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=BATCH_NORM_EPSILON, momentum=0.01)
        self.activate = activate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x))
        return nn.functional.relu6(x) if self.activate else x

    def fuse_(self) -> None:
        """Fold the BatchNorm statistics into the convolution (inference only, in place, with new tensors)."""
        conv, norm = self.conv, self.norm
        statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
        self.norm = nn.Identity()


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise k x k, project 1x1 linearly; a skip where the shape allows it (arXiv:1801.04381)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        layers = [] if expansion == 1 else [ConvNorm(inputs, hidden)]
        layers.append(ConvNorm(hidden, hidden, kernel, stride, groups=hidden))
        layers.append(ConvNorm(hidden, outputs, activate=False))
        self.layers = nn.Sequential(*layers)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.skip else self.layers(x)


def round_channels(channels: int, width: float) -> int:
    """Scale by `width` to the next multiple of 8 that loses no more than a tenth (the rule of the original)."""
    if width == 1.0:
        return channels
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite up to its last convolution, without the classifier.

    Args:
        width (float): factor on the channels of the blocks.
        depth (float): factor on the repeats of the blocks; the first and last stage keep one.
        head_channels (int): channels of the last 1x1 convolution, which are the features.
    """

    stride = 32

    def __init__(self, width: float = 1.0, depth: float = 1.0, head_channels: int = 1280):
        super().__init__()
        self.channels = head_channels
        self.stem = ConvNorm(3, STEM_CHANNELS, kernel=3, stride=2)
        blocks, inputs, self.stage_ends = [], STEM_CHANNELS, []
        for index, (repeats, kernel, stride, expansion, outputs) in enumerate(STAGES):
            outputs = round_channels(outputs, width)
            if index not in (0, len(STAGES) - 1):
                repeats = math.ceil(depth * repeats)
            for repeat in range(repeats):
                blocks.append(InvertedResidual(inputs, outputs, kernel, stride if repeat == 0 else 1, expansion))
                inputs = outputs
            self.stage_ends.append(len(blocks))
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvNorm(inputs, head_channels)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(pixel_values)))  # [B, C, H/32, W/32]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) for a picture of height x width."""
        return math.ceil(height / self.stride), math.ceil(width / self.stride)

    def stages(self) -> list[nn.Module]:
        """Stem, the seven stages of blocks, head: for training only the last of them."""
        starts = [0, *self.stage_ends[:-1]]
        blocks = [self.blocks[start:end] for start, end in zip(starts, self.stage_ends, strict=True)]
        return [self.stem, *blocks, self.head]

    @torch.no_grad()
    def fuse(self) -> EfficientNetLite:
        """A copy for inference, BatchNorm folded, channels last: half the time on a CPU, features equal to 1e-4."""
        shared = {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())}
        fused = copy.deepcopy(self, shared).eval()  # of the modules alone: folding makes new tensors anyway
        for module in list(fused.modules()):
            if isinstance(module, ConvNorm):
                module.fuse_()
        return fused.requires_grad_(False).to(memory_format=torch.channels_last)


def run_stages(stages: Sequence[nn.Module], x: torch.Tensor) -> torch.Tensor:
    """One stage after the other; of a backbone that is a plain chain of its stages, all of them are its `forward`."""
    for stage in stages:
        for part in stage if isinstance(stage, nn.ModuleList) else [stage]:
            x = part(x)
    return x


BACKBONES: dict[str, Callable[..., nn.Module]] = {}


def register_backbone(name: str, factory: Callable[..., nn.Module]) -> None:
    """Make `name` known to `build_backbone`; `factory(**options)` returns an untrained backbone (head of this file)."""
    BACKBONES[name] = factory


def _lite(width: float, depth: float) -> Callable[..., nn.Module]:
    return lambda **options: EfficientNetLite(**{"width": width, "depth": depth, **options})


register_backbone("efficientnet_lite0", _lite(1.0, 1.0))
register_backbone("efficientnet_lite1", _lite(1.0, 1.1))
register_backbone("efficientnet_lite2", _lite(1.1, 1.2))


def build_backbone(name: str, **options) -> nn.Module:
    """An untrained backbone by name.

    Args:
        name (str): a key of `BACKBONES`, a plain name such as resnet101 or vgg19, or torchvision:NAME, timm:NAME or
            transformers:ID (see `backbones_external`).
        options: passed to its factory, e.g. `width=0.25` for a tiny one.

    Raises:
        ModelFolderError: the name is not known, or needs a package that is not installed or does not work.
    """
    if name in BACKBONES:
        return BACKBONES[name](**options)
    if is_external(name):
        return build_external(name, **options)
    hint = did_you_mean(name, [*BACKBONES, *ALIASES])
    raise ModelFolderError(
        f"The backbone '{name}' is not known{': ' + hint + '?' if hint else '.'} Use one of {', '.join(BACKBONES)}, "
        f"a plain name such as resnet101 or vgg19, or {', '.join(f'{library}:NAME' for library in LIBRARIES)}."
    )
