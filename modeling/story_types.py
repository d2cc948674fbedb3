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
RECIPES = ("pictale", "neural-storyteller")
CAPTIONS = ("generate", "retrieve", "both")
CHOICES = ("sentence", "passage")

# Smallest and largest value of each number. The upper ends only stop mistakes from costing hours.
_LIMITS: dict[str, tuple[float, float]] = {
    "num_captions": (1, 200),
    "caption_beams": (1, 200),
    "caption_picture": (0, 1000),
    "nearest_sentences": (0, 1000),
    "strength": (-10, 10),
    "caption_removal": (0, 2),
    "focus": (0, 10),
    "accent": (-10, 10),
    "fading": (0, 1),
    "plot": (0, 1),
    "candidates": (1, 256),
    "passages": (1, 100),
    "content_words": (0, 50),
    "context_tokens": (0, 200),
    "beam_width": (0, 200),
    "temperature": (1e-6, 10),
    "top_k": (1, 10**6),
    "top_p": (1e-6, 1),
    "min_p": (0, 1),
    "presence_penalty": (0, 100),
    "guidance": (0, 10),
    "no_repeat_ngram_size": (0, 50),
    "min_new_tokens": (0, 1000),
    "max_new_tokens": (1, 1000),
    "max_sentence_tokens": (5, 1000),
}
_WEIGHT_LIMITS = (-100, 100)


