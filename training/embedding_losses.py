"""Losses of the joint embedding, over all photographs and sentences of a batch, of all processes.

With s the cosine of a photograph and a sentence, r a sentence, i its photograph, and sentences of one photograph never
each other's negatives:

    sum       sum_r' [m - s(i, r) + s(i, r')]+  +  sum_i' [m - s(i, r) + s(i', r)]+        Kiros et al., arXiv:1411.2539
    hardest   max_r' [...]+  +  max_i' [...]+                                           Faghri et al., arXiv:1707.05612
    infonce   1/2 (-log softmax over {r} and all r' of s(i, .)/t  - log softmax over all photographs of s(., r)/t)
                                                             van den Oord et al., arXiv:1807.03748, t learned as in CLIP
each the mean over sentences r.

Shapes: B photographs, R sentences, D common width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.nn.functional import all_gather
from torch.nn.functional import cross_entropy

from modeling.errors import RecipeError

KINDS = ("sum", "hardest", "infonce")
LARGEST_SCALE = 100.0


@dataclass
class EmbeddingLossOptions:
    """The `loss` section of a recipe.

    Args:
        kind: one of `KINDS`.
        margin: m of the hinges.
        temperature: t of "infonce" at the start; it is learned, down to 0.01.
        sentence_weight: weight of the same loss between two sentences of one photograph, where `data.sentences` names
            captions without photographs; they teach the sentence side words that the photographs lack. 0: those data
            sets only add to the vocabulary.
    """

    kind: str = "infonce"
    margin: float = 0.2
    temperature: float = 0.07
    sentence_weight: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise RecipeError(f"loss.kind is {', '.join(KINDS)}, not '{self.kind}'.")
        if self.margin < 0 or self.sentence_weight < 0:
            raise RecipeError("loss.margin and loss.sentence_weight must be 0 or more.")
        if self.temperature < 1 / LARGEST_SCALE:
            raise RecipeError(f"loss.temperature must be at least {1 / LARGEST_SCALE}, not {self.temperature}.")


class EmbeddingLoss(nn.Module):
    """The loss of a batch of vectors; holds the temperature, if there is one."""

    def __init__(self, options: EmbeddingLossOptions) -> None:
        super().__init__()
        self.kind, self.margin = options.kind, options.margin
        if self.kind == "infonce":
            self.log_scale = nn.Parameter(torch.tensor(math.log(1 / options.temperature)))

    @property
    def scale(self) -> torch.Tensor:
        """1 / t"""
        return self.log_scale.exp().clamp(max=LARGEST_SCALE)

    def forward(self, images: torch.Tensor, texts: torch.Tensor, owner: torch.LongTensor) -> torch.Tensor:
        """Loss of photographs [B, D] and sentences [R, D]; `owner` [R] is the photograph of each sentence.

        With several processes every one of them computes the loss of all their rows, so that the mean of their
        gradients is the gradient of one process with the whole batch.
        """
        images, texts, owner = gather_pairs(images, texts, owner)
        scores = images.float() @ texts.float().t()  # [B, R]
        own = owner.unsqueeze(0) == torch.arange(len(images), device=owner.device).unsqueeze(1)  # [B, R]
        right = scores[owner, torch.arange(len(owner), device=owner.device)]  # [R], s(i, r)
        if self.kind == "infonce":
            return infonce(scores * self.scale, right * self.scale, owner, own)
        return hinges(scores, right, owner, own, self.margin, hardest=self.kind == "hardest")


def hinges(
    scores: torch.Tensor, right: torch.Tensor, owner: torch.LongTensor, own: torch.Tensor, margin: float, hardest: bool
) -> torch.Tensor:
    """ "sum" or "hardest" of scores [B, R]; right [R], owner [R], own [B, R] as in `EmbeddingLoss.forward`."""
    other_texts = (margin - right.unsqueeze(1) + scores[owner]).clamp_min(0).masked_fill(own[owner], 0)  # [R, R]
    other_images = (margin - right.unsqueeze(1) + scores.t()).clamp_min(0).masked_fill(own.t(), 0)  # [R, B]
    if hardest:
        return (other_texts.amax(1) + other_images.amax(1)).mean()
    return (other_texts.sum(1) + other_images.sum(1)).mean()


def infonce(logits: torch.Tensor, right: torch.Tensor, owner: torch.LongTensor, own: torch.Tensor) -> torch.Tensor:
    """ "infonce" of scaled scores [B, R]; the others as in `EmbeddingLoss.forward`."""
    others = logits.masked_fill(own, float("-inf")).logsumexp(1)  # [B], over sentences of other photographs
    to_text = (torch.logaddexp(right, others[owner]) - right).mean()
    to_image = cross_entropy(logits.t(), owner)
    return (to_text + to_image) / 2


def gather_pairs(
    images: torch.Tensor, texts: torch.Tensor, owner: torch.LongTensor
) -> tuple[torch.Tensor, torch.Tensor, torch.LongTensor]:
    """The rows of all processes, in the order of the processes, with gradients; what is given where there is one."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return images, texts, owner
    if torch.distributed.get_world_size() == 1:
        return images, texts, owner
    all_images, counts = _gather_rows(images)
    all_texts, _ = _gather_rows(texts)
    starts = torch.tensor([0, *counts[:-1]], device=owner.device).cumsum(0)
    all_owners, _ = _gather_rows(owner + starts[torch.distributed.get_rank()])
    return all_images, all_texts, all_owners


def _gather_rows(rows: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """Rows [n, ...] of all processes, which may have different n, and each one's n."""
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(counts, count)
    lengths = [int(n) for n in counts]
    padded = torch.cat([rows, rows.new_zeros(max(lengths) - len(rows), *rows.shape[1:])])
    if rows.is_floating_point():
        parts = all_gather(padded.contiguous())
    else:
        parts = [torch.empty_like(padded) for _ in lengths]
        torch.distributed.all_gather(parts, padded.contiguous())
    return torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)]), lengths
