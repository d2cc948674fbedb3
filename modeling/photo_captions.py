"""Captions of photos: the captioner's beams, of which those are chosen that the photo itself agrees with.

Beam search ends in near-equal sentences, and their order by probability is much a matter of taste. A joint embedding,
which has seen how people's captions lie to photos, knows better which of them is about this one (as the deep
multimodal similarity by which Fang et al., arXiv:1411.4952, rank theirs). Each further caption is to say something else
than those before (maximal marginal relevance, Carbonell and Goldstein, 1998):

    log p(caption) / words + w (cos(photo, caption) - 1/2 max_j cos(caption, caption_j))      j: those chosen already

and one whose content words another has already ("on a beach" after "at the beach") comes after those that add a word.
Without a joint embedding, or with w = 0, captions come in the order of the beams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .images import load_images
from .story_types import Caption
from .text import clean_text, content_words
from .tokenization import whole_words
from .word_forms import base_form

if TYPE_CHECKING:
    from .modeling_captioner import PictaleCaptionerForConditionalGeneration
    from .modeling_joint_embedding import PictaleJointEmbedding
    from .story_types import StoryOptions

SAID_ALREADY = 0.5  # the 1/2 above
LAST = 1e3  # more than captions differ by


class PhotoCaptions:
    """What `StoryPipeline` does with its captioner; expects `_regions`, which looks at photos."""

    captioner: PictaleCaptionerForConditionalGeneration
    caption_tokenizer: Any
    embedding: PictaleJointEmbedding | None
    options: StoryOptions

    def caption(
        self, images: Any, num_captions: int | None = None, num_beams: int | None = None, picture: float | None = None
    ) -> list[tuple[Caption, ...]]:
        """Captions of photos, best first, each word with its attention map.

        Args:
            images: Whatever `load_image` takes, or a list of that.
            num_captions, num_beams, picture: `num_captions`, `caption_beams` and `caption_picture` of `StoryOptions`.

        Raises:
            ImageError: something that cannot be used as a photo, or an empty list.
        """
        return self.caption_regions(self._regions(load_images(images)), num_captions, num_beams, picture)

    @torch.no_grad()
    def caption_regions(
        self,
        regions: torch.Tensor,
        num_captions: int | None = None,
        num_beams: int | None = None,
        picture: float | None = None,
    ) -> list[tuple[Caption, ...]]:
        """`caption` of the backbone's features of photos, [B, P, F]."""
        count = num_captions or self.options.num_captions
        beams = max(num_beams or self.options.caption_beams, count)
        weight = self.options.caption_picture if picture is None else picture
        chooses = self.embedding is not None and weight != 0 and beams > count
        pool = beams if chooses else count
        encoded = self.captioner.encoder(region_features=regions)
        sequences = self.captioner.generate(
            encoder_outputs=encoded, num_beams=beams, num_return_sequences=pool, do_sample=False
        )  # [B * pool, T]
        owner = torch.arange(len(regions), device=sequences.device).repeat_interleave(pool)
        log_probs, attention = self.captioner.score(sequences, encoder_outputs=encoded, image_index=owner)
        captions = [
            self._caption(ids, log_prob, maps)
            for ids, log_prob, maps in zip(sequences, log_probs, attention, strict=True)
        ]
        groups = [captions[i : i + pool] for i in range(0, len(captions), pool)]
        if not chooses:
            return [tuple(group) for group in groups]
        views = self.embedding.embed_images(regions)  # [B, E]
        said = self.embedding.embed_texts([caption.text for caption in captions]).reshape(len(groups), pool, -1)
        return [self._most_apt(*parts, count, weight) for parts in zip(groups, views, said, strict=True)]

    @staticmethod
    def _most_apt(
        group: list[Caption], view: np.ndarray, texts: np.ndarray, count: int, weight: float
    ) -> tuple[Caption, ...]:
        words = [frozenset(base_form(word) for word in content_words([caption.text])) for caption in group]
        chosen = most_apt([c.score for c in group], texts @ view, texts @ texts.T, words, count, weight)
        return tuple(group[i] for i in chosen)

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


def most_apt(
    scores: Sequence[float],
    near: np.ndarray,
    alike: np.ndarray,
    words: Sequence[frozenset[str]],
    count: int,
    weight: float,
) -> list[int]:
    """The captions to give, best first.

    Args:
        scores: Mean log-probability of each of n captions.
        near, alike: Their cosines to the photo [n] and to each other [n, n].
        words: The content words of each.
        count: How many, at most n.
        weight: w, see the head of this file.
    """
    worth = np.asarray(scores) + weight * near
    chosen = [int(worth.argmax())]
    while len(chosen) < count:
        fresh = worth - weight * SAID_ALREADY * alike[:, chosen].max(1)
        fresh[[i for i, own in enumerate(words) if any(own <= words[j] for j in chosen)]] -= LAST
        fresh[chosen] = -np.inf
        chosen.append(int(fresh.argmax()))
    return chosen
