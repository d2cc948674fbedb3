"""The Pictale page: a photo in, what the captioner sees in it, and a story about it.

    python app.py          opens http://127.0.0.1:7860 (GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say otherwise)

Layout and wiring only: everything else is a call of `StoryPipeline`. Programs may use the page too, through the
endpoints /caption and /tell (see "Use via API" at its foot).
"""

import base64
import binascii
import functools
import html
import logging
import math
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Visitors' threads share few cores: torch's own threads must not spin while they wait. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import gradio as gr
from gradio.utils import get_upload_folder

from modeling import Caption, ImageError, PictaleError, StoryPipeline, load_image
from modeling.heatmaps import attention_overlay

EXAMPLES = sorted((Path(__file__).parent / "hub_configs" / "pictale-default" / "examples").glob("*.jpg"))
STYLES = ("everyday", "romance", "adventure", "science_fiction", "mystery", "horror", "fairy_tale")
LABELS = {style: style.replace("_", " ").capitalize() for style in STYLES}

INTRODUCTION = """# Pictale
Give it a photo. It says what it sees, and tells a story about it in the style of a book."""

BOOK_FACE = '"Iowan Old Style", Palatino, "Palatino Linotype", "Book Antiqua", Georgia, serif'
CSS = f"""
.gradio-container {{max-width: 1180px !important; margin: 0 auto !important}}
h1, #story textarea {{font-family: {BOOK_FACE}}}
#story textarea {{font-size: 1.15rem; line-height: 1.75}}
#captions .wrap {{flex-direction: column}}
#words input {{position: absolute; opacity: 0}}
#words label span {{margin-left: 0}}
#sight .block {{border-width: 0}}
#examples .gallery {{display: grid; grid-template-columns: repeat(auto-fill, minmax(72px, 1fr))}}
#examples .container {{width: 100%; max-width: none; height: auto; max-height: none}}
#examples img {{aspect-ratio: 1; object-fit: cover; width: 100%}}
"""


_LOADING = threading.Lock()
_load_pipeline = functools.cache(StoryPipeline.from_pretrained)


def get_pipeline() -> StoryPipeline:
    """The one pipeline of this process, loaded by whoever asks first."""
    with _LOADING:
        return _load_pipeline()


def warm_up() -> None:
    """Load the models and use them once, so that the first visitor does not wait for it."""
    try:
        pipeline = get_pipeline()
        captions = pipeline.caption([load_image(EXAMPLES[0])])[0]
        next(pipeline.stream(captions, style=STYLES[0], seed=0))
    except PictaleError as error:
        logging.getLogger("pictale").error("The models cannot be used: %s", error)


@dataclass(frozen=True)
class Seen:
    """A photo of this visitor and what the captioner said of it."""

    photo: str | bytes
    captions: tuple[Caption, ...]


def sentence(error: PictaleError) -> str:
    """What the page shows of an error; it shows messages as HTML."""
    return html.escape(str(error), quote=False)


@contextmanager
def errors_for_programs() -> Iterator[None]:
    """Let clients of the endpoints have the sentence of an error that they caused."""
    try:
        yield
    except PictaleError as error:
        raise gr.Error(sentence(error), print_exception=False) from error


def photo_source(upload: dict | None) -> str | bytes:
    """The file or bytes of an uploaded photo, untouched: `load_image` is to judge them, not the component."""
    if upload is None:
        raise ImageError("There is no photo yet: upload one, take one or choose an example.")
    if path := upload.get("path"):
        # Files named by a request that did not upload them are none of the visitor's business.
        if not Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve()):
            raise ImageError("The photo was not uploaded to this page: upload it first.")
        return path
    try:
        return base64.b64decode((upload.get("url") or "").partition(";base64,")[2], validate=True)
    except binascii.Error as error:
        raise ImageError("The photo is not valid base64: send it as data:image/jpeg;base64,...") from error


def describe(caption: Caption) -> dict[str, Any]:
    return {"text": caption.text, "score": round(float(caption.score), 4)}


def show_captions(seen: Seen | None) -> tuple:
    """Updates for the sight group, its captions, its words and its heat map."""
    if seen is None:
        nothing = gr.update(choices=[], value=None)
        return gr.update(visible=False), nothing, nothing, gr.update(visible=False)
    choices = [(f"{caption.text}  ({math.exp(caption.score):.0%})", i) for i, caption in enumerate(seen.captions)]
    return gr.update(visible=True), gr.update(choices=choices, value=0), *show_words(seen, 0)


