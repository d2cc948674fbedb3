"""The best of the stories that a model told itself, as rows to learn from.

Scores are brought to mean 0 and deviation 1 within each style and length, and summed with the judges' weights. Of each
prompt the best story remains, of all prompts the best share, and of stories that open with the same four words a few.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from modeling.errors import RecipeError

from .story_measures import plain_words
from .storyteller_data import photos_of

SELF = "self"  # manner of such rows
OPENING_WORDS = 4


@dataclass
class Selecting:
    """The `selecting` section.

    Args:
        share: Of the prompts whose best story is kept, at most.
        openings: Stories that may open with the same four words.
    """

    share: float = 0.4
    openings: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.openings < 1:
            raise RecipeError("selecting: share is above 0 and at most 1, openings 1 or more.")


def totals(
    stories: Sequence[Mapping[str, Any]], scores: Sequence[Mapping[str, Any]], weights: Mapping[str, float]
) -> np.ndarray:
    """Weighted sum of the scores in deviations from the mean of their style and length; -inf for broken stories [S].

    A score that a story does not have counts as the mean.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for i, (story, score) in enumerate(zip(stories, scores, strict=True)):
        if score["broken"] is None:
            groups.setdefault((story["style"], story["length"]), []).append(i)
    result = np.full(len(stories), -np.inf)
    for rows in groups.values():
        result[rows] = 0.0
        for name, weight in weights.items():
            values = np.array([np.nan if scores[i].get(name) is None else scores[i][name] for i in rows], float)
            known = ~np.isnan(values)
            if known.any() and (spread := values[known].std()) > 0:
                result[rows] += weight * np.where(known, (values - values[known].mean()) / spread, 0.0)
    return result


def select(
    stories: Sequence[Mapping[str, Any]],
    scores: Sequence[Mapping[str, Any]],
    weights: Mapping[str, float],
    selecting: Selecting,
) -> list[int]:
    """Which stories are kept, best first."""
    ranks = totals(stories, scores, weights)
    best: dict[int, int] = {}  # story by prompt
    for i in np.argsort(-ranks, kind="stable").tolist():
        if np.isfinite(ranks[i]):
            best.setdefault(stories[i]["prompt"], i)
    most = int(selecting.share * len({story["prompt"] for story in stories}))
    kept, openings = [], Counter()
    for i in best.values():  # best first, as they were found
        opening = tuple(plain_words(stories[i]["text"])[:OPENING_WORDS])
        if len(kept) < most and openings[opening] < selecting.openings:
            openings[opening] += 1
            kept.append(i)
    return kept


def as_rows(stories: Sequence[Mapping[str, Any]], like: Dataset) -> Dataset:
    """Stories as rows of a data set of stories, in manner `self`; what is said of their photos is as there.

    Args:
        stories: `photo`, `style`, `length`, `page`, `title`, `text`.
        like: The data set that their photos are from.
    """
    known: dict[tuple[str, str], dict[str, Any]] = {}
    wanted = {tuple(story["photo"]) for story in stories}
    for row in like:
        if (photo := photos_of(row)[0]) in wanted:
            known.setdefault(photo, row)
    empty = dict.fromkeys(like.column_names)
    rows = []
    for story in stories:
        photo = tuple(story["photo"])
        seen = {name: known[photo].get(name) for name in ("photo_source", "photo_id", "captions", "seen", "recalled")}
        told = {
            "manner": SELF,
            "style": story["style"],
            "length": story["length"],
            "page": story["page"] or None,
            "title": story["title"],
            "story": story["text"],
            "kind": "one",
        }
        rows.append({name: value for name, value in (empty | seen | told).items() if name in empty})
    return Dataset.from_list(rows, features=like.features)


def mixed(selected: Dataset, like: Dataset) -> Dataset:
    """People's stories and then the model's own."""
    return concatenate_datasets([like, selected])
