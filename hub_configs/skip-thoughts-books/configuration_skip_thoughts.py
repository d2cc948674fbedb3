"""Configuration of the skip-thought encoder (Kiros et al., arXiv:1506.06726)."""

from __future__ import annotations

from transformers import PreTrainedConfig


class PictaleSkipThoughtsConfig(PreTrainedConfig):
    """Sizes of the encoder and of the two decoders that train it.

    Args:
        vocab_size: V, words of the tokenizer, special tokens included.
        embedding_size: E, width of a frequent word's vector.
        adaptive_cutoff: Words with a full-width vector (`AdaptiveVocabulary`); None: all.
        hidden_size: D, width of the encoder state and so of a thought vector.
        decoder_hidden_size: Width of the previous- and next-sentence decoders.
        condition_size: Width to which the thought is projected before each decoder step.
        dropout: On word vectors and decoder states, in training only.
        max_tokens: Tokens of a sentence that are read, `<s>` and `</s>` included.
        initializer_range: Standard deviation of the word vectors at the start.
    """

    model_type = "pictale_skip_thoughts"

    def __init__(
        self,
        vocab_size: int = 16000,
        embedding_size: int = 256,
        adaptive_cutoff: int | None = 4000,
        hidden_size: int = 640,
        decoder_hidden_size: int = 512,
        condition_size: int = 256,
        dropout: float = 0.1,
        max_tokens: int = 64,
        initializer_range: float = 0.05,
        **kwargs,
    ) -> None:
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.adaptive_cutoff = adaptive_cutoff
        self.hidden_size = hidden_size
        self.decoder_hidden_size = decoder_hidden_size
        self.condition_size = condition_size
        self.dropout = dropout
        self.max_tokens = max_tokens
        self.initializer_range = initializer_range
        kwargs.setdefault("pad_token_id", 0)
        kwargs.setdefault("bos_token_id", 1)
        kwargs.setdefault("eos_token_id", 2)
        super().__init__(**kwargs)


PictaleSkipThoughtsConfig.register_for_auto_class()
