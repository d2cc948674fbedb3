"""Where the captioner looks: scores of the regions, and hard attention (Xu et al., arXiv:1502.03044, section 4.1).

A scorer gives e_i for every region; alpha = softmax(e). Soft attention reads the mean sum_i alpha_i a_i. Hard attention
reads one region s drawn from alpha; at inference the same mean, its expectation, or the region of the largest alpha.

Shapes: R caption rows, N heads (1 but for "multihead"), P regions, A attention, C context.
"""

from __future__ import annotations

import torch
from torch import nn


class AdditiveAttention(nn.Module):
    """Scores v . tanh(key + query) (Bahdanau et al., arXiv:1409.0473)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.energy = nn.Linear(dim, 1, bias=False)

    def forward(self, query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        return self.energy(torch.tanh(keys + query.unsqueeze(1))).transpose(1, 2)  # [R, A], [R, P, A] -> [R, 1, P]


class DotAttention(nn.Module):
    """Scores key . query / sqrt(A) (Vaswani et al., arXiv:1706.03762), with less memory traffic."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.scale = dim**-0.5

    def forward(self, query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        keys = keys.to(query.dtype)
        return torch.bmm(keys, (self.scale * query).unsqueeze(2)).transpose(1, 2)  # [R, P, A] x [R, A, 1] -> [R, 1, P]


class MultiHeadAttention(nn.Module):
    """N dot products, each over its own A / N channels of query and keys (arXiv:1706.03762, section 3.2.2).

    With `read`, head n sees its own C / N channels of the regions, whose projection in the encoder is the values'.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5

    def forward(self, query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        # each head's query stands in its own channels with zeros around it: one product, and the keys are never copied
        parts = (self.scale * query).view(len(query), self.heads, -1).transpose(1, 2)  # [R, A / N, N]
        queries = torch.diag_embed(parts).transpose(1, 2).reshape(len(query), -1, self.heads)  # [R, A, N]
        return torch.bmm(keys.to(query.dtype), queries).transpose(1, 2)  # [R, P, A] x [R, A, N] -> [R, N, P]


ATTENTIONS = {"bahdanau": AdditiveAttention, "dot": DotAttention, "multihead": MultiHeadAttention}


def read(weights: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """Context [R, C] of weights [R, N, P] on regions [R, P, C]."""
    context = torch.bmm(weights.to(regions.dtype), regions)  # [R, N, C]
    rows, heads, size = context.shape
    if heads == 1:
        return context.squeeze(1)
    own = context.view(rows, heads, heads, size // heads).diagonal(dim1=1, dim2=2)  # [R, C / N, N]
    return own.transpose(1, 2).reshape(rows, size)


def strongest(alpha: torch.Tensor) -> torch.Tensor:
    """Weights [R, N, P] of 1 at the largest alpha [R, N, P] of each head."""
    return torch.zeros_like(alpha).scatter(-1, alpha.argmax(-1, keepdim=True), 1)


class DrawnRegions:
    """Hard attention over one batch of captions while training; called once a step with the rows still running.

    A share of the captions reads the expectation instead of a draw, for lower variance, as in the paper.

    Args:
        rows: captions, in the order of the decoder.
        expectation: the probability that a caption reads the expectation.
        device: of the captions.

    Attributes:
        drawn: whether each caption draws [R].
        log_probs: log-probability of the regions drawn at each step, T x [rows], 0 where the expectation was read.
        entropies: entropy of alpha at each step, summed over heads, T x [rows].
    """

    def __init__(self, rows: int, expectation: float, device: torch.device):
        self.drawn = torch.rand(rows, device=device) >= expectation
        self.log_probs: list[torch.Tensor] = []
        self.entropies: list[torch.Tensor] = []

    def __call__(self, alpha: torch.Tensor) -> torch.Tensor:
        """What weighs the regions, from alpha [R, N, P]."""
        rows, heads, _ = alpha.shape
        drawn = self.drawn[:rows]
        place = torch.multinomial(alpha.detach().float().flatten(0, 1), 1).view(rows, heads, 1)
        logs = alpha.float().clamp_min(torch.finfo(torch.float32).tiny).log()
        self.log_probs.append(logs.gather(-1, place).sum((1, 2)).masked_fill(~drawn, 0.0))
        self.entropies.append(-(alpha.float() * logs).sum((1, 2)))
        return torch.where(drawn.view(-1, 1, 1), torch.zeros_like(alpha).scatter(-1, place, 1), alpha)

    def cut(self, rows: list[int]) -> None:
        """Forget what lies beyond the first `rows` captions of each step."""
        for steps in (self.log_probs, self.entropies):
            steps[:] = [step[:n] for step, n in zip(steps, rows, strict=True)]


class MovingBaseline(nn.Module):
    """b <- 0.9 b + 0.1 reward; what a reward of hard attention is compared with. Saved with the weights."""

    def __init__(self):
        super().__init__()
        self.register_buffer("value", torch.zeros(()))

    @torch.no_grad()
    def update(self, reward: torch.Tensor) -> None:
        self.value.mul_(0.9).add_(0.1 * reward.to(self.value))
