"""Train the captioner.

    python -m training.train_captioner hub_configs/captioner-flickr8k/recipe.json
    python -m training.train_captioner hub_configs/captioner-flickr8k/recipe.json --resume
    python -m training.train_captioner hub_configs/captioner-flickr8k/recipe-frozen.json        without a GPU
    python -m training.train_captioner hub_configs/captioner-flickr8k/recipe-finetune.json      then the backbone too
    python -m training.train_captioner hub_configs/captioner-flickr8k/recipe-scst.json          then learn from CIDEr
    python -m training.train_captioner hub_configs/tiny-captioner/recipe.json --set training.output_dir=/tmp/tiny
    accelerate launch --multi_gpu --num_processes 4 -m training.train_captioner RECIPE.json
    ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes 2 -m training.train_captioner RECIPE.json

recipe.json trains all of it, the backbone too; the last three are a chain, `initial` of each the best of the one
before. Any model folder can be an `initial`; its vocabulary and settings are kept.

Data sets are named in the recipe and looked up in the folder $PICTALE_DATA first (see `training.recipes`). The features
of the frozen backbone are computed once into `data.cache_dir`. While training, captions are generated for validation
photographs and scored with CIDEr; the best weights lie in `<output_dir>/best`, a folder that `from_pretrained` loads.

`data.batch_size` is that of one process: n processes learn from n times as many photographs a step, each process's mean
loss counting the same. The launcher is accelerate's; its --cpu starts one process whatever --num_processes says, and
several without a GPU come from --multi_gpu (which is torchrun) with ACCELERATE_USE_CPU=1, as in the last line. On
several machines run the same line on each, with --num_machines 2 --machine_rank 0 (and 1) --main_process_ip ADDRESS
--main_process_port 29500 and --num_processes counting all machines; `training.output_dir` must be on a disk that all of
them see, `data.cache_dir` may be.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from accelerate.utils.memory import should_reduce_batch_size
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from modeling.errors import DataError, PictaleError
from modeling.modeling_captioner import PictaleCaptionerForConditionalGeneration
from modeling.text import clean_text

from .captioner_recipe import CaptionDataOptions, CaptionerRecipe, starting_point
from .contrastive import ContrastiveCaptioner
from .data_captions import CaptionExamples, CaptionSplit, EpochBatches, collate, read_split
from .data_text import TextSource, load_rows
from .feature_cache import FeatureCache
from .loop import TrainResult, parameter_groups, prepare_output_dir, train
from .metrics_captions import cider
from .photo_sources import Photographs, open_source
from .recipes import read_recipe, recipe_parser, write_recipe
from .self_critical import NumberedExamples, SelfCriticalCaptioner, caption_scorer

__all__ = ["CaptionDataOptions", "CaptionerRecipe", "Evaluation", "main", "run", "save_captioner"]


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
    return weights.captioner if isinstance(weights, SelfCriticalCaptioner | ContrastiveCaptioner) else weights


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
    more["precision"] = data.cache_precision
    for part in splits:
        sources.append(open_source(encoder, processor, part.images, data.cache_dir, label=part.name, **more))
    return splits, sources


def read_texts(names: Sequence[str]) -> list[str]:
    """The captions of data sets that have no photographs, or whose photographs are not looked at."""
    captions = []
    for name in names:
        rows = load_rows(TextSource(name))
        if "captions" not in rows.column_names:
            raise DataError(f"data.texts: '{name}' has no column captions; it has {', '.join(rows.column_names)}.")
        captions += [caption for row in rows.select_columns("captions") for caption in row["captions"]]
    return captions


def make_loader(recipe: CaptionerRecipe, examples: CaptionExamples) -> DataLoader:
    """Batches of `examples`, with the photographs' numbers where the reward asks for them."""
    dataset, join = (
        (NumberedExamples(examples), NumberedExamples.collate) if recipe.self_critical else (examples, collate)
    )
    workers = recipe.data.workers if examples.kind == "pixel_values" else 0
    return DataLoader(
        dataset,
        batch_sampler=EpochBatches(len(examples), recipe.data.batch_size, recipe.training.seed),
        collate_fn=partial(join, kind=examples.kind),
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def run(recipe: CaptionerRecipe, resume: bool = False) -> TrainResult:
    """Train as `recipe` says."""
    data = recipe.data
    # made before anything asks for it, and with the flag of `accelerate launch --cpu`, which it does not read by itself
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    output = prepare_output_dir(recipe.training.output_dir, resume)
    if state.is_main_process:
        write_recipe(recipe, output / "recipe.json")
    model, tokenizer, processor = starting_point(recipe)
    model.to(state.device)  # the features are computed there too
    examples = CaptionExamples(
        *load_data(recipe, data.train, data.train_split, model.encoder, processor, training=True),
        tokenizer,
        data.captions_per_image,
        data.max_words,
        texts=read_texts(data.texts),
        texts_per_image=data.texts_per_image,
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
    trained_model, loader = model, make_loader(recipe, examples)
    if recipe.self_critical:
        score = caption_scorer(examples.captions, tokenizer, model.config.eos_token_id)
        trained_model = SelfCriticalCaptioner(model, score, recipe.self_critical)
    elif recipe.contrastive:
        torch.manual_seed(recipe.training.seed)
        trained_model = ContrastiveCaptioner(model, recipe.contrastive)
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
