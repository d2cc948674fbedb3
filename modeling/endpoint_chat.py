"""A conversation with an OpenAI-compatible endpoint: a request, its answer as it comes, a sentence for each failure.

What is sent is `POST {base}/chat/completions` with `"stream": true`, what comes back are server-sent events, as OpenAI,
vLLM, llama.cpp, Ollama, LM Studio and others speak it. httpx does the HTTP (gradio brings it along); the events are a
few lines. The key is read from the environment for each request and kept nowhere, and no error holds the request that
failed, as httpx' own errors do. The address is not told either: those who read the sentences may be visitors of a page.
"""

from __future__ import annotations

import contextlib
import email.utils
import functools
import importlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import PictaleError, StoryError

OPENAI = "https://api.openai.com/v1"
MOST_BYTES = 4_000_000  # of an answer
PATIENCE = 10.0  # seconds that are waited when the endpoint asks for it; longer waits are told
RETRIES = 2
BUSY = {429, 500, 502, 503, 504, 529}
# What some endpoints refuse, though it stands in the protocol: left out when they do.
OPTIONAL = ("temperature", "top_p", "seed", "max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class Endpoint:
    """Where the model is, from OPENAI_BASE_URL, OPENAI_MODEL and OPENAI_API_KEY."""

    base: str
    model: str
    key: str = field(default="", repr=False)

    @classmethod
    def from_environment(cls) -> Endpoint:
        """Raises PictaleError if too little is set, or something that cannot be used."""
        base, model, key = (os.environ.get(f"OPENAI_{name}", "").strip() for name in ("BASE_URL", "MODEL", "API_KEY"))
        if not (base or key) or not model:
            missing = "OPENAI_MODEL" if base or key else "OPENAI_BASE_URL or OPENAI_API_KEY, and OPENAI_MODEL"
            raise PictaleError(f"There is no endpoint to write with: set {missing} in the environment of this process.")
        if base and not base.startswith(("http://", "https://")):
            raise PictaleError("OPENAI_BASE_URL is no address: it should look like http://localhost:8000/v1.")
        if not all("!" <= mark <= "~" for mark in key):
            raise PictaleError("OPENAI_API_KEY has characters that no key has: copy it again.")
        return cls((base or OPENAI).rstrip("/"), model, key)


class ChatReply:
    """The pieces of one answer, in order: `for piece in reply`. Closing it closes the connection.

    Args:
        endpoint: Whom to ask.
        body: The request without the model's name; keys that the endpoint refuses are taken out of it.
        quiet: Seconds without a byte after which it counts as dead.
        longest: Seconds that the whole answer may take.

    Raises:
        StoryError: whatever goes wrong, in one sentence; pieces that came before it are good.
    """

    def __init__(self, endpoint: Endpoint, body: dict[str, Any], quiet: float = 60, longest: float = 180) -> None:
        self.finish = ""  # why it ended, in the endpoint's words
        self._endpoint, self._body, self._quiet, self._longest = endpoint, body, quiet, longest
        self._pieces = self._ask()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def close(self) -> None:
        self._pieces.close()

    def _ask(self) -> Iterator[str]:
        httpx = _httpx()
        self._end = time.monotonic() + self._longest
        headers = {"Accept": "text/event-stream"}
        if self._endpoint.key:
            headers["Authorization"] = f"Bearer {self._endpoint.key}"
        timeout = httpx.Timeout(self._quiet, connect=min(10.0, self._quiet))
        problem = ""
        try:
            with httpx.Client(headers=headers, timeout=timeout, verify=_certificates()) as client:
                yield from self._answer(client)
        except httpx.ConnectTimeout:
            problem = "cannot be reached: its server does not answer. Check OPENAI_BASE_URL and the connection."
        except httpx.TimeoutException:
            problem = f"was silent for {self._quiet:g} seconds: try again, or choose another writer."
        except httpx.ConnectError:
            problem = "cannot be reached: check that its server runs, and OPENAI_BASE_URL."
        except httpx.TransportError:
            problem = "broke off in the middle: go on from what there is, or try again."
        except (httpx.HTTPError, httpx.InvalidURL):
            problem = "cannot be asked: check OPENAI_BASE_URL."
        except _Failure as failure:
            problem = str(failure)
        if problem:  # here, where no error of httpx is being handled that would travel along
            raise StoryError(f"The language model's endpoint {problem}")

    def _answer(self, client: Any) -> Iterator[str]:
        """Ask, if need be more than once, until an answer begins."""
        url, waits = f"{self._endpoint.base}/chat/completions", 0
        while True:
            body = {"model": self._endpoint.model, **self._body, "stream": True}
            with client.stream("POST", url, json=body) as response:
                if response.status_code == 200:
                    yield from self._read(response)
                    return
                status, after = response.status_code, _seconds(response.headers)
                told = _told(b"".join(_chunks(response, self._end)))
            if status in (400, 422) and self._leave_out(told):
                continue
            pause = after if after is not None else (1.0 if status != 429 else None)
            if status in BUSY and pause is not None and pause <= PATIENCE and waits < RETRIES:
                waits += 1
                time.sleep(pause)
                continue
            raise _Failure(self._refusal(status, after, told))

    def _leave_out(self, told: Mapping[str, str]) -> bool:
        """Take out of the request what the endpoint does not know; whether there was something."""
        for name in OPTIONAL:
            if name in self._body and (told["param"] == name or name in told["message"]):
                value = self._body.pop(name)
                if name == "max_tokens" and "max_completion_tokens" in told["message"]:
                    self._body["max_completion_tokens"] = value
                return True
        return False

    def _refusal(self, status: int, after: float | None, told: Mapping[str, str]) -> str:
        """What a status means, and what to do."""
        if status in (401, 403):
            return f"did not accept its key ({status}): OPENAI_API_KEY has to be set right on this server."
        if status == 404:
            return f"is not there, or has no such model (404): check OPENAI_MODEL and {_ADDRESS}."
        if status == 429 and "quota" in told["code"] + told["message"]:
            return "has no quota left (429): choose another writer."
        if status == 429:
            when = f"in {_in_words(after)}" if after is not None else "later"
            return f"has too much to do (429): try again {when}, or choose another writer."
        if status >= 500:
            when = f"in {_in_words(after)}" if after is not None else "in a while"
            return f"has a fault of its own ({status}): try again {when}, or choose another writer."
        if 300 <= status < 400:
            return f"sends elsewhere ({status}): set OPENAI_BASE_URL to the place itself."
        said = told["message"].replace(self._endpoint.key or "\0", "…")[:200].rstrip(" .")
        return f"refused the request ({status}{': ' + said if said else ''})."

    # -- the answer --------------------------------------------------------------------------------------------------
    def _read(self, response: Any) -> Iterator[str]:
        kind = response.headers.get("content-type", "").partition(";")[0].strip()
        if kind == "application/json":  # it does not stream
            whole = b"".join(_chunks(response, self._end))
            yield from self._piece(_json(whole), "message")
        elif kind == "text/event-stream":
            for data in _events(_chunks(response, self._end)):
                if data == b"[DONE]":
                    self.finish = self.finish or "stop"
                    break
                yield from self._piece(_json(data), "delta")
        else:
            raise _Failure(f"does not speak OpenAI's protocol: check {_ADDRESS}.")
        if not self.finish:
            raise _Failure("broke off in the middle: go on from what there is, or try again.")

    def _piece(self, record: Any, part: str) -> Iterator[str]:
        if not isinstance(record, dict):
            raise _Failure(_GARBLED)
        if record.get("error"):
            raise _Failure("reports a fault in the middle of its answer: go on from what there is, or try again.")
        choices = record.get("choices")
        if not isinstance(choices, list):
            raise _Failure(_GARBLED)
        for choice in choices[:1]:
            message = choice.get(part) if isinstance(choice, dict) else None
            message = message if isinstance(message, dict) else {}
            if isinstance(piece := message.get("content"), str) and piece:
                yield piece
            if isinstance(reason := choice.get("finish_reason") if isinstance(choice, dict) else None, str):
                self.finish = reason
            if message.get("refusal") or self.finish == "content_filter":
                raise _Failure("declined to write this: change the sentence or the photo, or choose another writer.")


class _Failure(Exception):
    """The rest of a sentence that begins with "The language model's endpoint"."""


_ADDRESS = "OPENAI_BASE_URL (often it ends in /v1)"
_GARBLED = "answered something that is not OpenAI's protocol: check OPENAI_BASE_URL, or choose another writer."


def _httpx() -> Any:
    try:
        return importlib.import_module("httpx")
    except ImportError:
        raise StoryError("The endpoint is asked through httpx, which is not installed: pip install httpx.") from None


@functools.cache
def _certificates() -> Any:
    """Whom to trust; reading them takes longer than a request."""
    return _httpx().create_ssl_context()


def _chunks(response: Any, end: float) -> Iterator[bytes]:
    """The body as it comes, not for ever."""
    total = 0
    for chunk in response.iter_bytes():
        total += len(chunk)
        if time.monotonic() > end or total > MOST_BYTES:
            raise _Failure("did not come to an end: go on from what there is, or try again.")
        yield chunk


def _events(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The data of server-sent events; comments, which keep connections alive, and other fields are left out."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
    if rest.startswith(b"data:"):
        yield rest[5:].strip()


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        pass
    raise _Failure(_GARBLED)


def _told(data: bytes) -> dict[str, str]:
    """What the endpoint says of an error: `message`, `code`, `param`, each "" if it does not say."""
    found: Any = {}
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(data)
    if isinstance(found, dict):
        found = found.get("error", found)
    if isinstance(found, str):
        found = {"message": found}
    found = found if isinstance(found, dict) else {}
    texts = {"message": found.get("message"), "code": found.get("code") or found.get("type")}
    texts |= {"param": found.get("param")}
    return {name: " ".join(text.split()) if isinstance(text, str) else "" for name, text in texts.items()}


def _seconds(headers: Mapping[str, str]) -> float | None:
    """How long to wait, from `retry-after`: seconds, or a date."""
    value = headers.get("retry-after", "").strip()
    with contextlib.suppress(ValueError):
        return max(float(value), 0.0) if float(value) < 1e7 else None
    with contextlib.suppress(ValueError, TypeError):
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    return None


def _in_words(seconds: float) -> str:
    for size, unit in ((3600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= size or size == 1:
            count = max(-int(-seconds // size), 1)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return "a moment"
