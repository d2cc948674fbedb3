"""Why one candidate is better than another: scores, their scales, and their weighted sum.

A candidate is a sentence (or a whole passage) that could go on from the passage so far. With v the thought of the
passage as it would be with the candidate, x the captions' vector, c the mean of captions, b the style:

    grounding   cos(v - b, x - c): what is particular to this passage against what is particular to this photo, -1..1
    picture     cosine of the photo and the passage in the joint embedding (the mean of its sentences), which sees what
                the captions do not say; 0 where there is no photo, or nothing that reads both
    plot        cos(u - b, d): the candidate's own sentences u against what the plot says next, d (`modeling.plots`); 0
                where it follows none
    words       share of the wanted content words that the passage would have, in any inflected form, 0..1
    style       softmax over all styles of 3 cos(v - m, b_k - m), at b; m the mean of all styles, 0..1
    fluency     mean log-probability of the candidate's words, at most 0
    natural     log-odds that a person wrote its sentences and not the decoder (`modeling.naturalness`), their mean; 0
                where nothing was learned of that
    repetition  share of its word trigrams, and of its word pairs with a content word, that the story or the candidate
                itself had before (the mean of both), 0..1
    echo        share of its content words that the story or the candidate had before, in any inflected form, 0..1
    speech      1 if somebody speaks in it, 2 if the story begins so or the sentence before was speech, else 0: what is
                said aloud tells less of a picture, and makes less sense
    ending      1 if it ends as a sentence does, 0 if it was cut off
    length      1 for 8 to 30 words a sentence, falling to 0 at no words and at 60
    thread      how often it breaks the thread of the story: new names, a sex that nobody has, a coat's colour given to
                its man (`Cast.breaks`), an opening that goes on from nothing (`begins_in_the_middle`), 0..

The first seven are brought to mean 0 and deviation 1 over the candidates of a choice, so that their weights mean the
same for every model (a deviation below the one in `SMALL` counts as that, for differences too small to matter). The
sum is grounding + picture + plot + words + style + fluency + natural - repetition - echo - speech + ending + length -
thread, each times its weight.

The novels' styles lie within a cosine of 0.98 of each other as seen from c, so cos(v - c, b - c), the obvious measure,
tells prose from captions and hardly one genre from another. Over 840 passages of seven genres (of the books that the
styles were made from) the softmax ranked a genre's own passages above the others' with a mean area under the curve of
0.74, that cosine with 0.65.

Shapes: N candidates, S styles, D thought width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .modeling_skip_thoughts import PictaleSkipThoughtsEncoder
from .naturalness import Naturalness
from .story_thread import Cast, begins_in_the_middle
from .story_types import Candidate, StoryOptions
from .text import content_words, is_content_word, split_sentences
from .word_forms import base_form, taken_up
from .words import split_words

SMALL = {"grounding": 0.02, "picture": 0.02, "plot": 0.05, "words": 0.05, "style": 0.01, "fluency": 0.1, "natural": 0.1}
STYLE_SHARPNESS = 3.0
_AGAINST = ("repetition", "echo", "speech", "thread")
_SENTENCE_WORDS = (8, 30, 60)


@dataclass(frozen=True)
class Proposal:
    """A candidate as the decoder gives it: text, mean log-probability, and whether it came to its end."""

    text: str
    log_prob: float
    finished: bool


@dataclass(frozen=True)
class Wish:
    """What a passage should be like.

    Args:
        seen: x - c, what is particular to the photo [D].
        style: b [D]; None ranks without style.
        content: Words it should take up.
        given: Captions and sentences of the user's, which it must agree with.
        before: The story so far, which it should go on from and not repeat.
        view: Vector of the photo in the joint space [E]; None ranks without it.
    """

    seen: np.ndarray
    style: np.ndarray | None = None
    content: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    before: str = ""
    view: np.ndarray | None = None


class Ranking:
    """Scores the candidates of one passage, choice after choice.

    Args:
        encoder: Of the thoughts.
        styles: Vectors of all styles there are, the mean caption among them [S, D].
        caption_mean: c [D].
        vocabulary: Words of the decoder, by rank.
        wish: What the passage should be like.
        options: Weights.
        natural: What tells people's sentences from the decoder's; None ranks without.
        read: Puts sentences into the joint space of the wish's view [N, E]; None ranks without the photo.
    """

    def __init__(
        self,
        encoder: PictaleSkipThoughtsEncoder,
        styles: np.ndarray,
        caption_mean: np.ndarray,
        vocabulary: Mapping[str, int],
        wish: Wish,
        options: StoryOptions,
        natural: Naturalness | None = None,
        read: Callable[[Sequence[str]], np.ndarray] | None = None,
    ) -> None:
        self.natural, self.read = natural, read
        self.encoder, self.vocabulary, self.wish, self.options = encoder, vocabulary, wish, options
        self.base = caption_mean if wish.style is None else wish.style
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

    def score(self, proposals: Sequence[Proposal], event: np.ndarray | None = None) -> list[Candidate]:
        """A candidate for each proposal, in their order.

        Args:
            event: What the plot says next [D]; None: there is none.
        """
        sentences = [split_sentences(p.text) or [p.text] for p in proposals]
        flat = [sentence for group in sentences for sentence in group]
        vectors = self.encoder.encode(flat)
        odds = np.zeros(len(flat)) if self.natural is None else self.natural(vectors)
        shown = self.read(flat) if self._sees() else np.zeros((len(flat), 0))
        ends = np.cumsum([len(group) for group in sentences])
        parts = [slice(end - len(group), end) for end, group in zip(ends, sentences, strict=True)]
        self._sums = [
            (self.sum + vectors[p].sum(0), self.count + p.stop - p.start, self.shown + shown[p].sum(0)) for p in parts
        ]
        thoughts = np.stack([total / count for total, count, _ in self._sums])  # [N, D]
        before = f"{self.wish.before} {self.text}"
        cast, told = Cast.of(self.wish.given, before, self.vocabulary), set(_ngrams(before))
        said = set(_content(before))
        opening = not before.strip()
        spoken = 2.0 if opening or before.rstrip().endswith("”") else 1.0
        views = np.stack([now for _, _, now in self._sums])  # [N, E]
        picture = _cosines(views, self.wish.view[None])[:, 0] if self._sees() else np.zeros(len(proposals))
        grounding, style = _cosines(thoughts - self.base, self.wish.seen[None])[:, 0], self._style(thoughts)
        plot = np.zeros(len(proposals))
        if event is not None:
            own = np.stack([vectors[part].mean(0) for part in parts])  # [N, D]
            plot = _cosines(own - self.base, event[None])[:, 0]
        rows = [
            {
                "grounding": float(grounding[i]),
                "picture": float(picture[i]),
                "plot": float(plot[i]),
                "words": self._recall(proposal.text),
                "style": float(style[i]),
                "fluency": proposal.log_prob,
                "natural": float(odds[part].mean()),
                "repetition": _repetition(proposal.text, told),
                "echo": _echo(proposal.text, said),
                "speech": spoken * ("“" in proposal.text),
                "ending": float(proposal.finished),
                "length": _length(proposal.text, part.stop - part.start),
                "thread": float(
                    cast.breaks(proposal.text, self.vocabulary) + (opening and begins_in_the_middle(proposal.text))
                ),
            }
            for i, (proposal, part) in enumerate(zip(proposals, parts, strict=True))
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


def _content(text: str) -> list[str]:
    """Base forms of the content words, in order."""
    return [base_form(word) for word in _words(text) if is_content_word(word)]


def _echo(text: str, said: set[str]) -> float:
    words = _content(text)
    return 1 - len(set(words) - said) / len(words) if words else 0.0


def _length(text: str, sentences: int) -> float:
    short, long, longest = _SENTENCE_WORDS
    words = len(_words(text)) / sentences
    return max(0.0, min(words / short, 1.0, (longest - words) / (longest - long)))
