"""What a captioner's recipe says, and the model, tokenizer and image processor that it starts from."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import PartialState
from transformers import GenerationConfig, PreTrainedTokenizerFast

from modeling.configuration_captioner import PictaleCaptionerConfig
from modeling.errors import RecipeError
from modeling.image_processing_captioner import PictaleImageProcessor
from modeling.modeling_captioner import PictaleCaptionerForConditionalGeneration
from modeling.tokenization import BOS_ID, EOS_ID, PAD_ID, UNK_ID

from .backbone_weights import backbone_preprocessing, load_backbone_weights
from .contrastive import ContrastiveOptions
from .data_captions import build_tokenizer, read_split
from .loop import LoopOptions
from .photo_sources import AugmentOptions
from .recipes import dataset_location
from .self_critical import SelfCriticalOptions
from .word_vectors import start_from_word_vectors


@dataclass
class CaptionDataOptions:
    """The `data` section.

    Args:
        train, validation: data sets, mixed; names or objects as `training.caption_sources` describes them.
        texts: data sets of captions without photographs (folders, Hub ids or names below `$PICTALE_DATA`, as a text
            recipe names them), from which the decoder learns the language beside the pictures.
        texts_per_image: so many of their captions are read with each photograph.
        train_split, validation_split: the split read from each.
        cache_dir: where backbone features are kept.
        cache_precision: "fp32", or "bf16" to compute them in half the time and less exactly, see `open_cache`.
        mirror: also learn from mirrored photographs, except for captions that say left or right.
        vocabulary, vocabulary_size: "words" or "bpe", and the most entries, see `build_tokenizer`.
        min_count: a word seen less often is unknown.
        max_words: longer captions are not trained on.
        augment: crop and recolour the training photographs, see `training.photo_sources.AugmentOptions`.
        workers: processes that decode photographs while the model trains, where no features are cached.
        captions_per_image: captions of a photograph in one batch.
        batch_size: photographs in a batch of one process.
        validation_images: photographs captioned at each evaluation.
        limit: read only this many photographs of each data set; None reads all.
    """

    train: list[str | dict[str, Any]]
    validation: list[str | dict[str, Any]]
    texts: list[str] = field(default_factory=list)
    texts_per_image: int = 5
    train_split: str = "train"
    validation_split: str = "validation"
    cache_dir: str = "~/.cache/pictale/features"
    cache_precision: str = "fp32"
    mirror: bool = True
    augment: AugmentOptions | None = None
    workers: int = 0
    vocabulary: str = "words"
    vocabulary_size: int | None = None
    min_count: int = 4
    max_words: int = 24
    captions_per_image: int = 5
    batch_size: int = 64
    validation_images: int = 500
    limit: int | None = None


@dataclass
class CaptionerRecipe:
    """A captioner recipe.

    Args:
        model: fields of `PictaleCaptionerConfig`; the vocabulary size comes from the data, and `image_size`, if not
            given, is the one the backbone's weights were trained at.
        data, training: the sections.
        generation: settings saved as generation_config.json and used by the evaluation.
        backbone_weights: "imagenet" (where they come from: `training.backbone_weights`), "random", or a .pth or
            .safetensors file.
        word_vectors: file of word vectors (see `training.word_vectors`) that a new captioner starts from.
        initial: folder of a captioner to go on from; its weights, vocabulary and settings are kept, except for those
            that `model` and `generation` change, and the backbone is frozen unless `model` says otherwise. None starts
            anew.
        self_critical: learn from the CIDEr of sampled captions instead of cross entropy.
        contrastive: learn to tell photographs apart by their captions as well, where the backbone learns.
        backbone_learning_rate: peak rate of the backbone where `model.freeze_backbone` is false; None: the same rate
            as the rest.
    """

    data: CaptionDataOptions
    training: LoopOptions
    model: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    backbone_weights: str = "imagenet"
    word_vectors: str | None = None
    initial: str | None = None
    self_critical: SelfCriticalOptions | None = None
    contrastive: ContrastiveOptions | None = None
    backbone_learning_rate: float | None = None

    def __post_init__(self) -> None:
        if self.contrastive and self.self_critical:
            raise RecipeError("contrastive goes with cross entropy: leave it or self_critical out.")
        if self.contrastive and self.model.get("freeze_backbone", True):
            raise RecipeError(
                "contrastive teaches the backbone, which is frozen: add model.freeze_backbone=false, or leave it out."
            )


def load_initial(recipe: CaptionerRecipe) -> tuple[PictaleCaptionerForConditionalGeneration, PreTrainedTokenizerFast]:
    """The captioner and the tokenizer of `recipe.initial`, with the settings that the recipe changes.

    Raises:
        RecipeError: the folder holds no captioner, or `model` asks for another architecture.
    """
    folder = recipe.initial
    try:
        config = PictaleCaptionerConfig.from_pretrained(folder)
        unknown = [name for name in recipe.model if not hasattr(config, name)]
        if unknown:
            raise RecipeError(f"model: '{unknown[0]}' is no field of a captioner's config.")
        changes = {"freeze_backbone": True, "trainable_stages": None, **recipe.model}
        config = PictaleCaptionerConfig.from_pretrained(folder, **changes)
        model = PictaleCaptionerForConditionalGeneration.from_pretrained(folder, config=config)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, RecipeError):
            raise
        reason = str(error).strip().splitlines()[0]
        raise RecipeError(
            f"Cannot start from '{folder}': {reason} Give the folder of a trained captioner as `initial`, and in "
            "`model` only what leaves the shape of its weights."
        ) from None
    model.generation_config.update(**recipe.generation)
    return model, tokenizer


def build_model(recipe: CaptionerRecipe, vocab_size: int) -> PictaleCaptionerForConditionalGeneration:
    """A new captioner with backbone weights as the recipe says."""
    torch.manual_seed(recipe.training.seed)
    settings = {"backbone": PictaleCaptionerConfig().backbone, **recipe.model}
    if "image_size" not in settings:
        settings["image_size"] = backbone_preprocessing(settings["backbone"])["image_size"]
    config = PictaleCaptionerConfig(vocab_size=vocab_size, **settings)
    model = PictaleCaptionerForConditionalGeneration(config)
    if recipe.backbone_weights != "random":
        path = None if recipe.backbone_weights == "imagenet" else recipe.backbone_weights
        load_backbone_weights(model.encoder.backbone, config.backbone, path)
    model.generation_config = GenerationConfig(
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        decoder_start_token_id=config.decoder_start_token_id,
        suppress_tokens=[PAD_ID, BOS_ID, UNK_ID],
        **recipe.generation,
    )
    return model


def build_processor(recipe: CaptionerRecipe, config: PictaleCaptionerConfig) -> PictaleImageProcessor:
    """Pictures as the weights that training starts from have seen them, at the size of the configuration."""
    size = {"height": config.image_size, "width": config.image_size}
    if recipe.initial:
        return PictaleImageProcessor.from_pretrained(recipe.initial, size=size)
    seen = backbone_preprocessing(config.backbone)
    return PictaleImageProcessor(size=size, image_mean=seen["image_mean"], image_std=seen["image_std"])


def starting_point(
    recipe: CaptionerRecipe,
) -> tuple[PictaleCaptionerForConditionalGeneration, PreTrainedTokenizerFast, PictaleImageProcessor]:
    """The captioner to be trained, its tokenizer and its image processor."""
    data = recipe.data
    if recipe.initial:
        model, tokenizer = load_initial(recipe)
    else:  # the vocabulary decides the size of the model, so captions are read before features are computed
        splits = [read_split(name, data.train_split, data.limit) for name in data.train]
        tokenizer = build_tokenizer(splits, data.min_count, data.vocabulary, data.vocabulary_size)
        model = build_model(recipe, len(tokenizer))
        if recipe.word_vectors:
            known = start_from_word_vectors(model, tokenizer, dataset_location(recipe.word_vectors))
            PartialState().print(f"{known} of {len(tokenizer)} words start from {recipe.word_vectors}", file=sys.stderr)
    return model, tokenizer, build_processor(recipe, model.config)
