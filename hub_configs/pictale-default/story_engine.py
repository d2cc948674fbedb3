"""The storyteller at work: prompts are read once, continuations are written side by side, one is gone on with.

    engine = StoryEngine.load("hub_configs/storyteller-smollm2-135m")
    with engine.open(prompt.text(), page=page) as state:
        for (words,) in state.write(seeds=[7], until=title_is_over):    # a single one, as it grows
            print(words.text)
        state.keep(0)
        for sentences in state.write(seeds=[1, 2, 3], until=sentence_is_over):
            pass
        state.keep(max(range(3), key=lambda i: sentences[i].log_prob))

All states of an engine, whichever threads write on them, share the steps of one network (see `story_scheduler`). A seed
means the same tokens whoever else is there. Whoever stops iterating, or closes what is written, has freed its place.

Shapes: V pieces of the vocabulary.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from .errors import ModelFolderError, StoryError
from .language_model import content_weights
from .model_folder import described
from .sampling import SamplingOptions
from .story_jobs import Continuation, Job, Trunk
from .story_network import WHAT, StoryNetwork
from .story_scheduler import Scheduler

STORY_SAMPLING = SamplingOptions(temperature=0.7, top_k=64, top_p=0.95, no_repeat_ngram_size=5, max_new_tokens=300)


class Writing:
    """Continuations in the making: iterating gives all of them after each step, finished ones as they are.

    A step that was done before one asked for it is passed over: what is given is always the newest. The continuations
    stop being written when this is closed or forgotten.
    """

    def __init__(self, job: Job, scheduler: Scheduler) -> None:
        self._job, self._scheduler, self._seen = job, scheduler, 0

    def __iter__(self) -> Iterator[tuple[Continuation, ...]]:
        return self

    def __next__(self) -> tuple[Continuation, ...]:
        job = self._job
        while True:
            if self._seen < 0:
                raise StopIteration
            seen, now = job.wait(self._seen)
            self._seen = -1 if all(one.ended for one in now) or job.over else seen
            if any(one.ids or one.ended for one in now):  # not while the prompt is read
                return now

    def result(self) -> tuple[Continuation, ...]:
        """The finished continuations."""
        for _ in self:
            pass
        return self._job.now

    def close(self) -> None:
        """Stop; what was written so far stays, with `ended` empty."""
        self._scheduler.drop(self._job)
        self._job.tell(over=True)
        self._seen = -1

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __del__(self) -> None:
        self._scheduler.drop(self._job)


class StoryState:
    """A prompt with the text that was chosen behind it. One thread at a time may use it."""

    def __init__(self, trunk: Trunk, engine: StoryEngine) -> None:
        self._trunk, self._engine = trunk, engine
        self._job: Job | None = None
        self._own = len(trunk.ids)  # tokens before what was written
        self.ended = False

    @property
    def ids(self) -> tuple[int, ...]:
        """Tokens of what was written and kept."""
        return tuple(self._trunk.ids[self._own :])

    @property
    def text(self) -> str:
        """Of what was written and kept."""
        return self._engine.decode(self.ids)

    @property
    def continuations(self) -> tuple[Continuation, ...]:
        """What was written last and can be kept."""
        return self._job.now if self._job is not None else ()

    def write(
        self,
        seeds: Sequence[int] = (0,),
        sampling: SamplingOptions = STORY_SAMPLING,
        until: Callable[[str], bool] | None = None,
        max_tokens: int | None = None,
        allow_end: bool = True,
    ) -> Writing:
        """Write a continuation for each seed, side by side.

        Args:
            seeds: Each with the place in the text decides what is drawn, so that they may be the same at every call.
            sampling: How tokens are drawn: at temperature 0 the most probable.
            until: Told the text of a continuation after each of its tokens; True ends it. It is called in the thread
                that writes for all, so it has to be quick. What it raises is raised here.
            max_tokens: Of each continuation; None: `sampling.max_new_tokens`.
            allow_end: Whether the model may end the text.

        Raises:
            StoryError: the text has come to its end or fills the model's window, or it is being written on.
        """
        if self.ended:
            raise StoryError("This story has come to its end: there is nothing to go on from.")
        most = sampling.max_new_tokens if max_tokens is None else max_tokens
        if most < 1 or not seeds:
            raise StoryError("At least one continuation of at least one token must be asked for.")
        most = min(most, self._engine.window - len(self._trunk.ids))
        if most < 1:
            raise StoryError("The story has become too long for the storyteller: begin another with its end.")
        job = Job(self._trunk, seeds, sampling, until, most, allow_end)
        self._engine.scheduler.submit(job)
        self._job = job
        return Writing(job, self._engine.scheduler)

    def keep(self, index: int = 0, tokens: int | None = None) -> None:
        """Go on from a continuation of the last `write`, or from its first `tokens` tokens.

        Raises:
            StoryError: there is no such continuation.
        """
        job = self._job
        if job is None or not 0 <= index < len(job.rows):
            raise StoryError(f"There is no continuation {index} to go on from.")
        self._engine.scheduler.drop(job)
        row = job.rows[index]
        ids = row.now.ids if tokens is None else row.now.ids[:tokens]
        self.ended = row.now.ended == "end" and len(ids) == len(row.now.ids)
        self._trunk.add(ids, row.columns)
        self._job = None

    def close(self) -> None:
        """Stop writing and free the memory."""
        self._engine.scheduler.forget(self._trunk)
        self._trunk = Trunk(self._trunk.ids)  # without the memory
        self._job, self.ended = None, True

    def __enter__(self) -> StoryState:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class StoryEngine:
    """A loaded storyteller that writes for many at once; any thread may use it."""

    def __init__(self, network: StoryNetwork, tokenizer: Any, end: int, threads: int | None = None) -> None:
        self.network, self.tokenizer = network, tokenizer
        self.folder: Path | None = None  # that it was loaded from
        special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        barred = {*special, *range(tokenizer.get_vocab_size(), network.vocabulary)} - {end}
        self._weights: torch.Tensor | None = None
        self.scheduler = Scheduler(network, self.decode, end, sorted(barred), self._content, threads)
        atexit.register(_close, weakref.ref(self.scheduler))

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str | torch.device = "cpu",
        threads: int | None = None,
        precision: str = "auto",
    ) -> StoryEngine:
        """Load a folder as `training.storyteller_export` writes it, or any plain Llama with a `tokenizer.json`.

        Args:
            device: Of the network.
            threads: Of torch, for the whole process; None leaves them as they are.
            precision: See `StoryNetwork.load`.

        Raises:
            ModelFolderError: empty, damaged, or of another kind of model; or the memory does not suffice.
        """
        from tokenizers import Tokenizer

        folder = Path(folder)
        network = StoryNetwork.load(folder, device, precision)
        if not (folder / "tokenizer.json").is_file():
            raise ModelFolderError(f"The {WHAT} {described(folder)} has no tokenizer.json: download it again.")
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library has no class of its own for it
            raise ModelFolderError(
                f"The tokenizer.json in {described(folder)} is damaged ({str(error)[:100]}): download it again."
            ) from None
        end = network.config.get("eos_token_id")
        end = end[0] if isinstance(end, list) else end
        if not isinstance(end, int) or tokenizer.get_vocab_size() > network.vocabulary:
            raise ModelFolderError(f"The tokenizer and the weights in {described(folder)} do not belong together.")
        engine = cls(network, tokenizer, end, threads)
        engine.folder = folder
        return engine

    @property
    def window(self) -> int:
        """Tokens of a prompt and what is written behind it, at most."""
        return self.network.window

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def open(self, prompt: str, page: str = "", told: str = "") -> StoryState:
        """Begin to read a prompt, without waiting for it.

        Args:
            prompt: `StoryPrompt.text()`.
            page: The page it shows, of which no `PAGE_RUN` tokens in a row are copied.
            told: The story so far, of which no run of `no_repeat_ngram_size` tokens is repeated.

        Raises:
            StoryError: it is empty, or too long for the model.
        """
        ids = self.encode(prompt)
        if not ids or len(ids) >= self.window:
            raise StoryError(
                f"The prompt has {len(ids)} tokens, and the storyteller reads up to {self.window - 1}: shorten it."
                if ids
                else "The prompt is empty: there is nothing to tell of."
            )
        trunk = Trunk(ids, *(self.encode(f" {' '.join(text.split())}") if text else () for text in (told, page)))
        self.scheduler.submit(Job(trunk))
        return StoryState(trunk, self)

    def close(self) -> None:
        """Stop writing; whoever waits for something is told so."""
        self.scheduler.close()

    def _content(self) -> torch.Tensor:
        """1 for tokens that are words of content, or begin one, else less [V]."""
        if self._weights is None:
            tokens = [self.tokenizer.id_to_token(i) for i in range(self.network.vocabulary)]
            self._weights = torch.tensor(content_weights(tokens))
        return self._weights


def _close(held: weakref.ref[Scheduler]) -> None:
    """End the thread before the interpreter ends: torch does not like to be taken away while it computes."""
    if (scheduler := held()) is not None:
        scheduler.close()
