"""Sentences of books, short stories and caption sets, in order, with document boundaries that nothing crosses.

A source is a Hub dataset id, a folder of parquet files, or a folder of `.txt` files. What a row holds is told by its
columns, so any data set of the same shape works:

    text [genre, title, author]   a book: one paragraph a line, blank lines between; `* * *` breaks a scene
    sentences                     a short story, sentence by sentence
    captions                      sentences that describe the same picture (neighbours in any order)

Sentences come out truecased: the first word loses its capital unless the word is a name, so that a word-level
vocabulary does not hold "The" and "the". `modeling.text.clean_text` puts capitals back.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, load_dataset
from tqdm import tqdm

from modeling.errors import DataError
from modeling.text import directed_quotes, split_sentences
from modeling.tokenization import folds_case, knows_whole_words
from modeling.words import split_words

from .first_names import FEMALE_NAMES, MALE_NAMES, NEUTRAL_NAMES
from .recipes import dataset_location

_SCENE_BREAK = re.compile(r"^[\s*#~_.-]*$")
_HEADING = re.compile(
    r"^(chapter|book|part|volume|act|scene|letter|canto)\b.{0,60}$|^[IVXLC]+\.?$|^[^a-z]{1,80}$", re.IGNORECASE
)
_SENTENCE_END = frozenset(".!?")
TEXT_COLUMNS = ("text", "genre", "sentences", "captions")
CORPUS_FORMAT = 1  # raised when the preparation changes, so that old caches are not read


@dataclass
class TextSource:
    """One data set of a text recipe.

    Args:
        dataset: Folder, Hub id, or a name below `$PICTALE_DATA`.
        split: Split of the data set.
        genre: Style of all its rows; None reads the row's `genre`, else `everyday` or `caption` by its columns.
        limit: Use only the first rows; None: all.
    """

    dataset: str
    split: str = "train"
    genre: str | None = None
    limit: int | None = None


@dataclass
class Corpus:
    """Sentences in reading order.

    Args:
        sentences: Truecased text.
        document: int32 [n], number of the scene, story or picture; neighbours share it.
        genre: int16 [n], index into `genres`.
        held_out: bool [n], kept from training (whole books, every 50th story and picture).
    """

    sentences: list[str]
    document: np.ndarray
    genre: np.ndarray
    held_out: np.ndarray
    genres: list[str] = field(default_factory=list)

    def runs(self, held_out: bool) -> list[tuple[int, int]]:
        """[start, stop) of every document of the wanted part."""
        edges = np.flatnonzero(np.diff(self.document)) + 1
        starts = np.concatenate([[0], edges])
        stops = np.concatenate([edges, [len(self.document)]])
        return [(int(a), int(b)) for a, b in zip(starts, stops, strict=True) if self.held_out[a] == held_out]


def load_corpus(sources: list[TextSource], cache_dir: str | None = None) -> Corpus:
    """Read all sources; with `cache_dir` the result is kept there and read back the next time."""
    path = None
    if cache_dir:
        # what decides the text: format, sources, and the files a local source consists of
        key = json.dumps([CORPUS_FORMAT, [asdict(s) for s in sources], [_stamp(s) for s in sources]])
        path = Path(cache_dir) / f"corpus-{hashlib.sha256(key.encode()).hexdigest()[:16]}.parquet"
        if path.exists():
            return _read_corpus(path)
    corpus = _build_corpus(sources)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_corpus(corpus, path)
    return corpus


def _stamp(source: TextSource) -> list[tuple[str, int]]:
    root = Path(dataset_location(source.dataset))
    return sorted((p.name, p.stat().st_size) for p in root.rglob("*") if p.is_file()) if root.is_dir() else []


def _write_corpus(corpus: Corpus, path: Path) -> None:
    table = pa.table(
        {
            "sentence": corpus.sentences,
            "document": corpus.document,
            "genre": corpus.genre,
            "held_out": corpus.held_out,
        }
    ).replace_schema_metadata({"genres": json.dumps(corpus.genres)})
    temporary = path.with_suffix(".writing")
    pq.write_table(table, temporary)
    os.replace(temporary, path)


def _read_corpus(path: Path) -> Corpus:
    table = pq.read_table(path)
    return Corpus(
        sentences=table["sentence"].to_pylist(),
        document=table["document"].to_numpy(),
        genre=table["genre"].to_numpy(),
        held_out=table["held_out"].to_numpy(zero_copy_only=False),
        genres=json.loads(table.schema.metadata[b"genres"]),
    )


# -- reading ------------------------------------------------------------------------------------------------------
def load_rows(source: TextSource) -> Dataset:
    """The rows of a source as a `datasets.Dataset`; a folder of .txt files has one row a file.

    Raises:
        DataError: nothing readable there.
    """
    location = dataset_location(source.dataset)
    files = local_text_files(location)
    if files:
        rows = Dataset.from_dict({"text": [f.read_text(encoding="utf-8", errors="replace") for f in files]})
    else:
        try:
            loaded = load_dataset(location)
        except Exception as error:  # datasets raises a dozen kinds
            raise DataError(
                f"Cannot load the dataset '{location}' ({type(error).__name__}: {str(error).splitlines()[0]}). "
                "Name a folder of parquet or .txt files or a Hub dataset id; PICTALE_DATA may name their parent folder."
            ) from None
        rows = _choose_split(loaded, source, location)
    return rows.select(range(min(source.limit, len(rows)))) if source.limit else rows


def local_text_files(location: str) -> list[Path]:
    """The `.txt` files of a folder that is no data set, in order; none where `location` is something else.

    Raises:
        DataError: a folder without any readable file.
    """
    path = Path(location)
    if path.is_file() and path.suffix == ".txt":
        return [path]
    if not path.is_dir() or any(path.rglob("*.parquet")):
        return []
    files = sorted(path.rglob("*.txt"))
    if not files:
        raise DataError(f"{location} holds no .parquet or .txt file: name a folder that does, or a Hub dataset id.")
    return files


def _choose_split(loaded: DatasetDict, source: TextSource, location: str) -> Dataset:
    if source.split in loaded:
        return loaded[source.split]
    raise DataError(f"'{location}' has no split '{source.split}'; it has {', '.join(loaded)}.")


@dataclass
class _Document:
    paragraphs: list[list[str]]  # sentences of each paragraph, as written
    genre: str
    held_out: bool


def _documents(source: TextSource) -> Iterator[_Document]:
    rows = load_rows(source)
    columns = [c for c in rows.column_names if c in TEXT_COLUMNS]  # photographs beside captions are not decoded
    held = _held_out_books(rows) if "text" in columns else None
    rng = random.Random(0)
    for i, row in enumerate(tqdm(rows.select_columns(columns), desc=f"reading {Path(source.dataset).name}")):
        for paragraphs, genre in row_documents(row, source, rng):
            yield _Document(paragraphs, genre, i % 50 == 49 if held is None else i in held)


def row_documents(
    row: Mapping[str, Any], source: TextSource, rng: random.Random, longest: int | None = None
) -> Iterator[tuple[list[list[str]], str]]:
    """The documents of a row: the scenes of a book, one story, or the captions of one picture.

    Args:
        row: With `text` (a string or lines), `sentences` or `captions`.
        source: Where it comes from.
        rng: Chooses names for the placeholders of anonymised stories.
        longest: A scene of more paragraphs is cut into several.

    Yields:
        Sentences of each paragraph, as written, and the genre.
    """
    if "text" in row:
        text = row["text"] or ""
        lines = text.split("\n") if isinstance(text, str) else text
        for scene in _scenes(lines, longest):
            yield scene, source.genre or row.get("genre") or "book"
    elif "sentences" in row:
        yield [_natural_story(row["sentences"], rng)], source.genre or "everyday"
    elif "captions" in row:
        yield [list(row["captions"])], source.genre or "caption"
    else:
        raise DataError(f"'{source.dataset}' needs a column text, sentences or captions; it has none of them.")


def _held_out_books(rows: Dataset) -> set[int]:
    """The last book of every genre with at least four."""
    if "genre" not in rows.column_names:
        return set()
    by_genre: dict[str, list[int]] = {}
    for i, genre in enumerate(rows["genre"]):
        by_genre.setdefault(genre, []).append(i)
    return {books[-1] for books in by_genre.values() if len(books) >= 4}


def _scenes(lines: Iterable[str], longest: int | None = None) -> Iterator[list[list[str]]]:
    """Paragraphs (as sentences) between chapter headings and scene breaks."""
    scene: list[list[str]] = []
    for line in lines:
        line = line.strip()
        if not line:
            continue
        is_break = bool(_SCENE_BREAK.match(line) or _HEADING.match(line))
        if scene and (is_break or len(scene) == longest):
            yield scene
            scene = []
        if not is_break:
            scene.append(split_sentences(directed_quotes(line)))
    if scene:
        yield scene


def _natural_story(sentences: list[str], rng: random.Random) -> list[str]:
    """Names for the placeholders of anonymised stories, the same name throughout one story."""
    names = {
        "[male]": rng.choice(MALE_NAMES),
        "[female]": rng.choice(FEMALE_NAMES),
        "[neutral]": rng.choice(NEUTRAL_NAMES),
    }
    out = []
    for sentence in sentences:
        sentence = re.sub(r"\[(male|female|neutral)\]", lambda m: names[m[0].lower()], sentence, flags=re.IGNORECASE)
        sentence = re.sub(r"\s+(n't|'\w+)", r"\1", sentence)  # "do n't" -> "don't"
        out.append(directed_quotes(sentence))
    return out


# -- truecasing -----------------------------------------------------------------------------------------------------
class Truecaser:
    """Learns which words keep a capital inside a sentence, then lowers the first word of sentences (Lita et al. 2003).

    Text that is lower-case throughout (anonymised stories, captions) gets the capitals of names back the same way.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def observe(self, sentence: str) -> None:
        words = split_words(sentence)
        inside = [w for before, w in zip(words, words[1:], strict=False) if before.isalpha() or before == ","]
        self.counts.update(w for w in inside if w[0].isalpha())

    def finish(self) -> None:
        forms: dict[str, str] = {}
        for word, count in self.counts.items():
            lower = word.lower()
            if lower not in forms or count > self.counts[forms[lower]]:
                forms[lower] = word
        self.form = {low: form for low, form in forms.items() if form != low and not (form.isupper() and len(form) > 1)}

    def apply(self, sentence: str) -> str:
        restore = not any(c.isupper() for c in sentence)
        pieces, first = [], True
        for piece in re.split(r"(\W+)", sentence):
            if piece and piece[0].isalpha():
                lower = piece.lower()
                if (first and piece[1:].islower()) or (first and len(piece) == 1) or restore:
                    piece = self.form.get(lower, lower)
                first = False
            elif "“" in piece:
                first = False  # a quoted start keeps its case: only the writer knew whether the speech goes on
            elif _SENTENCE_END & set(piece) and not restore:
                first = True
            pieces.append(piece)
        return "".join(pieces)


