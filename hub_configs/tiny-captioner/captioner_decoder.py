"""The captioner's decoder: attention LSTM and output, without the vocabulary layer. See `modeling_captioner`.

Shapes: R caption rows, T steps, M words in all rows, P regions, N attention heads, C context, A attention, H hidden,
E word vector, W what the vocabulary layer reads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .captioner_attention import ATTENTIONS, read, strongest
from .captioner_scheduled_sampling import OwnWords
from .configuration_captioner import PictaleCaptionerConfig

Look = Callable[[torch.Tensor], torch.Tensor]  # alpha [R, N, P] -> what weighs the regions [R, N, P]


class LSTMState:
    """State (h, c), each [R, H], in the place of a key-value cache; beam search reorders it in place."""

    is_compileable = False  # generate() asks before it considers torch.compile

    def __init__(self, h: torch.Tensor, c: torch.Tensor, seen: int = 0):
        self.h, self.c, self.seen = h, c, seen

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        beam_idx = beam_idx.to(self.h.device)
        self.h, self.c = self.h.index_select(0, beam_idx), self.c.index_select(0, beam_idx)


class StateProjection(nn.Linear):
    """All that is linear in the state, in one product: LSTM gates (4H), attention query (A), context gate (C)."""


class CaptionerDecoder(nn.Module):
    """Attention LSTM and output layer up to what the vocabulary layer reads."""

    def __init__(self, config: PictaleCaptionerConfig):
        super().__init__()
        hidden, context, embed = config.hidden_size, config.context_dim, config.embed_dim
        self.gated = config.context_gate
        self.splits = [4 * hidden, config.attention_dim] + ([context] if self.gated else [])
        self.state_projection = StateProjection(hidden, sum(self.splits))
        self.word_projection = nn.Linear(embed, 4 * hidden, bias=False)
        self.context_projection = nn.Linear(context, 4 * hidden, bias=False)
        self.attention = ATTENTIONS[config.attention_type](config.attention_dim, config.attention_heads)
        self.look: Look | None = None
        if config.attention_mode == "hard" and config.hard_attention_inference == "argmax":
            self.look = strongest
        self.initial = nn.Linear(context, 2 * hidden) if config.initial_state == "mean" else None
        self.deep = config.output_type == "deep"
        if self.deep:
            self.output_state = nn.Linear(hidden, embed)
            self.output_context = nn.Linear(context, embed, bias=False)
        read_from = embed if self.deep else hidden
        direct = not self.deep and config.output_dim == hidden
        self.output_projection = None if direct else nn.Linear(read_from, config.output_dim)
        self.embed_dropout = nn.Dropout(config.embed_dropout)
        self.output_dropout = nn.Dropout(config.output_dropout)

    def initial_state(self, regions: torch.Tensor) -> LSTMState:
        """First state [B, H] twice from regions [B, P, C]."""
        if self.initial is None:
            zeros = regions.new_zeros(regions.shape[0], self.state_projection.in_features)
            return LSTMState(zeros, zeros)
        h, c = self.initial(regions.mean(1)).tanh().chunk(2, -1)  # 2 x [B, H]
        return LSTMState(h, c.float())

    def step(
        self,
        words: torch.Tensor,
        regions: torch.Tensor,
        keys: torch.Tensor,
        h: torch.Tensor,
        c: torch.Tensor,
        look: Look | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """One word.

        Args:
            words: projected word vectors [R, 4H]; regions [R, P, C]; keys [R, P, A]; h, c [R, H].
            look: what to do with alpha in place of reading the expectation.

        Returns:
            h, c [R, H], context z [R, C] and attention alpha [R, P], the mean over heads.
        """
        gates, query, *gate = self.state_projection(h).split(self.splits, -1)
        alpha = self.attention(query, keys).softmax(-1)  # [R, N, P]
        look = look or self.look
        z = read(alpha if look is None else look(alpha), regions)  # [R, C]
        if self.gated:
            z = torch.sigmoid(gate[0]) * z
        enter, forget, new, leave = (gates + words + self.context_projection(z)).chunk(4, -1)  # 4 x [R, H]
        c = torch.sigmoid(forget) * c + torch.sigmoid(enter) * torch.tanh(new)
        h = torch.sigmoid(leave) * torch.tanh(c).to(leave.dtype)
        return h, c, z, alpha.squeeze(1) if alpha.shape[1] == 1 else alpha.mean(1)

    def output(self, embedded: torch.Tensor, h: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """What the vocabulary layer reads [M, W], from words [M, E], states [M, H] and contexts [M, C]."""
        deep = self.output_dropout(h)
        if self.deep:
            deep = torch.tanh(embedded + self.output_state(deep) + self.output_context(z))  # [M, E]
            deep = self.output_dropout(deep)
        return deep if self.output_projection is None else self.output_projection(deep)

    def forward(
        self,
        embedded: torch.Tensor,
        regions: torch.Tensor,
        keys: torch.Tensor,
        state: LSTMState,
        rows: list[int],
        look: Look | None = None,
        own_words: OwnWords | None = None,
    ) -> tuple[torch.Tensor, LSTMState, list[torch.Tensor]]:
        """Run over the words of captions sorted from the longest to the shortest.

        Args:
            embedded: word vectors, packed step by step [M, E]: the first word of every caption, then the second, ...
            regions [R, P, C], keys [R, P, A], state: of the R captions.
            rows: captions that still have a word at each of the T steps, sum(rows) = M.
            look: as in `step`.
            own_words: scheduled sampling; None reads the words given.

        Returns:
            What the vocabulary layer reads [M, W], the state after the last word, attention T x [rows, P].
        """
        embedded = self.embed_dropout(embedded)
        words = self.word_projection(embedded).split(rows)  # T x [rows, 4H]
        vectors = list(embedded.split(rows)) if own_words is not None else []  # T x [rows, E]
        regions = regions.to(words[0].dtype)
        h, c, states, contexts, alphas = state.h, state.c, [], [], []
        for t, (n, word) in enumerate(zip(rows, words, strict=True)):
            if n < len(h):  # captions that ended; cutting the cut tensors again keeps the backward pass small
                h, c, regions, keys = h[:n], c[:n], regions[:n], keys[:n]
            if own_words is not None and t > 0:
                chosen = own_words.rows(n, h.device)
                if len(chosen):
                    with torch.no_grad():
                        deep = self.output(vectors[t - 1][chosen], h[chosen], contexts[-1][chosen])
                    vector = self.embed_dropout(own_words.draw(deep)).to(embedded.dtype)  # [chosen, E]
                    vectors[t] = vectors[t].index_copy(0, chosen, vector)
                    word = word.index_copy(0, chosen, self.word_projection(vector))
            h, c, z, alpha = self.step(word, regions, keys, h, c, look)
            states.append(h)
            contexts.append(z)
            alphas.append(alpha)
        if vectors:
            embedded = torch.cat(vectors)
        deep = self.output(embedded, torch.cat(states), torch.cat(contexts))  # [M, E], [M, H], [M, C] -> [M, W]
        return deep, LSTMState(h, c, state.seen + len(rows)), alphas
