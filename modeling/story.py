"""A story that can be continued, undone step by step, edited by hand, saved and loaded.

A `Story` is the sequence of steps that made it; photos and passages follow from them, so undoing is leaving out the
last step, and what a file holds is all there is. Everything is frozen: a change is a new story. Files are JSON, read as
data only and checked value by value, because people send them to each other.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from .errors import StoryError
from .story_types import STORYTELLER, Candidate, Caption, Source
from .text import lyric_lines

FORMAT, VERSION = "pictale-story", 1
ORIGINS = ("photo", "user", "sentence", "story")
_OLD_WRITERS = {None: STORYTELLER, "decoder": STORYTELLER}  # what files of the first edition say
_BOOKS = ("sources", "follows")  # fields of a passage that name some
MAX_FILE_BYTES = 20_000_000
MAX_TEXT = 20_000  # characters of one passage, sentence or caption
MAX_ITEMS = 10_000  # steps of a story, words of a passage, and so on
THUMBNAIL_SIDE, MAX_THUMBNAIL_BYTES = 256, 100_000
_MARKDOWN = re.compile(r"([\\`*_\[\]<>#&|~])")


@dataclass(frozen=True)
class StoryPhoto:
    """A photo of a story: what was seen in it, and enough to know it again.

    Args:
        captions: Best first.
        sha256: Of the upright RGB pixels as `load_image` gives them, with their size: the same photo has the same one
            whatever it came as.
        name: File name without folder, or "".
        thumbnail: A small JPEG, or None.
    """

    captions: tuple[Caption, ...]
    sha256: str
    name: str = ""
    thumbnail: bytes | None = field(default=None, repr=False)

    @classmethod
    def of(cls, image: Image.Image, captions: Sequence[Caption], name: str = "", thumbnail: bool = True) -> StoryPhoto:
        """From an image that `load_image` returned."""
        digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
        if not thumbnail:
            return cls(tuple(captions), digest, name)
        small, file = image.copy(), io.BytesIO()
        small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        small.save(file, "JPEG", quality=80)
        return cls(tuple(captions), digest, name, file.getvalue())


@dataclass(frozen=True)
class Passage:
    """A passage and how it came about.

    Args:
        text: As written.
        origin: What it was written from: `photo`; `sentence`, the user's one before it; `story`, nothing but the story
            so far; or `user`: it is a sentence of the user's, kept as it was.
        photo: Index of its photo among the story's, with `photo`.
        style, strength, seed: With which it was written; the first empty and the last None for the user's own.
        title: Of the story, where its writer gave one with this passage.
        scores: Mean over its sentences of the scores of the candidate that was chosen, by name.
        lyrics: Shown in lines, broken at commas.
        edited: The text was changed by hand.
        writer: Who wrote it, a name among `StoryPipeline.writers`.
        sources: The books it quotes; none if it was invented.
        follows: The books whose pages its writer was shown, to write in their manner.
        choices: All candidates of all its sentences, as long as the program runs: files do not hold them.
    """

    text: str
    origin: str
    photo: int | None = None
    style: str = ""
    strength: float = 1.0
    seed: int | None = None
    title: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    lyrics: bool = False
    edited: bool = False
    writer: str = STORYTELLER
    sources: tuple[Source, ...] = ()
    follows: tuple[Source, ...] = ()
    choices: tuple[tuple[Candidate, ...], ...] = field(default=(), repr=False, compare=False)

    @property
    def shown(self) -> str:
        """The text as it is read."""
        return lyric_lines(self.text) if self.lyrics else self.text


@dataclass(frozen=True)
class Step:
    """What one call or one edit added.

    Args:
        photos: That came in.
        passages: That were written.
        edit: Index and new text of a passage that was changed by hand, or None.
    """

    photos: tuple[StoryPhoto, ...] = ()
    passages: tuple[Passage, ...] = ()
    edit: tuple[int, str] | None = None


@dataclass(frozen=True)
class Story:
    """A story so far.

    Example:
        >>> story = pipe.start_story("photo.jpg", style="mystery", seed=1)
        >>> story = pipe.continue_story(story, sentence="Then the lights went out.")
        >>> story.save("story.json")
        >>> Story.load("story.json").undo().text
    """

    steps: tuple[Step, ...] = ()

    @property
    def photos(self) -> tuple[StoryPhoto, ...]:
        """All photos, in the order they came."""
        return tuple(photo for step in self.steps for photo in step.photos)

    @property
    def passages(self) -> tuple[Passage, ...]:
        """All passages as they now read."""
        passages: list[Passage] = []
        for step in self.steps:
            passages.extend(step.passages)
            if step.edit:
                index, text = step.edit
                passages[index] = dataclasses.replace(passages[index], text=text, lyrics=False, edited=True)
        return tuple(passages)

    @property
    def title(self) -> str:
        """What its writer called it; "" if it did not."""
        return next((passage.title for passage in self.passages if passage.title), "")

    @property
    def text(self) -> str:
        """The whole text, a paragraph for each passage."""
        return "\n\n".join(passage.shown for passage in self.passages)

    def add(self, step: Step) -> Story:
        """The story with one more step."""
        return Story((*self.steps, step))

    def undo(self) -> Story:
        """The story before its last step: the last continuation (with the sentence that led to it) or the last edit.

        Raises:
            StoryError: nothing is left to undo.
        """
        if not self.steps:
            raise StoryError("There is nothing to undo: the story has no step.")
        return Story(self.steps[:-1])

    def edit(self, index: int, text: str) -> Story:
        """The story with passage `index` rewritten by hand, kept exactly as given; it goes on from there.

        Raises:
            StoryError: no such passage, or an empty or endless text.
        """
        count = len(self.passages)
        if not -count <= index < count:
            raise StoryError(f"There is no passage {index}: the story has {count}, counted from 0.")
        return self.add(Step(edit=(index % count, check_sentence(text, "passage"))))

    # -- keeping -----------------------------------------------------------------------------------------------------
    def to_json(self) -> str:
        """The story as JSON, thumbnails included, photos and candidates not."""
        steps = [_step_record(step) for step in self.steps]
        return json.dumps({"format": FORMAT, "version": VERSION, "steps": steps}, ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Story:
        """The story that `to_json` wrote.

        Raises:
            StoryError: not a story, damaged, too large, or of a newer version, in one sentence.
        """
        if len(text) > MAX_FILE_BYTES:
            raise StoryError(f"The story is larger than {MAX_FILE_BYTES // 10**6} MB: it was not written by Pictale.")
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            raise StoryError("This is not a story: it is not JSON. Give a file that Pictale saved.") from None
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise StoryError("This is JSON but not a story of Pictale: give a file that Pictale saved.")
        version = record.get("version")
        if isinstance(version, int) and version > VERSION:
            raise StoryError(
                f"The story was saved by a newer Pictale (version {version} of the format, this one reads {VERSION}): "
                "update it first."
            )
        story = cls(tuple(_read_step(step, f"step {i}") for i, step in enumerate(_items(record, "steps", "it"))))
        _check_references(story)
        return story

    def save(self, path: str | os.PathLike) -> None:
        """Write the story to a file; an existing one is replaced only when the new one is whole."""
        path = Path(path)
        temporary = path.with_name(path.name + ".writing")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(self.to_json(), encoding="utf-8")
            os.replace(temporary, path)
        except OSError as error:
            raise StoryError(f"The story cannot be saved as {path} ({error.strerror}): choose another place.") from None

    @classmethod
    def load(cls, path: str | os.PathLike) -> Story:
        """Read a story file. Raises StoryError, see `from_json`."""
        try:
            if (size := os.path.getsize(path)) > MAX_FILE_BYTES:
                raise StoryError(
                    f"{path} is too large for a story ({size // 10**6} MB): give a file that Pictale saved."
                )
            content = Path(path).read_bytes()
        except OSError as error:
            raise StoryError(f"The story {path} cannot be read ({error.strerror}): check its name.") from None
        try:
            return cls.from_json(content)
        except StoryError as error:
            raise StoryError(f"{path}: {error}") from None

    def to_markdown(self) -> str:
        """The story for reading, photos as thumbnails in the text, with the styles and seeds at the end."""
        parts, shown = [f"# {_escaped(self.title)}"] if self.title else [], set()
        for passage in self.passages:
            if passage.photo is not None and passage.photo not in shown:
                shown.add(passage.photo)
                parts.append(_markdown_photo(self.photos[passage.photo]))
            parts.append(_escaped(passage.shown).replace("\n", "  \n"))
            if passage.sources:
                parts.append("— " + _escaped("; ".join(map(str, passage.sources))))
            if passage.follows:
                parts.append("— in the manner of " + _escaped("; ".join(map(str, passage.follows))))
        made = dict.fromkeys(f"{p.style}, seed {p.seed}" for p in self.passages if p.seed is not None)
        parts.append(f"*{_escaped('; '.join(made))}*" if made else "")
        return "\n\n".join(part for part in parts if part) + "\n"


def check_sentence(text: str, what: str = "sentence") -> str:
    """A text of the user's, unchanged. Raises StoryError if there is nothing in it or too much."""
    if not isinstance(text, str) or not text.strip():
        raise StoryError(f"The {what} is empty: write a few words.")
    if not _is_writable(text):
        raise StoryError(f"The {what} has characters that are none: type it again.")
    if len(text) > MAX_TEXT:
        raise StoryError(f"The {what} has {len(text):,} characters: shorten it to at most {MAX_TEXT:,}.")
    return text


