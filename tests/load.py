"""Many visitors at the same moment: how long each of them waits, and how much memory the server takes.

    python -m tests.load                                        starts app.py by itself, then 20 visitors come
    python -m tests.load --at-once 2 --visitors 40 --json       stories written at the same time; for programs
    python -m tests.load https://me-pictale.hf.space            a server that runs already (its memory is not seen)

Each visitor uploads a photo of his own, reads the captions, and has a story told in one of the styles. One more goes
first and is not counted, so that the models are loaded. Exit code 0 means that everybody got a story.
"""

import argparse
import asyncio
import io
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
from PIL import Image

from tests.serving import REPOSITORY, running_app

EXAMPLES = sorted((REPOSITORY / "hub_configs" / "pictale-default" / "examples").glob("*.jpg"))
STYLES = ("everyday", "romance", "adventure", "science_fiction", "mystery", "horror", "fairy_tale")
PATIENCE = 600.0  # seconds after which a visitor gives up
REST = 10.0  # seconds after the last story before memory is read again
MIB = 2**20


class Failure(Exception):
    """What a visitor got instead of a story, in words."""


@dataclass(frozen=True)
class Waits:
    """Seconds of one visitor.

    Args:
        captions: From the upload to the captions.
        first_word: From the wish for a story to its first word.
        story: From the wish to the last word.
        total: From the upload to the last word.
        words: Of the story.
    """

    captions: float
    first_word: float
    story: float
    total: float
    words: int


def photo_of(visitor: int) -> bytes:
    """A photo nobody else has: an example, cut a little differently for each visitor."""
    image = Image.open(EXAMPLES[visitor % len(EXAMPLES)]).convert("RGB")
    cut, file = visitor // len(EXAMPLES) + 1, io.BytesIO()
    image.crop((cut, cut, image.width - cut, image.height - cut)).save(file, "JPEG", quality=90)
    return file.getvalue()


async def answers(client: httpx.AsyncClient, endpoint: str, data: list[Any]) -> AsyncIterator[Any]:
    """Results of an endpoint as they come, the last one last."""
    joined = await client.post(f"gradio_api/call/{endpoint}", json={"data": data})
    if joined.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        raise Failure("the queue is full")
    joined.raise_for_status()
    async with client.stream("GET", f"gradio_api/call/{endpoint}/{joined.json()['event_id']}") as stream:
        event = ""
        async for line in stream.aiter_lines():
            kind, _, value = line.partition(": ")
            if kind == "event":
                event = value
            elif kind == "data" and event == "error":
                raise Failure(f"/{endpoint}: {value}")
            elif kind == "data" and event in ("generating", "complete"):
                yield json.loads(value)[0]
                if event == "complete":
                    return
    raise Failure(f"/{endpoint}: the stream was cut off")


