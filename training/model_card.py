"""Model cards: the front matter that the Hub reads, with the measured figures, and a first text where there is none.

    python -m training.evaluate_captioner --model DIR --dataset flickr8k --split test --json > report.json
    python -m training.model_card DIR --report report.json

The figures of a folder stand in its `figures.json`, with the command that measured them and the fingerprint of the
weights they belong to; from there they go into the card as `model-index`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from modeling.errors import ModelFolderError, PictaleError

FIGURES_FILE = "figures.json"
METRICS = {
    "bleu_1": ("bleu", "BLEU-1"),
    "bleu_4": ("bleu", "BLEU-4"),
    "meteor": ("meteor", "METEOR"),
    "rouge_l": ("rouge", "ROUGE-L"),
    "cider": ("cider", "CIDEr"),
}
# what the Hub calls the task, and how the model is used
KINDS = {
    "pictale_captioner": (
        "image-to-text",
        ["image-captioning"],
        'from transformers import pipeline\n\ncaptioner = pipeline("image-captioning", model="{place}", '
        'trust_remote_code=True)\nprint(captioner("photo.jpg")[0]["generated_text"])',
    ),
    "pictale_skip_thoughts": (
        "feature-extraction",
        ["skip-thoughts", "sentence-similarity"],
        'from transformers import AutoModel\n\nencoder = AutoModel.from_pretrained("{place}", trust_remote_code=True)\n'
        'vectors = encoder.encode(["A dog runs on the beach."])',
    ),
    "pictale_story_decoder": (
        "text-generation",
        ["story-generation"],
        "from transformers import AutoModelForSeq2SeqLM\n\n"
        'decoder = AutoModelForSeq2SeqLM.from_pretrained("{place}", trust_remote_code=True)',
    ),
    "pictale_storyteller": (
        "image-to-text",
        ["image-to-story"],
        'from transformers import pipeline\n\nstoryteller = pipeline("image-to-story", model="{place}", '
        'trust_remote_code=True)\nprint(storyteller("photo.jpg", seed=1)["story"])',
    ),
}
TEMPLATE = """---
{{ card_data }}
---

# {{ name }}

{{ what }}

```python
{{ usage }}
```

## Data and recipe

{{ recipe }}

## Figures

{{ figures }}

## Limits

It knows what its training data show and repeats what is common there, errors and prejudices included; nothing is
filtered. Do not rely on it where a wrong description could harm somebody.

## Licence

{{ licence }}
"""


def fingerprint(folder: Path) -> str:
    """First 16 digits of the sha256 of the weights; of a pipeline, which has none, of its description."""
    name = "model.safetensors" if (folder / "model.safetensors").is_file() else "pipeline.json"
    with open(folder / name, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def read_figures(folder: Path) -> list[dict[str, Any]]:
    """What is in `figures.json`, or nothing.

    Raises:
        ModelFolderError: it is damaged, or was measured on other weights than the folder's.
    """
    path = folder / FIGURES_FILE
    if not path.is_file():
        return []
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        wrong = [f["command"] for f in figures if f["weights"] != fingerprint(folder)]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFolderError(f"{path} is damaged ({type(error).__name__}): measure again.") from None
    if wrong:
        raise ModelFolderError(f"{path} tells of other weights than these: measure again, with `{wrong[0]}`.")
    return figures


def figure_of(folder: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of `figures.json` from a report of `training.evaluate_captioner`."""
    metrics = {name: round(float(report[name]), 2) for name in METRICS if report.get(name) is not None}
    if not metrics or not {"dataset", "split"} <= set(report):
        raise ModelFolderError(
            "That is no report of `training.evaluate_captioner --json`: it has no dataset and scores."
        )
    beams = report.get("num_beams", 3)
    dataset, split = report["dataset"], report["split"]
    command = f"python -m training.evaluate_captioner --model {folder.name} --dataset {dataset} --split {split}"
    return {
        "task": "image-to-text",
        "dataset": dataset,
        "split": split,
        "command": f"{command} --num-beams {beams}",
        "weights": fingerprint(folder),
        "metrics": metrics,
    }


