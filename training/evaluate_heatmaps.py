"""Measure whether a captioner looks where the thing is that it names.

    python -m training.evaluate_heatmaps --model hub_configs/captioner-flickr8k --dataset flickr8k --split validation
    python -m training.evaluate_heatmaps --model DIR --dataset PATH_OR_ID --split validation --json

Two photographs are put side by side, in both orders. Each shows things that all of its captions name and no caption of
the other does: a dog left, a bicycle right. The captioner describes the whole; whenever it names such a thing, the map
of the word, the one that the page shows, should lie more on the half with the thing. A map that has nothing to do with
the word does so as often as `chance` says, about half the time; it is measured from the maps of other words, so that a
captioner which prefers one side gains nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from modeling.errors import DataError, PictaleError
from modeling.tokenization import whole_words

from .caption_sources import CaptionSplit, read_split
from .data_captions import normalise_caption
from .evaluate_captioner import LoadedCaptioner
from .feature_cache import decode_image

# Things that photographs of everyday life show in a place of their own, and the words for them.
THINGS: Mapping[str, str] = {
    "dog": "dog dogs puppy puppies",
    "person": "man men woman women boy boys girl girls child children kid kids toddler toddlers baby person people "
    "lady ladies guy guys player players rider skateboarder surfer skier snowboarder climber hiker cyclist biker crowd",
    "horse": "horse horses pony",
    "bicycle": "bike bikes bicycle bicycles",
    "car": "car cars truck",
    "ball": "ball balls football basketball baseball",
    "skateboard": "skateboard skateboards",
    "water": "water ocean sea lake river pool wave waves",
    "snow": "snow snowy",
    "grass": "grass grassy",
    "sand": "sand sandy beach",
    "rock": "rock rocks cliff mountain mountains",
}
OFFSETS = (0, 1, 2)


@dataclass(frozen=True)
class Pair:
    """Rows of two photographs and, for each, the things that only it shows."""

    rows: tuple[int, int]
    things: tuple[frozenset[str], frozenset[str]]


@dataclass(frozen=True)
class Case:
    """A named thing: of which pair, on which side (0 left, 1 right), and the share of the map on the right half for the
    step of the word and the steps after it, as far as there are any.
    """

    pair: int
    thing: str
    side: int
    right: tuple[float, ...]


def word_things(things: Mapping[str, str] = THINGS) -> dict[str, str]:
    """The thing that each word names."""
    return {word: thing for thing, words in things.items() for word in words.split()}


def find_pairs(captions: Sequence[Sequence[str]], count: int, seed: int = 0) -> list[Pair]:
    """Up to `count` pairs of photographs with nothing of what counts in common; no photograph is in two pairs.

    Args:
        captions: of each photograph.
    """
    known = word_things()
    named = [[{known.get(word) for word in normalise_caption(text).split()} - {None} for text in c] for c in captions]
    sure = [frozenset.intersection(*map(frozenset, n)) if n else frozenset() for n in named]
    possible = [frozenset().union(*n) for n in named]
    order = [int(row) for row in np.random.default_rng(seed).permutation(len(captions)) if sure[row]]
    pairs: list[Pair] = []
    while order and len(pairs) < count:
        first = order.pop()
        for place in reversed(range(len(order))):
            second = order[place]
            things = sure[first] - possible[second], sure[second] - possible[first]
            if all(things):
                pairs.append(Pair((first, second), things))
                del order[place]
                break
    return pairs


def side_by_side(left: Image.Image, right: Image.Image, side: int) -> Image.Image:
    """Two squares in one picture, `side` pixels high and twice as wide."""
    canvas = Image.new("RGB", (2 * side, side))
    for place, image in enumerate((left, right)):
        canvas.paste(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC), (place * side, 0))
    return canvas


def share_on_the_right(maps: np.ndarray) -> np.ndarray:
    """Part of each map [..., rows, columns] that lies in the right half; a column in the middle belongs to both."""
    columns = maps.shape[-1]
    weight = np.clip(np.arange(1, columns + 1) - columns / 2, 0, 1)
    return (maps.sum(-2) * weight).sum(-1) / maps.sum((-2, -1))


def named_things(words: Sequence[str], pair: Pair, swapped: bool) -> Iterator[tuple[int, str, int]]:
    """(place of the word, thing, side) of every thing in a caption that only one half shows; each thing once."""
    known, told = word_things(), set()
    for place, word in enumerate(words):
        thing = known.get(word)
        for photo in (0, 1):
            if thing in pair.things[photo] and thing not in told:
                told.add(thing)
                yield place, thing, photo ^ swapped


@torch.inference_mode()
def describe(
    captioner: LoadedCaptioner, images: Sequence[Image.Image], num_beams: int
) -> list[tuple[list[str], list[list[int]], np.ndarray]]:
    """For each picture the words of its caption, the steps of each word, and the maps [steps, rows, columns]."""
    model, tokenizer = captioner.model, captioner.tokenizer
    encoded = captioner.encode(images)
    ids = model.generate(encoder_outputs=encoded, num_beams=num_beams, do_sample=False)
    _, attention = model.score(ids, encoder_outputs=encoded)  # [B, T - 1, P]
    attention = attention.unflatten(-1, model.grid_size).cpu().numpy()
    special, found = set(tokenizer.all_special_ids), []
    for sequence, maps in zip(ids[:, 1:].tolist(), attention, strict=True):
        steps = [step for step, token in enumerate(sequence) if token not in special]
        spelt = whole_words(tokenizer.convert_ids_to_tokens([sequence[step] for step in steps]))
        end = steps[-1] + 2 if steps else 0  # the step of the end counts, the padding after it does not
        found.append(([word for word, _ in spelt], [[steps[i] for i in parts] for _, parts in spelt], maps[:end]))
    return found


def collect(captioner: LoadedCaptioner, split: CaptionSplit, pairs: Sequence[Pair], num_beams: int) -> list[Case]:
    """Caption every pair in both orders and note where the maps of the named things lie."""
    cases, side = [], captioner.model.config.image_size
    for index, pair in enumerate(tqdm(pairs, desc=split.name, unit="pair", file=sys.stderr, mininterval=2)):
        photos = [decode_image(split.images[row]) for row in pair.rows]
        if None in photos:
            continue
        pictures = [side_by_side(*photos, side), side_by_side(*photos[::-1], side)]
        for swapped, (words, steps, maps) in enumerate(describe(captioner, pictures, num_beams)):
            for place, thing, half in named_things(words, pair, bool(swapped)):
                shown = [[s + k for s in steps[place]] for k in OFFSETS if steps[place][-1] + k < len(maps)]
                right = tuple(float(share_on_the_right(maps[s].mean(0))) for s in shown)
                cases.append(Case(index, thing, half, right))
    return cases


def hits(cases: Sequence[Case], offset: int = 0) -> np.ndarray:
    """1.0 for each case whose map lies more on the half of the thing, else 0.0."""
    return np.array([float((case.right[offset] > 0.5) == case.side) for case in cases])


def interval(cases: Sequence[Case], draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the share of hits, by drawing pairs with replacement: words of a pair are not independent."""
    pairs = np.array([case.pair for case in cases])
    _, where = np.unique(pairs, return_inverse=True)
    counts, sums = np.bincount(where), np.bincount(where, hits(cases))
    drawn = np.random.default_rng(seed).integers(0, len(counts), (draws, len(counts)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), (0.025, 0.975))
    return float(low), float(high)


