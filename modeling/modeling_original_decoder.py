"""The passage decoder of neural-storyteller (2015) with its own weights and its beam search.

github.com/ryankiros/neural-storyteller, `decoder.py`, `search.py`; github.com/ryankiros/skip-thoughts, `decoding/`. The
thought vector is seen as the first state and never again:

    h_0 = tanh(c W_state + b);   h_t = GRU(y_(t-1), h_(t-1)), y_0 = 0;   p_t = softmax(h_t W_logit + b)

with tanh(h W_hid + b) in the place of h where the model has a deep output. The GRU is that of the encoder
(`modeling_original_encoder.py`).

Shapes: B passages, T words, D thought width, H state, E word width, V vocabulary, K beams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_originals import PictaleOriginalDecoderConfig
from .errors import TextError
from .recurrent import initialize_recurrent
from .tokenization import saved_tokenizer

END, UNKNOWN, START = 0, 1, -1


@dataclass(frozen=True)
class Beam:
    """A passage found by the search: its words without the end mark, and the sum of -log p of all of them."""

    ids: list[int]
    cost: float
    finished: bool


@dataclass
class OriginalDecoderOutput(ModelOutput):
    """Args:
    logits: Scores of the next word after each given one [B, T, V].
    state: After the last given word [1, B, H].
    """

    logits: torch.Tensor | None = None
    state: torch.Tensor | None = None


class PictaleOriginalDecoder(PreTrainedModel):
    """Writes a passage from a thought vector of the original encoder.

    Example:
        >>> decoder = PictaleOriginalDecoder.from_pretrained("converted/romance")
        >>> decoder.write(encoder.encode(["A dog runs on the beach."])[0], num_beams=50)
    """

    config_class = PictaleOriginalDecoderConfig
    base_model_prefix = "decoder"
    main_input_name = "thought"

    def __init__(self, config: PictaleOriginalDecoderConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.embedding_size)
        self.initial = nn.Linear(config.thought_size, config.hidden_size)
        self.gru = nn.GRU(config.embedding_size, config.hidden_size, batch_first=True)
        width = config.hidden_size
        if config.deep_output:
            self.deep = nn.Linear(config.hidden_size, config.embedding_size)
            width = config.embedding_size
        self.output = nn.Linear(width, config.vocab_size)
        self._tokenizer: Any = None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.GRU):
            initialize_recurrent(module)
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.uniform_(module.weight, -0.1, 0.1)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    @property
    def tokenizer(self) -> Any:
        """The vocabulary saved beside the weights, loaded at first use."""
        if self._tokenizer is None:
            self._tokenizer = saved_tokenizer(self.config)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def forward(
        self,
        thought: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        state: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> OriginalDecoderOutput:
        """One pass over given words.

        Args:
            thought: [B, D]; or `state` [1, B, H], the one to go on from.
            decoder_input_ids: Words so far [B, T]; -1 is the start, whose vector is zero. None: the start alone.
        """
        if state is None:
            state = self.initial(thought).tanh().unsqueeze(0)  # [1, B, H]
        if decoder_input_ids is None:
            decoder_input_ids = torch.full((state.size(1), 1), START, device=state.device)
        start = (decoder_input_ids == START).unsqueeze(-1)
        embedded = self.words(decoder_input_ids.clamp_min(0)).masked_fill(start, 0.0)  # [B, T, E]
        states, state = self.gru(embedded, state)  # [B, T, H]
        return OriginalDecoderOutput(
            logits=self.output(self.deep(states).tanh() if self.config.deep_output else states), state=state
        )

    @torch.no_grad()
    def generate(
        self,
        thought: np.ndarray | torch.Tensor,
        num_beams: int = 50,
        max_new_tokens: int = 1000,
        use_unknown: bool = False,
    ) -> list[Beam]:
        """The search of the original: the smallest sum of -log p, whatever the length.

        A finished passage leaves the beam, which goes on one narrower; the search ends when all have, or at the
        greatest length, where unfinished ones count too. (The original gives a beam the cost of the candidate at its
        parent's rank, `costs[ti]`; here every beam has its own cost.)

        Args:
            thought: [D].
            num_beams: K; 1 is greedy.
            max_new_tokens: Greatest length.
            use_unknown: Let it write UNK.

        Returns:
            At most K passages, the best first; an empty one only if there is no other.
        """
        thought = torch.as_tensor(np.asarray(thought) if not torch.is_tensor(thought) else thought)
        if thought.shape != (self.config.thought_size,):
            raise TextError(
                f"This decoder takes a thought vector of {self.config.thought_size} numbers, not one of the shape "
                f"{tuple(thought.shape)}: use the encoder it was trained with."
            )
        if num_beams < 1 or max_new_tokens < 1:
            raise TextError("The beam width and the greatest length are 1 or more.")
        done: list[Beam] = []
        output = self(thought.to(self.device, self.dtype).unsqueeze(0))
        sequences, costs = torch.zeros(1, 0, dtype=torch.long, device=self.device), torch.zeros(1, device=self.device)
        for _ in range(max_new_tokens):
            log_p = output.logits[:, -1].float().log_softmax(-1)  # [k, V]
            if not use_unknown:
                log_p[:, UNKNOWN] = -torch.inf
            candidates = (costs.unsqueeze(1) - log_p).flatten()  # [k V]
            best, chosen = candidates.topk(min(num_beams - len(done), len(candidates)), largest=False)
            possible = best.isfinite()
            costs, chosen = best[possible], chosen[possible]
            parent, word = chosen // log_p.size(1), chosen % log_p.size(1)
            sequences = torch.cat([sequences[parent], word.unsqueeze(1)], 1)
            ended = word == END
            done += [
                Beam(s[:-1], c, True) for s, c in zip(sequences[ended].tolist(), costs[ended].tolist(), strict=True)
            ]
            sequences, costs, parent, word = sequences[~ended], costs[~ended], parent[~ended], word[~ended]
            if not len(word) or len(done) >= num_beams:
                break
            output = self(decoder_input_ids=word.unsqueeze(1), state=output.state[:, parent])
        done += [Beam(s, c, False) for s, c in zip(sequences.tolist(), costs.tolist(), strict=True)]
        return sorted(done, key=lambda beam: (not beam.ids, beam.cost))

    def write(self, thought: np.ndarray | torch.Tensor, **search: Any) -> str:
        """The best passage of `generate`, its words joined by spaces as the original prints them."""
        return " ".join(self.tokenizer.convert_ids_to_tokens(self.generate(thought, **search)[0].ids))


PictaleOriginalDecoder.register_for_auto_class("AutoModel")
