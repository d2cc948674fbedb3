"""The skip-thought encoder of 2015 with its own weights and its table of a million words.

Kiros et al., arXiv:1506.06726; github.com/ryankiros/skip-thoughts, `skipthoughts.py`. Its cell,

    r, u = sigmoid(x W + b + h U);   n = tanh(x Wx + bx + r * (h Ux));   h' = u h + (1 - u) n

is `torch.nn.GRU` without a hidden bias. A thought of combine-skip is [uni ; forward ; backward], the uni part and the
bi part of length 1 each. Sentences are split and cut into Penn Treebank words, case kept; a word the table lacks is
UNK; no end mark is read unless `use_eos` asks for it (advisable where sentences have no final period).

The tables are memory-mapped: of 930,913 words only those that are read come into memory.

Shapes: B sentences, T words, U distinct words, E word width, D thought width, n words of the table.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.utils import cached_file

from .configuration_originals import PictaleOriginalSkipThoughtsConfig
from .errors import ModelFolderError, TextError
from .modeling_skip_thoughts import PictaleSkipThoughtsEncoder, SkipThoughtsOutput
from .neighbours import Neighbour, nearest_rows, row_blocks
from .packed_recurrence import last_states, token_batches
from .recurrent import initialize_recurrent
from .text import split_sentences
from .tokenization import saved_tokenizer
from .treebank import treebank_words

EOS_WORD, UNKNOWN_WORD = "<eos>", "UNK"
TABLES = {"uni": "uni_table.npy", "bi": "bi_table.npy"}


def original_words(text: str) -> list[str]:
    """Words of a text of one or more sentences, as the original reads it."""
    return [word for sentence in split_sentences(text) for word in treebank_words(sentence)]


class PictaleOriginalSkipThoughtsEncoder(PreTrainedModel):
    """Uni-skip, bi-skip or combine-skip.

    Example:
        >>> encoder = PictaleOriginalSkipThoughtsEncoder.from_pretrained("converted/combine-skip")
        >>> encoder.encode(["A dog runs on the beach.", "Two children play."]).shape
        (2, 4800)
    """

    config_class = PictaleOriginalSkipThoughtsConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"

    def __init__(self, config: PictaleOriginalSkipThoughtsConfig) -> None:
        super().__init__(config)
        if config.uni_hidden_size:
            self.uni = nn.GRU(config.uni_embedding_size, config.uni_hidden_size)
        if config.bi_hidden_size:
            self.bi = nn.GRU(config.bi_embedding_size, config.bi_hidden_size)
            self.bi_reverse = nn.GRU(config.bi_embedding_size, config.bi_hidden_size)
        self._tokenizer: Any = None
        self._tables: dict[str, np.ndarray] = {}
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.GRU):
            initialize_recurrent(module)

    @property
    def parts(self) -> list[str]:
        """`uni`, `bi`, in the order of the thought."""
        return [part for part in TABLES if hasattr(self, part)]

    @property
    def tokenizer(self) -> Any:
        """Ids of words that `original_words` made, joined by spaces; loaded at first use."""
        if self._tokenizer is None:
            self._tokenizer = saved_tokenizer(self.config)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def table(self, part: str) -> np.ndarray:
        """Word vectors [n, E] of `uni` or `bi`, memory-mapped from the model's folder.

        Raises:
            ModelFolderError: the table is not there or damaged.
        """
        if part not in self._tables:
            name, place = TABLES[part], self.config.name_or_path
            try:
                table = np.load(cached_file(place, name), mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                reason = (str(error).strip().splitlines() or [""])[0]
                raise ModelFolderError(
                    f"The word table {name} of '{place}' cannot be read ({reason[:200]}): convert the model again."
                ) from None
            if table.shape != (self.config.vocab_size, getattr(self.config, f"{part}_embedding_size")):
                raise ModelFolderError(
                    f"The word table {name} of '{place}' has the shape {table.shape}, which is another model's."
                )
            self._tables[part] = table
        return self._tables[part]

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """As every model, and the word tables with it (but not onto themselves)."""
        tables = {part: self.table(part) for part in self.parts}
        self.config.fingerprint = self.fingerprint()
        super().save_pretrained(save_directory, **kwargs)
        for part, table in tables.items():
            source, target = Path(table.filename), Path(save_directory) / TABLES[part]
            if not (target.exists() and target.samefile(source)):
                shutil.copyfile(source, target)

    # -- thoughts ----------------------------------------------------------------------------------------------------
    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> SkipThoughtsOutput:
        """Encode sentences given as rows of the table.

        Args:
            input_ids: [B, T], padded on the right.
            attention_mask: [B, T], 1 on words; None: all count.

        Returns:
            `thought` [B, D], not normalised.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        lengths = mask.sum(1).clamp_min(1).cpu().numpy()  # [B]
        order = np.argsort(-lengths, kind="stable")
        ids = input_ids.cpu().numpy()
        thoughts = self._thoughts(ids[order, : lengths.max()], lengths[order])
        return SkipThoughtsOutput(thought=thoughts[torch.from_numpy(np.argsort(order)).to(thoughts.device)])

    def _thoughts(self, ids: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
        """ids [B, T] of sentences from the longest to the shortest (what comes after the end is not read) -> [B, D]."""
        steps = np.arange(ids.shape[1])
        ids = np.take_along_axis(ids, np.minimum(steps, lengths[:, None] - 1), 1)
        words, index = np.unique(ids, return_inverse=True)  # [U], [B, T]
        turned = np.take_along_axis(index, np.maximum(lengths[:, None] - 1 - steps, 0), 1)
        thoughts = []
        for part in self.parts:
            vectors = torch.from_numpy(np.asarray(self.table(part)[words], dtype=np.float32))  # [U, E]
            vectors = vectors.to(self.device, self.dtype)
            for name, order in (("uni", index),) if part == "uni" else (("bi", index), ("bi_reverse", turned)):
                gru, order = getattr(self, name), torch.from_numpy(order).to(self.device)
                thoughts.append(last_states(gru, vectors, order, lengths))
        return torch.cat(thoughts, -1)

    @torch.no_grad()
    def encode(
        self,
        sentences: Sequence[str],
        tokenizer: Any = None,
        batch_size: int = 2048,
        normalize: bool = True,
        *,
        use_eos: bool = False,
        batch_tokens: int = 16384,
        progress: bool = False,
    ) -> np.ndarray:
        """Vectors of sentences, in the caller's order.

        Args:
            sentences: Texts; one without a word is read as its end mark alone.
            tokenizer: The model's tokenizer; None loads it from the folder the model came from.
            batch_size, batch_tokens: At most so many sentences and words a step; neither changes a vector.
            normalize: The uni and the bi part of each vector get length 1 (`use_norm` of the original).
            use_eos: Read `<eos>` after the last word; for sentences without a final period.
            progress: Show a bar.

        Returns:
            float32 array [len(sentences), D].
        """
        if isinstance(sentences, str):
            raise TypeError("encode takes a list of sentences; put the one sentence in a list.")
        vectors = np.zeros((len(sentences), self.config.hidden_size), dtype=np.float32)
        if not len(sentences):
            return vectors
        rows = self._rows(sentences, tokenizer or self.tokenizer, use_eos)
        lengths = np.array([len(row) for row in rows])
        with tqdm(total=len(sentences), unit="sentence", disable=not progress) as bar:
            for batch in token_batches(lengths, batch_tokens, batch_size):
                ids = np.zeros((len(batch), lengths[batch[0]]), dtype=np.int64)
                for i, row in enumerate(batch):
                    ids[i, : lengths[row]] = rows[row]
                thoughts = self._thoughts(ids, lengths[batch]).float()  # [b, D]
                if normalize:
                    widths = [self.config.uni_hidden_size, 2 * self.config.bi_hidden_size]
                    thoughts = torch.cat([nn.functional.normalize(t, dim=-1) for t in thoughts.split(widths, -1)], -1)
                vectors[batch] = thoughts.cpu().numpy()
                bar.update(len(batch))
        return vectors

    def _rows(self, sentences: Sequence[str], tokenizer: Any, use_eos: bool) -> list[list[int]]:
        """Rows of the table for each sentence."""
        end = tokenizer.convert_tokens_to_ids(EOS_WORD)
        texts = [" ".join(original_words(sentence)) for sentence in sentences]
        rows = [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch_fast(texts)]
        return [[*ids, end] if use_eos or not ids else ids for ids in rows]

    def mean_word_vectors(self, sentences: Sequence[str]) -> np.ndarray:
        """Mean of the table's vectors of each sentence's words, uni and bi side by side, float32 [B, E]."""
        means = []
        for ids in self._rows(sentences, self.tokenizer, use_eos=False):
            parts = [np.asarray(self.table(part)[ids], dtype=np.float32).mean(0) for part in self.parts]
            means.append(np.concatenate(parts))
        return np.stack(means)

    # the same as of this project's own encoder
    fingerprint = PictaleSkipThoughtsEncoder.fingerprint
    nearest = PictaleSkipThoughtsEncoder.nearest  # sentences; `nn` of the original

    def nearest_words(self, words: Sequence[str], k: int = 10) -> list[list[Neighbour]]:
        """The table's words nearest to each given word, none of them its own neighbour (`nn_words` of the original).

        Raises:
            TextError: a word that the table lacks, or k below 1.
        """
        if k < 1:
            raise TextError(f"k is the number of neighbours, 1 or more, not {k}.")
        ids, unknown = self.tokenizer.convert_tokens_to_ids(list(words)), self.tokenizer.unk_token_id
        for word, row in zip(words, ids, strict=True):
            if row == unknown and word != UNKNOWN_WORD:
                raise TextError(f"The table has no word '{word[:60]}': try another spelling or case.")
        table = self.table(self.parts[0])
        found = zip(ids, *nearest_rows(table[ids], row_blocks(table), k + 1), strict=True)
        names = self.tokenizer.convert_ids_to_tokens
        return [
            [Neighbour(names(int(i)), float(c), int(i)) for i, c in zip(rows, cosines, strict=True) if i != own][:k]
            for own, rows, cosines in found
        ]


PictaleOriginalSkipThoughtsEncoder.register_for_auto_class("AutoModel")
