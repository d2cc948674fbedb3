"""From texts to vectors: what a skip-thought encoder does beside its network.

`SentenceEncoderMixin` expects of the class it is mixed into: `config` (vocab_size, hidden_size, max_tokens, the ids of
the special tokens), `words` (`AdaptiveVocabulary`), `directions()` and `fingerprint()`.

Shapes: b sentences of a batch, T tokens of the longest, U distinct words, E word width, D thought width.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers.utils import cached_file

from .errors import ModelFolderError, TextError
from .neighbours import Neighbour, nearest_rows, row_blocks
from .packed_recurrence import last_states, token_batches, with_dtype
from .tokenization import folds_case, saved_tokenizer
from .vocabulary_expansion import TABLE_FILE, WORDS_FILE, VocabularyExpansion
from .words import split_words


class SentenceEncoderMixin:
    """`encode`, nearest sentences and words, the tokenizer and the vocabulary expansion of an encoder."""

    _tokenizer: Any = None
    _expansion: VocabularyExpansion | None = None

    @torch.no_grad()
    def encode(
        self,
        sentences: Sequence[str],
        tokenizer: Any = None,
        batch_size: int = 2048,
        normalize: bool = True,
        *,
        batch_tokens: int = 16384,
        dtype: torch.dtype | None = None,
        progress: bool = False,
    ) -> np.ndarray:
        """Vectors of sentences, in the caller's order, computed on the model's device without dropout.

        Args:
            sentences: Texts; an empty one is encoded as `<s> </s>`, one over `max_tokens` tokens is cut.
            tokenizer: The model's tokenizer; None loads it from the folder the model came from.
            batch_size, batch_tokens: At most so many sentences and tokens a step; sentences are sorted by length, and
                nothing is computed on padding (`packed_recurrence`). Neither changes a vector.
            normalize: Scale each vector to length 1, as the original storyteller did.
            dtype: What is computed in: `torch.bfloat16` (cosine to the float32 vector above 0.999) or `torch.float16`
                where the machine multiplies them fast; None: the model's own, or that of a surrounding `autocast`.
            progress: Show a bar.

        Returns:
            float32 array [len(sentences), D].
        """
        if isinstance(sentences, str):
            raise TypeError("encode takes a list of sentences; put the one sentence in a list.")
        vectors = np.zeros((len(sentences), self.config.hidden_size), dtype=np.float32)
        if not len(sentences):
            return vectors
        kind = self.device.type
        if dtype is None:
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.dtype
        ids, starts = self._token_ids(sentences, tokenizer or self.tokenizer)
        lengths = np.diff(starts)
        directions = [(with_dtype(gru, dtype), backwards) for gru, backwards in self.directions()]
        bar = tqdm(total=len(sentences), unit="sentence", disable=not progress)
        with bar, torch.autocast(kind, enabled=False):
            for rows in token_batches(lengths, batch_tokens, batch_size):
                thought = self._thoughts(ids, starts[rows], lengths[rows], directions, dtype).float()  # [b, D]
                if normalize:
                    thought = nn.functional.normalize(thought, dim=-1)
                vectors[rows] = thought.cpu().numpy()
                bar.update(len(rows))
        return vectors

    def _thoughts(
        self,
        ids: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        directions: list[tuple[nn.GRU, bool]],
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Thoughts [b, D] of the sentences `ids[start : start + length]`, from the longest to the shortest."""
        starts, ends = starts[:, None], (starts + lengths)[:, None]
        steps = np.arange(lengths[0])
        places = np.minimum(starts + steps, ends - 1)  # [b, T]; what stands after the end is not read
        words, index = np.unique(ids[places], return_inverse=True)  # [U], [b, T]
        table = self._word_vectors(words).to(dtype)  # [U, E]
        thoughts = []
        for gru, backwards in directions:
            if backwards:
                index = np.take_along_axis(index, np.maximum(lengths[:, None] - 1 - steps, 0), 1)
            thoughts.append(last_states(gru, table, torch.from_numpy(index).to(self.device), lengths))
        return torch.cat(thoughts, -1)

    def _token_ids(self, sentences: Sequence[str], tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all sentences int64 [n], over-long ones cut before `</s>`, and where each starts, int64 [len + 1].

        A word that only the vocabulary expansion has gets vocab_size + its row there. The Rust tokenizer is called
        directly: building transformers' BatchEncoding takes longer than the encoder does.
        """
        limit, end, unknown = self.config.max_tokens, self.config.eos_token_id, tokenizer.unk_token_id
        found: dict[str, int] = {}
        ids, starts = array("q"), array("q", [0])
        for start in range(0, len(sentences), 8192):  # its encodings are bigger than what is kept of them
            for encoding in tokenizer.backend_tokenizer.encode_batch_fast(list(sentences[start : start + 8192])):
                row = encoding.ids or [self.config.pad_token_id]  # a tokenizer without `<s>` and `</s>`
                if unknown in row and self.expansion is not None:
                    row = self._known_after_all(row, sentences[len(starts) - 1], tokenizer, found)
                ids.extend(row if len(row) <= limit else [*row[: limit - 1], end])
                starts.append(len(ids))
        return np.frombuffer(ids, dtype=np.int64), np.frombuffer(starts, dtype=np.int64)

    def _known_after_all(self, ids: list[int], sentence: str, tokenizer: Any, found: dict[str, int]) -> list[int]:
        """`ids` of a sentence with those unknown words replaced that the expansion has; `found` remembers them."""
        offsets, fold = tokenizer.backend_tokenizer.encode(sentence).offsets, folds_case(tokenizer)
        for place, (start, stop) in enumerate(offsets):
            if ids[place] == tokenizer.unk_token_id:
                word = " ".join(split_words(sentence[start:stop], fold))
                if word not in found:
                    rows = (self.expansion.row(spelling) for spelling in (word, word.lower()))
                    row = next((r for r in rows if r is not None), None)
                    found[word] = tokenizer.unk_token_id if row is None else self.config.vocab_size + row
                ids[place] = found[word]
        return ids

    def _word_vectors(self, ids: np.ndarray) -> torch.Tensor:
        """Input vectors [U, E] of ids [U] as `_token_ids` gives them."""
        beyond = ids >= self.config.vocab_size
        known = torch.from_numpy(np.where(beyond, self.config.pad_token_id, ids)).to(self.device)
        vectors = self.words.embed(known)
        if beyond.any():
            rows = self.expansion.vectors[ids[beyond] - self.config.vocab_size]
            vectors[torch.from_numpy(beyond).to(self.device)] = torch.from_numpy(rows).to(vectors)
        return vectors

    @property
    def expansion(self) -> VocabularyExpansion | None:
        """Vectors for words beyond the vocabulary, opened at first use if the model's folder has them."""
        if self._expansion is None and self.config.vocabulary_expansion:
            where, revision = self.config.name_or_path, getattr(self.config, "_commit_hash", None)
            try:
                paths = [cached_file(where, name, revision=revision) for name in (WORDS_FILE, TABLE_FILE)]
            except OSError as error:
                raise ModelFolderError(
                    f"The config in '{where}' names a vocabulary expansion that is not there: copy {WORDS_FILE} and "
                    f"{TABLE_FILE} beside it, or expand the model again."
                ) from error
            self.expand(VocabularyExpansion.load(Path(paths[0]).parent))
        return self._expansion

    def expand(self, expansion: VocabularyExpansion | str | Path | None) -> None:
        """Take vectors for words beyond the vocabulary from `expansion` from now on.

        Args:
            expansion: An expansion, the folder that holds one, or None for no expansion.

        Raises:
            ModelFolderError: it was made for another encoder, or is damaged.
        """
        if isinstance(expansion, (str, Path)):
            expansion = VocabularyExpansion.load(expansion)
        if expansion is not None and expansion.encoder != self.fingerprint():
            raise ModelFolderError(
                f"The vocabulary expansion in {expansion.folder} was made for another encoder ({expansion.encoder}, "
                f"not {self.fingerprint()}): expand this one with training.expand_vocabulary."
            )
        self._expansion = expansion
        self.config.vocabulary_expansion = expansion is not None

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """As every model's; the vocabulary expansion goes with the weights, and the fingerprint with the config."""
        self.config.fingerprint = self.fingerprint()
        if self.expansion is not None:
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            self.expansion.copy_to(save_directory)
        super().save_pretrained(save_directory, **kwargs)

    @torch.no_grad()
    def mean_word_vectors(self, sentences: Sequence[str], tokenizer: Any = None) -> np.ndarray:
        """Mean of the input vectors of each sentence's words, those of the expansion among them, float32 [n, E].

        `<s>` and `</s>` do not count; a sentence without words gives zeros. What the thoughts are to be compared with.
        """
        ids, starts = self._token_ids(sentences, tokenizer or self.tokenizer)
        words, index = np.unique(ids, return_inverse=True)
        table = self._word_vectors(words).float().cpu().numpy()  # [U, E]
        config = self.config
        counts = ~np.isin(words, [config.pad_token_id, config.bos_token_id, config.eos_token_id])
        means = np.zeros((len(sentences), table.shape[1]), dtype=np.float32)
        for row, (start, stop) in enumerate(zip(starts, starts[1:], strict=False)):
            here = index[start:stop][counts[index[start:stop]]]
            if len(here):
                means[row] = table[here].mean(0)
        return means

    def nearest(
        self,
        queries: Sequence[str],
        sentences: Sequence[str],
        k: int = 5,
        vectors: np.ndarray | None = None,
        **encode: Any,
    ) -> list[list[Neighbour]]:
        """The sentences whose thoughts are nearest to each query's, by cosine, best first.

        Args:
            queries: Texts.
            sentences: Texts to choose from.
            k: Neighbours of each query.
            vectors: [len(sentences), D] if they are encoded already (a memory-mapped array stays on disk).
            encode: Options of `encode`.

        Returns:
            A list of `Neighbour(text, similarity, index)` for every query.

        Raises:
            TextError: no sentences, k below 1, or vectors that are not these sentences'.
        """
        if isinstance(queries, str) or isinstance(sentences, str):
            raise TypeError("nearest takes lists of sentences; put the one sentence in a list.")
        if vectors is None:
            vectors = self.encode(sentences, **encode)
        if vectors.shape != (len(sentences), self.config.hidden_size):
            raise TextError(
                f"The vectors have the shape {vectors.shape}; {len(sentences)} sentences of this encoder give "
                f"({len(sentences)}, {self.config.hidden_size})."
            )
        rows, cosines = nearest_rows(self.encode(queries, **encode), row_blocks(vectors), k)
        return [
            [Neighbour(sentences[i], float(c), int(i)) for i, c in zip(*found, strict=True)]
            for found in zip(rows, cosines, strict=True)
        ]

    @torch.no_grad()
    def nearest_words(self, words: Sequence[str], k: int = 10, tokenizer: Any = None) -> list[list[Neighbour]]:
        """The words nearest to each given word, by the cosine of their input vectors, best first.

        The words of the vocabulary are searched, and those of the vocabulary expansion if there is one.

        Args:
            words: Words as `modeling.words.split_words` gives them, none of them its own neighbour.
            k: Neighbours of each word.
            tokenizer: The model's tokenizer; None loads it from the folder the model came from.

        Returns:
            A list of `Neighbour(word, cosine, id)` for every word.

        Raises:
            TextError: a word that the vocabulary does not hold, or k below 1.
        """
        if isinstance(words, str):
            raise TypeError("nearest_words takes a list of words; put the one word in a list.")
        if k < 1:
            raise TextError(f"k is the number of neighbours, 1 or more, not {k}.")
        tokenizer = tokenizer or self.tokenizer
        ids, starts = self._token_ids(words, tokenizer)
        special = set(tokenizer.all_special_ids)
        queries = []
        for word, start, stop in zip(words, starts, starts[1:], strict=False):
            found = [i for i in ids[start:stop].tolist() if i not in special]
            if len(found) != 1:
                raise TextError(f"'{word[:60]}' is not one word of this encoder's vocabulary: try another spelling.")
            queries.append(found[0])
        size, beyond = self.config.vocab_size, self.expansion
        table = self._word_vectors(np.arange(size)).float().cpu().numpy()
        wanted = self._word_vectors(np.array(queries, dtype=np.int64)).float().cpu().numpy()
        blocks = chain(row_blocks(table), [] if beyond is None else row_blocks(beyond.vectors))
        rows, cosines = nearest_rows(wanted, blocks, k + 1 + len(special))
        names = tokenizer.convert_ids_to_tokens(range(size))
        neighbours = []
        for query, *found in zip(queries, rows, cosines, strict=True):
            kept = [(i, c) for i, c in zip(*found, strict=True) if i != query and i not in special]
            neighbours.append(
                [Neighbour(names[i] if i < size else beyond.word(i - size), float(c), int(i)) for i, c in kept[:k]]
            )
        return neighbours

    @property
    def tokenizer(self) -> Any:
        """The tokenizer saved beside the weights, loaded at first use."""
        if self._tokenizer is None:
            self._tokenizer = saved_tokenizer(self.config)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
