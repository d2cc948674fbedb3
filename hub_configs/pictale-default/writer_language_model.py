"""A writer of other people's making: any causal language model, by Hub id, folder or GGUF file.

Loaded when it first writes. A model with a chat template is asked in a conversation whose last answer it finds begun
with the story so far; one without goes on with a text, see `StoryPrompt`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import torch

from .answer_text import LONGEST_SENTENCE, Answer
from .errors import StoryError
from .language_model import LanguageModel, ModelPlace, expected_pace, in_bytes
from .sampling import SamplingOptions
from .story_prompt import StoryPrompt, newest, story_prompt
from .story_types import StoryOptions, Written
from .style_pages import Page
from .writer import PassageTask

MOST_WORDS_BEFORE = 400  # of the story so far that are read again: reading takes time, too
TOKENS_A_WORD = 3  # more than any language needs: only a bound
LEAST_TOKENS_A_WORD = 1.3  # of English
REPEATS = 5  # tokens; so many in a row are not written twice
PRESENCE_PENALTY = 1.0


class LanguageModelWriter:
    """Writes with a causal language model.

    Args:
        place: Where it is; or the model itself.
        pages: Gives a page of a book whose manner is to be taken.
        device: Where it computes.
    """

    separator = "\n\n"

    def __init__(
        self,
        place: ModelPlace | LanguageModel,
        pages: Callable[[PassageTask], Page | None],
        device: str | torch.device = "cpu",
    ) -> None:
        self.place = place if isinstance(place, ModelPlace) else None
        self._model = place if isinstance(place, LanguageModel) else None
        self._pages, self._device = pages, device
        self._lock = threading.Lock()
        self.speed: float | None = None  # words a second, of the last passage

    @property
    def model(self) -> LanguageModel:
        """Loaded at first use. Raises ModelFolderError, see `LanguageModel.load`."""
        with self._lock:
            if self._model is None:
                self._model = LanguageModel.load(self.place, self._device)
            return self._model

    def about(self) -> str:
        """Name, size and speed, for people who are to choose; it loads nothing.

        Raises:
            ModelFolderError: it has no weights that are read here.
        """
        said = []
        if self.place is not None:
            size = self.place.bytes
            where = " to download" if self.place.folder is None and self._model is None else ""
            said.append(f"a language model of {in_bytes(size)}{where}" if size else "a language model")
        if self.speed is not None:
            said.append(f"measured here: {self.speed:.1f} words a second")
        elif self.place is not None and self.place.bytes:
            said.append(f"not measured here yet, on two cores probably {expected_pace(self.place.parameters)}")
        return ", ".join([self.place.name] * (self.place is not None) + said)

    def prepare(self) -> None:
        """Load the model."""
        self.model  # noqa: B018 - loaded at first use

    def write(self, task: PassageTask) -> Iterator[Written]:
        """The passage word by word; nothing is computed between two words that are asked for.

        Raises:
            StoryError: the model reads too little at once, has said nothing, or memory has run out.
        """
        model, options = self.model, task.options
        answer = Answer(task.wish.before, *options.words)
        page = self._pages(task)
        prompt, told, shown_page = self._prompt(task, model, page.text if page else "")
        follows = (page.source,) if shown_page and page.source else ()
        shown = model.tokenizer(" ".join(task.captions), add_special_tokens=False)["input_ids"]
        generator = torch.Generator(model.model.device).manual_seed(task.seed)
        said_all, seconds = False, 0.0
        started = time.perf_counter()
        try:
            with closing(model.stream(prompt, generator, _sampling(options), told, shown)) as pieces:
                for piece in pieces:
                    said_all = not piece
                    before = answer.text
                    if answer.add(piece) != before:
                        seconds += time.perf_counter() - started
                        yield Written(answer.text, follows=follows)
                        started = time.perf_counter()
                    if answer.enough:
                        break
        except torch.OutOfMemoryError:
            raise StoryError("The writer ran out of memory: choose a smaller model, or a shorter story.") from None
        if not (text := answer.end(said_all and not answer.enough)):
            raise StoryError("The language model has said nothing: try another seed, or another writer.")
        self.speed = len(text.split()) / max(seconds + time.perf_counter() - started, 1e-6)
        yield Written(text, follows=follows)

    def _prompt(self, task: PassageTask, model: LanguageModel, page: str) -> tuple[list[int], list[int], bool]:
        """Ids of the request, as much of the story in them as there is room for, ids of that part of the story, and
        whether there was room for the page."""
        room = model.window - _sampling(task.options).max_new_tokens
        words = MOST_WORDS_BEFORE
        while True:
            prompt = story_prompt(task, newest(task.wish.before, words) if words else "", page)
            ids = _ids(prompt, model)
            if len(ids) <= room:
                return ids, model.tokenizer(prompt.before, add_special_tokens=False)["input_ids"], bool(page)
            if not words:
                raise StoryError(f"The language model reads only {model.window} tokens at once: choose another one.")
            words, page = (words, "") if page else (words // 2, "")


def _ids(prompt: StoryPrompt, model: LanguageModel) -> list[int]:
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        return tokenizer(prompt.plain())["input_ids"]
    messages, rules = prompt.messages(opening=True), {"tokenize": False, "add_generation_prompt": True}
    try:
        text = tokenizer.apply_chat_template(messages, enable_thinking=False, **rules)
    except Exception:  # templates raise their own: some know no system
        system, first, *rest = messages
        messages = [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]
        text = tokenizer.apply_chat_template(messages, enable_thinking=False, **rules)
    return tokenizer(text + prompt.opening(), add_special_tokens=False)["input_ids"]


def _sampling(options: StoryOptions) -> SamplingOptions:
    """In tokens, where the options are in words; the answer's own limits come first."""
    least, most = options.words
    return SamplingOptions(
        temperature=options.temperature,
        top_p=options.top_p,
        min_p=options.min_p,
        presence_penalty=PRESENCE_PENALTY,
        no_repeat_ngram_size=REPEATS,
        min_new_tokens=int(LEAST_TOKENS_A_WORD * least),
        max_new_tokens=TOKENS_A_WORD * (most + LONGEST_SENTENCE),
    )
