"""A captioner that also learns to tell photographs apart: contrastive learning beside the cross entropy.

As CoCa does (Yu et al., arXiv:2205.01917): the same backbone features are read by the decoder, which says what is in a
photograph, and by an embedding, which finds a photograph's captions among those of the others in the batch. Words that
every caption has teach a decoder most of what it learns; the embedding is taught by what only one photograph has. It is
of use to the backbone only where the backbone learns, and is thrown away after it: `training.train_joint_embedding`
makes one that is kept.

    loss = cross entropy + weight * InfoNCE (see `training.embedding_losses`)

Shapes: B photographs, R captions, P regions, F backbone channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from modeling.configuration_joint_embedding import PictaleJointEmbeddingConfig
from modeling.errors import RecipeError
from modeling.modeling_captioner import PictaleCaptionerForConditionalGeneration
from modeling.modeling_joint_embedding import PictaleJointEmbedding

from .embedding_losses import EmbeddingLossOptions
from .train_joint_embedding import EmbeddingTraining, LossOutput


@dataclass
class ContrastiveOptions:
    """The `contrastive` section of a captioner's recipe.

    Args:
        weight: of the contrastive loss beside the cross entropy.
        temperature: of InfoNCE at the start; it is learned.
        embedding_size, word_size, hidden_size: of the embedding.
        image_dropout, sentence_dropout: of the embedding.
    """

    weight: float = 1.0
    temperature: float = 0.07
    embedding_size: int = 256
    word_size: int = 200
    hidden_size: int = 384
    image_dropout: float = 0.2
    sentence_dropout: float = 0.2

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise RecipeError(f"contrastive.weight is {self.weight}: give one above 0, or leave the section out.")


class ContrastiveCaptioner(nn.Module):
    """A captioner and the embedding that learns beside it, as the loop trains them."""

    def __init__(self, captioner: PictaleCaptionerForConditionalGeneration, options: ContrastiveOptions) -> None:
        super().__init__()
        config = captioner.config
        sizes = PictaleJointEmbeddingConfig(
            feature_size=captioner.encoder.backbone.channels,
            vocab_size=config.vocab_size,
            word_size=options.word_size,
            hidden_size=options.hidden_size,
            embedding_size=options.embedding_size,
            image_dropout=options.image_dropout,
            sentence_dropout=options.sentence_dropout,
            image_pooling="mean",
            pad_token_id=config.pad_token_id,
            bos_token_id=config.decoder_start_token_id,
            eos_token_id=config.eos_token_id,
        )
        self.captioner, self.weight = captioner, options.weight
        loss = EmbeddingLossOptions("infonce", temperature=options.temperature)
        self.matching = EmbeddingTraining(PictaleJointEmbedding(sizes), loss)

    def forward(
        self,
        labels: torch.LongTensor,
        image_index: torch.LongTensor,
        pixel_values: torch.Tensor | None = None,
        region_features: torch.Tensor | None = None,
        stage_features: torch.Tensor | None = None,
        **inputs: Any,
    ) -> LossOutput:
        """The sum of both losses, of photographs given in one of the captioner's three ways.

        Args:
            labels: captions without `<s>` [R, T], padded with -100; the photograph of each in image_index [R], -1 where
                it has none.
        """
        encoder = self.captioner.encoder
        if stage_features is not None:
            features = encoder.extract_learning(stage_features)
        else:
            features = encoder.extract(pixel_values) if region_features is None else region_features  # [B, P, F]
        told = self.captioner(region_features=features, labels=labels, image_index=image_index, **inputs)
        shown = image_index >= 0
        matched = self.matching(features, labels[shown], image_index[shown]).loss
        report = {**(told.report or {}), "told": told.loss.detach(), "matched": matched.detach()}
        return LossOutput(loss=told.loss + self.weight * matched, report=report)
