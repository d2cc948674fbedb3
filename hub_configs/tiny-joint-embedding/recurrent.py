"""Initialisation shared by the recurrent models."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def initialize_recurrent(module: nn.RNNBase | nn.RNNCellBase, forget_bias: float = 1.0) -> None:
    """Orthogonal recurrent matrices per gate, Xavier input matrices, zero biases (skip-thoughts, `utils.ortho_weight`).

    Args:
        module: GRU or LSTM, whole or cell.
        forget_bias: Added to an LSTM's forget gate, so that it remembers at the start.
    """
    for name, parameter in module.named_parameters():
        if "weight_hh" in name:
            for gate in parameter.split(parameter.size(1), 0):
                nn.init.orthogonal_(gate)
        elif "weight_ih" in name:
            for gate in parameter.split(module.hidden_size, 0):
                nn.init.xavier_uniform_(gate)
        else:
            nn.init.zeros_(parameter)
            if "bias_ih" in name and isinstance(module, (nn.LSTM, nn.LSTMCell)):
                parameter[module.hidden_size : 2 * module.hidden_size] = forget_bias
