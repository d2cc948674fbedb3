"""What callers ask of the storyteller's scheduler, texts and continuations of them, and how a token is drawn.

Shapes: N rows, H width of the network, V pieces of the vocabulary, K pieces considered.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from .errors import StoryError
from .sampling import SamplingOptions, considered, runs_of
from .story_network import Memory

PAGE_RUN = 6  # so many tokens in a row are not copied from a page


@dataclass(frozen=True)
class Continuation:
    """What was written behind a state so far.

    Args:
        ids: Tokens, without the one that ends a text.
        text: Of them, without a half character at its end.
        log_probs: Of each token under the model, whatever it was drawn from; one more for the end, if it `ended` so.
        ended: "" while it is written, "end" where the model ended the text, "stop" where the caller's `until` was met,
            "length" at the most tokens.
    """

    ids: tuple[int, ...] = ()
    text: str = ""
    log_probs: tuple[float, ...] = ()
    ended: str = ""

    @property
    def log_prob(self) -> float:
        """Sum over its tokens."""
        return sum(self.log_probs)


class Trunk:
    """A text that is gone on with.

    Callers add to `ids`, `told` and `kept` between jobs; the rest is the scheduler's thread's.

    Args:
        ids: Tokens of all of it, at least one.
        told: Tokens of the story so far, of which no run is repeated.
        page: Tokens of a page, of which no run of `PAGE_RUN` is copied.
    """

    def __init__(self, ids: Sequence[int], told: Sequence[int] = (), page: Sequence[int] = ()) -> None:
        self.ids, self.told = list(ids), list(told)
        self.page_runs = runs_of(page, PAGE_RUN)
        self.memory: Memory | None = None
        self.length = 0  # how many of the tokens the memory holds; what else it holds are continuations
        self.kept: list[int] = []  # columns of a continuation that go behind these
        self.tip: torch.Tensor | None = None  # what the network makes of the last token [H]; None: it is unread

    def add(self, ids: Sequence[int], columns: Sequence[int]) -> None:
        """Go on from (a beginning of) a continuation whose tokens are held in these columns of the memory."""
        if ids:
            self.ids += ids
            self.told += ids
            self.kept, self.tip = list(columns[: len(ids) - 1]), None  # the last is read anew, for what follows it


@dataclass
class Row:
    """A continuation in the making; `columns` are those of its tokens that were read: not the newest."""

    seed: int
    columns: list[int] = field(default_factory=list)
    runs: dict[tuple[int, ...], list[int]] = field(default_factory=dict)
    now: Continuation = Continuation()


class Job:
    """What one caller asks for: `count` continuations of a trunk; none only reads it.

    Args:
        seeds: One for each continuation.
        options: How tokens are drawn.
        until: Whether a continuation with this text is complete; asked after each token, in the scheduler's thread.
        most: Tokens of a continuation.
        may_end: Whether a text may come to its end.
    """

    def __init__(
        self,
        trunk: Trunk,
        seeds: Sequence[int] = (),
        options: SamplingOptions | None = None,
        until: Callable[[str], bool] | None = None,
        most: int = 0,
        may_end: bool = True,
    ) -> None:
        self.trunk, self.options, self.until = trunk, options or SamplingOptions(), until
        self.most, self.may_end = most, may_end
        self.rows = [Row(seed) for seed in seeds]
        self.told_runs = runs_of(trunk.told, self.options.no_repeat_ngram_size) if self.rows else {}
        self.begun = False
        self.changed = threading.Condition()
        self.steps, self.over, self.error = 0, False, None

    @property
    def going(self) -> list[Row]:
        return [row for row in self.rows if not row.now.ended]

    @property
    def branched(self) -> bool:
        """Whether continuations have begun: their trunk is read."""
        return any(row.now.ids for row in self.rows)

    @property
    def now(self) -> tuple[Continuation, ...]:
        return tuple(row.now for row in self.rows)

    def wait(self, seen: int) -> tuple[int, tuple[Continuation, ...]]:
        """Steps done and the continuations, once there are more than `seen` steps, or the job is over.

        Raises:
            Exception: what ended the job.
        """
        with self.changed:
            self.changed.wait_for(lambda: self.steps > seen or self.over)
            if self.error is not None:
                raise self.error
            return self.steps, self.now

    def tell(self, over: bool = False, error: BaseException | None = None) -> None:
        """Wake the caller."""
        with self.changed:
            self.steps, self.over, self.error = self.steps + 1, self.over or over or error is not None, error
            self.changed.notify_all()


def chosen(scores: torch.Tensor, numbers: torch.Tensor, options: SamplingOptions) -> torch.Tensor:
    """Draw from each row of scores [N, V] with a number of [0, 1) each [N] -> ids [N]; at temperature 0 the best.

    Raises:
        StoryError: all words of a row are barred.
    """
    if not torch.isfinite(scores.amax(1)).all():
        raise StoryError("Nothing is left that may be written: the rules about repetition are too strict.")
    if options.temperature <= 0:
        return scores.argmax(1)
    weights, ids = considered(scores, options)  # [N, K]
    sums = weights.cumsum(1)
    place = (sums <= numbers.unsqueeze(1) * sums[:, -1:]).sum(1)
    place = place.minimum((weights > 0).sum(1) - 1)  # sums are rounded
    return ids.gather(1, place.unsqueeze(1)).squeeze(1)


def noise(job: Job, row: Row) -> float:
    """A number of [0, 1) that follows from the seed and the place in the text alone."""
    return random.Random(f"{row.seed}/{len(job.trunk.ids) + len(row.now.ids)}").random()


def newest_tokens(told: Sequence[int], new: Sequence[int], count: int) -> list[int]:
    """The newest `count` tokens of a story."""
    if count <= len(new):
        return list(new[len(new) - count :])
    return [*told[max(len(told) + len(new) - count, 0) :], *new]
