"""Stand-in until the engine lands: transformers, one request at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from .model_folder import load_component
from .sampling import SamplingOptions, bar_copies, bar_repeats, draw, runs_of


@dataclass(frozen=True)
class Continuation:
    text: str
    tokens: tuple[int, ...]
    log_prob: float
    ended: bool
    done: bool


class StoryEngine:
    def __init__(self, model: Any, tokenizer: Any, folder: Path | None = None) -> None:
        self.model, self.tokenizer, self.folder = model.eval(), tokenizer, folder

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu", threads: int | None = None) -> StoryEngine:
        folder = Path(folder)
        model = load_component(AutoModelForCausalLM.from_pretrained, folder, "storyteller", dtype=torch.float32)
        tokenizer = load_component(AutoTokenizer.from_pretrained, folder, "storyteller's tokenizer", weights=False)
        return cls(model.to(device), tokenizer, folder)

    def open(self, prompt: str, page: str = "") -> StoryState:
        return StoryState(self, prompt, page)


class StoryState:
    def __init__(self, engine: StoryEngine, prompt: str, page: str) -> None:
        self.engine = engine
        self.read_ids = engine.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        self.written: list[int] = []
        page_ids = engine.tokenizer(page, add_special_tokens=False)["input_ids"] if page else []
        self.copies = runs_of(page_ids, 6)
        self.found: list[Continuation] = []

    def __enter__(self) -> StoryState:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, text: str) -> None:
        self.read_ids = [*self.read_ids, *self.engine.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def keep(self, row: int) -> None:
        self.written += self.found[row].tokens
        self.read_ids = [*self.read_ids, *self.found[row].tokens]

    def run(self, *args: Any, **kwargs: Any) -> list[Continuation]:
        *_, found = self.write(*args, **kwargs)
        return found

    @torch.inference_mode()
    def write(
        self,
        count: int,
        seeds: Sequence[int],
        sampling: SamplingOptions,
        until: Callable[[str], bool],
        allow_end: bool = True,
    ) -> Iterator[list[Continuation]]:
        engine = self.engine
        eos = engine.tokenizer.eos_token_id
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        ids = torch.tensor([self.read_ids])
        cache = DynamicCache()
        out = engine.model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(count)
        logits = out.logits[:, -1].expand(count, -1).float()
        rows = [Continuation("", (), 0.0, False, False)] * count
        for _ in range(sampling.max_new_tokens):
            log_probs = logits.log_softmax(-1)
            now = log_probs.clone()
            last = []
            for i, row in enumerate(rows):
                one = now[i : i + 1]
                if not allow_end or row.tokens:
                    one[:, eos] = -torch.inf if not allow_end else one[:, eos]
                sequence = torch.tensor([[*self.written, *row.tokens]], dtype=torch.long)
                bar_repeats(one, sequence, sampling.no_repeat_ngram_size)
                bar_copies(one, sequence, self.copies)
                token = int(draw(one, generators[i], sampling))
                last.append(token)
                if row.done:
                    continue
                if token == eos:
                    rows[i] = Continuation(row.text, row.tokens, row.log_prob, True, True)
                    continue
                tokens = (*row.tokens, token)
                text = engine.tokenizer.decode(tokens, skip_special_tokens=True)
                lp = row.log_prob + float(log_probs[i, token])
                rows[i] = Continuation(text, tokens, lp, False, until(text))
            self.found = list(rows)
            yield list(rows)
            if all(row.done for row in rows):
                return
            out = engine.model(input_ids=torch.tensor(last)[:, None], past_key_values=cache, use_cache=True)
            logits = out.logits[:, -1].float()