def _build_corpus(sources: list[TextSource]) -> Corpus:
    documents: list[_Document] = []
    truecaser = Truecaser()
    for source in sources:
        for document in _documents(source):
            documents.append(document)
            for sentences in document.paragraphs:
                for sentence in sentences:
                    truecaser.observe(sentence)
    truecaser.counts["I"] += 10**9
    truecaser.finish()
    sentences: list[str] = []
    number, genre, held_out = [], [], []
    genres: dict[str, int] = {}
    for i, document in enumerate(tqdm(documents, desc="truecasing", unit="document")):
        for paragraph in document.paragraphs:
            for sentence in paragraph:
                sentences.append(truecaser.apply(sentence))
                number.append(i)
                genre.append(genres.setdefault(document.genre, len(genres)))
                held_out.append(document.held_out)
    if not sentences:
        raise DataError("The text sources hold no sentence.")
    return Corpus(
        sentences,
        np.array(number, dtype=np.int32),
        np.array(genre, dtype=np.int16),
        np.array(held_out, dtype=bool),
        list(genres),
    )


# -- token storage and batching ---------------------------------------------------------------------------------------
@dataclass
class TokenStore:
    """Token ids of all sentences in two flat arrays: sentence i is `ids[offsets[i]:offsets[i + 1]]`, no specials."""

    ids: np.ndarray
    offsets: np.ndarray

    def __getitem__(self, i: int) -> np.ndarray:
        return self.ids[self.offsets[i] : self.offsets[i + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)


def sentence_tokenizer(tokenizer: Any) -> Callable[[Sequence[str]], Iterator[list[int]]]:
    """A function from sentences to the ids of each, without `<s>` and `</s>`.

    Words of a word-level vocabulary are looked up directly, which equals the tokenizer's own answer and is twenty times
    faster than its batch call.
    """
    if not knows_whole_words(tokenizer):
        encode = tokenizer.backend_tokenizer.encode_batch_fast
        return lambda sentences: (e.ids for e in encode(list(sentences), add_special_tokens=False))
    vocabulary, unknown, lowercase = tokenizer.get_vocab(), tokenizer.unk_token_id, folds_case(tokenizer)
    return lambda sentences: ([vocabulary.get(w, unknown) for w in split_words(s, lowercase)] for s in sentences)


def tokenize_corpus(sentences: Sequence[str], tokenizer: Any, progress: bool = True) -> TokenStore:
    """Token ids of every sentence, without `<s>` and `</s>`."""
    lengths = np.zeros(len(sentences) + 1, dtype=np.int64)
    ids, encode, done = array("i"), sentence_tokenizer(tokenizer), 0
    with tqdm(total=len(sentences), desc="tokenizing", unit="sentence", mininterval=5, disable=not progress) as bar:
        for start in range(0, len(sentences), 10000):
            for row in encode(sentences[start : start + 10000]):
                ids.extend(row)
                done += 1
                lengths[done] = len(ids)
            bar.update(done - start)
    return TokenStore(np.frombuffer(ids, dtype=np.int32), lengths)


class LengthBatches:
    """Batches of examples of similar length, about `max_tokens` padded tokens each.

    The order is a function of (seed, epoch): shuffled, sorted by length inside windows of `window` batches, batches
    shuffled again. Sorting within windows keeps padding small without making an epoch run from short to long.

    With `shares` above 1 each batch is `shares` times as large and comes out in that many parts of equal size but for
    one example, one after the other: accelerate gives batch i to process i modulo their number, so that all processes
    work on the same batch. One with fewer examples than shares is left out.
    """

    def __init__(self, lengths: np.ndarray, max_tokens: int, seed: int = 0, window: int = 100, shares: int = 1) -> None:
        self.lengths, self.max_tokens, self.seed, self.window = np.asarray(lengths), max_tokens, seed, window
        self.shares = shares
        self.epoch = 0
        self.batch_size = None  # varies; accelerate asks for the attribute
        self.drop_last = False
        self._batches: dict[int, list[list[int]]] = {}

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def _epoch_batches(self) -> list[list[int]]:
        if self.epoch not in self._batches:
            rng = np.random.default_rng([self.seed, self.epoch])
            order = rng.permutation(len(self.lengths))
            span = max(1, self.window * self.shares * self.max_tokens // max(int(self.lengths.mean()), 1))
            batches: list[list[int]] = []
            for start in range(0, len(order), span):
                part = order[start : start + span]
                part = part[np.argsort(self.lengths[part], kind="stable")]
                batches.extend(self._cut(part))
            whole = [batches[i] for i in rng.permutation(len(batches)) if len(batches[i]) >= self.shares]
            self._batches = {self.epoch: [b[share :: self.shares] for b in whole for share in range(self.shares)]}
        return self._batches[self.epoch]

    def _cut(self, indices: np.ndarray) -> Iterator[list[int]]:
        batch: list[int] = []
        for i in indices.tolist():
            if batch and (len(batch) + 1) * int(self.lengths[i]) > self.shares * self.max_tokens:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._epoch_batches())

    def __len__(self) -> int:
        return len(self._epoch_batches())


def pad_ids(rows: list[list[int]], pad_id: int = 0) -> np.ndarray:
    """Rows of ids -> int64 [len(rows), longest], padded on the right."""
    out = np.full((len(rows), max(map(len, rows))), pad_id, dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
