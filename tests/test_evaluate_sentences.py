"""Task files, baselines and the report of `training.evaluate_sentences`."""
# ruff: noqa: E402

import json

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install -r training/requirements.txt")

from sklearn.feature_extraction.text import TfidfVectorizer

from modeling import DataError
from modeling.treebank import treebank_words
from tests.tiny import tiny_encoder, tiny_tokenizer
from training import evaluate_sentences, sentence_baselines, sentence_protocols
from training.figures import measurement
from training.sentence_baselines import SentenceVectors, mean_file_vectors, mean_word_vectors, untrained_twin
from training.sentence_tasks import TASKS, read_task

NOUNS = ["dog", "cat", "lady", "house"]


@pytest.fixture
def data(tmp_path):
    """A folder of every task, a few dozen lines each; a class is told by one word."""
    rng = np.random.default_rng(0)

    def sentence(word):
        return f"the {rng.choice(NOUNS)} {word} {rng.choice(['in', 'on', 'of'])} the {rng.choice(NOUNS)}"

    def write(path, lines, encoding="utf-8", end="\n"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(end.join([*lines, ""]).encode(encoding))

    for positive, negative in (
        ("MR/rt-polarity.pos", "MR/rt-polarity.neg"),
        ("CR/custrev.pos", "CR/custrev.neg"),
        ("SUBJ/subj.objective", "SUBJ/subj.subjective"),
        ("MPQA/mpqa.pos", "MPQA/mpqa.neg"),
    ):
        write(positive, [sentence("runs") + " caf\u00e9" for _ in range(20)], "latin-1")
        write(negative, [sentence("sleeps") for _ in range(20)])
    kinds = {"NUM:dist": "red", "LOC:city": "blue", "HUM:desc": "old"}
    for name, count in (("train_5500", 15), ("TREC_10", 4)):
        write(
            f"TREC/{name}.label", [f"{kind} {sentence(word)} ?" for kind, word in kinds.items() for _ in range(count)]
        )
    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
    for name in ("train", "trial", "test_annotated"):
        rows = [f"{i}\t{sentence('runs')}\t{sentence('sleeps')}\t{1 + i % 9 / 2}\tNEUTRAL" for i in range(30)]
        write(f"SICK/SICK_{name}.txt", [header, *rows], end="\r\n" if name == "trial" else "\n")
    for name in ("train", "dev", "test"):
        rows = [f"a\tb\tc\t{i}\t{i % 11 / 2:.3f}\t{sentence('runs')}.\t{sentence('sleeps')}.\textra" for i in range(30)]
        write(f"STSB/sts-{name}.csv", rows)
    for name in ("train", "test"):
        rows = [f"{i % 2}\t{i}\t{i}\t{sentence('runs')} 3\t{sentence('runs')} {3 + i % 2}" for i in range(30)]
        write(
            f"MRPC/msr_paraphrase_{name}.txt", ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", *rows], end="\r\n"
        )
    return tmp_path


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(sentence_protocols, "SICK_EPOCHS", 2)
    monkeypatch.setattr(sentence_protocols, "SICK_ROUNDS", 2)
    few = (2, (1.0, 16.0))  # folds and values of C
    monkeypatch.setattr(sentence_protocols.nested_cross_validation, "__defaults__", few)
    monkeypatch.setattr(sentence_protocols.cross_validated_test, "__defaults__", (False, False, *few))
    monkeypatch.setattr(sentence_baselines.TfidfBaseline.classify, "__defaults__", few)
    monkeypatch.setattr(sentence_baselines.TfidfBaseline.paraphrase, "__defaults__", few)


def save(folder):
    tiny_encoder().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


# -- files ------------------------------------------------------------------------------------------------------------
def test_every_task_is_read(data):
    tasks = {name: read_task(data, name) for name in TASKS}
    assert tasks["mr"].labels.sum() == 20 and len(tasks["mr"].sentences) == 40
    assert all(("runs" in s) == bool(label) for s, label in zip(tasks["mr"].sentences, tasks["mr"].labels, strict=True))
    assert any(s.endswith("caf\u00e9") for s in tasks["mr"].sentences)  # latin-1
    assert sorted(set(tasks["trec"].labels)) == [0, 1, 2] and tasks["trec"].test.sum() == 12
    assert all("dist" not in s for s in tasks["trec"].sentences)
    assert np.bincount(tasks["sick"].split).tolist() == [30, 30, 30] and tasks["sick"].scores.max() == 5
    assert np.bincount(tasks["stsb"].split).tolist() == [30, 30, 30] and tasks["stsb"].scores.min() == 0
    assert np.bincount(tasks["mrpc"].split).tolist() == [30, 0, 30] and set(tasks["mrpc"].scores) == {0, 1}
    assert tasks["mrpc"].first[0].endswith("3")


def test_reading_shuffles_always_alike(data):
    assert read_task(data, "cr").sentences == read_task(data, "cr").sentences


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("MR/rt-polarity.pos", None, "Cannot read .*rt-polarity.pos"),
        ("MR/rt-polarity.pos", b"\n\n", "is empty"),
        ("SICK/SICK_train.txt", b"pair\ta\n1\ta\n", "line 2: fewer than 4"),
        ("SICK/SICK_train.txt", b"h\n1\ta\tb\tmuch\tX\n", "not a number"),
        ("TREC/TREC_10.label", b"what is it ?\n", "class such as"),
    ],
)
def test_bad_files_are_told_in_a_sentence(data, path, content, message):
    if content is None:
        (data / path).unlink()
    else:
        (data / path).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_task(data, {"MR": "mr", "SICK": "sick", "TREC": "trec"}[path.split("/")[0]])
    with pytest.raises(DataError, match="Unknown task 'mrp': choose from sick"):
        read_task(data, "mrp")


