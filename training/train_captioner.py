"""Train the captioner.

    python -m training.train_captioner hub_configs/captioner-flickr8k/recipe.json
    python -m training.train_captioner hub_configs/captioner-flickr8k/recipe.json --resume
    python -m training.train_captioner hub_configs/captioner-flickr8k/recipe-finetune.json      then the backbone too
    python -m training.train_captioner hub_configs/captioner-flickr8k/recipe-scst.json          then learn from CIDEr
    python -m training.train_captioner hub_configs/tiny-captioner/recipe.json --set training.output_dir=/tmp/tiny
    accelerate launch --multi_gpu --num_processes 4 -m training.train_captioner RECIPE.json
    ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes 2 -m training.train_captioner RECIPE.json

The three recipes are a chain: `initial` of each is the best of the one before. Any model folder can be an `initial`;
its vocabulary and settings are kept.

Data sets are named in the recipe and looked up in the folder $PICTALE_DATA first (see `training.recipes`). The features
of the frozen backbone are computed once into `data.cache_dir`. While training, captions are generated for validation
photographs and scored with CIDEr; the best weights lie in `<output_dir>/best`, a folder that `from_pretrained` loads.

`data.batch_size` is that of one process: n processes learn from n times as many photographs a step, each process's mean
loss counting the same. The launcher is accelerate's; its --cpu starts one process whatever --num_processes says, and
several without a GPU come from --multi_gpu (which is torchrun) with ACCELERATE_USE_CPU=1, as in the last line. On
several machines run the same line on each, with --num_machines 2 --machine_rank 0 (and 1) --main_process_ip ADDRESS
--main_process_port 29500 and --num_processes counting all machines; `data.cache_dir` and `training.output_dir` must be
on a disk that all of them see.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from accelerate.utils.memory import should_reduce_batch_size
from torch.utils.data import DataLoader
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from modeling.configuration_captioner import PictaleCaptionerConfig
from modeling.errors import DataError, PictaleError, RecipeError
from modeling.image_processing_captioner import PictaleImageProcessor
from modeling.modeling_captioner import PictaleCaptionerForConditionalGeneration
from modeling.text import clean_text
from modeling.tokenization import BOS_ID, EOS_ID, PAD_ID, UNK_ID

from .backbone_weights import backbone_preprocessing, load_backbone_weights
from .data_captions import CaptionExamples, CaptionSplit, EpochBatches, build_tokenizer, collate, read_split
from .feature_cache import FeatureCache
from .loop import LoopOptions, parameter_groups, prepare_output_dir, train
from .metrics_captions import cider
from .photo_sources import AugmentOptions, Photographs, open_source
from .recipes import dataset_location, read_recipe, recipe_parser
from .self_critical import NumberedExamples, SelfCriticalCaptioner, SelfCriticalOptions, caption_scorer
from .word_vectors import start_from_word_vectors


@dataclass
class CaptionDataOptions:
    """The `data` section.

    Args:
        train, validation: data sets, mixed; names or objects as `training.caption_sources` describes them.
        train_split, validation_split: the split read from each.
        cache_dir: where backbone features are kept.
        mirror: also learn from mirrored photographs, except for captions that say left or right.
        vocabulary, vocabulary_size: "words" or "bpe", and the most entries, see `build_tokenizer`.
        min_count: a word seen less often is unknown.
        max_words: longer captions are not trained on.
        augment: crop and recolour the training photographs; they are then decoded in every epoch.
        workers: processes that decode photographs while the model trains, where no features are cached.
        captions_per_image: captions of a photograph in one batch.
        batch_size: photographs in a batch of one process.
        validation_images: photographs captioned at each evaluation.
        limit: read only this many photographs of each data set; None reads all.
    """

    train: list[str | dict[str, Any]]
    validation: list[str | dict[str, Any]]
    train_split: str = "train"
    validation_split: str = "validation"
    cache_dir: str = "~/.cache/pictale/features"
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
    backbone_learning_rate: float | None = None


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


def caption_features(
    model: PictaleCaptionerForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    source: FeatureCache | Photographs,
    rows: Sequence[int],
    batch_size: int = 64,
    **generation,
) -> list[str]:
    """One generated caption for each photograph in `rows` of a source."""
    captions = []
    if source.kind == "pixel_values":
        model.prepare_for_inference()
    for start in range(0, len(rows), batch_size):
        seen = {source.kind: source.get_many(rows[start : start + batch_size]).to(model.device)}
        ids = model.generate(encoder_outputs=model.encoder(**seen), **generation)
        captions += [clean_text(text) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    return captions


class Evaluation:
    """Captions a fixed part of the validation photographs and scores them; every process does its share."""

    def __init__(
        self,
        split: CaptionSplit,
        source: FeatureCache | Photographs,
        tokenizer: PreTrainedTokenizerFast,
        count: int,
    ):
        usable = [row for row in range(len(split)) if source.usable[row] and split.captions[row]]
        if not usable:
            raise DataError(f"{split.name}: no photograph with captions to evaluate on.")
        self.rows = usable[:: max(len(usable) // count, 1)][:count]
        self.split, self.source, self.tokenizer = split, source, tokenizer

    def __call__(self, model: PictaleCaptionerForConditionalGeneration) -> dict[str, float]:
        state = PartialState()
        mine = self.rows[state.process_index :: state.num_processes]
        pairs = list(zip(mine, caption_features(model, self.tokenizer, self.source, mine), strict=True))
        captions = dict(gather_object(pairs))
        texts = [captions[row] for row in self.rows]
        for row in self.rows[:: max(len(self.rows) // 4, 1)][:4]:
            state.print(f"  {self.split.image_ids[row]}: {captions[row]}", file=sys.stderr)
        return {
            "cider": cider(texts, [self.split.captions[row] for row in self.rows]),
            "distinct_captions": len(set(texts)) / len(texts),
            "words": sum(len(text.split()) for text in texts) / len(texts),
        }


def captioner_of(weights: torch.nn.Module) -> PictaleCaptionerForConditionalGeneration:
    """The captioner inside what the loop trains."""
    return weights.captioner if isinstance(weights, SelfCriticalCaptioner) else weights


def save_captioner(model: PictaleCaptionerForConditionalGeneration, processor, tokenizer, folder: Path) -> None:
    """A folder that `from_pretrained` loads: fp16 weights (read back as float32), configs, processor, tokenizer."""
    half = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        half.pop("vocabulary.weight", None)  # adaptive words have none
    model.save_pretrained(folder, state_dict=half)
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_data(
    recipe: CaptionerRecipe, names: Sequence[str], split: str, encoder, processor, training: bool
) -> tuple[list[CaptionSplit], list[FeatureCache | Photographs]]:
    """Read the data sets `names` and open the sources of their photographs."""
    data = recipe.data
    splits, sources = [read_split(name, split, data.limit) for name in names], []
    more = {"views": 2 if data.mirror else 1, "augment": data.augment} if training else {}
    for part in splits:
        with PartialState().main_process_first():  # one process computes, the others read
            sources.append(open_source(encoder, processor, part.images, data.cache_dir, label=part.name, **more))
    return splits, sources


def run(recipe: CaptionerRecipe, resume: bool = False):
    """Train as `recipe` says; returns `training.loop.TrainResult`."""
    data = recipe.data
    # made before anything asks for it, and with the flag of `accelerate launch --cpu`, which it does not read by itself
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    prepare_output_dir(recipe.training.output_dir, resume)
    if recipe.initial:
        model, tokenizer = load_initial(recipe)
    else:  # the vocabulary decides the size of the model, so captions are read before features are computed
        texts = [read_split(name, data.train_split, data.limit) for name in data.train]
        tokenizer = build_tokenizer(texts, data.min_count, data.vocabulary, data.vocabulary_size)
        model = build_model(recipe, len(tokenizer))
        if recipe.word_vectors:
            known = start_from_word_vectors(model, tokenizer, dataset_location(recipe.word_vectors))
            state.print(f"{known} of {len(tokenizer)} words start from {recipe.word_vectors}", file=sys.stderr)
    processor = build_processor(recipe, model.config)
    examples = CaptionExamples(
        *load_data(recipe, data.train, data.train_split, model.encoder, processor, training=True),
        tokenizer,
        data.captions_per_image,
        data.max_words,
    )
    [split, *_], [source, *_] = load_data(
        recipe, data.validation[:1], data.validation_split, model.encoder, processor, training=False
    )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    state.print(
        f"{len(examples)} photographs, {examples.caption_count} captions, {len(tokenizer)} words, "
        f"{trained:,} of {model.num_parameters():,} parameters trained, "
        f"{data.batch_size * state.num_processes * recipe.training.gradient_accumulation_steps} photographs a step",
        file=sys.stderr,
    )
    batches = EpochBatches(len(examples), data.batch_size, recipe.training.seed)
    trained_model, dataset, join = model, examples, collate
    if recipe.self_critical:
        score = caption_scorer(examples.captions, tokenizer, model.config.eos_token_id)
        trained_model = SelfCriticalCaptioner(model, score, recipe.self_critical)
        dataset, join = NumberedExamples(examples), NumberedExamples.collate
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=partial(join, kind=examples.kind),
        num_workers=data.workers if examples.kind == "pixel_values" else 0,
        persistent_workers=data.workers > 0 and examples.kind == "pixel_values",
    )
    rates = {"encoder.backbone": recipe.backbone_learning_rate} if recipe.backbone_learning_rate else None
    evaluation = Evaluation(split, source, tokenizer, data.validation_images)
    return train(
        trained_model,
        loader,
        recipe.training,
        evaluate=lambda weights: evaluation(captioner_of(weights)),
        save=lambda weights, folder: save_captioner(captioner_of(weights), processor, tokenizer, folder),
        groups=parameter_groups(trained_model, recipe.training, rates),
        resume=resume,
    )


def memory_advice(recipe: CaptionerRecipe) -> str:
    """What to do after running out of memory, in one sentence."""
    size, parts = recipe.data.batch_size, recipe.training.gradient_accumulation_steps
    smaller = f"--set data.batch_size={size // 2} --set training.gradient_accumulation_steps={2 * parts}"
    hints = [f"try {smaller}, which learns from as many photographs a step"] if size > 1 else []
    if recipe.self_critical:
        hints.append(f"fewer than {recipe.self_critical.samples} self_critical.samples")
    if not recipe.model.get("freeze_backbone", True):
        hints.append("fewer model.trainable_stages")
    hints.append("a smaller model.image_size")
    return f"Out of memory with data.batch_size {size}: {', or '.join(hints)}."


def main(arguments: Sequence[str] | None = None) -> int:
    args = recipe_parser(__doc__).parse_args(arguments)
    disable_progress_bar()  # of transformers, which draws one at every save
    try:
        recipe = read_recipe(args.recipe, CaptionerRecipe, args.overrides)
        result = run(recipe, args.resume)
    except PictaleError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not should_reduce_batch_size(error):
            raise
        print(f"Error: {memory_advice(recipe)}", file=sys.stderr)
        return 2
    PartialState().print(
        f"Best {recipe.training.metric} {result.best_metric:.2f} at step {result.best_step}; "
        f"weights in {Path(recipe.training.output_dir) / 'best'}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
