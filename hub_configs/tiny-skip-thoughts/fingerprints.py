"""A short name for the weights of a model, by which what was made with them (styles, tables) knows them again."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping

import torch
from torch import nn


def encoder_fingerprint(encoder: nn.Module) -> str:
    """Twelve hex digits that change with any weight beyond float16 precision, dtype and device aside.

    Args:
        encoder: a sentence encoder or joint embedding; its config has `hidden_size` and `vocab_size`.
    """
    return _fingerprint(encoder.state_dict(), [encoder.config.hidden_size, encoder.config.vocab_size])


def backbone_fingerprint(backbone: nn.Module) -> str:
    """The same of an image backbone, BatchNorm statistics included, counters of batches not."""
    # what is too small for float16 becomes 0 or -0, and training a model around a frozen backbone may turn one into the
    # other: adding 0 makes them the same
    floats = {name: tensor.half() + 0.0 for name, tensor in backbone.state_dict().items() if tensor.is_floating_point()}
    return _fingerprint(floats, ["backbone"])


def _fingerprint(weights: Mapping[str, torch.Tensor], header: list[int | str]) -> str:
    digest = hashlib.sha256(json.dumps(header).encode())
    for name, tensor in sorted(weights.items()):
        values = tensor.detach().cpu().half().contiguous().numpy()
        digest.update(name.encode() + zlib.crc32(values.tobytes()).to_bytes(4, "big"))
    return digest.hexdigest()[:12]
