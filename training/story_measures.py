"""What is counted in stories, from texts and numbers alone: no model in here.

Shapes: S stories, P photos, D width of a judge's vectors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from modeling.text import content_words
from modeling.word_forms import base_form, taken_up
from modeling.words import split_words

GALLERY = 100
COPY_WORDS = 8


def plain_words(text: str) -> list[str]:
    """Words of a text, lower-case, without marks."""
    return [word for word in split_words(text, lowercase=True) if word[0].isalnum()]


# -- grounding -------------------------------------------------------------------------------------------------------
def grounding(
    stories: np.ndarray, captions: np.ndarray, photo: Sequence[int], gallery: int = GALLERY
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each story is nearer to the captions of its own photo than to those of any other, and by how much.

    Args:
        stories: Unit vectors [S, D].
        captions: Mean of the unit vectors of each photo's captions, so that a product is a mean cosine [P, D].
        photo: Of each story.
        gallery: A story is compared with its own photo and the `gallery - 1` that follow it, counted round.

    Returns:
        1 or 0 for each story, a tie being 0 [S]; cosine to its own captions less the mean of those to the others' [S].
    """
    size = min(gallery, len(captions))
    if size < 2:
        raise ValueError("grounding needs at least two photos")
    found, margin = np.zeros(len(stories)), np.zeros(len(stories))
    cosines = stories @ captions.T  # [S, P]
    for i, own in enumerate(photo):
        others = cosines[i, (own + np.arange(1, size)) % len(captions)]
        found[i] = cosines[i, own] > others.max()
        margin[i] = cosines[i, own] - others.mean()
    return found, margin


def word_recall(story: str, captions: Sequence[str]) -> float:
    """Share of the content words that at least two captions have (all, of fewer captions) which the story takes up."""
    counts = Counter(form for caption in captions for form in {base_form(w): w for w in content_words([caption])})
    least = 2 if len(captions) > 1 else 1
    wanted = {form for form, count in counts.items() if count >= least} or set(counts)
    return len(taken_up(wanted, content_words([story]))) / len(wanted) if wanted else 0.0


# -- variety ---------------------------------------------------------------------------------------------------------
def ngrams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(size)), strict=False))


def distinct(texts: Iterable[str], size: int, budget: int, seed: int = 0) -> float:
    """Different n-grams over all n-grams in the first `budget` words of the texts, which are shuffled; a text that
    comes twice counts once. No n-gram spans two texts."""
    texts = list(dict.fromkeys(texts))
    seen: set[tuple[str, ...]] = set()
    total, left = 0, budget
    for i in np.random.default_rng(seed).permutation(len(texts)):
        words = plain_words(texts[i])[:left]
        left -= len(words)
        found = ngrams(words, size)
        seen.update(found)
        total += len(found)
        if not left:
            break
    return len(seen) / total if total else 0.0


def word_count(texts: Iterable[str]) -> int:
    """Words of all different texts: the most that a budget of `distinct` can be."""
    return sum(len(plain_words(text)) for text in dict.fromkeys(texts))


def repeated(text: str, size: int = 4) -> float:
    """Share of the n-grams of a text that it had before."""
    found = ngrams(plain_words(text), size)
    return 1 - len(set(found)) / len(found) if found else 0.0


def copied(texts: Sequence[str], books: Iterable[Iterable[str]], size: int = COPY_WORDS) -> np.ndarray:
    """Whether each text has `size` words in a row that stand so in one paragraph of a book [S].

    The texts' own n-grams are the index, and the books are read once, so that memory does not grow with them.

    Args:
        books: Paragraphs of each book.
    """
    index: dict[tuple[str, ...], list[int]] = {}
    for i, text in enumerate(texts):
        for ngram in set(ngrams(plain_words(text), size)):
            index.setdefault(ngram, []).append(i)
    numbers = {word: i for i, word in enumerate({word for ngram in index for word in ngram}, 1)}  # 0: in no text
    factors = np.random.default_rng(0).integers(1, 2**63, size, dtype=np.uint64) | np.uint64(1)
    hashes = np.sort([_hash(np.array([numbers[w] for w in ngram], np.uint64), factors)[0] for ngram in index])
    result = np.zeros(len(texts), bool)
    for paragraphs in books:
        for paragraph in paragraphs:
            words = plain_words(paragraph)
            if len(words) < size:
                continue
            rolling = _hash(np.array([numbers.get(word, 0) for word in words], np.uint64), factors)
            places = np.searchsorted(hashes, rolling)
            hits = np.flatnonzero(hashes[np.minimum(places, len(hashes) - 1)] == rolling) if len(hashes) else ()
            for start in hits:  # the words decide, not the hash
                result[index.get(tuple(words[start : start + size]), ())] = True
    return result


