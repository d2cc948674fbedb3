"""Options and results of a story. Frozen: a result is a record of what happened, not a place to keep state."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .errors import PictaleError


@dataclass(frozen=True)
class StoryOptions:
    """How a story is written. Every default can be replaced in a call: `pipe(photo, strength=1.5)`.

    Args:
        num_captions: Captions per photo, the best beams of the captioner.
        caption_beams: Beam width of the captioner (at least `num_captions`).
        strength: s in x - c + s*b; 0 tells in no style, above 1 exaggerates.
        candidates: Passages written at once, of which the best is kept.
        passages: Parts of a story; each later part knows the vector of the part before.
        content_words: Most words of the captions that the decoder is shown; 0 writes from the vector alone.
        temperature, top_k, top_p: Sampling of words, see `SamplingOptions`.
        presence_penalty, no_repeat_ngram_size: Against saying the same again; the penalty spares function words.
        min_new_tokens, max_new_tokens: Length of a passage in words and marks.
        grounding, style, fluency: Weights of the three scores that choose among candidates.
    """

    num_captions: int = 3
    caption_beams: int = 3

    strength: float = 1.0

    candidates: int = 8
    passages: int = 2
    content_words: int = 6

    temperature: float = 0.75
    top_k: int = 128
    top_p: float = 0.92
    presence_penalty: float = 1.0
    no_repeat_ngram_size: int = 4
    min_new_tokens: int = 25
    max_new_tokens: int = 70

    grounding: float = 2.0
    style: float = 1.0
    fluency: float = 1.0

    def __post_init__(self) -> None:
        for name in ("num_captions", "caption_beams", "candidates", "passages", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise PictaleError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.caption_beams < self.num_captions:
            object.__setattr__(self, "caption_beams", self.num_captions)
        if not 0 < self.top_p <= 1 or self.temperature <= 0 or self.top_k < 1:
            raise PictaleError("top_p must lie in (0, 1], temperature above 0, and top_k must be at least 1.")
        object.__setattr__(self, "min_new_tokens", min(self.min_new_tokens, self.max_new_tokens))


@dataclass(frozen=True)
class Caption:
    """What the captioner says of a photo.

    Args:
        text: The caption as a person would write it.
        score: Mean log-probability per word; higher is surer.
        words: Its words and marks as generated.
        attention: Where the captioner looked for each word, float32 [words, rows, columns]; each map sums to 1.
    """

    text: str
    score: float
    words: tuple[str, ...] = ()
    attention: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32), repr=False, compare=False)


@dataclass(frozen=True)
class Candidate:
    """A passage that was considered.

    Args:
        text: Cleaned text.
        score: What it was ranked by.
        scores: Its parts: `grounding` (share of the shown content words used), `likeness` (cosine of its thought with
            the captions', style apart), `style` (cosine with the style's direction), `fluency` (mean log-probability
            per word), `repetition` (share of trigrams that were there before).
    """

    text: str
    score: float
    scores: dict[str, float]


@dataclass(frozen=True)
class StoryResult:
    """A story and how it came about.

    Args:
        captions: What was seen, best first.
        style: Name or blend.
        story: The text.
        seed: Reproduces the story with the same photo, style and options.
        candidates: All candidates of the first passage, best first.
        content_words: Words of the captions that the decoder was shown.
    """

    captions: tuple[Caption, ...]
    style: str
    story: str
    seed: int
    candidates: tuple[Candidate, ...] = ()
    content_words: tuple[str, ...] = ()
