"""Loss and metric curves of one or several runs as a picture.

    python -m training.plot_curves runs/captioner-flickr8k --output curves.png
    python -m training.plot_curves runs/first runs/second --output comparison.svg --only loss,cider

Reads the `log.jsonl` that the training loop writes, also of a run that is still going on or was resumed. Every run has
its colour; the loss on training data is a line, what was evaluated has dots, and a dotted upright marks the best
weights. Needs matplotlib (training/requirements.txt). The training loop draws the same picture of its own run into
`<output_dir>/curves.png`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modeling.errors import DataError, PictaleError

TIMES = ("step", "epoch", "s_per_step", "evaluation_s")  # of no interest as curves
PICTURES = (".png", ".svg", ".pdf", ".jpg")


@dataclass
class RunCurves:
    """What a run logged.

    Args:
        name: of the run's folder.
        folder: where it lies.
        train, evaluation: curve name -> {step: value}; a step logged twice counts as it was logged last.
        best_step: of the best weights; None if nothing was evaluated yet.
    """

    name: str
    folder: Path
    train: dict[str, dict[int, float]] = field(default_factory=dict)
    evaluation: dict[str, dict[int, float]] = field(default_factory=dict)
    best_step: int | None = None


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def read_run(path: str | Path) -> RunCurves:
    """Curves of a run, from its folder or its log.jsonl.

    Raises:
        DataError: there is no log, or nothing in it.
    """
    path = Path(path)
    log = path / "log.jsonl" if path.is_dir() else path
    try:
        lines = log.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise DataError(f"There is no log of a run in {path}: give an output_dir of a training script.") from None
    folder = log.resolve().parent
    run = RunCurves(folder.name, folder)
    for line in lines:
        try:
            record = json.loads(line)
            step = int(record["step"])
        except (ValueError, KeyError, TypeError):
            continue  # the last line of a run that was killed while writing it
        curves = run.train if "learning_rate" in record else run.evaluation
        for name, value in record.items():
            if name not in TIMES and isinstance(value, (int, float)) and math.isfinite(value):
                curves.setdefault(name, {})[step] = float(value)
    if not run.train and not run.evaluation:
        raise DataError(f"{log} holds no step yet: wait for the first report of the run.")
    try:
        progress = json.loads((log.parent / "progress.json").read_text(encoding="utf-8"))
        run.best_step = progress["best_step"] if progress["best_metric"] is not None else None
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no checkpoint yet
    return run


def panel_names(runs: Sequence[RunCurves]) -> list[str]:
    """The loss, then what was evaluated, then how training went."""
    logged = dict.fromkeys(name for run in runs for name in ("loss", *run.evaluation, *run.train))
    last = ("learning_rate", "grad_norm")
    names = [*(name for name in logged if name not in last), *last]
    return [name for name in names if any(name in run.train or name in run.evaluation for run in runs)]


def draw_runs(runs: Sequence[RunCurves], output: str | Path, only: Sequence[str] = ()) -> Path:
    """Draw `runs` over each other, one panel a curve name.

    Args:
        runs: at least one.
        output: picture to write; its ending says the format.
        only: names of the curves to draw; empty draws all.

    Raises:
        DataError: matplotlib is missing, a curve of `only` was never logged, or the format is not known.
    """
    output = Path(output)
    if not can_draw():
        raise DataError("Curves need matplotlib: pip install -r training/requirements.txt")
    if output.suffix.lower() not in PICTURES:
        raise DataError(f"{output} is no picture: end its name in one of {', '.join(PICTURES)}.")
    panels = panel_names(runs)
    unknown = [name for name in only if name not in panels]
    if unknown:
        raise DataError(f"No run has logged '{unknown[0]}'; there are {', '.join(panels)}.")
    panels = [name for name in panels if not only or name in only]

    from matplotlib.figure import Figure  # not pyplot: it would keep every figure of a run in memory

    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.5 * columns, 3.2 * rows), layout="constrained")
    labels = [run.name for run in runs]
    if len(set(labels)) < len(labels):
        labels = [f"{run.folder.parent.name}/{run.name}" for run in runs]
    for axes, name in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=False):
        _draw_panel(axes, name, runs, labels if len(runs) > 1 else [None])
    for axes in figure.axes[len(panels) :]:
        axes.remove()
    last = max(step for run in runs for curves in (run.train, run.evaluation) for c in curves.values() for step in c)
    for axes in figure.axes:
        axes.set_xlim(-0.02 * last, 1.02 * last)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(output.name + ".writing")
    figure.savefig(temporary, format=output.suffix[1:].lower(), dpi=110)
    os.replace(temporary, output)
    return output


def _draw_panel(axes, name: str, runs: Sequence[RunCurves], labels: Sequence[str | None]) -> None:
    for i, (run, label) in enumerate(zip(runs, labels, strict=True)):
        colour = f"C{i % 10}"
        trained, evaluated = run.train.get(name, {}), run.evaluation.get(name, {})
        both = bool(trained and evaluated)
        if trained:
            axes.plot(*_points(trained), color=colour, linewidth=1.2, label=_label(label, "training" if both else ""))
        if evaluated:
            axes.plot(
                *_points(evaluated),
                color=colour,
                linewidth=1.2,
                linestyle="--" if both else "-",
                marker="o",
                markersize=3,
                label=_label(label, "evaluation" if both else ""),
            )
        if run.best_step and evaluated:
            axes.axvline(run.best_step, color=colour, linestyle=":", linewidth=1)
    axes.set_title(name.replace("_", " "), fontsize=10)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def _points(curve: dict[int, float]) -> tuple[list[int], list[float]]:
    steps = sorted(curve)
    return steps, [curve[step] for step in steps]


def _label(run: str | None, kind: str) -> str | None:
    return ", ".join(part for part in (run, kind) if part) or None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output_dir of a training script, or its log.jsonl")
    parser.add_argument("--output", default="curves.png", help="picture to write: .png, .svg, .pdf or .jpg")
    parser.add_argument("--only", default="", metavar="NAMES", help="curves to draw, e.g. loss,cider; default: all")
    args = parser.parse_args(arguments)
    try:
        only = [name.strip() for name in args.only.split(",") if name.strip()]
        print(draw_runs([read_run(run) for run in args.runs], args.output, only))
    except PictaleError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
