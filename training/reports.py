"""What a training run tells about itself: log.jsonl, lines on the screen, trackers, and a picture of the curves."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from tqdm import tqdm

from modeling.errors import PictaleError, RecipeError

from .plot_curves import can_draw, draw_runs, read_run


def check_trackers(names: Sequence[str]) -> None:
    """Raise RecipeError for a tracker that accelerate does not know, or would leave out silently: not installed."""
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise RecipeError('trackers is a list of names, for example ["tensorboard"].')
    installed = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise RecipeError(f"There is no tracker '{name}'; choose from {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}.")
        if name not in installed:
            raise RecipeError(f"The tracker '{name}' is not installed: pip install {name}, or take it out of trackers.")


class RunReports:
    """Reports of one run; only the main process writes.

    Args:
        accelerator: made with `log_with` and `project_dir` where there are trackers.
        output: the run's output_dir.
        total: optimizer steps in all, shown on the screen.
    """

    def __init__(self, accelerator: Accelerator, output: Path, total: int):
        self.accelerator, self.output, self.total = accelerator, output, total
        self.drawing, self.drawn = can_draw(), None
        logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)  # it warns of tied weights at every save
        self.bar = tqdm(total=total, disable=not accelerator.is_main_process or not sys.stderr.isatty(), unit="step")

    def start(self, options: Any, step: int = 0) -> None:
        """Begin, or go on from the checkpoint at `step`: what was reported after it is going to happen again.

        Args:
            options: dataclass of settings that trackers keep with the run.
        """
        self.bar.n = step
        self.bar.refresh()
        if step and self.accelerator.is_main_process:
            self._forget_after(step)
        if self.accelerator.log_with:
            settings = {k: v for k, v in dataclasses.asdict(options).items() if isinstance(v, (int, float, str))}
            resumed = {"tensorboard": {"purge_step": step + 1}} if step else {}
            self.accelerator.init_trackers("pictale", config=None if step else settings, init_kwargs=resumed)

    def _forget_after(self, step: int) -> None:
        log = self.output / "log.jsonl"
        kept = []
        for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except ValueError:
                continue  # cut off when the run was killed
        temporary = log.with_name("log.jsonl.writing")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, log)

    def log(self, kind: str, record: dict[str, Any]) -> None:
        """Report `record`, which has a `step`; `kind` ("train" or "evaluation") is how trackers group it."""
        if not self.accelerator.is_main_process:
            return
        self.output.mkdir(parents=True, exist_ok=True)
        with (self.output / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        step, *rest = record.items()
        text = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in rest)
        tqdm.write(f"step {step[1]}/{self.total}  {text}", file=sys.stderr)
        if self.accelerator.log_with:
            self.accelerator.log({f"{kind}/{k}": v for k, v in rest}, step=step[1])
        if kind == "train":
            self.bar.set_postfix(loss=f"{record['loss']:.3f}", refresh=False)

    def draw(self, last: bool = False) -> None:
        """Draw curves.png anew where matplotlib is installed, at most twice a minute but for the last time. A picture
        that fails must not cost the run."""
        recent = self.drawn is not None and time.monotonic() - self.drawn < 30
        if not self.drawing or not self.accelerator.is_main_process or (recent and not last):
            return
        self.drawn = time.monotonic()
        try:
            draw_runs([read_run(self.output)], self.output / "curves.png")
        except PictaleError:
            return  # nothing logged yet
        except Exception as error:  # noqa: BLE001 - of matplotlib, its fonts or the disk
            print(f"curves.png cannot be drawn ({error}); training goes on.", file=sys.stderr)
            self.drawing = False

    def close(self) -> None:
        self.bar.close()
        self.draw(last=True)
        if self.accelerator.log_with:
            self.accelerator.end_training()
