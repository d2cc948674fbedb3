"""transformers' pipeline for stories: `pipeline("image-to-story", model=FOLDER_OR_ID, trust_remote_code=True)`."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Pipeline

from .pipeline_captioning import photo
from .story_types import check_seed


class ImageToStoryPipeline(Pipeline):
    """Captions and a story for each photograph.

    Example:
        >>> storyteller = pipeline("image-to-story", model="pictale/pictale-default", trust_remote_code=True)
        >>> storyteller("photo.jpg", style="romance", seed=1)["story"]
        >>> storyteller(photos, batch_size=4, style="horror:0.7,everyday:0.3", length="long")

    Args of a call:
        style: A name, a blend, or a `Style`; the pipeline's first if not given.
        seed (int): Reproduces the story; drawn, and told in the answer, if not given.
        All others are the fields of `StoryOptions`.

    Returns:
        `story`, `title`, `style`, `seed` and `captions`, each with `generated_text`, `score` and `remembered`.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.image_processor = self.model.pipe.image_processor
        self.tokenizer = self.model.pipe.caption_tokenizer  # asked for before photographs are put into a batch

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:
        return {}, options, {}

    def preprocess(self, image: Any) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.image_processor(photo(image), return_tensors="pt").pixel_values}

    def _forward(self, inputs: dict[str, torch.Tensor], **options: Any) -> dict[str, list]:
        options["seed"] = check_seed(options.get("seed"))
        return {"results": self.model(inputs["pixel_values"], **options)}

    def postprocess(self, outputs: dict[str, Any]) -> dict[str, Any]:
        result = outputs["results"]
        result = result[0] if isinstance(result, list) else result  # taken out of its list where there were several
        captions = [
            {"generated_text": caption.text, "score": caption.score, "remembered": caption.remembered}
            for caption in result.captions
        ]
        return {
            "story": result.story,
            "title": result.title,
            "style": result.style,
            "seed": result.seed,
            "captions": captions,
        }
