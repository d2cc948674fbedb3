"""Pictale: photo in, captions and a story out.

    from modeling import StoryPipeline
    result = StoryPipeline.from_pretrained()("photo.jpg", style="romance", seed=1)

Importing this package downloads nothing and loads no weights.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

from .configuration_captioner import PictaleCaptionerConfig
from .configuration_originals import (
    PictaleOriginalDecoderConfig,
    PictaleOriginalEmbeddingConfig,
    PictaleOriginalSkipThoughtsConfig,
)
from .configuration_skip_thoughts import PictaleSkipThoughtsConfig
from .configuration_story_decoder import PictaleStoryDecoderConfig
from .errors import DataError, ImageError, ModelFolderError, PictaleError, RecipeError, StoryError, StyleError
from .image_processing_captioner import PictaleImageProcessor
from .images import load_image
from .modeling_captioner import PictaleCaptionerForConditionalGeneration
from .modeling_original_decoder import PictaleOriginalDecoder
from .modeling_original_embedding import PictaleOriginalJointEmbedding
from .modeling_original_encoder import PictaleOriginalSkipThoughtsEncoder
from .modeling_skip_thoughts import PictaleSkipThoughtsEncoder, PictaleSkipThoughtsForPreTraining
from .modeling_story_decoder import PictaleStoryDecoderForConditionalGeneration
from .original_storyteller import OriginalStoryteller
from .pipeline_story import StoryPipeline
from .story import Passage, Story, StoryPhoto
from .story_types import Candidate, Caption, Source, StoryOptions, StoryResult
from .styles import Style, make_style

for _config in (PictaleCaptionerConfig, PictaleSkipThoughtsConfig, PictaleStoryDecoderConfig):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
AutoModelForImageTextToText.register(PictaleCaptionerConfig, PictaleCaptionerForConditionalGeneration, exist_ok=True)
AutoModel.register(PictaleSkipThoughtsConfig, PictaleSkipThoughtsEncoder, exist_ok=True)
AutoModelForSeq2SeqLM.register(PictaleStoryDecoderConfig, PictaleStoryDecoderForConditionalGeneration, exist_ok=True)
for _model in (PictaleOriginalSkipThoughtsEncoder, PictaleOriginalDecoder, PictaleOriginalJointEmbedding):
    AutoConfig.register(_model.config_class.model_type, _model.config_class, exist_ok=True)
    AutoModel.register(_model.config_class, _model, exist_ok=True)
AutoImageProcessor.register(
    PictaleCaptionerConfig, image_processor_classes={"pil": PictaleImageProcessor}, exist_ok=True
)

__all__ = [
    "Candidate",
    "Caption",
    "DataError",
    "ImageError",
    "ModelFolderError",
    "OriginalStoryteller",
    "PictaleCaptionerConfig",
    "PictaleCaptionerForConditionalGeneration",
    "PictaleError",
    "PictaleImageProcessor",
    "PictaleOriginalDecoder",
    "PictaleOriginalDecoderConfig",
    "PictaleOriginalEmbeddingConfig",
    "PictaleOriginalJointEmbedding",
    "PictaleOriginalSkipThoughtsConfig",
    "PictaleOriginalSkipThoughtsEncoder",
    "PictaleSkipThoughtsConfig",
    "PictaleSkipThoughtsEncoder",
    "PictaleSkipThoughtsForPreTraining",
    "PictaleStoryDecoderConfig",
    "PictaleStoryDecoderForConditionalGeneration",
    "Passage",
    "RecipeError",
    "Source",
    "Story",
    "StoryError",
    "StoryOptions",
    "StoryPhoto",
    "StoryPipeline",
    "StoryResult",
    "Style",
    "StyleError",
    "load_image",
    "make_style",
]
