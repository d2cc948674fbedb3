"""What one visitor of the page has on the table, and what can be done with it. Frozen: a change is a new `Visit`.

Nothing here belongs to more than one visitor: styles that a visitor made are given to the pipeline with each call,
never added to it. Each word gives a visit that could be kept, so stopping or failing halfway loses nothing.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import PictaleError, StoryError, StyleError
from .memory import give_back_memory
from .story import Story
from .story_types import STORYTELLER, Caption
from .styles import Style, parse_style

PhotoSource = str | bytes
OwnStyles = Mapping[str, Style]

LENGTHS = ("Short", "Medium", "Long")
MAX_OWN_STYLES = 20
MAX_EARLIER = 5  # stories put aside
MAX_PASSAGES = 60  # of one story, over all its steps
MAX_SECONDS = 240  # that one step may take, waiting not included


@dataclass(frozen=True)
class Seen:
    """A photo and what was said of it.

    Args:
        photo: What it can be read from.
        captions: Best first.
        way: How they were found, one of `story_types.CAPTIONS`.
    """

    photo: PhotoSource
    captions: tuple[Caption, ...]
    way: str = "both"


@dataclass(frozen=True)
class Wishes:
    """How a visitor wants a story told, as the page's controls have it.

    Args:
        style, second: Names of styles; the second may be None.
        share: Of the second, in percent.
        strength: Of the style.
        length: One of `LENGTHS`.
        lyrics: In lines.
        writer: A name among the pipeline's writers.
        seed: A whole number, or text of one; None or "" draws one.
    """

    style: str
    second: str | None = None
    share: float = 0
    strength: float = 1.0
    length: str = "Medium"
    lyrics: bool = False
    writer: str = STORYTELLER
    seed: str | float | None = None

    def options(self) -> dict[str, Any]:
        """For the pipeline."""
        length = str(self.length)
        if length.capitalize() not in LENGTHS:
            raise PictaleError(f"There is no length '{length[:60]}': choose from {', '.join(LENGTHS)}.")
        wishes = {"strength": self.strength, "length": length.lower(), "lyrics": bool(self.lyrics)}
        return wishes | {"writer": self.writer}

    def checked_seed(self) -> int:
        """The seed as a number."""
        if self.seed in (None, ""):
            return random.randrange(10**6)
        try:
            return int(self.seed)
        except (TypeError, ValueError, OverflowError):
            shown = str(self.seed)[:60]
            raise PictaleError(f"The seed {shown} is not a whole number: enter one, or nothing.") from None

    def blend(self) -> str:
        """The style as the pipeline writes it."""
        if not self.second or self.second == self.style or not self.share:
            return self.style
        return f"{self.style}:{100 - self.share:g},{self.second}:{self.share:g}"


@dataclass(frozen=True)
class Visit:
    """What a visitor has.

    Args:
        story: The story so far.
        photos: For each photo of the story what it can be read from, or None.
        earlier: Stories that were told before and made room for this one, with their photos; the last is the newest.
    """

    story: Story = Story()
    photos: tuple[PhotoSource | None, ...] = ()
    earlier: tuple[tuple[Story, tuple[PhotoSource | None, ...]], ...] = ()

    # -- telling -----------------------------------------------------------------------------------------------------
    def tell(self, pipe: Any, wishes: Wishes, seen: Seen, own: OwnStyles) -> Iterator[Visit]:
        """A new story about a photo, word by word; the one before is kept for `undo`."""
        yield from Visit(earlier=self._put_aside())._write(pipe, wishes, seen, None, own)

    def go_on(
        self, pipe: Any, wishes: Wishes, seen: Seen | None, sentence: str | None, own: OwnStyles
    ) -> Iterator[Visit]:
        """One more step of the story, word by word: with a photo, with the visitor's own words, or with nothing."""
        if not self.story.passages:
            raise StoryError("The story has not begun: tell one first, then go on.")
        if len(self.story.passages) >= MAX_PASSAGES:
            raise StoryError(f"The story has {MAX_PASSAGES} passages, which is as long as it can get here: keep it.")
        yield from self._write(pipe, wishes, seen, sentence if sentence and sentence.strip() else None, own)

    def _write(
        self, pipe: Any, wishes: Wishes, seen: Seen | None, sentence: str | None, own: OwnStyles
    ) -> Iterator[Visit]:
        if not pipe.has_writer(wishes.writer):  # a visitor must not choose what this server downloads
            raise StoryError(f"There is no writer '{str(wishes.writer)[:60]}' here: choose another one.")
        stories = pipe.stream_continuation(
            self.story,
            None if seen is None else seen.photo,
            sentence,
            find_style(pipe, wishes.blend(), own),
            wishes.checked_seed(),
            None if seen is None else seen.captions,
            **wishes.options(),
        )
        photos = self.photos if seen is None else (*self.photos, seen.photo)
        end = time.monotonic() + MAX_SECONDS
        try:
            for story in stories:
                yield dataclasses.replace(self, story=story, photos=photos)
                if time.monotonic() > end:
                    raise StoryError(
                        "This passage took too long and was stopped: go on with what there is, or try again."
                    )
        finally:
            give_back_memory()

    # -- changing ----------------------------------------------------------------------------------------------------
    def undo(self) -> Visit:
        """Without the last step; before the first one, the story that was told before this one comes back."""
        if len(self.story.steps) > 1 or not self.earlier:
            story = self.story.undo()
            return dataclasses.replace(self, story=story, photos=self.photos[: len(story.photos)])
        story, photos = self.earlier[-1]
        return Visit(story, photos, self.earlier[:-1])

    def edit(self, passage: int, text: str) -> Visit:
        """With one passage rewritten by hand."""
        return dataclasses.replace(self, story=self.story.edit(passage, text))

    def load(self, text: str | bytes) -> Visit:
        """With the story of a file; the one before is kept for `undo`.

        Raises:
            StoryError: not a story, or an empty one.
        """
        story = Story.from_json(text)
        if not story.passages:
            raise StoryError("The story is empty: load one that has been begun.")
        return Visit(story, (None,) * len(story.photos), self._put_aside())

    def _put_aside(self) -> tuple:
        if not self.story.passages:
            return self.earlier
        return (*self.earlier, (self.story, self.photos))[-MAX_EARLIER:]

    # -- looking -----------------------------------------------------------------------------------------------------
    def gallery(self, seen: Seen | None = None) -> list[tuple[str, Seen]]:
        """All photos there are, with a name for people: those of the story, then the one in the frame."""
        found = []
        for number, (photo, source) in enumerate(zip(self.story.photos, self.photos, strict=True), 1):
            name = f"Photo {number}: {photo.name}" if photo.name else f"Photo {number}"
            found.append((name, Seen(photo.thumbnail or b"" if source is None else source, photo.captions)))
        if seen is not None and seen.photo not in {shown.photo for _, shown in found}:
            found.append(("The photo in the frame", seen))
        return found


