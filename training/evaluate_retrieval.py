"""Measure a joint embedding the way papers do: photographs and sentences of a split look for each other.

    python -m training.evaluate_retrieval --model hub_configs/joint-embedding-flickr8k --dataset flickr8k
    python -m training.evaluate_retrieval --model DIR --captioner DIR --dataset PATH_OR_ID --split validation --json

R@1, R@5, R@10 in percent and the median rank, from photograph to sentence and from sentence to photograph, among all
photographs of the split and all their captions (`training.retrieval_metrics`). Photographs go through the image
processor and the captioner's backbone, as in use; nothing is cached. Milliseconds are those that the embedding adds to
a photograph whose features are there, and of a sentence, each the median of `--latency` single calls.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from modeling.caption_bank import CaptionBank
from modeling.errors import DataError, PictaleError
from modeling.model_folder import load_component
from modeling.modeling_joint_embedding import PictaleJointEmbedding
from modeling.modeling_skip_thoughts import PictaleSkipThoughtsEncoder

from .caption_sources import CaptionSplit, image_names, read_split, say_skipped
from .embedding_recipe import load_eyes, model_folder
from .feature_cache import decode_image
from .figures import command_line
from .retrieval_metrics import RECALL_AT, retrieval_scores

CAPTIONER = "hub_configs/captioner-flickr8k"
ENCODER = "hub_configs/skip-thoughts-books"


def load_embedding(folder: str, captioner: Any, encoder: str = ENCODER) -> PictaleJointEmbedding:
    """The joint embedding of a folder, looking through `captioner`.

    Raises:
        ModelFolderError: it is missing, damaged, or belongs to another captioner or encoder.
    """
    place = model_folder(folder)
    model = load_component(PictaleJointEmbedding.from_pretrained, place, "joint embedding").eval()
    if model.config.sentence_encoder == "skip-thoughts":
        model.read_with(load_component(PictaleSkipThoughtsEncoder.from_pretrained, model_folder(encoder), "encoder"))
    return model.look_through(captioner)


@torch.inference_mode()
def split_features(captioner: Any, processor: Any, split: CaptionSplit, batch_size: int = 16) -> dict[int, np.ndarray]:
    """Region features [P, F] of every photograph that can be read, by row.

    Raises:
        DataError: none can.
    """
    features: dict[int, np.ndarray] = {}
    unreadable: list[int] = []
    captioner.prepare_for_inference()
    bar = tqdm(range(0, len(split), batch_size), desc=split.name, unit="batch", file=sys.stderr, mininterval=2)
    for start in bar:
        images = {row: decode_image(split.images[row]) for row in range(len(split))[start : start + batch_size]}
        unreadable += [row for row, image in images.items() if image is None]
        images = {row: image for row, image in images.items() if image is not None}
        if images:
            pixels = processor(list(images.values()), return_tensors="pt").pixel_values
            found = captioner.encoder.extract(pixels.to(captioner.device)).half().cpu().numpy()
            features |= zip(images, found, strict=True)
    say_skipped(f"{split.name}: {{}} of {len(split)} images cannot be read", image_names(split.images, unreadable))
    if not features:
        raise DataError(f"{split.name}: no photograph can be read.")
    return features


def evaluate(
    model: str,
    captioner: str,
    dataset: Any,
    split: str,
    encoder: str = ENCODER,
    limit: int | None = None,
    latency: int = 50,
) -> dict[str, Any]:
    """A report: the scores of `training.retrieval_metrics`, sizes, and milliseconds.

    Args:
        model, captioner, encoder: model folders.
        dataset, split: see `training.caption_sources`.
        limit: only the first photographs.
        latency: calls that are timed; 0 leaves the times out.
    """
    eyes, processor = load_eyes(captioner)
    embedding = load_embedding(model, eyes, encoder)
    data = read_split(dataset, split, limit)
    features = split_features(eyes, processor, data)
    rows = [row for row in features if data.captions[row]]
    texts = [text for row in rows for text in data.captions[row]]
    owner = [i for i, row in enumerate(rows) for _ in data.captions[row]]
    images = np.concatenate(
        [embedding.embed_images(np.stack([features[r] for r in rows[i : i + 64]])) for i in range(0, len(rows), 64)]
    )
    report: dict[str, Any] = {"model": model, "captioner": captioner, "dataset": data.name.removesuffix(f" {split}")}
    report |= {"split": split, "photographs": len(rows), "sentences": len(texts), "skipped": len(data) - len(rows)}
    scores = retrieval_scores(images, embedding.embed_texts(texts), owner)
    report |= {name: round(value, 2) for name, value in scores.items()}
    report["parameters_beside_backbone"] = embedding.num_parameters()
    return report | (_latency(embedding, model, features[rows[0]], texts, latency) if latency else {})


def _latency(
    embedding: PictaleJointEmbedding, folder: str, features: np.ndarray, texts: Sequence[str], calls: int
) -> dict[str, Any]:
    times = {
        "photo_ms": _median_ms(lambda i: embedding.embed_images(features[None]), calls),
        "sentence_ms": _median_ms(lambda i: embedding.embed_texts([texts[i % len(texts)]]), calls),
    }
    try:
        bank = CaptionBank.load(folder)
    except PictaleError:
        return times | {"threads": torch.get_num_threads()}
    vector = embedding.embed_images(features[None])
    times["search_ms"] = _median_ms(lambda i: bank.nearest(vector, 100), calls)
    return times | {"bank": len(bank), "threads": torch.get_num_threads()}


def _median_ms(call: Callable[[int], Any], calls: int) -> float:
    call(0)  # warm up
    times = []
    for i in range(calls):
        start = time.perf_counter()
        call(i)
        times.append(1000 * (time.perf_counter() - start))
    return round(statistics.median(times), 2)


def table(report: dict[str, Any]) -> str:
    """The two rows of a paper's table."""
    lines = [
        "|  | " + " | ".join(f"R@{k}" for k in RECALL_AT) + " | median rank |",
        "|---" * (len(RECALL_AT) + 2) + "|",
    ]
    for key, title in (("to_text", "photo -> sentence"), ("to_image", "sentence -> photo")):
        shares = " | ".join(f"{report[f'{key}_r{k}']:.1f}" for k in RECALL_AT)
        lines.append(f"| {title} | {shares} | {report[f'{key}_median_rank']:g} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a joint embedding")
    parser.add_argument("--captioner", default=CAPTIONER, help="captioner whose backbone it looks through")
    parser.add_argument("--encoder", default=ENCODER, help="skip-thought encoder, for an embedding that reads with it")
    parser.add_argument("--dataset", required=True, help="folder or file of captions, Hub id, or name in $PICTALE_DATA")
    parser.add_argument("--images", default=None, help="folder of the photographs, where they are elsewhere")
    parser.add_argument("--split", default="validation", help="train, validation, test, or all")
    parser.add_argument("--limit", type=int, default=None, help="only the first photographs")
    parser.add_argument("--latency", type=int, default=50, help="calls that are timed; 0 for none")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(arguments)
    disable_progress_bar()
    try:
        dataset = {"path": args.dataset, "images": args.images} if args.images else args.dataset
        report = evaluate(args.model, args.captioner, dataset, args.split, args.encoder, args.limit, args.latency)
    except PictaleError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(report | {"command": command_line("evaluate_retrieval", arguments)}))
    else:
        print("\n".join(f"{name:28} {value}" for name, value in report.items()), table(report), sep="\n\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
