"""Configurations of the 2015 models, as `training.convert_original` writes them.

github.com/ryankiros: skip-thoughts (encoder), neural-storyteller (decoder), visual-semantic-embedding. All sizes are
those of the files that were converted.
"""

from __future__ import annotations

from transformers import PreTrainedConfig


class PictaleOriginalSkipThoughtsConfig(PreTrainedConfig):
    """Sizes of the original encoder: uni-skip, bi-skip or both (combine-skip).

    Args:
        vocab_size: n, words of the table; the last row that a word has stands for it.
        uni_embedding_size, uni_hidden_size: Word and state width of uni-skip; state width 0: there is none.
        bi_embedding_size, bi_hidden_size: The same for each direction of bi-skip.
    """

    model_type = "pictale_original_skip_thoughts"

    def __init__(
        self,
        vocab_size: int = 930_913,
        uni_embedding_size: int = 620,
        uni_hidden_size: int = 2400,
        bi_embedding_size: int = 620,
        bi_hidden_size: int = 1200,
        **kwargs,
    ) -> None:
        self.vocab_size = vocab_size
        self.uni_embedding_size = uni_embedding_size
        self.uni_hidden_size = uni_hidden_size
        self.bi_embedding_size = bi_embedding_size
        self.bi_hidden_size = bi_hidden_size
        super().__init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Width of a thought vector: uni, then forward, then backward."""
        return self.uni_hidden_size + 2 * self.bi_hidden_size


class PictaleOriginalDecoderConfig(PreTrainedConfig):
    """Sizes of the original passage decoder.

    Args:
        vocab_size: V, `<eos>` (0) and UNK (1) included.
        embedding_size: E, width of a word vector.
        hidden_size: H, width of the state.
        thought_size: D, width of the thought vector that the first state is made from.
        deep_output: Whether a layer of width E with tanh stands between state and words.
    """

    model_type = "pictale_original_decoder"

    def __init__(
        self,
        vocab_size: int = 40_000,
        embedding_size: int = 620,
        hidden_size: int = 1600,
        thought_size: int = 4800,
        deep_output: bool = False,
        **kwargs,
    ) -> None:
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.thought_size = thought_size
        self.deep_output = deep_output
        kwargs.setdefault("eos_token_id", 0)
        super().__init__(**kwargs)


class PictaleOriginalEmbeddingConfig(PreTrainedConfig):
    """Sizes of the original joint embedding of photographs and sentences.

    Args:
        vocab_size: V, `<eos>` (0) and UNK (1) included.
        embedding_size: E, width of a word vector.
        hidden_size: D, width of the common space.
        image_size: F, width of an image feature (4096: fc7 of VGG-19).
        sentence_encoder: `gru`, or `bow` for the sum of word vectors.
    """

    model_type = "pictale_original_embedding"

    def __init__(
        self,
        vocab_size: int = 10_000,
        embedding_size: int = 300,
        hidden_size: int = 1024,
        image_size: int = 4096,
        sentence_encoder: str = "gru",
        **kwargs,
    ) -> None:
        if sentence_encoder not in ("gru", "bow"):
            raise ValueError(f"sentence_encoder is 'gru' or 'bow', not {sentence_encoder!r}.")
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.image_size = image_size
        self.sentence_encoder = sentence_encoder
        kwargs.setdefault("eos_token_id", 0)
        super().__init__(**kwargs)


for _config in (PictaleOriginalSkipThoughtsConfig, PictaleOriginalDecoderConfig, PictaleOriginalEmbeddingConfig):
    _config.register_for_auto_class()
