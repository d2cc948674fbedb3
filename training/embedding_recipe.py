"""What the recipe of a joint embedding says, and the model that it starts from."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from modeling.caption_text import normalise_caption
from modeling.configuration_joint_embedding import PictaleJointEmbeddingConfig
from modeling.errors import ModelFolderError, RecipeError
from modeling.fingerprints import backbone_fingerprint, encoder_fingerprint
from modeling.image_processing_captioner import PictaleImageProcessor
from modeling.model_folder import load_component
from modeling.modeling_captioner import PictaleCaptionerForConditionalGeneration
from modeling.modeling_joint_embedding import PictaleJointEmbedding
from modeling.modeling_skip_thoughts import PictaleSkipThoughtsEncoder
from modeling.tokenization import build_word_tokenizer, count_words

from .embedding_losses import EmbeddingLossOptions
from .loop import LoopOptions
from .recipes import dataset_location
from .word_vectors import read_word_vectors, spellings, words_of


@dataclass
class EmbeddingDataOptions:
    """The `data` section.

    Args:
        train, validation: data sets of photographs, as `training.caption_sources` describes them.
        sentences: data sets of captions whose photographs need not be there; see `loss.sentence_weight`. Their words
            join the vocabulary.
        train_split, validation_split: the split read from each.
        cache_dir, cache_precision, mirror: as for the captioner; its caches are used.
        vocabulary_size, min_count: most words of the vocabulary, and how often a word must have been seen.
        max_words: longer captions are not trained on.
        captions_per_image: captions of a photograph in one batch.
        batch_size: photographs in a batch of one process.
        sentence_batch: pairs of captions beside them, with `sentences`.
        validation_images: photographs of the evaluation; None: all.
        limit: read only this many photographs of each data set; None reads all.
    """

    train: list[str | dict[str, Any]]
    validation: list[str | dict[str, Any]]
    sentences: list[str | dict[str, Any]] = field(default_factory=list)
    train_split: str = "train"
    validation_split: str = "validation"
    cache_dir: str = "~/.cache/pictale/features"
    cache_precision: str = "fp32"
    mirror: bool = True
    vocabulary_size: int = 5000
    min_count: int = 4
    max_words: int = 30
    captions_per_image: int = 2
    batch_size: int = 256
    sentence_batch: int = 128
    validation_images: int | None = None
    limit: int | None = None


@dataclass
class JointEmbeddingRecipe:
    """A recipe of a joint embedding.

    Args:
        captioner: folder of the captioner whose backbone it looks through.
        data, loss, training: the sections.
        model: fields of `PictaleJointEmbeddingConfig`; its vocabulary and the captioner fill in the rest.
        word_vectors: file of word vectors (see `training.word_vectors`) that the words start from.
        encoder: folder of the skip-thought encoder, where `model.sentence_encoder` is "skip-thoughts".
    """

    captioner: str
    data: EmbeddingDataOptions
    training: LoopOptions
    loss: EmbeddingLossOptions = field(default_factory=EmbeddingLossOptions)
    model: dict[str, Any] = field(default_factory=dict)
    word_vectors: str | None = None
    encoder: str | None = None

    def __post_init__(self) -> None:
        thoughts = self.model.get("sentence_encoder") == "skip-thoughts"
        if thoughts != (self.encoder is not None):
            raise RecipeError('"encoder" names a skip-thought encoder if model.sentence_encoder is "skip-thoughts".')
        if thoughts and self.word_vectors:
            raise RecipeError("A frozen skip-thought encoder has its own word vectors: leave word_vectors out.")


def load_eyes(folder: str) -> tuple[PictaleCaptionerForConditionalGeneration, PictaleImageProcessor]:
    """The captioner, its backbone frozen, and its image processor.

    Raises:
        ModelFolderError: the folder holds no captioner.
    """
    place = model_folder(folder)
    captioner = load_component(PictaleCaptionerForConditionalGeneration.from_pretrained, place, "captioner")
    captioner.encoder.frozen = True  # it was perhaps trained itself; here its features are cached
    processor = load_component(PictaleImageProcessor.from_pretrained, place, "image processor", weights=False)
    return captioner.eval().requires_grad_(False), processor


def model_folder(folder: str) -> Path:
    """`folder`, which must be there: training goes on from local models only."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ModelFolderError(f"There is no model folder '{folder}': name one, or train it first.")
    return path


def build_embedding(
    recipe: JointEmbeddingRecipe,
    captioner: PictaleCaptionerForConditionalGeneration,
    captions: Sequence[Sequence[Sequence[str]]],
) -> PictaleJointEmbedding:
    """A new joint embedding with its tokenizer, of the captioner's backbone, words started as the recipe says.

    Args:
        captions: of each data set, of each photograph; the vocabulary is theirs.
    """
    torch.manual_seed(recipe.training.seed)
    backbone = captioner.encoder.backbone
    settings = {
        "feature_size": backbone.channels,
        "backbone": captioner.config.backbone,
        "backbone_fingerprint": backbone_fingerprint(backbone, captioner.config),
    }
    if recipe.encoder is not None:
        encoder = load_component(PictaleSkipThoughtsEncoder.from_pretrained, model_folder(recipe.encoder), "encoder")
        settings |= {"hidden_size": encoder.config.hidden_size, "encoder_fingerprint": encoder_fingerprint(encoder)}
        settings["vocab_size"] = encoder.config.vocab_size
        return PictaleJointEmbedding(PictaleJointEmbeddingConfig(**settings, **recipe.model)).read_with(encoder)
    counts: Counter[str] = Counter()
    for groups in captions:
        counts.update(count_words((normalise_caption(t) for group in groups for t in group), lowercase=True))
    tokenizer = build_word_tokenizer(counts, recipe.data.vocabulary_size, recipe.data.min_count)
    settings["vocab_size"] = len(tokenizer)
    model = PictaleJointEmbedding(PictaleJointEmbeddingConfig(**settings, **recipe.model))
    model.tokenizer = tokenizer
    if recipe.word_vectors:
        known = start_words(model, dataset_location(recipe.word_vectors))
        PartialState().print(f"{known} of {len(tokenizer)} words start from {recipe.word_vectors}", file=sys.stderr)
    return model


@torch.no_grad()
def start_words(model: PictaleJointEmbedding, path: str) -> int:
    """Write the vectors of a file over the model's random ones, scaled to be as large; returns how many were found."""
    tokens = words_of(model.tokenizer)
    vectors = read_word_vectors(path, {spelling for token in tokens if token for spelling in spellings(token)})
    matrix, found = (torch.from_numpy(array) for array in vectors.matrix_for(tokens, model.config.word_size))
    weight = model.words.weight
    matrix *= weight[weight.any(1)].square().mean().sqrt() / matrix[found].square().mean().sqrt()
    weight[found] = matrix[found].to(weight)
    return int(found.sum())
