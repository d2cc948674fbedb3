"""Measured figures of a model folder: what evaluations reported, kept in `figures.json`, and the tables of a card.

A measurement is a JSON object
    kind      what was measured, a key of `KINDS`
    data, split, command    on what, and how; no dates, no paths of a machine
    weights   fingerprint of the weights it belongs to; of a pipeline also those of its `components`
    rows      figures by the name of a row of the table, then by metric; [value, low, high] where there is an interval
    beside    names of the rows that are not about these weights: baselines, and figures of papers
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult

from modeling.errors import ModelFolderError

Measurement = dict[str, Any]
PLACES = re.compile(r"<!-- figures(?:: (\w+))? -->\n(.*?)<!-- /figures -->", re.DOTALL)
NOTHING = "Nothing was measured on these weights.\n"
LEFT_OUT = {"--json": 0, "--markdown": 0, "--captions": 1, "--stories": 1}  # of a command: how a report is written


class Column(NamedTuple):
    """Heading, what the Hub calls the metric, and how a number is written."""

    title: str
    metric: str
    form: str = ".1f"


@dataclass(frozen=True)
class Kind:
    """What one evaluation measures.

    Args:
        task: What the Hub calls it.
        columns: Of the table, by metric; "DATA.METRIC" is measured on a data set of its own.
        rows: Of a report: figures by row, and the names of those beside the model's.
        label: The model's row where nothing else is said.
    """

    task: str
    columns: Mapping[str, Column]
    rows: Callable[[Mapping[str, Any], str], tuple[dict[str, Mapping[str, Any]], list[str]]]
    label: str = ""


# -- from reports ----------------------------------------------------------------------------------------------------
def _caption_rows(report: Mapping[str, Any], label: str) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    return {", ".join(filter(None, [label, f"beam {report.get('num_beams', 3)}"])): report}, []


def _retrieval_rows(report: Mapping[str, Any], label: str) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    ways = {"photo to sentence": "to_text_", "sentence to photo": "to_image_"}
    return {
        ", ".join(filter(None, [label, way])): {k.removeprefix(start): v for k, v in report.items()}
        for way, start in ways.items()
    }, []


def _sentence_rows(report: Mapping[str, Any], label: str) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    names = {"model": label, "tf-idf": "tf-idf and logistic regression"}
    if twins := report["rows"].get("untrained twin"):
        names["untrained twin"] = f"its untrained twins, mean of {twins['seeds']}"
    rows = {names.get(name, name): row["tasks"] for name, row in report["rows"].items()}
    rows |= {f"paper: {name}": tasks for name, tasks in report.get("paper", {}).items()}
    flat = {n: {f"{task}.{k}": v for task, row in tasks.items() for k, v in row.items()} for n, tasks in rows.items()}
    return flat, [name for name in flat if name != label]


def _story_rows(report: Mapping[str, Any], label: str) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    baselines = ("bookshelf", "caption", "real")
    beside = [name for name in report["systems"] if name in baselines or name.startswith("neural-storyteller")]
    return dict(report["systems"]), beside


def _perplexity_rows(report: Mapping[str, Any], label: str) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    return {label: report}, []


KINDS = {
    "captions": Kind(
        "image-to-text",
        {f"bleu_{n}": Column(f"BLEU-{n}", "bleu") for n in (1, 2, 3, 4)}
        | {
            "meteor": Column("METEOR", "meteor"),
            "rouge_l": Column("ROUGE-L", "rouge"),
            "cider": Column("CIDEr", "cider"),
        }
        | {"distinct_captions": Column("distinct captions", "distinct_captions", ".0%")}
        | {"mean_words": Column("words a caption", "mean_words")},
        _caption_rows,
    ),
    "sentences": Kind(
        "feature-extraction",
        {
            "sick.pearson": Column("SICK r", "pearsonr", ".3f"),
            "sick.spearman": Column("SICK ρ", "spearmanr", ".3f"),
            "sick.mse": Column("SICK MSE", "mse", ".3f"),
            "mrpc.accuracy": Column("MRPC", "accuracy"),
            "mrpc.f1": Column("MRPC F1", "f1"),
            "mrpc.accuracy_with_features": Column("MRPC + feats", "accuracy"),
            "mrpc.f1_with_features": Column("F1 + feats", "f1"),
        }
        | {f"{task}.accuracy": Column(task.upper(), "accuracy") for task in ("mr", "cr", "subj", "mpqa", "trec")}
        | {"stsb.pearson": Column("STS-B r", "pearsonr", ".3f")},
        _sentence_rows,
        "this model",
    ),
    "retrieval": Kind(
        "feature-extraction",
        {f"r{k}": Column(f"R@{k}", f"recall_at_{k}") for k in (1, 5, 10)}
        | {"median_rank": Column("median rank", "median_rank", "g")},
        _retrieval_rows,
    ),
    "stories": Kind(
        "text-generation",
        {
            "found": Column("found", "retrieval_accuracy", ".0%"),
            "margin": Column("margin", "grounding_margin", ".2f"),
            "words": Column("words", "content_word_recall", ".0%"),
            "style": Column("style", "style_accuracy", ".0%"),
            "perplexity": Column("perplexity", "perplexity", ".0f"),
        }
        | {f"distinct_{n}": Column(f"distinct-{n}", f"distinct_{n}", ".2f") for n in (1, 2, 3)}
        | {"repeated": Column("repeated", "repeated_4_grams", ".0%"), "copied": Column("copied", "copied", ".0%")}
        | {"length": Column("length", "words", ".0f")},
        _story_rows,
    ),
    "perplexity": Kind("text-generation", {}, _perplexity_rows, "this model"),
}


def kind_of(report: Any) -> str:
    """Which evaluation wrote a report.

    Raises:
        ModelFolderError: none that is known.
    """
    if isinstance(report, Mapping):
        if "rows" in report and "paper" in report:
            return "sentences"
        if "systems" in report:
            return "stories"
        if "to_text_r1" in report:
            return "retrieval"
        if any(str(name).startswith("perplexity_") for name in report):
            return "perplexity"
        if {"dataset", "split"} <= set(report) and set(KINDS["captions"].columns) & set(report):
            return "captions"
    raise ModelFolderError(
        "That is no report: give what evaluate_captioner, evaluate_sentences, evaluate_retrieval or evaluate_stories "
        "printed with --json, or train_story_decoder with --evaluate-only."
    )


def measurement(
    report: Mapping[str, Any], weights: str, place: str, label: str | None = None, command: str | None = None
) -> Measurement:
    """What a report says, in short.

    Args:
        weights: Fingerprint of the folder's weights.
        place: What stands for the folder in the report's command.
        label: Of the model's row, where the report is about it in some special state.
        command: How it was measured, where the report does not say so, or not well.

    Raises:
        ModelFolderError: it is no report, or nobody says how it was measured.
    """
    name = kind_of(report)
    kind = KINDS[name]
    if not command and not report.get("command"):
        raise ModelFolderError("The report does not say how it was made: name the --command.")
    try:
        rows, beside = kind.rows(report, label or kind.label)
        figures = {row: _figures(name, values) for row, values in rows.items()}
        data, split = _data(name, report)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise ModelFolderError(f"The report is damaged ({type(error).__name__}: {error}): measure again.") from None
    return {
        "kind": name,
        "data": data,
        "split": split,
        "command": command or _of_place(report["command"], place),
        "weights": weights,
        "rows": {row: values for row, values in figures.items() if values},
        "beside": [row for row in beside if figures[row]],
    }


def _figures(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What has a column, four digits of each number."""
    known = [k for k in values if k.startswith("perplexity_")] if kind == "perplexity" else KINDS[kind].columns
    found = {name: value for name in known if (value := values.get(name)) is not None}
    return {name: _short(value) for name, value in found.items()}


