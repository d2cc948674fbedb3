"""A short name for the weights of a model, by which what was made with them (styles, tables) knows them again."""

from __future__ import annotations

import hashlib
import json
import zlib

from torch import nn


def encoder_fingerprint(encoder: nn.Module) -> str:
    """Twelve hex digits that change with any weight beyond float16 precision, dtype and device aside.

    Args:
        encoder: a sentence encoder or joint embedding; its config has `hidden_size` and `vocab_size`.
    """
    return _fingerprint(encoder, [encoder.config.hidden_size, encoder.config.vocab_size])


def backbone_fingerprint(backbone: nn.Module) -> str:
    """The same of an image backbone, BatchNorm statistics included, counters of batches not."""
    return _fingerprint(backbone, ["backbone"], floats_only=True)


def _fingerprint(module: nn.Module, header: list[int | str], floats_only: bool = False) -> str:
    digest = hashlib.sha256(json.dumps(header).encode())
    for name, tensor in sorted(module.state_dict().items()):
        if tensor.is_floating_point() or not floats_only:
            values = tensor.detach().cpu().half().contiguous().numpy()
            digest.update(name.encode() + zlib.crc32(values.tobytes()).to_bytes(4, "big"))
    return digest.hexdigest()[:12]
