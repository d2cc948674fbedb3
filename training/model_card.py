"""Model cards: the front matter that the Hub reads, tables of measured figures, and a first text where there is none.

    python -m training.evaluate_captioner --model DIR --dataset flickr8k --split test --json > report.json
    python -m training.model_card DIR --report report.json

Reports of evaluate_captioner, evaluate_sentences, evaluate_retrieval and evaluate_stories with --json, and of
train_story_decoder with --evaluate-only, are understood. Their figures are kept in the folder's `figures.json`, with
the command that measured them and the fingerprint of the weights they belong to. From there they go into the card: as
`model-index` into its front matter, and as tables between the lines `<!-- figures -->` and `<!-- /figures -->`
(`<!-- figures: captions -->`: of one kind alone). The rest of a card is left as it is. Without --report the card is
brought up to date with `figures.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from yaml import YAMLError

from modeling.errors import ModelFolderError, PictaleError
from modeling.model_folder import PIPELINE_FILE, local_component, read_pipeline_file

from .figures import Measurement, add_measurement, measurement, model_index, with_tables, without_place

FIGURES_FILE = "figures.json"
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
    "pictale_joint_embedding": (
        "feature-extraction",
        ["image-text-retrieval", "visual-semantic-embedding"],
        'from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained("{place}", trust_remote_code=True)\n'
        'vectors = model.embed_texts(["A dog runs on the beach."])',
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

<!-- figures -->
None were measured on these weights.
<!-- /figures -->

## Limits

It knows what its training data show and repeats what is common there, errors and prejudices included; nothing is
filtered. Do not rely on it where a wrong description could harm somebody.

## Licence

{{ licence }}
"""


def fingerprint(folder: Path) -> str:
    """First 16 digits of the sha256 of the weights; of a pipeline, which has none, of all that makes it what it is."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        beside = ("styles/*", "bookshelf.*")
        files = [folder / "pipeline.json", *(path for pattern in beside for path in sorted(folder.glob(pattern)))]
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def component_fingerprints(folder: Path) -> dict[str, str]:
    """Fingerprint of each component of a pipeline that lies in it or beside it."""
    if not (folder / PIPELINE_FILE).is_file():
        return {}
    names = read_pipeline_file(folder)["components"]
    places = {part: local_component(folder, name) for part, name in names.items()}
    return {part: fingerprint(place) for part, place in places.items() if place is not None}


def read_figures(folder: Path) -> list[Measurement]:
    """What is in `figures.json`, or nothing.

    Raises:
        ModelFolderError: it is damaged, or was measured on other weights than those of the folder, or of its components
            as far as they lie here.
    """
    path = folder / FIGURES_FILE
    if not path.is_file():
        return []
    figures = _read(path)
    is_of = _belongs(folder)
    if wrong := [one["command"] for one in figures if not is_of(one)]:
        raise ModelFolderError(f"{path} tells of other weights than these: measure again, with `{wrong[0]}`.")
    return figures


def _belongs(folder: Path) -> Callable[[Measurement], bool]:
    """Tells whether a measurement is of the weights that lie here."""
    now, parts = fingerprint(folder), component_fingerprints(folder)

    def belongs(one: Measurement) -> bool:
        there = one.get("components", {})
        return one["weights"] == now and all(there.get(part, digest) == digest for part, digest in parts.items())

    return belongs


def _read(path: Path) -> list[Measurement]:
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        model_index(figures), with_tables("<!-- figures -->\n<!-- /figures -->", figures)
        return [one for one in figures if one["weights"] and one["command"]]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelFolderError(f"{path} is damaged ({type(error).__name__}): measure again.") from None


def with_figures(text: str, name: str, figures: Sequence[Measurement]) -> str:
    """A card with these figures in its front matter and its tables in place of others; the text stays as it is.

    Raises:
        ModelFolderError: its front matter cannot be read, or it has a place for figures of an unknown kind.
    """
    try:
        card = ModelCard(text, ignore_metadata_errors=True)
    except (YAMLError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelFolderError(f"The front matter of the card (README.md) cannot be read: {reason}") from None
    results = model_index(figures)
    card.data.model_name, card.data.eval_results = (name, results) if results else (None, None)
    card.text = with_tables(card.text, figures)
    return str(card)


def first_card(folder: Path, repo_id: str, licence: str, language: str = "en") -> str:
    """A card for a folder that has none, from what the folder says of itself."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] not in KINDS:
        raise ModelFolderError(f"There is no card for a {config['model_type']}: write a README.md for it.")
    task, tags, usage = KINDS[config["model_type"]]
    figures = read_figures(folder)
    name = repo_id.split("/")[-1]
    card = ModelCard.from_template(
        ModelCardData(
            language=language,
            license=licence,
            library_name="transformers",
            pipeline_tag=task,
            tags=[*tags, "pictale"],
        ),
        template_str=TEMPLATE,
        name=name,
        what=f"A {config['architectures'][0]} of [Pictale](https://huggingface.co/pictale), which tells stories about "
        "photographs.",
        usage=usage.format(place=repo_id),
        recipe="[recipe.json](recipe.json) has every setting and names the data."
        if (folder / "recipe.json").is_file()
        else "Not recorded.",
        licence=f"{licence}. The code beside the weights is Apache-2.0.",
    )
    return with_figures(str(card), name, figures) if figures else str(card)


