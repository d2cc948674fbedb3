"""Configuration of the attention captioner."""

from __future__ import annotations

from transformers import PreTrainedConfig

from .errors import ModelFolderError

ATTENTION_TYPES = ("bahdanau", "dot", "multihead")
ATTENTION_MODES = ("soft", "hard")
HARD_INFERENCE = ("expectation", "argmax")
INITIAL_STATES = ("mean", "zero")
OUTPUT_TYPES = ("deep", "plain")
SCHEDULES = ("none", "linear", "exponential", "inverse_sigmoid")


class PictaleCaptionerConfig(PreTrainedConfig):
    """Settings of `PictaleCaptionerForConditionalGeneration`.

    Args:
        vocab_size (int, default 4096): rows of the embedding; ids 0 pad, 1 start, 2 end, 3 unknown.
        backbone (str, default "efficientnet_lite0"): a name known to `modeling.backbones.build_backbone`.
        backbone_options (dict, optional): passed to the backbone, e.g. `{"width": 0.25}` for a tiny one.
        image_size (int, default 224): side of the square the image processor makes; fixes the grid of `grid_size`.
        freeze_backbone (bool, default True): the backbone gets no gradient and stays in eval mode while training.
        trainable_stages (int, optional): of a backbone that is not frozen, only this many of the last stages learn; the
            stages before them are frozen. None trains all.
        train_batch_norm (bool, default False): let the BatchNorm statistics of the stages that learn follow the
            batches. With the few photographs of a batch that does harm more often than good, so by default they stay
            as the backbone brought them; scale and shift are learned in either case.
        embed_dim (int, default 256): size of a word vector.
        context_dim (int, default 384): size of a projected region, hence of the context vector.
        attention_dim (int, default 256): size of keys and query of the attention.
        hidden_size (int, default 512): size of the LSTM state.
        attention_type (str, default "bahdanau"): how a region is scored, one of `ATTENTION_TYPES`.
        attention_heads (int, default 1): heads of "multihead" attention, a divisor of `attention_dim` and of
            `context_dim`; the map shown is their mean.
        attention_mode (str, default "soft"): "soft" reads the mean of the regions, weighted by alpha; "hard" trains on
            one region drawn from alpha, with REINFORCE (arXiv:1502.03044, section 4.1).
        hard_attention_inference (str, default "expectation"): what "hard" reads outside training: the "expectation",
            which is the soft mean and steadier, or the region of the largest alpha, "argmax".
        hard_attention_expectation (float, default 0.5): share of the captions of a batch that read the expectation in
            training too.
        hard_attention_reward (float, default 1.0): lambda_r, weight of (log p(y) - b) log p(s), where log p(y) is the
            caption's log-probability per word and b its moving average.
        hard_attention_entropy (float, default 0.002): lambda_e, weight of the entropy of alpha, which is raised.
        initial_state (str, default "mean"): "mean" computes the first state from the mean region, "zero" starts empty.
        context_gate (bool, default True): scale the context by beta = sigmoid(W h), one value per channel.
        output_type (str, default "deep"): "deep" scores words from the last word, the state and the context, "plain"
            from the state alone.
        output_bottleneck (int, optional): width of what the vocabulary layer reads, where smaller than usual; with
            tied or adaptive words also the width of their vectors, which a linear map then brings to `embed_dim`.
        tie_word_embeddings (bool, default True): the vocabulary layer shares the word vectors.
        adaptive_cutoff (int, optional): this many frequent words keep vectors of the full width and the rest have a
            quarter, in the input and in an adaptive softmax (`modeling.adaptive_vocabulary`), always tied; None gives
            every word the full width.
        freeze_embeddings (bool, default False): word vectors are not trained (nor, tied, the vocabulary layer but for
            its bias); for vectors from elsewhere, see `training.word_vectors`.
        scheduled_sampling (str, default "none"): how the probability of reading the true word falls while training, one
            of `SCHEDULES`; the formulas are in `modeling.captioner_scheduled_sampling`.
        scheduled_sampling_k (float, default 1000): its time constant in training passes; > 1 for "inverse_sigmoid".
        scheduled_sampling_floor (float, default 0.5): below this it never falls.
        region_dropout, embed_dropout, output_dropout (float): dropout on projected regions, on word vectors and in the
            deep output.
        label_smoothing (float, default 0.1): share of the target spread over the vocabulary; with adaptive words over
            the softmax or softmaxes that the target belongs to.
        attention_penalty (float, default 1.0): weight of the doubly stochastic penalty mean_i (1 - sum_t alpha_ti)^2.
        backbone_fingerprint (str): of the backbone's weights saved beside it (`modeling.fingerprints`).

    Raises:
        ModelFolderError: an option that does not exist or does not fit the others.
    """

    model_type = "pictale_captioner"

    def __init__(
        self,
        vocab_size: int = 4096,
        backbone: str = "efficientnet_lite0",
        backbone_options: dict | None = None,
        image_size: int = 224,
        freeze_backbone: bool = True,
        trainable_stages: int | None = None,
        train_batch_norm: bool = False,
        embed_dim: int = 256,
        context_dim: int = 384,
        attention_dim: int = 256,
        hidden_size: int = 512,
        attention_type: str = "bahdanau",
        attention_heads: int = 1,
        attention_mode: str = "soft",
        hard_attention_inference: str = "expectation",
        hard_attention_expectation: float = 0.5,
        hard_attention_reward: float = 1.0,
        hard_attention_entropy: float = 0.002,
        initial_state: str = "mean",
        context_gate: bool = True,
        output_type: str = "deep",
        output_bottleneck: int | None = None,
        tie_word_embeddings: bool = True,
        adaptive_cutoff: int | None = None,
        freeze_embeddings: bool = False,
        scheduled_sampling: str = "none",
        scheduled_sampling_k: float = 1000.0,
        scheduled_sampling_floor: float = 0.5,
        region_dropout: float = 0.1,
        embed_dropout: float = 0.3,
        output_dropout: float = 0.5,
        label_smoothing: float = 0.1,
        attention_penalty: float = 1.0,
        backbone_fingerprint: str = "",
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.backbone = backbone
        self.backbone_options = dict(backbone_options or {})
        self.image_size = image_size
        self.freeze_backbone = freeze_backbone
        self.trainable_stages = trainable_stages
        self.train_batch_norm = train_batch_norm
        self.embed_dim = embed_dim
        self.context_dim = context_dim
        self.attention_dim = attention_dim
        self.hidden_size = hidden_size
        self.attention_type = attention_type
        self.attention_heads = attention_heads
        self.attention_mode = attention_mode
        self.hard_attention_inference = hard_attention_inference
        self.hard_attention_expectation = hard_attention_expectation
        self.hard_attention_reward = hard_attention_reward
        self.hard_attention_entropy = hard_attention_entropy
        self.initial_state = initial_state
        self.context_gate = context_gate
        self.output_type = output_type
        self.output_bottleneck = output_bottleneck
        self.adaptive_cutoff = adaptive_cutoff
        self.freeze_embeddings = freeze_embeddings
        self.scheduled_sampling = scheduled_sampling
        self.scheduled_sampling_k = scheduled_sampling_k
        self.scheduled_sampling_floor = scheduled_sampling_floor
        self.region_dropout = region_dropout
        self.embed_dropout = embed_dropout
        self.output_dropout = output_dropout
        self.label_smoothing = label_smoothing
        self.attention_penalty = attention_penalty
        self.backbone_fingerprint = backbone_fingerprint
        defaults = {
            "is_encoder_decoder": True,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        }
        super().__init__(tie_word_embeddings=tie_word_embeddings, **{**defaults, **kwargs})
        self.check_consistency()

    @property
    def shares_words(self) -> bool:
        """Whether input vectors and vocabulary layer are one table."""
        return self.tie_word_embeddings or self.adaptive_cutoff is not None

    @property
    def output_dim(self) -> int:
        """Width of what the vocabulary layer reads."""
        usual = self.embed_dim if self.shares_words or self.output_type == "deep" else self.hidden_size
        return self.output_bottleneck or usual

    @property
    def word_dim(self) -> int:
        """Width of a word vector as it is stored."""
        return self.output_dim if self.shares_words else self.embed_dim

    def check_consistency(self) -> None:
        """Raises ModelFolderError where an option does not exist or contradicts another."""
        for name, known in (
            ("attention_type", ATTENTION_TYPES),
            ("attention_mode", ATTENTION_MODES),
            ("hard_attention_inference", HARD_INFERENCE),
            ("initial_state", INITIAL_STATES),
            ("output_type", OUTPUT_TYPES),
            ("scheduled_sampling", SCHEDULES),
        ):
            if (value := getattr(self, name)) not in known:
                raise ModelFolderError(f"{name} '{value}' is not known; use one of: {', '.join(known)}.")
        if self.attention_heads > 1 and self.attention_type != "multihead":
            raise ModelFolderError(f"attention_heads is for attention_type 'multihead', not '{self.attention_type}'.")
        for name in ("attention_dim", "context_dim"):
            if self.attention_heads < 1 or getattr(self, name) % self.attention_heads:
                raise ModelFolderError(
                    f"attention_heads must divide {name}, and {self.attention_heads} does not divide "
                    f"{getattr(self, name)}."
                )
        if self.adaptive_cutoff is not None and not self.tie_word_embeddings:
            raise ModelFolderError("adaptive_cutoff needs tied words: leave tie_word_embeddings true.")
        for name in ("output_bottleneck", "adaptive_cutoff"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ModelFolderError(f"{name} must be at least 1 or null, not {getattr(self, name)}.")
        for name in ("hard_attention_expectation", "scheduled_sampling_floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ModelFolderError(f"{name} is a probability, from 0 to 1, not {getattr(self, name)}.")
        least = 1 if self.scheduled_sampling == "inverse_sigmoid" else 0
        if self.scheduled_sampling_k <= least:
            raise ModelFolderError(f"scheduled_sampling_k must be above {least}, not {self.scheduled_sampling_k}.")


PictaleCaptionerConfig.register_for_auto_class()