def _short(value: Any) -> Any:
    if isinstance(value, Mapping):
        parts = [value["value"], value.get("low"), value.get("high")]
        return _short(parts[0]) if None in parts else [_short(part) for part in parts]
    return float(f"{float(value):.4g}")


def _data(kind: str, report: Mapping[str, Any]) -> tuple[str, str]:
    if kind == "sentences":
        return "sentence tasks", "test"
    if kind == "perplexity":
        return ", ".join(_plain(name) for name in report["data"]), "held out"
    return _plain(str(report["dataset"])), report["split"]


def add_measurement(kept: Sequence[Measurement], new: Measurement) -> list[Measurement]:
    """`new` after those kept; rows measured again are in its place alone."""
    about, found = ("kind", "data", "split"), []
    for old in kept:
        if all(old[key] == new[key] for key in about):
            rows = {name: row for name, row in old["rows"].items() if name not in new["rows"]}
            old = old | {"rows": rows, "beside": [name for name in old["beside"] if name in rows]}
        if old["rows"]:
            found.append(old)
    same = [old for old in found if all(old[k] == new[k] for k in (*about, "command", "weights"))]
    if same:  # one command that reports several times: of several beam widths
        same[0]["rows"] |= new["rows"]
        same[0]["beside"] = [*same[0]["beside"], *new["beside"]]
        return found
    return [*found, new]


