"""What a writer is: whoever turns what was seen, a style and the story so far into a passage.

A pipeline has several by name (`StoryPipeline.writers`), and `StoryOptions.writer` chooses one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .reranking import Wish
from .story_types import StoryOptions, Written
from .styles import Style


@dataclass(frozen=True)
class PassageTask:
    """One passage that a writer is asked for.

    Args:
        thought: The shifted vector x - c + s b [D].
        wish: What candidates are ranked by, and the story so far.
        seed: Reproduces the passage.
        options: How it is written.
        label: Name of the style or blend, for writers that know what a romance is.
        captions: What the photo shows that the story is about, or was last, surest first.
        perhaps: Sentences that it brings to mind, which may be about something else.
        new_photo: The story comes to this photo with this passage.
        own: The style itself, where it was given and not named: its pages are not among the pipeline's.
    """

    thought: np.ndarray
    wish: Wish
    seed: int
    options: StoryOptions
    label: str = ""
    captions: tuple[str, ...] = ()
    perhaps: tuple[str, ...] = ()
    new_photo: bool = False
    own: Style | None = None


class Writer(Protocol):
    """Writes passages; `separator` stands between the passages of one story."""

    separator: str

    def prepare(self) -> None:
        """Load what is needed. Raises PictaleError, before any work, if this writer cannot be used."""
        ...

    def write(self, task: PassageTask) -> Iterator[Written]:
        """The passage as it grows; the last item is the whole of it."""
        ...
