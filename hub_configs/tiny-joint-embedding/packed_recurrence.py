"""Last states of a GRU over sentences of different lengths, without any work on padding.

Sentences stand from the longest to the shortest, so that at step t those that still go on are the first k rows: the
idea of `torch.nn.utils.rnn.pack_padded_sequence`, which is what a GPU is given. A processor is faster with the loop
below, because the words' half of the gates is computed once for each distinct word of the batch, of which there are
far fewer than words.

    r, z = sigmoid(W_rz x + U_rz h);   n = tanh(W_n x + r * (U_n h));   h' = (1 - z) n + z h       (as torch.nn.GRU)

Shapes: B sentences, T tokens of the longest, U distinct words, E word width, D state width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence


def token_batches(lengths: np.ndarray, batch_tokens: int, batch_size: int) -> Iterator[np.ndarray]:
    """Rows of all sentences from the longest to the shortest, at most `batch_size` sentences and about `batch_tokens`
    tokens a batch; a sentence longer than that is a batch of its own.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        count = max(1, min(batch_size, batch_tokens // max(int(lengths[order[start]]), 1)))
        yield order[start : start + count]
        start += count


def with_dtype(gru: nn.GRU, dtype: torch.dtype) -> nn.GRU:
    """`gru` itself, or a copy of it in `dtype`."""
    return gru if gru.weight_hh_l0.dtype == dtype else copy.deepcopy(gru).to(dtype)


def last_states(gru: nn.GRU, words: torch.Tensor, index: torch.Tensor, lengths: np.ndarray) -> torch.Tensor:
    """The state after each sentence's last word.

    Args:
        gru: One layer, one direction, in the dtype and on the device of `words`.
        words: [U, E], vectors of the distinct words.
        index: [B, T], which of `words` stands where; what comes after a sentence's end is not read.
        lengths: int [B], descending, at least 1.

    Returns:
        [B, D], from a zero state.
    """
    if words.device.type != "cpu":
        return gru(pack_padded_sequence(words[index], torch.from_numpy(lengths), batch_first=True))[1][0]
    size = gru.hidden_size
    inputs = torch.addmm(gru.bias_ih_l0, words, gru.weight_ih_l0.t())  # [U, 3D]
    recurrent = gru.weight_hh_l0.t()  # [D, 3D]
    state = words.new_zeros(len(index), size)
    going_on = np.searchsorted(-lengths, -np.arange(1, index.size(1) + 1), side="right")  # rows with a t-th word
    for t, k in enumerate(going_on.tolist()):
        before = state[:k]
        x = inputs[index[:k, t]]  # [k, 3D]
        h = torch.addmm(gru.bias_hh_l0, before, recurrent) if t else gru.bias_hh_l0.expand(k, -1)  # [k, 3D]
        r, z = x[:, : 2 * size].add_(h[:, : 2 * size]).sigmoid_().chunk(2, 1)
        n = torch.addcmul(x[:, 2 * size :], r, h[:, 2 * size :]).tanh_()
        state[:k] = n.lerp_(before, z)
    return state
