"""The page's endpoints for programs. Needs gradio, like `page_events.py`.

Their names and docstrings are those of the MCP server's tools, and what "Use via API" says of them: gradio reads one
line for each argument.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from .errors import PictaleError, StoryError
from .page_events import book_or_text, sentence, temporary_file, uploaded
from .story import Story, StoryPhoto
from .story_types import NEURAL_STORYTELLER, STORYTELLER, Caption
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
    return {"text": caption.text, "score": round(float(caption.score), 4), "remembered": caption.remembered}


def told(story: Story, photo: StoryPhoto | None) -> dict[str, Any]:
    """A story as programs get it; `record` is what /continue_story takes."""
    last = story.passages[-1] if story.passages else None
    return {
        "captions": [describe(caption) for caption in photo.captions] if photo else [],
        "style": last.style if last else "",
        "seed": last.seed if last else None,
        "title": story.title,
        "story": story.text,
    }


class PagePrograms:
    """Endpoints of `app.Page`."""

    get: Callable[[], Any]
    look: Callable[..., Seen]

    def caption_photo(self, photo: dict, captions: str = "generate") -> list[dict]:
        """What can be seen in a photo: captions, best first.

        Each has its text and its score: the mean log-probability of its words or, for a sentence that is remembered and
        not written, its cosine to the photo, 1 at most.

        Args:
            photo: A file, its address (https://...), or {"url": "data:image/jpeg;base64,..."}.
            captions: generate has them written; retrieve takes sentences the server remembers, if it does; or both.
        """
        with errors_for_programs():
            return [describe(caption) for caption in self.look(photo, captions).captions]

    def tell_story(
        self,
        photo: dict,
        style: str = "everyday",
        seed: float | None = None,
        strength: float = 1.0,
        length: str = "Medium",
        style_file: dict | None = None,
        captions: str = "both",
        writer: str = STORYTELLER,
    ) -> Iterator[dict]:
        """Tell a story about a photo in the style of a kind of book.

        Gives the captions and the story as it grows. The last result holds the whole story, the seed that repeats it,
        and `record`, with which the story can be continued.

        Args:
            photo: A file, its address (https://...), or {"url": "data:image/jpeg;base64,..."}.
            style: everyday, romance, adventure, science_fiction, mystery, horror, fairy_tale; or romance:0.7,horror:0.3
            seed: A whole number that repeats a story; a new one is drawn if none is given.
            strength: How much the style counts: 0 not at all, 1 as in the books, 2 is exaggerated.
            length: Short, Medium or Long.
            style_file: A style of your own, as made from a text; its name can then be used in `style`.
            captions: What the story goes by: generate, written for this photo; retrieve, remembered; or both.
            writer: storyteller; bookshelf, which quotes a real book; or another one that the server has.
        """
        with errors_for_programs():
            wishes = Wishes(style, seed=seed, strength=strength, length=length, writer=writer)
            own = self._own(style_file)
            seen = self.look(photo, captions)
            yield from self._steps(Visit().tell(self.get(), wishes, seen, own))

    def continue_story(
        self,
        story: dict | str,
        photo: dict | None = None,
        sentence: str | None = None,
        style: str | None = None,
        seed: float | None = None,
        strength: float = 1.0,
        length: str = "Short",
        style_file: dict | None = None,
        captions: str = "both",
        writer: str = STORYTELLER,
    ) -> Iterator[dict]:
        """Continue a story: with another photo, with a sentence of your own, or with neither.

        Gives the story as it grows; the last result holds the whole of it, and its `record` to go on from.

        Args:
            story: The `record` of a story told or continued here, or a story file of the page: an object or JSON text.
            photo: A photo that the story goes on with, or nothing.
            sentence: Your own next sentence, kept as it is, or nothing.
            style: A name or a blend, as when the story was told; nothing keeps the style of the last passage.
            seed: A whole number that repeats the passage; a new one is drawn if none is given.
            strength: How much the style counts: 0 not at all, 1 as in the books, 2 is exaggerated.
            length: Short, Medium or Long.
            style_file: A style of your own, as made from a text; its name can then be used in `style`.
            captions: What the photo's part goes by: generate, written for it; retrieve, remembered; or both.
            writer: storyteller; bookshelf, which quotes a real book; or another one that the server has.
        """
        with errors_for_programs():
            visit = Visit().load(story if isinstance(story, str) else json.dumps(story))
            last = next((p.style for p in reversed(visit.story.passages) if p.style), "everyday")
            own = self._own(style_file)
            wishes = Wishes(style or last, seed=seed, strength=strength, length=length, writer=writer)
            seen = None if photo is None else self.look(photo, captions)
            yield from self._steps(visit.go_on(self.get(), wishes, seen, sentence, own))

    def style_from_text(
        self, book: dict | None = None, text: str | None = None, name: str = "mine"
    ) -> tuple[dict, str]:
        """Make a style from a book or a text of at least a chapter, to tell stories in its manner.

        Gives what it was made of, and the style as a file, which telling and continuing take as `style_file`.

        Args:
            book: A .txt, .md or .epub file.
            text: The text itself, instead of a file.
            name: What the style is called: 1 to 40 letters, digits, spaces, dots or hyphens.
        """
        with errors_for_programs():
            text, source = book_or_text(book and book.get("path"), text)
            made = self.get().make_style(text, name, source=source)
            add_style(self.get(), made, {})
            file = temporary_file(self.style_output, f"{made.name}.safetensors", made.to_bytes())
            return {"name": made.name, "passages": made.passages, "source": made.source}, file

    def predict(self, data: str, bw: int = 1, style: str = "everyday") -> dict[str, str]:
        """A story about a photo as the web API of Pix2Story had it: always the same for the same photo.

        {"data": base64 of a photo, "bw": beam width} gives {"prediction": text}.

        Args:
            data: The photo as base64.
            bw: Width of the beam search of 2015's recipe, 2 to 50; 1: the storyteller writes.
            style: everyday, romance, adventure, science_fiction, mystery, horror, fairy_tale; or romance:0.7,horror:0.3
        """
        with errors_for_programs():
            if not isinstance(bw, int) or not 1 <= bw <= MAX_BEAM_WIDTH:
                raise StoryError(f"bw must be a whole number from 1 to {MAX_BEAM_WIDTH}, not {bw!r}.")
            seen = self.look({"url": f"data:image/jpeg;base64,{''.join(data.split())}"})
            beams = {} if bw == 1 else {"writer": NEURAL_STORYTELLER, "beam_width": bw}
            return {"prediction": self.get().tell(seen.captions, style=style, seed=0, **beams).story}

    # -- parts -------------------------------------------------------------------------------------------------------
    def _own(self, style_file: dict | None) -> dict[str, Style]:
        if not style_file:
            return {}
        style = Style.load(uploaded(style_file.get("path"), "style file"))
        return dict(add_style(self.get(), style, {}))

    def _steps(self, visits: Iterator[Visit]) -> Iterator[dict]:
        for visit in visits:
            photos = visit.story.photos
            result = told(visit.story, photos[-1] if photos else None)
            yield result
        yield {**result, "record": json.loads(visit.story.to_json())}
