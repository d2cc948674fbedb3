"""Write a trained storyteller as it is shipped: a plain folder of transformers with its weights in 8 bits.

    python -m training.storyteller_export runs/storyteller/best --output hub_configs/storyteller-smollm2-135m
    python -m training.storyteller_export RUN/best --output FOLDER --prompts 0        without the comparison

Linear weights and embeddings become whole numbers of 8 bits with a factor for each row, in the layout of
compressed-tensors ("int-quantized"), in files of less than 90 MiB. `AutoModelForCausalLM.from_pretrained` turns them
back into floating point where compressed-tensors is installed (transformers from 5.23 on, which does so for embeddings
that are the output's too); the page's own reader (`modeling.story_network`) needs nothing but safetensors and computes
with the 8 bits.

Before the folder takes its name it is compared with the weights it was made from, on stories that were held out: the
loss, which must not rise by more than 1 %, and the tokens that are most probable. (Texts that are written word by word
go apart for good at the first place at which two words are as good as equally probable.)

Shapes: T tokens of an example, V pieces of the vocabulary.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from tokenizers import Tokenizer

from modeling.errors import ModelFolderError, PictaleError
from modeling.model_folder import check_weights
from modeling.sampling import SamplingOptions
from modeling.story_engine import StoryEngine
from modeling.story_network import Span, StoryNetwork, quantized_rows

from .loop import replace_folder
from .storyteller_data import StorytellerData, encode, read_stories, story_example

SHARD = "85MB"
MOST_LOSS = 1.01  # of the loss of the full weights
MOST_TOKENS = 230
KEPT = ("README.md", "recipe*.json", "LICENSE", "NOTICE")  # of a folder that is written anew
COPIED = ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json")
GREEDY = SamplingOptions(temperature=0.0)
SCHEME = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "dequantize": True,  # when loaded: processors have no use for the layout as it is
    "ignore": ["lm_head"],  # the embeddings
    "config_groups": {
        "group_0": {
            "targets": ["Linear", "Embedding"],
            "format": "int-quantized",
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
        }
    },
}


@dataclass(frozen=True)
class Comparison:
    """The 8-bit folder beside the full weights.

    Args:
        prompts: How many were compared.
        equal: Of their texts, how many are the same to the last token.
        agreement: Share of the places of the held-out stories at which both find the same token the most probable.
        loss, full_loss: Of held-out stories, by token.
    """

    prompts: int
    equal: int
    agreement: float
    loss: float
    full_loss: float

    def __str__(self) -> str:
        return (
            f"the same token most probable at {self.agreement:.1%} of the places, {self.equal} of {self.prompts} texts "
            f"the same to their end; "
            f"loss {self.loss:.4f}, with full weights {self.full_loss:.4f} ({self.loss / self.full_loss - 1:+.2%})"
        )


def eight_bit(weights: dict[str, torch.Tensor], tied: bool) -> dict[str, torch.Tensor]:
    """Weights as they are shipped: matrices [O, I] in 8 bits with `..._scale` [O, 1], the rest in bfloat16.

    Raises:
        ModelFolderError: a weight is not a finite number.
    """
    made: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        if tied and name == "lm_head.weight":
            continue
        if not torch.isfinite(weight).all():
            raise ModelFolderError(f"'{name}' is not finite: the training has diverged.")
        if weight.dim() == 2 and name != "lm_head.weight":
            made[name], scale = quantized_rows(weight)
            made[f"{name}_scale"] = scale[:, None]
        else:
            made[name] = weight.bfloat16()
    return made


def write_eight_bit(source: Path, folder: Path) -> None:
    """Write the folder `folder`, which exists, from the model in `source`."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    weights: dict[str, torch.Tensor] = {}
    for shard in sorted(source.glob("model*.safetensors")):
        weights |= load_file(shard)
    made = eight_bit(weights, bool(config.get("tie_word_embeddings")))
    save_torch_state_dict(made, folder, filename_pattern="model{suffix}.safetensors", max_shard_size=SHARD)
    config |= {"dtype": "float32", "quantization_config": SCHEME}
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    compact = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))  # a third of it is indentation
    (folder / "tokenizer.json").write_text(compact + "\n", encoding="utf-8")


