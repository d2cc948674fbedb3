"""Whether a storyteller is better than the one it was made from, on photos that neither has learned from.

Both tell of the same prompts from the same seeds; the judges of `training.storyteller_scores`, and whether a story
breaks no rule (`whole`), are compared story by story, and the loss on held-out stories by people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modeling.errors import RecipeError

from .story_measures import bootstrap, mean_of, rounded


@dataclass
class Comparing:
    """The `comparing` section.

    Args:
        prompts: Held-out photos that both tell of.
        stories: Of each prompt, by each of them.
        whole: Weight of `whole` beside those of the judges.
        loss_rise: Most that the held-out loss may rise.
        draws: Of the bootstrap, over prompts.
    """

    prompts: int = 100
    stories: int = 2
    whole: float = 1.0
    loss_rise: float = 0.02
    draws: int = 2000

    def __post_init__(self) -> None:
        if min(self.prompts, self.stories, self.draws) < 1:
            raise RecipeError("comparing: prompts, stories and draws are 1 or more.")


def paired(
    stories: Sequence[Mapping[str, Any]],
    old: Sequence[Mapping[str, Any]],
    new: Sequence[Mapping[str, Any]],
    weights: Mapping[str, float],
    draws: int = 2000,
) -> dict[str, dict[str, float]]:
    """What the new model's scores have more than the old one's: means, with 95 % intervals over prompts.

    Args:
        stories: Who asked for each pair of stories (`prompt`).
        old, new: Scores of the stories [S], with `broken`.
        weights: Of the judges and of `whole`.

    Returns:
        By judge; `total` is the weighted sum in deviations of all scores of a judge, so that 1 is a deviation.
    """
    groups = [story["prompt"] for story in stories]
    report, total = {}, np.zeros(len(stories))
    for name, weight in weights.items():
        before, after = (np.array([_score(one, name) for one in scores], float) for scores in (old, new))
        known = ~(np.isnan(before) | np.isnan(after))
        if not known.any():
            continue
        difference = after - before
        spread = np.concatenate([before[known], after[known]]).std()
        if spread > 0:
            total += weight * np.where(known, difference / spread, 0.0)
        rows = np.flatnonzero(known)
        means = {"old": round(float(before[known].mean()), 4), "new": round(float(after[known].mean()), 4)}
        figures = bootstrap([groups[i] for i in rows], mean_of(difference[rows]), draws)
        report[name] = means | rounded(figures)
    return report | {"total": rounded(bootstrap(groups, mean_of(total), draws))}


def _score(record: Mapping[str, Any], name: str) -> float:
    if name == "whole":
        return float(record["broken"] is None)
    value = record.get(name)
    return np.nan if value is None else value


def loss_difference(
    old: Sequence[Sequence[float]], new: Sequence[Sequence[float]], draws: int = 2000
) -> dict[str, float]:
    """Held-out loss a token of both, and the new one's less the old one's with its 95 % interval over stories.

    Args:
        old, new: Losses of the tokens of each story.
    """
    tokens = np.array([len(losses) for losses in old], float)
    before, after = (np.array([sum(losses) for losses in model]) for model in (old, new))

    def statistic(rows: np.ndarray) -> float:
        return float((after[rows] - before[rows]).sum() / tokens[rows].sum())

    means = {"old": before.sum() / tokens.sum(), "new": after.sum() / tokens.sum()}
    return rounded(means | bootstrap(range(len(tokens)), statistic, draws))


def verdict(report: Mapping[str, Mapping[str, float]], loss: Mapping[str, float], comparing: Comparing) -> str | None:
    """Why the new model is not to be kept; None if it is."""
    total = report["total"]
    if not total["low"] > 0:
        return (
            f"the judges do not find it better (total {total['value']:+.3f}, {total['low']:+.3f} to "
            f"{total['high']:+.3f})"
        )
    if loss["value"] > comparing.loss_rise:
        return f"the loss on people's held-out stories has risen by {loss['value']:.3f} (allowed {comparing.loss_rise})"
    return None
