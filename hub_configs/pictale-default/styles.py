"""Styles: the mean thought of a book's passages, and the shift from what is seen to how it is told.

neural-storyteller (github.com/ryankiros/neural-storyteller, `generate.py`): with x the mean vector of the captions, c
the mean vector of captions in general and b the mean vector of a book's passages,

    F(x) = x - c + s sum_i w_i b_i        sum_i w_i = 1, s the strength

`x - c` keeps what is particular to this picture, b says how passages of the genre sound. A style is one vector with its
provenance, and some pages of its book where it was made of a user's own, stored as safetensors; it belongs to the
encoder whose fingerprint it carries, and no other accepts it.

Shapes: D thought width.
"""

from __future__ import annotations

import bz2
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .book_text import BOOK_SUFFIXES, read_book
from .errors import StyleError
from .text import directed_quotes, split_sentences

if TYPE_CHECKING:
    from .modeling_skip_thoughts import PictaleSkipThoughtsEncoder

MINIMUM_PASSAGES = 20
PASSAGE_CHARACTERS = (60, 400)
PAGES = 200  # that a style keeps
PAGE_WORDS = (25, 80)  # of such a page
MAX_PAGE_BYTES = 1_000_000  # decompressed: a small file must not fill the memory
MAX_SOURCE = 300  # characters of where a style came from
_NAME = re.compile(r"[\w][\w .'-]{0,39}")


@dataclass(frozen=True)
class Style:
    """A named mean vector.

    Args:
        name: How users call it.
        vector: float32 [D], mean of the passages' vectors.
        passages: How many passages it is the mean of.
        source: Where the text came from, in words.
        encoder: Fingerprint of the skip-thought encoder.
        filter: Shortest and longest passage that counted, in characters.
        pages: Some of the passages themselves, which a writer may be shown to write in their manner.
        page_vectors: float16 [len(pages), D], theirs.
    """

    name: str
    vector: np.ndarray
    passages: int
    source: str
    encoder: str
    filter: tuple[int, int] = PASSAGE_CHARACTERS
    pages: tuple[str, ...] = ()
    page_vectors: np.ndarray | None = field(default=None, repr=False)

    def save(self, path: str | Path) -> None:
        """Write the style as one safetensors file; an existing file is replaced only when the new one is whole."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".writing")
        temporary.write_bytes(self.to_bytes())
        os.replace(temporary, path)

    def to_bytes(self) -> bytes:
        """What `save` writes."""
        metadata = {
            "format": "pictale-style",
            "name": self.name,
            "passages": str(self.passages),
            "source": self.source,
            "encoder": self.encoder,
            "filter": json.dumps(self.filter),
        }
        arrays = {"vector": np.ascontiguousarray(self.vector, dtype=np.float32)}
        if self.pages:
            text = bz2.compress("\n".join(self.pages).encode())
            arrays |= {
                "pages": np.frombuffer(text, np.uint8),
                "page_vectors": np.ascontiguousarray(self.page_vectors, dtype=np.float16),
            }
        return save(arrays, metadata)

    @classmethod
    def load(cls, path: str | Path) -> Style:
        """Read a style file.

        Raises:
            StyleError: missing, damaged, or not a style.
        """
        try:
            with safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != "pictale-style":
                    raise StyleError(f"{path} is not a style file: make one with `python -m training.make_style`.")
                vector = file.get_tensor("vector").astype(np.float32)
                if vector.ndim != 1 or not np.isfinite(vector).all():
                    raise ValueError("its vector is none")
                pages, page_vectors = (), None
                if "pages" in file.keys():  # noqa: SIM118 - not a mapping
                    pages = tuple(_decompressed(file.get_tensor("pages")).split("\n"))
                    page_vectors = file.get_tensor("page_vectors")
                    if page_vectors.shape != (len(pages), len(vector)) or not np.isfinite(page_vectors).all():
                        raise ValueError("its pages do not fit together")
                return cls(
                    name=_checked_name(metadata["name"]),
                    vector=vector,
                    passages=int(metadata["passages"]),
                    source=metadata["source"][:MAX_SOURCE],
                    encoder=metadata["encoder"],
                    filter=tuple(json.loads(metadata["filter"])),
                    pages=pages,
                    page_vectors=page_vectors,
                )
        except FileNotFoundError:
            raise StyleError(f"There is no style file {path}.") from None
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            if isinstance(error, StyleError):
                raise
            raise StyleError(f"The style file {path} is damaged ({error}): make or download it again.") from None

    def check_encoder(self, fingerprint: str) -> None:
        """Raise StyleError unless the style was made with the encoder of this fingerprint."""
        if self.encoder != fingerprint:
            raise StyleError(
                f"The style '{self.name}' was made with another encoder ({self.encoder}, not {fingerprint}): "
                "make it again from its text with this model."
            )


def _decompressed(data: np.ndarray) -> str:
    """The text; ValueError if it is not whole, or longer than any style's."""
    decompressor = bz2.BZ2Decompressor()
    text = decompressor.decompress(data.tobytes(), MAX_PAGE_BYTES)
    if not decompressor.eof:
        raise ValueError("its text is not whole or too long")
    return text.decode()


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise StyleError(f"'{name[:60]}' cannot name a style: use 1 to 40 letters, digits, spaces, dots or hyphens.")
    return name