def _is_writable(text: str) -> bool:
    """Whether a file can hold the text: halves of characters, which JSON can smuggle in, it cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is; what could begin a list or a heading has a backslash too."""
    text = _MARKDOWN.sub(r"\\\1", text)
    return re.sub(r"^(\s*(?:\d+(?=[.)]\s))?)([-+.)](?=\s))", r"\1\\\2", text, flags=re.MULTILINE)


def _markdown_photo(photo: StoryPhoto) -> str:
    caption = _escaped(photo.captions[0].text if photo.captions else photo.name or "photo")
    if photo.thumbnail is None:
        return f"*{caption}*"
    return f"![{caption}](data:image/jpeg;base64,{base64.b64encode(photo.thumbnail).decode()})"


# -- records ---------------------------------------------------------------------------------------------------------
def _step_record(step: Step) -> dict[str, Any]:
    record: dict[str, Any] = {}
    if step.photos:
        record["photos"] = [
            {
                "captions": [
                    {"text": c.text, "score": c.score, "words": list(c.words)}
                    | ({"remembered": True} if c.remembered else {})
                    for c in photo.captions
                ],
                "sha256": photo.sha256,
                "name": photo.name,
                "thumbnail": None if photo.thumbnail is None else base64.b64encode(photo.thumbnail).decode(),
            }
            for photo in step.photos
        ]
    if step.passages:
        names = [f.name for f in dataclasses.fields(Passage) if f.name not in ("choices", *_BOOKS)]
        record["passages"] = [
            {name: getattr(passage, name) for name in names}
            | {name: [dataclasses.asdict(s) for s in books] for name in _BOOKS if (books := getattr(passage, name))}
            for passage in step.passages
        ]
    if step.edit:
        record["edit"] = {"passage": step.edit[0], "text": step.edit[1]}
    return record


