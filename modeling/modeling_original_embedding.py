"""The joint embedding of photographs and sentences of 2014/2015 with its own weights.

Kiros et al., arXiv:1411.2539; github.com/ryankiros/visual-semantic-embedding, used by neural-storyteller:

    photograph: v = l2(l2(fc7) W + b), fc7 the 4096 activations of VGG-19;   sentence: s = l2(last state of a GRU)

or l2 of the sum of word vectors (`bow`). The end mark is always read. The score of a pair is v . s.

Shapes: n photographs or sentences, F feature width, D common width, E word width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from .configuration_originals import PictaleOriginalEmbeddingConfig
from .errors import ImageError
from .neighbours import Neighbour, nearest_rows
from .packed_recurrence import last_states, token_batches
from .recurrent import initialize_recurrent
from .tokenization import saved_tokenizer
from .treebank import treebank_words

END = 0


class PictaleOriginalJointEmbedding(PreTrainedModel):
    """Vectors of photographs and sentences that can be compared.

    Example:
        >>> embedding = PictaleOriginalJointEmbedding.from_pretrained("converted/coco-embedding")
        >>> embedding.nearest(features, ["a dog runs", "a man on a horse"], k=1)
    """

    config_class = PictaleOriginalEmbeddingConfig
    base_model_prefix = "embedding"
    main_input_name = "features"

    def __init__(self, config: PictaleOriginalEmbeddingConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.embedding_size)
        if config.sentence_encoder == "gru":
            self.gru = nn.GRU(config.embedding_size, config.hidden_size)
        self.image = nn.Linear(config.image_size, config.hidden_size)
        self._tokenizer: Any = None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.GRU):
            initialize_recurrent(module)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.uniform_(module.weight, -0.1, 0.1)

    @property
    def tokenizer(self) -> Any:
        """The vocabulary saved beside the weights, loaded at first use."""
        if self._tokenizer is None:
            self._tokenizer = saved_tokenizer(self.config)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def forward(self, features: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Image features [n, F] of length 1 -> vectors [n, D] of length 1."""
        return nn.functional.normalize(self.image(features), dim=-1)

    @torch.no_grad()
    def embed_images(self, features: np.ndarray) -> np.ndarray:
        """fc7 features [n, F] as the network gives them -> float32 [n, D], length 1.

        Raises:
            ImageError: the features have another width.
        """
        features = torch.from_numpy(np.asarray(features, dtype=np.float32))
        if features.ndim != 2 or features.size(1) != self.config.image_size:
            raise ImageError(
                f"This embedding takes image features of {self.config.image_size} numbers, a row for each photograph, "
                f"not an array of the shape {tuple(features.shape)}."
            )
        features = nn.functional.normalize(features, dim=-1).to(self.device, self.dtype)
        return self(features).float().cpu().numpy()

    @torch.no_grad()
    def embed_sentences(self, sentences: Sequence[str], batch_tokens: int = 16384) -> np.ndarray:
        """Sentences -> float32 [n, D], length 1. Case counts: the released model knows lower-case captions."""
        if isinstance(sentences, str):
            raise TypeError("embed_sentences takes a list of sentences; put the one sentence in a list.")
        texts = [" ".join(treebank_words(sentence)) for sentence in sentences]
        rows = [[*e.ids, END] for e in self.tokenizer.backend_tokenizer.encode_batch_fast(texts)]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        vectors = np.zeros((len(rows), self.config.hidden_size), dtype=np.float32)
        for batch in token_batches(lengths, batch_tokens, len(rows)):
            ids = np.zeros((len(batch), lengths[batch[0]]), dtype=np.int64)  # [b, T]
            for i, row in enumerate(batch):
                ids[i, : lengths[row]] = rows[row]
            vectors[batch] = nn.functional.normalize(self._sentences(ids, lengths[batch]), dim=-1).float().cpu().numpy()
        return vectors

    def _sentences(self, ids: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
        """ids [b, T] from the longest to the shortest -> [b, D], not normalised."""
        if self.config.sentence_encoder == "gru":
            words, index = np.unique(ids, return_inverse=True)
            table = self.words(torch.from_numpy(words).to(self.device))  # [U, E]
            return last_states(self.gru, table, torch.from_numpy(index).to(self.device), lengths)
        mask = torch.from_numpy(np.arange(ids.shape[1]) < lengths[:, None]).to(self.device)
        return (self.words(torch.from_numpy(ids).to(self.device)) * mask.unsqueeze(-1)).sum(1)

    def nearest(
        self, features: np.ndarray, sentences: Sequence[str], k: int = 100, vectors: np.ndarray | None = None
    ) -> list[list[Neighbour]]:
        """The k sentences nearest to each photograph, best first; `vectors` [n, D] if they are embedded already."""
        vectors = self.embed_sentences(sentences) if vectors is None else vectors
        rows, cosines = nearest_rows(self.embed_images(features), [vectors], k)
        return [
            [Neighbour(sentences[i], float(c), int(i)) for i, c in zip(*found, strict=True)]
            for found in zip(rows, cosines, strict=True)
        ]


PictaleOriginalJointEmbedding.register_for_auto_class("AutoModel")
