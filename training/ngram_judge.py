"""A judge of fluency that shares nothing with any writer: word trigrams of people's short stories.

Words are lower-case and without marks, but for the ends of sentences; digits are one word, and so are names (words with
a capital that nobody writes without one, and the `[MALE]`, `[location]` of anonymised stories). Words that the stories
have once are unknown. Smoothing is Kneser and Ney's (1995), interpolated (Chen and Goodman, 1999), in the few lines
that it takes: nltk's needs 0.2 s for a word, and KenLM has to be built.

A text of bland words is cheap and a rich one dear, whether or not it makes sense; so figures are to be read beside
those of people, and sense is judged by reading (`training.reading_sheet`).

Shapes: S texts.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from modeling.errors import DataError
from modeling.words import split_words

from .story_measures import COPY_WORDS, ngrams

ORDER = 3
START, STOP, UNKNOWN = "<s>", "</s>", "<unk>"
HELD_OUT = 50  # every so many texts one is not learned, but measured
NAME, DIGITS, END = "<name>", "<digits>", "."
_PLACEHOLDER = re.compile(r"\[[a-z]+\]", re.I)
_APART = re.compile(r"\s+(n't\b)", re.I)
_STAND_IN = "Zzyzx"  # becomes a name, as nobody writes it in lower case


class KneserNey:
    """Interpolated trigrams with one discount for each length.

    Args:
        stories: Words of each story; what is in no vocabulary stands as `UNKNOWN`.

    Attributes:
        vocabulary: All words that can come, `STOP` and `UNKNOWN` too.
    """

    def __init__(self, stories: Iterable[Sequence[str]]) -> None:
        counts: Counter[tuple[str, ...]] = Counter()
        for words in stories:
            counts.update(ngrams(_padded(words), ORDER))
        self.vocabulary = {ngram[-1] for ngram in counts} | {STOP, UNKNOWN}
        self.levels: list[tuple[Counter, Counter, Counter, float]] = []  # counts, their sums and kinds after a context
        for _ in range(ORDER):
            sums: Counter[tuple[str, ...]] = Counter()
            for ngram, count in counts.items():
                sums[ngram[:-1]] += count
            kinds = Counter(ngram[:-1] for ngram in counts)
            once, twice = (sum(count == n for count in counts.values()) for n in (1, 2))
            self.levels.append((counts, sums, kinds, once / (once + 2 * twice) if once else 0.5))
            shorter: Counter[tuple[str, ...]] = Counter()
            for ngram, count in counts.items():  # what begins a story has no different words before it: its count stays
                shorter[ngram[1:]] += count if ngram[1:2] == (START,) else 1
            counts = shorter

    def probability(self, ngram: tuple[str, ...]) -> float:
        """Of its last word after the others, `ORDER` words in all."""
        result, share = 0.0, 1.0
        for start, (counts, sums, kinds, discount) in enumerate(self.levels):
            context = ngram[start:-1]
            if total := sums[context]:
                result += share * max(counts[ngram[start:]] - discount, 0) / total
                share *= discount * kinds[context] / total
        return result + share / len(self.vocabulary)


class NgramJudge:
    """Log-probabilities of texts under the trigrams of others.

    Args:
        texts: Stories to learn from.
        quoted: Passages that will be judged as people's: a text with eight words in a row of one of them is left out.

    Attributes:
        about: What was learned, and perplexity and share of unknown words of the texts held out.

    Raises:
        DataError: fewer than `HELD_OUT` texts are left.
    """

    def __init__(self, texts: Sequence[str], quoted: Sequence[str] = ()) -> None:
        split = [_split(text) for text in texts]
        self.small = {word for word, count in Counter(w for s in split for w in s if w.islower()).items() if count > 1}
        known = {ngram for text in quoted for ngram in ngrams(self.words(text), COPY_WORDS)}
        stories = [self._normal(words) for words in split]
        stories = [words for words in stories if known.isdisjoint(ngrams(words, COPY_WORDS))]
        held = stories[HELD_OUT - 1 :: HELD_OUT]
        if not held:
            raise DataError(f"The fluency judge learns from {HELD_OUT} stories at least; {len(stories)} were given.")
        del stories[HELD_OUT - 1 :: HELD_OUT]
        counts = Counter(word for words in stories for word in words)
        self.known = {word for word, count in counts.items() if count > 1}
        self.model = KneserNey(map(self._known, stories))
        losses, sizes, unknown = self._read(held)
        self.about = {
            "stories": len(stories),
            "words": sum(counts.values()),
            "vocabulary": len(self.model.vocabulary),
            "held_out": round(float(np.exp(losses.sum() / sizes.sum())), 1),
            "held_out_unknown": round(float(unknown.sum() / sizes.sum()), 4),
        }

    def words(self, text: str) -> list[str]:
        """A text as the judge reads it."""
        return self._normal(_split(text))

    def losses(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sum of the negative log-probabilities of each text's words and of its end, their number, and how many of
        them are unknown; [S] each."""
        return self._read([self.words(text) for text in texts])

    def _normal(self, words: Sequence[str]) -> list[str]:
        found = []
        for word in words:
            small = word.lower()
            if word in "!?.":
                found.append(END)
            elif word[0].isupper() and small not in self.small and small != "i":
                found.append(NAME)
            else:
                found.append(DIGITS if word.isdigit() else small)
        return found

    def _known(self, words: Sequence[str]) -> list[str]:
        return [word if word in self.known else UNKNOWN for word in words]

    def _read(self, stories: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        losses, counts, unknown = (np.zeros(len(stories)) for _ in range(3))
        for i, story in enumerate(stories):
            words = self._known(story)
            unknown[i], counts[i] = words.count(UNKNOWN), len(words) + 1
            losses[i] = -sum(math.log(self.model.probability(ngram)) for ngram in ngrams(_padded(words), ORDER))
        return losses, counts, unknown


def _split(text: str) -> list[str]:
    words = split_words(_APART.sub(r"\1", _PLACEHOLDER.sub(_STAND_IN, text)))
    return [word for word in words if word[0].isalnum() or word in "!?." or (word[0] == "'" and len(word) > 1)]


def _padded(words: Sequence[str]) -> list[str]:
    """With its end, and as many beginnings as the first word's trigram wants."""
    return [START] * (ORDER - 1) + [*words, STOP]
