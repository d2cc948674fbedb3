"""Words that a trained captioner does not know yet, added to its vocabulary.

The old words keep their ids, their vectors and their biases, so that before training the captions hardly change. A new
word starts as the mean of the words it joins, plus a little noise so that two new words can part:
    e_new = mean(e) + 0.1 std(e) * n,  n ~ Normal(0, 1),  b_new = mean(b)
Starting far from the mean would make the model write the word everywhere, or never (Hewitt, "Initializing New Word
Embeddings for Pretrained Language Models", 2021).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from modeling.errors import ModelFolderError
from modeling.modeling_captioner import PictaleCaptionerForConditionalGeneration
from modeling.tokenization import BOS, EOS, PAD, SPECIAL_TOKENS, UNK, count_words

from .data_captions import normalise_caption

NOISE = 0.1


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
    model: PictaleCaptionerForConditionalGeneration, size: int, seed: int = 0
) -> PictaleCaptionerForConditionalGeneration:
    """A captioner with `size` words, the first of which are those of `model`; see the head of this file.

    Raises:
        ModelFolderError: adaptive words that would need another cluster for this many.
    """
    config = copy.deepcopy(model.config)
    config.vocab_size = size
    larger = PictaleCaptionerForConditionalGeneration(config)
    old, new = model.state_dict(), larger.state_dict()
    if old.keys() != new.keys():
        raise ModelFolderError(
            f"A captioner of {model.config.vocab_size} words and adaptive_cutoff {config.adaptive_cutoff} cannot learn "
            "new words: train it anew."
        )
    generator = torch.Generator().manual_seed(seed)
    for name, weight in old.items():
        missing = len(new[name]) - len(weight) if weight.dim() else 0
        if missing:
            known = weight[len(SPECIAL_TOKENS) :] if len(weight) > len(SPECIAL_TOKENS) else weight
            start = known.mean(0, keepdim=True).expand(missing, *weight.shape[1:])
            if weight.dim() > 1:
                noise = torch.randn(start.shape, generator=generator).to(known)
                start = start + NOISE * known.std(0, keepdim=True).nan_to_num() * noise
            weight = torch.cat([weight, start])
        new[name] = weight
    larger.load_state_dict(new)
    larger.generation_config = copy.deepcopy(model.generation_config)
    return larger.train(model.training)
