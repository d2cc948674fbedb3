"""Learn what tells people's sentences from a decoder's, by which the pipeline ranks candidates.

    python -m training.train_naturalness hub_configs/story-decoder-books/recipe.json \\
        --decoder hub_configs/story-decoder-books --output hub_configs/pictale-default

From places inside the passages of the recipe's texts (captions left out) the decoder goes on, told as in training, to
the end of a sentence, and so did the person who wrote the text: a logistic regression on the skip-thought vectors of
both (`modeling.naturalness`). Half of the decoder's sentences are drawn as the pipeline draws them, which is too bland,
half nearly as the decoder believes, which is too wild. Held-out books say how often the person's sentence is told from
the decoder's. Train it anew for another decoder; a pipeline ranks without it as well.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from modeling.errors import DataError, PictaleError
from modeling.fingerprints import encoder_fingerprint
from modeling.model_folder import load_component
from modeling.modeling_skip_thoughts import PictaleSkipThoughtsEncoder
from modeling.modeling_story_decoder import GRUState, PictaleStoryDecoderForConditionalGeneration, StoryConditionOutput
from modeling.naturalness import NATURALNESS_FILE, Naturalness
from modeling.sampling import SamplingOptions, SentenceMarks, bar_words, draw
from modeling.story_types import StoryOptions
from modeling.text import clean_text, is_content_word
from modeling.tokenization import BOS_ID, UNK_ID
from modeling.writer_decoder import sentence_marks

from .data_text import Corpus, TextSource, load_corpus, tokenize_corpus
from .embedding_recipe import model_folder
from .recipes import from_dict, read_recipe
from .sentence_vectors import sentence_vectors
from .text_styles import Surroundings
from .train_story_decoder import Passages, StoryRecipe, collate

_TOLD = StoryOptions()
SAMPLING = {
    "as told": SamplingOptions(temperature=_TOLD.temperature, top_k=_TOLD.top_k, top_p=_TOLD.top_p),
    "as believed": SamplingOptions(temperature=1.0, top_k=512, top_p=0.98),
}
SENTENCE_TOKENS = (3, _TOLD.max_sentence_tokens)
SPEECH = 0.3  # share of the passages with direct speech; pipelines choose it seldom
ROWS = 256  # sentences written at once


@dataclass(frozen=True)
class Place:
    """Somewhere inside a passage.

    Args:
        row: The passage as the decoder is told it, an item of `Passages`.
        context: Ids of the sentences before, which may be none.
        sentence: Ids of what the person went on with.
        genre: Of the text.
    """

    row: dict[str, Any]
    context: list[int]
    sentence: list[int]
    genre: str


def find_places(passages: Passages, count: int, context_tokens: int, seed: int) -> list[Place]:
    """Up to `count` places in different passages, at random; sentences with unknown words are left out."""
    rng, store, places = np.random.default_rng(seed), passages.store, []
    for i in rng.permutation(len(passages))[:count].tolist():
        start, stop, before = passages.spans[i].tolist()
        at = int(rng.integers(start, stop))
        sentence = store[at].tolist()
        if UNK_ID in sentence or not SENTENCE_TOKENS[0] <= len(sentence) <= SENTENCE_TOKENS[1]:
            continue
        first = before if before >= 0 and rng.random() < 0.5 else start
        context: list[int] = []
        for k in range(at - 1, first - 1, -1):
            if len(context) + len(store[k]) > context_tokens:
                break
            context = [*store[k].tolist(), *context]
        genre = passages.corpus.genres[passages.corpus.genre[at]]
        row = passages[i]
        thoughts = row["thoughts"]  # one, or one for each sentence
        row["thoughts"] = thoughts if len(thoughts) == 1 else thoughts[at - start][None]
        places.append(Place(row, context, sentence, genre))
    return places


def go_on(
    decoder: PictaleStoryDecoderForConditionalGeneration,
    places: Sequence[Place],
    options: SamplingOptions,
    marks: SentenceMarks,
    penalty: torch.Tensor,
    generator: torch.Generator,
) -> Iterator[tuple[Place, list[int]]]:
    """Each place with the decoder's own next sentence; one that does not end within the length is left out.

    Args:
        penalty: Taken from a word's log-probability for each time it stands in the sentence already [V].
    """
    ordered = sorted(places, key=lambda place: len(place.context))  # read together, without padding
    alike = (list(group) for _, group in groupby(ordered, key=lambda place: len(place.context)))
    batches = [group[i : i + ROWS] for group in alike for i in range(0, len(group), ROWS)]
    for batch in tqdm(batches, desc="writing", leave=False):
        for place, sentence in zip(batch, _write(decoder, batch, options, marks, penalty, generator), strict=True):
            if sentence:
                yield place, sentence


@torch.no_grad()
def _write(
    decoder: PictaleStoryDecoderForConditionalGeneration,
    places: Sequence[Place],
    options: SamplingOptions,
    marks: SentenceMarks,
    penalty: torch.Tensor,
    generator: torch.Generator,
) -> list[list[int]]:
    """The next sentence at each of places with contexts of one length; [] where it has no end."""
    told = collate([place.row for place in places])
    names = ("thought", "previous_thought", "content_ids", "style")
    conditions = decoder.conditions(**{name: told[name].to(decoder.device) for name in names}).to_tuple()
    ids = torch.tensor([[BOS_ID, *place.context] for place in places], device=decoder.device)
    read, state = ids[:, :-1], None
    if read.size(1):
        encoded = StoryConditionOutput(*conditions)
        state = decoder(decoder_input_ids=read, encoder_outputs=encoded, use_cache=True).cache.h
    sentences: list[list[int]] = [[] for _ in places]
    open_rows, last = torch.arange(len(places), device=ids.device), ids[:, -1:]
    counts = torch.zeros(len(places), decoder.config.vocab_size, device=ids.device)
    for _ in range(SENTENCE_TOKENS[1]):
        output = decoder(
            decoder_input_ids=last,
            encoder_outputs=StoryConditionOutput(*(part[open_rows] for part in conditions)),
            cache=None if state is None else GRUState(state),
            use_cache=True,
        )
        log_probs = output.logits[:, -1] - penalty * counts
        bar_words(log_probs, last, decoder, options, no_end=True)
        last = draw(log_probs, generator, options).unsqueeze(1)
        counts.scatter_add_(1, last, torch.ones_like(last, dtype=counts.dtype))
        for row, word in zip(open_rows.tolist(), last.squeeze(1).tolist(), strict=True):
            sentences[row].append(word)
        going = [k for k, row in enumerate(open_rows.tolist()) if not _is_over(sentences[row], marks)]
        if not going:
            return sentences
        going = torch.tensor(going, device=ids.device)
        open_rows, last, counts, state = (
            open_rows[going],
            last[going],
            counts[going],
            output.cache.h[:, going],
        )
    for row in open_rows.tolist():
        sentences[row] = []
    return sentences


def _is_over(sentence: Sequence[int], marks: SentenceMarks) -> bool:
    return len(sentence) in marks.ends(sentence)[-1:]


# -- people against the decoder --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Pairs:
    """Vectors of people's sentences and of the decoder's from the same places [N, D] each, and the genre of each."""

    people: np.ndarray
    decoder: np.ndarray
    genres: tuple[str, ...]

    @classmethod
    def join(cls, parts: Iterable[Pairs]) -> Pairs:
        parts = list(parts)
        people, decoder = (np.concatenate([getattr(p, name) for p in parts]) for name in ("people", "decoder"))
        return cls(people, decoder, tuple(genre for part in parts for genre in part.genres))


def fit(pairs: Pairs, strength: float) -> tuple[np.ndarray, float]:
    """Weight [D] and bias of a logistic regression; `strength` is C on standardised numbers.

    Raises:
        DataError: scikit-learn is missing, or there are fewer than ten pairs.
    """
    if len(pairs.people) < 10:
        raise DataError("The decoder ended fewer than ten sentences: give more --places.")
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise DataError("scikit-learn is missing: pip install -r training/requirements.txt.") from None
    rows = np.concatenate([pairs.people, pairs.decoder])
    mean, deviation = rows.mean(0), rows.std(0) + 1e-4
    model = LogisticRegression(C=strength, max_iter=1000)
    model.fit((rows - mean) / deviation, np.repeat([1, 0], len(pairs.people)))
    weight = model.coef_[0] / deviation
    return weight.astype(np.float32), float(model.intercept_[0] - mean @ weight)


def told_apart(natural: Naturalness, pairs: Pairs) -> dict[str, float]:
    """Share of the pairs in which the person's sentence is the more natural, in all and by genre."""
    right = natural(pairs.people) > natural(pairs.decoder)
    genres = np.array(pairs.genres)
    shares = {"all": right.mean()} | {genre: right[genres == genre].mean() for genre in dict.fromkeys(pairs.genres)}
    return {name: round(float(share), 4) for name, share in shares.items()}


