"""The page's endpoints for programs. Needs gradio, like `page_events.py`.

Their docstrings are what "Use via API" and the tools of the MCP server say of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from .book_text import read_book
from .errors import PictaleError, StoryError, StyleError
from .page_events import sentence, temporary_file, uploaded
from .story import Story, StoryPhoto
from .story_types import Caption
from .styles import Style
from .visit import Seen, Visit, Wishes, add_style

MAX_BEAM_WIDTH = 50


@contextmanager
def errors_for_programs() -> Iterator[None]:
    """Let clients of the endpoints have the sentence of an error that they caused."""
    try:
        yield
    except PictaleError as error:
        raise gr.Error(sentence(error), print_exception=False) from error


def describe(caption: Caption) -> dict[str, Any]:
    return {"text": caption.text, "score": round(float(caption.score), 4)}


def told(story: Story, photo: StoryPhoto | None) -> dict[str, Any]:
    """A story as programs get it; `record` is what /continue_story takes."""
    last = story.passages[-1] if story.passages else None
    return {
        "captions": [describe(caption) for caption in photo.captions] if photo else [],
        "style": last.style if last else "",
        "seed": last.seed if last else None,
        "story": story.text,
    }


class PagePrograms:
    """Endpoints of `app.Page`."""

    get: Callable[[], Any]
    look: Callable[[dict | None], Seen]

    def caption_endpoint(self, photo: dict) -> list[dict]:
        """Captions of a photo, best first, each with its text and its mean log-probability a word.

        Args:
            photo: A file, or {"url": "data:image/jpeg;base64,..."}.
        """
        with errors_for_programs():
            return [describe(caption) for caption in self.look(photo).captions]

    def tell_endpoint(
        self,
        photo: dict,
        style: str = "everyday",
        seed: float | None = None,
        strength: float = 1.0,
        length: str = "Medium",
        style_file: dict | None = None,
    ) -> Iterator[dict]:
        """Captions and the growing story of a photo; the last result holds the whole story.

        Args:
            photo: A file, or {"url": "data:image/jpeg;base64,..."}.
            style: A name, or a blend such as romance:0.7,horror:0.3.
            seed: Repeats a story; a new one each time if not given.
            strength: Of the style; 1 is normal.
            length: Short, Medium or Long.
            style_file: A style of your own, made by /make_style; its name can be used in `style`.
        """
        with errors_for_programs():
            own, wishes = self._own(style_file), Wishes(style, seed=seed, strength=strength, length=length)
            seen = self.look(photo)
            yield from self._steps(Visit().tell(self.get(), wishes, seen, own))

    def continue_endpoint(
        self,
        story: dict,
        photo: dict | None = None,
        sentence: str | None = None,
        style: str | None = None,
        seed: float | None = None,
        strength: float = 1.0,
        length: str = "Short",
        style_file: dict | None = None,
    ) -> Iterator[dict]:
        """The next passage of a story as it grows; the last result holds the whole story.

        Args:
            story: The `record` of /tell or of this endpoint, or the contents of a story file of the page.
            photo: A photo that the story goes on with, or nothing.
            sentence: Your own next sentence, kept as it is, or nothing.
            style: As for /tell; nothing keeps the style of the last passage.
            seed, strength, length, style_file: As for /tell.
        """
        with errors_for_programs():
            visit = Visit().load(story if isinstance(story, str) else json.dumps(story))
            last = next((p.style for p in reversed(visit.story.passages) if p.style), "everyday")
            own = self._own(style_file)
            wishes = Wishes(style or last, seed=seed, strength=strength, length=length)
            seen = None if photo is None else self.look(photo)
            yield from self._steps(visit.go_on(self.get(), wishes, seen, sentence, own))

    def make_style_endpoint(
        self, book: dict | None = None, text: str | None = None, name: str = "mine"
    ) -> tuple[dict, str]:
        """Make a style from a text: what it was made of, and the style's file, which /tell takes.

        Args:
            book: A .txt, .md or .epub file.
            text: The text itself, instead of a file.
            name: What the style is called.
        """
        with errors_for_programs():
            if not book and not (text or "").strip():
                raise StyleError("There is no text yet: send a book or a text.")
            place = uploaded(book["path"], "book") if book else None
            source = place.name if place else "a text that was sent"
            made = self.get().make_style(read_book(place) if place else text, name, source=source)
            add_style(self.get(), made, {})
            file = temporary_file(self.style_output, f"{made.name}.safetensors", made.to_bytes())
            return {"name": made.name, "passages": made.passages, "source": made.source}, file

    def predict_endpoint(self, data: str, bw: int = 1, style: str = "everyday") -> dict[str, str]:
        """The web API of Pix2Story: {"data": base64 of a photo, "bw": beam width} gives {"prediction": text}.

        Args:
            data: The photo as base64.
            bw: Width of the beam search; 1 writes as /tell does.
            style: A name or a blend.
        """
        with errors_for_programs():
            if not isinstance(bw, int) or not 1 <= bw <= MAX_BEAM_WIDTH:
                raise StoryError(f"bw must be a whole number from 1 to {MAX_BEAM_WIDTH}, not {bw!r}.")
            seen = self.look({"url": f"data:image/jpeg;base64,{''.join(data.split())}"})
            beams = {} if bw == 1 else {"beam_width": bw}
            return {"prediction": self.get().tell(seen.captions, style=style, seed=0, **beams).story}

    # -- parts -------------------------------------------------------------------------------------------------------
    def _own(self, style_file: dict | None) -> dict[str, Style]:
        if not style_file:
            return {}
        style = Style.load(uploaded(style_file["path"], "style file"))
        return dict(add_style(self.get(), style, {}))

    def _steps(self, visits: Iterator[Visit]) -> Iterator[dict]:
        for visit in visits:
            photos = visit.story.photos
            result = told(visit.story, photos[-1] if photos else None)
            yield result
        yield {**result, "record": json.loads(visit.story.to_json())}