def find_style(pipe: Any, blend: str, own: OwnStyles) -> str | Style:
    """A style or blend for the pipeline; one with a style of the visitor's own becomes a `Style`.

    Raises:
        StyleError: an unknown name.
    """
    mine = [own[name] for part in blend.split(",") if (name := part.partition(":")[0].strip()) in own]
    if not mine:
        return blend
    label, vector = parse_style(blend, {**pipe.styles, **own})
    pages = tuple(page for style in mine for page in style.pages)
    vectors = [style.page_vectors for style in mine if style.pages]
    found = {"pages": pages, "page_vectors": np.concatenate(vectors) if vectors else None}
    return dataclasses.replace(mine[0], name=label, vector=vector, **found)


def add_style(pipe: Any, style: Style, own: OwnStyles) -> OwnStyles:
    """The visitor's styles with one more, in place of one of the same name.

    Raises:
        StyleError: it is of another encoder, is called like a style of the pipeline's, or there are too many.
    """
    pipe.check_style(style)
    if style.name in pipe.styles:
        raise StyleError(f"There is a style called '{style.name}' already: give yours another name.")
    if style.name not in own and len(own) >= MAX_OWN_STYLES:
        raise StyleError(f"You have {MAX_OWN_STYLES} styles of your own: reload the page to begin anew.")
    return {**own, style.name: style}
