"""What a writer is: whoever turns a thought and a few words into a passage.

A pipeline has several by name (`StoryPipeline.writers`), and `StoryOptions.writer` chooses one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .plots import Events
from .reranking import Wish
from .story_types import StoryOptions, Written


@dataclass(frozen=True)
class PassageTask:
    """One passage that a writer is asked for.

    Args:
        thought: The shifted vector f (x - r c) + s b [D].
        wish: What candidates are ranked by.
        previous: Vector of the passage before [D], or None at the beginning.
        seed: Reproduces the passage.
        options: How it is written.
        label: Name of the style or blend, for writers that know what a romance is.
        captions: What the photo shows that the story is about, or was last.
        events: What its sentences follow; None: nothing but the picture.
        new_photo: The story comes to this photo with this passage.
    """

    thought: np.ndarray
    wish: Wish
    previous: np.ndarray | None
    seed: int
    options: StoryOptions
    label: str = ""
    captions: tuple[str, ...] = ()
    new_photo: bool = False
    events: Events | None = None


class Writer(Protocol):
    """Writes passages; `separator` stands between the passages of one story."""

    separator: str

    def prepare(self) -> None:
        """Load what is needed. Raises PictaleError, before any work, if this writer cannot be used."""
        ...

    def known(self, words: Sequence[str]) -> Collection[str]:
        """Those of `words` that this writer can be asked for, in their order."""
        ...

    def write(self, task: PassageTask) -> Iterator[Written]:
        """The passage as it grows; the last item is the whole of it."""
        ...
