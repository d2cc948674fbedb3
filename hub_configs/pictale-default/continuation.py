"""Stories that go on: with another photo, with a sentence of the user's, or with nothing but what was told.

What holds a continuation to the story before it: the newest part of it, which the writer reads again; and, when
candidates are ranked, what was said already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike, fspath
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL.Image import Image

from .errors import ImageError, StoryError
from .images import load_image
from .story import Passage, Step, Story, StoryPhoto, check_sentence
from .story_types import MAX_SEED, Caption, StoryOptions, Written, as_captions, check_seed
from .styles import Style
from .text import content_words, growing_words
from .word_forms import taken_up

StyleLike = str | Style | Mapping[str, float] | None


class StoryContinuation:
    """The methods of `StoryPipeline` that make and lengthen a `Story`."""

    def start_story(
        self,
        photos: Any,
        style: StyleLike = None,
        seed: int | None = None,
        captions: Sequence[Caption | str] | str | None = None,
        thumbnails: bool = True,
        **options: Any,
    ) -> Story:
        """A story about a photo, or one story over several: each further one continues it.

        Args:
            photos: Whatever `load_image` takes, or a list of that.
            style, seed, options: As for a call of the pipeline. Photo number i has the seed `seed + i`.
            captions: Of the one photo, if they are known already or a person knows better; or, of all photos, where
                they come from: `generate`, `retrieve` or `both`.
            thumbnails: Keep a small picture of each photo in the story.
        """
        *_, story = self.stream_story(photos, style, seed, captions, thumbnails, **options)
        return story

    def stream_story(
        self,
        photos: Any,
        style: StyleLike = None,
        seed: int | None = None,
        captions: Sequence[Caption | str] | str | None = None,
        thumbnails: bool = True,
        **options: Any,
    ) -> Iterator[Story]:
        """`start_story` word by word: each item is a story that could be kept as it is, the last is the whole."""
        photos = list(photos) if isinstance(photos, (list, tuple)) else [photos]
        if not photos:
            raise ImageError("No photo was given: pass at least one.")
        seed, story = check_seed(seed), Story()
        kept = {"captions": captions, "thumbnails": thumbnails}
        for i, photo in enumerate(photos):
            step_seed = (seed + i) % (MAX_SEED + 1)
            for grown in self.stream_continuation(story, photo, None, style, step_seed, **kept, **options):
                yield grown
            story, kept["captions"] = grown, captions if isinstance(captions, str) else None

    def continue_story(
        self,
        story: Story,
        photo: Any = None,
        sentence: str | None = None,
        style: StyleLike = None,
        seed: int | None = None,
        captions: Sequence[Caption | str] | str | None = None,
        thumbnails: bool = True,
        **options: Any,
    ) -> Story:
        """The story with one more step; the one given stays as it is.

        Args:
            story: What was told so far.
            photo: A new photo that the story goes on with.
            sentence: The user's own next sentence or sentences: kept exactly as written, and carried on.
            style: None keeps that of the last passage that was written; strength, lines and writer are kept too.
            seed: Reproduces the step; None draws one, which the passage tells.
            captions: Of the new photo, if they are known already; or where they come from, as for `start_story`.
            thumbnails: Keep a small picture of the photo in the story.
            options: Fields of `StoryOptions`.

        Raises:
            StoryError: an empty or endless sentence.
            ImageError: something that cannot be used as a photo.
        """
        *_, story = self.stream_continuation(story, photo, sentence, style, seed, captions, thumbnails, **options)
        return story

    def stream_continuation(
        self,
        story: Story,
        photo: Any = None,
        sentence: str | None = None,
        style: StyleLike = None,
        seed: int | None = None,
        captions: Sequence[Caption | str] | str | None = None,
        thumbnails: bool = True,
        **options: Any,
    ) -> Iterator[Story]:
        """`continue_story` word by word: each item is a story that could be kept as it is, the last is the whole."""
        captions, options = _given_captions(captions, options)
        last = next((p for p in reversed(story.passages) if p.origin != "user"), None)
        if last is not None:
            style = style or last.style
            if "writer" not in options and last.writer not in self.writers:  # a file must not choose what is downloaded
                raise StoryError(
                    f"The story was written by '{last.writer[:60]}', which is not open here: name it as the writer, or "
                    "choose another one."
                )
            options = {"strength": last.strength, "lyrics": last.lyrics, "writer": last.writer, **options}
        chosen, seed = self._options(options), check_seed(seed)
        label, vector = self._style(style)
        step = Step()
        if sentence is not None:
            step = Step(passages=(Passage(check_sentence(sentence), "user"),))
        view = None
        if photo is not None:
            image = load_image(photo)
            seen = self._look(image, _name_of(photo), captions, chosen, thumbnails)
            step = Step((seen,), step.passages)
            if all(caption.words for caption in seen.captions):  # a person's own sentences know better than a look
                view = self.views([image], chosen)[0]
        if photo is not None or sentence is not None:
            yield story.add(step)
        elif not story.passages:
            raise StoryError("The story has not begun: give a photo or a first sentence.")

        so_far = story.add(step)
        x, words = self._material(so_far, sentence)
        empty = Passage(
            text="",
            origin="sentence" if sentence is not None else "photo" if photo is not None else "story",
            photo=len(story.photos) if photo is not None else None,
            style=label,
            strength=chosen.strength,
            seed=seed,
            lyrics=chosen.lyrics,
            writer=chosen.writer,
        )
        parts = self._write(
            x,
            words,
            vector,
            seed,
            chosen,
            captions=so_far.photos[-1].captions if so_far.photos else (),
            before=" ".join(passage.text for passage in so_far.passages),
            label=label,
            new_photo=photo is not None,
            view=view,
            own=style if isinstance(style, Style) else None,
        )
        yield from _growing(story, step, empty, parts)

    # -- what a step is made of --------------------------------------------------------------------------------------
    def _look(
        self,
        image: Image,
        name: str,
        captions: Sequence[Caption | str] | None,
        options: StoryOptions,
        thumbnail: bool,
    ) -> StoryPhoto:
        if captions is None:
            captions = self.see([image], options)[0]
        return StoryPhoto.of(image, as_captions(captions), name, thumbnail)

    def _material(self, so_far: Story, sentence: str | None) -> tuple[np.ndarray, list[str]]:
        """Vector x [D] and the words to take up: those of the newest photo and sentence that were not told yet."""
        texts = [passage.text for passage in so_far.passages]
        seen = so_far.photos[-1].captions if so_far.photos else ()
        x = self.think([c.text for c in seen]) if seen else self._last_thought(" ".join(texts))
        wanted = self._wanted(seen) if seen else []
        told = taken_up(wanted, content_words(text for text in texts if text != sentence))
        fresh = [word for word in wanted if word not in told]
        return x, list(dict.fromkeys([*(content_words([sentence])[:3] if sentence else []), *fresh]))


def _name_of(photo: Any) -> str:
    return PurePath(fspath(photo)).name if isinstance(photo, (str, PathLike)) else ""


def _given_captions(
    captions: Sequence[Caption | str] | str | None, options: dict[str, Any]
) -> tuple[Sequence[Caption | str] | None, dict[str, Any]]:
    """Captions that are known already, and the options; a single word says where they come from."""
    return (None, {**options, "captions": captions}) if isinstance(captions, str) else (captions, options)


def _growing(story: Story, step: Step, empty: Passage, parts: Iterator[Written]) -> Iterator[Story]:
    """Stories whose last passage grows word by word; the last one has the scores."""
    written = Written("")

    def texts() -> Iterator[str]:
        nonlocal written
        for written in parts:
            yield written.text

    def with_passage(**changes: Any) -> Story:
        known = {"sources": written.sources, "title": written.title, "follows": written.follows}
        passage = Passage(**{**vars(empty), **known, **changes})
        return story.add(Step(step.photos, (*step.passages, passage)))

    for text in growing_words(texts()):
        yield with_passage(text=text)
    yield with_passage(text=written.text, scores=_mean_scores(written), choices=written.choices)


def _mean_scores(written: Written) -> dict[str, float]:
    winners = [choice[0].scores for choice in written.choices]
    return {name: float(np.mean([scores[name] for scores in winners])) for name in winners[0]} if winners else {}
