"""Photographs and sentences in one space, where what belongs together lies close: seeing by memory.

Kiros et al., arXiv:1411.2539; github.com/ryankiros/visual-semantic-embedding. With the captioner's backbone features
a_1 .. a_P of a photograph and the words of a sentence,

    p = [mean_i a_i ; sum_i alpha_1i a_i ; ...],  alpha_h = softmax_i(w_h . a_i)        pooled regions
    v = l2(W l2(p)),   s = l2(U h),   score = v . s                  h: last state of a GRU, or a skip-thought vector

The backbone is the captioner's and is not part of the model, so that a photograph is looked at once for both. Which
weights the features must come from is kept in the configuration.

Shapes: B photographs, R sentences, P regions, F feature width, N attention heads, K pooled parts, T tokens, E word
width, H state width, D common width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers import initialization as init
from transformers.utils import ModelOutput

from .caption_text import normalise_caption
from .configuration_joint_embedding import PictaleJointEmbeddingConfig
from .errors import ImageError, ModelFolderError
from .fingerprints import backbone_fingerprint, encoder_fingerprint
from .packed_recurrence import last_states, token_batches
from .recurrent import initialize_recurrent


@dataclass
class JointEmbeddingOutput(ModelOutput):
    """Args:
    image_embeds: [B, D], length 1, where photographs were given.
    text_embeds: [R, D], length 1, where sentences were given.
    """

    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None


class RegionPooling(nn.Module):
    """A photograph's regions -> one vector of K * F numbers and length sqrt(F)."""

    def __init__(self, config: PictaleJointEmbeddingConfig) -> None:
        super().__init__()
        self.with_mean = config.image_pooling != "attention"
        heads = config.attention_heads if config.image_pooling != "mean" else 0
        self.scores = nn.Linear(config.feature_size, heads, bias=False) if heads else None
        self.size = (heads + self.with_mean) * config.feature_size

    def forward(self, regions: torch.Tensor) -> torch.Tensor:
        """[B, P, F] -> [B, K * F]"""
        parts = [regions.mean(1, keepdim=True)] if self.with_mean else []
        if self.scores is not None:
            alpha = self.scores(regions).softmax(1)  # [B, P, N]
            parts.append(alpha.transpose(1, 2) @ regions)  # [B, N, F]
        pooled = torch.cat(parts, 1).flatten(1)  # [B, K * F]
        return nn.functional.normalize(pooled, dim=-1) * math.sqrt(regions.size(-1))