# -- commands --------------------------------------------------------------------------------------------------------
def command_line(module: str, arguments: Sequence[str] | None) -> str:
    """How a script of `training` was called, as another person may call it: without paths of this machine.

    Args:
        arguments: What `main` was given; None: those of the process.
    """
    words, kept = list(sys.argv[1:] if arguments is None else arguments), []
    while words:
        word = words.pop(0)
        flag, equals, _ = word.partition("=")
        if flag in LEFT_OUT:
            del words[: 0 if equals else LEFT_OUT[flag]]
        else:
            kept.append(_plain(word))
    return shlex.join(["python", "-m", f"training.{module}", *kept])


def _plain(word: str) -> str:
    """A path of this machine becomes its last name, also after KEY=."""
    key, equals, value = word.rpartition("=")
    return key + equals + (Path(value).name if Path(value).is_absolute() else value)


def _of_place(command: str, place: str) -> str:
    """The command with `place` for the model it measured."""
    words = shlex.split(command)
    for i, word in enumerate(words):
        if word == "--model" and i + 1 < len(words):
            words[i + 1] = place
        elif word.startswith(("--model=", "initial=")):
            words[i] = word.partition("=")[0] + "=" + place
    return shlex.join(words)


# -- for cards -------------------------------------------------------------------------------------------------------
def column(kind: str, metric: str) -> Column:
    if kind == "perplexity":
        return Column(metric.removeprefix("perplexity_").replace("_", " "), "perplexity")
    return KINDS[kind].columns[metric]


def model_index(figures: Sequence[Measurement]) -> list[EvalResult]:
    """What the Hub shows beside a model: the rows that are about it."""
    results = []
    for one in figures:
        about = [other for other in figures if all(other[k] == one[k] for k in ("kind", "data", "split"))]
        several = sum(len(other["rows"]) - len(other["beside"]) for other in about) > 1
        for row in (name for name in one["rows"] if name not in one["beside"]):
            for metric, value in one["rows"][row].items():
                title = column(one["kind"], metric).title
                task, dot, _ = metric.partition(".")
                data = task if dot else one["data"]
                results.append(
                    EvalResult(
                        task_type=KINDS[one["kind"]].task,
                        dataset_type=data,
                        dataset_name=data,
                        dataset_split=one["split"],
                        metric_type=column(one["kind"], metric).metric,
                        metric_name=f"{title} ({row})" if several else title,
                        metric_value=value[0] if isinstance(value, list) else value,
                    )
                )
    return results


def tables(figures: Sequence[Measurement], kind: str | None = None) -> str:
    """Commands and tables as Markdown, one for each data set: the model's rows first, then what stands beside them.

    Args:
        kind: Of this kind alone; None: of all.
    """
    groups: dict[tuple[str, str, str], list[Measurement]] = {}
    for one in figures:
        if kind in (None, one["kind"]):
            groups.setdefault((one["kind"], one["data"], one["split"]), []).append(one)
    return "\n".join(_table(*about, measured) for about, measured in groups.items()) or NOTHING


def _table(kind: str, data: str, split: str, measured: Sequence[Measurement]) -> str:
    own = {f"**{n}**": row for one in measured for n, row in one["rows"].items() if n not in one["beside"]}
    rows = own | {n: row for one in measured for n, row in one["rows"].items() if n in one["beside"]}
    known = KINDS[kind].columns or dict.fromkeys(metric for row in rows.values() for metric in row)
    metrics = [metric for metric in known if any(metric in row for row in rows.values())]
    lines = [f"On {data} ({split}):", "", *dict.fromkeys(f"    {one['command']}" for one in measured), ""]
    lines.append("| | " + " | ".join(column(kind, metric).title for metric in metrics) + " |")
    lines.append("|---" * (len(metrics) + 1) + "|")
    for name, row in rows.items():
        cells = [_cell(row.get(metric), column(kind, metric).form) for metric in metrics]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: Any, form: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return "{} ({} to {})".format(*(format(part, form) for part in value))
    return format(value, form)


def with_tables(text: str, figures: Sequence[Measurement]) -> str:
    """A card with its places filled: from `<!-- figures -->` or `<!-- figures: KIND -->` to `<!-- /figures -->`.

    Raises:
        ModelFolderError: a place for a kind that does not exist.
    """

    def fill(place: re.Match[str]) -> str:
        kind = place[1]
        if kind is not None and kind not in KINDS:
            raise ModelFolderError(f"The card has a place for figures: {kind}, but there are {', '.join(KINDS)}.")
        start = "<!-- figures -->" if kind is None else f"<!-- figures: {kind} -->"
        return f"{start}\n{tables(figures, kind)}<!-- /figures -->"

    return PLACES.sub(fill, text)


def without_place(text: str, figures: Sequence[Measurement]) -> list[str]:
    """The kinds of figures that a card has no place for."""
    places = {place[1] for place in PLACES.finditer(text)}
    return [] if None in places else sorted({one["kind"] for one in figures} - places)
