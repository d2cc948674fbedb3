"""A short name for the weights of a model, by which what was made with them (styles, tables) knows them again.

It is made of the weights rounded to float16, as they are published. Weights rounded to bfloat16 have lost what it is
made of, so the config keeps it: `save_pretrained` writes it there, and it is believed where every weight is a bfloat16
number, which never happens by chance.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

BACKBONE = "encoder.backbone."  # what the names of its weights begin with in a captioner
NAMED = ("PictaleSkipThoughtsEncoder", "PictaleJointEmbedding")


def encoder_fingerprint(encoder: nn.Module) -> str:
    """Twelve hex digits that change with any weight beyond float16 precision, dtype and device aside.

    Args:
        encoder: a sentence encoder or joint embedding; its config has `hidden_size` and `vocab_size`.
    """
    weights = encoder.state_dict()
    kept = getattr(encoder.config, "fingerprint", None)
    if kept and _is_rounded(weights):
        return kept
    return _fingerprint(weights, [encoder.config.hidden_size, encoder.config.vocab_size])


def backbone_fingerprint(backbone: nn.Module, config: Any = None) -> str:
    """The same of an image backbone, BatchNorm statistics included, counters of batches not.

    Args:
        config: that of the captioner it is the eyes of, which keeps the fingerprint for weights in bfloat16.
    """
    weights = backbone.state_dict()
    kept = getattr(config, "backbone_fingerprint", None)
    return kept if kept and _is_rounded(weights) else _of_backbone(weights)


def kept_fingerprints(config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The fingerprints that a `config.json` keeps of the weights beside it, by key; none where nothing asks for it."""
    if any(name in NAMED for name in config.get("architectures") or ()):
        return {"fingerprint": _fingerprint(weights, [config["hidden_size"], config["vocab_size"]])}
    backbone = {name.removeprefix(BACKBONE): w for name, w in weights.items() if name.startswith(BACKBONE)}
    return {"backbone_fingerprint": _of_backbone(backbone)} if backbone else {}


def _is_rounded(weights: Mapping[str, torch.Tensor]) -> bool:
    floats = (tensor for tensor in weights.values() if tensor.is_floating_point())
    return all(torch.equal(tensor, tensor.bfloat16().to(tensor.dtype)) for tensor in floats)


def _of_backbone(weights: Mapping[str, torch.Tensor]) -> str:
    # what is too small for float16 becomes 0 or -0, and training a model around a frozen backbone may turn one into the
    # other: adding 0 makes them the same
    return _fingerprint({n: w.half() + 0.0 for n, w in weights.items() if w.is_floating_point()}, ["backbone"])


def _fingerprint(weights: Mapping[str, torch.Tensor], header: list[int | str]) -> str:
    digest = hashlib.sha256(json.dumps(header).encode())
    for name, tensor in sorted(weights.items()):
        values = tensor.detach().cpu().half().contiguous().numpy()
        digest.update(name.encode() + zlib.crc32(values.tobytes()).to_bytes(4, "big"))
    return digest.hexdigest()[:12]
