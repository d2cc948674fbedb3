"""Copy a trained model folder to where it is published, with its weights in half the space.

    python -m training.export_weights runs/story-decoder-books/best hub_configs/story-decoder-books

Weights are stored as float16 and loaded as float32 (the `dtype` in config.json says so), because processors compute in
float32. `recipe.json` and `README.md` of the target are left alone. `--words` keeps only the most frequent words of a
model with an adaptive vocabulary: the rarest take space and are never written.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from modeling.errors import ModelFolderError, PictaleError
from modeling.fingerprints import kept_fingerprints
from modeling.model_folder import check_weights

from .sync_code import complete


def fewer_words(weights: dict[str, torch.Tensor], config: dict[str, Any], count: int) -> None:
    """Forget, in place, all but the `count` most frequent words of an adaptive vocabulary.

    Raises:
        ModelFolderError: there is none, or not so many words beyond those with vectors of the full width.
    """
    size, cutoff = config.get("vocab_size", 0), config.get("adaptive_cutoff") or 0
    if not 0 < cutoff < count <= size:
        raise ModelFolderError(
            f"--words takes a number from {cutoff + 1:,} to {size:,} here."
            if cutoff
            else "--words is for models whose vocabulary is adaptive (`adaptive_cutoff`)."
        )
    for name in weights:
        if name.endswith((".tail.weight", ".tail_bias")):
            weights[name] = weights[name][: count - cutoff].clone()
    config["vocab_size"] = count


def export_weights(source: str | Path, target: str | Path, words: int | None = None) -> int:
    """Write `source` into `target` with float16 weights; returns the bytes of the weights.

    Args:
        words: Most words of the vocabulary that are kept, see `fewer_words`; None: all.

    Raises:
        ModelFolderError: the source is not a whole model folder, or a weight does not fit into float16.
    """
    source, target = Path(source), Path(target)
    check_weights(source, "trained model")
    with safe_open(source / "model.safetensors", framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if words is not None:
        fewer_words(weights, config, words)
    halves = {name: w.half() if w.dtype == torch.float32 else w for name, w in weights.items()}
    for name, half in halves.items():
        if half.is_floating_point() and not torch.isfinite(half).all():
            raise ModelFolderError(f"'{name}' in {source} does not fit into float16: its training has diverged.")
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and path.name not in ("model.safetensors", "config.json", "recipe.json", "README.md"):
            shutil.copyfile(path, target / path.name)
    if (target / "tokenizer.json").is_file():  # a third of it is indentation, which every visitor would download
        tokenizer = json.loads((target / "tokenizer.json").read_text(encoding="utf-8"))
        if words is not None:
            vocabulary = tokenizer["model"]["vocab"]
            tokenizer["model"]["vocab"] = {word: i for word, i in vocabulary.items() if i < words}
        compact = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
        (target / "tokenizer.json").write_text(compact + "\n", encoding="utf-8")
    config |= {"dtype": "float32", **kept_fingerprints(config, halves)}
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    temporary = target / "model.safetensors.writing"
    save_file(halves, temporary, {"format": "pt"})
    os.replace(temporary, target / "model.safetensors")
    complete(target)
    return (target / "model.safetensors").stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder of a training run, e.g. runs/NAME/best")
    parser.add_argument("target", help="folder to publish, e.g. hub_configs/NAME")
    parser.add_argument("--words", type=int, metavar="N", help="keep only the N most frequent words")
    args = parser.parse_args()
    try:
        print(f"{args.target}: {export_weights(args.source, args.target, args.words) / 2**20:.1f} MiB of weights")
    except PictaleError as error:
        sys.exit(f"export_weights: {error}")


if __name__ == "__main__":
    main()
