"""What fine-tuning a captioner has gained, and the folder that it ends in."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from modeling.bookshelf import BOOKSHELF_FILE
from modeling.model_folder import PIPELINE_FILE, component_folder, read_pipeline_file

from .caption_sources import CaptionSplit
from .captioner_recipe import CaptionerRecipe
from .evaluate_captioner import EvaluationOptions, LoadedCaptioner, caption_split
from .metrics_captions import bootstrap_interval, score_captions
from .recipes import write_recipe
from .sync_code import complete

SHOWN = 4


@dataclass(frozen=True)
class Measured:
    """Captions of the held-out photographs by row, their scores, and the CIDEr of each."""

    captions: dict[int, str]
    scores: dict[str, float]
    cider_each: tuple[float, ...]


def measure(captioner: LoadedCaptioner, held: CaptionSplit) -> Measured:
    """Caption the held-out photographs with beam width 3 and score them (no METEOR: it needs a minute to start)."""
    captions = caption_split(captioner, held, EvaluationOptions())[3]
    scored = score_captions(list(captions.values()), [held.captions[row] for row in captions], meteor=False)
    return Measured(captions, scored.scores, scored.cider_each)


@dataclass(frozen=True)
class Comparison:
    """Before and after.

    Args:
        learned: photographs learned from.
        held: the others.
        new_words: words added to the vocabulary.
        seconds, memory: what it took; bytes at the peak, None where the system does not say.
    """

    learned: int
    held: CaptionSplit
    before: Measured
    after: Measured
    new_words: list[str]
    seconds: int
    memory: int | None

    @cached_property
    def gain(self) -> tuple[float, float, float]:
        """CIDEr gained, with its 95 % interval over the held-out photographs (both captions of a photograph paired)."""
        gains = [b - a for a, b in zip(self.before.cider_each, self.after.cider_each, strict=True)]
        return sum(gains) / len(gains), *bootstrap_interval(gains)

    def report(self) -> dict[str, Any]:
        """All of it, for report.json."""
        gain, low, high = self.gain
        return {
            "photographs_learned": self.learned,
            "photographs_held_out": len(self.before.captions),
            "new_words": self.new_words,
            "before": self.before.scores,
            "after": self.after.scores,
            "cider_gain": round(gain, 2),
            "cider_gain_interval": [round(low, 2), round(high, 2)],
            "seconds": self.seconds,
            "peak_memory_bytes": self.memory,
            "captions": {
                self.held.image_ids[row]: {
                    "before": text,
                    "after": self.after.captions[row],
                    "people": self.held.captions[row],
                }
                for row, text in self.before.captions.items()
            },
        }

    def text(self) -> str:
        """What a person reads at the end."""
        gain, low, high = self.gain
        memory = f", {self.memory / 1e9:.1f} GB of memory" if self.memory else ""
        lines = [
            f"After:  CIDEr {self.after.scores['cider']:.1f}, BLEU-4 {self.after.scores['bleu_4']:.1f}, "
            f"in {self.seconds} seconds{memory}",
            f"Gain on {len(self.after.captions)} photographs it has not learned from: {gain:+.1f} CIDEr "
            f"(95 % interval {low:+.1f} to {high:+.1f}).",
        ]
        if low <= 0:
            lines.append("That may be chance: more photographs, or more captions of each, would tell.")
        for row in list(self.before.captions)[:SHOWN]:
            lines += [
                f"\n{self.held.image_ids[row]}",
                f"    before  {self.before.captions[row]}",
                f"    after   {self.after.captions[row]}",
                f"    people  {self.held.captions[row][0]}",
            ]
        return "\n".join(lines)


def model_card(recipe: CaptionerRecipe, comparison: Comparison) -> str:
    """README.md of the result; `recipe.initial` is what it was made from."""
    gain, low, high = comparison.gain
    rows = "\n".join(
        f"| {name} | {measured.scores['bleu_1']:.1f} | {measured.scores['bleu_4']:.1f} | "
        f"{measured.scores['rouge_l']:.1f} | {measured.scores['cider']:.1f} |"
        for name, measured in (("before", comparison.before), ("after", comparison.after))
    )
    training = recipe.training
    return f"""---
library_name: transformers
pipeline_tag: image-to-text
tags: [image-captioning, pictale]
---

# Fine-tuned captioner

Pictale's captioner `{recipe.initial}`, fine-tuned on {comparison.learned} photographs with
`python -m training.finetune_captioner` ({training.max_steps} steps of {recipe.data.batch_size} photographs, peak rate
{training.learning_rate:g}, {len(comparison.new_words)} new words). The settings are in recipe.json, every held-out
caption in report.json.

    python -m modeling PHOTO --model FOLDER

{len(comparison.after.captions)} photographs of the collection were held out; nothing was chosen by looking at them:

| | BLEU-1 | BLEU-4 | ROUGE-L | CIDEr |
|---|---|---|---|---|
{rows}

Gain {gain:+.1f} CIDEr, 95 % interval {low:+.1f} to {high:+.1f}. It knows its collection better than the world: what it
could describe before and never saw again it may have forgotten.
"""


def publish(output: Path, work: Path, pipeline: Path, recipe: CaptionerRecipe, comparison: Comparison) -> None:
    """Put the trained captioner and the other parts of `pipeline` into `output`, and remove the folder `work` in it."""
    run = work / "run"
    for path in [*(run / "best").iterdir(), run / "curves.png", run / "log.jsonl"]:
        if path.exists():
            shutil.copy2(path, output / path.name)
    description = read_pipeline_file(pipeline)
    components = {"captioner": "."}
    for part, name in description["components"].items():
        if part != "captioner":
            source = component_folder(pipeline, name)
            components[part] = source.name
            shutil.copytree(source, output / source.name, dirs_exist_ok=True)
    shutil.copytree(pipeline / "styles", output / "styles", dirs_exist_ok=True)
    if (pipeline / BOOKSHELF_FILE).is_file():
        shutil.copyfile(pipeline / BOOKSHELF_FILE, output / BOOKSHELF_FILE)
    complete(output)
    (output / "README.md").write_text(model_card(recipe, comparison), encoding="utf-8")
    write_recipe(recipe, output / "recipe.json")
    (output / "report.json").write_text(json.dumps(comparison.report(), indent=2, ensure_ascii=False), encoding="utf-8")
    temporary = output / f"{PIPELINE_FILE}.writing"
    temporary.write_text(json.dumps(description | {"components": components}, indent=2), encoding="utf-8")
    os.replace(temporary, output / PIPELINE_FILE)  # last: a folder with it is complete
    shutil.rmtree(work)