@dataclass(frozen=True)
class StoryOptions:
    """How a story is written. Every default can be replaced in a call: `pipe(photo, strength=1.5)`.

    Args:
        writer: Who writes: `decoder`, the story decoder; `bookshelf`, which quotes passages of novels with title and
            author; `endpoint`, a language model elsewhere that the environment names; or a language model to load,
            see `StoryPipeline.open_writer`. Language models heed `strength`, `passages`, `lyrics`, `temperature`,
            `top_p` and, in words, `min_new_tokens`, `max_new_tokens` and `max_sentence_tokens`; one that is loaded
            heeds `top_k` and `min_p` as well.
        recipe: `pictale`, or `neural-storyteller` for that of 2015: the most probable passage for the shifted vector
            alone, by beam search; no content words, nothing of the passage before, no penalties, no reranking.
        num_captions: Captions per photo, of the captioner's beams, whose vectors are averaged.
        caption_beams: Beam width of the captioner (at least `num_captions`).
        caption_picture: How much it counts, when captions are chosen of the beams, that they are near to the photo in
            the joint embedding and differ (`modeling.photo_captions`); 0: the order of the beams, as with the recipe
            `neural-storyteller`.
        captions: What is said of a photo: `generate` has the captioner write it, `retrieve` takes the sentences of the
            caption bank that lie nearest to the photo (as neural-storyteller did), `both` takes both; a pipeline that
            has no such sentences then only writes.
        nearest_sentences: So many of the bank; their vectors are averaged too. 0 is 100 where the recipe
            `neural-storyteller` retrieves, as in the original, and 5 otherwise.
        strength: s in f (x - r c) + s b; 0 tells in no style, above 1 exaggerates.
        caption_removal: r: how much of the captions' own style is taken away; 1 all, 0 nothing.
        accent: How strongly the decoder is told the style itself, beside the vector, in multiples of the strength; 0
            with the recipe `neural-storyteller`. Only decoders trained with it (`style_size`) listen.
        focus: f: how much the vector speaks of the picture; 0 of nothing but the style. 1 with the recipe
            `neural-storyteller`.
        candidates: Sentences (or passages) written at once, of which the best is kept.
        choose: `sentence` keeps the best of the candidates for each sentence in turn, `passage` the best whole passage.
        passages: Parts of a story; each later part knows the vector of the part before.
        content_words: Most words of the captions that the decoder is shown; 0 writes from the vector alone.
        context_tokens: Most words and marks of the story so far that the decoder reads again before it goes on, whole
            sentences; 0: it knows the part before by its vector only.
        beam_width: 0 samples; 1 is greedy search, more is beam search (whole passages, `candidates` then has no
            meaning). 0 is 50 with the recipe `neural-storyteller`.
        temperature, top_k, top_p, min_p: Sampling of words, see `SamplingOptions`.
        fading: How much of what the vector says of the picture is taken back as its words are told, from 0 to 1 (all of
            it, once all are), so that the story goes on instead of saying the same again.
        plot: How far each sentence follows a sentence of a plot (`modeling.plots`, `modeling.story_plots`) in place of
            the picture, from 0 (not at all) to 1 (it goes by the picture's words alone); the first sentence about a
            photo half as far. Only the decoder follows one, where sentences are chosen and the pipeline has plots; 0
            with the recipe `neural-storyteller`.
        guidance: How far words are drawn away from what a passage about nothing in no style would say; 1: not at all.
            Above it picture and style are told more loudly. Beam search has none.
        presence_penalty, no_repeat_ngram_size: Against saying the same again; the penalty spares function words.
        min_new_tokens, max_new_tokens: Length of a passage in words and marks.
        max_sentence_tokens: Length of a sentence, where sentences are chosen.
        lyrics: Break the story at commas and sentence ends, a line each.
        weight_grounding, weight_picture, weight_plot, weight_words, weight_style, weight_fluency, weight_natural,
        weight_repetition, weight_echo, weight_speech, weight_ending, weight_length, weight_thread: How much each of the
            scores of `Candidate` counts when the best is chosen.

    Raises:
        PictaleError: a value of the wrong kind or out of range, in one sentence.
    """

    writer: str = "decoder"
    recipe: str = "pictale"

    num_captions: int = 3
    caption_beams: int = 8
    caption_picture: float = 2.0
    captions: str = "both"
    nearest_sentences: int = 0

    strength: float = 1.0
    caption_removal: float = 1.0
    focus: float = 0.4
    accent: float = 1.0
    fading: float = 0.5
    plot: float = 0.17

    candidates: int = 20
    choose: str = "sentence"
    passages: int = 2
    content_words: int = 6
    context_tokens: int = 40

    beam_width: int = 0
    temperature: float = 0.75
    top_k: int = 128
    top_p: float = 0.92
    min_p: float = 0.0
    presence_penalty: float = 1.0
    guidance: float = 1.0
    no_repeat_ngram_size: int = 4
    min_new_tokens: int = 25
    max_new_tokens: int = 70
    max_sentence_tokens: int = 40
    lyrics: bool = False

    weight_grounding: float = 0.5
    weight_picture: float = 2.2
    weight_plot: float = 0.3
    weight_words: float = 0.5
    weight_style: float = 1.0
    weight_fluency: float = 1.5
    weight_natural: float = 1.0
    weight_repetition: float = 6.0
    weight_echo: float = 4.0
    weight_speech: float = 2.0
    weight_ending: float = 3.0
    weight_length: float = 3.0
    weight_thread: float = 4.0

    def __post_init__(self) -> None:
        several = {"recipe": RECIPES, "captions": CAPTIONS, "choose": CHOICES, "lyrics": (True, False)}
        for name, allowed in several.items():
            if getattr(self, name) not in allowed:
                raise PictaleError(f"{name} must be {' or '.join(map(str, allowed))}, not {getattr(self, name)!r}.")
        for option in dataclasses.fields(self):
            if option.type in ("int", "float"):
                _check_number(option.name, getattr(self, option.name), whole=option.type == "int")
        if self.caption_beams < self.num_captions:
            object.__setattr__(self, "caption_beams", self.num_captions)
        object.__setattr__(self, "min_new_tokens", min(self.min_new_tokens, self.max_new_tokens))

    def resolved(self) -> StoryOptions:
        """The same with what the recipe fixes written out."""
        if self.recipe == "pictale":
            return self if self.nearest_sentences else dataclasses.replace(self, nearest_sentences=5)
        return dataclasses.replace(
            self,
            nearest_sentences=self.nearest_sentences or (100 if self.captions == "retrieve" else 5),
            caption_picture=0.0,
            beam_width=self.beam_width or 50,
            focus=1.0,
            accent=0.0,
            plot=0.0,
            content_words=0,
            context_tokens=0,
            passages=1,
            no_repeat_ngram_size=0,
            presence_penalty=0.0,
            guidance=1.0,
        )


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
        scores: Its parts, see `modeling.reranking`: `grounding`, `picture`, `words`, `style`, `fluency`
            and so on; a writer may have others.
        source: Where it stands, if it is a quotation.
        follows: The book on a page of which happens what it tells, if it is known (`modeling.story_plots`).
    """

    text: str
    score: float
    scores: dict[str, float]
    source: Source | None = None
    follows: Source | None = None


@dataclass(frozen=True)
class Written:
    """What a writer has written so far.

    Args:
        text: Readable text that will not change any more, but may go on.
        choices: For each sentence (or passage) of it all candidates, best first; the first of each is in the text.
    """

    text: str
    choices: tuple[tuple[Candidate, ...], ...] = ()

    @property
    def sources(self) -> tuple[Source, ...]:
        """The books it quotes, in order, each once."""
        return books_of(choice[0].source for choice in self.choices)

    @property
    def follows(self) -> tuple[Source, ...]:
        """The books whose events it follows, in order, each once."""
        return books_of(choice[0].follows for choice in self.choices)


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
        content_words: Words of the captions that the writer was shown.
    """

    captions: tuple[Caption, ...]
    style: str
    story: str
    seed: int
    choices: tuple[tuple[Candidate, ...], ...] = ()
    content_words: tuple[str, ...] = ()

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """All candidates of the first choice, best first."""
        return self.choices[0] if self.choices else ()

    @property
    def sources(self) -> tuple[Source, ...]:
        """The books that the story quotes, in order, each once; none if it was invented."""
        return Written(self.story, self.choices).sources

    @property
    def follows(self) -> tuple[Source, ...]:
        """The books on whose pages happens what the story tells, in order, each once; see `modeling.story_plots`."""
        return Written(self.story, self.choices).follows


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
