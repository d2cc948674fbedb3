"""The Pictale page: a photo in, what the captioner sees in it, and a story that goes on as long as you like.

    python app.py          opens http://127.0.0.1:7860 (GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say otherwise)

Layout and wiring only: what happens then stands in `modeling/page_events.py`, the endpoints for programs (see "Use via
API" at the foot of the page) in `modeling/page_programs.py`.
"""

import functools
import importlib.util
import logging
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

# Visits run in threads of their own, and torch's helpers of several threads wait for each other so long that everything
# takes twice the time: so each computes on one core, but the storyteller, whose one thread writes for all visitors, on
# all there are. Read when torch is imported.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
STORY_THREADS = None if "OMP_NUM_THREADS" in os.environ else CORES
os.environ.setdefault("OMP_NUM_THREADS", "1")

from modeling.quick_imports import quick_imports  # noqa: E402

with quick_imports():
    import gradio as gr

    from modeling import PictaleError, load_image
    from modeling.book_text import BOOK_SUFFIXES
    from modeling.page_events import EMPTY_STORY, MAX_UPLOAD_BYTES, PageEvents
    from modeling.page_looks import CSS, SPINES, theme
    from modeling.page_programs import PagePrograms
    from modeling.story import MAX_TEXT
    from modeling.story_html import style_in_words
    from modeling.story_types import STORYTELLER
    from modeling.visit import LENGTHS, Visit

if TYPE_CHECKING:
    from modeling import StoryPipeline

EXAMPLES = sorted((Path(__file__).parent / "hub_configs" / "pictale-default" / "examples").glob("*.jpg"))
STYLES = tuple(SPINES)
LABELS = {name: style_in_words(name) for name in STYLES}

# Queues: so many at the same moment, the others wait for their turn. Stories share the storyteller's batch. Captions,
# which take a tenth of a second, never wait for a story; nobody waits for somebody else's book or hundred photos.
os.environ.setdefault("GRADIO_DEFAULT_CONCURRENCY_LIMIT", str(min(4 * CORES, 16)))
STORIES = {"concurrency_id": "stories", "concurrency_limit": "default"}
SEEING = {"concurrency_id": "seeing", "concurrency_limit": 1}
READING = {"concurrency_id": "reading", "concurrency_limit": 1}
BATCHES = {"concurrency_id": "batches", "concurrency_limit": 1}
MAX_WAITING = 60  # of all queues together; who comes then is told to try again
MAX_SESSIONS = 1000  # that are remembered, a quarter of a megabyte each; gradio would keep 10,000

INTRODUCTION = """# Pictale
Give it a photo. It says what it sees, and tells a story about it in the style of a book."""
OWN_STYLE = """A style is the average of a book's passages. Give it a book, or a chapter of your own: in a few seconds \
you can have stories told in its manner. It stays in this visit, nobody else sees it; download it to use it again."""
MANY = "Captions for up to 100 photos at once, with a story for each if you like. A broken file does not stop the rest."

COPY = """async () => {
    const text = [...document.querySelectorAll('#story .passage')].map(p => p.innerText).join('\\n\\n');
    try { await navigator.clipboard.writeText(text); return true; } catch { return false; }
}"""
NAME_EXAMPLES = f"""() => document.querySelectorAll('#examples .gallery-item').forEach(
    (button, i) => button.setAttribute('aria-label', {[f"Example photo: {path.stem}" for path in EXAMPLES]}[i]))"""


_LOADING = threading.Lock()


@functools.cache
def _load_pipeline() -> "StoryPipeline":
    from modeling import StoryPipeline  # brings torch and transformers, which take longer than all the page needs

    pipeline = StoryPipeline.from_pretrained()
    pipeline.writers[STORYTELLER].threads = STORY_THREADS
    if model := os.environ.get("PICTALE_WRITER_MODEL"):  # a language model that visitors may choose as the writer
        log = logging.getLogger("pictale")
        try:  # its size is asked for now, so that no visitor waits for it; it is loaded when the first one chooses it
            log.info("writer: %s", pipeline.writers[pipeline.open_writer(model)].about())
        except PictaleError as error:
            log.error("PICTALE_WRITER_MODEL cannot be used: %s", error)
    return pipeline


