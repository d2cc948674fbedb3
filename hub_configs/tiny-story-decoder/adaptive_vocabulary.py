"""Word embeddings and output layer in one, with a small table for rare words.

Adaptive input representations (Baevski and Auli, arXiv:1809.10853) tied to an adaptive softmax (Grave et al.,
arXiv:1609.04309): the `cutoff` most frequent words have vectors of the full width D, the rest D / `tail_factor`. Ids
must be sorted by frequency, as `build_word_tokenizer` gives them. With a 20,000-word vocabulary this costs a quarter of
the parameters and of the training time of a plain tied layer, and loses little, since rare words are rare.

    p(w) = softmax(head(h))_w                                   w < cutoff
    p(w) = softmax(head(h))_tail * softmax(tail(h))_(w-cutoff)  otherwise

Shapes: N any number of positions, D embedding width, V vocabulary, C cutoff.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (the field's usual name)


class AdaptiveVocabulary(nn.Module):
    """Tied input embedding and output distribution.

    Args:
        vocab_size: V.
        embedding_size: D, the width of frequent words and of the hidden vector given to the output side.
        cutoff: C, words with a full-width vector; None or >= V gives the plain tied layer.
        tail_factor: Rare words have D // tail_factor dimensions.
        padding_idx: Its embedding is zero on the input side.
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_size: int,
        cutoff: int | None = None,
        tail_factor: int = 4,
        padding_idx: int = 0,
    ) -> None:
        super().__init__()
        self.vocab_size, self.embedding_size, self.padding_idx = vocab_size, embedding_size, padding_idx
        self.cutoff = vocab_size if cutoff is None else min(cutoff, vocab_size)
        self.head = nn.Embedding(self.cutoff, embedding_size)
        self.head_bias = nn.Parameter(torch.zeros(self.cutoff))
        self.has_tail = self.cutoff < vocab_size
        if self.has_tail:
            tail_size = embedding_size // tail_factor
            self.tail = nn.Embedding(vocab_size - self.cutoff, tail_size)
            self.tail_bias = nn.Parameter(torch.zeros(vocab_size - self.cutoff))
            self.tail_projection = nn.Linear(tail_size, embedding_size, bias=False)
            self.tail_gate = nn.Linear(embedding_size, 1)

    def reset_parameters(self, scale: float) -> None:
        """Normal(0, scale) tables; the projection is orthogonal so that tied use keeps the scale."""
        nn.init.normal_(self.head.weight, std=scale)
        nn.init.zeros_(self.head_bias)
        if self.has_tail:
            nn.init.normal_(self.tail.weight, std=scale)
            nn.init.zeros_(self.tail_bias)
            nn.init.orthogonal_(self.tail_projection.weight)
            nn.init.normal_(self.tail_gate.weight, std=scale)
            nn.init.zeros_(self.tail_gate.bias)

    def tables(self) -> list[nn.Parameter]:
        """The parameters that hold word vectors."""
        return [self.head.weight, *([self.tail.weight, self.tail_projection.weight] if self.has_tail else [])]

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """ids [...] -> vectors [..., D]."""
        vectors = F.embedding(ids.clamp_max(self.cutoff - 1), self.head.weight)  # [..., D]
        if self.has_tail:
            rare = ids >= self.cutoff
            tail = F.embedding((ids - self.cutoff).clamp_min(0), self.tail.weight)  # [..., D/f]
            vectors = torch.where(rare.unsqueeze(-1), self.tail_projection(tail).to(vectors.dtype), vectors)
        return vectors.masked_fill((ids == self.padding_idx).unsqueeze(-1), 0.0)

    def _head_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = F.linear(hidden, self.head.weight.to(hidden.dtype), self.head_bias.to(hidden.dtype))  # [N, C]
        return torch.cat([logits, self.tail_gate(hidden)], -1) if self.has_tail else logits  # [N, C + 1]

    def _tail_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        small = F.linear(hidden, self.tail_projection.weight.t())  # [N, D/f], the same matrix as the input side
        return F.linear(small, self.tail.weight.to(small.dtype), self.tail_bias.to(small.dtype))  # [N, V - C]

    def loss(self, hidden: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
        """Negative log-likelihood of each target: hidden [N, D], targets [N] -> [N] (float32).

        `label_smoothing` is the share of the target spread evenly, in the head and, for rare words, in the tail: over
        all words it would cost the tail's softmax for every position.
        """
        logits = self._head_logits(hidden).float()
        options = {"reduction": "none", "label_smoothing": label_smoothing}
        nll = F.cross_entropy(logits, targets.clamp_max(self.cutoff), **options)  # [N]
        if self.has_tail:
            # also where none is rare: every parameter keeps a gradient, as training in several processes needs
            rare = (targets >= self.cutoff).nonzero().squeeze(-1)  # [R]
            tail = self._tail_logits(hidden[rare]).float()
            nll = nll.index_add(0, rare, F.cross_entropy(tail, targets[rare] - self.cutoff, **options))
        return nll

    def log_probs(self, hidden: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of every word: hidden [..., D] -> [..., V] (float32)."""
        head = self._head_logits(hidden).float().log_softmax(-1)  # [..., C (+ 1)]
        if not self.has_tail:
            return head
        tail = self._tail_logits(hidden).float().log_softmax(-1) + head[..., -1:]  # [..., V - C]
        return torch.cat([head[..., :-1], tail], -1)  # [..., V]
