"""Measure a sentence encoder on the tasks of the skip-thoughts paper, beside what it must beat.

    python -m training.evaluate_sentences --model hub_configs/skip-thoughts-books --data sentence_eval
    python -m training.evaluate_sentences --model DIR --data DIR --tasks sick trec --word-vectors glove.txt --json

SICK relatedness, MRPC, MR, CR, SUBJ, MPQA, TREC and STS-B, scored as the original: `training/sentence_protocols.py`
says how. `--data` holds one folder per task with the authors' files, as `training/sentence_tasks.py` names them. Beside
the model stand its untrained twin (same configuration, several seeds), the mean of its own word vectors, tf-idf with
logistic regression, the mean of the word vectors of a file, and the figures of the paper.

Differences from the original: words are the model's own; this project's encoder reads `<s>` and `</s>` around every
sentence, where the original (and a converted one, `training/convert_original.py`) adds an end mark on SICK only.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling.errors import DataError, PictaleError
from modeling.sentence_features import load_sentence_encoder

from .figures import command_line
from .recipes import dataset_location
from .sentence_baselines import (
    PAPER_ROWS,
    SentenceVectors,
    TfidfBaseline,
    mean_file_vectors,
    mean_word_vectors,
    untrained_twin,
)
from .sentence_protocols import (
    cosine_relatedness,
    cross_validated_test,
    nested_cross_validation,
    pair_features,
    paraphrase_features,
    relatedness,
)
from .sentence_tasks import TASKS, LabelledSentences, SentencePairs, read_task

Task = LabelledSentences | SentencePairs
LOWEST_DEGREE = {"sick": 1, "stsb": 0}
WITHOUT_PERIOD = ("sick",)  # its final periods were taken away; encoders that can add an end mark do

# heading, task, figure, decimals
COLUMNS = [
    ("SICK r", "sick", "pearson", 3),
    ("SICK ρ", "sick", "spearman", 3),
    ("SICK MSE", "sick", "mse", 3),
    ("MRPC", "mrpc", "accuracy", 1),
    ("F1", "mrpc", "f1", 1),
    ("MRPC + feats", "mrpc", "accuracy_with_features", 1),
    ("F1 + feats", "mrpc", "f1_with_features", 1),
    ("MR", "mr", "accuracy", 1),
    ("CR", "cr", "accuracy", 1),
    ("SUBJ", "subj", "accuracy", 1),
    ("MPQA", "mpqa", "accuracy", 1),
    ("TREC", "trec", "accuracy", 1),
    ("STS-B r", "stsb", "pearson", 3),
    ("STS-B cos ρ", "stsb", "cosine_spearman", 3),
]


def score_task(name: str, task: Task, vectors: SentenceVectors) -> dict[str, Any]:
    """Figures of one task from sentence vectors alone."""
    if isinstance(task, LabelledSentences):
        features = vectors(task.sentences)
        if task.test.any():
            return cross_validated_test(features, task.labels, task.test)
        return nested_cross_validation(features, task.labels)
    eos = name in WITHOUT_PERIOD
    first, second = vectors(task.first, eos), vectors(task.second, eos)
    features, test = pair_features(first, second), task.split == 2
    if name in LOWEST_DEGREE:
        scores = relatedness(features, task.scores, task.split, LOWEST_DEGREE[name])
        return scores | cosine_relatedness(first[test], second[test], task.scores[test])
    labels = task.scores.astype(int)
    plain = cross_validated_test(features, labels, test, shuffle=True, f1=True)
    hand = np.concatenate([features, paraphrase_features(task.first, task.second)], 1)
    more = cross_validated_test(hand, labels, test, shuffle=True, f1=True)
    return plain | {f"{key}_with_features": value for key, value in more.items()}


def score_tfidf(name: str, task: Task) -> dict[str, Any]:
    """Figures of one task from tf-idf."""
    baseline = TfidfBaseline()
    if isinstance(task, LabelledSentences):
        return baseline.classify(task)
    return baseline.relate(task, LOWEST_DEGREE[name]) if name in LOWEST_DEGREE else baseline.paraphrase(task)


def score_all(tasks: dict[str, Task], encode: Callable[[list[str], bool], np.ndarray], label: str) -> dict[str, Any]:
    """A row of the table: `tasks`, `width`, `seconds` to encode and to score, `sentences_per_second`."""
    vectors = SentenceVectors(encode)
    start = time.perf_counter()
    for eos in (False, True):
        vectors.add((s for name, t in tasks.items() if (name in WITHOUT_PERIOD) == eos for s in _sentences(t)), eos)
    encoding = time.perf_counter() - start
    scores = {}
    for name, task in tasks.items():
        scores[name] = score_task(name, task, vectors)
        _progress(f"{label}: {name} {_brief(scores[name])}")
    return {
        "tasks": scores,
        "width": len(next(iter(vectors.rows.values()))),
        "encoding_seconds": round(encoding, 1),
        "scoring_seconds": round(time.perf_counter() - start - encoding, 1),
        "sentences_per_second": round(len(vectors.rows) / encoding, 1),
    }


def _sentences(task: Task) -> list[str]:
    return task.sentences if isinstance(task, LabelledSentences) else [*task.first, *task.second]


def _brief(scores: dict[str, Any]) -> str:
    shown = {figure for _, _, figure, _ in COLUMNS}
    return ", ".join(f"{figure} {value:.4g}" for figure, value in scores.items() if figure in shown)


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def mean_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of each figure over rows that differ by their seed only."""
    tasks: dict[str, Any] = {}
    for name in rows[0]["tasks"]:
        figures = [k for k, v in rows[0]["tasks"][name].items() if isinstance(v, float)]
        values = {k: [row["tasks"][name][k] for row in rows] for k in figures}
        tasks[name] = {k: float(np.mean(v)) for k, v in values.items()}
        tasks[name] |= {f"{k}_sd": float(np.std(v)) for k, v in values.items()}
    return {"tasks": tasks, "width": rows[0]["width"], "seeds": len(rows)}