def split_passages(text: str, limits: tuple[int, int] = PASSAGE_CHARACTERS) -> list[list[str]]:
    """Passages of a book: each a list of consecutive sentences of one paragraph, `limits` characters long in all."""
    shortest, longest = limits
    passages: list[list[str]] = []
    for paragraph in re.split(r"\n\s*\n|\n(?=\S.{80})", text):
        current: list[str] = []
        for sentence in split_sentences(directed_quotes(paragraph)):
            if current and sum(map(len, current)) + len(sentence) > longest:
                passages.append(current)
                current = []
            current.append(sentence)
        passages.append(current)
    return [p for p in passages if shortest <= sum(map(len, p)) <= longest]


def read_texts(path: str | os.PathLike) -> list[str]:
    """Contents of a .txt, .md or .epub file, or of all of them in a folder and those below it.

    Raises:
        StyleError: no such file, not text, or a folder without any.
    """
    place = Path(path)
    if not place.is_dir():
        return [read_book(place)]
    files = [file for file in sorted(place.rglob("*")) if file.suffix.lower() in BOOK_SUFFIXES and file.is_file()]
    if not files:
        raise StyleError(f"There is no .txt, .md or .epub file in {path}.")
    return [read_book(file) for file in files]


def make_style(
    text: str | Iterable[str],
    name: str,
    encoder: PictaleSkipThoughtsEncoder,
    source: str = "a text of the user's own",
    limits: tuple[int, int] = PASSAGE_CHARACTERS,
    max_passages: int = 5000,
    progress: Callable[[float, str], None] | None = None,
    pages: int = PAGES,
) -> Style:
    """Make a style from a text, in seconds and without training.

    Args:
        text: A book, or several.
        name: 1 to 40 letters, digits, spaces, dots, hyphens or apostrophes.
        encoder: The skip-thought encoder of the pipeline that will use the style.
        source: Provenance kept in the style.
        limits: Shortest and longest passage that counts, in characters.
        max_passages: More than these are sampled evenly.
        progress: Called with a share done and a word on what is being done.
        pages: So many passages of the text are kept in the style, for the storyteller to write in their manner; 0
            keeps none of it.

    Raises:
        StyleError: the name cannot be used, or the text has fewer than `MINIMUM_PASSAGES` passages.
    """
    from .fingerprints import encoder_fingerprint  # brings torch, which a page that only shows styles need not wait for

    _checked_name(name)
    if progress:
        progress(0.0, "looking for passages")
    passages = [p for book in ([text] if isinstance(text, str) else text) for p in split_passages(book, limits)]
    if len(passages) < MINIMUM_PASSAGES:
        raise StyleError(
            f"This text has {len(passages)} passages of {limits[0]} to {limits[1]} characters; a style needs at least "
            f"{MINIMUM_PASSAGES}. Give a longer text: a chapter is enough, a whole book is better."
        )
    step = max(1, -(-len(passages) // max_passages))
    passages = passages[::step]
    vectors = []
    for start in range(0, len(passages), 250):
        if progress:
            progress(start / len(passages), f"reading passage {start:,} of {len(passages):,}")
        vectors.append(encode_passages(encoder, passages[start : start + 250]))
    thoughts = np.concatenate(vectors)
    mean = thoughts.mean(0)
    texts = [" ".join(" ".join(passage).split()) for passage in passages]
    fit = [i for i, text in enumerate(texts) if PAGE_WORDS[0] <= len(text.split()) <= PAGE_WORDS[1]]
    kept = fit[:: max(1, -(-len(fit) // pages))] if pages else []
    if progress:
        progress(1.0, f"read {len(passages):,} passages")
    return Style(
        name,
        mean,
        len(passages),
        source,
        encoder_fingerprint(encoder),
        limits,
        tuple(texts[i] for i in kept),
        thoughts[kept].astype(np.float16) if kept else None,
    )


def encode_passages(encoder: PictaleSkipThoughtsEncoder, passages: list[list[str]]) -> np.ndarray:
    """The thought of a passage is the mean of its sentences' unit vectors: [len(passages), D]."""
    flat = [sentence for passage in passages for sentence in passage]
    vectors = encoder.encode(flat)
    owner = np.repeat(np.arange(len(passages)), [len(p) for p in passages])
    sums = np.zeros((len(passages), vectors.shape[1]), dtype=np.float32)
    np.add.at(sums, owner, vectors)
    return sums / np.maximum(np.bincount(owner, minlength=len(passages)), 1)[:, None]


def parse_style(style: str | Style | Mapping[str, float], known: Mapping[str, Style]) -> tuple[str, np.ndarray]:
    """Resolve what a user calls a style into a label and the blended vector sum_i w_i b_i.

    Args:
        style: A name, `"romance:0.7,horror:0.3"`, a mapping of name to weight, or a `Style`. `Fairy tale` is as good as
            `fairy_tale`.
        known: The styles of the pipeline.

    Raises:
        StyleError: an unknown name, a weight that is not a number, or weights that do not sum above 0.
    """
    if isinstance(style, Style):
        return style.name, style.vector
    given = dict(style) if isinstance(style, Mapping) else _parse_blend(str(style))
    plain = {_plain(name): name for name in known}
    weights: dict[str, float] = {}
    for said, weight in given.items():
        name = said if said in known else plain.get(_plain(said))
        if name is None:
            raise StyleError(f"Unknown style '{said[:60]}': choose from {', '.join(known)}, or make your own.")
        if not (isinstance(weight, (int, float)) and 0 <= weight < 1e6):
            raise StyleError(f"The weight of style '{name}' must be a number of 0 or more.")
        weights[name] = weights.get(name, 0.0) + weight
    total = sum(weights.values())
    if total <= 0:
        raise StyleError("The weights of a blend of styles must sum to more than 0, as in 'romance:0.7,horror:0.3'.")
    vector = sum(known[name].vector * (weight / total) for name, weight in weights.items())
    label = next(iter(weights)) if len(weights) == 1 else ",".join(f"{n}:{w / total:g}" for n, w in weights.items())
    return label, np.asarray(vector, dtype=np.float32)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _parse_blend(text: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, separator, weight = part.strip().partition(":")
        try:
            weights[name.strip()] = weights.get(name.strip(), 0.0) + (float(weight) if separator else 1.0)
        except ValueError:
            raise StyleError(f"'{weight}' is not a weight: write styles as 'romance:0.7,horror:0.3'.") from None
    return weights


def shift_style(x: np.ndarray, caption_mean: np.ndarray, style: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """x - c + s b; all [D]."""
    return (x - caption_mean + strength * style).astype(np.float32)
