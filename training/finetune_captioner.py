"""Teach the captioner your photographs, in one command, on a laptop.

    python -m training.finetune_captioner --photos holiday/ --captions holiday/captions.csv --output my-captioner
    python -m training.finetune_captioner --photos holiday/ --output my-captioner          (captions are in the folder)

The captions are a CSV file with a photograph and a caption in each row (several rows of a photograph are several
captions), or any other format that `training.caption_sources` reads. A fifth of the photographs is never learned from:
their captions are written before and after, and the difference is measured. Nothing is chosen by looking at them, so
the figure is fair. Words that the model does not know and that come up at least twice are added to its vocabulary.

The result is a folder that `python -m modeling PHOTO --model my-captioner`, `StoryPipeline.from_pretrained` and
`AutoModelForImageTextToText.from_pretrained` load. A run that was stopped goes on with --resume.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from transformers.utils.logging import disable_progress_bar

from modeling.errors import DataError, PictaleError, RecipeError
from modeling.model_folder import DEFAULT_PIPELINE, PIPELINE_FILE, component_folder, download, read_pipeline_file

from .caption_sources import CaptionSource, CaptionSplit, caption_source
from .captioner_recipe import CaptionDataOptions, CaptionerRecipe, starting_point
from .data_captions import collate, normalise_caption, read_split
from .evaluate_captioner import LoadedCaptioner
from .feature_cache import decode_image
from .finetune_result import Comparison, measure, publish
from .loop import LoopOptions, replace_folder
from .new_words import learn_words, unknown_words
from .recipes import read_recipe, write_recipe
from .train_captioner import load_data, run, save_captioner

WORK = "unfinished"  # inside the output folder while it is made
OVERHEAD = 200e6  # bytes: checkpoints, curves and the second model that are in memory later


@dataclass(frozen=True)
class FineTuneOptions:
    """What a person may want to change.

    Args:
        photos: folder of the photographs.
        captions: file or folder of their captions; None: they are in `photos`.
        output: folder to make.
        model: captioner or pipeline to start from, folder or Hub id; None: the embedded one.
        held_out: share of the photographs that is measured on and never learned from.
        epochs: passes over the rest.
        learning_rate: peak rate; falls to nothing over the run.
        batch_size: photographs a step.
        min_count: an unknown word seen less often stays unknown.
        seed: of order, dropout and new words.
    """

    photos: str
    output: str
    captions: str | None = None
    model: str | None = None
    held_out: float = 0.2
    epochs: float = 10
    learning_rate: float = 1.5e-4
    batch_size: int = 16
    min_count: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate", "batch_size", "min_count"):
            if getattr(self, name) <= 0:
                raise RecipeError(f"{name} must be more than 0, not {getattr(self, name)}.")
        if not 0 < self.held_out < 1:
            raise RecipeError(f"The held-out share is a part of 1, 0.2 for example, not {self.held_out}.")

    def source(self) -> CaptionSource:
        return CaptionSource(
            path=self.captions or self.photos,
            images=self.photos if self.captions else None,
            validation_share=self.held_out,
        )


def find_model(name: str | None) -> tuple[Path, Path, str]:
    """The captioner to start from: its folder, the pipeline whose other parts the result gets, and what to call it.

    Raises:
        ModelFolderError: there is no such folder or Hub repository.
    """
    folder = DEFAULT_PIPELINE if name is None else Path(name).expanduser()
    if not folder.is_dir():
        folder = download(str(name))
    if not (folder / PIPELINE_FILE).is_file():
        return folder, DEFAULT_PIPELINE, str(name)
    part = read_pipeline_file(folder)["components"]["captioner"]
    return component_folder(folder, part), folder, part if name is None else str(name)


def check_output(output: Path, resume: bool) -> None:
    """Refuse a folder that holds something else, or to resume where there is nothing."""
    begun = (output / WORK / "recipe.json").exists()
    if resume and not begun:
        raise RecipeError(f"Nothing to resume in {output}: start without --resume.")
    if not resume and output.exists() and (not output.is_dir() or any(output.iterdir())):
        hint = "add --resume to go on with it, or choose" if begun else "choose"
        raise RecipeError(f"{output} is not empty: {hint} another --output.")


# -- the start ---------------------------------------------------------------------------------------------------------
def prepare_start(recipe: CaptionerRecipe, folder: Path, words: list[str]) -> None:
    """Save the captioner of `folder`, knowing `words` as well, where `recipe` starts from."""
    model, tokenizer, processor = starting_point(dataclasses.replace(recipe, initial=str(folder)))
    if words:
        data = recipe.data  # its features are those that training is going to read
        [train], [source] = load_data(recipe, data.train, data.train_split, model.encoder, processor, training=True)
        model, tokenizer = learn_words(model, tokenizer, words, source, train.captions, recipe.training.seed)
    replace_folder(Path(recipe.initial), lambda start: save_captioner(model, processor, tokenizer, start))


def built_in_recipe(options: FineTuneOptions, photographs: int, work: Path) -> CaptionerRecipe:
    """How it is trained: cross entropy with the model's own dropout and label smoothing, backbone frozen."""
    source = {k: v for k, v in dataclasses.asdict(options.source()).items() if v is not None}
    steps = max(1, round(options.epochs * -(-photographs // options.batch_size)))
    return CaptionerRecipe(
        data=CaptionDataOptions(
            train=[source],
            validation=[source],
            cache_dir=str(work / "features"),
            batch_size=options.batch_size,
            max_words=30,
            min_count=options.min_count,
            validation_images=200,
        ),
        training=LoopOptions(
            output_dir=str(work / "run"),
            max_steps=steps,
            learning_rate=options.learning_rate,
            warmup_steps=min(20, max(1, steps // 10)),
            weight_decay=0.01,
            evaluate_every=steps,  # at the end only: nothing is chosen by the held-out photographs
            save_every=max(20, steps // 10),
            log_every=max(1, min(20, steps // 10)),
            metric="cider",
            greater_is_better=True,
            seed=options.seed,
        ),
        initial=str(work / "start"),
    )


def published_recipe(recipe: CaptionerRecipe, base: str) -> CaptionerRecipe:
    """The recipe without the folders that are gone when it is read."""
    data = dataclasses.replace(recipe.data, cache_dir=CaptionDataOptions.cache_dir)
    training = dataclasses.replace(recipe.training, output_dir="runs/fine-tuned")
    return dataclasses.replace(recipe, data=data, training=training, initial=base)


# -- what it will cost -------------------------------------------------------------------------------------------------
def peak_memory() -> int | None:
    """Most bytes of memory this process has held; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def seconds_a_step(captioner: LoadedCaptioner, train: CaptionSplit, batch_size: int) -> float:
    """Time of one training step, tried on noise and the first captions with a copy of the model."""
    model = copy.deepcopy(captioner.model).train()
    rows, columns = model.grid_size
    labels = [
        [ids[1:] for ids in captioner.tokenizer([normalise_caption(text) for text in group[:5]]).input_ids]
        for group in train.captions[:batch_size]
    ]
    features = torch.randn(len(labels), rows * columns, model.encoder.backbone.channels).half()
    batch = {
        k: v.to(model.device)
        for k, v in collate([(x, ids, []) for x, ids in zip(features, labels, strict=True)]).items()
    }
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
    for _ in range(2):  # the first warms up
        began = time.perf_counter()
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - began


def seconds_a_photograph(captioner: LoadedCaptioner, split: CaptionSplit, count: int = 8) -> float:
    """Time of reading a photograph and looking at it."""
    began = time.perf_counter()
    images = [image for image in (decode_image(split.images[row]) for row in range(len(split))[:count]) if image]
    captioner.encode(images)
    return (time.perf_counter() - began) / len(images)


def expectation(
    recipe: CaptionerRecipe, captioner: LoadedCaptioner, train: CaptionSplit, held: CaptionSplit, measuring_s: float
) -> str:
    """Time and memory in words, from what a few photographs and steps took on this machine just now.

    Args:
        measuring_s: seconds that captioning the held-out photographs took; that is going to happen twice more.
    """
    views = 2 if recipe.data.mirror else 1
    seconds = recipe.training.max_steps * seconds_a_step(captioner, train, recipe.data.batch_size)
    seconds += (views * len(train) + len(held)) * seconds_a_photograph(captioner, held) + 2 * measuring_s
    text = f"{max(round(seconds / 5), 1) * 5} seconds" if seconds < 100 else f"{round(seconds / 60)} minutes"
    memory, (rows, columns) = peak_memory(), captioner.model.grid_size
    if memory is None:
        return text
    features = 2 * views * len(train) * rows * columns * captioner.model.encoder.backbone.channels  # of two bytes
    return f"{text} on this machine, {(memory + features + OVERHEAD) / 1e9:.1f} GB of memory"


# -- the whole way -----------------------------------------------------------------------------------------------------
def fine_tune(options: FineTuneOptions, resume: bool = False) -> Comparison:
    """Fine-tune as `options` say; with `resume` as the run said that is going on in `options.output`.

    Raises:
        PictaleError: unusable data, model or settings, each in one sentence.
    """
    PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    output, began = Path(options.output), time.monotonic()
    work = output / WORK
    check_output(output, resume)
    folder, pipeline, base = find_model(options.model)
    captioner = LoadedCaptioner(str(folder))
    recipe = read_recipe(work / "recipe.json", CaptionerRecipe) if resume else None
    source = caption_source(recipe.data.train[0]) if recipe else options.source()
    train = read_split(source, "train")
    if len(train) < 2:
        raise DataError(f"'{source.path}' has too few photographs: give at least three, better a hundred.")
    held = read_split(source, "validation")
    print(f"{len(train)} photographs to learn from, {len(held)} held out. Captioning those ...", flush=True)
    measuring = time.monotonic()
    before = measure(captioner, held)
    measuring = time.monotonic() - measuring
    print(f"Before: CIDEr {before.scores['cider']:.1f}, BLEU-4 {before.scores['bleu_4']:.1f}")
    if recipe is None:
        recipe = built_in_recipe(options, len(train), work)
        work.mkdir(parents=True, exist_ok=True)
        write_recipe(recipe, work / "recipe.json")
    texts = (text for group in train.captions for text in group)
    words = unknown_words(texts, captioner.tokenizer, recipe.data.min_count)
    if words:
        print(f"{len(words)} new words: {', '.join(words[:12])}{', ...' if len(words) > 12 else ''}")
    print(f"Expected: {expectation(recipe, captioner, train, held, measuring)}", flush=True)
    if not Path(recipe.initial).is_dir():
        prepare_start(recipe, folder, words)
    run(recipe, resume=(work / "run" / "progress.json").exists())
    after = measure(LoadedCaptioner(str(work / "run" / "best")), held)
    comparison = Comparison(len(train), held, before, after, words, round(time.monotonic() - began), peak_memory())
    publish(output, work, pipeline, published_recipe(recipe, base), comparison)
    return comparison


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True, help="folder of photographs")
    parser.add_argument("--captions", help="file of captions; not needed where it lies in the folder")
    parser.add_argument("--output", required=True, help="folder to make")
    parser.add_argument("--model", help="captioner or pipeline to start from, folder or Hub id (the embedded one)")
    parser.add_argument("--held-out", type=float, default=0.2, help="share of the photographs to measure on (0.2)")
    parser.add_argument("--epochs", type=float, default=10, help="passes over the photographs (10)")
    parser.add_argument("--learning-rate", type=float, default=1.5e-4, help="peak rate (0.00015)")
    parser.add_argument("--batch-size", type=int, default=16, help="photographs a step (16)")
    parser.add_argument("--min-count", type=int, default=2, help="add unknown words seen this often (2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped, as it was begun")
    args = vars(parser.parse_args(arguments))
    resume = args.pop("resume")
    disable_progress_bar()  # of transformers, which draws one at every save
    try:
        comparison = fine_tune(FineTuneOptions(**args), resume)
    except PictaleError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(comparison.text())
    print(f"\nIt lies in {args['output']}. Try it:\n    python -m modeling PHOTO --model {args['output']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
