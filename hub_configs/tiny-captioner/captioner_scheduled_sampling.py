"""Scheduled sampling (Bengio et al., arXiv:1506.03099): while training, read one's own last word now and then.

At training step i each word after the first is the true one with probability eps_i, else drawn from the model's own
distribution at the step before, with no gradient through the draw:
    linear            eps_i = max(floor, 1 - i / k)
    exponential       eps_i = max(floor, exp(-i / k))
    inverse_sigmoid   eps_i = max(floor, k / (k + exp(i / k)))        half after about k ln k steps
The first is the paper's with slope 1 / k, the second its k^i with k = exp(-1 / k).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn


def truth_probability(schedule: str, step: int, k: float, floor: float) -> float:
    """eps_i, the probability that a word read is the true one."""
    if schedule == "linear":
        value = 1 - step / k
    elif schedule == "exponential":
        value = math.exp(-step / k)
    elif schedule == "inverse_sigmoid":
        value = k / (k + math.exp(min(step / k, 700.0)))  # the exponential of more is no float
    else:
        value = 1.0
    return max(floor, value)


class TrainingSteps(nn.Module):
    """Counts training passes (of a micro-batch, where gradients are accumulated). Saved with the weights."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def advance(self) -> int:
        """Passes before this one."""
        before = int(self.count)
        self.count += 1
        return before


class OwnWords:
    """Which rows read their own last word, and which word that is; draws from torch's generator.

    Args:
        probability: of an own word, 1 - eps.
        scores: scores [n, V] of the next word from what the vocabulary layer reads [n, W].
        embed: word vectors [n, E] of ids [n].
    """

    def __init__(
        self,
        probability: float,
        scores: Callable[[torch.Tensor], torch.Tensor],
        embed: Callable[[torch.Tensor], torch.Tensor],
    ):
        self.probability, self.scores, self.embed = probability, scores, embed

    def rows(self, count: int, device: torch.device) -> torch.Tensor:
        """Indices [n] of the rows, of `count`, that read their own word at the next step."""
        return (torch.rand(count, device=device) < self.probability).nonzero().squeeze(1)

    def draw(self, deep: torch.Tensor) -> torch.Tensor:
        """Word vectors [n, E] of words drawn from the distributions that `deep` [n, W] gives."""
        with torch.no_grad():
            ids = torch.multinomial(self.scores(deep).float().softmax(-1), 1).squeeze(1)  # [n]
        return self.embed(ids)
