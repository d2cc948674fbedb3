"""A server that speaks OpenAI's chat protocol, and fails in every way that one can, on a free port of this machine."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-of-the-test-0123456789"


@dataclass
class ChatServer:
    """What the server does, to be changed by a test, and what it met.

    Args:
        story: What its model says; a # in it is the number of the request.
        pause: Seconds before each word.
        turns: Each event takes one; without any left it waits.
        statuses: Of the next requests, each with headers and a body; when none is left it answers.
        events: The data of its events in place of those of `story`; `None` cuts the connection.
        content_type, whole: Of the answer, and the answer itself where it does not stream.
        unknown: Parameters that it refuses, as OpenAI's newer models refuse `max_tokens`.
    """

    story: str = "A dog ran along the beach. It saw a boat, and a man in it who did not move. Nobody else was there."
    pause: float = 0.0
    turns: threading.Semaphore | None = None
    statuses: list[tuple[int, dict[str, str], Any]] = field(default_factory=list)
    events: list[Any] | None = None
    content_type: str = "text/event-stream"
    whole: bytes | None = None
    unknown: tuple[str, ...] = ()
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    sent: int = 0
    hung_up: threading.Event = field(default_factory=threading.Event)
    url: str = ""


def delta(content: str | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """An event's data."""
    part = {} if content is None else {"content": content}
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": part | more, "finish_reason": finish}]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    chat: ChatServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.chat.requests.append(body)
        self.chat.headers.append({name.lower(): value for name, value in self.headers.items()})
        if self.path != "/v1/chat/completions":
            return self.answer(404, {}, {"error": {"message": "no such path"}})
        for name in self.chat.unknown:
            if name in body:
                hint = " Use 'max_completion_tokens' instead." if name == "max_tokens" else ""
                message = f"Unsupported parameter: '{name}' is not supported with this model.{hint}"
                return self.answer(400, {}, {"error": {"message": message, "param": name}})
        if self.chat.statuses:
            return self.answer(*self.chat.statuses.pop(0))
        if self.chat.whole is not None:
            return self.answer(200, {"Content-Type": self.chat.content_type}, self.chat.whole)
        try:
            self.stream()
        except OSError:  # the other side is gone
            self.chat.hung_up.set()
        self.close_connection = True

    def answer(self, status: int, headers: dict[str, str], body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", self.chat.content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        events = self.chat.events
        if events is None:
            words = self.chat.story.replace("#", str(len(self.chat.requests))).split(" ")
            events = [delta("", role="assistant"), *(delta(w if i == 0 else f" {w}") for i, w in enumerate(words))]
            events += [delta(finish="stop"), {"choices": [], "usage": {"total_tokens": 1}}, "[DONE]"]
        self.chunk(b": keep-alive\r\n\r\n")
        for event in events:
            if event is None:
                return self.connection.close()
            time.sleep(self.chat.pause)
            if self.chat.turns is not None:
                self.chat.turns.acquire()
            data = event if isinstance(event, str) else json.dumps(event)
            self.chunk(f"data: {data}\n\n".encode())
            self.chat.sent += 1
        self.chunk(b"")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


@contextmanager
def running_chat() -> Iterator[ChatServer]:
    """The server, until the block ends."""
    chat = ChatServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("ChatHandler", (Handler,), {"chat": chat}))
    server.daemon_threads = True
    chat.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield chat
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
