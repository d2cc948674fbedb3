"""What stories that a model told itself are chosen by. None of these judges is one of `training.evaluate_stories`.

    photo        cosine, in the joint embedding, of the mean of the story's sentences and that of people's captions
    style        probability of its style under tf-idf and logistic regression, trained on books
    likelihood   mean log-probability of its tokens under the language model before it was taught to tell stories

A story that breaks a rule (`broken`) is no candidate, whatever its scores.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from tqdm import tqdm

from modeling.errors import DataError, PictaleError, RecipeError
from modeling.pipeline_story import StoryPipeline
from modeling.story_types import LENGTHS
from modeling.text import directed_quotes, split_sentences
from modeling.writer_storyteller import SENTENCE_END

from .json_lines import JsonLines
from .story_judges import text_losses
from .story_measures import COPY_WORDS, ngrams, plain_words, repeated
from .story_systems import Library, read_library
from .storyteller_base import load_base

JUDGES = ("photo", "style", "likelihood")
CHUNK = 128  # stories that are scored before they are kept
REQUEST_WORDS = re.compile(r"\b(?:Title|Story|Photo|New photo|Perhaps|Objects|Next|Page):")


@dataclass
class Judging:
    """The `judging` section.

    Args:
        books: Data sets that the style judge is trained on, see `story_systems.read_library`; an eighth of
            the books of each genre, at least one, is kept from it and says how often it is right.
        base: Folder or Hub id of the language model that was not tuned; None: see `storyteller_base.load_base`.
        weights: How much each judge counts.
        length_slack: Share of the bounds of its length that a story may lie outside.
        repeated: Most of a story's sequences of four words that it may have had before, as a share.
    """

    books: list[str] = field(default_factory=lambda: ["books", "everyday_stories"])
    base: str | None = None
    weights: dict[str, float] = field(default_factory=lambda: {"photo": 1.0, "style": 0.5, "likelihood": 0.5})
    length_slack: float = 0.15
    repeated: float = 0.02

    def __post_init__(self) -> None:
        if unknown := set(self.weights) - set(JUDGES):
            raise RecipeError(f"judging.weights: there is no judge '{sorted(unknown)[0]}', only {', '.join(JUDGES)}.")
        if not self.length_slack >= 0 or not 0 <= self.repeated <= 1:
            raise RecipeError("judging: length_slack is 0 or more, repeated a share from 0 to 1.")


# -- rules -----------------------------------------------------------------------------------------------------------
def broken(story: Mapping[str, Any], judging: Judging) -> str | None:
    """Why a story is not to be learned from, in a few words; None if it breaks no rule.

    Args:
        story: `text`, `title`, `page`, `length` and `ended`.
    """
    text, words = story["text"], len(story["text"].split())
    low, high = LENGTHS[story["length"]]
    if not story["ended"] or not SENTENCE_END.search(text):
        return "has no end"
    if not low * (1 - judging.length_slack) <= words <= high * (1 + judging.length_slack):
        return "too short" if words < low else "too long"
    if not story["title"].strip():
        return "no title"
    if REQUEST_WORDS.search(text):
        return "words of the request"
    if text.count('"') % 2 or text.count("“") != text.count("”"):
        return "open quotation"
    sentences = [" ".join(plain_words(sentence)) for sentence in split_sentences(directed_quotes(text))]
    if len(set(sentences)) < len(sentences):
        return "a sentence twice"
    if repeated(text) > judging.repeated:
        return "repeats itself"
    if set(ngrams(plain_words(text), COPY_WORDS)) & set(ngrams(plain_words(story["page"]), COPY_WORDS)):
        return "copies the page"
    return None


# -- judges ----------------------------------------------------------------------------------------------------------
def closeness(
    embed: Callable[[Sequence[str]], np.ndarray], texts: Sequence[str], captions: Sequence[Sequence[str]]
) -> np.ndarray:
    """Cosine of each text and its captions, each the mean of its sentences in the joint space [S].

    Args:
        embed: Sentences to unit vectors [n, D].
    """
    groups = [split_sentences(text) or [text] for text in texts] + [list(group) for group in captions]
    vectors = embed([sentence for group in groups for sentence in group])
    ends = np.cumsum([len(group) for group in groups])
    means = np.stack([vectors[e - len(g) : e].mean(0) for e, g in zip(ends, groups, strict=True)])
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-8)
    return (means[: len(texts)] * means[len(texts) :]).sum(1)


class BookStyles:
    """How much a text reads like the books of a genre.

    Args:
        library: Passages; an eighth of the books of each genre, at random, is kept for `right`, if there are several.

    Raises:
        DataError: scikit-learn is missing, or there are fewer than two genres.
    """

    def __init__(self, library: Library) -> None:
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
            from sklearn.linear_model import LogisticRegression
        except ImportError:
            raise DataError("The style judge needs scikit-learn: pip install -r training/requirements.txt.") from None
        genres = sorted(set(library.genres))
        if len(genres) < 2:
            raise DataError("judging.books needs texts of two genres or more.")
        held, rng = set(), random.Random(0)
        for genre in genres:
            books = sorted({library.books[i] for i in library.of_genre(genre)})
            held |= set(rng.sample(books, max(1, len(books) // 8)) if len(books) > 1 else ())
        learn = [i for i, book in enumerate(library.books) if book not in held]
        rest = [i for i, book in enumerate(library.books) if book in held]
        self.vectorizer = TfidfVectorizer(
            tokenizer=plain_words, token_pattern=None, lowercase=False, sublinear_tf=True, min_df=2, max_features=50_000
        )
        features = self.vectorizer.fit_transform([library.texts[i] for i in learn])
        self.model = LogisticRegression(class_weight="balanced", max_iter=1000)
        self.model.fit(features, [library.genres[i] for i in learn])
        self.genres = list(self.model.classes_)
        self.right = float("nan")
        if rest:
            guesses = self.model.predict(self.vectorizer.transform([library.texts[i] for i in rest]))
            self.right = float(np.mean([g == library.genres[i] for g, i in zip(guesses, rest, strict=True)]))

    def probabilities(self, texts: Sequence[str], styles: Sequence[str]) -> list[float | None]:
        """Of each text's own style; None for one that no book has."""
        rows = self.model.predict_proba(self.vectorizer.transform([directed_quotes(text) for text in texts]))
        places = [self.genres.index(style) if style in self.genres else None for style in styles]
        return [None if place is None else float(row[place]) for row, place in zip(rows, places, strict=True)]


