"""Text as a stream: training on more than fits into memory.

A source is read row by row (`datasets` streaming, or the files of a folder one after the other), its documents go
through a buffer of sentences, and batches of similar length are cut from the shuffled buffer. Memory holds one row and
one buffer. A document is never split between buffers, and no triple crosses documents. Sources take turns, a document
each, until all are read; that is an epoch.

Which documents are kept from training is decided by their content, so that copies of one are all on the same side,
whatever the order.

Resuming is exact: the order is a function of (seed, epoch), and a resumed run skips the batches it has seen. To skip
without reading everything again, the place in the stream where each buffer began is written to a file.
"""

from __future__ import annotations

import json
import os
import random
import zlib
from collections import deque
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import load_dataset
from torch.utils.data import Dataset

from modeling.errors import DataError

from .data_text import (
    TEXT_COLUMNS,
    LengthBatches,
    TextSource,
    TokenStore,
    local_text_files,
    row_documents,
    sentence_tokenizer,
)
from .recipes import dataset_location
from .sentence_triples import SentenceTriples

LONGEST_SCENE = 500  # paragraphs; a file of one sentence a line has no scene breaks
Position = dict[str, Any]  # JSON


def is_held_out(document: list[str], every: int) -> bool:
    """Whether a document is kept from training: one of `every`, chosen by its content."""
    return zlib.crc32("\n".join(document).encode()) % every == 0


class SourceStream:
    """The documents of one source in its order.

    Raises:
        DataError: nothing readable there.
    """

    def __init__(self, source: TextSource) -> None:
        self.source, self.location = source, dataset_location(source.dataset)
        self.files = local_text_files(self.location)

    def _hub_rows(self, state: Position | None) -> Iterator[tuple[dict[str, Any], Position]]:
        """Rows, and the stream's own state before each."""
        try:
            rows = load_dataset(self.location, split=self.source.split, streaming=True)
            if rows.column_names:  # photographs beside captions are not decoded
                rows = rows.select_columns([c for c in rows.column_names if c in TEXT_COLUMNS])
            if state is not None:
                rows.load_state_dict(state)
            for row in rows:
                yield row, state
                state = rows.state_dict()
        except Exception as error:  # datasets, the Hub's client and the network raise dozens of kinds
            reason = (str(error).splitlines() or [""])[0]
            raise DataError(
                f"Cannot stream the dataset '{self.location}' ({type(error).__name__}: {reason}). Name a folder of "
                "parquet or .txt files or a Hub dataset id; PICTALE_DATA may name their parent folder. A run that was "
                "under way goes on with --resume."
            ) from None

    def _file_rows(self, first: int) -> Iterator[tuple[dict[str, Any], None]]:
        for path in self.files[first:]:
            with path.open(encoding="utf-8", errors="replace") as lines:
                yield {"text": lines}, None

    def documents(self, position: Position | None = None) -> Iterator[tuple[list[str], Position]]:
        """Sentences of each document, and the position after it, from which another iteration goes on."""
        position = position or {"row": 0, "document": 0, "state": None}
        first, done = position["row"], position["document"]
        rows = self._file_rows(first) if self.files else self._hub_rows(position["state"])
        for number, (row, state) in enumerate(rows, first):
            if self.source.limit and number >= self.source.limit:
                return
            names = random.Random(f"{self.source.dataset} {number}")
            for count, (paragraphs, _) in enumerate(row_documents(row, self.source, names, LONGEST_SCENE), 1):
                if count > done:
                    after = {"row": number, "document": count, "state": state}
                    yield [sentence for paragraph in paragraphs for sentence in paragraph], after
            done = 0


class DocumentStream:
    """The documents of several sources in turn; `position` tells where it stands."""

    def __init__(self, sources: list[TextSource], position: Position | None = None) -> None:
        self.streams = [SourceStream(source) for source in sources]
        position = position or {"turns": list(range(len(sources))), "sources": {}}
        self._turns = deque(position["turns"])  # sources that go on, the next one first
        self._after: dict[str, Position] = dict(position["sources"])

    def position(self) -> Position:
        """Where the next document comes from."""
        return {"turns": list(self._turns), "sources": dict(self._after)}

    def __iter__(self) -> Iterator[list[str]]:
        documents = {i: self.streams[i].documents(self._after.get(str(i))) for i in self._turns}
        while self._turns:
            source = self._turns.popleft()
            found = next(documents[source], None)
            if found is None:
                continue
            sentences, self._after[str(source)] = found
            self._turns.append(source)
            yield sentences


