"""Train the storyteller: a small language model learns to tell of a photo, in a manner, and to come to an end.

    python -m training.train_storyteller hub_configs/storyteller-smollm2-135m/recipe.json
    python -m training.train_storyteller RECIPE.json --resume
    python -m training.train_storyteller RECIPE.json --set 'lora={"rank": 32}'      adapters instead of all weights
    accelerate launch -m training.train_storyteller RECIPE.json

It starts from `initial` (see `training.storyteller_base`), is shown the prompts of `modeling.story_prompt` and learns
the stories only: the vocabulary layer is computed for these places alone. Attention is computed plainly, which for
texts of a few hundred tokens is quicker on a processor than the fused kernel. `training.mixed_precision=auto` takes
bf16 where the machine multiplies it natively, on processors with AMX or AVX512-BF16 two to three times as fast.

While training, the loss on the validation stories is measured, by style too, and `samples.jsonl` in output_dir gets
stories of the same few validation prompts. `best` and `last` are plain folders of transformers, merged if adapters
were trained; `python -m training.storyteller_export` makes the 8-bit folder that is shipped.
"""

from __future__ import annotations

import copy
import json
import math
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from accelerate import PartialState
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling.errors import DataError, PictaleError, RecipeError

from .loop import LoopOptions, prepare_output_dir, train
from .recipes import read_recipe, recipe_parser, write_recipe
from .storyteller_data import (
    IGNORED,
    StoryBatches,
    StoryExamples,
    StorytellerData,
    collate,
    encode,
    read_stories,
    read_tales,
    story_example,
)

SAMPLE_TOKENS = 160


@dataclass
class Lora:
    """Adapters that are trained in place of all weights (needs peft).

    Args:
        rank: Of each adapter.
        alpha: Scale of its output; None: twice the rank.
        dropout: On its input.
    """

    rank: int = 32
    alpha: int | None = None
    dropout: float = 0.0


@dataclass
class StorytellerRecipe:
    """Sections of the recipe.

    Args:
        initial: Folder or Hub id of a causal language model of transformers.
        lora: None trains all weights.
        validation: Stories that the held-out loss is measured on, at most.
        samples: Stories written at each evaluation.
    """

    data: StorytellerData
    training: LoopOptions
    initial: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    lora: Lora | None = None
    validation: int = 120
    samples: int = 3


class StoryLearner(nn.Module):
    """The model with the loss on answers only.

    Shapes: B examples, T tokens, N places that are learned, V pieces of words.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def causal(self) -> nn.Module:
        """The causal model itself, below adapters."""
        return self.model.base_model.model if hasattr(self.model, "peft_config") else self.model

    def losses(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Negative log-likelihood of every learned token [N], row by row."""
        causal = self.causal
        hidden = causal.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        wanted = labels[:, 1:] != IGNORED
        logits = causal.lm_head(hidden[:, :-1][wanted])  # [N, V]
        return nn.functional.cross_entropy(logits.float(), labels[:, 1:][wanted], reduction="none")

    def forward(self, **batch: torch.Tensor) -> Any:
        return SimpleNamespace(loss=self.losses(**batch).mean())


