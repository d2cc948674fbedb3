"""The story decoder: a recurrent language model told at every step what to write about.

The decoder of neural-storyteller (github.com/ryankiros/neural-storyteller) sees its thought vector only as the first
state and soon forgets the picture. Here the condition is part of every step, content words can be looked up (as the
terms of SemStyle, Mathews et al., arXiv:1805.07030), and the passage before is known:

    k   = W_c [thought ; previous thought ; mean_j e_j] + U V (b - m)     e_j vectors of the content words
    h_0 = tanh(W_0 k);   h_t = GRU([E y_(t-1) ; k], h_(t-1))
    a_t = softmax_j(q(h_t) . e_j, 0);   z_t = sum_j a_tj e_j       the 0: looking at none of them
    p_t = softmax(E' (W_h h_t + W_z z_t + W_k k))

The thought may also change from sentence to sentence, as the plot of a story does (`modeling/plots.py`): k is then that
of the sentence whose word is written next.

b is the vector of the style (`modeling/styles.py`) and m the mean of such vectors. The thought has it too, since it is
x - c + b, but there a picture far from every book hides it: b of its own says in any company how a passage sounds.
Attention reads the state but does not feed it, so in training the recurrence is one fused call and all the rest one
product over all steps.

Shapes: B passages, T tokens, S thoughts of a passage (one, or one for each sentence), E word width, H state, D thought
width, C condition width, J content words, L layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from .adaptive_vocabulary import AdaptiveVocabulary
from .configuration_story_decoder import PictaleStoryDecoderConfig
from .recurrent import initialize_recurrent
from .recurrent_output import RecurrentOutput


class GRUState:
    """State [L, B, H] in the place of a key-value cache; beam search reorders it in place."""

    is_compileable = False  # generate() asks before it considers torch.compile

    def __init__(self, h: torch.Tensor, seen: int = 0) -> None:
        self.h, self.seen = h, seen

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.h = self.h.index_select(1, beam_idx.to(self.h.device))


@dataclass
class StoryConditionOutput(ModelOutput):
    """Args:
    last_hidden_state: The condition k [B, 1, C], or one for each sentence [B, S, C].
    content: Vectors of the content words [B, J, E].
    content_mask: 1 where there is a word [B, J].
    """

    last_hidden_state: torch.Tensor | None = None
    content: torch.Tensor | None = None
    content_mask: torch.Tensor | None = None


@dataclass
class StoryDecoderOutput(RecurrentOutput):
    """Args:
    loss: Mean negative log-likelihood per target token (with `labels`).
    logits: Log-probabilities of every word [B, T, V] (without `labels`).
    cache: `GRUState` after the last token.
    encoder_last_hidden_state: The condition [B, S, C].
    cross_attentions: Weights on the content words, one tuple item [B, 1, T, J], when asked for.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    cache: GRUState | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None
    decoder_attentions: tuple[torch.Tensor, ...] | None = None
    decoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    encoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    encoder_attentions: tuple[torch.Tensor, ...] | None = None


class StyleReader(nn.Module):
    """U V (b - m) of styles b; nothing of a style that is all zeros. m and the scale are measured before training."""

    def __init__(self, config: PictaleStoryDecoderConfig) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(config.thought_size))
        self.register_buffer("scale", torch.ones(1))
        self.narrow = nn.Linear(config.thought_size, config.style_size, bias=False)
        self.widen = nn.Linear(config.style_size, config.condition_size, bias=False)

    def forward(self, style: torch.Tensor) -> torch.Tensor:
        """[B, D] -> [B, C]."""
        given = style.ne(0).any(-1, keepdim=True)  # [B, 1]
        particular = (style - self.center) * self.scale * given
        return self.widen(self.narrow(particular.to(self.narrow.weight.dtype)))

    @torch.no_grad()
    def measure(self, styles: torch.Tensor) -> None:
        """Set m to the mean of these styles [n, D], and the scale so that the entries of b - m are of order 1."""
        self.center.copy_(styles.mean(0))
        self.scale.fill_(1 / max(float((styles - styles.mean(0)).std()), 1e-8))