def show_words(seen: Seen, caption: int) -> tuple:
    """Updates for the words of the chosen caption and its heat map, which waits for a word."""
    words = [(word, i) for i, word in enumerate(seen.captions[caption].words)]
    return gr.update(choices=words, value=None), gr.update(visible=False)


def show_heat(seen: Seen, caption: int, word: int) -> dict:
    """The photo with the attention of the chosen word over it."""
    try:
        photo = load_image(seen.photo)
    except PictaleError as error:  # uploads are thrown away after a day
        gr.Warning(sentence(error))
        return gr.skip()
    photo.thumbnail((1024, 1024))
    return gr.update(value=attention_overlay(photo, seen.captions[caption].attention[word]), visible=True)


class Page:
    """The page over the pipeline that `get` returns when it is first needed: `Page(get).blocks` is what is launched."""

    def __init__(self, get: Callable[[], StoryPipeline] = get_pipeline):
        self.get = get
        with gr.Blocks(title="Pictale", delete_cache=(3600, 86400)) as self.blocks:
            self.seen = gr.State(None)
            gr.Markdown(INTRODUCTION)
            with gr.Row():
                with gr.Column(min_width=320):
                    self._lay_out_wishes()
                with gr.Column(min_width=320):
                    self._lay_out_answers()
            with gr.Row(visible=False):  # what the endpoints for programs need to be attached to
                self.result, self.seed_number = gr.JSON(), gr.Number(None, precision=0)
                self.caption_button, self.tell_button = gr.Button(), gr.Button()
            self.sight_parts = [self.sight, self.captions, self.words, self.heat]
            self.busy = {self.tell: gr.update(visible=False), self.stop: gr.update(visible=True)}
            self.idle = {self.tell: gr.update(visible=True), self.stop: gr.update(visible=False)}
            self._wire()

    def _lay_out_wishes(self) -> None:
        self.photo = gr.Image(
            label="Photo",
            type="filepath",
            sources=["upload", "webcam", "clipboard"],
            webcam_options=gr.WebcamOptions(mirror=False, constraints={"video": {"facingMode": "environment"}}),
            height=320,
        )
        gr.Examples(
            EXAMPLES,
            self.photo,
            examples_per_page=len(EXAMPLES),
            cache_examples=False,
            label="Or choose one of these",
            elem_id="examples",
        )
        self.style = gr.Radio([(LABELS[name], name) for name in STYLES], value=STYLES[0], label="Style")
        self.dice = gr.Button("⚄ Roll", size="sm")
        self.seed = gr.Textbox(
            label="Seed",
            info="The same photo, style and seed give the same story.",
            placeholder="a new one each time",
            max_lines=1,
            buttons=[self.dice],
            elem_id="seed",
        )
        self.tell = gr.Button("Tell me a story", variant="primary", size="lg")
        self.stop = gr.Button("Stop", variant="stop", size="lg", visible=False)

    def _lay_out_answers(self) -> None:
        self.story = gr.Textbox(
            label="Story",
            placeholder="Choose a photo and a style, then press “Tell me a story”.",
            lines=10,
            max_lines=40,
            interactive=False,
            buttons=["copy"],
            elem_id="story",
        )
        self.note = gr.Markdown()
        with gr.Group(visible=False, elem_id="sight") as self.sight:
            self.captions = gr.Radio(
                label="What it sees",
                info="Its best captions, and how sure it was of each word on average.",
                interactive=True,
                elem_id="captions",
            )
            self.words = gr.Radio(
                label="Where it looked", info="Choose a word of the caption.", interactive=True, elem_id="words"
            )
            self.heat = gr.Image(
                interactive=False, visible=False, height=420, format="jpeg", show_label=False, buttons=["fullscreen"]
            )

    def _wire(self) -> None:
        models = {"concurrency_id": "models", "concurrency_limit": 1}  # one at a time: they use all cores already
        upload = {"preprocess": False}  # the photo component would open the file itself, and fail in its own words
        inside = {"api_visibility": "private"}
        shown = [self.seen, *self.sight_parts, self.story, self.note]
        self.photo.change(self._see, self.photo, [*shown, self.photo], **upload, **models, **inside)
        self.captions.input(show_words, [self.seen, self.captions], [self.words, self.heat], **inside)
        self.words.input(show_heat, [self.seen, self.captions, self.words], self.heat, **inside)
        self.dice.click(lambda: str(random.randrange(10**6)), None, self.seed, **inside)
        telling = self.tell.click(
            self._write,
            [self.photo, self.seen, self.style, self.seed],
            [*shown, self.tell, self.stop],
            show_progress_on=self.story,
            scroll_to_output=True,
            **upload,
            **models,
            **inside,
        )
        self.stop.click(lambda: self.idle, None, [self.tell, self.stop], cancels=telling, queue=False, **inside)
        self.caption_button.click(
            self.caption_endpoint, self.photo, self.result, api_name="caption", **upload, **models
        )
        wishes = [self.photo, self.style, self.seed_number]
        self.tell_button.click(self.tell_endpoint, wishes, self.result, api_name="tell", **upload, **models)

    # -- what the pipeline is asked -----------------------------------------------------------------------------------

    def look(self, upload: dict | None) -> Seen:
        photo = photo_source(upload)
        image = load_image(photo)  # before the models are asked for, so that a broken file is told at once
        return Seen(photo, self.get().caption([image])[0])

    def stream(self, seen: Seen, style: str, seed: str | float | None) -> Iterator[tuple[str, int]]:
        """The growing story and the seed it grows from, drawn where none is given."""
        try:
            seed = random.randrange(10**6) if seed in (None, "") else int(seed)
        except (TypeError, ValueError, OverflowError) as error:
            raise PictaleError(f"The seed {seed} is not a whole number: enter one, or nothing.") from error
        for text in self.get().stream(seen.captions, style=style, seed=seed):
            yield text, seed

    # -- for people ---------------------------------------------------------------------------------------------------

    def _see(self, upload: dict | None) -> tuple:
        """Captions as soon as there is a photo; what was said of the photo before goes, and so does a broken file."""
        seen, photo = None, gr.skip()
        try:
            seen = None if upload is None else self.look(upload)
        except PictaleError as error:
            gr.Warning(sentence(error))
            photo = None
        return seen, *show_captions(seen), "", "", photo

    def _write(self, upload: dict | None, seen: Seen | None, style: str, seed: str) -> Iterator[dict]:
        """Captions if they are not there yet, then the story as it grows."""
        yield {**self.busy, self.story: "", self.note: ""}
        try:
            if seen is None or seen.photo != photo_source(upload):
                seen = self.look(upload)
                yield {self.seen: seen, **dict(zip(self.sight_parts, show_captions(seen), strict=True))}
            for story, used in self.stream(seen, style, seed):
                note = f"{LABELS[style]}, seed {used}. Enter this seed to get the story again."
                yield {self.story: story, self.note: note}
        except PictaleError as error:
            gr.Warning(sentence(error))
        except Exception:
            yield self.idle
            raise
        yield self.idle

    # -- for programs -------------------------------------------------------------------------------------------------

    def caption_endpoint(self, photo: dict) -> list[dict]:
        """Captions of a photo, best first, each with its text and its mean log-probability a word."""
        with errors_for_programs():
            return [describe(caption) for caption in self.look(photo).captions]

    def tell_endpoint(self, photo: dict, style: str, seed: float | None = None) -> Iterator[dict]:
        """Captions and the growing story of a photo; the last result holds the whole story."""
        with errors_for_programs():
            seen = self.look(photo)
            captions = [describe(caption) for caption in seen.captions]
            for story, used in self.stream(seen, style, seed):
                yield {"captions": captions, "style": style, "seed": used, "story": story}


def theme() -> gr.themes.Base:
    """Leather and paper. The font is one that gradio brings along: nothing is fetched from elsewhere."""
    leather, paper = "*primary_800", "#faf7f1"
    return gr.themes.Soft(
        primary_hue="amber",
        neutral_hue="stone",
        font=[gr.themes.LocalFont("Source Sans Pro", weights=(400, 700)), "system-ui", "sans-serif"],
    ).set(
        body_background_fill=paper,
        background_fill_primary=paper,
        button_primary_background_fill=leather,
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark=leather,
        block_label_background_fill="*primary_50",
        block_label_background_fill_dark="*neutral_700",
        block_label_text_color=leather,
        block_title_text_color=leather,
        checkbox_label_background_fill_selected=leather,
        checkbox_label_background_fill_selected_dark=leather,
        checkbox_background_color_selected="*primary_700",
        checkbox_border_color_selected="*primary_700",
    )


if __name__ == "__main__":
    page = Page().blocks
    page.queue().launch(theme=theme(), css=CSS, footer_links=["api", "settings"], prevent_thread_lock=True)
    threading.Thread(target=warm_up, daemon=True, name="warm-up").start()
    page.block_thread()