def get_pipeline() -> "StoryPipeline":
    """The one pipeline of this process, loaded by whoever asks first."""
    with _LOADING:
        return _load_pipeline()


def warm_up() -> None:
    """Load the models and use them once, so that the first visitor does not wait for it."""
    try:
        pipeline = get_pipeline()
        captions = pipeline.caption([load_image(EXAMPLES[0])])[0]
        next(pipeline.stream(captions, style=STYLES[0], seed=0))
        writers = [name for name in pipeline.writers if pipeline.has_writer(name)]  # opens the bookshelf
        memory = len(pipeline.bank) if pipeline.can_retrieve else 0
        logging.getLogger("pictale").info("Ready: %s write, %d sentences are remembered.", ", ".join(writers), memory)
    except PictaleError as error:
        logging.getLogger("pictale").error("The models cannot be used: %s", error)


class Page(PageEvents, PagePrograms):
    """The page over the pipeline that `get` returns when it is first needed: `Page(get).blocks` is what is launched."""

    examples = EXAMPLES
    labels = LABELS
    style_choices = tuple((label, name) for name, label in LABELS.items())

    def __init__(self, get: "Callable[[], StoryPipeline]" = get_pipeline):
        self.get = get
        with gr.Blocks(title="Pictale", delete_cache=(3600, 86400)) as self.blocks:
            self.visit, self.seen = gr.State(Visit()), gr.State(None)
            self.own, self.batch = gr.State({}), gr.State(())
            self.kept = gr.BrowserState(None, storage_key="pictale-story", secret="pictale-story")
            gr.Markdown(INTRODUCTION)
            with gr.Tabs():
                with gr.Tab("Tell"), gr.Row():
                    with gr.Column(min_width=320):
                        self._lay_out_wishes()
                    with gr.Column(min_width=320):
                        self._lay_out_story()
                with gr.Tab("Look closer") as self.closer_tab:
                    self._lay_out_closer()
                with gr.Tab("Your style"):
                    self._lay_out_own_style()
                with gr.Tab("Many photos"):
                    self._lay_out_many()
            self._states()
            self._wire_telling()
            self._wire_keeping()
            self._wire_looking()
            self._wire_rest()
            self._offer_to_programs()

    def _states(self) -> None:
        """What is shown while somebody writes, and what while nobody does."""
        still = [self.surprise_button, self.go, self.undo_button, self.edit_button]
        self.busy = {self.tell: gr.update(visible=False), self.stop: gr.update(visible=True)}
        self.busy |= {button: gr.update(interactive=False) for button in still}
        self.idle = {self.tell: gr.update(visible=True), self.stop: gr.update(visible=False)}
        self.idle |= {button: gr.update(interactive=True) for button in still}
        self.many_busy = {self.many: gr.update(visible=False), self.many_stop: gr.update(visible=True)}
        self.many_idle = {self.many: gr.update(visible=True), self.many_stop: gr.update(visible=False)}
        self.wishes = [
            *(self.style, self.second, self.share, self.strength),
            *(self.length, self.lyrics, self.writer, self.seed),
        ]
        self.table = [self.visit, self.story, self.more, self.editing, self.edit_which]

    # -- layout -------------------------------------------------------------------------------------------------------

    def _photo(self, label: str, height: int, **keywords) -> gr.Image:
        webcam = gr.WebcamOptions(mirror=False, constraints={"video": {"facingMode": "environment"}})
        sources = ["upload", "webcam", "clipboard"]
        return gr.Image(label=label, type="filepath", sources=sources, webcam_options=webcam, height=height, **keywords)

    def _lay_out_wishes(self) -> None:
        self.photo = self._photo("Photo", 320)
        gr.Examples(
            EXAMPLES,
            self.photo,
            examples_per_page=len(EXAMPLES),
            cache_examples=False,
            label="Or choose one of these",
            elem_id="examples",
        )
        self.style = gr.Radio(self.style_choices, value=STYLES[0], label="Style", elem_id="style")
        with gr.Accordion("More wishes", open=False):
            with gr.Row():
                choices = [("nothing", ""), *self.style_choices]
                self.second = gr.Dropdown(choices, value="", label="Mix in", min_width=140)
                self.share = gr.Slider(0, 100, 30, step=5, label="Share in %", min_width=160)
            self.strength = gr.Slider(
                0, 2, 1, step=0.1, label="Strength of the style", info="0: none, 1: as in the books, 2: exaggerated"
            )
            self.length = gr.Radio(list(LENGTHS), value="Medium", label="Length")
            self.lyrics = gr.Checkbox(label="In lines, like a song")
            self.way = gr.Radio(
                [("Both", "both"), ("Its own words", "generate"), ("What it remembers", "retrieve")],
                value="both",
                label="What the story goes by",
                info="What it remembers are the nearest of many sentences that people wrote about other photos.",
                visible=False,
            )
            self.writer = gr.Radio([("The storyteller", STORYTELLER)], value=STORYTELLER, label="Writer", visible=False)
            self.dice = gr.Button("⚄ Roll", size="sm")
            self.seed = gr.Textbox(
                label="Seed",
                info="The same photo, wishes and seed give the same story.",
                placeholder="a new one each time",
                max_lines=1,
                max_length=20,
                buttons=[self.dice],
                elem_id="seed",
            )
        with gr.Row():
            self.surprise_button = gr.Button("Surprise me", size="lg", min_width=120, scale=1)
            self.tell = gr.Button("Tell me a story", variant="primary", size="lg", min_width=180, scale=2)
            self.stop = gr.Button("Stop", variant="stop", size="lg", min_width=180, scale=2, visible=False)

    def _lay_out_story(self) -> None:
        self.captions = gr.HTML(elem_id="captions")
        self.story = gr.HTML(EMPTY_STORY, elem_id="story", min_height=220)
        with gr.Column(visible=False, elem_id="more") as self.more:
            gr.Markdown("### And then?")
            with gr.Row():
                self.own_sentence = gr.Textbox(
                    label="Your own next sentence",
                    placeholder="… or leave it empty and just go on",
                    lines=4,
                    max_length=MAX_TEXT,
                    min_width=180,
                    elem_id="own-sentence",
                )
                self.next_photo = self._photo("Another photo", 160, min_width=180, elem_id="next-photo")
            with gr.Row():
                self.go = gr.Button("Go on", variant="primary", min_width=60)
                self.undo_button = gr.Button("Undo", min_width=60)
                self.edit_button = gr.Button("Edit", min_width=60)
                self.copy = gr.Button("Copy", min_width=60)
            with gr.Column(visible=False, elem_id="editing") as self.editing:
                self.edit_which = gr.Dropdown([], label="Passage")
                self.edit_text = gr.Textbox(
                    label="Its text", lines=5, max_length=MAX_TEXT, info="The story goes on from what you write here."
                )
                with gr.Row():
                    self.edit_save = gr.Button("Save", variant="primary", min_width=80)
                    self.edit_cancel = gr.Button("Cancel", min_width=80)
        with gr.Accordion("Keep it", open=False), gr.Row():
            off = {"interactive": False, "min_width": 110, "size": "md"}
            self.as_markdown = gr.DownloadButton("As Markdown", **off)
            self.as_page = gr.DownloadButton("As web page", **off)
            self.as_json = gr.DownloadButton("To load again", **off)
            self.load_story = gr.UploadButton("Load a story", file_types=[".json"], min_width=110, size="md")

    def _lay_out_closer(self) -> None:
        self.nothing = gr.Markdown("Give it a photo in the first tab, then look here at what it saw and where.")
        self.which = gr.Radio(label="Photo", interactive=True, visible=False, elem_id="which")
        with gr.Column(visible=False, elem_id="sight") as self.sight:
            with gr.Row():
                with gr.Column(min_width=320):
                    self.beams = gr.Radio(label="What it sees", interactive=True, elem_id="beams")
                    self.scores = gr.HTML(elem_id="scores")
                    self.words = gr.Radio(
                        label="Where it looked", info="Choose a word of it.", interactive=True, elem_id="words"
                    )
                with gr.Column(min_width=320):
                    self.heat = gr.HTML(elem_id="heat")
            gr.Markdown("### Word by word")
            self.strip = gr.HTML(elem_id="strip")
        gr.Markdown("### Why this story")
        self.why = gr.HTML(elem_id="why")

    def _lay_out_own_style(self) -> None:
        gr.Markdown(OWN_STYLE)
        with gr.Row():
            with gr.Column(min_width=320):
                self.book = gr.File(
                    label="A book (.txt, .md or .epub)", file_types=list(BOOK_SUFFIXES), type="filepath", elem_id="book"
                )
                self.pasted = gr.Textbox(label="Or paste a text", lines=6, max_lines=12, max_length=2_000_000)
            with gr.Column(min_width=320):
                self.style_name = gr.Textbox(label="What is it called?", max_length=40, elem_id="style-name")
                self.style_button = gr.Button("Make my style", variant="primary")
                self.style_made = gr.HTML(elem_id="style-made", min_height=60)
                self.style_file = gr.DownloadButton("Download the style", visible=False)
                self.style_upload = gr.UploadButton("Load a style file", file_types=[".safetensors"])

    def _lay_out_many(self) -> None:
        gr.Markdown(MANY)
        with gr.Row():
            with gr.Column(min_width=320):
                self.files = gr.File(
                    label="Photos", file_count="multiple", file_types=["image"], type="filepath", elem_id="files"
                )
            with gr.Column(min_width=320):
                self.with_stories = gr.Checkbox(label="Tell a story about each")
                self.many_style = gr.Dropdown(list(self.style_choices), value=STYLES[0], label="Style of the stories")
                self.many_seed = gr.Textbox(label="Seed of the stories", placeholder="a new one", max_length=20)
                self.many = gr.Button("Caption them", variant="primary", size="lg")
                self.many_stop = gr.Button("Stop", variant="stop", size="lg", visible=False)
                self.as_csv = gr.DownloadButton("Download the table (CSV)", interactive=False)
        self.rows = gr.HTML(elem_id="rows")

    # -- wiring -------------------------------------------------------------------------------------------------------

    def _wire_telling(self) -> None:
        upload = {"preprocess": False}  # the photo component would open the file itself, and fail in its own words
        inside = {"api_visibility": "private"}
        resting = [*self.idle, *self.table]
        seen = [self.seen, self.captions]
        telling = {"show_progress_on": self.story, **STORIES, **upload, **inside}
        gr.on(
            [self.photo.change, self.way.input],
            self.see,
            [self.photo, self.way],
            [*seen, self.photo, self.writer, self.way],
            show_progress_on=self.captions,
            **SEEING,
            **upload,
            **inside,
        )
        self.dice.click(lambda: str(random.randrange(10**6)), None, self.seed, **inside)
        material = [self.photo, self.way, self.seen, self.visit, self.own, *self.wishes]
        tell = self.tell.click(self.write, material, [*seen, *resting], scroll_to_output=True, **telling)
        lucky = self.surprise_button.click(
            self.surprise, self.photo, [self.style, self.second, self.seed, self.photo], **upload, **inside
        ).then(self.write, material, [*seen, *resting], scroll_to_output=True, **telling)
        material = [self.next_photo, self.way, self.own_sentence, self.visit, self.own, *self.wishes]
        go = gr.on(
            [self.go.click, self.own_sentence.submit],
            self.go_further,
            material,
            [*resting, self.own_sentence, self.next_photo],
            **telling,
        )
        stop = self.stop.click(self.stopped, self.visit, resting, cancels=[tell, lucky, go], queue=False, **inside)
        undo = self.undo_button.click(self.undo, self.visit, self.table, **inside)
        self.edit_button.click(self.open_edit, self.visit, [self.editing, self.edit_which, self.edit_text], **inside)
        self.edit_which.input(self.passage, [self.visit, self.edit_which], self.edit_text, **inside)
        save = self.edit_save.click(self.save_edit, [self.visit, self.edit_which, self.edit_text], self.table, **inside)
        self.edit_cancel.click(lambda: gr.update(visible=False), None, self.editing, **inside)
        self.changes = [tell, lucky, go, stop, undo, save]

    def _wire_keeping(self) -> None:
        inside = {"api_visibility": "private", "show_progress": "hidden"}
        load = self.load_story.upload(self.load, [self.load_story, self.visit], self.table, **inside)
        self.blocks.load(None, js=NAME_EXAMPLES)  # gradio gives their pictures no text
        restored = self.blocks.load(self.restore, [self.kept, self.visit], self.table, **inside)
        files = [self.as_markdown, self.as_page, self.as_json, self.kept]
        for change in [*self.changes, load, restored]:
            change.then(self.keep, self.visit, files, **inside)
        done = gr.Checkbox(visible=False)
        self.copy.click(None, None, done, js=COPY).then(self.copied, done, None, **inside)

    def _wire_looking(self) -> None:
        inside = {"api_visibility": "private"}
        words = [self.words, self.heat, self.strip]
        photo = [self.sight, self.beams, self.scores, *words]
        table = [self.visit, self.seen]
        self.closer_tab.select(self.open_closer, table, [self.which, self.nothing, self.why, *photo], **inside)
        self.which.input(self.show_photo, [*table, self.which], photo, **inside)
        self.beams.input(self.show_words, [*table, self.which, self.beams], words, **inside)
        self.words.input(self.show_heat, [*table, self.which, self.beams, self.words], self.heat, **inside)

    def _wire_rest(self) -> None:
        inside = {"api_visibility": "private"}
        made = [self.own, self.style, self.second, self.many_style, self.style_made, self.style_file]
        named = {**READING, **inside, "api_name": "read_book"}  # `make_style` is the name that programs know
        material = [self.book, self.pasted, self.style_name, self.own]
        self.style_button.click(self.make_style, material, made, show_progress_on=self.style_made, **named)
        self.style_upload.upload(self.load_style, [self.style_upload, self.own], made, **SEEING, **inside)
        rows = [self.rows, self.batch, self.as_csv, self.many, self.many_stop]
        material = [self.files, self.with_stories, self.many_style, self.many_seed, self.own]
        many = self.many.click(self.tell_many, material, rows, show_progress="hidden", **BATCHES, **inside)
        self.many_stop.click(self.stopped_many, self.batch, rows, cancels=many, queue=False, **inside)

    def _offer_to_programs(self) -> None:
        """Endpoints need components to be attached to; nobody sees these."""
        upload = {"preprocess": False}
        with gr.Row(visible=False):
            photo, file, book = gr.Image(type="filepath"), gr.File(), gr.File()
            style, kept_style, name = gr.Textbox(STYLES[0]), gr.Textbox(None), gr.Textbox("mine")
            seed, strength = gr.Number(None, precision=0), gr.Number(1.0)
            length, short = gr.Textbox("Medium"), gr.Textbox("Short")
            seeing, way, writer = gr.Textbox("generate"), gr.Textbox("both"), gr.Textbox(STORYTELLER)
            # of text, because clients of MCP find the type of gr.JSON none; an object is taken too
            story, sentence, text = gr.Textbox(), gr.Textbox(None), gr.Textbox(None)
            result, self.style_output, button = gr.JSON(), gr.File(), gr.Button()
            offers = [
                (self.caption_photo, [photo, seeing], result, "caption", SEEING),
                (self.tell_story, [photo, style, seed, strength, length, file, way, writer], result, "tell", STORIES),
                (
                    self.continue_story,
                    [story, photo, sentence, kept_style, seed, strength, short, file, way, writer],
                    result,
                    "continue_story",
                    STORIES,
                ),
                (self.style_from_text, [book, text, name], [result, self.style_output], "make_style", READING),
            ]
            for function, inputs, outputs, api_name, queue in offers:
                button.click(function, inputs, outputs, api_name=api_name, **upload, **queue)
        gr.api(self.predict, api_name="predict", **STORIES)


def serve(page: gr.Blocks, **settings) -> str:
    """Launch a page as the Space has it, beside `settings` of gradio's `launch`; gives its address."""
    page.queue(max_size=MAX_WAITING).launch(
        theme=theme(),
        css=CSS,
        footer_links=["api", "settings"],
        max_file_size=MAX_UPLOAD_BYTES,
        state_session_capacity=MAX_SESSIONS,
        prevent_thread_lock=True,
        **settings,
    )
    return page.local_url


def has_mcp() -> bool:
    """Whether the endpoints are to be tools of an MCP server too: if "gradio[mcp]" is installed and GRADIO_MCP_SERVER
    does not say no."""
    wanted = os.environ.get("GRADIO_MCP_SERVER", "true").lower() == "true"
    return wanted and importlib.util.find_spec("mcp") is not None


if __name__ == "__main__":
    page = Page().blocks
    serve(page, mcp_server=has_mcp())
    threading.Thread(target=warm_up, daemon=True, name="warm-up").start()
    page.block_thread()
