"""Records of a long job, one JSON object a line, kept as they come: a job that was killed goes on after the last."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .model_card import write_text


class JsonLines:
    """A file of records; its first line says what they are about.

    Args:
        path: Where; its folder is made.
        about: What the records depend on. A file about something else is begun anew.
    """

    def __init__(self, path: str | Path, about: Mapping[str, Any]) -> None:
        self.path, self.records = Path(path), []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]  # the last may have been cut off
        head = _line({"about": dict(about)})
        if whole[:1] == [head]:
            self.records = [json.loads(line) for line in whole[1:]]
        else:
            whole = [head]
        if whole != lines:
            write_text(self.path, b"".join(whole).decode())

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Keep records; they are on the disk when this returns."""
        records = list(records)
        with self.path.open("ab") as file:
            file.write(b"".join(map(_line, records)))
            file.flush()
            os.fsync(file.fileno())
        self.records += records


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """`write_text` of JSON for people."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