def evaluate(
    model: str,
    data: str,
    tasks: Sequence[str] = tuple(TASKS),
    twins: int = 2,
    word_vectors: str | None = None,
    baselines: bool = True,
) -> dict[str, Any]:
    """The whole report.

    Args:
        model: Folder or Hub id of an encoder with `encode(sentences)`.
        data: Folder of the tasks, or its name below `$PICTALE_DATA`.
        tasks: Names out of `TASKS`.
        twins: Untrained models to average.
        word_vectors: A GloVe or word2vec file, for one more row.
        baselines: False leaves everything but the model out.

    Raises:
        DataError: scikit-learn is missing, or a task's files are.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise DataError("Sentence tasks are scored with scikit-learn: pip install -r training/requirements.txt.")
    start = time.perf_counter()
    loaded = {name: read_task(dataset_location(data), name) for name in tasks}
    encoder = load_sentence_encoder(model)
    rows = {"model": score_all(loaded, _encode_with(encoder), "model")}
    if baselines:
        seeds = [score_all(loaded, _encode_with(untrained_twin(encoder, s)), f"untrained {s}") for s in range(twins)]
        if seeds:
            rows["untrained twin"] = mean_row(seeds)
        rows["mean of its word vectors"] = score_all(loaded, mean_word_vectors(encoder), "word vectors")
        if word_vectors:
            texts = [s for task in loaded.values() for s in _sentences(task)]
            encode = mean_file_vectors(word_vectors, texts)
            rows[f"mean of {Path(word_vectors).name}"] = score_all(loaded, encode, Path(word_vectors).name)
        rows["tf-idf"] = {"tasks": {}}
        for name, task in loaded.items():
            rows["tf-idf"]["tasks"][name] = score_tfidf(name, task)
            _progress(f"tf-idf: {name} {_brief(rows['tf-idf']['tasks'][name])}")
    return {
        "model": model,
        "parameters": encoder.num_parameters(),
        "rows": rows,
        "paper": PAPER_ROWS,
        "seconds": round(time.perf_counter() - start, 1),
        "threads": torch.get_num_threads(),
    }


def _encode_with(encoder: Any) -> Callable[[list[str], bool], np.ndarray]:
    """`encode` of the encoder, with its end mark where it has the choice and the text wants one."""
    chooses = "use_eos" in inspect.signature(encoder.encode).parameters
    return lambda sentences, eos: encoder.encode(sentences, **({"use_eos": eos} if chooses else {}))


def markdown(report: dict[str, Any]) -> str:
    """The report as the table of a model card; a dash where a figure was not measured or not published."""
    measured = set().union(*(row["tasks"] for row in report["rows"].values()))
    columns = [column for column in COLUMNS if column[1] in measured]
    lines = ["| | " + " | ".join(c[0] for c in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    rows = {f"{n} ({r['width']})" if "width" in r else n: r["tasks"] for n, r in report["rows"].items()}
    for name, tasks in [*rows.items(), *((f"paper: {n}", t) for n, t in report["paper"].items())]:
        cells = [f"{tasks[t][k]:.{d}f}" if k in tasks.get(t, {}) else "-" for _, t, k, d in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a sentence encoder, or Hub id")
    parser.add_argument("--data", required=True, help="folder with one folder per task, or a name in $PICTALE_DATA")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="TASK", help=f"of {', '.join(TASKS)}")
    parser.add_argument("--twins", type=int, default=2, help="untrained models to average (default 2)")
    parser.add_argument("--word-vectors", default=None, help="GloVe or word2vec file, for one more row")
    parser.add_argument("--no-baselines", action="store_true", help="the model alone")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a Markdown table")
    args = parser.parse_args(arguments)
    try:
        report = evaluate(args.model, args.data, args.tasks, args.twins, args.word_vectors, not args.no_baselines)
    except PictaleError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    command = {"command": command_line("evaluate_sentences", arguments)}
    print(json.dumps(report | command) if args.json else markdown(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
