"""Sentence vectors as a step of a scikit-learn pipeline. scikit-learn is not needed to import or to use this file.

Why this and not a sentence-transformers module: those wrap a tokenizer and a transformer in that package's own folder
layout, and what people do with them here is classification and clustering with scikit-learn. Libraries that want "a
model with `encode(list[str])`" take the encoder itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel

from .auto_classes import register_auto_classes
from .errors import ModelFolderError, TextError
from .model_folder import load_component, looks_like_hub_id


def load_sentence_encoder(model: str | Path, device: str | None = None) -> Any:
    """An encoder by folder or Hub id, ready to use.

    Args:
        device: Where it computes; None: a GPU if there is one.

    Raises:
        ModelFolderError: there is none, it is damaged, or the model encodes no sentences.
    """
    # what is not a folder may be a Hub id, whose files only transformers can look for
    is_hub = not Path(model).is_dir() and looks_like_hub_id(str(model))
    place = str(model) if is_hub else Path(model)
    register_auto_classes()
    encoder = load_component(AutoModel.from_pretrained, place, "sentence encoder", weights=not is_hub)
    if not hasattr(encoder, "encode"):
        raise ModelFolderError(f"{model} holds a {type(encoder).__name__}, which encodes no sentences.")
    return encoder.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


class SentenceVectorizer:
    """Turns texts into thought vectors; nothing is learned from them.

    Example:
        >>> from sklearn.linear_model import LogisticRegression
        >>> from sklearn.pipeline import make_pipeline
        >>> pipeline = make_pipeline(SentenceVectorizer("hub_configs/skip-thoughts-books"), LogisticRegression())
        >>> pipeline.fit(["What a day!", "I want my money back."], [1, 0]).predict(["A lovely morning."])

    Args:
        model: Folder or Hub id of an encoder, or an encoder. By name it is loaded at first use, once per object, and
            is not part of a pickle.
        normalize: Vectors of length 1.
        device: Where it computes; None: a GPU if there is one.
        progress: Show a bar.
    """

    def __init__(
        self,
        model: str | Path | Any = "hub_configs/skip-thoughts-books",
        normalize: bool = True,
        device: str | None = None,
        progress: bool = False,
    ) -> None:
        self.model = model
        self.normalize = normalize
        self.device = device
        self.progress = progress

    @property
    def encoder(self) -> Any:
        """The encoder, loaded if need be.

        Raises:
            ModelFolderError: there is none, or it is damaged.
        """
        if not isinstance(self.model, (str, Path)):
            return self.model
        key = (str(self.model), self.device)
        if getattr(self, "_loaded", (None, None))[0] != key:
            self._loaded = (key, load_sentence_encoder(self.model, self.device))
        return self._loaded[1]

    def fit(self, X: Iterable[str], y: Any = None) -> SentenceVectorizer:  # noqa: N803  (scikit-learn's name)
        """Loads the encoder, and checks that X holds texts."""
        self._texts(X)
        self.n_features_out_ = self.encoder.config.hidden_size
        return self

    def transform(self, X: Iterable[str]) -> np.ndarray:  # noqa: N803
        """Texts, one each for n samples -> float32 [n, D].

        Raises:
            TextError: X is one text, or holds something else than texts.
        """
        return self.encoder.encode(self._texts(X), normalize=self.normalize, progress=self.progress)

    def fit_transform(self, X: Iterable[str], y: Any = None) -> np.ndarray:  # noqa: N803
        X = self._texts(X)  # noqa: N806  (an iterator is read once)
        return self.fit(X).transform(X)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """`thought0` ... [D]."""
        return np.array([f"thought{i}" for i in range(self.encoder.config.hidden_size)], dtype=object)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("model", "normalize", "device", "progress")}

    def set_params(self, **params: Any) -> SentenceVectorizer:
        unknown = sorted(set(params) - set(self.get_params()))
        if unknown:
            raise ValueError(
                f"SentenceVectorizer has no parameter '{unknown[0]}'; it has {', '.join(self.get_params())}."
            )
        for name, value in params.items():
            setattr(self, name, value)
        return self

    @staticmethod
    def _texts(X: Iterable[str]) -> list[str]:  # noqa: N803
        texts = [] if isinstance(X, (str, bytes)) else list(X)
        if isinstance(X, (str, bytes)) or not all(isinstance(text, str) for text in texts):
            raise TextError("SentenceVectorizer takes a list, array or column of texts, one for each sample.")
        return [str(text) for text in texts]  # numpy's own strings too

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_loaded"}

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn 1.6 and newer asks; only it calls this."""
        from importlib import import_module

        utils = import_module("sklearn.utils")
        return utils.Tags(
            estimator_type=None,
            target_tags=utils.TargetTags(required=False),
            transformer_tags=utils.TransformerTags(),
            input_tags=utils.InputTags(one_d_array=True, two_d_array=False, string=True),
            requires_fit=False,
        )

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return (
            f"SentenceVectorizer(model={self.model!r})"
            if isinstance(self.model, (str, Path))
            else object.__repr__(self)
        )
