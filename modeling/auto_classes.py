"""Make transformers know the models of this package, which then need no `trust_remote_code` beside it."""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoProcessor,
)

from .configuration_captioner import PictaleCaptionerConfig
from .image_processing_captioner import PictaleImageProcessor
from .modeling_captioner import PictaleCaptionerForConditionalGeneration
from .modeling_joint_embedding import PictaleJointEmbedding
from .modeling_original_decoder import PictaleOriginalDecoder
from .modeling_original_embedding import PictaleOriginalJointEmbedding
from .modeling_original_encoder import PictaleOriginalSkipThoughtsEncoder
from .modeling_skip_thoughts import PictaleSkipThoughtsEncoder
from .modeling_story_decoder import PictaleStoryDecoderForConditionalGeneration
from .modeling_storyteller import PictaleStoryteller
from .processing_captioner import PictaleCaptionerProcessor

MODELS = {
    PictaleCaptionerForConditionalGeneration: AutoModelForImageTextToText,
    PictaleSkipThoughtsEncoder: AutoModel,
    PictaleStoryDecoderForConditionalGeneration: AutoModelForSeq2SeqLM,
    PictaleStoryteller: AutoModel,
    PictaleJointEmbedding: AutoModel,
    PictaleOriginalSkipThoughtsEncoder: AutoModel,
    PictaleOriginalDecoder: AutoModel,
    PictaleOriginalJointEmbedding: AutoModel,
}


def register_auto_classes() -> None:
    """Register every configuration, model and processor; doing it twice changes nothing."""
    for model, auto in MODELS.items():
        AutoConfig.register(model.config_class.model_type, model.config_class, exist_ok=True)
        auto.register(model.config_class, model, exist_ok=True)
    AutoImageProcessor.register(
        PictaleCaptionerConfig, image_processor_classes={"pil": PictaleImageProcessor}, exist_ok=True
    )
    AutoProcessor.register(PictaleCaptionerConfig, PictaleCaptionerProcessor, exist_ok=True)


def register_pipelines() -> None:
    """Make the tasks `image-captioning` and `image-to-story` known to `transformers.pipeline`, once."""
    from transformers.pipelines import PIPELINE_REGISTRY

    from .pipeline_captioning import ImageCaptioningPipeline
    from .pipeline_image_to_story import ImageToStoryPipeline

    for task, made, auto in (
        ("image-captioning", ImageCaptioningPipeline, AutoModelForImageTextToText),
        ("image-to-story", ImageToStoryPipeline, AutoModel),
    ):
        if task not in PIPELINE_REGISTRY.supported_tasks:
            PIPELINE_REGISTRY.register_pipeline(task, pipeline_class=made, pt_model=auto)
