"""Drawing words with a generator of one's own.

`GenerationMixin.generate` draws from torch's global random state. For a page that tells stories to several visitors at
once, a seed must mean the same story whatever else is drawn; so words are drawn here, from a `torch.Generator` of each
request, among the `top_k` most probable words; everything else is as in `generate`.

Shapes: N rows, T ids, V vocabulary, K words considered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SamplingOptions:
    """How words are drawn.

    Args:
        temperature: Divides the log-probabilities; towards 0 the most probable word is always taken.
        top_k: Words considered at each step.
        top_p: Of these, the fewest whose probabilities reach this share (Holtzman et al., arXiv:1904.09751).
        min_p: Of these, those at least so probable in proportion to the most probable one (arXiv:2407.01082); 0: all.
        presence_penalty: Taken from a word's log-probability for each time it stands in the text already.
        no_repeat_ngram_size: No sequence of so many words is written twice; 0 allows it.
        min_new_tokens, max_new_tokens: Length, the end counted.
    """

    temperature: float = 0.8
    top_k: int = 128
    top_p: float = 0.92
    min_p: float = 0.0
    presence_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    min_new_tokens: int = 0
    max_new_tokens: int = 70


def draw(log_probs: torch.Tensor, generator: torch.Generator, options: SamplingOptions) -> torch.Tensor:
    """One word for each row of log-probabilities [N, V] -> ids [N]."""
    probabilities, ids = considered(log_probs, options)
    return ids.gather(1, probabilities.multinomial(1, generator=generator)).squeeze(1)


def considered(log_probs: torch.Tensor, options: SamplingOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """The words that are drawn from: weights [N, K], falling, 0 for the unlikely, and ids [N, K]."""
    values, ids = log_probs.topk(min(options.top_k, log_probs.size(-1)))  # [N, K], falling
    probabilities = (values / options.temperature).softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # mass of the more probable words
    unlikely = (before >= options.top_p) | (probabilities < options.min_p * probabilities[:, :1])
    return probabilities.masked_fill(unlikely, 0.0), ids  # the first always stays


def bar_repeats(log_probs: torch.Tensor, sequences: torch.Tensor, size: int) -> None:
    """Set to -inf, in place, each word that would complete an n-gram of `size` already in its row."""
    if size < 1 or sequences.size(1) < size:
        return
    for row, ids in enumerate(sequences.tolist()):
        last = ids[len(ids) - size + 1 :]
        for start in range(len(ids) - size + 1):
            if ids[start : start + size - 1] == last:
                log_probs[row, ids[start + size - 1]] = -torch.inf


def runs_of(ids: Sequence[int], size: int) -> dict[tuple[int, ...], list[int]]:
    """The sequences of `size` ids in a text: what follows each sequence of `size - 1`; none for size 0."""
    runs: dict[tuple[int, ...], list[int]] = {}
    for end in range(size - 1, len(ids)) if size > 0 else ():
        runs.setdefault(tuple(ids[end - size + 1 : end]), []).append(ids[end])
    return runs
