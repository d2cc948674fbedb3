"""Configuration of the attention captioner."""

from __future__ import annotations

from transformers import PreTrainedConfig

from .errors import ModelFolderError

ATTENTION_TYPES = ("bahdanau", "dot")
INITIAL_STATES = ("mean", "zero")


class PictaleCaptionerConfig(PreTrainedConfig):
    """Settings of `PictaleCaptionerForConditionalGeneration`.

    Args:
        vocab_size (int, default 4096): rows of the embedding; ids 0 pad, 1 start, 2 end, 3 unknown.
        backbone (str, default "efficientnet_lite0"): a name known to `modeling.backbones.build_backbone`.
        backbone_options (dict, optional): passed to the backbone, e.g. `{"width": 0.25}` for a tiny one.
        image_size (int, default 224): side of the square the image processor makes; fixes the grid of `grid_size`.
        freeze_backbone (bool, default True): the backbone gets no gradient and stays in eval mode while training.
        embed_dim (int, default 256): size of a word vector.
        context_dim (int, default 384): size of a projected region, hence of the context vector.
        attention_dim (int, default 256): size of keys and query of the attention.
        hidden_size (int, default 512): size of the LSTM state.
        attention_type (str, default "bahdanau"): how a region is scored, one of `ATTENTION_TYPES`.
        initial_state (str, default "mean"): "mean" computes the first state from the mean region, "zero" starts empty.
        context_gate (bool, default True): scale the context by beta = sigmoid(W h), one value per channel.
        tie_word_embeddings (bool, default True): the vocabulary layer shares the word vectors.
        region_dropout, embed_dropout, output_dropout (float): dropout on projected regions, on word vectors and in the
            deep output.
        label_smoothing (float, default 0.1): share of the target spread over the vocabulary.
        attention_penalty (float, default 1.0): weight of the doubly stochastic penalty mean_i (1 - sum_t alpha_ti)^2.

    Raises:
        ModelFolderError: an option that does not exist.
    """

    model_type = "pictale_captioner"

    def __init__(
        self,
        vocab_size: int = 4096,
        backbone: str = "efficientnet_lite0",
        backbone_options: dict | None = None,
        image_size: int = 224,
        freeze_backbone: bool = True,
        embed_dim: int = 256,
        context_dim: int = 384,
        attention_dim: int = 256,
        hidden_size: int = 512,
        attention_type: str = "bahdanau",
        initial_state: str = "mean",
        context_gate: bool = True,
        tie_word_embeddings: bool = True,
        region_dropout: float = 0.1,
        embed_dropout: float = 0.3,
        output_dropout: float = 0.5,
        label_smoothing: float = 0.1,
        attention_penalty: float = 1.0,
        **kwargs,
    ):
        for name, value, known in (
            ("attention_type", attention_type, ATTENTION_TYPES),
            ("initial_state", initial_state, INITIAL_STATES),
        ):
            if value not in known:
                raise ModelFolderError(f"{name} '{value}' is not known; use one of: {', '.join(known)}.")
        self.vocab_size = vocab_size
        self.backbone = backbone
        self.backbone_options = dict(backbone_options or {})
        self.image_size = image_size
        self.freeze_backbone = freeze_backbone
        self.embed_dim = embed_dim
        self.context_dim = context_dim
        self.attention_dim = attention_dim
        self.hidden_size = hidden_size
        self.attention_type = attention_type
        self.initial_state = initial_state
        self.context_gate = context_gate
        self.region_dropout = region_dropout
        self.embed_dropout = embed_dropout
        self.output_dropout = output_dropout
        self.label_smoothing = label_smoothing
        self.attention_penalty = attention_penalty
        defaults = {
            "is_encoder_decoder": True,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        }
        super().__init__(tie_word_embeddings=tie_word_embeddings, **{**defaults, **kwargs})


PictaleCaptionerConfig.register_for_auto_class()
