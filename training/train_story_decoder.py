"""Train a story decoder: write a passage again from its thought vector and a handful of its content words.

    python -m training.train_story_decoder hub_configs/story-decoder-books/recipe.json
    python -m training.train_story_decoder hub_configs/story-decoder-books/recipe.json --resume

A passage is a run of consecutive sentences of one scene, story or picture; which runs, and which content words are
shown, changes every epoch. Three things make the decoder work from captions, which it never saw paired with prose:

    content words are shown in a share of the passages only, so a plain vector still works;
    the thought vector is drawn towards the mean of its genre by a random amount, which is where a shifted caption
    vector x - c + b lies (see modeling/styles.py);
    the vector of the passage before is shown in a share of the passages, so beginnings and continuations both work.

A decoder with `style_size` is also told the style: the mean vector of the genre, or of the text around the passage,
from a few hundred sentences to some thousands, so that a style made from any text is something it knows.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from modeling.configuration_story_decoder import PictaleStoryDecoderConfig
from modeling.errors import DataError, PictaleError, RecipeError
from modeling.modeling_skip_thoughts import PictaleSkipThoughtsEncoder
from modeling.modeling_story_decoder import PictaleStoryDecoderForConditionalGeneration
from modeling.text import clean_text, is_content_word
from modeling.tokenization import BOS_ID, EOS_ID, PAD_ID, UNK_ID

from .data_text import Corpus, LengthBatches, TextSource, TokenStore, load_corpus, pad_ids, tokenize_corpus
from .figures import command_line
from .loop import LoopOptions, prepare_output_dir, train
from .recipes import from_dict, read_recipe, recipe_parser
from .sentence_vectors import sentence_vectors
from .text_styles import Surroundings, genre_means
from .train_skip_thoughts import TextData, prepare_tokenizer


@dataclass
class StoryData(TextData):
    """The `data` section: that of the skip-thought recipe and

    Args:
        encoder: Folder or Hub id of the skip-thought encoder (frozen).
        weights: How often a genre is shown relative to its size, by name; 1 where not named.
        min_tokens, max_tokens: Length of a passage.
        max_unknown: Passages with a larger share of unknown words are left out.
        max_content_words: Most content words shown with a passage.
        content_dropout: Share of passages without any content word.
        previous_dropout: Share of passages shown as beginnings although something stands before them.
        min_pull: The thought keeps a random share in [min_pull, 1] of its distance from the genre's mean.
        one_sentence: Share of the passages that are told by the vector of one of their sentences, as a caption tells of
            one moment of a story, instead of the mean of all.
        speech: Share of the passages with direct speech that is shown. Talk without its context is the hardest to learn
            and the least to the picture.
        by_sentence: Share of the passages that are told sentence by sentence, as a plot tells a story
            (`modeling.plots`): each sentence by its own vector, to a random share of [0.5, 1], and by that of the
            passage for the rest.
        noise: Longest random vector that is added to the thoughts of a passage, which have a length of at most 1. The
            shifted vector of a picture is the thought of no passage that ever was: a decoder that takes every number of
            it at its word writes what nobody would.
        style_dropout: Share of passages whose style is not told, where the decoder is told styles.
        workers: Processes that prepare batches while the model trains; a GPU is kept waiting without them.
    """

    encoder: str = "hub_configs/skip-thoughts-books"
    weights: dict[str, float] = field(default_factory=dict)
    min_tokens: int = 12
    max_tokens: int = 90
    max_unknown: float = 0.03
    max_content_words: int = 8
    content_dropout: float = 0.2
    previous_dropout: float = 0.5
    min_pull: float = 0.3
    one_sentence: float = 0.0
    speech: float = 1.0
    by_sentence: float = 0.0
    noise: float = 0.0
    style_dropout: float = 0.15
    workers: int = 0


@dataclass
class StoryRecipe:
    """Sections of the recipe; `model` has the sizes of `PictaleStoryDecoderConfig`.

    Args:
        initial: Folder or Hub id of a decoder to go on from (its sizes and vocabulary are kept), to fine-tune it.
        new_encoder: `data.encoder` is another one than `initial` was trained with: what reads its vectors is learned
            anew, all else is kept.
        new_style: Width (`style_size`) through which a decoder that was not told styles is told them from now on; it
            begins as it was. 0 leaves it as it is.
    """

    data: StoryData
    training: LoopOptions
    model: dict[str, Any] = field(default_factory=dict)
    initial: str | None = None
    new_encoder: bool = False
    new_style: int = 0


class Passages(Dataset):
    """Passages of an epoch: `spans` [n, 3] = first sentence, last + 1, first sentence of the passage before (or -1)."""

    def __init__(
        self,
        corpus: Corpus,
        store: TokenStore,
        vectors: np.ndarray,
        data: StoryData,
        tokenizer: Any,
        surroundings: Surroundings | None = None,
    ) -> None:
        self.corpus, self.store, self.vectors, self.data = corpus, store, vectors, data
        self.surroundings = surroundings
        self.means = genre_means(corpus, vectors)
        words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        self.is_content = np.array([is_content_word(word) for word in words])
        self.is_content[: UNK_ID + 1] = False
        speech = tokenizer.convert_tokens_to_ids("\u201c")
        self.speech = np.add.reduceat(np.append(store.ids == speech, 0), store.offsets[:-1])
        self.unknown = np.add.reduceat(np.append(store.ids == UNK_ID, 0), store.offsets[:-1])
        self.seed = 0

    def cut(self, runs: list[tuple[int, int]], seed: int) -> None:
        """Cut every document into consecutive passages of random length; genre weights repeat or drop documents."""
        rng = np.random.default_rng(seed)
        self.seed = seed
        data, lengths = self.data, self.store.lengths
        weight = np.array([data.weights.get(g, 1.0) for g in self.corpus.genres])
        spans = []
        for start, stop in runs:
            repeats = int(weight[self.corpus.genre[start]] + rng.random())
            for _ in range(repeats):
                spans.extend(self._cut_document(start, stop, lengths, rng))
        self.spans = np.array(spans, dtype=np.int64).reshape(-1, 3)
        tokens, unknown, speech = (self._sums(counts) for counts in (lengths, self.unknown, self.speech))
        wanted = (tokens >= data.min_tokens) & (tokens <= data.max_tokens)
        wanted &= unknown <= data.max_unknown * np.maximum(tokens, 1)
        wanted &= (speech == 0) | (rng.random(len(speech)) < data.speech)
        self.spans, self.lengths = self.spans[wanted], tokens[wanted] + 1

    def _sums(self, counts: np.ndarray) -> np.ndarray:
        """Sums over the sentences of each span of counts of sentences."""
        total = np.concatenate([[0], np.cumsum(counts)])
        return total[self.spans[:, 1]] - total[self.spans[:, 0]]

    def _cut_document(
        self, start: int, stop: int, lengths: np.ndarray, rng: np.random.Generator
    ) -> list[tuple[int, int, int]]:
        spans, before = [], -1
        while start < stop:
            goal, end, tokens = rng.integers(self.data.min_tokens, self.data.max_tokens), start, 0
            while end < stop and (end == start or tokens + lengths[end] <= goal):
                tokens += lengths[end]
                end += 1
            spans.append((start, end, before))
            before, start = start, end
        return spans

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, i: int) -> dict[str, Any]:
        start, stop, before = (int(v) for v in self.spans[i])
        data, rng = self.data, np.random.default_rng([self.seed, i])
        ids = self.store.ids[self.store.offsets[start] : self.store.offsets[stop]]
        mean = self.means[self.corpus.genre[start]]
        pull = rng.uniform(data.min_pull, 1.0)
        told = (start, stop)
        if rng.random() < data.one_sentence:
            one = int(rng.integers(start, stop))
            told = (one, one + 1)
        thought = mean + pull * (self.thought(*told) - mean)
        thoughts, owner = thought[None], [0] * (len(ids) + 1)
        if data.by_sentence and rng.random() < data.by_sentence:
            own = rng.uniform(0.5, 1.0)
            each = mean + pull * (self.vectors[start:stop].astype(np.float32) - mean)  # [S, D]
            thoughts = own * each + (1 - own) * thought
            owner = np.repeat(np.arange(stop - start), np.diff(self.store.offsets[start : stop + 1])).tolist()
            owner.append(owner[-1])  # </s>
        if data.noise:
            size = thoughts.shape[-1]
            added = rng.normal(0, 1, size) * rng.uniform(0, data.noise) / np.sqrt(size)  # [D]
            thoughts = (thoughts + added).astype(np.float32)
        previous = np.zeros_like(thought)
        if before >= 0 and rng.random() >= data.previous_dropout:
            previous = self.thought(before, start)
        content: list[int] = []
        if rng.random() >= data.content_dropout:
            candidates = np.unique(ids[self.is_content[ids]])
            count = min(len(candidates), int(rng.integers(1, data.max_content_words + 1)))
            content = rng.choice(candidates, count, replace=False).tolist()
        style = mean  # which is all that is known of a held-out book, as of a style that is shipped
        if self.surroundings is not None:
            if rng.random() < 0.5:
                style = self.surroundings.style(start, rng)
            if rng.random() < data.style_dropout:
                style = np.zeros_like(mean)
        return {
            "ids": [*ids.tolist(), EOS_ID],
            "thoughts": thoughts,
            "sentences": owner,
            "previous": previous,
            "content": content or [PAD_ID],
            "style": style,
        }

    def thought(self, start: int, stop: int) -> np.ndarray:
        return self.vectors[start:stop].astype(np.float32).mean(0)


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    labels = torch.from_numpy(pad_ids([r["ids"] for r in rows], pad_id=-100))
    inputs = torch.cat([torch.full((len(rows), 1), BOS_ID), labels[:, :-1]], 1).clamp_min(PAD_ID)
    most = max(len(r["thoughts"]) for r in rows)
    thoughts = np.stack([np.pad(r["thoughts"], ((0, most - len(r["thoughts"])), (0, 0))) for r in rows])  # [B, S, D]
    return {
        "decoder_input_ids": inputs,
        "labels": labels.masked_fill(labels == UNK_ID, -100),  # read, but never learned to write
        "thought": torch.from_numpy(thoughts),
        "sentence_ids": torch.from_numpy(pad_ids([r["sentences"] for r in rows])),
        "previous_thought": torch.from_numpy(np.stack([r["previous"] for r in rows])),
        "content_ids": torch.from_numpy(pad_ids([r["content"] for r in rows])),
        "style": torch.from_numpy(np.stack([r["style"] for r in rows])),
    }


class PassageBatches(LengthBatches):
    """`LengthBatches` over passages that are cut anew at each epoch."""

    def __init__(self, passages: Passages, runs: list[tuple[int, int]], max_tokens: int, seed: int) -> None:
        self.passages, self.runs = passages, runs
        passages.cut(runs, seed)
        super().__init__(passages.lengths, max_tokens, seed)

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.passages.cut(self.runs, self.seed + 1000 * epoch)
            self.lengths = self.passages.lengths
        super().set_epoch(epoch)


def make_evaluate(held: Passages, encoder: PictaleSkipThoughtsEncoder, encoder_tokenizer: Any, tokenizer: Any) -> Any:
    """Held-out perplexity per genre, and two sampled passages per style for a fixed caption."""
    captions = ["a brown dog runs along the beach with a stick in its mouth."]
    words = [w for w in ("dog", "beach", "stick") if tokenizer.convert_tokens_to_ids(w) != UNK_ID]
    genres = held.corpus.genres

    def evaluate(model: nn.Module) -> dict[str, float]:
        owner = held.corpus.genre[held.spans[:, 0]]
        nll = {}  # mean per word of each genre
        for i, genre in enumerate(genres):
            rows, total, words = np.flatnonzero(owner == i), 0.0, 0
            for start in range(0, len(rows), 64):
                batch = {
                    k: v.to(model.device) for k, v in collate([held[int(r)] for r in rows[start : start + 64]]).items()
                }
                count = int(batch["labels"].ne(-100).sum())
                total, words = total + float(model(**batch).loss) * count, words + count
            if words:
                nll[genre] = total / words
        print_samples(model)
        perplexity = {f"perplexity_{genre}": float(np.exp(value)) for genre, value in nll.items()}
        return {"loss": float(np.mean(list(nll.values()))), **perplexity}

    def print_samples(model: nn.Module) -> None:
        x = encoder.encode(captions, encoder_tokenizer).mean(0)
        caption_mean = held.means[genres.index("caption")] if "caption" in genres else x
        ids = torch.tensor([tokenizer.convert_tokens_to_ids(words) or [PAD_ID]], device=model.device)
        for i, genre in enumerate(genres):
            thought = torch.from_numpy(x - caption_mean + held.means[i])[None].to(model.device)
            torch.manual_seed(0)
            out = model.generate(
                thought,
                content_ids=ids,
                style=torch.from_numpy(held.means[i])[None].to(model.device),
                do_sample=True,
                top_p=0.9,
                temperature=0.8,
                max_new_tokens=60,
                suppress_tokens=[PAD_ID, BOS_ID, UNK_ID],
            )
            print(f"  [{genre}] {clean_text(tokenizer.decode(out[0], skip_special_tokens=True))}", file=sys.stderr)

    return evaluate


def new_decoder(recipe: StoryRecipe, vocab_size: int, thought_size: int) -> PictaleStoryDecoderForConditionalGeneration:
    """A fresh decoder, or the one in `recipe.initial`."""
    if recipe.initial:
        model = PictaleStoryDecoderForConditionalGeneration.from_pretrained(recipe.initial, dtype=torch.float32)
        if recipe.new_encoder:
            model = for_new_encoder(model, thought_size)
        if recipe.new_style:
            model = for_styles(model, recipe.new_style)
        if model.config.thought_size != thought_size:
            raise RecipeError(
                f"The decoder {recipe.initial} takes thoughts of {model.config.thought_size} numbers, the encoder "
                f"{recipe.data.encoder} gives {thought_size}: name the encoder that the decoder was trained with, or "
                "set new_encoder to have what reads its vectors learned anew."
            )
        return model
    config = PictaleStoryDecoderConfig(vocab_size=vocab_size, thought_size=thought_size, **recipe.model)
    model = PictaleStoryDecoderForConditionalGeneration(config)
    model.generation_config.suppress_tokens = [PAD_ID, BOS_ID, UNK_ID]
    return model


def for_new_encoder(
    model: PictaleStoryDecoderForConditionalGeneration, thought_size: int
) -> PictaleStoryDecoderForConditionalGeneration:
    """A copy of `model` that takes thoughts of `thought_size` numbers and does not understand them yet.

    Their weights are zero: it begins as a decoder that goes by the content words alone, which is what it knows.
    """
    changed = {"thought_size": thought_size, "style_size": 0}  # its styles were vectors of the other encoder too
    config = PictaleStoryDecoderConfig.from_dict(model.config.to_dict() | changed)
    copy = PictaleStoryDecoderForConditionalGeneration(config)
    copy.generation_config = model.generation_config
    weights = {name: w for name, w in model.state_dict().items() if not name.startswith("conditions.style.")}
    name = "conditions.projection.weight"  # [C, 2 D + E], of the thoughts and of the content words
    of_words = weights.pop(name)[:, 2 * model.config.thought_size :]
    copy.load_state_dict(weights | {name: copy.get_parameter(name)})
    with torch.no_grad():
        copy.get_parameter(name).zero_()[:, 2 * thought_size :] = of_words
    return copy


def for_styles(
    model: PictaleStoryDecoderForConditionalGeneration, style_size: int
) -> PictaleStoryDecoderForConditionalGeneration:
    """A copy of `model` that can be told styles, and writes as before until it has learned what they mean.

    Raises:
        RecipeError: it is told styles already, and would forget them.
    """
    if model.config.style_size:
        raise RecipeError(f"The decoder {model.name_or_path} is told styles already: leave new_style out.")
    config = PictaleStoryDecoderConfig.from_dict(model.config.to_dict() | {"style_size": style_size})
    copy = PictaleStoryDecoderForConditionalGeneration(config)
    copy.generation_config = model.generation_config
    unread = copy.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert all(name.startswith("conditions.style.") for name in unread), unread
    with torch.no_grad():
        copy.conditions.style.widen.weight.zero_()
    return copy


def run(recipe: StoryRecipe, resume: bool = False, evaluate_only: bool = False) -> Any:
    """Train as the recipe says and return the `TrainResult`; or only evaluate `recipe.initial`: its figures."""
    data = recipe.data
    sources = [from_dict(TextSource, s, "data.sources") for s in data.sources]
    corpus = load_corpus(sources, data.cache_dir)
    output = Path(recipe.training.output_dir)
    if not evaluate_only:  # which writes nothing, so another run's folder is no hindrance
        prepare_output_dir(output, resume)
    tokenizer = prepare_tokenizer(corpus, data, output / "tokenizer", resume, lowercase=False, initial=recipe.initial)
    store = tokenize_corpus(corpus.sentences, tokenizer)
    encoder = PictaleSkipThoughtsEncoder.from_pretrained(data.encoder).eval()
    encoder_tokenizer = encoder.tokenizer
    vectors = sentence_vectors(encoder, encoder_tokenizer, corpus.sentences, data.cache_dir)

    torch.manual_seed(recipe.training.seed)
    model = new_decoder(recipe, len(tokenizer), encoder.config.hidden_size)
    is_styled = model.conditions.style is not None
    surroundings = Surroundings(corpus, vectors) if is_styled and not evaluate_only else None
    passages = Passages(corpus, store, vectors, data, tokenizer, surroundings)
    if is_styled and (recipe.new_style or not recipe.initial):
        model.conditions.style.measure(torch.from_numpy(passages.means))
    batches = PassageBatches(passages, corpus.runs(held_out=False), data.batch_tokens, recipe.training.seed)
    held = Passages(corpus, store, vectors, data, tokenizer)
    held.cut(corpus.runs(held_out=True), seed=1)
    if not len(passages) or not len(held):
        raise DataError("No passage of the wanted length in the training or in the held-out part of the text.")
    chosen = np.random.default_rng(0).permutation(len(held))[: data.evaluation_examples]
    held.spans, held.lengths = held.spans[chosen], held.lengths[chosen]
    print(
        f"{len(passages):,} passages, {passages.lengths.sum():,} tokens, vocabulary {len(tokenizer):,}", file=sys.stderr
    )

    evaluate = make_evaluate(held, encoder, encoder_tokenizer, tokenizer)
    if evaluate_only:
        with torch.no_grad():
            return evaluate(model.eval())

    def save(weights: nn.Module, folder: Path) -> None:
        weights.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return train(
        model,
        DataLoader(passages, batch_sampler=batches, collate_fn=collate, num_workers=data.workers),
        recipe.training,
        evaluate=evaluate,
        save=save,
        resume=resume,
    )


def main() -> None:
    parser = recipe_parser(__doc__)
    parser.add_argument(
        "--evaluate-only", action="store_true", help="print the held-out figures of the `initial` weights"
    )
    args = parser.parse_args()
    try:
        recipe = read_recipe(args.recipe, StoryRecipe, args.overrides)
        if args.evaluate_only:
            if not recipe.initial:
                raise RecipeError("--evaluate-only needs weights: add --set initial=FOLDER.")
            report = {"model": recipe.initial, "data": [source["dataset"] for source in recipe.data.sources]}
            report |= {"command": command_line("train_story_decoder", None), **run(recipe, evaluate_only=True)}
            print(json.dumps(report, indent=1))
            return
        result = run(recipe, args.resume)
    except PictaleError as error:
        sys.exit(f"train_story_decoder: {error}")
    print(f"stopped by {result.stopped_by} after {result.steps} steps; best {result.best_metric} at {result.best_step}")


if __name__ == "__main__":
    main()
