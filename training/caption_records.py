"""What a reader of a caption format hands over, before a split is chosen: rows, and photographs read when asked for.

A data set of photographs may be larger than memory, so only names, captions and splits are held; the encoded
photographs stay in their files or in the memory-mapped table.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling.errors import DataError

MAX_FOLDERS = 300
"""Folders looked into for photographs that a data set names, at most."""

SPLITS = {
    "train": ("train", "training", "restval"),  # Karpathy's restval is what COCO's validation has left over
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
_CANONICAL = {alias: name for name, aliases in SPLITS.items() for alias in aliases}


def canonical_split(name: Any) -> str | None:
    """`train`, `validation` or `test` for their usual names, any other name as it is, None for no name."""
    text = str(name).strip() if name is not None else ""
    return _CANONICAL.get(text.lower(), text) or None


class ImageFiles(Sequence[bytes | None]):
    """Photographs in files, read one by one; None for a file that is not there or cannot be read."""

    def __init__(self, paths: Sequence[Path | None], names: Sequence[str]):
        self.paths, self.names = paths, names

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> bytes | None:
        path = self.paths[row]
        try:
            return None if path is None else path.read_bytes()
        except OSError:
            return None

    def take(self, rows: Sequence[int]) -> ImageFiles:
        return ImageFiles([self.paths[row] for row in rows], [self.names[row] for row in rows])


class TableImages(Sequence[bytes | None]):
    """Photographs in the image column of a `datasets.Dataset`, read row by row from its memory-mapped table."""

    def __init__(self, table: Any, rows: Sequence[int], names: Sequence[str]):
        self.table, self.rows, self.names = table, rows, names

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> bytes | None:
        image = self.table[int(self.rows[row])]["image"]
        if not image:
            return None
        if image["bytes"] is not None:
            return image["bytes"]
        try:
            return Path(image["path"]).read_bytes() if image["path"] else None
        except OSError:  # missing, or an address of the web
            return None

    def take(self, rows: Sequence[int]) -> TableImages:
        return TableImages(self.table, [self.rows[row] for row in rows], [self.names[row] for row in rows])


@dataclass
class Records:
    """The photographs of a data set, in step.

    Args:
        image_ids: a name that stays the same when photographs are added.
        captions: as they stand in the data set, whatever their type.
        splits: canonical names; None for a photograph of no split.
    """

    image_ids: list[str]
    captions: list[list[Any]]
    splits: list[str | None]

    def images(self, rows: Sequence[int]) -> ImageFiles | TableImages:
        """The photographs of `rows`, to be read lazily."""
        raise NotImplementedError


@dataclass
class TableRecords(Records):
    """Rows of a `datasets.Dataset`.

    Args:
        table: its column `image`, not decoded; None if it holds captions only.
        rows: the rows of the photographs.
        path: what to call it.
    """

    table: Any
    rows: list[int]
    path: str

    def images(self, rows: Sequence[int]) -> TableImages:
        if self.table is None:
            raise DataError(
                f"The data set '{self.path}' has no column 'image' (or photo, jpg): it holds captions only."
            )
        return TableImages(self.table, [self.rows[i] for i in rows], [self.image_ids[i] for i in rows])


@dataclass
class FileRecords(Records):
    """Photographs named in a file of captions.

    Args:
        names: file names, perhaps with folders.
        roots: folders in and below which they are looked for.
    """

    names: list[str]
    roots: list[Path]

    def images(self, rows: Sequence[int]) -> ImageFiles:
        names = [self.names[i] for i in rows]
        return ImageFiles(locate(names, self.roots), names)


def file_records(rows: Iterable[tuple[str, Any, str | None]], roots: Sequence[Path]) -> FileRecords:
    """Group (file name, caption or list of captions, split) by file name, in the order of first appearance."""
    grouped: dict[str, tuple[list[Any], str | None]] = {}
    for name, caption, split in rows:
        captions, _ = grouped.setdefault(name, ([], split))
        captions.extend(caption if isinstance(caption, (list, tuple)) else [caption])
    return FileRecords(
        image_ids=list(grouped),
        captions=[captions for captions, _ in grouped.values()],
        splits=[split for _, split in grouped.values()],
        names=list(grouped),
        roots=list(roots),
    )


def locate(names: Sequence[str], roots: Sequence[Path]) -> list[Path | None]:
    """Where each named file lies in or below `roots`, two folders deep; None if nowhere.

    A name with folders is also looked for without them, unless two names would then be the same.
    """
    folders = list(dict.fromkeys(folder for root in roots for folder in _folders(root)))
    bare = [os.path.basename(name.replace("\\", "/")) for name in names]
    usable = [set(pair) if len(set(bare)) == len(bare) else {pair[0]} for pair in zip(names, bare, strict=True)]
    sample = usable[:: max(len(usable) // 50, 1)]
    hits = Counter({folder: sum(_first(folder, some) is not None for some in sample) for folder in folders})
    ranked = [folder for folder, _ in hits.most_common()]
    return [next((path for folder in ranked if (path := _first(folder, some))), None) for some in usable]


def _first(folder: Path, names: Iterable[str]) -> Path | None:
    return next((folder / name for name in sorted(names, key=len, reverse=True) if (folder / name).is_file()), None)


def _folders(root: Path, depth: int = 2) -> Iterator[Path]:
    """`root` and the folders below it, the nearest first."""
    level, seen = [root], 0
    for _ in range(depth + 1):
        below: list[Path] = []
        for folder in level:
            seen += 1
            if seen > MAX_FOLDERS:
                return
            yield folder
            try:
                below += sorted(Path(e.path) for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
            except OSError:
                continue
        level = below