def run(args: argparse.Namespace) -> dict[str, Any]:
    recipe = read_recipe(args.recipe, StoryRecipe, args.overrides)
    data = replace(recipe.data, speech=SPEECH, weights=recipe.data.weights | {"caption": 0.0})
    place = model_folder(args.decoder)
    of_decoder = PictaleStoryDecoderForConditionalGeneration.from_pretrained
    decoder = load_component(of_decoder, place, "decoder", dtype=torch.float32).eval()
    of_tokenizer = PreTrainedTokenizerFast.from_pretrained
    tokenizer = load_component(of_tokenizer, place, "decoder's tokenizer", weights=False)
    of_encoder = PictaleSkipThoughtsEncoder.from_pretrained
    encoder = load_component(of_encoder, model_folder(data.encoder), "encoder").eval()
    corpus = load_corpus([from_dict(TextSource, source, "data.sources") for source in data.sources], data.cache_dir)
    store = tokenize_corpus(corpus.sentences, tokenizer)
    vectors = sentence_vectors(encoder, encoder.tokenizer, corpus.sentences, data.cache_dir)
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    penalty = _TOLD.presence_penalty * torch.tensor([float(is_content_word(word)) for word in words])
    marks, generator = sentence_marks(tokenizer.get_vocab()), torch.Generator().manual_seed(args.seed)

    def pairs_of(held_out: bool, count: int, seed: int) -> dict[str, Pairs]:
        passages = _passages(corpus, store, vectors, data, tokenizer, held_out, seed)
        places = find_places(passages, count, _TOLD.context_tokens, seed)
        found: dict[str, Pairs] = {}
        for share, (name, options) in enumerate(SAMPLING.items()):
            part = places[share :: len(SAMPLING)]
            written = list(go_on(decoder, part, options, marks, penalty, generator))
            texts = [
                clean_text(tokenizer.decode(ids, skip_special_tokens=True))
                for side in ([place.sentence for place, _ in written], [ids for _, ids in written])
                for ids in side
            ]
            encoded = encoder.encode(texts) if texts else np.zeros((0, encoder.config.hidden_size), np.float32)
            genres = tuple(place.genre for place, _ in written)
            found[name] = Pairs(encoded[: len(written)], encoded[len(written) :], genres)
        return found

    learned = Pairs.join(pairs_of(False, args.places, args.seed).values())
    weight, bias = fit(learned, args.strength)
    source = f"{len(learned.people)} sentences of people and as many of {Path(args.decoder).name}"
    natural = Naturalness(weight, bias, encoder_fingerprint(encoder), source)
    held = pairs_of(True, max(args.places // 6, 10), args.seed + 1)
    natural.save(Path(args.output) / NATURALNESS_FILE)
    report: dict[str, Any] = {"pairs": len(learned.people), "held_out_pairs": sum(len(p.people) for p in held.values())}
    report |= {name: told_apart(natural, pairs) for name, pairs in held.items() if len(pairs.people)}
    return report


def _passages(
    corpus: Corpus, store: Any, vectors: np.ndarray, data: Any, tokenizer: Any, held_out: bool, seed: int
) -> Passages:
    surroundings = None if held_out else Surroundings(corpus, vectors)
    passages = Passages(corpus, store, vectors, data, tokenizer, surroundings)
    passages.cut(corpus.runs(held_out=held_out), seed)
    if not len(passages):
        raise DataError(f"No passage of the wanted length in the {'held-out' if held_out else 'training'} texts.")
    return passages


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="of the decoder: its texts and its encoder")
    parser.add_argument("--decoder", required=True, help="folder or Hub id of the decoder")
    parser.add_argument("--output", required=True, metavar="FOLDER", help=f"gets {NATURALNESS_FILE}")
    parser.add_argument("--places", type=int, default=16000, help="in the texts, to go on from (16000)")
    parser.add_argument("--strength", type=float, default=0.003, help="C of the logistic regression (0.003)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE", help="of the recipe"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    disable_progress_bar()
    try:
        if args.places < 1 or args.strength <= 0:
            raise PictaleError("--places must be at least 1, and --strength above 0.")
        print(json.dumps(run(args), indent=1))
    except PictaleError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
