"""Streamed text: the same triples as in memory, each once, and exact resuming."""

import json
from collections import Counter

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard

from modeling.errors import DataError
from modeling.tokenization import build_bpe_tokenizer, build_word_tokenizer
from training import stream_text
from training.data_text import TextSource, row_documents, sentence_tokenizer, tokenize_corpus
from training.stream_text import DocumentStream, StreamBatches, StreamedTriples, is_held_out
from training.tiny_text import write_tiny_text

HELD_OUT = 7


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = write_tiny_text(tmp_path_factory.mktemp("text"))
    (folder / "files").mkdir()
    for name in "ab":
        text = "\n\n".join(f"It {name} {i}. He left {i}. She stayed." for i in range(9))
        (folder / "files" / f"{name}.txt").write_text(text + "\n* * *\n" + text)
    return [TextSource(str(folder / name)) for name in ("tiny-books", "tiny-captions", "files")]


@pytest.fixture(scope="module")
def tokenizer(sources):
    return build_word_tokenizer(s for document in DocumentStream(sources) for s in document)


def stream(sources, tokenizer, **settings):
    settings = {"max_length": 30, "max_tokens": 300, "buffer_sentences": 120, "held_out_every": HELD_OUT} | settings
    return StreamBatches(StreamedTriples(), sources, tokenizer, **settings)


def examples(batches):
    """The triples of each batch, taken from the buffer when they are named, as a loader does."""
    return [[batches.triples[i] for i in batch] for batch in batches]


def test_documents_are_those_of_the_rows_and_take_turns(sources):
    documents = list(DocumentStream(sources))
    assert len(documents) == 8 * 3 + 2 * 32 + 2 * 2
    assert documents[1][0].startswith("a red circle") and documents[2][0] == "It a 0."
    assert documents[0][1].startswith("She loved")
    assert not any("CHAPTER" in s for d in documents for s in d)
    assert len(list(DocumentStream([TextSource(sources[1].dataset, limit=5)]))) == 5


def test_a_file_without_scene_breaks_is_cut(sources, monkeypatch):
    monkeypatch.setattr(stream_text, "LONGEST_SCENE", 4)
    lengths = [len(d) for d in DocumentStream([sources[2]])]
    assert lengths[:3] == [12, 12, 3] and sum(lengths) == 4 * 27
    rows = row_documents({"text": ["one.", "two.", "three."]}, sources[2], None, longest=2)
    assert [paragraphs for paragraphs, _ in rows] == [[["one."], ["two."]], [["three."]]]


@pytest.mark.parametrize("read", [1, 2, 3, 30, 75, 91])
def test_a_stream_goes_on_from_any_position(sources, read):
    whole = DocumentStream(sources)
    documents = iter(whole)
    for _ in range(read):
        next(documents)
    position = json.loads(json.dumps(whole.position()))
    assert list(DocumentStream(sources, position)) == list(documents)


def test_every_triple_comes_once_and_none_crosses_documents(sources, tokenizer):
    batches = stream(sources, tokenizer)
    found = Counter(repr(triple) for batch in examples(batches) for triple in batch)
    expected, encode = Counter(), sentence_tokenizer(tokenizer)
    for document in DocumentStream(sources):
        ids = [[1, *row[:28], 2] for row in encode(document)]
        if not is_held_out(document, HELD_OUT):
            expected.update(repr((ids[i], ids[i - 1], ids[i + 1])) for i in range(1, len(ids) - 1))
    assert found == expected and found.total() > 300


def test_batches_are_bounded_and_their_order_is_of_seed_and_epoch(sources, tokenizer):
    batches = stream(sources, tokenizer)
    first = examples(batches)
    assert all(max(len(ids) for t in b for ids in t) * len(b) <= 300 for b in first if len(b) > 1)
    longest = max(len(document) for document in DocumentStream(sources))
    assert all(len(buffer.store) < 120 + longest for buffer, _ in batches.buffers())
    assert len(list(batches.buffers())) > 3
    assert examples(batches) == first == examples(stream(sources, tokenizer))
    batches.set_epoch(1)
    assert examples(batches) != first != examples(stream(sources, tokenizer, seed=1))


@pytest.mark.parametrize("recorded", [True, False])
def test_skipping_is_exact_and_does_not_read_again_what_was_read(sources, tokenizer, tmp_path, recorded, monkeypatch):
    record = tmp_path / "stream.json" if recorded else None
    whole = examples(stream(sources, tokenizer, record=record))
    resumed = stream(sources, tokenizer, record=record)
    starts, buffers = [], resumed.buffers
    monkeypatch.setattr(resumed, "buffers", lambda position: starts.append(position) or buffers(position))
    for done in (len(whole) // 2, 1, len(whole) - 1, len(whole)):
        resumed.skip(done)
        assert examples(resumed) == whole[done:]
    assert (starts[0] is not None) == recorded and starts[1] is None
    assert examples(resumed) == whole
    if recorded:
        resumed.set_epoch(2)  # epoch 0 is forgotten with the checkpoints that could ask for it
        examples(resumed)
        assert list(json.loads(record.read_text())["epochs"]) == ["2"]
        other = stream(sources, tokenizer, record=record, max_tokens=200)  # another run's record says nothing
        other.skip(3)
        assert examples(other) == examples(stream(sources, tokenizer, max_tokens=200))[3:]


def test_processes_share_each_batch(sources, tokenizer):
    whole = examples(stream(sources, tokenizer, max_tokens=600))
    shares = []
    for process in range(2):
        batches = stream(sources, tokenizer, max_tokens=300, shares=2)
        part = BatchSamplerShard(batches, num_processes=2, process_index=process)
        shares.append([[batches.triples[i] for i in batch] for batch in part])
    assert len(shares[0]) == len(shares[1])
    together = [sorted(map(repr, a + b)) for a, b in zip(*shares, strict=True)]
    assert together == [sorted(map(repr, batch)) for batch in whole if len(batch) > 1]


def test_byte_pair_sentences_are_tokenized_as_by_the_tokenizer(sources):
    texts = [s for document in DocumentStream(sources[:1]) for s in document][:50]
    tokenizer = build_bpe_tokenizer(texts, 80)
    store = tokenize_corpus(texts, tokenizer, progress=False)
    for i, text in enumerate(texts):
        np.testing.assert_array_equal([1, *store[i], 2], tokenizer(text).input_ids)


def test_what_cannot_be_streamed_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="Cannot stream.*PICTALE_DATA"):
        next(iter(DocumentStream([TextSource(str(tmp_path / "nowhere"))])))
    with pytest.raises(DataError, match=r"no .parquet or .txt"):
        DocumentStream([TextSource(str(tmp_path))])
    from datasets import Dataset

    Dataset.from_list([{"words": "a"}]).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match="needs a column text, sentences or captions"):
        next(iter(DocumentStream([TextSource(str(tmp_path))])))
