"""Seeing by memory: the sentences of a bank that lie nearest to a photo, and the photos nearest to a sentence.

The methods of `StoryPipeline` that need a joint embedding. It looks through the captioner's backbone: the features of
the last few photos are kept, so that captions and nearest sentences of a photo look at it once, whichever is asked for
first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .caption_bank import CaptionBank
from .caption_text import normalise_caption
from .errors import ImageError, ModelFolderError, PictaleError, TextError
from .images import load_images
from .model_folder import load_component
from .modeling_joint_embedding import PictaleJointEmbedding
from .neighbours import Neighbour
from .photo_search import FoundPhoto, PhotoIndex
from .story_types import NEURAL_STORYTELLER, Caption, StoryOptions
from .text import clean_text
from .words import split_words

KEPT_PHOTOS = 16


class PhotoRetrieval:
    """What `StoryPipeline` does with a joint embedding; expects `captioner`, `image_processor`, `caption_regions`."""

    embedding: PictaleJointEmbedding | None = None
    _bank: CaptionBank | None = None
    _bank_folder: Path | None = None
    _seen: dict[bytes, torch.Tensor]
    _seen_by: Any = None
    _embedding_fingerprint: str = ""
    _why_not: str = "This pipeline has no joint embedding: name one as 'embedding' in its pipeline.json."

    def set_embedding(self, embedding: PictaleJointEmbedding, bank: CaptionBank | str | Path | None = None) -> None:
        """See by memory with this joint embedding from now on.

        Args:
            embedding: Trained on the features of this pipeline's captioner.
            bank: Sentences to retrieve, or the folder that holds them (opened when it is first needed).

        Raises:
            ModelFolderError: it belongs to another captioner's backbone, or the bank to another embedding.
        """
        embedding.look_through(self.captioner)
        if embedding.config.sentence_encoder == "skip-thoughts":
            embedding.read_with(self.encoder)
        if isinstance(bank, CaptionBank):
            bank.check_embedding(embedding.fingerprint())
        self.embedding, self._embedding_fingerprint = embedding.eval(), embedding.fingerprint()
        self._bank, self._bank_folder = (bank, None) if isinstance(bank, CaptionBank) else (None, bank and Path(bank))

    def load_embedding(self, folder: str | Path, device: str | torch.device = "cpu", **load: Any) -> None:
        """`set_embedding` from a model folder that also holds its caption bank.

        One that belongs to another captioner's backbone is left out: the pipeline does everything else without it, and
        what would need it says why it is not there.

        Raises:
            ModelFolderError: a file is missing or damaged.
        """
        folder = Path(folder)
        embedding = load_component(PictaleJointEmbedding.from_pretrained, folder, "joint embedding", **load)
        if embedding.config.sentence_encoder == "gru":  # else it reads with the pipeline's encoder
            load_component(lambda _: embedding.tokenizer, folder, "joint embedding's tokenizer", weights=False)
        try:
            self.set_embedding(embedding.to(device), folder)
        except ModelFolderError as error:
            self.embedding, self._why_not = None, str(error)

    @property
    def can_retrieve(self) -> bool:
        """Whether `nearest_sentences` and `captions="retrieve"` work here; the page shows them only then."""
        try:
            return len(self.bank) > 0
        except ModelFolderError:
            return False

    @property
    def bank(self) -> CaptionBank:
        """The sentences that photos bring to mind, read at first use.

        Raises:
            ModelFolderError: there is no joint embedding, or no bank that belongs to it.
        """
        embedding = self._embedding()
        if self._bank is None:
            if self._bank_folder is None:
                raise ModelFolderError("There is no caption bank: give sentences with `use_sentences`.")
            bank = CaptionBank.load(self._bank_folder)
            bank.check_embedding(embedding.fingerprint())
            self._bank = bank
        return self._bank

    def use_sentences(
        self, sentences: CaptionBank | str | Path | Iterable[str], progress: Callable[[float, str], None] | None = None
    ) -> CaptionBank:
        """Sentences of your own in place of the bank's.

        Args:
            sentences: A list of sentences; a text file with one in each line; a bank, or its folder.
            progress: Called with the share done and what is being done.

        Returns:
            The bank, which `save(folder)` keeps with its vectors.

        Example:
            >>> pipe.use_sentences(["Grandmother's garden in May.", "The boat we had that summer."])
            >>> pipe.nearest_sentences("photo.jpg", k=1)
        """
        embedding = self._embedding()
        if isinstance(sentences, (str, Path)):
            place = Path(sentences)
            sentences = CaptionBank.load(place) if place.is_dir() else _lines(place)
        if isinstance(sentences, CaptionBank):
            sentences.check_embedding(embedding.fingerprint())
            self._bank = sentences
        else:
            self._bank = CaptionBank.from_sentences(sentences, embedding, progress=progress)
        return self._bank

    def nearest_sentences(self, images: Any, k: int = 10) -> list[list[Neighbour]]:
        """What photos bring to mind: for each the k nearest sentences of the bank, best first.

        Cheap beside `caption` (a few milliseconds): the backbone looks at each photo once for both. A page shows them
        like this:

            if pipe.can_retrieve:
                for text, similarity, _ in pipe.nearest_sentences(photo, k=5)[0]:
                    print(f"{similarity:.2f}  {text}")

        The similarity is a cosine, -1 to 1; what counts as near depends on the embedding, about 0.6 for the one of
        hub_configs/joint-embedding-flickr8k. `similarities` shows how near sentences of the user's own are.

        Args:
            images: Whatever `load_image` takes, or a list of that.
            k: Sentences for each photo; those that say the same as a nearer one are left out.

        Raises:
            ImageError: something that cannot be used as a photo, or an empty list.
            ModelFolderError: the pipeline has no joint embedding or no bank.
        """
        bank = self.bank
        return bank.nearest(self.embed_photos(images), k)

    def similarities(self, images: Any, sentences: str | Sequence[str]) -> np.ndarray:
        """Cosine of every photo and every sentence (one, or a list), float32 [photos, sentences]."""
        embedding = self._embedding()
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        return embedding.similarity(self.embed_photos(images), embedding.embed_texts(texts))

    def search(
        self,
        folder: str | Path,
        text: str,
        k: int = 10,
        index: str | Path | None = None,
        progress: Callable[[float, str], None] | None = None,
    ) -> list[FoundPhoto]:
        """The photos of a folder (and the folders in it) that a sentence tells of, best first.

        The first search of a folder looks at all its photos; what was seen is kept in the user's cache (`PICTALE_CACHE`
        or ~/.cache/pictale), so later ones look only at new or changed ones.

        Args:
            folder: Where the photos are.
            text: A sentence: "two dogs play in the snow".
            k: At most so many.
            index: Folder to keep the index in, instead of the user's cache.
            progress: Called with the share done and what is being done.

        Raises:
            ImageError: no such folder, or no photo in it that can be read.
            TextError: nothing to search for.
        """
        embedding = self._embedding()
        if not isinstance(text, str) or not normalise_caption(text):
            raise TextError("There is nothing to search for: write a sentence such as 'two dogs play in the snow'.")
        if k < 1:
            raise TextError(f"k is the number of photos, 1 or more, not {k}.")
        photos, file = PhotoIndex.open(folder, embedding.fingerprint(), index)
        photos.update(self.embed_photos, file, progress)
        found = photos.nearest(embedding.embed_texts([text])[0], k)
        if not found:
            raise ImageError(f"{folder} holds no photo that can be read.")
        return found

    def embed_photos(self, images: Any) -> np.ndarray:
        """Vectors of photos in the joint space, float32 [photos, D], length 1."""
        embedding = self._embedding()
        return embedding.embed_images(self._regions(load_images(images)))

    def views(self, images: Any, options: StoryOptions | None = None) -> list[np.ndarray | None]:
        """What `tell` takes as `view`: `embed_photos`, or None for each if photos are not looked at so here."""
        photos = load_images(images)
        if not self._chooses_by_photo(options):  # then nothing needs to be looked at
            return [None] * len(photos)
        return self.view_regions(self._regions(photos), options)

    def view_regions(self, regions: torch.Tensor, options: StoryOptions | None = None) -> list[np.ndarray | None]:
        """`views` of the backbone's features of photos, [B, P, F]."""
        if not self._chooses_by_photo(options):
            return [None] * len(regions)
        return list(self._embedding().embed_images(regions))

    def _chooses_by_photo(self, options: StoryOptions | None) -> bool:
        options = options or self.options
        return self.embedding is not None and options.writer != NEURAL_STORYTELLER and bool(options.weight_picture)

    def _embedding(self) -> PictaleJointEmbedding:
        if self.embedding is None:
            raise ModelFolderError(self._why_not)
        return self.embedding

    # -- features, once a photo --------------------------------------------------------------------------------------
    @torch.no_grad()
    def _regions(self, photos: Sequence[Any]) -> torch.Tensor:
        """Backbone features [photos, P, F] of loaded images; those of the last few photos are kept."""
        if not photos:
            raise ImageError("No photo was given: pass at least one.")
        if self._seen_by is not self.captioner:  # features of another captioner mean something else
            self._seen, self._seen_by = {}, self.captioner
        keys = [hashlib.sha256(repr(photo.size).encode() + photo.tobytes()).digest() for photo in photos]
        known = {key: features for key in keys if (features := self._seen.get(key)) is not None}
        new = {key: photo for key, photo in zip(keys, photos, strict=True) if key not in known}
        if new:
            pixels = self.image_processor(list(new.values()), return_tensors="pt").pixel_values
            found = self.captioner.encoder.extract(
                pixels.to(self.captioner.device, self.captioner.dtype)
            )  # [new, P, F]
            known |= zip(new, found, strict=True)
        for key in keys[-KEPT_PHOTOS:]:
            self._seen.pop(key, None)  # so that it becomes the newest
            self._seen[key] = known[key].clone() if key in new else known[key]  # else it would keep its whole batch
        for key in list(self._seen)[:-KEPT_PHOTOS]:
            self._seen.pop(key, None)
        return torch.stack([known[key] for key in keys])

    # -- captions of all kinds ---------------------------------------------------------------------------------------
    def see(self, images: Any, options: StoryOptions | None = None) -> list[tuple[Caption, ...]]:
        """Captions of photos as `options.captions` says: written, remembered, or both, the written ones first.

        Raises:
            ImageError: something that cannot be used as a photo, or an empty list.
            ModelFolderError: `options.captions` is `retrieve`, and there are no sentences to remember.
        """
        return self.see_regions(self._regions(load_images(images)), options)

    def see_regions(self, regions: torch.Tensor, options: StoryOptions | None = None) -> list[tuple[Caption, ...]]:
        """`see` of the backbone's features of photos, [B, P, F]."""
        options = (options or self.options).resolved()
        written = remembered = [()] * len(regions)
        if options.captions != "retrieve":
            how = (options.num_captions, options.caption_beams, options.caption_picture)
            written = self.caption_regions(regions, *how)
        if options.captions == "retrieve" or options.captions == "both" and self.can_retrieve:
            nearest = self.bank.nearest(self._embedding().embed_images(regions), options.nearest_sentences)
            remembered = [tuple(_as_caption(found) for found in near) for near in nearest]
        return [(*one, *other) for one, other in zip(written, remembered, strict=True)]


def _as_caption(found: Neighbour) -> Caption:
    text = clean_text(found.text)
    return Caption(text, found.similarity, tuple(split_words(text, lowercase=True)), remembered=True)


def _lines(path: Path) -> list[str]:
    """Lines of a text file that say something."""
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise PictaleError(
            f"Cannot read sentences from {path} ({reason}): give a text file with a sentence in each line, or a list."
        ) from None