def test_treebank_words():
    """Expected words are those of NLTK's TreebankWordTokenizer."""
    cases = {
        'He said, "I can\'t do it."': ["He", "said", ",", "``", "I", "ca", "n't", "do", "it", ".", "''"],
        "Mr. Smith paid $2.5, or 1,000 (roughly)...": "Mr. Smith paid $ 2.5 , or 1,000 ( roughly ) ...".split(),
        "I'm gonna--wait: it's John's cats' food!": "I 'm gon na -- wait : it 's John 's cats ' food !".split(),
        "We cannot; they'll say 'tis so?": "We can not ; they 'll say 't is so ?".split(),
        "": [],
    }
    for text, expected in cases.items():
        assert treebank_words(text) == expected


# -- baselines --------------------------------------------------------------------------------------------------------
def test_vectors_are_computed_once():
    calls = []

    def encode(sentences, eos):
        calls.append((list(sentences), eos))
        return np.array([[len(s), eos] for s in sentences], dtype=np.float32)

    vectors = SentenceVectors(encode)
    vectors.add(["a", "bb", "a"])
    np.testing.assert_array_equal(vectors(["bb", "a", "bb"]), [[2, 0], [1, 0], [2, 0]])
    np.testing.assert_array_equal(vectors(["a"], eos=True), [[1, 1]])
    assert calls == [(["a", "bb"], False), (["a"], True)]


def test_untrained_twin_has_the_same_shape_and_other_weights():
    encoder = tiny_encoder()
    encoder.tokenizer = tiny_tokenizer()
    twin, same, other = (untrained_twin(encoder, seed).encode(["a dog"]) for seed in (1, 1, 2))
    assert twin.shape == encoder.encode(["a dog"]).shape
    np.testing.assert_array_equal(twin, same)
    assert np.abs(twin - other).max() > 0.01 and np.abs(twin - encoder.encode(["a dog"])).max() > 0.01


def test_mean_word_vectors_leave_the_special_tokens_out():
    import torch

    encoder = tiny_encoder()
    encoder.tokenizer = tiny_tokenizer()
    ids = torch.tensor(encoder.tokenizer("dog cat").input_ids[1:-1])
    with torch.no_grad():
        expected = encoder.words.embed(ids).mean(0).numpy()
    got = mean_word_vectors(encoder)(["dog cat", ""], False)
    np.testing.assert_allclose(got[0], expected / np.linalg.norm(expected), atol=1e-6)
    assert not got[1].any()