async def visit(client: httpx.AsyncClient, visitor: int, length: str) -> Waits:
    """Upload, captions, story; what was waited for."""
    photo = photo_of(visitor)
    start = time.monotonic()
    sent = await client.post("gradio_api/upload", files={"files": (f"visitor{visitor}.jpg", photo, "image/jpeg")})
    sent.raise_for_status()
    file = {"path": sent.json()[0], "meta": {"_type": "gradio.FileData"}}
    async for captions in answers(client, "caption", [file, "both"]):
        if not captions:
            raise Failure("/caption: no captions")
    captioned, first, story = time.monotonic(), None, ""
    wishes = [STYLES[visitor % len(STYLES)], visitor, 1.0, length, None, "both", "storyteller"]
    async for told in answers(client, "tell", [file, *wishes]):
        story = told["story"]
        first = first or (time.monotonic() if story else None)
    if first is None:
        raise Failure("/tell: an empty story")
    end = time.monotonic()
    return Waits(captioned - start, first - captioned, end - captioned, end - start, len(story.split()))


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """What `work` comes to, in a thread of its own: this one may have an event loop already, as playwright's has."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


async def crowd(url: str, visitors: int, length: str) -> tuple[list[Waits], list[str]]:
    """All visitors at once: the waits of those who got a story, and what happened to the others."""

    async def one(visitor: int) -> Waits | str:
        try:
            async with asyncio.timeout(PATIENCE):
                return await visit(client, visitor, length)
        except TimeoutError:
            return f"visitor {visitor}: no story within {PATIENCE:.0f} s"
        except (Failure, httpx.HTTPError) as error:
            return f"visitor {visitor}: {error or type(error).__name__}"

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits, follow_redirects=True) as client:
        results = await asyncio.gather(*map(one, range(visitors)))
    return [r for r in results if isinstance(r, Waits)], [r for r in results if isinstance(r, str)]


class Memory:
    """Resident memory of a process, in MiB, looked at ten times a second."""

    def __init__(self, pid: int):
        self.process, self.peak = psutil.Process(pid), 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def now(self) -> float:
        return self.process.memory_info().rss / MIB

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self.peak = max(self.peak, self.now())

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def measure(url: str, visitors: int, length: str, pid: int | None = None, rest: float = REST) -> dict[str, Any]:
    """Let one visitor go first, then all come at once; memory is read again `rest` seconds after the last has left.

    Returns:
        `failures`, sentences; `seconds`, median and worst of each of `Waits`; `words_a_second` of all stories;
        `memory` in MiB, where there is a process to look at.
    """
    _, failed = run(crowd(url, 1, "Short"))
    if failed:
        return {"visitors": visitors, "failures": failed}
    report: dict[str, Any] = {"visitors": visitors, "length": length, "load_average": os.getloadavg()[0]}
    if pid is None:
        waits, failures = run(crowd(url, visitors, length))
    else:
        with Memory(pid) as memory:
            before = memory.now()
            waits, failures = run(crowd(url, visitors, length))
            time.sleep(rest)
        report["memory"] = {"before": before, "peak": memory.peak, "after": memory.now()}
    report["failures"] = failures
    report["seconds"] = {
        name: {"median": statistics.median(times), "worst": max(times)}
        for name in ("captions", "first_word", "story", "total")
        if (times := [getattr(wait, name) for wait in waits])
    }
    if waits:
        report["words_a_second"] = sum(wait.words for wait in waits) / max(wait.total for wait in waits)
    return report


def say(report: dict[str, Any]) -> None:
    """The report for people."""
    print(f"{report['visitors']} visitors, {len(report['failures'])} of them without a story")
    for failure in report["failures"]:
        print(f"    {failure}")
    for name, times in report.get("seconds", {}).items():
        print(f"{name.replace('_', ' '):12} median {times['median']:6.1f} s   worst {times['worst']:6.1f} s")
    if "words_a_second" in report:
        print(f"{'all stories':12} {report['words_a_second']:.0f} words a second")
    if "memory" in report:
        print("memory       " + ", ".join(f"{name} {mib:.0f} MiB" for name, mib in report["memory"].items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", nargs="?", help="a page that runs already; without it, app.py is started")
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--length", choices=("Short", "Medium", "Long"), default="Medium")
    parser.add_argument("--at-once", type=int, help="stories written at the same time, if app.py is started")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    arguments = parser.parse_args()
    if arguments.visitors < 1:
        parser.error("--visitors must be 1 or more")
    if arguments.url:
        report = measure(f"{arguments.url.rstrip('/')}/", arguments.visitors, arguments.length)
    else:
        limit = {} if arguments.at_once is None else {"GRADIO_DEFAULT_CONCURRENCY_LIMIT": str(arguments.at_once)}
        with running_app(**limit) as (url, server):
            report = measure(url, arguments.visitors, arguments.length, server.pid)
    print(json.dumps(report, indent=2)) if arguments.json else say(report)
    sys.exit(1 if report["failures"] else 0)


if __name__ == "__main__":
    main()
