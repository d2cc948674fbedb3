"""Photographs of a folder by what a sentence says, from an index that is kept between calls.

The index of a folder is one safetensors file in the user's cache: a vector for each photograph, with its name, size and
time of change, so that a second search embeds only what is new or changed. Photographs that cannot be read are left
out and counted. An index of another joint embedding is not used but made anew.

Shapes: n photographs, D common width.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .errors import ImageError
from .images import load_image

SUFFIXES = frozenset(".jpg .jpeg .png .webp .gif .avif .heic .heif .bmp .tif .tiff .jp2".split())
BATCH = 16
SAVE_EVERY = 512  # photographs; at most so many are looked at again after a stop


def default_index_folder() -> Path:
    """Where indexes are kept: below `PICTALE_CACHE`, else ~/.cache/pictale."""
    return Path(os.environ.get("PICTALE_CACHE", "~/.cache/pictale")).expanduser() / "photo-index"


@dataclass(frozen=True)
class FoundPhoto:
    """A photograph that a search found: its path and the cosine of its vector and the sentence's (-1 to 1)."""

    path: Path
    similarity: float


@dataclass
class PhotoIndex:
    """The photographs of a folder and the folders below it.

    Args:
        folder: Which.
        embedding: Fingerprint of the joint embedding.
        vectors: By name relative to the folder, float32 [D]; None for one that cannot be read.
        states: Size and time of change of each file, when it was looked at.
    """

    folder: Path
    embedding: str
    vectors: dict[str, np.ndarray | None] = field(default_factory=dict, repr=False)
    states: dict[str, list[int]] = field(default_factory=dict, repr=False)

    @property
    def unreadable(self) -> list[str]:
        """Names of photographs that cannot be read."""
        return [name for name, vector in self.vectors.items() if vector is None]

    @classmethod
    def open(cls, folder: str | Path, embedding: str, kept_in: str | Path | None = None) -> tuple[PhotoIndex, Path]:
        """The index as it was kept, or an empty one, and the file it is kept in.

        Raises:
            ImageError: no such folder.
        """
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise ImageError(f"There is no folder {folder} of photos to search: check its name.")
        place = Path(kept_in).expanduser() if kept_in is not None else default_index_folder()
        name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:20]  # names may be no UTF-8
        file = place / f"{name}.safetensors"
        return cls._read(folder, embedding, file) or cls(folder, embedding), file

    @classmethod
    def _read(cls, folder: Path, embedding: str, file: Path) -> PhotoIndex | None:
        try:
            with safe_open(file, framework="np") as stored:
                metadata = stored.metadata() or {}
                if metadata.get("embedding") != embedding:
                    return None
                rows = stored.get_tensor("vectors").astype(np.float32)
            states = json.loads(metadata["states"])
            names = json.loads(metadata["names"])
            vectors = {name: rows[i] if good else None for i, (name, good) in enumerate(names)}
            return cls(folder, embedding, vectors, {name: [int(x) for x in states[name]] for name in vectors})
        except (SafetensorError, OSError, KeyError, IndexError, TypeError, ValueError):
            return None  # not there, or damaged: it is only a cache

    def save(self, file: Path) -> None:
        """Keep it; a cache that cannot be written is no reason to fail a search."""
        width = next((len(v) for v in self.vectors.values() if v is not None), 1)
        rows = [np.zeros(width) if v is None else v for v in self.vectors.values()]
        metadata = {
            "embedding": self.embedding,
            "folder": os.fsencode(self.folder.resolve()).decode("utf-8", "replace"),
            "names": json.dumps([[name, v is not None] for name, v in self.vectors.items()]),
            "states": json.dumps(self.states),
        }
        temporary = file.with_name(f"{file.name}.{os.getpid()}.writing")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({"vectors": np.array(rows, dtype=np.float16).reshape(len(rows), width)}, temporary, metadata)
            os.replace(temporary, file)
        except (OSError, SafetensorError):
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def update(
        self,
        embed: Callable[[Sequence[Any]], np.ndarray],
        file: Path,
        progress: Callable[[float, str], None] | None = None,
    ) -> None:
        """Look at what is new or changed, and forget what is gone.

        Args:
            embed: Vectors float32 [n, D] of n images as `load_image` gives them.
            file: Where to keep it, also while it goes on.
            progress: Called with the share done and what is being done.
        """
        there = dict(sorted(_photos(self.folder).items()))
        gone = [name for name in self.vectors if name not in there]
        for name in gone:
            del self.vectors[name], self.states[name]
        todo = [name for name, state in there.items() if self.states.get(name) != state]
        for start in range(0, len(todo), BATCH):
            names = todo[start : start + BATCH]
            images = {name: image for name in names if (image := _read_photo(self.folder / name)) is not None}
            vectors = dict(zip(images, embed(list(images.values())), strict=True)) if images else {}
            for name in names:  # rounded as in the file, so that a search gives the same from memory and from disk
                vector = vectors.get(name)
                self.vectors[name] = None if vector is None else vector.astype(np.float16).astype(np.float32)
                self.states[name] = there[name]
            done = start + len(names)
            if done % SAVE_EVERY < BATCH:
                self.save(file)
            if progress:
                progress(done / len(todo), f"{done:,} of {len(todo):,} new photos looked at")
        if todo or gone:
            self.save(file)

    def nearest(self, query: np.ndarray, k: int) -> list[FoundPhoto]:
        """The k photographs nearest to a vector [D], best first; fewer if there are no more that can be read."""
        names = [name for name, vector in self.vectors.items() if vector is not None]
        if not names:
            return []
        scores = np.stack([self.vectors[name] for name in names]) @ query  # [n]
        best = np.argsort(-scores, kind="stable")[:k]
        return [FoundPhoto(self.folder / names[i], float(scores[i])) for i in best]


def _photos(folder: Path) -> dict[str, list[int]]:
    """Files that may be photographs, in the folder and below, hidden ones left out: size and time of change by name."""
    found = {}
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = Path(root) / name
            if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                try:
                    status = path.stat()
                except OSError:
                    continue  # gone meanwhile, or a broken link
                found[path.relative_to(folder).as_posix()] = [status.st_size, status.st_mtime_ns]
    return found


def _read_photo(path: Path) -> Any:
    try:
        return load_image(path)
    except ImageError:
        return None