class Judges:
    """All of them, each loaded when it is needed.

    Args:
        pipe: Called for the pipeline, whose joint embedding judges.
        judging: The recipe's.
    """

    def __init__(self, pipe: Callable[[], StoryPipeline], judging: Judging) -> None:
        self._pipe, self.judging = pipe, judging

    @cached_property
    def styles(self) -> BookStyles:
        judge = BookStyles(read_library(self.judging.books))
        print(f"style judge: {judge.right:.0%} of the passages of books right that it has not read", file=sys.stderr)
        return judge

    @cached_property
    def base(self) -> tuple[Any, Any]:
        try:
            model, tokenizer = load_base(self.judging.base)
        except (OSError, ValueError) as error:
            if isinstance(error, PictaleError):
                raise
            reason = str(error).splitlines()[0]
            raise DataError(f"judging.base '{self.judging.base}' is no language model ({reason}).") from None
        return model.eval(), tokenizer

    def prepare(self) -> None:
        """Load all, so that one that is missing is missed before any work. Raises DataError."""
        if self._pipe().embedding is None:
            raise DataError("The pipeline has no joint embedding, which judges stories: name one in its pipeline.json.")
        self.base  # noqa: B018 - loaded at first use
        self.styles  # noqa: B018

    def scores(self, stories: Sequence[Mapping[str, Any]], captions: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """`photo`, `style` and `likelihood` of stories (`text`, `style`) about photos with these captions by people."""
        self.prepare()
        texts = [story["text"] for story in stories]
        photo = closeness(self._pipe().embedding.embed_texts, texts, captions)
        style = self.styles.probabilities(texts, [story["style"] for story in stories])
        losses, counts = text_losses(*self.base, texts, most_tokens=512)
        return [
            {
                "photo": round(float(p), 5),
                "style": s and round(s, 5),
                "likelihood": round(float(-loss) / max(count, 1), 5),
            }
            for p, s, loss, count in zip(photo, style, losses, counts, strict=True)
        ]


def score_stories(
    judges: Judges,
    stories: Sequence[Mapping[str, Any]],
    people: Mapping[tuple[str, str], Sequence[str]],
    kept: JsonLines,
    every: bool = False,
) -> list[dict[str, Any]]:
    """Scores and `broken` of stories, in their order; those that are kept already are not judged again.

    Args:
        people: Captions by people of each photo.
        every: Judge broken ones, too.
    """
    stories = list(stories)[len(kept.records) :]
    for start in tqdm(range(0, len(stories), CHUNK), desc="judging", unit="chunk", disable=not stories):
        part = stories[start : start + CHUNK]
        why = [broken(story, judges.judging) for story in part]
        records: list[dict[str, Any]] = [{"broken": reason} for reason in why]
        judged = [i for i, reason in enumerate(why) if (every or reason is None) and part[i]["text"].strip()]
        if judged:
            captions = [people[tuple(part[i]["photo"])] for i in judged]
            for i, scores in zip(judged, judges.scores([part[i] for i in judged], captions), strict=True):
                records[i] |= scores
        kept.append(records)
    return kept.records