def load_model(recipe: StorytellerRecipe) -> tuple[StoryLearner, Any]:
    """Model and tokenizer. Raises RecipeError if peft is wanted and missing, or there is no such model."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(recipe.initial)
        model = AutoModelForCausalLM.from_pretrained(recipe.initial, dtype=torch.float32, attn_implementation="eager")
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"Cannot load the language model '{recipe.initial}' ({reason}).") from None
    if recipe.lora is not None:
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError:
            raise RecipeError("lora needs peft: pip install -r training/requirements.txt.") from None
        lora = recipe.lora
        model = get_peft_model(
            model,
            LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha or 2 * lora.rank,
                lora_dropout=lora.dropout,
                target_modules="all-linear",
            ),
        )
    return StoryLearner(model), tokenizer


def save_model(learner: StoryLearner, folder: Path, tokenizer: Any) -> None:
    """A plain folder of transformers; adapters are merged into a copy."""
    model = learner.model
    if hasattr(model, "peft_config"):
        model = copy.deepcopy(model).merge_and_unload()
    model.config._attn_implementation = "sdpa"
    try:
        model.save_pretrained(folder)
    finally:
        model.config._attn_implementation = "eager"
    tokenizer.save_pretrained(folder)


class Evaluation:
    """Held-out loss, in all and by style, and samples."""

    def __init__(self, recipe: StorytellerRecipe, tokenizer: Any) -> None:
        self.recipe, self.tokenizer = recipe, tokenizer
        rng = random.Random("validation")
        rows = read_stories(recipe.data, "validation")
        rows = [row for row in rows if recipe.data.shares.get(row.manner)] or rows
        rng.shuffle(rows)
        pairs, self.styles = [], []
        for row in rows[: recipe.validation]:
            pairs.append(story_example(row, recipe.data, rng))
            self.styles.append(row.style)
        self.prompts = [prompt.text() for prompt, _ in pairs]
        self.examples = encode(pairs, tokenizer, most=10**6)
        if not self.examples:
            raise DataError(f"'{recipe.data.stories}' has no validation stories.")

    def __call__(self, learner: StoryLearner) -> dict[str, float]:
        sums: dict[str, list[float]] = {}
        for style, losses in zip(self.styles, self.token_losses(learner), strict=True):
            sums.setdefault(style, []).extend(losses)
        every = [value for values in sums.values() for value in values]
        self.write_samples(learner, next(learner.parameters()).device)
        return {"loss": math.fsum(every) / len(every)} | {
            f"loss_{style}": math.fsum(values) / len(values) for style, values in sorted(sums.items())
        }

    def token_losses(self, learner: StoryLearner) -> list[list[float]]:
        """Negative log-likelihood of each token of each answer."""
        device = next(learner.parameters()).device
        found: list[list[float]] = [[] for _ in self.examples]
        order = sorted(range(len(self.examples)), key=lambda i: len(self.examples[i]["answer"]))
        for start in range(0, len(order), 6):
            rows = order[start : start + 6]
            batch = collate([self.examples[i] for i in rows], self.tokenizer.eos_token_id)
            losses = learner.losses(**{name: value.to(device) for name, value in batch.items()}).tolist()
            for i in rows:
                size = len(self.examples[i]["answer"])
                found[i], losses = losses[:size], losses[size:]
        return found

    def write_samples(self, learner: StoryLearner, device: torch.device) -> None:
        model = learner.model
        for prompt in self.prompts[: self.recipe.samples]:
            ids = self.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"].to(device)
            told = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=SAMPLE_TOKENS,
                do_sample=True,
                temperature=0.5,
                top_p=0.95,
                top_k=0,
                use_cache=True,
            )[0, ids.size(1) :]
            text = self.tokenizer.decode(told, skip_special_tokens=True)
            with (Path(self.recipe.training.output_dir) / "samples.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"prompt": prompt, "told": text}, ensure_ascii=False) + "\n")


def run(recipe: StorytellerRecipe, resume: bool = False) -> Any:
    """Train as the recipe says. Raises PictaleError, before any work, for what cannot be done."""
    prepare_output_dir(recipe.training.output_dir, resume)
    learner, tokenizer = load_model(recipe)
    rows = read_stories(recipe.data, "train")
    tales = [read_tales(source) for source in recipe.data.tales]
    examples = StoryExamples(rows, tales, tokenizer, recipe.data, recipe.training.seed)
    if not len(examples):
        raise RecipeError("Nothing is left to learn from: raise data.shares or data.max_tokens.")
    evaluate = Evaluation(recipe, tokenizer)
    state = PartialState()
    batches = StoryBatches(examples, recipe.data.batch_tokens, recipe.training.seed, state.num_processes)
    loader = DataLoader(
        examples, batch_sampler=batches, collate_fn=partial(collate, pad=tokenizer.eos_token_id), num_workers=0
    )
    if state.is_main_process:
        tokens = int(examples.lengths.sum())
        print(f"{len(examples)} examples, {tokens} tokens an epoch, {len(batches)} batches", flush=True)
        write_recipe(recipe, Path(recipe.training.output_dir) / "recipe.json")
    return train(
        learner,
        loader,
        recipe.training,
        evaluate=evaluate,
        save=partial(save_model, tokenizer=tokenizer),
        resume=resume,
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = recipe_parser(__doc__).parse_args(argv)
    try:
        result = run(read_recipe(args.recipe, StorytellerRecipe, args.overrides), args.resume)
    except PictaleError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{result.steps} steps, best loss {result.best_metric:.4f} at step {result.best_step} ({result.stopped_by})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
