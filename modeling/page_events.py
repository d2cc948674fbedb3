"""What happens on the page when somebody does something: the handlers behind the components that `app.Page` lays out.

Needs gradio, which the rest of this package does not; nothing else in it imports this file. Each handler turns the
components' values into a call of a `Visit` and the answer into updates. A `PictaleError` becomes a message on the page,
and whatever was told before it stays.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import html
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from .batch import BatchRow, rows_html, rows_to_csv, tell_many
from .book_text import MAX_BOOK_CHARACTERS, read_book
from .errors import ImageError, PictaleError, StoryError, StyleError
from .images import load_image
from .look_closer import caption_list, caption_table, nearest_list, why_this_story, word_figure, word_strip
from .story_html import story_html, story_page, style_in_words
from .story_types import NEURAL_STORYTELLER, STORYTELLER, written_captions
from .styles import Style
from .visit import OwnStyles, Seen, Visit, Wishes, add_style, find_style
from .web_photo import fetch_photo, is_address

MAX_KEPT_IN_BROWSER = 2_000_000  # characters; browsers have room for about five million
MAX_UPLOAD_BYTES = 50_000_000
MAX_BATCH = 100
NEAREST = 5  # sentences that a photo brings to mind
WRITERS = {
    STORYTELLER: "The storyteller: it invents",
    "bookshelf": "The bookshelf: a page of a real novel",
    NEURAL_STORYTELLER: "The recipe of 2015: one passage for one vector",
}
REMEMBERED = "It did not look for these words one by one: it remembers the sentence as a whole."
EMPTY_STORY = (
    '<p class="empty">Choose a photo and a style, then press “Tell me a story”. '
    "Or press “Surprise me”, and everything is chosen for you.</p>"
)


def sentence(error: PictaleError) -> str:
    """What the page shows of an error; it shows messages as HTML."""
    return html.escape(str(error), quote=False)


def uploaded(path: str | None, what: str) -> Path:
    """The place of an uploaded file. Files named by a request that did not upload them are none of its business."""
    if not path:
        raise PictaleError(f"There is no {what} yet: upload one.")
    place = Path(path).resolve()
    if not place.is_relative_to(Path(get_upload_folder()).resolve()) or not place.is_file():
        raise PictaleError(f"The {what} was not uploaded to this page, or long ago: upload it first.")
    return place


def photo_source(upload: dict | None) -> str | bytes:
    """The file or bytes of an uploaded photo, untouched: `load_image` is to judge them, not the component."""
    if upload is None:
        raise ImageError("There is no photo yet: upload one, take one or choose an example.")
    if is_address(address := upload.get("path") or upload.get("url")):  # what the page uploads has both
        return fetch_photo(address, MAX_UPLOAD_BYTES)
    if path := upload.get("path"):
        uploaded(path, "photo")
        return path
    data = (upload.get("url") or "").partition(";base64,")[2]
    if len(data) > MAX_UPLOAD_BYTES * 4 / 3:
        raise ImageError(f"The photo is larger than {MAX_UPLOAD_BYTES // 10**6} MB: send a smaller copy of it.")
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise ImageError("The photo is not valid base64: send it as data:image/jpeg;base64,...") from error


def book_or_text(path: str | None, text: str | None) -> tuple[str, str]:
    """The text that a style is to be made of, and where it is from, in words.

    Args:
        path: Of an uploaded book, or nothing.
        text: What was typed or pasted instead.
    """
    if path:
        place = uploaded(path, "book")
        return read_book(place), place.name
    if not (text or "").strip():
        raise StyleError("There is no text yet: upload a book or paste a text.")
    if len(text) > MAX_BOOK_CHARACTERS:
        raise StyleError(f"The text has {len(text):,} characters: give at most {MAX_BOOK_CHARACTERS:,}.")
    return text, "a pasted text"


def temporary_file(component: gr.blocks.Block, name: str, content: bytes) -> str:
    """A file to download, in the folder that gradio clears of old ones."""
    return gr.processing_utils.save_bytes_to_cache(content, name, component.GRADIO_CACHE)


@contextmanager
def said_on_the_page() -> Iterator[None]:
    """Show the sentence of an error, and go on."""
    try:
        yield
    except PictaleError as error:
        gr.Warning(sentence(error))


class PageEvents:
    """Handlers of `app.Page`, which has the components and `get`, the pipeline's loader."""

    get: Callable[[], Any]

    def look(self, upload: dict | None, way: str = "both") -> Seen:
        """Captions of a photo, found in one of the ways of `story_types.CAPTIONS`."""
        photo = photo_source(upload)
        image = load_image(photo)  # before the models are asked for, so that a broken file is told at once
        pipe = self.get()
        return Seen(photo, pipe.see([image], dataclasses.replace(pipe.options, captions=way))[0], way)

    # -- tell --------------------------------------------------------------------------------------------------------
    def see(self, upload: dict | None, way: str) -> dict:
        """Captions as soon as there is a photo; a broken one goes."""
        seen, updates = None, {}
        try:
            seen = None if upload is None else self.look(upload, way)
        except PictaleError as error:
            gr.Warning(sentence(error))
            updates = {self.photo: None}
        if seen is not None:
            updates = {self.writer: self.writers(), self.way: gr.update(visible=self.get().can_retrieve)}
        return {self.seen: seen, self.captions: caption_list(seen.captions) if seen else "", **updates}

    def writers(self) -> dict:
        """The writers that this server has, for those who want another than the storyteller."""
        pipe = self.get()
        names = [name for name in pipe.writers if pipe.has_writer(name)]
        choices = [(WRITERS.get(name) or pipe.about_writer(name), name) for name in names]
        return gr.update(choices=choices, visible=len(names) > 1)

    def write(
        self, upload: dict | None, way: str, seen: Seen | None, visit: Visit, own: OwnStyles, *wishes: Any
    ) -> Iterator:
        """Captions if they are not there yet, then the story as it grows."""

        def steps() -> Iterator[dict | Visit]:
            known = seen
            if known is None or (known.photo, known.way) != (photo_source(upload), way):
                known = self.look(upload, way)
                yield {self.seen: known, self.captions: caption_list(known.captions)}
            yield from visit.tell(self.get(), Wishes(*wishes), known, own)

        yield from self._growing(visit, steps())

    def go_further(
        self, upload: dict | None, way: str, said: str, visit: Visit, own: OwnStyles, *wishes: Any
    ) -> Iterator:
        """The story as it grows by another passage; what led to it leaves its place when it has been used."""

        def steps() -> Iterator[dict | Visit]:
            seen = None if upload is None else self.look(upload, way)
            yield from visit.go_on(self.get(), Wishes(*wishes), seen, said, own)
            yield {self.own_sentence: "", self.next_photo: None}

        yield from self._growing(visit, steps())

    def _growing(self, visit: Visit, steps: Iterator[dict | Visit]) -> Iterator[dict]:
        """Each step as it comes; whatever happens, the story so far stays and the page comes to rest."""
        yield self.busy
        try:
            with said_on_the_page():
                for step in steps:
                    if isinstance(step, Visit):
                        visit = step
                        step = {self.visit: visit, self.story: story_html(visit.story)}
                    yield step
        except Exception:
            yield {**self.idle, **self.after(visit)}
            raise
        yield {**self.idle, **self.after(visit)}

    def after(self, visit: Visit) -> dict:
        """The table once a story has changed and nobody writes."""
        passages = visit.story.passages
        choices = [(f"{i}: {passage.text[:50]} …", i - 1) for i, passage in enumerate(passages, 1)]
        return {
            self.visit: visit,
            self.story: story_html(visit.story) if passages else EMPTY_STORY,
            self.more: gr.update(visible=bool(passages)),
            self.editing: gr.update(visible=False),
            self.edit_which: gr.update(choices=choices, value=len(choices) - 1 if choices else None),
        }

    def stopped(self, visit: Visit) -> dict:
        return {**self.idle, **self.after(visit)}

    def undo(self, visit: Visit) -> dict:
        with said_on_the_page():
            visit = visit.undo()
        return self.after(visit)

    def open_edit(self, visit: Visit) -> dict:
        last = len(visit.story.passages) - 1
        return {self.editing: gr.update(visible=True), self.edit_which: last, self.edit_text: self.passage(visit, last)}

    def passage(self, visit: Visit, which: int | None) -> str:
        return visit.story.passages[which].text if which is not None and visit.story.passages else ""

    def save_edit(self, visit: Visit, which: int, text: str) -> dict:
        with said_on_the_page():
            return self.after(visit.edit(which, text))
        return {self.visit: visit}

    def surprise(self, upload: dict | None) -> dict:
        """Everything chosen by dice but a photo that is there already."""
        photo = {} if upload else {self.photo: str(random.choice(self.examples))}
        style = random.choice(list(self.labels))
        return {self.style: style, self.second: None, self.seed: str(random.randrange(10**6)), **photo}

    # -- keep --------------------------------------------------------------------------------------------------------
    def keep(self, visit: Visit) -> dict:
        """The files to download, and a copy in the visitor's own browser, for when the page is opened again."""
        if not visit.story.passages:
            off = gr.update(value=None, interactive=False)
            return {self.as_markdown: off, self.as_page: off, self.as_json: off, self.kept: None}
        story, page = visit.story.to_json(), story_page(visit.story, visit.photos)
        files = {
            self.as_markdown: ("story.md", visit.story.to_markdown()),
            self.as_page: ("story.html", page),
            self.as_json: ("story.json", story),
        }
        ready = {
            button: gr.update(value=temporary_file(button, name, text.encode()), interactive=True)
            for button, (name, text) in files.items()
        }
        return {**ready, self.kept: story if len(story) <= MAX_KEPT_IN_BROWSER else None}

    def restore(self, kept: str | None, visit: Visit) -> dict:
        """The story that this browser had when it was last here."""
        if not isinstance(kept, str):
            return {self.visit: visit}
        try:
            visit = Visit().load(kept)
        except StoryError:  # of a newer page, or tampered with: nothing to trouble a visitor with
            return {self.visit: visit}
        return self.after(visit)

    def load(self, path: str, visit: Visit) -> dict:
        with said_on_the_page():
            visit = visit.load(uploaded(path, "story").read_bytes())
        return self.after(visit)

    def copied(self, done: bool) -> None:
        if done:
            gr.Info("The story is copied.", duration=3)
        else:
            gr.Warning("This browser does not let pages copy: select the text and copy it.")

    # -- look closer -------------------------------------------------------------------------------------------------
    def open_closer(self, visit: Visit, seen: Seen | None) -> dict:
        """All that is known of the photos and the story on the table."""
        photos = visit.gallery(seen)
        names = [(name, i) for i, (name, _) in enumerate(photos)]
        chosen = len(photos) - 1 if photos else None
        return {
            self.which: gr.update(choices=names, value=chosen, visible=len(photos) > 1),
            self.nothing: gr.update(visible=not photos),
            self.why: why_this_story(visit.story.passages),
            **self.show_photo(visit, seen, chosen),
        }

    def show_photo(self, visit: Visit, seen: Seen | None, which: int | None) -> dict:
        photos = visit.gallery(seen)
        captions = photos[which][1].captions if which is not None and photos else ()
        return {
            self.sight: gr.update(visible=bool(captions)),
            self.beams: gr.update(
                choices=[(c.text, i) for i, c in enumerate(written_captions(captions))], value=0 if captions else None
            ),
            self.scores: caption_table(captions) + self.remembered(photos[which][1] if captions else None),
            **self.show_words(visit, seen, which, 0),
        }

    def remembered(self, seen: Seen | None) -> str:
        """What a photo brings to mind, where the pipeline has a bank of sentences."""
        pipe = self.get()
        if seen is None or not pipe.can_retrieve:
            return ""
        with said_on_the_page():
            return nearest_list(pipe.nearest_sentences(load_image(seen.photo), k=NEAREST)[0])
        return ""

    def show_words(self, visit: Visit, seen: Seen | None, which: int | None, caption: int) -> dict:
        """The words of a caption; the map waits for one to be chosen."""
        photos, captions, words, strip = visit.gallery(seen), (), [], ""
        if which is not None and photos and (captions := photos[which][1].captions):
            words = [(w, i) for i, w in enumerate(captions[caption].words) if i < len(captions[caption].attention)]
            with said_on_the_page():
                strip = word_strip(load_image(photos[which][1].photo), captions[caption]) if words else ""
        hint = ""
        if photos and not words:
            remembered = bool(captions) and captions[caption].remembered
            hint = (
                REMEMBERED if remembered else "Where it looked is not kept in files: give it the photo again to see it."
            )
        return {
            self.words: gr.update(choices=words, value=None, visible=bool(words)),
            self.heat: "",
            self.strip: strip or f"<p>{hint}</p>",
        }

    def show_heat(self, visit: Visit, seen: Seen | None, which: int, caption: int, word: int) -> str | dict:
        """The photo with the attention of the chosen word over it."""
        shown = visit.gallery(seen)[which][1]
        with said_on_the_page():  # uploads are thrown away after a day
            return word_figure(load_image(shown.photo), shown.captions[caption], word)
        return gr.skip()

    # -- your own style ----------------------------------------------------------------------------------------------
    def make_style(
        self,
        file: str | None,
        text: str,
        name: str,
        own: OwnStyles,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> dict:
        """A style from a book or a pasted text, ready to be chosen."""
        with said_on_the_page():
            if not (name or "").strip():
                raise StyleError("Your style has no name yet: give it one.")
            text, source = book_or_text(file, text)
            made = self.get().make_style(text, name.strip(), source=source, progress=progress)
            return self.new_style(add_style(self.get(), made, own), made)
        return {self.own: own}

    def load_style(self, path: str, own: OwnStyles) -> dict:
        with said_on_the_page():
            loaded = Style.load(uploaded(path, "style file"))
            return self.new_style(add_style(self.get(), loaded, own), loaded)
        return {self.own: own}

    def new_style(self, own: OwnStyles, style: Style) -> dict:
        """The choices with the visitor's own styles among them."""
        choices = [*self.style_choices, *((f"{style_in_words(name)} (yours)", name) for name in own)]
        file = temporary_file(self.style_file, f"{style.name}.safetensors", style.to_bytes())
        name = html.escape(style_in_words(style.name))
        said = f"<b>{name}</b>: {style.passages:,} passages, from {html.escape(style.source)}. It is chosen now."
        return {
            self.own: own,
            self.style: gr.update(choices=choices, value=style.name),
            self.second: gr.update(choices=[("nothing", ""), *choices]),
            self.many_style: gr.update(choices=choices),
            self.style_made: f"<p>{said}</p>",
            self.style_file: gr.update(value=file, interactive=True, visible=True),
        }

    # -- many photos -------------------------------------------------------------------------------------------------
    def tell_many(self, files: list[str] | None, stories: bool, style: str, seed: str, own: OwnStyles) -> Iterator:
        """A row for each photo as soon as it is done, then the table to download."""
        yield {**self.many_busy, self.rows: "", self.as_csv: gr.update(value=None, interactive=False)}
        rows: list[BatchRow] = []
        with said_on_the_page():
            if not files:
                raise ImageError("There are no photos yet: choose some.")
            if len(files) > MAX_BATCH:
                raise ImageError(f"These are {len(files)} photos: give at most {MAX_BATCH} at once.")
            photos = [uploaded(file, "photo") for file in files]
            seed = Wishes(style, seed=seed).checked_seed()
            yield {self.rows: rows_html(rows, len(photos), stories)}
            for row in tell_many(self.get(), photos, stories, find_style(self.get(), style, own), seed):
                rows.append(row)
                yield {self.rows: rows_html(rows, len(photos), stories), self.batch: tuple(rows)}
        yield {**self.many_idle, **self.keep_many(tuple(rows))}

    def keep_many(self, rows: tuple[BatchRow, ...]) -> dict:
        if not rows:
            return {self.as_csv: gr.update(value=None, interactive=False)}
        table = temporary_file(self.as_csv, "photos.csv", rows_to_csv(rows).encode())
        return {self.as_csv: gr.update(value=table, interactive=True)}

    def stopped_many(self, rows: tuple[BatchRow, ...]) -> dict:
        return {**self.many_idle, **self.keep_many(rows)}
