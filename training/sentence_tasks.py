"""The evaluation tasks of the skip-thoughts paper, read from their original files.

A folder holds one folder per task: SICK, MRPC, MR, CR, SUBJ, MPQA, TREC, and STSB, with the files as their authors
distribute them (`TASKS` names them). Sentences come back as they stand in the files: every encoder tokenizes itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modeling.errors import DataError

SHUFFLE_SEED = 1234  # the original's


@dataclass(frozen=True)
class LabelledSentences:
    """Sentences with one of a few labels.

    Args:
        sentences: N texts.
        labels: Class numbers [N].
        test: True for rows of the official test set [N]; none: cross-validation over all rows.
    """

    sentences: list[str]
    labels: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class SentencePairs:
    """Pairs of sentences with a class or a score.

    Args:
        first, second: N texts each.
        scores: Class (0, 1) or degree of relatedness [N].
        split: 0 training, 1 development, 2 test [N].
    """

    first: list[str]
    second: list[str]
    scores: np.ndarray
    split: np.ndarray


def read_lines(path: Path) -> list[str]:
    """Lines of a task file; UTF-8 (with or without a mark) where it is that, else Latin-1.

    Raises:
        DataError: the file is not there or empty.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"Cannot read {path} ({error.strerror}): --data takes a folder with one folder per task, as in SICK/, MR/."
        ) from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    lines = [line.strip() for line in text.replace("\r\n", "\n").split("\n")]
    lines = [line for line in lines if line]
    if not lines:
        raise DataError(f"{path} is empty: copy the task's files again.")
    return lines


def _columns(path: Path, wanted: tuple[int, ...], header: bool) -> list[list[str]]:
    """The `wanted` columns of a tab-separated file, one list each."""
    rows = [line.split("\t") for line in read_lines(path)[1 if header else 0 :]]
    short = next((i for i, row in enumerate(rows) if len(row) <= max(wanted)), None)
    if short is not None or not rows:
        raise DataError(
            f"{path}, line {(short or 0) + 1 + header}: fewer than {max(wanted) + 1} tab-separated columns."
        )
    return [[row[column].strip() for row in rows] for column in wanted]


def _numbers(path: Path, values: list[str]) -> np.ndarray:
    try:
        return np.array([float(value) for value in values])
    except ValueError as error:
        raise DataError(f"{path}: a score is not a number ({error}).") from None


def _polarity(folder: Path, positive: str, negative: str) -> LabelledSentences:
    """Two files of one example a line, shuffled as the original does."""
    first, second = read_lines(folder / positive), read_lines(folder / negative)
    labels = np.r_[np.ones(len(first), dtype=int), np.zeros(len(second), dtype=int)]
    order = np.arange(len(labels))
    np.random.RandomState(SHUFFLE_SEED).shuffle(order)
    texts = first + second
    return LabelledSentences([texts[i] for i in order], labels[order], np.zeros(len(order), dtype=bool))


def read_trec(folder: Path) -> LabelledSentences:
    """Question types: the six coarse classes, in the order of their names; the training part is shuffled."""
    train, test = read_lines(folder / "train_5500.label"), read_lines(folder / "TREC_10.label")
    order = np.arange(len(train))
    np.random.RandomState(SHUFFLE_SEED).shuffle(order)
    lines = [train[i].split() for i in order] + [line.split() for line in test]
    if any(":" not in words[0] for words in lines):
        raise DataError(f"{folder}: a line does not begin with a class such as NUM:dist.")
    names = [words[0].split(":")[0] for words in lines]
    known = sorted(set(names))
    labels = np.array([known.index(name) for name in names])
    return LabelledSentences([" ".join(words[1:]) for words in lines], labels, np.arange(len(lines)) >= len(train))


def _pairs(files: list[Path | None], score: int, first: int, second: int, header: bool) -> SentencePairs:
    """Training, development (None: there is none) and test file with the columns of score and sentences."""
    parts: list[list] = [[], [], [], []]
    for split, path in enumerate(files):
        if path is not None:
            scores, *texts = _columns(path, (score, first, second), header)
            values = (texts[0], texts[1], _numbers(path, scores), [split] * len(scores))
            for part, more in zip(parts, values, strict=True):
                part.extend(more)
    return SentencePairs(parts[0], parts[1], np.array(parts[2]), np.array(parts[3]))


def read_sick(folder: Path) -> SentencePairs:
    files = [folder / f"SICK_{name}.txt" for name in ("train", "trial", "test_annotated")]
    return _pairs(files, score=3, first=1, second=2, header=True)


def read_stsb(folder: Path) -> SentencePairs:
    files = [folder / f"sts-{name}.csv" for name in ("train", "dev", "test")]
    return _pairs(files, score=4, first=5, second=6, header=False)


def read_mrpc(folder: Path) -> SentencePairs:
    files = [folder / "msr_paraphrase_train.txt", None, folder / "msr_paraphrase_test.txt"]
    return _pairs(files, score=0, first=3, second=4, header=True)


TASKS: dict[str, Callable[[Path], LabelledSentences | SentencePairs]] = {
    "sick": lambda data: read_sick(data / "SICK"),
    "mrpc": lambda data: read_mrpc(data / "MRPC"),
    "mr": lambda data: _polarity(data / "MR", "rt-polarity.pos", "rt-polarity.neg"),
    "cr": lambda data: _polarity(data / "CR", "custrev.pos", "custrev.neg"),
    "subj": lambda data: _polarity(data / "SUBJ", "subj.objective", "subj.subjective"),
    "mpqa": lambda data: _polarity(data / "MPQA", "mpqa.pos", "mpqa.neg"),
    "trec": lambda data: read_trec(data / "TREC"),
    "stsb": lambda data: read_stsb(data / "STSB"),
}


def read_task(data: str | Path, task: str) -> LabelledSentences | SentencePairs:
    """One of `TASKS` from the folder `data`.

    Raises:
        DataError: an unknown task, or its files are missing or not what they should be.
    """
    if task not in TASKS:
        raise DataError(f"Unknown task '{task}': choose from {', '.join(TASKS)}.")
    return TASKS[task](Path(data))
