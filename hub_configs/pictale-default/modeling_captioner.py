"""The attention captioner: Show, Attend and Tell (Xu et al., arXiv:1502.03044).

Per step, with regions a_i, state h and last word y:
    e_i = score(a_i, h),  alpha = softmax(e)                        attention; "bahdanau": v . tanh(W_a a_i + W_q h)
                                                                    "dot": (W_a a_i) . (W_q h) / sqrt(A)
                                                                    "multihead": "dot" in slices of the channels
    z = sigmoid(W_g h) * sum_i alpha_i a_i                          gated context, soft attention
    z = sigmoid(W_g h) * a_s,  s ~ alpha                            hard attention, while training
    h, c = LSTM([E y ; z], h, c)
    p(next) = softmax(E' W_o tanh(E y + L_h h + L_z z))             deep output, E' = E when tied
    p(next) = softmax(E' W_o h)                                     plain output
The attention looks at the state before the step, as in the paper and sgrvinod/a-PyTorch-Tutorial-to-Image-Captioning.

Loss, over the M words of a batch of captions:
    mean of -log p(word), smoothed
    + attention_penalty * mean_i (1 - sum_t alpha_ti)^2                                     doubly stochastic attention
    - mean of lambda_r (log p(caption) - b) log alpha_ts + lambda_e H(alpha_t)              hard attention, REINFORCE

What is the same for all steps is computed once: the regions and W_a a_i once an image (also when several captions of
one image are trained together), the word part of the LSTM input and the vocabulary layer once a sequence.

Shapes: B images, R caption rows (R = B unless `image_index` says otherwise), T steps, M words in all rows, P regions,
F backbone channels, C context, A attention, H hidden, E word vector, W what the vocabulary layer reads, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init

from .adaptive_vocabulary import AdaptiveVocabulary
from .captioner_attention import DrawnRegions, MovingBaseline
from .captioner_decoder import CaptionerDecoder, LSTMState, StateProjection
from .captioner_encoder import CaptionerEncoder, CaptionerEncoderOutput
from .captioner_scheduled_sampling import OwnWords, TrainingSteps, truth_probability
from .configuration_captioner import PictaleCaptionerConfig
from .fingerprints import backbone_fingerprint
from .recurrent_output import RecurrentOutput

IGNORE_INDEX = -100
ROW_UNIT = 16


def shapes_cost_time(tensor: torch.Tensor) -> bool:
    """Whether each new shape of a product costs as much as some products: oneDNN, which multiplies bfloat16 on a CPU,
    compiles for every shape. Rows that go on for a few words after their end are cheaper than a new number of rows.
    """
    return tensor.device.type == "cpu" and torch.is_autocast_enabled("cpu")


@dataclass
class CaptionerOutput(RecurrentOutput):
    """Args:
    loss: when labels are given: mean cross entropy; in training mode smoothed and with the attention penalty.
    logits: scores of the next word [R, T, V]; None when training on labels, where only real words are scored.
    cache: `LSTMState` after the last word.
    encoder_last_hidden_state: projected regions [B, P, C].
    cross_attentions: one tensor [R, 1, T, P], the attention map of each word, when asked for.
    report: figures of the training pass by name, from the options that have some; see `training_loss`.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    cache: LSTMState | None = None
    encoder_last_hidden_state: torch.FloatTensor | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None
    # generate() reads these two when attentions or hidden states are asked for; always None here
    decoder_attentions: tuple[torch.FloatTensor, ...] | None = None
    decoder_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    report: dict[str, float | torch.Tensor] | None = None


class PictaleCaptionerForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Captions for photographs, with an attention map for every word.

    Example:
        >>> model = PictaleCaptionerForConditionalGeneration.from_pretrained(folder).prepare_for_inference()
        >>> pixels = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)(photo, return_tensors="pt")
        >>> ids = model.generate(**pixels, num_beams=3)
        >>> AutoTokenizer.from_pretrained(folder).decode(ids[0], skip_special_tokens=True)
        'a dog runs through the grass'
    """

    config_class = PictaleCaptionerConfig
    base_model_prefix = "captioner"
    main_input_name = "pixel_values"
    _tied_weights_keys = {"vocabulary.weight": "embedding.weight"}

    def __init__(self, config: PictaleCaptionerConfig):
        super().__init__(config)
        config.check_consistency()  # again, since from_pretrained(folder, option=value) changes it after it was made
        adaptive, size, padding = config.adaptive_cutoff, config.vocab_size, config.pad_token_id
        self.encoder = CaptionerEncoder(config)
        if adaptive is None:
            self.embedding = nn.Embedding(size, config.word_dim, padding_idx=padding)
        else:
            self.words = AdaptiveVocabulary(size, config.word_dim, adaptive, padding_idx=padding)
            self._tied_weights_keys = {}  # its two sides are one module
        self.decoder = CaptionerDecoder(config)
        if adaptive is None:
            self.vocabulary = nn.Linear(config.output_dim, size)
        self.expansion = None
        if config.word_dim != config.embed_dim:
            self.expansion = nn.Linear(config.word_dim, config.embed_dim, bias=False)
        self.baseline = MovingBaseline() if config.attention_mode == "hard" else None
        self.training_steps = TrainingSteps() if config.scheduled_sampling != "none" else None
        self.train()
        self.post_init()

    def train(self, mode: bool = True) -> PictaleCaptionerForConditionalGeneration:
        super().train(mode)
        if self.config.freeze_embeddings:  # here, since from_pretrained makes new parameters
            for table in [self.embedding.weight] if self.config.adaptive_cutoff is None else self.words.tables():
                table.requires_grad_(False)
        return self

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, StateProjection):
            hidden = module.in_features
            blocks = [nn.init.orthogonal_(torch.empty(hidden, hidden)) for _ in range(4)]
            rest = torch.empty(module.out_features - 4 * hidden, hidden)
            init.copy_(module.weight, torch.cat([*blocks, nn.init.xavier_uniform_(rest)]))
            bias = torch.zeros(module.out_features)
            bias[hidden : 2 * hidden] = 1.0  # the forget gate starts open
            init.copy_(module.bias, bias)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            weight = torch.empty(module.weight.shape).uniform_(-0.1, 0.1)
            if module.padding_idx is not None:
                weight[module.padding_idx] = 0
            init.copy_(module.weight, weight)
        elif isinstance(module, AdaptiveVocabulary):
            module.reset_parameters(0.1 / 3**0.5)  # as wide as the uniform one
        elif isinstance(module, MovingBaseline):
            init.zeros_(module.value)
        elif isinstance(module, TrainingSteps):
            init.zeros_(module.count)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_normal_(
                module.weight, nonlinearity="relu"
            )  # fan in keeps a signal even before BatchNorm has seen data
        else:
            super()._init_weights(module)

    # -- what generate() asks for ----------------------------------------------------------------------------------
    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the state is an LSTMState

    def get_encoder(self, *args, **kwargs) -> CaptionerEncoder:
        return self.encoder

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding if self.config.adaptive_cutoff is None else self.words.head

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        if self.config.adaptive_cutoff is None:
            self.embedding = value
        else:
            self.words.head = value

    def get_output_embeddings(self) -> nn.Module | None:
        return self.vocabulary if self.config.adaptive_cutoff is None else None

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.vocabulary = value

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, region_features: torch.Tensor | None = None, **kwargs):
        """`GenerationMixin.generate` from `pixel_values` or from cached `region_features` [B, P, F]."""
        if region_features is not None:
            kwargs["encoder_outputs"] = self.encoder(region_features=region_features)
        elif kwargs.get("encoder_outputs") is not None:  # beam search repeats its entries in place: not the caller's
            kwargs["encoder_outputs"] = CaptionerEncoderOutput(**kwargs["encoder_outputs"])
        return super().generate(inputs, **kwargs)

    # -- the model -------------------------------------------------------------------------------------------------
    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the region grid, h * w = P."""
        return self.encoder.backbone.grid(self.config.image_size, self.config.image_size)

    def embed(self, ids: torch.LongTensor) -> torch.Tensor:
        """Word vectors [..., E] of ids [...]."""
        vectors = self.embedding(ids) if self.config.adaptive_cutoff is None else self.words.embed(ids)
        return vectors if self.expansion is None else self.expansion(vectors)

    def word_scores(self, deep: torch.Tensor) -> torch.Tensor:
        """Scores of every word [..., V] whose softmax is its probability, from the decoder's output [..., W]."""
        return self.vocabulary(deep) if self.config.adaptive_cutoff is None else self.words.log_probs(deep)

    def word_losses(self, deep: torch.Tensor, targets: torch.LongTensor, label_smoothing: float = 0.0) -> torch.Tensor:
        """-log p of each target [M] from the decoder's output [M, W] -> [M] (float32)."""
        if self.config.adaptive_cutoff is not None:
            return self.words.loss(deep, targets, label_smoothing)
        logits = self.vocabulary(deep).float()  # [M, V]
        return nn.functional.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none")

    def prepare_for_inference(self) -> PictaleCaptionerForConditionalGeneration:
        """Eval mode with a fused copy of the backbone, never saved, dropped by `.train()` and `.to()`."""
        self.eval()
        self.encoder.prepare_for_inference()
        return self

    def save_pretrained(self, save_directory: str | PathLike, **kwargs) -> None:
        """As every model's; the fingerprint of the backbone goes with the config."""
        self.config.backbone_fingerprint = backbone_fingerprint(self.encoder.backbone, self.config)
        super().save_pretrained(save_directory, **kwargs)

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        region_features: torch.Tensor | None = None,
        stage_features: torch.Tensor | None = None,
        image_index: torch.LongTensor | None = None,
        encoder_outputs: CaptionerEncoderOutput | None = None,
        cache: LSTMState | None = None,
        past_key_values: LSTMState | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool = True,
        **kwargs,
    ) -> CaptionerOutput:
        """Scores of the next word for every prefix of the captions.

        Args:
            pixel_values: photographs [B, 3, H, W], or
            region_features: their backbone features [B, P, F], or
            stage_features: the output of the backbone's last frozen stage [B, C', h', w'], or
            encoder_outputs: what `encoder` made of either.
            decoder_input_ids: captions so far [R, T] from the start id on; only the newest with `cache`.
            cache: state after the words before, from the output of an earlier call; `past_key_values`: the same, as
                transformers calls it before 5.24.
            labels: captions without the start id, with the end id, -100 for padding, [R, T]; gives `loss`.
            image_index: the image of each caption row [R]; by default row r belongs to image r. -1: a caption without
                a photograph, which is read with nothing in sight (regions of zeros).
        """
        if encoder_outputs is None:
            encoder_outputs = self.encoder(pixel_values, region_features, stage_features)
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("Give decoder_input_ids or labels.")
            decoder_input_ids = self.shift_right(labels)
        if self.training and labels is not None:
            report: dict[str, float | torch.Tensor] = {}
            loss = self.training_loss(encoder_outputs, decoder_input_ids, labels, image_index, report)
            return CaptionerOutput(loss=loss, report=report or None)
        state, regions, keys = self.expand(encoder_outputs, image_index, past_key_values if cache is None else cache)
        count, length = decoder_input_ids.shape
        embedded = self.embed(decoder_input_ids.t().flatten())  # [T * R, E]
        deep, state, alphas = self.decoder(embedded, regions, keys, state, [count] * length)
        logits = self.word_scores(deep).view(length, count, -1).transpose(0, 1)  # [T * R, V] -> [R, T, V]
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE_INDEX
            )
        return CaptionerOutput(
            loss=loss,
            logits=logits,
            cache=state if use_cache is None or use_cache else None,
            encoder_last_hidden_state=encoder_outputs["last_hidden_state"],
            cross_attentions=(torch.stack(alphas, 1).unsqueeze(1),) if output_attentions else None,  # [R, 1, T, P]
        )

    def expand(
        self,
        encoder_outputs: CaptionerEncoderOutput,
        image_index: torch.LongTensor | None,
        state: LSTMState | None = None,
    ) -> tuple[LSTMState, torch.Tensor, torch.Tensor]:
        """State, regions [R, P, C] and keys [R, P, A] of each caption row; a first state where there is none yet."""
        regions, keys = encoder_outputs["last_hidden_state"], encoder_outputs["attention_keys"]
        if image_index is not None and bool((image_index < 0).any()):
            regions, keys = (nn.functional.pad(part, (0, 0, 0, 0, 0, 1)) for part in (regions, keys))  # [B + 1, P, ...]
            image_index = image_index % len(regions)  # -1: the one that was added
        first = self.decoder.initial_state(regions) if state is None else state
        if image_index is not None:
            regions, keys = regions.index_select(0, image_index), keys.index_select(0, image_index)
            if state is None:
                first.reorder_cache(image_index)
        return first, regions, keys

    def packed(
        self,
        encoder_outputs: CaptionerEncoderOutput,
        decoder_input_ids: torch.LongTensor,
        labels: torch.LongTensor,
        image_index: torch.LongTensor | None,
        look: DrawnRegions | None = None,
        own_words: OwnWords | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """The decoder over the real words of captions only: padding costs no work.

        Returns:
            What the vocabulary layer reads [M, W], the words to predict [M], the caption row of each [M], and the
            attention of each step, T x [rows, P], captions sorted from the longest to the shortest.
        """
        lengths = (labels != IGNORE_INDEX).sum(1)
        lengths, order = lengths.sort(descending=True, stable=True)
        if image_index is None:
            image_index = torch.arange(len(labels), device=labels.device)
        state, regions, keys = self.expand(encoder_outputs, image_index[order])
        steps = torch.arange(int(lengths[0]), device=lengths.device)
        rows = (lengths.unsqueeze(0) > steps.unsqueeze(1)).sum(1).tolist()  # T counts
        run = [min(-(-n // ROW_UNIT) * ROW_UNIT, len(order)) for n in rows] if shapes_cost_time(regions) else rows
        words = torch.cat([decoder_input_ids[order[:n], t] for t, n in enumerate(run)])
        targets = torch.cat([labels[order[:n], t] for t, n in enumerate(rows)])
        deep, _, alphas = self.decoder(self.embed(words), regions, keys, state, run, look, own_words)
        if run != rows:
            deep = torch.cat([part[:n] for part, n in zip(deep.split(run), rows, strict=True)])
            alphas = [alpha[:n] for alpha, n in zip(alphas, rows, strict=True)]
            if look is not None:
                look.cut(rows)
        return deep, targets, torch.cat([order[:n] for n in rows]), alphas

    def training_loss(
        self,
        encoder_outputs: CaptionerEncoderOutput,
        decoder_input_ids: torch.LongTensor,
        labels: torch.LongTensor,
        image_index: torch.LongTensor | None,
        report: dict[str, float | torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The loss at the head of this file, over real words only.

        `report` receives, with scheduled sampling, `true_words`, the probability that a word read is the true one, and
        with hard attention `attention_reward`, `attention_baseline` and `attention_entropy`.
        """
        report = {} if report is None else report
        config, count = self.config, len(labels)
        look = own_words = None
        if self.baseline is not None:
            look = DrawnRegions(count, config.hard_attention_expectation, labels.device)
        if self.training_steps is not None:
            truth = truth_probability(
                config.scheduled_sampling,
                self.training_steps.advance(),
                config.scheduled_sampling_k,
                config.scheduled_sampling_floor,
            )
            own_words = OwnWords(1 - truth, self.word_scores, self.embed)
            report["true_words"] = truth
        deep, targets, captions, alphas = self.packed(
            encoder_outputs, decoder_input_ids, labels, image_index, look, own_words
        )
        loss = self.word_losses(deep, targets, config.label_smoothing).mean()
        if config.attention_penalty:
            seen = sum(nn.functional.pad(alpha.float(), (0, 0, 0, count - len(alpha))) for alpha in alphas)  # [R, P]
            loss = loss + config.attention_penalty * (1 - seen).square().mean()
        if look is not None:
            loss = loss - self.hard_attention_gain(look, deep.detach(), targets, captions, count, report)
        return loss

    def hard_attention_gain(
        self,
        look: DrawnRegions,
        deep: torch.Tensor,
        targets: torch.LongTensor,
        captions: torch.LongTensor,
        count: int,
        report: dict[str, float | torch.Tensor],
    ) -> torch.Tensor:
        """The REINFORCE term and the entropy, a mean over words; moves the baseline on.

        Args:
            look: what was drawn for `count` captions; deep, targets, captions: as `packed` gives them, deep detached.
            report: as in `training_loss`.
        """
        with torch.no_grad():
            nll = self.word_losses(deep, targets)  # [M], not smoothed
            words = nll.new_zeros(count).index_add(0, captions, torch.ones_like(nll))  # [R]
            reward = nll.new_zeros(count).index_add(0, captions, -nll) / words.clamp_min(1)  # [R], log p per word
            gain = (reward - self.baseline.value)[captions]  # [M]
            report |= {"attention_reward": reward.mean(), "attention_baseline": self.baseline.value.clone()}
            drawn = captions[: len(look.log_probs[0])][look.drawn[: len(look.log_probs[0])]]  # captions that drew
            if len(drawn):
                self.baseline.update(reward[drawn].mean())
        log_probs, entropies = torch.cat(look.log_probs), torch.cat(look.entropies)  # [M]
        report["attention_entropy"] = entropies.detach().mean()
        config = self.config
        return (config.hard_attention_reward * gain * log_probs + config.hard_attention_entropy * entropies).mean()

    def shift_right(self, labels: torch.LongTensor) -> torch.LongTensor:
        """Decoder input for `labels`: the start id in front, the last word dropped, padding for -100."""
        start = labels.new_full((labels.shape[0], 1), self.config.decoder_start_token_id)
        shifted = torch.cat([start, labels[:, :-1]], 1)
        return shifted.masked_fill(shifted == IGNORE_INDEX, self.config.pad_token_id)

    @torch.no_grad()
    def score(
        self,
        sequences: torch.LongTensor,
        encoder_outputs: CaptionerEncoderOutput | None = None,
        image_index: torch.LongTensor | None = None,
        **inputs,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability and attention map of each word of finished captions, in one pass.

        Args:
            sequences: what `generate` returned [R, T], start id first.
            encoder_outputs, image_index, inputs: as in `forward`; `inputs` are `pixel_values` or `region_features`.

        Returns:
            log-probabilities [R, T - 1] (0 after the end id) and attention [R, T - 1, P] of the words after the start.
        """
        targets = sequences[:, 1:]
        out = self(
            decoder_input_ids=sequences[:, :-1],
            encoder_outputs=encoder_outputs,
            image_index=image_index,
            output_attentions=True,
            **inputs,
        )
        log_probs = out.logits.float().log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)  # [R, T - 1]
        ended = (targets == self.config.eos_token_id).long()
        after_end = (ended.cumsum(1) - ended) > 0
        return log_probs.masked_fill(after_end, 0.0), out.cross_attentions[0].squeeze(1).float()


PictaleCaptionerForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