class StreamedTriples(Dataset):
    """The triples of the buffer that `StreamBatches` stands at; asked only for what it has just named."""

    buffer: SentenceTriples

    def __getitem__(self, i: int) -> tuple[list[int], list[int], list[int]]:
        return self.buffer[i]


class StreamBatches:
    """Batch sampler over `triples`: fills the buffer, names the rows of its batches, fills it again.

    Args:
        triples: What the batches are of.
        sources: What is read.
        tokenizer: Of the run.
        max_length, max_tokens, seed, shares: As for `SentenceTriples` and `LengthBatches`.
        buffer_sentences: The buffer is full at so many sentences, when the document ends.
        held_out_every: As for `is_held_out`.
        record: File that keeps where buffers began; None: a resumed run reads its epoch from the start.
    """

    def __init__(
        self,
        triples: StreamedTriples,
        sources: list[TextSource],
        tokenizer: Any,
        max_length: int,
        max_tokens: int,
        buffer_sentences: int,
        held_out_every: int,
        seed: int = 0,
        shares: int = 1,
        record: Path | None = None,
    ) -> None:
        self.triples, self.sources, self.encode = triples, sources, sentence_tokenizer(tokenizer)
        self.held_out_every = held_out_every
        self.max_length, self.max_tokens, self.buffer_sentences = max_length, max_tokens, buffer_sentences
        self.seed, self.shares, self.record = seed, shares, record
        self.epoch = self._skip = 0
        self.batch_size = None  # varies; accelerate asks for the attribute
        self.drop_last = False

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def skip(self, batches: int) -> None:
        """Let the next iteration begin after so many batches of its epoch (of all processes together)."""
        self._skip = batches

    def buffers(self, position: Position | None = None) -> Iterator[tuple[SentenceTriples, Position]]:
        """Buffers, and where the stream stands after each."""
        stream = DocumentStream(self.sources, position)
        ids: list[list[int]] = []
        runs: list[tuple[int, int]] = []
        for document in stream:
            if is_held_out(document, self.held_out_every):
                continue
            start = len(ids)
            ids.extend(self.encode(document))
            runs.append((start, len(ids)))
            if len(ids) >= self.buffer_sentences:
                yield self._triples(ids, runs), stream.position()
                ids, runs = [], []
        if ids:
            yield self._triples(ids, runs), stream.position()

    def _triples(self, ids: list[list[int]], runs: list[tuple[int, int]]) -> SentenceTriples:
        flat = np.fromiter(chain.from_iterable(ids), dtype=np.int32)
        store = TokenStore(flat, np.cumsum([0, *map(len, ids)], dtype=np.int64))
        return SentenceTriples(store, runs, self.max_length)

    def __iter__(self) -> Iterator[list[int]]:
        wanted, self._skip = self._skip, 0
        known = self._read_record().get(str(self.epoch), {})
        # the last buffer that began at or before the wanted batch
        first = max((int(batch) for batch in known if int(batch) <= wanted), default=0)
        start, position = known.get(str(first), (0, None))
        for number, (buffer, after) in enumerate(self.buffers(position), start):
            self.triples.buffer = buffer
            batches = self._batches(buffer, number)
            yield from batches[max(wanted - first, 0) :]
            first += len(batches)
            known[str(first)] = [number + 1, after]
            self._write_record(known)

    def _batches(self, buffer: SentenceTriples, number: int) -> list[list[int]]:
        if not len(buffer):
            return []
        whole = len(buffer)  # one window: it is sorted as a whole
        batches = LengthBatches(buffer.lengths, self.max_tokens, self.seed + 7919 * number, whole, self.shares)
        batches.set_epoch(self.epoch)
        return list(batches)

    def _read_record(self) -> dict[str, Any]:
        """Epoch -> first batch of each buffer -> [number of the buffer, position]."""
        if self.record is None or not self.record.is_file():
            return {}
        record = json.loads(self.record.read_text(encoding="utf-8"))
        return record["epochs"] if record["settings"] == self._settings() else {}

    def _settings(self) -> list[int]:
        """What decides the batches beside the text: a record made with others says nothing."""
        return [self.max_length, self.max_tokens, self.buffer_sentences, self.held_out_every, self.seed, self.shares]

    def _write_record(self, known: dict[str, Any]) -> None:
        if self.record is None or not PartialState().is_main_process:
            return
        kept = {e: k for e, k in self._read_record().items() if int(e) == self.epoch - 1}  # of the last checkpoint
        record = {"settings": self._settings(), "epochs": kept | {str(self.epoch): known}}
        temporary = self.record.with_suffix(".writing")
        temporary.write_text(json.dumps(record), encoding="utf-8")
        os.replace(temporary, self.record)