class PictaleJointEmbedding(PreTrainedModel):
    """Vectors of photographs and sentences that can be compared.

    Example:
        >>> captioner = AutoModelForImageTextToText.from_pretrained("hub_configs/captioner-flickr8k")
        >>> model = AutoModel.from_pretrained("hub_configs/joint-embedding-flickr8k").look_through(captioner)
        >>> pixels = AutoImageProcessor.from_pretrained("hub_configs/captioner-flickr8k")(photos, return_tensors="pt")
        >>> images = model.embed_images(pixel_values=pixels.pixel_values)
        >>> model.similarity(images, model.embed_texts(["A dog runs on the beach.", "A man climbs a rock."]))
    """

    config_class = PictaleJointEmbeddingConfig
    base_model_prefix = "embedding"
    main_input_name = "region_features"

    def __init__(self, config: PictaleJointEmbeddingConfig) -> None:
        super().__init__(config)
        self.pooling = RegionPooling(config)
        self.image = nn.Linear(self.pooling.size, config.embedding_size)
        if config.sentence_encoder == "gru":
            self.words = nn.Embedding(config.vocab_size, config.word_size, padding_idx=config.pad_token_id)
            self.gru = nn.GRU(config.word_size, config.hidden_size, batch_first=True)
        self.sentence = nn.Linear(config.hidden_size, config.embedding_size)
        self.image_dropout = nn.Dropout(config.image_dropout)
        self.sentence_dropout = nn.Dropout(config.sentence_dropout)
        self._lent: dict[str, nn.Module] = {}  # other models' parts; in a dict they are no submodules, nor are saved
        self._tokenizer: Any = None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.GRU):
            initialize_recurrent(module)
        elif isinstance(module, nn.Linear):
            init.zeros_(module.weight) if module is self.pooling.scores else init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            weight = torch.empty(module.weight.shape).normal_(0, 0.4)  # about as large as the numbers of GloVe
            weight[module.padding_idx] = 0
            init.copy_(module.weight, weight)

    # -- what it shares with other models ----------------------------------------------------------------------------
    def fingerprint(self) -> str:
        """Twelve hex digits of these weights, which a caption bank made with them carries."""
        return encoder_fingerprint(self)

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """As every model's; the fingerprint goes with the config."""
        self.config.fingerprint = self.fingerprint()
        super().save_pretrained(save_directory, **kwargs)

    def check_backbone(self, captioner: nn.Module) -> None:
        """Raise ModelFolderError unless the captioner's backbone has the weights whose features this model knows."""
        expected, encoder = self.config.backbone_fingerprint, captioner.encoder
        found = backbone_fingerprint(encoder.backbone, captioner.config)
        if encoder.backbone.channels != self.config.feature_size or expected not in ("", found):
            raise ModelFolderError(
                f"This joint embedding was trained on the features of another backbone ({self.config.backbone}, "
                f"{expected or 'any'}) than this captioner's ({captioner.config.backbone}, {found}): train it anew "
                "with `python -m training.train_joint_embedding RECIPE.json --set captioner=FOLDER`."
            )

    def look_through(self, captioner: nn.Module) -> PictaleJointEmbedding:
        """Take photographs as pixels from now on, through the backbone of `captioner`.

        Raises:
            ModelFolderError: its backbone has other weights than the one this model was trained on.
        """
        self.check_backbone(captioner)
        self._lent["eyes"] = captioner.encoder
        return self

    def read_with(self, encoder: nn.Module) -> PictaleJointEmbedding:
        """Give a model whose `sentence_encoder` is "skip-thoughts" the encoder it was trained with.

        Raises:
            ModelFolderError: the encoder has other weights.
        """
        expected, found = self.config.encoder_fingerprint, encoder_fingerprint(encoder)
        if encoder.config.hidden_size != self.config.hidden_size or expected not in ("", found):
            raise ModelFolderError(
                f"This joint embedding reads with another skip-thought encoder ({expected or 'any'} of "
                f"{self.config.hidden_size} numbers, not {found} of {encoder.config.hidden_size}): train it anew with "
                "this one."
            )
        self._lent["reader"] = encoder.eval().requires_grad_(False)
        return self

    @property
    def tokenizer(self) -> Any:
        """The vocabulary saved beside the weights (with "skip-thoughts" the encoder's), loaded at first use."""
        if self._tokenizer is None:
            folder = self.config.name_or_path
            self._tokenizer = self._lent["reader"].tokenizer if self._reads_thoughts else _load_tokenizer(folder)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def _reads_thoughts(self) -> bool:
        if self.config.sentence_encoder == "gru":
            return False
        if "reader" not in self._lent:
            raise ModelFolderError("This joint embedding reads with a skip-thought encoder: call read_with(encoder).")
        return True

    # -- the model ---------------------------------------------------------------------------------------------------
    def forward(
        self,
        region_features: torch.Tensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> JointEmbeddingOutput:
        """Embed photographs, sentences, or both.

        Args:
            region_features: Backbone features [B, P, F].
            input_ids: Sentences [R, T] as the tokenizer gives them, padded on the right.
            attention_mask: [R, T], 1 on tokens; None: everything but padding counts.
        """
        output = JointEmbeddingOutput()
        if region_features is not None:
            pooled = self.pooling(region_features.to(self.image.weight.dtype))  # [B, K * F]
            output.image_embeds = nn.functional.normalize(self.image(self.image_dropout(pooled)), dim=-1)
        if input_ids is not None:
            mask = input_ids.ne(self.config.pad_token_id) if attention_mask is None else attention_mask
            states = self._read(input_ids, mask.sum(1).clamp_min(1))  # [R, H]
            output.text_embeds = nn.functional.normalize(self.sentence(self.sentence_dropout(states)), dim=-1)
        return output

    def _read(self, ids: torch.LongTensor, lengths: torch.LongTensor) -> torch.Tensor:
        """What the sentence encoder makes of sentences [R, T]: [R, H]."""
        if self._reads_thoughts:
            steps = torch.arange(ids.size(1), device=ids.device)
            with torch.no_grad():
                thought = self._lent["reader"](ids, steps < lengths.unsqueeze(1)).thought
            return nn.functional.normalize(thought.to(self.sentence.weight.dtype), dim=-1)
        if self.training and self.config.word_dropout:
            dropped = torch.rand(ids.shape, device=ids.device) < self.config.word_dropout
            ids = ids.masked_fill(dropped & (ids > self.config.eos_token_id), self.config.unk_token_id)
        words = self.sentence_dropout(self.words(ids))  # [R, T, E]
        packed = pack_padded_sequence(words, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.gru(packed)[1][0]

    # -- vectors -----------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def embed_images(
        self, region_features: torch.Tensor | np.ndarray | None = None, pixel_values: torch.Tensor | None = None
    ) -> np.ndarray:
        """Photographs -> float32 [n, D], length 1, without dropout.

        Args:
            region_features: What the captioner's backbone gives, [n, P, F] (`captioner.encoder.extract(pixels)`), or
            pixel_values: [n, 3, h, w] from the captioner's image processor, after `look_through(captioner)`.

        Raises:
            ImageError: features of another shape, or pixels without a backbone to look through.
        """
        if region_features is None:
            if "eyes" not in self._lent:
                raise ImageError("This embedding has no backbone to look through: call look_through(captioner) first.")
            region_features = self._lent["eyes"].extract(pixel_values)
        features = torch.as_tensor(region_features).to(self.device)
        if features.ndim != 3 or features.size(-1) != self.config.feature_size:
            raise ImageError(
                f"This embedding takes regions of {self.config.feature_size} numbers, [photographs, regions, numbers], "
                f"not an array of the shape {tuple(features.shape)}."
            )
        with _evaluating(self):
            return self(region_features=features).image_embeds.float().cpu().numpy()

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], batch_tokens: int = 16384) -> np.ndarray:
        """Sentences -> float32 [n, D], length 1, in their order, without dropout. Case and punctuation do not count."""
        if isinstance(texts, str):
            raise TypeError("embed_texts takes a list of sentences; put the one sentence in a list.")
        tokenizer = self.tokenizer.backend_tokenizer
        limit, end = self.config.max_tokens, self.config.eos_token_id
        rows = [e.ids for e in tokenizer.encode_batch_fast([normalise_caption(text) for text in texts])]
        rows = [row if len(row) <= limit else [*row[: limit - 1], end] for row in rows]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        vectors = np.zeros((len(rows), self.config.embedding_size), dtype=np.float32)
        with _evaluating(self):
            for batch in token_batches(lengths, batch_tokens, max(len(rows), 1)):
                ids = np.full((len(batch), lengths[batch[0]]), self.config.pad_token_id, dtype=np.int64)  # [b, T]
                for i, row in enumerate(batch):
                    ids[i, : lengths[row]] = rows[row]
                vectors[batch] = self._text_vectors(ids, lengths[batch]).float().cpu().numpy()
        return vectors

    def _text_vectors(self, ids: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
        """Sentences [b, T] from the longest to the shortest -> [b, D]; nothing is computed on padding."""
        if self._reads_thoughts:
            mask = torch.from_numpy(np.arange(ids.shape[1]) < lengths[:, None])
            return self(
                input_ids=torch.from_numpy(ids).to(self.device), attention_mask=mask.to(self.device)
            ).text_embeds
        words, index = np.unique(ids, return_inverse=True)
        table = self.words(torch.from_numpy(words).to(self.device))  # [U, E]
        index = torch.from_numpy(index.reshape(ids.shape)).to(self.device)
        return nn.functional.normalize(self.sentence(last_states(self.gru, table, index, lengths)), dim=-1)

    @staticmethod
    def similarity(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Cosines [n, m] of photographs [n, D] and sentences [m, D], as `embed_images` and `embed_texts` give them."""
        return images @ texts.T


class _evaluating:
    """Eval mode inside a `with`, the mode it had afterwards."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.was_training = model, model.training

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *error: Any) -> None:
        self.model.train(self.was_training)


def _load_tokenizer(folder: str) -> Any:
    return PreTrainedTokenizerFast.from_pretrained(folder)


PictaleJointEmbedding.register_for_auto_class("AutoModel")