def model_index(figures: list[dict[str, Any]]) -> list[EvalResult]:
    """What the Hub shows beside a model."""
    return [
        EvalResult(
            task_type=figure["task"],
            dataset_type=figure["dataset"],
            dataset_name=figure["dataset"],
            dataset_split=figure["split"],
            metric_type=METRICS.get(name, (name, name))[0],
            metric_name=METRICS.get(name, (name, name))[1],
            metric_value=value,
            metric_args={"command": figure["command"]},
        )
        for figure in figures
        for name, value in figure["metrics"].items()
    ]


def with_figures(text: str, name: str, figures: list[dict[str, Any]]) -> str:
    """A card with these figures in its front matter in place of others; the text stays as it is."""
    card = ModelCard(text, ignore_metadata_errors=True)
    card.data.model_name, card.data.eval_results = (name, model_index(figures)) if figures else (None, None)
    return str(card)


def first_card(folder: Path, repo_id: str, licence: str, language: str = "en") -> str:
    """A card for a folder that has none, from what the folder says of itself."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] not in KINDS:
        raise ModelFolderError(f"There is no card for a {config['model_type']}: write a README.md for it.")
    task, tags, usage = KINDS[config["model_type"]]
    figures = read_figures(folder)
    rows = [
        f"| {f['dataset']}, {f['split']} | {METRICS.get(n, (n, n))[1]} | {v:g} | `{f['command']}` |"
        for f in figures
        for n, v in f["metrics"].items()
    ]
    has_recipe = (folder / "recipe.json").is_file()
    name = repo_id.split("/")[-1]
    return str(
        ModelCard.from_template(
            ModelCardData(
                language=language,
                license=licence,
                library_name="transformers",
                pipeline_tag=task,
                tags=[*tags, "pictale"],
                model_name=name if figures else None,
                eval_results=model_index(figures) or None,
            ),
            template_str=TEMPLATE,
            name=name,
            what=f"A {config['architectures'][0]} of [Pictale](https://huggingface.co/pictale), which tells stories "
            "about photographs.",
            usage=usage.format(place=repo_id),
            recipe="[recipe.json](recipe.json) has every setting and names the data."
            if has_recipe
            else "Not recorded.",
            figures="\n".join(["| data | metric | value | command |", "|---|---|---|---|", *rows])
            if rows
            else "None were measured on these weights.",
            licence=f"{licence}. The code beside the weights is Apache-2.0.",
        )
    )


def write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.writing")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def add_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Put a report's figures in `figures.json`, in place of those of the same command or of other weights, and in the
    front matter of the card."""
    new = figure_of(folder, report)
    try:
        kept = [figure for figure in read_figures(folder) if figure["command"] != new["command"]]
    except ModelFolderError:
        kept = []
    write_text(folder / FIGURES_FILE, json.dumps([*kept, new], indent=2) + "\n")
    card = folder / "README.md"
    if card.is_file():
        write_text(card, with_figures(card.read_text(encoding="utf-8"), folder.name, [*kept, new]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="model folder")
    parser.add_argument("--report", type=Path, required=True, help="what `evaluate_captioner --json` printed")
    args = parser.parse_args()
    try:
        if not (args.folder / "config.json").is_file():
            raise ModelFolderError(f"{args.folder} is no model folder: it has no config.json.")
        for line in args.report.read_text(encoding="utf-8").splitlines():
            add_report(args.folder, json.loads(line))
    except (PictaleError, OSError, ValueError) as error:
        sys.exit(f"model_card: {error}")
    print(f"{args.folder / FIGURES_FILE}: {len(read_figures(args.folder))} measurements")


if __name__ == "__main__":
    main()