def chance(cases: Sequence[Case]) -> float:
    """Share of hits if every word had the map of some word of another pair."""
    to_the_right = np.array([case.right[0] > 0.5 for case in cases])
    pairs, sides = np.array([case.pair for case in cases]), np.array([case.side for case in cases])
    expected = []
    for pair, side in zip(pairs, sides, strict=True):
        others = to_the_right[pairs != pair]
        expected.append(np.mean(others == side) if len(others) else 0.5)
    return float(np.mean(expected))


def evaluate(model: str, dataset: Any, split: str, pairs: int = 300, num_beams: int = 3, seed: int = 0) -> dict:
    """Report of the figures at the head of this file.

    Args:
        model: folder of a captioner, or Hub id.
        dataset, split: where the photographs are from; see `training.caption_sources`.
        pairs: at most so many.

    Raises:
        DataError: no two photographs are different enough, or nothing they show is named.
    """
    captioner, data = LoadedCaptioner(model), read_split(dataset, split)
    found = find_pairs(data.captions, pairs, seed)
    cases = collect(captioner, data, found, num_beams)
    if not cases:
        raise DataError(
            f"{data.name}: none of {len(found)} pairs of photographs has a thing that the captioner names; more "
            "photographs are needed, with captions in English."
        )
    low, high = interval(cases)
    own = [case.right[0] if case.side else 1 - case.right[0] for case in cases]
    by_thing = {thing: [case for case in cases if case.thing == thing] for thing in THINGS}
    return {
        "model": model,
        "dataset": data.name,
        "num_beams": num_beams,
        "pairs": len(found),
        "n": len(cases),
        "share": round(float(hits(cases).mean()), 4),
        "interval": [round(low, 4), round(high, 4)],
        "chance": round(chance(cases), 4),
        "attention_on_its_half": round(float(np.mean(own)), 4),
        "share_by_step_after_the_word": {
            str(k): round(float(hits(some, k).mean()), 4)
            for k in OFFSETS
            if (some := [case for case in cases if len(case.right) > k])
        },
        "by_thing": {
            thing: {"n": len(some), "share": round(float(hits(some).mean()), 4)}
            for thing, some in by_thing.items()
            if some
        },
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a captioner, or Hub id")
    parser.add_argument(
        "--dataset", required=True, help="folder or file of captions, Hub id, or a name in $PICTALE_DATA"
    )
    parser.add_argument("--split", default="validation", help="train, validation, test, or all")
    parser.add_argument("--pairs", type=int, default=300, help="pairs of photographs at most (300)")
    parser.add_argument("--num-beams", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of pairs")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(arguments)
    disable_progress_bar()  # of transformers, which draws one for the weights
    try:
        report = evaluate(args.model, args.dataset, args.split, args.pairs, args.num_beams, args.seed)
    except PictaleError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(report))
    else:
        for name, value in report.items():
            print(f"{name:30} {value}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
