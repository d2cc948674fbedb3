"""Photo in, captions and a story out: the one call over all the models.

    photo -> captioner -> captions -> skip-thought encoder -> x -> x - c + s*b -> the page of a book nearest to it
         `-> joint embedding -> sentences that it brings to mind
    captions, page, style, story so far -> storyteller -> candidates -> ranked -> story

Every arrow is a method that can be called alone: `caption`, `nearest_sentences`, `think`, `shift`, `tell`, `stream`.
Captions are `photo_captions.py`'s, sentences that a photo brings to mind `retrieval.py`'s, stories that go on
`continuation.py`'s.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .bookshelf import Bookshelf
from .continuation import StoryContinuation
from .errors import PictaleError, StyleError
from .fingerprints import encoder_fingerprint
from .image_processing_captioner import PictaleImageProcessor
from .images import load_images
from .language_model import ModelPlace
from .modeling_captioner import PictaleCaptionerForConditionalGeneration
from .modeling_skip_thoughts import PictaleSkipThoughtsEncoder
from .modeling_story_decoder import PictaleStoryDecoderForConditionalGeneration
from .onnx_captioner import load_exported
from .photo_captions import PhotoCaptions
from .pipeline_files import PipelineFiles
from .reranking import Ranking, Wish
from .retrieval import PhotoRetrieval
from .story_engine import StoryEngine
from .story_types import (
    NEURAL_STORYTELLER,
    STORYTELLER,
    Caption,
    StoryOptions,
    StoryResult,
    Written,
    as_captions,
    check_seed,
    written_captions,
)
from .style_pages import StylePages
from .styles import Style, encode_passages, make_style, parse_style, read_texts, shift_style
from .text import content_words, growing_words, lyric_lines, split_sentences
from .writer import PassageTask, Writer
from .writer_bookshelf import BookshelfWriter
from .writer_endpoint import EndpointWriter
from .writer_language_model import LanguageModelWriter
from .writer_neural_storyteller import NeuralStorytellerWriter
from .writer_storyteller import StorytellerWriter

CAPTION_STYLE = "caption"
PREVIOUS_SENTENCES = 4  # of a story without photos that make its vector
CONTENT_WORDS = 6  # of the captions that a story should take up
PERHAPS = 2  # sentences that a photo brings to mind that a writer is told of


class StoryPipeline(StoryContinuation, PhotoRetrieval, PhotoCaptions, PipelineFiles):
    """Captions photos and tells stories about them.

    Example:
        >>> pipe = StoryPipeline.from_pretrained()
        >>> result = pipe("photo.jpg", style="romance", seed=1)
        >>> print(result.captions[0].text, result.story, sep="\\n")
    """

    def __init__(
        self,
        captioner: PictaleCaptionerForConditionalGeneration,
        image_processor: PictaleImageProcessor,
        caption_tokenizer: Any,
        encoder: PictaleSkipThoughtsEncoder,
        encoder_tokenizer: Any,
        styles: Sequence[Style],
        storyteller: str | Path | StoryEngine | None = None,
        decoder: PictaleStoryDecoderForConditionalGeneration | None = None,
        decoder_tokenizer: Any = None,
        options: StoryOptions | None = None,
        bookshelf: Bookshelf | str | Path | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        """Put a pipeline together from loaded parts; `styles` must contain one named `caption`, the c of the shift.

        `storyteller` is its engine, or the folder of its model, which is loaded when it is first needed; `decoder` is
        what the writer `neural-storyteller` writes with; `bookshelf` what the writer of that name quotes from, and
        where pages are found that a style is shown by: a file is not opened before it is needed. `device` is where
        language models compute; None: where the encoder does.
        """
        self.captioner = captioner.prepare_for_inference()
        self.image_processor, self.caption_tokenizer = image_processor, caption_tokenizer
        self.encoder = encoder.eval()
        self.encoder.tokenizer = encoder_tokenizer
        self.decoder, self.decoder_tokenizer = None if decoder is None else decoder.eval(), decoder_tokenizer
        self.options = options or StoryOptions()
        self.device = torch.device(device or encoder.device)
        self._fingerprint = encoder_fingerprint(encoder)
        self._styles: dict[str, Style] = {}
        for style in styles:
            style.check_encoder(self._fingerprint)
            self._styles[style.name] = style
        if CAPTION_STYLE not in self._styles:
            raise PictaleError("A pipeline needs a style named 'caption', the mean of captions in general.")
        self.pages = StylePages(lambda: self.writers["bookshelf"].bookshelf, lambda: self._styles)
        self.writers: dict[str, Writer] = {}
        self.use_storyteller(storyteller)
        self.writers[NEURAL_STORYTELLER] = NeuralStorytellerWriter(self.decoder, decoder_tokenizer)
        self.open_bookshelf(bookshelf)
        self.writers["endpoint"] = EndpointWriter(self.pages)

    # -- styles ------------------------------------------------------------------------------------------------------
    @property
    def styles(self) -> dict[str, Style]:
        """The styles a story can be told in, by name."""
        return {name: style for name, style in self._styles.items() if name != CAPTION_STYLE}

    def add_style(self, style: Style) -> None:
        """Make a style known to this pipeline, in place of one of the same name.

        Raises:
            StyleError: it belongs to another encoder, or is called `caption`, as the mean of all captions is.
        """
        self.check_style(style)
        self._styles[style.name] = style

    def check_style(self, style: Style) -> None:
        """Raise StyleError unless stories can be told in this style, whether or not it is added."""
        if style.name == CAPTION_STYLE:
            raise StyleError("No style can be called 'caption': the mean of captions in general has that name.")
        style.check_encoder(self._fingerprint)
        if style.vector.shape != (size := self._styles[CAPTION_STYLE].vector.shape):
            numbers = f"{style.vector.size} numbers, not {size[0]}"
            raise StyleError(f"The style '{style.name}' is damaged (it has {numbers}): make or download it again.")

    def make_style(self, text: str | PathLike | Sequence[str], name: str, **kwargs: Any) -> Style:
        """A style from a text, in seconds; the pipeline does not keep it until `add_style`.

        Args:
            text: The text itself or several; or, as a `Path`, a .txt, .md or .epub file or a folder of them.
            name: How it will be called.
            kwargs: `source`, `progress` and so on, see `modeling.styles.make_style`.

        Example:
            >>> pipe.add_style(pipe.make_style(Path("dracula.txt"), "stoker"))
            >>> pipe("photo.jpg", style="stoker")
        """
        if isinstance(text, PathLike):
            kwargs.setdefault("source", Path(text).name)
            text = read_texts(text)
        return make_style(text, name, self.encoder, **kwargs)

    def use_storyteller(self, storyteller: str | Path | StoryEngine | None) -> None:
        """Write with this storyteller from now on: its engine, or the folder of its model, loaded when it is needed."""
        self.storyteller = storyteller
        self.writers[STORYTELLER] = StorytellerWriter(storyteller, self.pages, self._ranking, self.device)

    def open_bookshelf(self, bookshelf: Bookshelf | str | Path | None) -> None:
        """Let the writer `bookshelf` quote from this one, or from this file, which is read when it is first needed."""
        self.writers["bookshelf"] = BookshelfWriter(
            bookshelf, self._fingerprint, lambda: {name: style.vector for name, style in self._styles.items()}
        )

    def open_writer(self, name: str) -> str:
        """Let a causal language model write; nothing is loaded before it does.

        Args:
            name: Hub id (`org/model`, `org/model@revision`, `org/model/file.gguf`), folder, or GGUF file.

        Returns:
            Its name among `writers`: the id, or what the folder or file is called.

        Raises:
            PictaleError: it cannot be one.
        """
        place = ModelPlace.of(name)
        if place is None:
            known = ", ".join(self.writers)
            raise PictaleError(
                f"There is no writer '{str(name)[:60]}': choose from {known}, or give the Hub id, the folder or the "
                "GGUF file of a language model."
            )
        taken = self.writers.get(place.name)
        called = place.name if taken is None or getattr(taken, "place", None) == place else str(name)
        if called not in self.writers:
            self.writers[called] = LanguageModelWriter(place, self.pages, self.device)
        return called

    def use_onnx(self, folder: str | Path | None = None) -> None:
        """Caption with the graphs that `python -m training.export_onnx` wrote, through onnxruntime.

        Args:
            folder: Where they are; None: the folder `onnx` of the captioner.

        Raises:
            ModelFolderError: there are none, they are of other weights, or onnxruntime is not installed.
        """
        self.captioner = load_exported(self.captioner, folder)

    # -- thinking ----------------------------------------------------------------------------------------------------
    def think(self, texts: Sequence[str]) -> np.ndarray:
        """Mean skip-thought vector of sentences: x, [D]."""
        return encode_passages(self.encoder, [[text for text in texts if text.strip()]])[0]

    def shift(self, x: np.ndarray, style: str | Style | Mapping[str, float], strength: float = 1.0) -> np.ndarray:
        """x - c + strength b, [D]."""
        return shift_style(x, self._styles[CAPTION_STYLE].vector, self._style(style)[1], strength)

    # -- writing -----------------------------------------------------------------------------------------------------
    def has_writer(self, name: str) -> bool:
        """Whether a writer is there and can write: each needs its files, the endpoint its settings."""
        writer = self.writers.get(name)
        with contextlib.suppress(PictaleError):
            if name == STORYTELLER:
                return self.storyteller is not None
            if name in ("bookshelf", NEURAL_STORYTELLER):
                writer.prepare()
            elif hasattr(writer, "about"):
                writer.about()
            return writer is not None
        return False

    def about_writer(self, name: str | None) -> str:
        """What there is to know of a writer before it is used, such as size and speed; "" for the built-in ones."""
        with contextlib.suppress(PictaleError):
            return self.writers[name].about() if hasattr(self.writers.get(name), "about") else ""
        return ""

    def _writer(self, options: StoryOptions) -> Writer:
        return self.writers[options.writer]

    def _ranking(self, wish: Wish, options: StoryOptions) -> Ranking:
        # one under two names counts once, or a copy of a style would tell other stories
        vectors = np.unique([style.vector for style in self._styles.values()], axis=0)
        read = None if self.embedding is None else self.embedding.embed_texts
        return Ranking(self.encoder, vectors, wish, options, read)

    def _write(
        self,
        x: np.ndarray,
        words: Sequence[str],
        style: np.ndarray,
        seed: int,
        options: StoryOptions,
        captions: Sequence[Caption] = (),
        before: str = "",
        label: str = "",
        new_photo: bool = False,
        view: np.ndarray | None = None,
        own: Style | None = None,
    ) -> Iterator[Written]:
        """A passage as it grows.

        Args:
            x: Vector of what is seen [D].
            words: Content words to take up, most wanted first.
            style: b [D].
            captions: Of the newest photo.
            before: The story so far.
            label: The style's name.
            new_photo: Nothing was told of it yet.
            view: The newest photo's vector in the joint space [E], if it is known.
            own: The style, if it was given and not named.
        """
        mean, shown = self._styles[CAPTION_STYLE].vector, written_captions(captions)
        task = PassageTask(
            thought=shift_style(x, mean, style, options.strength),
            wish=Wish(x - mean, style if options.strength else None, tuple(words), before, view),
            seed=seed,
            options=options,
            label=label,
            captions=tuple(caption.text for caption in shown),
            perhaps=tuple(caption.text for caption in captions if caption not in shown)[:PERHAPS],
            new_photo=new_photo,
            own=own,
        )
        yield from self._writer(options).write(task)

    def _last_thought(self, text: str) -> np.ndarray:
        """Vector of the end of a text [D]."""
        return encode_passages(self.encoder, [split_sentences(text)[-PREVIOUS_SENTENCES:]])[0]

    # -- the whole path ----------------------------------------------------------------------------------------------
    def __call__(
        self,
        images: Any,
        style: str | Style | Mapping[str, float] | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> StoryResult | list[StoryResult]:
        """Captions and a story for a photo, or for each photo of a list (captioned in one batch).

        Args:
            images: Path, PIL image, bytes, array (see `load_image`), or a list of these.
            style: Name, blend `"romance:0.7,horror:0.3"`, mapping, or `Style`; None: the pipeline's first.
            seed: Reproduces the story; None draws one, which the result tells.
            options: Fields of `StoryOptions`.
        """
        self._options(options), self._style(style)  # unknown ones are refused before any work
        results = self.tell_regions(self._regions(load_images(images)), style, seed, **options)
        return results if isinstance(images, (list, tuple)) else results[0]

    def tell_regions(
        self,
        regions: torch.Tensor,
        style: str | Style | Mapping[str, float] | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> list[StoryResult]:
        """A call of the pipeline for photos of which the backbone's features [B, P, F] are known."""
        chosen, seed = self._options(options), check_seed(seed)
        captions, views = self.see_regions(regions, chosen), self.view_regions(regions, chosen)
        options.pop("captions", None)
        return [self.tell(c, style, seed, view, **options) for c, view in zip(captions, views, strict=True)]

    def tell(
        self,
        captions: Sequence[Caption | str],
        style: str | Style | Mapping[str, float] | None = None,
        seed: int | None = None,
        view: np.ndarray | None = None,
        **options: Any,
    ) -> StoryResult:
        """A story from captions already there, the pipeline's or a person's own sentences.

        Args:
            captions: What it is about.
            style, seed, options: As in a call of the pipeline.
            view: The photo's vector, of `views`: the story is then chosen by the photo itself too. A call of the
                pipeline does so.
        """
        chosen, seed, captions = self._options(options), check_seed(seed), as_captions(captions)
        label, _ = self._style(style)
        *_, written = self._tell(captions, style, seed, chosen, view)
        return StoryResult(
            captions=captions,
            style=label,
            story=lyric_lines(written.text) if chosen.lyrics else written.text,
            seed=seed,
            choices=written.choices,
            title=written.title,
            follows=written.follows,
        )

    def stream(
        self,
        captions: Sequence[Caption | str],
        style: str | Style | Mapping[str, float] | None = None,
        seed: int | None = None,
        view: np.ndarray | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """The growing text of the story that `tell` gives, word by word; the last item is the whole story."""
        chosen, seed, captions = self._options(options), check_seed(seed), as_captions(captions)
        for text in growing_words(written.text for written in self._tell(captions, style, seed, chosen, view)):
            yield lyric_lines(text) if chosen.lyrics else text

    def _tell(
        self,
        captions: Sequence[Caption],
        style: str | Style | Mapping[str, float] | None,
        seed: int,
        o: StoryOptions,
        view: np.ndarray | None,
    ) -> Iterator[Written]:
        texts = [caption.text for caption in captions]
        label, vector = self._style(style)
        words = self._wanted(captions)
        own = style if isinstance(style, Style) else None
        about = {"captions": captions, "label": label, "new_photo": True, "view": view, "own": own}
        yield from self._write(self.think(texts), words, vector, seed, o, **about)

    def _style(self, style: str | Style | Mapping[str, float] | None) -> tuple[str, np.ndarray]:
        """Label and vector of what a caller asked for."""
        if isinstance(style, Style):
            style.check_encoder(self._fingerprint)
        return parse_style(next(iter(self.styles)) if style is None else style, self.styles)

    @staticmethod
    def _wanted(captions: Sequence[Caption]) -> list[str]:
        """Words that a story about a photo should take up: of what was written or said about it, not remembered."""
        return content_words([caption.text for caption in written_captions(captions)], CONTENT_WORDS)

    def _options(self, changes: Mapping[str, Any]) -> StoryOptions:
        known = {f.name for f in dataclasses.fields(StoryOptions)}
        for name in changes:
            if name not in known:
                raise PictaleError(f"There is no option '{name}': choose from {', '.join(sorted(known))}.")
        chosen = dataclasses.replace(self.options, **changes).resolved()
        if chosen.writer not in self.writers:
            chosen = dataclasses.replace(chosen, writer=self.open_writer(chosen.writer))
        self._writer(chosen).prepare()  # one that cannot be used is refused before any work
        return chosen
