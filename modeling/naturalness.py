"""What tells a sentence by a person from one by the decoder, learned from both.

A language model finds most probable what is least particular: chosen by its own likelihood, a story says that somebody
did not know what to do. A classifier that was shown sentences by people and by the decoder, both going on from the same
text about the same things, estimates log p_people(sentence) - log p_decoder(sentence), which is what the decoder still
has to learn (residual energy-based models, Deng et al., arXiv:2004.11714). This one is linear in the skip-thought
vector, which a candidate's other scores need anyway, so that it costs nothing to ask.

A safetensors file, by `python -m training.train_naturalness`: `weight` float32 [D], `bias` float32 [1], and in its
metadata the fingerprint of the encoder, to which it belongs as a style does, and what it was learned from.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .errors import ModelFolderError

NATURALNESS_FILE = "naturalness.safetensors"
_FORMAT = "pictale-naturalness"
_HOW_TO_MAKE = "train it with `python -m training.train_naturalness`"


@dataclass(frozen=True)
class Naturalness:
    """A direction in which people's sentences lie from the decoder's.

    Args:
        weight, bias: float32 [D] and a number.
        encoder: Fingerprint of the skip-thought encoder.
        source: What it was learned from, in words.
    """

    weight: np.ndarray
    bias: float
    encoder: str
    source: str = ""

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Log-odds that a person wrote the sentences of these vectors [N, D] -> [N]."""
        return vectors @ self.weight + self.bias

    def save(self, path: str | Path) -> None:
        """Write it as one safetensors file; an existing file is replaced only when the new one is whole."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"weight": np.ascontiguousarray(self.weight, np.float32), "bias": np.array([self.bias], np.float32)}
        temporary = path.with_name(path.name + ".writing")
        temporary.write_bytes(save(tensors, {"format": _FORMAT, "encoder": self.encoder, "source": self.source}))
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | Path) -> Naturalness:
        """Read a file that `save` wrote.

        Raises:
            ModelFolderError: missing, damaged, or something else.
        """
        try:
            with safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise ValueError("it is another kind of file")
                weight, bias = (file.get_tensor(name).astype(np.float32) for name in ("weight", "bias"))
                if weight.ndim != 1 or bias.shape != (1,) or not np.isfinite([*weight, *bias]).all():
                    raise ValueError("its numbers are none")
                return cls(weight, float(bias[0]), metadata["encoder"], metadata.get("source", ""))
        except FileNotFoundError:
            raise ModelFolderError(f"There is no file {path}: {_HOW_TO_MAKE}.") from None
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise ModelFolderError(f"{path} is damaged ({error}): {_HOW_TO_MAKE}, or download it again.") from None

    def check_encoder(self, fingerprint: str, size: int) -> None:
        """Raise ModelFolderError unless it was learned with the encoder of this fingerprint, of D = `size`."""
        if self.encoder != fingerprint or len(self.weight) != size:
            raise ModelFolderError(
                f"What is natural was learned with another encoder ({self.encoder}, not {fingerprint}): {_HOW_TO_MAKE} "
                "and this one, or remove the file."
            )
