"""Skip-thought vectors: a GRU sentence encoder trained to predict the sentences around.

Kiros et al., "Skip-Thought Vectors", NIPS 2015, arXiv:1506.06726; reference code github.com/ryankiros/skip-thoughts.

    h_t = GRU(E w_t, h_(t-1));   thought = h_T                                  (encoder)
    s_t = GRU([E y_(t-1) ; W_c thought], s_(t-1)),  s_0 = tanh(W_0 thought)     (one decoder per neighbour)
    loss = -log p(previous sentence | thought) - log p(next sentence | thought)

An encoder "bi" reads the sentence in both directions, D/2 numbers each; "combine" is a "uni" of D/2 beside a "bi" of
D/2. Optionally the thought must also tell the next sentence from the others of the batch (quick thoughts, Logeswaran
and Lee, arXiv:1803.02893), which teaches meaning at a fraction of the cost of writing the sentence:
    loss += w * cross entropy(cos(P thought, Q thought') / temperature), thought' of the next sentences

As in the paper, word vectors and output layer are shared by encoder and both decoders, and the thought is seen at every
decoder step. Unlike it, the output layer is an adaptive softmax tied to the word vectors, unless `output_layer` says
otherwise.

Shapes: B sentences, T tokens, E word width, D thought width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .adaptive_vocabulary import AdaptiveVocabulary
from .configuration_skip_thoughts import PictaleSkipThoughtsConfig
from .fingerprints import encoder_fingerprint
from .recurrent import initialize_recurrent
from .sentence_encoding import SentenceEncoderMixin


@dataclass
class SkipThoughtsOutput(ModelOutput):
    """Args:
    loss: Mean negative log-likelihood per target token of both decoders (pre-training model with targets).
    previous_loss, next_loss: The same, one decoder each.
    contrastive_loss: Mean negative log-likelihood of the right next sentence among those of the batch.
    thought: Sentence vectors [B, D], not normalised.
    last_hidden_state: States of every token [B, T, D].
    """

    loss: torch.Tensor | None = None
    previous_loss: torch.Tensor | None = None
    next_loss: torch.Tensor | None = None
    contrastive_loss: torch.Tensor | None = None
    thought: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None


class PictaleSkipThoughtsPreTrainedModel(PreTrainedModel):
    config_class = PictaleSkipThoughtsConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, AdaptiveVocabulary):
            module.reset_parameters(self.config.initializer_range)
        elif isinstance(module, nn.GRU):
            initialize_recurrent(module)
        elif isinstance(module, nn.Linear) and not getattr(module, "_tied", False):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _direction_widths(config: PictaleSkipThoughtsConfig) -> dict[str, int]:
    """Width of each GRU of the encoder type."""
    half, quarter = config.hidden_size // 2, config.hidden_size // 4
    return {
        "uni": {"gru": config.hidden_size},
        "bi": {"gru": half, "reverse_gru": half},
        "combine": {"gru": half, "second_gru": quarter, "reverse_gru": quarter},
    }[config.encoder_type]


def _reorder(states: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Rows of `states` [B, T, X] along T in the order [B, T]."""
    return states.gather(1, order.unsqueeze(-1).expand(-1, -1, states.size(-1)))


class PictaleSkipThoughtsEncoder(SentenceEncoderMixin, PictaleSkipThoughtsPreTrainedModel):
    """The sentence encoder.

    Example:
        >>> encoder = PictaleSkipThoughtsEncoder.from_pretrained("hub_configs/skip-thoughts-books")
        >>> encoder.encode(["A dog runs on the beach.", "Two children play."]).shape
        (2, 768)
    """

    def __init__(self, config: PictaleSkipThoughtsConfig) -> None:
        super().__init__(config)
        self.words = AdaptiveVocabulary(
            config.vocab_size, config.embedding_size, config.adaptive_cutoff, config.adaptive_tail_factor
        )
        widths = _direction_widths(config)
        self.gru = nn.GRU(config.embedding_size, widths["gru"], batch_first=True)
        if "second_gru" in widths:  # the forward half of the bi part of "combine"
            self.second_gru = nn.GRU(config.embedding_size, widths["second_gru"], batch_first=True)
        if "reverse_gru" in widths:
            self.reverse_gru = nn.GRU(config.embedding_size, widths["reverse_gru"], batch_first=True)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.words.head

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> SkipThoughtsOutput:
        """Encode padded sentences.

        Args:
            input_ids: [B, T], padded on the right.
            attention_mask: [B, T], 1 on tokens; None: everything but `pad_token_id` counts.
        """
        if attention_mask is None:
            attention_mask = input_ids.ne(self.config.pad_token_id)
        lengths = attention_mask.long().sum(1).clamp_min(1)  # [B]
        embedded = self.dropout(self.words.embed(input_ids))  # [B, T, E]
        states = [gru(embedded)[0] for gru, backwards in self.directions() if not backwards]  # [B, T, D'] each
        # Right padding comes after the last word, so a forward GRU's state there has never seen it.
        last = (lengths - 1).view(-1, 1, 1)
        ends = [s.gather(1, last.expand(-1, 1, s.size(-1))).squeeze(1) for s in states]
        if hasattr(self, "reverse_gru"):
            steps = torch.arange(input_ids.size(1), device=input_ids.device)
            turned = torch.where(steps < lengths.unsqueeze(1), lengths.unsqueeze(1) - 1 - steps, steps)  # [B, T]
            backward, _ = self.reverse_gru(_reorder(embedded, turned))  # words turned round, padding left in place
            ends.append(backward.gather(1, last.expand(-1, 1, backward.size(-1))).squeeze(1))
            states.append(_reorder(backward, turned))
        return SkipThoughtsOutput(thought=torch.cat(ends, -1), last_hidden_state=torch.cat(states, -1))  # [B, (T,) D]

    def directions(self) -> list[tuple[nn.GRU, bool]]:
        """The GRUs whose last states make a thought, in its order, and whether each reads backwards."""
        forward = [self.gru, *([self.second_gru] if hasattr(self, "second_gru") else [])]
        backward = [self.reverse_gru] if hasattr(self, "reverse_gru") else []
        return [(gru, False) for gru in forward] + [(gru, True) for gru in backward]

    def fingerprint(self) -> str:
        """`encoder_fingerprint` of this encoder."""
        return encoder_fingerprint(self)