def write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.writing")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def add_reports(
    folder: Path, reports: Iterable[Mapping[str, Any]], label: str | None = None, command: str | None = None
) -> list[Measurement]:
    """Put the figures of reports into `figures.json`, in place of the same rows and of those of other weights, and into
    the card, if there is one; returns all figures.

    Args:
        label, command: See `figures.measurement`.

    Raises:
        ModelFolderError: something that is no report, or a card that cannot be read. Nothing is written then.
    """
    path, now, parts = folder / FIGURES_FILE, fingerprint(folder), component_fingerprints(folder)
    figures = list(filter(_belongs(folder), _read(path))) if path.is_file() else []
    place = f"hub_configs/{folder.resolve().name}" if folder.resolve().parent.name == "hub_configs" else folder.name
    for report in reports:
        one = measurement(report, now, place, label, command)
        figures = add_measurement(figures, one | ({"components": parts} if parts else {}))
    card = update_card(folder, figures)
    write_text(path, json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    if card is not None:
        write_text(folder / "README.md", card)
    return figures


def update_card(folder: Path, figures: Sequence[Measurement]) -> str | None:
    """The folder's card with these figures; None where it has no card."""
    card = folder / "README.md"
    return with_figures(card.read_text(encoding="utf-8"), folder.resolve().name, figures) if card.is_file() else None


def read_reports(path: Path) -> list[Any]:
    """One JSON object, or one in each line.

    Raises:
        ModelFolderError: neither.
    """
    text = path.read_text(encoding="utf-8")
    try:
        return [json.loads(text)]
    except ValueError:
        pass
    try:
        found = [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError:
        found = []
    if not found:
        raise ModelFolderError(f"{path} holds no report: it is empty or not JSON.")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="model folder")
    parser.add_argument(
        "--report",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="what an evaluation printed (repeatable)",
    )
    parser.add_argument("--label", help="name of the model's row, for reports on it in a special state")
    parser.add_argument("--command", help="how it was measured, for a report that does not say so")
    args = parser.parse_args(arguments)
    try:
        if not any((args.folder / name).is_file() for name in ("model.safetensors", "pipeline.json")):
            raise ModelFolderError(f"{args.folder} is no model folder: it has no model.safetensors or pipeline.json.")
        if args.report:
            reports = [report for path in args.report for report in read_reports(path)]
            figures = add_reports(args.folder, reports, args.label, args.command)
        else:
            figures = read_figures(args.folder)
            if not figures:
                raise ModelFolderError(f"{args.folder} has no figures yet: give the --report of an evaluation.")
            if card := update_card(args.folder, figures):
                write_text(args.folder / "README.md", card)
    except (PictaleError, OSError, UnicodeDecodeError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(f"{args.folder / FIGURES_FILE}: {len(figures)} measurements")
    card = args.folder / "README.md"
    for kind in without_place(card.read_text(encoding="utf-8"), figures) if card.is_file() else []:
        print(
            f"{card} has no table of {kind}: put the lines <!-- figures: {kind} --> and <!-- /figures --> where it "
            "should stand, and call this again.",
            file=sys.stderr,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
