"""A writer over the network: any model behind an OpenAI-compatible endpoint that this process has been given.

    OPENAI_BASE_URL=http://localhost:8000/v1 OPENAI_MODEL=... python -m modeling photo.jpg --writer endpoint

Captions, the style and the story so far are sent there, photos never. If the answer breaks off, what came before stays:
whoever reads the stream has a passage that can be gone on with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from .answer_text import Answer
from .endpoint_chat import ChatReply, Endpoint
from .errors import StoryError
from .story_prompt import newest, story_prompt
from .story_types import Written
from .style_pages import Page
from .writer import PassageTask

MOST_WORDS_BEFORE = 1200  # of the story so far that are sent
MOST_TOKENS = 3000  # a passage is shorter: this is for models that think first


class EndpointWriter:
    """Writes with the model of `Endpoint.from_environment()`, which is looked at anew for each passage.

    Args:
        pages: Gives a page of a book whose manner is to be taken.
        quiet: Seconds of silence after which the endpoint counts as dead.
    """

    separator = "\n\n"

    def __init__(self, pages: Callable[[PassageTask], Page | None], quiet: float = 60) -> None:
        self._pages, self._quiet = pages, quiet
        self._refused: set[str] = set()

    def about(self) -> str:
        """What it is, for people who are to choose."""
        model = Endpoint.from_environment().model.rstrip("/").rpartition("/")[2]
        return f"{model}, a language model elsewhere: captions and story are sent there, photos are not"

    def prepare(self) -> None:
        """Raises PictaleError if there is no endpoint."""
        Endpoint.from_environment()

    def write(self, task: PassageTask) -> Iterator[Written]:
        """The passage word by word.

        Raises:
            StoryError: see `ChatReply`.
        """
        answer = Answer(task.wish.before, *task.options.words)
        shown, page = "", self._pages(task)
        follows = (page.source,) if page and page.source else ()
        body = self._body(task, page.text if page else "")
        asked = set(body)
        with closing(ChatReply(Endpoint.from_environment(), body, self._quiet)) as reply:
            for piece in reply:
                if answer.add(piece) != shown:
                    shown = answer.text
                    yield Written(shown, follows=follows)
                if answer.enough:
                    break
            self._refused |= asked - set(body)
            said_all = reply.finish == "stop"
        if not (text := answer.end(said_all and not answer.enough)):
            if reply.finish == "length":
                raise StoryError("The endpoint's model thought too long to come to a story: choose another model.")
            raise StoryError("The endpoint's model answered with nothing: try another seed, or another writer.")
        yield Written(text, follows=follows)

    def _body(self, task: PassageTask, page: str) -> dict[str, Any]:
        options = task.options
        prompt = story_prompt(task, newest(task.wish.before, MOST_WORDS_BEFORE), page)
        messages = prompt.messages(opening=False)
        if task.wish.before:
            messages[-1]["content"] += " Write {} to {} words.".format(*options.words)
        wishes = {
            "max_tokens": MOST_TOKENS,
            "temperature": min(options.temperature, 2.0),
            "top_p": options.top_p,
            "seed": task.seed,
        }
        kept = {name: value for name, value in wishes.items() if name not in self._refused}
        if "max_tokens" in self._refused and "max_completion_tokens" not in self._refused:
            kept["max_completion_tokens"] = MOST_TOKENS
        return {"messages": messages, **kept}
