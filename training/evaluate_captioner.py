"""Measure a captioner the way papers do: generated captions, PTB tokenization, BLEU, METEOR, ROUGE-L and CIDEr.

    python -m training.evaluate_captioner --model hub_configs/captioner-flickr8k --dataset flickr8k --split validation
    python -m training.evaluate_captioner --model DIR --dataset PATH_OR_ID --split validation --num-beams 5 --json

Photographs go through the image processor and the backbone, as in use; nothing is cached. Latency is the median over
`--latency-photos` single photographs, image processor and backbone included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from modeling.errors import DataError, ModelFolderError, PictaleError
from modeling.image_processing_captioner import PictaleImageProcessor
from modeling.modeling_captioner import PictaleCaptionerForConditionalGeneration
from modeling.text import clean_text

from .data_captions import CaptionSplit, read_split
from .feature_cache import decode_image
from .metrics_captions import score_captions


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
    def __call__(self, images: list, **generation) -> list[str]:
        pixels = self.processor(images, return_tensors="pt").pixel_values.to(self.model.device)
        ids = self.model.generate(pixel_values=pixels, **generation)
        return [clean_text(text) for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def caption_split(captioner: LoadedCaptioner, split: CaptionSplit, batch_size: int, **generation) -> dict[int, str]:
    """A caption for each photograph that can be read, by row."""
    captions, rows, images = {}, [], []
    for row in tqdm(range(len(split)), desc=split.name, unit="photo", file=sys.stderr, mininterval=2):
        image = decode_image(split.images[row]) if split.captions[row] else None
        if image is not None:
            rows.append(row)
            images.append(image)
        if images and (len(images) == batch_size or row == len(split) - 1):
            captions |= zip(rows, captioner(images, **generation), strict=True)
            rows, images = [], []
    if not captions:
        raise DataError(f"{split.name}: no photograph with captions can be read.")
    return captions


def measure_latency(captioner: LoadedCaptioner, split: CaptionSplit, rows: Sequence[int], **generation) -> float:
    """Median milliseconds from decoded photograph to caption text, batch 1."""
    times = []
    for row in rows:
        image = decode_image(split.images[row])
        start = time.perf_counter()
        captioner([image], **generation)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def evaluate(
    model: str,
    dataset: str,
    split: str,
    num_beams: int = 3,
    batch_size: int = 16,
    latency_photos: int = 20,
    limit: int | None = None,
    **generation,
) -> tuple[dict, dict[str, str]]:
    """Report and captions by image id.

    Args:
        model: folder of a captioner, or Hub id.
        dataset, split: what to caption; see `training.data_captions`.
        num_beams, generation: for `generate`.
        latency_photos: photographs timed one by one; 0 leaves latency out.
        limit: only the first photographs.
    """
    captioner = LoadedCaptioner(model)
    data = read_split(dataset, split, limit)
    captions = caption_split(captioner, data, batch_size, num_beams=num_beams, **generation)
    rows = list(captions)
    scored = score_captions([captions[r] for r in rows], [data.captions[r] for r in rows])
    words = [caption.lower().rstrip(".").split() for caption in captions.values()]
    report = {
        "model": model,
        "dataset": dataset,
        "split": split,
        "num_beams": num_beams,
        "photographs": len(rows),
        "skipped": len(data) - len(rows),
        **scored.scores,
        "tokenizer": scored.tokenizer,
        "not_measured": scored.missing,
        "distinct_captions": round(len(set(captions.values())) / len(rows), 4),
        "mean_words": round(sum(map(len, words)) / len(rows), 2),
        "words_used": len({word for caption in words for word in caption}),
        "parameters": captioner.model.num_parameters(),
    }
    if latency_photos:
        timed = rows[: latency_photos + 1]
        measure_latency(captioner, data, timed[:1], num_beams=num_beams, **generation)  # warm up
        report["latency_ms"] = round(measure_latency(captioner, data, timed, num_beams=num_beams, **generation), 1)
        report["threads"] = torch.get_num_threads()
    return report, {data.image_ids[row]: caption for row, caption in captions.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a captioner, or Hub id")
    parser.add_argument("--dataset", required=True, help="folder of parquet files, Hub id, or a name in $PICTALE_DATA")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--num-beams", type=int, default=3)
    parser.add_argument("--length-penalty", type=float, default=None, help="of beam search; default: the model's own")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--latency-photos", type=int, default=20, help="photographs timed one by one; 0 for none")
    parser.add_argument("--limit", type=int, default=None, help="only the first photographs")
    parser.add_argument("--captions", type=Path, default=None, help="also write the captions to this JSON file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(arguments)
    generation = {} if args.length_penalty is None else {"length_penalty": args.length_penalty}
    try:
        report, captions = evaluate(
            args.model,
            args.dataset,
            args.split,
            args.num_beams,
            args.batch_size,
            args.latency_photos,
            args.limit,
            **generation,
        )
    except PictaleError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    if args.captions:
        args.captions.write_text(json.dumps(captions, indent=1, ensure_ascii=False), encoding="utf-8")
    if args.json:
        print(json.dumps(report))
    else:
        for name, value in report.items():
            print(f"{name:18} {value}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