def _hash(numbers: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Sum of number times factor, modulo 2**64, over each window."""
    windows = np.lib.stride_tricks.sliding_window_view(numbers, len(factors))
    with np.errstate(over="ignore"):
        return (windows * factors).sum(1, dtype=np.uint64)


# -- intervals -------------------------------------------------------------------------------------------------------
def bootstrap(
    groups: Sequence[int],
    statistic: Callable[[np.ndarray], float],
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, float]:
    """A figure with its percentile interval over photos drawn with replacement, all stories of each (Efron, 1979).

    Args:
        groups: Photo of each story.
        statistic: Of the indices of stories.
        draws: 0 leaves the interval out.
    """
    value = {"value": float(statistic(np.arange(len(groups))))}
    return value | _interval(_redrawn([groups], draws, seed), lambda rows: statistic(rows[0]), level)


def paired(
    groups: Sequence[int],
    statistic: Callable[[np.ndarray], float],
    other_groups: Sequence[int],
    other: Callable[[np.ndarray], float],
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """`other` less `statistic` on the photos that both have, each draw taking the same photos of both; `inside` says
    whether the interval has 0, so that chance alone would do (left out with the interval).

    Raises:
        ValueError: they share no photo.
    """
    shared = set(groups) & set(other_groups)
    if not shared:
        raise ValueError("there is no photo that both have")
    own, its = (np.flatnonzero([g in shared for g in each]) for each in (groups, other_groups))

    def difference(rows: Sequence[np.ndarray]) -> float:
        return other(its[rows[1]]) - statistic(own[rows[0]])

    kept = [np.asarray(groups)[own], np.asarray(other_groups)[its]]
    value = {"value": float(difference([np.arange(len(each)) for each in kept]))}
    found = value | _interval(_redrawn(kept, draws, seed), difference, level)
    return found | ({"inside": bool(found["low"] <= 0 <= found["high"])} if draws else {})


def _redrawn(parts: Sequence[Sequence[int]], draws: int, seed: int) -> Iterator[list[np.ndarray]]:
    """So many times photos with replacement: the indices of their stories, in each of the parts."""
    rng = np.random.default_rng(seed)
    names = list(dict.fromkeys(np.asarray(parts[0]).tolist()))
    rows = [{name: np.flatnonzero(np.asarray(part) == name) for name in names} for part in parts]
    for _ in range(draws):
        drawn = [names[i] for i in rng.integers(0, len(names), len(names))]
        yield [np.concatenate([found[name] for name in drawn]) for found in rows]


def _interval(
    redrawn: Iterable[list[np.ndarray]], statistic: Callable[[list[np.ndarray]], float], level: float
) -> dict[str, float]:
    values = [statistic(rows) for rows in redrawn]
    if not values:
        return {}
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return {"low": float(low), "high": float(high)}


def mean_of(values: Sequence[float] | np.ndarray) -> Callable[[np.ndarray], float]:
    """The mean as a statistic for `bootstrap`."""
    values = np.asarray(values, dtype=np.float64)
    return lambda rows: float(values[rows].mean())


def perplexity_of(losses: Sequence[float], tokens: Sequence[int]) -> Callable[[np.ndarray], float]:
    """exp of the loss per token over all stories together, as a statistic for `bootstrap`.

    Args:
        losses: Sum of the negative log-probabilities of each story's tokens.
        tokens: How many these are.
    """
    losses, tokens = np.asarray(losses, np.float64), np.asarray(tokens, np.float64)
    return lambda rows: float(np.exp(losses[rows].sum() / tokens[rows].sum()))


def rounded(figures: Mapping[str, Any], digits: int = 4) -> dict[str, Any]:
    return {name: round(value, digits) if isinstance(value, float) else value for name, value in figures.items()}
