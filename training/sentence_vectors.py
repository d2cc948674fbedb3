"""Vectors of all sentences of a corpus, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from modeling.fingerprints import encoder_fingerprint
from modeling.modeling_skip_thoughts import PictaleSkipThoughtsEncoder

from .loop import native_bf16


def sentence_vectors(
    encoder: PictaleSkipThoughtsEncoder,
    tokenizer: Any,
    sentences: list[str],
    cache_dir: str | None = None,
    chunk: int = 50000,
) -> np.ndarray:
    """Unit-length vectors of `sentences`, float16 [n, D], memory-mapped from `cache_dir` if one is given.

    The cache is keyed by the encoder's weights, its vocabulary expansion and the sentences; an unfinished one is
    computed again.
    """
    shape = (len(sentences), encoder.config.hidden_size)
    path = None
    if cache_dir:
        digest = hashlib.sha256(encoder_fingerprint(encoder).encode())
        if encoder.expansion is not None:
            digest.update(encoder.expansion.fingerprint.encode())
        for sentence in sentences:
            digest.update(sentence.encode())
            digest.update(b"\n")
        path = Path(cache_dir) / f"vectors-{digest.hexdigest()[:16]}.npy"
        if path.exists():
            return np.load(path, mmap_mode="r")
        path.parent.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder.to(device)
    vectors = np.empty(shape, dtype=np.float16)
    # they are kept as float16 anyway, so they are computed in bfloat16 where that is faster
    dtype = torch.bfloat16 if native_bf16() else None
    for start in tqdm(range(0, len(sentences), chunk), desc="sentence vectors", unit="chunk"):
        vectors[start : start + chunk] = encoder.encode(sentences[start : start + chunk], tokenizer, dtype=dtype)
    encoder.to("cpu")
    if path:
        temporary = path.with_suffix(".writing.npy")
        np.save(temporary, vectors)
        os.replace(temporary, path)
    return vectors