class StoryConditions(nn.Module):
    """What a passage is about; `get_encoder()` of the model, so `generate` computes it once per passage."""

    main_input_name = "thought"

    def __init__(self, config: PictaleStoryDecoderConfig) -> None:
        super().__init__()
        self.thought_scale = math.sqrt(config.thought_size)  # thoughts have length <= 1: bring entries to order 1
        self.words = AdaptiveVocabulary(config.vocab_size, config.embedding_size, config.adaptive_cutoff)
        self.projection = nn.Linear(2 * config.thought_size + config.embedding_size, config.condition_size)
        self.style = StyleReader(config) if config.style_size else None

    def forward(
        self,
        thought: torch.Tensor,
        previous_thought: torch.Tensor | None = None,
        content_ids: torch.Tensor | None = None,
        style: torch.Tensor | None = None,
        strength: float = 1.0,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> StoryConditionOutput:
        """What every step is told.

        Args:
            thought: [B, D]; or [B, S, D], the thoughts of a passage's sentences.
            previous_thought: [B, D]; None or zero: a beginning.
            content_ids: [B, J]; 0: no word.
            style: Vector b of the style [B, D]; None or zero: none of its own. A decoder without `style_size` knows
                style by the thought alone and does not look at it.
            strength: How strongly the style is laid on; 1 as in training, 0 not at all.
        """
        if thought.dim() == 2:
            thought = thought.unsqueeze(1)  # [B, S, D]
        if previous_thought is None:
            previous_thought = torch.zeros_like(thought[:, 0])
        if content_ids is None:
            content_ids = thought.new_zeros(thought.size(0), 1, dtype=torch.long)
        content = self.words.embed(content_ids)  # [B, J, E]
        mask = content_ids.ne(self.words.padding_idx).to(content.dtype)  # [B, J]
        mean = content.sum(1) / mask.sum(1, keepdim=True).clamp_min(1)  # [B, E], padding embeds to zero
        # the mean of J nearly independent vectors shrinks with sqrt(J); undo it so that many words weigh like one
        mean = mean * mask.sum(1, keepdim=True).clamp_min(1).sqrt()
        sentences = thought.size(1)
        previous = previous_thought.unsqueeze(1).expand(-1, sentences, -1)  # [B, S, D]
        thoughts = torch.cat([thought, previous], -1) * self.thought_scale  # [B, S, 2D]
        means = mean.unsqueeze(1).expand(-1, sentences, -1)  # [B, S, E]
        condition = self.projection(torch.cat([thoughts.to(mean.dtype), means], -1))  # [B, S, C]
        if self.style is not None and style is not None:
            condition = condition + strength * self.style(style).to(condition.dtype).unsqueeze(1)
        return StoryConditionOutput(condition, content, mask)


class PictaleStoryDecoderForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Writes a passage from a thought vector.

    Example:
        >>> thought = torch.from_numpy(encoder.encode(["A dog runs on the beach."]))          # [1, 768]
        >>> ids = decoder.generate(thought, do_sample=True, top_p=0.9, max_new_tokens=60)
        >>> clean_text(tokenizer.decode(ids[0], skip_special_tokens=True))
    """

    config_class = PictaleStoryDecoderConfig
    base_model_prefix = "story_decoder"
    main_input_name = "thought"

    def __init__(self, config: PictaleStoryDecoderConfig) -> None:
        super().__init__(config)
        self.conditions = StoryConditions(config)
        self.initial = nn.Linear(config.condition_size, config.num_hidden_layers * config.hidden_size)
        self.gru = nn.GRU(
            config.embedding_size + config.condition_size,
            config.hidden_size,
            config.num_hidden_layers,
            batch_first=True,
            dropout=config.dropout if config.num_hidden_layers > 1 else 0.0,
        )
        self.query = nn.Linear(config.hidden_size, config.embedding_size)
        self.output_state = nn.Linear(config.hidden_size, config.embedding_size)
        self.output_content = nn.Linear(config.embedding_size, config.embedding_size, bias=False)
        self.output_condition = nn.Linear(config.condition_size, config.embedding_size, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    @property
    def words(self) -> AdaptiveVocabulary:
        """Word vectors and output layer, shared by the content words, the decoder's input and its output."""
        return self.conditions.words

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, AdaptiveVocabulary):
            module.reset_parameters(self.config.initializer_range)
        elif isinstance(module, nn.GRU):
            initialize_recurrent(module)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    # -- what generate() needs ---------------------------------------------------------------------------------------
    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def get_encoder(self, *args: Any, **kwargs: Any) -> nn.Module:
        return self.conditions

    def get_input_embeddings(self) -> nn.Module:
        return self.words.head

    # -- one pass ----------------------------------------------------------------------------------------------------
    def attend(self, states: torch.Tensor, content: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """states [B, T, H], content [B, J, E], mask [B, J] -> context [B, T, E], weights [B, T, J]."""
        scores = self.query(states) @ content.transpose(1, 2).to(states.dtype)  # [B, T, J]
        scores = scores.float().masked_fill(mask.unsqueeze(1) == 0, float("-inf"))
        none = scores.new_zeros(*scores.shape[:2], 1)  # the choice of looking at no word
        weights = torch.cat([scores, none], -1).softmax(-1)[..., :-1]  # [B, T, J]
        return weights.to(content.dtype) @ content, weights

    def forward(
        self,
        thought: torch.Tensor | None = None,
        previous_thought: torch.Tensor | None = None,
        content_ids: torch.Tensor | None = None,
        style: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        sentence_ids: torch.Tensor | None = None,
        encoder_outputs: StoryConditionOutput | None = None,
        cache: GRUState | None = None,
        past_key_values: GRUState | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> StoryDecoderOutput:
        """One pass over given words.

        Args:
            thought, previous_thought, content_ids, style: See `StoryConditions`; or `encoder_outputs`, made from them.
            decoder_input_ids: Words so far [B, T], beginning with `<s>`.
            labels: Words to predict [B, T], -100 where none counts; decoder inputs are made from them.
            sentence_ids: Which of the thoughts [B, S, D] each predicted word belongs to [B, T]; None: all to the one.
            cache: State after the words before these, from the output of an earlier call; `past_key_values`: the same,
                as transformers calls it before 5.24.
        """
        if encoder_outputs is None:
            encoder_outputs = self.conditions(thought, previous_thought, content_ids, style)
        condition, content, mask = encoder_outputs[0], encoder_outputs[1], encoder_outputs[2]
        if decoder_input_ids is None:
            decoder_input_ids = self.shift_right(labels)
        state = past_key_values if cache is None else cache
        if state is None:
            first = self.initial(condition[:, 0]).tanh()  # [B, L * H]
            h = first.view(-1, self.config.num_hidden_layers, self.config.hidden_size).transpose(0, 1).contiguous()
            state = GRUState(h)
        embedded = self.dropout(self.words.embed(decoder_input_ids))  # [B, T, E]
        if sentence_ids is None:
            by_word = condition.expand(-1, embedded.size(1), -1)  # [B, T, C]
        else:
            by_word = condition.gather(1, sentence_ids.unsqueeze(-1).expand(-1, -1, condition.size(-1)))
        states, h = self.gru(
            torch.cat([embedded, by_word.to(embedded.dtype)], -1), state.h.to(embedded.dtype)
        )  # [B, T, H]
        context, weights = self.attend(states, content, mask)
        hidden = self.output_state(self.dropout(states)) + self.output_content(context.to(states.dtype))
        hidden = self.dropout(hidden + self.output_condition(by_word))  # [B, T, E]
        loss = logits = None
        if labels is not None:
            real = labels.ne(-100)
            loss = self.words.loss(hidden[real], labels[real]).mean()
        else:
            logits = self.words.log_probs(hidden)  # [B, T, V]
        keep = use_cache if use_cache is not None else not self.training
        return StoryDecoderOutput(
            loss=loss,
            logits=logits,
            cache=GRUState(h, state.seen + decoder_input_ids.size(1)) if keep else None,
            encoder_last_hidden_state=condition,
            cross_attentions=(weights.unsqueeze(1),) if output_attentions else None,
        )

    def shift_right(self, labels: torch.Tensor) -> torch.Tensor:
        """labels [B, T] -> decoder inputs [B, T]: `<s>` first, ignored targets as padding."""
        start = labels.new_full((labels.size(0), 1), self.config.decoder_start_token_id)
        shifted = torch.cat([start, labels[:, :-1]], 1)
        return shifted.masked_fill(shifted == -100, self.config.pad_token_id)

    @torch.no_grad()
    def step(
        self, conditions: StoryConditionOutput, ids: torch.Tensor, h: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One more word for many passages under the same conditions: what `forward` gives, without dropout, in less
        time, because what the conditions add to the gates and to the output is computed once and not for each passage.

        Args:
            conditions: Of a batch of G.
            ids: The words to read, N passages for each of the conditions [G, N].
            h: State before them [L, G, N, H]; None at the beginning.

        Returns:
            Log-probabilities of every next word [G, N, V] and the state after them [L, G, N, H].
        """
        condition, content, mask = conditions.to_tuple()  # [G, 1, C], [G, J, E], [G, J]
        if h is None:
            layers = self.initial(condition).tanh().unflatten(-1, (self.config.num_hidden_layers, -1))  # [G, 1, L, H]
            h = layers.permute(2, 0, 1, 3).expand(-1, -1, ids.size(1), -1)
        states, after = self.words.embed(ids), []
        for layer, before in enumerate(h):
            w_x, w_h, b_x, b_h = self.gru.all_weights[layer]
            split = self.config.embedding_size if layer == 0 else self.config.hidden_size
            x = F.linear(states, w_x[:, :split])  # [G, N, 3H]
            x = x + (F.linear(condition, w_x[:, split:], b_x) if layer == 0 else b_x)
            u = F.linear(before, w_h, b_h)
            size = 2 * self.config.hidden_size
            reset, update = (x[..., :size] + u[..., :size]).sigmoid_().chunk(2, -1)
            states = torch.addcmul(x[..., size:], reset, u[..., size:]).tanh_().lerp(before, update)
            after.append(states)
        context, _ = self.attend(states, content, mask)
        hidden = self.output_state(states) + self.output_content(context.to(states.dtype))
        return self.words.log_probs(hidden + self.output_condition(condition)), torch.stack(after)

    @torch.no_grad()
    def score(self, encoder_outputs: StoryConditionOutput, sequences: torch.Tensor) -> torch.Tensor:
        """Mean log-probability per token of generated ids [B, T] (from `<s>`; padding ignored) -> [B].

        Conditions of a batch of one hold for every row.
        """
        labels = sequences[:, 1:]
        parts = (part.expand(len(sequences), *part.shape[1:]) for part in encoder_outputs.to_tuple())
        encoder_outputs = StoryConditionOutput(*parts)
        log_probs = self(encoder_outputs=encoder_outputs, decoder_input_ids=sequences[:, :-1], use_cache=False).logits
        chosen = log_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)  # [B, T-1]
        real = labels.ne(self.config.pad_token_id)
        return (chosen * real).sum(1) / real.sum(1).clamp_min(1)


PictaleStoryDecoderForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")
