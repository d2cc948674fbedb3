"""CIDEr-D of single captions, fast enough to be a reward in every training step.

CIDEr (Vedantam et al., arXiv:1411.5726) compares n-grams, n = 1..4, weighted by tf-idf; the D variant clips counts at
the reference's and punishes a length that differs. For a caption c and the m references s_j of its photograph

    w_x(g) = count_x(g) * (log N - log max(1, df(g)))       N photographs, df(g) of them have g in a reference
    sim_n(c, s) = sum_g min(w_c(g), w_s(g)) w_s(g) / (|w_c| |w_s|) * exp(-(l_c - l_s)^2 / (2 sigma^2))
    CIDEr-D(c) = 10 / (4 m) * sum_n sum_j sim_n(c, s_j)

which is what the reference implementation (pycocoevalcap's `Cider`) computes, its lengths l included: they count
bigrams, not words. Here the document frequencies and the references' n-grams are computed once.

As in Rennie et al. (arXiv:1612.00563, appendix E) and ruotianluo/self-critical.pytorch the end of a caption counts as a
word of both sides: else fragments such as "a dog with a" are worth as much as whole captions.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from modeling.errors import DataError

END = "</s>"
ORDERS = 4
_BITS = 20  # an n-gram is one integer made of its words' numbers, which start at 1


class CiderReward:
    """Scores captions against the references of numbered photographs.

    Args:
        references: the captions of each photograph as lists of words, `END` last if ends are to count.
        sigma: width of the length penalty, in bigrams.

    Raises:
        DataError: a photograph has no reference, or there are fewer than two (every idf would be 0).

    Example:
        >>> reward = CiderReward([["a dog runs on grass".split()], ["two cats sleep".split()]])
        >>> reward([0, 1], ["a dog runs on grass".split(), "a cat".split()])
        array([10.,  0.])
    """

    def __init__(self, references: Sequence[Sequence[Sequence[str]]], sigma: float = 6.0):
        if len(references) < 2 or not all(references):
            raise DataError("A CIDEr reward needs at least two photographs, each with a caption.")
        self.sigma = sigma
        self.words: dict[str, int] = {}
        self.numbers: dict[int, int] = {}  # of the n-grams
        self.lengths = [np.array([max(len(words) - 1, 0) for words in captions]) for captions in references]
        frequency: Counter[int] = Counter()
        grams, counts, owners, self.starts = array("i"), array("i"), array("i"), [0]
        for captions in references:
            seen: set[int] = set()
            for owner, words in enumerate(captions):
                found = Counter(_grams([self.words.setdefault(w, len(self.words) + 1) for w in words]))
                grams.extend(self.numbers.setdefault(gram, len(self.numbers)) for gram in found)
                counts.extend(found.values())
                owners.extend([owner] * len(found))
                seen |= found.keys()
            frequency.update(seen)
            self.starts.append(len(grams))
        if len(self.words) >> _BITS:
            raise DataError(f"The references have {len(self.words)} different words; at most {(1 << _BITS) - 1} work.")
        # flat arrays, because a dict for each caption would take gigabytes on a large data set
        self.grams, self.counts, self.owners = (np.array(x, np.int32) for x in (grams, counts, owners))
        self.rare = math.log(len(references))  # idf of what is in no reference
        self.idf = np.array([self.rare - math.log(frequency[gram]) for gram in self.numbers])
        self.orders = np.array([_order(gram) for gram in self.numbers], np.int8)

    def __call__(self, images: Sequence[int], captions: Sequence[Sequence[str]]) -> np.ndarray:
        """CIDEr-D, 0 to 10, of each caption (a list of words, `END` last if it ended) for its photograph, [N]."""
        scores = np.zeros(len(captions))
        latest, reference = None, None
        for i, (image, words) in enumerate(zip(images, captions, strict=True)):
            if image != latest:  # the samples of a photograph follow one another
                latest, reference = image, self._reference(image)
            scores[i] = self._score(words, *reference, self.lengths[image])
        return scores

    def _reference(self, image: int) -> tuple[dict[int, list[tuple[int, float]]], np.ndarray]:
        """For each n-gram number the (caption, weight) pairs of one photograph, and the norms [4, captions]."""
        part = slice(self.starts[image], self.starts[image + 1])
        grams, owners = self.grams[part], self.owners[part]
        weights = self.counts[part] * self.idf[grams]
        table: dict[int, list[tuple[int, float]]] = {}
        for gram, owner, weight in zip(grams.tolist(), owners.tolist(), weights.tolist(), strict=True):
            table.setdefault(gram, []).append((owner, weight))
        count = len(self.lengths[image])
        squares = np.bincount(self.orders[grams] * count + owners, weights**2, ORDERS * count)
        return table, np.sqrt(squares).reshape(ORDERS, count)

    def _score(self, words: Sequence[str], table: dict, norms: np.ndarray, lengths: np.ndarray) -> float:
        unknown: dict[str, int] = {}
        ids = [self.words.get(w) or unknown.setdefault(w, len(self.words) + len(unknown) + 1) for w in words]
        products, squares = np.zeros_like(norms), np.zeros(ORDERS)
        for gram, count in Counter(_grams(ids)).items():
            number, order = self.numbers.get(gram), _order(gram)
            weight = count * (self.rare if number is None else float(self.idf[number]))
            squares[order] += weight * weight
            for owner, other in table.get(number, ()):
                products[order, owner] += min(weight, other) * other
        scale = np.sqrt(squares)[:, None] * norms  # [4, captions]
        similar = np.divide(products, scale, out=np.zeros_like(products), where=scale > 0)
        difference = max(len(words) - 1, 0) - lengths
        similar *= np.exp(-(difference**2) / (2 * self.sigma**2))
        return 10 * float(similar.mean())


def _grams(words: Sequence[int]) -> Iterator[int]:
    """All n-grams, n = 1..4, each as one integer."""
    for start in range(len(words)):
        gram = 0
        for word in words[start : start + ORDERS]:
            gram = gram << _BITS | word
            yield gram


def _order(gram: int) -> int:
    """n - 1 of an n-gram."""
    return (gram.bit_length() - 1) // _BITS
