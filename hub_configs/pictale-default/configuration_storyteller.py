"""Configuration of a whole pipeline as one model."""

from __future__ import annotations

from transformers import PreTrainedConfig


class PictaleStorytellerConfig(PreTrainedConfig):
    """What transformers needs to know of a pipeline folder; what it is made of stands in its `pipeline.json`."""

    model_type = "pictale_storyteller"


PictaleStorytellerConfig.register_for_auto_class()
