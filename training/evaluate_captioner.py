"""Measure a captioner the way papers do: generated captions, PTB tokenization, BLEU, METEOR, ROUGE-L and CIDEr.

    python -m training.evaluate_captioner --model hub_configs/captioner-flickr8k --dataset flickr8k --split validation
    python -m training.evaluate_captioner --model DIR --dataset captions.csv --images photos/ --split all --json
    python -m training.evaluate_captioner --model DIR --dataset PATH_OR_ID --num-beams 1,3,5 --markdown

Photographs go through the image processor and the backbone, as in use; nothing is cached and no word of a reference is
ever shown to the model. Beside the metrics: how many captions and words are different, how many captions stand word for
word among the training captions, and milliseconds a photograph, the median over `--latency-photos`, alone and in
batches of 16, image processor and backbone included. Give several beam widths for a table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from modeling.errors import DataError, ModelFolderError, PictaleError, RecipeError
from modeling.image_processing_captioner import PictaleImageProcessor
from modeling.modeling_captioner import PictaleCaptionerForConditionalGeneration
from modeling.text import clean_text

from .caption_sources import image_names, read_captions, say_skipped
from .data_captions import CaptionSplit, normalise_caption, read_split
from .feature_cache import decode_image
from .figures import command_line
from .metrics_captions import bootstrap_interval, score_captions

LATENCY_BATCH = 16
COLUMNS = {
    "num_beams": "beams",
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
    "distinct_captions": "distinct captions",
    "words_used": "words used",
    "mean_words": "words a caption",
    "seen_in_training": "seen in training",
    "latency_ms": "ms",
    "latency_batch_ms": f"ms in batches of {LATENCY_BATCH}",
}
SETTINGS = (
    *("max_new_tokens", "min_new_tokens", "length_penalty", "early_stopping", "no_repeat_ngram_size"),
    *("repetition_penalty", "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "suppress_tokens"),
)
SHARES = ("distinct_captions", "seen_in_training")


class LoadedCaptioner:
    """Model, image processor and tokenizer of one folder, ready to caption."""

    def __init__(self, folder: str, device: str | None = None):
        try:
            self.model = PictaleCaptionerForConditionalGeneration.from_pretrained(folder)
            self.processor = PictaleImageProcessor.from_pretrained(folder)
            self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelFolderError(f"Cannot load a captioner from '{folder}': {reason}") from None
        self.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).prepare_for_inference()

    @torch.inference_mode()
    def encode(self, images: Sequence[Image.Image]) -> Any:
        """What the decoder looks at, for `write`."""
        pixels = self.processor(list(images), return_tensors="pt").pixel_values
        return self.model.encoder(pixels.to(self.model.device))

    @torch.inference_mode()
    def write(self, encoded: Any, **generation) -> list[str]:
        """Captions of encoded photographs. Raises RecipeError for settings that `generate` refuses."""
        try:
            ids = self.model.generate(encoder_outputs=encoded, **generation)
        except ValueError as error:
            reason = str(error).strip().splitlines()[0]
            raise RecipeError(f"Captions cannot be generated with these settings: {reason}") from None
        return [clean_text(text) for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def __call__(self, images: Sequence[Image.Image], **generation) -> list[str]:
        return self.write(self.encode(images), **generation)


@dataclass(frozen=True)
class EvaluationOptions:
    """How to measure.

    Args:
        num_beams: beam widths, measured one after the other.
        generation: further settings of `generate`; those not given are the model's own.
        batch_size: photographs captioned together.
        latency_photos: photographs timed one by one; 0 leaves latency out.
        bootstrap: draws for the 95 % interval of CIDEr; 0 leaves it out.
        training_data: data sets whose training captions are compared; None takes those of the model's recipe.json.
        limit: only the first photographs.
        seed: of sampling.
    """

    num_beams: tuple[int, ...] = (3,)
    generation: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 16
    latency_photos: int = 20
    bootstrap: int = 0
    training_data: Sequence[str] | None = None
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("latency_photos", 0), ("bootstrap", 0)):
            if getattr(self, name) < least:
                raise RecipeError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        unknown = [key for key in self.generation if key not in SETTINGS]
        if unknown:
            raise RecipeError(f"'{unknown[0]}' cannot be set; there are {', '.join(SETTINGS)}.")


def caption_split(
    captioner: LoadedCaptioner, split: CaptionSplit, options: EvaluationOptions
) -> dict[int, dict[int, str]]:
    """For each beam width a caption of every photograph that can be read, by row. The backbone looks once."""
    captions: dict[int, dict[int, str]] = {beams: {} for beams in options.num_beams}
    torch.manual_seed(options.seed)
    unreadable: list[int] = []
    bar = tqdm(range(0, len(split), options.batch_size), desc=split.name, unit="batch", file=sys.stderr, mininterval=2)
    for start in bar:
        images = {row: decode_image(split.images[row]) for row in range(len(split))[start : start + options.batch_size]}
        unreadable += [row for row, image in images.items() if image is None]
        images = {row: image for row, image in images.items() if image is not None}
        if not images:
            continue
        encoded = captioner.encode(list(images.values()))
        for beams in options.num_beams:
            texts = captioner.write(encoded, num_beams=beams, **options.generation)
            captions[beams] |= zip(images, texts, strict=True)
    say_skipped(f"{split.name}: {{}} of {len(split)} images cannot be read", image_names(split.images, unreadable))
    if len(unreadable) == len(split):
        raise DataError(f"{split.name}: no photograph can be read.")
    return captions


def measure_latency(
    captioner: LoadedCaptioner, split: CaptionSplit, rows: Sequence[int], count: int, **generation
) -> tuple[float, float]:
    """Median milliseconds a photograph, from decoded photograph to caption text: alone, and in batches of 16."""
    images = [decode_image(split.images[row]) for row in rows[: max(count, LATENCY_BATCH)]]
    batches = [[image] for image in islice(cycle(images), count)]
    large = [list(islice(cycle(images), LATENCY_BATCH))] * max(3, count // LATENCY_BATCH)
    return _median_ms(captioner, batches, **generation), _median_ms(captioner, large, **generation)


def _median_ms(captioner: LoadedCaptioner, batches: Sequence[list[Image.Image]], **generation) -> float:
    captioner(batches[0], **generation)  # warm up
    times = []
    for images in batches:
        start = time.perf_counter()
        captioner(images, **generation)
        times.append(1000 * (time.perf_counter() - start) / len(images))
    return statistics.median(times)


def training_captions(model: str, names: Sequence[str] | None) -> set[str]:
    """The captions a model was trained on, normalised: of the data sets `names`, else of those in recipe.json, which is
    in the model's folder or, for the best of a run, in the run's.

    Raises:
        DataError: they cannot be read.
    """
    split = "train"
    if names is None:
        files = [file for folder in (Path(model), Path(model).parent) if (file := folder / "recipe.json").is_file()]
        try:
            data = json.loads(files[0].read_text(encoding="utf-8"))["data"]
            names, split = data["train"], data.get("train_split", "train")
        except (IndexError, OSError, ValueError, KeyError, TypeError):
            raise DataError("the model has no recipe.json: name its data sets with --training-data") from None
    return {normalise_caption(text) for name in names for group in read_captions(name, split) for text in group}


def describe_captions(captions: Iterable[str], vocabulary: int, seen: set[str] | None) -> dict[str, Any]:
    """How various the captions are.

    Args:
        captions: one a photograph.
        vocabulary: words the model knows.
        seen: normalised training captions; None leaves their share out.
    """
    texts = [normalise_caption(caption) for caption in captions]
    words = [text.split() for text in texts]
    used = {word for caption in words for word in caption}
    return {
        "distinct_captions": round(len(set(texts)) / len(texts), 4),
        "mean_words": round(sum(map(len, words)) / len(texts), 2),
        "words_used": len(used),
        "vocabulary_used": round(len(used) / vocabulary, 4),
    } | ({} if seen is None else {"seen_in_training": round(sum(text in seen for text in texts) / len(texts), 4)})


def evaluate_captions(
    captioner: LoadedCaptioner, data: CaptionSplit, options: EvaluationOptions, seen: set[str] | None = None
) -> list[tuple[dict[str, Any], dict[int, str]]]:
    """For each beam width a report and the captions by row; `seen` as in `describe_captions`."""
    results = []
    for beams, captions in caption_split(captioner, data, options).items():
        rows = list(captions)
        scored = score_captions(list(captions.values()), [data.captions[row] for row in rows])
        settings = captioner.model.generation_config.to_diff_dict() | dict(options.generation) | {"num_beams": beams}
        settings.pop("transformers_version", None)
        report = {
            "num_beams": beams,
            "photographs": len(rows),
            "skipped": len(data) - len(rows),
            **scored.scores,
            "tokenizer": scored.tokenizer,
            "not_measured": scored.missing,
            **describe_captions(captions.values(), len(captioner.tokenizer), seen),
            "parameters": captioner.model.num_parameters(),
            "generation": settings,
        }
        if options.bootstrap:
            report["cider_interval"] = [round(x, 2) for x in bootstrap_interval(scored.cider_each, options.bootstrap)]
        if options.latency_photos:
            times = measure_latency(
                captioner, data, rows, options.latency_photos, num_beams=beams, **options.generation
            )
            report |= {"latency_ms": round(times[0], 1), "latency_batch_ms": round(times[1], 1)}
            report["threads"] = torch.get_num_threads()
        results.append((report, captions))
    return results


def evaluate_all(
    model: str, dataset: Any, split: str, options: EvaluationOptions
) -> list[tuple[dict[str, Any], dict[str, str]]]:
    """For each beam width a report and the captions by image id.

    Args:
        model: folder of a captioner, or Hub id.
        dataset, split: what to caption; see `training.caption_sources`.
    """
    captioner = LoadedCaptioner(model)
    data = read_split(dataset, split, options.limit)
    unknown = {}
    try:
        seen = training_captions(model, options.training_data)
    except PictaleError as error:
        if options.training_data is not None:
            raise
        seen, unknown = None, {"seen_in_training": str(error)}
    head = {"model": model, "dataset": data.name.removesuffix(f" {split}"), "split": split}
    results = []
    for report, captions in evaluate_captions(captioner, data, options, seen):
        report["not_measured"] |= unknown
        results.append((head | report, {data.image_ids[row]: caption for row, caption in captions.items()}))
    return results


def evaluate(
    model: str, dataset: Any, split: str, num_beams: int = 3, **options
) -> tuple[dict[str, Any], dict[str, str]]:
    """`evaluate_all` for one beam width; `options` are those of `EvaluationOptions`."""
    return evaluate_all(model, dataset, split, EvaluationOptions(num_beams=(num_beams,), **options))[0]


def markdown_table(reports: Sequence[Mapping[str, Any]]) -> str:
    """The rows of a model card, one for each report; a metric that none has is left out."""
    columns = {key: title for key, title in COLUMNS.items() if any(key in report for report in reports)}
    rows = [list(columns.values()), ["---"] * len(columns)]
    for report in reports:
        rows.append([_cell(key, report.get(key)) for key in columns])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if key in SHARES else f"{value:.1f}" if isinstance(value, float) else str(value)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a captioner, or Hub id")
    parser.add_argument(
        "--dataset", required=True, help="folder or file of captions, Hub id, or a name in $PICTALE_DATA"
    )
    parser.add_argument(
        "--images", default=None, help="folder of the photographs, where they are not beside the captions"
    )
    parser.add_argument("--split", default="validation", help="train, validation, test, or all")
    parser.add_argument("--num-beams", default="3", metavar="N[,N]", help="beam width, or several for a table (3)")
    parser.add_argument("--length-penalty", type=float, default=None, help="of beam search; default: the model's own")
    parser.add_argument(
        "--generate",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="setting of generate(): no_repeat_ngram_size=2, do_sample=true, temperature=0.7, ... (repeatable)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--latency-photos", type=int, default=20, help="photographs timed one by one; 0 for none")
    parser.add_argument("--bootstrap", type=int, default=0, metavar="DRAWS", help="95 %% interval of CIDEr, e.g. 1000")
    parser.add_argument(
        "--training-data",
        action="append",
        default=None,
        metavar="NAME",
        help="data set the model was trained on (repeatable); default: those of its recipe.json",
    )
    parser.add_argument("--limit", type=int, default=None, help="only the first photographs")
    parser.add_argument("--captions", type=Path, default=None, help="also write the captions to this JSON file")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line, one for each beam width")
    parser.add_argument("--markdown", action="store_true", help="print the table of a model card")
    return parser


def parse_options(args: argparse.Namespace) -> EvaluationOptions:
    """Raises RecipeError for a beam width or a setting that is malformed."""
    try:
        beams = tuple(dict.fromkeys(int(text) for text in args.num_beams.split(",")))
    except ValueError:
        beams = (0,)
    if min(beams) < 1:
        raise RecipeError(f"--num-beams takes a width or several, 1,3,5 for example, not '{args.num_beams}'.")
    generation = {} if args.length_penalty is None else {"length_penalty": args.length_penalty}
    for setting in args.generate:
        key, separator, text = setting.partition("=")
        if not separator:
            raise RecipeError(f"--generate takes KEY=VALUE, not '{setting}'.")
        try:
            generation[key] = json.loads(text)
        except ValueError:
            raise RecipeError(f"--generate {setting}: the value is a number, true, false or a list.") from None
    return EvaluationOptions(
        beams,
        generation,
        args.batch_size,
        args.latency_photos,
        args.bootstrap,
        args.training_data,
        args.limit,
        args.seed,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    disable_progress_bar()  # of transformers, which draws one for the weights
    try:
        options = parse_options(args)
        dataset = {"path": args.dataset, "images": args.images} if args.images else args.dataset
        results = evaluate_all(args.model, dataset, args.split, options)
    except PictaleError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    reports = [report for report, _ in results]
    if args.captions:
        written = {report["num_beams"]: captions for report, captions in results}
        content = results[0][1] if len(results) == 1 else written
        args.captions.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    if args.json:
        command = command_line("evaluate_captioner", arguments)
        print("\n".join(json.dumps(report | {"command": command}) for report in reports))
    elif args.markdown:
        print(markdown_table(reports))
    else:
        for name, value in reports[0].items():
            if len(reports) == 1 or all(report.get(name) == value for report in reports):
                print(f"{name:18} {value}")
        if len(reports) > 1:
            print(f"\n{markdown_table(reports)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
