"""Train a skip-thought encoder: predict the sentence before and the sentence after.

    python -m training.train_skip_thoughts hub_configs/skip-thoughts-books/recipe.json
    python -m training.train_skip_thoughts hub_configs/skip-thoughts-books/recipe.json --resume

The folder `output_dir/best` then loads with `PictaleSkipThoughtsEncoder.from_pretrained`; see `training/loop.py` for
the rest of what a run writes, and `tokenizer/` besides, with the count of every word. Kiros et al., arXiv:1506.06726.

Several processes (`accelerate launch -m training.train_skip_thoughts RECIPE.json`) divide each batch, which is as many
times larger than `data.batch_tokens`, and learn what one would of it; only the contrastive part compares sentences
within each process's share.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoTokenizer

from modeling.adaptive_vocabulary import AdaptiveVocabulary
from modeling.configuration_skip_thoughts import PictaleSkipThoughtsConfig
from modeling.errors import DataError, PictaleError, RecipeError
from modeling.modeling_skip_thoughts import PictaleSkipThoughtsForPreTraining
from modeling.tokenization import (
    PAD_ID,
    SPECIAL_TOKENS,
    UNK,
    build_bpe_tokenizer,
    build_word_tokenizer,
    count_words,
)

from .data_text import Corpus, LengthBatches, TextSource, load_corpus, tokenize_corpus
from .loop import LoopOptions, prepare_output_dir, train
from .recipes import from_dict, read_recipe, recipe_parser
from .sentence_triples import SentenceTriples, collate
from .stream_text import DocumentStream, StreamBatches, StreamedTriples, is_held_out
from .word_vectors import read_word_vectors, spellings, words_of

COUNTS_FILE = "word_counts.txt"


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
class SentenceData(TextData):
    """The `data` section of the skip-thought recipe: `TextData` and

    Args:
        vocabulary: "words", or "bpe": `vocab_size` byte-pair pieces merged from pairs seen at least `min_count` times.
        streaming: Read the sources as streams (`stream_text`) instead of keeping the corpus in memory. Then
            `training.max_steps` must be given, `cache_dir` is not used, and sentences keep their case until they are
            tokenized.
        buffer_sentences: With streaming: sentences in memory, which are shuffled and batched together.
        held_out_every: With streaming: one document in so many is held out.
        vocabulary_documents: With streaming: make the vocabulary from the first documents only; None: from all.
    """

    vocabulary: str = "words"
    streaming: bool = False
    buffer_sentences: int = 200_000
    held_out_every: int = 50
    vocabulary_documents: int | None = None


@dataclass
class SkipThoughtsRecipe:
    """A skip-thoughts recipe.

    Args:
        data, training: The sections.
        model: The sizes of `PictaleSkipThoughtsConfig`; the vocabulary size comes from the data.
        word_vectors: File the word vectors start from (`training.word_vectors`); None: random.
    """

    data: SentenceData
    training: LoopOptions
    model: dict[str, Any] = field(default_factory=dict)
    word_vectors: str | None = None


def prepare_tokenizer(
    corpus: Corpus,
    data: TextData,
    folder: Path,
    resume: bool,
    lowercase: bool = True,
    initial: str | None = None,
    vocabulary: str = "words",
) -> Any:
    """The run's tokenizer: made from the training part and written to `folder`, read back from there to resume.

    A run that starts from the weights in `initial` keeps their vocabulary.
    """
    if resume or initial:
        return AutoTokenizer.from_pretrained(initial or folder)
    texts = (s for s, held in zip(corpus.sentences, corpus.held_out, strict=True) if not held)
    return build_tokenizer(texts, data, folder, lowercase, vocabulary)


def build_tokenizer(texts: Iterable[str], data: TextData, folder: Path, lowercase: bool, vocabulary: str) -> Any:
    """Make the vocabulary of `texts` and write it to `folder`, with the counts of its words if it is of words."""
    if vocabulary == "bpe":
        tokenizer = build_bpe_tokenizer(texts, data.vocab_size, data.min_count, lowercase, data.max_length)
        tokenizer.save_pretrained(folder)
        return tokenizer
    counts = count_words(texts, lowercase)
    tokenizer = build_word_tokenizer(counts, data.vocab_size, data.min_count, lowercase, data.max_length)
    tokenizer.save_pretrained(folder)
    words = tokenizer.convert_ids_to_tokens(range(len(SPECIAL_TOKENS), len(tokenizer)))
    unknown = counts.total() - sum(counts[word] for word in words)
    lines = [f"{word}\t{count}" for word, count in [(UNK, unknown), *((word, counts[word]) for word in words)]]
    (folder / COUNTS_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tokenizer


@dataclass
class Prepared:
    """What a run trains on: tokenizer, batches, held-out triples, and sentences to find nearest neighbours among."""

    tokenizer: Any
    loader: DataLoader
    held_out: SentenceTriples
    pool: list[str]
    size: str


def whole_corpus(recipe: SkipThoughtsRecipe, output: Path, resume: bool) -> Prepared:
    """The corpus in memory, its order shuffled anew in each epoch."""
    data, state = recipe.data, PartialState()
    sources = [from_dict(TextSource, s, "data.sources") for s in data.sources]
    with state.main_process_first():  # one process computes, the others read
        corpus = load_corpus(sources, data.cache_dir)
        known = resume or not state.is_main_process
        tokenizer = prepare_tokenizer(corpus, data, output / "tokenizer", known, vocabulary=data.vocabulary)
    store = tokenize_corpus(corpus.sentences, tokenizer, progress=state.is_main_process)
    triples = SentenceTriples(store, corpus.runs(held_out=False), data.max_length)
    held = SentenceTriples(store, corpus.runs(held_out=True), data.max_length)
    if not len(triples) or not len(held):
        raise DataError("The text holds no three sentences in a row, in the training or in the held-out part.")
    batches = LengthBatches(triples.lengths, data.batch_tokens, recipe.training.seed, shares=state.num_processes)
    loader = DataLoader(triples, batch_sampler=batches, collate_fn=collate)
    return Prepared(tokenizer, loader, held, corpus.sentences, f"{len(triples):,} training triples")


def streamed_corpus(recipe: SkipThoughtsRecipe, output: Path, resume: bool) -> Prepared:
    """The corpus as a stream (`stream_text`): read once for its vocabulary, then once an epoch."""
    data, state = recipe.data, PartialState()
    if data.buffer_sentences < 3 or data.held_out_every < 2:
        raise RecipeError("data.buffer_sentences is 3 or more and data.held_out_every 2 or more.")
    sources = [from_dict(TextSource, s, "data.sources") for s in data.sources]
    kept = output / "held_out.json"
    with state.main_process_first():
        if resume or not state.is_main_process:
            tokenizer = AutoTokenizer.from_pretrained(output / "tokenizer")
            documents = json.loads(kept.read_text(encoding="utf-8"))
        else:
            documents: list[list[str]] = []
            texts = training_sentences(sources, data, documents)
            tokenizer = build_tokenizer(texts, data, output / "tokenizer", True, data.vocabulary)
            kept.write_text(json.dumps(documents), encoding="utf-8")
    pool = [sentence for document in documents for sentence in document]
    stops = np.cumsum([len(document) for document in documents]).tolist()
    runs = list(zip([0, *stops], stops, strict=False))
    held = SentenceTriples(tokenize_corpus(pool, tokenizer, progress=False), runs, data.max_length)
    if not len(held):
        raise DataError(
            f"No three sentences in a row were held out: 1 of {data.held_out_every} documents is; lower "
            "data.held_out_every or give more text."
        )
    triples = StreamedTriples()
    batches = StreamBatches(
        triples,
        sources,
        tokenizer,
        data.max_length,
        data.batch_tokens,
        data.buffer_sentences,
        data.held_out_every,
        recipe.training.seed,
        state.num_processes,
        output / "stream.json",
    )
    loader = DataLoader(triples, batch_sampler=batches, collate_fn=collate)
    return Prepared(tokenizer, loader, held, pool, f"streamed from {len(sources)} sources")


def training_sentences(sources: list[TextSource], data: SentenceData, held_out: list[list[str]]) -> Iterator[str]:
    """All sentences that are trained on; documents held out are collected until there are enough of them."""
    missing, triples = data.evaluation_examples, 0
    stream = islice(DocumentStream(sources), data.vocabulary_documents)
    for document in tqdm(stream, desc="reading the vocabulary", unit="document", mininterval=5):
        if not is_held_out(document, data.held_out_every):
            triples += max(len(document) - 2, 0)
            yield from document
        elif missing > 0 and len(document) > 2:
            held_out.append(document)
            missing -= len(document) - 2
    if not triples:
        raise DataError("The text holds no three sentences in a row to train on.")


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


def make_evaluate(loader: DataLoader, sentences: list[str], tokenizer: Any) -> Any:
    """Held-out loss and perplexity of both decoders; prints nearest neighbours of a few sentences."""
    rng = np.random.default_rng(0)
    pool = [sentences[i] for i in rng.choice(len(sentences), min(5000, len(sentences)), False)]
    queries = ["a dog runs on the beach.", "she looked at him with tears in her eyes.", "the door opened slowly."]

    def evaluate(model: nn.Module) -> dict[str, float]:
        totals, counts = np.zeros(3), np.zeros(3)  # previous, next, contrastive
        for batch in loader:
            output = model(**{k: v.to(model.device) for k, v in batch.items()})
            contrastive = 0.0 if output.contrastive_loss is None else float(output.contrastive_loss)
            words = [int(batch[name][:, 1:].ne(PAD_ID).sum()) for name in ("previous_ids", "next_ids")]
            here = np.array([*words, len(batch["input_ids"])])
            totals += here * [float(output.previous_loss), float(output.next_loss), contrastive]
            counts += here
        before, after, contrastive = totals / counts
        found = model.encoder.nearest(queries, pool, k=3, tokenizer=tokenizer)
        for query, neighbours in zip(queries, found, strict=True):
            PartialState().print(f"  {query} -> " + " | ".join(n.text[:70] for n in neighbours), file=sys.stderr)
        return {
            "loss": (before + after) / 2 + model.config.contrastive_weight * contrastive,
            "contrastive_loss": contrastive,
            "previous_perplexity": float(np.exp(before)),
            "next_perplexity": float(np.exp(after)),
        }

    return evaluate


def new_model(recipe: SkipThoughtsRecipe, tokenizer: Any) -> PictaleSkipThoughtsForPreTraining:
    """An untrained model with the vocabulary of `tokenizer`, its words from a file if the recipe names one."""
    config = PictaleSkipThoughtsConfig(vocab_size=len(tokenizer), max_tokens=recipe.data.max_length, **recipe.model)
    torch.manual_seed(recipe.training.seed)
    model = PictaleSkipThoughtsForPreTraining(config)
    if recipe.word_vectors:
        names = words_of(tokenizer)
        wanted = {spelling for name in names if name for spelling in spellings(name)}
        vectors, found = read_word_vectors(recipe.word_vectors, wanted).matrix_for(names)
        start_from_word_vectors(model.encoder.words, vectors, found)
        PartialState().print(
            f"{found.sum():,} of {len(names):,} words start from {recipe.word_vectors}", file=sys.stderr
        )
    return model


def run(recipe: SkipThoughtsRecipe, resume: bool = False) -> Any:
    """Train as the recipe says; returns the `TrainResult`."""
    # made before anything asks for it, and with the flag of `accelerate launch --cpu`, which it does not read by itself
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    if recipe.data.vocabulary not in ("words", "bpe"):
        raise RecipeError(f"data.vocabulary is words or bpe, not '{recipe.data.vocabulary}'.")
    output = prepare_output_dir(recipe.training.output_dir, resume)
    prepare = streamed_corpus if recipe.data.streaming else whole_corpus
    prepared = prepare(recipe, output, resume)
    tokenizer, held = prepared.tokenizer, prepared.held_out
    model = new_model(recipe, tokenizer)
    held.centres = held.centres[np.random.default_rng(0).permutation(len(held))[: recipe.data.evaluation_examples]]
    state.print(f"{prepared.size}, vocabulary {len(tokenizer):,}", file=sys.stderr)

    def save(weights: nn.Module, folder: Path) -> None:
        weights.encoder.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if (output / "tokenizer" / COUNTS_FILE).is_file():
            shutil.copyfile(output / "tokenizer" / COUNTS_FILE, folder / COUNTS_FILE)

    return train(
        model,
        prepared.loader,
        recipe.training,
        evaluate=make_evaluate(DataLoader(held, batch_size=64, collate_fn=collate), prepared.pool, tokenizer),
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
