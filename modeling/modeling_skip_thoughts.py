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
decoder step. Unlike it, the output layer is an adaptive softmax tied to the word vectors.

Shapes: B sentences, T tokens, E word width, D thought width, V vocabulary.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import ModelOutput

from .adaptive_vocabulary import AdaptiveVocabulary
from .configuration_skip_thoughts import PictaleSkipThoughtsConfig
from .errors import TextError
from .neighbours import Neighbour, nearest_rows, row_blocks
from .packed_recurrence import last_states, token_batches, with_dtype
from .recurrent import initialize_recurrent


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


class PictaleSkipThoughtsEncoder(PictaleSkipThoughtsPreTrainedModel):
    """The sentence encoder.

    Example:
        >>> encoder = PictaleSkipThoughtsEncoder.from_pretrained("hub_configs/skip-thoughts-books")
        >>> encoder.encode(["A dog runs on the beach.", "Two children play."]).shape
        (2, 640)
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
        self._tokenizer: Any = None
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
        states = [gru(embedded)[0] for gru, backwards in self._directions() if not backwards]  # [B, T, D'] each
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

    def _directions(self) -> list[tuple[nn.GRU, bool]]:
        """The GRUs whose last states make a thought, in its order, and whether each reads backwards."""
        forward = [self.gru, *([self.second_gru] if hasattr(self, "second_gru") else [])]
        backward = [self.reverse_gru] if hasattr(self, "reverse_gru") else []
        return [(gru, False) for gru in forward] + [(gru, True) for gru in backward]

    @torch.no_grad()
    def encode(
        self,
        sentences: Sequence[str],
        tokenizer: Any = None,
        batch_size: int = 2048,
        normalize: bool = True,
        *,
        batch_tokens: int = 16384,
        dtype: torch.dtype | None = None,
        progress: bool = False,
    ) -> np.ndarray:
        """Vectors of sentences, in the caller's order, computed on the model's device without dropout.

        Args:
            sentences: Texts; an empty one is encoded as `<s> </s>`, one over `max_tokens` tokens is cut.
            tokenizer: The model's tokenizer; None loads it from the folder the model came from.
            batch_size, batch_tokens: At most so many sentences and tokens a step; sentences are sorted by length, and
                nothing is computed on padding (`packed_recurrence`). Neither changes a vector.
            normalize: Scale each vector to length 1, as the original storyteller did.
            dtype: What is computed in: `torch.bfloat16` (cosine to the float32 vector above 0.999) or `torch.float16`
                where the machine multiplies them fast; None: the model's own, or that of a surrounding `autocast`.
            progress: Show a bar.

        Returns:
            float32 array [len(sentences), D].
        """
        if isinstance(sentences, str):
            raise TypeError("encode takes a list of sentences; put the one sentence in a list.")
        vectors = np.zeros((len(sentences), self.config.hidden_size), dtype=np.float32)
        if not len(sentences):
            return vectors
        kind = self.device.type
        if dtype is None:
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.dtype
        ids, starts = self._token_ids(sentences, tokenizer or self.tokenizer)
        lengths = np.diff(starts)
        directions = [(with_dtype(gru, dtype), backwards) for gru, backwards in self._directions()]
        bar = tqdm(total=len(sentences), unit="sentence", disable=not progress)
        with bar, torch.autocast(kind, enabled=False):
            for rows in token_batches(lengths, batch_tokens, batch_size):
                thought = self._thoughts(ids, starts[rows], lengths[rows], directions, dtype).float()  # [b, D]
                if normalize:
                    thought = nn.functional.normalize(thought, dim=-1)
                vectors[rows] = thought.cpu().numpy()
                bar.update(len(rows))
        return vectors

    def _thoughts(
        self,
        ids: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        directions: list[tuple[nn.GRU, bool]],
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Thoughts [b, D] of the sentences `ids[start : start + length]`, from the longest to the shortest."""
        starts, ends = starts[:, None], (starts + lengths)[:, None]
        steps = np.arange(lengths[0])
        places = np.minimum(starts + steps, ends - 1)  # [b, T]; what stands after the end is not read
        words, index = np.unique(ids[places], return_inverse=True)  # [U], [b, T]
        table = self.words.embed(torch.from_numpy(words).to(self.device)).to(dtype)  # [U, E]
        thoughts = []
        for gru, backwards in directions:
            if backwards:
                index = np.take_along_axis(index, np.maximum(lengths[:, None] - 1 - steps, 0), 1)
            thoughts.append(last_states(gru, table, torch.from_numpy(index).to(self.device), lengths))
        return torch.cat(thoughts, -1)

    def _token_ids(self, sentences: Sequence[str], tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all sentences int64 [n], over-long ones cut before `</s>`, and where each starts, int64 [len + 1].

        The Rust tokenizer is called directly: building transformers' BatchEncoding takes longer than the encoder does.
        """
        limit, end = self.config.max_tokens, self.config.eos_token_id
        ids, starts = array("q"), array("q", [0])
        for start in range(0, len(sentences), 8192):  # its encodings are bigger than what is kept of them
            for encoding in tokenizer.backend_tokenizer.encode_batch_fast(list(sentences[start : start + 8192])):
                row = encoding.ids or [self.config.pad_token_id]  # a tokenizer without `<s>` and `</s>`
                ids.extend(row if len(row) <= limit else [*row[: limit - 1], end])
                starts.append(len(ids))
        return np.frombuffer(ids, dtype=np.int64), np.frombuffer(starts, dtype=np.int64)

    def nearest(
        self,
        queries: Sequence[str],
        sentences: Sequence[str],
        k: int = 5,
        vectors: np.ndarray | None = None,
        **encode: Any,
    ) -> list[list[Neighbour]]:
        """The sentences whose thoughts are nearest to each query's, by cosine, best first.

        Args:
            queries: Texts.
            sentences: Texts to choose from.
            k: Neighbours of each query.
            vectors: [len(sentences), D] if they are encoded already (a memory-mapped array stays on disk).
            encode: Options of `encode`.

        Returns:
            A list of `Neighbour(text, similarity, index)` for every query.

        Raises:
            TextError: no sentences, k below 1, or vectors that are not these sentences'.
        """
        if isinstance(queries, str) or isinstance(sentences, str):
            raise TypeError("nearest takes lists of sentences; put the one sentence in a list.")
        if vectors is None:
            vectors = self.encode(sentences, **encode)
        if vectors.shape != (len(sentences), self.config.hidden_size):
            raise TextError(
                f"The vectors have the shape {vectors.shape}; {len(sentences)} sentences of this encoder give "
                f"({len(sentences)}, {self.config.hidden_size})."
            )
        rows, cosines = nearest_rows(self.encode(queries, **encode), row_blocks(vectors), k)
        return [
            [Neighbour(sentences[i], float(c), int(i)) for i, c in zip(*found, strict=True)]
            for found in zip(rows, cosines, strict=True)
        ]

    @torch.no_grad()
    def nearest_words(self, words: Sequence[str], k: int = 10, tokenizer: Any = None) -> list[list[Neighbour]]:
        """The vocabulary's words nearest to each given word, by the cosine of their input vectors, best first.

        Args:
            words: Words as `modeling.tokenization.split_words` gives them, none of them its own neighbour.
            k: Neighbours of each word.
            tokenizer: The model's tokenizer; None loads it from the folder the model came from.

        Returns:
            A list of `Neighbour(word, cosine, id)` for every word.

        Raises:
            TextError: a word that the vocabulary does not hold, or k below 1.
        """
        if isinstance(words, str):
            raise TypeError("nearest_words takes a list of words; put the one word in a list.")
        if k < 1:
            raise TextError(f"k is the number of neighbours, 1 or more, not {k}.")
        tokenizer = tokenizer or self.tokenizer
        ids, starts = self._token_ids(words, tokenizer)
        special = set(tokenizer.all_special_ids)
        queries = []
        for word, start, stop in zip(words, starts, starts[1:], strict=False):
            found = [i for i in ids[start:stop].tolist() if i not in special]
            if len(found) != 1:
                raise TextError(f"'{word[:60]}' is not one word of this encoder's vocabulary: try another spelling.")
            queries.append(found[0])
        table = self.words.embed(torch.arange(self.config.vocab_size, device=self.device)).float().cpu().numpy()
        rows, cosines = nearest_rows(table[queries], row_blocks(table), k + 1 + len(special))
        names = tokenizer.convert_ids_to_tokens(range(self.config.vocab_size))
        neighbours = []
        for query, *found in zip(queries, rows, cosines, strict=True):
            kept = [(i, c) for i, c in zip(*found, strict=True) if i != query and i not in special]
            neighbours.append([Neighbour(names[i], float(c), int(i)) for i, c in kept[:k]])
        return neighbours

    @property
    def tokenizer(self) -> Any:
        """The tokenizer saved beside the weights, loaded at first use."""
        if self._tokenizer is None:
            self._tokenizer = AutoTokenizer.from_pretrained(self.config.name_or_path)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer


class NeighbourDecoder(nn.Module):
    """Predicts one neighbouring sentence from a thought, teacher-forced (`decoder` of the paper)."""

    def __init__(self, config: PictaleSkipThoughtsConfig) -> None:
        super().__init__()
        self.condition = nn.Linear(config.hidden_size, config.condition_size)
        self.initial = nn.Linear(config.hidden_size, config.decoder_hidden_size)
        self.gru = nn.GRU(config.embedding_size + config.condition_size, config.decoder_hidden_size, batch_first=True)
        self.output = nn.Linear(config.decoder_hidden_size, config.embedding_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, thought: torch.Tensor, targets: torch.Tensor, words: AdaptiveVocabulary) -> torch.Tensor:
        """thought [B, D], targets [B, U] as `<s> ... </s>` padded -> mean loss per token."""
        inputs, labels = targets[:, :-1], targets[:, 1:]  # [B, U-1] each
        condition = self.condition(thought).unsqueeze(1).expand(-1, inputs.size(1), -1)  # [B, U-1, K]
        embedded = self.dropout(words.embed(inputs))
        steps = torch.cat([embedded, condition.to(embedded.dtype)], -1)  # [B, U-1, E + K]
        states, _ = self.gru(steps, self.initial(thought).tanh().to(steps.dtype).unsqueeze(0))
        real = labels.ne(words.padding_idx)
        return words.loss(self.output(self.dropout(states[real])), labels[real]).mean()


class PictaleSkipThoughtsForPreTraining(PictaleSkipThoughtsPreTrainedModel):
    """Encoder and its two decoders; `model.encoder.save_pretrained` keeps what users need."""

    def __init__(self, config: PictaleSkipThoughtsConfig) -> None:
        super().__init__(config)
        self.encoder = PictaleSkipThoughtsEncoder(config)
        self.previous_decoder = NeighbourDecoder(config)
        self.next_decoder = NeighbourDecoder(config)
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
        thought, words = output.thought[::every], self.encoder.words
        output.previous_loss = self.previous_decoder(thought, previous_ids[::every], words)
        output.next_loss = self.next_decoder(thought, next_ids[::every], words)
        output.loss = output.previous_loss + output.next_loss
        if self.config.contrastive_weight:
            output.contrastive_loss = self.contrastive_loss(output.thought, self.encoder(next_ids).thought, next_ids)
            output.loss = output.loss + self.config.contrastive_weight * output.contrastive_loss
        return output

    def contrastive_loss(self, thought: torch.Tensor, following: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Thoughts [B, D] of sentences and of their next sentences `ids` [B, W] -> mean loss.

        Two rows with the same next sentence ("Yes.") are not each other's negatives.
        """
        query = nn.functional.normalize(self.query(thought).float(), dim=-1)
        candidate = nn.functional.normalize(self.candidate(following).float(), dim=-1)
        scores = query @ candidate.t() / self.config.contrastive_temperature  # [B, B]
        same = (ids.unsqueeze(0) == ids.unsqueeze(1)).all(-1)
        same.fill_diagonal_(False)
        return nn.functional.cross_entropy(
            scores.masked_fill(same, float("-inf")), torch.arange(len(ids), device=ids.device)
        )


PictaleSkipThoughtsEncoder.register_for_auto_class("AutoModel")
PictaleSkipThoughtsForPreTraining.register_for_auto_class("AutoModelForPreTraining")