def export(
    source: str | Path,
    output: str | Path,
    prompts: int = 50,
    stories: str = StorytellerData.stories,
    captions: Sequence[Any] = (),
) -> Comparison | None:
    """Write `source` as the folder `output`, in 8 bits, once it has been compared; what was compared is returned.

    Args:
        source: A plain folder of transformers with a Llama.
        output: A folder there is replaced, but for its `KEPT` files.
        prompts: To compare with; 0: not at all.
        stories, captions: See `StorytellerData`; their validation rows are taken.

    Raises:
        PictaleError: the source is not whole, there is nothing to compare with, or too much is lost.
    """
    source, output = Path(source), Path(output)
    check_weights(source, "trained storyteller")
    if not (source / "tokenizer.json").is_file():
        raise ModelFolderError(f"The trained storyteller {source} has no tokenizer.json: train it again.")
    examples = held_out(source, prompts, stories, captions) if prompts else []
    found: list[Comparison] = []

    def write(folder: Path) -> None:
        write_eight_bit(source, folder)
        for path in (path for pattern in KEPT for path in sorted(output.glob(pattern))):
            shutil.copyfile(path, folder / path.name)
        StoryNetwork.load(folder, precision="float32")  # raises for a model that is not read
        if examples:
            found.append(compare(folder, source, examples))
            if found[0].loss > MOST_LOSS * found[0].full_loss:
                raise ModelFolderError(f"In 8 bits too much is lost ({found[0]}): {output} was not written.")

    replace_folder(output, write)
    return found[0] if found else None


class _Encoder:
    """The tokenizer as `storyteller_data.encode` calls it."""

    def __init__(self, folder: Path, end: int) -> None:
        self.tokenizer, self.eos_token_id = Tokenizer.from_file(str(folder / "tokenizer.json")), end

    def __call__(self, texts: Sequence[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        found = self.tokenizer.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return {"input_ids": [one.ids for one in found]}


def held_out(source: Path, count: int, stories: str, captions: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """Examples of validation stories: `text` of the prompt, and the ids of `prompt` and `answer`."""
    data = StorytellerData(stories=stories, captions=list(captions))
    rng = random.Random("export")
    rows = read_stories(data, "validation")
    rng.shuffle(rows)
    pairs = [story_example(row, data, rng) for row in rows[:count]]
    end = json.loads((source / "config.json").read_text(encoding="utf-8"))["eos_token_id"]
    encoded = encode(pairs, _Encoder(source, end), most=10**6)
    return [{"text": prompt.text(), **ids} for (prompt, _), ids in zip(pairs, encoded, strict=True)]


def compare(folder: Path, full: Path, examples: Sequence[dict[str, Any]]) -> Comparison:
    """What the folder, as the page reads it, and the full weights in float32 make of the same examples."""
    texts, losses, best = [], [], []
    for place, precision in ((folder, "auto"), (full, "float32")):
        engine = StoryEngine.load(place, precision=precision)
        try:
            loss, tokens = held_out_loss(engine.network, examples)
            losses.append(loss)
            best.append(tokens)
            texts.append(greedy_texts(engine, [one["text"] for one in examples]))
        finally:
            engine.close()
    equal = sum(a == b for a, b in zip(*texts, strict=True))
    same = sum(a == b for a, b in zip(*best, strict=True))
    return Comparison(len(examples), equal, same / len(best[0]), *losses)


def greedy_texts(engine: StoryEngine, prompts: Sequence[str]) -> list[tuple[int, ...]]:
    """Tokens of the most probable text, word by word, behind each prompt."""
    states = [engine.open(prompt) for prompt in prompts]
    try:
        writings = [state.write(sampling=GREEDY, max_tokens=MOST_TOKENS) for state in states]
        return [writing.result()[0].ids for writing in writings]
    finally:
        for state in states:
            state.close()


@torch.inference_mode()
def held_out_loss(network: StoryNetwork, examples: Sequence[dict[str, Any]]) -> tuple[float, list[int]]:
    """Mean negative log-likelihood of the tokens of the answers, and at each place the most probable one."""
    losses: list[float] = []
    best: list[int] = []
    for one in examples:
        ids = [*one["prompt"], *one["answer"]]
        count = len(ids) - 1  # T: what follows the last is not asked
        mask = torch.full((count, count), -torch.inf).triu(1)
        states = network.read(ids[:-1], range(count), [Span(network.memory(), count, mask)])
        logits = network.logits(states[len(one["prompt"]) - 1 :])  # [T, V]
        wanted = torch.tensor(one["answer"], device=logits.device)
        losses += torch.nn.functional.cross_entropy(logits, wanted, reduction="none").tolist()
        best += logits.argmax(1).tolist()
    return math.fsum(losses) / len(losses), best


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder of a training run, e.g. runs/storyteller/best")
    parser.add_argument("--output", required=True, help="folder to write, e.g. hub_configs/storyteller-smollm2-135m")
    parser.add_argument("--prompts", type=int, default=50, help="held-out stories to compare with (50; 0: none)")
    parser.add_argument("--stories", default=StorytellerData.stories, help="data set they come from")
    parser.add_argument("--captions", nargs="*", default=[], help="data sets of captioned photos, see StorytellerData")
    args = parser.parse_args(argv)
    try:
        found = export(args.source, args.output, args.prompts, args.stories, args.captions)
    except PictaleError as error:
        print(f"storyteller_export: {error}", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in Path(args.output).glob("*.safetensors"))
    print(f"{args.output}: {size / 2**20:.1f} MiB of weights" + (f"; {found}" if found else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
