"""Word-level tokenizers shared by the captioner, the skip-thought encoder and the story decoder; byte-pair ones.

A word-level vocabulary cannot invent words, which a byte-pair one trained on a small corpus does. Contractions stay
readable ("don't" is one token, "'s" is split off), hyphens, dashes and quotation marks are tokens of their own. A
byte-pair vocabulary knows no unknown word, only unknown characters; its pieces begin a word where they begin with "▁".

Ids are fixed: 0 `<pad>`, 1 `<s>`, 2 `</s>`, 3 `<unk>`. A saved tokenizer loads with `AutoTokenizer` and no remote code.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from .words import WORD_PATTERN, split_words

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
SPECIAL_TOKENS = (PAD, BOS, EOS, UNK)
PAD_ID, BOS_ID, EOS_ID, UNK_ID = range(4)
WORD_START = "\u2581"


def saved_tokenizer(config: PreTrainedConfig) -> PreTrainedTokenizerFast:
    """The tokenizer beside the weights that `config` was loaded with, of the same revision.

    Not by `AutoTokenizer`: that reads the configuration first, and outside this package asks whether it may run code.
    """
    return PreTrainedTokenizerFast.from_pretrained(
        config.name_or_path, revision=getattr(config, "_commit_hash", None) or "main"
    )


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="removed", invert=True)


def _normalizer(lowercase: bool) -> normalizers.Normalizer:
    steps = [normalizers.NFKC(), normalizers.Replace("\u2019", "'"), normalizers.Replace("\u2018", "'")]
    return normalizers.Sequence([*steps, normalizers.Lowercase()] if lowercase else steps)


def knows_whole_words(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether a tokenizer is word-level, so that a word is in its vocabulary or unknown."""
    return isinstance(tokenizer.backend_tokenizer.model, WordLevel)


def folds_case(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether a tokenizer lowers every text."""
    return "Lowercase" in str(tokenizer.backend_tokenizer.normalizer)


def count_words(texts: Iterable[str], lowercase: bool = False) -> Counter[str]:
    """Token counts over `texts`, the input of `build_word_tokenizer`."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split_words(text, lowercase))
    return counts


def build_word_tokenizer(
    texts: Iterable[str] | Counter[str],
    vocab_size: int = 20000,
    min_count: int = 1,
    lowercase: bool = True,
    max_length: int = 512,
) -> PreTrainedTokenizerFast:
    """Build a word-level tokenizer; ids follow frequency, so adaptive softmax can cut them by rank.

    Args:
        texts: Texts, or their counts as `count_words` gives them (with the same `lowercase`).
        vocab_size: Largest vocabulary, the four special tokens included.
        min_count: A word seen less often becomes `<unk>`.
        lowercase: Fold case; also done to every text tokenized later.
        max_length: Tokens kept when a caller asks for truncation.

    Returns:
        A fast tokenizer that wraps each text as `<s> ... </s>` and pads on the right.
    """
    counts = texts if isinstance(texts, Counter) else count_words(texts, lowercase)
    words = sorted((w for w, n in counts.items() if n >= min_count), key=lambda w: (-counts[w], w))
    words = [w for w in words if w not in SPECIAL_TOKENS][: max(vocab_size - len(SPECIAL_TOKENS), 0)]
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNK))
    tokenizer.normalizer = _normalizer(lowercase)
    tokenizer.pre_tokenizer = _pre_tokenizer()
    return _wrap(tokenizer, max_length)


def build_bpe_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 4096,
    min_count: int = 2,
    lowercase: bool = True,
    max_length: int = 512,
) -> PreTrainedTokenizerFast:
    """Build a byte-pair tokenizer (Sennrich et al., arXiv:1508.07909); words are what stands between spaces.

    Args:
        texts: What the merges are learnt from.
        vocab_size: Largest vocabulary, the four special tokens included.
        min_count: A pair seen less often is not merged.
        lowercase, max_length: As for `build_word_tokenizer`.

    Returns:
        A fast tokenizer that wraps each text as `<s> ... </s>`, pads on the right, and decodes to the text itself. Ids
        follow the frequency of the pieces in `texts`.
    """
    texts = list(texts)
    learner = _bpe(BPE(unk_token=UNK), lowercase)
    trainer = BpeTrainer(
        vocab_size=vocab_size, min_frequency=min_count, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    counts: Counter[int] = Counter()
    for encoding in learner.encode_batch(texts):
        counts.update(encoding.ids)
    model = json.loads(learner.to_str())["model"]
    pieces = sorted(set(model["vocab"]) - set(SPECIAL_TOKENS), key=lambda p: (-counts[model["vocab"][p]], p))
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *pieces))}
    merges = [tuple(merge) for merge in model["merges"]]
    return _wrap(_bpe(BPE(vocab=vocabulary, merges=merges, unk_token=UNK), lowercase), max_length)


def _bpe(model: BPE, lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = _normalizer(lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(WORD_START, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(WORD_START, prepend_scheme="always")
    return tokenizer


def _wrap(tokenizer: Tokenizer, max_length: int) -> PreTrainedTokenizerFast:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, BOS_ID), (EOS, EOS_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="right",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def whole_words(tokens: Sequence[str]) -> list[tuple[str, list[int]]]:
    """The words that tokens spell, each with the places of its tokens.

    Example:
        >>> whole_words(["\u2581a", "\u2581skate", "board"])
        [('a', [0]), ('skateboard', [1, 2])]
        >>> whole_words(["a", "dog"])
        [('a', [0]), ('dog', [1])]
    """
    in_pieces = any(token.startswith(WORD_START) for token in tokens)
    words: list[tuple[str, list[int]]] = []
    for place, token in enumerate(tokens):
        if words and in_pieces and not token.startswith(WORD_START):
            words[-1] = (words[-1][0] + token, [*words[-1][1], place])
        else:
            words.append((token.removeprefix(WORD_START), [place]))
    return words
