"""A short name for the weights of a model, by which what was made with them (styles, tables) knows them again."""

from __future__ import annotations

import hashlib
import json
import zlib

from torch import nn


def encoder_fingerprint(encoder: nn.Module) -> str:
    """Twelve hex digits that change with any weight beyond float16 precision, dtype and device aside.

    Args:
        encoder: a sentence encoder; its config has `hidden_size` and `vocab_size`.
    """
    digest = hashlib.sha256(json.dumps([encoder.config.hidden_size, encoder.config.vocab_size]).encode())
    for name, parameter in sorted(encoder.state_dict().items()):
        values = parameter.detach().cpu().half().contiguous().numpy()
        digest.update(name.encode() + zlib.crc32(values.tobytes()).to_bytes(4, "big"))
    return digest.hexdigest()[:12]