def test_mean_of_a_file_of_word_vectors(tmp_path):
    (tmp_path / "glove.txt").write_text("dog 1 0\ncat 0 2\nbeach 5 5\n")
    encode = mean_file_vectors(tmp_path / "glove.txt", ["A dog, a cat", "unknown"])
    np.testing.assert_allclose(
        encode(["A dog, a cat", "unknown"], False), [[1 / 5**0.5, 2 / 5**0.5], [0, 0]], atol=1e-6
    )


def test_tfidf_counts_on_training_rows_only(data, monkeypatch):
    seen = []
    fit = TfidfVectorizer.fit

    def spy(self, texts, *args):
        seen.append(list(texts))
        return fit(self, texts, *args)

    monkeypatch.setattr(TfidfVectorizer, "fit", spy)
    task = read_task(data, "cr")
    result = sentence_baselines.TfidfBaseline().classify(task, folds=4, grid=(1.0, 16.0))
    assert result["accuracy"] == 100  # one word tells the class
    held_out = sentence_protocols.fold_masks(40, 4)
    assert seen == [[s for s, out in zip(task.sentences, mask, strict=True) if not out] for mask in held_out]


# -- the report -------------------------------------------------------------------------------------------------------
def test_report_has_every_row_and_figure(data, quick, tmp_path):
    (tmp_path / "glove.txt").write_text(
        "\n".join(f"{w} {i % 3} 1 {i}" for i, w in enumerate([*NOUNS, "runs", "sleeps"]))
    )
    report = evaluate_sentences.evaluate(
        save(tmp_path / "encoder"), str(data), twins=2, word_vectors=str(tmp_path / "glove.txt")
    )
    rows = report["rows"]
    assert list(rows) == ["model", "untrained twin", "mean of its word vectors", "mean of glove.txt", "tf-idf"]
    for row in rows.values():
        for _, task, figure, _ in evaluate_sentences.COLUMNS:
            assert np.isfinite(row["tasks"][task][figure])
    assert rows["model"]["width"] == rows["untrained twin"]["width"] == 24
    assert rows["untrained twin"]["seeds"] == 2 and rows["untrained twin"]["tasks"]["mr"]["accuracy_sd"] >= 0
    table = evaluate_sentences.markdown(report).splitlines()
    assert len({line.count("|") for line in table}) == 1 and len(table) == 2 + 5 + 3
    assert table[0].count("|") == len(evaluate_sentences.COLUMNS) + 2
    assert "| 76.5 |" in table[-1] and "combine-skip" in table[-1]


def test_command_line(data, quick, tmp_path, capsys):
    arguments = ["--model", save(tmp_path / "encoder"), "--data", str(data), "--tasks", "cr", "trec", "--no-baselines"]
    assert evaluate_sentences.main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["rows"]) == ["model"] and set(report["rows"]["model"]["tasks"]) == {"cr", "trec"}
    one = measurement(report, "0" * 16, "mine")
    assert set(one["rows"]["this model"]) == {"cr.accuracy", "trec.accuracy"} and "--tasks cr trec" in one["command"]
    assert evaluate_sentences.main(arguments) == 0
    assert capsys.readouterr().out.startswith("| | CR | TREC |")


@pytest.mark.parametrize("arguments", [["--data", "nowhere", "--tasks", "mr"], ["--tasks", "mnli"]])
def test_command_line_tells_what_is_wrong(data, tmp_path, capsys, arguments):
    base = ["--model", save(tmp_path / "encoder"), "--data", str(data)]
    capsys.readouterr()  # saving shows its progress
    assert evaluate_sentences.main([*base, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: ") and error.count("\n") == 1


def test_a_folder_without_a_model_is_told_in_a_sentence(data, tmp_path, capsys):
    assert evaluate_sentences.main(["--model", str(tmp_path / "none"), "--data", str(data), "--tasks", "cr"]) == 2
    assert capsys.readouterr().err.startswith("Error: The sentence encoder ")
