"""Configuration of the joint embedding of photographs and sentences."""

from __future__ import annotations

from transformers import PreTrainedConfig

from .errors import ModelFolderError

SENTENCE_ENCODERS = ("gru", "skip-thoughts")
IMAGE_POOLINGS = ("mean", "attention", "both")


class PictaleJointEmbeddingConfig(PreTrainedConfig):
    """Sizes of the joint embedding, and which backbone and sentence encoder it belongs to.

    Args:
        feature_size: F, channels of the captioner's backbone.
        backbone: Its name, for messages.
        backbone_fingerprint: `backbone_fingerprint` of its weights; features of other weights mean something else.
            Empty: not checked.
        image_pooling: What is kept of the regions: their "mean", their "attention" pooling, with learned weights, or
            "both", side by side.
        attention_heads: Weightings that the attention pooling learns.
        sentence_encoder: "gru", with a vocabulary of its own, or "skip-thoughts": the pipeline's encoder, frozen.
        vocab_size, word_size: Words of the GRU, special tokens included, and the width of their vectors.
        hidden_size: Width of the GRU's state, or of the skip-thought vectors.
        encoder_fingerprint: Of the skip-thought encoder, with "skip-thoughts".
        embedding_size: D, width of the common space.
        image_dropout, sentence_dropout: On pooled features; on word vectors and on the last state.
        word_dropout: Share of words that training reads as unknown.
        max_tokens: Tokens of a sentence that are read, `<s>` and `</s>` included.
        fingerprint: Of the weights saved beside it (`fingerprints.encoder_fingerprint`), written with them.

    Raises:
        ModelFolderError: an option that does not exist.
    """

    model_type = "pictale_joint_embedding"

    def __init__(
        self,
        feature_size: int = 1280,
        backbone: str = "efficientnet_lite0",
        backbone_fingerprint: str = "",
        image_pooling: str = "both",
        attention_heads: int = 2,
        sentence_encoder: str = "gru",
        vocab_size: int = 5000,
        word_size: int = 100,
        hidden_size: int = 256,
        encoder_fingerprint: str = "",
        embedding_size: int = 128,
        image_dropout: float = 0.3,
        sentence_dropout: float = 0.3,
        word_dropout: float = 0.1,
        max_tokens: int = 40,
        fingerprint: str = "",
        **kwargs,
    ) -> None:
        if sentence_encoder not in SENTENCE_ENCODERS:
            known = ", ".join(SENTENCE_ENCODERS)
            raise ModelFolderError(f"sentence_encoder '{sentence_encoder}' is not known; use {known}.")
        if image_pooling not in IMAGE_POOLINGS:
            raise ModelFolderError(f"image_pooling '{image_pooling}' is not known; use {', '.join(IMAGE_POOLINGS)}.")
        self.feature_size = feature_size
        self.backbone = backbone
        self.backbone_fingerprint = backbone_fingerprint
        self.image_pooling = image_pooling
        self.attention_heads = attention_heads
        self.sentence_encoder = sentence_encoder
        self.vocab_size = vocab_size
        self.word_size = word_size
        self.hidden_size = hidden_size
        self.encoder_fingerprint = encoder_fingerprint
        self.embedding_size = embedding_size
        self.image_dropout = image_dropout
        self.sentence_dropout = sentence_dropout
        self.word_dropout = word_dropout
        self.max_tokens = max_tokens
        self.fingerprint = fingerprint
        defaults = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "unk_token_id": 3}
        super().__init__(**{**defaults, **kwargs})


PictaleJointEmbeddingConfig.register_for_auto_class()
