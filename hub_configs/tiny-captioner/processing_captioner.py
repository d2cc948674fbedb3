"""Photographs and captions in, captions out: the captioner's image processor and tokenizer as one object."""

from __future__ import annotations

from typing import Any

from transformers import ProcessorMixin
from transformers.feature_extraction_utils import BatchFeature

IGNORE_INDEX = -100  # what the captioner's loss leaves out


class PictaleCaptionerProcessor(ProcessorMixin):
    """Prepares what `PictaleCaptionerForConditionalGeneration` reads, and turns its ids into text.

    Example:
        >>> processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        >>> ids = model.generate(**processor(images=photo, return_tensors="pt"))
        >>> processor.batch_decode(ids, skip_special_tokens=True)
        ['a dog runs through the grass']
    """

    def __init__(self, image_processor: Any, tokenizer: Any, **kwargs: Any):
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(
        self, images: Any = None, text: str | list[str] | None = None, return_tensors: str = "pt", **kwargs: Any
    ) -> BatchFeature:
        """Batch of what is given.

        Args:
            images: A photograph or a list, as the image processor takes them; gives `pixel_values` [B, 3, H, W].
            text: Captions, lower-case words; gives `labels` [R, T] for training: the ids, the end id, then -100.
            kwargs: For the image processor.

        Raises:
            ValueError: neither images nor text.
        """
        if images is None and text is None:
            raise ValueError("Give images, text, or both.")
        data = {} if images is None else dict(self.image_processor(images, return_tensors=return_tensors, **kwargs))
        if text is not None:
            captions = [text] if isinstance(text, str) else list(text)
            end = self.tokenizer.eos_token_id
            rows = [[*self.tokenizer(c, add_special_tokens=False).input_ids, end] for c in captions]
            longest = max(map(len, rows))
            data["labels"] = [row + [IGNORE_INDEX] * (longest - len(row)) for row in rows]  # [R, T]
        return BatchFeature(data, tensor_type=return_tensors)

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "labels"]


PictaleCaptionerProcessor.register_for_auto_class("AutoProcessor")
