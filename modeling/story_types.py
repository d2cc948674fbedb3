"""Options and results of a story. Frozen: a result is a record of what happened, not a place to keep state."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import PictaleError

MAX_SEED = 2**31 - 1
CAPTIONS = ("generate", "retrieve", "both")
LENGTHS = {"short": (28, 48), "medium": (55, 90), "long": (130, 175)}  # words, as in the stories it was trained on
STORYTELLER, NEURAL_STORYTELLER = "storyteller", "neural-storyteller"  # writers

# Smallest and largest value of each number. The upper ends only stop mistakes from costing hours.
_LIMITS: dict[str, tuple[float, float]] = {
    "num_captions": (1, 200),
    "caption_beams": (1, 200),
    "caption_picture": (0, 1000),
    "nearest_sentences": (0, 1000),
    "strength": (-10, 10),
    "candidates": (1, 32),
    "beam_width": (1, 200),
    "temperature": (1e-6, 10),
    "top_p": (1e-6, 1),
    "min_p": (0, 1),
}
_WEIGHT_LIMITS = (-100, 100)


@dataclass(frozen=True)
class StoryOptions:
    """How a story is written. Every default can be replaced in a call: `pipe(photo, strength=1.5)`.

    Args:
        writer: Who writes: `storyteller`; `neural-storyteller`, the recipe of 2015, the most probable passage for the
            shifted vector alone; `bookshelf`, which quotes passages of novels with title and author; `endpoint`, a
            language model elsewhere that the environment names; or a language model to load, see
            `StoryPipeline.open_writer`. Language models heed `strength`, `length`, `lyrics`, `temperature` and `top_p`,
            and one that is loaded `min_p`; the recipe of 2015 `strength` and `beam_width`, the bookshelf `strength`.
        captions: What is said of a photo: `generate` has the captioner write it, `retrieve` takes the sentences of the
            caption bank that lie nearest to the photo (as neural-storyteller did), `both` takes both; a pipeline that
            has no such sentences then only writes.
        num_captions: Captions per photo, of the captioner's beams.
        caption_beams: Beam width of the captioner (at least `num_captions`).
        caption_picture: How much it counts, when captions are chosen of the beams, that they are near to the photo in
            the joint embedding and differ (`modeling.photo_captions`); 0: the order of the beams, as with the writer
            `neural-storyteller`.
        nearest_sentences: So many of the bank. 0 is 100 where `neural-storyteller` retrieves, as in the original, and 5
            otherwise.
        strength: s in x - c + s b; 0 tells in no style, above 1 exaggerates.
        length: `short`, `medium` or `long`: about 40, 70 or 150 words.
        lyrics: A song, in lines.
        candidates: Sentences written at once, of which the best is kept.
        temperature, top_p, min_p: Sampling of words, see `SamplingOptions`.
        beam_width: Of the writer `neural-storyteller`.
        weight_picture, weight_words, weight_style, weight_likelihood, weight_repetition: How much each of the scores of
            `modeling.reranking` counts when the best candidate is chosen.

    Raises:
        PictaleError: a value of the wrong kind or out of range, in one sentence.
    """

    writer: str = STORYTELLER
    captions: str = "both"
    num_captions: int = 3
    caption_beams: int = 8
    caption_picture: float = 2.0
    nearest_sentences: int = 0
    strength: float = 1.0
    length: str = "medium"
    lyrics: bool = False
    candidates: int = 3
    temperature: float = 0.6
    top_p: float = 0.95
    min_p: float = 0.05
    beam_width: int = 50
    weight_picture: float = 1.0
    weight_words: float = 1.0
    weight_style: float = 0.5
    weight_likelihood: float = 1.0
    weight_repetition: float = 6.0

    def __post_init__(self) -> None:
        several = {"captions": CAPTIONS, "length": tuple(LENGTHS), "lyrics": (True, False)}
        for name, allowed in several.items():
            if getattr(self, name) not in allowed:
                raise PictaleError(f"{name} must be {' or '.join(map(str, allowed))}, not {getattr(self, name)!r}.")
        for option in dataclasses.fields(self):
            if option.type in ("int", "float"):
                _check_number(option.name, getattr(self, option.name), whole=option.type == "int")
        if self.caption_beams < self.num_captions:
            object.__setattr__(self, "caption_beams", self.num_captions)

    def resolved(self) -> StoryOptions:
        """The same with what the writer fixes written out."""
        if self.writer != NEURAL_STORYTELLER:
            return self if self.nearest_sentences else dataclasses.replace(self, nearest_sentences=5)
        nearest = self.nearest_sentences or (100 if self.captions == "retrieve" else 5)
        return dataclasses.replace(self, nearest_sentences=nearest, caption_picture=0.0)

    @property
    def words(self) -> tuple[int, int]:
        """Fewest and most words that a story of this length should have."""
        return LENGTHS[self.length]


def _check_number(name: str, value: Any, whole: bool) -> None:
    low, high = _WEIGHT_LIMITS if name.startswith("weight_") else _LIMITS[name]
    number = isinstance(value, (int, np.integer) if whole else (int, float, np.number)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise PictaleError(f"{name} must be {kind} from {low:g} to {high:g}, not {value!r}.")


@dataclass(frozen=True)
class Caption:
    """What the captioner says of a photo.

    Args:
        text: The caption as a person would write it.
        score: Mean log-probability per word; higher is surer.
        words: Its words and marks as generated.
        attention: Where the captioner looked for each word, float32 [words, rows, columns]; each map sums to 1.
        remembered: It is a sentence of the caption bank; its score is its cosine to the photo, and it has no maps.
    """

    text: str
    score: float
    words: tuple[str, ...] = ()
    attention: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32), repr=False, compare=False)
    remembered: bool = False


@dataclass(frozen=True)
class Source:
    """The book that a passage was taken from; printed as a reader would name it."""

    title: str
    author: str = ""
    year: int | None = None

    def __str__(self) -> str:
        by = f"{self.title}, {self.author}" if self.author else self.title
        return by if self.year is None else f"{by} ({self.year})"


@dataclass(frozen=True)
class Candidate:
    """A sentence or passage that was considered.

    Args:
        text: Cleaned text.
        score: What it was ranked by: the weighted sum of its scores, comparable among candidates of one choice only.
        scores: Its parts, see `modeling.reranking`; a writer may have others.
        source: Where it stands, if it is a quotation.
    """

    text: str
    score: float
    scores: dict[str, float]
    source: Source | None = None


@dataclass(frozen=True)
class Written:
    """What a writer has written so far.

    Args:
        text: Readable text that will not change any more, but may go on.
        choices: For each sentence (or passage) of it all candidates, best first; the first of each is in the text.
        title: Of the story, where the writer gave one.
        follows: The books whose pages the writer was shown, to write in their manner.
    """

    text: str
    choices: tuple[tuple[Candidate, ...], ...] = ()
    title: str = ""
    follows: tuple[Source, ...] = ()

    @property
    def sources(self) -> tuple[Source, ...]:
        """The books it quotes, in order, each once."""
        return books_of(choice[0].source for choice in self.choices)


def books_of(sources: Iterable[Source | None]) -> tuple[Source, ...]:
    """Those that are there, in order, each once."""
    return tuple(dict.fromkeys(source for source in sources if source is not None))


@dataclass(frozen=True)
class StoryResult:
    """A story and how it came about.

    Args:
        captions: What was seen, best first.
        style: Name or blend.
        story: The text.
        seed: Reproduces the story with the same photo, style and options.
        choices: For each sentence (or passage) of the story all candidates, best first: why it reads as it does.
        title: Of the story; "" where the writer gives none.
        follows: The books whose pages the writer was shown, to write in their manner.
    """

    captions: tuple[Caption, ...]
    style: str
    story: str
    seed: int
    choices: tuple[tuple[Candidate, ...], ...] = ()
    title: str = ""
    follows: tuple[Source, ...] = ()

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """All candidates of the first choice, best first."""
        return self.choices[0] if self.choices else ()

    @property
    def sources(self) -> tuple[Source, ...]:
        """The books that the story quotes, in order, each once; none if it was invented."""
        return Written(self.story, self.choices).sources


def as_captions(captions: Sequence[Caption | str]) -> tuple[Caption, ...]:
    """Captions, a person's own sentences among them. Raises PictaleError if nothing is said."""
    given = tuple(c if isinstance(c, Caption) else Caption(c, 0.0) for c in captions)
    if not any(c.text.strip() for c in given):
        raise PictaleError("There is no caption to tell a story about: give at least one sentence.")
    return given


def written_captions(captions: Sequence[Caption]) -> list[Caption]:
    """Those written for the photo itself; all, if it only brought others to mind."""
    return [caption for caption in captions if not caption.remembered] or list(captions)


def check_seed(seed: int | None) -> int:
    """The seed, or a new one for None."""
    if seed is None:
        return random.SystemRandom().randrange(MAX_SEED)
    if not 0 <= int(seed) <= MAX_SEED:
        raise PictaleError(f"The seed must be a whole number from 0 to {MAX_SEED}, not {seed}.")
    return int(seed)
