"""A pipeline without models, for the tests of the page: quick, deterministic, with the interface of `StoryPipeline`."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from modeling import Candidate, Caption, Source, Style, StyleError, load_image
from modeling.continuation import StoryContinuation
from modeling.story_types import StoryOptions, Written, written_captions
from modeling.styles import parse_style, split_passages

STYLES = ("everyday", "romance", "adventure", "science_fiction", "mystery", "horror", "fairy_tale")
ENCODER = "an encoder that is none"
BOOK = Source("The Book", "A. Writer", 1900)


class FakePipeline(StoryContinuation):
    """Names the mean colour of a photo, and tells of it in as many words as asked, by the real mechanics of stories.

    Args:
        words: length of a passage.
        pause: seconds between two words.
        names: what is seen, one caption each.
    """

    def __init__(self, words: int = 40, pause: float = 0.0, names: tuple[str, ...] = ("thing", "shape", "light")):
        self.words, self.pause, self.names = words, pause, names
        self.styles = {name: fake_style(name) for name in STYLES}
        self.photos: list[Image.Image] = []
        self.calls: list[dict[str, Any]] = []
        self.written = 0
        self.can_retrieve, self.options = True, StoryOptions()
        self.writers = {"storyteller": self, "bookshelf": self}

    def caption(self, images: Any, num_captions: int = 3, num_beams: int = 3) -> list[tuple[Caption, ...]]:
        images = [load_image(image) for image in (images if isinstance(images, list) else [images])]
        self.photos.extend(images)
        return [tuple(self._caption(image, name) for name in self.names[:num_captions]) for image in images]

    def see(self, images: list[Any], options: StoryOptions) -> list[tuple[Caption, ...]]:
        near = tuple(
            Caption(text, cosine, ("like",), remembered=True) for text, cosine, _ in self.nearest_sentences(0, 5)[0]
        )
        written = self.caption(images, options.num_captions)
        ways = {"generate": lambda one: one, "retrieve": lambda one: near, "both": lambda one: (*one, *near)}
        return [ways[options.captions](one) for one in written]

    def _caption(self, image: Image.Image, name: str) -> Caption:
        colour = "#{:02x}{:02x}{:02x}".format(*image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)))
        words = ("a", name, "of", "colour", colour)
        attention = np.full((len(words), 7, 7), 0.01, dtype=np.float32)
        for place in range(len(words)):
            attention[place, place, 6 - place] = 0.52
        return Caption(" ".join(words), -0.5, words, attention)

    def has_writer(self, name: str) -> bool:
        return name in self.writers

    def views(self, images: list[Any], options: StoryOptions) -> list[None]:
        return [None] * len(images)

    def nearest_sentences(self, image: Image.Image, k: int) -> list[list[tuple[str, float, int]]]:
        return [[(f"Something like {name}.", 0.5, 0) for name in self.names[:k]]]

    def check_style(self, style: Style) -> None:
        style.check_encoder(ENCODER)

    def make_style(
        self, text: str, name: str, source: str = "", progress: Callable[[float, str], None] | None = None
    ) -> Style:
        passages = split_passages(text)
        if len(passages) < 20:
            raise StyleError(f"This text has {len(passages)} passages; a style needs at least 20.")
        for done in range(3):
            progress and progress(done / 3, "reading")
            time.sleep(self.pause)
        return fake_style(name, len(passages), source)

    def tell(self, captions: Sequence[Caption], **options: Any) -> Any:
        return type("Result", (), {"story": f"{options} {captions[0].text}"})

    def _options(self, changes: Mapping[str, Any]) -> StoryOptions:
        return StoryOptions(**changes)

    def _style(self, style: Any) -> tuple[str, np.ndarray]:
        return parse_style(style, self.styles)

    def _material(self, so_far: Any, sentence: str | None) -> tuple[Any, list[str]]:
        return np.zeros(4), ["thing", "colour"]

    def _write(
        self, x: Any, words: list[str], style: Any, seed: int, options: StoryOptions, **task: Any
    ) -> Iterator[Written]:
        given = [caption.text for caption in written_captions(task["captions"])]
        self.calls.append({"given": given, "style": style, "seed": seed, "options": options, **task})
        words = [f"Seed {seed}, strength {options.strength:g}: {given[0] if given else 'nothing'}."]
        words += [f"word{i}" for i in range(self.words)]
        for count in range(1, len(words) + 1):
            time.sleep(self.pause)
            self.written = count
            text = " ".join(words[:count])
            scores = {"picture": 0.5, "likelihood": -2.0}
            choice = (Candidate(text, 1.0, scores), Candidate("Not this.", 0.5, scores))
            yield Written(text, (choice,), title="" if task["before"] else f"Title {seed}", follows=(BOOK,))


def fake_style(name: str, passages: int = 100, source: str = "nowhere") -> Style:
    return Style(name, np.full(4, passages, np.float32), passages, source, ENCODER)
