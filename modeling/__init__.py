"""Pictale: photo in, captions and a story out.

    from modeling import StoryPipeline
    result = StoryPipeline.from_pretrained()("photo.jpg", style="romance", seed=1)

Importing this package downloads nothing, loads no weights, and takes no time: transformers is imported with the first
name that is used. From then on its Auto classes know the models of this package (`register_auto_classes`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .quick_imports import quick_imports

if TYPE_CHECKING:  # what editors and type checkers read; a test holds it against the table below
    from .auto_classes import register_auto_classes, register_pipelines
    from .caption_bank import CaptionBank
    from .configuration_captioner import PictaleCaptionerConfig
    from .configuration_joint_embedding import PictaleJointEmbeddingConfig
    from .configuration_originals import (
        PictaleOriginalDecoderConfig,
        PictaleOriginalEmbeddingConfig,
        PictaleOriginalSkipThoughtsConfig,
    )
    from .configuration_skip_thoughts import PictaleSkipThoughtsConfig
    from .configuration_story_decoder import PictaleStoryDecoderConfig
    from .configuration_storyteller import PictaleStorytellerConfig
    from .errors import DataError, ImageError, ModelFolderError, PictaleError, RecipeError, StoryError, StyleError
    from .image_processing_captioner import PictaleImageProcessor
    from .images import load_image
    from .modeling_captioner import PictaleCaptionerForConditionalGeneration
    from .modeling_joint_embedding import PictaleJointEmbedding
    from .modeling_original_decoder import PictaleOriginalDecoder
    from .modeling_original_embedding import PictaleOriginalJointEmbedding
    from .modeling_original_encoder import PictaleOriginalSkipThoughtsEncoder
    from .modeling_skip_thoughts import PictaleSkipThoughtsEncoder, PictaleSkipThoughtsForPreTraining
    from .modeling_story_decoder import PictaleStoryDecoderForConditionalGeneration
    from .modeling_storyteller import PictaleStoryteller
    from .original_storyteller import OriginalStoryteller
    from .photo_search import FoundPhoto
    from .pipeline_captioning import ImageCaptioningPipeline
    from .pipeline_image_to_story import ImageToStoryPipeline
    from .pipeline_story import StoryPipeline
    from .processing_captioner import PictaleCaptionerProcessor
    from .story import Passage, Story, StoryPhoto
    from .story_types import Candidate, Caption, Source, StoryOptions, StoryResult
    from .styles import Style, make_style

_NAMES = {
    "auto_classes": "register_auto_classes register_pipelines",
    "caption_bank": "CaptionBank",
    "configuration_captioner": "PictaleCaptionerConfig",
    "configuration_joint_embedding": "PictaleJointEmbeddingConfig",
    "configuration_originals": (
        "PictaleOriginalDecoderConfig PictaleOriginalEmbeddingConfig PictaleOriginalSkipThoughtsConfig"
    ),
    "configuration_skip_thoughts": "PictaleSkipThoughtsConfig",
    "configuration_story_decoder": "PictaleStoryDecoderConfig",
    "configuration_storyteller": "PictaleStorytellerConfig",
    "errors": "DataError ImageError ModelFolderError PictaleError RecipeError StoryError StyleError",
    "image_processing_captioner": "PictaleImageProcessor",
    "images": "load_image",
    "modeling_captioner": "PictaleCaptionerForConditionalGeneration",
    "modeling_joint_embedding": "PictaleJointEmbedding",
    "modeling_original_decoder": "PictaleOriginalDecoder",
    "modeling_original_embedding": "PictaleOriginalJointEmbedding",
    "modeling_original_encoder": "PictaleOriginalSkipThoughtsEncoder",
    "modeling_skip_thoughts": "PictaleSkipThoughtsEncoder PictaleSkipThoughtsForPreTraining",
    "modeling_story_decoder": "PictaleStoryDecoderForConditionalGeneration",
    "modeling_storyteller": "PictaleStoryteller",
    "original_storyteller": "OriginalStoryteller",
    "photo_search": "FoundPhoto",
    "pipeline_captioning": "ImageCaptioningPipeline",
    "pipeline_image_to_story": "ImageToStoryPipeline",
    "pipeline_story": "StoryPipeline",
    "processing_captioner": "PictaleCaptionerProcessor",
    "story": "Passage Story StoryPhoto",
    "story_types": "Candidate Caption Source StoryOptions StoryResult",
    "styles": "Style make_style",
}
_KNOWN_TO_AUTO = ("configuration_", "image_processing_", "modeling_", "pipeline_", "processing_")
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Import what is asked for (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    with quick_imports():
        module = import_module(f".{_MODULE_OF[name]}", __name__)
        if _MODULE_OF[name].startswith(_KNOWN_TO_AUTO):
            import_module(".auto_classes", __name__).register_auto_classes()
        if name in ("ImageCaptioningPipeline", "ImageToStoryPipeline"):
            import_module(".auto_classes", __name__).register_pipelines()
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