def mean_over_processes(losses: torch.Tensor, training: bool) -> torch.Tensor:
    """Mean of losses [N].

    In training, where several processes have batches of different N and the mean of their gradients is taken, it is
    scaled so that this is the gradient of the mean over the losses of all.
    """
    count = torch.tensor(float(len(losses)), device=losses.device)
    if training and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return losses.sum() / count


class NeighbourDecoder(nn.Module):
    """Predicts one neighbouring sentence from a thought, teacher-forced (`decoder` of the paper)."""

    def __init__(self, config: PictaleSkipThoughtsConfig) -> None:
        super().__init__()
        self.condition = nn.Linear(config.hidden_size, config.condition_size)
        self.initial = nn.Linear(config.hidden_size, config.decoder_hidden_size)
        self.gru = nn.GRU(config.embedding_size + config.condition_size, config.decoder_hidden_size, batch_first=True)
        self.output = nn.Linear(config.decoder_hidden_size, config.embedding_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        thought: torch.Tensor,
        targets: torch.Tensor,
        words: AdaptiveVocabulary,
        vocabulary: AdaptiveVocabulary | None = None,
    ) -> torch.Tensor:
        """thought [B, D], targets [B, U] as `<s> ... </s>` padded -> mean loss per token.

        `vocabulary` is the output layer, None: `words`.
        """
        inputs, labels = targets[:, :-1], targets[:, 1:]  # [B, U-1] each
        condition = self.condition(thought).unsqueeze(1).expand(-1, inputs.size(1), -1)  # [B, U-1, K]
        embedded = self.dropout(words.embed(inputs))
        steps = torch.cat([embedded, condition.to(embedded.dtype)], -1)  # [B, U-1, E + K]
        states, _ = self.gru(steps, self.initial(thought).tanh().to(steps.dtype).unsqueeze(0))
        real = labels.ne(words.padding_idx)
        hidden = self.output(self.dropout(states[real]))  # [real tokens, E]
        losses = (words if vocabulary is None else vocabulary).loss(hidden, labels[real])
        return mean_over_processes(losses, self.training)


class PictaleSkipThoughtsForPreTraining(PictaleSkipThoughtsPreTrainedModel):
    """Encoder and its two decoders; `model.encoder.save_pretrained` keeps what users need."""

    def __init__(self, config: PictaleSkipThoughtsConfig) -> None:
        super().__init__(config)
        self.encoder = PictaleSkipThoughtsEncoder(config)
        self.previous_decoder = NeighbourDecoder(config)
        self.next_decoder = NeighbourDecoder(config)
        self.vocabulary = None
        if config.output_layer == "plain":
            self.vocabulary = AdaptiveVocabulary(config.vocab_size, config.embedding_size)
        if config.contrastive_weight:
            self.query = nn.Linear(config.hidden_size, config.contrastive_size)
            self.candidate = nn.Linear(config.hidden_size, config.contrastive_size)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        previous_ids: torch.Tensor | None = None,
        next_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SkipThoughtsOutput:
        """All ids are `<s> ... </s>` padded on the right: input [B, T], previous [B, U], next [B, W]."""
        output = self.encoder(input_ids, attention_mask)
        if previous_ids is None or next_ids is None:
            return output
        every = self.config.decoder_stride if self.training else 1
        thought, words = output.thought[::every], (self.encoder.words, self.vocabulary)
        output.previous_loss = self.previous_decoder(thought, previous_ids[::every], *words)
        output.next_loss = self.next_decoder(thought, next_ids[::every], *words)
        output.loss = output.previous_loss + output.next_loss
        if self.config.contrastive_weight:
            output.contrastive_loss = self.contrastive_loss(output.thought, self.encoder(next_ids).thought, next_ids)
            output.loss = output.loss + self.config.contrastive_weight * output.contrastive_loss
        return output

    def contrastive_loss(self, thought: torch.Tensor, following: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Thoughts [B, D] of sentences and of their next sentences `ids` [B, W] -> mean loss.

        Two rows with the same next sentence ("Yes.") are not each other's negatives. With several processes each
        chooses among the sentences of its own share of the batch.
        """
        query = nn.functional.normalize(self.query(thought).float(), dim=-1)
        candidate = nn.functional.normalize(self.candidate(following).float(), dim=-1)
        scores = query @ candidate.t() / self.config.contrastive_temperature  # [B, B]
        same = (ids.unsqueeze(0) == ids.unsqueeze(1)).all(-1)
        same.fill_diagonal_(False)
        scores = scores.masked_fill(same, float("-inf"))
        losses = nn.functional.cross_entropy(scores, torch.arange(len(ids), device=ids.device), reduction="none")
        return mean_over_processes(losses, self.training)


PictaleSkipThoughtsEncoder.register_for_auto_class("AutoModel")
PictaleSkipThoughtsForPreTraining.register_for_auto_class("AutoModelForPreTraining")
