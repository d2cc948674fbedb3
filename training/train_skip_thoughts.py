"""Train a skip-thought encoder: predict the sentence before and the sentence after.

    python -m training.train_skip_thoughts hub_configs/skip-thoughts-books/recipe.json
    python -m training.train_skip_thoughts hub_configs/skip-thoughts-books/recipe.json --resume

The folder `output_dir/best` then loads with `PictaleSkipThoughtsEncoder.from_pretrained`; see `training/loop.py` for
the rest of what a run writes. Kiros et al., arXiv:1506.06726.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import AutoTokenizer

from modeling.adaptive_vocabulary import AdaptiveVocabulary
from modeling.configuration_skip_thoughts import PictaleSkipThoughtsConfig
from modeling.errors import DataError, PictaleError, RecipeError
from modeling.modeling_skip_thoughts import PictaleSkipThoughtsForPreTraining
from modeling.tokenization import BOS_ID, EOS_ID, build_word_tokenizer

from .data_text import Corpus, LengthBatches, TextSource, TokenStore, load_corpus, pad_ids, tokenize_corpus
from .loop import LoopOptions, prepare_output_dir, train
from .recipes import from_dict, read_recipe, recipe_parser
from .word_vectors import read_word_vectors


@dataclass
class TextData:
    """The `data` section.

    Args:
        sources: List of objects with the keys of `TextSource`.
        vocab_size, min_count: Of the word-level tokenizer made from the training sentences.
        max_length: Tokens of a sentence that are read or predicted, `<s>` and `</s>` included.
        batch_tokens: Padded tokens per batch (of the longest of the three sentences).
        cache_dir: Where the prepared corpus is kept between runs; None: nowhere.
        evaluation_examples: Held-out triples used at each evaluation.
    """

    sources: list[dict[str, Any]]
    vocab_size: int = 16000
    min_count: int = 3
    max_length: int = 40
    batch_tokens: int = 4096
    cache_dir: str | None = None
    evaluation_examples: int = 2000


@dataclass
class SkipThoughtsRecipe:
    """A skip-thoughts recipe.

    Args:
        data, training: The sections.
        model: The sizes of `PictaleSkipThoughtsConfig`; the vocabulary size comes from the data.
        word_vectors: File the word vectors start from (`training.word_vectors`); None: random.
    """

    data: TextData
    training: LoopOptions
    model: dict[str, Any] = field(default_factory=dict)
    word_vectors: str | None = None


class SentenceTriples(Dataset):
    """(sentence, previous, next) wherever all three stand in one document."""

    def __init__(self, store: TokenStore, runs: list[tuple[int, int]], max_length: int) -> None:
        self.store, self.max_tokens = store, max_length - 2
        middles = [np.arange(a + 1, b - 1) for a, b in runs if b - a >= 3]
        centres = np.concatenate(middles) if middles else np.zeros(0, dtype=np.int64)
        lengths = np.minimum(store.lengths, self.max_tokens)
        # an empty neighbour teaches nothing
        centres = centres[(lengths[centres - 1] > 0) & (lengths[centres] > 0) & (lengths[centres + 1] > 0)]
        self.centres = centres
        self.lengths = np.maximum.reduce([lengths[centres - 1], lengths[centres], lengths[centres + 1]]) + 2

    def __len__(self) -> int:
        return len(self.centres)

    def ids(self, i: int) -> list[int]:
        return [BOS_ID, *self.store[i][: self.max_tokens].tolist(), EOS_ID]

    def __getitem__(self, i: int) -> tuple[list[int], list[int], list[int]]:
        centre = int(self.centres[i])
        return self.ids(centre), self.ids(centre - 1), self.ids(centre + 1)


def collate(rows: list[tuple[list[int], list[int], list[int]]]) -> dict[str, torch.Tensor]:
    sentence, before, after = zip(*rows, strict=True)
    named = {"input_ids": sentence, "previous_ids": before, "next_ids": after}
    return {name: torch.from_numpy(pad_ids(list(ids))) for name, ids in named.items()}


def prepare_tokenizer(
    corpus: Corpus, data: TextData, folder: Path, resume: bool, lowercase: bool = True, initial: str | None = None
) -> Any:
    """The run's tokenizer: made from the training part and written to `folder`, read back from there to resume.

    A run that starts from the weights in `initial` keeps their vocabulary.
    """
    if resume or initial:
        return AutoTokenizer.from_pretrained(folder if resume else initial)
    texts = (s for s, held in zip(corpus.sentences, corpus.held_out, strict=True) if not held)
    tokenizer = build_word_tokenizer(texts, data.vocab_size, data.min_count, lowercase, data.max_length)
    tokenizer.save_pretrained(folder)
    return tokenizer


@torch.no_grad()
def start_from_word_vectors(words: AdaptiveVocabulary, vectors: np.ndarray, found: np.ndarray) -> None:
    """Write known word vectors into the first dimensions of the table, frequent and rare words in the same space.

    Args:
        words: The model's table, at its random start; rows without a vector stay as they are.
        vectors: float32 [V, d], `found` bool [V]; scaled here to twice the root mean square of the random start.

    Raises:
        RecipeError: the table is narrower than the vectors.
    """
    width = words.tail.weight.size(1) if words.has_tail else words.embedding_size
    if vectors.shape[1] > width:
        raise RecipeError(
            f"The word vectors have {vectors.shape[1]} numbers, but a word of the model has only {width}: raise "
            "model.embedding_size or lower model.adaptive_tail_factor."
        )
    start = words.head.weight.std().item()
    scaled = torch.from_numpy(vectors) * (2 * start / np.sqrt((vectors[found] ** 2).mean()))
    known, size = torch.from_numpy(found), vectors.shape[1]
    head = torch.zeros_like(known)
    head[: words.cutoff] = known[: words.cutoff]
    words.head.weight[head[: words.cutoff], :size] = scaled[head]
    if words.has_tail:
        tail = known[words.cutoff :]
        words.tail.weight[tail, :size] = scaled[words.cutoff :][tail]
        words.tail_projection.weight.copy_(torch.eye(*words.tail_projection.weight.shape))


def make_evaluate(loader: DataLoader, corpus: Corpus, tokenizer: Any) -> Any:
    """Held-out loss and perplexity of both decoders; prints nearest neighbours of a few sentences."""
    rng = np.random.default_rng(0)
    pool = [corpus.sentences[i] for i in rng.choice(len(corpus.sentences), min(5000, len(corpus.sentences)), False)]
    queries = ["a dog runs on the beach.", "she looked at him with tears in her eyes.", "the door opened slowly."]

    def evaluate(model: nn.Module) -> dict[str, float]:
        totals = np.zeros(3)
        for batch in loader:
            output = model(**{k: v.to(model.device) for k, v in batch.items()})
            contrastive = 0.0 if output.contrastive_loss is None else float(output.contrastive_loss)
            totals += [float(output.previous_loss), float(output.next_loss), contrastive]
        before, after, contrastive = totals / len(loader)
        vectors = model.encoder.encode(pool, tokenizer)
        for query, vector in zip(queries, model.encoder.encode(queries, tokenizer), strict=True):
            nearest = np.argsort(-(vectors @ vector))[:3]
            print(f"  {query} -> " + " | ".join(pool[i][:70] for i in nearest), file=sys.stderr)
        return {
            "loss": (before + after) / 2 + model.config.contrastive_weight * contrastive,
            "contrastive_loss": contrastive,
            "previous_perplexity": float(np.exp(before)),
            "next_perplexity": float(np.exp(after)),
        }

    return evaluate


def run(recipe: SkipThoughtsRecipe, resume: bool = False) -> Any:
    """Train as the recipe says; returns the `TrainResult`."""
    sources = [from_dict(TextSource, s, "data.sources") for s in recipe.data.sources]
    corpus = load_corpus(sources, recipe.data.cache_dir)
    output = prepare_output_dir(recipe.training.output_dir, resume)
    tokenizer = prepare_tokenizer(corpus, recipe.data, output / "tokenizer", resume)
    store = tokenize_corpus(corpus.sentences, tokenizer)
    config = PictaleSkipThoughtsConfig(vocab_size=len(tokenizer), max_tokens=recipe.data.max_length, **recipe.model)
    torch.manual_seed(recipe.training.seed)
    model = PictaleSkipThoughtsForPreTraining(config)
    if recipe.word_vectors:
        names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        vectors, found = read_word_vectors(recipe.word_vectors, set(names)).matrix_for(names)
        start_from_word_vectors(model.encoder.words, vectors, found)
        print(f"{found.sum():,} of {len(names):,} words start from {recipe.word_vectors}", file=sys.stderr)

    triples = SentenceTriples(store, corpus.runs(held_out=False), recipe.data.max_length)
    held = SentenceTriples(store, corpus.runs(held_out=True), recipe.data.max_length)
    if not len(triples) or not len(held):
        raise DataError("The text holds no three sentences in a row, in the training or in the held-out part.")
    rng = np.random.default_rng(0)
    held.centres = held.centres[rng.permutation(len(held))[: recipe.data.evaluation_examples]]
    print(f"{len(triples):,} training triples, vocabulary {len(tokenizer):,}", file=sys.stderr)
    loader = DataLoader(
        triples,
        batch_sampler=LengthBatches(triples.lengths, recipe.data.batch_tokens, recipe.training.seed),
        collate_fn=collate,
    )
    held_loader = DataLoader(held, batch_size=64, collate_fn=collate)

    def save(weights: nn.Module, folder: Path) -> None:
        weights.encoder.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return train(
        model,
        loader,
        recipe.training,
        evaluate=make_evaluate(held_loader, corpus, tokenizer),
        save=save,
        resume=resume,
    )


def main() -> None:
    args = recipe_parser(__doc__).parse_args()
    try:
        result = run(read_recipe(args.recipe, SkipThoughtsRecipe, args.overrides), args.resume)
    except PictaleError as error:
        sys.exit(f"train_skip_thoughts: {error}")
    print(f"stopped by {result.stopped_by} after {result.steps} steps; best {result.best_metric} at {result.best_step}")


if __name__ == "__main__":
    main()
