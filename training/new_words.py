"""Words that a trained captioner does not know yet, added to its vocabulary and ready to be used.

The words it knows keep their ids, vectors and biases. A new word w starts as a mixture of them, weighted by what the
model, reading the captions, would have said in its place:
    q_w(v) = mean over the places where w stands of p(v | photograph, words before)
    e_w = sum_v q_w(v) e_v + noise,   b_w = sum_v q_w(v) b_v + log(n_w / sum of p(w) over all places)
So Rosa starts among the girls and women; the last term lets the model expect w as often (n_w times) as it comes up. The
usual start, the mean of all words (Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021), is
left to words that were not read: a short fine-tuning at a rate that spares what is known brings no word from there into
a caption.

Shapes: R captions, T places, V words known, N new words.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from modeling.errors import ModelFolderError
from modeling.modeling_captioner import IGNORE_INDEX, PictaleCaptionerForConditionalGeneration
from modeling.tokenization import BOS, EOS, PAD, SPECIAL_TOKENS, UNK, count_words

from .data_captions import collate, normalise_caption

NOISE = 0.02
"""Standard deviation of the noise, in those of the known vectors: enough for two new words to part."""

READ = 2000
"""Photographs whose captions are read for new words, at most."""

MAX_SHIFT = 3.0


def unknown_words(captions: Iterable[str], tokenizer: PreTrainedTokenizerFast, min_count: int) -> list[str]:
    """Words of `captions` that the tokenizer cannot write and that come up at least `min_count` times, most frequent
    first. A byte-pair vocabulary writes every word: none.
    """
    if not isinstance(tokenizer.backend_tokenizer.model, WordLevel):
        return []
    known = tokenizer.get_vocab()
    counts = count_words(map(normalise_caption, captions), lowercase=True)
    words = [word for word, count in counts.items() if count >= min_count and word not in known]
    return sorted(words, key=lambda word: (-counts[word], word))


def add_words(tokenizer: PreTrainedTokenizerFast, words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer that knows `words` as well, with the ids after the last."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    for word in words:
        vocabulary.setdefault(word, len(vocabulary))
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="right",
        model_max_length=tokenizer.model_max_length,
        clean_up_tokenization_spaces=False,
    )


@torch.no_grad()
def grow_vocabulary(
    model: PictaleCaptionerForConditionalGeneration, likeness: torch.Tensor, seed: int = 0
) -> PictaleCaptionerForConditionalGeneration:
    """A captioner that knows N words more; what it says of the old ones does not change.

    Args:
        likeness: weights of the known words in the mixture that each new word starts as [N, V]; a row of zeros takes
            all words equally.

    Raises:
        ModelFolderError: adaptive words that would need another cluster for this many.
    """
    count, size = likeness.shape
    config = copy.deepcopy(model.config)
    config.vocab_size = size + count
    larger = PictaleCaptionerForConditionalGeneration(config)
    old, new = model.state_dict(), larger.state_dict()
    if old.keys() != new.keys():
        raise ModelFolderError(
            f"A captioner of {size} words and adaptive_cutoff {config.adaptive_cutoff} cannot learn new words: train "
            "it anew."
        )
    generator = torch.Generator().manual_seed(seed)
    for name, table in old.items():
        if table.shape != new[name].shape:  # a table of all words, or of the rare ones, which are the last
            weights = likeness[:, size - len(table) :].to(table)
            everyone = torch.ones_like(weights)
            everyone[:, : max(len(SPECIAL_TOKENS) - (size - len(table)), 0)] = 0
            weights = torch.where(weights.sum(1, keepdim=True) > 1e-3, weights, everyone)
            start = weights / weights.sum(1, keepdim=True) @ table  # [N, D], or [N] of biases
            if table.dim() > 1:
                start += NOISE * table.std(0) * torch.randn(start.shape, generator=generator).to(table)
            table = torch.cat([table, start])
        new[name] = table
    larger.load_state_dict(new)
    larger.generation_config = copy.deepcopy(model.generation_config)
    return larger.to(model.device).train(model.training)


@torch.no_grad()
def learn_words(
    model: PictaleCaptionerForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    words: Sequence[str],
    source: Any,
    captions: Sequence[Sequence[str]],
    seed: int = 0,
) -> tuple[PictaleCaptionerForConditionalGeneration, PreTrainedTokenizerFast]:
    """A captioner and a tokenizer that know `words`, started as the head of this file says.

    Args:
        source: of the photographs, see `training.photo_sources`.
        captions: of each photograph, in step.
    """
    larger_tokenizer = add_words(tokenizer, words)
    size, count = len(tokenizer), len(words)
    likeness = torch.zeros(count, size)
    for probabilities, targets in _predictions(model, source, captions, tokenizer, larger_tokenizer):
        places = targets >= size
        probabilities = probabilities[places]
        probabilities[:, : len(SPECIAL_TOKENS)] = 0
        likeness.index_add_(0, targets[places] - size, probabilities)
    larger = grow_vocabulary(model, likeness, seed)
    written, expected = torch.zeros(count), torch.zeros(count)
    for probabilities, targets in _predictions(larger, source, captions, larger_tokenizer, larger_tokenizer):
        written += torch.bincount(targets[targets >= size] - size, minlength=count)
        expected += probabilities[:, size:].sum(0)
    shift = (written / expected.clamp_min(1e-9)).log().clamp(-MAX_SHIFT, MAX_SHIFT)
    bias = larger.words.tail_bias if larger.config.adaptive_cutoff else larger.vocabulary.bias
    bias[-count:] += torch.where(written > 0, shift, 0.0).to(bias)
    return larger, larger_tokenizer


def _predictions(
    model: PictaleCaptionerForConditionalGeneration,
    source: Any,
    captions: Sequence[Sequence[str]],
    reader: PreTrainedTokenizerFast,
    writer: PreTrainedTokenizerFast,
    batch_size: int = 8,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """For every word of the captions what the model expects there [M, V] and what stands there [M], a few photographs
    at a time; `reader` makes the ids that the model is shown, `writer` those that stand there.
    """
    model.eval()
    rows = [row for row in range(len(captions)) if source.usable[row]][:READ]
    for start in range(0, len(rows), batch_size):
        chosen = rows[start : start + batch_size]
        texts = [[normalise_caption(text) for text in captions[row]] for row in chosen]
        seen = source.get_many(chosen)
        shown, there = (
            collate([(x, _labels(tokenizer, group), []) for x, group in zip(seen, texts, strict=True)])
            for tokenizer in (reader, writer)
        )
        logits = model(
            **{source.kind: seen.to(model.device)},
            decoder_input_ids=model.shift_right(shown["labels"]).to(model.device),
            image_index=shown["image_index"].to(model.device),
        ).logits  # [R, T, V]
        places = there["labels"] != IGNORE_INDEX
        yield logits.float().softmax(-1).cpu()[places], there["labels"][places]


def _labels(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Ids of captions without the start."""
    return [ids[1:] for ids in tokenizer(texts).input_ids]