def _damaged(where: str, what: str) -> StoryError:
    return StoryError(f"The story is damaged ({where} {what}): use another copy.")


def _value(record: Any, name: str, where: str, *kinds: type) -> Any:
    """`record[name]`, of one of the kinds (None among them if it may be missing), not too long."""
    if not isinstance(record, dict):
        raise _damaged(where, "is not an object")
    value = record.get(name)
    # a bool is an int to Python
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise _damaged(where, f"has no right '{name}'")
    if isinstance(value, (int, float)) and not abs(value) < 1e12:  # nor is it NaN
        raise _damaged(where, f"has no right '{name}'")
    if isinstance(value, str) and not _is_writable(value):
        raise _damaged(where, f"has no right '{name}'")
    limit = MAX_TEXT if isinstance(value, str) else MAX_ITEMS
    if isinstance(value, (str, list, dict)) and len(value) > limit:
        raise _damaged(where, f"has too long a '{name}'")
    return value


def _items(record: Any, name: str, where: str) -> list[Any]:
    return _value(record, name, where, list, type(None)) or []


def _strings(record: Any, name: str, where: str) -> tuple[str, ...]:
    items = _items(record, name, where)
    if not all(isinstance(item, str) and len(item) <= MAX_TEXT and _is_writable(item) for item in items):
        raise _damaged(where, f"has no right '{name}'")
    return tuple(items)


