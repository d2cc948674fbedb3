"""Configuration of the story decoder."""

from __future__ import annotations

from transformers import PreTrainedConfig


class PictaleStoryDecoderConfig(PreTrainedConfig):
    """Sizes of the decoder that turns a thought vector into a passage.

    Args:
        vocab_size: V, words of the tokenizer, special tokens included.
        embedding_size: E, width of a frequent word's vector.
        adaptive_cutoff: Words with a full-width vector (`AdaptiveVocabulary`); None: all.
        hidden_size: H, width of the GRU.
        num_hidden_layers: GRU layers.
        thought_size: D, width of the thought vectors of the encoder it was trained with.
        condition_size: C, width of what is fed at every step beside the word.
        style_size: Width through which the style's own vector is read; 0: style is known by the thought alone.
        dropout: On word vectors, between layers and before the output, in training only.
        initializer_range: Standard deviation of the word vectors at the start.
    """

    model_type = "pictale_story_decoder"

    def __init__(
        self,
        vocab_size: int = 20000,
        embedding_size: int = 320,
        adaptive_cutoff: int | None = 4000,
        hidden_size: int = 768,
        num_hidden_layers: int = 1,
        thought_size: int = 640,
        condition_size: int = 256,
        style_size: int = 0,
        dropout: float = 0.1,
        initializer_range: float = 0.05,
        **kwargs,
    ) -> None:
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.adaptive_cutoff = adaptive_cutoff
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.thought_size = thought_size
        self.condition_size = condition_size
        self.style_size = style_size
        self.dropout = dropout
        self.initializer_range = initializer_range
        kwargs.setdefault("is_encoder_decoder", True)
        kwargs.setdefault("pad_token_id", 0)
        kwargs.setdefault("bos_token_id", 1)
        kwargs.setdefault("eos_token_id", 2)
        kwargs.setdefault("decoder_start_token_id", 1)
        super().__init__(**kwargs)


PictaleStoryDecoderConfig.register_for_auto_class()
