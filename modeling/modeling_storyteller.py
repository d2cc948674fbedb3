"""A whole story pipeline as one model of transformers, so that `AutoModel` and `pipeline` load a pipeline folder."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import PreTrainedModel

from .configuration_storyteller import PictaleStorytellerConfig
from .pipeline_story import StoryPipeline

HUB_ARGUMENTS = ("revision", "cache_dir", "token", "local_files_only", "dtype", "device_map")


class PictaleStoryteller(PreTrainedModel):
    """Captioner, sentence encoder and, if there is one, story decoder; `pipe` is the `StoryPipeline` over them.

    Example:
        >>> model = AutoModel.from_pretrained("pictale/pictale-default", trust_remote_code=True)
        >>> model.pipe("photo.jpg", style="romance", seed=1).story
    """

    config_class = PictaleStorytellerConfig
    main_input_name = "pixel_values"

    def __init__(self, config: PictaleStorytellerConfig, pipe: StoryPipeline):
        super().__init__(config)
        self.captioner, self.encoder, self.decoder = pipe.captioner, pipe.encoder, pipe.decoder
        self.pipe = pipe  # no post_init: the parts have their weights already

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, config: Any = None, **kwargs: Any
    ) -> PictaleStoryteller:
        """As `StoryPipeline.from_pretrained`; what else transformers passes on has no meaning for a pipeline."""
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        pipe = StoryPipeline.from_pretrained(pretrained_model_name_or_path, **hub)
        return cls(config or cls.config_class(), pipe).eval()

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        self.pipe.save_pretrained(save_directory)

    def forward(self, pixel_values: torch.Tensor, **options: Any) -> list:
        """Stories about what the image processor made of photographs [B, 3, H, W]: a `StoryResult` each.

        Args:
            options: `style`, `seed`, and the fields of `StoryOptions`.
        """
        pixels = pixel_values.to(self.captioner.device, self.captioner.dtype)
        with torch.no_grad():
            regions = self.captioner.encoder.extract(pixels)
        return self.pipe.tell_regions(regions, **options)


PictaleStoryteller.register_for_auto_class("AutoModel")
