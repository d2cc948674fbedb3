"""transformers' pipeline for the captioner: `pipeline("image-captioning", model=FOLDER_OR_ID, trust_remote_code=True)`.

Shapes: B photographs, N captions of each, T ids of the longest caption, P regions.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Pipeline
from transformers.image_utils import load_image as load_from_address

from .errors import ImageError
from .images import load_image
from .tokenization import whole_words


def photo(image: Any) -> Any:
    """RGB picture of whatever `load_image` takes, or of an address on the web.

    Raises:
        ImageError: it cannot be used as a photograph.
    """
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        try:
            image = load_from_address(image, timeout=20)
        except (OSError, ValueError) as error:
            raise ImageError(f"{image} gives no photograph ({type(error).__name__}): check the address.") from None
    return load_image(image)


class ImageCaptioningPipeline(Pipeline):
    """Captions for photographs, best first.

    Example:
        >>> captioner = pipeline("image-captioning", model=folder, trust_remote_code=True)
        >>> captioner("photo.jpg")
        [{'generated_text': 'a dog runs through the grass', 'score': -0.81}]
        >>> captioner(photos, batch_size=8, num_captions=3)   # three dicts for each photo

    Args of a call:
        num_captions (int, default 1), num_beams (int): captions of each photo, and the beam width.
        attention (bool, default False): also `words` and `attention`, a map [rows, columns] for each word.
        max_new_tokens (int), generate_kwargs (dict): anything that `generate` takes.
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.model.prepare_for_inference()

    def _sanitize_parameters(
        self,
        num_captions: int | None = None,
        num_beams: int | None = None,
        max_new_tokens: int | None = None,
        attention: bool | None = None,
        generate_kwargs: dict[str, Any] | None = None,
    ) -> tuple[dict, dict, dict]:
        forward = dict(generate_kwargs or {})
        if max_new_tokens is not None:
            forward["max_new_tokens"] = max_new_tokens
        if num_captions is not None:
            forward["num_return_sequences"] = num_captions
        if num_beams is not None:
            forward["num_beams"] = num_beams
        return {}, forward, {} if attention is None else {"attention": attention}

    def preprocess(self, image: Any) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.image_processor(photo(image), return_tensors="pt").pixel_values}

    def _forward(self, inputs: dict[str, torch.Tensor], **generate: Any) -> dict[str, torch.Tensor]:
        config = generate.pop("generation_config", self.model.generation_config)
        count = generate.get("num_return_sequences") or config.num_return_sequences or 1
        if not (generate.get("do_sample") or config.do_sample):
            generate["num_beams"] = max(generate.get("num_beams") or config.num_beams or 1, count)
        pixels = inputs["pixel_values"].to(self.model.dtype)
        encoded = self.model.encoder(pixels)
        sequences = self.model.generate(encoder_outputs=encoded, generation_config=config, **generate)  # [B * N, T]
        owner = torch.arange(len(pixels), device=sequences.device).repeat_interleave(count)
        log_probs, maps = self.model.score(sequences, encoder_outputs=encoded, image_index=owner)
        length = log_probs.ne(0).sum(-1).clamp_min(1)  # words and the end
        found = {"sequences": sequences, "scores": log_probs.sum(-1) / length, "maps": maps}
        return {name: value.view(len(pixels), count, *value.shape[1:]) for name, value in found.items()}  # [B, N, ...]

    def postprocess(self, outputs: dict[str, torch.Tensor], attention: bool = False) -> list[dict[str, Any]]:
        captions = []
        for ids, score, maps in zip(*(outputs[name][0] for name in ("sequences", "scores", "maps")), strict=True):
            text = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
            captions.append({"generated_text": text, "score": float(score)})
            if attention:
                special = set(self.tokenizer.all_special_ids)
                places = [i for i, token in enumerate(ids[1:].tolist()) if token not in special]
                spelt = whole_words(self.tokenizer.convert_ids_to_tokens(ids[1:][places]))
                grids = [maps[places][parts].mean(0).view(self.model.grid_size).tolist() for _, parts in spelt]
                captions[-1] |= {"words": [word for word, _ in spelt], "attention": grids}
        return captions
