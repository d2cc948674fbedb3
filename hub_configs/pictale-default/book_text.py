"""The text of a book file: plain text, Markdown, or an EPUB, which is a zip archive of HTML chapters."""

from __future__ import annotations

import io
import os
import posixpath
import re
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

from .errors import StyleError

BOOK_SUFFIXES = (".txt", ".md", ".epub")
MAX_BOOK_CHARACTERS = 20_000_000  # the longest novels have three to four million
_PARAGRAPHS = frozenset("p div br h1 h2 h3 h4 h5 h6 li blockquote tr section article title".split())
_HIDDEN = frozenset(("script", "style", "head"))
_CONTAINER = "META-INF/container.xml"


def read_book(path: str | os.PathLike) -> str:
    """The text of a .txt, .md or .epub file, paragraphs apart by empty lines.

    Raises:
        StyleError: no such file, not a book of these kinds, damaged, copy-protected or endless; in one sentence.
    """
    place = Path(path)
    if place.suffix.lower() not in BOOK_SUFFIXES:
        raise StyleError(f"{place.name} is not a .txt, .md or .epub file: save the text as one of these.")
    try:
        content = place.read_bytes()
    except OSError as error:
        raise StyleError(f"The text {path} cannot be read ({error.strerror}): check its name.") from None
    if place.suffix.lower() == ".epub":
        return _epub_text(content, place.name)
    if b"\0" in content[:4096]:
        raise StyleError(f"{place.name} is not plain text: save it as text in UTF-8.")
    if len(content) > 4 * MAX_BOOK_CHARACTERS:
        raise _too_long(place.name)
    return content.decode("utf-8-sig", errors="replace")


def _epub_text(content: bytes, name: str) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if "META-INF/encryption.xml" in archive.namelist() and "META-INF/rights.xml" in archive.namelist():
                raise StyleError(f"{name} is copy-protected: give a book without protection, or a .txt file.")
            chapters, left = [], MAX_BOOK_CHARACTERS
            for chapter in _chapters(archive):
                with archive.open(chapter) as file:
                    page = file.read(left + 1)  # never more than this is unpacked, whatever the archive claims
                left -= len(page)
                if left < 0:
                    raise _too_long(name)
                chapters.append(_html_text(page.decode("utf-8", errors="replace")))
    except (zipfile.BadZipFile, ElementTree.ParseError, KeyError, NotImplementedError, RuntimeError, OSError, EOFError):
        raise StyleError(f"{name} is damaged or not an EPUB: download it again, or save it as .txt.") from None
    return "\n\n".join(chapters)


def _chapters(archive: zipfile.ZipFile) -> list[str]:
    """Names of the chapters in reading order: the container names the package, whose spine lists them."""
    container = _xml(archive, _CONTAINER)
    package = container.find(".//{*}rootfile").get("full-path") if container.find(".//{*}rootfile") is not None else ""
    book = _xml(archive, package)
    items = {item.get("id"): item.get("href", "") for item in book.iterfind(".//{*}manifest/{*}item")}
    folder = posixpath.dirname(package)
    named = [items[ref.get("idref")] for ref in book.iterfind(".//{*}spine/{*}itemref")]
    return [posixpath.normpath(posixpath.join(folder, unquote(name))) for name in named]


def _xml(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
    with archive.open(name) as file:
        text = file.read(2_000_000)
    if b"<!ENTITY" in text:  # the only way in which a small file could grow without end
        raise ElementTree.ParseError("entities")
    return ElementTree.fromstring(text)


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.hidden += tag in _HIDDEN
        if tag in _PARAGRAPHS:
            self.parts.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in _HIDDEN and self.hidden > 0
        if tag in _PARAGRAPHS:
            self.parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(re.sub(r"\s+", " ", data))


def _html_text(page: str) -> str:
    parser = _Text()
    parser.feed(page)
    parser.close()
    paragraphs = (part.strip() for part in "".join(parser.parts).split("\n\n"))
    return "\n\n".join(part for part in paragraphs if part)


def _too_long(name: str) -> StyleError:
    return StyleError(f"{name} is longer than any book ({MAX_BOOK_CHARACTERS:,} characters): give a part of it.")
