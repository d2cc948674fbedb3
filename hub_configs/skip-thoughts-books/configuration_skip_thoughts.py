"""Configuration of the skip-thought encoder (Kiros et al., arXiv:1506.06726)."""

from __future__ import annotations

from transformers import PreTrainedConfig

from .errors import ModelFolderError

ENCODER_TYPES = ("uni", "bi", "combine")
OUTPUT_LAYERS = ("tied", "plain")


class PictaleSkipThoughtsConfig(PreTrainedConfig):
    """Sizes of the encoder and of the two decoders that train it.

    Args:
        vocab_size: V, words of the tokenizer, special tokens included.
        embedding_size: E, width of a frequent word's vector.
        adaptive_cutoff: Words with a full-width vector (`AdaptiveVocabulary`); None: all.
        adaptive_tail_factor: A rarer word's vector has embedding_size // adaptive_tail_factor numbers.
        encoder_type: "uni" reads forward; "bi" has one GRU of D/2 for each direction; "combine" is a uni of D/2 beside
            a bi of two D/4, trained together (the paper concatenates two models trained apart).
        hidden_size: D, width of a thought vector, whatever the encoder type.
        decoder_hidden_size: Width of the previous- and next-sentence decoders.
        condition_size: Width to which the thought is projected before each decoder step.
        output_layer: Of the two decoders: "tied" to the word vectors, adaptive where they are, or "plain", as in the
            paper: a softmax over all words with weights of its own.
        dropout: On word vectors and decoder states, in training only.
        contrastive_weight: Weight of telling the next sentence from the other sentences of the batch, beside writing it
            (Logeswaran and Lee, arXiv:1803.02893); 0: the objective of 2015 alone.
        contrastive_size: Width in which sentence and next sentence are compared.
        contrastive_temperature: Divides their cosine.
        decoder_stride: In training the decoders see every n-th sentence of a batch, since their vocabulary layer is
            most of the work; the contrastive part sees all. 1: all.
        max_tokens: Tokens of a sentence that are read, `<s>` and `</s>` included.
        initializer_range: Standard deviation of the word vectors at the start.
        vocabulary_expansion: Whether vectors for words beyond the vocabulary lie beside the weights
            (`vocabulary_expansion.VocabularyExpansion`).
        fingerprint: Of the weights saved beside it (`fingerprints.encoder_fingerprint`), written with them.

    Raises:
        ModelFolderError: an encoder type or output layer that does not exist, or a width it cannot be divided into.
    """

    model_type = "pictale_skip_thoughts"

    def __init__(
        self,
        vocab_size: int = 16000,
        embedding_size: int = 256,
        adaptive_cutoff: int | None = 4000,
        adaptive_tail_factor: int = 4,
        encoder_type: str = "uni",
        hidden_size: int = 640,
        decoder_hidden_size: int = 512,
        condition_size: int = 256,
        output_layer: str = "tied",
        dropout: float = 0.1,
        contrastive_weight: float = 0.0,
        contrastive_size: int = 256,
        contrastive_temperature: float = 0.1,
        decoder_stride: int = 1,
        max_tokens: int = 64,
        initializer_range: float = 0.05,
        vocabulary_expansion: bool = False,
        fingerprint: str = "",
        **kwargs,
    ) -> None:
        if encoder_type not in ENCODER_TYPES:
            raise ModelFolderError(f"encoder_type '{encoder_type}' is not known; use {', '.join(ENCODER_TYPES)}.")
        if output_layer not in OUTPUT_LAYERS:
            raise ModelFolderError(f"output_layer '{output_layer}' is not known; use {', '.join(OUTPUT_LAYERS)}.")
        parts = {"uni": 1, "bi": 2, "combine": 4}[encoder_type]
        if hidden_size % parts:
            raise ModelFolderError(f"hidden_size {hidden_size} of a '{encoder_type}' encoder must divide by {parts}.")
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.adaptive_cutoff = adaptive_cutoff
        self.adaptive_tail_factor = adaptive_tail_factor
        self.encoder_type = encoder_type
        self.hidden_size = hidden_size
        self.decoder_hidden_size = decoder_hidden_size
        self.condition_size = condition_size
        self.output_layer = output_layer
        self.dropout = dropout
        self.contrastive_weight = contrastive_weight
        self.contrastive_size = contrastive_size
        self.contrastive_temperature = contrastive_temperature
        self.decoder_stride = decoder_stride
        self.max_tokens = max_tokens
        self.initializer_range = initializer_range
        self.vocabulary_expansion = vocabulary_expansion
        self.fingerprint = fingerprint
        kwargs.setdefault("pad_token_id", 0)
        kwargs.setdefault("bos_token_id", 1)
        kwargs.setdefault("eos_token_id", 2)
        super().__init__(**kwargs)


PictaleSkipThoughtsConfig.register_for_auto_class()
