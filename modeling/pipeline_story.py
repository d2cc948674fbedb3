"""Photo in, captions and a story out: the one call over all the models.

    photo -> captioner -> captions -> skip-thought encoder -> x -> x - c + s*b -> story decoder -> candidates -> story

Every arrow is a method that can be called alone: `caption`, `think`, `shift`, `write`, `tell`, `stream`.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from .errors import ImageError, PictaleError
from .image_processing_captioner import PictaleImageProcessor
from .images import load_image
from .model_folder import component_folder, load_component, read_pipeline_file, resolve_pipeline
from .modeling_captioner import PictaleCaptionerForConditionalGeneration
from .modeling_skip_thoughts import PictaleSkipThoughtsEncoder
from .modeling_story_decoder import PictaleStoryDecoderForConditionalGeneration
from .sampling import SamplingOptions, sample_passages
from .story_types import Candidate, Caption, StoryOptions, StoryResult
from .styles import Style, encode_passages, encoder_fingerprint, make_style, parse_style, shift_style
from .text import clean_text, content_words, is_content_word, split_sentences
from .tokenization import whole_words

MAX_SEED = 2**31 - 1
CAPTION_STYLE = "caption"


class StoryPipeline:
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
        decoder: PictaleStoryDecoderForConditionalGeneration,
        decoder_tokenizer: Any,
        styles: Sequence[Style],
        options: StoryOptions | None = None,
    ) -> None:
        """Put a pipeline together from loaded parts; `styles` must contain one named `caption`, the c of the shift."""
        self.captioner = captioner.prepare_for_inference()
        self.image_processor, self.caption_tokenizer = image_processor, caption_tokenizer
        self.encoder = encoder.eval()
        self.encoder.tokenizer = encoder_tokenizer
        self.decoder, self.decoder_tokenizer = decoder.eval(), decoder_tokenizer
        self.options = options or StoryOptions()
        self._fingerprint = encoder_fingerprint(encoder)
        vocabulary = self.decoder_tokenizer.convert_ids_to_tokens(range(len(self.decoder_tokenizer)))
        self._content_mask = torch.tensor([float(is_content_word(w)) for w in vocabulary], device=decoder.device)
        self._styles: dict[str, Style] = {}
        for style in styles:
            self.add_style(style)
        if CAPTION_STYLE not in self._styles:
            raise PictaleError("A pipeline needs a style named 'caption', the mean of captions in general.")

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> StoryPipeline:
        """Load a pipeline: the embedded default, a folder, or a Hub repository.

        Raises:
            ModelFolderError: nothing there, or a file missing or damaged; the message names it.
        """
        hub = {"revision": revision, "cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
        folder = resolve_pipeline(name_or_path, **hub)
        description = read_pipeline_file(folder)
        hub["revision"] = None  # a revision names a commit of the pipeline's repository, not of its components'
        places = {part: component_folder(folder, name, **hub) for part, name in description["components"].items()}

        def model(cls_: type, part: str) -> Any:
            return load_component(cls_.from_pretrained, places[part], part, dtype=dtype).to(device)

        def tokenizer(part: str) -> Any:
            return load_component(AutoTokenizer.from_pretrained, places[part], f"{part}'s tokenizer", weights=False)

        return cls(
            captioner=model(PictaleCaptionerForConditionalGeneration, "captioner"),
            image_processor=load_component(
                PictaleImageProcessor.from_pretrained, places["captioner"], "image processor", weights=False
            ),
            caption_tokenizer=tokenizer("captioner"),
            encoder=model(PictaleSkipThoughtsEncoder, "encoder"),
            encoder_tokenizer=tokenizer("encoder"),
            decoder=model(PictaleStoryDecoderForConditionalGeneration, "decoder"),
            decoder_tokenizer=tokenizer("decoder"),
            styles=[Style.load(folder / "styles" / f"{name}.safetensors") for name in description["styles"]],
            options=StoryOptions(**description.get("options", {})),
        )

    # -- styles ------------------------------------------------------------------------------------------------------
    @property
    def styles(self) -> dict[str, Style]:
        """The styles a story can be told in, by name."""
        return {name: style for name, style in self._styles.items() if name != CAPTION_STYLE}

    def add_style(self, style: Style) -> None:
        """Make a style known to this pipeline. Raises StyleError if it belongs to another encoder."""
        style.check_encoder(self._fingerprint)
        self._styles[style.name] = style

    def make_style(self, text: str, name: str, **kwargs: Any) -> Style:
        """A style from a text, see `modeling.styles.make_style`; the pipeline does not keep it until `add_style`."""
        return make_style(text, name, self.encoder, **kwargs)

    # -- seeing ------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def caption(
        self, images: Any, num_captions: int | None = None, num_beams: int | None = None
    ) -> list[tuple[Caption, ...]]:
        """Captions of photos, best first, each word with its attention map.

        Args:
            images: Whatever `load_image` takes, or a list of that.
            num_captions, num_beams: See `StoryOptions`.

        Raises:
            ImageError: something that cannot be used as a photo, or an empty list.
        """
        photos = [load_image(image) for image in _as_list(images)]
        if not photos:
            raise ImageError("No photo was given: pass at least one.")
        count = num_captions or self.options.num_captions
        beams = max(num_beams or self.options.caption_beams, count)
        pixels = self.image_processor(photos, return_tensors="pt").pixel_values.to(self.captioner.device)
        encoded = self.captioner.encoder(pixels.to(self.captioner.dtype))
        sequences = self.captioner.generate(
            encoder_outputs=encoded, num_beams=beams, num_return_sequences=count, do_sample=False
        )  # [images * count, T]
        owner = torch.arange(len(photos), device=sequences.device).repeat_interleave(count)
        log_probs, attention = self.captioner.score(sequences, encoder_outputs=encoded, image_index=owner)
        captions = [
            self._caption(ids, log_prob, maps)
            for ids, log_prob, maps in zip(sequences, log_probs, attention, strict=True)
        ]
        return [tuple(captions[i : i + count]) for i in range(0, len(captions), count)]

    def _caption(self, ids: torch.Tensor, log_probs: torch.Tensor, maps: torch.Tensor) -> Caption:
        special = set(self.caption_tokenizer.all_special_ids)
        places = [i for i, token in enumerate(ids[1:].tolist()) if token not in special]
        spelt = whole_words(self.caption_tokenizer.convert_ids_to_tokens(ids[1:][places]))
        words = [word for word, _ in spelt]
        maps = torch.stack([maps[places][parts].mean(0) for _, parts in spelt]) if spelt else maps[:0]  # [words, P]
        length = int(log_probs.ne(0).sum().clamp_min(1))  # words and the end
        rows, columns = self.captioner.grid_size
        return Caption(
            text=clean_text(" ".join(words)),
            score=float(log_probs.sum() / length),
            words=tuple(words),
            attention=maps.reshape(-1, rows, columns).cpu().numpy(),
        )

    # -- thinking ----------------------------------------------------------------------------------------------------
    def think(self, texts: Sequence[str]) -> np.ndarray:
        """Mean skip-thought vector of sentences: x, [D]."""
        return encode_passages(self.encoder, [[text for text in texts if text.strip()]])[0]

    def shift(self, x: np.ndarray, style: str | Style | Mapping[str, float], strength: float = 1.0) -> np.ndarray:
        """x - c + strength * b, [D]."""
        return shift_style(x, self._styles[CAPTION_STYLE].vector, self._style(style)[1], strength)

    # -- writing -----------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def write(
        self,
        thought: np.ndarray,
        content: Sequence[str] = (),
        previous: np.ndarray | None = None,
        seed: int = 0,
        options: StoryOptions | None = None,
        style: np.ndarray | None = None,
    ) -> list[Candidate]:
        """Candidates for one passage, best first.

        Args:
            thought: Shifted vector [D].
            content: Words to work in.
            previous: Vector of the passage before [D], or None at the beginning.
            seed: Reproduces the candidates.
            options: Those of the pipeline if None.
            style: The style's vector [D], to rank by; None ranks without style.
        """
        options = options or self.options
        known = self._content_ids(content)
        device = self.decoder.device
        conditions = self.decoder.conditions(
            torch.from_numpy(thought)[None].to(device),
            None if previous is None else torch.from_numpy(previous)[None].to(device),
            torch.tensor([[*known.values()] or [0]], device=device),
        )
        sequences = sample_passages(
            self.decoder,
            conditions,
            options.candidates,
            torch.Generator(device).manual_seed(seed),
            SamplingOptions(**{f.name: getattr(options, f.name) for f in dataclasses.fields(SamplingOptions)}),
            self._content_mask,
        )  # [candidates, T]
        fluency = self.decoder.score(conditions, sequences).tolist()
        texts = [self._finish(ids) for ids in sequences]
        return self._rank(texts, fluency, thought, list(known), style, options)

    def _content_ids(self, words: Sequence[str]) -> dict[str, int]:
        """Words the decoder knows, with their ids; a name known only with a capital counts too."""
        found = {}
        for word in words:
            for form in (word, word.capitalize()):
                known = self.decoder_tokenizer.convert_tokens_to_ids(form)
                if known != self.decoder_tokenizer.unk_token_id:
                    found[word] = known
                    break
        return found

    def _finish(self, ids: torch.Tensor) -> str:
        """Readable text; a passage cut off by the length limit ends with its last whole sentence."""
        text = self.decoder_tokenizer.decode(ids, skip_special_tokens=True)
        if ids[-1] not in (self.decoder.config.eos_token_id, self.decoder.config.pad_token_id):
            ends = [text.rfind(mark) for mark in (".", "!", "?")]
            if max(ends) > len(text) // 3:
                closing = 2 if text[max(ends) + 1 : max(ends) + 3] == " ”" else 0
                text = text[: max(ends) + 1 + closing]
        return clean_text(text)

    def _rank(
        self,
        texts: list[str],
        fluency: list[float],
        thought: np.ndarray,
        shown: list[str],
        style: np.ndarray | None,
        options: StoryOptions,
    ) -> list[Candidate]:
        caption_mean = self._styles[CAPTION_STYLE].vector
        base = caption_mean if style is None else style
        vectors = encode_passages(self.encoder, [split_sentences(text) or [text] for text in texts])
        candidates = []
        for text, vector, log_prob in zip(texts, vectors, fluency, strict=True):
            used = set(content_words([text]))
            scores = {
                "grounding": len(used & set(shown)) / max(len(shown), 1),
                "likeness": _cosine(vector - base, thought - base),
                "style": 0.0 if style is None else _cosine(vector - caption_mean, style - caption_mean),
                "fluency": log_prob,
                "repetition": _repeated_trigrams(text),
            }
            score = (
                options.grounding * (scores["grounding"] + 0.5 * scores["likeness"])
                + options.style * scores["style"]
                + options.fluency * (0.5 * scores["fluency"] - scores["repetition"])
            )
            candidates.append(Candidate(text, score, scores))
        return sorted(candidates, key=lambda c: -c.score)

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
        chosen = self._options(options)
        self._style(style)  # an unknown one is refused before any work
        captions = self.caption(images, chosen.num_captions, chosen.caption_beams)
        seed = _seed(seed)
        results = [self.tell(c, style=style, seed=seed, **options) for c in captions]
        return results if isinstance(images, (list, tuple)) else results[0]

    def tell(
        self,
        captions: Sequence[Caption | str],
        style: str | Style | Mapping[str, float] | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> StoryResult:
        """A story from captions already there, the pipeline's or a person's own sentences."""
        passages = list(self.passages(captions, style, seed := _seed(seed), **options))
        label, _ = self._style(style)
        captions = _as_captions(captions)
        return StoryResult(
            captions=captions,
            style=label,
            story=" ".join(candidates[0].text for candidates in passages),
            seed=seed,
            candidates=tuple(passages[0]),
            content_words=tuple(self._content_ids(self._words_to_show(captions, self._options(options)))),
        )

    def stream(
        self,
        captions: Sequence[Caption | str],
        style: str | Style | Mapping[str, float] | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """The growing text of the story that `tell` gives, word by word; the last item is the whole story."""
        story = ""
        for candidates in self.passages(captions, style, seed, **options):
            for word in candidates[0].text.split():
                story = f"{story} {word}" if story else word
                yield story

    def passages(
        self,
        captions: Sequence[Caption | str],
        style: str | Style | Mapping[str, float] | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> Iterator[list[Candidate]]:
        """The candidates of one passage after the other; the first of each is the one the story is made of."""
        chosen, seed = self._options(options), _seed(seed)
        captions = _as_captions(captions)
        _, style_vector = self._style(style)
        x = self.think([caption.text for caption in captions])
        thought = shift_style(x, self._styles[CAPTION_STYLE].vector, style_vector, chosen.strength)
        words, previous = self._words_to_show(captions, chosen), None
        for part in range(chosen.passages):
            candidates = self.write(thought, words, previous, (seed + part) % MAX_SEED, chosen, style_vector)
            yield candidates
            text = candidates[0].text
            previous = encode_passages(self.encoder, [split_sentences(text) or [text]])[0]
            # what has been told once is background; what has not yet been is asked for first
            told = set(content_words([text]))
            words = [w for w in words if w not in told] + [w for w in words if w in told][:2]

    def _style(self, style: str | Style | Mapping[str, float] | None) -> tuple[str, np.ndarray]:
        """Label and vector of what a caller asked for."""
        if isinstance(style, Style):
            style.check_encoder(self._fingerprint)
        return parse_style(next(iter(self.styles)) if style is None else style, self.styles)

    def _words_to_show(self, captions: Sequence[Caption], options: StoryOptions) -> list[str]:
        return content_words([caption.text for caption in captions], options.content_words)

    def _options(self, changes: Mapping[str, Any]) -> StoryOptions:
        known = {f.name for f in dataclasses.fields(StoryOptions)}
        for name in changes:
            if name not in known:
                raise PictaleError(f"There is no option '{name}': choose from {', '.join(sorted(known))}.")
        return dataclasses.replace(self.options, **changes)


def _as_list(images: Any) -> list[Any]:
    return list(images) if isinstance(images, (list, tuple)) else [images]


def _as_captions(captions: Sequence[Caption | str]) -> tuple[Caption, ...]:
    given = tuple(c if isinstance(c, Caption) else Caption(c, 0.0) for c in captions)
    if not any(c.text.strip() for c in given):
        raise PictaleError("There is no caption to tell a story about: give at least one sentence.")
    return given


def _seed(seed: int | None) -> int:
    if seed is None:
        return random.SystemRandom().randrange(MAX_SEED)
    if not 0 <= int(seed) <= MAX_SEED:
        raise PictaleError(f"The seed must be a whole number from 0 to {MAX_SEED}, not {seed}.")
    return int(seed)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-8))


def _repeated_trigrams(text: str) -> float:
    words = text.lower().split()
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0
