"""The image side of the captioner: a backbone, whole or in part frozen, and its regions projected for the attention.

A frozen backbone stays in eval mode and gets no gradient. With `trainable_stages` only the last stages learn, and what
the stages before them give can be computed once and kept: `extract_frozen` makes it, `extract_learning` goes on.

Shapes: B images, P = h * w regions, F backbone channels, C' channels after the frozen stages, C context, A attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput

from .backbones import build_backbone, run_stages
from .configuration_captioner import PictaleCaptionerConfig
from .errors import ModelFolderError


@dataclass
class CaptionerEncoderOutput(ModelOutput):
    """Args:
    last_hidden_state: projected regions [B, P, C], row by row from the top left.
    attention_keys: their part of the attention, W_a a_i, [B, P, A].
    """

    last_hidden_state: torch.FloatTensor | None = None
    attention_keys: torch.FloatTensor | None = None


class CaptionerEncoder(nn.Module):
    """Backbone, then each region projected to the context size."""

    main_input_name = "pixel_values"

    def __init__(self, config: PictaleCaptionerConfig):
        super().__init__()
        self.backbone = build_backbone(config.backbone, **config.backbone_options)
        config.backbone_options |= getattr(self.backbone, "options", {})  # so that it can be rebuilt offline
        self.frozen, self.train_batch_norm = config.freeze_backbone, config.train_batch_norm
        stages = [] if self.frozen else self.backbone.stages()
        learning = len(stages) if config.trainable_stages is None else config.trainable_stages
        if not self.frozen and not 1 <= learning <= len(stages):
            raise ModelFolderError(
                f"trainable_stages is {learning}, but the backbone '{config.backbone}' has {len(stages)} stages: "
                f"choose 1 to {len(stages)}, or freeze_backbone."
            )
        cut = len(stages) - learning
        self._stages = (stages[:cut], stages[cut:])  # frozen, learning; a tuple registers no submodule twice
        self.dropout = nn.Dropout(config.region_dropout)
        self.projection = nn.Linear(self.backbone.channels, config.context_dim)
        self.norm = nn.LayerNorm(config.context_dim)
        self.keys = nn.Linear(config.context_dim, config.attention_dim, bias=False)
        self._fused: tuple[nn.Module, ...] = ()  # in a tuple, so that it is no submodule and is never saved
        self.train()

    def train(self, mode: bool = True) -> CaptionerEncoder:
        super().train(mode)
        if mode:
            self._fused = ()
        self._keep_still()
        return self

    def _keep_still(self) -> None:
        # eval: else BatchNorm statistics would drift; requires_grad: from_pretrained makes new parameters
        for stage in [self.backbone] if self.frozen else self._stages[0]:
            stage.eval().requires_grad_(False)
        if not self.train_batch_norm:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _apply(self, fn, recurse=True):
        self._fused = ()  # a copy on another device or in another dtype would be stale
        return super()._apply(fn, recurse)

    def prepare_for_inference(self) -> None:
        self._fused = (self.backbone.fuse(),)

    def extract(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Region features [B, P, F] of pixel_values [B, 3, H, W]; what the feature cache keeps."""
        backbone = self._fused[0] if self._fused else self.backbone
        # channels last takes half the time on a CPU, also in the backward pass
        pixel_values = pixel_values.to(self.projection.weight.dtype, memory_format=torch.channels_last)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = backbone(pixel_values)  # [B, F, h, w]
        return features.flatten(2).transpose(1, 2)  # [B, P, F]

    def extract_frozen(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Output [B, C', h', w'] of the last frozen stage; what is cached when the stages after it learn."""
        stages = self._stages[0]
        if self._fused:
            stages = self._fused[0].stages()[: len(stages)]
        return run_stages(stages, pixel_values.to(self.projection.weight.dtype, memory_format=torch.channels_last))

    def extract_learning(self, stage_features: torch.Tensor) -> torch.Tensor:
        """Region features [B, P, F] from the output of the last frozen stage."""
        features = stage_features.to(self.projection.weight.dtype, memory_format=torch.channels_last)
        return run_stages(self._stages[1], features).flatten(2).transpose(1, 2)  # [B, F, h, w] -> [B, P, F]

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        region_features: torch.Tensor | None = None,
        stage_features: torch.Tensor | None = None,
        return_dict: bool = True,
        **kwargs,
    ) -> CaptionerEncoderOutput:
        if stage_features is not None:
            region_features = self.extract_learning(stage_features)
        elif region_features is None:
            region_features = self.extract(pixel_values)
        features = region_features.to(self.projection.weight.dtype)
        regions = self.dropout(self.norm(self.projection(features)))  # [B, P, C]
        return CaptionerEncoderOutput(last_hidden_state=regions, attention_keys=self.keys(regions))
