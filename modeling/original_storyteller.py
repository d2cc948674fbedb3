"""The recipe of neural-storyteller (2015), plain, on its own converted models or any that fit together.

github.com/ryankiros/neural-storyteller, `generate.py`. With x the mean thought of the k sentences nearest to a picture,
c the mean of captions in general and b the mean of a book's passages:

    passage = beam search of the decoder from x - c + b
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import TextError
from .fingerprints import encoder_fingerprint
from .modeling_original_decoder import PictaleOriginalDecoder
from .styles import Style, shift_style
from .text import lyric_lines


@dataclass(frozen=True)
class OriginalStoryteller:
    """Encoder, decoder and the two mean vectors.

    Args:
        encoder: With `encode(sentences)`, the one that the decoder was trained with.
        decoder: The original decoder.
        caption_style, book_style: c and b, of this encoder; `training.convert_original style` makes them from .npy.
    """

    encoder: Any
    decoder: PictaleOriginalDecoder
    caption_style: Style
    book_style: Style

    def __post_init__(self) -> None:
        fingerprint = encoder_fingerprint(self.encoder)
        for style in (self.caption_style, self.book_style):
            style.check_encoder(fingerprint)

    def shift(self, captions: Sequence[str], k: int = 100) -> np.ndarray:
        """x - c + b of the first k captions, best first, [D]."""
        if not len(captions) or k < 1:
            raise TextError("A story needs at least one caption, and k of 1 or more.")
        mean = self.encoder.encode(list(captions[:k])).mean(0)
        return shift_style(mean, self.caption_style.vector, self.book_style.vector)

    def __call__(
        self,
        captions: Sequence[str],
        k: int = 100,
        beam_width: int = 50,
        lyric: bool = False,
        max_new_tokens: int = 1000,
    ) -> str:
        """Tell a story.

        Args:
            captions: What is seen, the nearest first (`PictaleOriginalJointEmbedding.nearest` finds such).
            k: How many of them are averaged.
            beam_width: Width of the search; larger is slower.
            lyric: One line for each piece between commas.
            max_new_tokens: Greatest length.

        Returns:
            The passage's words joined by spaces, as the original prints them.
        """
        passage = self.decoder.write(self.shift(captions, k), num_beams=beam_width, max_new_tokens=max_new_tokens)
        return lyric_lines(passage) if lyric else passage