def _read_step(record: Any, where: str) -> Step:
    edit = _value(record, "edit", where, dict, type(None))
    if edit is not None:
        edit = (_value(edit, "passage", where, int), check_sentence(_value(edit, "text", where, str), "passage"))
    photos = (_read_photo(photo, f"{where}, photo {i}") for i, photo in enumerate(_items(record, "photos", where)))
    passages = (_read_passage(p, f"{where}, passage {i}") for i, p in enumerate(_items(record, "passages", where)))
    return Step(tuple(photos), tuple(passages), edit)


def _read_photo(record: Any, where: str) -> StoryPhoto:
    captions = tuple(
        Caption(
            _value(caption, "text", where, str),
            float(_value(caption, "score", where, int, float)),
            _strings(caption, "words", where),
            remembered=_value(caption, "remembered", where, bool, type(None)) or False,
        )
        for caption in _items(record, "captions", where)
    )
    digest = _value(record, "sha256", where, str)
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise _damaged(where, "has no right 'sha256'")
    thumbnail = record.get("thumbnail")
    if thumbnail is not None:
        try:
            if not isinstance(thumbnail, str) or len(thumbnail) > 2 * MAX_THUMBNAIL_BYTES:
                raise ValueError
            thumbnail = base64.b64decode(thumbnail, validate=True)
        except (ValueError, binascii.Error):
            raise _damaged(where, "has no right 'thumbnail'") from None
        if not thumbnail.startswith(b"\xff\xd8\xff"):
            raise _damaged(where, "has a 'thumbnail' that is no JPEG")
    return StoryPhoto(captions, digest, _value(record, "name", where, str), thumbnail)


def _read_passage(record: Any, where: str) -> Passage:
    origin = _value(record, "origin", where, str)
    if origin not in ORIGINS:
        raise _damaged(where, "has no right 'origin'")
    scores = _value(record, "scores", where, dict, type(None)) or {}
    writer = _value(record, "writer", where, str, type(None))
    return Passage(
        text=_value(record, "text", where, str),
        origin=origin,
        photo=_value(record, "photo", where, int, type(None)),
        style=_value(record, "style", where, str),
        strength=float(_value(record, "strength", where, int, float)),
        seed=_value(record, "seed", where, int, type(None)),
        title=_value(record, "title", where, str, type(None)) or "",
        scores={str(name): float(_value(scores, name, where, int, float)) for name in scores},
        lyrics=_value(record, "lyrics", where, bool),
        edited=_value(record, "edited", where, bool),
        writer=_OLD_WRITERS.get(writer, writer),
        **{name: tuple(_book(book, where) for book in _items(record, name, where)) for name in _BOOKS},
    )


def _book(record: Any, where: str) -> Source:
    return Source(
        _value(record, "title", where, str),
        _value(record, "author", where, str),
        _value(record, "year", where, int, type(None)),
    )


def _check_references(story: Story) -> None:
    """Edits change passages that were there; passages come from photos that were there."""
    photos = passages = 0
    for i, step in enumerate(story.steps):
        photos, passages = photos + len(step.photos), passages + len(step.passages)
        if step.edit and not 0 <= step.edit[0] < passages:
            raise _damaged(f"step {i}", "edits a passage that is not there")
        if any(p.photo is not None and not 0 <= p.photo < photos for p in step.passages):
            raise _damaged(f"step {i}", "has a passage from a photo that is not there")
