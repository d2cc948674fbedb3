"""The figures of told stories, the differences between two who tell, and both as tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import story_measures as measures
from .ngram_judge import NgramJudge
from .story_judges import SentenceJudge, StyleJudge
from .story_systems import Photos, Told

COLUMNS = {
    "found": "found",
    "margin": "margin",
    "words": "words",
    "style": "style",
    "perplexity": "perplexity",
    "unknown": "unknown",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "repeated": "repeated",
    "copied": "copied",
    "length": "length",
    "first_words_s": "first words, s",
    "whole_s": "whole, s",
}
SHARES = ("found", "words", "style", "unknown", "repeated", "copied")
TENTHS = ("perplexity", "length")  # one digit after the point is enough


@dataclass(frozen=True)
class Judges:
    """Those that could be had; None is left out."""

    sentence: SentenceJudge | None = None
    fluency: NgramJudge | None = None
    style: StyleJudge | None = None


@dataclass(frozen=True)
class Scored:
    """A row of the report, and what its figures with intervals are of.

    Args:
        row: As reported.
        photos: Of each story.
        figures: Of the indices of stories, by name.
    """

    row: dict[str, Any]
    photos: list[int]
    figures: dict[str, Callable[[np.ndarray], float]]


def score(
    told: Sequence[Told],
    photos: Photos,
    copies: Mapping[str, np.ndarray],
    judges: Judges,
    budget: int,
    draws: int,
) -> Scored:
    """All figures of one system's stories that the judges at hand can give.

    Args:
        copies: Whether each story has something copied, by where from [stories].
        budget: Words that distinct-n looks at, the same for all systems.
        draws: For the intervals; 0 leaves them out.
    """
    texts, owner = [story.text for story in told], [story.photo for story in told]
    figures: dict[str, Callable[[np.ndarray], float]] = {}
    by_style: dict[str, dict[str, float]] = {style: {} for style in dict.fromkeys(story.style for story in told)}

    def mean(name: str, values: Sequence[Any] | np.ndarray, each_style: bool = False) -> None:
        figures[name] = measures.mean_of(values)
        for style, shares in by_style.items() if each_style else ():
            own = [float(value) for value, story in zip(values, told, strict=True) if story.style == style]
            shares[name] = round(statistics.fmean(own), 4)

    if judges.sentence:
        vectors = np.stack([judges.sentence.embed(group).mean(0) for group in photos.captions])
        found, margin = measures.grounding(judges.sentence.embed(texts), vectors, owner)
        mean("found", found, each_style=True)
        mean("margin", margin)
    mean("words", [measures.word_recall(s.text, photos.captions[s.photo]) for s in told])
    if judges.style:
        guesses = judges.style.classify(texts, [story.book for story in told])
        mean("style", [guess == story.style for guess, story in zip(guesses, told, strict=True)], each_style=True)
    if judges.fluency:
        losses, counts, unknown = judges.fluency.losses(texts)
        figures["perplexity"] = measures.perplexity_of(losses, counts)
        mean("unknown", unknown / counts)
    mean("repeated", [measures.repeated(text) for text in texts])
    mean("copied", np.any(list(copies.values()), axis=0), each_style=True)
    mean("length", [len(measures.plain_words(text)) for text in texts])
    row: dict[str, Any] = {"stories": len(told)}
    row |= {name: _rounded(name, measures.bootstrap(owner, figure, draws)) for name, figure in figures.items()}
    row["copied_from"] = {place: round(float(found.mean()), 4) for place, found in copies.items()}
    row |= {f"distinct_{size}": round(measures.distinct(texts, size, budget), 4) for size in (1, 2, 3)}
    for name, key in (("first_words", "first_words_s"), ("whole", "whole_s"), ("processor", "processor_s")):
        times = [value for story in told if (value := getattr(story, name)) is not None]
        row[key] = round(statistics.median(times), 3) if times else None
    return Scored(row | {"by_style": by_style}, owner, figures)


def differences(first: Scored, other: Scored, draws: int) -> dict[str, dict[str, Any]]:
    """Each figure of `other` less that of `first`, see `story_measures.paired`."""
    return {
        name: _rounded(name, measures.paired(first.photos, figure, other.photos, other.figures[name], draws))
        for name, figure in first.figures.items()
        if name in other.figures
    }


def _rounded(name: str, figure: Mapping[str, Any]) -> dict[str, Any]:
    return measures.rounded(figure, 1 if name in TENTHS else 4)


# -- for reading -----------------------------------------------------------------------------------------------------
def markdown_table(report: Mapping[str, Any]) -> str:
    """The systems as the table of a model card, with intervals where there are any; a dash: not measured."""
    return _table(report["systems"])


def difference_table(report: Mapping[str, Any]) -> str:
    """What each system has more than the first, and whether that lies inside the interval of no difference."""
    return _table(report["differences"], sign="+")


def _table(rows: Mapping[str, Mapping[str, Any]], sign: str = "") -> str:
    columns = {key: title for key, title in COLUMNS.items() if any(row.get(key) is not None for row in rows.values())}
    lines = [["", *columns.values()], ["---"] * (len(columns) + 1)]
    lines += [[name, *(_cell(key, row.get(key), sign) for key in columns)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(key: str, figure: Any, sign: str) -> str:
    if figure is None:
        return "-"
    value = figure["value"] if isinstance(figure, Mapping) else figure
    scale, form = (100, ".0f") if key in SHARES else (1, ".0f" if key in TENTHS else ".2f")
    text = f"{scale * value:{sign}{form}}"
    if isinstance(figure, Mapping) and "low" in figure:
        text += f" ({scale * figure['low']:{sign}{form}} to {scale * figure['high']:{sign}{form}})"
    text += " %" if key in SHARES else ""
    if isinstance(figure, Mapping) and "inside" in figure:
        text += ", inside" if figure["inside"] else ", **outside**"
    return text
