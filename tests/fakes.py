"""A pipeline without models, for the tests of the page: quick, deterministic, with the interface of `StoryPipeline`."""

import time
from collections.abc import Iterator

import numpy as np
from PIL import Image

from modeling import Caption, StyleError

STYLES = ("everyday", "romance", "adventure", "science_fiction", "mystery", "horror", "fairy_tale")


class FakePipeline:
    """Names the mean colour of a photo, and tells of it in as many words as asked.

    Args:
        words: length of the stories.
        pause: seconds between two words.
        names: what is seen, one caption each.
    """

    def __init__(self, words: int = 40, pause: float = 0.0, names: tuple[str, ...] = ("thing", "shape", "light")):
        self.words, self.pause, self.names = words, pause, names
        self.styles = dict.fromkeys(STYLES)
        self.photos: list[Image.Image] = []
        self.written = 0

    def caption(self, images: list[Image.Image], num_captions: int = 3) -> list[tuple[Caption, ...]]:
        self.photos.extend(images)
        return [tuple(self._caption(image, name) for name in self.names[:num_captions]) for image in images]

    def _caption(self, image: Image.Image, name: str) -> Caption:
        colour = "#{:02x}{:02x}{:02x}".format(*image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)))
        words = ("a", name, "of", "colour", colour)
        attention = np.full((len(words), 7, 7), 0.01, dtype=np.float32)
        for place in range(len(words)):
            attention[place, place, 6 - place] = 0.52
        return Caption(" ".join(words), -0.5, words, attention)

    def stream(self, captions: tuple[Caption, ...], style: str = "everyday", seed: int = 0) -> Iterator[str]:
        if style not in self.styles:
            raise StyleError(f"There is no style {style!r}: choose one of {', '.join(self.styles)}.")
        words = [f"Seed {seed}, {style}: {captions[0].text}."] + [f"word{i}" for i in range(self.words)]
        for count in range(1, len(words) + 1):
            time.sleep(self.pause)
            self.written = count
            yield " ".join(words[:count])
