"""Why one candidate is better than another: five scores and their weighted sum.

A candidate is a sentence that could go on from the story so far. With v the thought of the passage as it would be with
the candidate, b the style:

    picture     cosine of the photo and the passage in the joint embedding (the mean of its sentences), which sees what
                the captions do not say; 0 where there is no photo, or nothing that reads both
    words       share of the words of the captions that the passage would have, in any inflected form, 0..1
    style       softmax over all styles of 3 cos(v - m, b_k - m), at b; m the mean of all styles, 0..1
    likelihood  mean log-probability of the candidate's pieces of words under the writer, at most 0
    repetition  share of its word trigrams, and of its word pairs with a content word, that the story or the candidate
                itself had before (the mean of both), 0..1

The first four are brought to mean 0 and deviation 1 over the candidates of a choice, so that their weights mean the
same for every model (a deviation below the one in `SMALL` counts as that, for differences too small to matter); the
sum is picture + words + style + likelihood - repetition, each times its weight.

The novels' styles lie within a cosine of 0.98 of each other as seen from the mean of captions, so cos(v, b), the
obvious measure, tells prose from captions and hardly one genre from another; hence the softmax over differences.

Shapes: N candidates, S styles, D thought width, E joint space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .modeling_skip_thoughts import PictaleSkipThoughtsEncoder
from .story_types import Candidate, StoryOptions
from .text import content_words, is_content_word, split_sentences
from .word_forms import taken_up
from .words import split_words

SMALL = {"picture": 0.02, "words": 0.05, "style": 0.01, "likelihood": 0.1}
STYLE_SHARPNESS = 3.0
_AGAINST = ("repetition",)


@dataclass(frozen=True)
class Proposal:
    """A candidate as the writer gives it: text and mean log-probability."""

    text: str
    log_prob: float


@dataclass(frozen=True)
class Wish:
    """What a passage should be like.

    Args:
        seen: x - c, what is particular to the photo [D].
        style: b [D]; None ranks without style.
        content: Words it should take up.
        before: The story so far, which it should go on from and not repeat.
        view: Vector of the photo in the joint space [E]; None ranks without it.
    """

    seen: np.ndarray
    style: np.ndarray | None = None
    content: tuple[str, ...] = ()
    before: str = ""
    view: np.ndarray | None = None


class Ranking:
    """Scores the candidates of one passage, choice after choice.

    Args:
        encoder: Of the thoughts.
        styles: Vectors of all styles there are, the mean caption among them [S, D].
        wish: What the passage should be like.
        options: Weights.
        read: Puts sentences into the joint space of the wish's view [N, E]; None ranks without the photo.
    """

    def __init__(
        self,
        encoder: PictaleSkipThoughtsEncoder,
        styles: np.ndarray,
        wish: Wish,
        options: StoryOptions,
        read: Callable[[Sequence[str]], np.ndarray] | None = None,
    ) -> None:
        self.encoder, self.wish, self.options, self.read = encoder, wish, options, read
        self.middle = styles.mean(0)
        self.targets = self._targets(styles)  # the style itself first
        self.text = ""
        self.sum, self.count = np.zeros_like(self.middle), 0
        self.shown = np.zeros_like(wish.view) if self._sees() else np.zeros(0)  # sum of the sentences, joint space
        self._sums: list[tuple[np.ndarray, int, np.ndarray]] = []

    def _sees(self) -> bool:
        return self.read is not None and self.wish.view is not None and self.options.weight_picture != 0

    def _targets(self, styles: np.ndarray) -> np.ndarray:
        if self.wish.style is None:
            return styles[:0]
        others = [b for b in styles if not np.allclose(b, self.wish.style, atol=1e-6)]
        return np.stack([self.wish.style, *others])

    def score(self, proposals: Sequence[Proposal]) -> list[Candidate]:
        """A candidate for each proposal, in their order."""
        sentences = [split_sentences(p.text) or [p.text] for p in proposals]
        flat = [sentence for group in sentences for sentence in group]
        vectors = self.encoder.encode(flat)
        shown = self.read(flat) if self._sees() else np.zeros((len(flat), 0))
        ends = np.cumsum([len(group) for group in sentences])
        parts = [slice(end - len(group), end) for end, group in zip(ends, sentences, strict=True)]
        self._sums = [
            (self.sum + vectors[p].sum(0), self.count + p.stop - p.start, self.shown + shown[p].sum(0)) for p in parts
        ]
        thoughts = np.stack([total / count for total, count, _ in self._sums])  # [N, D]
        views = np.stack([now for _, _, now in self._sums])  # [N, E]
        picture = _cosines(views, self.wish.view[None])[:, 0] if self._sees() else np.zeros(len(proposals))
        style, told = self._style(thoughts), set(_ngrams(f"{self.wish.before} {self.text}"))
        rows = [
            {
                "picture": float(picture[i]),
                "words": self._recall(proposal.text),
                "style": float(style[i]),
                "likelihood": proposal.log_prob,
                "repetition": _repetition(proposal.text, told),
            }
            for i, proposal in enumerate(proposals)
        ]
        totals = weighted_sums(rows, self.options)
        return [Candidate(p.text, t, row) for p, t, row in zip(proposals, totals, rows, strict=True)]

    def keep(self, index: int, text: str) -> None:
        """The candidate at `index` was chosen, and the passage now reads `text`."""
        (self.sum, self.count, self.shown), self.text = self._sums[index], text

    def _recall(self, text: str) -> float:
        wanted = self.wish.content
        return len(taken_up(wanted, content_words([self.text, text]))) / max(len(wanted), 1)

    def _style(self, thoughts: np.ndarray) -> np.ndarray:
        """How much of its style each of the thoughts has [N, D] -> [N]."""
        if not len(self.targets):
            return np.zeros(len(thoughts))
        shares = np.exp(STYLE_SHARPNESS * _cosines(thoughts - self.middle, self.targets - self.middle))
        return shares[:, 0] / shares.sum(1)


def weighted_sums(rows: Sequence[Mapping[str, float]], options: StoryOptions) -> list[float]:
    """What candidates with these scores are ranked by."""
    totals = np.zeros(len(rows))
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        if name in SMALL:
            values = (values - values.mean()) / max(float(values.std()), SMALL[name])
        weight = getattr(options, f"weight_{name}")
        if name == "style":
            weight *= options.strength
        totals += (-weight if name in _AGAINST else weight) * values
    return totals.tolist()


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each row of a [N, D] with each of b [M, D] -> [N, M]."""
    lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    return a @ b.T / np.maximum(lengths, 1e-8)


def _words(text: str) -> list[str]:
    return [word for word in split_words(text, lowercase=True) if word[0].isalnum()]


def _ngrams(text: str) -> list[tuple[str, ...]]:
    """Trigrams of the words, and pairs with a content word."""
    words = _words(text)
    pairs = (pair for pair in zip(words, words[1:], strict=False) if any(map(is_content_word, pair)))
    return [*zip(words, words[1:], words[2:], strict=False), *pairs]


def _repetition(text: str, told: set[tuple[str, ...]]) -> float:
    shares = []
    for size in (2, 3):
        ngrams = [ngram for ngram in _ngrams(text) if len(ngram) == size]
        shares.append(1 - len(set(ngrams) - told) / len(ngrams) if ngrams else 0.0)
    return sum(shares) / len(shares)
